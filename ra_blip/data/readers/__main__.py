"""``python -m ra_blip.data.readers NAME FOLDER OUT``: a data set on disk as ``items.jsonl`` and its questions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ra_blip.data.readers import READERS, open_dataset, write
from ra_blip.errors import RABlipError


def main(argv: Sequence[str] | None = None) -> int:
    """Read a data set, write its JSON lines files, and say how many records there are; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m ra_blip.data.readers", description=main.__doc__)
    parser.add_argument("name", metavar="NAME", help=f"auto, to tell it by its files, or one of {', '.join(READERS)}")
    parser.add_argument("folder", metavar="FOLDER", help="the data set's folder")
    parser.add_argument("out", metavar="OUT", help="where items.jsonl, questions.jsonl, train_questions.jsonl ... go")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that is wrong")
    arguments = parser.parse_args(argv)
    try:
        name = None if arguments.name == "auto" else arguments.name
        dataset = open_dataset(arguments.folder, name, arguments.strict)
        counts = write(dataset, arguments.out)
    except RABlipError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{dataset.name} in {arguments.folder}")
    for file, count in counts.items():
        print(f"{count:8,}  {arguments.out}/{file}")
    if dataset.problems.total:
        print(f"{dataset.problems.summary()} (ra-blip check {arguments.folder} names them)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
