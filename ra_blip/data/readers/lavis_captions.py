"""Caption sets as LAVIS keeps them in its cache folder: COCO with Karpathy's splits, NoCaps, Visual Genome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from ra_blip.data.readers.captions import CaptionDataset, Picture
from ra_blip.data.readers.dataset import SplitFiles
from ra_blip.data.readers.json_stream import elements
from ra_blip.data.readers.reading import existing, first_file, unique
from ra_blip.records import Question


class LavisCaptions(SplitFiles, CaptionDataset):
    """A list a split of ``{image, caption}``, where ``caption`` is one or a list; a picture may come in many entries.

    The folder is LAVIS's cache (``coco/annotations/...``, ``coco/images/...``), or the data set's folder in it. A
    picture's id is its file's name without the ending.
    """

    folders: ClassVar[tuple[str, ...]]  # the data set's folder in the cache

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        return cls._file(root, cls.files[split]) or root / cls.files[split]

    @classmethod
    def _file(cls, root: Path, file: str) -> Path | None:
        return first_file(root, [f"{folder}annotations/{file}" for folder in cls._below()] + [file])

    @classmethod
    def _below(cls) -> list[str]:
        return [f"{folder}/" for folder in cls.folders] + [""]

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        found: dict[str, tuple[str, str, list[Any]]] = {}
        for where, entry in elements(self._path(self.root, split)):
            image = entry.get("image") if isinstance(entry, dict) else None
            if not isinstance(image, str) or not image:
                self.problems.report("malformed record", where, "expected an entry with 'image' and 'caption'")
                continue
            said = entry.get("caption", [])
            name = str(entry.get("img_id", PurePosixPath(image).stem))
            found.setdefault(name, (where, image, []))[2].extend(said if isinstance(said, list) else [said])
        for name, (where, image, captions) in found.items():
            secret = split == "test" and not captions  # NoCaps keeps the captions of its test pictures
            yield from self._picture(name, self._places(image), None if secret else captions, where)

    def _places(self, image: str) -> list[str]:
        """Where a picture may lie."""
        return [f"{folder}images/{image}" for folder in self._below()] + [image]


class LavisCoco(LavisCaptions):
    """``coco/annotations/coco_karpathy_{train,val,test}.json``, pictures under ``coco/images/val2014/``."""

    name = "coco-lavis"
    folders: ClassVar = ("coco",)
    files: ClassVar = {split: f"coco_karpathy_{split}.json" for split in ("train", "val", "test")}


class LavisNoCaps(LavisCaptions):
    """``nocaps/annotations/nocaps_{val,test}.json`` (LAVIS's own folder is ``nocap``)."""

    name = "nocaps-lavis"
    folders: ClassVar = ("nocaps", "nocap")
    files: ClassVar = {split: f"nocaps_{split}.json" for split in ("val", "test")}


class LavisVisualGenome(LavisCaptions):
    """``vg/annotations/vg_caption.json`` and, for questions, ``vg_qa.json``; all of it for training.

    The published files name pictures by a path of their authors' machine, of which only the file's name is used:
    pictures lie under ``vg/images/``, there or in ``VG_100K/`` and ``VG_100K_2/``. The questions name no gold items.
    """

    name = "visual-genome-lavis"
    folders: ClassVar = ("vg",)
    files: ClassVar = {"train": "vg_caption.json"}

    def _places(self, image: str) -> list[str]:
        file = PurePosixPath(image).name
        return [f"{a}images/{b}{file}" for a in self._below() for b in ("", "VG_100K/", "VG_100K_2/")]

    def questions(self, split: str) -> Iterator[Question]:
        """The questions of ``vg_qa.json``, where it is there."""
        self.require_split(split)
        path = self._file(self.root, "vg_qa.json")
        return unique(self._questions(path), self.problems) if path else iter(())

    def _questions(self, path: Path) -> Iterator[tuple[str, Question]]:
        for where, entry in elements(path):
            try:
                name, text, answer, image = (entry[key] for key in ("question_id", "question", "answer", "image"))
            except (KeyError, TypeError) as error:
                self.problems.report("malformed record", where, f"not a question of Visual Genome ({error!r})")
                continue
            answers = tuple(part for part in (answer if isinstance(answer, list) else [answer]) if part)
            if not answers or not text:
                kind = "empty answer" if text else "empty question"
                self.problems.report(kind, where, f"question {name!r} has {kind}")
            elif place := existing(self.root, self._places(str(image)), where, self.problems):
                yield where, Question(str(name), str(text), place, answers)
