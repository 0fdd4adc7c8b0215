"""Training samples from records: questions with their gold items, and listed, mined or random negatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ra_blip.data.retelling import Retelling
from ra_blip.errors import DataError
from ra_blip.records import Example, Item, Question, entity, read_jsonl


class RecordExamples:
    """Questions with their gold items; negatives are listed and mined ones first, then random items of the same kind.

    Args:
        items: the knowledge base.
        questions: questions without gold items are refused.
        negatives: how many a sample.
        mined: hits.jsonl of ``ra-blip search`` over the training questions: retrieved items that are not gold and
            whose text holds no answer become hard negatives.
        categories: the question categories to use, ``*`` for any letters; all if None.
        golds: most gold items of each kind in a sample, drawn each time; 0 takes all. The question names all of them.
        rename: tell each sample with made-up names and other facts, see :class:`~ra_blip.data.retelling.Retelling`.
        view: what gives a picture's view by number, 0 being the picture itself, and
        views: how many there are to draw from.
        where: what the questions come from, for messages.

    Raises:
        DataError: a question without gold, a gold id without an item, a category that no question has.
    """

    def __init__(
        self,
        items: Iterable[Item],
        questions: Iterable[Question],
        negatives: int,
        mined: str | None = None,
        categories: Sequence[str] | None = None,
        golds: int = 0,
        rename: bool = False,
        view: Callable[[str, int], str] | None = None,
        views: int = 1,
        where: str = "data",
    ) -> None:
        self.items = {item.id: item for item in items}
        self.golds, self.view, self.views = golds, view, views
        asked = [q for q in questions if categories is None or _among(q.category or "", categories)]
        if not asked:
            raise DataError(f"{where}: no question{f' of categories {list(categories)}' if categories else ''}")
        self.questions, self.negatives = asked, negatives
        for question in asked:
            lost = [name for name in question.gold if name not in self.items]
            if lost or not question.gold:
                what = f"gold item {lost[0]!r} is not among the items" if lost else "has no gold item"
                raise DataError(f"{where}: question {question.id!r}: {what}")
        self._mined = read_mined(mined) if mined else {}
        self._retelling = Retelling(self.items, asked) if rename else None
        self._kinds: dict[str, list[Item]] = {}
        for item in self.items.values():
            self._kinds.setdefault(item.kind, []).append(item)

    def __len__(self) -> int:
        return len(self.questions)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Question ``index`` with its golds and ``negatives`` others in random order, half of them hard if possible."""
        question = self.questions[index]
        gold = self._some(question, rng)
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
        example = Example(question, gold, tuple(found[i] for i in rng.permutation(len(found))))
        return self._seen(self._retelling(example, rng) if self._retelling else example, rng)

    def _some(self, question: Question, rng: np.random.Generator) -> tuple[Item, ...]:
        """At most ``golds`` of each kind, the first gold's kind first; the question's own picture only if need be."""
        gold = [self.items[name] for name in question.gold]
        if not self.golds:
            return tuple(gold)
        kinds: dict[str, list[Item]] = {}
        for item in gold:
            kinds.setdefault(item.kind, []).append(item)
        for kind, same in kinds.items():
            others = [item for item in same if item.image is None or item.image != question.image]
            kinds[kind] = others or same
        return tuple(same[i] for same in kinds.values() for i in rng.permutation(len(same))[: self.golds])

    def _seen(self, example: Example, rng: np.random.Generator) -> Example:
        """The sample with a drawn view of each of its pictures."""
        if self.view is None or self.views < 2:
            return example
        view, views = self.view, self.views

        def other(image: str | None) -> str | None:
            return view(image, int(rng.integers(views))) if image else image

        def shown(items: Sequence[Item]) -> tuple[Item, ...]:
            return tuple(dataclasses.replace(item, image=other(item.image)) for item in items)

        question = dataclasses.replace(example.question, image=other(example.question.image))
        return Example(question, shown(example.gold), shown(example.negatives))

    def texts(self) -> Iterator[str]:
        """All texts of the training questions, their answers and the items, to train a tokenizer on."""
        for question in self.questions:
            yield from (question.text, *question.answers)
        yield from (item.full_text for item in self.items.values() if item.full_text)


class CaptionPictures:
    """The captioned pictures among some items, for pretraining. Raises :class:`DataError` where there are none.

    Args:
        items: any items.
        where: what they come from, for messages.
    """

    def __init__(self, items: Iterable[Item], where: str = "data") -> None:
        self.items = [item for item in items if item.kind == "image+text"]
        if not self.items:
            raise DataError(f"{where}: no captioned picture to pretrain on")

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index``."""
        return self.items[index]

    def texts(self) -> Iterator[str]:
        """All captions."""
        return (item.full_text for item in self.items)


class BalancedExamples(RecordExamples):
    """The same samples in an order that goes round the entities of the first golds: a question of each, then again.

    An entity with few questions is asked about as often as one with many: its questions come round again sooner.
    """

    def __len__(self) -> int:
        """Whole rounds, at least as many as it takes to have as many samples as questions."""
        return -(-len(self.questions) // len(self._groups)) * len(self._groups)

    @functools.cached_property
    def _groups(self) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for index, question in enumerate(self.questions):
            groups.setdefault(entity(self.items[question.gold[0]]), []).append(index)
        return list(groups.values())

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of the questions of one epoch, a pure function of its arguments."""
        rounds = len(self) // len(self._groups)
        turns = [_turns(group, rounds, [seed, epoch, place]) for place, group in enumerate(self._groups)]
        rng = np.random.default_rng([seed, epoch])
        return np.concatenate([np.array(turn)[rng.permutation(len(turn))] for turn in zip(*turns, strict=True)])


def _turns(group: Sequence[int], count: int, seed: Sequence[int]) -> list[int]:
    """``count`` members of a group, each as often as any other, give or take one."""
    rng = np.random.default_rng(seed)
    return [group[i] for _ in range(-(-count // len(group))) for i in rng.permutation(len(group))][:count]


def _among(category: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(category, pattern) for pattern in patterns)


def _answers(item: Item, question: Question) -> bool:
    words = item.full_text.lower()
    return any(answer.lower() in words for answer in question.answers if len(answer) > 2)


def read_mined(path: str) -> dict[str, tuple[str, ...]]:
    """The ids of the items that ``ra-blip search`` found, by question id. Raises :class:`DataError` with the line."""
    found = {}
    for number, value in read_jsonl(path):
        try:
            found[str(value["id"])] = tuple(str(hit["id"]) for hit in value["hits"])
        except (KeyError, TypeError):
            raise DataError(f"{path}, line {number}: no line of `ra-blip search` (an 'id', 'hits' with ids)") from None
    return found
