from __future__ import annotations

import json
from pathlib import Path

from ra_blip.training.tracking import Tracker


def test_lines_of_later_steps_and_torn_ones_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    tracker = Tracker(path, start=2, steps=4, name="answer")
    tracker.log({"loss": 0.123456789, "count": 5}, 3)
    tracker.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 0.123457, "count": 5},
    ]


def test_a_quiet_tracker_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "log.jsonl", 0, 4, "answer", quiet=True)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []
