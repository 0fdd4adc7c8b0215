"""The page of ``ra-blip compare``: one table of all methods, what they gain and cost, and where they differ."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ra_blip.evaluation.metrics.answers import exact_match
from ra_blip.records import Item, Trace
from ra_blip.report.charts import bar, polyline, text
from ra_blip.report.curves import COLOURS
from ra_blip.report.grids import row
from ra_blip.report.markup import as_number, compact, counted, esc, find, interval_at, label, leaves, percent
from ra_blip.report.page import write_page
from ra_blip.report.thumbnails import Pictures

TITLE = "Retrieval methods compared"
SHOWN = 12  # questions on which the methods differ
TILES = 4  # items shown of each method
NOISE = re.compile(r"[:+]noise_[\d.]+")
COLUMNS = {
    "recall@1": "Recall@1",
    "recall@5": "Recall@5",
    "mrr@10": "MRR@10",
    "judged_precision": "Judged right",
    "judged_recall": "Gold judged",
}

Methods = Mapping[str, Mapping[str, Any]]


def write_comparison(comparison: Mapping[str, Any], traces: Mapping[str, Sequence[Trace]], out: Path) -> Path:
    """Write the page.

    Args:
        comparison: the content of ``comparison.json``.
        traces: of each row; all rows have the same questions in the same order.
        out: the HTML file.

    Raises:
        OutputError: the file cannot be written.
    """
    methods: Methods = comparison["methods"]
    pictures = Pictures()
    every = [
        ("answers", "Answers", _answers(methods)),
        ("noise", "When what was found is wrong", _noise(methods)),
        ("retrieval", "What is found, and what is judged", _table(methods, COLUMNS)),
        ("categories", "By kind of question", _categories(methods)),
        ("cost", "What it costs", _cost(methods)),
        ("questions", "Where they differ", _differences(traces, comparison["settings"], pictures)),
        ("remarks", "What went another way", _remarks(methods)),
        ("provenance", "Provenance", _provenance(comparison)),
    ]
    lead = (
        f"{counted(len(methods), 'row')} over the same {counted(int(comparison['questions']), 'question')} and one "
        "index. Gained and lost count questions against the same model's answers without retrieval."
    )
    return write_page(out, TITLE, lead, [section for section in every if section[2]], pictures)


def _answers(methods: Methods) -> str:
    """A bar with its interval for each row, and what it gains and loses."""
    rows = ""
    for name, figures in methods.items():
        value = as_number(figures.get("answer_accuracy"))
        if value is None:
            continue
        interval = interval_at(figures, "interval")
        css = "k-without_retrieval" if _alone(name) else "k-gold_knowledge" if name.endswith(":gold") else ""
        rows += (
            f'<div class="rung {css}"><div class="what"><b>{esc(name, 80)}</b>'
            f"<span>{_against(figures, name)}</span></div>"
            f"{bar(value, interval)}<p>{percent(value)}{_bounds(interval)}</p></div>"
        )
    if not rows:
        return ""
    note = (
        "An answer is right if it equals a reference but for case, punctuation and articles. Whiskers and small "
        "figures are 95 % bootstrap intervals; that of a difference is over the same questions in pairs, and one that "
        "holds 0 shows no difference."
    )
    figure = f'<figure class="ladder"><figcaption>Answers right, in per cent</figcaption>{rows}</figure>'
    return f'{figure}<p class="note">{note}</p>'


def _against(figures: Mapping[str, Any], name: str) -> str:
    interval, difference = interval_at(figures, "difference_interval"), as_number(figures.get("difference"))
    if _alone(name) or interval is None or difference is None:
        return "the model alone" if _alone(name) else ""
    unsure = " (not told apart)" if interval[0] <= 0 <= interval[1] else ""
    low, high = (f"{100 * end:+.1f}" for end in interval)
    gained = f"{figures.get('gained', 0)} gained, {figures.get('lost', 0)} lost"
    return f"{gained}: {100 * difference:+.1f} ({low} to {high}){unsure}"


def _alone(name: str) -> bool:
    return name.partition("@")[0] == "none"


def _bounds(interval: tuple[float, float] | None) -> str:
    return (
        ""
        if interval is None
        else f'<small class="bounds">{100 * interval[0]:.1f}&ndash;{100 * interval[1]:.1f}</small>'
    )


def _noise(methods: Methods) -> str:
    """Accuracy over the share of wrong items among the gold ones, a line for each row that has it."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, figures in methods.items():
        ratio, value = as_number(figures.get("noise")), as_number(figures.get("answer_accuracy"))
        if NOISE.search(name) and ratio is not None and value is not None:
            curves.setdefault(NOISE.sub("", name), []).append((ratio, value))
    if not curves:
        return ""
    lines = legend = ""
    for number, (name, curve) in enumerate(curves.items()):
        css = f"s{number % COLOURS}"
        places = [(46 + 374 * ratio, 184 - 172 * value) for ratio, value in sorted(curve)]
        lines += polyline(places, f"smooth {css}", esc(name))
        lines += "".join(f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="none"/>' for x, y in places)
        shown = ", ".join(f"{round(ratio, 2):g}: {100 * value:.1f}" for ratio, value in sorted(curve))
        line = f'<svg viewBox="0 0 22 8" aria-hidden="true"><path class="smooth {css}" d="M0 4H22"/></svg>'
        legend += f"<li>{line}{esc(name)} <b>{shown}</b></li>"
    grid = "".join(
        f'<path class="grid" d="M46 {184 - 172 * y:g}H420"/>{text(40, 188 - 172 * y, f"{100 * y:g}", anchor="end")}'
        f"{text(46 + 374 * y, 202, f'{y:g}')}"
        for y in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    axis = text(233, 222, "share of wrong items in the prompt", "axis")
    drawing = (
        f'<svg class="curves" viewBox="0 0 440 230" role="img" aria-label="accuracy by noise">{grid}{lines}{axis}</svg>'
    )
    return (
        '<div class="panels"><figure class="panel"><h3>Answers right, in per cent</h3>'
        f'<ul class="legend">{legend}</ul>{drawing}</figure></div>'
        '<p class="note">In place of what was kept: the gold items among the wrong ones most like them, three at most, '
        "in random order. Shares are means over the questions.</p>"
    )


def _table(methods: Methods, columns: Mapping[str, str]) -> str:
    shown = {
        key: name for key, name in columns.items() if any(as_number(m.get(key)) is not None for m in methods.values())
    }
    cells = {name: [as_number(figures.get(key)) for key in shown] for name, figures in methods.items()}
    return _grid(list(shown.values()), cells)


def _categories(methods: Methods) -> str:
    names = list(dict.fromkeys(name for figures in methods.values() for name in figures.get("by_category", {})))
    cells = {
        method: [as_number(find(figures, "by_category", name)) for name in names] for method, figures in methods.items()
    }
    return _grid([label(name) for name in names], cells)


def _grid(heads: Sequence[str], cells: Mapping[str, Sequence[float | None]]) -> str:
    """A table of shares; rows without any are left out."""
    rows = "".join(
        f'<tr><th scope="row">{esc(name, 80)}</th>'
        + "".join('<td class="empty">&ndash;</td>' if v is None else f"<td>{percent(v)}{bar(v)}</td>" for v in values)
        + "</tr>"
        for name, values in cells.items()
        if any(value is not None for value in values)
    )
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    table = f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="figures names"><caption>Per cent</caption>{table}</table></div>'


def _cost(methods: Methods) -> str:
    """Seconds a question by stage, and tokens."""
    stages = list(dict.fromkeys(stage for figures in methods.values() for stage in figures.get("seconds_by_stage", {})))
    tokens = list(dict.fromkeys(name for figures in methods.values() for name in figures.get("tokens", {})))
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ["Seconds", *(label(stage) for stage in stages), *(f"{label(name)} tokens" for name in tokens)]
    )
    rows = ""
    for name, figures in methods.items():
        values = [figures.get("seconds"), *(find(figures, "seconds_by_stage", stage) for stage in stages)]
        values += [find(figures, "tokens", one) for one in tokens]
        numbers = [as_number(value) for value in values]
        cells = "".join(f"<td>{'&ndash;' if number is None else compact(number)}</td>" for number in numbers)
        rows += f'<tr><th scope="row">{esc(name, 80)}</th>{cells}</tr>'
    table = f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody>"
    return (
        f'<div class="scroll"><table class="figures names"><caption>Mean of a question</caption>{table}</table></div>'
    )


def differing(traces: Mapping[str, Sequence[Trace]], most: int = SHOWN) -> list[int]:
    """Places of ``most`` questions or fewer that some rows answer right and others wrong, each pattern in turn."""
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for place, column in enumerate(zip(*traces.values(), strict=True)):
        if column[0].question.answers:
            right = tuple(bool(exact_match(trace.answer, trace.question.answers)) for trace in column)
            if len(set(right)) > 1:
                patterns.setdefault(right, []).append(place)
    groups = sorted(patterns.values(), key=len, reverse=True)
    turns = [group[turn] for turn in range(most) for group in groups if turn < len(group)]
    return turns[:most]


def _differences(traces: Mapping[str, Sequence[Trace]], settings: Mapping[str, Any], pictures: Pictures) -> str:
    """Cards of questions on which the methods, variants aside, differ."""
    methods = {name: found for name, found in traces.items() if ":" not in name}
    places = differing(methods)
    silent = {name for name in methods if find(settings, name, "askg") is False}  # these judged nothing
    cards = "".join(
        _card({name: found[place] for name, found in methods.items()}, silent, pictures) for place in places
    )
    note = '<p class="note"><b class="gold">★ gold</b> an item that holds the answer.</p>'
    return f"{note}{cards}" if cards else ""


def _card(found: Mapping[str, Trace], silent: Collection[str], pictures: Pictures) -> str:
    question = next(iter(found.values())).question
    asked = pictures.tile(question.image, "the picture asked about") if question.image else ""
    expected = f"<small>right: {esc(' / '.join(question.answers[:5]))}</small>"
    rows = ""
    for name, trace in found.items():
        right = bool(exact_match(trace.answer, question.answers))
        verdict, mark = ("right", "✓") if right else ("wrong", "✗")
        items: dict[str, Item] = {hit.item.id: hit.item for hit in trace.hits}
        tiles = [(items[key], rank) for rank, key in enumerate(trace.kept[:TILES], 1) if key in items]
        said = (
            f'<p class="said {verdict}"><b class="mark" aria-label="{verdict}">{mark}</b> '
            f"{esc(trace.answer) or '<i>nothing</i>'}<small>{esc(name, 80)}</small></p>"
        )
        judged = dataclasses.replace(trace, kept=[], judged=[]) if name in silent else trace
        rows += said + (row("Given", tiles, judged, pictures) if tiles else "")
    return (
        f'<article class="case"><header>{asked}<div><p class="ask">{esc(question.text, 600)}</p>{expected}</div>'
        f"</header>{rows}</article>"
    )


def _remarks(methods: Methods) -> str:
    """What filters took out, and the notes of the traces with how often each occurs."""
    lines = ""
    for name, figures in methods.items():
        dropped = [f"{label(key)} {count:,}" for key, count in figures.get("dropped", {}).items()]
        notes = [f"{count:,} times: {esc(note)}" for note, count in figures.get("notes", {}).items()]
        parts = [f"candidates taken out: {', '.join(dropped)}"] if dropped else []
        if parts + notes:
            lines += f'<tr><th scope="row">{esc(name, 80)}</th><td>{"<br>".join(parts + notes)}</td></tr>'
    return f'<div class="scroll"><table class="keys"><tbody>{lines}</tbody></table></div>' if lines else ""


def _provenance(comparison: Mapping[str, Any]) -> str:
    given = [
        (key, value) for key in ("provenance", "settings") for key, value in leaves({key: comparison.get(key) or {}})
    ]
    rows = "".join(f'<tr><th scope="row">{esc(key)}</th><td>{esc(value, 500)}</td></tr>' for key, value in given)
    table = f'<div class="scroll"><table class="keys"><tbody>{rows}</tbody></table></div>'
    return f'<details class="all"><summary>Versions and all settings</summary>{table}</details>'
