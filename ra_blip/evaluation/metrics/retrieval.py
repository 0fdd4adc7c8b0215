"""Retrieval metrics on lists of ids, best first. An id that is listed twice counts at its first place only."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def recall(found: Sequence[str], gold: Collection[str], k: int) -> float:
    """Share of the gold ids among the first ``k``. Raises ``ValueError`` without gold."""
    wanted = _gold(gold)
    return len(wanted & set(_distinct(found)[:k])) / len(wanted)


def reciprocal_rank(found: Sequence[str], gold: Collection[str], k: int) -> float:
    """One over the place of the first gold id among the first ``k``, else 0; its mean is MRR@k."""
    wanted = _gold(gold)
    return next((1 / place for place, name in enumerate(_distinct(found)[:k], 1) if name in wanted), 0.0)


def ndcg(found: Sequence[str], gold: Collection[str], k: int) -> float:
    """Normalised discounted cumulative gain of the first ``k``, a gold id worth 1 (Järvelin and Kekäläinen 2002)."""
    wanted = _gold(gold)
    gain = sum(1 / math.log2(place + 1) for place, name in enumerate(_distinct(found)[:k], 1) if name in wanted)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(len(wanted), k) + 1))
    return gain / best


def _gold(gold: Collection[str]) -> set[str]:
    if not gold:
        raise ValueError("a retrieval metric needs at least one gold id")
    return set(gold)


def _distinct(found: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(found))
