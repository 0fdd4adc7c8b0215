"""What ends a run before its last step, and what is said about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ra_blip.errors import RABlipError
from ra_blip.records import Example

# What gloo and NCCL say when another process is gone or does not answer; gloo's are plain RuntimeErrors.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)
_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class TrainingDiverged(RABlipError):
    """The loss or the gradient is not a number; nothing of that step reached the weights."""


class RunStopped(RABlipError):
    """A signal asked the run to stop; it saved and can be continued."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: come again


class RankLost(RABlipError):
    """Another process of the run died or did not answer in time."""


class MemoryFull(RABlipError):
    """A step needs more memory than there is."""


def explained(error: BaseException, step: int, batch: Mapping[str, Any], world: int, timeout: float) -> BaseException:
    """The error of a step as one that says what to do, where it is a known one; otherwise itself.

    Args:
        error: raised by the step.
        step: from 1.
        batch: what was computed; its sizes are named.
        world: processes.
        timeout: seconds that a process waits for another.
    """
    said = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _MEMORY.search(said):
        return MemoryFull(
            f"step {step}: out of memory with {_sizes(batch)}; lower train.batch_size or raise train.accumulate, set "
            "gradient_checkpointing=true in model.qformer and model.vision, or train.precision=bf16; checkpoints are "
            "untouched"
        )
    distributed = isinstance(error, torch.distributed.DistError) if torch.distributed.is_available() else False
    if world > 1 and isinstance(error, RuntimeError) and (distributed or _LOST.search(said)):
        return RankLost(
            f"step {step}: another process of this run died, or did not answer within {timeout:g} s; its own last "
            f"words say why; the same command goes on from the last checkpoint ({said[:160]})"
        )
    return error


def names_of(samples: Sequence[Any]) -> list[str]:
    """Ids of training samples: of an example its question's."""
    asked = [sample.question if isinstance(sample, Example) else sample for sample in samples]
    return [str(getattr(one, "id", one)) for one in asked]


def _sizes(batch: Mapping[str, Any]) -> str:
    """Rows, pictures and longest text of a batch, as far as it shows them."""
    masks = [getattr(value, "mask", value) for value in batch.values()]
    shapes = [value.shape for value in masks if isinstance(value, torch.Tensor) and value.dim() == 2]
    rows = max((shape[0] for shape in shapes), default=0)
    return (
        f"{rows} rows, {len(batch.get('images', ()))} pictures and {max((s[1] for s in shapes), default=0)} tokens on "
        "this rank"
    )
