"""The command line: ``ra-blip VERB``. One literal dict leads from a verb to its options and its function."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from ra_blip import __version__, commands
from ra_blip.errors import RABlipError
from ra_blip.generation.methods import METHODS


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _demo(parser: Parser) -> None:
    parser.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="where everything goes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of world and training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a small world and short training: does it run here?")


def _recipe(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what differs from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="dotted overrides, e.g. train.steps=100")


def _train(parser: Parser) -> None:
    _recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print sizes, memory, arithmetic and what is missing, and train nothing"
    )
    parser.add_argument("--gpus", type=_positive, default=1, metavar="N", help="of --dry-run: GPUs (default: 1)")


def _index(parser: Parser) -> None:
    parser.add_argument("items", nargs="?", metavar="ITEMS.jsonl", help="the items to embed")
    parser.add_argument("--model", metavar="DIR", help="model folder; needed unless items are only removed")
    parser.add_argument("--out", required=True, metavar="DIR", help="the index folder")
    _features(parser)
    parser.add_argument("--add", action="store_true", help="add ITEMS to the index in OUT instead of building anew")
    parser.add_argument("--remove", nargs="+", default=[], metavar="ID", help="remove items from the index in OUT")


def _search(parser: Parser) -> None:
    parser.add_argument("questions", metavar="QUESTIONS.jsonl")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder")
    parser.add_argument("--index", required=True, metavar="DIR", help="index folder")
    parser.add_argument("--k", type=_positive, metavar="K", help="items per question (default: 20, or all of fewer)")
    parser.add_argument("--out", required=True, metavar="HITS.jsonl")
    parser.add_argument(
        "--negatives",
        action="store_true",
        help="hard negatives to train with (data.mined): ranks 2 to K without what may be a right answer",
    )
    _method(parser, None)
    _features(parser)


def _ask(parser: Parser) -> None:
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--image", metavar="FILE", help="a picture that the question is about")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder")
    parser.add_argument("--index", metavar="DIR", help="index folder; needed unless --method none")
    _method(parser)
    _features(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object: answer, judged, hits, seconds")


def _evaluate(parser: Parser) -> None:
    parser.add_argument("questions", metavar="QUESTIONS.jsonl")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder")
    parser.add_argument("--index", metavar="DIR", help="index folder; needed unless nothing is retrieved")
    parser.add_argument("--out", required=True, metavar="DIR", help="where metrics.json and traces.jsonl go")
    _method(parser)
    _features(parser)
    parser.add_argument("--no-retrieval", action="store_true", help="answer without knowledge: --method none")
    further = "as well: recall@10, recall@20, ndcg@10, search_entity@1, search_entity@5, exact_match, token_f1, "
    further += "answer_in_prediction, vqa_accuracy, aokvqa_accuracy, retrieval_f1"
    parser.add_argument("--metric", nargs="+", action="extend", default=[], metavar="NAME", help=further)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of shuffles and distractors")


def _compare(parser: Parser) -> None:
    parser.add_argument("questions", metavar="QUESTIONS.jsonl")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder")
    parser.add_argument("--index", required=True, metavar="DIR", help="index folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="where comparison.json and comparison.html go")
    rows = f"{', '.join(METHODS)}; a colon and changes make a variant: ra_blip:gold, ragvl:rerank=none+k=5; "
    rows += "an @ names another model: ra_blip@NAME"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=rows)
    parser.add_argument("--ablations", action="store_true", help="the usual variants of every method as well")
    noise = "every row also from gold items among wrong ones, at four ratios: a curve"
    parser.add_argument("--noise", action="store_true", help=noise)
    parser.add_argument(
        "--models", nargs="+", action="extend", default=[], metavar="NAME=DIR", help="a method's or an @NAME's model"
    )
    parser.add_argument("--metric", metavar="METRIC", help="score by a metric of `ra-blip score` as well")
    parser.add_argument("--references", metavar="R.jsonl", help="what that metric needs")
    _features(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of drawn knowledge and intervals")


def _method(parser: Parser, default: str | None = "ra_blip") -> None:
    shown = "(default: %(default)s)" if default else "what the method hands on, filtered and ranked (default: a search)"
    parser.add_argument("--method", choices=sorted(METHODS), default=default, help=shown)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="a=b", help="how to retrieve, e.g. keep=6 rerank=none"
    )


def _features(parser: Parser) -> None:
    parser.add_argument("--features", metavar="DIR", help="folder that keeps what the vision tower read of pictures")


def _score(parser: Parser) -> None:
    metrics = "answers, aokvqa, binomial, caption, encyclopedic, infoseek, mmqa, retrieval, vqa, webqa"
    parser.add_argument("metric", metavar="METRIC", help=f"one of {metrics}")
    parser.add_argument("--predictions", required=True, metavar="P.jsonl", help="id, prediction, sources")
    parser.add_argument("--references", required=True, metavar="R.jsonl", help="id and what the metric needs")
    parser.add_argument("--per-question", action="store_true", help="show the values of every question as well")
    parser.add_argument("--bart-score", metavar="MODEL", help="webqa: a BART folder for the fluency score QA-FL")
    parser.add_argument("--bart-weights", metavar="FILE", help="weights to put over it, e.g. BARTScore's bart.pth")
    parser.add_argument("--judge", metavar="NAME", help="answers, infoseek: offline, or the YAML file of an endpoint")


def _report(parser: Parser) -> None:
    parser.add_argument(
        "traces", metavar="TRACES.jsonl", help="metrics.json and log.jsonl files beside it are shown too"
    )
    parser.add_argument("--out", required=True, metavar="FILE.html")


def _check(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="items.jsonl, questions.jsonl, or the folder of a data set")
    parser.add_argument(
        "--pictures",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="open this share of the pictures, from 0 to 1; the others must only be there (default: %(default)s)",
    )


def _pack(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the folder of a data set, items.jsonl or questions.jsonl")
    parser.add_argument("out", metavar="OUT", help="the folder of shards; must not be there yet")
    parser.add_argument("--split", metavar="NAME", help="captions or questions of this split (default: the items)")
    parser.add_argument("--size", type=_positive, metavar="N", help="shorter side of pictures that are larger")
    parser.add_argument(
        "--shard-mb", type=_positive, default=256, metavar="M", help="size of a shard in MiB (default: %(default)s)"
    )
    parser.add_argument(
        "--skip",
        type=_share,
        nargs="?",
        const=0.001,
        metavar="SHARE",
        help="leave out and list what is damaged, up to this share (%(const)s if not given), instead of stopping",
    )


def _inspect(parser: Parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file (.pth, .bin, .safetensors) or a folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _convert(parser: Parser) -> None:
    parser.add_argument("sources", nargs="+", metavar="IN", help="a checkpoint; several complete each other, later win")
    parser.add_argument("out", metavar="OUT", help="a new file for lavis, else a new folder")
    parser.add_argument("--to", required=True, choices=["native", "lavis", "hf"], help="which layout")
    parser.add_argument("--half", choices=["retriever", "reader"], help="of a model of ours (default: its reader)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


_share.__name__ = "share"
_positive.__name__ = "whole number"  # argparse names the type in its message

VERBS: dict[str, tuple[Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    "demo": (_demo, commands.demo),
    "train": (_train, commands.train),
    "config": (_recipe, commands.config),
    "index": (_index, commands.index),
    "search": (_search, commands.search),
    "ask": (_ask, commands.ask),
    "evaluate": (_evaluate, commands.evaluate),
    "compare": (_compare, commands.compare),
    "score": (_score, commands.score),
    "report": (_report, commands.report),
    "check": (_check, commands.check),
    "inspect": (_inspect, commands.inspect),
    "convert": (_convert, commands.convert),
    "pack": (_pack, commands.pack),
}


def parser() -> Parser:
    """The parser of all verbs; a verb's help is its function's docstring."""
    top = Parser(
        prog="ra-blip", description="Retrieval-augmented questions about pictures and texts.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"ra-blip {__version__}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (options, command) in VERBS.items():
        text = " ".join((command.__doc__ or "").split())
        one = verbs.add_parser(name, help=text.partition(". ")[0].rstrip("."), description=text, allow_abbrev=False)
        one.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        options(one)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    0 is success, 1 a failed check or a defect, 2 bad input, 75 a training run that was asked to stop and saved, 130
    interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    arguments = parser().parse_args(argv)
    try:
        code = VERBS[arguments.verb][1](arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _close_quietly(sys.stdout)
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if arguments.debug:
            raise
        code, message = _explain(error)
        print(f"ra-blip: {message}", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, RABlipError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return 2, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return 1, f"unexpected {what} (run again with --debug for the traceback)"


def _close_quietly(stream: TextIO) -> None:
    """Point a broken stream at nothing, or the interpreter complains about it on the way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
