"""How many processes train, and how they agree: one process, or data parallel under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ra_blip.errors import ConfigError


class Strategy:
    """One process."""

    rank = 0
    world = 1

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make gradients equal on all ranks; nothing to do for one."""

    def all_finite(self, value: Tensor) -> bool:
        """Whether a scalar is finite on every rank."""
        return bool(torch.isfinite(value))

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Leave the process group."""


class DataParallel(Strategy):
    """Every rank holds the whole model and its share of the batch; gradients are averaged before the optimizer.

    One flat all-reduce a step. Parameters without a gradient on a rank (a batch without pictures) count as zero, so
    ranks can never wait for each other.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average over ranks, in place."""
        import torch.distributed as dist

        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch._utils._flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        flat /= self.world
        for parameter, grad in zip(parameters, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
            parameter.grad = grad

    def all_finite(self, value: Tensor) -> bool:
        """One bad rank makes the answer no, on all."""
        import torch.distributed as dist

        bad = (~torch.isfinite(value.detach())).to(torch.int32).reshape(1)
        dist.all_reduce(bad)
        return int(bad) == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def close(self) -> None:
        """Meet once more, then leave: a rank that leaves early can abort the others."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def share(count: int, device: torch.device) -> float:
    """What this rank multiplies a mean over ``count`` things with; 1 for one process.

    Ranks hold unequal numbers of labelled tokens or pairs. Weighed so, the average of the ranks' gradients is the
    gradient of the mean over all of them, as one process would have it. All ranks must call it together.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    total = torch.tensor([float(count)], device=device)
    dist.all_reduce(total)
    return count * dist.get_world_size() / max(float(total), 1.0)


def choose(batch_coupled: bool) -> Strategy:
    """Data parallel where ``torchrun`` started more than one process.

    Raises:
        ConfigError: the stage compares samples across its batch, which would silently shrink on several ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Strategy()
    if batch_coupled:
        raise ConfigError("this stage uses in-batch negatives, which several ranks would shrink: run it in one process")
    return DataParallel()
