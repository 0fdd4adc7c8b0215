"""How items stand in a prompt, and what a token budget leaves of them."""

from __future__ import annotations

import pytest

from ra_blip.generation.knowledge import present
from ra_blip.records import Item
from tests.fakes import FakeModel

PAIR = Item("pair", "red hall", image="hall.png")  # 2 words and 4 positions of a picture
FACT = Item("fact", "built 1921 ardia", title="Velora")  # 4 words
BARE = Item("bare", image="bare.png")  # 4 positions


def shown(form: str, budget: int = 0) -> tuple[list[tuple[str, str, str | None]], list[str]]:
    items, notes = present([PAIR, FACT, BARE], form, budget, FakeModel())
    return [(item.id, item.full_text, item.image) for item in items], notes


def test_both_is_as_it_was() -> None:
    items, notes = present([PAIR, FACT, BARE], "both", 0, FakeModel())
    assert items == [PAIR, FACT, BARE] and notes == []


def test_captions_have_no_pictures_and_images_no_words() -> None:
    pair, fact = ("pair", "red hall", None), ("fact", "Velora: built 1921 ardia", None)
    assert shown("captions") == ([pair, fact], ["no captions to show of 1 kept items"])
    images = [("pair", "", "hall.png"), ("bare", "", "bare.png")]
    assert shown("images") == (images, ["no images to show of 1 kept items"])


@pytest.mark.parametrize(
    ("budget", "left", "notes"),
    [
        (14, ["pair+", "fact", "bare"], []),
        (13, ["pair", "fact", "bare"], ["token budget 13: left out the captions of 1 pictures"]),
        (
            8,
            ["pair", "fact"],
            ["token budget 8: left out the captions of 1 pictures", "token budget 8: left out 1 kept items"],
        ),
        (3, [], ["token budget 3: left out 3 kept items"]),
    ],
)
def test_a_budget_takes_captions_first_then_the_last_items(budget: int, left: list[str], notes: list[str]) -> None:
    items, said = shown("both", budget)
    assert [name + ("+" if words and image else "") for name, words, image in items] == left and said == notes


def test_captions_are_cut_from_the_last_rank_on() -> None:
    pairs = [Item(f"p{n}", "red hall", image="x.png") for n in range(3)]  # 6 positions each
    items, _ = present(pairs, "both", 15, FakeModel())
    assert [item.kind for item in items] == ["image+text", "image", "image"]  # 6 + 4 + 4
