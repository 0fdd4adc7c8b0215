"""Encyclopedic-VQA's exact match and its use of an equivalence model, by hand."""

from __future__ import annotations

import pytest

from ra_blip.evaluation.metrics.encyclopedic import accuracy, exact_match, normalise


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The answer is: two dogs.", "2 dogs"),
        ("<extra_id_0> True", "yes"),
        ("St. Peter\u2019s", "st peters"),
        ("dont", "don't"),
        ("rock-n-roll\n", "rocknroll"),
        ("A, the", ""),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_exact_match_by_hand() -> None:
    assert exact_match("an Oak", ["elm", "oak."]) == 1
    assert exact_match("oaks", ["oak"], "2_hop") == 0
    many = ["red && blue && green"]
    assert exact_match("Blue and the red", many, "multi_answer") == 1  # 2 of 3
    assert exact_match("red & black", many, "multi_answer") == 0  # 1 of 4
    assert exact_match("red, black", [*many, "red"], "multi_answer") == 1  # half of the second reference's union
    assert exact_match("", ["oak"]) == exact_match("", many, "multi_answer") == 0


def test_equivalence_is_asked_only_where_exact_match_fails() -> None:
    asked = []

    def equivalent(question: str, reference: str, prediction: str) -> bool:
        asked.append((question, reference, prediction))
        return "oak" in prediction

    assert accuracy("Which tree?", "oak", ["oak"], "automatic", equivalent) == 1 and asked == []
    assert accuracy("Which tree?", "an oak tree", ["oak"], "automatic") == 0
    assert accuracy("Which tree?", "an oak tree", ["elm", "oak"], "automatic", equivalent) == 1
    assert accuracy("Which?", "x", ["a1&&b"], "multi_answer", equivalent) == 0
    assert asked == [("Which tree?", "elm", "an oak tree"), ("Which?", "a1,b", "x")]


@pytest.mark.parametrize(
    ("references", "kind", "message"),
    [([], "automatic", "at least one"), (["the"], "automatic", "nothing but"), (["x"], "other", "not one of")],
)
def test_bad_references_are_errors(references: list[str], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_match("x", references, kind)
