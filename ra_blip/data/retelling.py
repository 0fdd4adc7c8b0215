"""Samples told anew, with other names and other facts, so that what is learned is to read and not to know."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ra_blip.records import Example, Item, Question, entity

LONGEST_NAME = 4  # words of a made-up name
ALIKE = 0.5  # share of the made-up names that are like another of the sample
PUNCTUATION = ".,:;!?()"


class Retelling:
    """Gives the entities of a sample made-up names, and their facts other values (Longpre et al. 2021 swap answers so).

    What an entity is called is the longest run of words that all texts about it share, or its title; names are made up
    from the words of all names. The value of an item is the answer of the questions that have it as their only gold;
    another one is drawn from the answers of the same category, half of the time with other digits. Where a question has
    several golds, values stay.

    Args:
        items: the knowledge base.
        questions: the training questions.
    """

    def __init__(self, items: Mapping[str, Item], questions: Sequence[Question]) -> None:
        texts: dict[str, dict[str, None]] = {}
        for item in items.values():
            if item.full_text:
                texts.setdefault(entity(item), {})[item.full_text] = None
        titles = {entity(item): item.title for item in items.values() if item.title}
        self.names = {one: titles.get(one) or shared_run(list(said)) for one, said in texts.items()}
        self.words = sorted({word for name in self.names.values() for word in name.split()})
        self.values: dict[str, tuple[str, str]] = {}  # item id -> value, category
        self.pool: dict[str, list[str]] = {}
        for question in questions:
            golds = [items[name] for name in question.gold]
            answer = question.answers[0] if question.answers else ""
            if len(golds) == 1 and answer and answer in (golds[0].text or "") and answer not in self.names.values():
                self.values.setdefault(golds[0].id, (answer, question.category or ""))
                self.pool.setdefault(question.category or "", []).append(answer)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The sample told anew; pictures stay."""
        question, gold, negatives = example.question, example.gold, example.negatives
        if len(gold) == 1:
            before = gold[0].text or ""
            gold, negatives = self._other_values(gold, rng), self._other_values(negatives, rng)
            after = gold[0].text or ""
            if before != after:
                old = self.values[gold[0].id][0]
                new = after[len(before.partition(old)[0]) : len(after) - len(before.partition(old)[2])]
                question = dataclasses.replace(question, text=question.text.replace(before, after), answers=(new,))
        rename = self._renaming([*gold, *negatives], rng)
        answers = tuple(rename(answer) for answer in question.answers)
        question = dataclasses.replace(question, text=rename(question.text), answers=answers)
        return Example(question, _renamed(gold, rename), _renamed(negatives, rename))

    def _other_values(self, items: Iterable[Item], rng: np.random.Generator) -> tuple[Item, ...]:
        out = []
        for item in items:
            if item.id in self.values and item.text:
                item = dataclasses.replace(item, text=item.text.replace(*self._swap(item.id, rng), 1))
            out.append(item)
        return tuple(out)

    def _swap(self, name: str, rng: np.random.Generator) -> tuple[str, str]:
        """The value of an item and another one, whose digits are new in every other draw."""
        old, category = self.values[name]
        new = self.pool[category][int(rng.integers(len(self.pool[category])))]
        if rng.random() < 0.5:
            new = re.sub(r"[1-9]", lambda _: str(rng.integers(1, 10)), new)
        return old, new

    def _renaming(self, items: Sequence[Item], rng: np.random.Generator) -> _Renaming:
        old = sorted({name for item in items if (name := self.names.get(entity(item)))}, key=lambda n: (-len(n), n))
        new: dict[str, str] = {}
        for name in old:
            while (made := self._name(list(new.values()), rng)) in new.values():
                pass
            new[name] = made
        return _Renaming(new)

    def _name(self, others: Sequence[str], rng: np.random.Generator) -> str:
        """One to four words, or, to be told from it, another name of the sample with a word more or a word changed."""
        size = int(rng.integers(1, LONGEST_NAME + 1))
        words = [self.words[int(i)] for i in rng.integers(len(self.words), size=size)]
        if others and rng.random() < ALIKE:
            like = others[int(rng.integers(len(others)))].split()
            place = int(rng.integers(len(like)))
            words = [*like[:place], words[0], *like[place + int(rng.integers(2)) :]]
        return " ".join(words)


class _Renaming:
    """Replaces names in a text, longer ones first, each once: a new name is not taken for an old one."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)") if names else None

    def __call__(self, text: str) -> str:
        return self.pattern.sub(lambda found: self.names[found[0]], text) if self.pattern else text


def _renamed(items: Iterable[Item], rename: _Renaming) -> tuple[Item, ...]:
    return tuple(
        dataclasses.replace(item, text=item.text and rename(item.text), title=item.title and rename(item.title))
        for item in items
    )


def shared_run(texts: Sequence[str]) -> str:
    """The longest run of whole words that all texts share, punctuation around words aside; empty where there is none,
    or one text only."""
    if len(texts) < 2:
        return ""
    bare = [[word.strip(PUNCTUATION) for word in text.split()] for text in texts]
    words = bare[0]
    padded = [f" {' '.join(one)} " for one in bare[1:]]
    for size in range(len(words), 0, -1):
        for start in range(len(words) - size + 1):
            run = " ".join(words[start : start + size])
            if all(f" {run} " in text for text in padded):
                return run
    return ""
