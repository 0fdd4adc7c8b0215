"""Hops, hard negatives, hits on disk, reranking and selection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import IndexMismatch, RetrievalError
from ra_blip.records import Hit, Item, Question, read_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.rerank import RERANKERS, select
from ra_blip.retrieval.search import (
    contains_answer,
    expanded,
    mine_hits,
    search,
    voted,
    with_context,
    write_hits,
)
from tests.fakes import FakeModel, world, write_picture

pytest.importorskip("faiss")


def stages(hits: Sequence[Hit]) -> dict[str, int]:
    names = [hit.stage for hit in hits]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_one_hop_for_text_two_for_a_picture(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    found = search(model, index, questions, 5, batch_size=3)
    for question, one in zip(questions, found, strict=True):
        name = question.id.split("-")[0]
        assert one.hits[0].stage == "search"
        if question.image is None:
            assert stages(one.hits) == {"search": 5} and one.question == question and one.candidates == one.hits
            assert one.hits[0].item.id == f"{name}.design"
        else:
            assert stages(one.hits) == {"search": 5, "hop": 5}
            assert one.hits[0].item.id == f"{name}.view"
            assert one.question.text == f"Which country is this? a view of {name} tower"
            assert one.question.image is None and one.question.gold == question.gold
            assert one.candidates[0].item.id == f"{name}.place"
        assert expanded(question, one.hits) == one.question
    for one in search(model, index, questions, 5, hops=1):
        assert stages(one.hits) == {"search": 5}


def test_hop_passes_over_pictures_without_words_and_may_find_none(tmp_path: Path) -> None:
    pictures = [Item(f"p{n}", image=write_picture(tmp_path / f"velora-{n}.png")) for n in range(3)]
    told = Item("told", text="kimuna velora")
    question = Question("q", "country", write_picture(tmp_path / "velora-9.png"))
    model = FakeModel()
    (found,) = search(model, KnowledgeIndex.build([*pictures, told], model), [question], 4)
    assert [hit.item.id for hit in found.hits[:4]] == ["p0", "p1", "p2", "told"]
    assert found.question == with_context(question, told)
    (found,) = search(model, KnowledgeIndex.build(pictures, model), [question], 2)
    assert found.question == question and stages(found.hits) == {"search": 2}


def test_search_errors(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    index = KnowledgeIndex.build(items, FakeModel())
    with pytest.raises(RetrievalError, match="k is 31"):
        search(FakeModel(), index, questions, 31)
    with pytest.raises(IndexMismatch):
        search(FakeModel(seed=2), index, questions, 1)
    assert search(FakeModel(), index, [], 3) == []


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("It was built in 1842.", ("1842",), True),
        ("It was built in 18421.", ("1842",), False),
        ("By KIMO Rasade", ("kimo rasade",), True),
        ("By Kimo. Rasade", ("Kimo Rasade",), True),
        ("By Kimora Sade", ("Kimo",), False),
        ("anything", ("", "..."), False),
        ("red-and-blue", ("and",), True),
    ],
)
def test_contains_answer(text: str, answers: tuple[str, ...], expected: bool) -> None:
    assert contains_answer(Item("i", text=text), answers) is expected


def test_negatives_are_retrieved_and_never_right(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    items.append(Item("twin", text="velora tower was designed by moro too"))  # right, but nobody marked it
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    found = mine_hits(model, index, questions, 12, 4)
    mined = {one.question.id: [hit.item.id for hit in one.hits] for one in found}
    assert set(mined) == {question.id for question in questions}
    for question in questions:
        assert len(mined[question.id]) == 4
        assert not set(mined[question.id]) & {*question.gold, "twin" if question.id == "velora-q1" else ""}
    assert set(mined["velora-q1"]) & {"velora.view", "velora.place"}


def test_hits_file(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    found = search(model, KnowledgeIndex.build(items, model), questions[:2], 2)
    path = tmp_path / "hits.jsonl"
    write_hits(path, found)
    lines = [value for _, value in read_jsonl(path)]
    assert [line["id"] for line in lines] == [question.id for question in questions[:2]]
    for line, one in zip(lines, found, strict=True):
        assert line["hits"] == [{"id": hit.item.id, "score": hit.score, "stage": hit.stage} for hit in one.hits]


def hit(name: str, score: float, image: str | None = None) -> Hit:
    return Hit(Item(name, text=name, image=image), score, "search")


def test_classifier_orders_by_probability_in_common_batches() -> None:
    class Listed(FakeModel):
        def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
            self.calls.append(("judge", len(items)))
            return np.array([float(i.id[1:]) / 10 + (q.id == "b") / 100 for q, i in zip(questions, items, strict=True)])

    model = Listed()
    questions = [Question("a", "a"), Question("b", "b"), Question("c", "c")]
    candidates = [[hit("x1", 0.9), hit("x3", 0.8)], [hit("x2", 0.7), hit("x5", 0.6), hit("y2", 0.5)], []]
    ranked = RERANKERS["classifier"](model, questions, candidates, 4)
    assert [[h.item.id for h in row] for row in ranked] == [["x3", "x1"], ["x5", "x2", "y2"], []]
    assert [h.score for h in ranked[1]] == pytest.approx([0.51, 0.21, 0.21], abs=1e-6)
    assert {h.stage for row in ranked for h in row} == {"rank"}
    assert model.calls == [("judge", 4), ("judge", 1)]
    assert RERANKERS["none"](model, questions, candidates, 4) == candidates


def test_select() -> None:
    hits = [hit("a", 0.2), hit("b", 0.9, "b.png"), hit("c", 0.8, "c.png"), hit("d", 0.5), hit("e", 0.5, "e.png")]
    assert [h.item.id for h in select(hits, 4, 4)] == ["b", "c", "d", "e"]
    assert [h.item.id for h in select(hits, 4, 1)] == ["b", "d", "a"]
    assert [h.item.id for h in select(hits, 4, 4, threshold=0.6)] == ["b", "c"]
    assert [h.item.id for h in select(hits, 4, 4, threshold=0.95)] == ["b"]
    assert [h.item.id for h in select(hits, 4, 0, threshold=0.95)] == ["d"]
    assert select([], 4, 4) == []


def test_voted_sums_over_an_entity_and_keeps_its_best_item() -> None:
    def hit(name: str, score: float) -> Hit:
        return Hit(Item(name, "text"), score, "search")

    hits = [hit("a.1", 0.9), hit("b.1", 0.88), hit("b.2", 0.87), hit("a.2", 0.4), hit("c", 0.1)]
    found = voted(hits, temperature=0.1)
    assert [one.item.id for one in found] == ["b.1", "a.1", "c"]
    scores = [0.88 + 0.1 * math.log(1 + math.exp(-0.1)), 0.9 + 0.1 * math.log(1 + math.exp(-5)), 0.1]
    assert [one.score for one in found] == pytest.approx(scores, abs=1e-6)
    assert voted([]) == []


def test_a_vote_changes_the_first_search_of_a_picture_only(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    plain, grouped = (search(model, index, questions, 5, vote=vote) for vote in (0, 30))
    for question, before, after in zip(questions, plain, grouped, strict=True):
        if question.image is None:
            assert after == before
            continue
        assert stages(after.hits) == {"search": 5, "hop": 5}
        assert len({hit.item.id.partition(".")[0] for hit in after.hits[:5]}) == 5
        assert after.hits[0].item.id == before.hits[0].item.id and after.hits[5:] == before.hits[5:]


def test_the_product_of_search_and_ranker() -> None:
    class Judge:
        def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> np.ndarray:
            return np.array([{"a": 0.2, "b": 0.8, "c": 0.5}[item.id] for item in items])

    searched = [Hit(Item(name, text=name), score, "search") for name, score in (("a", 0.9), ("b", 0.85), ("c", 0.2))]
    (found,) = RERANKERS["product"](Judge(), [Question("q", "x")], [searched], 8)
    weights = {"a": 0.2 * math.exp(18), "b": 0.8 * math.exp(17), "c": 0.5 * math.exp(4)}  # score / 0.05
    total = sum(weights.values())
    assert [hit.item.id for hit in found] == ["b", "a", "c"] and {hit.stage for hit in found} == {"rank"}
    assert [hit.score for hit in found] == pytest.approx([weights[n] / total for n in "bac"], abs=1e-6)
