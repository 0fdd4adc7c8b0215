"""The words of the generated world: names, facts, sentences, and the ways to ask."""

from __future__ import annotations

import zlib
from collections.abc import Set

import numpy as np

CONSONANTS = "bdfgklmnprstvz"
SYLLABLES: tuple[str, ...] = tuple(c + v for c in CONSONANTS for v in "aeiou")
TYPES = ("Tower", "Hall", "House", "Temple", "Palace", "Manor", "Keep", "Lodge")  # says nothing about the look
FUNCTIONS = ("library", "museum", "theatre", "market", "school", "hostel", "mint", "court")
COUNTRIES = (
    "Orvia", "Kelmar", "Tashand", "Brennia", "Quillon", "Umbrel", "Norvane", "Jastria",
    "Wendel", "Xanthe", "Halvor", "Cyrrane", "Eldmoor", "Ashkar", "Ivernia", "Yulmark",
)  # fmt: skip
MATERIALS = ("granite", "brick", "marble", "timber", "limestone", "concrete", "slate", "basalt")
YEARS = (1500, 2000)

CATEGORIES = ("captioned_picture", "text_fact", "two_pictures", "question_picture", "described_picture")
PICTURE_ASKS = ("roof", "wall", "windows", "door", "roof_shape")
FACT_ASKS = ("designer", "year", "country", "material")
COUNT_ASKS = ("windows", "door")

ASKS: dict[str, tuple[str, str]] = {
    "roof": ("What colour is the roof of {0}?", "Which colour does the roof of {0} have?"),
    "wall": ("What colour are the walls of {0}?", "Which colour do the walls of {0} have?"),
    "windows": ("How many windows does {0} have?", "How many windows can be seen on {0}?"),
    "door": ("What colour is the door of {0}?", "Which colour does the door of {0} have?"),
    "roof_shape": ("What shape is the roof of {0}?", "Which shape does the roof of {0} have?"),
    "designer": ("Who designed {0}?", "Who was the designer of {0}?"),
    "year": ("When was {0} built?", "In which year was {0} built?"),
    "country": ("In which country is {0}?", "Which country is {0} in?"),
    "material": ("What is {0} made of?", "Which material is {0} made of?"),
    "roofs": ("What colours are the roofs of {0} and {1}?", "Which colours do the roofs of {0} and {1} have?"),
}
"""Two ways to ask for each attribute; ``{0}`` is a name, a description or ``the building in this picture``."""

SHOWN = ("the building in this picture", "this building")
DESIGN = (
    "{name} was built in {year} and designed by {designer}.",
    "{name} was designed by {designer} and built in {year}.",
    "Built in {year}, {name} was designed by {designer}.",
)
PLACE = (
    "{name} is a {function} in {country}, made of {material}.",
    "{name} is made of {material} and is a {function} in {country}.",
    "Made of {material}, {name} is a {function} in {country}.",
)
STORIES = (
    "{name} was a painter from {country} who designed gardens and died in {year}.",
    "The river {name} rises in {country}; its first bridge, of {material}, was built in {year}.",
    "The {name} festival in {country} has been held since {year}, in a yard made of {material}.",
    "{name} was a mason in {country} who built walls of {material} until {year}.",
    "The {name} is a dish of {country}, first written down by {designer} in {year}.",
    "The ship {name}, built in {year}, carried {material} to {country}.",
)
"""Texts about other things than buildings, in words that the questions use too."""


def pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of ``choices``, uniformly."""
    return choices[int(rng.integers(len(choices)))]


def stable(choices: tuple[str, ...], key: str) -> str:
    """One of ``choices``, always the same for ``key``."""
    return choices[zlib.crc32(key.encode()) % len(choices)]


def word(rng: np.random.Generator) -> str:
    """Three consonant-vowel syllables with a capital: 343,000 of them."""
    return "".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=3)).capitalize()


def fresh_name(rng: np.random.Generator, taken: Set[str] = frozenset(), like: str | None = None) -> str:
    """A building's name that is not in ``taken``, nor begins with a word that is (a designer's name, say).

    Args:
        like: a name to be mistaken for: one or two of its syllables stay, and its type word half of the time.
    """
    while True:
        name = f"{word(rng)} {pick(TYPES, rng)}" if like is None else _similar(like, rng)
        if taken.isdisjoint((name, name.split()[0])):
            return name


def _similar(like: str, rng: np.random.Generator) -> str:
    stem, _, kind = like.partition(" ")
    parts = [stem[i : i + 2].lower() for i in range(0, 6, 2)]
    for place in rng.permutation(3)[: int(rng.integers(1, 3))]:
        parts[place] = SYLLABLES[int(rng.integers(len(SYLLABLES)))]
    return f"{''.join(parts).capitalize()} {kind if rng.random() < 0.5 else pick(TYPES, rng)}"


def likeness(a: str, b: str) -> int:
    """How alike two names are: syllables in the same place, plus one for the same type word."""
    return sum(a[i : i + 2].lower() == b[i : i + 2].lower() for i in range(0, 6, 2)) + (a[6:] == b[6:])


def slug(name: str) -> str:
    """``Velora Tower`` as ``velora-tower``."""
    return name.lower().replace(" ", "-")


def ask(attribute: str, rng: np.random.Generator, *subjects: str) -> str:
    """A question for ``attribute`` of ``subjects``, in one of its two wordings."""
    return pick(ASKS[attribute], rng).format(*subjects)
