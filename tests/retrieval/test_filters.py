"""What each filter takes out, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.errors import ConfigError
from ra_blip.records import Hit, Item, Question, write_jsonl
from ra_blip.retrieval.embed import Vectors
from ra_blip.retrieval.filters import Filters, picture_hash

# cosines: a-b 0.96, b-c 0.96, a-c 0.8432; d stands alone
ANGLES = {"a": 0.0, "b": np.arccos(0.96), "c": 2 * np.arccos(0.96), "d": np.pi / 2}


def vectors_of(items: Sequence[Item]) -> Vectors:
    angles = np.array([ANGLES[item.id] for item in items])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 3  # need not have length 1


def hits(*names: str) -> list[Hit]:
    return [Hit(Item(name, f"words of {name}"), 1 - place / 10, "search") for place, name in enumerate(names)]


def run(written: str, found: list[Hit], question: Question | None = None) -> tuple[list[str], dict[str, list[str]]]:
    left, dropped = Filters(written, vectors_of)(question or Question("q", "?"), found)
    return [hit.item.id for hit in left], dropped


def photo(path: Path, seed: int, size: int = 64) -> str:
    """Soft blobs, as photographs have them; the same seed in another size is the same picture."""
    grid = np.random.default_rng(seed).integers(0, 255, (9, 9, 3)).astype(np.uint8)
    Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return str(path)


def test_a_group_gives_one_and_a_walk_gives_what_is_far_from_all_taken() -> None:
    assert run("pair_cosine:0.94", hits("a", "b", "c", "d")) == (["a", "d"], {"pair_cosine": ["b", "c"]})
    assert run("diversity:0.94", hits("a", "b", "c", "d")) == (["a", "c", "d"], {"diversity": ["b"]})
    assert run("diversity:0.97", hits("a", "b", "c", "d"))[0] == ["a", "b", "c", "d"]
    assert run("diversity:0.94", hits("b", "a", "c"))[0] == ["b"]  # the best is taken first, whoever it is


def test_a_cosine_to_the_query_is_the_score_of_the_search() -> None:
    assert run("query_cosine:0.85", hits("a", "b", "c", "d")) == (["c", "d"], {"query_cosine": ["a", "b"]})


def test_an_item_of_the_question_itself_is_dropped_by_id_or_by_its_picture() -> None:
    found = [Hit(Item("q.2", "caption", image="x.png"), 1.0, "search"), Hit(Item("r", image="mine.png"), 0.9, "search")]
    found += hits("q.design", "a")
    question = Question("q", "?", image="mine.png")
    assert run("same_id", found, question) == (["q.design", "a"], {"same_id": ["q.2", "r"]})
    assert run("same_id", hits("q.2", "q.3"), Question("q.2", "asked of a caption"))[0] == ["q.3"]


def test_pictures_are_told_by_their_bytes_and_by_what_they_show(tmp_path: Path) -> None:
    mine, twin = photo(tmp_path / "mine.png", 0), photo(tmp_path / "twin.png", 0)
    small, other = photo(tmp_path / "small.png", 0, 48), photo(tmp_path / "other.png", 1)
    named = {"twin": twin, "small": small, "other": other}
    found = [Hit(Item(name, image=path), 0.5, "search") for name, path in named.items()] + hits("a")
    question = Question("q", "?", image=mine)
    assert run("same_bytes", found, question) == (["small", "other", "a"], {"same_bytes": ["twin"]})
    assert run("near_picture:4", found, question) == (["other", "a"], {"near_picture": ["twin", "small"]})
    assert (picture_hash(mine) ^ picture_hash(small)).bit_count() <= 4
    assert (picture_hash(mine) ^ picture_hash(other)).bit_count() > 16
    assert run("same_bytes,near_picture:4", found, Question("q", "no picture"))[0] == ["twin", "small", "other", "a"]


def test_a_hash_is_the_sign_of_horizontal_differences(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "up.png")
    Image.fromarray(ramp[:, ::-1].copy()).save(tmp_path / "down.png")
    assert picture_hash(str(tmp_path / "up.png")) == 2**64 - 1 and picture_hash(str(tmp_path / "down.png")) == 0


def test_filters_work_one_after_another_and_report_each(tmp_path: Path) -> None:
    left, dropped = run("query_cosine:0.95,diversity:0.94,random:1", hits("a", "b", "c", "d"))
    assert dropped["query_cosine"] == ["a"] and dropped["diversity"] == ["c"] and len(dropped["random"]) == 1
    assert len(left) == 1 and sorted([*left, *dropped["random"]]) == ["b", "d"]
    assert run("", hits("a")) == (["a"], {})
    assert run("query_cosine:0.1,diversity:0.9", hits("a")) == ([], {"query_cosine": ["a"], "diversity": []})


def test_a_random_choice_follows_the_question_and_keeps_the_order() -> None:
    found = hits(*(f"n{i:02}" for i in range(20)))
    chosen = {name: run("random:5", found, Question(name, "?"))[0] for name in ("q", "r", "s")}
    assert chosen["q"] == run("random:5", found, Question("q", "?"))[0] and len(set(map(tuple, chosen.values()))) == 3
    assert all(names == sorted(names) and len(names) == 5 for names in chosen.values())
    assert run("random:50", found)[0] == [hit.item.id for hit in found]


def test_items_of_an_evaluation_split_are_dropped_by_id_and_by_picture(tmp_path: Path) -> None:
    asked, copied = photo(tmp_path / "asked.png", 3), photo(tmp_path / "copy.png", 3)
    write_jsonl(tmp_path / "test.jsonl", [Question("17", "?", image=asked), Question("18", "?"), Question("19.1", "?")])
    found = [*hits("17.0", "18", "180", "19.0", "19.1"), Hit(Item("memory", "a caption", image=copied), 0.1, "search")]
    left, dropped = run(f"held_out:{tmp_path / 'test.jsonl'}", found)
    assert left == ["180", "19.0"] and dropped == {"held_out": ["17.0", "18", "19.1", "memory"]}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("near", "'near' is not one of same_id"),
        ("near_picture", "write near_picture:BITS"),
        ("same_id:3", "write same_id, not 'same_id:3'"),
        ("diversity:high", "cosine must be a number"),
        ("diversity:nan", "cosine must be a number"),
        ("random:inf", "count must be a whole number"),
        ("random:-3", "count must be a whole number"),
    ],
)
def test_a_wrong_chain_is_refused_by_name(written: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Filters(written)


def test_a_filter_that_needs_vectors_says_so() -> None:
    with pytest.raises(ConfigError, match="need vectors"):
        Filters("diversity:0.9")(Question("q", "?"), hits("a"))
