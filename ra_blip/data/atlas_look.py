"""What a building of the generated world looks like, and how that is said in words."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

SHAPES = ("round", "square", "stepped", "twin", "tall", "tapered")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
ROOF_SHAPES = ("pointed", "flat", "domed", "slanted")
EMBLEMS = ("flag", "clock", "star", "moon", "globe")
DOORS = ("red", "yellow", "green", "blue", "white", "black")
NUMBERS = ("zero", "one", "two", "three", "four", "five")

Key = tuple[str, str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Look:
    """The visible attributes of a building.

    Attributes:
        shape: one of ``SHAPES``, the outline of the walls.
        wall: one of ``COLOURS``.
        roof: one of ``COLOURS``, never the wall's.
        roof_shape: one of ``ROOF_SHAPES``.
        emblem: one of ``EMBLEMS``, stands on the roof.
        door: one of ``DOORS``, never the wall's colour.
        windows: 1 to 5.
    """

    shape: str
    wall: str
    roof: str
    roof_shape: str
    emblem: str
    door: str
    windows: int

    @property
    def key(self) -> Key:
        """What a description names and what tells buildings apart: all but the door and the windows."""
        return (self.shape, self.wall, self.roof, self.roof_shape, self.emblem)


ALL_KEYS: tuple[Key, ...] = tuple(
    key for key in itertools.product(SHAPES, COLOURS, COLOURS, ROOF_SHAPES, EMBLEMS) if key[1] != key[2]
)
"""Every combination that a description can tell apart: 6 x 8 x 7 x 4 x 5 = 6,720."""


def complete(key: Key, rng: np.random.Generator) -> Look:
    """A look with this key and a random door and number of windows."""
    doors = [door for door in DOORS if door != key[1]]
    return Look(*key, door=doors[rng.integers(len(doors))], windows=int(rng.integers(1, 6)))


def random_look(rng: np.random.Generator) -> Look:
    """A look with every attribute drawn uniformly from what is allowed."""
    return complete(ALL_KEYS[rng.integers(len(ALL_KEYS))], rng)


def count_windows(look: Look) -> str:
    """``one window`` or ``three windows``."""
    return f"{NUMBERS[look.windows]} window{'s' if look.windows > 1 else ''}"


def describe(look: Look) -> str:
    """The key in words: enough to tell the building from every other, silent on door and windows."""
    return f"{look.shape} {look.wall} building with a {look.roof_shape} {look.roof} roof and a {look.emblem}"


def caption(look: Look) -> str:
    """All attributes: ``a round white building with a pointed red roof, three windows, a blue door and a star``."""
    return (
        f"a {look.shape} {look.wall} building with a {look.roof_shape} {look.roof} roof, "
        f"{count_windows(look)}, a {look.door} door and a {look.emblem}"
    )


def paraphrase(look: Look, rng: np.random.Generator) -> str:
    """:func:`caption` with the details in another order or another wording; every attribute is still named."""
    start = ("", "a picture of ", "here is ")[rng.integers(3)]
    form = int(rng.integers(4))
    if form == 0:
        return start + caption(look)
    details = [f"a {look.roof_shape} {look.roof} roof", count_windows(look), f"a {look.door} door", f"a {look.emblem}"]
    if form == 1:
        a, b, c, d = (details[i] for i in rng.permutation(4))
        return f"{start}a {look.shape} {look.wall} building with {a}, {b}, {c} and {d}"
    if form == 2:
        return (
            f"{start}the {look.wall} building, {look.shape}, with a {look.emblem} on its {look.roof} {look.roof_shape} "
            f"roof, a {look.door} door and {count_windows(look)}"
        )
    roof, windows, door, emblem = details
    return f"{start}a {look.shape} building: {look.wall} walls, {roof}, {emblem}, {windows} and {door}"
