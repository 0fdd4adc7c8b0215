"""Order the candidates of a search by a closer look, and choose those that reach the generator."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ra_blip.errors import ConfigError, RetrievalError
from ra_blip.records import Hit, Item, Question
from ra_blip.retrieval.embed import Encoder, batches, embed_questions, item_key, question_key, to_numpy

TEMPERATURE = 0.05  # of the search's softmax: about where contrastive training leaves its own


class Judge(Encoder, Protocol):
    """What reranking asks of a model: scores of the pairs that ``questions`` and ``items`` make one by one."""

    def encode_items(self, items: Sequence[Item], questions: Sequence[Question] | None = None) -> Any:
        """(B, D) float32 tensor, L2-normalised; with ``questions``, pictures are read under their guidance."""

    def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
        """(B,) tensor: P(relevant) by a classifier."""

    def match(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
        """(B,) tensor: P(picture and words belong together), 0.5 where a pair has no picture."""

    def yes_no(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
        """(B,) tensor: P(Yes) to whether the item is relevant, by the language model, in one batch."""


Candidates = Sequence[Sequence[Hit]]
Score = Callable[[list[int], list[Item]], Any]  # rows of the questions, and the item that goes with each


def keep_order(model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[Hit]]:
    """No reranking: the candidates as the search ordered them."""
    return [list(hits) for hits in candidates]


def cosine(model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[Hit]]:
    """Order by cosine with the candidates encoded again, their pictures read under the question's guidance.

    Of use to a model that was trained so (``stage.conditioned``). Else as :func:`classify`.
    """
    asked = embed_questions(questions, model, batch_size)

    def score(rows: list[int], items: list[Item]) -> Any:
        return (asked[rows] * to_numpy(model.encode_items(items, [questions[row] for row in rows]))).sum(-1)

    return _ranked(score, questions, candidates, _alike(questions, candidates, batch_size))


def classify(model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[Hit]]:
    """Order by the probability that the model's ranker gives each pair; the hits come back as stage ``rank``.

    All pairs of all questions are judged in common batches. Equal probabilities (to 1e-6) keep the search's order.

    Raises:
        RetrievalError: a probability is not a number.
        ConfigError: the model cannot judge.
    """
    score = _of(model, "judge", questions)
    return _ranked(score, questions, candidates, _alike(questions, candidates, batch_size))


def answer_yes_no(
    model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int
) -> list[list[Hit]]:
    """Order by the language model's P(Yes), as RagVL does. A question's candidates are always in one batch.

    As :func:`classify` besides. Language models that follow instructions can do it, and get better when they are
    trained for it (``stage.name: rerank``). Where a model says of itself that it cannot (``says_yes_no``),
    :func:`multiply` ranks instead, and stderr says so.
    """
    if not _says_yes_no(model):
        return multiply(model, questions, candidates, batch_size)
    score = _of(model, "yes_no", questions)
    return _ranked(score, questions, candidates, _together([len(hits) for hits in candidates], batch_size))


def multiply(model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[Hit]]:
    """Order by the product of two experts: the ranker's probability, and the search's softmax over the candidates.

    The hits come back as stage ``rank``; their scores sum to 1 over the candidates of a question. Where the ranker
    cannot tell (pictures without words, say) the order of the search stands. Raises as :func:`classify`.
    """
    return _blended(candidates, classify(model, questions, candidates, batch_size))


def match(model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[Hit]]:
    """Order by the product of the image-text matching head's probability and the search's softmax.

    As :func:`multiply`. BLIP-2 retrieves with both scores, too; a candidate without a picture stands by the search's.
    """
    score = _of(model, "match", questions)
    return _blended(candidates, _ranked(score, questions, candidates, _alike(questions, candidates, batch_size)))


def multiply_yes_no(
    model: Judge, questions: Sequence[Question], candidates: Candidates, batch_size: int
) -> list[list[Hit]]:
    """The language model's odds of Yes times the search's: P(Yes) of the search's best hit stands, others lose by it.

    For a model that cannot tell all kinds of item by itself. Scores stay probabilities, so a threshold on P(Yes)
    keeps its meaning. Else as :func:`answer_yes_no`.
    """
    if not _says_yes_no(model):
        return multiply(model, questions, candidates, batch_size)
    ranked = []
    for searched, found in zip(candidates, answer_yes_no(model, questions, candidates, batch_size), strict=True):
        best = max((hit.score for hit in searched), default=0.0)
        behind = {hit.item.id: math.exp((hit.score - best) / TEMPERATURE) for hit in searched}
        shares = [(hit.item, max(hit.score, 1e-6) * behind[hit.item.id], 1 - hit.score) for hit in found]
        hits = [Hit(item, round(yes / (yes + no), 6), "rank") for item, yes, no in shares]
        ranked.append(sorted(hits, key=lambda hit: -hit.score))
    return ranked


def _says_yes_no(model: Judge) -> bool:
    """Whether the language model learnt it; if not, it is said what ranks instead."""
    learnt = bool(getattr(model, "says_yes_no", True))
    if not learnt:
        print(
            "ra-blip: rerank: this model never learnt to say Yes or No (stage.name=rerank teaches it): the product of "
            "its classifier and the search ranks instead",
            file=sys.stderr,
        )
    return learnt


def _of(model: Judge, name: str, questions: Sequence[Question]) -> Score:
    """The model's method of that name, as a score of pairs."""
    method = getattr(model, name, None)
    if method is None:
        raise ConfigError(f"rerank: {type(model).__name__} has no {name!r}; choose another reranker, or rerank=none")
    return lambda rows, items: method([questions[row] for row in rows], items)


def _ranked(
    score: Score, questions: Sequence[Question], candidates: Candidates, groups: Sequence[Sequence[int]]
) -> list[list[Hit]]:
    """The candidates as hits of stage ``rank``, best first; pairs, numbered through, are scored group by group."""
    pairs = [(row, hit.item) for row, hits in enumerate(candidates) for hit in hits]
    scores = [0.0] * len(pairs)
    for positions in groups:
        rows, items = (list(part) for part in zip(*(pairs[i] for i in positions), strict=True))
        for position, found in zip(positions, to_numpy(score(rows, items)).tolist(), strict=True):
            scores[position] = round(found, 6)
            if found != found:
                row, item = pairs[position]
                raise RetrievalError(
                    f"question {questions[row].id!r}: the relevance of item {item.id!r} is not a number"
                )
    following = iter(scores)
    ranked = [[Hit(hit.item, next(following), "rank") for hit in hits] for hits in candidates]
    return [sorted(hits, key=lambda hit: -hit.score) for hits in ranked]


def _alike(questions: Sequence[Question], candidates: Candidates, batch_size: int) -> list[list[int]]:
    """Pairs in batches of one kind and of similar length, whichever question they are of."""
    pairs = zip(questions, candidates, strict=True)
    keys = [_pair_key(question, hit.item) for question, hits in pairs for hit in hits]
    return batches(keys, batch_size)


def _together(counts: Sequence[int], batch_size: int) -> list[list[int]]:
    """Pairs in batches of whole questions: as many as fit, and at least one."""
    groups: list[list[int]] = [[]]
    start = 0
    for count in counts:
        if groups[-1] and len(groups[-1]) + count > batch_size:
            groups.append([])
        groups[-1] += range(start, start + count)
        start += count
    return [group for group in groups if group]


def _pair_key(question: Question, item: Item) -> tuple[str, int]:
    asked, known = question_key(question), item_key(item)
    return f"{asked[0]} {known[0]}", asked[1] + known[1]


def _blended(candidates: Candidates, judged: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
    """Probabilities times the search's softmax, as shares of a question's candidates."""
    ranked = []
    for searched, found in zip(candidates, judged, strict=True):
        probability = {hit.item.id: hit.score for hit in found}
        weights = [max(probability[hit.item.id], 1e-6) * math.exp(hit.score / TEMPERATURE) for hit in searched]
        total = sum(weights)
        hits = [Hit(hit.item, round(w / total, 6), "rank") for hit, w in zip(searched, weights, strict=True)]
        ranked.append(sorted(hits, key=lambda hit: -hit.score))
    return ranked


Reranker = Callable[[Judge, Sequence[Question], Candidates, int], list[list[Hit]]]
RERANKERS: dict[str, Reranker] = {
    "none": keep_order,
    "cosine": cosine,
    "itm": match,
    "classifier": classify,
    "product": multiply,
    "llm_yesno": answer_yes_no,
    "yesno_product": multiply_yes_no,
}


def select(
    hits: Sequence[Hit], keep: int, max_images: int, threshold: float = 0.0, keep_best: bool = True
) -> list[Hit]:
    """The hits that reach the generator, best first: at most ``keep``, of them at most ``max_images`` with a picture.

    Those that score below ``threshold`` are left out, except, with ``keep_best``, the best.
    """
    kept: list[Hit] = []
    images = 0
    for hit in sorted(hits, key=lambda hit: -hit.score):
        pictured = hit.item.image is not None
        if len(kept) == keep or (hit.score < threshold and (kept or not keep_best)):
            break
        if pictured and images >= max_images:
            continue
        kept.append(hit)
        images += pictured
    return kept
