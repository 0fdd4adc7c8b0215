"""Questions to hits, in one search or in two hops; hard negatives; hits as JSON lines."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ra_blip.records import Hit, Item, Question, entity, with_context, write_jsonl
from ra_blip.retrieval.embed import Encoder, Vectors, embed_questions
from ra_blip.retrieval.index import KnowledgeIndex

VOTE_TEMPERATURE = 0.05
ALIKE = 0.94  # cosine from which two items may be one: what is so near to a gold item is no sure negative


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gave for one question.

    Attributes:
        question: the question as it was last searched for: expanded by the first hop's item where there was a second.
        hits: hits of stage ``search`` and, after a second hop, of stage ``hop``; best first inside a stage.
        note: why nothing was found, where a search failed.
    """

    question: Question
    hits: list[Hit]
    note: str = ""

    @property
    def candidates(self) -> list[Hit]:
        """The hits of the last hop: those that answer the question as it now stands."""
        return [hit for hit in self.hits if hit.stage == "hop"] or self.hits


def expanded(question: Question, hits: Iterable[Hit]) -> Question:
    """The question that the hits of stage ``hop`` belong to; unchanged where there are none."""
    hits = list(hits)
    bridge = _bridge(hits) if any(hit.stage == "hop" for hit in hits) else None
    return with_context(question, bridge) if bridge else question


def search(
    model: Encoder,
    index: KnowledgeIndex,
    questions: Sequence[Question],
    k: int,
    hops: int = 2,
    batch_size: int = 64,
    vote: int = 0,
    query: str = "question",
    kind: str = "",
) -> list[Found]:
    """The ``k`` best items for every question.

    A question asked with a picture is searched for twice where ``hops`` is 2: the best first hit that carries text
    says what the picture shows, and the question with these words is searched for again (``k`` hits of stage ``hop``).
    Where ``vote`` is not 0, that many hits of such a question's first search are grouped by entity, see :func:`voted`.
    ``query`` says what of a question is searched with, see :func:`query_vectors`;
    ``kind``, where it is not empty, that only items of that kind are searched.

    Raises:
        RetrievalError: ``k`` is not between 1 and the size of the index.
        IndexMismatch: another model built the index.
    """
    index.check(model)
    wide = min(max(k, vote), len(index)) if vote and any(question.image for question in questions) else k
    first = _nearest(index, query_vectors(model, questions, query, batch_size), wide, kind)
    found = [
        Found(question, (voted(hits[:vote]) if vote and question.image else hits)[:k])
        for question, hits in zip(questions, first, strict=True)
    ]
    return found if hops < 2 else second_hop(model, index, found, k, batch_size, kind)


def second_hop(
    model: Encoder, index: KnowledgeIndex, found: Sequence[Found], k: int, batch_size: int = 64, kind: str = ""
) -> list[Found]:
    """Search again for the questions with a picture, with the words of their best hit; raises as :func:`search`."""
    second = {
        position: with_context(one.question, bridge)
        for position, one in enumerate(found)
        if one.question.image and (bridge := _bridge(one.hits))
    }
    hop_hits = _nearest(index, embed_questions(list(second.values()), model, batch_size), k, kind, "hop")
    twice = list(found)
    for (position, question), hits in zip(second.items(), hop_hits, strict=True):
        twice[position] = Found(question if hits else found[position].question, found[position].hits + hits)
    return twice


KINDS = ("", "text", "image", "image+text")
QUERIES = ("question", "image", "text", "mean")


def query_vectors(model: Encoder, questions: Sequence[Question], query: str, batch_size: int = 64) -> Vectors:
    """What a search starts from, (B, D) float32 unit vectors.

    Args:
        model: the encoder.
        questions: one without a picture is searched for by its words, whatever ``query`` is.
        query: ``question`` (words and picture read together), ``image``, ``text``, or ``mean``: the mean direction of
            the picture alone and of the words alone.
        batch_size: questions per encoder call.
    """
    if query == "question":
        return embed_questions(questions, model, batch_size)
    words = [dataclasses.replace(question, image=None) for question in questions]
    seen = [dataclasses.replace(one, text="") if one.image else words[place] for place, one in enumerate(questions)]
    parts = {"text": [words], "image": [seen], "mean": [words, seen]}[query]
    summed = np.sum([embed_questions(part, model, batch_size) for part in parts], axis=0)
    return np.asarray(summed / np.linalg.norm(summed, axis=1, keepdims=True).clip(1e-12), dtype=np.float32)


def _nearest(index: KnowledgeIndex, vectors: Vectors, k: int, kind: str, stage: str = "search") -> list[list[Hit]]:
    """The ``k`` nearest items of a kind, fewer where there are fewer: the search is widened until they are found."""
    if not kind:
        return index.search(vectors, k, stage)
    wanted, wide = min(k, index.kinds[kind]), k
    while True:
        rows = [[hit for hit in row if hit.item.kind == kind][:k] for row in index.search(vectors, wide, stage)]
        if wide == len(index) or all(len(row) == wanted for row in rows):
            return rows
        wide = min(4 * wide, len(index))


def voted(hits: Iterable[Hit], temperature: float = VOTE_TEMPERATURE) -> list[Hit]:
    """One hit an entity (:func:`ra_blip.records.entity`): its best item, scored by all of its items.

    The score is ``t log sum exp(s / t)`` over the scores ``s`` of the entity's items: many pictures of one thing that
    are alike the question's weigh more than a single one of another. Best first, equal scores in the given order.
    """
    groups: dict[str, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(entity(hit.item), []).append(hit)
    summed = []
    for same in groups.values():
        best = max(same, key=lambda hit: hit.score)
        mass = sum(math.exp((hit.score - best.score) / temperature) for hit in same)
        summed.append(dataclasses.replace(best, score=round(best.score + temperature * math.log(mass), 6)))
    return sorted(summed, key=lambda hit: -hit.score)


def _bridge(hits: Iterable[Hit]) -> Item | None:
    return next((hit.item for hit in hits if hit.stage == "search" and hit.item.full_text), None)


def contains_answer(item: Item, answers: Iterable[str]) -> bool:
    """Whether one of ``answers`` stands in the item's words, as whole words, case and punctuation aside."""
    text = _words(item.full_text)
    return any((answer := _words(one)).strip() and answer in text for one in answers)


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "


def mine_hits(
    model: Encoder,
    index: KnowledgeIndex,
    questions: Sequence[Question],
    k: int,
    per_question: int,
    skip: int = 0,
    alike: float = 2.0,
) -> list[Found]:
    """Hard negatives with their scores: what is retrieved (last hop) for a question, and is not its answer.

    An item that a question names as gold, or whose words hold one of its answers, is never among them: it may be a
    right answer that nobody marked. So may the first hits (``skip`` so many), and an item whose cosine to a gold item
    is ``alike`` or more. Errors as :func:`search`.
    """
    mined = []
    for found in search(model, index, questions, k):
        wrong = [hit for hit in found.candidates[skip:] if is_negative(found.question, hit.item)]
        mined.append(Found(found.question, _unlike_gold(index, found.question, wrong, alike)[:per_question]))
    return mined


def _unlike_gold(index: KnowledgeIndex, question: Question, hits: list[Hit], alike: float) -> list[Hit]:
    gold = [name for name in question.gold if name in index.items]
    if not gold or not hits or alike > 1:
        return hits
    cosines = (index.vectors_of([hit.item.id for hit in hits]) @ index.vectors_of(gold).T).max(1)
    return [hit for hit, cosine in zip(hits, cosines, strict=True) if cosine < alike]


def is_negative(question: Question, item: Item) -> bool:
    """Whether ``item`` surely does not answer ``question``: not gold, and none of the answers in its words."""
    return item.id not in question.gold and not contains_answer(item, question.answers)


def write_hits(path: str | Path, found: Iterable[Found]) -> None:
    """Write ``{"id": question id, "hits": [{"id", "score", "stage"}]}``, a line per question.

    Raises:
        OutputError: not writable.
    """
    write_jsonl(path, ({"id": one.question.id, "hits": [hit_to_dict(hit) for hit in one.hits]} for one in found))


def hit_to_dict(hit: Hit) -> dict[str, Any]:
    """A hit as it stands in JSON: the item's id, the score and the stage."""
    return {"id": hit.item.id, "score": round(hit.score, 6), "stage": hit.stage}
