"""Question by question: what was found, with every stage's score, what was judged relevant, what was answered."""

from __future__ import annotations

from collections.abc import Sequence

from ra_blip.records import Hit, Item, Trace
from ra_blip.report.charts import bar
from ra_blip.report.markup import as_number, counted, esc, label
from ra_blip.report.summary import Scored, by_category
from ra_blip.report.thumbnails import Pictures

CASES = 60  # most questions shown with their hits, over all categories
CASES_EACH = 12
RIGHT_EACH = 4  # of these at least so many right ones, where there are
CATEGORIES = 30  # most categories shown with hits
FIRST = 5  # tiles of the last stage's list; kept and gold items further down are shown besides
ROWS = 600  # most rows of the list of answers

VERDICTS = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("open", "?")}


def failures_first(group: Sequence[Scored]) -> list[Scored]:
    """Wrong answers, then those that cannot be judged, then right ones; else in the given order."""
    return sorted(group, key=lambda one: {False: 0, None: 1, True: 2}[one.right])


def choose(group: Sequence[Scored], limit: int) -> list[Scored]:
    """At most ``limit`` of a category, failures first, with room kept for :data:`RIGHT_EACH` right ones."""
    right = [one for one in group if one.right is True]
    other = failures_first([one for one in group if one.right is not True])
    room = max(limit - min(RIGHT_EACH, limit // 2), limit - len(right))
    shown = other[:room]
    return shown + right[: limit - len(shown)]


def cases(scored: Sequence[Scored], pictures: Pictures) -> str:
    """HTML of the retrieval grids, by category; says how many questions are not shown."""
    groups = by_category(scored)
    limit = min(CASES_EACH, max(2, CASES // max(1, len(groups))))
    shown = "".join(_category(name, group, limit, pictures) for name, group in list(groups.items())[:CATEGORIES])
    if len(groups) > CATEGORIES:
        hidden = sum(len(group) for group in list(groups.values())[CATEGORIES:])
        rest = counted(len(groups) - CATEGORIES, "further category", "further categories")
        shown += f'<p class="note">{rest} with {counted(hidden, "question")} not shown.</p>'
    return shown


def _category(name: str, group: Sequence[Scored], limit: int, pictures: Pictures) -> str:
    chosen = choose(group, limit)
    counts = ", ".join(
        f"{sum(one.right is verdict for one in chosen)} of {sum(one.right is verdict for one in group)} {words}"
        for verdict, words in ((False, "wrong"), (None, "without a reference answer"), (True, "right"))
        if any(one.right is verdict for one in group)
    )
    left = len(group) - len(chosen)
    note = f"Shown: {counts}." + (f" {counted(left, 'question')} not shown here." if left else "")
    return (
        f'<section class="category"><h3>{label(name)}</h3><p class="note">{note}</p>'
        f"{''.join(_case(one, pictures) for one in chosen)}</section>"
    )


def _case(one: Scored, pictures: Pictures) -> str:
    trace = one.trace
    question = trace.question
    verdict, mark = VERDICTS[one.right]
    asked = pictures.tile(question.image, "the picture asked about") if question.image else ""
    expected = ""
    if question.answers and one.right is not True:
        expected = f"<small>right: {esc(' / '.join(question.answers[:5]))}</small>"
    return (
        f'<article class="case {verdict}" data-category="{esc(one.category)}" data-verdict="{verdict}">'
        f'<header>{asked}<div><p class="ask">{esc(question.text, 600)}</p>'
        f'<p class="said {verdict}"><b class="mark" aria-label="{verdict}">{mark}</b> '
        f"{esc(trace.answer) or '<i>nothing</i>'}{expected}</p></div></header>"
        f"{_rows(trace, pictures)}</article>"
    )


def _rows(trace: Trace, pictures: Pictures) -> str:
    final = trace.retrieved()
    rows = ""
    if trace.stage("hop"):
        first = [(hit.item, rank) for rank, hit in enumerate(trace.stage("search")[:4], 1)]
        rows += row("First search", first, trace, pictures)
    ranks = {hit.item.id: rank for rank, hit in enumerate(final, 1)}
    items = {hit.item.id: hit.item for hit in [*trace.hits, *final]}
    wanted = [hit.item.id for hit in final[:FIRST]]
    wanted += [key for key in [*trace.kept, *trace.question.gold] if key in items and key not in wanted]
    tiles = [(items[key], ranks.get(key)) for key in dict.fromkeys(wanted)]
    if tiles:
        rows += row("Second search" if trace.stage("hop") else "Found", tiles, trace, pictures)
    return rows + _remarks(trace, final, items)


def _remarks(trace: Trace, final: Sequence[Hit], items: dict[str, Item]) -> str:
    remarks = []
    if len(final) > FIRST:
        remarks.append(f"{counted(len(final), 'hit')} in the last list")
    lost = [key for key in trace.question.gold if key not in items]
    if lost and trace.hits:
        remarks.append(f"gold not found: {', '.join(esc(key, 80) for key in lost[:5])}")
    unseen = [key for key in trace.kept if key not in items]
    if unseen:
        remarks.append(f"given without a search: {', '.join(esc(key, 80) for key in unseen[:5])}")
    if not trace.hits and not trace.kept:
        remarks.append("answered without retrieval")
    return f'<p class="note">{"; ".join(remarks)}</p>' if remarks else ""


def row(name: str, tiles: Sequence[tuple[Item, int | None]], trace: Trace, pictures: Pictures) -> str:
    """HTML of a row of items, each with its rank or None: picture or words, scores, and what the model judged."""
    body = "".join(_tile(item, rank, trace, pictures) for item, rank in tiles)
    return f'<div class="row"><h4>{name}</h4><div class="tiles">{body}</div></div>'


def _tile(item: Item, rank: int | None, trace: Trace, pictures: Pictures) -> str:
    gold = item.id in trace.question.gold
    judged = item.id in trace.judged
    words = item.full_text
    if item.image:
        face = pictures.tile(item.image, f"picture of item {item.id}")
        below = f"<figcaption>{esc(words, 120) or '<i>no caption</i>'}</figcaption>"
    else:
        face, below = f'<div class="pic words"><p>{esc(words, 240)}</p></div>', ""
    badge = '<b class="gold">★ gold</b>' if gold else ""
    classes = " ".join(["tile", *(["is-gold"] if gold else []), *(["is-judged"] if judged else [])])
    return (
        f'<figure class="{classes}">{face}<div class="badges"><span>{rank or "&ndash;"}</span>{badge}</div>{below}'
        f'<p class="id">{esc(item.id, 60)}</p>{_scores(item, trace)}{_relevance(item, trace, judged)}</figure>'
    )


def _scores(item: Item, trace: Trace) -> str:
    found = {hit.stage: hit.score for hit in trace.hits if hit.item.id == item.id}
    lines = "".join(f"<div><dt>{label(stage)}</dt><dd>{score:.3f}</dd></div>" for stage, score in found.items())
    return f'<dl class="scores">{lines}</dl>' if lines else ""


def _relevance(item: Item, trace: Trace, judged: bool) -> str:
    if item.id not in trace.kept:
        return ""
    place = trace.kept.index(item.id)
    value = as_number(trace.relevance[place]) if place < len(trace.relevance) else None
    words = "judged relevant" if judged else "relevance"
    shown = "" if value is None else f" <b>{value:.2f}</b>{bar(value)}"
    return f'<p class="relevance">{words}{shown}</p>'


def example(scored: Sequence[Scored], pictures: Pictures) -> str:
    """HTML of one question answered from a picture: the items given, the one judged relevant, the answer; or empty."""
    for one in scored:
        trace = one.trace
        items = {hit.item.id: hit.item for hit in trace.hits}
        given = [items[key] for key in trace.kept[:4] if key in items]
        known = [item for item in given if item.image and item.id in trace.question.gold and item.id in trace.judged]
        if one.right and known and len(given) > 1 and not trace.question.image and all(item.image for item in given):
            tiles = "".join(_tile(item, rank, trace, pictures) for rank, item in enumerate(given, 1))
            return (
                f'<figure class="example"><figcaption>One question, and what it was answered from</figcaption>'
                f'<p class="ask">{esc(trace.question.text)}</p><div class="tiles">{tiles}</div>'
                f'<p class="said right"><b class="mark" aria-label="right">✓</b> {esc(trace.answer)}</p></figure>'
            )
    return ""


def answers_table(scored: Sequence[Scored]) -> str:
    """HTML list of all answers, failures first, at most :data:`ROWS` rows."""
    ordered = failures_first([one for group in by_category(scored).values() for one in group])
    rows = "".join(_answer_row(one) for one in ordered[:ROWS])
    left = len(scored) - min(len(scored), ROWS)
    note = f'<p class="note">{counted(left, "further answer")} not listed.</p>' if left else ""
    return (
        '<details class="all"><summary>All answers in one list, failures first</summary><div class="scroll"><table>'
        '<thead><tr><th></th><th scope="col">Question</th><th scope="col">Answer</th><th scope="col">Right answer</th>'
        '<th scope="col">Gold at rank</th><th scope="col">Category</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}</details>"
    )


def _answer_row(one: Scored) -> str:
    trace = one.trace
    verdict, mark = VERDICTS[one.right]
    gold = set(trace.question.gold)
    ranks = [str(rank) for rank, hit in enumerate(trace.retrieved(), 1) if hit.item.id in gold]
    return (
        f'<tr class="{verdict}" data-category="{esc(one.category)}" data-verdict="{verdict}">'
        f'<td><b class="mark" aria-label="{verdict}">{mark}</b></td><td>{esc(trace.question.text, 200)}</td>'
        f"<td>{esc(trace.answer, 200)}</td><td>{esc(' / '.join(trace.question.answers[:5]), 200)}</td>"
        f"<td>{', '.join(ranks[:5]) or '&ndash;'}</td><td>{label(one.category)}</td></tr>"
    )
