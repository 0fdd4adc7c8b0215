"""The demo's machinery without its training: which stages run, in what order, and how a failure is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from ra_blip import demo
from ra_blip.demo import Job, StageFailed, _Runner
from ra_blip.errors import ConfigError

# Stands for a training process: notes when it began and ended, and fails if its name says so.
STAND_IN = """
import pathlib, sys
place, log = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]).parent / "order"
with log.open("a") as order: order.write(f"+{place.name} ")
if "bad" in place.name: sys.exit("Error: first line\\nError: the loss is not a number")
if "endless" in place.name: import time; time.sleep(100)
(place / "model").mkdir(parents=True); (place / "model" / "config.json").touch()
with log.open("a") as order: order.write(f"-{place.name} ")
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Runner:
    made = _Runner(tmp_path, (), quick=False)

    def start(job: Job, steps: int) -> subprocess.Popen[bytes]:
        place = tmp_path / job.name
        place.mkdir(exist_ok=True)
        with (place / "console.txt").open("ab") as console:
            return subprocess.Popen([sys.executable, "-c", STAND_IN, str(place)], stdout=console, stderr=console)

    monkeypatch.setattr(made, "start", start)
    monkeypatch.setattr(made, "steps", lambda job: 5)
    return made


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text().split() if (folder / "order").exists() else []


def jobs(*names: str) -> list[Job]:
    return [Job(name, "blank") for name in names]


def test_stages_of_a_chain_follow_each_other(runner: _Runner, tmp_path: Path) -> None:
    runner.run([jobs("one", "two"), jobs("three")])
    found = order(tmp_path)
    assert sorted(found) == sorted(["+one", "-one", "+two", "-two", "+three", "-three"])
    assert found.index("-one") < found.index("+two")


def test_a_stage_that_is_done_is_passed_over(runner: _Runner, tmp_path: Path) -> None:
    (tmp_path / "one" / "model").mkdir(parents=True)
    (tmp_path / "one" / "model" / "config.json").touch()
    runner.run([jobs("one", "two")])
    assert order(tmp_path) == ["+two", "-two"]


def test_a_stage_that_fails_ends_the_others_and_says_why(runner: _Runner, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    begin = runner.start

    def start(job: Job, steps: int) -> subprocess.Popen[bytes]:
        started.append(begin(job, steps))
        return started[-1]

    runner.start = start  # type: ignore[method-assign]
    with pytest.raises(
        StageFailed, match=r"stage bad ended with code 1: Error: the loss is not a number .*console\.txt"
    ):
        runner.run([jobs("endless"), jobs("bad", "after")])
    assert all(process.poll() is not None for process in started) and len(started) == 2
    assert not [name for name in order(tmp_path) if name.endswith("after")]


def test_the_bar_follows_the_log(tmp_path: Path) -> None:
    runner, log = _Runner(tmp_path, (), quick=False), tmp_path / "one" / "log.jsonl"
    with tqdm(total=9, disable=False, file=open("/dev/null", "w")) as bar:
        runner.show("one", bar)
        assert bar.n == 0, "no log yet"
        log.parent.mkdir()
        log.write_text('{"step": 1, "loss": 3.0}\n{"step": 4, "qa_loss": 2.0, "loss": 2.5}\n')
        runner.show("one", bar)
        assert bar.n == 4 and "qa_loss=2" in str(bar.postfix)
        log.write_text('{"step": 1, "loss": 3.0}\n{"step": 5, "qa_lo')
        runner.show("one", bar)
        assert bar.n == 4, "in the middle of a line"


def test_quick_takes_an_eighth_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECIPES", tmp_path)
    for steps, quick, whole in ((400, 50, 400), (16, 10, 16)):
        (tmp_path / "one.yaml").write_text(f"train: {{steps: {steps}}}\n")
        assert _Runner(tmp_path, (), quick=True).steps(Job("one", "x")) == quick
        assert _Runner(tmp_path, (), quick=False).steps(Job("one", "x")) == whole


def test_every_stage_has_a_recipe() -> None:
    assert [name for name in demo.STAGES if not (demo.RECIPES / f"{name}.yaml").is_file()] == []


def test_outside_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECIPES", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="run the demo from a clone"):
        demo.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_edit_page_is_told() -> None:
    class Asked:
        def __call__(self, questions: list[Any]) -> list[Any]:
            from ra_blip.records import Trace

            return [Trace(question, answer="moro", judged=["a"]) for question in questions]

    from ra_blip.records import Question

    (step,) = demo._asked("asked before", [Question("q", "Who?", answers=("Tavi", "tavi"))], Asked())  # type: ignore[arg-type]
    wanted = {"action": "asked before", "question": "Who?", "answer": "moro", "expected": "Tavi", "items": ["a"]}
    assert json.loads(json.dumps(step)) == wanted
