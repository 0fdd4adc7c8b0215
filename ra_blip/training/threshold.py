"""From which score on an item counts as relevant, measured on scores of right and wrong ones. No torch.

Source: RagVL's adaptive threshold (arXiv 2407.21439).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NATURAL = 0.5  # where Yes and No are equally likely
GRID = np.arange(101) / 100


def crossing(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """Where the share of right scores at or above t, which falls with t, meets the share of wrong ones below t.

    Looked for on a grid of 0.01: the middle of the grid points where both are equal, else between the last point
    before and the first after, by linear interpolation.

    Args:
        right: scores in 0 .. 1 of relevant items.
        wrong: of items that are not.

    Returns:
        t; None where one of the lists is empty or the curves do not meet.
    """
    if not len(right) or not len(wrong):
        return None
    kept = (np.asarray(right)[:, None] >= GRID).mean(0)
    left_out = (np.asarray(wrong)[:, None] < GRID).mean(0)
    gap = np.round(left_out - kept, 9)  # never falls
    even = GRID[gap == 0]
    if len(even):
        return float((even[0] + even[-1]) / 2)
    after = int(np.searchsorted(gap, 0))
    if after == len(GRID):
        return None
    low, high = -gap[after - 1], gap[after]
    return float(GRID[after - 1] + (GRID[after] - GRID[after - 1]) * low / (low + high))
