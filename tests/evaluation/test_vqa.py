"""VQA accuracy and A-OKVQA's scores against the official program's values and by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ra_blip.evaluation.metrics.vqa import (
    CONTRACTIONS,
    direct_answer,
    multiple_choice,
    normalise,
    vqa_accuracy,
    without_punctuation,
)


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the goldens are absent")
def test_every_golden_case_is_equal() -> None:
    path = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "metric_goldens" / "vqa_accuracy.json"
    goldens = json.loads(path.read_text(encoding="utf-8"))
    assert len(goldens["normalisation"]) == 17 and len(goldens["cases"]) == 40
    for case in goldens["normalisation"]:
        assert (without_punctuation(case["text"]), normalise(case["text"])) == (case["punct"], case["full"])
    found = [round(100 * vqa_accuracy(case["pred"], case["answers"]), 2) for case in goldens["cases"]]
    assert found == [case["acc"] for case in goldens["cases"]]


@pytest.mark.parametrize(("equal", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_leave_one_out_with_ten_answers(equal: int, expected: float) -> None:
    answers = ["cat"] * equal + [f"other{i}" for i in range(10 - equal)]
    assert vqa_accuracy("Cat.", answers) == pytest.approx(expected)


def test_only_the_prediction_is_normalised_in_full() -> None:
    assert vqa_accuracy("a dog", ["a dog"] * 10) == 0
    assert vqa_accuracy("dog", ["dog"] * 10) == 1
    assert vqa_accuracy("yes", ["yes!"] * 10) == 0  # all equal: nothing is done to the answers
    assert vqa_accuracy("yes", ["yes."] * 9 + ["no"]) == 1
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("x", [])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ten dogs\n", "10 dogs"),
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("1,000-2", "10002"),  # digit, comma, digit: every mark is deleted
        ("3.5 ft.", "3.5 ft"),
        ("couldnt", "couldn't"),
        ("couldntve", "couldntve"),  # two apostrophes lost are not mended
        ("it's 5:30", "it's 5:30"),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_contractions_mend_one_lost_apostrophe() -> None:
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert CONTRACTIONS["somebody'd"] == "somebodyd" and "let's" not in CONTRACTIONS
    assert len(CONTRACTIONS) == 114  # of the original's, those that change a lower-case word


def test_a_okvqa_compares_as_it_stands() -> None:
    answers = ["cat", "cat", "Cat", "dog"]
    assert [direct_answer(one, answers) for one in ("cat", "Cat", "cow")] == pytest.approx([2 / 3, 1 / 3, 0])
    assert direct_answer("cat", ["cat"] * 4) == 1
    assert (multiple_choice("cat", "cat"), multiple_choice("Cat", "cat")) == (1, 0)
