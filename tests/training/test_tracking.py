from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ra_blip.config import RunConfig, StageConfig, TrackConfig, TrainConfig
from ra_blip.errors import MissingExtra
from ra_blip.training.tracking import COUNTED, PEAKS, Meter, Tracker, memory_gib
from tests.training.line import log_of, train_line, weights


def run_of(**tracking: Any) -> RunConfig:
    return RunConfig(stage=StageConfig("answer"), train=TrainConfig(4), log=TrackConfig(**tracking))


def test_lines_of_later_steps_and_torn_ones_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    tracker = Tracker(tmp_path, 2, run_of())
    tracker.log({"loss": 0.123456789, "count": 5}, 3)
    tracker.log({"loss": None, "skipped": 1}, 4)
    tracker.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 0.123457, "count": 5},
        {"step": 4, "loss": None, "skipped": 1},
    ]


def test_a_quiet_tracker_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, run_of(wandb="project", tensorboard=True), quiet=True)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_losses_the_wait_for_data_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, 0, run_of())
    tracker.log({"qa_loss": 0.25, "lr": 1.0, "data_seconds": 0.5, "memory_gib": 1.5, "damaged": 1200}, 4)
    tracker.close()
    shown = capsys.readouterr().err
    assert "qa_loss=0.25" in shown and "wait=0.5s" in shown and "memory=1.5G" in shown and "lr" not in shown
    assert "damaged=1,200" in shown
    assert 0.05 < memory_gib() < 1000


def multiply(meter: Meter, step: int, size: int) -> None:
    """Forward and backward of (size, size) x (size, 8), of which the first alone trains: two products."""
    left = torch.ones(size, size, requires_grad=True)
    with meter.counting(step):
        (left @ torch.ones(size, 8)).sum().backward()


def test_utilisation_is_the_products_of_a_step_over_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    meter = Meter(torch.device("cuda"), "bf16")
    assert meter.used(1.0) == {}, "nothing was counted yet"
    multiply(meter, 7, 16)
    flops = 2 * (2 * 16 * 16 * 8)
    assert meter.used(0.5) == {"mfu": pytest.approx(flops / 0.5 / 989e12)}
    multiply(meter, 8, 32)
    assert meter.flops == flops, "one step of a hundred is looked at"
    multiply(meter, COUNTED, 32)
    assert meter.flops == 4 * flops
    slow = Meter(torch.device("cuda"), "fp32")
    multiply(slow, 0, 16)
    assert slow.used(1.0)["mfu"] / (flops / 989e12) == pytest.approx(989 / 67)


def test_utilisation_is_not_known_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    for device in (torch.device("cuda"), torch.device("cpu"), None):
        meter = Meter(device, "bf16")
        multiply(meter, 0, 16)
        assert meter.flops == 0 and meter.used(1.0) == {}
    assert all(single < half for half, single in PEAKS.values())


def test_utilisation_does_not_change_a_bit_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train_line(tmp_path / "plain", 3)
    counting = Meter.__init__
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(Meter, "__init__", lambda self, device, precision: counting(self, torch.device("cuda"), "bf16"))
    counted = train_line(tmp_path / "counted", 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(counted), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "counted" / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["mfu"] < 1e-6 for line in lines) and "mfu=0.0%" in capsys.readouterr().err
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "counted")


class Recorder:
    """Stands in for wandb and for TensorBoard's writer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def record(*given: Any, **named: Any) -> Recorder:
            self.calls.append((name, given, named))
            return self

        return record


def test_other_trackers_are_told_the_same_and_go_on_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, board = Recorder(), Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=board.made))  # type: ignore[arg-type]
    for start in (0, 1):
        tracker = Tracker(tmp_path, start, run_of(wandb="project", tensorboard=True))
        tracker.log({"loss": 2.0, "note": "words", "gone": None}, start + 1)
        tracker.close()
    made = [named for name, _, named in wandb.calls if name == "init"]
    assert made[0]["project"] == "project" and made[0]["mode"] == "offline" and made[0]["config"]["train"]["steps"] == 4
    assert made[0]["id"] == made[1]["id"] and made[0]["resume"] == "allow", "one run, however often it is killed"
    assert [(given, named) for name, given, named in wandb.calls if name == "log"] == [
        (({"loss": 2.0},), {"step": 1}),
        (({"loss": 2.0},), {"step": 2}),
    ]
    assert [given for name, given, _ in board.calls if name == "add_scalar"] == [("loss", 2.0, 1), ("loss", 2.0, 2)]
    assert [named["purge_step"] for name, _, named in board.calls if name == "made"] == [1, 2]


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"ra-blip\[track\]"):
        Tracker(tmp_path, 0, run_of(wandb="project"))
