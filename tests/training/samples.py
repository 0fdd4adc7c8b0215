"""Training samples for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ra_blip.records import Example, Item, Question
from tests.tiny import picture


def rng(seed: int = 0) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def captions(folder: Path) -> list[Item]:
    """Four captioned pictures."""
    names = ["red-blue", "green-white", "black-red", "brown-green"]
    return [Item(name, f"a view of a {name.replace('-', ' ')} hall", image=picture(folder, name)) for name in names]


def examples(folder: Path) -> list[Example]:
    """A text fact, a captioned picture, and a question asked with a picture; four negatives each."""
    facts = [Item(f"f{i}", f"{name} was designed by Moro in {1900 + i}.") for i, name in enumerate("VKABC")]
    views = [Item(f"v{i}", f"a view of {item.text}", image=item.image) for i, item in enumerate(captions(folder))]
    asked = [
        Question("text", "Who designed V?", answers=("Moro", "moro"), gold=("f0",)),
        Question("view", "What colour is the roof?", answers=("red",), gold=("v0",)),
        Question("pictured", "Which country is this?", picture(folder, "white"), ("Ardia",), ("f1", "f2")),
    ]
    return [
        Example(asked[0], (facts[0],), tuple(facts[1:])),
        Example(asked[1], (views[0],), (*views[1:], facts[3])),
        Example(asked[2], (facts[1], facts[2]), (views[1], facts[3], facts[4], views[2])),
    ]
