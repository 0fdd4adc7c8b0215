"""The report: one HTML file that opens from disk, asks nothing of the network, and reads without JavaScript."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ra_blip.records import Trace, write_text
from ra_blip.report import grids, headline
from ra_blip.report.charts import bar
from ra_blip.report.curves import losses
from ra_blip.report.edit import edit_demo
from ra_blip.report.markup import as_number, compact, counted, esc, find, label, leaves
from ra_blip.report.summary import Scored, mean_seconds, score, summarise
from ra_blip.report.thumbnails import Pictures

TITLE = "RA-BLIP: answers that rest on what was found"


def write_report(
    traces: Sequence[Trace],
    out: Path,
    metrics: dict[str, Any] | None = None,
    logs: dict[str, Path] | None = None,
    edit: dict[str, Any] | None = None,
    title: str = TITLE,
) -> Path:
    """Write the page; every part but the traces may be absent.

    Args:
        traces: what happened to each question; the page judges and shows them, failures first.
        out: the HTML file.
        metrics: the content of ``metrics.json``; without it, what the traces tell is counted from them.
        logs: stage name -> ``log.jsonl``, for the loss curves.
        edit: the "knowledge is edited" demonstration, see :func:`ra_blip.report.edit.edit_demo`.
        title: the page's heading.

    Returns:
        The path written.

    Raises:
        DataError: a log is missing or malformed.
        OutputError: the file cannot be written.
    """
    scored = score(traces)
    pictures = Pictures()
    example = grids.example(scored, pictures)  # first, so that its pictures fit the budget
    sections = _sections(scored, metrics, logs or {}, edit, pictures)
    return write_page(out, title, _lead(scored), sections, pictures, example)


def write_page(
    out: Path, title: str, lead: str, sections: Sequence[tuple[str, str, str]], pictures: Pictures, example: str = ""
) -> Path:
    """Write one self-contained page.

    Args:
        out: the HTML file.
        title: heading, and
        lead: the words below it; both are escaped here.
        sections: (anchor, heading, HTML) of each.
        pictures: those that the HTML refers to.
        example: HTML beside the heading.

    Raises:
        OutputError: the file cannot be written.
    """
    resources = files("ra_blip.report")
    template = resources.joinpath("page.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]  # the policy allows this one script and no other
    page = Template(template).substitute(
        title=esc(title),
        lead=esc(lead, 2_000),
        example=example,
        nav="".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections),
        sections="".join(f'<section id="{key}"><h2>{name}</h2>{body}</section>' for key, name, body in sections),
        pictures=_picture_note(pictures),
        style=resources.joinpath("style.css").read_text(encoding="utf-8") + pictures.css(),
        digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )
    write_text(out, page)
    return Path(out)


def _sections(
    scored: Sequence[Scored],
    metrics: dict[str, Any] | None,
    logs: dict[str, Path],
    edit: dict[str, Any] | None,
    pictures: Pictures,
) -> list[tuple[str, str, str]]:
    """(anchor, heading, HTML) of each section that has something to show."""
    counts = Counter(one.category for one in scored)
    figures: Mapping[str, Any] = summarise(scored) if metrics is None else metrics
    traces = [one.trace for one in scored]
    every = [
        ("results", "Results", _results(figures, counts, metrics is None)),
        ("retrieval", "What it finds, and what it judges", headline.retrieval_table(figures, counts)),
        ("edit", "Knowledge is edited, not trained", edit_demo(edit, pictures) if edit else ""),
        ("losses", "Training losses", losses(logs) if logs else ""),
        ("questions", "Question by question", _questions(scored, pictures)),
        ("seconds", "Where the time goes", _seconds(figures, traces)),
        ("provenance", "Provenance", _provenance(figures, metrics is not None)),
    ]
    return [section for section in every if section[2]]


def _lead(scored: Sequence[Scored]) -> str:
    if not scored:
        return "No question was asked."
    categories = len({one.category for one in scored})
    kinds = f" of {counted(categories, 'kind')}" if categories > 1 else ""
    return (
        f"How a retrieval-augmented vision-language model answered {counted(len(scored), 'question')}{kinds}: which "
        "pictures and texts it found, which of them it judged relevant, what it said, and how often that was right."
    )


def _results(figures: Mapping[str, Any], counts: Mapping[str, int], from_traces: bool) -> str:
    body = headline.cards(figures) + headline.ladder(figures) + headline.accuracy_table(figures, counts)
    if not body:
        return ""
    how = (
        "Whiskers are 95 % intervals. An answer is right if it equals a reference but for case, punctuation, articles."
    )
    if from_traces:
        how += " Counted from the traces of this page; intervals are Wilson's."
    return f'{body}<p class="note">{how}</p>'


def _questions(scored: Sequence[Scored], pictures: Pictures) -> str:
    if not scored:
        return ""
    categories = list(dict.fromkeys(one.category for one in scored))[: grids.CATEGORIES]
    by_verdict = [("wrong", "wrong"), ("right", "right")]
    buttons = _buttons("verdict", by_verdict) + _buttons("category", [(c, c) for c in categories])
    legend = (
        '<p class="note legend-line"><b class="gold">★ gold</b> an item that holds the answer. '
        '<span class="ring">outlined</span> an item the model judged relevant, with its probability. '
        "Small figures are the scores of the stages: inner product in the searches, probability in the ranking.</p>"
    )
    body = grids.cases(scored, pictures) + grids.answers_table(scored)
    return f'<div class="filters" role="group" aria-label="Show">{buttons}</div>{legend}{body}'


def _buttons(kind: str, choices: Sequence[tuple[str, str]]) -> str:
    if len(choices) < 2:
        return ""
    options = "".join(
        f'<button type="button" data-kind="{kind}" data-value="{esc(value)}" aria-pressed="{pressed}">{name}</button>'
        for value, name, pressed in [("", "all", "true"), *((v, label(n), "false") for v, n in choices)]
    )
    return f"<span>{options}</span>"


def _seconds(figures: Mapping[str, Any], traces: Sequence[Trace]) -> str:
    given = find(figures, "seconds")
    pairs = leaves(given) if isinstance(given, Mapping) else []
    stages = {name: number for name, value in pairs if (number := as_number(value)) is not None and number >= 0}
    caption = "Seconds a stage, as the run measured them"
    if not stages:
        stages, caption = mean_seconds(traces), "Mean seconds a question, by stage"
    if not stages:
        return ""
    longest = max(stages.values()) or 1.0
    rows = "".join(
        f'<div class="rung"><div class="what"><b>{label(name)}</b></div>{bar(value / longest)}'
        f'<p><data value="{value:.6g}">{compact(value)}</data> s</p></div>'
        for name, value in stages.items()
    )
    return f'<figure class="ladder time"><figcaption>{caption}</figcaption>{rows}</figure>'


def _provenance(figures: Mapping[str, Any], given: bool) -> str:
    found = find(figures, "provenance")
    body = _key_values(leaves(found)) if isinstance(found, Mapping) else ""
    rest = [(key, value) for key, value in leaves(figures) if not key.startswith(("provenance.", "intervals."))]
    if given and rest:
        body += f'<details class="all"><summary>Every figure of metrics.json</summary>{_key_values(rest)}</details>'
    return body


def _key_values(pairs: Sequence[tuple[str, Any]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{esc(key)}</th><td>{"&ndash;" if value is None else esc(value, 500)}</td></tr>'
        for key, value in pairs[:2000]
    )
    return f'<div class="scroll"><table class="keys"><tbody>{rows}</tbody></table></div>'


def _picture_note(pictures: Pictures) -> str:
    notes = [f"{counted(len(pictures), 'distinct picture')} embedded."]
    if pictures.missing:
        notes.append(f"{counted(len(pictures.missing), 'picture')} missing or unreadable.")
    if pictures.left_out:
        notes.append(f"{counted(len(pictures.left_out), 'picture')} left out to bound the size of this file.")
    return " ".join(notes)
