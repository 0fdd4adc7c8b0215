"""Several methods and variants of them over the same questions and one index: ``ra-blip compare``.

A row of the table is a method, or a method with settings changed: ``ra_blip``, ``ragvl:rerank=none``,
``ra_blip:k=5+focus=false``, ``raven:gold``; ``ra_blip@sft`` is a method with another model. Every row leaves its traces
behind with what they were made from, so that a comparison that was stopped goes on with the row at which it was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ra_blip.errors import ConfigError
from ra_blip.evaluation.distractors import generator, noisy
from ra_blip.evaluation.evaluate import (
    GOLD,
    REPLACED,
    RETRIEVAL,
    Knowledge,
    check_questions,
    mean_seconds,
    require_writable,
)
from ra_blip.evaluation.metrics.answers import exact_match
from ra_blip.evaluation.metrics.intervals import bootstrap, paired
from ra_blip.evaluation.provenance import provenance
from ra_blip.evaluation.score import score
from ra_blip.generation.methods import METHODS
from ra_blip.generation.pipeline import Answerer, Pipeline, PipelineConfig
from ra_blip.records import Item, Question, Trace, read_traces, to_dict, write_jsonl, write_text
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.rerank import RERANKERS

NONE = "none"


def _noisy(ratio: float, index: KnowledgeIndex, question: Question, kept: list[Item], seed: int) -> list[Item]:
    """Gold among wrong items; every ratio of noise has the same draws."""
    return noisy(index, question, generator(seed, "noise", question), ratio)


NOISE = {f"noise_{ratio:g}": functools.partial(_noisy, ratio) for ratio in (0, 0.25, 0.5, 0.75)}
# what a row can put before the generator in place of what its method kept
KNOWLEDGE: dict[str, Knowledge] = {
    "gold": REPLACED[GOLD],
    "random": REPLACED["random_knowledge"],
    "shuffled": REPLACED["shuffled"],
    "adversarial": REPLACED["adversarial"],
    **NOISE,
}
# a comma parts two rows, and a plus two variants, where one follows: values hold both (filters, kind=image+text)
_ROWS = re.compile(rf",+(?=(?:{'|'.join(METHODS)})(?:[@:,]|$)|$)")
_VARIANTS = re.compile(rf"\+(?=\w+=|(?:{'|'.join(map(re.escape, KNOWLEDGE))})(?:\+|$))")
SWEEP = (1, 5, 10, 50)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: its name as it was asked for, the method, the model's name, settings, a name in :data:`KNOWLEDGE`."""

    name: str
    method: str
    model: str
    config: PipelineConfig
    knowledge: str | None = None

    @classmethod
    def of(cls, name: str) -> Row:
        """Read ``METHOD[@MODEL][:VARIANT[+VARIANT ...]]``.

        A variant is ``setting=value`` or a name in :data:`KNOWLEDGE`; the model's name is the method's where there is
        no other.

        Raises:
            ConfigError: an unknown method, setting or kind of knowledge, or two kinds of knowledge.
        """
        who, _, rest = name.partition(":")
        method, _, model = who.partition("@")
        variants = _VARIANTS.split(rest) if rest else []
        replaced = [one for one in variants if one in KNOWLEDGE]
        pairs = [one for one in variants if one not in KNOWLEDGE]
        wrong = next((one for one in pairs if "=" not in one), None)
        if wrong is not None or len(replaced) > 1:
            what = f"{wrong!r} is neither setting=value nor one" if wrong is not None else f"{replaced} are not one"
            raise ConfigError(f"compare: {name!r}: {what} of {', '.join(KNOWLEDGE)}")
        return cls(name, method, model or method, PipelineConfig.of(pairs, method), replaced[0] if replaced else None)

    @property
    def retrieves(self) -> bool:
        """Whether anything is searched for."""
        return self.config.retriever != NONE


def row_names(given: Sequence[str], with_ablations: bool = False, with_noise: bool = False) -> list[str]:
    """Names of rows, parted by commas or given one by one, and what belongs to them.

    Args:
        given: what was asked for.
        with_ablations: the usual variants as well of each that is no variant itself, see :func:`ablations`.
        with_noise: each that retrieves at the four ratios of noise as well.

    Raises:
        ConfigError: as :meth:`Row.of`.
    """
    names = [name for part in given for name in _ROWS.split(part) if name]
    more = [variant for name in names if with_ablations and ":" not in name for variant in ablations(name)]
    for row in map(Row.of, names if with_noise else ()):
        if row.retrieves and row.knowledge is None:
            more += [f"{row.name}{'+' if ':' in row.name else ':'}{ratio}" for ratio in NOISE]
    return names + more


def ablations(name: str) -> list[str]:
    """The usual variants of a method, by name: knowledge replaced, the other rerankers, parts off, candidates."""
    row = Row.of(name)
    own = row.config
    changes = ["gold", "random", *(f"rerank={one}" for one in RERANKERS if one != own.rerank)]
    parts = ["askg", "focus"] if own.askg else []  # without judgement everything kept is in focus
    changes += [f"{part}=false" for part in (*parts, "instruction", "fusion") if getattr(own, part)]
    changes += [f"query={one}" for one in ("text", "mean") if one != own.query and own.retriever == "index"]
    changes += [f"k={k}" for k in SWEEP if k != own.k]
    return [f"{name}:{change}" for change in changes] if row.retrieves else []


def compare(
    model_of: Callable[[str], Answerer],
    weights_of: Callable[[str], str],
    index: KnowledgeIndex,
    questions: Sequence[Question],
    out: str | Path,
    names: Sequence[str],
    seed: int = 0,
    metric: str | None = None,
    references: str | Path | None = None,
) -> tuple[dict[str, Any], dict[str, list[Trace]]]:
    """Run every row that has not been run, and write ``comparison.json``.

    Beside it, for each row, ``rows/NAME/traces.jsonl``, ``predictions.jsonl`` (what ``ra-blip score`` reads) and
    ``row.json``. The row ``none``, answering without retrieval, is always among them, and ``none@MODEL`` for each other
    model: the rows of a model are compared with it question by question.

    Args:
        model_of: a model's name (:class:`Row`) -> the model; asked only for a row that has to be run.
        weights_of: a model's name -> a string that names its weights.
        index: the knowledge of all rows.
        questions: those without answers count in no accuracy, those without gold in no recall.
        out: folder for everything.
        names: rows, see :meth:`Row.of`.
        seed: of drawn knowledge and of the bootstrap.
        metric: a metric of ``ra-blip score`` by which all rows are scored as well, and
        references: its reference lines.

    Returns:
        The content of ``comparison.json``, and the traces by row.

    Raises:
        ConfigError, DataError, OutputError: before any work; else as :class:`~ra_blip.generation.pipeline.Pipeline`.
    """
    alone = {name: _alone(Row.of(name).model, weights_of) for name in names}  # the row that a row is compared with
    rows = [Row.of(name) for name in dict.fromkeys([NONE, *alone.values(), *names])]
    if (metric is None) != (references is None):
        raise ConfigError("compare: a metric and its references go together")
    out = Path(out)
    check_questions(questions)
    require_writable(out)
    known = {"questions": _digest(questions), "items": _digest(list(index.items.values())), "seed": seed}
    traces: dict[str, list[Trace]] = {}
    begun: dict[str, tuple[Pipeline, list[Trace]]] = {}
    for row in rows:
        folder = _folder(out, row.name)
        made = {**known, "name": row.name, "model": weights_of(row.model), "settings": _settings(row)}
        if _read(folder / "row.json") != made:
            alike = repr((row.model, row.config))  # rows that differ in the knowledge put in place of what they find
            if alike not in begun:
                pipeline = Pipeline(model_of(row.model), index, row.config)
                begun[alike] = pipeline, pipeline.retrieve(questions)
            _run(row, *begun[alike], seed, folder)
            write_text(folder / "row.json", json.dumps(made, indent=1, ensure_ascii=False))
        traces[row.name] = read_traces(folder / "traces.jsonl")
        print(f"{row.name}: {_said(traces[row.name])}", flush=True)
    right = {name: _right(found) for name, found in traces.items()}
    methods = {
        row.name: {
            **_figures(row, traces[row.name], right[row.name], seed),
            **_against(right[row.name], right[alone.get(row.name, row.name)], seed),
        }
        for row in rows
    }
    for row in rows if metric and references else ():
        methods[row.name]["score"] = score(str(metric), _folder(out, row.name) / "predictions.jsonl", str(references))
    settings = {row.name: _settings(row) for row in rows}
    comparison = {
        "methods": methods,
        "questions": len(questions),
        "settings": settings,
        "provenance": provenance(seed, questions=len(questions), items=len(index)),
    }
    write_text(out / "comparison.json", json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")
    return comparison, traces


def _alone(model: str, weights_of: Callable[[str], str]) -> str:
    return NONE if weights_of(model) == weights_of(NONE) else f"{NONE}@{model}"


def _run(row: Row, pipeline: Pipeline, retrieved: Sequence[Trace], seed: int, folder: Path) -> None:
    """Answer the questions as a row asks; ``row.json``, which says that the rest is whole, is the caller's to write."""
    (folder / "row.json").unlink(missing_ok=True)
    traces = [dataclasses.replace(one, notes=[*one.notes], seconds={**one.seconds}) for one in retrieved]
    knowledge = [pipeline.items_of(trace) for trace in traces]
    if row.knowledge is not None and pipeline.index is not None:
        replace = KNOWLEDGE[row.knowledge]
        for place, trace in enumerate(traces):
            knowledge[place] = replace(pipeline.index, trace.question, knowledge[place], seed)
            trace.notes = (
                [] if knowledge[place] else [f"no {row.knowledge} knowledge: answered from the question alone"]
            )
    pipeline.answer(traces, knowledge)
    write_jsonl(folder / "traces.jsonl", traces)
    lines = [{"id": t.question.id, "prediction": t.answer, "sources": _sources(t)} for t in traces]
    write_jsonl(folder / "predictions.jsonl", lines)


def _said(traces: Sequence[Trace]) -> str:
    right = _right(traces)
    return (
        f"{sum(right.values()) / len(right):.3f} of {len(right)} answers right" if right else f"{len(traces)} answers"
    )


def _folder(out: Path, name: str) -> Path:
    readable = re.sub(r"[^\w.=-]+", "_", name)[:60]
    return out / "rows" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _settings(row: Row) -> dict[str, Any]:
    """All settings of a row; of a setting that is a file, its checksum as well."""
    config = dataclasses.asdict(row.config)
    files = {
        value: hashlib.sha256(Path(value).read_bytes()).hexdigest()
        for value in config.values()
        if isinstance(value, str) and value and Path(value).is_file()
    }
    return {
        "method": row.method,
        "model": row.model,
        "replaced": row.knowledge,
        **config,
        **({"files": files} if files else {}),
    }


def _digest(records: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(to_dict(record), sort_keys=True).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there, or half of it: the row is made anew


def _sources(trace: Trace) -> list[str]:
    return [hit.item.id for hit in trace.retrieved()]


def _right(traces: Sequence[Trace]) -> dict[str, float]:
    return {t.question.id: exact_match(t.answer, t.question.answers) for t in traces if t.question.answers}


def _figures(row: Row, traces: Sequence[Trace], right: Mapping[str, float], seed: int) -> dict[str, Any]:
    """What one row's traces tell; null where there is nothing to tell."""
    stages = mean_seconds(traces)
    searched = traces if row.retrieves else []
    retrieval = {
        name: _mean([v for t in searched if (v := metric(t)) is not None]) for name, metric in RETRIEVAL.items()
    }
    asked = {trace.question.id: trace.question.category or "" for trace in traces}
    groups: dict[str, list[float]] = {}
    for name, value in right.items():
        groups.setdefault(asked[name], []).append(value)
    return {
        "answer_accuracy": _mean(list(right.values())),
        "interval": [round(end, 6) for end in bootstrap(list(right.values()), seed)] if right else None,
        **retrieval,
        **_judgement(traces if row.config.askg else ()),
        "noise": _mean([_noise(trace) for trace in traces if trace.question.gold and trace.kept]),
        "seconds": round(sum(stages.values()), 6),
        "seconds_by_stage": stages,
        "tokens": {
            name: _mean([float(t.tokens[name]) for t in traces if name in t.tokens]) for name in _counted(traces)
        },
        "dropped": {
            name: sum(len(trace.dropped.get(name, ())) for trace in traces)
            for name in dict.fromkeys(name for trace in traces for name in trace.dropped)
        },
        "notes": dict(Counter(note for trace in traces for note in trace.notes).most_common(20)),
        "by_category": {name: _mean(values) for name, values in sorted(groups.items()) if name},
    }


def _counted(traces: Sequence[Trace]) -> list[str]:
    return list(dict.fromkeys(name for trace in traces for name in trace.tokens))


def _noise(trace: Trace) -> float:
    """The share of the items in the prompt that are not gold."""
    return 1 - len(set(trace.question.gold) & set(trace.kept)) / len(trace.kept)


def _judgement(traces: Sequence[Trace]) -> dict[str, float | None]:
    """Of the items judged relevant, how many are gold; of the gold items kept, how many are judged relevant."""
    judged = found = given = 0
    for trace in traces:
        gold = set(trace.question.gold)
        if gold:
            judged += len(trace.judged)
            found += len(gold & set(trace.judged))
            given += len(gold & set(trace.kept))
    return {
        "judged_precision": round(found / judged, 6) if judged else None,
        "judged_recall": round(found / given, 6) if given else None,
    }


def _against(ours: Mapping[str, float], none: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Question by question against no retrieval, with an interval of the mean difference."""
    pairs = [(value, none[name]) for name, value in ours.items()]
    gained, lost = paired([a for a, _ in pairs], [b for _, b in pairs])
    differences = [a - b for a, b in pairs]
    interval = [round(end, 6) for end in bootstrap(differences, seed)] if pairs else None
    return {"gained": gained, "lost": lost, "difference": _mean(differences), "difference_interval": interval}


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
