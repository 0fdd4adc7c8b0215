"""VQA accuracy (Antol et al. 2015) and A-OKVQA's two scores (Schwenk et al. 2022), as their programs compute them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS.split())}
# Where a contraction has several apostrophes, the table of the VQA program mends the loss of any one of them.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTED.split() for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}  # the other way round, in the original


def without_punctuation(answer: str) -> str:
    """The first step of VQA's normalisation.

    A mark is deleted where it stands next to a blank anywhere in the answer, or where the answer holds digit, comma,
    digit; elsewhere it becomes a blank. A full stop not followed by a digit is deleted, at most 32 of them (a flag
    that the original passes as a count). ``: ' $ % &`` stay.
    """
    text = answer
    number = re.search(r"\d,\d", answer)
    for mark in _MARKS:
        apart = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if apart or number else " ")
    return re.sub(r"\.(?!\d)", "", text, count=32)


def normalise(answer: str) -> str:
    """What VQA makes of a prediction: no punctuation, lower case, small numbers as digits, no articles, apostrophes."""
    plain = without_punctuation(re.sub(r"[\n\t]", " ", answer).strip())
    words = [DIGITS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy with leave-one-out: the mean, over the annotators, of min(1, equal answers of the others / 3).

    With ten answers 1, 2, 3 and 4 equal ones give 0.3, 0.6, 0.9 and 1. The answers lose their punctuation, and only
    where they are not all equal, but neither their capitals nor their articles: the prediction "a dog" scores 0
    against ten times "a dog", because it alone has lost its article.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one answer")
    wanted = [without_punctuation(one) for one in answers] if len(set(answers)) > 1 else answers
    count = list(wanted).count(normalise(prediction))
    total = count * min(1.0, (count - 1) / 3) + (len(answers) - count) * min(1.0, count / 3)
    return total / len(answers) if count else 0.0


def direct_answer(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's direct answer: min(1, equal answers / 3), strings compared as they stand."""
    return min(1.0, list(answers).count(prediction) / 3)


def multiple_choice(prediction: str, choice: str) -> float:
    """A-OKVQA's multiple choice: whether the prediction is the right choice, compared as it stands.

    The official program leaves questions marked ``difficult_direct_answer`` out of this score, where the paper leaves
    them out of the direct answers. Here nothing is left out: which questions are scored is the caller's choice.
    """
    return float(prediction == choice)
