"""Score a file of predictions against a file of references by a data set's own metric: ``ra-blip score``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ra_blip.errors import ConfigError, DataError
from ra_blip.evaluation.judge import Judge
from ra_blip.evaluation.metrics import webqa
from ra_blip.evaluation.metrics.intervals import bootstrap
from ra_blip.evaluation.scorers import METRICS, Metric, Row, Values, interval, strings
from ra_blip.records import read_jsonl

SHOWN = 5  # unknown ids that are named
JUDGED = ("answers", "infoseek")  # metrics that take a judge
Line = tuple[str, dict[str, Any]]  # where it stands, what it says


def score(
    metric: str,
    predictions: str | Path,
    references: str | Path,
    per_question: bool = False,
    likelihood: webqa.Likelihood | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Score a file of predictions; docs/cli.md has both formats and the figures.

    Args:
        metric: a name in :data:`METRICS`.
        predictions: JSON lines with ``id`` and what the metric reads: ``prediction``, ``sources``, ``choice``.
        references: JSON lines with ``id`` and the metric's fields.
        per_question: whether the values of every question are returned as well.
        likelihood: for ``webqa``, what QA-FL and QA are computed with.
        judge: for ``answers`` and ``infoseek``, gives the figure ``judged``; its count is of what it decided.

    Returns:
        ``metric``; the numbers ``questions``, ``missing`` (references without a prediction, which count 0) and
        ``unknown`` (predictions without a reference, which count nothing; a few of their ids are ``unknown_ids``);
        the figures; ``counts`` of the questions behind each mean and its 95 % bootstrap ``intervals``; the same
        figures by groups under ``by_category`` and the metric's own breakdowns; ``per_question``.

    Raises:
        ConfigError: an unknown metric, or a likelihood or a judge for a metric that takes none.
        DataError: a malformed or repeated line, with file and line, or files that share no id.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    if likelihood is not None and metric != "webqa":
        raise ConfigError(f"metric {metric!r} has no QA-FL: only webqa takes a language model")
    if judge is not None and metric not in JUDGED:
        raise ConfigError(f"metric {metric!r} has no figure 'judged': only {' and '.join(JUDGED)} take a judge")
    chosen = METRICS[metric]
    wanted, given = _lines(Path(references)), _lines(Path(predictions))
    unknown = [name for name in given if name not in wanted]
    if len(unknown) == len(given):
        raise DataError(f"{predictions}: none of its {len(given)} ids is an id of {references}")
    read = _predictions(given, chosen)
    rows = [Row(name, where, value, **read.get(name, {})) for name, (where, value) in wanted.items()]
    table = chosen.score(rows)
    if likelihood is not None:
        _add_fluency(rows, table, likelihood)
    if judge is not None:
        _add_verdicts(rows, table, judge)
    result = {
        "metric": metric,
        "questions": len(rows),
        "missing": sum(row.id not in given for row in rows),
        "unknown": len(unknown),
        **({"unknown_ids": unknown[:SHOWN]} if unknown else {}),
        **_figures(chosen, rows, table),
        **_spread(table),
        **chosen.made_with(),
    }
    for breakdown, group in {"by_category": _category, **chosen.groups}.items():
        if parts := _parts(rows, group):
            result[breakdown] = {name: _part(chosen, rows, table, places) for name, places in parts.items()}
    if per_question:
        result["per_question"] = {row.id: values for row, values in zip(rows, table, strict=True)}
    return result


def _lines(path: Path) -> dict[str, Line]:
    """Id -> line. A number is taken as an id as well, as VQA has them."""
    lines: dict[str, Line] = {}
    for number, value in read_jsonl(path):
        where, name = f"{path}, line {number}", value.get("id")
        if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
            raise DataError(f"{where}: 'id' is missing, or neither a string nor a whole number")
        if str(name) in lines:
            raise DataError(f"{where}: id {str(name)!r} was used in {lines[str(name)][0]}; ids must be unique")
        lines[str(name)] = (where, value)
    if not lines:
        raise DataError(f"{path}: holds no lines")
    return lines


def _predictions(given: dict[str, Line], metric: Metric) -> dict[str, dict[str, Any]]:
    """Id -> the prediction fields of a row. What one line holds, every line has to hold."""
    held = [field for field in metric.reads if any(field in value for _, value in given.values())] or metric.reads
    return {name: _prediction(where, value, held, metric) for name, (where, value) in given.items()}


def _prediction(where: str, value: dict[str, Any], held: Sequence[str], metric: Metric) -> dict[str, Any]:
    lacking = [field for field in held if field not in value]
    if lacking:
        raise DataError(f"{where}: {lacking[0]!r} is missing")
    row: dict[str, Any] = {}
    for field in held:
        found = value[field]
        if field == "sources" or (field == "prediction" and metric.lists and isinstance(found, list)):
            row["sources" if field == "sources" else "answer"] = [] if found == [] else strings(found, field, where)
        elif not isinstance(found, str):
            raise DataError(f"{where}: {field!r} must be a string, found {type(found).__name__}")
        elif field == "prediction":
            row["answer"] = [found]
        else:
            row[field] = found
    return row


def _add_fluency(rows: Sequence[Row], table: list[Values], likelihood: webqa.Likelihood) -> None:
    """Put ``qa_fl`` into every row's values, and ``qa`` where there is a ``qa_acc``."""
    references = [row.strings("answers") for row in rows]
    said = [i for i, row in enumerate(rows) if row.answer is not None]
    predictions = [answer for row in rows for answer in row.answer or []]
    scores = dict(zip(said, webqa.fluency(predictions, [references[i] for i in said], likelihood), strict=True))
    for i, values in enumerate(table):
        values["qa_fl"] = scores.get(i, 0.0)
        if "qa_acc" in values:
            values["qa"] = values["qa_fl"] * values["qa_acc"]


def _add_verdicts(rows: Sequence[Row], table: list[Values], judge: Judge) -> None:
    """Put ``judged`` into the values of every row that the judge decides; one without a prediction gets 0."""
    for row, values in zip(rows, table, strict=True):
        right = interval(row) if row.reference.get("range") is not None else None
        within = right if isinstance(right, tuple) else None
        answers = row.strings("answers") if within is None else []
        verdict = judge(row.text("question") or "", answers, within, row.answer[0]) if row.answer else 0.0
        if verdict is not None:
            values["judged"] = verdict


def _category(row: Row) -> str | None:
    return row.text("category")


def _parts(rows: Sequence[Row], group: Callable[[Row], str | None]) -> dict[str, list[int]]:
    """The places of the rows of each group, for those that are of one."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if (name := group(row)) is not None:
            found.setdefault(name, []).append(place)
    return found


def _part(metric: Metric, rows: Sequence[Row], table: Sequence[Values], places: Sequence[int]) -> dict[str, Any]:
    """The figures of some rows."""
    return {"questions": len(places), **_figures(metric, [rows[i] for i in places], [table[i] for i in places])}


def _columns(table: Sequence[Values]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for values in table for name in values)
    return {name: [values[name] for values in table if name in values] for name in names}


def _figures(metric: Metric, rows: Sequence[Row], table: Sequence[Values]) -> dict[str, Any]:
    means = {name: sum(column) / len(column) for name, column in _columns(table).items()}
    return {**means, **metric.pooled(rows, table)}


def _spread(table: Sequence[Values]) -> dict[str, Any]:
    columns = _columns(table)
    return {
        "counts": {name: len(column) for name, column in columns.items()},
        "intervals": {name: list(bootstrap(column)) for name, column in columns.items()},
    }
