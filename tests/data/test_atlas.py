"""The generated world: deterministic, split by building, every question answerable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.data.atlas import LARGEST, World
from ra_blip.data.atlas_draw import PALETTE, draw
from ra_blip.data.atlas_look import (
    ALL_KEYS,
    DOORS,
    EMBLEMS,
    NUMBERS,
    ROOF_SHAPES,
    SHAPES,
    Look,
    caption,
    describe,
    paraphrase,
    random_look,
)
from ra_blip.data.atlas_text import CATEGORIES, fresh_name, likeness
from ra_blip.errors import ConfigError, OutputError
from ra_blip.records import by_id, read_items, read_questions

LOOK = Look("round", "white", "red", "pointed", "star", "blue", 3)


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(400, seed=0)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_caption_says_every_attribute() -> None:
    assert caption(LOOK) == ("a round white building with a pointed red roof, three windows, a blue door and a star")
    assert caption(dataclasses.replace(LOOK, windows=1)).count("one window,") == 1
    for seed in range(40):
        said = re.findall(r"\w+", paraphrase(LOOK, np.random.default_rng(seed)))
        assert {"round", "white", "pointed", "red", "three", "windows", "blue", "star"} <= set(said)


def test_looks_are_legal_and_reach_every_value() -> None:
    rng = np.random.default_rng(0)
    looks = [random_look(rng) for _ in range(400)]
    assert len(ALL_KEYS) == 6 * 8 * 7 * 4 * 5
    assert all(look.roof != look.wall != look.door for look in looks)
    assert {look.shape for look in looks} == set(SHAPES)
    assert {look.roof_shape for look in looks} == set(ROOF_SHAPES)
    assert {look.emblem for look in looks} == set(EMBLEMS)
    assert {look.door for look in looks} == set(DOORS)
    assert {look.windows for look in looks} == {1, 2, 3, 4, 5}


def test_same_look_and_view_give_the_same_picture() -> None:
    first, again = draw(LOOK, 3, 96), draw(LOOK, np.random.default_rng(3), 96)
    assert first.mode == "RGB" and first.size == (96, 96)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != draw(LOOK, 4, 96).tobytes()


def test_every_attribute_shows_and_stays_inside_the_picture() -> None:
    """Changing one attribute changes the picture; the light leaves each wall nearest to its own colour name."""
    others = {"shape": "tall", "wall": "green", "roof": "black", "roof_shape": "flat", "emblem": "moon", "door": "red"}
    plain = np.asarray(draw(LOOK, 1, 64), dtype=int)
    for attribute, value in {**others, "windows": 4}.items():
        changed = np.asarray(draw(dataclasses.replace(LOOK, **{attribute: value}), 1, 64), dtype=int)
        assert (np.abs(plain - changed).max(axis=2) > 40).sum() >= 15, attribute
    palette = np.array(list(PALETTE.values()))
    for seed in range(24):
        for name in PALETTE:
            roof = "red" if name != "red" else "blue"
            look = Look("square", name, roof, "flat", "star", "black", 1)
            with_wall = np.asarray(draw(look, seed, 64)).astype(int)
            other = Look("square", "white" if name != "white" else "green", roof, "flat", "star", "black", 1)
            differs = np.abs(with_wall - np.asarray(draw(other, seed, 64)).astype(int)).sum(axis=2) > 20
            pixels = with_wall[differs]
            nearest = np.abs(pixels[:, None] - palette).sum(axis=2).argmin(axis=1)
            assert list(PALETTE)[np.bincount(nearest).argmax()] == name, (name, seed)


def test_tallest_building_keeps_its_emblem_in_the_picture() -> None:
    for shape in SHAPES:
        for seed in range(12):
            with_star, with_flag = (
                np.asarray(draw(Look(shape, "white", "red", "pointed", emblem, "blue", 3), seed, 64)).astype(int)
                for emblem in ("star", "flag")
            )
            rows = np.nonzero(np.abs(with_star - with_flag).sum(axis=(1, 2)))[0]
            assert rows.min() >= 1, (shape, seed)


def test_world_is_a_function_of_its_seed() -> None:
    assert World.generate(40, 1) == World.generate(40, 1)
    assert World.generate(40, 1) != World.generate(40, 2)
    assert World.generate(40, 1).questions("test", "f") == World.generate(40, 1).questions("test", "f")


def test_counts_names_and_looks(world: World) -> None:
    named, unnamed = world.of("test")
    assert (len(world.named), len(world.unnamed), len(named), len(unnamed)) == (400, 200, 100, 50)
    assert len({e.name for e in world.named}) == 400
    assert len({e.id for e in world.entities}) == 600
    assert len({e.look.key for e in world.entities}) == 600
    for entity in world.named:
        assert re.fullmatch(r"([bdfgklmnprstvz][aeiou]){3} [A-Z][a-z]+", entity.name.lower()[:6] + entity.name[6:])
        assert 1500 <= entity.year <= 1999
    assert all(e.name is None for e in world.unnamed)


def test_items_of_a_default_world(world: World) -> None:
    items = world.items("kb")
    kinds = [item.kind for item in items]
    assert (kinds.count("image+text"), kinds.count("image"), kinds.count("text")) == (400, 200, 850)
    assert len({item.id for item in items}) == len(items) == 1450
    entity = world.named[0]
    assert items[0].id == f"{entity.id}.view" and items[0].text == f"a view of {entity.name}"
    assert items[0].image == str(Path("kb") / "images" / f"{entity.id}_0.png")
    for part in (entity.name, entity.designer, str(entity.year)):
        assert part in items[1].text
    for part in (entity.name, entity.country, entity.material):
        assert part in items[2].text


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_question_can_be_answered_from_its_gold(world: World, split: str) -> None:
    items = by_id(world.items("kb"))
    owners = {item: e for e in world.entities for item in (e.id, f"{e.id}.view", f"{e.id}.design", f"{e.id}.place")}
    questions = world.questions(split, "kb")
    assert {c: sum(q.category == c for q in questions) for c in CATEGORIES} == dict.fromkeys(CATEGORIES, 100)
    assert len({(q.text, q.image) for q in questions}) == len({q.id for q in questions}) == 500
    for question in questions:
        (answer,) = question.answers
        gold = [items[id] for id in question.gold]
        entities = [owners[id] for id in question.gold]
        assert {e.split for e in entities} == {split}
        if question.category in ("text_fact", "question_picture"):
            assert answer in re.findall(r"\w+", gold[0].text)
        elif question.category == "two_pictures":
            assert answer == " and ".join(e.look.roof for e in entities)
            assert question.text.index(entities[0].name) < question.text.index(entities[1].name)
        else:
            look = entities[0].look
            assert answer in (look.roof, look.wall, look.door, look.roof_shape, NUMBERS[look.windows])
        if question.category == "question_picture":
            assert re.fullmatch(rf".*{entities[0].picture}_[123]\.png", question.image)
            assert entities[0].name not in question.text
        else:
            assert question.image is None
        if question.category == "described_picture":
            assert gold[0].kind == "image"
            assert [e for e in world.entities if describe(e.look) in question.text] == entities


def test_attributes_vary_where_questions_outnumber_buildings() -> None:
    small = World.generate(16, 0)  # 4 named and 2 unnamed ones to test on
    questions = small.questions("test", "kb", per_category=100)
    counts = {c: [q for q in questions if q.category == c] for c in CATEGORIES}
    assert len(counts["captioned_picture"]) == 4 * 5
    assert len(counts["text_fact"]) == len(counts["question_picture"]) == 4 * 4
    assert len(counts["described_picture"]) == 2 * 2
    assert 0 < len(counts["two_pictures"]) <= 4 * 3
    assert len({(q.gold, q.answers) for q in counts["captioned_picture"]}) > 4


@pytest.mark.parametrize(("entities", "seed"), [(15, 0), (LARGEST + 1, 0), (40, -1)])
def test_impossible_worlds_are_refused(entities: int, seed: int) -> None:
    with pytest.raises(ConfigError, match=str(LARGEST) if seed == 0 else "seed"):
        World.generate(entities, seed)


def test_largest_world_can_be_made() -> None:
    world = World.generate(LARGEST, 0)
    assert len({e.look.key for e in world.entities}) == LARGEST + LARGEST // 2


def test_renamed_keeps_look_and_pictures() -> None:
    entity = World.generate(16, 0).named[0]
    rng = np.random.default_rng(0)
    other = entity.renamed(rng)
    assert (other.look, other.picture, other.split) == (entity.look, entity.picture, entity.split)
    assert other.name != entity.name and other.id != entity.id
    assert other.image("f", 2) == entity.image("f", 2)
    assert other.design_item().text != entity.design_item().text


def test_similar_names_are_similar_but_not_taken() -> None:
    rng = np.random.default_rng(0)
    names = [fresh_name(rng, {"Velora Tower"}, like="Velora Tower") for _ in range(100)]
    assert "Velora Tower" not in names
    assert all(likeness(name, "Velora Tower") >= 1 for name in names)
    assert likeness("Velora Tower", "Velota Tower") == 3


def test_write_is_repeatable_and_skips_what_is_there(tmp_path: Path) -> None:
    world = World.generate(16, 3)
    world.write(tmp_path / "a", per_category=5)
    world.write(tmp_path / "b", per_category=5)
    files = digest(tmp_path / "a")
    assert files == digest(tmp_path / "b")
    assert sum(name.startswith("images") for name in files) == 24 * 4
    manifest = json.loads((tmp_path / "a" / "world.json").read_text())
    assert manifest["seed"] == 3 and manifest["items"] == len(read_items(tmp_path / "a" / "items.jsonl"))
    assert manifest["questions"] == len(read_questions(tmp_path / "a" / "questions.jsonl"))
    assert manifest["train_questions"] == len(read_questions(tmp_path / "a" / "train_questions.jsonl"))
    assert Image.open(world.named[0].image(tmp_path / "a", 0)).size == (256, 256)
    assert Image.open(world.named[0].image(tmp_path / "a", 1)).size == (128, 128)

    lost = Path(world.named[0].image(tmp_path / "a", 0))
    lost.unlink()
    world.write(tmp_path / "a", per_category=5)
    assert not lost.exists()  # the manifest vouches for the folder
    (tmp_path / "a" / "world.json").unlink()
    world.write(tmp_path / "a", per_category=5)
    assert digest(tmp_path / "a") == files  # an interrupted run is done again
    world.write(tmp_path / "a", per_category=6)
    assert json.loads((tmp_path / "a" / "world.json").read_text())["per_category"] == 6


def test_another_world_is_not_drawn_over(tmp_path: Path) -> None:
    World.generate(16, 3).write(tmp_path, per_category=5)
    files = digest(tmp_path)
    with pytest.raises(OutputError, match="holds a generated world of seed 3, not of seed 4 and 16 entities"):
        World.generate(16, 4).write(tmp_path, per_category=5)
    with pytest.raises(OutputError, match="of entities 16, not of seed 3 and 20"):
        World.generate(20, 3).write(tmp_path, per_category=5)
    assert digest(tmp_path) == files


def test_unwritable_folder_is_one_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        World.generate(16, 0).write(tmp_path / "file")


def test_newcomer_is_in_no_list(tmp_path: Path) -> None:
    world = World.generate(16, 0)
    newcomer = world.newcomer(tmp_path, seed=1)
    assert newcomer == world.newcomer(tmp_path, seed=1)
    assert newcomer.entity.name not in {e.name for e in world.named}
    assert newcomer.entity.look.key not in {e.look.key for e in world.entities}
    ids = {item.id for item in newcomer.items}
    assert not ids & {item.id for item in world.items(tmp_path)}
    assert [q.category for q in newcomer.questions] == ["captioned_picture", "text_fact", "question_picture"]
    assert all(set(q.gold) <= ids for q in newcomer.questions)
    assert newcomer.questions[0].answers == (newcomer.entity.look.roof,)
    assert newcomer.questions[1].answers == (newcomer.entity.designer,)
    for path in [newcomer.items[0].image, newcomer.questions[2].image]:
        assert Path(path).is_file()
