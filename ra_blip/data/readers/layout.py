"""What the readers of raw JSON objects share: how these become records, or are counted where they cannot."""

from __future__ import annotations

import abc
import dataclasses
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ra_blip.data.id_map import IdMap
from ra_blip.data.readers.dataset import SplitFiles
from ra_blip.data.readers.json_stream import elements
from ra_blip.data.readers.raw import Raw, Unusable
from ra_blip.data.readers.reading import json_lines
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

Found = tuple[str, Raw, Callable[[Raw], list[Item]]]
"""Where a raw object stands, the object, and what makes its items."""
Record = TypeVar("Record", Item, Question)


class Layout(SplitFiles):
    """A data set whose questions and items lie as raw JSON objects; a subclass says where, and what they mean.

    Records are left out, and counted in :attr:`problems`, as ``malformed record`` (a field is missing or of a wrong
    type), ``empty question``, ``empty answer`` (the answers are listed, but none holds a word), ``empty item``,
    ``duplicate id`` (the first one stays), ``evaluation id`` (a training question that is in another split, too) and
    ``missing image``. A file that a user need not have is counted as ``missing file``, once.
    """

    folders: ClassVar[tuple[str, ...]] = ("",)
    """Where pictures are looked for, relative to the root."""
    id_key: ClassVar[str] = "qid"

    @abc.abstractmethod
    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        """Where each raw question of a split stands, and the question; what cannot be read is reported."""

    def _asked(self, split: str) -> Iterator[tuple[str, Raw]]:
        """As :meth:`_entries`, without what other files say of a question: enough to know the ids."""
        return self._entries(split)

    @abc.abstractmethod
    def _question(self, raw: Raw, split: str) -> Question:
        """The record of a raw question; its picture by the name that :meth:`_locate` takes. Raises Unusable."""

    def _locate(self, name: str) -> str:
        """What :func:`ra_blip.images.open_image` opens for a picture's name. Raises Unusable: ``missing image``."""
        parts = name.split("/")
        inside = parts[0] != "" and ".." not in parts
        for path in (os.path.join(self.root, folder, *parts) for folder in self.folders if inside):
            folder, file = os.path.split(path)
            if file in self._listing(folder):
                return path
        raise Unusable("missing image", f"no such picture in the data set: {os.path.join(self.folders[0], name)}")

    def _listing(self, folder: str) -> frozenset[str]:
        """The names in a folder: one look at it is much faster than one at each of its pictures."""
        if folder not in self._listings:
            names: list[str] = []
            try:
                names = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name that no folder can have
                pass
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
            self._listings[folder] = frozenset(names)
        return self._listings[folder]

    @functools.cached_property
    def _listings(self) -> dict[str, frozenset[str]]:
        return {}

    def _ids(self, split: str) -> IdMap:
        """The ids of a split, also of questions that are left out when it is read."""
        found = IdMap()
        for _, raw in self._asked(split):
            try:
                found.setdefault(raw.identity(self.id_key), 1)
            except Unusable:
                continue  # counted when the split itself is read
        return found

    def questions(self, split: str) -> Iterator[Question]:
        """The questions of a split; of those asked about a picture, the ones whose picture is there."""
        for where, _, question in self._read(split):
            try:
                yield self._placed(question)
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))

    def references(self, split: str) -> Iterator[dict[str, Any]]:
        """What predictions of a split are compared with, whether or not the pictures are there."""
        for where, raw, question in self._read(split):
            try:
                yield self._reference(raw, question)
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        """What predictions of one question are compared with. Raises Unusable."""
        return {"id": question.id, "answers": list(question.answers), "gold": list(question.gold)}

    def _read(self, split: str) -> Iterator[tuple[str, Raw, Question]]:
        """Every usable question with its raw object; a training question that is in another split is not usable."""
        self.require_split(split)
        others = [other for other in self.splits if split == "train" and other != split]
        held_out = {other: self._ids(other) for other in others}
        seen = IdMap()
        for number, (where, raw) in enumerate(self._entries(split)):
            try:
                question = self._question(raw, split)
                for other, ids in held_out.items():
                    if question.id in ids:
                        raise Unusable("evaluation id", f"question {question.id!r} is also in the split {other!r}")
                if seen.setdefault(question.id, number) != number:
                    raise Unusable("duplicate id", f"question {question.id!r} was given before")
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))
            else:
                yield where, raw, question

    def _knowledge(self, found: Iterable[Found], repeated: bool = False) -> Iterator[Item]:
        """The items of raw objects, each id once, with their pictures in place.

        Args:
            found: the raw objects.
            repeated: the layout writes an item out wherever a question names it, so that an equal copy is no problem.
        """
        seen = IdMap()
        for where, raw, make in found:
            try:
                items = make(raw)
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))
                continue
            for item in items:
                content, known = hash(item), seen.get(item.id)
                if repeated and content == known:
                    continue
                seen.setdefault(item.id, content)
                try:
                    if known is not None:
                        other = ", with other words" if repeated else ""
                        raise Unusable("duplicate id", f"item {item.id!r} was given before{other}")
                    if not (item.text or item.image):
                        raise Unusable("empty item", f"item {item.id!r} has neither text nor picture")
                    yield self._placed(item)
                except Unusable as error:
                    self.problems.report(error.kind, where, str(error))

    def _placed(self, record: Record) -> Record:
        return dataclasses.replace(record, image=self._locate(record.image)) if record.image else record

    def _lines(self, path: Path) -> Iterator[tuple[str, Raw]]:
        """The objects of a file of JSON lines."""
        return self._objects(json_lines(path, self.problems))

    def _elements(self, path: Path, key: str | None = None) -> Iterator[tuple[str, Raw]]:
        """The objects of a file's array."""
        return self._objects(elements(path, key))

    def _objects(self, values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Raw]]:
        """The objects among some values, with where they stand; what is none is reported."""
        for where, value in values:
            if isinstance(value, dict):
                yield where, Raw(value)
            else:
                self.problems.report("malformed record", where, f"expected an object, found {type(value).__name__}")

    def _list(self, where: str, raw: Raw, key: str) -> list[Raw]:
        """The objects of a list that may be absent; one that is none is reported."""
        try:
            return raw.objects(key)
        except Unusable as error:
            self.problems.report(error.kind, where, str(error))
            return []

    def _is_there(self, path: Path) -> bool:
        """Whether a file that a user need not have is there; if not, that is reported."""
        if not path.is_file():
            self.problems.report("missing file", str(path), "no such file; what it holds is left out")
        return path.is_file()
