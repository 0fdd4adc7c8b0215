from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from ra_blip.data import id_map
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
    lines(tmp_path / "train_questions.jsonl", {"id": "t", "text": "Who?", "image": "a.png", "negatives": ["b"]})
    return tmp_path


def test_a_good_folder(base: Path) -> None:
    found = check(base)
    assert (found.layout, found.problems.messages) == ("folder", [])
    assert found.pictures == found.opened == 1
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
    problems = check(path).problems
    found = {problem.removeprefix(f"{path}, ") for problem in problems.messages}
    assert problems.counts == {
        "malformed record": 3,
        "not JSON": 1,
        "not UTF-8": 1,
        "duplicate id": 1,
        "missing image": 1,
        "bad picture": 1,
        "unknown field": 1,
    }
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
        f"{path}, line 1: gold item 'x' is not among the items",
        f"{path}, line 1: negatives item 'y' is not among the items",
    ]
    assert check(base).problems.messages == expected
    assert check(path).problems.messages == expected  # the items beside it are read too
    (base / "items.jsonl").unlink()
    assert check(path).problems.messages == []  # nothing to compare with


def test_empty_answers_and_empty_files(base: Path) -> None:
    path = lines(base / "questions.jsonl", {"id": "q", "text": "Who?", "answers": ["x", " "]})
    assert check(path).problems.messages == [f"{path}, line 1: an answer is empty"]
    assert check(lines(path)).problems.messages == [f"{path}: holds no record"]


def test_a_picture_named_often_is_one_problem(base: Path) -> None:
    path = lines(base / "items.jsonl", *({"id": str(n), "image": "none.png"} for n in range(3)))
    assert check(path).problems.messages == [f"{path}, line 1: {base / 'none.png'}: no such picture"]


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such file or folder"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match="no data set that is known here"):
        check(tmp_path)
    with pytest.raises(DataError, match="neither items nor questions"):
        check(lines(tmp_path / "hits.jsonl", {"id": "q", "hits": []}))


def test_a_training_question_that_is_tested_is_a_problem(base: Path) -> None:
    path = lines(base / "train_questions.jsonl", {"id": "q", "text": "Who?"})
    expected = [f"{path}, line 1: id 'q' is in questions.jsonl, too; splits must not mix"]
    assert check(base).problems.messages == expected


def test_a_share_of_the_pictures_is_opened_and_the_others_must_be_there(base: Path) -> None:
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        (base / name).write_bytes(b"no picture")
    path = lines(base / "items.jsonl", *({"id": name, "image": name} for name in [*names, "none.png"]))
    found = check(path, pictures=0.5)
    assert found.pictures == 41 and 10 < found.opened < 31
    assert found.problems.counts["bad picture"] + found.problems.counts["missing image"] >= found.opened
    assert check(path, pictures=0).problems.counts == {"missing image": 1}
    assert check(path, pictures=0.5).problems.counts == found.problems.counts


def test_many_problems_are_counted_and_the_first_are_shown(base: Path) -> None:
    path = lines(base / "items.jsonl", *("{\n" for _ in range(500)), {"id": "a"})
    problems = check(path).problems
    assert problems.counts == {"not JSON": 500, "malformed record": 1} and len(problems.messages) == 101
    assert problems.summary() == "501 left out: 500 not JSON, 1 malformed record"


def test_a_long_file_streams_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_map, "PENDING", 500)
    path = tmp_path / "items.jsonl"

    def peak(count: int) -> int:
        path.write_text("".join(f'{{"id": "item-{n}", "text": "{"w" * 200}"}}\n' for n in range(count)))
        tracemalloc.start()
        assert check(path).counts == {"items.jsonl: text": count}
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(1_000), peak(12_000)
    assert large - small < 1_200_000  # of 2.7 MB more; 11,000 ids in two maps, 32 bytes each while they are merged
