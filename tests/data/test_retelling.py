"""Samples told with other names and facts: consistent in question, gold and negatives."""

from __future__ import annotations

import numpy as np

from ra_blip.data.retelling import Retelling, shared_run
from ra_blip.records import Example, Item, Question, by_id

ITEMS = by_id(
    [
        Item("oat-milk.product", "Oat Milk is a kind of milk."),
        Item("oat-milk.origin", "Oat Milk comes from Sweden."),
        Item("oat-milk.sugar", "100 g of Oat Milk hold 4 g of sugar."),
        Item("milk.product", "Milk is a kind of milk."),
        Item("milk.origin", "Milk comes from Norway."),
        Item("milk.sugar", "100 g of Milk hold 5 g of sugar."),
        Item("alone", "A text about nothing else."),
    ]
)
ORIGIN = Question(
    "q1", "Where is it from? Oat Milk comes from Sweden.", None, ("Sweden",), ("oat-milk.origin",), (), "o"
)
OTHER = Question("q2", "Where is Milk from?", None, ("Norway",), ("milk.origin",), (), "o")
MORE = Question("q3", "Which has more sugar, Oat Milk or Milk?", None, ("Milk",), ("oat-milk.sugar", "milk.sugar"))
NAME = Question("q4", "Which is this? Oat Milk is a kind of milk.", None, ("Oat Milk",), ("oat-milk.product",), (), "n")
RETELLING = Retelling(ITEMS, [ORIGIN, OTHER, MORE, NAME])


def example(question: Question, *negatives: str) -> Example:
    return Example(question, tuple(ITEMS[n] for n in question.gold), tuple(ITEMS[n] for n in negatives))


def retold(given: Example) -> list[Example]:
    return [RETELLING(given, np.random.default_rng(seed)) for seed in range(30)]


def test_names_and_values_are_read_off_the_records() -> None:
    assert RETELLING.names == {"oat-milk": "Oat Milk", "milk": "Milk", "alone": ""}
    assert RETELLING.words == ["Milk", "Oat"]
    assert RETELLING.values == {"oat-milk.origin": ("Sweden", "o"), "milk.origin": ("Norway", "o")}
    assert RETELLING.pool == {"o": ["Sweden", "Norway"]}


def test_question_and_items_stay_of_one_tale() -> None:
    seen = set()
    for one in retold(example(ORIGIN, "milk.origin", "oat-milk.sugar")):
        (value,), (gold,) = one.question.answers, one.gold
        name = str(gold.text).removesuffix(f" comes from {value}.")
        assert one.question.text == f"Where is it from? {gold.text}"
        assert str(one.negatives[1].text) == f"100 g of {name} hold 4 g of sugar."
        assert not str(one.negatives[0].text).startswith(f"{name} comes")
        assert one.gold[0].id == "oat-milk.origin" and one.question.gold == ORIGIN.gold
        seen.add((name, value))
    assert {value for _, value in seen} == {"Sweden", "Norway"} and len({name for name, _ in seen}) > 4


def test_a_comparison_keeps_its_values_and_answers_by_the_new_name() -> None:
    for one in retold(example(MORE)):
        first, second = (str(item.text).partition(" hold ") for item in one.gold)
        assert (first[2], second[2]) == ("4 g of sugar.", "5 g of sugar.")
        names = [part[0].removeprefix("100 g of ") for part in (first, second)]
        assert one.question.text == f"Which has more sugar, {names[0]} or {names[1]}?"
        assert one.question.answers == (names[1],)


def test_a_name_that_is_the_answer_is_renamed_not_swapped() -> None:
    for one in retold(example(NAME)):
        assert one.question.text == f"Which is this? {one.question.answers[0]} is a kind of milk."
        assert one.gold[0].text == f"{one.question.answers[0]} is a kind of milk."


def test_a_draw_is_a_pure_function() -> None:
    assert retold(example(ORIGIN, "milk.origin")) == retold(example(ORIGIN, "milk.origin"))


def test_shared_run() -> None:
    assert (
        shared_run(["a photo of Red Beet", "Red Beet comes from Peru.", "One piece of Red Beet weighs"]) == "Red Beet"
    )
    assert shared_run(["Peru, climate: dry", "the flag of Peru", "The languages of Peru: Spanish."]) == "Peru"
    assert shared_run(["Beet", "Beetroot"]) == "" and shared_run(["Beet"]) == ""
