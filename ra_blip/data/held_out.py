"""Some samples of a source kept out of training, to measure on what was not learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ra_blip.data.stream import Samples


class Remaining:
    """A source without some of its samples.

    Args:
        source: the samples.
        held: indices that never come.
    """

    def __init__(self, source: Samples, held: npt.NDArray[np.int64]) -> None:
        self.source = source
        self._kept = np.setdiff1d(np.arange(len(source)), held)

    def __len__(self) -> int:
        return len(self._kept)

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """Sample ``index`` of the whole source."""
        return self.source.draw(index, rng)

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Indices of one epoch: the source's own order, where it has one, without the held ones."""
        own = getattr(self.source, "order", None)
        if own is None:
            return np.random.default_rng([seed, epoch]).permutation(self._kept)
        found = np.asarray(own(seed, epoch))
        return np.resize(found[np.isin(found, self._kept)], len(self._kept))  # it may repeat some and leave others out

    def texts(self) -> Iterator[str]:
        """The texts of the whole source."""
        return self.source.texts()


def hold_out(source: Samples, count: int, seed: int) -> tuple[Samples, list[Any]]:
    """Keep ``count`` samples, at most a tenth of the source, out of it -> (what remains, the samples)."""
    count = min(count, len(source) // 10)
    if not count:
        return source, []
    held = np.sort(np.random.default_rng([seed, 5]).permutation(len(source))[:count])
    return Remaining(source, held), [source.draw(int(i), np.random.default_rng([seed, 5, int(i)])) for i in held]
