"""A comparison by a stand-in for the model: figures by hand, variants, what is taken over, and the verb."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ra_blip import commands
from ra_blip.__main__ import main
from ra_blip.errors import ConfigError, DataError
from ra_blip.evaluation.compare import Row, ablations, compare, row_names
from ra_blip.evaluation.evaluate import evaluate
from ra_blip.generation.pipeline import PipelineConfig
from ra_blip.records import Item, Question, read_traces, write_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from tests.fakes import FakeModel, Generated, world

pytest.importorskip("faiss")
PLAIN = ["raven:filters="]  # the pictures of the stand-in's world are not pictures


class Counting(FakeModel):
    """Counts how often it is loaded."""

    loads = 0


def run(tmp_path: Path, names: list[str], **options: Any) -> dict[str, Any]:
    items, questions = world(tmp_path)
    model = options.pop("model", None) or FakeModel()
    index = options.pop("index", None) or KnowledgeIndex.build(items, FakeModel())

    def load(name: str) -> FakeModel:
        Counting.loads += 1
        return model[name] if isinstance(model, dict) else model

    weights = options.pop("weights", "w")
    weights_of = weights if callable(weights) else lambda name: weights
    asked = options.pop("questions", questions)
    return compare(load, weights_of, index, asked, tmp_path / "out", names, **options)[0]


def test_figures(tmp_path: Path) -> None:
    found = run(tmp_path, ["ra_blip", *PLAIN, "ra_blip:gold", "ra_blip:random"])
    rows = found["methods"]
    assert list(rows) == ["none", "ra_blip", *PLAIN, "ra_blip:gold", "ra_blip:random"] and found["questions"] == 20
    assert rows["none"]["answer_accuracy"] == 0 and rows["none"]["gained"] == rows["none"]["lost"] == 0
    ours = rows["ra_blip"]
    assert ours["answer_accuracy"] == 1 and ours["interval"] == [1, 1] and ours["recall@1"] == 1
    assert (ours["gained"], ours["lost"], ours["difference"]) == (20, 0, 1) and ours["difference_interval"] == [1, 1]
    assert rows["raven:filters="]["judged_recall"] is None  # nothing is judged there
    assert ours["judged_recall"] == 1 and ours["by_category"] == {"question_picture": 1, "text_fact": 1}
    assert ours["seconds"] == pytest.approx(sum(ours["seconds_by_stage"].values()), abs=1e-5)
    assert rows["raven:filters="]["answer_accuracy"] == 0  # its pictures have no facts
    assert rows["ra_blip:gold"]["answer_accuracy"] == 1 and rows["ra_blip:random"]["answer_accuracy"] <= 0.1
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert found["settings"]["raven:filters="]["query"] == "image"


def test_a_row_is_what_evaluate_finds(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    alone = evaluate(model, index, questions, tmp_path / "alone", modes=["with_retrieval", "random_knowledge"], seed=3)
    rows = run(tmp_path, ["ra_blip", "ra_blip:random"], seed=3)["methods"]
    assert rows["ra_blip"]["answer_accuracy"] == alone["answer"]["with_retrieval"]
    assert rows["ra_blip:random"]["answer_accuracy"] == alone["answer"]["random_knowledge"]
    assert rows["ra_blip"]["mrr@10"] == alone["retrieval"]["mrr@10"]


def test_gained_and_lost_are_counted_by_question(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    asked = [Question("plain", "Say unknown", answers=("unknown",), gold=("velora.design",)), questions[0]]
    rows = run(tmp_path, ["ra_blip"], questions=asked)["methods"]
    assert rows["none"]["answer_accuracy"] == 0.5  # the stand-in says "unknown" without items
    assert (rows["ra_blip"]["gained"], rows["ra_blip"]["lost"], rows["ra_blip"]["difference"]) == (1, 1, 0)
    assert rows["ra_blip"]["difference_interval"] == [-1, 1]


def test_rows_that_are_there_are_taken_over_until_something_changes(tmp_path: Path) -> None:
    Counting.loads = 0
    first = run(tmp_path, ["ra_blip"])
    assert Counting.loads == 2  # none and ra_blip
    again = run(tmp_path, ["ra_blip", "ra_blip:k=3"])
    assert Counting.loads == 3 and again["methods"]["ra_blip"] == first["methods"]["ra_blip"]
    run(tmp_path, ["ra_blip"], weights="others")
    assert Counting.loads == 5
    run(tmp_path, ["ra_blip"], weights="others", seed=1)
    assert Counting.loads == 7
    (row,) = (tmp_path / "out" / "rows").glob("ra_blip-*/row.json")
    row.unlink()  # killed while it was written
    run(tmp_path, ["ra_blip"], weights="others", seed=1)
    assert Counting.loads == 8
    _, questions = world(tmp_path)
    run(tmp_path, ["ra_blip"], weights="others", seed=1, questions=questions[:4])
    assert Counting.loads == 10


def test_rows_that_find_the_same_search_once_and_leave_each_other_alone(tmp_path: Path) -> None:
    names = ["raven:filters=+gold", "raven:filters=+random", "raven:filters=", "raven:filters=+token_budget=9"]
    model = FakeModel()
    together = run(tmp_path, names, model=model)["methods"]
    assert sum(count for kind, count in model.calls if kind == "question") == 2 * 20  # for two sets of settings
    for name in names:
        (tmp_path / name).mkdir()
        alone = run(tmp_path / name, [name])["methods"][name]
        timeless = ({key: row[key] for key in row if not key.startswith("seconds")} for row in (alone, together[name]))
        assert next(timeless) == next(timeless), name


def test_names_of_rows() -> None:
    row = Row.of("ra_blip:k=5+focus=false+gold")
    assert (row.method, row.knowledge, row.config) == ("ra_blip", "gold", PipelineConfig(k=5, focus=False))
    assert Row.of("none").config.retriever == "none" and Row.of("none").model == "none"
    row = Row.of("ra_blip@sft:filters=same_id,near_picture:4+kind=image+text+noise_0.25")
    assert (row.method, row.model, row.knowledge) == ("ra_blip", "sft", "noise_0.25")
    assert (row.config.filters, row.config.kind) == ("same_id,near_picture:4", "image+text")
    for name, message in (
        ("magic", "method 'magic'"),
        ("ra_blip:k", "'k' is neither setting=value nor one of gold"),
        ("ra_blip:gold+random", "are not one of gold"),
        ("ra_blip:keeps=2", "sets none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            Row.of(name)


def test_a_comma_parts_rows_and_stays_in_values() -> None:
    plain = ["none,ra_blip,raven,rir,ragvl", "ra_blip:k=5,ra_blip@sft"]
    assert row_names(plain) == ["none", "ra_blip", "raven", "rir", "ragvl", "ra_blip:k=5", "ra_blip@sft"]
    held = "raven:filters=same_id,near_picture:4"
    assert row_names([f"none,,{held},ra_blip,"]) == ["none", held, "ra_blip"]
    assert row_names([held, "magic,ra_blips"]) == [held, "magic,ra_blips"]


def test_noise_and_ablations_are_added_to_the_rows_that_were_asked_for() -> None:
    noise = ["noise_0", "noise_0.25", "noise_0.5", "noise_0.75"]
    given = ["none", "ra_blip@sft", "ra_blip:askg=false", "ra_blip:gold", "raven:retriever=none"]
    names = row_names(given, with_noise=True)
    assert names[:5] == given
    assert names[5:] == [f"ra_blip@sft:{one}" for one in noise] + [f"ra_blip:askg=false+{one}" for one in noise]
    assert row_names(["ra_blip@sft", "ragvl:k=1"], with_ablations=True)[2:] == ablations("ra_blip@sft")
    assert ablations("ra_blip@sft")[0] == "ra_blip@sft:gold"


class Parrot(FakeModel):
    """Answers with the last word of the first item."""

    def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[Generated]:
        """``moro`` without items."""
        said = [items[0].full_text.split()[-1] if items else "moro" for items in knowledge]
        return [Generated(answer, "") for answer in said]


def test_noise_of_two_models_has_the_same_prompts_and_says_its_share(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    asked = [q for q in questions if q.image is None]  # ten, with one gold fact each
    models = {"none": FakeModel(), "ra_blip": FakeModel(), "parrot": Parrot()}
    names = row_names(["ra_blip", "ra_blip@parrot:askg=false+focus=false"], with_noise=True)
    weights = {"none": "w", "ra_blip": "w", "parrot": "p"}.__getitem__
    rows = run(tmp_path, names, model=models, questions=asked, weights=weights)["methods"]
    assert list(rows)[:2] == ["none", "none@parrot"]
    for start in ("ra_blip:", "ra_blip@parrot:askg=false+focus=false+"):
        noise = {
            name.removeprefix(start): row["noise"] for name, row in rows.items() if name.startswith(f"{start}noise")
        }
        halves = noise.pop("noise_0.25")
        assert noise == {"noise_0": 0, "noise_0.5": 0.5, "noise_0.75": 0.75}
        assert halves in [n / 20 for n in range(11)]  # one wrong item beside the gold one, or none
    kept = {}
    for name in ("ra_blip:noise_0.75", "ra_blip@parrot:askg=false+focus=false+noise_0.75"):
        (folder,) = (
            path.parent for path in (tmp_path / "out").glob("rows/*/row.json") if f'"{name}"' in path.read_text()
        )
        kept[name] = [trace.kept for trace in read_traces(folder / "traces.jsonl")]
    first, second = kept.values()
    assert first == second and all(q.gold[0] in ids and len(ids) == 4 for q, ids in zip(asked, first, strict=True))
    right = sum(ids[0] == q.gold[0] for q, ids in zip(asked, first, strict=True))  # the parrot's: where gold is first
    parrot = rows["ra_blip@parrot:askg=false+focus=false+noise_0.75"]
    assert parrot["answer_accuracy"] == right / 10 and rows["ra_blip:noise_0.75"]["answer_accuracy"] == 1
    alone = rows["none@parrot"]["answer_accuracy"]
    assert alone == 0.1 and parrot["difference"] == pytest.approx((right - 1) / 10)  # against the parrot alone
    assert rows["ra_blip"]["difference"] == 1 and rows["none"]["recall@1"] is None


def test_ablations_are_rows_and_change_something() -> None:
    assert ablations("none") == []
    assert {"ra_blip:gold", "ra_blip:askg=false", "ra_blip:instruction=false", "ra_blip:k=50"} < {*ablations("ra_blip")}
    assert "raven:fusion=false" in ablations("raven") and "raven:askg=false" not in ablations("raven")
    for method in ("ra_blip", "raven", "ragvl"):
        rows = [Row.of(name) for name in ablations(method)]
        assert len({str(row) for row in rows}) == len(rows) > 8
        own = PipelineConfig.of([], method)
        assert all(row.knowledge or row.config != own for row in rows)


def test_errors_come_before_any_work(tmp_path: Path) -> None:
    Counting.loads = 0
    with pytest.raises(ConfigError, match="magic"):
        run(tmp_path, ["magic"])
    with pytest.raises(DataError, match="no questions"):
        run(tmp_path, ["ra_blip"], questions=[])
    with pytest.raises(ConfigError, match="go together"):
        run(tmp_path, ["ra_blip"], metric="vqa")
    assert Counting.loads == 0 and not (tmp_path / "out" / "comparison.json").exists()


def test_rows_are_scored_by_a_metric_and_by_domain(tmp_path: Path) -> None:
    _, questions = world(tmp_path)
    lines = [
        {"id": q.id, "answers": [*q.answers], "category": "near" if i < 4 else "out"} for i, q in enumerate(questions)
    ]
    write_jsonl(tmp_path / "references.jsonl", lines)
    rows = run(tmp_path, ["ra_blip"], metric="caption", references=tmp_path / "references.jsonl")["methods"]
    assert rows["ra_blip"]["score"]["metric"] == "caption" and rows["none"]["score"]["cider"] == 0
    assert set(rows["ra_blip"]["score"]["by_category"]) == {"near", "out"}
    assert rows["ra_blip"]["score"]["bleu1"] == pytest.approx(1, abs=1e-6)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Items, questions and an index in the current folder; a model is called "model"."""
    items, questions = world(tmp_path)
    write_jsonl(tmp_path / "items.jsonl", items)
    write_jsonl(tmp_path / "questions.jsonl", questions)
    monkeypatch.setattr(commands, "_model", lambda folder, features=None: FakeModel())
    monkeypatch.chdir(tmp_path)
    KnowledgeIndex.build(items, FakeModel()).save(tmp_path / "index")
    return tmp_path


SHARED = ["questions.jsonl", "--model", "model", "--index", "index", "--out", "out"]


def test_the_verb_writes_figures_and_page(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *SHARED, "--methods", "none,ra_blip", "ra_blip:k=5+focus=false"]) == 0
    found = json.loads((base / "out" / "comparison.json").read_text())
    assert list(found["methods"]) == ["none", "ra_blip", "ra_blip:k=5+focus=false"]
    page = (base / "out" / "comparison.html").read_text()
    assert "20 gained, 0 lost" in page and "<script src" not in page
    assert "ra_blip: 1.000 of 20 answers right" in capsys.readouterr().out
    (folder,) = (base / "out" / "rows").glob("ra_blip-*")
    assert len(read_traces(folder / "traces.jsonl")) == 20
    score = ["score", "answers", "--predictions", str(folder / "predictions.jsonl"), "--references", "questions.jsonl"]
    assert main(score) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 1


def test_the_verb_refuses_what_it_does_not_know(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *SHARED, "--methods", "magic"]) == 2
    assert "method 'magic' is not one of none" in capsys.readouterr().err
    for given, said in (
        (["--models", "raven"], "--models raven=: no row has it"),
        (["--methods", "ra_blip", "--models", "sft=model"], "--models sft=model: no row has it"),
        (["--methods", "ra_blip@sft"], "the model @sft: say which with --models sft=DIR"),
    ):
        assert main(["compare", *SHARED, *given]) == 2
        assert said in capsys.readouterr().err


def test_the_verb_draws_a_curve_of_noise_for_each_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def load(folder: str, features: str | None = None) -> FakeModel:
        opened.append(folder)
        return FakeModel()

    monkeypatch.setattr(commands, "_model", load)
    given = ["--methods", "ra_blip,ra_blip@sft", "--models", "sft=other", "--noise"]
    assert main(["compare", *SHARED, *given]) == 0
    assert opened == ["model", "other"]  # each once
    page = (base / "out" / "comparison.html").read_text()
    assert 'data-series="ra_blip"' in page and 'data-series="ra_blip@sft"' in page


def test_a_method_names_how_ask_evaluate_and_search_retrieve(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--model", "model", "--index", "index"]
    assert main(["ask", "view of velora", *shared, "--method", "raven", "--set", "filters=", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["stage"] for hit in hits} == {"search"} and all(hit["id"].endswith(".view") for hit in hits)
    picked = ["--method", "raven", "--set", "filters=diversity:0.99", "--k", "3", "--out", "hits.jsonl"]
    assert main(["search", "questions.jsonl", *shared, *picked]) == 0
    lines = [json.loads(line) for line in Path("hits.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(len(line["hits"]) == 3 for line in lines)
    assert main(["evaluate", "questions.jsonl", *shared, "--out", "o", "--method", "raven", "--set", "filters="]) == 0
    assert json.loads(Path("o/metrics.json").read_text())["provenance"]["pipeline"]["kind"] == "image+text"
