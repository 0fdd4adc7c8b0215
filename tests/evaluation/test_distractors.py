"""How misleading knowledge is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ra_blip.evaluation.distractors import (
    adversarial,
    choice,
    entity,
    generator,
    gold_items,
    noisy,
    random_items,
    shuffled,
    wrong_items,
)
from ra_blip.records import Item, Question
from ra_blip.retrieval.index import KnowledgeIndex
from tests.fakes import FakeModel, world

pytest.importorskip("faiss")


def make(tmp_path: Path) -> tuple[KnowledgeIndex, list[Question]]:
    items, questions = world(tmp_path)
    return KnowledgeIndex.build(items, FakeModel()), questions


def test_entity() -> None:
    assert entity(Item("velora-tower.view", text="x")) == entity(Item("velora-tower.design", text="y"))
    assert entity(Item("7", text="x", title="Moss")) == "Moss"
    assert entity(Item("plain", text="x")) == "plain"


@pytest.mark.parametrize("count", range(7))
def test_shuffled_changes_the_order_and_nothing_else(count: int) -> None:
    items = [Item(f"i{n}", text="x") for n in range(count)]
    for seed in range(20):
        mixed = shuffled(items, np.random.default_rng(seed))
        assert sorted(mixed, key=lambda item: item.id) == items
        assert count < 2 or mixed != items


def test_generator_depends_on_seed_purpose_and_id() -> None:
    question = Question("q", "text")
    drawn = [
        generator(*key).integers(1 << 40)
        for key in [(0, "a", question), (1, "a", question), (0, "b", question), (0, "a", Question("r", "text"))]
    ]
    assert len(set(drawn)) == 4
    assert drawn[0] == generator(0, "a", Question("q", "other words")).integers(1 << 40)


def test_random_items(tmp_path: Path) -> None:
    index, questions = make(tmp_path)
    question = questions[0]
    seen = set()
    for seed in range(60):
        items = random_items(index, question, 4, np.random.default_rng(seed))
        assert len({item.id for item in items}) == 4 and question.gold[0] not in {item.id for item in items}
        seen |= {item.id for item in items}
    assert seen == set(index.items) - set(question.gold)
    assert len(random_items(index, question, 500, np.random.default_rng(0))) == 29
    assert random_items(index, question, 0, np.random.default_rng(0)) == []


def test_wrong_items_are_near_of_another_entity_and_wrong(tmp_path: Path) -> None:
    index, questions = make(tmp_path)
    index.add([Item("copy.design", text="velora tower was designed by moro yes")], FakeModel())
    question = questions[0]
    gold = gold_items(index, question)
    wrong = wrong_items(index, question, gold, [], 3)
    assert all(item.kind == "text" and entity(item) != "velora" and item.id != "copy.design" for item in wrong)
    texts = [i for i in index.items.values() if i.kind == "text" and entity(i) not in ("velora", "copy")]
    model = FakeModel()
    scores = model.encode_items(texts) @ model.encode_items(gold)[0]
    assert {item.id for item in wrong} == {texts[i].id for i in np.argsort(-scores)[:3]}
    pictured = [index.items["velora.view"]]
    assert {item.kind for item in wrong_items(index, question, pictured, [], 5)} == {"image+text"}
    # nine other pictures exist: no tenth one is made up
    assert len(wrong_items(index, question, pictured, [], 50)) == 9
    barred = {item.id for item in wrong}
    assert not barred & {item.id for item in wrong_items(index, question, gold, barred, 3)}


def test_items_of_the_same_entity_fill_up_where_there_are_no_others() -> None:
    items = [Item(f"doc.{n}", text=f"passage number{n}") for n in range(6)]
    index = KnowledgeIndex.build(items, FakeModel())
    question = Question("q", "passage", answers=("number0",), gold=("doc.0",))
    picked = choice(index, question, np.random.default_rng(0))
    assert picked is not None and len({item.id for item in picked[0]}) == 4


@pytest.mark.parametrize("count", range(6))
def test_adversarial_replaces_half_and_keeps_gold(tmp_path: Path, count: int) -> None:
    index, questions = make(tmp_path)
    for question in questions:
        name = question.id.split("-")[0]
        others = ["kimuna.view", "sadoti.design", f"{name}.view", "ferapo.place"]
        ids = list(dict.fromkeys([*question.gold, *others]))[:count]
        kept = [index.items[i] for i in ids]
        rng = np.random.default_rng(0)
        mixed = [item.id for item in adversarial(index, question, kept, rng)]
        wrong = {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2}[len(kept)]  # half, at least one
        free = [one for one in ids if one not in question.gold]
        stay = [one for one in ids if one not in free[len(free) - min(wrong, len(free)) :]]  # the lowest ranked go
        assert set(mixed) & set(ids) == set(stay) and len(set(mixed) - set(ids)) == wrong
        for fresh in set(mixed) - set(stay):
            assert index.items[fresh].kind == "text" and entity(index.items[fresh]) != name


def test_adversarial_never_takes_gold_and_works_without(tmp_path: Path) -> None:
    index, _ = make(tmp_path)
    gold = ("velora.design", "velora.place", "kimuna.design")
    question = Question("q", "x", gold=gold)
    kept = [index.items[i] for i in ("sadoti.design", *gold)]
    mixed = {item.id for item in adversarial(index, question, kept, np.random.default_rng(0))}
    assert set(gold) < mixed and "sadoti.design" not in mixed
    unknown = Question("q", "x", answers=("moro",))
    mixed = {item.id for item in adversarial(index, unknown, kept, np.random.default_rng(0))}
    assert {"sadoti.design", "velora.design"} < mixed and len(mixed) == 4


def test_noise_is_so_many_wrong_items_beside_the_gold_ones(tmp_path: Path) -> None:
    index, _ = make(tmp_path)
    names = ("velora.design", "kimuna.design", "sadoti.design", "ferapo.design")
    # ratio -> how many wrong items there are beside one, two, three and four gold ones; never more than three
    expected = {0.0: ({0}, {0}, {0}, {0}), 0.25: ({0, 1}, {0, 1}, {1}, {1, 2}), 0.5: ({1}, {2}, {3}, {3})}
    for ratio, counts in {**expected, 0.75: ({3}, {3}, {3}, {3})}.items():
        for gold, count in zip((names[:1], names[:2], names[:3], names), counts, strict=True):
            mixed = [noisy(index, Question("q", "x", gold=gold), np.random.default_rng(n), ratio) for n in range(20)]
            assert {len(items) - len(gold) for items in mixed} == count
            assert all(len({item.id for item in items}) == len(items) for items in mixed)
            assert all(set(gold) <= {item.id for item in items} for items in mixed)
            assert {item.kind for items in mixed for item in items} == {"text"}
    assert noisy(index, Question("q", "x", gold=("nowhere",)), np.random.default_rng(0), 0.5) == []


def test_noise_meets_its_ratio_in_the_mean_and_grows_by_the_same_draws(tmp_path: Path) -> None:
    index, _ = make(tmp_path)
    for gold in (("velora.design",), ("velora.design", "kimuna.place")):
        asked = [Question(f"q{n}", "x", gold=gold) for n in range(400)]
        ids = [[i.id for i in noisy(index, one, generator(0, "noise", one), 0.25)] for one in asked]
        shares = [1 - len(gold) / len(items) for items in ids]
        assert np.mean(shares) == pytest.approx(0.25, abs=0.03)  # beside one gold item: a wrong one in every other
        places = [items.index(gold[0]) for items in ids if len(items) == 2]
        assert not places or np.mean(places) == pytest.approx(0.5, abs=0.12)  # gold is first as often as last
        more = [{i.id for i in noisy(index, one, generator(0, "noise", one), 0.5)} for one in asked]
        assert all(set(few) <= many for few, many in zip(ids, more, strict=True))


def test_choice_of_four(tmp_path: Path) -> None:
    index, questions = make(tmp_path)
    places = []
    for question in questions:
        picked = choice(index, question, generator(0, "askg", question))
        assert picked is not None
        items, place = picked
        places.append(place)
        assert len({item.id for item in items}) == 4 and items[place].id == question.gold[0]
        assert len({item.kind for item in items}) == 1 and len({entity(item) for item in items}) == 4
        assert sum(question.answers[0] in item.full_text.split() for item in items) == 1
    assert set(places) == {0, 1, 2, 3}
    assert choice(index, Question("q", "x"), np.random.default_rng(0)) is None
    assert choice(index, Question("q", "x", gold=("nowhere",)), np.random.default_rng(0)) is None
    two = KnowledgeIndex.build([Item("a", text="x"), Item("b", text="y")], FakeModel())
    assert choice(two, Question("q", "x", gold=("a",)), np.random.default_rng(0)) is None
