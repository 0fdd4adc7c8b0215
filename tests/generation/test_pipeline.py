"""A planted fact reaches the answer; hops, limits, batches and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import ConfigError, ImageError, IndexMismatch, QuestionError
from ra_blip.generation.pipeline import Pipeline, PipelineConfig, judged
from ra_blip.records import Item, Question, Trace
from ra_blip.retrieval.index import KnowledgeIndex
from tests.fakes import FakeModel, world

pytest.importorskip("faiss")


def make(tmp_path: Path, config: PipelineConfig | None = None, max_items: int = 8) -> Pipeline:
    model = FakeModel(max_items=max_items)
    config = config or PipelineConfig(rerank="classifier", threshold=0.0)
    return Pipeline(model, KnowledgeIndex.build(world(tmp_path)[0], model), config)


def strip(trace: Trace) -> dict[str, Any]:
    return {**vars(trace), "seconds": sorted(trace.seconds)}


def test_planted_fact_reaches_the_answer_and_leaves_with_its_item(tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    index = pipeline.index
    assert index is not None
    asked = "Who designed Zuvari tower?"
    assert pipeline(asked).answer != "naxo"
    index.add([Item("zuvari.design", text="zuvari tower was designed by naxo")], pipeline.model)
    trace = pipeline(asked)
    assert trace.answer == "naxo" and trace.judged[0] == "zuvari.design" and trace.kept[0] == "zuvari.design"
    index.remove(["zuvari.design"])
    assert pipeline(asked).answer != "naxo"


def test_trace_of_a_text_question(tmp_path: Path) -> None:
    trace = make(tmp_path)("Who designed velora tower?")
    assert trace.question == Question("question-1", "Who designed velora tower?")
    assert len(trace.stage("search")) == len(trace.stage("rank")) == 20 and not trace.stage("hop")
    assert [hit.score for hit in trace.retrieved()] == sorted((h.score for h in trace.stage("rank")), reverse=True)
    assert trace.kept == [hit.item.id for hit in trace.stage("rank")[:4]]
    assert trace.answer == "moro" and trace.judged == ["velora.design"]
    assert sum(trace.relevance) == pytest.approx(1, abs=1e-5) and len(trace.relevance) == 4
    assert trace.prompt == " | ".join(["Who designed velora tower?", *trace.judged])
    assert sorted(trace.seconds) == ["generate", "judge", "rank", "search"] and min(trace.seconds.values()) >= 0


def test_picture_question_is_asked_expanded_and_recorded_as_it_was(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    pipeline = make(tmp_path)
    trace = pipeline(questions[3].text, image=questions[3].image)
    assert trace.question.image == questions[3].image and trace.question.text == "Which country is this?"
    assert len(trace.stage("hop")) == 20 and trace.stage("search")[0].item.id == "kimuna.view"
    assert trace.answer == "belor"
    assert pipeline.model.asked[-1].text == "Which country is this? a view of kimuna tower"  # type: ignore[attr-defined]
    assert pipeline.model.asked[-1].image is None  # type: ignore[attr-defined]


def test_batch_equals_one_by_one(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    pipeline = make(tmp_path, PipelineConfig(batch_size=3))
    together = pipeline(questions)
    assert [strip(t) for t in together] == [strip(pipeline(question)) for question in questions]
    assert [t.answer for t in together] == [question.answers[0] for question in questions]
    sizes = [size for name, size in pipeline.model.calls if name == "generate"]  # type: ignore[attr-defined]
    assert sizes[:7] == [3, 3, 3, 3, 3, 3, 2]
    mixed = pipeline(["Who designed velora tower?", questions[0]])
    assert [t.question.id for t in mixed] == ["question-1", "velora-q1"]
    assert pipeline([]) == []


def test_without_an_index(tmp_path: Path) -> None:
    trace = Pipeline(FakeModel(), None)("Who designed velora tower?")
    assert (trace.answer, trace.hits, trace.kept, trace.judged, trace.relevance) == ("unknown", [], [], [], [])


def test_limits(tmp_path: Path) -> None:
    assert len(make(tmp_path, max_items=2)("velora tower").kept) == 2
    trace = make(
        tmp_path, PipelineConfig(k=500, keep=50, max_images=1, rerank="classifier", threshold=0.0), max_items=40
    )("velora tower")
    assert len(trace.stage("search")) == 30  # all there is
    assert sum(name.endswith(".view") for name in trace.kept) == 1 and len(trace.kept) == 21
    trace = make(tmp_path, PipelineConfig(threshold=1.0))("Who designed velora tower tomorrow?")
    assert len(trace.kept) == 1
    trace = make(tmp_path, PipelineConfig(rerank="none"))("Who designed velora tower?")
    assert not trace.stage("rank") and trace.kept == [hit.item.id for hit in trace.stage("search")[:4]]


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        ([0.9, 0.05, 0.05], ["a"]),
        ([0.1, 0.48, 0.42], ["b", "c"]),
        ([1 / 3, 1 / 3, 1 / 3], ["a", "b", "c"]),
        ([0.2, 0.3, 0.5], ["c", "b"]),
    ],
)
def test_judged(relevance: list[float], expected: list[str]) -> None:
    assert judged(["a", "b", "c"], relevance, 0.5) == expected
    assert judged([], [], 0.5) == []


def test_given_knowledge_replaces_what_was_kept(tmp_path: Path) -> None:
    pipeline = make(tmp_path, max_items=2)
    assert pipeline.index is not None
    traces = pipeline.retrieve([Question("q", "Who designed velora tower?")])
    items = pipeline.index.items
    pipeline.answer(traces, [[items["kimuna.design"], items["sadoti.place"], items["velora.design"]]])
    assert traces[0].kept == ["kimuna.design", "sadoti.place"] and traces[0].answer == "tavi"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_question(tmp_path: Path, text: str) -> None:
    with pytest.raises(QuestionError, match="empty"):
        make(tmp_path)(text)


def test_bad_questions(tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    with pytest.raises(QuestionError, match="100,000 characters, at most 8,000"):
        pipeline("x" * 100_000)
    pipeline("x" * 8_000)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        pipeline("Who?", image=tmp_path / "nowhere.png")
    with pytest.raises(QuestionError, match="image goes with one question"):
        pipeline(["Who?"], image="x.png")  # type: ignore[call-overload]
    with pytest.raises(QuestionError, match="'bad' is empty"):
        pipeline([Question("good", "Who?"), Question("bad", " ")])


def test_other_model_and_nan(tmp_path: Path) -> None:
    index = make(tmp_path).index
    with pytest.raises(IndexMismatch, match="weights-5"):
        Pipeline(FakeModel(seed=5), index)

    class Broken(FakeModel):
        def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> Any:
            return super().judge(questions, items) * np.nan

    with pytest.raises(Exception, match="not a number"):
        Pipeline(Broken(), index)("Who designed velora tower?")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"hops": 3}, "hops 3"),
        ({"rerank": "magic"}, "'magic' is not one of none, "),
    ],
)
def test_bad_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelineConfig(**values)


def test_settings_as_pairs() -> None:
    given = PipelineConfig.of(["keep=2", "rerank=none", "threshold=0.25", "focus=false"])
    assert given == PipelineConfig(keep=2, rerank="none", threshold=0.25, focus=False)
    assert PipelineConfig.of([]) == PipelineConfig()
    for pair, message in (
        ("keeps=2", "'keeps=2' sets none of k, keep"),
        ("keep=two", "not a value like 4"),
        ("focus=2", "like True"),
    ):
        with pytest.raises(ConfigError, match=message):
            PipelineConfig.of([pair])


def test_focus_gives_the_generator_what_was_judged_relevant(tmp_path: Path) -> None:
    wide, narrow = (
        make(tmp_path, PipelineConfig(focus=focus))("Who designed kimuna tower?") for focus in (False, True)
    )
    assert wide.kept == narrow.kept and wide.judged == narrow.judged == ["kimuna.design"]
    assert wide.prompt.split(" | ")[1:] == wide.kept and narrow.prompt.split(" | ")[1:] == ["kimuna.design"]
    assert narrow.answer == "tavi"
