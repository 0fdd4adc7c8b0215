"""Encyclopedic-VQA's score (Mensink et al. 2023): exact match, and where that fails a model of answer equivalence.

That model (BEM, Bulian et al. 2022) is handed in as a function; without one the score is exact match alone, and has to
be reported as such.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from ra_blip.evaluation.metrics.vqa import CONTRACTIONS, DIGITS

KINDS = ("templated", "automatic", "multi_answer", "2_hop")
# question, reference, prediction -> whether they say the same; BEM's rule is a probability of at least 0.5
Equivalent = Callable[[str, str, str], bool]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + "\u2018\u2019\u00b4")
_WORDS = {**DIGITS, **dict.fromkeys(("entailment", "true"), "yes"), **dict.fromkeys(("contradiction", "false"), "no")}


def normalise(answer: str) -> str:
    """Lower case without punctuation, articles and "the answer is"; small numbers as digits, true and false as yes, no.

    T5's ``<extra_id_0>`` in front is taken off. Tables of numbers and contractions are those of VQA.
    """
    text = re.sub(r"[\n\t]", " ", answer.lower()).strip()
    if text.startswith("<extra_id_0> "):
        text = text.replace("<extra_id_0> ", "")
    plain = re.sub(r"\b(the answer is|a|an|the)\b", " ", text.translate(_NO_PUNCTUATION))
    numbered = (_WORDS.get(word, word) for word in plain.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered)


def exact_match(prediction: str, references: Sequence[str], kind: str = "automatic") -> float:
    """1.0 where the prediction equals a reference, else 0.0.

    A reference of a ``multi_answer`` question holds its members between ``&&``, and the prediction is cut at commas,
    "and" and "&": there, sets whose intersection is half of their union are equal.

    Args:
        prediction: the answer to judge.
        references: the answers of the annotators.
        kind: one of :data:`KINDS`.

    Raises:
        ValueError: an unknown kind, no references, or one that normalises to nothing.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if not references:
        raise ValueError("exact match needs at least one reference")
    listed = prediction.replace(" and ", ",").replace(" & ", ",")
    guess = _members(listed, ",") if kind == "multi_answer" else {normalise(prediction)}
    return float(max(_overlap(guess, reference, kind) for reference in references) >= 0.5)


def accuracy(
    question: str, prediction: str, references: Sequence[str], kind: str, equivalent: Equivalent | None = None
) -> float:
    """The data set's score: exact match, else whether the model of equivalence accepts any reference.

    Raises:
        ValueError: as :func:`exact_match`.
    """
    exact = exact_match(prediction, references, kind)
    if exact or equivalent is None:
        return exact
    shown = [one.replace("&&", ",") if kind == "multi_answer" else one for one in references]
    return float(any(equivalent(question, reference, prediction) for reference in shown))


def _overlap(guess: set[str], reference: str, kind: str) -> float:
    wanted = _members(reference, "&&") if kind == "multi_answer" else {normalise(reference)} - {""}
    if not wanted:
        raise ValueError(f"reference {reference!r} holds nothing but punctuation and articles")
    return len(guess & wanted) / len(guess | wanted)


def _members(text: str, separator: str) -> set[str]:
    return {normalise(part) for part in text.split(separator)} - {""}
