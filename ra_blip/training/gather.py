"""What the ranks of a run tell each other beside gradients; with one process, each of these is the identity.

The samples of a step are dealt to the ranks like cards: rank r holds rows r, r + world, r + 2 world ... of the joined
batch. Whatever is gathered here comes back in the order of the joined batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def place() -> tuple[int, int]:
    """(rank, world): (0, 1) where no process group runs."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def join(objects: Sequence[T]) -> list[T]:
    """The rows of all ranks as one list; each rank gives its own (any objects that can be pickled). Collective."""
    import torch.distributed as dist

    _, world = place()
    if world == 1:
        return list(objects)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, list(objects))
    return [parts[row % world][row // world] for row in range(sum(len(part) for part in parts))]


def join_rows(totals: Sequence[int], *tensors: Tensor) -> list[Tensor]:
    """(B_r, ...) of each rank -> (B, ...) on every rank, with gradients through all of it. Collective.

    Several tensors travel in one call, so that the backward pass meets in one place too. The gradient that comes back
    to a rank is the sum of what all ranks send: averaging the parameters' gradients over ranks then gives the gradient
    of the mean of the ranks' losses. A loss over the joined rows may therefore be computed on every rank, whole.

    Args:
        totals: rows B of each joined tensor.
        tensors: this rank's rows of each.
    """
    if place()[1] == 1:
        return list(tensors)
    return list(_JoinRows.apply(tuple(totals), *tensors))  # type: ignore[no-untyped-call]


class _JoinRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, totals: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        import torch.distributed as dist

        _, world = place()
        joined = []
        for total, tensor in zip(totals, tensors, strict=True):
            padded = tensor.new_zeros((-(-total // world), *tensor.shape[1:]))
            padded[: len(tensor)] = tensor
            parts = [torch.empty_like(padded) for _ in range(world)]
            dist.all_gather(parts, padded)
            joined.append(torch.stack(parts, dim=1).flatten(0, 1)[:total].contiguous())
        return tuple(joined)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        import torch.distributed as dist

        rank, world = place()
        out = []
        for gradient in gradients:
            whole = gradient.contiguous().clone()
            dist.all_reduce(whole)
            out.append(whole[rank::world].contiguous())
        return (None, *out)


def common_generator(device: torch.device) -> torch.Generator | None:
    """A source of draws that is in the same state on all ranks; None, torch's own, in a single process. Collective."""
    import torch.distributed as dist

    if place()[1] == 1:
        return None
    seed = torch.tensor([torch.initial_seed()], device=device)
    dist.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))


def totals(counts: Mapping[str, int], device: torch.device) -> dict[str, int]:
    """Sums over all ranks; every rank gives the same names. Collective."""
    import torch.distributed as dist

    if place()[1] == 1:
        return dict(counts)
    summed = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    dist.all_reduce(summed)
    return dict(zip(counts, summed.tolist(), strict=True))


def agreed(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers to log, the mean over ranks; a loss that a rank does not have counts 0 there, others not. Collective.

    None, on any rank, stays None.
    """
    _, world = place()
    if world == 1:
        return dict(numbers)
    found = join([dict(numbers)])
    out = {}
    for name in dict.fromkeys(key for one in found for key in one):
        values = [one[name] for one in found if name in one]
        out[name] = None if None in values else sum(values) / (world if name.endswith("loss") else len(values))
    return out


def any_rank(device: torch.device, *flags: Tensor | bool) -> list[bool]:
    """Which of the flags is raised on some rank. Collective: one call for all of them."""
    import torch.distributed as dist

    raised = torch.stack([torch.as_tensor(flag, device=device).to(torch.int32).reshape(()) for flag in flags])
    if place()[1] > 1:
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
