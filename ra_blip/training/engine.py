"""The only loop. It is handed a stage and a source of samples, and knows neither models nor data formats."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.config import RunConfig
from ra_blip.errors import RABlipError
from ra_blip.training import checkpoint
from ra_blip.training.optim import Resolved, build_optimizer, schedule
from ra_blip.training.strategy import Strategy
from ra_blip.training.tracking import Tracker


class TrainingDiverged(RABlipError):
    """The loss or the gradient is not a number; nothing of that step reached the weights."""


class Source(Protocol):
    """Random-access training samples; a draw is a pure function of (index, generator state)."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """One sample, varied by ``rng`` only."""


class TrainableStage(Protocol):
    """What the loop needs of a stage."""

    @property
    def model(self) -> nn.Module:
        """Holds every parameter."""

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
        """Samples to a batch."""

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Batch to (losses, report)."""


def samples_at(source: Source, step: int, size: int, seed: int, rank: int = 0, world: int = 1) -> list[Any]:
    """The samples of one step: a pure function of its arguments, so that resuming is arithmetic.

    ``size`` is the batch of all ranks together; each rank takes every ``world``-th sample of it.
    """
    total = len(source)
    drawn = []
    for position in range(step * size + rank, (step + 1) * size, world):
        epoch, place = divmod(position, total)
        index = int(_order(source, total, seed, epoch)[place])
        drawn.append(source.draw(index, np.random.default_rng([seed, epoch, index])))
    return drawn


_orders: dict[tuple[int, int, int, int], np.ndarray] = {}


def _order(source: Source, total: int, seed: int, epoch: int) -> np.ndarray:
    """Indices of one epoch: the source's own ``order(seed, epoch)`` where it has one, else a permutation."""
    key = (id(source), total, seed, epoch)
    if key not in _orders:
        _orders.clear()
        own = getattr(source, "order", None)
        _orders[key] = own(seed, epoch) if own else np.random.default_rng([seed, epoch]).permutation(total)
    return _orders[key]


def fit(
    stage: TrainableStage, source: Source, table: Sequence[Resolved], run: RunConfig, out: Path, strategy: Strategy
) -> None:
    """Train to ``run.train.steps``, continuing from the newest complete checkpoint of ``out``.

    Raises:
        TrainingDiverged: loss or gradient is not finite on some rank.
    """
    config, model = run.train, stage.model
    optimizer = build_optimizer(model, table, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    folder = out / "checkpoints"
    found = checkpoint.complete(folder) if folder.exists() else []
    start = int(checkpoint.load(found[-1], model, optimizer)["step"]) if found else 0
    strategy.barrier()
    tracker = Tracker(out / "log.jsonl", start, config.steps, run.stage.name, quiet=strategy.rank > 0)
    for step in range(start, config.steps):
        begun = time.monotonic()
        torch.manual_seed(run.seed * 1_000_003 + step)  # dropout and draws on the device follow the step, not the past
        set_mode(model)
        samples = samples_at(source, step, config.batch_size, run.seed, strategy.rank, strategy.world)
        batch = stage.collate(samples, np.random.default_rng([run.seed, step, 1]), step)  # the same on all ranks
        waited = time.monotonic() - begun
        rate = schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        numbers = _update(stage, batch, optimizer, trained, run, strategy, step)
        spent = time.monotonic() - begun
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            speed = {"samples_per_second": config.batch_size / spent, "data_seconds": waited}
            tracker.log({**numbers, "lr": optimizer.param_groups[-1]["lr"], **speed}, step + 1)
        every = run.checkpoint.every
        if strategy.rank == 0 and ((every and (step + 1) % every == 0) or step + 1 == config.steps):
            checkpoint.save(folder, step + 1, model, optimizer, {"seed": run.seed}, run.checkpoint.keep)
    tracker.close()


def _update(
    stage: TrainableStage,
    batch: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    run: RunConfig,
    strategy: Strategy,
    step: int,
) -> dict[str, float]:
    bf16 = run.train.precision == "bf16"
    device = trained[0].device.type
    with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
        terms, report = stage.forward(batch)
        loss = torch.stack([value.float() for key, value in terms.items() if key.endswith("_loss")]).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    strategy.average_gradients(trained)
    norm = nn.utils.clip_grad_norm_(trained, run.train.clip or float("inf"))
    if not strategy.all_finite(loss + norm):
        raise TrainingDiverged(
            f"step {step + 1}: loss {float(loss.detach())}, gradient norm {float(norm)}; lower the learning rate, "
            f"or look at the samples of this step (seed {run.seed})"
        )
    optimizer.step()
    return {"loss": float(loss.detach()), **{key: float(value.detach()) for key, value in terms.items()}, **report}


def set_mode(model: nn.Module) -> None:
    """Training mode, except for parts that are frozen: their dropout and running statistics stay still."""
    for child in model.children():
        child.train(any(parameter.requires_grad for parameter in child.parameters()))


def set_threads(count: int) -> None:
    """Torch threads of this process; 0 leaves what OMP_NUM_THREADS or torch chose."""
    if count:
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)
