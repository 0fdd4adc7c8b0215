"""MultimodalQA (Talmor et al., ICLR 2021) as its authors publish it, and RagVL's selection of its image questions.

An answer of MultimodalQA may be a list of several strings, all of which are asked for. A question's ``answers`` hold
it as one string, joined by ``"; "``; the references keep the list, as the official metric needs it.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.json_stream import members
from ra_blip.data.readers.layout import Found, Layout
from ra_blip.data.readers.raw import Raw, Unusable, answered, without
from ra_blip.records import Item, Question


class _Questions(Layout):
    """What both layouts share: the form of a question."""

    def _question(self, raw: Raw, split: str) -> Question:
        metadata = Raw(raw.field("metadata", dict))
        gold = self._gold(raw, metadata)
        return Question(
            raw.identity("qid"),
            raw.question("question"),
            answers=("; ".join(answered(_answers(raw), "answers")),) if "answers" in raw else (),
            gold=without(gold, ()),
            negatives=without(self._candidates(metadata), gold),
            category=metadata.field("type", str) if "type" in metadata else None,
        )

    @abc.abstractmethod
    def _gold(self, raw: Raw, metadata: Raw) -> list[str]:
        """The ids of the items that a question rests on. Raises Unusable."""

    def _candidates(self, metadata: Raw) -> list[str]:
        """The ids of all items that belong to a question, gold or not. Raises Unusable."""
        return metadata.strings("image_doc_ids")

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        modalities = {answer.get("modality") for answer in raw.objects("answers")}
        return {
            "id": question.id,
            "answers": list(_answers(raw)),
            "gold": list(question.gold),
            "category": question.category,
            "modality": modalities.pop() if len(modalities) == 1 else None,
        }


class MultimodalQA(_Questions):
    """``MMQA_{train,dev,test}``, ``MMQA_texts``, ``MMQA_tables`` and ``MMQA_images``, as ``.jsonl`` or ``.jsonl.gz``.

    They lie in the root or in its folder ``dataset``, each of them optional, the pictures in ``final_dataset_images``.
    ``dev`` is called ``val`` here; questions of ``test`` have no answers. Items are texts, pictures with their page's
    title, and tables row by row: row 3 of a table has the id ``<table id>.3`` (from 0, as in ``table_indices``) and
    reads ``table name. column: cell; column: cell``.

    Gold are the texts and pictures of ``supporting_context``, and the rows of a supporting table in which an answer or
    an intermediate answer stands; where none does (some yes/no questions), the rows of the things that the question
    names, else all rows. Negatives are the question's other texts, pictures and rows. Rows that no file names need
    the tables: without them such a question has fewer gold items and negatives.

    References hold ``answers`` (a list), ``gold``, ``category`` (the question's type) and ``modality``.
    """

    name = "multimodalqa"
    files: ClassVar[dict[str, str]] = {"train": "MMQA_train", "val": "MMQA_dev", "test": "MMQA_test"}

    folders = ("final_dataset_images", "dataset/final_dataset_images", "images")

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        return _file(root, cls.files[split])

    def items(self) -> Iterator[Item]:
        """Texts, rows of tables, pictures."""
        return self._knowledge(self._documents())

    def _documents(self) -> Iterator[Found]:
        for name, make in (("MMQA_texts", _text), ("MMQA_tables", _rows), ("MMQA_images", _picture)):
            path = _file(self.root, name)
            if self._is_there(path):
                for where, raw in self._lines(path):
                    yield where, raw, make

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._lines(self._path(self.root, split))

    def _gold(self, raw: Raw, metadata: Raw) -> list[str]:
        gold = []
        for document in raw.objects("supporting_context"):
            name = document.identity("doc_id")
            gold += self._gold_rows(name, raw, metadata) if document.get("doc_part") == "table" else [name]
        return gold

    def _gold_rows(self, table: str, raw: Raw, metadata: Raw) -> list[str]:
        told = [*_cells(raw.get("answers"), "table_indices"), *_cells(metadata, "table_indices")]
        named = told or list(_cells(metadata.get("wiki_entities_in_question"), "table_cells"))
        return [f"{table}.{row}" for row in dict.fromkeys(named or range(self._row_counts.get(table, 0)))]

    def _candidates(self, metadata: Raw) -> list[str]:
        table = metadata.get("table_id")
        rows = [f"{table}.{row}" for row in range(self._row_counts.get(table, 0))] if isinstance(table, str) else []
        return [*metadata.strings("text_doc_ids"), *super()._candidates(metadata), *rows]

    @functools.cached_property
    def _row_counts(self) -> dict[str, int]:
        path = _file(self.root, "MMQA_tables")
        if not self._is_there(path):
            return {}
        counts = {}
        for where, raw in self._lines(path):
            try:
                counts[raw.identity("id")] = len(Raw(raw.field("table", dict)).field("table_rows", list))
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))
        return counts


class MultimodalQARagVL(_Questions):
    """RagVL's checkout: ``datasets/MMQA_{train,dev,test}_image.json`` and ``datasets/MMQA_ImageQ_metadata.json``.

    Image questions only, each with one gold picture; ``dev`` is called ``val`` here. Pictures lie in
    ``finetune/tasks/MMQA_imgs``. Items are the pictures of the metadata file, with their page's title and, where the
    file has one, a caption. References as of :class:`MultimodalQA`.
    """

    name = "multimodalqa-ragvl"
    metadata_file: ClassVar[str] = "datasets/MMQA_ImageQ_metadata.json"
    files: ClassVar[dict[str, str]] = {
        "train": "datasets/MMQA_train_image.json",
        "val": "datasets/MMQA_dev_image.json",
        "test": "datasets/MMQA_test_image.json",
    }
    folders = ("finetune/tasks/MMQA_imgs",)

    def items(self) -> Iterator[Item]:
        """The pictures, in the order of the metadata file."""
        return self._knowledge(self._documents())

    def _documents(self) -> Iterator[Found]:
        path = self.root / self.metadata_file
        if self._is_there(path):
            for where, name, raw in members(path):
                yield where, Raw(raw, id=name) if isinstance(raw, dict) else Raw(), _picture

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._elements(self._path(self.root, split))

    def _gold(self, raw: Raw, metadata: Raw) -> list[str]:
        return [one.identity("doc_id") for one in raw.objects("supporting_context") if one.get("doc_part") == "image"]


def _file(root: Path, name: str) -> Path:
    """The first form of a file that is there, else the form in which it is published."""
    forms = [root / folder / f"{name}{ending}" for folder in ("", "dataset") for ending in (".jsonl", ".jsonl.gz")]
    return next((path for path in forms if path.is_file()), forms[1])


def _answers(raw: Raw) -> list[str]:
    """The strings of the answer; six of the published ones are numbers."""
    return [_as_text(answer.get("answer")) for answer in raw.objects("answers")]


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unusable("malformed record", f"an answer must be a string or a number, found {type(value).__name__}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _cells(value: Any, key: str) -> Iterator[int]:
    """The rows of all [row, column] pairs under ``key``, at any depth."""
    if isinstance(value, list):
        for one in value:
            yield from _cells(one, key)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name == key and isinstance(one, list):
                yield from (cell[0] for cell in one if isinstance(cell, list) and cell and isinstance(cell[0], int))
            elif name == "intermediate_answers":
                yield from _cells(one, key)


def _text(raw: Raw) -> list[Item]:
    text = raw.field("text", str).strip()
    if not text:
        raise Unusable("empty item", f"text {raw.get('id')!r} has no words")
    return [Item(raw.identity("id"), text, raw.words("title"), source=raw.words("url", str))]


def _picture(raw: Raw) -> list[Item]:
    caption = raw.get("caption")
    text = caption.strip() or None if isinstance(caption, str) else None
    return [Item(raw.identity("id"), text, raw.words("title"), raw.field("path", str), raw.words("url", str))]


def _rows(raw: Raw) -> list[Item]:
    """A table row by row; a row without words is left empty, and so reported by the caller."""
    name, table = raw.identity("id"), Raw(raw.field("table", dict))
    title, source = raw.words("title"), raw.words("url", str)
    columns = [column.field("column_name", str).strip() for column in table.objects("header")]
    heading = table.get("table_name")
    prefix = f"{heading.strip()}. " if isinstance(heading, str) and heading.strip() else ""
    items = []
    for number, row in enumerate(table.field("table_rows", list)):
        cells = [cell.field("text", str).strip() for cell in Raw(row=row).objects("row")]
        named = zip([*columns, *[""] * (len(cells) - len(columns))], cells, strict=False)
        words = "; ".join(f"{column}: {cell}" if column else cell for column, cell in named if cell)
        items.append(Item(f"{name}.{number}", f"{prefix}{words}" if words else None, title, source=source))
    return items
