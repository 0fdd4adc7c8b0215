"""Shards: exact counts, random access, damage found, nothing left out unsaid; webdataset reads ours, we theirs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from ra_blip.config import DataConfig, StageConfig
from ra_blip.containers import TarIndex
from ra_blip.data import shards
from ra_blip.data.pack import pack
from ra_blip.data.shards import ShardPictures, ShardSet
from ra_blip.data.sources import SOURCES
from ra_blip.errors import ConfigError, DataError
from ra_blip.images import open_image
from ra_blip.records import Item, write_jsonl


def jpeg(number: int, size: tuple[int, int] = (12, 8)) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def foreign(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """A shard as other programs write it: members ``key.extension`` in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def captioned(count: int, start: int = 0) -> dict[str, dict[str, bytes]]:
    return {
        f"{n:09d}": {"jpg": jpeg(n), "json": b'{"caption": "no"}', "txt": b"caption %d" % n}
        for n in range(start, start + count)
    }


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """20 captioned pictures and a text, packed into several shards."""
    folder = tmp_path / "source"
    folder.mkdir()
    items = [Item("fact", text="Only words.", title="Fact")]
    for n in range(20):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
        items.append(Item(f"p{n}", text=f"caption {n}", title=f"T{n}", image=str(folder / f"{n}.jpg"), source="test"))
    write_jsonl(folder / "items.jsonl", items)
    pack(folder / "items.jsonl", tmp_path / "shards", shard_bytes=8_000)
    return tmp_path / "shards"


def read_by_webdataset(tars: list[Path]) -> list[dict[str, Any]]:
    names = [str(tar) for tar in tars]
    return list(webdataset.WebDataset(names, shardshuffle=False, empty_check=False))


def test_webdataset_reads_what_we_pack(packed: Path) -> None:
    found = ShardSet(packed)
    theirs = read_by_webdataset(found.shards)
    assert len(found.shards) > 2 and len(theirs) == len(found) == 21
    for number, sample in enumerate(theirs):
        ours = found.read(number)
        assert ours.key == sample["__key__"] == f"{number:09d}"
        assert ours.parts == {name: data for name, data in sample.items() if not name.startswith("__")}
    assert theirs[0]["txt"] == b"Fact: Only words." and "jpg" not in theirs[0]
    assert theirs[3]["jpg"] == jpeg(2) and json.loads(theirs[3]["json"])["id"] == "p2"


def test_we_read_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for key, parts in captioned(7).items():
            writer.write({"__key__": f"dir.x/{key}", **parts, "seg.PNG": b"1"})
    found = ShardSet(tmp_path)
    theirs = read_by_webdataset(found.shards)
    assert len(found) == len(theirs) == 7
    for number, sample in enumerate(theirs):
        assert found.read(number).key == sample["__key__"]
        assert found.read(number).parts == {name: data for name, data in sample.items() if not name.startswith("__")}
    assert found.items(4)[0].text == "caption 4"
    assert open_image(str(found.items(4)[0].image)).size == (12, 8)


def test_samples_are_read_by_number_in_any_order(packed: Path) -> None:
    found = ShardSet(packed)
    item = found.items(7)[0]
    assert item == Item("p6", "caption 6", "T6", f"{found.read(7).shard}#000000007.jpg", "test")
    assert found.items(0)[0] == Item("fact", "Only words.", "Fact")
    order = np.random.default_rng(0).permutation(20) + 1
    for number in order.tolist():
        assert found.read(number).parts["jpg"] == jpeg(number - 1)
        assert np.array_equal(open_image(str(found.items(number)[0].image)), Image.open(io.BytesIO(jpeg(number - 1))))
    with pytest.raises(IndexError, match="sample 21 of 21"):
        found.read(21)


def test_the_index_of_ingest_is_the_one_that_is_made_again(packed: Path) -> None:
    indexes = sorted(packed.glob("*.index.npy"))
    written = [path.read_bytes() for path in indexes]
    for path in indexes:
        path.unlink()
    shards._kept_index.cache_clear()
    assert len(ShardSet(packed)) == 21
    assert [path.read_bytes() for path in indexes] == written


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(shards, "save_index", refuse)
    foreign(tmp_path / "0.tar", captioned(3))
    assert ShardSet(tmp_path).read(2).parts["txt"] == b"caption 2"
    assert not list(tmp_path.glob("*.npy"))


def test_no_altered_byte_of_a_sample_passes(packed: Path) -> None:
    tar = sorted(packed.glob("*.tar"))[1]
    whole, found = tar.read_bytes(), ShardSet(tar)
    rows = np.load(TarIndex.beside(tar))[:-1]
    rng = np.random.default_rng(0)
    stat = tar.stat()
    undetected = 0
    for _ in range(1_000):
        row = rows[rng.integers(len(rows))]
        place = int(row["offset"] + rng.integers(row["size"]))
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        with tar.open("r+b") as file:  # in place, as a disk would do it
            file.write(data)
        try:
            found.read(int(row["sample"]))
            undetected += 1
        except DataError as error:
            assert row["name"].decode() in str(error) and "altered" in str(error)
    assert undetected == 0
    assert tar.stat().st_size == stat.st_size


def test_an_altered_index_is_refused(packed: Path) -> None:
    tar = sorted(packed.glob("*.tar"))[0]
    path = TarIndex.beside(tar)
    whole = path.read_bytes()
    for place in (20, 130, 200, len(whole) - 30, len(whole) - 50):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        shards._kept_index.cache_clear()
        with pytest.raises(DataError, match=r"00000\.(index\.npy: damaged|tar: .* bytes)"):
            ShardSet(packed)
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"delete it, and 00000\.tar is indexed anew"):
        ShardSet(packed)


def test_a_shard_that_is_cut_or_missing_is_named(packed: Path) -> None:
    tar = sorted(packed.glob("*.tar"))[1]
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) * 3 // 10])
    with pytest.raises(DataError, match=r"manifest\.json and the shards here differ in 00001\.tar"):
        ShardSet(packed)
    manifest = packed / "manifest.json"
    told = manifest.read_text()
    for listed in ({"00000.tar": [1]}, None):
        manifest.write_text(json.dumps({**json.loads(told), "shards": listed}))
        with pytest.raises(DataError, match=r"manifest\.json and the shards here differ in 00000\.tar, 00001\.tar"):
            ShardSet(packed)
    manifest.write_text(told)
    with pytest.raises(
        DataError, match=rf"00001\.tar: {tar.stat().st_size} bytes, 00001\.index\.npy says {len(whole)}"
    ):
        ShardSet(tar)
    TarIndex.beside(tar).unlink()
    with pytest.raises(DataError, match=r"00001\.tar: "):
        ShardSet(tar)
    tar.unlink()
    with pytest.raises(DataError, match=r"differ in 00001\.tar"):
        ShardSet(packed)
    with pytest.raises(DataError, match="no tar shards here"):
        ShardSet(packed.parent)


def test_keys_that_are_there_twice_or_torn_apart_are_named(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3")]
    with tarfile.open(tmp_path / "torn.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match="key 'a' comes again after other keys"):
        ShardSet(tmp_path / "torn.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(DataError, match=r"key 'a' has two members \.jpg"):
        ShardSet(tmp_path / "twice.tar")


def test_members_of_no_sample_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = foreign(tmp_path / "0.tar", captioned(2))
    with tarfile.open(tar, "a") as archive:
        archive.addfile(tarfile.TarInfo("README"), io.BytesIO())
    assert len(ShardSet(tar)) == 2
    assert "0.tar: 1 members are not called key.extension" in capsys.readouterr().err


UNUSABLE = {
    "blank": {"jpg": jpeg(1), "txt": b" \n"},
    "bare": {"jpg": jpeg(1)},
    "long": {"jpg": jpeg(1), "txt": b"x" * 10_001},
    "latin": {"jpg": jpeg(1), "txt": "caf\xe9".encode("latin-1")},
    "broken": {"jpg": jpeg(1), "json": b"{"},
    "failed": {"json": b'{"caption": "a download that failed"}', "txt": b"a download that failed"},
    "empty": {"json": b"{}"},
}


def test_captions_that_cannot_be_trained_on_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(tmp_path / "0.tar", {**captioned(5), **UNUSABLE, "json": {"png": b"1", "json": b'{"caption": "said"}'}})
    found = ShardPictures(tmp_path)
    assert found.problems.counts == {
        "blank caption": 2,
        "over-long caption": 1,
        "unreadable": 3,  # not UTF-8, not JSON, neither picture nor words
        "without a picture": 1,
    }
    assert len(found) + found.problems.total == len(found.shards) == 13
    assert "7 left out: 3 unreadable" in capsys.readouterr().err
    assert list(found.texts()) == [f"caption {n}" for n in range(5)] + ["said"]
    assert found.draw(5, np.random.default_rng(0)).text == "said"
    assert found.lengths.tolist() == [9] * 5 + [4]
    with pytest.raises(DataError, match="0/blank"):
        ShardPictures(tmp_path, strict=True)


def test_a_set_without_captions_is_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "0.tar", {"bare": UNUSABLE["bare"]})
    with pytest.raises(DataError, match="no captioned picture to train on; 1 left out: 1 blank caption"):
        ShardPictures(tmp_path)


def test_shards_are_a_source_of_pretraining(tmp_path: Path, packed: Path) -> None:
    stage, data = StageConfig(name="pretrain"), DataConfig(name="shards", root=str(packed))
    source = SOURCES["shards"](data, stage, tmp_path, 0)
    assert len(source) == 20, "the text has no picture"
    assert [source.draw(n, np.random.default_rng(0)).id for n in range(20)] == [f"p{n}" for n in range(20)]
    orders = [getattr(source, "order")(0, epoch) for epoch in range(2)]  # noqa: B009
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)
    assert orders[0].tolist() != orders[1].tolist()
    with pytest.raises(ConfigError, match="stage 'answer' needs questions"):
        SOURCES["shards"](data, StageConfig(name="answer"), tmp_path, 0)
    with pytest.raises(ConfigError, match=r"data\.root"):
        SOURCES["shards"](DataConfig(name="shards"), stage, tmp_path, 0)


def test_several_sets_are_one_mixture(tmp_path: Path) -> None:
    foreign(tmp_path / "large" / "0.tar", captioned(16))
    foreign(tmp_path / "small" / "0.tar", captioned(4, start=100))
    source = SOURCES["shards"](DataConfig(name="shards", root=str(tmp_path)), StageConfig(name="pretrain"), tmp_path, 0)
    assert len(source) == 20
    assert sorted(source.texts()) == sorted(f"caption {n}" for n in [*range(16), *range(100, 104)])
    order = getattr(source, "order")(0, 0)  # noqa: B009
    drawn = [source.draw(int(n), np.random.default_rng(0)).text for n in order]
    small = sum(int(text.split()[1]) >= 100 for text in drawn)
    assert small == 7, "4 : 2 by the square roots of 16 and 4: a third of 20, rounded"
