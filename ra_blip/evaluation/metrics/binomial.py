"""Species names: the whole binomial, and the genus alone, as RIR scores SnakeCLEF (arXiv 2405.18740)."""

from __future__ import annotations

import re
from collections.abc import Iterable


def binomial(prediction: str, references: Iterable[str]) -> float:
    """1.0 where the prediction is one of the binomials (``Vipera berus``), case and punctuation aside, else 0.0."""
    said = _words(prediction)
    return float(bool(said) and any(said == _words(one) for one in references))


def genus(prediction: str, references: Iterable[str]) -> float:
    """1.0 where the prediction begins with the genus, the first word, of one of the binomials, else 0.0."""
    said = _words(prediction)[:1]
    return float(bool(said) and any(said == _words(one)[:1] for one in references))


def binomial_recall(prediction: str, references: Iterable[str]) -> float:
    """1.0 where one of the binomials stands somewhere in the prediction, as whole words, else 0.0."""
    return float(any(_holds(_words(prediction), _words(one)) for one in references))


def genus_recall(prediction: str, references: Iterable[str]) -> float:
    """1.0 where the genus of one of the binomials stands somewhere in the prediction, else 0.0."""
    return float(any(_holds(_words(prediction), _words(one)[:1]) for one in references))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.casefold())


def _holds(said: list[str], wanted: list[str]) -> bool:
    return bool(wanted) and any(said[at : at + len(wanted)] == wanted for at in range(len(said)))
