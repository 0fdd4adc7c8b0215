"""The only loop. It is handed a stage and a source of samples, and knows neither models nor data formats."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.config import RunConfig
from ra_blip.errors import CheckpointError, ConfigError, OutputError
from ra_blip.records import write_text
from ra_blip.training import checkpoint, gather
from ra_blip.training.damaged import Damaged
from ra_blip.training.ema import Ema
from ra_blip.training.faults import RunStopped, TrainingDiverged, explained, names_of
from ra_blip.training.optim import Resolved, schedule
from ra_blip.training.samples import Loader, Source
from ra_blip.training.signals import Stop, stopping
from ra_blip.training.strategy import Strategy, compile_layers
from ra_blip.training.tracking import Meter, Tracker, memory_gib

SHOWN = 4  # samples of an evaluation
RANK_SEED = 982_451_653  # apart: dropout is not the same on two ranks


class TrainableStage(Protocol):
    """What the loop needs of a stage."""

    @property
    def model(self) -> nn.Module:
        """Holds every parameter."""

    @property
    def batch_coupled(self) -> bool:
        """Whether the loss compares the samples of a batch: then each rank collates the joined batch of all ranks."""

    def opener(self) -> Callable[[Any], None]:
        """What opens the pictures of a sample ahead of its step, in any thread."""

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
        """Samples to a batch."""

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Batch to (losses, report)."""

    def shown(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """What the model makes of a few samples, for people to read."""

    def counts(self, batch: dict[str, Any]) -> dict[str, int]:
        """Of how many things each loss of a batch is the mean, on this rank; the same names for every batch."""


def fit(
    stage: TrainableStage,
    source: Source,
    table: Sequence[Resolved],
    run: RunConfig,
    out: Path,
    strategy: Strategy,
    validation: Source | None = None,
) -> None:
    """Train to ``run.train.steps``, continuing from the newest complete checkpoint of ``out``.

    At the end the model holds what is to be exported: the weights of the best checkpoint if there is a ``validation``,
    and their averages if the run keeps them.

    Raises:
        ConfigError: a setting that does not go with the stage, the strategy or the number of processes.
        TrainingDiverged: loss or gradient is not finite on some rank.
        RunStopped: a signal asked for it, and the run saved.
        RankLost: another process died or did not answer.
        MemoryFull: out of memory.
        OutputError: checkpoints cannot be written, several times in a row.
    """
    _check(stage, run, strategy, validation)
    with stopping() as stop:
        _Loop(stage, source, table, run, out, strategy, validation).train(stop)


class _Loop:
    """The state of a run between two steps."""

    def __init__(
        self,
        stage: TrainableStage,
        source: Source,
        table: Sequence[Resolved],
        run: RunConfig,
        out: Path,
        strategy: Strategy,
        validation: Source | None,
    ) -> None:
        self.stage, self.validation = stage, validation
        self.run, self.out, self.strategy = run, out, strategy
        self.folder = out / "checkpoints"
        self.frozen = checkpoint.frozen_marks(stage.model) if strategy.rank == 0 else {}
        self.optimizer = strategy.prepare(stage, table, run.train)
        self.scaler = torch.amp.GradScaler(strategy.device.type, enabled=run.train.precision == "fp16")
        self.ema = Ema(stage.model, run.train.ema) if run.train.ema else None
        self.meter = Meter(None if strategy.sharded else strategy.device, run.train.precision)
        self.batch: dict[str, Any] = {}  # the last one, whose sizes an error names
        self.skipped = self.failed_saves = 0
        self.damaged = Damaged(out, run.data.damaged, run.train.batch_size)
        self.pool = ThreadPoolExecutor(run.train.workers, "loader") if run.train.workers else None
        self.open_pictures = stage.opener()
        self.loader = self._loader(source, run.train.batch_size, run.seed, run.train.steps)
        if run.train.compile:
            compile_layers(stage.model, run.train.compile)

    def train(self, stop: Stop) -> None:
        """From the newest checkpoint to the last step, unless ``stop`` is set on the way."""
        config, strategy = self.run.train, self.strategy
        start = self._resume()
        self.damaged.recall(start)
        strategy.barrier()
        tracker = Tracker(self.out, start, self.run, quiet=strategy.rank > 0)
        step = start
        try:
            for step in range(start, config.steps):
                numbers, stopped = self._step(step, stop)
                evaluated = self._due(step, self.run.evaluation.every) and self.validation is not None
                if evaluated:
                    numbers |= self._evaluate(step)
                if (step + 1) % config.log_every == 0 or step + 1 == config.steps or evaluated or stopped:
                    tracker.log(gather.agreed(numbers) | self.damaged.numbers, step + 1)
                if self._due(step, self.run.checkpoint.every) or step + 1 == config.steps or evaluated or stopped:
                    self._save(step + 1, self._score(numbers) if evaluated else {})
                if stopped and step + 1 < config.steps:
                    strategy.barrier()  # a rank that leaves has the launcher end the one that is still writing
                    raise RunStopped(
                        f"stopped by {stop.asked or 'a signal to another process'} after step {step + 1}, which is "
                        f"saved in {self.folder}; the same command goes on from there"
                    )
            self._take_best()
        except (RuntimeError, MemoryError) as error:
            raise explained(error, step + 1, self.batch, strategy.world, self.run.strategy.timeout) from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            tracker.close()
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)

    def _loader(self, source: Source, size: int, seed: int, steps: int) -> Loader:
        rank, world, strict = self.strategy.rank, self.strategy.world, not self.run.data.damaged
        return Loader(source, size, seed, steps, rank, world, self.open_pictures, self.pool, strict)

    # -------------------------------------------------------------- one step

    def _step(self, step: int, stop: Stop) -> tuple[dict[str, Any], bool]:
        """Train on the samples of a step -> (numbers to log, whether some rank was asked to stop)."""
        config, strategy, stage = self.run.train, self.strategy, self.stage
        if strategy.world > 1:  # a rank that hangs says where, before the others give up on it
            faulthandler.dump_traceback_later(0.9 * self.run.strategy.timeout, file=sys.__stderr__ or sys.stderr)
        begun = time.monotonic()
        # Dropout and draws on the device follow the step, not the past.
        torch.manual_seed(self.run.seed * 1_000_003 + step + RANK_SEED * strategy.rank)
        set_mode(stage.model)
        samples = self.loader.at(step)
        batches = self._collate(samples, step)
        waited = time.monotonic() - begun
        rate = schedule(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        strategy.zero_grad(self.optimizer)
        with self.meter.counting(step):
            terms, report = self._accumulate(batches)
        loss = torch.stack([value.float() for key, value in terms.items() if key.endswith("_loss")]).sum()
        strategy.average_gradients(strategy.trained)
        self.scaler.unscale_(self.optimizer)
        norm = strategy.clip_gradients(strategy.trained, config.clip)
        damaged = self.loader.damaged
        no_loss, no_gradient, stopped, replaced = gather.any_rank(
            strategy.device, ~torch.isfinite(loss), ~torch.isfinite(norm), bool(stop), bool(damaged)
        )
        if replaced:
            self.damaged.note(step + 1, damaged)
        numbers: dict[str, Any] = {"loss": float(loss), **{key: float(value) for key, value in terms.items()}, **report}
        if no_loss or (no_gradient and not self._overflow()):
            self._refuse(step, samples, float(loss), float(norm))
            numbers = {"loss": None, "skipped": self.skipped}
        elif not no_gradient:
            strategy.step(self.optimizer)
            if self.ema is not None:
                self.ema.update()
        self.scaler.update()
        spent = time.monotonic() - begun
        speed = {"samples_per_second": config.batch_size / spent, "data_seconds": waited, **self.meter.used(spent)}
        lr = self.optimizer.param_groups[-1]["lr"]
        return {**numbers, "lr": lr, **speed, "memory_gib": memory_gib()}, stopped

    def _collate(self, samples: list[Any], step: int) -> list[dict[str, Any]]:
        """The micro batches of a step; all draws follow (seed, step), and are the same on all ranks."""
        parts, count = [samples], self.run.train.accumulate
        if self.stage.batch_coupled:
            parts = [gather.join(samples)]
        elif count > 1:
            parts = [
                samples[place * len(samples) // count : (place + 1) * len(samples) // count] for place in range(count)
            ]
        return [self.stage.collate(part, np.random.default_rng([self.run.seed, step, 1]), step) for part in parts]

    def _accumulate(self, batches: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Add up the gradients of the micro batches -> (loss terms, report) of the whole."""
        terms: dict[str, Tensor] = {}
        reports: dict[str, list[float]] = {}
        for place, (batch, share) in enumerate(zip(batches, self._shares(batches), strict=True)):
            self.batch = batch
            found, report = self.strategy.forward(self.stage, batch)
            if len(batches) > 1:
                found = {key: value * share.get(key, 1 / len(batches)) for key, value in found.items()}
            loss = torch.stack([value.float() for key, value in found.items() if key.endswith("_loss")]).sum()
            self.strategy.backward(self.scaler.scale(loss), last=place + 1 == len(batches))
            for key, value in found.items():
                terms[key] = terms[key] + value.detach() if key in terms else value.detach()
            for key, number in report.items():
                reports.setdefault(key, []).append(number)
        return terms, {key: sum(numbers) / len(numbers) for key, numbers in reports.items()}

    def _shares(self, batches: list[dict[str, Any]]) -> list[dict[str, float]]:
        """By how much each micro batch counts in each loss, so that together they give the loss of the whole batch."""
        if len(batches) == 1:
            return [{}]
        counts = [self.stage.counts(batch) for batch in batches]
        flat = {f"{place} {key}": value for place, one in enumerate(counts) for key, value in one.items()}
        summed = gather.totals(flat, self.strategy.device)
        whole = {key: sum(summed[f"{place} {key}"] for place in range(len(counts))) for key in counts[0]}
        return [{key: summed[f"{place} {key}"] / max(whole[key], 1) for key in whole} for place in range(len(counts))]

    # -------------------------------------------------------------- what is no number

    def _overflow(self) -> bool:
        """Whether an infinite gradient is fp16's, for which a smaller scale of the loss is the remedy."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _refuse(self, step: int, samples: Sequence[Any], loss: float, norm: float) -> None:
        """Note the samples of a step that must not reach the weights; all ranks come here together."""
        own = {"rank": self.strategy.rank, "loss": str(loss), "gradient_norm": str(norm), "ids": names_of(samples)}
        ranks = gather.join([own])
        path = self.out / "nonfinite.jsonl"
        if self.strategy.rank == 0:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step + 1, "ranks": ranks}) + "\n")
        skip = self.run.train.nonfinite == "skip"
        if skip and self.skipped < self.run.train.max_skips:
            self.skipped += 1
            return
        said = ", ".join(f"loss {one['loss']} on rank {one['rank']}" for one in ranks)
        raise TrainingDiverged(
            f"step {step + 1}: {said}, gradient norm {norm}{f', after {self.skipped} steps left out' if skip else ''}; "
            f"{path} lists the samples (seed {self.run.seed}); lower the learning rate, look at them, or set "
            "train.nonfinite=skip"
        )

    # -------------------------------------------------------------- evaluation

    def _due(self, step: int, every: int) -> bool:
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.run.train.steps)

    def _evaluate(self, step: int) -> dict[str, float]:
        """Means of losses and reports over held-out samples, as ``eval_NAME``; all ranks do their share."""
        assert self.validation is not None
        config, strategy = self.run.evaluation, self.strategy
        count = min(config.samples or len(self.validation), len(self.validation))
        size = min(self.run.train.batch_size, count)
        loader = self._loader(self.validation, size, 0, count // size)
        found: dict[str, list[float]] = {}
        self.stage.model.eval()
        with torch.no_grad(), self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            for number in range(count // size):
                torch.manual_seed(number)
                samples = loader.at(number)
                joined = gather.join(samples) if self.stage.batch_coupled else samples
                self.batch = self.stage.collate(joined, np.random.default_rng([0, number]), step)
                terms, report = strategy.forward(self.stage, self.batch)
                numbers = {key: float(value) for key, value in terms.items()}
                numbers["loss"] = sum(value for key, value in numbers.items() if key.endswith("_loss"))
                for key, value in gather.agreed({**numbers, **report}).items():
                    found.setdefault(key, []).append(value)
                if number == 0 and strategy.rank == 0 and not strategy.sharded:
                    self._show(step + 1, samples[:SHOWN])
        self.damaged.note(step + 1, loader.damaged)
        means = {f"eval_{key}": sum(values) / len(values) for key, values in found.items()}
        return {**means, "eval_samples": count // size * size}

    def _show(self, step: int, samples: Sequence[Any]) -> None:
        """Write what the stage shows of a few samples into ``samples.jsonl``, after those of earlier steps."""
        path = self.out / "samples.jsonl"
        before = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in self.stage.shown(samples)]
        if rows:
            write_text(path, [*(line for line in before if json.loads(line)["step"] < step), *rows])

    def _score(self, numbers: dict[str, Any]) -> dict[str, float]:
        """The number that tells the best checkpoint, larger is better."""
        config = self.run.evaluation
        name = f"eval_{config.metric}"
        if name not in numbers:
            known = [key.removeprefix("eval_") for key in numbers if key.startswith("eval_")]
            raise ConfigError(f"evaluation.metric: this stage gives no {config.metric!r}, it gives {', '.join(known)}")
        return {"score": numbers[name] if config.greater else -numbers[name]}

    # -------------------------------------------------------------- checkpoints

    def _save(self, step: int, score: dict[str, float]) -> None:
        """Write a checkpoint; one that fails is passed over a few times, as long as the run has steps to go."""
        weights, moments = self.strategy.state(self.stage.model, self.optimizer)
        if self.strategy.rank > 0:
            return
        tensors = {"weights": weights, "optimizer": moments, **({"ema": self.ema.average} if self.ema else {})}
        state = {
            **{"seed": self.run.seed, "world": self.strategy.world, "torch": torch.__version__},
            **{"frozen": self.frozen, "skipped": self.skipped, "scaler": self.scaler.state_dict(), **score},
        }
        try:
            checkpoint.save(self.folder, step, tensors, state, self.run.checkpoint.keep)
            self.failed_saves = 0
        except OutputError as error:
            self.failed_saves += 1
            if step == self.run.train.steps or self.failed_saves > self.run.checkpoint.failures:
                raise
            print(f"ra-blip: step {step}: training goes on without this checkpoint: {error}", file=sys.stderr)

    def _resume(self) -> int:
        """Continue from the newest complete checkpoint -> steps done."""
        path, passed_over = checkpoint.newest(self.folder) if self.strategy.rank == 0 else (None, [])
        path = gather.join([path])[0]
        for wrong in passed_over:
            print(f"ra-blip: a checkpoint is passed over: {wrong}", file=sys.stderr)
        if path is None:
            return 0
        tensors, state = checkpoint.load(path)
        if self.strategy.rank == 0:
            self._compare(path, state)
        self.strategy.restore(self.stage.model, self.optimizer, tensors["weights"], tensors["optimizer"])
        if self.ema is not None:
            self.ema.restore(tensors["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = int(state["skipped"])
        return int(state["step"])

    def _compare(self, path: Path, state: dict[str, Any]) -> None:
        """Say where the run goes on, and what is not as it was. Raises :class:`CheckpointError` for frozen weights."""
        other = [part for part, mark in state["frozen"].items() if self.frozen.get(part) != mark]
        if other:
            raise CheckpointError(f"{path}: was trained beside other frozen weights in {', '.join(other)}")
        now = {"world": self.strategy.world, "torch": torch.__version__}
        changed = [f"{key} was {state[key]}, is {value}" for key, value in now.items() if state[key] != value]
        said = f"; the same samples follow, rounded otherwise: {', '.join(changed)}" if changed else ""
        print(f"ra-blip: goes on from {path}{said}", file=sys.stderr)

    def _take_best(self) -> None:
        """Put into the model what is to be exported."""
        if self.validation is None and self.ema is None:
            return
        path = (checkpoint.best(self.folder) or checkpoint.newest(self.folder)[0]) if self.strategy.rank == 0 else None
        path = gather.join([path])[0]
        if path is None:
            raise CheckpointError(f"{self.folder}: no complete checkpoint to export")
        tensors, state = checkpoint.load(path)
        weights = {**tensors["weights"], **tensors.get("ema", {})}
        self.strategy.restore(self.stage.model, self.optimizer, weights, {})
        if self.strategy.rank == 0:
            print(f"ra-blip: the model is that of step {state['step']}", file=sys.stderr)


def _check(stage: TrainableStage, run: RunConfig, strategy: Strategy, validation: Source | None) -> None:
    """Refuse, before anything is computed, what could not work."""
    config = run.train
    parts = strategy.world * max(config.accumulate, 1)
    if config.batch_size < parts:
        raise ConfigError(
            f"train.batch_size is {config.batch_size}, less than {strategy.world} processes x {config.accumulate} parts"
        )
    if stage.batch_coupled and config.accumulate > 1:
        raise ConfigError("train.accumulate: this stage compares the samples of a batch, which parts would shrink")
    if validation is not None and len(validation) < strategy.world:
        raise ConfigError(f"evaluation.data: {len(validation)} samples for {strategy.world} processes")
    if config.ema and strategy.sharded:
        raise ConfigError("train.ema: averages need whole weights; use strategy.name=ddp")


def set_mode(model: nn.Module) -> None:
    """Training mode, except for parts that are frozen: their dropout and running statistics stay still."""
    for child in model.children():
        child.train(any(parameter.requires_grad for parameter in child.parameters()))
