from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from ra_blip.errors import DataError, OutputError, QuestionError
from ra_blip.records import (
    Hit,
    Item,
    Question,
    Trace,
    by_id,
    read_items,
    read_jsonl,
    read_questions,
    read_traces,
    to_dict,
    write_jsonl,
)


def lines(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def test_kind_and_full_text() -> None:
    assert Item("a", text="red").kind == "text"
    assert Item("a", image="a.png").kind == "image"
    assert Item("a", image="a.png", text="red").kind == "image+text"
    assert Item("a", image="a.png", title="Name").kind == "image+text"
    assert Item("a", title="Name", text="red").full_text == "Name: red"
    assert Item("a", image="a.png").full_text == ""


def test_items_come_back_as_written_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    items = [Item("a", text="Grüße\u2028x"), Item("b", image=str(tmp_path / "pictures/b.png"), title="B", source="s")]
    write_jsonl(tmp_path / "base/items.jsonl", items)
    raw = [value for _, value in read_jsonl(tmp_path / "base/items.jsonl")]
    assert raw == [
        {"id": "a", "text": "Grüße\u2028x"},
        {"id": "b", "title": "B", "image": os.path.join("..", "pictures", "b.png"), "source": "s"},
    ]
    assert read_items(tmp_path / "base/items.jsonl") == items
    assert by_id(items)["b"] is items[1]


def test_relative_paths_follow_the_file_and_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "base/items.jsonl", {"id": "a", "image": "./p/a.png"})
    monkeypatch.chdir(tmp_path)
    assert read_items("base/items.jsonl")[0].image == os.path.join("base", "p", "a.png")


def test_questions_come_back_as_written(tmp_path: Path) -> None:
    questions = [
        Question("q1", "Who?", answers=("A", "B"), gold=("i",), negatives=("j",), category="text_fact"),
        Question("q2", "What is this?", image=str(tmp_path / "x.png")),
    ]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    assert read_questions(tmp_path / "questions.jsonl") == questions


def test_trace_comes_back_as_written(tmp_path: Path) -> None:
    item = Item("i", text="t", image=str(tmp_path / "x.png"))
    question = Question("q", "Who?", answers=("A",))
    hits = [Hit(item, 0.25, "search"), Hit(item, 0.5, "rank")]
    trace = Trace(question, "A", hits, ["i"], ["i"], [0.75], "prompt", {"search": 0.125})
    write_jsonl(tmp_path / "traces.jsonl", [trace])
    assert read_traces(tmp_path / "traces.jsonl") == [trace]
    assert trace.stage("rank") == [hits[1]]


def test_retrieved_is_the_last_stage_that_has_hits() -> None:
    search, hop, rank = (Hit(Item(name, text="t"), 1.0, name) for name in ("search", "hop", "rank"))
    question = Question("q", "Who?")
    assert Trace(question, hits=[search, hop, rank]).retrieved() == [rank]
    assert Trace(question, hits=[search, hop]).retrieved() == [hop]
    assert Trace(question, hits=[search]).retrieved() == [search]
    assert Trace(question).retrieved() == []


def test_to_dict_leaves_empty_fields_out_and_rounds_scores() -> None:
    assert to_dict(Question("q", "Who?")) == {"id": "q", "text": "Who?"}
    assert to_dict(Hit(Item("i", text="t"), 1 / 3, "rank")) == {
        "item": {"id": "i", "text": "t"},
        "score": 0.333333,
        "stage": "rank",
    }


GOOD = {"id": "a", "text": "red"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{oops\n", r"items.jsonl, line 3: not JSON \(.*column 2\)"),
        ([1, 2], "line 3: expected a JSON object, found list"),
        ({"text": "x"}, "line 3: 'id' is missing"),
        ({"id": "", "text": "x"}, "line 3: 'id' is missing"),
        ({"id": 7, "text": "x"}, "line 3: 'id' must be a string, found int"),
        ({"id": "b"}, "line 3: item 'b' has neither text nor image"),
        ({"id": "b", "text": " \t"}, "line 3: item 'b' has neither text nor image"),
        ({"id": "b", "text": "\ud83d"}, "line 3: holds half a character"),
        ("[" * 100_000 + "\n", "line 3: (nested too deeply|not JSON)"),
        ({"id": "b", "text": ["x"]}, "line 3: 'text' must be a string, found list"),
        ({"id": "a", "text": "again"}, "line 3: id 'a' was used in line 1; ids must be unique"),
    ],
)
def test_a_wrong_item_is_named_with_file_and_line(tmp_path: Path, bad: object, message: str) -> None:
    path = lines(tmp_path / "items.jsonl", GOOD, "\n", bad)  # the empty line counts, and is no record
    with pytest.raises(DataError, match=message) as caught:
        read_items(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "q"}, "line 1: question 'q' has no text"),
        ({"id": "q", "text": "  "}, "line 1: question 'q' has no text"),
        ({"id": "q", "text": "Who?", "answers": "A"}, "line 1: 'answers' must be a list of strings"),
        ({"id": "q", "text": "Who?", "gold": [1]}, "line 1: 'gold' must be a list of strings"),
    ],
)
def test_a_wrong_question_is_named_with_file_and_line(tmp_path: Path, bad: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(lines(tmp_path / "questions.jsonl", bad))


def test_the_mark_and_the_line_ends_of_windows_are_no_part_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "\\ud83d\\ude00"}\r\n{"id": "b", "text": "x"}\r\n')
    assert read_items(path) == [Item("a", "\U0001f600"), Item("b", "x")]


def test_what_is_no_utf8_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"items\.jsonl: cannot be written: a text or the name of a picture"):
        write_jsonl(tmp_path / "items.jsonl", [Item("a", image="b\udcff.jpg")])
    assert list(tmp_path.iterdir()) == []


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no item"):
        read_items(lines(tmp_path / "items.jsonl", "\n"))
    with pytest.raises(DataError, match="holds no question"):
        read_questions(lines(tmp_path / "questions.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_items(tmp_path / "binary.jsonl")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_items(tmp_path)


def test_not_a_trace(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"traces.jsonl, line 1: not a trace \('question'\)"):
        read_traces(lines(tmp_path / "traces.jsonl", {"answer": "A"}))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write_jsonl(path, [Item("old", text="t")])

    def half() -> list[Item]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, (half() if n else Item("new", text="t") for n in range(2)))  # type: ignore[misc]
    assert [item.id for item in read_items(path)] == ["old"]
    assert os.listdir(tmp_path) == ["items.jsonl"]


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_jsonl(tmp_path / "file/items.jsonl", [Item("a", text="t")])


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_written_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_jsonl(tmp_path / "items.jsonl", [Item("a", text="t")])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "items.jsonl").stat().st_mode) == mode


def test_errors_show_control_characters_escaped() -> None:
    assert str(QuestionError("a\x1b[31mb\nc")) == "a\\x1b[31mb\\nc"
