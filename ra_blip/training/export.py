"""A checkpoint of a run as a model folder: ``python -m ra_blip.training.export RUN OUT [--step N]``.

Checkpoints hold whole tensors whatever strategy wrote them (DDP, ZeRO, FSDP2), so that this is all there is to
consolidating one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ra_blip.config import load_config
from ra_blip.data.sources import SOURCES
from ra_blip.errors import CheckpointError, RABlipError
from ra_blip.training import checkpoint
from ra_blip.training.optim import apply_rules
from ra_blip.training.run import build_model
from ra_blip.training.strategy import fitting


def export(run_folder: Path, out: Path, step: int | None = None) -> Path:
    """Write the model of a checkpoint, of the averaged weights where the run keeps them.

    Args:
        run_folder: the ``out`` of a run, finished or not.
        out: the model folder to write.
        step: which checkpoint; the newest complete one where None.

    Raises:
        CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    run = load_config(run_folder / "config.yaml")
    folder = run_folder / "checkpoints"
    found = {int(path.name.removeprefix("step-")): path for path in checkpoint.complete(folder)}
    path = found.get(max(found, default=0) if step is None else step)
    if path is None:
        kept = ", ".join(map(str, sorted(found))) or "none"
        raise CheckpointError(f"{folder}: no complete checkpoint of step {step or '(newest)'}; there: {kept}")
    tensors, _ = checkpoint.load(path)
    model = build_model(run, SOURCES[run.data.name](run.data, run.stage, run_folder, run.seed))
    apply_rules(model, run.params)
    weights = {**tensors["weights"], **tensors.get("ema", {})}
    own = fitting(model, weights)
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    model.eval().save_pretrained(out)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ra_blip.training.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("out", metavar="OUT", help="the model folder to write")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the newest complete one)")
    given = parser.parse_args(arguments)
    try:
        print(export(Path(given.run), Path(given.out), given.step))
    except RABlipError as error:
        print(f"ra-blip: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
