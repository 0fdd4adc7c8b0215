from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ra_blip.data.check import check
from ra_blip.errors import DataError


def lines(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    items = [{"id": "a", "text": "t"}, {"id": "b", "image": "a.png"}, {"id": "c", "image": "a.png", "text": "t"}]
    lines(tmp_path / "items.jsonl", *items)
    lines(tmp_path / "questions.jsonl", {"id": "q", "text": "Who?", "gold": ["a"], "category": "fact"})
    lines(tmp_path / "train_questions.jsonl", {"id": "q", "text": "Who?", "image": "a.png", "negatives": ["b"]})
    return tmp_path


def test_a_good_folder(base: Path) -> None:
    found = check(base)
    assert (found.layout, found.problems) == ("folder", [])
    assert found.counts == {
        "items.jsonl: image": 1,
        "items.jsonl: image+text": 1,
        "items.jsonl: text": 1,
        "questions.jsonl: fact": 1,
        "train_questions.jsonl: no category": 1,
    }


def test_layout_by_name_or_by_content(base: Path) -> None:
    assert check(base / "items.jsonl").layout == "items"
    assert check(base / "train_questions.jsonl").layout == "questions"
    assert check(lines(base / "mine.jsonl", {"id": "a", "text": "t"})).layout == "items"
    assert check(lines(base / "asked.jsonl", {"id": "a", "text": "t", "answers": ["x"]})).layout == "questions"
    (base / "index.faiss").write_bytes(b"")
    assert check(base).layout == "index"


def test_every_problem_is_found_with_its_line(base: Path) -> None:
    (base / "cut.png").write_bytes((base / "a.png").read_bytes()[:40])
    path = base / "items.jsonl"
    bad = [{"id": "d"}, "{oops\n", [1], {"id": "a", "text": "again"}, {"id": "e", "image": "none.png"}]
    bad += [{"id": "f", "image": "cut.png"}, "\n", {"id": "g", "text": "t", "titel": "T", "mine": 1}, {"text": "t"}]
    with path.open("a") as out:
        out.write("".join(v if isinstance(v, str) else json.dumps(v) + "\n" for v in bad))
    with path.open("ab") as raw:
        raw.write(b'{"id": "h", "text": "\xff"}\n')
    found = {problem.removeprefix(f"{path}, ") for problem in check(path).problems}
    assert {problem for problem in found if "cut.png" not in problem} == {
        "line 4: item 'd' has neither text nor image",
        "line 5: not JSON (Expecting property name enclosed in double quotes, column 2)",
        "line 6: expected a JSON object, found list",
        "line 7: id 'a' was used in line 1; ids must be unique",
        f"line 8: {base / 'none.png'}: no such picture",
        "line 11: unknown field 'titel'; did you mean 'title'?",
        "line 12: 'id' is missing",
        "line 13: not UTF-8 (byte 22)",
    }
    assert any(problem.startswith(f"line 9: {base / 'cut.png'}: ") for problem in found)


def test_references_that_lead_nowhere(base: Path) -> None:
    path = lines(base / "questions.jsonl", {"id": "q", "text": "Who?", "gold": ["a", "x"], "negatives": ["y"]})
    expected = [
        f"{path}, line 1: gold item 'x' is not in items.jsonl",
        f"{path}, line 1: negatives item 'y' is not in items.jsonl",
    ]
    assert check(base).problems == expected
    assert check(path).problems == expected  # the items beside it are read too
    (base / "items.jsonl").unlink()
    assert check(path).problems == []  # nothing to compare with


def test_empty_answers_and_empty_files(base: Path) -> None:
    path = lines(base / "questions.jsonl", {"id": "q", "text": "Who?", "answers": ["x", " "]})
    assert check(path).problems == [f"{path}, line 1: an answer is empty"]
    assert check(lines(path)).problems == [f"{path}: holds no record"]


def test_a_picture_named_often_is_one_problem(base: Path) -> None:
    path = lines(base / "items.jsonl", *({"id": str(n), "image": "none.png"} for n in range(3)))
    assert check(path).problems == [f"{path}, line 1: {base / 'none.png'}: no such picture"]


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such file or folder"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds neither items\.jsonl nor questions\.jsonl"):
        check(tmp_path)
    with pytest.raises(DataError, match="neither items nor questions"):
        check(lines(tmp_path / "hits.jsonl", {"id": "q", "hits": []}))
