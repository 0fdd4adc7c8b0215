"""Order the candidates of a search by a closer look, and choose those that reach the generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ra_blip.errors import RetrievalError
from ra_blip.records import Hit, Item, Question
from ra_blip.retrieval.embed import batches, item_key, question_key, to_numpy

TEMPERATURE = 0.05  # of the search's softmax: about where contrastive training leaves its own


class Judge(Protocol):
    """What reranking asks of a model."""

    def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
        """(B,) tensor: P(relevant) of the pairs that ``questions`` and ``items`` make one by one."""


def keep_order(
    model: Judge, questions: Sequence[Question], candidates: Sequence[Sequence[Hit]], batch_size: int
) -> list[list[Hit]]:
    """No reranking: the candidates as the search ordered them."""
    return [list(hits) for hits in candidates]


def classify(
    model: Judge, questions: Sequence[Question], candidates: Sequence[Sequence[Hit]], batch_size: int
) -> list[list[Hit]]:
    """Order by the probability that the model's ranker gives each pair; the hits come back as stage ``rank``.

    All pairs of all questions are judged in common batches. Equal probabilities (to 1e-6) keep the search's order.

    Raises:
        RetrievalError: a probability is not a number.
    """
    pairs = [(question, hit.item) for question, hits in zip(questions, candidates, strict=True) for hit in hits]
    scores = [0.0] * len(pairs)
    for positions in batches([_pair_key(*pair) for pair in pairs], batch_size):
        found = to_numpy(model.judge([pairs[i][0] for i in positions], [pairs[i][1] for i in positions]))
        for position, score in zip(positions, found.tolist(), strict=True):
            scores[position] = round(score, 6)
            if score != score:
                question, item = pairs[position]
                raise RetrievalError(f"question {question.id!r}: the relevance of item {item.id!r} is not a number")
    following = iter(scores)
    ranked = [[Hit(hit.item, next(following), "rank") for hit in hits] for hits in candidates]
    return [sorted(hits, key=lambda hit: -hit.score) for hits in ranked]


def _pair_key(question: Question, item: Item) -> tuple[str, int]:
    asked, known = question_key(question), item_key(item)
    return f"{asked[0]} {known[0]}", asked[1] + known[1]


def multiply(
    model: Judge, questions: Sequence[Question], candidates: Sequence[Sequence[Hit]], batch_size: int
) -> list[list[Hit]]:
    """Order by the product of two experts: the ranker's probability, and the search's softmax over the candidates.

    The hits come back as stage ``rank``; their scores sum to 1 over the candidates of a question. Where the ranker
    cannot tell (pictures without words, say) the order of the search stands. Raises as :func:`classify`.
    """
    judged = classify(model, questions, candidates, batch_size)
    ranked = []
    for searched, found in zip(candidates, judged, strict=True):
        probability = {hit.item.id: hit.score for hit in found}
        weights = [max(probability[hit.item.id], 1e-6) * math.exp(hit.score / TEMPERATURE) for hit in searched]
        total = sum(weights)
        hits = [Hit(hit.item, round(w / total, 6), "rank") for hit, w in zip(searched, weights, strict=True)]
        ranked.append(sorted(hits, key=lambda hit: -hit.score))
    return ranked


Reranker = Callable[[Judge, Sequence[Question], Sequence[Sequence[Hit]], int], list[list[Hit]]]
RERANKERS: dict[str, Reranker] = {"none": keep_order, "classifier": classify, "product": multiply}


def select(hits: Sequence[Hit], keep: int, max_images: int, threshold: float = 0.0) -> list[Hit]:
    """The hits that reach the generator, best first: at most ``keep``, of them at most ``max_images`` with a picture.

    Those that score below ``threshold`` are left out, except the best.
    """
    kept: list[Hit] = []
    images = 0
    for hit in sorted(hits, key=lambda hit: -hit.score):
        pictured = hit.item.image is not None
        if len(kept) == keep or (kept and hit.score < threshold):
            break
        if pictured and images >= max_images:
            continue
        kept.append(hit)
        images += pictured
    return kept
