"""``ra-blip score``: files in, one JSON object out; every metric, every fault in the files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ra_blip.__main__ import main
from ra_blip.errors import ConfigError, DataError
from ra_blip.evaluation.score import score
from ra_blip.evaluation.scorers import METRICS

Lines = Sequence[dict[str, Any]]


def write(folder: Path, predictions: Lines, references: Lines) -> tuple[Path, Path]:
    """Both files."""
    paths = folder / "p.jsonl", folder / "r.jsonl"
    for path, lines in zip(paths, (predictions, references), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths


def run(folder: Path, metric: str, predictions: Lines, references: Lines, **options: Any) -> dict[str, Any]:
    """Score lines, through files."""
    return score(metric, *write(folder, predictions, references), **options)


def test_mmqa_counts_missing_as_zero_and_names_unknown(tmp_path: Path) -> None:
    references = [
        {"id": "q1", "answers": ["red", "blue"], "category": "ImageQ"},
        {"id": "q2", "answers": [7.0], "category": "TableQ"},  # some official answers are numbers
        {"id": "q3", "answers": ["x"], "category": "ImageQ"},
        {"id": "q4", "answers": ["y"]},
    ]
    predictions = [
        *({"id": "q1", "prediction": ["Blue"]}, {"id": "q2", "prediction": "seven"}, {"id": "q3", "prediction": []}),
        {"id": "zz", "prediction": "?"},
    ]
    result = run(tmp_path, "mmqa", predictions, references, per_question=True)
    assert (result["metric"], result["questions"], result["missing"], result["unknown"]) == ("mmqa", 4, 1, 1)
    assert result["unknown_ids"] == ["zz"]
    assert result["list_em"] == 1 / 4 and result["list_f1"] == 1.5 / 4
    assert result["per_question"]["q1"] == {"list_em": 0, "list_f1": 0.5}
    assert result["per_question"]["q4"] == {"list_em": 0, "list_f1": 0}
    assert result["by_category"]["ImageQ"] == {"questions": 2, "list_em": 0, "list_f1": 0.25}
    low, high = result["intervals"]["list_f1"]
    assert result["counts"] == {"list_em": 4, "list_f1": 4} and 0 <= low < 0.375 < high <= 1


def test_vqa_takes_numbers_as_ids(tmp_path: Path) -> None:
    references = [{"id": 1, "answers": ["cat"] * 3 + ["dog"] * 7}, {"id": 2, "answers": ["two"] * 5 + ["2"] * 5}]
    result = run(tmp_path, "vqa", [{"id": 1, "prediction": "a cat"}, {"id": "2", "prediction": "two"}], references)
    assert result["accuracy"] == pytest.approx((0.9 + 1) / 2) and result["missing"] == 0
    assert "by_category" not in result and "per_question" not in result and "unknown_ids" not in result


def test_a_okvqa_scores_what_the_predictions_hold(tmp_path: Path) -> None:
    references = [
        {"id": "a", "answers": ["cat", "cat", "dog"], "choice": "cat"},
        {"id": "b", "answers": ["x"] * 3, "choice": "x"},
    ]
    both = run(tmp_path, "aokvqa", [{"id": "a", "prediction": "cat", "choice": "dog"}], references)
    assert both["accuracy"] == pytest.approx(1 / 3) and both["multiple_choice"] == 0
    direct = run(tmp_path, "aokvqa", [{"id": "a", "prediction": "cat"}], references)
    assert direct["accuracy"] == pytest.approx(1 / 3) and "multiple_choice" not in direct
    choice = run(tmp_path, "aokvqa", [{"id": "a", "choice": "cat"}], references)
    assert choice["multiple_choice"] == 0.5 and "accuracy" not in choice


def test_infoseek_by_kind_and_split(tmp_path: Path) -> None:
    references = [
        {"id": "s", "answers": ["Oak"], "kind": "String", "split": "unseen_question"},
        {"id": "t", "answers": ["1889"], "kind": "time", "split": "unseen_question"},
        {"id": "n", "answers": ["10 m"], "kind": "numerical", "range": [9, 11], "split": "unseen_entity"},
        {"id": "v", "answers": ["100"], "kind": "numerical", "split": "unseen_entity"},
        {"id": "m", "answers": ["0"], "kind": "numerical", "range": [-1, 1], "split": "unseen_entity"},
    ]
    predictions = [
        *({"id": "s", "prediction": "the oak"}, {"id": "t", "prediction": "1890"}, {"id": "n", "prediction": "9-10"}),
        {"id": "v", "prediction": "120"},
    ]
    result = run(tmp_path, "infoseek", predictions, references)
    assert result["accuracy"] == 2 / 5  # no prediction is not the number 0
    assert {kind: one["accuracy"] for kind, one in result["by_kind"].items()} == {
        **{"String": 1, "time": 0, "numerical": 1 / 3},
    }
    assert result["by_split"]["unseen_entity"] == {"questions": 3, "accuracy": 1 / 3}
    assert result["harmonic_mean"] == pytest.approx(2 / (1 / 0.5 + 1 / (1 / 3)))


def test_webqa_reports_macro_micro_and_modalities(tmp_path: Path) -> None:
    references = [
        {"id": "i", "category": "color", "keywords": ["red"], "gold": [30000001, 30000002]},
        {"id": "t", "category": "text", "keywords": "TBD", "gold": ["t_0"]},
    ]
    predictions = [
        {"id": "i", "prediction": "Red cats", "sources": ["30000001"]},
        {"id": "t", "prediction": "x", "sources": ["t_0", "t_1", "t_2"]},
    ]
    result = run(tmp_path, "webqa", predictions, references)
    assert result["retrieval_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["retrieval_f1_micro"] == pytest.approx(2 * 2 / 7)
    assert result["qa_acc"] == pytest.approx(1, abs=1e-5) and result["counts"]["qa_acc"] == 1
    assert result["lemmatiser"].startswith("lemminflect")
    assert result["by_modality"]["text"] == {"questions": 1, "retrieval_f1": 0.5, "retrieval_f1_micro": 0.5}
    only = run(tmp_path, "webqa", [{"id": "i", "sources": []}], references)
    assert only["retrieval_f1"] == 0 and "qa_acc" not in only


def test_webqa_fluency_and_product(tmp_path: Path) -> None:
    references = [{"id": str(i), "keywords": "red", "answers": ["red cat"], "gold": ["g"]} for i in range(3)]
    predictions = [{"id": "0", "prediction": "red cat"}, {"id": "1", "prediction": "blue"}]

    def likelihood(sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        return [-1.0 if source == target else -30.0 for source, target in zip(sources, targets, strict=True)]

    result = run(tmp_path, "webqa", predictions, references, likelihood=likelihood)
    assert [result[name] for name in ("qa_fl", "qa_acc", "qa")] == pytest.approx([1 / 3] * 3)
    with pytest.raises(ConfigError, match="only webqa"):
        run(tmp_path, "vqa", predictions, references, likelihood=likelihood)


def test_captions_pool_their_counts(tmp_path: Path) -> None:
    references = [{"id": "1", "answers": ["a red cat sat"]}, {"id": "2", "answers": ["two dogs ran off"]}]
    result = run(tmp_path, "caption", [{"id": "1", "prediction": "A red cat sat."}], references)
    assert result["cider"] == pytest.approx(10 / 2) and result["rouge_l"] == 0.5
    assert result["bleu1"] == pytest.approx(2.718281828 ** (1 - 8 / 4)) and {"bleu2", "bleu3", "bleu4"} < set(result)


def test_retrieval_answers_and_encyclopedic(tmp_path: Path) -> None:
    gold = [{"id": "q", "gold": ["a", "b"]}]
    result = run(tmp_path, "retrieval", [{"id": "q", "sources": ["x", "a", "y", "z", "w", "b"]}], gold)
    assert [result[f"recall@{k}"] for k in (1, 5, 10, 20)] == [0, 0.5, 1, 1] and result["mrr@10"] == 0.5
    short = run(tmp_path, "answers", [{"id": "q", "prediction": "It is an oak."}], [{"id": "q", "answers": ["Oak"]}])
    assert (short["exact_match"], short["token_f1"], short["answer_in_prediction"]) == (0, 0.5, 1)
    many = [{"id": "q", "answers": ["red&&blue"], "kind": "multi_answer"}]
    assert run(tmp_path, "encyclopedic", [{"id": "q", "prediction": "red"}], many)["exact_match"] == 1


GOOD = [{"id": "q", "answers": ["x"]}]


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "message"),
    [
        ("vqa", [{"id": "q", "prediction": "x"}] * 2, GOOD, r"p.jsonl, line 2: id 'q' was used in .*p.jsonl, line 1"),
        ("vqa", [{"id": "q", "prediction": "x"}], GOOD * 2, r"r.jsonl, line 2: id 'q' was used in .*r.jsonl, line 1"),
        ("vqa", [{"prediction": "x"}], GOOD, "p.jsonl, line 1: 'id' is missing"),
        ("vqa", [{"id": "q"}], GOOD, "p.jsonl, line 1: 'prediction' is missing"),
        ("vqa", [{"id": "q", "prediction": ["x"]}], GOOD, "'prediction' must be a string, found list"),
        ("mmqa", [{"id": "q", "prediction": None}], GOOD, "must be a string, found NoneType"),
        ("mmqa", [{"id": "q", "prediction": [["x"]]}], GOOD, "must be a list of strings"),
        ("retrieval", [{"id": "q", "sources": "a"}], GOOD, "'sources' must be a list of strings"),
        ("vqa", [{"id": "z", "prediction": "x"}], GOOD, "none of its 1 ids is an id of"),
        ("vqa", [{"id": "q", "prediction": "x"}], [{"id": "q", "answers": []}], "line 1: 'answers' must be a list"),
        ("vqa", [], GOOD, "p.jsonl: holds no lines"),
        ("retrieval", [{"id": "q", "sources": ["a"]}], GOOD, "r.jsonl, line 1: 'gold' must be a list"),
        ("infoseek", [{"id": "q", "prediction": "x"}], GOOD, "'kind' is missing"),
        ("infoseek", [{"id": "q", "prediction": "x"}], [{**GOOD[0], "kind": "z"}], "kind 'z' is not one of string"),
        (
            *("infoseek", [{"id": "q", "prediction": "x"}]),
            *([{"id": "q", "kind": "numerical", "range": [1]}], "'range' must be a list of two numbers"),
        ),
        (
            *("infoseek", [{"id": "q", "prediction": "x"}]),
            *([{"id": "q", "kind": "numerical", "range": "12"}], "'range' must be a list of two numbers, found '12'"),
        ),
        ("webqa", [{"id": "q", "prediction": "x"}], [{"id": "q", "category": "z"}], "category 'z' is not one of"),
        ("aokvqa", [{"id": "q", "choice": "x"}], GOOD, "'choice', the right one, is missing"),
        ("encyclopedic", [{"id": "q", "prediction": "x"}], [{"id": "q", "answers": ["the"]}], "line 1: reference"),
    ],
)
def test_faults_are_typed_errors(
    tmp_path: Path, metric: str, predictions: Lines, references: Lines, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, metric, predictions, references)


def test_every_line_holds_what_one_line_holds(tmp_path: Path) -> None:
    predictions = [{"id": "q", "prediction": "x"}, {"id": "r", "prediction": "x", "sources": []}]
    with pytest.raises(DataError, match="line 1: 'sources' is missing"):
        run(tmp_path, "webqa", predictions, [{"id": "q", "gold": ["a"]}, {"id": "r", "gold": ["a"]}])


def test_the_verb_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = [{"id": "q", "prediction": ""}, {"id": "other", "prediction": "x"}]
    ours, theirs = map(str, write(tmp_path, predictions, GOOD))
    files = ["--predictions", ours, "--references", theirs]
    assert main(["score", "vqa", *files, "--per-question"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["per_question"] == {"q": {"accuracy": 0}} and json.loads(out)["unknown"] == 1
    assert err == f"ra-blip: 1 prediction is for no question of {theirs} and not scored: other\n"
    for argv, message in {
        ("bleu", *files): "metric 'bleu' is not one of answers,",
        ("webqa", *files, "--bart-weights", "x"): "give --bart-score as well",
        ("webqa", *files, "--bart-score", str(tmp_path)): "no sequence-to-sequence model",
    }.items():
        assert main(["score", *argv]) == 2
        assert message in capsys.readouterr().err


def test_help_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert f"one of {', '.join(METRICS)}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: WebQA's val is absent")
def test_published_predictions_of_webqa_get_their_published_scores(tmp_path: Path) -> None:
    folder = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "webqa_official_val"
    with gzip.open(folder / "webqa_val_predictions.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    predictions = [
        {"id": row["guid"], "prediction": row["prediction"], "sources": row["predicted_sources"]} for row in rows
    ]
    references = [
        {"id": row["guid"], "category": row["Qcate"], "keywords": row["Keywords_A"], "gold": row["gold_sources"]}
        for row in rows
    ]
    result = run(tmp_path, "webqa", predictions, references)
    image, text = result["by_modality"]["image"], result["by_modality"]["text"]
    assert (result["questions"], image["questions"], text["questions"]) == (4966, 2511, 2455)
    published = json.loads((folder / "published_scores.json").read_text(encoding="utf-8"))["end2end_x101fpn"]
    assert image["retrieval_f1"] == pytest.approx(published["img"]["retrieval_f1"], abs=2e-4)
    assert text["retrieval_f1"] == pytest.approx(published["txt"]["retrieval_f1"], abs=2e-4)
    assert image["retrieval_f1_micro"] == pytest.approx(0.67218, abs=1e-5)
    assert text["retrieval_f1_micro"] == pytest.approx(0.68099, abs=1e-5)
    assert image["qa_acc"] == pytest.approx(published["img"]["Acc"], abs=0.002)
    assert result["counts"]["qa_acc"] == 2511 and "qa_acc" not in text
