"""Right or wrong, and the figures that can be counted from traces alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ra_blip.evaluation.metrics.answers import exact_match
from ra_blip.evaluation.metrics.retrieval import recall, reciprocal_rank
from ra_blip.records import Trace

UNNAMED = "uncategorised"


@dataclass(frozen=True)
class Scored:
    """A trace and whether its answer is right; None where the question has no reference answers."""

    trace: Trace
    right: bool | None

    @property
    def category(self) -> str:
        """The question's category, or a stand-in."""
        return self.trace.question.category or UNNAMED


def score(traces: Iterable[Trace]) -> list[Scored]:
    """Judge each answer: exact match with any reference after normalisation (case, punctuation, articles)."""

    def right(trace: Trace) -> bool | None:
        references = trace.question.answers
        return exact_match(trace.answer, references) == 1.0 if references else None

    return [Scored(trace, right(trace)) for trace in traces]


def by_category(scored: Iterable[Scored]) -> dict[str, list[Scored]]:
    """Traces grouped by category, in the order of first appearance."""
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.category, []).append(one)
    return groups


def wilson(mean: float, count: int) -> list[float]:
    """95 % score interval of a share (Wilson 1927); wider than needed for partial credit, never narrower."""
    z = 1.959964
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def summarise(scored: Sequence[Scored]) -> dict[str, Any]:
    """The part of ``metrics.json`` that follows from the traces: answer accuracy, retrieval, by category, seconds."""
    metrics, intervals = _figures(scored)
    categories = {name: _figures(group) for name, group in by_category(scored).items()}
    metrics["by_category"] = {name: found for name, (found, _) in categories.items()}
    metrics["intervals"] = {**intervals, "by_category": {name: found for name, (_, found) in categories.items()}}
    return metrics


def mean_seconds(traces: Sequence[Trace]) -> dict[str, float]:
    """Mean seconds a question of each stage, over the traces that passed through it."""
    collected: dict[str, list[float]] = {}
    for trace in traces:
        for stage, seconds in trace.seconds.items():
            collected.setdefault(stage, []).append(float(seconds))
    return {stage: sum(values) / len(values) for stage, values in collected.items()}


def _figures(scored: Sequence[Scored]) -> tuple[dict[str, Any], dict[str, Any]]:
    values: dict[str, dict[str, list[float]]] = {}
    looked_up = any(one.trace.hits or one.trace.kept for one in scored)
    for one in scored:
        if one.right is not None:
            mode = "with_retrieval" if looked_up else "without_retrieval"
            values.setdefault("answer", {}).setdefault(mode, []).append(float(one.right))
        if one.trace.question.gold and one.trace.hits:
            for name, value in _retrieval(one.trace).items():
                values.setdefault("retrieval", {}).setdefault(name, []).append(value)
    means = {room: {name: sum(v) / len(v) for name, v in found.items()} for room, found in values.items()}
    bounds = {
        room: {name: wilson(means[room][name], len(v)) for name, v in found.items()} for room, found in values.items()
    }
    return means, bounds


def _retrieval(trace: Trace) -> dict[str, float]:
    found, gold = [hit.item.id for hit in trace.retrieved()], trace.question.gold
    return {**{f"recall@{k}": recall(found, gold, k) for k in (1, 5)}, "mrr@10": reciprocal_rank(found, gold, 10)}
