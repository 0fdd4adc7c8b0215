"""InfoSeek's scores against the official program's values and by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ra_blip.evaluation.metrics.infoseek import exact, harmonic_mean, numerical, parse_number


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the goldens are absent")
def test_every_golden_case_is_equal() -> None:
    path = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "metric_goldens" / "infoseek.json"
    goldens = json.loads(path.read_text(encoding="utf-8"))
    assert len(goldens["cases"]) == 10
    for case in goldens["cases"]:
        if case["kind"] == "numerical":
            low, high = case["answer_range"]
            parsed = parse_number(case["pred"])
            assert (list(parsed) if isinstance(parsed, tuple) else parsed) == case["parsed"]
            assert numerical(case["pred"], (low, high)) == case["score"]
        else:
            assert exact(case["pred"], case["answers"]) == case["score"]
    assert [round(harmonic_mean(*one["scores"]), 4) for one in goldens["final"]] == [
        one["harmonic"] for one in goldens["final"]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9-10 m", (9, 10)),
        ("10 to 9", 10),  # not ascending: the first
        ("1, 2 and 3", (1, 2)),
        ("-5", -5),
        ("about -5-7", (-5, 7)),
        ("1,234,567.5", 1234567.5),
        ("2e3", 2000),
        (".5", 5),  # a leading point is lost
        ("-.5.2", -0.5),
        ("none", (0, 0)),
    ],
)
def test_parse_number(text: str, expected: float | tuple[float, float]) -> None:
    assert parse_number(text) == expected


def test_numerical_by_hand() -> None:
    assert [numerical(one, 100) for one in ("90", "110", "89.9", "111")] == [1, 1, 0, 0]
    assert [numerical(one, (10, 20)) for one in ("10", "20", "21", "no idea")] == [1, 1, 0, 0]
    # 12-18 lies inside; 5-20 shares 10 of 15, 0-20 just half; 15-30 shares 5 of 20
    assert [numerical(one, (10, 20)) for one in ("12-18", "5-20", "0-20", "15-30")] == [1, 1, 1, 0]


def test_strings_and_final_score_by_hand() -> None:
    assert exact("The  Tower.", ["bridge", "tower"]) == 1 and exact("towers", ["tower"]) == 0
    assert harmonic_mean(0.2, 0.3) == pytest.approx(0.24)
    assert harmonic_mean(0, 0.5) == pytest.approx(2e-12)
