"""MultimodalQA's list EM and list F1 (Talmor et al. 2021), to the digit of the official ``baselines/evaluate.py``.

A prediction and a gold answer are lists of strings; the whole gold list is one reference. The program descends from
that of DROP (Dua et al. 2019). Its quirks, kept: a hyphen separates words and so takes the sign off a negative number
("-3" is "3"); number words are read one by one ("twenty one" is not "21", "point" is 0); whatever Python's ``float``
accepts is a number ("nan", "1_000"); two strings that normalise to nothing are equal; a list with an answer twice does
not equal the list with it once; F1 is rounded to two decimals for each question before the mean is taken.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence

import numpy as np

from ra_blip.evaluation.metrics.number_words import number_of

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.lru_cache(2**16)  # EM and F1 both ask for it
def normalise(answer: str) -> str:
    """Lower case, without punctuation and articles, every number in the form of a float ("7" becomes "7.0")."""
    words = (_normalise_word(word.lower()) for word in re.split("[ -]", answer))
    return " ".join(word for word in words if word)


def list_em(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """1.0 where both lists hold the same normalised strings and are equally long, else 0.0."""
    ours, theirs = [normalise(one) for one in prediction], [normalise(one) for one in gold]
    return float(set(ours) == set(theirs) and len(ours) == len(theirs))


def list_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """F1 between the word sets of the strings under the best one-to-one matching, 0..1 in steps of 0.01.

    A pair scores 0 where the gold string has numbers and shares none with the predicted one; a string without a
    partner scores 0.

    Raises:
        ValueError: no gold answer.
    """
    if not gold:
        raise ValueError("list F1 needs at least one gold answer")
    ours = [set(normalise(one).split()) for one in prediction]
    theirs = [set(normalise(one).split()) for one in gold]
    scores = {(i, j): _pair(mine, wanted) for i, wanted in enumerate(theirs) for j, mine in enumerate(ours)}
    slots = np.zeros(max(len(ours), len(theirs)))
    for i, score in _best_matching(scores).items():
        slots[i] = score
    return round(100 * float(np.mean(slots))) / 100  # half to even, as numpy rounds and Python's round does not


def _normalise_word(word: str) -> str:
    if not _is_number(word):
        word = word.translate(_NO_PUNCTUATION)
    if _is_number(word):
        return str(float(word))
    number = number_of(word)
    if number is not None:
        return str(float(number))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", word).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _pair(predicted: set[str], wanted: set[str]) -> float:
    numbers = {word for word in wanted if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    shared = len(predicted & wanted)
    precision = shared / len(predicted) if predicted else 1.0
    recall = shared / len(wanted) if wanted else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _best_matching(scores: dict[tuple[int, int], float]) -> dict[int, float]:
    """Row -> score, for the one-to-one matching of rows and columns with the largest sum."""
    positive = {pair: score for pair, score in scores.items() if score}
    if len(positive) < 2:
        return {row: score for (row, _), score in positive.items()}
    import networkx  # comes with torch; takes a moment to load

    graph = networkx.Graph()
    graph.add_weighted_edges_from((("row", i), ("column", j), score) for (i, j), score in positive.items())
    chosen = (dict(pair) for pair in networkx.max_weight_matching(graph))
    return {pair["row"]: positive[pair["row"], pair["column"]] for pair in chosen}
