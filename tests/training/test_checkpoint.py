from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ra_blip.errors import CheckpointError, OutputError
from ra_blip.training import checkpoint
from ra_blip.training.strategy import Strategy


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A net with a frozen part and a norm with buffers, after two steps."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        step(net, optimizer)
    return net, optimizer


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.randn(5, 3, generator=torch.Generator().manual_seed(3))).square().sum().backward()
    optimizer.step()


def tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    return {"weights": checkpoint.trained_state(net), "optimizer": checkpoint.moments(net, optimizer)}


def saved(folder: Path, *steps: int, keep: int = 0, **state: Any) -> list[Path]:
    given = tensors(*trained())
    return [checkpoint.save(folder, number, given, {"seed": 7, **state}, keep) for number in steps]


def folders(folder: Path) -> list[str]:
    """What lies there beside the pointer."""
    return sorted(path.name for path in folder.iterdir() if path.name != checkpoint.LATEST)


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    net, optimizer = trained()
    path = checkpoint.save(tmp_path, 2, tensors(net, optimizer), {"seed": 7}, 2)
    other, other_optimizer = trained(seed=5)
    other[0].load_state_dict(net[0].state_dict())  # frozen weights are not in a checkpoint: the run makes them again
    found, state = checkpoint.load(path)
    assert state == {"step": 2, "seed": 7}
    Strategy().restore(other, other_optimizer, found["weights"], found["optimizer"])
    for model, its in ((net, optimizer), (other, other_optimizer)):
        step(model, its)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_only_what_trains_is_written(tmp_path: Path) -> None:
    net, _ = trained()
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(checkpoint.trained_state(net)) == {"1.weight", "1.bias", "2.weight", "2.bias", *buffers}


def test_complete_ones_oldest_first(tmp_path: Path) -> None:
    paths = saved(tmp_path, 9, 10, 2)
    assert checkpoint.complete(tmp_path) == [paths[2], paths[0], paths[1]]
    assert all(checkpoint.damage(path) is None for path in paths)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    first, second = saved(tmp_path, 1, 2)
    file = second / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        place = data.index(b"[") if name == checkpoint.MANIFEST else len(data) // 2
        data[place] ^= 1
        file.write_bytes(data)
    assert checkpoint.complete(tmp_path) == [first]
    assert checkpoint.damage(second)


def test_leftovers_of_a_kill_are_passed_over(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    for name in (".step-0000002.abc", "step-0000003.abc", "step-x", "other"):
        path.rename(tmp_path / name)
        assert checkpoint.complete(tmp_path) == []
        (tmp_path / name).rename(path)
    (tmp_path / "step-0000005").mkdir()
    assert checkpoint.complete(tmp_path) == [path]


def test_leftovers_of_a_kill_go_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step-0000002.abc").mkdir()
    (tmp_path / ".step-0000002.abc" / "weights.safetensors").write_bytes(b"half")
    (path,) = saved(tmp_path, 3)
    assert folders(tmp_path) == [path.name]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert folders(tmp_path) == ["step-0000003", "step-0000004"]
    saved(tmp_path / "all", 1, 2, 3, keep=0)
    assert len(checkpoint.complete(tmp_path / "all")) == 3


def test_a_torn_one_is_not_among_the_last(tmp_path: Path) -> None:
    paths = saved(tmp_path, 1, 2, 3)
    (paths[2] / "state.json").unlink()
    saved(tmp_path, 4, keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-0000002", "step-0000004"]


def test_a_torn_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 3)
    (path / "weights.safetensors").write_bytes(b"half")
    saved(tmp_path, 3)
    assert checkpoint.complete(tmp_path) == [path]
    assert folders(tmp_path) == [path.name]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    files = json.loads((path / checkpoint.MANIFEST).read_text())["files"]
    assert set(files) == {entry.name for entry in path.iterdir()} - {checkpoint.MANIFEST}
    assert files["state.json"][0] == (path / "state.json").stat().st_size


def test_another_models_checkpoint(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="are not the ones this run trains"):
        Strategy().restore(net, torch.optim.AdamW(net.parameters()), checkpoint.load(path)[0]["weights"], {})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        saved(tmp_path / "file", 1)


# ---------------------------------------------------------------- files


def test_the_files_are_safetensors_of_every_format(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16]
    given = {str(kind): torch.arange(7).to(kind) for kind in [*kinds, torch.int8, torch.uint8]}
    given |= {"bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    given |= {"turned": torch.randn(3, 4).T, "large": torch.randn(5_000_000)}
    path = checkpoint.save(tmp_path, 1, {"odd": given}, {}, 0)
    found = load_file(path / "odd.safetensors")
    assert found.keys() == given.keys() and checkpoint.damage(path) is None
    for name, value in given.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_a_thousand_flipped_bits_and_ten_cuts_are_all_noticed(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    draw = np.random.default_rng(0)
    kept = {file: file.read_bytes() for file in sorted(path.iterdir())}
    for file, data in kept.items():
        for place in draw.integers(0, len(data) * 8, 250).tolist():
            altered = bytearray(data)
            altered[place // 8] ^= 1 << place % 8
            file.write_bytes(altered)
            wrong = checkpoint.damage(path)
            # Two letters of the manifest do not matter: the "step" that it repeats for people.
            same = file.name == checkpoint.MANIFEST and _files(file) == json.loads(data)["files"]
            assert same or (wrong is not None and str(path) in wrong)
        for length in draw.integers(0, len(data), 10).tolist():
            file.write_bytes(data[:length])
            assert checkpoint.damage(path) is not None
        file.write_bytes(data)
    assert checkpoint.damage(path) is None


def _files(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return None


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    paths = saved(tmp_path, 1, 2, 3)
    data = (paths[2] / "state.json").read_bytes()
    (paths[2] / "state.json").write_bytes(data[:-4])
    (paths[1] / "weights.safetensors").unlink()
    found, wrong = checkpoint.newest(tmp_path)
    assert found == paths[0]
    assert wrong[0] == f"{paths[2] / 'state.json'} is {len(data) - 4} bytes, its manifest says {len(data)}"
    assert "weights.safetensors" in wrong[1] and len(wrong) == 2
    assert checkpoint.newest(tmp_path / "nothing") == (None, [])


def test_the_pointer_names_the_last_one_and_nobody_depends_on_it(tmp_path: Path) -> None:
    paths = saved(tmp_path, 1, 2)
    assert (tmp_path / checkpoint.LATEST).read_text() == "step-0000002\n"
    (tmp_path / checkpoint.LATEST).write_text("step-0000009\n")
    assert checkpoint.newest(tmp_path) == (paths[1], [])


# ---------------------------------------------------------------- the best one


def test_the_best_is_kept_and_found(tmp_path: Path) -> None:
    for number, score in enumerate([0.1, 0.7, 0.7, 0.3, 0.2], 1):
        saved(tmp_path, number, keep=2, score=score)
    assert folders(tmp_path) == ["step-0000002", "step-0000004", "step-0000005"]
    best = checkpoint.best(tmp_path)
    assert best is not None and best.name == "step-0000002", "the earlier of two equal ones"
    for name, wanted in (("step-0000002", "step-0000004"), ("step-0000004", "step-0000005")):
        (tmp_path / name / "weights.safetensors").unlink()
        best = checkpoint.best(tmp_path)
        assert best is not None and best.name == wanted, "never one that is not whole"
    assert checkpoint.best(tmp_path / "nothing") is None
    assert saved(tmp_path / "unscored", 1) and checkpoint.best(tmp_path / "unscored") is None


# ---------------------------------------------------------------- a full disk, a kill inside a file


def test_a_full_disk_leaves_what_was_there_and_no_rest(tmp_path: Path) -> None:
    (first,) = saved(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kind = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OutputError, match=r"step-0000002: cannot be written \(File too large\); it needs .* free"):
            saved(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, kind)
    assert folders(tmp_path) == [first.name] and checkpoint.damage(first) is None
    assert saved(tmp_path, 2)


def _save_within(folder: str, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the write that goes over the limit kills
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    saved(Path(folder), 2)


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 100, 500])
def test_a_kill_in_the_middle_of_a_file(tmp_path: Path, limit: int) -> None:
    (first,) = saved(tmp_path, 1)
    child = multiprocessing.get_context("fork").Process(target=_save_within, args=(str(tmp_path), limit))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGXFSZ
    assert checkpoint.newest(tmp_path) == (first, [])
    saved(tmp_path, 2)
    assert folders(tmp_path) == ["step-0000001", "step-0000002"]


# ---------------------------------------------------------------- frozen weights


def test_frozen_weights_are_known_by_their_values(tmp_path: Path) -> None:
    net, _ = trained()
    marks = checkpoint.frozen_marks(net)
    assert list(marks) == ["0"] and checkpoint.frozen_marks(trained()[0]) == marks
    with torch.no_grad():
        net[2].weight += 1
        assert checkpoint.frozen_marks(net) == marks, "what trains does not count"
        net[0].weight[1, 2] += 1e-6
    assert checkpoint.frozen_marks(net) != marks
