"""Metrics against values by hand, and intervals against the binomial."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ra_blip.evaluation.metrics.answers import contains, exact_match, normalise, token_f1
from ra_blip.evaluation.metrics.intervals import bootstrap, paired
from ra_blip.evaluation.metrics.retrieval import ndcg, recall, reciprocal_rank


def test_retrieval_by_hand() -> None:
    found = ["a", "b", "c", "d", "e"]
    gold = ("c", "e", "z")
    assert [recall(found, gold, k) for k in (1, 2, 3, 5, 9)] == [0, 0, 1 / 3, 2 / 3, 2 / 3]
    assert [reciprocal_rank(found, gold, k) for k in (2, 3, 10)] == [0, 1 / 3, 1 / 3]
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg(found, gold, 5) == pytest.approx((1 / 2 + 1 / math.log2(6)) / best)
    assert ndcg(["c", "z", "e"], gold, 10) == pytest.approx(1)
    assert ndcg(["c"], gold, 1) == 1
    assert recall([], gold, 5) == reciprocal_rank([], gold, 5) == ndcg([], gold, 5) == 0


def test_an_id_listed_twice_counts_once() -> None:
    assert recall(["a", "a", "b"], ("a", "b"), 2) == 1
    assert reciprocal_rank(["a", "a", "b"], ("b",), 2) == 1 / 2
    assert ndcg(["a", "a", "a"], ("a",), 3) == 1


@pytest.mark.parametrize("metric", [recall, reciprocal_rank, ndcg])
def test_no_gold_is_an_error(metric: object) -> None:
    with pytest.raises(ValueError, match="gold"):
        metric(["a"], (), 1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Red, house.", "red house"),
        ("an apple a day", "apple day"),
        ("A", "a"),
        ("the", "the"),
        ("«Straße»", "strasse"),
        ("Theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("1,842", "1842"),
        ("  ", ""),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_answers_by_hand() -> None:
    assert exact_match("Red and blue.", ("the red and blue",)) == 1
    assert exact_match("blue and red", ("red and blue", "blue, red")) == 0
    assert exact_match("A", ("the",)) == 0
    assert exact_match("x", ()) == token_f1("x", ()) == 0
    assert token_f1("red red blue", ("red blue green",)) == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert token_f1("big red", ("green", "the red")) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert token_f1("", ("red",)) == 0


def test_an_answer_in_the_prediction_stands_there_in_whole_words() -> None:
    assert contains("It was the Red  House, I think.", ("blue", "red house")) == 1
    assert contains("a redhouse", ("red",)) == contains("red big house", ("red house",)) == 0
    assert contains("anything", ("",)) == contains("", ("red",)) == contains("x", ()) == 0


def test_bootstrap_agrees_with_the_binomial() -> None:
    values = [1.0] * 140 + [0.0] * 60
    low, high = bootstrap(values, seed=3, samples=20_000)
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 200)  # normal approximation, good to a grid step at n = 200
    assert low == pytest.approx(0.7 - half, abs=0.006) and high == pytest.approx(0.7 + half, abs=0.006)
    assert bootstrap(values, seed=3, samples=20_000) == (low, high)
    narrow = bootstrap(values, seed=3, level=0.5)
    assert low < narrow[0] < 0.7 < narrow[1] < high
    assert bootstrap([1.0] * 5) == (1, 1) and bootstrap([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = bootstrap((rng.random(100) < 0.4).astype(float).tolist(), seed=trial, samples=400)
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_paired() -> None:
    assert paired([1, 0, 1, 1], [0, 1, 0, 1]) == (2, 1)
    assert paired([], []) == (0, 0)
    with pytest.raises(ValueError, match="shorter"):
        paired([1], [])
