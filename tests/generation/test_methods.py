"""Methods as settings, and what those settings do in the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import ConfigError
from ra_blip.generation.methods import METHODS
from ra_blip.generation.pipeline import Pipeline, PipelineConfig
from ra_blip.records import Item, Question, read_traces, write_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.search import query_vectors, search
from tests.fakes import FakeModel, world, write_picture

pytest.importorskip("faiss")


def make(tmp_path: Path, **settings: Any) -> Pipeline:
    model = FakeModel()
    return Pipeline(model, KnowledgeIndex.build(world(tmp_path)[0], model), PipelineConfig(**settings))


def test_every_method_is_a_set_of_settings_over_the_defaults() -> None:
    for name, values in METHODS.items():
        config = PipelineConfig.of([], name)
        assert {key: getattr(config, key) for key in values} == values
    assert PipelineConfig.of([], "ra_blip") == PipelineConfig()
    changed = PipelineConfig.of(["keep=1", "query=mean"], "raven")
    assert (changed.keep, changed.query, changed.hops) == (1, "mean", 1)
    with pytest.raises(ConfigError, match="method 'magic' is not one of none, ra_blip"):
        PipelineConfig.of([], "magic")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retriever": "magic"}, "retriever 'magic' is not one of none, index"),
        ({"query": "sound"}, "query 'sound' is not one of question, image"),
        ({"knowledge": "x"}, "knowledge 'x' is not one of both"),
        ({"kind": "audio"}, "kind 'audio'"),
        ({"token_budget": -1}, "token_budget is -1"),
        ({"filters": "magic"}, "filters: 'magic'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PipelineConfig(**values)


def test_a_query_is_the_picture_the_words_or_the_mean_direction_of_both(tmp_path: Path) -> None:
    model = FakeModel()
    image = write_picture(tmp_path / "kimuna-7.png")
    asked = [Question("q", "Who designed velora tower?", image), Question("r", "Who designed sadoti tower?")]
    found = {mode: query_vectors(model, asked, mode) for mode in ("question", "image", "text", "mean")}
    words = model.encode_question([Question("q", asked[0].text), asked[1]])
    seen = model.encode_question([Question("q", "", image)])[0]
    assert np.allclose(found["question"], model.encode_question(asked), atol=1e-6)
    assert np.allclose(found["text"], words, atol=1e-6) and np.allclose(found["image"][0], seen, atol=1e-6)
    mean = words[0] + seen
    assert np.allclose(found["mean"][0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(found["mean"], axis=1), 1, atol=1e-6)
    for mode in found:  # without a picture there are the words, whatever is asked for
        assert np.allclose(found[mode][1], words[1], atol=1e-6)


def test_a_search_among_items_of_a_kind_is_widened_until_it_has_found_them(tmp_path: Path) -> None:
    model = FakeModel()
    items = [Item(f"n{i}", f"velora fact {i}") for i in range(40)]
    items += [Item(f"p{i}", f"view {i}", image=write_picture(tmp_path / f"{i}.png")) for i in range(3)]
    index = KnowledgeIndex.build(items, model)
    asked = [Question("q", "velora fact")]
    assert [h.item.id[0] for h in search(model, index, asked, 2, kind="image+text")[0].hits] == ["p", "p"]
    assert len(search(model, index, asked, 10, kind="image+text")[0].hits) == 3  # there are no more
    assert search(model, index, asked, 10, kind="image")[0].hits == []
    assert all(h.item.kind == "text" for h in search(model, index, asked, 10, kind="text")[0].hits)


def test_what_filters_drop_is_in_the_trace_and_not_in_the_ranking(tmp_path: Path) -> None:
    pipeline = make(tmp_path, k=6, filters="query_cosine:0.9,diversity:0.99", rerank="none", hops=1)
    trace = pipeline("kimuna tower designed tavi")
    assert trace.dropped == {"query_cosine": ["kimuna.design"], "diversity": []}
    names = [hit.item.id for hit in trace.retrieved()]
    assert len(names) == 5 and "kimuna.design" not in [*names, *trace.kept] and len(trace.stage("search")) == 6
    assert "filter" in trace.seconds and "filter" not in make(tmp_path)("kimuna tower").seconds
    write_jsonl(tmp_path / "traces.jsonl", [trace])
    assert read_traces(tmp_path / "traces.jsonl")[0].dropped == trace.dropped


@pytest.mark.parametrize("settings", [{"filters": "query_cosine:-1"}, {"threshold": 1.0, "rerank": "classifier"}])
def test_an_empty_selection_is_answered_from_the_question_alone_and_says_so(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    trace = make(tmp_path, keep_best=False, **settings)("Who designed kimuna tower tomorrow?")
    assert trace.kept == trace.judged == trace.relevance == [] and trace.answer == "unknown"
    assert trace.notes == [
        "every candidate was filtered out or is below the threshold: answered from the question alone"
    ]
    assert trace.prompt == "Who designed kimuna tower tomorrow?"


def test_without_askg_the_model_is_not_asked_and_all_that_is_kept_counts(tmp_path: Path) -> None:
    pipeline = make(tmp_path, askg=False, keep=4)
    assert isinstance(pipeline.model, FakeModel)
    pipeline.model.calls.clear()
    trace = pipeline("Who designed kimuna tower?")
    assert trace.judged == trace.kept and trace.relevance == [round(1 / len(trace.kept), 6)] * len(trace.kept)
    assert "select" not in [name for name, _ in pipeline.model.calls]
    assert trace.prompt.split(" | ")[1:] == trace.kept


def test_raven_reads_captioned_pictures_that_resemble_the_one_asked_about(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    pipeline = Pipeline(model, KnowledgeIndex.build(items, model), PipelineConfig.of(["filters="], "raven"))
    trace = pipeline(questions[3])  # kimuna, asked with another picture of it
    assert trace.kept[0] == "kimuna.view" and all(name.endswith(".view") for name in trace.kept)
    assert {hit.item.kind for hit in trace.hits} == {"image+text"} and len(trace.kept) == 3


def test_none_retrieves_nothing_though_there_is_an_index(tmp_path: Path) -> None:
    trace = make(tmp_path, retriever="none")("Who designed kimuna tower?")
    assert trace.hits == [] and trace.kept == [] and trace.notes == [] and trace.answer == "unknown"


class Partial(FakeModel):
    """A stand-in that can do without its parts: without fusion it sees the pictures of items alone."""

    off: tuple[str, ...] = ()

    def ablated(self, **parts: bool) -> Partial:
        """Another one without the parts that are False."""
        other = Partial()
        other.off = tuple(name for name, on in parts.items() if not on)
        return other

    def encode_items(self, items: Sequence[Item], questions: Sequence[Question] | None = None) -> Any:
        """As the fake's."""
        bare = [dataclasses.replace(one, text="") if one.image and "fusion" in self.off else one for one in items]
        return super().encode_items(bare, questions)


def test_parts_that_are_off_reach_the_model_and_without_fusion_items_are_embedded_again(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = Partial()
    index = KnowledgeIndex.build(items, model)
    whole = Pipeline(model, index)
    assert whole.model is model and whole.index is index
    blind = Pipeline(model, index, PipelineConfig(instruction=False))
    assert isinstance(blind.model, Partial) and blind.model.off == ("instruction",) and blind.index is index
    apart = Pipeline(model, index, PipelineConfig(fusion=False))
    assert isinstance(apart.model, Partial) and apart.model.off == ("fusion",)
    assert apart.index is not None and apart.index.items == index.items
    bare = model.encode_items([Item("x", image=items[0].image)])
    assert (
        apart.index.vectors_of([items[0].id]) == pytest.approx(bare) != pytest.approx(index.vectors_of([items[0].id]))
    )
    assert apart(questions[0]).answer == questions[0].answers[0]


def test_a_model_that_cannot_do_without_its_parts_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instruction, fusion: this model cannot do without"):
        make(tmp_path, instruction=False, fusion=False)
