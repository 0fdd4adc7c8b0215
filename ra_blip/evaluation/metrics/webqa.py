"""WebQA's scores (Chang et al. 2022): retrieval F1, QA-Acc, QA-FL and QA, as the official ``eval_1022.py`` has them.

QA-Acc compares words with the keywords of an answer. Official keywords exist for the questions with picture sources of
train and val, and for all of the hidden test set; elsewhere the file says :data:`NO_KEYWORDS`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from ra_blip.evaluation.metrics import lemmas
from ra_blip.evaluation.metrics.number_words import number_of

Lemmatise = Callable[[list[str]], list[str]]
NO_KEYWORDS = "TBD"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_PUNCTUATION_BUT_POINTS = str.maketrans("", "", string.punctuation.replace(".", ""))

# Whatever is odd about these ("spot", "yes", "bluere") is so in the original.
_COLORS = """
    aqua beige black blonde blue bluere bluewhite bronze brown chrome gold golden gray green grey ivory maroon orange
    orangebrown orangepurple pink purple rainbow red redorange rust silver spot tan teal transparent turquoise violet
    white yellow yes
"""
_SHAPES = """
    arch ball bell bellshaped bow circle circular concave cone conical convex corkscrew crescent crest cross crosse cube
    cuboid curl curve cylinder cylindrical diamond dome domeshape dot flat flower fold fork globe globular h heart
    hexagon hook hoop keyhole obelisk octagon octagonal octogon oval pentagon point pyramid pyramidal rectangle
    rectangular ring round rounded semicircle shamrock slope sphere spherical spiral square star step straight teardrop
    torus triangle triangular tube wavy xs
"""
# category -> the words that count
DOMAINS = {"YesNo": {"yes", "no"}, "color": set(_COLORS.split()), "shape": set(_SHAPES.split())}
MODALITIES = {"text": "text"} | dict.fromkeys(
    ("image", "YesNo", "Others", "choose", "number", "color", "shape"), "image"
)


class Likelihood(Protocol):
    """What QA-FL asks of a language model, see :class:`ra_blip.evaluation.bart_score.BartScore`."""

    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> Sequence[float]:
        """The mean log-probability per token of each target, given the source in the same place."""


def retrieval_f1(found: Collection[str], gold: Collection[str]) -> float:
    """F1 between two sets of ids, 0 where nothing was found; its mean over the questions is the official figure.

    Raises:
        ValueError: no gold.
    """
    if not gold:
        raise ValueError("retrieval F1 needs at least one gold id")
    return 2 * len(set(found) & set(gold)) / (len(set(found)) + len(set(gold)))


def retrieval_f1_micro(pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> float:
    """F1 of the counts pooled over all (found, gold) pairs: what some later work reports under the same name."""
    shared = total = 0
    for found, gold in pairs:
        shared += len(set(found) & set(gold))
        total += len(set(found)) + len(set(gold))
    return 2 * shared / total if total else 0.0


def normalise(text: str, lemmatise: Lemmatise = lemmas.lemmatise) -> list[str]:
    """The words of an answer: lower case, without marks and articles, number words as digits, dictionary forms.

    A point before a digit stays. A single word keeps its article; a single character keeps everything.

    Args:
        text: the answer.
        lemmatise: words to dictionary forms. For that of the original, load spaCy's ``en_core_web_sm`` as ``nlp`` and
            pass ``lambda words: " ".join(token.lemma_ for token in nlp(" ".join(words))).split()``.
    """
    lower = text.lower()
    if len(text.strip()) == 1:
        return _numbered(lower)
    plain = re.sub(r"\.(?!\d)", "", lower.translate(_NO_PUNCTUATION_BUT_POINTS))
    if len(text.split()) > 1:
        plain = re.sub(r"\b(a|an|the)\b", " ", plain)
    return lemmatise(_numbered(plain))


def qa_accuracy(
    predictions: Sequence[str], keywords: str, category: str, lemmatise: Lemmatise = lemmas.lemmatise
) -> float:
    """QA-Acc of one question, 0..1.

    For ``YesNo``, ``color`` and ``shape`` only the words in :data:`DOMAINS` count, each once, and for ``number`` only
    whole numbers ("3.5" does not count): the score is F1, with 1e-5 in its denominator. For every other category it is
    the share of the keywords, repeats included, that the prediction holds. Keywords of which nothing counts score 0.

    Args:
        predictions: one, as in the leaderboard. Of several the mean is taken, and one of them without any overlap
            makes the whole question 0.
        keywords: the key words of the answer.
        category: ``Qcate``.
        lemmatise: see :func:`normalise`.
    """
    wanted = _counted(normalise(keywords, lemmatise), category)
    scores = []
    for prediction in predictions:
        guess = _counted(normalise(prediction, lemmatise), category)
        shared = sum((guess & wanted).values())
        if not shared:
            return 0.0
        precision, recall = shared / sum(guess.values()), shared / sum(wanted.values())
        by_f1 = category in DOMAINS or category == "number"
        scores.append(2 * precision * recall / (precision + recall + 1e-5) if by_f1 else recall)
    return sum(scores) / len(scores) if scores else 0.0


def fluency(predictions: Sequence[str], answers: Sequence[Sequence[str]], likelihood: Likelihood) -> list[float]:
    """QA-FL of every question: how likely the prediction is given an answer, against the answer given itself.

    With s the likelihood per token and a the answers, min(1, max over a of exp(s(a -> prediction)) / exp(s(a -> a))),
    all texts without punctuation (BARTScore, Yuan et al. 2021). QA is the mean of QA-FL times QA-Acc.

    Raises:
        ValueError: a question without answers, or not one prediction for each question.
    """
    sources, targets = [], []
    for prediction, references in zip(predictions, answers, strict=True):
        if not references:
            raise ValueError("QA-FL needs at least one answer")
        for reference in references:
            sources += [_plain(reference)] * 2
            targets += [_plain(prediction), _plain(reference)]
    scores = iter(likelihood(sources, targets))
    return [min(1.0, max(math.exp(next(scores) - next(scores)) for _ in references)) for references in answers]


def _numbered(text: str) -> list[str]:
    numbers = ((word, None if word == "point" else number_of(word)) for word in text.split())
    return [word if number is None else str(number) for word, number in numbers]


def _counted(words: list[str], category: str) -> Counter[str]:
    if category in DOMAINS:
        return Counter(DOMAINS[category] & set(words))
    if category == "number":
        return Counter(str(int(word)) for word in words if _is_whole(word))
    return Counter(words)


def _is_whole(word: str) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True


def _plain(text: str) -> str:
    return " ".join(text.translate(_NO_PUNCTUATION).split())
