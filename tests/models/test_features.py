from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ra_blip.errors import ConfigError, ImageError, OutputError
from ra_blip.models import features
from ra_blip.models.features import FeatureStore


class Counting:
    """Features that follow from a file's content; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, images: Sequence[str]) -> Tensor:
        self.calls.append([Path(image).name for image in images])
        return torch.stack([torch.full((2, 3), float(Path(image).read_text())) for image in images])

    @property
    def asked(self) -> list[str]:
        """All names, in order."""
        return [name for call in self.calls for name in call]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for name in "abcde":
        (tmp_path / name).write_text(str(ord(name) - 96))
    return [str(tmp_path / name) for name in "abcde"]


def values(features: Tensor) -> list[float]:
    assert features.shape[1:] == (2, 3) and features.dtype == torch.float32
    return features[:, 0, 0].tolist()


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_picture_is_computed_once(images: list[str], tmp_path: Path, on_disk: bool) -> None:
    compute = Counting()
    store = FeatureStore(compute, "key", tmp_path / "kept" if on_disk else None)
    a, b, c, *_ = images
    assert values(store([b, a, b])) == [2, 1, 2]
    assert values(store([a, c, b])) == [1, 3, 2]
    again = [["b"]] if on_disk else []  # the first picture of a store on disk is computed twice
    assert compute.calls == [["b", "a"], *again, ["c"]]


def test_memory_is_bounded_and_what_was_not_asked_for_the_longest_time_goes(images: list[str]) -> None:
    compute = Counting()
    store = FeatureStore(compute, "key", memory=3 * 12)  # of 2 x 3 numbers of two bytes
    a, b, c, d, e = images
    assert values(store([a, b, c])) == [1, 2, 3] and values(store([a])) == [1]
    assert values(store([d])) == [4] and [store.holds(image) for image in images] == [True, False, True, True, False]
    assert values(store([b, a])) == [2, 1], "computed again"
    assert [store.holds(image) for image in images] == [True, True, False, True, False]
    assert compute.calls == [["a", "b", "c"], ["d"], ["b"]]
    assert values(store([e, d, c, b, a])) == [5, 4, 3, 2, 1], "more than fit are given all the same"
    kept = list(store._memory.values())
    assert len(kept) == 3 and all(one.untyped_storage().nbytes() == 12 for one in kept), "none holds its whole batch"


def test_features_come_to_the_device_that_is_named(images: list[str]) -> None:
    store = FeatureStore(Counting(), "key")
    store(images[:2])
    found = store([images[0], images[2], images[0]], torch.device("meta"))  # one kept, one new, one again
    assert found.device.type == "meta" and found.shape == (3, 2, 3) and found.dtype == torch.float32
    assert values(store(images[:3])) == [1, 2, 3]  # what is kept stays where it was


def test_features_on_disk_are_held(images: list[str], tmp_path: Path) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[:2])
    again = FeatureStore(Counting(), "key", tmp_path / "kept", memory=0)
    assert [again.holds(image) for image in images[:3]] == [True, True, False]
    with pytest.raises(ImageError, match="no such picture"):
        again.holds(str(tmp_path / "z"))


def test_equal_content_is_one_picture(images: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_text("1")
    compute = Counting()
    assert values(FeatureStore(compute, "key")([images[0], str(copy)])) == [1, 1]
    assert len(compute.asked) == 1


def test_a_file_that_changed_is_computed_again(images: list[str]) -> None:
    compute = Counting()
    store = FeatureStore(compute, "key")
    store(images[:1])
    Path(images[0]).write_text("17")
    assert values(store(images[:1])) == [17]


def test_a_second_store_reads_what_the_first_kept(images: list[str], tmp_path: Path) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[:2])
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[1:3])
    compute = Counting()
    assert values(FeatureStore(compute, "key", tmp_path / "kept")(images[:4])) == [1, 2, 3, 4]
    assert compute.calls == [["d"], ["d"]]


def test_another_key_is_another_folder(images: list[str], tmp_path: Path) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images)
    compute = Counting()
    FeatureStore(compute, "other", tmp_path / "kept")(images)
    assert set(compute.asked) == set("abcde")


def test_pictures_are_computed_in_parts(images: list[str]) -> None:
    compute = Counting()
    assert values(FeatureStore(compute, "key", batch=2)(images)) == [1, 2, 3, 4, 5]
    assert [len(call) for call in compute.calls] == [2, 2, 1]


@pytest.mark.parametrize("on_disk", [False, True])
def test_bits_of_bf16_come_back(images: list[str], tmp_path: Path, on_disk: bool) -> None:
    given = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(0)) * 100
    given[0, 0, :3] = torch.tensor([0.0, -0.0, 1e-38])
    kept = tmp_path / "kept" if on_disk else None
    store = FeatureStore(lambda paths: given[[images.index(path) for path in paths]], "key", kept)
    expected = given.bfloat16().float()
    assert torch.equal(store(images), expected)
    if on_disk:
        again = FeatureStore(Counting(), "key", kept)(images)
        assert torch.equal(again.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("damage", ["half a shard", "half a list", "list without shard", "shard without list"])
def test_a_damaged_shard_is_computed_again(images: list[str], tmp_path: Path, damage: str) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[:2])
    (shard,), (listing,) = ((tmp_path / "kept").rglob(f"*.{ending}") for ending in ("npy", "json"))
    if damage == "half a shard":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif damage == "half a list":
        listing.write_text(listing.read_text()[:40])
    else:
        (shard if damage == "list without shard" else listing).unlink()
    compute = Counting()
    assert values(FeatureStore(compute, "key", tmp_path / "kept")(images[:2])) == [1, 2]
    assert compute.asked == ["a", "b", "a"]
    compute = Counting()
    assert values(FeatureStore(compute, "key", tmp_path / "kept")(images[:2])) == [1, 2]
    assert compute.asked == [], "what was computed again is kept again"


def test_a_shard_of_another_length_is_not_used(images: list[str], tmp_path: Path) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[:2])
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[2:])
    shards = {len(path.read_bytes()): path for path in (tmp_path / "kept").rglob("*.npy")}
    small, large = shards[min(shards)], shards[max(shards)]
    small.write_bytes(large.read_bytes())  # rows and names no longer agree
    compute = Counting()
    assert values(FeatureStore(compute, "key", tmp_path / "kept")(images)) == [1, 2, 3, 4, 5]
    assert set(compute.asked) == {"a", "b"}


def test_a_folder_that_cannot_be_written(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(OutputError, match="kept"):
        FeatureStore(Counting(), "key", tmp_path / "kept")(images)


def test_a_picture_in_a_container_is_the_same_picture(images: list[str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for image in images[:2]:
            tar.add(image, Path(image).name)
    FeatureStore(Counting(), "key", tmp_path / "kept")(images[:2])
    compute = Counting()
    assert values(FeatureStore(compute, "key", tmp_path / "kept")([f"{tmp_path}/a.tar#b", f"{tmp_path}/a.tar#a"])) == [
        2,
        1,
    ]
    assert compute.calls == []
    with pytest.raises(ImageError, match="no member 'z'"):
        FeatureStore(compute, "key", tmp_path / "kept")([f"{tmp_path}/a.tar#z"])


def test_every_altered_byte_is_found_said_and_mended(
    images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FeatureStore(Counting(), "key", tmp_path / "kept")(images)
    (shard,) = (tmp_path / "kept").rglob("*.npy")
    whole = shard.read_bytes()
    for place in range(len(whole) - 5 * 12, len(whole)):  # five rows of 2 x 3 numbers of two bytes
        damaged = bytearray(whole)
        damaged[place] ^= 16
        shard.write_bytes(damaged)
        compute = Counting()
        assert values(FeatureStore(compute, "key", tmp_path / "kept")(images)) == [1, 2, 3, 4, 5]
        assert set(compute.asked) == {"abcde"[(place - len(whole) + 60) // 12]}
        assert "features of 1 picture damaged (checksum differs), computed again" in capsys.readouterr().err
        compute = Counting()
        assert values(FeatureStore(compute, "key", tmp_path / "kept")(images)) == [1, 2, 3, 4, 5]
        assert compute.calls == [], "the damaged row was struck off, the new one is found"
        for path in (tmp_path / "kept").rglob("*.*"):
            path.unlink()
        FeatureStore(Counting(), "key", tmp_path / "kept")(images)


def test_a_random_transform_is_refused_on_disk(images: list[str], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(paths: Sequence[str]) -> Tensor:
        return torch.randn(len(paths), 2, 3, generator=generator)

    with pytest.raises(ConfigError, match="computed twice, its features differ"):
        FeatureStore(random, "key", tmp_path / "kept")(images)
    assert not list(tmp_path.rglob("*.npy"))
    company = FeatureStore(lambda paths: torch.ones(len(paths), 2, 3) + len(paths) * 1e-4, "key", tmp_path / "kept")
    assert company(images).shape == (5, 2, 3), "what the size of a batch changes is no randomness"


def test_many_shards_do_not_exhaust_open_files(images: list[str], tmp_path: Path) -> None:
    store = FeatureStore(Counting(), "key", tmp_path / "kept", batch=1)
    store(images)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 5
    assert values(store(images)) == [1, 2, 3, 4, 5]
    assert features._mapped.cache_info().maxsize == features.OPEN_SHARDS < 256
