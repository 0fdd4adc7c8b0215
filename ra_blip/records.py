"""The records that pass between the rooms, and their JSON lines form. It imports nothing of ours but errors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ra_blip.errors import DataError, OutputError


@dataclasses.dataclass(frozen=True)
class Item:
    """One piece of knowledge: a text, a picture, or a picture with its caption (``text``).

    ``image`` is a path that can be opened as it stands; in a file it is written relative to that file.
    """

    id: str
    text: str | None = None
    title: str | None = None
    image: str | None = None
    source: str | None = None

    @property
    def kind(self) -> str:
        """``text``, ``image`` or ``image+text``."""
        if self.image is None:
            return "text"
        return "image+text" if self.full_text else "image"

    @property
    def full_text(self) -> str:
        """Title and text in one string, empty for a picture without words."""
        return ": ".join(part for part in (self.title, self.text) if part)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, perhaps asked with a picture; ``answers``, ``gold`` and ``negatives`` are for training and scores."""

    id: str
    text: str
    image: str | None = None
    answers: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    category: str | None = None


@dataclasses.dataclass(frozen=True)
class Hit:
    """An item with a stage's score: ``search`` (inner product), ``hop`` (second search), ``rank`` (probability)."""

    item: Item
    score: float
    stage: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sample: a question, the items that answer it, and items that do not.

    ``parts`` says, where it is known, what each gold item gives to the answer; with one gold item it is the answer.
    """

    question: Question
    gold: tuple[Item, ...]
    negatives: tuple[Item, ...] = ()
    parts: tuple[str, ...] = ()


@dataclasses.dataclass
class Trace:
    """Everything that happened to one question: all stages' hits, what was kept, prompt, answer, what it rests on.

    Attributes:
        hits: hits of every stage, in stage order, best first inside a stage.
        kept: ids of the items that reached the generator, in prompt order.
        judged: ids of the kept items that the model judged relevant, most relevant first.
        relevance: the model's probability for each kept item, in the order of ``kept``.
        decoding: the options that the answer was decoded with (beams, lengths, penalties), where the model says.
        dropped: ids of the candidates that each filter took out, by its name.
        notes: what went another way than asked, in words: a search that failed, an empty selection, a cut prompt.
        tokens: positions of the prompt and tokens of the answer, where the model says.
        seconds: wall-clock seconds per stage, this question's share of its batch.
    """

    question: Question
    answer: str = ""
    hits: list[Hit] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    judged: list[str] = dataclasses.field(default_factory=list)
    relevance: list[float] = dataclasses.field(default_factory=list)
    prompt: str = ""
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def stage(self, name: str) -> list[Hit]:
        """The hits of one stage, best first."""
        return [hit for hit in self.hits if hit.stage == name]

    def retrieved(self) -> list[Hit]:
        """The list that retrieval metrics judge: the last stage's hits (rank, else hop, else search), the filters'."""
        last = next((found for name in ("rank", "hop", "search") if (found := self.stage(name))), [])
        gone = {name for names in self.dropped.values() for name in names}
        return [hit for hit in last if hit.item.id not in gone]


Record = TypeVar("Record", Item, Question)
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # an escape in JSON that is a character only beside its other half


def parse_json(text: str) -> Any:
    """A JSON value whose strings can be written again.

    Raises:
        json.JSONDecodeError: not JSON.
        UnicodeEncodeError: a string holds half a character (a lone surrogate), which is no UTF-8.
    """
    value = json.loads(text)
    if HALF_CHARACTER.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON lines file; empty lines are passed over.

    Raises:
        DataError: the file is missing or not UTF-8, or a line is not a JSON object (with its number).
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = parse_json(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
                except UnicodeEncodeError:
                    raise DataError(f"{path}, line {number}: holds half a character (a lone surrogate)") from None
                except RecursionError:
                    raise DataError(f"{path}, line {number}: nested too deeply") from None
                if not isinstance(value, dict):
                    raise DataError(f"{path}, line {number}: expected a JSON object, found {type(value).__name__}")
                yield number, value
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_items(path: str | Path) -> list[Item]:
    """Read ``items.jsonl``; picture paths come back relative to the current folder or absolute, as ``path`` is.

    Raises:
        DataError: naming file and line: missing id, neither text nor image, duplicate id, wrong type.
    """
    return _read(Path(path), Item)


def read_questions(path: str | Path) -> list[Question]:
    """Read ``questions.jsonl``; as :func:`read_items`. Raises :class:`DataError` with file and line."""
    return _read(Path(path), Question)


def _read(path: Path, kind: type[Record]) -> list[Record]:
    records: list[Record] = []
    seen: dict[str, int] = {}
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        record = parse_record(value, kind, path.parent, where)
        if record.id in seen:
            raise DataError(f"{where}: id {record.id!r} was used in line {seen[record.id]}; ids must be unique")
        seen[record.id] = number
        records.append(record)
    if not records:
        raise DataError(f"{path}: holds no {kind.__name__.lower()}")
    return records


def parse_record(value: dict[str, Any], kind: type[Record], folder: Path, where: str) -> Record:
    """A record of its JSON object, whose picture lies relative to ``folder``.

    Raises:
        DataError: beginning with ``where``: missing id, no text (of an item: nor image), or a field of a wrong type.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        found = value.get(field.name)
        if found is None:
            continue
        if field.name in ("answers", "gold", "negatives"):
            if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
                raise DataError(f"{where}: {field.name!r} must be a list of strings")
            fields[field.name] = tuple(found)
        elif isinstance(found, str):
            fields[field.name] = found
        else:
            raise DataError(f"{where}: {field.name!r} must be a string, found {type(found).__name__}")
    if not fields.get("id"):
        raise DataError(f"{where}: 'id' is missing")
    if kind is Question and not fields.get("text", "").strip():
        raise DataError(f"{where}: question {fields['id']!r} has no text")
    if kind is Item and not (fields.get("text", "").strip() or fields.get("image")):
        raise DataError(f"{where}: item {fields['id']!r} has neither text nor image")
    if fields.get("image"):
        fields["image"] = os.path.normpath(folder / fields["image"])
    return kind(**fields)


def to_dict(record: Item | Question | Hit | Trace, folder: Path | None = None) -> dict[str, Any]:
    """A record as a JSON object: empty fields left out, picture paths relative to ``folder`` where one is given."""
    if isinstance(record, Hit):
        return {"item": to_dict(record.item, folder), "score": round(record.score, 6), "stage": record.stage}
    if isinstance(record, Trace):
        value = {**vars(record), "question": to_dict(record.question, folder)}
        return {**value, "hits": [to_dict(hit, folder) for hit in record.hits]}
    value = {key: list(found) if isinstance(found, tuple) else found for key, found in vars(record).items() if found}
    if folder is not None and "image" in value:
        value["image"] = os.path.relpath(value["image"], folder)
    return value


def write_jsonl(path: str | Path, records: Iterable[Item | Question | Hit | Trace | dict[str, Any]]) -> None:
    """Write records, one JSON object a line, as a whole or not at all. Raises :class:`OutputError`."""
    path = Path(path)
    folder = path.parent
    lines = (json.dumps(r if isinstance(r, dict) else to_dict(r, folder), ensure_ascii=False) + "\n" for r in records)
    write_text(path, lines)


def write_text(path: str | Path, parts: Iterable[str] | str) -> None:
    """Write a text file beside its place and rename it there, so that a reader never sees half of it.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.writelines([parts] if isinstance(parts, str) else parts)
                out.flush()
                os.fsync(out.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes 0600; files are shared as any other
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except UnicodeEncodeError:
        raise OutputError(f"{path}: cannot be written: a text or the name of a picture is no UTF-8") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_traces(path: str | Path) -> list[Trace]:
    """Read ``traces.jsonl`` as written by :func:`write_jsonl`. Raises :class:`DataError` with file and line."""
    path = Path(path)
    traces = []
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        try:
            hits = [
                Hit(parse_record(hit["item"], Item, path.parent, where), float(hit["score"]), str(hit["stage"]))
                for hit in value.pop("hits", [])
            ]
            question = parse_record(value.pop("question"), Question, path.parent, where)
            traces.append(Trace(question=question, hits=hits, **value))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not a trace ({error})") from None
    return traces


def with_context(question: Question, item: Item) -> Question:
    """The question with an item's words behind it and without its picture, for which they now stand (second hop)."""
    return dataclasses.replace(question, text=f"{question.text} {item.full_text}", image=None)


def entity(item: Item) -> str:
    """A name shared by the items about one thing: the title, else the id up to its last dot, else the id.

    ``velora-tower.view`` and ``velora-tower.design`` are of one entity.
    """
    return item.title or item.id.rpartition(".")[0] or item.id


def by_id(items: Sequence[Item]) -> dict[str, Item]:
    """Items by their id."""
    return {item.id: item for item in items}
