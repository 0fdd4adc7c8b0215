"""Text into HTML: escaping, clipping, numbers. Every string that comes from data passes through here."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any


def esc(value: object, limit: int = 300) -> str:
    """A value as HTML text, safe between tags and inside quoted attributes; longer than ``limit`` characters is cut.

    Control and direction-override characters are dropped: a caption must not reorder the page around it.
    """
    text = "" if value is None else str(value)
    text = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return html.escape("".join(c if c.isprintable() else " " if c.isspace() else "" for c in text), quote=True)


def label(name: str) -> str:
    """A key such as ``two_pictures`` as words, escaped."""
    return esc(name.replace("_", " "), 80)


def as_number(value: object) -> float | None:
    """The value as a finite float, None for anything else (also for True and False)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def find(tree: object, *keys: str) -> Any:
    """The value under a path of keys in nested mappings, None where a key is missing."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def interval_at(tree: object, *keys: str) -> tuple[float, float] | None:
    """The ``[lo, hi]`` under a path of keys, None where it is missing or not two numbers."""
    found = find(tree, *keys)
    if not isinstance(found, list | tuple) or len(found) != 2:
        return None
    low, high = as_number(found[0]), as_number(found[1])
    return None if low is None or high is None else (low, high)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of nested mappings, in their order."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def percent(value: float) -> str:
    """A share in 0..1 as per cent with one decimal; the exact value stays readable in the markup."""
    return f'<data value="{value:.6g}">{100 * value:.1f}</data>'


def compact(value: float) -> str:
    """A number with three significant digits, without needless zeros."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 question``, ``2 questions``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
