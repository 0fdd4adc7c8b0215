"""What each verb of the command line does. Everything heavy is imported inside, so that ``--help`` is quick."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_blip.errors import ConfigError, DataError, OutputError
from ra_blip.generation.methods import METHODS
from ra_blip.records import Question, Trace, read_items, read_questions, read_traces

if TYPE_CHECKING:
    from ra_blip.models.rablip import RABlip
    from ra_blip.retrieval.index import KnowledgeIndex
    from ra_blip.retrieval.search import Found

LARGE = 10_000  # items; the vectors of more are kept while an index is built


def demo(arguments: Namespace) -> int:
    """Train in a generated world, answer questions about what training never saw, and write a report.

    Run again with the same OUT: continues where it was stopped.
    """
    _require_folder(arguments.out)
    from ra_blip.demo import run

    run(out=Path(arguments.out), seed=arguments.seed, quick=arguments.quick)
    return 0


def train(arguments: Namespace) -> int:
    """Run one training stage from a recipe. Run again with the same out: continues from its last checkpoint."""
    from ra_blip.config import load_config

    config = load_config(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        from ra_blip.training.dry_run import dry_run

        plan = dry_run(config, arguments.gpus)
        print(shown_lines(plan.text))
        return 2 if plan.problems else 0
    _require_folder(config.out)
    from ra_blip.training.run import train

    train(config)
    return 0


def config(arguments: Namespace) -> int:
    """Print the whole resolved run: defaults, recipe, overrides."""
    from ra_blip.config import dump_config, load_config

    print(dump_config(load_config(arguments.recipe, arguments.overrides)), end="")
    return 0


def index(arguments: Namespace) -> int:
    """Embed items and write the index folder, or add items to one or remove items from it. No training is needed.

    With --remove and --add, items are removed first, so that both together replace an item. The folder is changed as
    a whole or not at all. A large base keeps the vectors it has in a hidden folder beside OUT until it is done: the
    same command goes on from them.
    """
    building = not (arguments.add or arguments.remove)
    if (building or arguments.add) and not (arguments.items and arguments.model):
        raise ConfigError("index: give ITEMS.jsonl and --model (only --remove needs neither)")
    items = read_items(arguments.items) if building or arguments.add else []
    if arguments.items and not items:
        print(f"ra-blip: --remove without --add: {arguments.items} is not read", file=sys.stderr)
    _require_folder(arguments.out)
    from ra_blip.retrieval.index import KnowledgeIndex

    out = Path(arguments.out)
    if building:
        work = out.with_name(f".{out.resolve().name}.vectors")
        model = _model(arguments.model, arguments.features)
        edited = KnowledgeIndex.build(items, model, work=work if len(items) > LARGE else None)
        edited.save(out)
        shutil.rmtree(work, ignore_errors=True)
    else:
        edited = KnowledgeIndex.load(out)
        if arguments.remove:
            edited.remove(arguments.remove)
        if items:
            edited.add(items, _model(arguments.model, arguments.features))
        edited.save(out)
    print(f"{len(edited)} items in {arguments.out}")
    return 0


def search(arguments: Namespace) -> int:
    """Find the K best items for every question; the result also serves as hard negatives of training.

    With --negatives only what surely does not answer is written: neither the first hit nor a gold item nor one that is
    nearly the same (cosine 0.94), nor one with an answer in its words.
    """
    questions = read_questions(arguments.questions)
    _require_file(arguments.out)
    knowledge = _index(arguments.index)
    from ra_blip.retrieval.search import ALIKE, mine_hits, search, write_hits

    model = _model(arguments.model, arguments.features)
    k = arguments.k or min(20, len(knowledge))
    if arguments.negatives:
        found = mine_hits(model, knowledge, questions, k, per_question=k, skip=1, alike=ALIKE)
        print(f"{sum(len(one.hits) for one in found):,} hard negatives, {k - 1} a question at most")
    elif arguments.method or arguments.set:
        found = _retrieved(model, knowledge, questions, arguments)
    else:
        found = search(model, knowledge, questions, k)
    write_hits(arguments.out, found)
    print(f"{len(questions)} questions, hits in {arguments.out}")
    return 0


def _retrieved(model: RABlip, index: KnowledgeIndex, questions: list[Question], arguments: Namespace) -> list[Found]:
    """What a method hands on for each question, filtered and ranked."""
    from ra_blip.generation.pipeline import Pipeline, PipelineConfig
    from ra_blip.retrieval.search import Found

    count = [f"k={arguments.k}"] if arguments.k else []
    config = PipelineConfig.of([*count, *arguments.set], arguments.method or "ra_blip")
    return [Found(one.question, one.retrieved()) for one in Pipeline(model, index, config).retrieve(questions)]


def ask(arguments: Namespace) -> int:
    """Answer one question, and show the items that the answer rests on."""
    knowledge = _index(arguments.index) if _retrieves(arguments) else None
    from ra_blip.generation.pipeline import Pipeline, PipelineConfig

    config = PipelineConfig.of(arguments.set, arguments.method)
    pipeline = Pipeline(_model(arguments.model, arguments.features), knowledge, config)
    trace = pipeline(arguments.question, image=arguments.image)
    print(json.dumps(_trace_to_json(trace), ensure_ascii=False) if arguments.json else _trace_to_text(trace))
    return 0


def evaluate(arguments: Namespace) -> int:
    """Answer every question under each condition and write metrics.json and traces.jsonl."""
    questions = read_questions(arguments.questions)
    _require_folder(arguments.out)
    knowledge = _index(arguments.index) if _retrieves(arguments) else None
    from ra_blip.evaluation.evaluate import evaluate
    from ra_blip.generation.pipeline import PipelineConfig

    out, config = Path(arguments.out), PipelineConfig.of(arguments.set, arguments.method)
    model = _model(arguments.model, arguments.features)
    metrics = evaluate(model, knowledge, questions, out, config, metrics=arguments.metric, seed=arguments.seed)
    figures = ("retrieval", "answer", "askg", "extra")
    print(json.dumps({name: metrics[name] for name in figures if name in metrics}, indent=1))
    print(f"{len(questions)} questions, metrics and traces in {out}")
    return 0


def compare(arguments: Namespace) -> int:
    """Run several methods over the same questions and index: comparison.json and comparison.html.

    Run again with the same OUT: continues, and takes over every row that was made from the same.
    """
    questions = read_questions(arguments.questions)
    _require_folder(arguments.out)
    from ra_blip.evaluation.compare import NONE, Row, compare, row_names
    from ra_blip.report.comparison import write_comparison

    out = Path(arguments.out)
    names = row_names(arguments.methods, arguments.ablations, arguments.noise)
    folders = _models_of({NONE} | {Row.of(name).model for name in names}, arguments.models, arguments.model)
    loaded = functools.cache(lambda folder: _model(folder, arguments.features))
    comparison, traces = compare(
        lambda name: loaded(folders[name]),
        lambda name: _weights(folders[name]),
        _index(arguments.index),
        questions,
        out,
        names,
        arguments.seed,
        arguments.metric,
        arguments.references,
    )
    print(write_comparison(comparison, traces, out / "comparison.html"))
    return 0


def _models_of(names: set[str], given: list[str], default: str) -> dict[str, str]:
    """Model folders by the names that rows have for them: as ``given`` (``NAME=DIR``), else a method's the default."""
    own = dict(pair.partition("=")[::2] for pair in given)
    for name, folder in own.items():
        if name not in names or not folder:
            raise ConfigError(f"compare: --models {name}={folder}: no row has it; write NAME=DIR for a row METHOD@NAME")
    for name in sorted(names - own.keys() - METHODS.keys()):
        raise ConfigError(f"compare: a row has the model @{name}: say which with --models {name}=DIR")
    return {name: own.get(name, default) for name in names}


def _weights(folder: str) -> str:
    """What tells a model folder from another, and from itself after a training: names, sizes and times of files."""
    path = Path(folder)
    if not path.is_dir():
        return folder  # a name on a hub
    files = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(path.glob("*.*"))]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def score(arguments: Namespace) -> int:
    """Score predictions against references by a data set's own metric, and print one JSON object."""
    from ra_blip.evaluation.score import score

    if arguments.bart_weights and not arguments.bart_score:
        raise ConfigError("score: --bart-weights go over a model: give --bart-score as well")
    likelihood = None
    if arguments.bart_score:
        from ra_blip.evaluation.bart_score import BartScore

        likelihood = BartScore(arguments.bart_score, arguments.bart_weights)
    judge = None
    if arguments.judge:
        from ra_blip.evaluation.judge import open_judge

        judge = open_judge(arguments.judge)
    files = (arguments.predictions, arguments.references)
    result = score(arguments.metric, *files, arguments.per_question, likelihood, judge)
    if result["unknown"]:
        named = shown(", ".join(result["unknown_ids"]))
        many = f"{result['unknown']} predictions are" if result["unknown"] > 1 else "1 prediction is"
        print(f"ra-blip: {many} for no question of {arguments.references} and not scored: {named}", file=sys.stderr)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    return 0


def report(arguments: Namespace) -> int:
    """Make one self-contained HTML page of traces."""
    traces = read_traces(arguments.traces)
    _require_file(arguments.out)
    from ra_blip.report.page import write_report

    folder = Path(arguments.traces).parent
    logs = {
        log.parent.name or "training": log for log in sorted([*folder.glob("log.jsonl"), *folder.glob("*/log.jsonl")])
    }
    print(write_report(traces, Path(arguments.out), metrics=_metrics_beside(folder), logs=logs or None))
    return 0


def check(arguments: Namespace) -> int:
    """Read a data file or folder whole and say what is wrong, with line numbers. Exit code 1 where something is."""
    from ra_blip.data.check import check

    found = check(arguments.path, arguments.pictures)
    also = f" (it holds {', '.join(found.also)} too)" if found.also else ""
    print(f"{arguments.path}: {found.layout}{also}")
    for label, count in sorted(found.counts.items()):
        print(f"{count:8,}  {shown(label)}")
    if found.opened < found.pictures:
        print(f"{found.opened:8,}  of {found.pictures:,} pictures opened")
    problems = found.problems
    for message in problems.messages:
        print(shown(message))
    for kind, count in problems.counts.most_common():
        print(f"{count:8,}  {kind}")
    print(f"{problems.total:,} problem{'' if problems.total == 1 else 's'}")
    return 1 if problems.total else 0


def pack(arguments: Namespace) -> int:
    """Write a data set as tar shards in webdataset's layout, with an index. Every picture is decoded once.

    OUT appears when all of it is written.
    """
    from ra_blip.data.pack import pack

    shard_bytes = arguments.shard_mb << 20
    done = pack(arguments.source, arguments.out, arguments.split, arguments.size, shard_bytes, arguments.skip)
    size = f"{len(done.shards):,} shards, {sum(done.shards.values()) / 1e6:,.1f} MB"
    print(f"{done.records:,} records in {done.samples:,} samples, {done.pictures:,} with a picture, in {size}")
    if done.lost:
        print(f"{done.lost:,} left out, see {Path(arguments.out) / 'left_out.txt'}")
    return 0


def inspect(arguments: Namespace) -> int:
    """Say what a checkpoint holds: its layout, tensors, shapes, number formats, and what is missing from it.

    Nothing in it is executed, and no values are read.
    """
    from ra_blip.models.inspection import inspect

    found = inspect(arguments.checkpoint)
    print(json.dumps(found.to_json(), indent=1) if arguments.json else shown_lines(str(found)))
    return 0


def convert(arguments: Namespace) -> int:
    """Write weights in another layout: ours, LAVIS's file or the Hugging Face folder. Says what became of each part."""
    from ra_blip.models.conversion import convert

    print(shown_lines(str(convert(arguments.sources, arguments.out, arguments.to, arguments.half))))
    return 0


def shown_lines(text: str) -> str:
    """Lines as :func:`shown` shows each."""
    return "\n".join(shown(line) for line in text.splitlines())


def shown(text: str) -> str:
    """``text`` on one line, control characters escaped: a caption may hold what a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _trace_to_json(trace: Trace) -> dict[str, Any]:
    from ra_blip.retrieval.search import hit_to_dict

    hits = [hit_to_dict(hit) for hit in trace.hits]
    return {"answer": trace.answer, "judged": trace.judged, "hits": hits, "seconds": trace.seconds}


def _trace_to_text(trace: Trace) -> str:
    items = {hit.item.id: hit.item for hit in trace.hits}
    relevance = dict(zip(trace.kept, trace.relevance, strict=True))
    lines = [shown(trace.answer)]
    for name in trace.judged:
        item = items[name]
        lines.append(f"  rests on {shown(name)} ({relevance[name]:.0%} relevant)")
        lines += [f"    {shown(part)}" for part in (item.full_text, item.image) if part]
    return "\n".join([*lines, *(f"  note: {shown(note)}" for note in trace.notes)])


def _retrieves(arguments: Namespace) -> bool:
    if METHODS[arguments.method].get("retriever") == "none" or getattr(arguments, "no_retrieval", False):
        return False
    if not arguments.index:
        raise ConfigError(f"{arguments.verb}: --index is missing (answering without knowledge: --method none)")
    return True


def _model(folder: str, features: str | None = None) -> RABlip:
    from ra_blip.models.rablip import RABlip

    return RABlip.from_pretrained(folder, Path(features) if features else None)


def _index(folder: str) -> KnowledgeIndex:
    from ra_blip.retrieval.index import KnowledgeIndex

    return KnowledgeIndex.load(folder)


def _metrics_beside(folder: Path) -> dict[str, Any] | None:
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object")
    return value


def _require_folder(folder: str | Path) -> None:
    """Find out before the work, not after it, that a folder cannot be written; leaves nothing behind.

    Raises:
        OutputError: it is a file, or lies where nothing can be made.
    """
    folder = Path(folder).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        raise OutputError(f"{folder}: cannot be a folder, {there} is a file")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None


def _require_file(path: str | Path) -> None:
    """As :func:`_require_folder`, for a file."""
    if Path(path).is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    _require_folder(Path(path).absolute().parent)
