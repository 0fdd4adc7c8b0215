"""Small data sets with a knowledge base made for them: photographs of groceries, flags of countries."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.flags import read as read_flags
from ra_blip.data.readers.grocery import read as read_grocery
from ra_blip.data.readers.reading import Reading
from ra_blip.records import Item, Question


class SmallDataset(Dataset):
    """A data set that is read as a whole when it is first asked for. Its first fault is an error, strict or not."""

    files: ClassVar[tuple[str, ...]]  # what it is recognised by

    @abc.abstractmethod
    def read(self) -> Reading:
        """All of it. Raises :class:`DataError` with file and line."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By its files, all of which it needs."""
        return all((root / file).is_file() for file in cls.files)

    @property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``test``."""
        return ("train", "test")

    def items(self) -> Iterator[Item]:
        """The knowledge base."""
        yield from self._reading.items

    def questions(self, split: str) -> Iterator[Question]:
        """The questions of one split."""
        self.require_split(split)
        yield from self._reading.train_questions if split == "train" else self._reading.questions

    @functools.cached_property
    def _reading(self) -> Reading:
        return self.read()


class Grocery(SmallDataset):
    """The Grocery Store repository as cloned, or its folder ``dataset``; see :mod:`ra_blip.data.readers.grocery`."""

    name = "grocery"
    files = ("classes.csv", "train.txt", "val.txt")

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By its files, in the folder or in ``dataset`` below it."""
        return super().recognises(root) or super().recognises(root / "dataset")

    def read(self) -> Reading:
        """With the facts that are usually asked for, and seed 0."""
        return read_grocery(self.root if super().recognises(self.root) else self.root / "dataset")


class Flags(SmallDataset):
    """Country flags with facts and passages; see :mod:`ra_blip.data.readers.flags`."""

    name = "flags"
    files = ("entities.jsonl",)

    def read(self) -> Reading:
        """With seed 0."""
        return read_flags(self.root)
