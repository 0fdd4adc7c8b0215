"""What is wrong with a data file or folder: every problem, each with file and line. Reads; changes nothing."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ra_blip.errors import DataError, ImageError
from ra_blip.images import open_image
from ra_blip.records import Item, Question, _parse

_KINDS: dict[str, type[Item] | type[Question]] = {"items": Item, "questions": Question}


@dataclasses.dataclass
class Checked:
    """What :func:`check` found.

    Attributes:
        layout: ``items``, ``questions``, ``folder`` (of such files) or ``index``.
        counts: number of records by what they are, e.g. ``items.jsonl: image+text``.
        problems: one line each, naming file and line.
    """

    layout: str
    counts: dict[str, int]
    problems: list[str]


def check(path: str | Path) -> Checked:
    """Look at every record and every picture of an items or questions file, or of a folder that holds them.

    ``gold`` and ``negatives`` of questions must name items of the ``items.jsonl`` beside them, where there is one.

    Raises:
        DataError: there is nothing at ``path``, or nothing there that this package reads.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = _data_files(path)
    result = Checked(_layout(path), {}, [])
    pictures: dict[str, str] = {}
    known: dict[Path, set[str]] = {}
    for file in sorted(files, key=lambda file: files[file]):  # items before the questions that name them
        records = list(_records(file, _KINDS[files[file]], result.problems))
        _count(file, records, result.counts)
        pictures.update((record.image, where) for where, record in reversed(records) if record.image)
        if files[file] == "items":
            known[file] = {record.id for _, record in records}
        else:
            _check_references(file, records, known, result.problems)
    result.problems += _picture_problems(pictures)
    return result


def _layout(path: Path) -> str:
    if path.is_dir():
        return "index" if (path / "index.faiss").exists() else "folder"
    return _kind_of(path)


def _data_files(path: Path) -> dict[Path, str]:
    """The files to read, each with its kind."""
    if not path.is_dir():
        return {path: _kind_of(path)}
    found = [path / "items.jsonl", *sorted(path.glob("*questions.jsonl"))]
    files = {file: _kind_of(file) for file in found if file.is_file()}
    if not files:
        raise DataError(f"{path}: holds neither items.jsonl nor questions.jsonl")
    return files


def _kind_of(path: Path) -> str:
    """By name where the name says it, else by the fields of the first records."""
    for kind in _KINDS:
        if path.name.endswith(f"{kind}.jsonl"):
            return kind
    sample = [value for _, value in _lines(path, []) if isinstance(value, dict)][:100]
    keys = {key for value in sample for key in value}
    if not any("id" in value for value in sample) or not keys & {"text", "image"}:
        raise DataError(
            f"{path}: neither items nor questions; each line is a JSON object with 'id' and 'text' or 'image'"
        )
    return "questions" if keys & {"answers", "gold", "negatives", "category"} else "items"


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is JSON; what is not goes to ``problems``."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield number, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append(f"{path}, line {number}: not UTF-8 (byte {error.start + 1})")
        except json.JSONDecodeError as error:
            problems.append(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})")
        except RecursionError:
            problems.append(f"{path}, line {number}: nested too deeply")


def _records(
    path: Path, kind: type[Item] | type[Question], problems: list[str]
) -> Iterator[tuple[str, Item | Question]]:
    """(where, record) of each good line; the rest goes to ``problems``."""
    seen: dict[str, int] = {}
    fields = [field.name for field in dataclasses.fields(kind)]
    empty = True
    for number, value in _lines(path, problems):
        empty = False
        where = f"{path}, line {number}"
        if not isinstance(value, dict):
            problems.append(f"{where}: expected a JSON object, found {type(value).__name__}")
            continue
        for key in value.keys() - set(fields):
            if close := difflib.get_close_matches(key, fields, n=1, cutoff=0.75):
                problems.append(f"{where}: unknown field {key!r}; did you mean {close[0]!r}?")
        try:
            folder = path.parent
            record = _parse(value, Item, folder, where) if kind is Item else _parse(value, Question, folder, where)
        except DataError as error:
            problems.append(str(error))
            continue
        if record.id in seen:
            problems.append(f"{where}: id {record.id!r} was used in line {seen[record.id]}; ids must be unique")
        seen.setdefault(record.id, number)
        if isinstance(record, Question) and any(not answer.strip() for answer in record.answers):
            problems.append(f"{where}: an answer is empty")
        yield where, record
    if empty:
        problems.append(f"{path}: holds no record")


def _count(path: Path, records: list[tuple[str, Item | Question]], counts: dict[str, int]) -> None:
    labels = (record.kind if isinstance(record, Item) else record.category or "no category" for _, record in records)
    for label, count in sorted(collections.Counter(labels).items()):
        counts[f"{path.name}: {label}"] = count


def _check_references(
    path: Path, records: list[tuple[str, Item | Question]], known: dict[Path, set[str]], problems: list[str]
) -> None:
    beside = path.parent / "items.jsonl"
    if beside not in known:
        if not beside.is_file():
            return
        known[beside] = {value["id"] for _, value in _lines(beside, []) if isinstance(value, dict) and "id" in value}
    for where, record in records:
        if not isinstance(record, Question):
            continue
        for field, ids in (("gold", record.gold), ("negatives", record.negatives)):
            missing = [name for name in ids if name not in known[beside]]
            problems.extend(f"{where}: {field} item {name!r} is not in {beside.name}" for name in missing)


def _picture_problems(pictures: dict[str, str]) -> Iterator[str]:
    """Open each picture once; ``pictures`` maps a path to where it is named first."""
    quiet = not sys.stderr.isatty()
    for image, where in tqdm(pictures.items(), desc="pictures", unit="picture", disable=quiet, leave=False):
        try:
            open_image(os.fspath(image))
        except ImageError as error:
            yield f"{where}: {error}"
