"""Encyclopedic-VQA (Mensink et al. 2023): species and landmarks, asked about over sections of Wikipedia articles."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.json_stream import elements, members
from ra_blip.data.readers.layout import Layout
from ra_blip.data.readers.raw import Raw, Unusable, answered
from ra_blip.data.readers.reading import first_file, unique
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

KNOWLEDGE = "encyclopedic_kb_wiki.json"
COLUMNS = {"question", "answer", "dataset_image_ids", "dataset_name", "question_type", "wikipedia_url"}


class EncyclopedicVQA(Layout):
    """``train.csv``, ``val.csv``, ``test.csv``, and ``encyclopedic_kb_wiki.json``, which is decoded page by page.

    An item is one section of an article that has text; its id is ``URL#SECTION``, and the gold of a question is the
    section that its evidence stands in (two for ``2_hop``; none where the section is not named). A row with several
    pictures is a question for each in training, ``train-ROW.PICTURE``; elsewhere a question with the first of them,
    ``val-ROW``; rows count from 0. The category is the type of the question.

    Pictures: ``inaturalist/`` (iNaturalist 2021) with its ``train.json`` and ``val.json``, or an id-to-path file
    ``*id2name*.json``, in it or beside the questions; ``landmarks/train/a/b/c/abc....jpg`` (Google Landmarks v2).
    """

    name = "encyclopedic-vqa"
    files: ClassVar = {split: f"{split}.csv" for split in ("train", "val", "test")}
    id_key = "id"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By the knowledge base, or a column of a split's file."""
        return (root / KNOWLEDGE).is_file() or any(_has_pictures(root / file) for file in cls.files.values())

    def items(self) -> Iterator[Item]:
        """The sections of all articles; none where the knowledge base is not there."""
        path = self.root / KNOWLEDGE
        return unique(self._sections(path), self.problems) if self._is_there(path) else iter(())

    def _sections(self, path: Path) -> Iterator[tuple[str, Item]]:
        for where, url, page in members(path):
            try:
                title, titles, texts = page["title"], page["section_titles"], page["section_texts"]
                sections = [(str(name), str(text).strip()) for name, text in zip(titles, texts, strict=True)]
            except (KeyError, TypeError, ValueError) as error:
                self.problems.report("malformed record", where, f"{url} is no article with sections ({error!r})")
                continue
            for number, (name, text) in enumerate(sections):
                if text:
                    yield where, Item(f"{url}#{number}", text if name == title else f"{name}: {text}", str(title))

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        for number, (where, row) in enumerate(self._rows(self._path(self.root, split))):
            images = [f"{row['dataset_name']}/{image}" for image in row["dataset_image_ids"].split("|") if image]
            if not images:
                self.problems.report("missing image", where, "no picture is named")
            elif split == "train" and len(images) > 1:
                yield from ((where, Raw(row, id=f"train-{number}.{n}", image=i)) for n, i in enumerate(images))
            else:
                yield where, Raw(row, id=f"{split}-{number}", image=images[0])

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        # bytes that are not UTF-8 come in as lone surrogates, so that they cost their own row only
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            if missing := COLUMNS - set(rows.fieldnames or ()):
                raise DataError(f"{path}, line 1: no column {min(missing)!r}")
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    self.problems.report("malformed record", f"{path}, line {rows.line_num}", str(error))
                    continue
                where = f"{path}, line {rows.line_num}"
                if row is None:
                    return
                if None in row or None in row.values():
                    self.problems.report("malformed record", where, f"expected {len(rows.fieldnames or ())} columns")
                elif any("\udc80" <= letter <= "\udcff" for value in row.values() for letter in value):
                    self.problems.report("not UTF-8", where, "not UTF-8")
                else:
                    yield where, row

    def _question(self, raw: Raw, split: str) -> Question:
        urls, sections = raw["wikipedia_url"].split("|"), raw.get("evidence_section_id", "").split("|")
        named = len(urls) == len(sections) and all(section.isdecimal() for section in sections)
        return Question(
            raw["id"],
            raw.question("question"),
            raw["image"],
            answered((one.replace("&&", ", ") for one in raw["answer"].split("|")), "answer"),
            tuple(f"{url}#{section}" for url, section in zip(urls, sections, strict=True)) if named else (),
            category=raw["question_type"],
        )

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        """The answers as published, members of a list between ``&&``, with what the metric needs beside them."""
        answers = [one for one in raw["answer"].split("|") if one.strip()]
        given = {"question": question.text, "kind": raw["question_type"], "gold": list(question.gold)}
        return {"id": question.id, "answers": answers, **given}

    def _locate(self, name: str) -> str:
        source, _, image = name.partition("/")
        if source == "inaturalist":
            path = self._inaturalist.get(image, f"{image}.jpg")
            places = [f"inaturalist/{folder}{path}" for folder in ("", "train/", "val/")]
        else:
            below = f"{'/'.join(image[:3])}/{image}.jpg"
            places = [f"landmarks/{folder}{below}" for folder in ("train/", "")]
        found = first_file(self.root, places)
        if found is None:
            raise Unusable("missing image", f"no such picture: {self.root / places[0]}")
        return str(found)

    @functools.cached_property
    def _inaturalist(self) -> dict[str, str]:
        """The path of each picture of iNaturalist that a question names, by its id."""
        wanted = {
            image
            for split in self.splits
            for _, row in self._rows(self._path(self.root, split))
            for image in row["dataset_image_ids"].split("|")
            if row["dataset_name"] == "inaturalist"
        }
        found = {}
        folders = (self.root, self.root / "inaturalist")
        for path in sorted(path for folder in folders for path in folder.glob("*id2name*.json")):
            found.update({name: str(place) for _, name, place in members(path) if name in wanted})
        published = [path for split in ("train", "val") if (path := folders[1] / f"{split}.json").is_file()]
        for path in published if not found else ():
            for _, entry in elements(path, "images"):
                if isinstance(entry, dict) and str(entry.get("id")) in wanted:
                    found[str(entry["id"])] = str(entry.get("file_name"))
        return found


def _has_pictures(path: Path) -> bool:
    """Whether this is a table with the column that no other data set has."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"dataset_image_ids" in file.readline(4096)
