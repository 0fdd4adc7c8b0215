"""WebQA's scores on the published predictions, by hand, and with a stand-in for BART."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ra_blip.evaluation.metrics.lemmas import lemma, lemmatiser
from ra_blip.evaluation.metrics.webqa import fluency, normalise, qa_accuracy, retrieval_f1, retrieval_f1_micro


def plain(words: list[str]) -> list[str]:
    """No dictionary forms."""
    return words


def test_retrieval_by_hand() -> None:
    assert retrieval_f1(["a", "b", "b"], ["b", "c"]) == 0.5
    assert retrieval_f1([], ["b"]) == 0 and retrieval_f1(["b"], ["b"]) == 1
    pairs = [(["a"], ["a"]), (["a", "b", "c"], ["d"])]
    assert retrieval_f1_micro(pairs) == pytest.approx(2 * 1 / 6)  # the mean would be 1 / 2
    assert retrieval_f1_micro([]) == 0
    with pytest.raises(ValueError, match="gold"):
        retrieval_f1(["a"], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Twenty one, dogs!", "20 1 dogs"),
        ("1,000 at 3.5 p.m. in the U.S.", "1000 at 3.5 pm in us"),
        ("007 point zero", "7 point 0"),
        ("A", "a"),  # one character: kept
        ("?", "?"),
        ("the", "the"),  # one word: keeps its article
        ("a b", "b"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text, plain) == expected.split()


def test_an_answer_of_thousands_of_digits_is_a_word() -> None:
    assert normalise("9" * 5_000) == ["9" * 5_000]
    assert qa_accuracy(["9" * 5_000], "9", "number") == 0


def test_lemmas() -> None:
    assert [lemma(word) for word in ("leaves", "is", "standing", "wolves", "red", "qwzx", "1000")] == [
        *("leave", "be", "standing", "wolf", "red", "qwzx", "1000"),
    ]
    assert lemmatiser().startswith("lemminflect ")
    assert normalise("The dogs were Running") == ["dog", "be", "running"]


def test_accuracy_by_category() -> None:
    def score(prediction: str, keywords: str, category: str) -> float:
        return qa_accuracy([prediction], keywords, category, plain)

    assert score("Yes, yes it is not", "Yes.", "YesNo") == pytest.approx(1, abs=1e-5)
    assert score("yes and no", "yes", "YesNo") == pytest.approx(2 * 0.5 * 1 / (1.5 + 1e-5), abs=1e-12)
    assert score("a red and blue bird", "Red, green", "color") == pytest.approx(0.5, abs=1e-5)
    assert score("a red bird", "scarlet", "color") == 0  # not in the list
    assert score("two 2 birds of 3.5", "two", "number") == pytest.approx(2 / 3, abs=1e-5)  # "2" twice, 3.5 is left out
    assert score("the big big cat", "big cat big cat", "Others") == 3 / 4  # a bag, recall only
    assert score("dog", "big cat", "choose") == score("", "cat", "Others") == 0


def test_several_candidates_without_one_overlap_score_nothing() -> None:
    assert qa_accuracy(["red cat", "cat"], "red cat", "Others", plain) == 3 / 4
    assert qa_accuracy(["red cat", "dog"], "red cat", "Others", plain) == 0
    assert qa_accuracy([], "red cat", "Others", plain) == 0


def test_fluency_is_the_likelihood_against_that_of_the_answer() -> None:
    asked: list[tuple[str, str]] = []

    def likelihood(sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        asked.extend(zip(sources, targets, strict=True))
        return [-1.0 if source == target else -abs(len(source) - len(target)) - 1.5 for source, target in asked]

    found = fluency(["A cat.", "big dog"], [["a  cat!", "A cat sat"], ["big dog"]], likelihood)
    assert asked == [
        *[("a cat", "A cat"), ("a cat", "a cat"), ("A cat sat", "A cat"), ("A cat sat", "A cat sat")],
        *[("big dog", "big dog"), ("big dog", "big dog")],
    ]
    assert found == pytest.approx([math.exp(-0.5), 1])
    generous = fluency(["x"], [["y"]], lambda sources, targets: [-0.5, -1.0])
    assert generous == [1]  # never above 1
    with pytest.raises(ValueError, match="answer"):
        fluency(["x"], [[]], likelihood)
