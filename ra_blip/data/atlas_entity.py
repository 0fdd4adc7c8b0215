"""A building of the generated world: its look, its name, its facts, and the items that tell of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ra_blip.data.atlas_look import NUMBERS, Look
from ra_blip.data.atlas_text import (
    COUNTRIES,
    DESIGN,
    FACT_ASKS,
    FUNCTIONS,
    MATERIALS,
    PLACE,
    YEARS,
    fresh_name,
    pick,
    slug,
    stable,
    word,
)
from ra_blip.records import Item

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Entity:
    """A building.

    Attributes:
        id: ``velora-tower``, or ``picture-0123`` for one without a name.
        name: None for a building that is known by its picture only.
        picture: stem of its picture files, which stays when it is renamed.
    """

    id: str
    name: str | None
    look: Look
    designer: str
    year: int
    country: str
    material: str
    function: str
    split: Split
    picture: str

    def renamed(self, rng: np.random.Generator, taken: Set[str] = frozenset(), like: str | None = None) -> Entity:
        """The same look and pictures under a fresh name, with fresh facts.

        Args:
            taken: names and designers that must not be used.
            like: a name that the fresh one shall resemble.
        """
        name = fresh_name(rng, taken, like)
        return dataclasses.replace(self, id=slug(name), name=name, **draw_facts(rng, taken))

    def nameless(self, id: str) -> Entity:
        """The same look and pictures without a name."""
        return dataclasses.replace(self, id=id, name=None)

    def answer(self, attribute: str) -> str:
        """The answer to a question for ``attribute``, one of the asks of :mod:`ra_blip.data.atlas_text`."""
        if attribute == "windows":
            return NUMBERS[self.look.windows]
        return str(getattr(self if attribute in FACT_ASKS else self.look, attribute))

    def image(self, folder: str | Path, view: int) -> str:
        """Path of one of its four views."""
        return str(Path(folder) / "images" / f"{self.picture}_{view}.png")

    def picture_item(self, folder: str | Path, view: int = 0) -> Item:
        """Its picture with the name as the caption, or without words if it has no name."""
        image = self.image(folder, view)
        if self.name is None:
            return Item(id=self.id, image=image)
        return Item(id=f"{self.id}.view", text=f"a view of {self.name}", image=image)

    def design_item(self) -> Item:
        """The text that says who designed it and when it was built."""
        return self._text("design", DESIGN)

    def place_item(self) -> Item:
        """The text that says where it is and what it is made of."""
        return self._text("place", PLACE)

    def fact_item(self, attribute: str) -> Item:
        """The text that answers a question for ``attribute``."""
        return self.design_item() if attribute in ("designer", "year") else self.place_item()

    def _text(self, kind: str, templates: tuple[str, ...]) -> Item:
        return Item(id=f"{self.id}.{kind}", text=stable(templates, self.id + kind).format(**vars(self)))


def draw_facts(rng: np.random.Generator, taken: Set[str] = frozenset()) -> dict[str, Any]:
    """Random designer (not in ``taken``), year, country, material and function."""
    designer = word(rng)
    while designer in taken:
        designer = word(rng)
    return {
        "designer": designer,
        "year": int(rng.integers(*YEARS)),
        "country": pick(COUNTRIES, rng),
        "material": pick(MATERIALS, rng),
        "function": pick(FUNCTIONS, rng),
    }
