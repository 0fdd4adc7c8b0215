from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ra_blip.models.prompt import Prompt
from ra_blip.models.rablip import RABlip
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Item, Question
from tests.tiny import close, model, picture

ASKED = Question("q", "What colour is the roof of Velora tower?")


@pytest.fixture(scope="module")
def interleaved() -> RABlip:
    return model("interleaved")


@pytest.fixture(scope="module")
def release() -> RABlip:
    return model("release")


def features(pictures: int, width: int = 8, patches: int = 16) -> Tensor:
    return torch.randn(pictures, patches, width, generator=torch.Generator().manual_seed(2))


def batch_of(built: RABlip, prompts: list[Prompt]) -> tuple[PromptBatch, Tensor | None]:
    pictures: dict[str, int] = {}
    batch = built.processor.prompts(prompts, pictures)
    seen = features(9, built.vision.width, built.vision.patches)  # a fixed look for each name, in any company
    rows = [int(name) for name in pictures]
    return batch, seen[rows] if rows else None


def test_a_picture_under_one_guide_is_read_once(interleaved: RABlip) -> None:
    prompts = [
        Prompt("<image> [A] <image> a roof", ("0", "1"), ("what?", "roof")),
        Prompt("[A] <image> b | [B] <image> c", ("0", "0"), ("what?", "other")),
    ]
    batch, _ = batch_of(interleaved, prompts)
    assert batch.reads == [(("0",), "what?"), (("1",), "roof"), (("0",), "other")]
    assert batch.uses.tolist() == [0, 1, 0, 2]
    assert batch.slots.tolist() == [[0], [1], [0]]


def test_soft_tokens_stand_at_their_markers(interleaved: RABlip) -> None:
    prompts = [
        Prompt("<image> [A] <image> a roof", ("0", "1"), ("what?", "roof")),
        Prompt("[A] <image> b", ("0",), ("what?",)),
        Prompt("no picture here", (), ()),
    ]
    batch, seen = batch_of(interleaved, prompts)
    assert seen is not None
    soft = interleaved.reader.soft_tokens(seen, batch)
    embeds, source = interleaved.reader.embed(batch, soft)
    here = batch.ids == interleaved.processor.image_id
    assert here.sum(-1).tolist() == [4, 2, 0]  # two queries a picture
    assert torch.equal(embeds[0][here[0]], torch.cat([soft[0], soft[1]]))
    assert torch.equal(embeds[1][here[1]], soft[0])
    assert torch.equal(embeds[~here], interleaved.reader.generator.embed(batch.ids)[~here])
    assert (source[here] == interleaved.reader.generator.pad).all() and torch.equal(source[~here], batch.ids[~here])


def test_a_read_sees_its_picture_and_its_guide(interleaved: RABlip) -> None:
    guides = [(("0",), ("what?",)), (("1",), ("what?",)), (("0",), ("roof",))]
    batch, seen = batch_of(interleaved, [Prompt("[A] <image> b", images, guide) for images, guide in guides])
    assert seen is not None
    soft = interleaved.reader.soft_tokens(seen, batch)
    assert not close(soft[0], soft[1], 1e-3) and not close(soft[0], soft[2], 1e-3)


@pytest.mark.parametrize("layout", ["interleaved", "release"])
def test_a_batch_equals_its_rows(layout: str, request: pytest.FixtureRequest) -> None:
    built: RABlip = request.getfixturevalue(layout)
    many = (("0", "1"), ("what is this?", "the roof")) if layout == "interleaved" else (("0", "1"), ("the roof of it",))
    prompts = [
        Prompt("<image> [A] <image> a roof" if layout == "interleaved" else "<image> a roof", *many),
        Prompt("<image> [A] a view of Velora tower", ("2",), ("which country?",)),
        Prompt("Who designed it?", (), ()),
    ]
    batch, seen = batch_of(built, prompts)
    together, _ = built.reader.encode(seen, batch)
    for row, prompt in enumerate(prompts):
        alone, seen = batch_of(built, [prompt])
        states, _ = built.reader.encode(seen, alone)
        assert int(batch.mask[row].sum()) == states.shape[1]
        assert close(states[0], together[row, : states.shape[1]])


def test_without_embeddings_one_picture_joint_is_one_picture_single(release: RABlip) -> None:
    reader = release.reader
    kept = reader.slot_embedding.clone(), reader.position_embedding.clone()
    batch, seen = batch_of(release, [Prompt("<image> a roof", ("0",), ("what?",))])
    assert seen is not None
    single = reader.project(
        reader.qformer(
            "instruct",
            kv=reader.qformer.cross_kv(reader.ln_vision(seen)),
            text=batch.guide,
            text_mask=batch.guide_mask,
        ).queries
    )
    with torch.no_grad():
        assert not close(reader.soft_tokens(seen, batch), single, 1e-3), "the embeddings are shaken"
        reader.slot_embedding.zero_()
        reader.position_embedding.zero_()
        assert close(reader.soft_tokens(seen, batch), single, 2e-6)
        reader.slot_embedding.copy_(kept[0])
        reader.position_embedding.copy_(kept[1])


def test_an_empty_slot_is_not_read(release: RABlip) -> None:
    prompts = [Prompt("<image> a", ("0", "1"), ("what?",)), Prompt("<image> b", ("2",), ("roof",))]
    batch, seen = batch_of(release, prompts)
    assert seen is not None
    assert batch.slots.tolist() == [[0, 1], [2, -1]]
    before = release.reader.soft_tokens(seen, batch)
    moved = seen.clone()
    moved[0] = moved[0].flip(-1)  # what an empty slot points at when -1 is clamped
    after = release.reader.soft_tokens(moved, batch)
    assert torch.equal(before[1], after[1]) and not close(before[0], after[0], 1e-3)
    joint, valid = release.reader._joint(seen, batch.slots)
    assert valid.sum(-1).tolist() == [2 * seen.shape[1], seen.shape[1]]
    assert joint.shape[1] == 2 * seen.shape[1]


def test_slots_tell_pictures_apart(release: RABlip) -> None:
    prompts = [Prompt("<image> a", images, ("what?",)) for images in (("0", "1"), ("1", "0"))]
    batch, seen = batch_of(release, prompts)
    assert seen is not None
    soft = release.reader.soft_tokens(seen, batch)
    assert not close(soft[0], soft[1], 1e-3)
    for embedding in (release.reader.slot_embedding, release.reader.position_embedding):
        assert embedding.shape[0] == release.config.generator.image_slots


def test_slot_embeddings_start_at_zero() -> None:
    torch.manual_seed(0)
    built = model("release")
    fresh = RABlip(built.config, built.processor)
    assert not fresh.reader.slot_embedding.any() and not fresh.reader.position_embedding.any()


def test_prompts_without_any_picture(interleaved: RABlip, release: RABlip) -> None:
    for built in (interleaved, release):
        batch, seen = batch_of(built, [Prompt("Who designed it?"), Prompt("Which country is this, then?")])
        assert seen is None and batch.reads == [] and batch.uses.numel() == 0
        states, source = built.reader.encode(None, batch)
        assert torch.isfinite(states).all() and torch.equal(source, batch.ids)


def test_moving_a_batch_keeps_every_tensor(interleaved: RABlip, tmp_path: Path) -> None:
    item = Item("a", "a view of Velora tower", image=picture(tmp_path, "red"))
    batch = interleaved.processor.prompts([interleaved.processor.prompt("answer", ASKED, [item])], {})
    moved = batch.to(torch.device("cpu"))
    for field in dataclasses.fields(batch):
        a, b = getattr(batch, field.name), getattr(moved, field.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_what_is_read_alone_and_what_is_shared_agree(release: RABlip) -> None:
    prompts = [Prompt("<image> a", ("0", "1"), ("what?",)), Prompt("<image> b", ("2",), ("roof",))]
    batch, seen = batch_of(release, prompts)
    assert seen is not None
    features, valid = release.reader._joint(seen, batch.slots)
    kv = release.reader.qformer.cross_kv(features)
    out = release.reader.qformer("instruct", kv, valid, batch.guide, batch.guide_mask)
    assert close(release.reader.soft_tokens(seen, batch), release.reader.project(out.queries), 2e-6)


def test_without_a_text_side_guides_change_nothing() -> None:
    built = model("release", overrides=("qformer.reader_text=false",))
    assert not [name for name in built.reader.state_dict() if name.startswith("qformer.") and "text_" in name]
    prompts = [Prompt("<image> a", ("0",), ("what?",)), Prompt("<image> a", ("0",), ("the roof of it",))]
    batch, seen = batch_of(built, prompts)
    assert seen is not None
    soft = built.reader.soft_tokens(seen, batch)
    assert close(soft[0], soft[1], 1e-6)


def test_the_norm_in_front_has_the_configured_eps() -> None:
    for eps in (1e-5, 1e-6):
        built = model(overrides=(f"qformer.ln_vision_eps={eps}",))
        assert built.reader.ln_vision.eps == built.retriever.ln_vision.eps == eps


def test_every_trained_weight_of_the_reader_has_a_gradient(release: RABlip) -> None:
    prompts = [Prompt("<image> a", ("0", "1", "2"), ("what?",)), Prompt("<image> b", ("2",), ("roof",))]
    batch, seen = batch_of(release, prompts)
    assert seen is not None
    reader = release.reader
    reader.zero_grad()
    reader.soft_tokens(seen, batch).square().sum().backward()
    named = {name: value for name, value in reader.named_parameters() if not name.startswith("generator.")}
    assert [name for name, value in named.items() if value.grad is None] == []
    assert len(named) > 40
