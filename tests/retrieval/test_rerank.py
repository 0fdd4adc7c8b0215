"""Rerankers over a model without weights, and mining for the one that is trained."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss")

from ra_blip.__main__ import main
from ra_blip.errors import ConfigError
from ra_blip.generation.pipeline import Pipeline, PipelineConfig
from ra_blip.records import Hit, Item, Question
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.rerank import RERANKERS, TEMPERATURE
from ra_blip.retrieval.search import mine_hits
from tests.fakes import FakeModel, world

ASKED = [Question("a", "Who designed velora tower?"), Question("b", "Where does kimuna hall stand?")]
ITEMS = [
    Item("1", "kimuna hall was designed by tavi"),
    Item("2", "velora tower was designed by moro"),
    Item("3", "a view of velora tower", image="velora.png"),
]


def candidates(*scores: float) -> list[Hit]:
    return [Hit(item, score, "search") for item, score in zip(ITEMS, scores, strict=True)]


def test_names_of_rerankers() -> None:
    assert set(RERANKERS) == {"none", "cosine", "itm", "classifier", "product", "llm_yesno", "yesno_product"}


def test_yes_no_orders_by_probability_and_keeps_ties_as_the_search_had_them() -> None:
    found = RERANKERS["llm_yesno"](FakeModel(), ASKED[:1], [candidates(0.9, 0.8, 0.7)], 32)[0]
    assert [(hit.item.id, hit.stage) for hit in found] == [("2", "rank"), ("3", "rank"), ("1", "rank")]
    assert [hit.score for hit in found] == pytest.approx([1.0, 2 / 3, 1 / 3], abs=1e-6)
    same = RERANKERS["llm_yesno"](FakeModel(), [Question("c", "unknown words")], [candidates(0.9, 0.8, 0.7)], 32)[0]
    assert [hit.item.id for hit in same] == ["1", "2", "3"]


def test_all_candidates_of_a_question_are_in_one_batch() -> None:
    """Defect 6 of RagVL's released code: one call a candidate."""
    model = FakeModel()
    many = [[Hit(dataclasses.replace(item, id=f"{i}{item.id}"), 1.0, "search") for i in range(7) for item in ITEMS]] * 2
    RERANKERS["llm_yesno"](model, ASKED, many, 16)
    assert model.calls == [("yes_no", 21), ("yes_no", 21)], "a question is not divided, whatever the batch size"
    model.calls.clear()
    RERANKERS["llm_yesno"](model, [*ASKED, ASKED[0]], [many[0], [], many[1]], 64)
    assert model.calls == [("yes_no", 42)], "questions share a batch as long as they fit"


def test_matching_is_blended_with_the_search_and_texts_stand_by_the_search() -> None:
    found = RERANKERS["itm"](FakeModel(), ASKED[:1], [candidates(0.2, 0.21, 0.2)], 32)[0]
    weights = {"1": 0.5, "2": 0.5 * math.exp(0.01 / TEMPERATURE), "3": 2 / 3}
    assert {hit.item.id: hit.score for hit in found} == pytest.approx(
        {name: weight / sum(weights.values()) for name, weight in weights.items()}, abs=1e-5
    )
    assert [hit.item.id for hit in found] == ["3", "2", "1"]


def test_odds_of_yes_times_the_search_stay_probabilities() -> None:
    found = RERANKERS["yesno_product"](FakeModel(), ASKED[:1], [candidates(0.9, 0.8, 0.85)], 32)[0]
    # P(Yes) 1/3, 1, 2/3; the first is the search's best and keeps its odds, the last loses exp(-0.05 / 0.05)
    last = 2 * math.exp(-1)
    assert {hit.item.id: hit.score for hit in found} == pytest.approx(
        {"1": 1 / 3, "2": 1.0, "3": last / (1 + last)}, abs=1e-5
    )
    assert [hit.item.id for hit in found] == ["2", "3", "1"]


def test_cosine_is_of_vectors_read_under_the_question() -> None:
    class Guided(FakeModel):
        def encode_items(self, items: Any, questions: Any = None) -> Any:
            assert {question.id for question in questions} == {"a"} and len(questions) == len(items)
            pairs = zip(questions, items, strict=True)
            return super().encode_items(
                [Item(item.id, f"{question.text} {item.full_text}") for question, item in pairs]
            )

    model = Guided()
    found = RERANKERS["cosine"](model, ASKED[:1], [candidates(0.1, 0.2, 0.3)], 32)[0]
    asked = model.encode_question(ASKED[:1])[0]
    for hit in found:
        vector = FakeModel().encode_items([Item("x", f"{ASKED[0].text} {hit.item.full_text}")])[0]
        assert hit.score == pytest.approx(float(np.dot(asked, vector)), abs=1e-5)
    assert found[0].score >= found[1].score >= found[2].score


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_no_candidates_give_no_hits(name: str) -> None:
    assert RERANKERS[name](FakeModel(), ASKED, [[], []], 8) == [[], []]


def test_a_model_that_cannot_score_is_named() -> None:
    class Plain:
        """Neither matches nor says Yes."""

    with pytest.raises(ConfigError, match="Plain has no 'yes_no'"):
        RERANKERS["llm_yesno"](Plain(), ASKED[:1], [candidates(1, 1, 1)], 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llm_yesno", "yesno_product"])
def test_a_model_that_never_learnt_it_is_ranked_otherwise_and_that_is_said(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FakeModel()
    model.says_yes_no = False  # type: ignore[attr-defined]
    found = candidates(0.9, 0.8, 0.7)
    ranked = RERANKERS[name](model, ASKED[:1], [found], 32)
    assert {called for called, _ in model.calls} == {"judge"}
    assert "the product of its classifier and the search ranks instead" in capsys.readouterr().err
    assert ranked == RERANKERS["product"](FakeModel(), ASKED[:1], [found], 32)


def test_below_every_threshold_the_question_stands_alone_and_the_trace_says_so(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    config = PipelineConfig(rerank="llm_yesno", threshold=1.0, keep_best=False, askg=False)
    trace = Pipeline(model, index, config)(Question("q", "Who designed the lost palace of Nowhere?"))
    assert trace.kept == [] and trace.answer == "unknown"
    assert "answered from the question alone" in trace.notes[0]
    sure = Pipeline(model, index, config)(dataclasses.replace(questions[0], text="velora tower moro"))
    assert sure.kept == ["velora.design"] and sure.notes == []


def test_adaptive_threshold_is_the_models_own(tmp_path: Path) -> None:
    items, _ = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    config = PipelineConfig(rerank="llm_yesno", adaptive=True, keep_best=False)
    with pytest.raises(ConfigError, match="stores no threshold"):
        Pipeline(model, index, config)
    model.threshold = 0.9  # type: ignore[attr-defined]
    assert Pipeline(model, index, config).threshold == 0.9
    assert Pipeline(model, index, PipelineConfig(rerank="llm_yesno")).threshold == 0.1
    with pytest.raises(ConfigError, match="adaptive needs rerank=llm_yesno"):
        PipelineConfig.of(["adaptive=true"])


def test_mined_negatives_skip_the_first_ranks_and_what_is_nearly_gold(tmp_path: Path) -> None:
    model = FakeModel()
    items = [
        Item("gold", "velora tower was designed by moro"),
        Item("twin", "the velora tower, designed by moro"),  # the same content words: cosine 1 to gold
        Item("near", "velora tower opened"),
        Item("far", "velora hall, tower of kimuna"),
        Item("other", "nothing alike at all"),
    ]
    index = KnowledgeIndex.build(items, model)
    question = Question("q", "Who designed velora tower?", answers=("moretti",), gold=("gold",))
    ranked = [hit.item.id for hit in mine_hits(model, index, [question], 5, 5)[0].hits]
    assert ranked[0] == "twin" and "gold" not in ranked
    found = mine_hits(model, index, [question], 5, 5, alike=0.94)[0].hits
    assert [hit.item.id for hit in found] == [name for name in ranked if name != "twin"]
    skipped = [hit.item.id for hit in mine_hits(model, index, [question], 5, 5, skip=3)[0].hits]
    assert skipped == ranked[2:], "gold was among the three that were skipped"
    unknown = dataclasses.replace(question, gold=("not in the index",))
    assert len(mine_hits(model, index, [unknown], 5, 5, alike=0.94)[0].hits) == 5


def test_search_writes_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ra_blip.data.record_examples import read_mined
    from ra_blip.records import write_jsonl

    items, questions = world(tmp_path)
    model = FakeModel()
    KnowledgeIndex.build(items, model).save(tmp_path / "index")
    write_jsonl(tmp_path / "asked.jsonl", questions[::2])
    monkeypatch.setattr("ra_blip.commands._model", lambda folder, features=None: model)
    out = tmp_path / "negatives.jsonl"
    given = ["search", str(tmp_path / "asked.jsonl"), "--model", "m", "--index", str(tmp_path / "index"), "--k", "6"]
    assert main([*given, "--negatives", "--out", str(out)]) == 0
    mined = read_mined(str(out))
    assert len(mined) == 10 and all(2 <= len(names) <= 5 for names in mined.values())
    assert not any(name in question.gold for question in questions[::2] for name in mined[question.id])
