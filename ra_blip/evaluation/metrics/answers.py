"""Short-answer metrics, with the normalisation of the SQuAD evaluation (Rajpurkar et al. 2016)."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable


@functools.lru_cache(2**16)  # each reference is normalised once for every metric, and many are equal
def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles (a, an, the), single spaces.

    An answer of nothing else (the choice ``A``) keeps its words.
    """
    plain = "".join(c for c in answer.casefold() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    words = plain.split()
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split()) or " ".join(words)


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """1.0 where the normalised prediction equals a normalised reference, else 0.0."""
    return float(normalise(prediction) in {normalise(reference) for reference in references})


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """The highest harmonic mean of word precision and recall against a reference, 0..1."""
    return max((_f1(normalise(prediction).split(), normalise(one).split()) for one in references), default=0.0)


def contains(prediction: str, references: Iterable[str]) -> float:
    """1.0 where the words of a reference stand together somewhere in the prediction, both normalised, else 0.0."""
    said = f" {normalise(prediction)} "
    return float(any(f" {wanted} " in said for one in references if (wanted := normalise(one))))


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))
