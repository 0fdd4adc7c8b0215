"""What stands around a building of the generated world: sky, hills, ground, weather, trees. Redrawn for every view."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

SKIES: dict[str, tuple[Colour, Colour, Colour]] = {
    "day": ((112, 176, 232), (166, 210, 243), (226, 241, 250)),
    "morning": ((148, 190, 226), (214, 222, 226), (252, 228, 196)),
    "dusk": ((96, 98, 158), (206, 142, 158), (250, 196, 150)),
    "night": ((40, 50, 98), (62, 78, 134), (104, 120, 170)),
    "overcast": ((150, 162, 176), (182, 191, 201), (212, 217, 222)),
}
LIGHT: dict[str, tuple[float, float, float]] = {  # factors; small, so that colours keep their names
    "day": (1.0, 1.0, 1.0),
    "morning": (1.0, 0.985, 0.955),
    "dusk": (0.99, 0.95, 0.94),
    "night": (0.9, 0.91, 0.97),
    "overcast": (0.94, 0.95, 0.97),
}
GROUNDS: dict[str, tuple[Colour, Colour]] = {  # far, near
    "grass": ((142, 180, 106), (98, 146, 78)),
    "sand": ((232, 212, 168), (212, 184, 132)),
    "snow": ((238, 243, 248), (214, 224, 234)),
    "water": ((122, 176, 198), (70, 130, 164)),
    "paving": ((196, 190, 184), (160, 154, 150)),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One view's surroundings and framing; lengths are parts of the picture's side.

    Attributes:
        x, base: where the middle of the building meets the ground.
        scale: of the building.
        mirror: 1 or -1, the side that the light and one-sided details are on.
        lit: whether the windows glow.
        light: factors for red, green and blue of the finished picture.
    """

    sky: str
    ground: str
    weather: str
    x: float
    base: float
    scale: float
    mirror: int
    horizon: float
    light: tuple[float, float, float]

    @property
    def lit(self) -> bool:
        """Whether the windows glow."""
        return self.sky in ("night", "dusk")


def choose_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: sky and ground, weather that goes with them, framing, brightness."""
    sky = str(rng.choice(list(SKIES), p=[0.36, 0.16, 0.16, 0.14, 0.18]))
    ground = str(rng.choice(list(GROUNDS), p=[0.34, 0.16, 0.18, 0.14, 0.18]))
    weather = "clear"
    if ground == "snow" and rng.random() < 0.6:
        weather = "snow"
    elif ground in ("grass", "paving", "water") and sky in ("overcast", "night") and rng.random() < 0.6:
        weather = "rain"
    bright = rng.uniform(0.97, 1.04)
    red, green, blue = LIGHT[sky]
    return Scene(
        sky=sky,
        ground=ground,
        weather=weather,
        x=0.5 + rng.uniform(-0.05, 0.05),
        base=rng.uniform(0.865, 0.9),
        scale=rng.uniform(0.88, 1.02),
        mirror=1 if rng.random() < 0.5 else -1,
        horizon=rng.uniform(0.66, 0.74),
        light=(red * bright, green * bright, blue * bright),
    )


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with ``share`` of ``b``."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def _gradient(size: tuple[int, int], stops: tuple[Colour, ...]) -> Image.Image:
    column = Image.new("RGB", (1, len(stops)))
    for row, stop in enumerate(stops):
        column.putpixel((0, row), stop)
    tall = column.resize((1, size[1]), Image.Resampling.BILINEAR)
    return tall.resize(size, Image.Resampling.NEAREST)


def draw_scenery(scene: Scene, side: int, rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Everything behind the building, (``side``, ``side``) RGB, and a pen on it."""
    image = _gradient((side, side), SKIES[scene.sky])
    horizon = round(scene.horizon * side)
    image.paste(_gradient((side, side - horizon), GROUNDS[scene.ground]), (0, horizon))
    pen = ImageDraw.Draw(image)
    if scene.sky == "night":
        _stars(pen, side, scene, rng)
    else:
        _clouds(pen, side, scene, rng)
    _hills(pen, side, scene, rng)
    _ground(pen, side, scene, rng)
    _plants(pen, side, scene, rng)
    _weather(pen, side, scene, rng)
    return image, pen


def _stars(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    dot = side / 300
    for x, y, bright in rng.random((22, 3)):
        left, top = x * side, y * scene.horizon * 0.7 * side
        pen.ellipse((left, top, left + dot, top + dot), fill=mix((120, 132, 180), (236, 238, 250), bright))


def _clouds(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    sky = SKIES[scene.sky]
    for _ in range(int(rng.integers(2, 5))):
        x, y, width = rng.uniform(-0.05, 1.05), rng.uniform(0.05, 0.4), rng.uniform(0.12, 0.26)
        colour = mix(sky[1], (255, 255, 255), 0.3 if scene.sky == "overcast" else 0.55)
        for offset, size in ((-0.32, 0.2), (0.0, 0.32), (0.3, 0.24)):
            cx, radius = x + offset * width, size * width
            pen.ellipse(_square(cx, y - radius * 0.5, radius, side), fill=colour)
        height = 0.11 * width
        pen.rounded_rectangle(
            ((x - 0.55 * width) * side, (y - height) * side, (x + 0.58 * width) * side, (y + height) * side),
            radius=height * side,
            fill=colour,
        )


def _square(x: float, y: float, radius: float, side: int) -> tuple[float, float, float, float]:
    return ((x - radius) * side, (y - radius) * side, (x + radius) * side, (y + radius) * side)


def _hills(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    far = SKIES[scene.sky][2]
    near = GROUNDS[scene.ground][0] if scene.ground in ("grass", "sand", "snow") else (126, 150, 142)
    jagged = rng.random() < 0.35
    for layer in range(2):
        height, share = (0.16, 0.3) if layer == 0 else (0.08, 0.6)
        waves, phase, tilt = rng.uniform(0.7, 1.6), rng.uniform(0, 6.3), rng.uniform(1.7, 3.1)
        points = []
        for step in range(0, 21 if not jagged else 9):
            x = step / (20 if not jagged else 8)
            wave = math.sin(phase + 6.3 * waves * x) + 0.5 * math.sin(tilt * (phase + 6.3 * x))
            if jagged and layer == 0:
                wave = 1.2 if step % 2 else wave * 0.4 - 0.6
            points.append((x * side, (scene.horizon - height * (0.5 + 0.28 * wave)) * side))
        colour = mix(far, mix(near, (70, 84, 110), 0.35), share)
        pen.polygon([*points, (side, scene.horizon * side + 1), (0, scene.horizon * side + 1)], fill=colour)


def _ground(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    far, near = GROUNDS[scene.ground]
    if scene.ground == "water":
        for x, y, width in rng.random((16, 3)):
            top = (scene.horizon + 0.02 + (0.98 - scene.horizon) * y) * side
            left = (x * 1.1 - 0.1) * side
            width = (0.04 + 0.1 * width) * side
            pen.rectangle((left, top, left + width, top + side / 150), fill=mix(far, (255, 255, 255), 0.35))
        quay = scene.base - 0.02
        pen.polygon(_trapezoid(scene.x, quay, 0.38, quay + 0.05, 0.42, side), fill=(176, 170, 162))
        pen.polygon(_trapezoid(scene.x, quay + 0.05, 0.42, quay + 0.085, 0.42, side), fill=(128, 122, 118))
        return
    if scene.ground == "paving":
        for row in range(1, 6):
            top = (scene.horizon + (1 - scene.horizon) * (row / 6) ** 1.6) * side
            pen.line((0, top, side, top), fill=mix(near, (90, 86, 84), 0.3), width=max(1, side // 200))
    else:
        for x, y in rng.random((26, 2)):
            top, left = (scene.horizon + 0.03 + (0.97 - scene.horizon) * y) * side, x * side
            tone = mix(far, (255, 255, 255), 0.25) if x > 0.5 else mix(near, (60, 70, 60), 0.14)
            pen.rectangle((left, top, left + side / 60, top + side / 170), fill=tone)
    path = mix(near, (236, 222, 196), 0.55) if scene.ground != "snow" else (196, 204, 216)
    pen.polygon(_trapezoid(scene.x, scene.base, 0.07, 1.0, 0.15, side), fill=path)


def _trapezoid(
    x: float, top: float, half_top: float, bottom: float, half: float, side: int
) -> list[tuple[float, float]]:
    return [
        ((x - half_top) * side, top * side),
        ((x + half_top) * side, top * side),
        ((x + half) * side, bottom * side),
        ((x - half) * side, bottom * side),
    ]


def _plants(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    if scene.ground == "water":
        return
    kind = "palm" if scene.ground == "sand" else ("round", "fir")[int(rng.integers(2))]
    green = {"snow": (110, 146, 132), "sand": (110, 152, 84)}.get(scene.ground, (76, 128, 74))
    for edge in (-1, 1):
        for _ in range(int(rng.integers(1, 3))):
            x = scene.x + edge * rng.uniform(0.37, 0.5)
            base = rng.uniform(scene.horizon + 0.04, scene.base - 0.01)
            height = rng.uniform(0.15, 0.24) * (0.6 + 1.2 * (base - scene.horizon) / 0.2)
            _tree(pen, side, x, base, height, kind, mix(green, (40, 60, 60), rng.uniform(0, 0.25)), scene)


def _tree(
    pen: ImageDraw.ImageDraw, side: int, x: float, base: float, height: float, kind: str, green: Colour, scene: Scene
) -> None:
    trunk = 0.035 * height
    pen.rectangle(
        ((x - trunk) * side, (base - 0.6 * height) * side, (x + trunk) * side, base * side), fill=(112, 84, 62)
    )
    light = mix(green, (255, 255, 255), 0.75 if scene.ground == "snow" else 0.14)
    if kind == "fir":
        for low, half in ((0.12, 0.26), (0.38, 0.2), (0.62, 0.14)):
            top = base - min(1.0, low + 0.42) * height
            pen.polygon(
                [
                    ((x - half * height) * side, (base - low * height) * side),
                    (x * side, top * side),
                    ((x + half * height) * side, (base - low * height) * side),
                ],
                fill=green if low < 0.6 else light,
            )
    elif kind == "palm":
        for angle in (-2.9, -2.3, -1.57, -0.85, -0.25):
            dx, dy = 0.34 * height * math.cos(angle), 0.26 * height * math.sin(angle)
            cx, cy = x + dx * 0.6, base - 0.68 * height + dy * 0.6
            pen.ellipse(
                (
                    (cx - 0.16 * height) * side,
                    (cy - 0.075 * height) * side,
                    (cx + 0.16 * height) * side,
                    (cy + 0.075 * height) * side,
                ),
                fill=green,
            )
    else:
        pen.ellipse(_square(x, base - 0.62 * height, 0.3 * height, side), fill=green)
        pen.ellipse(_square(x - 0.08 * height, base - 0.7 * height, 0.16 * height, side), fill=light)


def _weather(pen: ImageDraw.ImageDraw, side: int, scene: Scene, rng: np.random.Generator) -> None:
    if scene.weather == "rain":
        tone = mix(SKIES[scene.sky][2], (255, 255, 255), 0.25)
        slant = 0.02 * scene.mirror
        for x, y in rng.random((60, 2)):
            start = (x * side, y * side)
            pen.line((*start, (x + slant) * side, (y + 0.05) * side), fill=tone, width=max(1, side // 200))
    elif scene.weather == "snow":
        for x, y, radius in rng.random((60, 3)):
            pen.ellipse(_square(x, y, 0.003 + 0.005 * radius, side), fill=(250, 251, 254))
