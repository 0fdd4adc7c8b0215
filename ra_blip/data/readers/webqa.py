"""WebQA (Chang et al., CVPR 2022) as its authors publish it: two JSON files, and the pictures in one large table.

Knowledge: every snippet and every captioned picture that a question of any split names, as one pool (what
full-corpus retrieval searches). Item ids are WebQA's image and snippet ids as strings.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.json_stream import members
from ra_blip.data.readers.layout import Found, Layout
from ra_blip.data.readers.raw import Raw, Unusable, without
from ra_blip.data.readers.webqa_tsv import TsvPictures
from ra_blip.records import Item, Question

UNKNOWN_KEYWORDS = "TBD"  # what stands for the keywords of text questions
# list of facts -> the key of a fact's id
_GOLD = {"img_posFacts": "image_id", "txt_posFacts": "snippet_id"}
_OTHERS = {"img_negFacts": "image_id", "txt_negFacts": "snippet_id"}


class WebQA(Layout):
    """``WebQA_train_val.json``, ``WebQA_test.json``, ``imgs.tsv`` and ``imgs.lineidx``, each of them optional.

    The two JSON files are one object each; they are read record by record and never held whole. Questions of ``test``
    have no answers, and their candidates are not divided into gold and negatives. A question's ``category`` is
    WebQA's ``Qcate``: ``text``, or ``YesNo``, ``Others``, ``choose``, ``number``, ``color``, ``shape`` of a picture.

    References hold ``category``, ``keywords`` (of picture questions), ``gold`` and ``answers``.
    """

    name = "webqa"
    files: ClassVar[dict[str, str]] = {
        "train": "WebQA_train_val.json",
        "val": "WebQA_train_val.json",
        "test": "WebQA_test.json",
    }

    def items(self) -> Iterator[Item]:
        """Pictures and snippets in the order in which questions name them."""
        return self._knowledge(self._facts(), repeated=True)

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        for where, raw in self._records(self.root / self.files[split]):
            if raw.get("split") == split:
                yield where, raw
            elif raw.get("split") not in self.files:
                self.problems.report("malformed record", where, f"unknown split {raw.get('split')!r}")

    def _records(self, path: Path) -> Iterator[tuple[str, Raw]]:
        named = ((at, {**raw, "qid": guid} if isinstance(raw, dict) else raw) for at, guid, raw in members(path))
        return self._objects(named)

    def _question(self, raw: Raw, split: str) -> Question:
        gold, negatives = _named(raw, _GOLD), _named(raw, _OTHERS)
        return Question(
            raw.identity("qid"),
            raw.question("Q", unquoted),
            answers=raw.answers("A", unquoted),
            gold=without(gold, ()),
            negatives=without(negatives, gold),
            category=raw.field("Qcate", str) if "Qcate" in raw else None,
        )

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        keywords = raw.get("Keywords_A")
        known = {"keywords": unquoted(keywords)} if isinstance(keywords, str) and keywords != UNKNOWN_KEYWORDS else {}
        return {**super()._reference(raw, question), "category": question.category, **known}

    def _facts(self) -> Iterator[Found]:
        for path in dict.fromkeys(self.root / self.files[split] for split in self.splits):
            for where, raw in self._records(path):
                for key in ("img_posFacts", "img_negFacts", "img_Facts"):
                    for fact in self._list(where, raw, key):
                        yield where, fact, picture_item
                for key in ("txt_posFacts", "txt_negFacts", "txt_Facts"):
                    for fact in self._list(where, raw, key):
                        yield where, fact, snippet_item

    def _locate(self, name: str) -> str:
        return self._pictures.find(name)

    @functools.cached_property
    def _pictures(self) -> TsvPictures:
        return TsvPictures(self.root / "imgs.tsv")


def picture_item(fact: Raw) -> list[Item]:
    """A picture with title and caption; its picture is named by its id alone. Raises :class:`Unusable`."""
    name = fact.identity("image_id")
    caption, title, url = (fact.words(key, unquoted) for key in ("caption", "title", "url"))
    return [Item(name, caption, title, name, url)]


def snippet_item(fact: Raw) -> list[Item]:
    """A text snippet. Raises :class:`Unusable`."""
    name = fact.identity("snippet_id")
    text, title, url = (fact.words(key, unquoted) for key in ("fact", "title", "url"))
    if text is None:
        raise Unusable("empty item", f"snippet {name!r} has no text")
    return [Item(name, text, title, source=url)]


def unquoted(text: str) -> str:
    """WebQA's texts often stand in double quotes of their own, and hold carriage returns."""
    return text.strip().strip('"').replace("\r", "").strip()


def _named(raw: Raw, keys: dict[str, str]) -> list[str]:
    return [fact.identity(name) for key, name in keys.items() for fact in raw.objects(key)]
