"""CIDEr-D, BLEU and ROUGE-L against pycocoevalcap 1.2, whose values stand here, and live where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ra_blip.evaluation.metrics.caption_tokens import tokens
from ra_blip.evaluation.metrics.captions import bleu, cider, rouge_l

REFERENCES = {
    "cat": ["A cat sits on the mat.", "There is a cat on a mat, isn't there?", "A grey cat's mat"],
    "dog": ["Two dogs run in the park.", "A pair of dogs running."],
    "bus": ["A red double-decker bus at 10:30am in the U.S.", "Red bus (parked) near St. Mary's."],
}
PREDICTIONS = {"cat": "A cat on the mat in the U.S.", "dog": "Dogs run.", "bus": "a red red bus"}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [  # what Stanford CoreNLP 3.4.1 and pycocoevalcap's list of punctuation leave of each
        ("A man's dog isn't here; he can't go -- y'all gonna?", "a man 's dog is n't here he ca n't go y' all gon na"),
        ("It's 5:30 p.m. on the U.S. border", "it 's 5:30 p.m. on the u.s. border"),
        ('(near the "old" St. Peter\'s).', "-lrb- near the old st. peter 's -rrb-"),
        ("A T-shirt, 10km run, $5.50, 50% off", "a t-shirt 10km run $ 5.50 50 % off"),
        ("1,000 people, #1, a/c, and/or", "1,000 people # 1 a/c and/or"),
        ("cannot 'tis the 'quoted' word\u2026 em\u2014dash", "can not 't is the quoted word em dash"),
        ("hello!! what?! ok! end.Next A.J. Smith", "hello !! what ?! ok end.next a.j. smith"),
        ("No. 5 is no. AT&T, Q & A, a&b", "no. 5 is no at&t q & a a & b"),
        ("-5 +5 .5 3/4 24/7 '60s the '90s 1960's 5\u00a2", "-5 +5 .5 3/4 24/7 '60s the '90s 1960 's 5 cents"),
        ("they'd've shouldn't've dogs' o'clock ma'am", "they 'd 've should n't 've dogs o'clock ma'am"),
        ("", ""),
    ],
)
def test_tokens(caption: str, expected: str) -> None:
    assert tokens(caption) == expected.split()


def test_scores_equal_pycocoevalcap() -> None:
    ours, wanted = [tokens(one) for one in PREDICTIONS.values()], [list(map(tokens, r)) for r in REFERENCES.values()]
    assert cider(ours, wanted) == pytest.approx([2.2392537762143876, 1.5781707004175867, 0.8645907595456466], rel=1e-9)
    official = [0.46531361245570935, 0.43920012292360106, 0.31553405304825205, 4.297494333892997e-05]
    assert bleu(ours, wanted) == pytest.approx(official, rel=1e-9)
    rouge = [rouge_l(words, many) for words, many in zip(ours, wanted, strict=True)]
    assert rouge == pytest.approx([0.7331730769230769, 0.45864661654135336, 0.3978260869565217], rel=1e-9)


def test_scores_by_hand() -> None:
    one, other = list("abcd"), list("axcd")
    assert cider([one], [[one]]) == [0]  # one picture: log(1 / 1) weighs nothing
    assert cider([one, other[1:2]], [[one], [other]])[0] == pytest.approx(10)  # "a" and "c d" weigh nothing
    assert bleu([one], [[one]]) == pytest.approx([1, 1, 1, 1])
    # 3 of 4 words, 1 of 3 pairs
    assert bleu([one], [[other]])[:2] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 1 / 3)])
    assert bleu([one[:2]], [[one]])[0] == pytest.approx(math.exp(1 - 2))  # half as long
    assert rouge_l(one, [other]) == pytest.approx(3 / 4)  # a c d
    assert cider([[], one], [[one], [other]])[0] == rouge_l([], [one]) == rouge_l(one, [["z"]]) == 0


@pytest.mark.parametrize(
    "metric", [lambda r: cider([["a"]], [r]), lambda r: bleu([["a"]], [r]), lambda r: rouge_l([], r)]
)
def test_no_reference_is_an_error(metric: Callable[[list[list[str]]], object]) -> None:
    with pytest.raises(ValueError, match="reference"):
        metric([])


def coco() -> tuple[list[str], list[list[str]]]:
    """Of each real picture, by id, the first caption as the prediction and the others as references."""
    path = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "coco_free_subset" / "captions.json"
    by_picture: dict[int, list[str]] = {}
    for one in sorted(json.loads(path.read_text(encoding="utf-8"))["annotations"], key=lambda one: one["id"]):
        by_picture.setdefault(one["image_id"], []).append(one["caption"])
    captions = [by_picture[name] for name in sorted(by_picture)]
    return [one[0] for one in captions], [one[1:] for one in captions]


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: COCO's captions are absent")
def test_real_captions_score_as_in_pycocoevalcap() -> None:
    predictions, references = coco()
    assert len(predictions) == 33 and sum(map(len, references)) == 132
    ours, wanted = [tokens(one) for one in predictions], [list(map(tokens, many)) for many in references]
    scores = cider(ours, wanted)
    # made with the package, its Java words included
    assert sum(scores) / 33 == pytest.approx(0.8367007165745556, abs=1e-9)
    official = [0.6511627906957815, 0.45066150270844435, 0.29738533065373685, 0.18100815237254808]
    assert bleu(ours, wanted) == pytest.approx(official, abs=1e-9)
    assert sum(map(rouge_l, ours, wanted)) / 33 == pytest.approx(0.46675829456955137, abs=1e-9)
    if importlib.util.find_spec("pycocoevalcap"):
        from pycocoevalcap.cider.cider import Cider  # type: ignore[import-not-found]

        joined = {i: [" ".join(one) for one in many] for i, many in enumerate(wanted)}
        live = Cider().compute_score(joined, {i: [" ".join(one)] for i, one in enumerate(ours)})[1]
        assert scores == pytest.approx(list(live), abs=1e-9)
