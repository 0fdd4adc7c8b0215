from __future__ import annotations

import random

import pytest

from ra_blip.data import id_map
from ra_blip.data.id_map import IdMap


def test_it_is_a_dictionary_that_keeps_the_first_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_map, "PENDING", 7)  # so that ids are merged often
    draw = random.Random(0)
    ours, theirs = IdMap(), dict[str, int]()
    for number in range(500):
        name = f"id {draw.randrange(200)}"
        assert ours.get(name) == theirs.get(name)
        assert (name in ours) == (name in theirs)
        assert ours.setdefault(name, number) == theirs.setdefault(name, number)
        assert len(ours) == len(theirs)
    assert ours.get("none") is None and "none" not in ours
