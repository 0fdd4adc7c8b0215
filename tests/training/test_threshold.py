from __future__ import annotations

import pytest

from ra_blip.training.threshold import crossing


def test_curves_that_meet_in_a_stretch_cross_in_its_middle() -> None:
    # t in (0.4, 0.8] keeps 2 of 3 right, t in (0.2, 0.6] leaves out 2 of 3 wrong: equal from 0.41 to 0.60
    assert crossing([0.9, 0.8, 0.4], [0.1, 0.2, 0.6]) == pytest.approx(0.505)
    assert crossing([0.9], [0.1]) == pytest.approx(0.505)  # both are whole from 0.11 to 0.90: (0.11 + 0.90) / 2


def test_curves_that_jump_past_each_other_are_interpolated() -> None:
    # kept: 1 up to 0.3, then 1/2 up to 0.7; left out: 0 up to 0.3, then 1. At 0.30 the gap is -1, at 0.31 it is 1/2
    assert crossing([0.3, 0.7], [0.3]) == pytest.approx(0.30 + 0.01 * 1 / 1.5)


def test_there_is_no_crossing_without_scores_or_where_all_are_sure() -> None:
    assert crossing([], [0.1]) is None and crossing([0.9], []) is None
    assert crossing([1.0, 1.0], [1.0]) is None, "nothing is left out, whatever the threshold"


def test_threshold_follows_a_shift_of_all_scores() -> None:
    right, wrong = [0.5, 0.6, 0.7], [0.2, 0.3, 0.55]
    moved = crossing([score + 0.2 for score in right], [score + 0.2 for score in wrong])
    here = crossing(right, wrong)
    assert here is not None and moved == pytest.approx(here + 0.2)
