from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ra_blip.models.rablip import Generation, RABlip, guided_text
from ra_blip.records import Item, Question
from tests.tiny import SCRATCH, close, model, picture


@pytest.fixture(scope="module")
def built() -> RABlip:
    return model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def items(folder: Path) -> list[Item]:
    """All kinds, in an order that groups none of them."""
    red, blue = picture(folder, "red-green"), picture(folder, "blue-white")
    return [
        Item("view", "a view of Velora tower", image=red),
        Item("fact", "Velora tower was designed by Moro in 1921 and stands in Ardia."),
        Item("bare", image=blue),
        Item("short", "red"),
        Item("other", "a view of Kimuna hall", title="Kimuna", image=blue),
        Item("bare2", image=red),
    ]


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Question]:
    return [
        Question("a", "Who designed Velora tower?"),
        Question("b", "Which country is this?", image=picture(folder, "brown-red")),
        Question("c", "What colour is the roof of Kimuna hall, red or blue?"),
    ]


# ---------------------------------------------------------------- encoding


def test_a_mixed_batch_keeps_its_order_and_equals_its_rows(built: RABlip, items: list[Item]) -> None:
    together = built.encode_items(items)
    assert together.shape == (6, built.dimension) and together.dtype == torch.float32
    assert close(together.norm(dim=-1), torch.ones(6), 1e-6)
    for row, item in enumerate(items):
        assert close(built.encode_items([item])[0], together[row])
    assert (together @ together.T).fill_diagonal_(0).max() < 0.9999, "no two are alike"
    assert close(built.encode_items(items[::-1]), together.flip(0))


def test_questions_keep_their_order_and_equal_their_rows(built: RABlip, questions: list[Question]) -> None:
    together = built.encode_question(questions)
    for row, question in enumerate(questions):
        assert close(built.encode_question([question])[0], together[row])
    words_alone = built.encode_question([Question("x", questions[1].text)])
    assert not close(words_alone[0], together[1], 1e-3), "the picture is read"


def test_a_question_guides_the_reading_of_pictures_only(
    built: RABlip, items: list[Item], questions: list[Question]
) -> None:
    plain = built.encode_items(items)
    guided = built.encode_items(items, [questions[0]] * len(items))
    moved = (plain - guided).abs().amax(-1) > 1e-3
    assert moved.tolist() == [item.image is not None for item in items]
    assert guided_text(questions[0], items[1]) == items[1].full_text
    assert guided_text(questions[0], items[0]) == "Who designed Velora tower? a view of Velora tower"
    assert guided_text(questions[0], items[2]) == "Who designed Velora tower?"


def test_a_picture_is_computed_once(items: list[Item], questions: list[Question]) -> None:
    fresh, seen = model(), list[str]()
    compute = fresh._compute_features

    def counting(images: Sequence[str]) -> Tensor:
        seen.extend(images)
        return compute(images)

    fresh._compute_features = counting  # type: ignore[method-assign]
    fresh.encode_items(items)
    fresh.encode_question(questions)
    fresh.judge(questions, items[:3])
    fresh.generate(questions, [items] * 3)
    assert len(seen) == len(set(seen)) == 3


def test_features_do_not_depend_on_company(folder: Path) -> None:
    images = [picture(folder, name) for name in ("red", "blue", "green", "white", "black")]
    wide = "{model_type: resnet, embedding_size: 32, hidden_sizes: [64, 128], depths: [1, 1], layer_type: basic}"
    overrides = ("vision.image_size=64", f"vision.config={wide}")  # so small a tower as elsewhere shows no difference
    together = model(overrides=overrides).image_features(images)
    for row, image in enumerate(images):
        assert torch.equal(model(overrides=overrides).image_features([image])[0], together[row])


def test_features_are_the_towers_in_evaluation_mode(folder: Path) -> None:
    fresh = model()
    images = [picture(folder, name) for name in ("red", "blue")]
    expected = fresh.vision(fresh.processor.pixels(images)).bfloat16().float()
    fresh.train()
    assert torch.equal(fresh.image_features(images), expected)
    assert fresh.vision.training, "the mode is given back"


def test_kept_features_belong_to_tower_and_preprocessing(folder: Path, tmp_path: Path) -> None:
    image = picture(folder, "red-blue")

    def features(overrides: tuple[str, ...] = (), seed: int = 0) -> Tensor:
        fresh = model(overrides=overrides, seed=seed)
        return RABlip.image_features(_with_folder(fresh, tmp_path), [image])

    first = features()
    assert torch.equal(features(), first)
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    assert not torch.equal(features(seed=1), first)
    assert not torch.equal(features(("vision.mean=[0.1, 0.2, 0.3]",)), first)
    assert features(("vision.image_size=24",)).shape != first.shape
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def _with_folder(built: RABlip, folder: Path) -> RABlip:
    built._feature_folder = folder
    return built


# ---------------------------------------------------------------- fingerprint


def test_a_fingerprint_names_what_made_a_vector(built: RABlip, items: list[Item]) -> None:
    first = model()
    before = first.fingerprint
    first.encode_items(items)
    assert first.fingerprint == before == model().fingerprint
    assert before["dimension"] == first.dimension == 12

    def differing(other: RABlip) -> list[str]:
        return sorted(key for key in before if other.fingerprint[key] != before[key])

    for name in (
        "retriever.head.bias",
        "vision.model.embedder.embedder.convolution.weight",
        "retriever.log_temperature",
    ):
        other = model()
        with torch.no_grad():
            other.get_parameter(name).add_(1)
        assert differing(other) == ["weights"], name
    for override in ("vision.mean=[0.1, 0.2, 0.3]", "vision.image_size=24", "retriever.text_length=9"):
        assert differing(model(overrides=(override,))) == ["preprocessing"], override
    other = model()
    with torch.no_grad():
        other.ranker.dense.weight += 1
        other.reader.project.weight += 1
    assert differing(other) == [], "what does not make vectors does not count"


# ---------------------------------------------------------------- judging and answering


@pytest.mark.parametrize("layout", ["interleaved", "release"])
def test_judging(layout: str, items: list[Item], questions: list[Question]) -> None:
    built = model(layout)
    asked = [questions[i % 3] for i in range(6)]
    found = built.judge(asked, items)
    assert found.shape == (6,) and (found > 0).all() and (found < 1).all() and found.std() > 1e-3
    assert close(found, built.judge(asked, items, batch_size=2)), "short and long ones are sorted and put back"
    for row in range(6):
        assert close(built.judge(asked[row : row + 1], items[row : row + 1])[0], found[row])
    assert built.judge([], []).shape == (0,)


@pytest.mark.parametrize("layout", ["interleaved", "release"])
@pytest.mark.parametrize("overrides", [(), SCRATCH])
def test_selecting(layout: str, overrides: tuple[str, ...], items: list[Item], questions: list[Question]) -> None:
    built = model(layout, overrides)
    knowledge = [items[:3], [], items[:1]]
    found = built.select(questions, knowledge)
    assert [len(row) for row in found] == [3, 0, 1]
    assert sum(found[0]) == pytest.approx(1) and found[2] == pytest.approx([1.0]) and max(found[0]) < 1
    permuted = built.select(questions, [items[2::-1], [], items[:1]])
    assert sum(permuted[0]) == pytest.approx(1)
    alone = built.select(questions[:1], knowledge[:1])
    assert alone[0] == pytest.approx(found[0], abs=1e-5)
    assert built.select(questions, [[], [], []]) == [[], [], []]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("layout", ["interleaved", "release"])
@pytest.mark.parametrize("overrides", [(), SCRATCH])
def test_answering(
    layout: str, overrides: tuple[str, ...], beams: int, items: list[Item], questions: list[Question]
) -> None:
    built = model(layout, (*overrides, f"generator.beams={beams}"))
    knowledge = [items, [], items[1:2]]
    found = built.generate(questions, knowledge)
    assert [type(row) for row in found] == [Generation] * 3
    for row in range(3):
        prompt = built.processor.prompt("answer", questions[row], knowledge[row]).text
        assert found[row].prompt == prompt and questions[row].text in prompt
        if beams == 1:
            alone = built.generate(questions[row : row + 1], knowledge[row : row + 1])[0]
            assert alone.answer == found[row].answer
    states, batch, source = built._read("answer", questions, knowledge)
    said = built.reader.generator.generate(states, batch.mask, source)
    assert said.shape[1] <= 1 + built.config.generator.answer_length, "the start token comes before the answer"


def test_knowledge_changes_what_is_said(items: list[Item], questions: list[Question]) -> None:
    built = model(overrides=SCRATCH)
    states = [built._read("answer", questions[:1], [known])[0] for known in ([], items[:1], items[1:2])]
    assert len({tuple(row.shape) for row in states}) == 3
    pictures = [built._read("answer", questions[:1], [[Item("x", image=items[row].image)]])[0] for row in (0, 2)]
    assert not close(*pictures, 1e-4)


def test_more_items_than_labels_are_not_shown(built: RABlip, questions: list[Question]) -> None:
    many = [Item(str(i), f"word{i}") for i in range(30)]
    assert built.max_items == 26
    assert sum(len(row) for row in built.select(questions[:1], [many[:26]])) == 26


# ---------------------------------------------------------------- ablations


@pytest.mark.parametrize("layout", ["interleaved", "release"])
def test_without_instruction_pictures_are_read_under_an_empty_guide(
    layout: str, items: list[Item], questions: list[Question]
) -> None:
    whole = model(layout)
    blind = whole.ablated(instruction=False)
    knowledge = [[items[0], items[1]], [items[4]], [items[0], items[1]]]
    batch, features = blind._batch("answer", questions, knowledge)
    assert features is not None and batch.reads and all(guide == "" for _, guide in batch.reads)
    made = [whole.processor.prompt("answer", q, one) for q, one in zip(questions, knowledge, strict=True)]
    bare = whole.processor.prompts([dataclasses.replace(p, guides=("",) * len(p.guides)) for p in made], {})
    expected = whole.reader.soft_tokens(features, bare)
    assert torch.equal(whole.reader.soft_tokens(features, batch), expected)
    guided, seen = whole._batch("answer", questions, knowledge)
    assert torch.equal(guided.ids, batch.ids), "the prompt's own words stay"
    assert seen is not None and torch.equal(seen, features)
    tokens = whole.reader.soft_tokens(features, guided)[guided.uses]
    assert all(not close(a, b, 1e-3) for a, b in zip(tokens, expected[batch.uses], strict=True))
    # the first and the last question differ, their pictures' soft tokens do not
    assert batch.uses[0] == batch.uses[-1] and guided.uses[0] != guided.uses[-1]
    assert not close(blind.judge(questions, items[:3]), whole.judge(questions, items[:3]), 1e-6)
    assert blind.fingerprint == whole.fingerprint and close(blind.encode_items(items), whole.encode_items(items))


def test_without_fusion_picture_and_words_are_embedded_apart(
    built: RABlip, items: list[Item], questions: list[Question]
) -> None:
    apart = built.ablated(fusion=False)
    words = built.encode_items([Item("t", items[0].text)])[0]
    seen = built.encode_items([Item("p", image=items[0].image)])[0]
    expected = (words + seen) / (words + seen).norm()
    found, fused = apart.encode_items(items), built.encode_items(items)
    assert close(found[0], expected) and not close(found[0], fused[0], 1e-3)
    alone = [row for row, item in enumerate(items) if item.kind != "image+text"]
    assert torch.equal(found[alone], fused[alone])
    asked = apart.encode_question(questions)
    words = built.encode_question([Question("t", questions[1].text)])[0]
    seen = built.encode_items([Item("p", image=questions[1].image)])[0]
    assert close(asked[1], (words + seen) / (words + seen).norm())
    assert apart.reader is built.reader and apart.retriever is built.retriever, "no weight is copied"
