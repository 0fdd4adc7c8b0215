"""The smallest run: a stage that fits y = 2 x, with an eye that stays frozen; and processes that run it and fail."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.config import CheckpointConfig, ParamRule, RunConfig, StageConfig, StrategyConfig, TrainConfig
from ra_blip.errors import ImageError, RABlipError
from ra_blip.training import checkpoint
from ra_blip.training.engine import fit
from ra_blip.training.optim import apply_rules
from ra_blip.training.strategy import DataParallel, Strategy

RULES = [ParamRule(r"mouth\..*", lr=0.1), ParamRule(".*")]
TIMING = ("samples_per_second", "data_seconds", "memory_gib", "mfu")


class Numbers:
    """A source whose samples say which of them was drawn, and with what draw."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
        """(index, a number from the generator)."""
        return index, float(rng.random())


class Line(nn.Module):
    """Fits y = 2 x with noise on the way, and reports beside the loss; ``bad_steps`` give a loss that is no number."""

    batch_coupled = False
    damaged: Collection[int] = ()  # samples whose pictures cannot be opened

    def __init__(self, bad_steps: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"mouth": nn.Linear(1, 1), "eye": nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))})
        if seed:  # other weights, but the same frozen ones
            torch.manual_seed(seed)
            self.model["mouth"] = nn.Linear(1, 1)
        self.bad_steps, self.steps = bad_steps, list[int]()

    def opener(self) -> Callable[[Any], None]:
        """There are no pictures, but some samples are as if theirs were damaged."""

        def open_pictures(sample: tuple[int, float]) -> None:
            if sample[0] in self.damaged:
                raise ImageError(f"{sample[0]}.jpg: damaged")

        return open_pictures

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
        """Numbers to a column; noise from ``rng``."""
        self.steps.append(step)
        x = torch.tensor([[value] for _, value in samples])
        return {"x": x + 0.01 * torch.from_numpy(rng.random(x.shape)).float(), "bad": step in self.bad_steps}

    def shown(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """What is to be learnt."""
        return [{"index": index, "wanted": round(2 * value, 3)} for index, value in samples]

    def counts(self, batch: dict[str, Any]) -> dict[str, int]:
        """Rows."""
        return {"fit_loss": len(batch["x"]), "half_loss": len(batch["x"])}

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Two terms, one number that is no loss."""
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape)
        loss = (self.model["mouth"](x) - 2 * x).square().mean()
        if batch["bad"]:
            loss = loss * float("nan")
        return {"fit_loss": loss, "half_loss": loss / 2, "other": loss * 100}, {"report": 3.0}


def run_of(out: Path, steps: int, **train: Any) -> RunConfig:
    """A run of so many steps, four samples each."""
    given = {"steps": steps, "batch_size": 4, "warmup": 2, **train}
    return RunConfig(str(out), 0, None, StageConfig(), params=RULES, train=TrainConfig(**given))


def train_line(out: Path, steps: int, stage: Any = None, every: int = 1, keep: int = 99, **train: Any) -> Any:
    """Train to the end in this process."""
    stage = stage or Line()
    run = run_of(out, steps, **train)
    run.checkpoint = CheckpointConfig(every, keep)
    out.mkdir(parents=True, exist_ok=True)
    fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, out, Strategy())
    return stage


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock or a machine says."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def weights(stage: Any) -> list[Tensor]:
    """All of them."""
    return [value.detach().clone() for value in stage.model.state_dict().values()]


# ---------------------------------------------------------------- processes


class Failing(Line):
    """Does what a plan says at a step: ``{"step": 3, "rank": 1, "do": "kill" | "hang" | "term" | "nan"}``."""

    def __init__(self, plan: dict[str, Any], rank: int) -> None:
        mine = plan.get("rank") == rank
        super().__init__([plan["step"]] if mine and plan["do"] == "nan" else ())
        self.plan = plan if mine else {}

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
        """The plan first."""
        if self.plan.get("step") == step:
            if self.plan["do"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.plan["do"] == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.plan["do"] == "hang":
                time.sleep(60)
        return super().collate(samples, rng, step)


def kill_at_operation(folder: Path, step: int, number: int) -> None:
    """End this process at the ``number``-th file operation of the save of ``step``; count them for number 0."""
    real, count, armed = checkpoint.save, [0], [False]
    kinds = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        writes = event in kinds or (event == "open" and isinstance(given[1], str) and "w" in given[1])
        if armed[0] and (writes or (event == "open" and given[1] is None)):  # os.open: of a folder, to flush it
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def save(place: Path, at: int, *rest: Any) -> Path:
        armed[0] = at == step
        done = real(place, at, *rest)
        armed[0] = False
        if at == step:
            (folder / "operations").write_text(str(count[0]))
        return done

    checkpoint.save = save  # in this process only, which ends soon
    sys.addaudithook(hook)


def work(out: str, rank: int, world: int, port: int, steps: int, plan: dict[str, Any]) -> None:
    """One process of a run; leaves ``weights-RANK.pt`` or ``error-RANK.txt``."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    folder = Path(out)
    os.dup2(os.open(folder / f"stderr-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if "operation" in plan and rank == 0:
        kill_at_operation(folder, plan["step"], plan["operation"])
    stage = Failing(plan if "do" in plan else {}, rank)
    stage.damaged = plan.get("damaged", ())
    run = run_of(folder, steps, nonfinite=plan.get("nonfinite", "stop"), workers=plan.get("workers", 0))
    run.checkpoint = CheckpointConfig(plan.get("every", 1), 1)
    run.strategy = StrategyConfig(timeout=plan.get("timeout", 60.0))
    strategy = DataParallel(run.strategy.timeout) if world > 1 else Strategy()
    try:
        fit(stage, Numbers(10), apply_rules(stage.model, RULES), run, folder, strategy)
        torch.save(weights(stage), folder / f"weights-{rank}.pt")
        strategy.close()
    except RABlipError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))
        os._exit(error.exit_code)
    os._exit(0)


@functools.cache
def _context() -> Any:
    """How processes start: forked, so that they find everything imported; CUDA cannot be forked."""
    with tempfile.TemporaryDirectory() as place:
        train_line(Path(place), 1)  # what torch imports at the first optimizer
    return multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")


def start(function: Any, world: int, *given: Any) -> list[Any]:
    """Processes that call ``function(given[0], rank, world, port, *given[1:])``."""
    context = _context()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [
        context.Process(target=function, args=(given[0], rank, world, port, *given[1:]), daemon=True)
        for rank in range(world)
    ]
    for process in made:
        process.start()
    return made


def run_processes(out: Path, world: int, steps: int, **plan: Any) -> list[int]:
    """Run the line in so many processes -> their exit codes."""
    out.mkdir(exist_ok=True)
    made = start(work, world, str(out), steps, plan)
    for process in made:
        process.join(60)
    return [process.exitcode for process in made]


def final(out: Path, rank: int = 0) -> list[Tensor]:
    """The weights that a finished process left."""
    found: list[Tensor] = torch.load(out / f"weights-{rank}.pt")
    return found
