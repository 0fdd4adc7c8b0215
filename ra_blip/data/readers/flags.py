"""Country flags with facts and passages, as a knowledge base and its questions.

``entities.jsonl``, one country a line: ``id``, ``name``, ``image`` (relative), ``flag_description``, ``facts`` and
``passages``. Knowledge: one picture a country, captioned with its name or, for every fourth, without any text; one
text item a fact; the passages in pieces of a few sentences. The description of a flag in words is never knowledge: it
only serves to ask for flags and their colours.

Split by country: a quarter of the countries is asked about in testing only. All of them are in the knowledge base.

Item ids are ``fr.flag``, ``fr.capital``, ``fr.climate-0``. Categories: ``text_fact`` and ``text_passage``;
``captioned_flag`` (the colours of a flag that is named); ``described_flag`` (whose flag is this, in words) and
``described_picture`` (the same for a flag without a caption, which has no answer: it is there to be found);
``flag_name`` and ``flag_fact`` are asked with the flag. What the country of a flag is called stands in the caption
only, so training has ``flag_name`` for the way from a flag to its caption, and ``second_hop``, the question with the
caption in place of the picture, instead of ``flag_fact``. A flag that looks like another's is not described or shown.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ra_blip.data.readers.reading import Reading, listing, picture, require
from ra_blip.errors import DataError
from ra_blip.images import open_image, resize
from ra_blip.records import Item, Question, read_jsonl

HELD_OUT = 0.25  # share of the countries that training never asks about
UNCAPTIONED = 0.25  # share of the flags that stand in the knowledge base without their country's name
PASSAGE_WORDS = 60  # longest piece of a passage, in words, unless one sentence is longer
LOOKALIKE = 18.0  # mean difference of 8-bit values below which two flags, squeezed to a square, are one picture
LEFT_OUT = ("national_colors", "national_symbols")  # passages that tell in words what is asked of the pictures


@dataclasses.dataclass(frozen=True)
class Country:
    """One line of ``entities.jsonl``; ``facts`` by the keys of :data:`FACTS`, for those that have one clear value."""

    id: str
    name: str
    image: str
    description: str
    facts: dict[str, str]
    passages: dict[str, str]

    @property
    def caption(self) -> str:
        """The words under its flag."""
        return f"the flag of {self.name}"


@dataclasses.dataclass(frozen=True)
class Fact:
    """One kind of fact: how it is told, asked for by name, and asked for with the flag."""

    sentence: str
    by_name: str
    by_flag: str


FACTS: dict[str, Fact] = {
    "capital": Fact(
        "The capital of {name} is {value}.",
        "What is the capital of {name}?",
        "What is the capital of the country with this flag?",
    ),
    "region": Fact(
        "{name} lies in this part of the world: {value}.",
        "In which part of the world does {name} lie?",
        "In which part of the world does the country with this flag lie?",
    ),
    "language": Fact(
        "The languages of {name}: {value}.",
        "Which language is spoken in {name}?",
        "Which language is spoken in the country with this flag?",
    ),
    "currency": Fact(
        "The currency of {name} is the {value}.",
        "What is the currency of {name}?",
        "With which currency do you pay in the country with this flag?",
    ),
}
NAME = "Which country has this flag?"
INDEPENDENCE = "When did {name} become independent?"
DESCRIBED = "Which country's flag is this: {description}?"
COLOURS = "What are the colours of the {way} bands of the flag of {name}, from {start}?"

_INDEPENDENT = re.compile(r"(\d{1,2} [A-Z][a-z]+ \d{4}) \(from [^);]+\)")
_BANDS = re.compile(r"(?:two|three|four) (?:equal )?(horizontal|vertical) bands of (.+)")
_BAND = re.compile(r"(?:and )?((?:(?:light|sky|dark|navy) )?[a-z]+)(?: \([a-z -]+\))?")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z\"])|(?<=;)\s+")


def read(root: str | Path, seed: int = 0) -> Reading:
    """Read the folder that holds ``entities.jsonl`` and its pictures.

    Args:
        root: the folder.
        seed: draws the held-out countries and the flags without a caption.

    Raises:
        DataError: the file is missing or malformed, with its line, or a picture does not exist or open.
    """
    countries = read_countries(Path(root))
    draw = random.Random(f"flags/{seed}")
    tested = set(draw.sample(range(len(countries)), max(1, round(HELD_OUT * len(countries)))))
    bare = set(draw.sample(range(len(countries)), round(UNCAPTIONED * len(countries))))
    alike = lookalikes(countries)
    reading = Reading([], [], [])
    for number, country in enumerate(countries):
        captioned = number not in bare
        reading.items.extend(country_items(country, captioned))
        split, train = (reading.questions, False) if number in tested else (reading.train_questions, True)
        split.extend(text_questions(country, captioned))
        if country.id not in alike:
            split.extend(flag_questions(country, captioned, train))
    return reading


def read_countries(root: Path) -> list[Country]:
    """All lines of ``entities.jsonl``. Raises :class:`DataError` with file and line."""
    path = root / "entities.jsonl"
    countries: dict[str, Country] = {}
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        country = _country(value, root, where)
        if country.id in countries:
            raise DataError(f"{where}: id {country.id!r} was used before; ids must be unique")
        countries[country.id] = country
    if not countries:
        raise DataError(f"{path}: holds no country")
    return list(countries.values())


def country_items(country: Country, captioned: bool) -> list[Item]:
    """The flag, the facts and the pieces of the passages of one country."""
    items = [Item(f"{country.id}.flag", text=country.caption if captioned else None, image=country.image)]
    for key, value in country.facts.items():
        text = FACTS[key].sentence.format(name=country.name, value=value)
        items.append(Item(f"{country.id}.{key}", text))
    for key, passage in country.passages.items():
        for number, piece in enumerate(pieces(passage)):
            text = f"{country.name}, {key.replace('_', ' ')}: {piece}"
            items.append(Item(f"{country.id}.{key}-{number}", text))
    return items


def text_questions(country: Country, captioned: bool) -> list[Question]:
    """The questions that name the country: its facts, its independence, and the colours of a captioned flag."""
    name = country.name
    asked = [
        _question(country, f"text-{key}", FACTS[key].by_name.format(name=name), value, key, "text_fact")
        for key, value in country.facts.items()
    ]
    date = _INDEPENDENT.match(country.passages.get("independence", ""))
    if date:
        text = INDEPENDENCE.format(name=name)
        asked.append(_question(country, "text-independence", text, date[1], "independence-0", "text_passage"))
    bands = band_colours(country.description)
    if bands and captioned:
        start = {"horizontal": "the top", "vertical": "the left"}[bands[0]]
        text = COLOURS.format(way=bands[0], name=name, start=start)
        asked.append(_question(country, "colours", text, listing(bands[1]), "flag", "captioned_flag"))
    return asked


def flag_questions(country: Country, captioned: bool, train: bool) -> list[Question]:
    """The questions that describe or show the flag; of a flag without a caption, its description only."""
    asked = []
    if country.description:
        category = "described_flag" if captioned else "described_picture"
        text = DESCRIBED.format(description=country.description)
        asked.append(_question(country, "described", text, country.name if captioned else "", "flag", category))
    if not captioned:
        return asked
    asked.append(_question(country, "name", NAME, country.name, "flag", "flag_name", shown=True))
    for key, value in country.facts.items():
        text = FACTS[key].by_flag
        if train:
            text = f"{text} {country.caption}"
            asked.append(_question(country, f"second-{key}", text, value, key, "second_hop"))
        else:
            asked.append(_question(country, f"flag-{key}", text, value, key, "flag_fact", shown=True))
    return asked


def _question(
    country: Country, kind: str, text: str, answer: str, gold: str, category: str, shown: bool = False
) -> Question:
    return Question(
        id=f"{country.id}.{kind}",
        text=text,
        image=country.image if shown else None,
        answers=(answer,) if answer else (),
        gold=(f"{country.id}.{gold}",),
        category=category,
    )


def band_colours(description: str) -> tuple[str, list[str]] | None:
    """Direction and colours of a flag described as plain bands, in order; None for any other description."""
    clause = re.split(r"[;,]? (?:with|separated|alternating)\b|;", description)[0]
    found = _BANDS.fullmatch(clause.strip(" ,"))
    if not found:
        return None
    text = re.sub(r"\(([^)]*)\)", lambda inner: inner[0].replace(",", ""), found[2])
    parts = [_BAND.fullmatch(part.strip()) for part in re.split(r", (?:and )?| and ", text)]
    return (found[1], [part[1] for part in parts if part]) if all(parts) else None


def pieces(passage: str, words: int = PASSAGE_WORDS) -> list[str]:
    """A passage cut at the ends of sentences (or at semicolons) into pieces of at most ``words`` words."""
    found: list[str] = []
    for sentence in _SENTENCE_END.split(" ".join(passage.split())):
        if found and len(found[-1].split()) + len(sentence.split()) <= words:
            found[-1] += " " + sentence
        elif sentence:
            found.append(sentence)
    return found


def lookalikes(countries: list[Country]) -> set[str]:
    """Ids of the countries whose flag cannot be told from another's once it is squeezed to a square."""
    small = np.stack([resize(open_image(country.image), 32) for country in countries]).astype(np.float32)
    alike = set()
    for number, country in enumerate(countries):
        difference = np.abs(small - small[number]).mean(axis=(1, 2, 3))
        difference[number] = np.inf
        if difference.min() < LOOKALIKE:
            alike.add(country.id)
    return alike


def _country(value: dict[str, Any], root: Path, where: str) -> Country:
    id_, name = require(value, "id", str, where), require(value, "name", str, where)
    facts, passages = require(value, "facts", dict, where), require(value, "passages", dict, where)
    described = value.get("flag_description") or ""
    if not isinstance(described, str):
        raise DataError(f"{where}: 'flag_description' must be a string, found {type(described).__name__}")
    kept = {key: require(passages, key, str, f"{where}, passages") for key in passages if key not in LEFT_OUT}
    image = picture(root, require(value, "image", str, where), where)
    return Country(id_, name, image, _description(described), _facts(facts, f"{where}, facts"), kept)


def _description(text: str) -> str:
    """What is seen: the part before meaning, history and notes; empty where there is none."""
    if not text.startswith("description: "):
        return ""
    seen = text.removeprefix("description: ")
    return re.split(r",? (?:meaning|history|note): ", seen)[0].strip()


def _facts(facts: dict[str, Any], where: str) -> dict[str, str]:
    values: dict[str, Callable[[], str]] = {
        "capital": lambda: _only(facts, "capital", where),
        "region": lambda: require(facts, "subregion", str, where),
        "language": lambda: _only(facts, "languages", where),
        "currency": lambda: _only(facts, "currencies", where),
    }
    found = {key: value() for key, value in values.items()}
    return {key: value for key, value in found.items() if value}


def _only(facts: dict[str, Any], key: str, where: str) -> str:
    """The value of a list of one; empty where there are none or several, as the question would have no one answer."""
    values = require(facts, key, list, where)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {key!r} must be a list of strings")
    return str(values[0]) if len(values) == 1 else ""
