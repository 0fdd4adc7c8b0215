"""CIDEr-D, BLEU and ROUGE-L of captions, over word lists, as the COCO caption evaluation computes them.

The published package, pycocoevalcap, weighs 100 MB (METEOR and SPICE in Java) and needs Java for its words; its scorers
are a few lines of counting each. These equal them to 1e-9 on equal words, see :mod:`.caption_tokens` for the words.
METEOR and SPICE are not computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]
Gram = tuple[str, ...]
NGrams = Counter[Gram]
ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # of CIDEr-D's penalty on differing lengths
_BETA = 1.2  # weight of recall in ROUGE-L


def cider(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of every picture (Vedantam et al. 2015), 0..10; the mean is what COCO reports as CIDEr.

    The weight of an n-gram comes from the number of pictures here whose references hold it, so that a score belongs to
    its set: one picture alone scores 0, and a subset cannot be compared with the whole.

    Raises:
        ValueError: a picture without references, or not one prediction for each picture.
    """
    counted = [[_ngrams(one) for one in many] for many in references]
    pictures = Counter(gram for many in counted for gram in set().union(*many))
    rarity = {gram: math.log(len(counted) / count) for gram, count in pictures.items()}
    scores = []
    for words, many in zip(predictions, counted, strict=True):
        if not many:
            raise ValueError("CIDEr needs at least one reference for every picture")
        ours = _ngrams(words)
        scores.append(10 * sum(_similarity(ours, one, rarity, len(counted)) for one in many) / len(many))
    return scores


def bleu(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the whole set (Papineni et al. 2002), 0..1: counts are pooled before they are divided.

    A prediction's length is held against the closest reference, the shorter of two equally close ones.

    Raises:
        ValueError: a picture without references, or not one prediction for each picture.
    """
    length = wanted_length = 0
    correct, guessed = [0] * len(ORDERS), [0] * len(ORDERS)
    for words, many in zip(predictions, references, strict=True):
        if not many:
            raise ValueError("BLEU needs at least one reference for every picture")
        best: NGrams = Counter()
        for one in many:
            best |= _ngrams(one)
        for gram, count in (_ngrams(words) & best).items():
            correct[len(gram) - 1] += count
        for place, order in enumerate(ORDERS):
            guessed[place] += max(0, len(words) - order + 1)
        length += len(words)
        wanted_length += min((abs(len(one) - len(words)), len(one)) for one in many)[1]
    # the tiny numbers are the original's, against division by zero
    ratio = (length + 1e-15) / (wanted_length + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precisions = [(right + 1e-15) / (all_ + 1e-9) for right, all_ in zip(correct, guessed, strict=True)]
    return [penalty * math.prod(precisions[:order]) ** (1 / order) for order in ORDERS]


def rouge_l(prediction: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one picture (Lin 2004), 0..1: precision and recall are each the best over the references.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference")
    common = [_common_subsequence(prediction, one) for one in references]
    precision = max(common) / max(1, len(prediction))
    recall = max(shared / max(1, len(one)) for shared, one in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _ngrams(words: Words) -> NGrams:
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _similarity(ours: NGrams, theirs: NGrams, rarity: dict[Gram, float], pictures: int) -> float:
    """Mean over n of the clipped cosine between two weighted counts, times a penalty on the difference in length."""
    # what no reference holds is as rare as what one holds
    mine = {gram: count * rarity.get(gram, math.log(pictures)) for gram, count in ours.items()}
    wanted = {gram: count * rarity[gram] for gram, count in theirs.items()}
    total = 0.0
    for order in ORDERS:
        norm = _norm(mine, order) * _norm(wanted, order)
        shared = (gram for gram in mine.keys() & wanted.keys() if len(gram) == order)
        total += sum(min(mine[gram], wanted[gram]) * wanted[gram] for gram in shared) / norm if norm else 0.0
    apart = _bigrams(ours) - _bigrams(theirs)
    return total / len(ORDERS) * math.exp(-(apart**2) / (2 * _SIGMA**2))


def _norm(weights: dict[Gram, float], order: int) -> float:
    return math.sqrt(sum(weight**2 for gram, weight in weights.items() if len(gram) == order))


def _bigrams(counts: NGrams) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)  # the original's measure of length


def _common_subsequence(one: Words, other: Words) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        above = row
        row = [0]
        for place, candidate in enumerate(other):
            row.append(above[place] + 1 if word == candidate else max(above[place + 1], row[place]))
    return row[-1]
