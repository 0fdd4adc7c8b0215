"""How sure a mean is, and how two runs over the same questions differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS_AT_ONCE = 5_000_000


def bootstrap(values: Sequence[float], seed: int = 0, samples: int = 2_000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (Efron 1979).

    Where all values are equal the interval has no width; it then says nothing about unseen questions.

    Raises:
        ValueError: no values.
    """
    observed = np.asarray(values, dtype=np.float64)
    if not len(observed):
        raise ValueError("an interval needs at least one value")
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // len(observed))
    means = [
        observed[rng.integers(0, len(observed), (min(rows, samples - start), len(observed)))].mean(axis=1)
        for start in range(0, samples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int]:
    """Questions on which the first run scores higher (gained) and lower (lost) than the second.

    Raises:
        ValueError: the runs differ in length.
    """
    gained = sum(a > b for a, b in zip(ours, theirs, strict=True))
    lost = sum(a < b for a, b in zip(ours, theirs, strict=True))
    return gained, lost
