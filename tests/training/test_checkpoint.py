from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ra_blip.errors import CheckpointError, OutputError
from ra_blip.training import checkpoint


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


def saved(folder: Path, *steps: int, keep: int = 0) -> list[Path]:
    net, optimizer = trained()
    return [checkpoint.save(folder, number, net, optimizer, {"seed": 7}, keep) for number in steps]


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    net, optimizer = trained()
    path = checkpoint.save(tmp_path, 2, net, optimizer, {"seed": 7}, 2)
    other, other_optimizer = trained(seed=5)
    other[0].load_state_dict(net[0].state_dict())  # frozen weights are not in a checkpoint: the run makes them again
    assert checkpoint.load(path, other, other_optimizer) == {"step": 2, "seed": 7}
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
    assert list(tmp_path.iterdir()) == [path]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000003", "step-0000004"]
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
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    files = json.loads((path / checkpoint.MANIFEST).read_text())["files"]
    assert set(files) == {entry.name for entry in path.iterdir()} - {checkpoint.MANIFEST}
    assert files["state.json"][0] == (path / "state.json").stat().st_size


def test_another_models_checkpoint(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="are not the ones this run trains"):
        checkpoint.load(path, net, torch.optim.AdamW(net.parameters()))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        saved(tmp_path / "file", 1)
