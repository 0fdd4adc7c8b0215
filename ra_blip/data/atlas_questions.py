"""The five kinds of question about the generated world."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ra_blip.data.atlas_entity import Entity
from ra_blip.data.atlas_look import describe
from ra_blip.data.atlas_text import COUNT_ASKS, FACT_ASKS, PICTURE_ASKS, SHOWN, ask, pick
from ra_blip.records import Question

VIEWS = 4


def captioned_picture(entity: Entity, attribute: str, rng: np.random.Generator) -> Question:
    """A question in words whose answer is in the captioned picture."""
    text = ask(attribute, rng, str(entity.name))
    return _question("captioned_picture", text, entity.answer(attribute), f"{entity.id}.view")


def text_fact(entity: Entity, attribute: str, rng: np.random.Generator) -> Question:
    """A question in words whose answer is in a text."""
    text = ask(attribute, rng, str(entity.name))
    return _question("text_fact", text, entity.answer(attribute), entity.fact_item(attribute).id)


def two_pictures(first: Entity, second: Entity, rng: np.random.Generator) -> Question:
    """A question whose answer is in two captioned pictures, in the order of the question."""
    text = ask("roofs", rng, str(first.name), str(second.name))
    answer = f"{first.look.roof} and {second.look.roof}"
    return _question("two_pictures", text, answer, f"{first.id}.view", f"{second.id}.view")


def question_picture(
    entity: Entity, attribute: str, folder: str | Path, view: int, rng: np.random.Generator
) -> Question:
    """A question asked with a picture: who is in it is told by another picture's caption, the answer by a text."""
    text = ask(attribute, rng, pick(SHOWN, rng))
    question = _question("question_picture", text, entity.answer(attribute), entity.fact_item(attribute).id)
    return dataclasses.replace(question, image=entity.image(folder, view))


def described_picture(entity: Entity, attribute: str, rng: np.random.Generator) -> Question:
    """A question for the door or the windows of a building that is described, not named; its picture has no words."""
    text = ask(attribute, rng, f"the {describe(entity.look)}")
    return _question("described_picture", text, entity.answer(attribute), entity.id)


def _question(category: str, text: str, answer: str, *gold: str) -> Question:
    return Question(id=category, text=text, answers=(answer,), gold=gold, category=category)


def _rounds(
    entities: list[Entity], attributes: tuple[str, ...], count: int, rng: np.random.Generator
) -> list[tuple[Entity, str]]:
    """Up to ``count`` different (building, attribute): every building once, then once more, and so on."""
    order = [entities[i] for i in rng.permutation(len(entities))]
    first = [int(rng.integers(len(attributes))) for _ in order]
    return [
        (entity, attributes[(start + turn) % len(attributes)])
        for turn in range(len(attributes))
        for entity, start in zip(order, first, strict=True)
    ][:count]


def ask_about(
    category: str,
    named: list[Entity],
    unnamed: list[Entity],
    folder: str | Path,
    count: int,
    rng: np.random.Generator,
) -> list[Question]:
    """Up to ``count`` different questions of one category about these buildings, with :data:`MAKERS`."""
    return MAKERS[category](unnamed if category == "described_picture" else named, folder, count, rng)


def _make_captioned(entities: list[Entity], folder: str | Path, n: int, rng: np.random.Generator) -> list[Question]:
    return [captioned_picture(e, a, rng) for e, a in _rounds(entities, PICTURE_ASKS, n, rng)]


def _make_facts(entities: list[Entity], folder: str | Path, n: int, rng: np.random.Generator) -> list[Question]:
    return [text_fact(e, a, rng) for e, a in _rounds(entities, FACT_ASKS, n, rng)]


def _make_pairs(entities: list[Entity], folder: str | Path, n: int, rng: np.random.Generator) -> list[Question]:
    order = [entities[i] for i in rng.permutation(len(entities))]
    pairs = (
        (first, order[(place + step) % len(order)])
        for step in range(1, len(order))
        for place, first in enumerate(order)
    )
    different = ((a, b) for a, b in pairs if a.look.roof != b.look.roof)
    return [two_pictures(a, b, rng) for a, b in itertools.islice(different, n)]


def _make_shown(entities: list[Entity], folder: str | Path, n: int, rng: np.random.Generator) -> list[Question]:
    asked = _rounds(entities, FACT_ASKS, n, rng)
    return [question_picture(e, a, folder, int(rng.integers(1, VIEWS)), rng) for e, a in asked]


def _make_described(entities: list[Entity], folder: str | Path, n: int, rng: np.random.Generator) -> list[Question]:
    return [described_picture(e, a, rng) for e, a in _rounds(entities, COUNT_ASKS, n, rng)]


MAKERS: dict[str, Callable[[list[Entity], str | Path, int, np.random.Generator], list[Question]]] = {
    "captioned_picture": _make_captioned,
    "text_fact": _make_facts,
    "two_pictures": _make_pairs,
    "question_picture": _make_shown,
    "described_picture": _make_described,
}
