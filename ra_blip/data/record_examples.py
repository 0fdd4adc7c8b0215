"""Training samples from files: ``items.jsonl`` and ``questions.jsonl``, with listed, mined or random negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ra_blip.errors import DataError
from ra_blip.records import Example, Item, Question, by_id, read_items, read_jsonl, read_questions


class RecordExamples:
    """Questions with their gold items; negatives are the listed and mined ones first, then random items of the same kind.

    Args:
        items: path of items.jsonl.
        questions: path of questions.jsonl; questions without gold items are refused.
        negatives: how many a sample.
        mined: hits.jsonl of ``ra-blip search`` over the training questions: retrieved items that are not gold and
            whose text holds no answer become hard negatives.
        categories: the question categories to use; all if None.

    Raises:
        DataError: a question without gold, a gold id without an item, a category that no question has.
    """

    def __init__(
        self,
        items: str,
        questions: str,
        negatives: int,
        mined: str | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.items = by_id(read_items(items))
        asked = [q for q in read_questions(questions) if categories is None or q.category in categories]
        if not asked:
            raise DataError(f"{questions}: no question of categories {list(categories or [])}")
        self.questions, self.negatives = asked, negatives
        for question in asked:
            lost = [name for name in question.gold if name not in self.items]
            if lost or not question.gold:
                what = f"gold item {lost[0]!r} is not in {items}" if lost else "has no gold item"
                raise DataError(f"{questions}: question {question.id!r}: {what}")
        self._mined = _read_mined(mined) if mined else {}
        self._kinds: dict[str, list[Item]] = {}
        for item in self.items.values():
            self._kinds.setdefault(item.kind, []).append(item)

    def __len__(self) -> int:
        return len(self.questions)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Question ``index`` with its golds and ``negatives`` others in random order, half of them hard where there are any."""
        question = self.questions[index]
        gold = tuple(self.items[name] for name in question.gold)
        hard = [self.items[n] for n in (*question.negatives, *self._mined.get(question.id, ())) if n in self.items]
        hard = [item for item in hard if item.id not in question.gold and not _answers(item, question)]
        wanted = min(len(hard), (self.negatives + 1) // 2)
        chosen = {hard[i].id: hard[i] for i in rng.permutation(len(hard))[:wanted]}
        pool = self._kinds[gold[0].kind]
        for i in rng.permutation(len(pool))[: 4 * self.negatives + len(gold)]:
            if len(chosen) >= self.negatives:
                break
            if pool[i].id not in question.gold and not _answers(pool[i], question):
                chosen.setdefault(pool[i].id, pool[i])
        found = list(chosen.values())
        return Example(question, gold, tuple(found[i] for i in rng.permutation(len(found))))

    def texts(self) -> Iterator[str]:
        """All texts of the training questions, their answers and the items, to train a tokenizer on."""
        for question in self.questions:
            yield from (question.text, *question.answers)
        yield from (item.full_text for item in self.items.values() if item.full_text)


class CaptionPictures:
    """Captioned pictures of an items file, for pretraining. Raises :class:`DataError` where there are none."""

    def __init__(self, items: str) -> None:
        self.items = [item for item in read_items(items) if item.kind == "image+text"]
        if not self.items:
            raise DataError(f"{items}: no captioned picture to pretrain on")

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index``."""
        return self.items[index]

    def texts(self) -> Iterator[str]:
        """All captions."""
        return (item.full_text for item in self.items)


def _answers(item: Item, question: Question) -> bool:
    words = item.full_text.lower()
    return any(answer.lower() in words for answer in question.answers if len(answer) > 2)


def _read_mined(path: str) -> dict[str, tuple[str, ...]]:
    return {value["id"]: tuple(hit["id"] for hit in value["hits"]) for _, value in read_jsonl(path)}
