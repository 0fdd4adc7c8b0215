"""Which samples a step is made of: arithmetic, so that resuming is, too. Threads prepare them ahead of their step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np

from ra_blip.errors import ImageError
from ra_blip.training.faults import names_of

AHEAD = 2  # steps that are prepared behind the one that is asked for
TRIES = 100  # damaged draws one after another: then it is not the pictures that are wrong

Damage = tuple[str, str]  # a sample's id, what is wrong with its picture
Place = tuple[np.ndarray, int, int]  # order of an epoch, the epoch's number, index of a sample


class Source(Protocol):
    """Random-access training samples; a draw is a pure function of (index, generator state), in any thread."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """One sample, varied by ``rng`` only."""


class Loader:
    """The samples of each step: a pure function of seed and step, whatever the number of ranks and threads.

    A sample with a picture that cannot be opened is replaced by another of the same epoch, which follows from its
    epoch and index alone.

    Args:
        source: the samples.
        size: batch of all ranks together; each rank takes every ``world``-th sample of it.
        seed: of orders and draws.
        steps: how many there are.
        rank, world: whose samples.
        open_pictures: opens the pictures of a sample; raises :class:`ImageError`.
        pool: threads that prepare the next steps; None draws a step when it is asked for.
        strict: raise the error of the first damaged picture.

    Attributes:
        damaged: what was replaced in the steps that were handed out, until somebody takes it out.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        seed: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        open_pictures: Callable[[Any], None] = lambda sample: None,
        pool: Executor | None = None,
        strict: bool = False,
    ) -> None:
        self.source, self.size, self.seed, self.steps, self.rank, self.world = source, size, seed, steps, rank, world
        self._open, self._pool, self._strict = open_pictures, pool, strict
        self._begun: dict[int, Iterator[tuple[Any, list[Damage]]]] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.damaged: list[Damage] = []

    def at(self, step: int) -> list[Any]:
        """The samples of one step. Raises :class:`ImageError` where only damaged ones are drawn."""
        last = min(step + AHEAD, self.steps - 1) if self._pool else step
        for one in range(step, last + 1):
            if one not in self._begun:
                self._begun[one] = self._begin(one)
        drawn = list(self._begun.pop(step))
        self.damaged += [damage for _, found in drawn for damage in found]
        return [sample for sample, _ in drawn]

    def _begin(self, step: int) -> Iterator[tuple[Any, list[Damage]]]:
        places = list(self._places(step))
        return self._pool.map(self._draw, places) if self._pool else map(self._draw, places)

    def _places(self, step: int) -> Iterator[Place]:
        total = len(self.source)
        for position in range(step * self.size + self.rank, (step + 1) * self.size, self.world):
            epoch, place = divmod(position, total)
            if self._order[0] != epoch:
                self._order = epoch, order_of(self.source, self.seed, epoch)
            yield self._order[1], epoch, int(self._order[1][place])

    def _draw(self, place: Place) -> tuple[Any, list[Damage]]:
        """A sample whose pictures can be opened, and what was drawn in vain before."""
        order, epoch, index = place
        found: list[Damage] = []
        rng = np.random.default_rng([self.seed, epoch, index])
        number = index
        while len(found) < TRIES:
            name = f"number {number}"
            try:
                sample = self.source.draw(number, rng)
                (name,) = names_of([sample])
                self._open(sample)
                return sample, found
            except ImageError as error:
                if self._strict:
                    raise
                found.append((name, str(error)))
            rng = np.random.default_rng([self.seed, epoch, index, len(found)])
            number = int(order[rng.integers(len(order))])
        raise ImageError(f"{TRIES} samples drawn one after another have no whole pictures; the last: {found[-1][1]}")


def order_of(source: Source, seed: int, epoch: int) -> np.ndarray:
    """Indices of one epoch: the source's own ``order(seed, epoch)`` where it has one, else a permutation."""
    own = getattr(source, "order", None)
    found: np.ndarray = own(seed, epoch) if own else np.random.default_rng([seed, epoch]).permutation(len(source))
    return found
