"""Training samples drawn from the generated world, afresh each time; test buildings never occur in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ra_blip.data.atlas import World
from ra_blip.data.atlas_entity import Entity
from ra_blip.data.atlas_look import COLOURS, paraphrase, random_look
from ra_blip.data.atlas_questions import (
    VIEWS,
    captioned_picture,
    described_picture,
    question_picture,
    text_fact,
    two_pictures,
)
from ra_blip.data.atlas_text import CATEGORIES, COUNT_ASKS, FACT_ASKS, PICTURE_ASKS, TYPES, pick
from ra_blip.errors import ConfigError
from ra_blip.records import Example, Item, Question, with_context

HARD = 0.5  # share of the distractors that are made hard
SAME = 0.5  # each other item of the very building stands among the distractors this often, as retrieval finds it, too
MIXED = 0.2  # share of the distractors that are of another kind than the gold
FIRST_HOP = 0.75  # share of first hops among the questions asked with a picture that a retriever learns from
CLOSEST = 12  # hard distractors are drawn from so many of the most similar
Purpose = Literal["retrieve", "rerank", "answer"]


class AtlasExamples:
    """Endless training samples about the training buildings of a world.

    Args:
        world: the world; its test buildings, their names and their designers are never used.
        folder: where :meth:`World.write` put the pictures.
        purpose: ``retrieve``: a question asked with a picture is mostly the first hop (gold is the captioned picture),
            sometimes the second, which is like a question in words; ``answer`` and ``rerank``: always the second. Only
            for ``answer`` are pictures without words unlike each other.
        categories: the question categories to draw from; all if None.
        rename: give every building in a sample a fresh name and fresh facts; its pictures stay.
        negatives: distractors in each sample.

    Raises:
        ConfigError: unknown category, or more negatives than the world has buildings for.
    """

    def __init__(
        self,
        world: World,
        folder: str | Path,
        purpose: Purpose,
        categories: Sequence[str] | None = None,
        rename: bool = False,
        negatives: int = 4,
    ) -> None:
        self.categories = tuple(categories) if categories is not None else CATEGORIES
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown or not self.categories:
            raise ConfigError(f"data.categories: {unknown} is not known; choose from {', '.join(CATEGORIES)}")
        self.folder, self.purpose, self.rename, self.negatives = str(folder), purpose, rename, negatives
        self.named, unnamed = world.of("train")
        self.pictured = self.named + unnamed if rename else unnamed
        self._reserved = world.reserved()
        limit = min(len(self.named) - 2, len(self.pictured) - 1)
        if not 0 <= negatives <= limit:
            raise ConfigError(f"{negatives} negatives a sample: {len(world.named)} entities allow 0 to {limit}")
        self._named_looks = _codes([e.look.key for e in self.named])
        self._pictured_looks = _codes([e.look.key for e in self.pictured])
        self._names = _codes([_pieces(str(e.name)) for e in self.named])

    def __len__(self) -> int:
        """Samples after which every named training building was asked about once in every category."""
        return len(self.named) * len(self.categories)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """A sample whose category and building follow from ``index`` (any integer from 0), the rest from ``rng``."""
        place, kind = divmod(index, len(self.categories))
        category = self.categories[kind]
        example = _DRAWS[category](self, place, rng)
        return dataclasses.replace(example, question=dataclasses.replace(example.question, id=f"{category}.{index}"))

    def captioned_picture(self, place: int, rng: np.random.Generator) -> Example:
        """A question in words, its captioned picture, and captioned pictures of others."""
        cast = _Cast(self, rng)
        entity, number = cast.lead(place)
        question = captioned_picture(entity, pick(PICTURE_ASKS, rng), rng)
        others = [self._mixed(e, self._picture(e, rng), rng) for e in cast.others([number], [entity])]
        own = [entity.design_item(), entity.place_item()]
        return self._example(question, (self._picture(entity, rng),), others, own, rng)

    def text_fact(self, place: int, rng: np.random.Generator) -> Example:
        """A question in words, its text, and texts of the same kind about others."""
        cast = _Cast(self, rng)
        entity, number = cast.lead(place)
        attribute = pick(FACT_ASKS, rng)
        return self._fact(text_fact(entity, attribute, rng), attribute, entity, number, cast)

    def two_pictures(self, place: int, rng: np.random.Generator) -> Example:
        """A question about two buildings, their captioned pictures, and captioned pictures of others."""
        cast = _Cast(self, rng)
        first, number = cast.lead(place)
        while True:
            chosen = int(rng.integers(len(self.named)))
            if chosen != number and (self.named[chosen].look.roof != first.look.roof or self._one_roof):
                break
        second = cast.name(self.named[chosen], like=None)
        pair = [first, second]
        if rng.random() < 0.5:
            pair.reverse()
        others = [self._mixed(e, self._picture(e, rng), rng) for e in cast.others([number, chosen], pair)]
        own = [pair[0].design_item(), pair[1].place_item(), pair[0].place_item(), pair[1].design_item()]
        gold = (self._picture(pair[0], rng), self._picture(pair[1], rng))
        example = self._example(two_pictures(pair[0], pair[1], rng), gold, others, own, rng)
        return dataclasses.replace(example, parts=tuple(entity.look.roof for entity in pair))

    def question_picture(self, place: int, rng: np.random.Generator) -> Example:
        """A question asked with a picture: the first hop, to the captioned picture, or the second, to the text."""
        cast = _Cast(self, rng)
        entity, number = cast.lead(place)
        attribute = pick(FACT_ASKS, rng)
        shown, kept = (int(view) for view in rng.permutation(VIEWS)[:2])
        question = question_picture(entity, attribute, self.folder, shown, rng)
        view = entity.picture_item(self.folder, kept)
        if self.purpose != "retrieve" or rng.random() >= FIRST_HOP:
            return self._fact(with_context(question, view), attribute, entity, number, cast)
        others = [self._picture(e, rng) for e in cast.others([number], [entity], alike=True)]
        own = [item for item in (entity.design_item(), entity.place_item()) if item.id not in question.gold]
        return self._example(question, (view,), others, own, rng)

    def described_picture(self, place: int, rng: np.random.Generator) -> Example:
        """A description, the one picture that fits it, and pictures without words of others, mostly similar."""
        number = place % len(self.pictured)
        entity = self._wordless(number)
        question = described_picture(entity, pick(COUNT_ASKS, rng), rng)
        alike = 0.0 if self.purpose == "answer" else 0.7  # a reader that starts from nothing needs plain differences
        chosen = _choose(self._pictured_looks, [number], self.negatives, alike, rng)
        others = [self._picture(self._wordless(other), rng) for other in chosen]
        return self._example(question, (self._picture(entity, rng),), others, [], rng)

    def _fact(self, question: Question, attribute: str, entity: Entity, number: int, cast: _Cast) -> Example:
        gold = entity.fact_item(attribute)
        others = [self._mixed(e, e.fact_item(attribute), cast.rng) for e in cast.others([number], [entity])]
        own = [entity.design_item(), entity.place_item(), self._picture(entity, cast.rng)]
        return self._example(question, (gold,), others, [item for item in own if item.id != gold.id], cast.rng)

    def _example(
        self, question: Question, gold: tuple[Item, ...], others: list[Item], own: list[Item], rng: np.random.Generator
    ) -> Example:
        """Put together; some of the others give way to the building's own items that do not answer."""
        if own and others:
            count = int(rng.binomial(min(2, len(own), len(others) - 1), SAME)) if len(others) > 1 else 0
            own = [own[int(i)] for i in rng.permutation(len(own))[:count]]
            others = [others[int(i)] for i in rng.permutation(len(others))]
            others = own + others[count:]
            others = [others[int(i)] for i in rng.permutation(len(others))]
        ids = tuple(item.id for item in gold)
        return Example(dataclasses.replace(question, gold=ids), gold, tuple(others))

    def _picture(self, entity: Entity, rng: np.random.Generator) -> Item:
        return entity.picture_item(self.folder, int(rng.integers(VIEWS)))

    def _mixed(self, entity: Entity, usual: Item, rng: np.random.Generator) -> Item:
        """A distractor: mostly the item of the gold's kind, now and then another item of the same building."""
        if rng.random() >= MIXED:
            return usual
        return (self._picture(entity, rng), entity.design_item(), entity.place_item())[int(rng.integers(3))]

    def _wordless(self, number: int) -> Entity:
        entity = self.pictured[number]
        return entity if entity.name is None else entity.nameless(f"picture-{entity.picture}")

    @property
    def _one_roof(self) -> bool:
        return len({e.look.roof for e in self.named}) == 1


class _Cast:
    """The buildings of one sample, each under the name it has there, no name twice."""

    def __init__(self, examples: AtlasExamples, rng: np.random.Generator) -> None:
        self.examples = examples
        self.rng = rng
        self.taken = set(examples._reserved)

    def name(self, entity: Entity, like: str | None) -> Entity:
        """The building under a fresh name if the samples are renamed, else as it is."""
        if not self.examples.rename:
            return entity
        entity = entity.renamed(self.rng, self.taken, like)
        self.taken.add(str(entity.name))
        return entity

    def lead(self, place: int) -> tuple[Entity, int]:
        """The building that is asked about, and its number."""
        number = place % len(self.examples.named)
        return self.name(self.examples.named[number], like=None), number

    def others(self, numbers: list[int], leads: list[Entity], alike: bool = False) -> list[Entity]:
        """Distractors; half are hard: they look alike if ``alike``, else are called alike."""
        own, rng = self.examples, self.rng
        by_name = not alike and not own.rename
        codes = own._names if by_name else own._named_looks
        chosen = _choose(codes, numbers, own.negatives, HARD if alike or by_name else 0.0, rng)
        named = []
        for number in chosen:
            lead = leads[int(rng.integers(len(leads)))]
            hard = not alike and rng.random() < HARD
            named.append(self.name(own.named[number], str(lead.name) if hard else None))
        return named


_DRAWS: dict[str, Callable[[AtlasExamples, int, np.random.Generator], Example]] = {
    "captioned_picture": AtlasExamples.captioned_picture,
    "text_fact": AtlasExamples.text_fact,
    "two_pictures": AtlasExamples.two_pictures,
    "question_picture": AtlasExamples.question_picture,
    "described_picture": AtlasExamples.described_picture,
}


def _pieces(name: str) -> tuple[str, ...]:
    return (name[:2].lower(), name[2:4], name[4:6], name[6:])


def _codes(rows: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Rows of strings as numbers, (len(rows), columns): equal where the strings of a column are."""
    return np.stack([np.unique(column, return_inverse=True)[1] for column in zip(*rows, strict=True)], axis=1)


def _choose(codes: np.ndarray, without: list[int], count: int, hard: float, rng: np.random.Generator) -> list[int]:
    """``count`` different rows, none of ``without``; each is with probability ``hard`` one of those most like it."""
    close = np.max([(codes == codes[number]).sum(axis=1) for number in without], axis=0) + rng.random(len(codes))
    close[without] = -1.0
    order = np.argsort(-close)[: len(codes) - len(without)]
    near = rng.permutation(order[: max(CLOSEST, count)])
    wanted = min(int(rng.binomial(count, hard)), len(near))
    chosen = [int(number) for number in near[:wanted]]
    rest = [int(number) for number in rng.permutation(order) if number not in chosen]
    return [int(number) for number in rng.permutation(chosen + rest[: count - wanted])]


def texts(world: World, n: int, rng: np.random.Generator) -> Iterator[str]:
    """``n`` questions, texts, captions and answers with freshly made names, to train a tokenizer on.

    Names and designers of the test split are not used; buildings and looks are made up for the purpose.
    """
    taken = world.reserved()
    keys = {entity.look.key for entity in world.entities if entity.split == "test"}
    written = 0
    while written < n:
        look = random_look(rng)
        if look.key in keys:
            continue
        entity, other = (dataclasses.replace(world.named[0], look=look).renamed(rng, taken) for _ in range(2))
        for line in _lines(entity, other, rng):
            if written < n:
                yield line
                written += 1


def _lines(entity: Entity, other: Entity, rng: np.random.Generator) -> list[str]:
    fact = text_fact(entity, pick(FACT_ASKS, rng), rng)
    asked = [
        captioned_picture(entity, pick(PICTURE_ASKS, rng), rng),
        fact,
        two_pictures(entity, other, rng),
        question_picture(entity, pick(FACT_ASKS, rng), "", 0, rng),
        described_picture(entity, pick(COUNT_ASKS, rng), rng),
    ]
    roofs = f"{pick(COLOURS, rng)} and {pick(COLOURS, rng)}"
    items = [entity.picture_item(""), entity.design_item(), other.place_item()]
    return [
        *(question.text for question in asked),
        *(item.full_text for item in items),
        paraphrase(entity.look, rng),
        *fact.answers,
        roofs,
        pick(TYPES, rng),
    ]
