"""``python -m ra_blip.data.readers NAME FOLDER OUT``: a data set on disk as ``items.jsonl`` and its questions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ra_blip.data.readers import READERS, write
from ra_blip.errors import RABlipError


def main(argv: Sequence[str] | None = None) -> int:
    """Read a data set, write its JSON lines files, and say how many records there are; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m ra_blip.data.readers", description=main.__doc__)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(sorted(READERS))}")
    parser.add_argument("folder", metavar="FOLDER", help="the data set's folder")
    parser.add_argument("out", metavar="OUT", help="where items.jsonl, questions.jsonl, train_questions.jsonl go")
    arguments = parser.parse_args(argv)
    try:
        counts = write(arguments.name, arguments.folder, arguments.out)
    except RABlipError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    for name, count in counts.items():
        print(f"{count:8,}  {arguments.out}/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
