"""What the readers share: how a raw object becomes a record, and under which name it is counted where it cannot."""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ra_blip.data.id_map import IdMap
from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.json_stream import elements
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

Raw = dict[str, Any]
Found = tuple[str, Raw, Callable[[Raw], list[Item]]]
"""Where a raw object stands, the object, and what makes its items."""
Record = TypeVar("Record", Item, Question)
Kind = TypeVar("Kind", str, int, list[Any], dict[str, Any])


class Unusable(Exception):
    """A raw object cannot become a record.

    Args:
        kind: the name that it is counted under in :class:`~ra_blip.data.readers.dataset.Problems`.
        message: what is wrong with it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Layout(Dataset):
    """A data set whose questions and items lie as raw JSON objects; a subclass says where, and what they mean.

    Records are left out, and counted in :attr:`problems`, as ``malformed record`` (a field is missing or of a wrong
    type), ``empty question``, ``empty answer`` (the answers are listed, but none holds a word), ``empty item``,
    ``duplicate id`` (the first one stays), ``evaluation id`` (a training question that is in another split, too) and
    ``missing image``. A file that a user need not have is counted as ``missing file``, once.
    """

    files: ClassVar[dict[str, str]]
    """The file of each split's questions, relative to the root."""
    folders: ClassVar[tuple[str, ...]] = ("",)
    """Where pictures are looked for, relative to the root."""
    id_key: ClassVar[str] = "qid"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether the questions of one of the splits are there."""
        return any(cls._path(root, split).is_file() for split in cls.files)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose questions are there."""
        return tuple(split for split in self.files if self._path(self.root, split).is_file())

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        """The file of a split's questions."""
        return root / cls.files[split]

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
            try:
                self._listings[folder] = frozenset(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = frozenset()
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
        return self._listings[folder]

    @functools.cached_property
    def _listings(self) -> dict[str, frozenset[str]]:
        return {}

    def _ids(self, split: str) -> IdMap:
        """The ids of a split, also of questions that are left out when it is read."""
        found = IdMap()
        for _, raw in self._asked(split):
            try:
                found.setdefault(identity(raw, self.id_key), 1)
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
        for _, raw, question in self._read(split):
            yield self._reference(raw, question)

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
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

    def _elements(self, path: Path, key: str | None = None) -> Iterator[tuple[str, Raw]]:
        """The objects of a file's array; what is none is reported."""
        for where, value in elements(path, key):
            if isinstance(value, dict):
                yield where, value
            else:
                self.problems.report("malformed record", where, f"expected an object, found {type(value).__name__}")

    def _list(self, where: str, raw: Raw, key: str) -> list[Raw]:
        """The objects of a list that may be absent; one that is none is reported."""
        try:
            return object_list(raw, key)
        except Unusable as error:
            self.problems.report(error.kind, where, str(error))
            return []

    def _is_there(self, path: Path) -> bool:
        """Whether a file that a user need not have is there; if not, that is reported."""
        if not path.is_file():
            self.problems.report("missing file", str(path), "no such file; what it holds is left out")
        return path.is_file()


def field(raw: Raw, key: str, kind: type[Kind]) -> Kind:
    """``raw[key]``, checked for its type. Raises :class:`Unusable`: ``malformed record``."""
    found = raw.get(key)
    if not isinstance(found, kind) or isinstance(found, bool):
        shown = "is missing" if found is None else f"must be {kind.__name__}, found {type(found).__name__}"
        raise Unusable("malformed record", f"{key!r} {shown}")
    return found


def identity(raw: Raw, key: str) -> str:
    """An id that files write as a string or as a whole number. Raises :class:`Unusable`: ``malformed record``."""
    found = raw.get(key)
    if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
        raise Unusable("malformed record", f"{key!r} must be an id, found {found!r:.60}")
    return str(found)


def object_list(raw: Raw, key: str) -> list[Raw]:
    """A list of objects, empty where the key is absent. Raises :class:`Unusable`: ``malformed record``."""
    found: list[Any] = field(raw, key, list) if raw.get(key) is not None else []
    if not all(isinstance(one, dict) for one in found):
        raise Unusable("malformed record", f"{key!r} must be a list of objects")
    return found


def strings(raw: Raw, key: str) -> list[str]:
    """A list of strings, empty where the key is absent. Raises :class:`Unusable`: ``malformed record``."""
    found: list[Any] = field(raw, key, list) if raw.get(key) is not None else []
    if not all(isinstance(one, str) for one in found):
        raise Unusable("malformed record", f"{key!r} must be a list of strings")
    return found


def question_text(raw: Raw, key: str, clean: Callable[[str], str] = str.strip) -> str:
    """The words of a question. Raises :class:`Unusable`: ``malformed record``, ``empty question``."""
    found = clean(field(raw, key, str))
    if not found:
        raise Unusable("empty question", f"{key!r} holds no word")
    return found


def answered(answers: Iterable[str], key: str) -> tuple[str, ...]:
    """The answers that hold a word. Raises :class:`Unusable`: ``empty answer`` where none does."""
    found = tuple(answer.strip() for answer in answers if answer.strip())
    if not found:
        raise Unusable("empty answer", f"{key!r} holds no answer")
    return found


def without(ids: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """``ids`` once each, in their order, but for ``others``."""
    left_out = set(others)
    return tuple(one for one in dict.fromkeys(ids) if one not in left_out)
