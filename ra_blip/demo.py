"""From nothing to a report: a generated world, seven training stages, an index, an evaluation, a page.

Every step leaves files behind and is passed over when they are there, so a demo that was killed goes on where it was.
Stages that do not need each other run side by side, one thread each.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import ra_blip
from ra_blip.config import load_config
from ra_blip.errors import ConfigError, RABlipError
from ra_blip.records import Question, Trace, read_traces, write_jsonl, write_text

if TYPE_CHECKING:
    from ra_blip.generation.pipeline import Pipeline

RECIPES = Path(ra_blip.__file__).parents[1] / "projects" / "demo"
ENTITIES = 400
QUESTIONS_PER_CATEGORY = 100
STAGES = ("see", "pretrain", "answer_text", "retrieve", "read", "answer", "rank")
# Small matrices: a second thread costs more than it gives. Freed memory is kept, since the next step wants it again.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
}
QUICK = 8  # --quick divides the steps of every stage by this: shows that all parts run, reaches no figures


class StageFailed(RABlipError):
    """A training stage of the demo ended with an error; the message holds its last line."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training stage.

    Attributes:
        name: of its recipe, and of its folder under ``OUT/stages``.
        init: model folder that it starts from, under ``OUT/stages``.
    """

    name: str
    init: str


def run(out: Path, seed: int = 0, quick: bool = False) -> Path:
    """Run the whole demo into ``out``.

    Args:
        out: folder for everything, see ``docs/cli.md``; one that a killed demo left is continued.
        seed: of the world, the training and the draws of the evaluation.
        quick: an eighth of the training steps.

    Returns:
        the report's path.

    Raises:
        ConfigError: the recipes are not there (the package runs outside a clone).
        StageFailed: a stage ended with an error.
        OutputError: ``out`` cannot be written or is in use.
    """
    if not RECIPES.is_dir():
        raise ConfigError(f"{RECIPES}: the demo's recipes are not there; run the demo from a clone of the repository")
    from ra_blip.training.run import locked

    with locked(out):
        started = time.monotonic()
        _world(out, seed)
        _train(out, seed, quick)
        metrics = _evaluate(out, seed)
        edit = _edit(out, seed)
        report = _report(out, edit)
        _say_results(metrics, edit, time.monotonic() - started)
        return report


# ------------------------------------------------------------------ world and training


def _world(out: Path, seed: int) -> None:
    from ra_blip.data.atlas import World

    if (out / "questions.jsonl").exists():
        return
    print("Drawing the world ...", flush=True)
    world = World.generate(ENTITIES, seed)
    world.write(out / "world", QUESTIONS_PER_CATEGORY)
    write_jsonl(out / "items.jsonl", world.items(out / "world"))
    write_jsonl(out / "questions.jsonl", world.questions("test", out / "world", QUESTIONS_PER_CATEGORY))


def _train(out: Path, seed: int, quick: bool) -> None:
    """The stages in two chains side by side; what a chain starts from is assembled from the stages before it."""
    if _whole(out / "model"):
        return
    stages = out / "stages"
    shared = (
        f"seed={seed}",
        f"data.entities={ENTITIES}",
        f"data.root={out / 'world'}",
        f"data.features={stages / 'features'}",
    )
    runner = _Runner(stages, shared, quick)
    _blank(stages / "blank", shared)
    runner.run([[Job("see", "blank"), Job("pretrain", "see/model")], [Job("answer_text", "blank")]])
    _join(stages / "pretrain/model", stages / "answer_text/model", stages / "start")
    runner.run([[Job("retrieve", "start")], [Job("read", "start"), Job("answer", "read/model")]])
    _join(stages / "retrieve/model", stages / "answer/model", stages / "trained")
    runner.run([[Job("rank", "trained")]])
    _join(stages / "rank/model", stages / "rank/model", out / "model")


def _blank(folder: Path, shared: Sequence[str]) -> None:
    """The first recipe's model with random weights: every stage starts from it, so all agree on sizes and words."""
    from ra_blip.data.sources import SOURCES
    from ra_blip.training.run import build_model

    if not _whole(folder):
        run = load_config(RECIPES / "see.yaml", shared)
        source = SOURCES[run.data.name](run.data, run.stage, folder.parent, run.seed)
        build_model(run, source).save_pretrained(folder)


def _join(eye: Path, mouth: Path, out: Path) -> None:
    """One model folder: tower and retriever from ``eye``, reader and ranker from ``mouth``."""
    from ra_blip.models.folder import assemble

    if not _whole(out):
        assemble({"vision": eye, "retriever": eye, "reader": mouth, "ranker": mouth}, out)


def _whole(folder: Path) -> bool:
    return (folder / "config.json").exists()


class _Chain:
    """Stages that follow each other, each in a process of its own, and the bar of the one that runs."""

    def __init__(self, runner: _Runner, jobs: Sequence[Job], line: int) -> None:
        self.runner, self.line = runner, line
        self.todo = [job for job in jobs if not _whole(runner.folder / job.name / "model")]
        self.process: subprocess.Popen[bytes] | None = None
        self.bar: tqdm[Any] | None = None
        self.follow()

    def follow(self) -> bool:
        """Show progress and start the next stage when one is done; False at the end.

        Raises:
            StageFailed: the running stage ended with an error.
        """
        if self.process is not None and self.bar is not None:
            code = self.process.poll()
            self.runner.show(self.todo[0].name, self.bar)
            if code is None:
                return True
            self.bar.close()
            self.process = None
            done = self.todo.pop(0)
            if code:
                console = self.runner.folder / done.name / "console.txt"
                lines = console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise StageFailed(f"stage {done.name} ended with code {code}: {(lines or [''])[-1]} ({console})")
        if not self.todo:
            return False
        steps = self.runner.steps(self.todo[0])
        self.bar = tqdm(total=steps, desc=f"{self.todo[0].name:12}", position=self.line, dynamic_ncols=True)
        self.process = self.runner.start(self.todo[0], steps)
        return True

    def stop(self) -> None:
        """End what still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class _Runner:
    """Starts stages with what they share, and reads their progress from their logs."""

    def __init__(self, folder: Path, shared: tuple[str, ...], quick: bool) -> None:
        self.folder, self.shared, self.quick = folder, shared, quick

    def run(self, chains: Sequence[Sequence[Job]]) -> None:
        """Run chains side by side to their ends. Raises :class:`StageFailed`, having stopped the others."""
        running: list[_Chain] = []
        try:
            for line, jobs in enumerate(chains):
                running.append(_Chain(self, jobs, line))
            while any([chain.follow() for chain in running]):
                time.sleep(0.5)
        finally:
            for chain in running:
                chain.stop()

    def steps(self, job: Job) -> int:
        """Training steps of a stage."""
        steps = load_config(RECIPES / f"{job.name}.yaml").train.steps
        return max(steps // QUICK, 10) if self.quick else steps

    def start(self, job: Job, steps: int) -> subprocess.Popen[bytes]:
        """A stage in a process of one thread."""
        place = self.folder / job.name
        place.mkdir(parents=True, exist_ok=True)
        given = [f"out={place}", f"init={self.folder / job.init}", *self.shared]
        given += [f"train.steps={steps}"] if self.quick else []
        command = [sys.executable, "-m", "ra_blip", "train", str(RECIPES / f"{job.name}.yaml"), *given]
        with (place / "console.txt").open("ab") as console:
            return subprocess.Popen(
                command, stdout=console, stderr=console, env={**os.environ, **ONE_THREAD}, preexec_fn=_die_with_parent
            )

    def show(self, name: str, bar: tqdm[Any]) -> None:
        """Move a stage's bar to where its log is."""
        log = self.folder / name / "log.jsonl"
        try:
            last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, IndexError, json.JSONDecodeError):
            return  # not started, or in the middle of a line
        if bar.n == 0 and last["step"] > 1:  # a stage that goes on: its earlier steps say nothing about the rate
            bar.initial = last["step"]
        bar.set_postfix({key: f"{value:.3g}" for key, value in last.items() if key.endswith("loss")}, refresh=False)
        bar.update(last["step"] - bar.n)


def _die_with_parent() -> None:
    """In a child, on Linux: end when the demo ends, however it ends, so that the next one finds no stage running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# ------------------------------------------------------------------ index, evaluation, report


def _pipeline(out: Path) -> Pipeline:
    from ra_blip.generation.pipeline import Pipeline
    from ra_blip.models.rablip import RABlip
    from ra_blip.retrieval.index import KnowledgeIndex

    return Pipeline(RABlip.from_pretrained(out / "model"), KnowledgeIndex.load(out / "index"))


def _evaluate(out: Path, seed: int) -> dict[str, Any]:
    from ra_blip.evaluation.evaluate import evaluate
    from ra_blip.models.rablip import RABlip
    from ra_blip.records import read_items, read_questions
    from ra_blip.retrieval.index import KnowledgeIndex
    from ra_blip.training.run import set_threads

    set_threads(1)  # small matrices: a second thread costs more than it gives, and one thread gives the same bits
    if not (out / "metrics.json").exists():
        model = RABlip.from_pretrained(out / "model")
        if not (out / "index" / "manifest.json").exists():
            KnowledgeIndex.build(read_items(out / "items.jsonl"), model).save(out / "index")
        index = KnowledgeIndex.load(out / "index")
        evaluate(model, index, read_questions(out / "questions.jsonl"), out, seed=seed)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def _edit(out: Path, seed: int) -> dict[str, Any]:
    """One landmark that nobody knew: asked before, after its items were added, and after they were removed."""
    from ra_blip.data.atlas import World

    path = out / "edit.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    newcomer = World.generate(ENTITIES, seed).newcomer(out / "newcomer")
    write_jsonl(out / "newcomer" / "items.jsonl", newcomer.items)
    write_jsonl(out / "newcomer" / "questions.jsonl", newcomer.questions)
    pipeline = _pipeline(out)
    assert pipeline.index is not None
    steps = _asked("asked before", newcomer.questions, pipeline)
    pipeline.index.add(newcomer.items, pipeline.model)
    steps += _asked("item added, asked again", newcomer.questions, pipeline)
    pipeline.index.remove([item.id for item in newcomer.items])
    steps += _asked("removed, asked again", newcomer.questions, pipeline)
    edit = {"landmark": newcomer.entity.name, "image": newcomer.items[0].image, "steps": steps}
    write_text(path, json.dumps(edit, indent=2))
    return edit


def _asked(action: str, questions: Sequence[Question], pipeline: Pipeline) -> list[dict[str, Any]]:
    traces: list[Trace] = pipeline(list(questions))
    return [
        {
            "action": action,
            "question": trace.question.text,
            "answer": trace.answer,
            "expected": trace.question.answers[0],
            "items": trace.judged,
        }
        for trace in traces
    ]


def _report(out: Path, edit: dict[str, Any]) -> Path:
    from ra_blip.report.page import write_report

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    logs = {name: out / "stages" / name / "log.jsonl" for name in STAGES}
    return write_report(read_traces(out / "traces.jsonl"), out / "report.html", metrics, logs, edit)


def _say_results(metrics: dict[str, Any], edit: dict[str, Any], seconds: float) -> None:
    answer, found = metrics["answer"], metrics["retrieval"]
    print(f"\nAbout entities never seen in training, {metrics['counts']['answer']['with_retrieval']} questions:")
    for name, value in answer.items():
        print(f"  answers right, {name.replace('_', ' '):18} {value:.3f}")
    print(f"  recall@5 {found['recall@5']:.3f}, ASKG names the right one of four {metrics['askg']['accuracy']:.3f}")
    print(f"{edit['landmark']}, a landmark added without training:")
    for step in edit["steps"]:
        print(f"  {step['action']:24} {step['question']}  ->  {step['answer']}  (right: {step['expected']})")
    print(f"{seconds:.0f} s")
