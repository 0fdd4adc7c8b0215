"""What readers share: text, JSON and JSON lines files, pictures, unique ids; and a small data set as lists."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ra_blip.data.id_map import IdMap
from ra_blip.data.readers.dataset import Problems
from ra_blip.data.readers.raw import Kind, Raw, Unusable
from ra_blip.errors import DataError
from ra_blip.records import Item, Question, parse_json


class Named(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """The id."""


Record = TypeVar("Record", bound=Named)


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


def require(value: dict[str, Any], key: str, kind: type[Kind], where: str) -> Kind:
    """``value[key]``, checked for its type. Raises :class:`DataError` naming ``where`` and the key."""
    try:
        return Raw(value).field(key, kind)
    except Unusable as error:
        raise DataError(f"{where}: {error}") from None


def picture(root: Path, relative: str, where: str) -> str:
    """Path of a picture inside ``root``. Raises :class:`DataError` where it lies outside or does not exist."""
    inside = _inside(root, relative)
    if inside is None:
        raise DataError(f"{where}: picture path {relative!r} must be relative and stay inside the data set")
    if not os.path.isfile(inside):
        raise DataError(f"{where}: no such picture: {inside}")
    return str(inside)


def _inside(root: Path, relative: str) -> Path | None:
    """``relative`` below ``root``; None for a path that leads out of it."""
    path = Path(relative)
    return None if not relative or path.is_absolute() or ".." in path.parts else root / path


def listing(parts: Iterable[str]) -> str:
    """Words as an English list: ``a``, ``a and b``, ``a, b and c``."""
    words = list(parts)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def json_lines(
    path: Path, problems: Problems, progress: Callable[[int], object] = lambda size: None
) -> Iterator[tuple[str, Any]]:
    """Yield (file and line, value) of each line that is JSON, also of a ``.gz`` file; report the others.

    Args:
        path: the file; only one line of it is held.
        problems: gets ``not UTF-8`` and ``not JSON``.
        progress: called with the bytes of each line before it is yielded.

    Raises:
        DataError: the file cannot be opened, or its compressed data are damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                progress(len(line))
                where = f"{path}, line {number}"
                try:
                    if line.strip():
                        yield where, parse_json(line.decode("utf-8-sig"))
                except UnicodeDecodeError as error:
                    problems.report("not UTF-8", where, f"not UTF-8 (byte {error.start + 1})")
                except UnicodeEncodeError:
                    problems.report("not UTF-8", where, "holds half a character (a lone surrogate)")
                except json.JSONDecodeError as error:
                    problems.report("not JSON", where, f"not JSON ({error.msg}, column {error.colno})")
                except RecursionError:
                    problems.report("not JSON", where, "nested too deeply")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; is this the root of the data set?") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def existing(root: Path, names: Sequence[str], where: str, problems: Problems) -> str | None:
    """The first of these paths inside ``root`` that is a file; where none is, None, reported as ``missing image``."""
    found = first_file(root, names)
    if found is None:
        problems.report("missing image", where, f"no such picture: {root / names[0] if names else 'none is named'}")
    return str(found) if found else None


def first_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first of these names that is a file inside ``root``; names that lead out of it are none."""
    return next((path for name in names if (path := _inside(root, name)) and os.path.isfile(path)), None)


def unique(records: Iterable[tuple[str, Record]], problems: Problems) -> Iterator[Record]:
    """The records whose id is new, of pairs (where, record); the others are reported as ``duplicate id``."""
    seen = IdMap()
    for number, (where, record) in enumerate(records):
        if seen.setdefault(record.id, number) == number:
            yield record
        else:
            problems.report("duplicate id", where, f"id {record.id!r} was used before; ids must be unique")
