"""What is wrong with a data file or folder: every problem, with file and line where it has one. Changes nothing.

Records stream through; ids and picture names are held as hashes, 16 bytes each.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ra_blip.containers import is_there
from ra_blip.data.id_map import IdMap
from ra_blip.data.readers import probe, recognised
from ra_blip.data.readers.captions import CaptionDataset
from ra_blip.data.readers.dataset import Dataset, Problems
from ra_blip.data.readers.pictures import PictureFolder
from ra_blip.data.readers.plain import kind_of, records
from ra_blip.data.readers.reading import json_lines
from ra_blip.errors import DataError, ImageError
from ra_blip.images import open_image
from ra_blip.records import Item, Question

Record = TypeVar("Record", Item, Question)


@dataclasses.dataclass
class Checked:
    """What :func:`check` found.

    Attributes:
        layout: ``items``, ``questions``, ``folder`` (of such files), ``index``, or the name of a data set's reader.
        also: other layouts that the folder holds, which were not looked at.
        counts: number of records by what they are, e.g. ``items.jsonl: image+text``, ``train: fact``.
        problems: what is wrong, counted by kind, the first of each kind word for word.
        pictures: how many pictures the records name, each counted once.
        opened: how many of them were opened.
    """

    layout: str
    also: list[str] = dataclasses.field(default_factory=list)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: Problems = dataclasses.field(default_factory=Problems)
    pictures: int = 0
    opened: int = 0


def check(path: str | Path, pictures: float = 1.0) -> Checked:
    """Look at every record and the pictures of an items or questions file, or of a data set's folder.

    ``gold`` and ``negatives`` of questions must name items, where there are any (of a questions file, those of the
    ``items.jsonl`` beside it), and no training question may be a validation or test question too.

    Args:
        path: the file or folder.
        pictures: the share of the pictures to open, chosen by their names; of the others, files must exist.

    Raises:
        DataError: there is nothing at ``path``, or nothing there that this package reads.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if files := _data_files(path):
        folder = "index" if (path / "index.faiss").exists() else "folder"
        looking = _Check(Checked(files.get(path, folder)), pictures)
        looking.files(files)
    else:
        reader = probe(path)
        also = [one.name for one in recognised(path) if one is not reader and one is not PictureFolder]
        dataset = reader(path)
        looking = _Check(Checked(reader.name, also, problems=dataset.problems), pictures)
        looking.dataset(dataset)
    return looking.found


class _Check:
    """One run over all records."""

    def __init__(self, found: Checked, share: float) -> None:
        self.found, self.share = found, share
        self.labels: list[str] = []
        self.items, self.questions, self.images = IdMap(), IdMap(), IdMap()

    def files(self, files: dict[Path, str]) -> None:
        """The given files, items before the questions that name them."""
        for file in sorted(files, key=lambda file: files[file]):
            beside = file.parent / "items.jsonl"
            if files[file] == "questions" and beside not in files and beside.is_file():
                for _, value in json_lines(beside, Problems()):
                    self.items.setdefault(str(value.get("id")) if isinstance(value, dict) else "", 0)
            with _bar(file.name, file.stat().st_size, "B") as bar:
                if files[file] == "items":
                    self.part(file.name, records(file, Item, self.found.problems, bar.update))
                else:
                    self.part(file.name, records(file, Question, self.found.problems, bar.update))

    def dataset(self, dataset: Dataset) -> None:
        """A data set's items, the questions of its splits, and the captions of those that are no items."""
        self.stream(dataset, "items", dataset.items())
        for split in dataset.splits:
            self.stream(dataset, split, dataset.questions(split))
            if split != "train" and isinstance(dataset, CaptionDataset):
                self.stream(dataset, f"{split} captions", dataset.captions(split))
        if not (self.found.counts or self.found.problems.total or isinstance(dataset, CaptionDataset)):
            self.found.problems.report("empty file", str(dataset.root), "holds no record")

    def stream(self, dataset: Dataset, label: str, found: Iterator[Record]) -> None:
        """One part of a data set; where its file cannot be read on, the rest of the part is lost, and that is said."""
        with _bar(label) as bar:
            try:
                self.part(label, _counted(f"{dataset.root}, {label}", found, bar))
            except DataError as error:
                self.found.problems.report("unreadable file", label, str(error))

    def part(self, label: str, found: Iterable[tuple[str, Item | Question]]) -> None:
        """Records, with where they stand."""
        self.labels.append(label)
        for where, record in found:
            kind = record.kind if isinstance(record, Item) else record.category or "no category"
            self.found.counts[f"{label}: {kind}"] += 1
            self.identity(record, where)
            if isinstance(record, Question) and len(self.items):
                self.references(record, where)
            if record.image:
                self.picture(record.image, where)

    def identity(self, record: Item | Question, where: str) -> None:
        """An id is used once in a part, and no id of training is one of validation or test."""
        ids = self.items if isinstance(record, Item) else self.questions
        here, before = len(self.labels) - 1, ids.get(record.id)
        if before is None:
            ids.setdefault(record.id, here)
        elif before == here:
            self.found.problems.report("duplicate id", where, f"id {record.id!r} was used before; ids must be unique")
        elif any(self.labels[one].startswith(("train", "items")) for one in (before, here)):
            other = self.labels[before]
            self.found.problems.report(
                "split overlap", where, f"id {record.id!r} is in {other}, too; splits must not mix"
            )

    def references(self, question: Question, where: str) -> None:
        """The items that a question names must be there."""
        for field, ids in (("gold", question.gold), ("negatives", question.negatives)):
            for name in ids:
                if name not in self.items:
                    self.found.problems.report("unknown item", where, f"{field} item {name!r} is not among the items")

    def picture(self, image: str, where: str) -> None:
        """Open a picture that was not named before, or only see whether its file is there."""
        if image in self.images:
            return
        self.images.setdefault(image, 0)
        self.found.pictures += 1
        try:
            if zlib.crc32(os.fsencode(image)) < self.share * 2**32:
                self.found.opened += 1
                open_image(image)
            elif not is_there(image):
                raise ImageError(f"{image}: no such picture")
        except ImageError as error:
            self.found.problems.report("bad picture" if is_there(image) else "missing image", where, str(error))


def _bar(label: str, total: int | None = None, unit: str = " records") -> tqdm[Any]:
    quiet = not sys.stderr.isatty()
    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, disable=quiet, leave=False)


def _counted(where: str, found: Iterable[Record], bar: tqdm[Any]) -> Iterator[tuple[str, Record]]:
    for record in found:
        bar.update()
        yield f"{where} {record.id!r}", record


def _data_files(path: Path) -> dict[Path, str]:
    """The JSON lines files to read, each with its kind; none for a folder of another layout."""
    if not path.is_dir():
        return {path: kind_of(path)}
    found = [path / "items.jsonl", *sorted(path.glob("*questions.jsonl"))]
    return {file: kind_of(file) for file in found if file.is_file()}
