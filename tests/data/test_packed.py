"""Shards that were packed, read back: the records that went in, and every loss said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.__main__ import main
from ra_blip.data.check import check
from ra_blip.data.pack import pack
from ra_blip.data.readers import open_dataset, probe, recognised, write
from ra_blip.errors import DataError
from ra_blip.images import open_image
from ra_blip.records import Item, Question, read_items, write_jsonl


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number} #é.jpg")
    return [str(folder / f"{number} #é.jpg") for number in range(count)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A text and 20 captioned pictures, one of them twice, in several shards."""
    names = pictures(tmp_path / "in", 20)
    items = [
        Item("t", "Only words.", "Title", source="web"),
        *(Item(f"p{n}", f"cap {n}.", image=names[n]) for n in range(20)),
    ]
    items.insert(3, Item("again", "another caption", image=names[1]))
    write_jsonl(tmp_path / "in" / "items.jsonl", items)
    pack(tmp_path / "in" / "items.jsonl", tmp_path / "packed", shard_bytes=8_000)
    return tmp_path / "packed"


def test_items_come_back_as_they_were_packed(packed: Path, tmp_path: Path) -> None:
    dataset = probe(packed)(packed)
    assert dataset.name == "packed" and dataset.splits == ("train",)
    assert [reader.name for reader in recognised(packed)] == ["packed"]
    found, given = list(dataset.items()), read_items(tmp_path / "in" / "items.jsonl")
    assert [(one.id, one.text, one.title, one.source) for one in found] == [
        (one.id, one.text, one.title, one.source) for one in given
    ]
    for one, other in zip(found, given, strict=True):
        assert one.image is other.image is None or np.array_equal(
            open_image(str(one.image)), open_image(str(other.image))
        )
    assert list(dataset.questions("train")) == [] and dataset.problems.total == 0
    assert write(dataset, tmp_path / "out") == {"items.jsonl": 22, "train_questions.jsonl": 0}
    assert check(packed).counts == {"items: image+text": 21, "items: text": 1}


def test_questions_come_back_as_they_were_packed(tmp_path: Path) -> None:
    names = pictures(tmp_path / "in", 2)
    asked = [Question("q", "Who?", answers=("Ada", "A. L."), gold=("a",), negatives=("b",), category="text")]
    asked += [Question(f"r{n}", f"What is {n}?", names[n // 2], (str(n),)) for n in range(4)]
    write_jsonl(tmp_path / "in" / "asked.jsonl", asked)  # told by its fields, not by its name
    pack(tmp_path / "in" / "asked.jsonl", tmp_path / "packed")
    dataset = open_dataset(tmp_path / "packed")
    found = list(dataset.questions("train"))
    assert list(dataset.items()) == []
    assert [Question(q.id, q.text, None, q.answers, q.gold, q.negatives, q.category) for q in found] == [
        Question(q.id, q.text, None, q.answers, q.gold, q.negatives, q.category) for q in asked
    ]
    assert [q.image and q.image.rpartition("#")[2] for q in found] == [
        None,
        *["000000001.jpg"] * 2,
        *["000000002.jpg"] * 2,
    ]


def test_a_split_keeps_its_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "val_questions.jsonl", [Question("q", "Who?", answers=("me",))])
    pack(tmp_path / "in", tmp_path / "packed", split="val")
    dataset = open_dataset(tmp_path / "packed", "packed")
    assert dataset.splits == ("val",) and list(dataset.questions("val")) == [Question("q", "Who?", answers=("me",))]
    assert list(dataset.references("val")) == [{"id": "q", "answers": ["me"], "gold": []}]


def test_a_shard_that_is_gone_and_a_caption_that_was_altered(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = next(tar for tar in sorted(packed.glob("*.tar")) if b"cap 13." in tar.read_bytes())
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"cap 13.", b"cap 31."))
    found = check(packed)
    assert found.problems.counts == {"damaged shard": 1} and found.counts["items: image+text"] == 20
    assert "was altered" in found.problems.messages[0]
    tar.unlink()
    with pytest.raises(DataError, match=rf"manifest.json and the shards here differ in {tar.name}"):
        list(open_dataset(packed).items())
    assert main(["check", str(packed)]) == 2 and tar.name in capsys.readouterr().err


def test_a_file_with_lines_that_are_wrong_is_packed_without_them(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    lines = [
        {"id": "a", "text": "x"},
        {"id": 7, "text": "x"},
        {"id": "a", "text": "y"},
        {"id": "b", "text": "half \ud800"},
    ]
    path.write_text("\r\n".join(map(json.dumps, lines)), encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"items\.jsonl, line 2: 'id' must be a string"):
        pack(path, tmp_path / "out")
    done = pack(path, tmp_path / "out", skip=0.001)
    assert (done.records, done.lost) == (1, 3)
    assert (tmp_path / "out" / "left_out.txt").read_text().splitlines() == [
        f"{path}, line 2: 'id' must be a string, found int",
        f"{path}, line 3: id 'a' was used in line 1; ids must be unique",
        f"{path}, line 4: holds half a character (a lone surrogate)",
    ]
