"""The demonstration that knowledge is edited without training, as a row of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ra_blip.report.markup import esc
from ra_blip.report.thumbnails import Pictures


def edit_demo(edit: Mapping[str, Any], pictures: Pictures) -> str:
    """HTML of what was asked, edited, and asked again.

    Args:
        edit: ``landmark`` (its name), ``image`` (a picture's path or None), and ``steps``: mappings with ``action``
            and, where something was asked, ``question``, ``answer``, ``expected`` (a string or several), and
            ``items`` (ids that were added, removed, or that the answer rests on). Steps that follow each other
            with the same action share a column.
        pictures: where the landmark's picture is embedded.
    """
    name = str(edit.get("landmark") or "a new landmark")
    found = edit.get("steps") or ()
    steps = [step for step in found if isinstance(step, Mapping)] if isinstance(found, Sequence) else []
    image = edit.get("image")
    picture = pictures.tile(str(image), f"picture of {name}") if image else ""
    columns = "".join(
        f"<li><h4>{esc(action)}</h4>{''.join(_step(step) for step in group)}</li>"
        for action, group in groupby(steps, key=lambda step: str(step.get("action") or "step"))
    )
    return (
        f'<div class="edit"><figure class="landmark">{picture}<figcaption>{esc(name)}</figcaption></figure>'
        f'<ol class="steps">{columns}</ol></div>'
    )


def _step(step: Mapping[str, Any]) -> str:
    parts = ""
    if step.get("question"):
        parts += f'<p class="ask">{esc(step["question"])}</p>'
    if step.get("answer") is not None and step.get("question"):
        parts += _answer(str(step["answer"]), _strings(step.get("expected")))
    items = _strings(step.get("items"))
    if items:
        parts += f'<ul class="chips">{"".join(f"<li>{esc(item, 80)}</li>" for item in items[:8])}</ul>'
    if len(items) > 8:
        parts += f'<p class="note">and {len(items) - 8} more</p>'
    return f'<div class="step">{parts}</div>'


def _answer(answer: str, expected: list[str]) -> str:
    shown = esc(answer) or "<i>nothing</i>"
    if not expected:
        return f'<p class="said">{shown}</p>'
    from ra_blip.evaluation.metrics.answers import exact_match

    if exact_match(answer, expected) == 1.0:
        return f'<p class="said right"><b class="mark" aria-label="right">✓</b> {shown}</p>'
    return (
        f'<p class="said wrong"><b class="mark" aria-label="wrong">✗</b> {shown}'
        f"<small>right: {esc(' / '.join(expected))}</small></p>"
    )


def _strings(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [str(part) for part in value]
    return [str(value)]
