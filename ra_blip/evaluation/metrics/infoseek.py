"""InfoSeek's scores (Chen et al. 2023), as the official ``infoseek_eval.py`` computes them.

Scores are 0..1 here, where the program prints percentages rounded to two decimals.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

Interval = tuple[float, float]
_NUMBER = re.compile(r"[-+]?[.]?\d+(?:,\d\d\d)*[.]?\d*(?:[eE][-+]?\d+)?")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles, single blanks; an answer of nothing else becomes empty."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact(prediction: str, answers: Sequence[str]) -> float:
    """String and time questions: 1.0 where the normalised prediction equals a normalised answer, else 0.0."""
    return float(normalise(prediction) in {normalise(one) for one in answers})


def parse_number(text: str) -> float | Interval:
    """The first number of a text, or its first two as an interval where they ascend; (0, 0) where there is none.

    A leading point is lost (".5" is 5), as in the original.
    """
    found = [one.replace(",", "").strip(".") for one in _NUMBER.findall(re.sub(r"(?<=\d)-", " - ", text))]
    # "-.5.2" has two points, over which the original stumbles
    numbers = [float(one.rpartition(".")[0] if one.count(".") > 1 else one) for one in found[:2]]
    if not numbers:
        return 0.0, 0.0
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] <= numbers[1] else numbers[0]


def numerical(prediction: str, answer: float | Interval) -> float:
    """Numerical questions, against an interval, or a number that stands for 10 % on either side of it.

    A predicted number must lie in the interval. A predicted interval must lie in it whole, or overlap it by half of
    what both cover together.
    """
    low, high = answer if isinstance(answer, tuple) else (answer * 0.9, answer * 1.1)
    guess = parse_number(prediction)
    if not isinstance(guess, tuple):
        return float(low <= guess <= high)
    if low <= guess[0] and guess[1] <= high:
        return 1.0
    overlap = max(0.0, min(guess[1], high) - max(guess[0], low))
    union = (guess[1] - guess[0] + 1e-12) + (high - low + 1e-12) - overlap
    return float(union != 0 and overlap / union >= 0.5 - 1e-12)


def harmonic_mean(*scores: float) -> float:
    """InfoSeek's final score, of the splits ``unseen_question`` and ``unseen_entity``; a score of 0 counts as 1e-12."""
    return len(scores) / sum(1 / (score or 1e-12) for score in scores)
