"""Run questions through the pipeline under several kinds of knowledge, score them, write metrics and traces."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ra_blip.errors import ConfigError, DataError, OutputError
from ra_blip.evaluation.distractors import adversarial, choice, generator, gold_items, random_items, shuffled
from ra_blip.evaluation.metrics.answers import contains, exact_match, token_f1
from ra_blip.evaluation.metrics.intervals import bootstrap, paired
from ra_blip.evaluation.metrics.retrieval import ndcg, recall, reciprocal_rank
from ra_blip.evaluation.metrics.vqa import direct_answer, vqa_accuracy
from ra_blip.evaluation.metrics.webqa import retrieval_f1
from ra_blip.evaluation.provenance import provenance
from ra_blip.generation.pipeline import Answerer, Pipeline, PipelineConfig
from ra_blip.records import Item, Question, Trace, entity, write_jsonl, write_text
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.search import expanded

Knowledge = Callable[[KnowledgeIndex, Question, list[Item], int], list[Item]]
Scores = dict[str, dict[str, float]]  # "section.metric" -> question id -> value
Metric = Callable[[Trace], float | None]


def _gold(index: KnowledgeIndex, question: Question, kept: list[Item], seed: int) -> list[Item]:
    return gold_items(index, question)


def _random(index: KnowledgeIndex, question: Question, kept: list[Item], seed: int) -> list[Item]:
    return random_items(index, question, len(kept), generator(seed, "random", question))


def _shuffled(index: KnowledgeIndex, question: Question, kept: list[Item], seed: int) -> list[Item]:
    return shuffled(kept, generator(seed, "shuffled", question))


def _adversarial(index: KnowledgeIndex, question: Question, kept: list[Item], seed: int) -> list[Item]:
    return adversarial(index, question, kept, generator(seed, "adversarial", question))


WITH, WITHOUT, GOLD = "with_retrieval", "without_retrieval", "gold_knowledge"
# what stands in the prompt in place of the kept items
REPLACED: dict[str, Knowledge] = {
    GOLD: _gold,
    "random_knowledge": _random,
    "shuffled": _shuffled,
    "adversarial": _adversarial,
}
MODES = (WITH, WITHOUT, *REPLACED)


def _names(trace: Trace) -> list[str]:
    return [hit.item.id for hit in trace.retrieved()]


def _retrieval(metric: Callable[[Sequence[str], Sequence[str], int], float], k: int) -> Metric:
    return lambda trace: metric(_names(trace), trace.question.gold, k) if trace.question.gold else None


def _first_entities(k: int) -> Metric:
    """Whether the first ``k`` different entities of the first search hold that of a gold item."""

    def metric(trace: Trace) -> float | None:
        hits = trace.stage("search")
        gold = set(trace.question.gold)
        wanted = {entity(Item(name)) for name in gold} | {entity(hit.item) for hit in hits if hit.item.id in gold}
        found = list(dict.fromkeys(entity(hit.item) for hit in hits))[:k]
        return float(not wanted.isdisjoint(found)) if gold and hits else None

    return metric


def _judged_f1(trace: Trace) -> float | None:
    """WebQA's retrieval F1 of the items that the answer rests on."""
    return retrieval_f1(trace.judged, trace.question.gold) if trace.question.gold else None


def _answer(metric: Callable[[str, Sequence[str]], float]) -> Metric:
    return lambda trace: metric(trace.answer, trace.question.answers) if trace.question.answers else None


RETRIEVAL: dict[str, Metric] = {
    "recall@1": _retrieval(recall, 1),
    "recall@5": _retrieval(recall, 5),
    "mrr@10": _retrieval(reciprocal_rank, 10),
}
# further metrics, asked for by name
METRICS: dict[str, Metric] = {
    "recall@10": _retrieval(recall, 10),
    "recall@20": _retrieval(recall, 20),
    "ndcg@10": _retrieval(ndcg, 10),
    "search_entity@1": _first_entities(1),
    "search_entity@5": _first_entities(5),
    "exact_match": _answer(exact_match),
    "token_f1": _answer(token_f1),
    "answer_in_prediction": _answer(contains),
    "vqa_accuracy": _answer(vqa_accuracy),
    "aokvqa_accuracy": _answer(direct_answer),
    "retrieval_f1": _judged_f1,
}


def evaluate(
    model: Answerer,
    index: KnowledgeIndex | None,
    questions: Sequence[Question],
    out: str | Path,
    config: PipelineConfig | None = None,
    modes: Sequence[str] = MODES,
    metrics: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Answer and score ``questions``; writes ``traces.jsonl``, ``predictions.jsonl`` and then ``metrics.json``.

    The answer is scored by exact match after normalisation, under each of ``modes``: the knowledge in the prompt is
    what the pipeline kept (``with_retrieval``), nothing (``without_retrieval``), the gold items alone, as many random
    items that are not gold, the kept items in another order (``shuffled``), or the kept items with half of them
    replaced by near-duplicates of the wrong entity (``adversarial``). A question with a picture is asked in the form
    that the first hop gave it, save without retrieval. ASKG accuracy: among one gold item and the three items of the
    same kind nearest to it that are of another entity and do not answer, in random order, the model's highest
    probability is the gold's; chance is 0.25.

    Args:
        model: the model.
        index: the knowledge; None asks without retrieval only.
        questions: those without answers or gold are left out of the figures that need them, see ``counts``.
        out: folder for the files; ``predictions.jsonl`` is what ``ra-blip score`` reads, ``sources`` are ``judged``.
        config: see :class:`~ra_blip.generation.pipeline.PipelineConfig`.
        modes: some of :data:`MODES`.
        metrics: names in :data:`METRICS`, scored on the traces that are written; they appear under ``extra``.
        seed: of everything drawn; equal seeds give equal figures, ``seconds`` and ``provenance`` aside.

    Returns:
        The content of ``metrics.json``: ``retrieval``, ``answer``, ``askg``, ``extra`` and ``by_category.<name>`` of
        these; the same tree of 95 % bootstrap intervals under ``intervals`` and of numbers of questions under
        ``counts``; questions gained and lost by retrieval; mean ``seconds`` per question and stage; ``provenance``.

    Raises:
        OutputError: ``out`` cannot be written (found before any work).
        ConfigError: an unknown mode or metric.
        DataError: no questions, or an id used twice.
        QuestionError, ImageError, IndexMismatch: as :class:`~ra_blip.generation.pipeline.Pipeline`.
    """
    out = Path(out)
    check_questions(questions)
    _check(modes, metrics)
    require_writable(out)
    pipeline = Pipeline(model, index, config)
    chosen = [mode for mode in MODES if mode in modes] if index is not None else [WITHOUT]
    traces, scores = _run(pipeline, questions, chosen, seed)
    for name in metrics:
        scores[f"extra.{name}"] = _score(METRICS[name], traces)
    result = summarise(scores, questions, seed)
    result["seconds"] = mean_seconds(traces)
    fingerprint = dict(model.fingerprint)
    result["provenance"] = provenance(
        seed, questions=len(questions), items=len(index) if index is not None else 0,
        model=fingerprint, pipeline=dataclasses.asdict(pipeline.config),
    )  # fmt: skip
    write_jsonl(out / "traces.jsonl", traces)
    said = ({"id": one.question.id, "prediction": one.answer, "sources": one.judged} for one in traces)
    write_jsonl(out / "predictions.jsonl", said)
    write_text(out / "metrics.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _run(
    pipeline: Pipeline, questions: Sequence[Question], modes: Sequence[str], seed: int
) -> tuple[list[Trace], Scores]:
    """The traces to write, and the scores of every mode."""
    found = pipeline.retrieve(questions)
    traces: list[Trace] = found
    scores: Scores = {}
    for mode in tqdm(modes, desc="evaluate", unit="mode", disable=None):
        if mode == WITH:
            asked, knowledge = found, [pipeline.items_of(trace) for trace in found]
        else:
            asked, knowledge = _replaced(pipeline, found, mode, seed)
        pipeline.answer(asked, knowledge)
        scores[f"answer.{mode}"] = _score(_answer(exact_match), asked)
        if pipeline.index is None:
            traces = asked
    if pipeline.index is not None:
        for name, metric in RETRIEVAL.items():
            scores[f"retrieval.{name}"] = _score(metric, found)
        scores["askg.accuracy"] = _askg(pipeline, found, seed)
    return traces, scores


def _replaced(pipeline: Pipeline, found: Sequence[Trace], mode: str, seed: int) -> tuple[list[Trace], list[list[Item]]]:
    """Fresh traces of the questions that a mode can score, and the knowledge that it puts before the model."""
    index = pipeline.index
    if mode == WITHOUT or index is None:
        # without an index these are the traces that are written, so that unanswered questions stay among them
        asked = [Trace(question=one.question) for one in found if one.question.answers or index is None]
        return asked, [[] for _ in asked]
    asked, knowledge = [], []
    for one in found:
        items = REPLACED[mode](index, one.question, pipeline.items_of(one), seed)
        if one.question.answers and (items or mode != GOLD):
            asked.append(Trace(question=one.question, hits=one.hits))  # the hits carry the expanded question
            knowledge.append(items)
    return asked, knowledge


def _askg(pipeline: Pipeline, found: Sequence[Trace], seed: int) -> dict[str, float]:
    index, size = pipeline.index, pipeline.config.batch_size
    if index is None:
        return {}
    drawn = [(one, choice(index, one.question, generator(seed, "askg", one.question))) for one in found]
    posed = [(one, *picked) for one, picked in drawn if picked is not None]
    scores = {}
    for start in range(0, len(posed), size):
        part = posed[start : start + size]
        questions = [expanded(one.question, one.hits) for one, _, _ in part]
        shares = pipeline.model.select(questions, [items for _, items, _ in part])
        for (one, _, place), row in zip(part, shares, strict=True):
            best = max(row)
            # a model that cannot tell (equal probabilities) is given its chance, not the first place
            scores[one.question.id] = (row[place] == best) / list(row).count(best)
    return scores


def _score(metric: Metric, traces: Sequence[Trace]) -> dict[str, float]:
    return {trace.question.id: value for trace in traces if (value := metric(trace)) is not None}


def summarise(scores: Mapping[str, Mapping[str, float]], questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Means over all questions and by category, with their intervals and counts as trees of the same shape.

    Args:
        scores: ``section.metric`` -> question id -> value.
        questions: give the categories.
        seed: of the bootstrap.
    """
    groups: dict[str | None, set[str]] = {None: {question.id for question in questions}}
    for named in sorted({question.category for question in questions if question.category}):
        groups[named] = {question.id for question in questions if question.category == named}
    means: dict[str, Any] = {}
    trees: dict[str, dict[str, Any]] = {"intervals": {}, "counts": {}}
    for category, ids in groups.items():
        for name, by_question in scores.items():
            values = [value for question, value in by_question.items() if question in ids]
            if not values:
                continue
            interval = [round(end, 6) for end in bootstrap(values, seed)]
            _put(means, category, name, round(sum(values) / len(values), 6))
            _put(trees["intervals"], category, name, interval)
            _put(trees["counts"], category, name, len(values))
    return {**means, **_against_without(scores), **trees}


def _put(tree: dict[str, Any], category: str | None, name: str, value: Any) -> None:
    section, metric = name.split(".", 1)
    place = tree if category is None else tree.setdefault("by_category", {}).setdefault(category, {})
    place.setdefault(section, {})[metric] = value


def _against_without(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    ours, theirs = scores.get(f"answer.{WITH}"), scores.get(f"answer.{WITHOUT}")
    if not ours or not theirs:
        return {}
    shared = [name for name in ours if name in theirs]
    gained, lost = paired([ours[name] for name in shared], [theirs[name] for name in shared])
    return {"against_without": {"gained": gained, "lost": lost}}


def mean_seconds(traces: Sequence[Trace]) -> dict[str, float]:
    """Mean seconds of a question by stage."""
    stages = dict.fromkeys(stage for trace in traces for stage in trace.seconds)
    return {stage: round(sum(t.seconds.get(stage, 0.0) for t in traces) / len(traces), 6) for stage in stages}


def check_questions(questions: Sequence[Question]) -> None:
    """Raise :class:`DataError` where there are no questions, or an id is used twice."""
    if not questions:
        raise DataError("there are no questions to evaluate")
    repeated, times = Counter(question.id for question in questions).most_common(1)[0]
    if times > 1:
        raise DataError(f"question id {repeated!r} is used {times} times; ids must be unique")


def _check(modes: Sequence[str], metrics: Sequence[str]) -> None:
    for kind, given, known in (("mode", modes, MODES), ("metric", metrics, tuple(METRICS))):
        for one in given:
            if one not in known:
                raise ConfigError(f"{kind} {one!r} is not one of {', '.join(known)}")


def require_writable(out: Path) -> None:
    """Make a folder and find out, before the work, that it can be written. Raises :class:`OutputError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from None
