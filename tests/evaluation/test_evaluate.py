"""The figures of an evaluation, their files, and that they repeat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ra_blip.__main__ import main
from ra_blip.errors import ConfigError, DataError, OutputError
from ra_blip.evaluation.evaluate import METRICS, MODES, evaluate, summarise
from ra_blip.evaluation.score import score
from ra_blip.records import Hit, Item, Question, Trace, read_traces, write_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from tests.fakes import FakeModel, world

pytest.importorskip("faiss")


def run(tmp_path: Path, **options: Any) -> dict[str, Any]:
    items, questions = world(tmp_path)
    model = options.pop("model", FakeModel())
    chosen = options.pop("questions", questions)
    return evaluate(model, KnowledgeIndex.build(items, model), chosen, tmp_path / "out", **options)


def lasting(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in ("seconds", "provenance")}


def test_figures(tmp_path: Path) -> None:
    metrics = run(tmp_path, metrics=["token_f1", "ndcg@10"])
    assert metrics["retrieval"] == {"recall@1": 1, "recall@5": 1, "mrr@10": 1}
    assert list(metrics["answer"]) == list(MODES)
    for mode in ("with_retrieval", "gold_knowledge", "shuffled", "adversarial"):
        assert metrics["answer"][mode] == 1
    assert metrics["answer"]["without_retrieval"] == 0 and metrics["answer"]["random_knowledge"] <= 0.1
    assert metrics["askg"] == {"accuracy": 1}
    assert metrics["extra"] == {"token_f1": 1, "ndcg@10": 1}
    assert metrics["against_without"] == {"gained": 20, "lost": 0}
    assert sorted(metrics["by_category"]) == ["question_picture", "text_fact"]
    assert metrics["by_category"]["text_fact"]["answer"]["with_retrieval"] == 1
    assert metrics["intervals"]["answer"]["without_retrieval"] == [0, 0]
    assert metrics["intervals"]["by_category"]["text_fact"]["askg"]["accuracy"] == [1, 1]
    assert metrics["counts"]["retrieval"]["recall@1"] == 20
    assert metrics["counts"]["by_category"]["question_picture"]["answer"]["shuffled"] == 10
    assert sorted(metrics["seconds"]) == ["generate", "judge", "rank", "search"]
    known = metrics["provenance"]
    assert known["seed"] == 0 and known["items"] == 30 and known["versions"]["python"] and known["pipeline"]["k"] == 20
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_traces_are_those_with_retrieval(tmp_path: Path) -> None:
    run(tmp_path)
    traces = read_traces(tmp_path / "out" / "traces.jsonl")
    assert len(traces) == 20
    for trace in traces:
        assert trace.answer == trace.question.answers[0] and trace.judged[0] == trace.question.gold[0]
        ranked = [hit for i, hit in enumerate(trace.stage("rank")[:4]) if i == 0 or hit.score >= 0.1]
        assert trace.kept == [hit.item.id for hit in ranked] and len(trace.relevance) == len(ranked)
        assert trace.question.image is None or Path(trace.question.image).is_file()


def test_figures_repeat_and_do_not_hang_on_the_order_of_questions(tmp_path: Path) -> None:
    first = run(tmp_path, seed=3)
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert json.dumps(lasting(run(tmp_path, seed=3))) == json.dumps(lasting(json.loads(text)))
    backwards = run(tmp_path, seed=3, questions=world(tmp_path)[1][::-1])
    for section in ("retrieval", "answer", "askg", "counts"):
        assert backwards[section] == first[section]


def test_a_model_that_trusts_the_first_place_is_caught(tmp_path: Path) -> None:
    class Trusting(FakeModel):
        def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> Any:
            return super().generate(questions, [items[:1] for items in knowledge])

        def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[list[float]]:
            return [[1.0] + [0.0] * (len(items) - 1) if items else [] for items in knowledge]

    metrics = run(tmp_path, model=Trusting())
    assert metrics["answer"]["with_retrieval"] == metrics["answer"]["gold_knowledge"] == 1
    assert metrics["answer"]["shuffled"] < 0.6 and metrics["answer"]["adversarial"] < 0.6
    assert metrics["askg"]["accuracy"] < 0.6


def test_a_model_that_cannot_tell_gets_its_chance(tmp_path: Path) -> None:
    class Blind(FakeModel):
        def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[list[float]]:
            return [[1 / len(items)] * len(items) for items in knowledge]

    assert run(tmp_path, model=Blind(), modes=["with_retrieval"])["askg"]["accuracy"] == 0.25


def test_picture_questions_are_expanded_in_every_mode_but_without(tmp_path: Path) -> None:
    model = FakeModel()
    run(tmp_path, model=model, questions=world(tmp_path)[1][1:2])
    texts = [(question.text, question.image is None) for question in model.asked]
    whole = ("Which country is this? a view of velora tower", True)
    assert texts == [whole, ("Which country is this?", False), whole, whole, whole, whole]


def test_further_metrics_and_predictions_for_score(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    ten = [dataclasses.replace(one, answers=one.answers[:1] * 3 + ("other",) * 7) for one in questions]
    names = ["answer_in_prediction", "vqa_accuracy", "aokvqa_accuracy", "retrieval_f1"]
    extra = run(tmp_path, questions=ten, modes=["with_retrieval"], metrics=names)["extra"]
    assert (extra["answer_in_prediction"], extra["aokvqa_accuracy"]) == (1, 1)
    traces = read_traces(tmp_path / "out" / "traces.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert lines == [{"id": one.question.id, "prediction": one.answer, "sources": one.judged} for one in traces]
    references = [{"id": one.id, "answers": list(one.answers), "gold": list(one.gold)} for one in ten]
    write_jsonl(tmp_path / "references.jsonl", references)
    files = (tmp_path / "out" / "predictions.jsonl", tmp_path / "references.jsonl")
    assert score("vqa", *files)["accuracy"] == pytest.approx(extra["vqa_accuracy"], abs=1e-6)
    assert score("webqa", *files)["retrieval_f1"] == pytest.approx(extra["retrieval_f1"], abs=1e-6)


def test_help_names_every_further_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = capsys.readouterr().out.replace(",", " ").split()
    assert set(METRICS) <= set(said)


def test_without_an_index(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    metrics = evaluate(FakeModel(), None, questions, tmp_path / "out")
    assert metrics["answer"] == {"without_retrieval": 0} and "retrieval" not in metrics and "askg" not in metrics
    assert len(read_traces(tmp_path / "out" / "traces.jsonl")) == 20


def test_questions_without_answers_or_gold_are_counted_out(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    questions[0] = dataclasses.replace(questions[0], answers=())
    questions[2] = dataclasses.replace(questions[2], gold=())
    questions[4] = dataclasses.replace(questions[4], gold=("nowhere",))
    metrics = run(tmp_path, questions=questions)
    assert metrics["counts"]["answer"] == {mode: 17 if mode == "gold_knowledge" else 19 for mode in MODES}
    assert metrics["counts"]["retrieval"]["recall@5"] == 19 and metrics["counts"]["askg"]["accuracy"] == 18
    assert metrics["retrieval"]["recall@5"] == pytest.approx(18 / 19, abs=1e-6)


def test_summary_by_hand() -> None:
    questions = [Question(f"q{n}", "x", category="even" if n % 2 == 0 else None) for n in range(4)]
    tree = summarise({"answer.with_retrieval": {"q0": 1.0, "q1": 0.0, "q2": 0.0}}, questions, 0)
    assert tree["answer"] == {"with_retrieval": 0.333333}
    assert tree["by_category"] == {"even": {"answer": {"with_retrieval": 0.5}}}
    assert tree["counts"]["answer"] == {"with_retrieval": 3} and len(tree["intervals"]["answer"]["with_retrieval"]) == 2


def test_errors_come_before_any_work(tmp_path: Path) -> None:
    model = FakeModel()
    _, questions = world(tmp_path)
    with pytest.raises(DataError, match="no questions"):
        evaluate(model, None, [], tmp_path)
    with pytest.raises(DataError, match="'velora-q1' is used 2 times"):
        evaluate(model, None, [questions[0], questions[0]], tmp_path)
    with pytest.raises(ConfigError, match="mode 'magic'"):
        evaluate(model, None, questions, tmp_path, modes=["magic"])
    with pytest.raises(ConfigError, match="metric 'magic' is not one of recall@10"):
        evaluate(model, None, questions, tmp_path, metrics=["magic"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        evaluate(model, None, questions, tmp_path / "file" / "out")
    assert model.calls == [] and not (tmp_path / "metrics.json").exists()


def test_the_right_entity_in_the_first_search() -> None:
    def trace(*names: str) -> Trace:
        hits = [Hit(Item(name, "text"), 1 - place / 10, "search") for place, name in enumerate(names)]
        return Trace(Question("q", "?", gold=("lime.product",)), hits=[*hits, Hit(Item("lime.product", "x"), 1, "hop")])

    first, five = METRICS["search_entity@1"], METRICS["search_entity@5"]
    assert first(trace("lime.photo-1", "kiwi.product")) == 1
    late = trace("kiwi.1", "kiwi.2", "kiwi.3", "plum.1", "pear.1", "fig.1", "lime.photo-1")
    assert (first(late), five(late)) == (0, 1)  # seventh hit, fifth entity
    assert five(trace("kiwi.1", "plum.1", "pear.1", "fig.1", "nut.1", "lime.photo-1")) == 0
    assert first(Trace(Question("q", "?"))) is None and first(Trace(Question("q", "?", gold=("a",)))) is None
