"""RAVEN's stage: label-smoothed cross-entropy, with or without items, and no parameter that was not there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ra_blip.config import ParamRule, StageConfig
from ra_blip.records import Example, Item, Question
from ra_blip.training.finetune_stage import Finetune
from ra_blip.training.losses import smoothed_loss
from ra_blip.training.optim import apply_rules
from tests.tiny import model, picture
from tests.training.samples import rng


def samples(folder: Path) -> list[Example]:
    pairs = tuple(Item(name, f"a {name} hall", image=picture(folder, name)) for name in ("red-blue", "green"))
    asked = picture(folder, "white")
    return [
        Example(Question("c", "Describe this picture.", asked, ("a white hall", "a view")), pairs),
        Example(Question("v", "Which country is this?", asked, ("Ardia",)), ()),
        Example(Question("t", "Who designed Velora tower?", answers=("Moro",)), (Item("f", "by Moro"),)),
    ]


def test_smoothing_by_hand() -> None:
    probabilities = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]])
    labels = torch.tensor([[0, -100]])
    plain = -math.log(0.7)
    even = -(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3
    assert smoothed_loss(probabilities.log(), labels, 0.0).item() == pytest.approx(plain, abs=1e-6)
    assert smoothed_loss(probabilities.log(), labels, 0.1).item() == pytest.approx(0.9 * plain + 0.1 * even, abs=1e-6)


def test_a_step_needs_no_item_and_reaches_the_reader(tmp_path: Path) -> None:
    built = model()
    apply_rules(built, [ParamRule(r"reader\..*", lr=1e-3), ParamRule(".*")])
    stage = Finetune(built, StageConfig(name="finetune"))
    batch = stage.collate(samples(tmp_path), rng(), 0)
    assert len(batch["images"]) == 3 and len(batch["labels"]) == 3
    terms, report = stage(batch)
    assert list(terms) == ["answer_loss"] and 0 <= report["token_accuracy"] <= 1
    terms["answer_loss"].backward()
    moved = {
        name.split(".")[0] for name, p in built.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moved == {"reader"}
    alone = stage.collate(samples(tmp_path)[2:], rng(), 0)
    assert alone["images"] == [] and math.isfinite(stage(alone)[0]["answer_loss"].item())


def test_without_smoothing_the_loss_is_the_generators_own(tmp_path: Path) -> None:
    built = model().requires_grad_(False)  # then the stage reads the stored picture features, as the model does
    stage = Finetune(built, StageConfig(name="finetune", label_smoothing=0.0))
    batch = stage.collate(samples(tmp_path), rng(), 0)
    states, source = built.reader.prompt_states(built.image_features(batch["images"]), batch["prompts"])
    own = built.reader.generator.token_losses(states, batch["prompts"].mask, source, batch["labels"])
    mean = own.sum() / (batch["labels"] != -100).sum()
    assert stage(batch)[0]["answer_loss"].item() == pytest.approx(mean.item(), abs=1e-5)


def test_no_parameter_is_added(tmp_path: Path) -> None:
    built = model()
    before = {name: value.shape for name, value in built.state_dict().items()}
    count = sum(parameter.numel() for parameter in built.parameters())
    stage = Finetune(built, StageConfig(name="finetune"))
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-3)
    stage(stage.collate(samples(tmp_path), rng(), 0))[0]["answer_loss"].backward()
    optimizer.step()
    assert sum(parameter.numel() for parameter in stage.parameters()) == count
    assert {name: value.shape for name, value in built.state_dict().items()} == before
