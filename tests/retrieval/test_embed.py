"""Batching, order, shards that survive a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import RetrievalError
from ra_blip.records import Item
from ra_blip.retrieval.embed import batches, embed_items, embed_questions, embed_to_shards
from tests.fakes import FakeModel, world


class Killed(Exception):
    """Stands for a kill."""


class DyingModel(FakeModel):
    """Dies after a number of encoder calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def encode_items(self, items: Sequence[Item]) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().encode_items(items)


def test_batches_hold_one_kind_and_cover_every_position_once() -> None:
    keys = [("text", 9), ("image", 0), ("text", 2), ("text", 5), ("image", 0), ("text", 1)]
    made = batches(keys, 2)
    assert made == [[1, 4], [5, 2], [3, 0]]


def test_order_is_restored(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    one_by_one = np.stack([model.encode_items([item])[0] for item in items])
    np.testing.assert_array_equal(embed_items(items, model, batch_size=4), one_by_one)
    asked = np.stack([model.encode_question([question])[0] for question in questions])
    np.testing.assert_array_equal(embed_questions(questions, model, batch_size=3), asked)


def test_vector_that_is_not_a_number_names_the_item(tmp_path: Path) -> None:
    class Broken(FakeModel):
        def encode_items(self, items: Sequence[Item]) -> Any:
            vectors = super().encode_items(items)
            vectors[[item.id == "sadoti.place" for item in items]] = np.nan
            return vectors

    with pytest.raises(RetrievalError, match=r"sadoti\.place"):
        embed_items(world(tmp_path)[0], Broken(), 8)


@pytest.mark.parametrize("calls", [0, 1, 3, 5])
def test_killed_run_continues_at_the_next_shard(tmp_path: Path, calls: int) -> None:
    items = [Item(f"i{n}", text=f"word{n} other{n % 3}") for n in range(30)]
    expected = embed_items(items, FakeModel())
    folder = tmp_path / "shards"
    with pytest.raises(Killed):
        embed_to_shards(items, DyingModel(calls), folder, batch_size=5, shard_size=5)
    assert not (folder / "manifest.json").exists()
    model = FakeModel()
    np.testing.assert_array_equal(embed_to_shards(items, model, folder, 5, 5), expected)
    assert len(model.calls) == 6 - calls
    assert json.loads((folder / "ids.json").read_text()) == [item.id for item in items]
    again = FakeModel()
    np.testing.assert_array_equal(embed_to_shards(items, again, folder, 5, 5), expected)
    assert again.calls == []


def test_damaged_or_foreign_shards_are_made_again(tmp_path: Path) -> None:
    items = [Item(f"i{n}", text=f"word{n}") for n in range(10)]
    embed_to_shards(items, FakeModel(), tmp_path, 5, 5)
    damaged = tmp_path / "vectors-00001.npy"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    model = FakeModel()
    np.testing.assert_array_equal(embed_to_shards(items, model, tmp_path, 5, 5), embed_items(items, FakeModel()))
    assert len(model.calls) == 1
    other = FakeModel(seed=1)
    np.testing.assert_array_equal(embed_to_shards(items, other, tmp_path, 5, 5), embed_items(items, FakeModel(seed=1)))
    items[3] = dataclasses.replace(items[3], text="changed")
    changed = embed_to_shards(items, FakeModel(seed=1), tmp_path, 5, 5)
    np.testing.assert_array_equal(changed, embed_items(items, FakeModel(seed=1)))
    assert json.loads((tmp_path / "manifest.json").read_text())["count"] == 10


def test_a_picture_replaced_in_a_container_is_embedded_again(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(bytes(1024))
    items, folder, calls = [Item("a", image=f"{tmp_path / 'shard.tar'}#7.png")], tmp_path / "shards", []
    for content in (bytes(1024), bytes(1024), bytes(2048)):
        if (tmp_path / "shard.tar").read_bytes() != content:
            (tmp_path / "shard.tar").write_bytes(content)
        model = FakeModel()
        embed_to_shards(items, model, folder)
        calls.append(len(model.calls))
    assert calls == [1, 0, 1]
