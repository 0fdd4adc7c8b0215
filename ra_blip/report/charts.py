"""Small SVG drawings. Colours and strokes come from the page's style sheet, so that light and dark need one drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence


def bar(value: float, interval: tuple[float, float] | None = None, chance: float | None = None) -> str:
    """A horizontal bar on a track from 0 to 1, with an interval as a whisker and a chance level as a tick.

    The drawing stretches to the width that the style sheet gives it.
    """
    parts = [
        '<rect class="track" x="0" y="2" width="100" height="6" rx="1"/>',
        f'<rect class="fill" x="0" y="2" width="{_x(value):g}" height="6" rx="1"/>',
    ]
    if interval is not None:
        low, high = _x(interval[0]), _x(interval[1])
        shape = f"M{low:g} 5H{high:g}M{low:g} 2.6V7.4M{high:g} 2.6V7.4"
        parts.append(f'<path class="halo" d="{shape}"/><path class="whisker" d="{shape}"/>')
    if chance is not None:
        parts.append(f'<path class="chance" d="M{_x(chance):g} -2V12"/>')
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def _x(value: float) -> float:
    return round(100 * min(1.0, max(0.0, value)), 2)


def linear_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between ``low`` and ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between ``low`` and ``high``, with 2 and 5 times where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 6)]
    return ticks or [low]


def polyline(points: Sequence[tuple[float, float]], css_class: str, name: str = "") -> str:
    """A line through points in drawing units; ``name`` (already escaped) says which curve it is."""
    series = f' data-series="{name}"' if name else ""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{css_class}"{series} points="{places}"/>'


def text(x: float, y: float, words: str, css_class: str = "tick", anchor: str = "middle") -> str:
    """Words (already escaped) at a place."""
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
