"""From a recipe to a trained model folder: builds source, model, stage and strategy, locks the output, runs."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ra_blip.config import RunConfig, dump_config, load_config, merged
from ra_blip.data.sources import SOURCES, Source
from ra_blip.errors import ConfigError, OutputError
from ra_blip.models.rablip import RABlip
from ra_blip.records import write_text
from ra_blip.training import strategy as strategies
from ra_blip.training.engine import fit
from ra_blip.training.optim import apply_rules, describe
from ra_blip.training.stages import STAGES

# What may differ when a run is continued: it changes nothing that is trained, or only which processes do it.
FREE = (
    *("out", "checkpoint.", "log.", "strategy.", "data.features"),
    *("data.damaged", "train.log_every", "train.nonfinite", "train.max_skips", "train.workers"),
)


def train(run: RunConfig) -> Path:
    """Train one stage; run again with the same ``out`` it resumes, and returns at once when it is done.

    Returns:
        the model folder, ``OUT/model``.

    Raises:
        ConfigError: the recipe is impossible, or ``out`` holds a run of other settings.
        OutputError: ``out`` cannot be written or is in use.
        RABlipError: as of :func:`ra_blip.training.engine.fit`.
    """
    out = Path(run.out)
    set_threads(run.train.threads)
    rank = int(os.environ.get("RANK", "0"))
    with locked(out) if rank == 0 else nullcontext():
        if rank == 0:
            check_same(run, out)
        if (out / "model" / "config.json").exists():
            return out / "model"
        source = SOURCES[run.data.name](run.data, run.stage, out, run.seed)
        model = build_model(run, source)
        table = apply_rules(model, run.params)
        stage = STAGES[run.stage.name](model, run.stage)
        source, held = stage.divide(source, run.seed)
        validation = held_out(run, out)
        model.processor.workers = run.train.workers
        strategy = strategies.choose(run.strategy)
        if rank == 0:  # from here on the folder holds a run: what was wrong until now can be put right in it
            write_text(out / "config.yaml", dump_config(run))
            write_text(out / "params.txt", describe(table) + "\n")
        fit(stage, source, table, run, out, strategy, validation)
        with strategy.whole(model):
            if rank == 0:
                model.eval()
                stage.finish(held, run.seed)
                model.save_pretrained(out / "model")
        strategy.close()
    return out / "model"


def held_out(run: RunConfig, out: Path) -> Source | None:
    """The samples that a run evaluates itself on; None where it does not.

    Raises:
        ConfigError: they would be those it trains on.
    """
    if not run.evaluation.every:
        return None
    data = merged(run.data, run.evaluation.data, "evaluation.data")
    if data == run.data:
        raise ConfigError("evaluation.data: say where the held-out samples are, for example {split: val}")
    return SOURCES[data.name](data, run.stage, out, run.seed)


def build_model(run: RunConfig, source: Source) -> RABlip:
    """The model a run starts from: a folder (``init``), whose sizes then hold, or new weights from the seed.

    A recipe's ``model.generator.lora`` is put into the LLM of a folder that has none.
    """
    torch.manual_seed(run.seed)
    features = Path(run.data.features) if run.data.features else None
    if run.init:
        model = RABlip.from_pretrained(run.init, features)
        if run.model.generator.lora.rank and not model.config.generator.lora.rank:
            model.reader.generator.adapt(run.model.generator.lora)
    else:
        model = RABlip.build(run.model, source.texts(), features)
    if run.stage.qformer_from_retriever:
        model.reader.qformer.copy_from(model.retriever.qformer)
        model.reader.ln_vision.load_state_dict(model.retriever.ln_vision.state_dict())
    return model


def check_same(run: RunConfig, out: Path) -> None:
    """Refuse to go on in a folder whose run had other settings. Raises :class:`ConfigError` naming them."""
    saved = out / "config.yaml"
    if not saved.exists():
        return
    before, now = _flat(load_config(saved)), _flat(run)
    changed = [
        f"{key} {before.get(key)!r} -> {now[key]!r}"
        for key in now
        if before.get(key) != now[key] and not key.startswith(FREE)
    ]
    if changed:
        raise ConfigError(f"{out} holds a run of other settings ({'; '.join(changed[:4])}): choose another out")


def _flat(run: RunConfig) -> dict[str, object]:
    out: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, found in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), found)
        else:
            out[prefix] = value

    walk("", dataclasses.asdict(run))
    return out


def set_threads(count: int) -> None:
    """Torch threads of this process; 0 leaves what OMP_NUM_THREADS or torch chose."""
    if count:
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process. Raises :class:`OutputError` where it cannot be written or another run holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise OutputError(
                    f"{out}: another run is writing here ({holder}); wait for it or choose another out"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            lock.flush()
            yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
