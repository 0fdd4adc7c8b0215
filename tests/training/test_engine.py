from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ra_blip.config import CheckpointConfig, EvaluationConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.training import checkpoint
from ra_blip.training.ema import Ema
from ra_blip.training.engine import fit, set_mode
from ra_blip.training.faults import TrainingDiverged
from ra_blip.training.optim import apply_rules
from ra_blip.training.strategy import Strategy, compile_layers
from tests.training.line import RULES, Line, Numbers, log_of, run_of, train_line, weights

# ---------------------------------------------------------------- the loop


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
        assert line["report"] == 3.0
    timed = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert timed["samples_per_second"] > 0 and timed["memory_gib"] > 0.05
    assert [line["lr"] for line in lines[:3]] == pytest.approx([0.05, 0.1, 0.1])
    assert lines[-1]["lr"] < 0.001
    assert not stage.model["eye"].training and stage.model["mouth"].training
    fresh = Line()
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.model["eye"].parameters(), stage.model["eye"].parameters(), strict=True)
    )


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = train_line(tmp_path / "a", 6)
    for step in range(1, 6):
        out = tmp_path / str(step)
        train_line(out, 6)
        for path in checkpoint.complete(out / "checkpoints")[step:]:
            (path / "state.json").unlink()  # torn: the kill came while it was written
        with (out / "log.jsonl").open("a") as log:
            log.write('{"step": 7, "lo')
        capsys.readouterr()
        resumed = train_line(out, 6, Line(seed=9))
        assert resumed.steps == list(range(step, 6))
        assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
        assert log_of(tmp_path / "a") == log_of(out)
        said = capsys.readouterr().err
        assert f"goes on from {out}/checkpoints/step-000000{step}" in said and said.count("is passed over") == 6 - step


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    train_line(tmp_path, 2)
    other = Line()
    with torch.no_grad():
        other.model["eye"][1].weight += 1e-3
    with pytest.raises(CheckpointError, match="step-0000002: was trained beside other frozen weights in eye"):
        train_line(tmp_path, 3, other)


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
    stage = Line([2])
    with pytest.raises(TrainingDiverged, match=r"step 3: loss nan.*seed 0"):
        train_line(tmp_path, 6, stage)
    assert all(torch.isfinite(value).all() for value in weights(stage))
    last = checkpoint.complete(tmp_path / "checkpoints")[-1]
    assert last.name == "step-0000002"
    saved = checkpoint.load(last)[0]["weights"]
    assert all(torch.equal(value, stage.model.state_dict()[name]) for name, value in saved.items())
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []

    class Watching(Strategy):
        def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 100.0)

        def step(self, optimizer: torch.optim.Optimizer) -> None:
            norms.append(torch.stack([p.grad.norm() for p in stage.model["mouth"].parameters()]).norm().item())
            super().step(optimizer)

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


# ---------------------------------------------------------------- parts of a batch, precision, averages


def test_a_batch_in_parts_trains_as_the_whole(tmp_path: Path) -> None:
    class Quiet(Line):
        """Without draws in ``forward``, whose shape the parts would change; rows count unequally."""

        def collate(self, samples: Sequence[Any], rng: Any, step: int) -> dict[str, Any]:
            self.steps.append(step)
            return {"x": torch.tensor([[value] for _, value in samples]), "bad": False}

        def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
            loss = (self.model["mouth"](batch["x"]) - 2 * batch["x"]).square().mean()
            return {"fit_loss": loss, "half_loss": loss / 2}, {"report": 3.0}

    whole, parts = (train_line(tmp_path / str(n), 5, Quiet(), batch_size=7, accumulate=n) for n in (1, 3))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(whole), weights(parts), strict=True))
    for one, three in zip(log_of(tmp_path / "1"), log_of(tmp_path / "3"), strict=True):
        assert one == pytest.approx(three, abs=1e-5)
    assert parts.steps == [step for step in range(5) for _ in range(3)]


def test_settings_that_do_not_go_together_are_refused_first(tmp_path: Path) -> None:
    class Coupled(Line):
        batch_coupled = True

    with pytest.raises(ConfigError, match=r"train.batch_size is 4, less than 1 processes x 5 parts"):
        train_line(tmp_path, 2, accumulate=5)
    with pytest.raises(ConfigError, match=r"train.accumulate: this stage compares"):
        train_line(tmp_path, 2, Coupled(), accumulate=2)
    assert train_line(tmp_path, 2, Coupled()).steps == [0, 1]


def test_fp16_scales_the_loss_and_lets_an_overflow_pass(tmp_path: Path) -> None:
    class Steep(Line):
        """A loss of tens: times 65,536 its gradient is more than fp16 holds."""

        def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
            return {"fit_loss": (self.model["mouth"](batch["x"]) - 20).square().mean()}, {}

    stage = train_line(tmp_path, 30, Steep(), precision="fp16")
    states = [checkpoint.load(path)[1] for path in checkpoint.complete(tmp_path / "checkpoints")]
    scales = [state["scaler"]["scale"] for state in states]
    assert scales[0] == 2**15 and scales[-1] < 2**16, "halved where the gradient was infinite"
    first, second = (checkpoint.load(path)[0]["weights"] for path in checkpoint.complete(tmp_path / "checkpoints")[:2])
    fresh = Line().model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in first.items()), "and nothing reached the weights"
    assert states[-1]["skipped"] == 0 and second and log_of(tmp_path)[-1]["loss"] < log_of(tmp_path)[0]["loss"]
    resumed = train_line(tmp_path, 32, Steep(), precision="fp16")
    assert resumed.steps == [30, 31] and torch.isfinite(weights(stage)[0]).all()


def test_averages_of_the_weights_by_hand_and_over_a_resume(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    ema = Ema(net, 0.9)
    expected = {name: value.detach().clone() for name, value in net.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for name, value in net.named_parameters():
                value += 1
                expected[name] = 0.9 * expected[name] + 0.1 * value
        ema.update()
    own = net.weight.detach().clone()
    with ema.applied():
        assert torch.allclose(net.weight, expected["weight"]) and not torch.equal(net.weight, own)
    assert torch.equal(net.weight, own)
    straight = train_line(tmp_path / "a", 6, ema=0.5)
    train_line(tmp_path / "b", 6, ema=0.5)
    for path in checkpoint.complete(tmp_path / "b" / "checkpoints")[3:]:
        (path / "state.json").unlink()
    resumed = train_line(tmp_path / "b", 6, Line(seed=3), ema=0.5)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    saved = checkpoint.load(tmp_path / "a" / "checkpoints" / "step-0000006")[0]
    left = {name: value for name, value in straight.model.named_parameters() if value.requires_grad}
    assert all(torch.equal(value, left[name]) for name, value in saved["ema"].items()), "the averages are exported"
    assert any(not torch.equal(value, saved["weights"][name]) for name, value in saved["ema"].items())


def test_layers_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lambda: nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(2, 2)])})  # noqa: E731
    net = nn.ModuleDict({"a": nn.ModuleList([layer(), layer()]), "ab": nn.ModuleList([nn.Linear(2, 2)])})
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: compiled.append(self))
    names = list(net.state_dict())
    compile_layers(net, "inductor")
    assert compiled == [*net["a"], *net["ab"]], "whole layers, not what is inside them"
    assert list(net.state_dict()) == names


# ---------------------------------------------------------------- evaluation, and the best checkpoint


class Judged(Line):
    """Reports a number that is best at the second evaluation."""

    scores = iter(())  # type: ignore[var-annotated]

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        terms, report = super().forward(batch)
        return terms, report if torch.is_grad_enabled() else {"recall": next(self.scores)}


def judged(out: Path, scores: list[float], stage: Judged | None = None, **given: Any) -> Judged:
    stage = stage or Judged()
    stage.scores = iter(scores)
    run = run_of(out, 8)
    run.checkpoint = CheckpointConfig(0, 1)
    run.evaluation = EvaluationConfig(every=2, metric="recall", greater=True, **given)
    out.mkdir(exist_ok=True)
    fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, out, Strategy(), Numbers(9))
    return stage


def test_the_best_checkpoint_is_kept_and_exported(tmp_path: Path) -> None:
    stage = judged(tmp_path, [0.1, 0.3, 0.8, 0.6, 0.2, 0.2, 0.5, 0.5])  # two batches of four an evaluation
    lines = log_of(tmp_path)
    evaluated = {line["step"]: line["eval_recall"] for line in lines if "eval_recall" in line}
    assert evaluated == pytest.approx({2: 0.2, 4: 0.7, 6: 0.2, 8: 0.5})
    assert lines[1]["eval_samples"] == 8 and lines[1]["eval_loss"] > 0 and len(lines) == 8
    kept = checkpoint.complete(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-0000004", "step-0000008"]
    best = checkpoint.load(kept[0])[0]["weights"]
    assert all(torch.equal(value, stage.model.state_dict()[name]) for name, value in best.items())
    shown = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in shown] == [2] * 4 + [4] * 4 + [6] * 4 + [8] * 4, "the same few each time"
    assert [row["index"] for row in shown[4:8]] == [row["index"] for row in shown[:4]]
    (kept[0] / "weights.safetensors").write_bytes(b"torn")
    again = judged(tmp_path, [])
    last = checkpoint.load(kept[1])[0]["weights"]
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in last.items())


def test_evaluation_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    plain = train_line(tmp_path / "a", 8, every=0)
    stage = judged(tmp_path / "b", [0.0] * 6 + [1.0] * 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(stage), strict=True))
    assert [line["loss"] for line in log_of(tmp_path / "a")] == [line["loss"] for line in log_of(tmp_path / "b")]


def test_a_metric_that_the_stage_does_not_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives no 'recal', it gives fit_loss, half_loss"):
        stage = Line()
        run = run_of(tmp_path, 2)
        run.evaluation = EvaluationConfig(every=1, metric="recal")
        fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, tmp_path, Strategy(), Numbers(4))
