"""What every reader returns: a knowledge base and its questions, split into training and test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ra_blip.errors import DataError
from ra_blip.records import Item, Question, write_jsonl


@dataclasses.dataclass(frozen=True)
class Reading:
    """One data set as records.

    Attributes:
        items: the knowledge base.
        questions: for testing only.
        train_questions: for training only; no question and no test picture occurs in both.
    """

    items: list[Item]
    questions: list[Question]
    train_questions: list[Question]

    def write(self, out: str | Path) -> dict[str, int]:
        """Write ``items.jsonl``, ``questions.jsonl`` and ``train_questions.jsonl`` into a folder.

        Returns:
            The number of records in each file, by file name.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        counts = {}
        for field in dataclasses.fields(self):
            records = getattr(self, field.name)
            write_jsonl(Path(out) / f"{field.name}.jsonl", records)
            counts[f"{field.name}.jsonl"] = len(records)
        return counts


def read_text(path: Path) -> str:
    """A whole UTF-8 file. Raises :class:`DataError` where it is missing or not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is this the root of the data set?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises :class:`DataError` with the line where it is not JSON."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)})") from None


def require(value: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """``value[key]``, checked for its type. Raises :class:`DataError` naming ``where`` and the key."""
    found = value.get(key)
    if not isinstance(found, kind) or isinstance(found, bool):
        shown = "is missing" if found is None else f"must be {kind.__name__}, found {type(found).__name__}"
        raise DataError(f"{where}: {key!r} {shown}")
    return found


def picture(root: Path, relative: str, where: str) -> str:
    """Path of a picture inside ``root``. Raises :class:`DataError` where it lies outside or does not exist."""
    inside = Path(relative)
    if not relative or inside.is_absolute() or ".." in inside.parts:
        raise DataError(f"{where}: picture path {relative!r} must be relative and stay inside the data set")
    if not (root / inside).is_file():
        raise DataError(f"{where}: no such picture: {root / inside}")
    return str(root / inside)


def listing(parts: Iterable[str]) -> str:
    """Words as an English list: ``a``, ``a and b``, ``a, b and c``."""
    words = list(parts)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
