"""The figures of the page: headline cards, answer accuracy by condition and category, retrieval, ASKG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ra_blip.report.charts import bar
from ra_blip.report.markup import as_number, counted, esc, find, interval_at, label, percent

# Knowledge given to the generator -> its short and its long name, best to worst expected.
MODES: dict[str, tuple[str, str]] = {
    "gold_knowledge": ("gold", "given the gold items only"),
    "with_retrieval": ("with retrieval", "given what it retrieved"),
    "shuffled": ("shuffled", "retrieved, in random order"),
    "adversarial": ("adversarial", "half replaced by near-duplicates of the wrong entity"),
    "random_knowledge": ("random", "given random items"),
    "without_retrieval": ("without", "given nothing"),
}
RETRIEVAL = {"recall@1": "recall@1", "recall@5": "recall@5", "mrr@10": "MRR@10"}
CHANCE = 0.25  # ASKG names the right one of four

Metrics = Mapping[str, Any]


def cards(metrics: Metrics) -> str:
    """The few figures that a reader should leave with; empty where none was measured."""
    chance = _chance(metrics)
    wanted: list[tuple[tuple[str, str], str, float | None]] = [
        (("answer", "with_retrieval"), "answers right with retrieval", None),
        (("answer", "without_retrieval"), "answers right without retrieval", None),
        (("retrieval", "recall@5"), "of the gold items among the first five hits", None),
        (("askg", "accuracy"), f"picks the right item out of {round(1 / chance)} (tick: chance)", chance),
    ]
    found = []
    for keys, words, tick in wanted:
        value = as_number(find(metrics, *keys))
        if value is None:
            continue
        interval = interval_at(metrics, "intervals", *keys)
        found.append(
            f'<div class="card k-{keys[1]}"><p class="big">{percent(value)}<small>%</small></p><p>{words}</p>'
            f"{bar(value, interval, tick)}{_bounds(interval)}</div>"
        )
    return f'<div class="cards">{"".join(found)}</div>' if found else ""


def ladder(metrics: Metrics) -> str:
    """Answer accuracy overall, one bar a condition."""
    rows = []
    for mode, (short, meaning) in MODES.items():
        value = as_number(find(metrics, "answer", mode))
        if value is None:
            continue
        interval = interval_at(metrics, "intervals", "answer", mode)
        rows.append(
            f'<div class="rung k-{mode}"><div class="what"><b>{short}</b><span>{meaning}</span></div>'
            f"{bar(value, interval)}<p>{percent(value)}{_bounds(interval)}</p></div>"
        )
    if len(rows) < 2:
        return ""
    ticks = "".join(f'<i style="left:{n}%">{n}</i>' for n in (0, 25, 50, 75, 100))
    return (
        '<figure class="ladder"><figcaption>Answers right, in per cent, by what the generator was given'
        f'</figcaption>{"".join(rows)}<div class="rung scale"><span></span><div>{ticks}</div></div></figure>'
    )


def accuracy_table(metrics: Metrics, counts: Mapping[str, int]) -> str:
    """Answer accuracy of each condition, overall and by category. ``counts``: questions a category."""
    columns = {("answer", mode): short for mode, (short, _) in MODES.items()}
    return _table(metrics, columns, counts, "Answers right, in per cent, with 95 % intervals")


def retrieval_table(metrics: Metrics, counts: Mapping[str, int]) -> str:
    """Recall, MRR and ASKG accuracy (its chance level ticked), overall and by category."""
    columns = {("retrieval", key): name for key, name in RETRIEVAL.items()}
    columns["askg", "accuracy"] = "ASKG accuracy"
    table = _table(metrics, columns, counts, "Retrieval and judgement, in per cent, with 95 % intervals")
    if not table:
        return ""
    chance = _chance(metrics)
    note = (
        "Recall@k is the share of the gold items among the first k hits; MRR@10 is the mean of one over the rank of "
        "the first gold item among ten hits, 0 where there is none."
    )
    if as_number(find(metrics, "askg", "accuracy")) is not None:
        note += (
            f" ASKG accuracy is how often the model, shown one gold item among distractors, names the gold one; the "
            f"tick marks chance, {percent(chance)} %."
        )
    return f'{table}<p class="note">{note}</p>'


def _table(metrics: Metrics, columns: Mapping[tuple[str, str], str], counts: Mapping[str, int], caption: str) -> str:
    categories = find(metrics, "by_category")
    rows: list[tuple[str, tuple[str, ...]]] = [("all categories", ())]
    if isinstance(categories, Mapping):
        rows += [(str(name), ("by_category", str(name))) for name in categories]
    present = [keys for keys in columns if any(as_number(find(metrics, *p, *keys)) is not None for _, p in rows)]
    if not present:
        return ""
    head = "".join(f'<th scope="col">{columns[keys]}</th>' for keys in present)
    body = ""
    for name, prefix in rows:
        number = counts.get(name) if prefix else sum(counts.values())
        small = f"<small>{counted(number, 'question')}</small>" if number else ""
        cells = "".join(_cell(metrics, prefix, keys) for keys in present)
        body += f'<tr{"" if prefix else " class=total"}><th scope="row">{label(name)}{small}</th>{cells}</tr>'
    return (
        f'<div class="scroll"><table class="figures"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(metrics: Metrics, prefix: tuple[str, ...], keys: tuple[str, str]) -> str:
    value = as_number(find(metrics, *prefix, *keys))
    if value is None:
        return '<td class="empty">&ndash;</td>'
    interval = interval_at(metrics, "intervals", *prefix, *keys)
    chance = _chance(metrics) if keys[0] == "askg" else None
    title = f' title="{_range(interval)}"' if interval else ""
    return f'<td class="k-{keys[1]}"{title}>{percent(value)}{bar(value, interval, chance)}</td>'


def _chance(metrics: Metrics) -> float:
    found = as_number(find(metrics, "askg", "chance"))
    return found if found is not None and 0 < found <= 1 else CHANCE


def _range(interval: tuple[float, float]) -> str:
    return esc(f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}")


def _bounds(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * bound:.1f}" for bound in interval)
    return f'<small class="bounds" title="{_range(interval)}">{low}&ndash;{high}</small>'
