"""Faults of a run: killed, stopped, hung, poisoned. What was complete is never lost, and the cause is said."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ra_blip.__main__ import _explain
from ra_blip.errors import OutputError
from ra_blip.training import checkpoint
from ra_blip.training.faults import MemoryFull, RankLost, RunStopped, TrainingDiverged, explained, names_of
from tests.training.line import Line, final, log_of, run_processes, start, train_line, weights, work
from tests.training.samples import captions, examples

STEPS = 12
# By number of processes: every so many steps and file operations. RA_BLIP_ALL_CRASHES=1 takes them all, in minutes.
EVERY = {1: 1, 2: 1} if os.environ.get("RA_BLIP_ALL_CRASHES") else {1: 2, 2: 6}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody disturbs, by number of processes."""
    folder = tmp_path_factory.mktemp("straight")
    for world in (1, 2):
        assert run_processes(folder / str(world), world, STEPS) == [0] * world
    return {world: folder / str(world) for world in (1, 2)}


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same bits, after the same losses."""
    equal = all(torch.equal(x, y) for x, y in zip(final(a), final(b), strict=True))
    return equal and log_of(a) == log_of(b)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [1, 2])
def test_kill_9_at_every_step(world: int, straight: dict[int, Path], tmp_path: Path) -> None:
    for step in range(0, STEPS, EVERY[world]):
        out = tmp_path / str(step)
        codes = run_processes(out, world, STEPS, do="kill", step=step, rank=world - 1)
        assert codes[-1] == -9 and all(codes)
        assert run_processes(out, world, STEPS) == [0] * world
        assert same(out, straight[world]), f"killed in step {step + 1}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [1, 2])
def test_kill_9_at_every_file_operation_of_a_save(world: int, straight: dict[int, Path], tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    assert run_processes(counted, world, 4, step=3, operation=0) == [0] * world
    operations = int((counted / "operations").read_text())
    assert operations >= 12, "a folder, four files, a flush each, renames, the pointer, what is old"
    for number in range(1, operations + 1, EVERY[world]):
        out = tmp_path / str(number)
        assert run_processes(out, world, STEPS, step=3, operation=number)[0] == -9
        found, _ = checkpoint.newest(out / "checkpoints")
        assert found is not None and found.name in ("step-0000002", "step-0000003"), "nothing complete is lost"
        assert run_processes(out, world, STEPS) == [0] * world
        assert same(out, straight[world]), f"killed at file operation {number}"


# ---------------------------------------------------------------- stopped, killed, hung


@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_on_any_rank_saves_and_leaves_with_75(world: int, straight: dict[int, Path], tmp_path: Path) -> None:
    codes = run_processes(tmp_path, world, STEPS, do="term", step=4, rank=world - 1, every=100)
    assert codes == [75] * world
    assert (
        (tmp_path / f"error-{world - 1}.txt").read_text().startswith("stopped by SIGTERM after step 5, which is saved")
    )
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.name == "step-0000005"
    assert run_processes(tmp_path, world, STEPS) == [0] * world
    assert same(tmp_path, straight[world])


def test_a_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    (process,) = start(work, 1, str(tmp_path), STEPS, {"do": "hang", "step": 2, "rank": 0})
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.jsonl").exists() or len(log_of(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.terminate()
    process.join(0.5)
    assert process.is_alive(), "the first waits for the end of the step"
    process.terminate()
    process.join(10)
    assert process.exitcode == -15


def test_a_dead_rank_ends_the_others_within_five_seconds(tmp_path: Path) -> None:
    made = start(work, 2, str(tmp_path), STEPS, {"do": "kill", "step": 3, "rank": 1})
    made[1].join(60)
    begun = time.monotonic()
    made[0].join(60)
    assert time.monotonic() - begun < 5
    assert [process.exitcode for process in made] == [2, -9]
    said = (tmp_path / "error-0.txt").read_text()
    assert said.startswith("step 4: another process of this run died") and "goes on from the last checkpoint" in said


def test_a_rank_that_hangs_is_given_up_and_says_where(tmp_path: Path) -> None:
    made = start(work, 2, str(tmp_path), STEPS, {"do": "hang", "step": 3, "rank": 1, "timeout": 3.0})
    made[0].join(60)
    assert made[0].exitcode == 2
    assert "did not answer within 3 s" in (tmp_path / "error-0.txt").read_text()
    made[1].kill()
    made[1].join(10)
    assert "in collate" in (tmp_path / "stderr-1.txt").read_text(), "the stack of the one that hangs"


# ---------------------------------------------------------------- no number


def test_a_bad_number_on_one_rank_stops_all_before_the_weights(tmp_path: Path) -> None:
    assert run_processes(tmp_path, 2, STEPS, do="nan", step=3, rank=1) == [2, 2]
    for rank in (0, 1):
        said = (tmp_path / f"error-{rank}.txt").read_text()
        assert said.startswith("step 4: loss ") and "loss nan on rank 1" in said and "loss nan on rank 0" not in said
    line = json.loads((tmp_path / "nonfinite.jsonl").read_text())
    assert line["step"] == 4 and [len(one["ids"]) for one in line["ranks"]] == [2, 2]
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.name == "step-0000003"


def test_a_skipped_step_touches_neither_weights_nor_moments(tmp_path: Path) -> None:
    assert run_processes(tmp_path, 2, 6, do="nan", step=3, rank=1, nonfinite="skip", every=1) == [0, 0]
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[3]["loss"] is None and lines[3]["skipped"] == 1 and lines[4]["loss"] is not None
    assert all(torch.equal(a, b) for a, b in zip(final(tmp_path, 0), final(tmp_path, 1), strict=True))


def test_skips_are_bounded_and_counted_over_a_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="after 2 steps left out"):
        train_line(tmp_path, 9, Line([1, 3, 5]), nonfinite="skip", max_skips=2)
    assert [line["loss"] is None for line in log_of(tmp_path)] == [False, True, False, True, False]
    before = checkpoint.load(tmp_path / "checkpoints" / "step-0000003")[0]
    after = checkpoint.load(tmp_path / "checkpoints" / "step-0000004")[0]
    for stem in ("weights", "optimizer"):
        assert all(torch.equal(value, after[stem][name]) for name, value in before[stem].items())
    with pytest.raises(TrainingDiverged, match="after 2 steps left out"):
        train_line(tmp_path, 9, Line([5]), nonfinite="skip", max_skips=2)


def test_the_names_of_samples(tmp_path: Path) -> None:
    assert names_of(examples(tmp_path)) == ["text", "view", "pictured"]
    assert names_of(captions(tmp_path)[:1]) == ["red-blue"] and names_of([(3, 0.5)]) == ["(3, 0.5)"]


# ---------------------------------------------------------------- disk, memory


def test_training_goes_on_without_a_few_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, full = checkpoint.save, {2, 3, 5}

    def save(folder: Path, step: int, *rest: Any) -> Path:
        if step in full:
            raise OutputError("no space")
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    train_line(tmp_path / "a", 6)
    assert [path.name[-1] for path in checkpoint.complete(tmp_path / "a" / "checkpoints")] == ["1", "4", "6"]
    assert "step 3: training goes on without this checkpoint: no space" in capsys.readouterr().err
    full |= {4}
    with pytest.raises(OutputError):
        train_line(tmp_path / "b", 6)
    assert [line["step"] for line in log_of(tmp_path / "b")] == [1, 2, 3, 4, 5], "the fourth in a row is one too many"
    full.clear()
    full |= {6}
    with pytest.raises(OutputError):
        train_line(tmp_path / "c", 6)


class Greedy(Line):
    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        if self.steps[-1] == 2:
            torch.empty(1 << 60)
        return super().forward(batch)


def test_out_of_memory_names_sizes_and_settings(tmp_path: Path) -> None:
    with pytest.raises(MemoryFull, match=r"step 3: out of memory with 4 rows, 0 pictures and 1 tokens") as caught:
        train_line(tmp_path, 4, Greedy())
    for setting in ("train.batch_size", "train.accumulate", "gradient_checkpointing", "train.precision"):
        assert setting in str(caught.value)
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.name == "step-0000002"


def test_errors_that_are_not_known_stay_themselves() -> None:
    unknown = RuntimeError("shapes do not match")
    assert explained(unknown, 1, {}, 2, 600) is unknown
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    assert explained(closed, 1, {}, 1, 600) is closed, "there is no peer"
    assert isinstance(explained(closed, 1, {}, 2, 600), RankLost)
    assert isinstance(explained(MemoryError(), 1, {}, 1, 600), MemoryFull)
    assert _explain(RunStopped("saved")) == (75, "saved") and _explain(RankLost("gone")) == (2, "gone")


# ---------------------------------------------------------------- same again


def test_the_same_run_twice_has_the_same_bits(tmp_path: Path) -> None:
    first, second = (train_line(tmp_path / name, 6) for name in ("a", "b"))
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
