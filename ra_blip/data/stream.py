"""Batches from a weighted mixture of sources: which samples, in which order, on which rank; resumed by arithmetic.

A batch is a pure function of (seed, epoch, position), so that these numbers are all that resuming needs. Samples come
in *windows* of some batches: a window holds each source's exact share, taken from that source in blocks of neighbours
(shards are read in long runs); inside it samples are shuffled, or sorted by length and cut into batches whose order is
shuffled (little padding). Each global batch is dealt to the ranks in turn, so that ranks share no sample and have
equally many batches.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ra_blip.errors import ConfigError

BLOCK = 256  # samples read one after another
BLOCKS = 64  # of a source at least: of a small one they are shorter
WINDOW = 4_096  # samples shuffled together where batches are not known

Draws = npt.NDArray[np.int64]  # (N, 3): source, index in it, and the how many-th pass over it


class Samples(Protocol):
    """Random-access samples; a draw is a pure function of (index, generator state)."""

    def __len__(self) -> int:
        """How many."""

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """One sample, varied by ``rng`` only."""

    def texts(self) -> Iterator[str]:
        """Texts to train tokenizers on."""


@dataclasses.dataclass
class Plan:
    """Which samples make which batch.

    A source is gone through in passes, each of them every sample once in a new order; the sources' passes go on from
    epoch to epoch, so that no sample is dropped at the end of one.

    Args:
        sizes: samples of each source.
        batch: samples in a batch of one rank.
        seed: of all orders.
        world: number of ranks.
        weights: share of each source; the square roots of their sizes where None.
        window: batches that are shuffled, or sorted, together.
        block: neighbours of a source that enter a window together.
        lengths: of the samples of each source, in any unit; None shuffles without sorting.

    Raises:
        ConfigError: an empty source, or weights or lengths that do not go with the sizes.
    """

    sizes: Sequence[int]
    batch: int
    seed: int = 0
    world: int = 1
    weights: Sequence[float] | None = None
    window: int = 128
    block: int = BLOCK
    lengths: Sequence[npt.NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ConfigError(f"a stream needs sources with samples; their sizes are {list(self.sizes)}")
        weights = [math.sqrt(size) for size in self.sizes] if self.weights is None else list(self.weights)
        if len(weights) != len(self.sizes) or min(weights) < 0 or not sum(weights):
            raise ConfigError(f"weights {weights} do not go with {len(self.sizes)} sources: one each, not below 0")
        if self.lengths is not None and [len(lengths) for lengths in self.lengths] != list(self.sizes):
            raise ConfigError(f"lengths are not those of sources of {list(self.sizes)} samples")
        self._shares = np.array(weights) / sum(weights)
        self._lengths = None if self.lengths is None else np.concatenate(list(self.lengths))
        self._starts = np.cumsum([0, *self.sizes])
        self._window: tuple[tuple[int, int], Draws] | None = None

    @property
    def batches(self) -> int:
        """Batches of an epoch, on every rank: as many samples as the sources have together, in whole global batches."""
        return max(sum(self.sizes) // (self.batch * self.world), 1)

    def at(self, epoch: int, position: int, rank: int = 0) -> Draws:
        """The samples of one rank's batch, (batch, 3): source, index, pass."""
        number, place = divmod(position, self.window)
        if self._window is None or self._window[0] != (epoch, number):
            self._window = (epoch, number), self._fill(epoch, number)
        size = self.batch * self.world
        return self._window[1][place * size : (place + 1) * size][rank :: self.world]

    def order(self, epoch: int) -> Draws:
        """The samples of a whole epoch, of all ranks, in the order of the batches."""
        return np.concatenate([self._fill(epoch, number) for number in range(-(-self.batches // self.window))])

    def quotas(self, batches: int) -> npt.NDArray[np.int64]:
        """Samples of each source in a window of so many batches: the shares, rounded by largest remainder."""
        exact = self._shares * (batches * self.batch * self.world)
        quotas = np.floor(exact + 1e-9).astype(np.int64)
        left = batches * self.batch * self.world - int(quotas.sum())
        quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
        return quotas

    def _fill(self, epoch: int, number: int) -> Draws:
        """The samples of a window in the order of its batches."""
        whole, rest = divmod(self.batches, self.window)
        count = self.window if number < whole else rest
        start = epoch * (whole * self.quotas(self.window) + self.quotas(rest)) + number * self.quotas(self.window)
        parts = [
            self._take(source, int(begin), int(quota))
            for source, (begin, quota) in enumerate(zip(start, self.quotas(count), strict=True))
        ]
        rng = np.random.default_rng([self.seed, epoch, number])
        draws = np.concatenate(parts)[rng.permutation(count * self.batch * self.world)]
        if self._lengths is None:
            return draws
        lengths = self._lengths[self._starts[draws[:, 0]] + draws[:, 1]]
        batches = draws[np.argsort(lengths, kind="stable")].reshape(count, -1, 3)
        return batches[rng.permutation(count)].reshape(-1, 3)

    def _take(self, source: int, begin: int, quota: int) -> Draws:
        """``quota`` samples of a source, from the ``begin``-th of its endless passes on."""
        size = self.sizes[source]
        passes, places = np.divmod(np.arange(begin, begin + quota), size)
        index = np.empty_like(places)
        for turn in np.unique(passes).tolist():
            rng = np.random.default_rng([self.seed, source, turn, 1])
            index[passes == turn] = in_blocks(places[passes == turn], size, rng, self.block)
        return np.stack([np.full(quota, source), index, passes], axis=1)


def in_blocks(
    places: npt.NDArray[np.int64], count: int, rng: np.random.Generator, block: int = BLOCK
) -> npt.NDArray[np.int64]:
    """What stands at ``places`` of a permutation of 0 .. ``count`` - 1 that moves blocks of neighbours.

    Where the blocks begin is drawn too, so that other samples are neighbours each time. It costs a permutation of the
    blocks, not of the samples.
    """
    block = min(block, -(-count // BLOCKS))
    whole = count // block
    blocks = np.append(rng.permutation(whole), whole)  # what is left over is shorter, and last
    return (blocks[places // block] * block + places % block + rng.integers(count)) % count


class Mixture:
    """Several sources as one, for a loop that asks for samples by number in the ``order`` of an epoch.

    Args:
        sources: the samples.
        weights: as in :class:`Plan`.
    """

    def __init__(self, sources: Sequence[Samples], weights: Sequence[float] | None = None) -> None:
        self.sources, self.weights = sources, weights
        self._starts = np.cumsum([0, *(len(source) for source in sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """Sample ``index``, counted through the sources."""
        source = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.sources[source].draw(index - int(self._starts[source]), rng)

    def texts(self) -> Iterator[str]:
        """The texts of every source."""
        return itertools.chain.from_iterable(source.texts() for source in self.sources)

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Indices of one epoch, a pure function of its arguments: each source at its weight, windows shuffled."""
        sizes = [len(source) for source in self.sources]
        draws = Plan(sizes, batch=1, seed=seed, weights=self.weights, window=WINDOW).order(epoch)
        return self._starts[draws[:, 0]] + draws[:, 1]
