"""Drawing a building of the generated world. The same look and view seed give the same bytes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

from ra_blip.data.atlas_look import Look
from ra_blip.data.atlas_scenery import Colour, Scene, choose_scene, draw_scenery, mix

PALETTE: dict[str, Colour] = {
    "red": (204, 52, 48),
    "orange": (240, 138, 34),
    "yellow": (249, 216, 66),
    "green": (62, 148, 78),
    "blue": (52, 106, 200),
    "purple": (134, 78, 172),
    "white": (246, 244, 238),
    "black": (50, 50, 58),
}
SUPERSAMPLING = 2
INK: Colour = (44, 42, 52)
WINDOW = (0.047, 0.058)  # half width and half height
Profile = tuple[tuple[float, float], ...]  # (half width, height) from the ground up
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Where the parts of one shape are, in units of the picture at scale 1, from the middle of the building's foot.

    Attributes:
        walls: (middle, outline) of each part of the walls, back to front.
        roofs: (middle, height, half width, roof height at its pointed best) of each roof.
        ledges: (half width, height) of flat strips in the roof's colour.
        windows: positions for one to five windows.
        mast: height of the emblem if it does not stand on a roof, but on a mast between two.
    """

    walls: tuple[tuple[float, Profile], ...]
    roofs: tuple[tuple[float, float, float, float], ...]
    windows: tuple[tuple[Point, ...], ...]
    ledges: tuple[tuple[float, float], ...] = ()
    mast: float | None = None


def _rows(upper: float, lower: float, spread: float, flank: float) -> tuple[tuple[Point, ...], ...]:
    """Positions of one to five windows: up to three in the upper row, up to two beside the door."""
    pair = ((-flank, lower), (flank, lower))
    two = ((-0.75 * spread, upper), (0.75 * spread, upper))
    three = ((-spread, upper), (0.0, upper), (spread, upper))
    return (((0.0, upper),), two, three, two + pair, three + pair)


_BARREL = tuple((0.3 * math.sqrt(1 - (0.76 * (step / 6 - 1)) ** 2), 0.42 * step / 12) for step in range(13))
_TOWERS = (-0.2, 0.2)
PLANS: dict[str, _Plan] = {
    "square": _Plan(
        walls=((0.0, ((0.25, 0.0), (0.25, 0.4))),),
        roofs=((0.0, 0.4, 0.25, 0.22),),
        windows=_rows(0.305, 0.125, 0.145, 0.158),
    ),
    "round": _Plan(walls=((0.0, _BARREL),), roofs=((0.0, 0.42, 0.2, 0.21),), windows=_rows(0.295, 0.13, 0.14, 0.168)),
    "tapered": _Plan(
        walls=((0.0, ((0.29, 0.0), (0.17, 0.43))),),
        roofs=((0.0, 0.43, 0.17, 0.2),),
        windows=_rows(0.3, 0.12, 0.122, 0.165),
    ),
    "tall": _Plan(
        walls=((0.0, ((0.19, 0.0), (0.19, 0.5))),),
        roofs=((0.0, 0.5, 0.19, 0.18),),
        windows=_rows(0.415, 0.277, 0.124, 0.093),
    ),
    "stepped": _Plan(
        walls=((0.0, ((0.31, 0.0), (0.31, 0.24))), (0.0, ((0.19, 0.24), (0.19, 0.44)))),
        roofs=((0.0, 0.44, 0.19, 0.19),),
        windows=_rows(0.345, 0.115, 0.122, 0.185),
        ledges=((0.33, 0.24),),
    ),
    "twin": _Plan(
        walls=((0.0, ((0.13, 0.0), (0.13, 0.34))), *((x, ((0.085, 0.0), (0.085, 0.44))) for x in _TOWERS)),
        roofs=tuple((x, 0.44, 0.085, 0.17) for x in _TOWERS),
        windows=(
            ((0.0, 0.265),),
            ((-0.2, 0.34), (0.2, 0.34)),
            ((-0.2, 0.34), (0.0, 0.265), (0.2, 0.34)),
            ((-0.2, 0.34), (0.2, 0.34), (-0.2, 0.17), (0.2, 0.17)),
            ((-0.2, 0.34), (0.2, 0.34), (-0.2, 0.17), (0.2, 0.17), (0.0, 0.265)),
        ),
        ledges=((0.13, 0.34),),
        mast=0.44,
    ),
}


class _Brush:
    """A pen in the building's own units: x from its middle, y up from its foot."""

    def __init__(self, pen: ImageDraw.ImageDraw, side: int, scene: Scene) -> None:
        self.pen = pen
        self.unit = side * scene.scale
        self.x = side * scene.x
        self.y = side * scene.base
        self.mirror = scene.mirror
        self.line = max(1, round(0.006 * self.unit))

    def at(self, x: float, y: float) -> Point:
        """In pixels."""
        return (self.x + x * self.unit, self.y - y * self.unit)

    def polygon(self, points: list[Point], fill: Colour, ink: Colour | None = None) -> None:
        """Fill it, and go round it with ``ink``."""
        self.pen.polygon([self.at(x, y) for x, y in points], fill=fill)
        if ink is not None:
            self.outline(points, ink)

    def outline(self, points: list[Point], ink: Colour) -> None:
        """Go round it."""
        self.pen.line([self.at(x, y) for x, y in [*points, points[0]]], fill=ink, width=self.line)

    def box(self, x: float, y: float, half: float, height: float, fill: Colour, ink: Colour | None = None) -> None:
        """A box around ``x`` standing on ``y``."""
        left, bottom = self.at(x - half, y)
        right, top = self.at(x + half, y + height)
        self.pen.rectangle((left, top, right, bottom), fill=fill, outline=ink, width=self.line)

    def disc(self, x: float, y: float, radius: float, fill: Colour, ink: Colour | None = None) -> None:
        """A circle around (``x``, ``y``)."""
        left, top = self.at(x - radius, y + radius)
        right, bottom = self.at(x + radius, y - radius)
        self.pen.ellipse((left, top, right, bottom), fill=fill, outline=ink, width=self.line)

    def stroke(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, width: float) -> None:
        """A straight line."""
        self.pen.line((*self.at(x0, y0), *self.at(x1, y1)), fill=fill, width=max(1, round(width * self.unit)))


def _shade(colour: Colour, share: float = 0.16) -> Colour:
    return mix(colour, (24, 22, 44), share)


def _edge(colour: Colour) -> Colour:
    """An outline that stands out from the fill without drawing the eye."""
    return mix(colour, (20, 18, 36), 0.5)


def draw(look: Look, view: int | np.random.Generator, size: int = 256) -> Image.Image:
    """One picture of a building.

    Args:
        look: what must be seen in it.
        view: a seed, or a generator: sky, ground, weather, surroundings, framing and light come from it.
        size: side in pixels.

    Returns:
        RGB, (``size``, ``size``).
    """
    rng = np.random.default_rng(view)
    scene = choose_scene(rng)
    side = size * SUPERSAMPLING
    image, pen = draw_scenery(scene, side, rng)
    brush = _Brush(pen, side, scene)
    plan = PLANS[look.shape]
    _walls(brush, plan, PALETTE[look.wall])
    for x, y in plan.windows[look.windows - 1]:
        _window(brush, x, y, scene.lit)
    _door(brush, PALETTE[look.door])
    roof = PALETTE[look.roof]
    for half, y in plan.ledges:
        brush.box(0.0, y, half, 0.03, roof, _edge(roof))
    top = max(_roof(brush, look.roof_shape, roof, *place) for place in plan.roofs)
    if plan.mast is not None:
        brush.stroke(0.0, plan.ledges[0][1] + 0.03, 0.0, plan.mast, INK, 0.014)
        top = plan.mast
    _emblem(brush, look.emblem, top)
    image = image.reduce(SUPERSAMPLING)
    table = [min(255, round(level * factor)) for factor in scene.light for level in range(256)]
    return image.point(table)


def _walls(brush: _Brush, plan: _Plan, colour: Colour) -> None:
    shadow = max(abs(x) + profile[0][0] for x, profile in plan.walls) + 0.035
    left, top = brush.at(-shadow, 0.018)
    right, bottom = brush.at(shadow, -0.022)
    brush.pen.ellipse((left, top, right, bottom), fill=(96, 96, 100))
    for x, profile in plan.walls:
        right_side = [(x + half, y) for half, y in profile]
        left_side = [(x - half, y) for half, y in profile]
        brush.polygon([*right_side, *reversed(left_side)], colour)
        inner = [(x + brush.mirror * 0.72 * half, y) for half, y in profile]
        outer = right_side if brush.mirror > 0 else left_side
        brush.polygon([*outer, *reversed(inner)], _shade(colour, 0.1))
        low = profile[0][0]
        if profile[0][1] == 0:
            brush.box(x, 0.0, low, 0.022, _shade(colour, 0.24))
        brush.outline([*right_side, *reversed(left_side)], _edge(colour))


def _window(brush: _Brush, x: float, y: float, lit: bool) -> None:
    half, tall = WINDOW
    glass, frame = ((255, 228, 150), (255, 250, 236)) if lit else ((142, 196, 226), (255, 255, 255))
    brush.box(x, y - tall, half, 2 * tall, INK)
    brush.box(x, y - tall + 0.008, half - 0.008, 2 * tall - 0.016, frame)
    inner, rise = half - 0.017, tall - 0.017
    brush.box(x, y - rise, inner, 2 * rise, _shade(glass, 0.3))
    brush.box(x, y - rise, inner, 1.3 * rise, glass)
    brush.box(x, y - rise, 0.004, 2 * rise, frame)
    brush.box(x, y - tall - 0.006, half + 0.008, 0.012, frame, INK)


def _door(brush: _Brush, colour: Colour) -> None:
    brush.box(0.0, -0.004, 0.095, 0.014, (196, 190, 182), (104, 100, 100))
    brush.box(0.0, 0.008, 0.072, 0.19, (250, 246, 238), INK)
    brush.box(0.0, 0.01, 0.056, 0.172, colour, _edge(colour))
    for y in (0.026, 0.102):
        brush.box(0.0, y, 0.036, 0.058, mix(colour, (255, 255, 255), 0.14), _shade(colour, 0.25))
    brush.disc(0.042 * brush.mirror, 0.09, 0.007, (240, 214, 130))


def _roof(brush: _Brush, kind: str, colour: Colour, x: float, y: float, half: float, height: float) -> float:
    """Draw a roof on (``x``, ``y``); returns the height of its top in the middle."""
    eaves, ink, dark = half + 0.03, _edge(colour), _shade(colour)
    brush.box(x, y - 0.014, half, 0.016, _shade(colour, 0.5))
    if kind == "pointed":
        tip = (x, y + height)
        brush.polygon([(x - eaves, y), tip, (x + eaves, y)], colour)
        brush.polygon([(x + brush.mirror * 0.3 * eaves, y), tip, (x + brush.mirror * eaves, y)], dark)
        brush.outline([(x - eaves, y), tip, (x + eaves, y)], ink)
        return y + height
    if kind == "domed":
        rise = min(0.95 * half, 0.19)
        rim = [(x + half * math.cos(a), y + 0.02 + rise * math.sin(a)) for a in np.linspace(0, math.pi, 19)]
        brush.polygon(rim, colour)
        inner = [
            (x + brush.mirror * 0.55 * half * abs(math.cos(a)), y + 0.02 + rise * math.sin(a))
            for a in np.linspace(0, math.pi / 2, 10)
        ]
        outer = [
            (x + brush.mirror * half * abs(math.cos(a)), y + 0.02 + rise * math.sin(a))
            for a in np.linspace(0, math.pi / 2, 10)
        ]
        brush.polygon([*outer, *reversed(inner)], dark)
        brush.outline(rim, ink)
        brush.box(x, y, eaves, 0.028, dark, ink)
        return y + 0.02 + rise
    if kind == "slanted":
        low, high = x - brush.mirror * eaves, x + brush.mirror * eaves
        shape = [(low, y), (low, y + 0.035), (high, y + 0.8 * height), (high, y)]
        brush.polygon(shape, colour)
        brush.polygon([(low, y), (low, y + 0.014), (high, y + 0.014), (high, y)], dark)
        brush.outline(shape, ink)
        return y + 0.0175 + 0.4 * height
    brush.box(x, y, eaves, 0.07, colour, ink)
    brush.box(x, y, eaves, 0.02, dark, ink)
    return y + 0.07


def _emblem(brush: _Brush, kind: str, y: float) -> None:
    """Draw the emblem on a mast that stands at height ``y``."""
    side, radius = brush.mirror, 0.058
    middle = y + 0.035 + radius
    if kind == "flag":
        brush.stroke(0, y - 0.01, 0, y + 0.155, INK, 0.012)
        flag = [(0.0, y + 0.15), (side * 0.125, y + 0.115), (0.0, y + 0.068)]
        brush.polygon(flag, (226, 66, 92), INK)
        return
    brush.stroke(0, y - 0.01, 0, middle, INK, 0.014)
    if kind == "clock":
        brush.disc(0, middle, radius, (252, 250, 244), INK)
        brush.disc(0, middle, radius - 0.006, (252, 250, 244), INK)
        brush.stroke(0, middle, 0, middle + 0.04, INK, 0.012)
        brush.stroke(0, middle, side * 0.028, middle - 0.012, INK, 0.012)
    elif kind == "star":
        reach = (0.072, 0.032)
        spikes = [
            (reach[step % 2] * math.sin(step * math.pi / 5), middle + reach[step % 2] * math.cos(step * math.pi / 5))
            for step in range(10)
        ]
        brush.polygon(spikes, (255, 206, 54), INK)
    elif kind == "moon":
        arc = [(radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(0.25 * math.pi, 1.75 * math.pi, 15)]
        back = [
            (0.024 + 0.045 * math.cos(a), 0.045 * math.sin(a)) for a in np.linspace(1.7 * math.pi, 0.3 * math.pi, 12)
        ]
        brush.polygon([(side * x, middle + h) for x, h in [*arc, *back]], (255, 240, 178), INK)
    else:
        brush.disc(0, middle, radius, (40, 178, 176), INK)
        brush.stroke(-radius, middle, radius, middle, (230, 252, 248), 0.009)
        left, top = brush.at(-0.024, middle + radius)
        right, bottom = brush.at(0.024, middle - radius)
        brush.pen.ellipse((left, top, right, bottom), outline=(230, 252, 248), width=max(1, round(0.009 * brush.unit)))
