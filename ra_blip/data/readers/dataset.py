"""What every reader gives: one data set where it lies, as streams of records, and what had to be left out."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.id_map import IdMap
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

SHOWN = 100  # problems of each kind that are kept word for word; the rest are counted


@dataclasses.dataclass
class Problems:
    """What is wrong with a data set: every kind counted, the first ones word for word.

    A problem that is met again, because a file is read for the questions and again for the references, counts once.

    Args:
        strict: raise the first problem instead of counting it.
    """

    strict: bool = False
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    messages: list[str] = dataclasses.field(default_factory=list)
    _known: IdMap = dataclasses.field(default_factory=IdMap, repr=False)

    def report(self, kind: str, where: str, message: str) -> None:
        """Note one problem; the record that has it is left out by the caller.

        Args:
            kind: what it is in two or three words, the same for all of its kind, e.g. ``missing image``.
            where: file and line, or file and record id.
            message: what is wrong with this one.

        Raises:
            DataError: this object is strict.
        """
        if self.strict:
            raise DataError(f"{where}: {message}")
        number = len(self._known)
        if self._known.setdefault(f"{kind}\n{where}\n{message}", number) != number:
            return
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.messages.append(f"{where}: {message}")

    @property
    def total(self) -> int:
        """How many problems were reported."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line: ``12 left out: 10 missing image, 2 duplicate id``; empty where all is well."""
        parts = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.most_common())
        return f"{self.total:,} left out: {parts}" if parts else ""


class Dataset(abc.ABC):
    """One data set on disk. Nothing is read before it is asked for, and no file is held whole that could be large.

    A picture is named by a string that :func:`ra_blip.images.open_image` opens: a path, or a place in a container,
    ``shard.tar#member`` and ``imgs.tsv#image id``.

    Args:
        root: the data set's folder.
        strict: raise at the first malformed record; otherwise it is left out and counted in :attr:`problems`.
    """

    name: ClassVar[str]

    def __init__(self, root: str | Path, strict: bool = False) -> None:
        self.root = Path(root)
        self.problems = Problems(strict)

    @classmethod
    @abc.abstractmethod
    def recognises(cls, root: Path) -> bool:
        """Whether ``root`` holds this layout, from file names alone (a few ``stat`` calls)."""

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that are there, of ``train``, ``val``, ``test``."""

    @abc.abstractmethod
    def items(self) -> Iterator[Item]:
        """The knowledge base: texts, pictures and captioned pictures. Raises :class:`DataError` for a missing file."""

    @abc.abstractmethod
    def questions(self, split: str) -> Iterator[Question]:
        """The questions of one split, with golds and negatives where the data set names them.

        Raises:
            DataError: no such split here (naming those that are), or a missing file.
        """

    def references(self, split: str) -> Iterator[dict[str, Any]]:
        """What ``ra-blip score`` compares predictions of a split with, one object a question."""
        for question in self.questions(split):
            yield {"id": question.id, "answers": list(question.answers), "gold": list(question.gold)}

    def require_split(self, split: str) -> None:
        """Raise :class:`DataError` for a split that is not here."""
        if split not in self.splits:
            raise DataError(
                f"{self.root}: {self.name} has no split {split!r} here; there are: {', '.join(self.splits)}"
            )


class SplitFiles(Dataset):
    """A data set with a file for each split."""

    files: ClassVar[dict[str, str]]
    """The file of each split, relative to the root."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether the file of one of the splits is there."""
        return any(cls._path(root, split).is_file() for split in cls.files)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose file is there."""
        return tuple(split for split in self.files if self._path(self.root, split).is_file())

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        """The file of a split; of several places, the first where it is."""
        return root / cls.files[split]
