"""InfoSeek and OVEN: questions about the entity a photograph shows, over Wikipedia's six million articles (Wiki6M)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.id_map import IdMap
from ra_blip.data.readers.layout import Layout
from ra_blip.data.readers.raw import Raw, Unusable, answered
from ra_blip.data.readers.reading import first_file, json_lines, unique
from ra_blip.records import Item, Question

KINDS = ("string", "time", "numerical")
KNOWLEDGE = "Wiki6M_ver_1_0.jsonl"


class InfoSeek(Layout):
    """``infoseek_{train,val,test}.jsonl``; golds of ``infoseek_{train,val}_withkb.jsonl``; ``Wiki6M_ver_1_0.jsonl``.

    An item is one article of Wiki6M: its summary, or its content where there is no summary; its id is the entity's
    (``Q42``). Pictures are those of the OVEN snapshot, ``01/oven_01234567.jpg`` (or below ``oven_images/``), or what
    ``id2image.jsonl`` says, relative to the folder. ``infoseek_human.jsonl`` is not read. The category of a validation
    question is ``unseen_question`` or ``unseen_entity``. Ids are held as hashes: 16 bytes a question and a picture.
    """

    name = "infoseek"
    files: ClassVar = {split: f"infoseek_{split}.jsonl" for split in ("train", "val", "test")}
    id_key = "data_id"

    def items(self) -> Iterator[Item]:
        """The articles of Wiki6M, line by line; none where its file is not there."""
        path = self.root / KNOWLEDGE
        return unique(self._articles(path), self.problems) if self._is_there(path) else iter(())

    def _articles(self, path: Path) -> Iterator[tuple[str, Item]]:
        for where, raw in self._lines(path):
            try:
                name, title = raw.identity("wikidata_id"), raw.field("wikipedia_title", str)
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))
                continue
            text = raw.get("wikipedia_summary") or raw.get("wikipedia_content")
            if isinstance(text, str) and text.strip():
                yield where, Item(name, text.strip(), title)
            else:
                self.problems.report("empty item", where, f"article {name!r} has neither summary nor content")

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._lines(self._path(self.root, split))

    def _question(self, raw: Raw, split: str) -> Question:
        name = raw.identity("data_id")
        entity = self._entities[split].get(name) if split in self._entities else None
        part = str(raw.get("data_split", ""))
        return Question(
            name,
            raw.question("question"),
            raw.identity("image_id"),
            raw.answers("answer"),
            () if entity is None else (f"Q{entity}",),
            category=next((kind for kind in ("unseen_question", "unseen_entity") if part.endswith(kind)), None),
        )

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        """The answers that count, the kind, the range of a number, and the part of the validation split."""
        counted = raw.get("answer_eval") or list(question.answers)
        ranges = [one["range"] for one in counted if isinstance(one, dict) and "range" in one]
        kind = KINDS[2] if ranges else KINDS[self._kinds.get(question.id) or 0]
        answers = list(question.answers) if ranges else [one for one in counted if isinstance(one, str)]
        found = {"id": question.id, "answers": answers, "kind": kind, "gold": list(question.gold)}
        if ranges:
            found["range"] = ranges[0]
        return {**found, "split": question.category} if question.category else found

    @functools.cached_property
    def _entities(self) -> dict[str, IdMap]:
        """The number of the entity of each question that has one, by split."""
        found: dict[str, IdMap] = {}
        for split in (one for one in ("train", "val") if one in self.splits):
            path = self.root / f"infoseek_{split}_withkb.jsonl"
            found[split] = IdMap()
            for where, raw in self._lines(path) if self._is_there(path) else ():
                entity = str(raw.get("entity_id"))
                if entity[:1] == "Q" and entity[1:].isdecimal():
                    found[split].setdefault(str(raw.get("data_id")), int(entity[1:]))
                else:
                    self.problems.report("malformed record", where, f"'entity_id' must be as Q42, found {entity!r}")
        return found

    @functools.cached_property
    def _kinds(self) -> IdMap:
        """The place in ``KINDS`` of each validation question."""
        found, path = IdMap(), self.root / "infoseek_val_qtype.jsonl"
        for where, raw in self._lines(path) if path.is_file() else ():
            kind = str(raw.get("question_type")).lower()
            if kind in KINDS:
                found.setdefault(str(raw.get("data_id")), KINDS.index(kind))
            else:
                self.problems.report("malformed record", where, f"'question_type' is {kind!r}, not of {KINDS}")
        return found

    def _locate(self, name: str) -> str:
        listed = self._listed(name)
        places = [f"{folder}{name[5:7]}/{name}.jpg" for folder in ("", "oven_images/")] + [f"oven_images/{name}.jpg"]
        found = first_file(self.root, [*listed, *places])
        if found is None:
            raise Unusable("missing image", f"no such picture: {self.root / (*listed, *places)[0]}")
        return str(found)

    def _listed(self, name: str) -> list[str]:
        """The path that ``id2image.jsonl`` gives for a picture, if it does."""
        offset = self._offsets.get(name)
        if offset is None:
            return []
        with (self.root / "id2image.jsonl").open("rb") as lines:
            lines.seek(offset)
            return [str(json.loads(lines.readline())["image_path"])]

    @functools.cached_property
    def _offsets(self) -> IdMap:
        """Where in ``id2image.jsonl`` the line of each picture begins."""
        found, path, span = IdMap(), self.root / "id2image.jsonl", [0, 0]

        def advance(size: int) -> None:
            span[:] = span[1], span[1] + size

        for where, raw in json_lines(path, self.problems, advance) if path.is_file() else ():
            if isinstance(raw, dict) and {"image_id", "image_path"} <= raw.keys():
                found.setdefault(str(raw["image_id"]), span[0])
            else:
                self.problems.report("malformed record", where, "expected 'image_id' and 'image_path'")
        return found


class OVEN(InfoSeek):
    """``oven_{entity,query}_{train,val,test}.jsonl``: which entity of Wiki6M is this? The answer is its name.

    Pictures and knowledge base as InfoSeek's. The hidden test questions have neither answer nor gold.
    """

    name = "oven"
    files: ClassVar = {split: f"oven_entity_{split}.jsonl" for split in ("train", "val", "test")}

    @classmethod
    def _paths(cls, root: Path, split: str) -> list[Path]:
        return [path for part in ("entity", "query") if (path := root / f"oven_{part}_{split}.jsonl").is_file()]

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        return next(iter(cls._paths(root, split)), root / cls.files[split])

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return (entry for path in self._paths(self.root, split) for entry in self._lines(path))

    def _question(self, raw: Raw, split: str) -> Question:
        known = raw.get("entity_id") is not None
        return Question(
            raw.identity("data_id"),
            raw.question("question"),
            raw.identity("image_id"),
            answered([raw.field("entity_text", str)], "entity_text") if known else (),
            (raw.identity("entity_id"),) if known else (),
        )

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        return {"id": question.id, "answers": list(question.answers), "kind": KINDS[0], "gold": list(question.gold)}
