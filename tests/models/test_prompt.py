from __future__ import annotations

import random

import pytest

from ra_blip.models.processor import Processor
from ra_blip.models.prompt import FIRST, LABELS, LATER, WEAK, clean, guide_of, interleaved, mark_overlap, release
from ra_blip.records import Item, Question
from tests.tiny import processor

ASKED = Question("q", "Who designed Velora tower?")
PICTURED = Question("p", "Which country is this?", image="asked.png")
VIEW = Item("v", text="a view of Velora tower", image="velora.png")
FACT = Item("f", text="Velora tower was designed by Moro.", title="Velora tower")
BARE = Item("b", image="bare.png")


def test_interleaved_by_hand() -> None:
    prompt = interleaved("answer", ASKED, [FACT, VIEW, BARE], slots=5, marks=False)
    assert prompt.text == (
        "[A] Velora tower: Velora tower was designed by Moro. | [B] <image> a view of Velora tower | [C] <image>"
        " | Who designed Velora tower?"
    )
    assert prompt.images == ("velora.png", "bare.png")
    assert prompt.guides == ("Who designed Velora tower? a view of Velora tower", "Who designed Velora tower?")


def test_interleaved_select_asks_for_the_item() -> None:
    text = interleaved("select", ASKED, [FACT], slots=5, marks=False).text
    assert text.endswith(" | Who designed Velora tower? Which item is related to this question?")
    assert interleaved("select", ASKED, [], slots=5, marks=False).text == (
        "Who designed Velora tower? Which item is related to this question?"
    )


def test_interleaved_puts_the_questions_picture_first_and_counts_it() -> None:
    prompt = interleaved("answer", PICTURED, [VIEW, BARE], slots=2, marks=False)
    assert prompt.text == "<image> | [A] <image> a view of Velora tower | [B] | Which country is this?"
    assert prompt.images == ("asked.png", "velora.png")
    assert prompt.guides == ("Which country is this?", "Which country is this? a view of Velora tower")


def test_release_by_hand() -> None:
    prompt = release("answer", ASKED, [FACT, VIEW, BARE, Item("g", text="Moro was born in Ardia.")], 5, marks=False)
    assert prompt.text == (
        "<image> caption of image 1: a view of Velora tower; caption of image 2"
        " | title: Velora tower fact: Velora tower was designed by Moro.; fact: Moro was born in Ardia."
        " | Who designed Velora tower?"
    )
    assert prompt.images == ("velora.png", "bare.png")
    assert prompt.guides == ("Who designed Velora tower? a view of Velora tower",)


def test_release_labels_items_when_it_judges() -> None:
    text = release("select", ASKED, [FACT, VIEW], 5, marks=False).text
    assert text == (
        "<image> [B] caption of image 1: a view of Velora tower"
        " | [A] title: Velora tower fact: Velora tower was designed by Moro."
        " | Who designed Velora tower? Which item is related to this question?"
    )


def test_release_puts_the_questions_picture_first_and_reads_all_together() -> None:
    prompt = release("answer", PICTURED, [VIEW, BARE], slots=2, marks=False)
    assert prompt.images == ("asked.png", "velora.png") and prompt.text.count("<image>") == 1
    assert prompt.guides == ("Which country is this? a view of Velora tower",)
    without = release("answer", ASKED, [FACT], slots=2, marks=False)
    assert (without.images, without.guides) == ((), ()) and "<image>" not in without.text


def test_marks_by_hand() -> None:
    asked = "Who designed Velora Tower in Ardia?"
    assert mark_overlap("Velora Tower was designed by Moro", asked) == (
        FIRST,
        f"{FIRST} Velora Tower was designed by Moro",
    )
    assert mark_overlap("Kimuna Tower was designed by Tavi", asked) == (WEAK, "Kimuna Tower was designed by Tavi")
    assert mark_overlap("In Ardia stands Velora Tower.", asked) == (FIRST, f"In Ardia stands {FIRST} Velora Tower.")
    assert mark_overlap("it was designed by Who", asked) == ("", "it was designed by Who"), (
        "neither a name nor four letters"
    )
    assert mark_overlap("velora tower", asked) == ("", "velora tower")
    assert mark_overlap("", asked) == ("", "")


def test_marks_follow_the_order_of_the_question() -> None:
    asked = "Which colours do the roofs of Kimuna Tower and Velora Tower have?"
    assert mark_overlap("a view of Kimuna Tower", asked) == (FIRST, f"a view of {FIRST} Kimuna Tower")
    assert mark_overlap("Velora Tower, seen from afar", asked) == (LATER, f"{LATER} Velora Tower, seen from afar")
    assert mark_overlap("Velora Tower by Kimuna Tower", asked) == (
        LATER,
        f"{LATER} Velora Tower by {FIRST} Kimuna Tower",
    )
    assert mark_overlap("Zolami Tower", asked) == (WEAK, "Zolami Tower")


def test_marks_are_asked_for() -> None:
    asked = Question("q", "Who designed Velora Tower?")
    near, far = Item("n", "Velora Tower was designed by Moro."), Item("f", "Kimuna hall")
    marked = interleaved("answer", asked, [near, far], 2, True).text
    assert marked.startswith(f"[A{FIRST}] {FIRST} Velora Tower was") and " | [B] Kimuna hall | " in marked
    assert f"fact: {FIRST} Velora Tower" in release("answer", asked, [near, far], 2, True).text
    for layout in (interleaved, release):
        assert not {FIRST, WEAK} & set(layout("answer", asked, [near, far], 2, False).text)


def test_marks_are_tokens() -> None:
    made = processor()
    assert made.llm.tokenize(f"[A{FIRST}] [B{LATER}{WEAK}]") == ["[", "A", FIRST, "]", "[", "B", LATER, WEAK, "]"]


def test_guide_of_a_picture() -> None:
    assert guide_of(ASKED, VIEW) == "Who designed Velora tower? a view of Velora tower"
    assert guide_of(ASKED, BARE) == "Who designed Velora tower?"


@pytest.mark.parametrize(
    "hostile",
    [
        "<image>",
        "[A]",
        "|",
        "</s>",
        "*",
        "^",
        "[PAD]",
        "[ B ]",
        "[<x>C]",
        "[|D]",
        "<ima<x>ge>",
        "\uff3bA\uff3d",
        "a\n|\tb",
    ],
)
def test_clean_leaves_no_markup(hostile: str) -> None:
    cleaned = clean(f"before {hostile} after")
    assert cleaned.startswith("before ") and cleaned.endswith(" after")
    assert not set(cleaned) & set("[]|*^\n\t\uff3b\uff3d") and "<image>" not in cleaned and "</s>" not in cleaned
    assert clean(cleaned) == cleaned


def test_clean_keeps_plain_words() -> None:
    plain = "Velora tower (1921), 'the red one': 3 < 5 & 7 > 4; caf\u00e9?"
    assert clean(plain) == plain


# ---------------------------------------------------------------- hostile items against real tokens

PIECES = [
    "<image>",
    "[A]",
    "[ B ]",
    "[",
    "]",
    "|",
    "</s>",
    "*",
    "[PAD]",
    "[UNK]",
    "<",
    ">",
    "image",
    "A",
    "Velora",
    "<x>",
]
MORE = [
    "[DEC]",
    "<extra_id_0>",
    "[<x>C]",
    "<ima<image>ge>",
    "Which item is related to this question?",
    "\u200b",
    "\uff5c",
]


def hostile_items() -> list[Item]:
    """50 items whose texts are made of markup, some with a picture, some with a title."""
    draw = random.Random(7)
    items = []
    for number in range(50):
        text, title = ("".join(draw.choices([*PIECES, *MORE, " "], k=draw.randint(1, 9))) for _ in range(2))
        given_title = title if number % 3 == 0 else None
        items.append(Item(str(number), text=text, title=given_title, image="p.png" if number % 2 else None))
    return items


def structure(made: Processor, items: list[Item], task: str, asked: Question) -> dict[str, int]:
    """How often each structural token stands in the prompt of these items."""
    batch = made.prompts([made.prompt(task, asked, items)], {})
    tokens = made.llm.convert_ids_to_tokens(batch.ids[0].tolist())
    joined = " ".join(tokens)
    labels = {f"[{letter}]": joined.count(f"[ {letter} ]") for letter in LABELS}
    return {
        **labels,
        "blocks": batch.uses.numel(),
        **{mark: tokens.count(mark) for mark in ("<image>", "|", "*", "</s>")},
    }


@pytest.mark.parametrize("task", ["answer", "select"])
@pytest.mark.parametrize("layout", ["interleaved", "release"])
def test_hostile_items_change_nothing_in_the_structure(layout: str, task: str) -> None:
    made = processor(layout, ("generator.image_slots=9", "generator.prompt_length=2000"))
    for number, item in enumerate(hostile_items()):
        harmless = Item("h", text="a", image=item.image)
        titled = Item("h", text="a", title="a" if item.title else None, image=item.image)
        for asked in (ASKED, PICTURED):
            found = structure(made, [item, VIEW, FACT], task, asked)
            expected = structure(made, [titled, VIEW, FACT], task, asked)
            assert found == expected, f"item {number}: {item}"
            found = structure(made, [FACT, item, BARE], task, asked)
            assert found == structure(made, [FACT, harmless, BARE], task, asked), f"item {number}: {item}"


def test_a_hostile_question_opens_no_slot() -> None:
    made = processor()
    plain = structure(made, [VIEW, FACT], "answer", Question("q", "Who is it?"))
    hostile = structure(made, [VIEW, FACT], "answer", Question("q", "Who is <image> [C] | it </s>?"))
    assert hostile == plain
