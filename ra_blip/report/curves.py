"""Loss curves: one panel a training stage, every loss of its log as a smoothed line over the faint raw values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ra_blip.records import read_jsonl
from ra_blip.report.charts import linear_ticks, log_ticks, polyline, text
from ra_blip.report.markup import as_number, compact, counted, esc, label

MAX_POINTS = 600  # most points drawn of one curve; beyond, the lowest and highest of each span stand for it
WIDTH, HEIGHT = 440.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 420.0, 12.0, 184.0  # the plot's box; the learning rate's strip is below it
STRIP_TOP, STRIP_BOTTOM = 202.0, 228.0
COLOURS = 7

Curve = list[tuple[float, float]]


def losses(logs: Mapping[str, str | Path]) -> str:
    """HTML of small multiples of all losses.

    Args:
        logs: stage name -> ``log.jsonl``, one object a line with ``step``, ``loss``, any ``*_loss`` and ``lr``.
            A step that occurs twice (a resumed run) counts as logged last.

    Raises:
        DataError: a log is missing or malformed, with file and line.
    """
    panels = "".join(_panel(stage, Path(path)) for stage, path in logs.items())
    return f'<div class="panels">{panels}</div>'


def read_log(path: Path) -> tuple[dict[str, Curve], int]:
    """Curves by name, ordered by step, and how many values were left out as not finite. Raises :class:`DataError`."""
    rows: dict[float, dict[str, object]] = {}
    for _, value in read_jsonl(path):
        step = as_number(value.get("step"))
        if step is not None:
            rows[step] = value
    curves: dict[str, Curve] = {}
    left_out = 0
    for step in sorted(rows):
        for name, raw in rows[step].items():
            if name not in ("loss", "lr") and not name.endswith("_loss"):
                continue
            found = as_number(raw)
            if found is None:
                left_out += 1
            else:
                curves.setdefault(name, []).append((step, found))
    return curves, left_out


def smooth(curve: Curve) -> Curve:
    """Centred moving mean over about a twentieth of the curve."""
    half = len(curve) // 40
    totals = [0.0]
    for _, value in curve:
        totals.append(totals[-1] + value)
    result = []
    for place, (step, _) in enumerate(curve):
        reach = min(half, place, len(curve) - 1 - place)  # symmetric at the ends, so that a slope is not bent
        window = totals[place + reach + 1] - totals[place - reach]
        result.append((step, window / (2 * reach + 1)))
    return result


def thin(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """At most ``most`` points: the lowest and the highest of equal spans, so that spikes stay visible."""
    if len(curve) <= most:
        return curve
    spans = most // 2
    kept: Curve = []
    for n in range(spans):
        part = curve[n * len(curve) // spans : (n + 1) * len(curve) // spans]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _panel(stage: str, path: Path) -> str:
    curves, left_out = read_log(path)
    rate = curves.pop("lr", [])
    note = f'<p class="note">{counted(left_out, "value")} not finite, not drawn.</p>' if left_out else ""
    if not curves:
        return f'<figure class="panel"><h3>{label(stage)}</h3><p class="note">No loss was logged.</p>{note}</figure>'
    names = sorted(curves, key=lambda name: name != "loss")  # the sum first, the rest as logged
    smoothed = {name: smooth(curves[name]) for name in names}
    axis = _Axis([curves[name] for name in names])
    lines = "".join(
        polyline(axis.place(thin(curves[name])), f"raw s{n % COLOURS}", esc(name)) for n, name in enumerate(names)
    )
    lines += "".join(
        polyline(axis.place(thin(smoothed[name])), f"smooth s{n % COLOURS}", esc(name)) for n, name in enumerate(names)
    )
    legend = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><path class="smooth s{n % COLOURS}" d="M0 4H22"/></svg>'
        f"{esc(name)} <b>{compact(smoothed[name][-1][1])}</b></li>"
        for n, name in enumerate(names)
    )
    steps = int(max(curve[-1][0] for curve in curves.values()))
    words = f"{esc(stage)}: {', '.join(esc(name) for name in names)} over {steps:,} steps"
    return (
        f'<figure class="panel"><h3>{label(stage)}<small>{counted(steps, "step")}, {axis.scale} scale</small></h3>'
        f'<ul class="legend">{legend}</ul>'
        f'<svg class="curves" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{words}">'
        f"{axis.draw()}{lines}{_rate_strip(axis, rate)}"
        f"{text((LEFT + RIGHT) / 2, HEIGHT - 4, 'optimizer step', 'axis')}</svg>{note}</figure>"
    )


class _Axis:
    """Steps and losses to places in the drawing; logarithmic where positive losses span more than a factor of 20."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        steps = [step for curve in curves for step, _ in curve]
        values = [value for curve in curves for _, value in curve]
        self.first, self.last = min(steps), max(steps)
        low, high = min(values), max(values)
        self.log = low > 0 and high / low > 20
        if not self.log:
            low = min(0.0, low)
        self.low, self.high = low, high if high > low else low + 1.0

    @property
    def scale(self) -> str:
        """``log`` or ``linear``."""
        return "log" if self.log else "linear"

    def x(self, step: float) -> float:
        """Where a step lies."""
        return LEFT + (RIGHT - LEFT) * (step - self.first) / ((self.last - self.first) or 1.0)

    def y(self, value: float) -> float:
        """Where a loss lies."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(value) if self.log else value
        return BOTTOM - (BOTTOM - TOP) * (place - low) / (high - low)

    def place(self, curve: Curve) -> Curve:
        """A curve in drawing units."""
        return [(self.x(step), self.y(value)) for step, value in curve]

    def draw(self) -> str:
        """Grid lines, tick labels and the name of the vertical axis."""
        parts = []
        for tick in log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high):
            parts.append(f'<path class="grid" d="M{LEFT:g} {self.y(tick):.1f}H{RIGHT:g}"/>')
            parts.append(text(LEFT - 6, self.y(tick) + 4, compact(tick), anchor="end"))
        for tick in linear_ticks(self.first, self.last):
            parts.append(text(self.x(tick), STRIP_BOTTOM + 16, compact(tick)))
        middle = (TOP + BOTTOM) / 2
        parts.append(f'<g transform="rotate(-90 10 {middle:g})">{text(10, middle, "loss", "axis")}</g>')
        return "".join(parts)


def _rate_strip(axis: _Axis, rate: Curve) -> str:
    peak = max((value for _, value in rate), default=0.0)
    base = f'<path class="grid" d="M{LEFT:g} {STRIP_BOTTOM:g}H{RIGHT:g}"/>'
    if peak <= 0:
        return base
    height = STRIP_BOTTOM - STRIP_TOP
    points = [(axis.x(step), STRIP_BOTTOM - height * max(0.0, value) / peak) for step, value in thin(rate, 200)]
    return (
        base
        + polyline(points, "rate", "lr")
        + text(LEFT - 6, STRIP_BOTTOM, "lr", anchor="end")
        + text(RIGHT, STRIP_TOP - 4, f"peak {compact(peak)}", anchor="end")
    )
