"""Shards that ``ra-blip pack`` wrote, read back as the records that went in."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_blip.data.readers.dataset import Dataset
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

if TYPE_CHECKING:  # it imports this package
    from ra_blip.data.shards import ShardSet


class Packed(Dataset):
    """``manifest.json`` and the tars that it names: items, or the questions of one split.

    Pictures are named where they lie, ``00000.tar#000000012.jpg``. A sample whose bytes are not those that were packed
    is reported as ``damaged shard``; a shard that is missing or has another size is an error.
    """

    name = "packed"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the manifest beside a tar."""
        return (root / "manifest.json").is_file() and any(root.glob("*.tar"))

    @property
    def splits(self) -> tuple[str, ...]:
        """The one that was packed; items of no split are for training."""
        return (self._manifest.get("split") or "train",)

    def items(self) -> Iterator[Item]:
        """The items; none where questions were packed."""
        for number in range(0 if self._holds_questions else len(self._shards)):
            yield from self._read(number, self._shards.items)

    def questions(self, split: str) -> Iterator[Question]:
        """The questions; none where items were packed."""
        self.require_split(split)
        for number in range(len(self._shards) if self._holds_questions else 0):
            yield from self._read(number, self._shards.questions)

    def _read(self, number: int, read: Any) -> list[Any]:
        try:
            found: list[Any] = read(number)
        except DataError as error:
            self.problems.report("damaged shard", f"{self.root}, sample {number}", str(error))
            return []
        return found

    @functools.cached_property
    def _shards(self) -> ShardSet:
        from ra_blip.data.shards import ShardSet

        return ShardSet(self.root)

    @property
    def _manifest(self) -> dict[str, Any]:
        return self._shards.manifest or {}

    @property
    def _holds_questions(self) -> bool:
        return self._manifest.get("kind") == "questions"
