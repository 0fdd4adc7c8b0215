"""Packing: records and pictures come back as they were, written whole or not at all, what is left out is listed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.__main__ import main
from ra_blip.data import pack as packing
from ra_blip.data.pack import pack
from ra_blip.data.shards import ShardSet
from ra_blip.errors import DataError, ImageError, OutputError
from ra_blip.images import open_image
from ra_blip.records import Item, Question, write_jsonl


def picture(path: Path, size: tuple[int, int] = (40, 24), kind: str = "JPEG", seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return str(path)


def items_file(folder: Path, items: list[Item]) -> Path:
    write_jsonl(folder / "items.jsonl", items)
    return folder / "items.jsonl"


def test_pictures_keep_their_bytes_and_their_kind(tmp_path: Path) -> None:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    items = [Item(kind, image=picture(tmp_path / f"{kind}.jpg", kind=kind)) for kind in kinds]
    pack(items_file(tmp_path, items), tmp_path / "out", size=24)
    found = ShardSet(tmp_path / "out")
    for number, (kind, extension) in enumerate(kinds.items()):
        assert found.read(number).parts[extension] == (tmp_path / f"{kind}.jpg").read_bytes()
        assert "txt" not in found.read(number).parts


def test_larger_pictures_are_made_smaller_with_their_proportions(tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png", (100, 50), "PNG")
    done = pack(items_file(tmp_path, [Item("a", image=name)]), tmp_path / "out", size=20)
    image = open_image(str(ShardSet(tmp_path / "out").items(0)[0].image))
    assert image.size == (40, 20)
    expected = Image.open(name).resize((40, 20), Image.Resampling.BICUBIC)
    again = io.BytesIO()
    expected.save(again, "JPEG", quality=95)
    assert np.array_equal(image, Image.open(again))
    assert (done.records, done.samples, done.pictures) == (1, 1, 1)


def test_records_of_one_picture_are_one_sample(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg", seed=1)
    items = [Item("a.0", "one", image=a), Item("a.1", "two", image=a), Item("b", image=b), Item("t", "words")]
    done = pack(items_file(tmp_path, items), tmp_path / "out")
    assert (done.records, done.samples, done.pictures) == (4, 3, 2)
    found = ShardSet(tmp_path / "out")
    assert [(item.id, item.text) for n in range(3) for item in found.items(n)] == [
        ("a.0", "one"),
        ("a.1", "two"),
        ("b", None),
        ("t", "words"),
    ]
    assert found.read(0).parts["txt"] == b"one"


def test_questions_keep_every_field(tmp_path: Path) -> None:
    question = Question("q", "Which?", picture(tmp_path / "a.jpg"), ("one",), ("g",), ("n",), "kind")
    write_jsonl(tmp_path / "questions.jsonl", [question])
    pack(tmp_path / "questions.jsonl", tmp_path / "out")
    value = json.loads(ShardSet(tmp_path / "out").read(0).parts["json"])
    assert value == {
        **{"id": "q", "text": "Which?", "answers": ["one"]},
        **{"gold": ["g"], "negatives": ["n"], "category": "kind"},
    }


def test_equal_data_give_equal_shards(tmp_path: Path) -> None:
    source = items_file(tmp_path, [Item(f"{n}", f"text {n}", image=picture(tmp_path / "a.jpg")) for n in range(9)])
    for name in ("one", "two"):
        pack(source, tmp_path / name, shard_bytes=1)
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert files["one"] == files["two"]


def test_a_split_of_a_caption_set_is_its_captions(tmp_path: Path) -> None:
    for n in range(2):
        picture(tmp_path / "set" / f"{n}.jpg", seed=n)
        (tmp_path / "set" / f"{n}.txt").write_text(f"caption {n}")
    pack(tmp_path / "set", tmp_path / "out", split="train")
    assert [ShardSet(tmp_path / "out").items(n)[0].text for n in range(2)] == ["caption 0", "caption 1"]
    with pytest.raises(DataError, match="no split 'test'"):
        pack(tmp_path / "set", tmp_path / "other", split="test")
    with pytest.raises(DataError, match="a file has no splits"):
        pack(items_file(tmp_path, [Item("a", "b")]), tmp_path / "other", split="train")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Five pictures of which one is cut, an item without anything to read, and half a character."""
    items = [Item(f"{n}", f"text {n}", image=picture(tmp_path / f"{n}.jpg", seed=n)) for n in range(5)]
    cut = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(cut[: len(cut) // 2])
    return items_file(tmp_path, [*items, Item("blank", " ")])


def test_the_first_damaged_picture_is_an_error_and_leaves_nothing(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"2\.jpg: damaged or truncated JPEG"):
        pack(damaged, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_what_is_left_out_is_listed(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(damaged), str(tmp_path / "out"), "--skip"]) == 0
    said = capsys.readouterr().out
    assert "4 records in 4 samples, 4 with a picture, in 1 shards" in said
    assert "2 left out, see" in said
    lines = (tmp_path / "out" / "left_out.txt").read_text().splitlines()
    assert lines[0] == f"{damaged}, line 6: item 'blank' has neither text nor image"
    assert len(lines) == 2 and lines[1].startswith("2: ") and "2.jpg" in lines[1]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"] == 2
    assert len(ShardSet(tmp_path / "out")) == 4


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "half \\ud83d"}\n')
    with pytest.raises(DataError, match="lone surrogate"):
        pack(tmp_path / "items.jsonl", tmp_path / "out")


def test_too_many_damaged_pictures_stop_it(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    source = items_file(tmp_path, [Item(f"{n}", image=str(tmp_path / "bad.jpg")) for n in range(12)])
    with pytest.raises(ImageError, match="11 of 11 pictures are damaged"):
        pack(source, tmp_path / "out", skip=0.001)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = items_file(tmp_path, [Item("a", "text")])
    (tmp_path / "out").mkdir()
    pack(source, tmp_path / "out")  # an empty folder is taken
    with pytest.raises(OutputError, match="is there already"):
        pack(source, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is there already"):
        pack(source, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        pack(source, tmp_path / "file" / "out")


def test_a_run_that_is_killed_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = items_file(tmp_path, [Item(f"{n}", f"text {n}") for n in range(30)])
    write, calls = packing.save_index, []

    def die(*given: object) -> None:
        calls.append(given)
        if len(calls) == 3:
            os._exit(9)
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "save_index", die)
    child = os.fork()
    if child == 0:
        pack(source, tmp_path / "out", shard_bytes=1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert pack(source, tmp_path / "out").samples == 30, "what the killed run left behind is no obstacle"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.jsonl", "out"]


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    source = items_file(tmp_path, [Item("a", image=str(tmp_path / "bad.jpg"))])
    with pytest.raises(DataError, match="nothing to pack"):
        pack(source, tmp_path / "out", skip=1.0)
