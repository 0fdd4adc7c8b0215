"""Which samples a step is made of: arithmetic, so that resuming is, too."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Random-access training samples; a draw is a pure function of (index, generator state)."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """One sample, varied by ``rng`` only."""


def samples_at(source: Source, step: int, size: int, seed: int, rank: int = 0, world: int = 1) -> list[Any]:
    """The samples of one step: a pure function of its arguments.

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
