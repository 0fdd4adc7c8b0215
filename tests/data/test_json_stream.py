from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ra_blip.data.readers import json_stream
from ra_blip.data.readers.json_stream import elements, members
from ra_blip.errors import DataError

VALUES = [1, -2.5e3, 'café\n"', None, True, [], {}, [1, [2, {"a": "]}"}]], {"k": {"l": [None]}}, "x" * 50, 12345678901]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 40, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_it_reads_what_json_reads_wherever_a_chunk_ends(
    tmp_path: Path, chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "a.json"
    value = {f"key {number}": one for number, one in enumerate(VALUES)}
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert {key: found for _, key, found in members(path)} == value
    path.write_text(json.dumps(VALUES, indent=indent) + " \n", encoding="utf-8")
    assert [found for _, found in elements(path)] == VALUES
    nested = {"first": VALUES, "list": VALUES, "last": 3}
    path.write_text(json.dumps(nested, indent=indent), encoding="utf-8-sig")
    assert [found for _, found in elements(path, "list")] == VALUES


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n\n "b":\n  [2,\n3], "c": 4}')
    assert [where.split(", ")[1] for where, _, _ in members(path)] == ["line 1", "line 3", "line 5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n"b": [1, 2', r"line 2: not JSON"),
        ('{"a": 1,\n"b": "open', r"line 2: not JSON \(Unterminated string"),
        ('{"a": 1\n"b": 2}', r"line 2: not JSON \(expected ',', found '\"'\)"),
        ('{"a": nul, "b": "' + "x" * 90 + '"}', r"line 1: not JSON \(Expecting value\)"),
        ('{"a": 1}\n}', r"line 2: not JSON \(more follows after the end\)"),
        ("[1, 2]", r"line 1: not JSON \(expected '{', found '\['\)"),
        ("", r"expected '{', found 'the end of the file'"),
        ("{1: 2}", "a key must be a string"),
        ('{"a": 1,\n"b": "\\ud83d"}', r"line 2: not JSON \(half a character"),
        ('{"a": ' + "[" * 100_000, "nested too deeply|Expecting value"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.json.*{message}" if "line" in message else message):
        list(members(path))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file"):
        list(members(tmp_path / "none.json"))
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"a\.json, at or after line 1: not UTF-8"):
        list(members(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"a\.json: no member 'list'"):
        list(elements(tmp_path / "a.json", "list"))


def test_a_large_object_streams_in_little_memory(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.json", random.Random(0)
    pages: dict[str, Any] = {f"http://{n}": {"title": "t", "texts": [str(draw.random()) * 50] * 20} for n in range(400)}
    path.write_text(json.dumps(pages))
    size = path.stat().st_size
    assert size > 6_000_000
    del pages
    tracemalloc.start()
    assert sum(1 for _ in members(path)) == 400
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
