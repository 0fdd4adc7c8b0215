from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ra_blip.config import CheckpointConfig, ParamRule, RunConfig, StageConfig, TrainConfig
from ra_blip.training import checkpoint
from ra_blip.training.engine import TrainingDiverged, fit, samples_at, set_mode
from ra_blip.training.optim import apply_rules
from ra_blip.training.strategy import Strategy


class Numbers:
    """A source whose samples say which of them was drawn, and with what draw."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
        """(index, a number from the generator)."""
        return index, float(rng.random())


# ---------------------------------------------------------------- samples


def test_samples_are_a_pure_function_of_the_step() -> None:
    straight = [samples_at(Numbers(10), step, 4, seed=3) for step in range(8)]
    for step in (7, 0, 5, 3):
        assert samples_at(Numbers(10), step, 4, seed=3) == straight[step]
    assert samples_at(Numbers(10), 0, 4, seed=4) != straight[0]


def test_an_epoch_holds_every_sample_once_and_the_next_one_in_another_order() -> None:
    drawn = [sample for step in range(10) for sample in samples_at(Numbers(10), step, 3, seed=0)]
    epochs = [[index for index, _ in drawn[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(10))
    varied: dict[int, set[float]] = {}
    for index, number in drawn:
        varied.setdefault(index, set()).add(number)
    assert all(len(numbers) == 3 for numbers in varied.values()), "drawn afresh in every epoch"


@pytest.mark.parametrize(("size", "world"), [(4, 2), (8, 4), (5, 2), (3, 3)])
def test_ranks_share_the_batch_exactly(size: int, world: int) -> None:
    for step in (0, 1, 5):  # also over the end of an epoch
        parts = [samples_at(Numbers(7), step, size, 1, rank, world) for rank in range(world)]
        together = samples_at(Numbers(7), step, size, 1)
        assert sorted(sample for part in parts for sample in part) == sorted(together)
        assert [parts[place % world][place // world] for place in range(size)] == together


# ---------------------------------------------------------------- the loop


class Line(nn.Module):
    """A stage that fits y = 2 x, with an eye that stays frozen and a report beside the loss."""

    def __init__(self, bad_step: int | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"mouth": nn.Linear(1, 1), "eye": nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))})
        self.bad_step, self.steps = bad_step, list[int]()
        self.rates: list[float] = []

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
        """Numbers to a column; noise from ``rng``."""
        self.steps.append(step)
        x = torch.tensor([[value] for _, value in samples])
        return {"x": x + 0.01 * torch.from_numpy(rng.random(x.shape)).float(), "bad": step == self.bad_step}

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Two terms, one number that is no loss."""
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape)
        loss = (self.model["mouth"](x) - 2 * x).square().mean()
        if batch["bad"]:
            loss = loss * float("nan")
        return {"fit_loss": loss, "half_loss": loss / 2, "other": loss * 100}, {"report": 3.0}


RULES = [ParamRule(r"mouth\..*", lr=0.1), ParamRule(".*")]


def run_of(out: Path, steps: int, **train: Any) -> RunConfig:
    given = {"steps": steps, "batch_size": 4, "warmup": 2, **train}
    return RunConfig(str(out), 0, None, StageConfig(), params=RULES, train=TrainConfig(**given))


def train_line(out: Path, steps: int, stage: Line | None = None, every: int = 1, keep: int = 99, **train: Any) -> Line:
    stage = stage or Line()
    run = run_of(out, steps, **train)
    run.checkpoint = CheckpointConfig(every, keep)
    out.mkdir(exist_ok=True)
    fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, out, Strategy())
    return stage


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(stage: Line) -> list[Tensor]:
    return [value.detach().clone() for value in stage.model.state_dict().values()]


def test_the_loop_learns_and_logs_every_step(tmp_path: Path) -> None:
    stage = train_line(tmp_path, 60)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert stage.steps == list(range(60))
    assert lines[-1]["loss"] < lines[0]["loss"] / 20
    for line in lines[:3]:
        assert line["loss"] == pytest.approx(line["fit_loss"] + line["half_loss"], rel=1e-4), (
            "terms named loss, no others"
        )
        assert line["report"] == 3.0 and line["samples_per_second"] > 0
    assert [line["lr"] for line in lines[:3]] == pytest.approx([0.05, 0.1, 0.1])
    assert lines[-1]["lr"] < 0.001
    assert not stage.model["eye"].training and stage.model["mouth"].training
    fresh = Line()
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.model["eye"].parameters(), stage.model["eye"].parameters(), strict=True)
    )


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = train_line(tmp_path / "a", 6)
    for step in range(1, 6):
        out = tmp_path / str(step)
        train_line(out, 6)
        for path in checkpoint.complete(out / "checkpoints")[step:]:
            (path / "state.json").unlink()  # torn: the kill came while it was written
        with (out / "log.jsonl").open("a") as log:
            log.write('{"step": 7, "lo')
        resumed = train_line(out, 6, Line(seed=9))
        assert resumed.steps == list(range(step, 6))
        fresh = Line(seed=9)  # the frozen eye is not in a checkpoint
        pairs = zip(straight.model["mouth"].parameters(), resumed.model["mouth"].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(fresh.model["eye"][1].weight, resumed.model["eye"][1].weight)
        timing = ("samples_per_second", "data_seconds")
        same = [
            [{k: v for k, v in line.items() if k not in timing} for line in log_of(o)] for o in (tmp_path / "a", out)
        ]
        assert same[0] == same[1]


def test_checkpoints_are_written_as_asked(tmp_path: Path) -> None:
    def names(**given: Any) -> list[int]:
        out = tmp_path / str(given)
        train_line(out, 7, **given)
        return [int(path.name[5:]) for path in checkpoint.complete(out / "checkpoints")]

    assert names(every=0) == [7]
    assert names(every=3) == [3, 6, 7]
    assert names(every=1, keep=2) == [6, 7]


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = train_line(tmp_path, 3)
    again = train_line(tmp_path, 3, Line())
    assert again.steps == [] and len(log_of(tmp_path)) == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


def test_log_every(tmp_path: Path) -> None:
    train_line(tmp_path, 7, log_every=3)
    assert [line["step"] for line in log_of(tmp_path)] == [3, 6, 7]


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights(tmp_path: Path) -> None:
    stage = Line(bad_step=2)
    with pytest.raises(TrainingDiverged, match=r"step 3: loss nan.*seed 0"):
        train_line(tmp_path, 6, stage)
    assert all(torch.isfinite(value).all() for value in weights(stage))
    two = Line()
    last = checkpoint.complete(tmp_path / "checkpoints")[-1]
    assert last.name == "step-0000002"
    table = apply_rules(two.model, RULES)
    checkpoint.load(last, two.model, torch.optim.AdamW([p for p in two.model.parameters() if p.requires_grad]))
    assert table and all(torch.equal(a, b) for a, b in zip(weights(two), weights(stage), strict=True))
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []

    class Watching(Strategy):
        def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 100.0)

        def all_finite(self, value: Tensor) -> bool:
            norms.append(torch.stack([p.grad.norm() for p in stage.model["mouth"].parameters()]).norm().item())
            return super().all_finite(value)

    for clip, expected in ((1.0, 1.0), (0.0, 100 * 2**0.5)):
        stage, out = Line(), tmp_path / str(clip)
        out.mkdir()
        run = run_of(out, 1, clip=clip)
        fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, out, Watching())
        assert norms.pop() == pytest.approx(expected, rel=1e-4)


def test_mode_of_parts() -> None:
    net = nn.ModuleDict({"trains": nn.Linear(1, 1), "frozen": nn.Linear(1, 1).requires_grad_(False)})
    set_mode(net.eval())
    assert (net["trains"].training, net["frozen"].training) == (True, False)
