"""One file for each data set on disk: its own layout in, records out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ra_blip.data.readers import flags, grocery
from ra_blip.data.readers.reading import Reading
from ra_blip.errors import DataError

READERS: dict[str, Callable[[str | Path], Reading]] = {"grocery": grocery.read, "flags": flags.read}


def write(name: str, root: str | Path, out: str | Path) -> dict[str, int]:
    """Read a data set and write its JSON lines files.

    Args:
        name: a key of :data:`READERS`.
        root: the data set's folder.
        out: folder for ``items.jsonl``, ``questions.jsonl`` and ``train_questions.jsonl``.

    Returns:
        The number of records by file name.

    Raises:
        DataError: the name is unknown, or the data set is missing or malformed.
        OutputError: ``out`` cannot be written.
    """
    if name not in READERS:
        raise DataError(f"no reader named {name!r}; there are: {', '.join(sorted(READERS))}")
    return READERS[name](root).write(out)
