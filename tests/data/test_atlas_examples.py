"""Training samples from the generated world: never a test building, never a distractor that answers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.data.atlas import World
from ra_blip.data.atlas_captions import AtlasCaptions
from ra_blip.data.atlas_examples import AtlasExamples, Purpose, texts, with_context
from ra_blip.data.atlas_text import CATEGORIES, likeness
from ra_blip.errors import ConfigError, DataError, OutputError
from ra_blip.records import Example, Item, Question

PURPOSES: tuple[Purpose, ...] = ("retrieve", "rerank", "answer")


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(80, seed=0)


def sample(examples: AtlasExamples, count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [examples.draw(index, rng) for index in range(count)]


def words(example: Example) -> str:
    items = (*example.gold, *example.negatives)
    return " ".join([example.question.text, *example.question.answers, *(item.full_text for item in items)])


def stem(image: str) -> str:
    return re.sub(r"_\d\.png$", "", Path(image).name)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("rename", [True, False])
def test_test_buildings_never_occur(world: World, purpose: Purpose, rename: bool) -> None:
    named, unnamed = world.of("test")
    pictures = {e.picture for e in [*named, *unnamed]}
    for example in sample(AtlasExamples(world, "kb", purpose, rename=rename, negatives=3), 1000):
        said = words(example)
        assert not any(e.name in said or re.search(rf"\b{e.designer}\b", said) for e in named)
        images = [example.question.image, *(item.image for item in (*example.gold, *example.negatives))]
        assert not pictures & {stem(image) for image in images if image}


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("rename", [True, False])
def test_samples_are_well_formed(world: World, purpose: Purpose, rename: bool) -> None:
    for example in sample(AtlasExamples(world, "kb", purpose, rename=rename, negatives=4), 600):
        question, gold, negatives = example.question, example.gold, example.negatives
        assert len(negatives) == 4
        assert len({item.id for item in (*gold, *negatives)}) == 4 + len(gold)
        assert question.gold == tuple(item.id for item in gold)
        assert len(gold) == (2 if question.category == "two_pictures" else 1)
        (answer,) = question.answers
        if gold[0].kind == "text":
            assert answer in re.findall(r"\w+", gold[0].text)
            assert not any(item.text == gold[0].text for item in negatives)
        shown = [stem(item.image) for item in (*gold, *negatives) if item.image]
        assert len(set(shown)) == len(shown)  # no building is its own distractor under another name
        if question.category == "described_picture":
            assert {item.kind for item in (*gold, *negatives)} == {"image"}
        if question.image:
            assert question.category == "question_picture" and purpose == "retrieve"
            assert gold[0].kind == "image+text" and gold[0].image != question.image
            assert stem(gold[0].image) == stem(question.image)
            assert not any(answer in re.findall(r"\w+", i.full_text) for i in negatives if i.id[:6] == gold[0].id[:6])
            assert all(stem(question.image) != stem(item.image) for item in negatives if item.image)


def test_answers_follow_from_the_pictures(world: World) -> None:
    looks = {e.picture: e.look for e in world.entities}
    for example in sample(AtlasExamples(world, "kb", "answer", ["two_pictures"], rename=True, negatives=2), 200):
        first, second = (looks[stem(item.image)] for item in example.gold)
        assert example.question.answers == (f"{first.roof} and {second.roof}",)
        assert example.gold[0].text.removeprefix("a view of ") in example.question.text.split(" and ")[0]
    for example in sample(AtlasExamples(world, "kb", "answer", ["described_picture"], rename=True, negatives=4), 200):
        look = looks[stem(example.gold[0].image)]
        assert f"{look.shape} {look.wall} building" in example.question.text
        for item in example.negatives:
            assert looks[stem(item.image)].key != look.key


def test_renamed_samples_keep_the_picture_and_change_the_words(world: World) -> None:
    examples = AtlasExamples(world, "kb", "answer", ["captioned_picture"], rename=True, negatives=2)
    first, again = sample(examples, 1, seed=1)[0], sample(examples, 1, seed=2)[0]
    assert stem(first.gold[0].image) == stem(again.gold[0].image) == world.named[0].picture
    assert len({first.gold[0].text, again.gold[0].text, f"a view of {world.named[0].name}"}) == 3
    plain = AtlasExamples(world, "kb", "answer", ["captioned_picture"], rename=False, negatives=2)
    assert sample(plain, 1)[0].gold[0].text == f"a view of {world.named[0].name}"


@pytest.mark.parametrize("rename", [True, False])
def test_some_distractors_are_hard(world: World, rename: bool) -> None:
    alike = []
    for example in sample(AtlasExamples(world, "kb", "answer", ["captioned_picture"], rename, negatives=4), 200):
        name = example.gold[0].text.removeprefix("a view of ")
        others = [item.text.removeprefix("a view of ") for item in example.negatives if item.image]
        alike += [likeness(name, other) for other in others]
    assert 0.3 < np.mean([value >= 1 for value in alike]) < 0.8  # by chance about 0.16
    looks = {e.picture: np.array(e.look.key) for e in world.entities}
    for purpose in PURPOSES:
        same = []
        for example in sample(AtlasExamples(world, "kb", purpose, ["described_picture"], rename, negatives=2), 200):
            gold = looks[stem(example.gold[0].image)]
            same += [int((looks[stem(item.image)] == gold).sum()) for item in example.negatives]
        assert (np.mean(same) > 1.2) == (purpose != "answer")  # by chance 1/6 + 1/8 + 1/8 + 1/4 + 1/5 = 0.87


def test_both_hops_are_trained(world: World) -> None:
    found = sample(AtlasExamples(world, "kb", "retrieve", ["question_picture"], rename=True, negatives=2), 400)
    assert 0.65 < np.mean([example.question.image is not None for example in found]) < 0.85
    for purpose in ("rerank", "answer"):
        second = sample(AtlasExamples(world, "kb", purpose, ["question_picture"], rename=True, negatives=2), 100)
        assert all(e.question.image is None and " a view of " in e.question.text for e in second)
        assert all(e.gold[0].kind == "text" for e in second)


def test_another_item_of_the_building_is_sometimes_a_distractor(world: World) -> None:
    found = sample(AtlasExamples(world, "kb", "answer", ["text_fact"], rename=True, negatives=4), 400)
    own = [any(item.id.split(".")[0] == e.gold[0].id.split(".")[0] for item in e.negatives) for e in found]
    assert 0.6 < np.mean(own) < 0.9


def test_draw_depends_on_index_and_generator_only(world: World) -> None:
    examples = AtlasExamples(world, "kb", "retrieve", rename=True, negatives=3)
    assert sample(examples, 30) == sample(AtlasExamples(world, "kb", "retrieve", rename=True, negatives=3), 30)
    assert len(examples) == 60 * 5
    assert [e.question.category for e in sample(examples, 5)] == list(CATEGORIES)
    examples.draw(10**6, np.random.default_rng(0))


def test_with_context_puts_the_found_text_after_the_question() -> None:
    question = Question("q", "Who designed this building?", image="a.png", category="question_picture")
    assert with_context(question, Item("i", "a view of Velora Tower", image="b.png")) == Question(
        "q", "Who designed this building? a view of Velora Tower", category="question_picture"
    )


@pytest.mark.parametrize(
    ("categories", "negatives", "message"),
    [(["weather"], 2, "weather"), ([], 2, "categories"), (None, 500, "negatives")],
)
def test_impossible_samples_are_refused(
    world: World, categories: list[str] | None, negatives: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AtlasExamples(world, "kb", "answer", categories, negatives=negatives)


def test_smallest_world_has_samples() -> None:
    found = sample(AtlasExamples(World.generate(16, 0), "kb", "retrieve", rename=False, negatives=4), 200)
    assert all(example.gold and len(example.negatives) == 4 for example in found)


def test_texts_for_the_tokenizer_hold_no_test_name(world: World) -> None:
    found = list(texts(world, 3000, np.random.default_rng(0)))
    assert len(found) == 3000 and found == list(texts(world, 3000, np.random.default_rng(0)))
    joined = " ".join(found)
    assert not any(re.search(rf"\b({e.name}|{e.designer})\b", joined) for e in world.of("test")[0])
    for part in ("a view of", "designed by", "How many windows", "What colours are the roofs", "round", "granite"):
        assert part in joined


def test_captions_are_drawn_once_and_never_a_test_building(tmp_path: Path, world: World) -> None:
    captions = AtlasCaptions(12, seed=1, world=world)
    with pytest.raises(DataError, match="prepare"):
        captions.draw(0, np.random.default_rng(0))
    captions.prepare(tmp_path)
    files = sorted((tmp_path / "captions").glob("*.png"))
    assert len(files) == len(captions) == 12
    item = captions.draw(3, np.random.default_rng(0))
    assert item.kind == "image+text" and captions.looks[3].wall in item.text
    assert Image.open(item.image).size == (96, 96)
    before = files[3].read_bytes()
    files[3].write_bytes(b"")
    captions.prepare(tmp_path)
    assert files[3].read_bytes() == b""  # the manifest vouches for the folder
    (tmp_path / "captions" / "captions.jsonl").unlink()
    captions.prepare(tmp_path)
    assert files[3].read_bytes() == before
    hidden = {e.look.key for e in world.entities if e.split == "test"}
    many = AtlasCaptions(20000, seed=1, world=world)
    assert not hidden & {look.key for look in many.looks}
    assert hidden & {look.key for look in AtlasCaptions(20000, seed=1).looks}


def test_captions_refuse_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pictures"):
        AtlasCaptions(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        AtlasCaptions(1).prepare(tmp_path / "file")
