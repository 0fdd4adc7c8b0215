"""MultimodalQA's list EM and F1 against the official program's values, by hand, and against all matchings."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest

from ra_blip.evaluation.metrics.multimodalqa import list_em, list_f1, normalise


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the goldens are absent")
def test_every_golden_case_is_equal() -> None:
    path = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "metric_goldens" / "mmqa_list_em_f1.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 95
    found = [(list_em(case["pred"], case["gold"]), list_f1(case["pred"], case["gold"])) for case in cases]
    assert found == [(case["em"], case["f1"]) for case in cases]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The U.S. Senate", "us senate"),
        ("1,234", "1234.0"),
        ("$5", "5.0"),
        ("-3", "3.0"),
        ("1e3", "1000.0"),
        ("twenty-one", "20.0 1.0"),
        ("point", "0.0"),
        ("nan", "nan"),
        ("the", ""),
        ("O'Brien's", "obriens"),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_lists_by_hand() -> None:
    assert list_em(["b", "A  dog"], ["dog", "B"]) == 1
    assert list_em(["Paris", "Paris"], ["Paris"]) == 0  # as a set it would be equal
    assert list_em(["a"], ["the"]) == 1  # both normalise to nothing
    assert list_em([], ["x"]) == list_f1([], ["x"]) == 0
    # New York City: precision 2/3, recall 1, F1 0.8; the second gold answer has no partner
    assert list_f1(["New York City"], ["New York", "Boston"]) == 0.4
    assert list_f1(["red 3"], ["red 4"]) == 0 and list_f1(["red 4"], ["red"]) == 0.67
    assert list_f1(["x", "y", "z"], ["x"]) == 0.33


def test_rounding_is_to_even_on_the_hundredfold() -> None:
    assert list_f1(["x", *["q"] * 7], ["x"]) == 0.12  # 1 / 8
    assert list_f1(["x", "y", "z", *["q"] * 5], ["x", "y", "z"]) == 0.38  # 3 / 8


def test_matching_is_the_best_of_all() -> None:
    rng = random.Random(0)

    def draw() -> list[set[str]]:
        return [set(rng.sample(["red", "blue", "green", "old", "new"], rng.randint(1, 3))) for _ in range(4)]

    for _ in range(100):
        predicted, gold = draw()[: rng.randint(1, 4)], draw()
        orders = itertools.permutations([*predicted, *[set[str]()] * (4 - len(predicted))])
        best = max(sum(2 * len(p & g) / (len(p) + len(g)) for p, g in zip(one, gold, strict=True)) for one in orders)
        found = list_f1([" ".join(one) for one in predicted], [" ".join(one) for one in gold])
        assert found == pytest.approx(best / 4, abs=0.005 + 1e-9)  # two decimals


def test_no_gold_is_an_error() -> None:
    with pytest.raises(ValueError, match="gold"):
        list_f1(["x"], [])
