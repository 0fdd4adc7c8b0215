"""This package's own files: ``items.jsonl`` and ``*questions.jsonl``, read line by line."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from ra_blip.containers import is_there
from ra_blip.data.id_map import IdMap
from ra_blip.data.readers.dataset import Problems, SplitFiles
from ra_blip.data.readers.reading import json_lines
from ra_blip.errors import DataError
from ra_blip.records import Item, Question, parse_record

Record = TypeVar("Record", Item, Question)
FILES = {"train": "train_questions.jsonl", "val": "val_questions.jsonl", "test": "questions.jsonl"}


class Plain(SplitFiles):
    """``items.jsonl``; ``train_questions.jsonl``, ``val_questions.jsonl``, and ``questions.jsonl``, the test split."""

    name = "plain"
    files: ClassVar = FILES

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By any of the files."""
        return (root / "items.jsonl").is_file() or super().recognises(root)

    def items(self) -> Iterator[Item]:
        """The items whose picture is there, if they name one."""
        return self._whole(records(self.root / "items.jsonl", Item, self.problems))

    def questions(self, split: str) -> Iterator[Question]:
        """The questions of one split whose picture is there, if they name one."""
        self.require_split(split)
        return self._whole(records(self._path(self.root, split), Question, self.problems))

    def _whole(self, found: Iterator[tuple[str, Record]]) -> Iterator[Record]:
        for where, record in found:
            if record.image and not is_there(record.image):
                self.problems.report("missing image", where, f"no such picture: {record.image}")
            else:
                yield record


def kind_of(path: Path) -> Literal["items", "questions"]:
    """What a JSON lines file holds: by its name where that says it, else by the fields of the first records.

    Raises:
        DataError: neither.
    """
    if path.name.endswith("items.jsonl"):
        return "items"
    if path.name.endswith("questions.jsonl"):
        return "questions"
    sample = [value for _, value in itertools.islice(json_lines(path, Problems()), 100) if isinstance(value, dict)]
    keys = {key for value in sample for key in value}
    if not any("id" in value for value in sample) or not keys & {"text", "image"}:
        raise DataError(
            f"{path}: neither items nor questions; each line is a JSON object with 'id' and 'text' or 'image'"
        )
    return "questions" if keys & {"answers", "gold", "negatives", "category"} else "items"


def records(
    path: Path, kind: type[Record], problems: Problems, progress: Callable[[int], object] = lambda size: None
) -> Iterator[tuple[str, Record]]:
    """Yield (file and line, record) of each good line whose id is new; ids take 16 bytes each, nothing else is held.

    Args:
        path: the JSON lines file.
        kind: ``Item`` or ``Question``.
        problems: gets the other lines (``not JSON``, ``not UTF-8``, ``malformed record``, ``duplicate id``,
            ``empty answer``), and ``unknown field``, which leaves nothing out.
        progress: called with the bytes of each line.

    Raises:
        DataError: the file cannot be read.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    seen = IdMap()
    number = 0
    for where, value in json_lines(path, problems, progress):
        number = int(where.rpartition(" ")[2])
        if not isinstance(value, dict):
            problems.report("malformed record", where, f"expected a JSON object, found {type(value).__name__}")
            continue
        for key in value.keys() - set(fields):
            if close := difflib.get_close_matches(key, fields, n=1, cutoff=0.75):
                problems.report("unknown field", where, f"unknown field {key!r}; did you mean {close[0]!r}?")
        try:
            record = parse_record(value, kind, path.parent, where)
        except DataError as error:
            problems.report("malformed record", where, str(error).removeprefix(f"{where}: "))
            continue
        first = seen.setdefault(record.id, number)
        if first != number:
            problems.report("duplicate id", where, f"id {record.id!r} was used in line {first}; ids must be unique")
        elif isinstance(record, Question) and any(not answer.strip() for answer in record.answers):
            problems.report("empty answer", where, "an answer is empty")
        else:
            yield where, record
    if not number:
        problems.report("empty file", str(path), "holds no record")
