"""WebQA as two later projects lay it out: UniVL-DR (Liu et al., ICLR 2023) and RagVL (Chen et al., 2024)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.json_stream import members
from ra_blip.data.readers.layout import Found, Layout
from ra_blip.data.readers.raw import Raw, Unusable, without
from ra_blip.data.readers.webqa import WebQA, picture_item, snippet_item, unquoted
from ra_blip.records import Item, Question


class WebQAUniVLDR(WebQA):
    """UniVL-DR's ``data`` folder: ``all_docs.json``, ``all_imgs.json``, ``train.json``, ``dev.json``, ``test.json``.

    All are JSON lines; questions name their items by id alone. ``dev`` (here ``val``) is a part of WebQA's training
    questions, ``test`` is WebQA's validation. Pictures are found in WebQA's ``imgs.tsv`` by ``imgs.lineidx.new``. The
    layout has neither WebQA's categories nor keywords: ``category`` is ``image`` or ``text`` by the gold items.
    """

    name = "webqa-univldr"
    files: ClassVar[dict[str, str]] = {"train": "train.json", "val": "dev.json", "test": "test.json"}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether ``all_docs.json`` or ``all_imgs.json`` is there."""
        return (root / "all_docs.json").is_file() or (root / "all_imgs.json").is_file()

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._lines(self.root / self.files[split])

    def _question(self, raw: Raw, split: str) -> Question:
        gold = {part: raw.strings(f"{part}_posFacts") for part in ("img", "txt")}
        named = [*gold["img"], *gold["txt"]]
        negatives = [name for part in ("img", "txt", "all") for name in raw.strings(f"{part}_negFacts")]
        return Question(
            raw.identity("qid"),
            raw.question("Q", unquoted),
            answers=raw.answers("A", unquoted),
            gold=without(named, ()),
            negatives=without(negatives, named),
            category="image" if gold["img"] else "text",
        )

    def items(self) -> Iterator[Item]:
        """Snippets, then pictures."""
        return self._knowledge(self._facts())

    def _facts(self) -> Iterator[Found]:
        for file, make in (("all_docs.json", snippet_item), ("all_imgs.json", picture_item)):
            if self._is_there(self.root / file):
                for where, raw in self._lines(self.root / file):
                    yield where, raw, make


class WebQARagVL(WebQA):
    """RagVL's checkout: ``datasets/WebQA_{train,dev,test}_image.json``, captions, and pictures as ``<id>.png``.

    Image questions only: ``train`` and ``dev`` (here ``val``) divide WebQA's training questions, ``test`` is WebQA's
    validation. Pictures lie in ``datasets/val_image`` and ``finetune/tasks/train_img``, captions in
    ``datasets/WebQA_caption_{test,train_dev}.json``. ``EM`` holds the keywords. A training record that says of itself
    that it belongs to WebQA's validation is counted as ``evaluation id`` and left out.
    """

    name = "webqa-ragvl"
    files: ClassVar[dict[str, str]] = {
        "train": "datasets/WebQA_train_image.json",
        "val": "datasets/WebQA_dev_image.json",
        "test": "datasets/WebQA_test_image.json",
    }
    folders = ("datasets/val_image", "finetune/tasks/train_img")

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._records(self.root / self.files[split])

    def _question(self, raw: Raw, split: str) -> Question:
        if split == "train" and raw.get("split", "train") != "train":
            raise Unusable("evaluation id", f"the record says that it belongs to the split {raw['split']!r}")
        images = {key: value for key, value in raw.items() if key not in ("txt_posFacts", "txt_negFacts")}
        return super()._question(Raw(images), split)

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        return super()._reference(Raw(raw, Keywords_A=raw.get("EM", raw.get("Keywords_A"))), question)

    def _facts(self) -> Iterator[Found]:
        for split in self.splits:
            for where, raw in self._entries(split):
                for key in ("img_posFacts", "img_negFacts"):
                    for fact in self._list(where, raw, key):
                        yield where, fact, self._captioned

    def _captioned(self, fact: Raw) -> list[Item]:
        caption = self._captions.get(str(fact.get("image_id")))
        return picture_item(Raw(fact, caption=caption) if caption else fact)

    @functools.cached_property
    def _captions(self) -> dict[str, str]:
        captions: dict[str, str] = {}
        for part in ("train_dev", "test"):
            path = self.root / f"datasets/WebQA_caption_{part}.json"
            if self._is_there(path):
                for where, name, text in members(path):
                    if isinstance(text, str):
                        captions[name] = unquoted(text)
                    else:
                        self.problems.report("malformed record", where, "the caption is no string")
        return captions

    def _locate(self, name: str) -> str:
        return Layout._locate(self, f"{name}.png")
