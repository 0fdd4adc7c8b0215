"""Noise-injected training: the formulas, and one test for each defect of the released code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ra_blip.config import ParamRule, StageConfig, load_config
from ra_blip.training import losses
from ra_blip.training.answer_stage import Answer
from ra_blip.training.engine import set_mode
from ra_blip.training.noise import alpha_bar, contrast_weights, diffuse, weighted_loss
from ra_blip.training.optim import apply_rules
from tests.tiny import close, model
from tests.training.samples import examples, rng

ROOT = Path(__file__).resolve().parents[2]
ROOMY = ("generator.prompt_length=300", "generator.answer_length=8")


def answer_stage(**settings: Any) -> Answer:
    built = model(overrides=ROOMY)
    with torch.no_grad():  # logits so far apart that a picture moves them by more than the floor of 1
        built.reader.generator.llm.decoder.final_layer_norm.weight.mul_(200)
    apply_rules(built, [ParamRule(r"reader\..*", lr=1e-3), ParamRule(".*")])
    set_mode(built)
    return Answer(built, StageConfig(name="answer", askg=0.0, **settings))


def qa_loss(stage: Answer, folder: Path, seed: int = 0) -> Tensor:
    return stage.forward(stage.collate(examples(folder), rng(seed), 0))[0]["qa_loss"]


def test_half_of_the_steps_leave_three_quarters_of_the_variance() -> None:
    assert alpha_bar(500) == pytest.approx(0.7448, abs=5e-5)
    assert [round(alpha_bar(step), 3) for step in (300, 700, 999)] == [0.962, 0.351, 0.081]


def test_noise_keeps_the_signal_and_the_variance() -> None:
    clean = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    noised = diffuse(clean, 500, torch.Generator().manual_seed(2))
    assert float((noised * clean).mean() / clean.square().mean()) == pytest.approx(0.863, abs=0.01)
    assert float(noised.std()) == pytest.approx(1.0, abs=0.01)
    left = diffuse(3 * clean, 500, torch.Generator().manual_seed(2), scale=3.0)
    assert close(left, 3 * noised, 1e-4)


def test_contrast_is_read_at_the_target_token_clamped_and_averaged() -> None:
    """Defect 1: the released code subtracts at vocabulary entry 0 and never looks up the label."""
    clean, noised = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    labels = torch.tensor([[3, 1, 4, -100]])
    clean[0, [0, 1, 2], [3, 1, 4]] = torch.tensor([9.0, 2.0, 0.5])  # gains 9 -> 5, 2 -> 2, 0.5 -> 1
    clean[0, :, 0] = 100.0  # what stands at entry 0 does not matter
    weights = contrast_weights(clean, noised, labels)
    # windows of three, at the ends of what is there: (5 + 2) / 2, (5 + 2 + 1) / 3, (2 + 1) / 2
    assert weights[0].tolist() == pytest.approx([3.5, 8 / 3, 1.5, 0.0])


def test_weights_of_one_sample_do_not_reach_another() -> None:
    """Defect 2: the released code smooths over the flattened batch, prompt and padding included."""
    draw = torch.Generator().manual_seed(0)
    clean, noised = (4 * torch.randn(3, 6, 7, generator=draw) for _ in range(2))
    labels = torch.tensor([[1, 2, 3, -100, -100, -100], [4, 5, 6, 1, 2, 3], [6, -100, -100, -100, -100, -100]])
    together = contrast_weights(clean, noised, labels)
    for row, length in enumerate((3, 6, 1)):
        part = (slice(row, row + 1), slice(length))
        assert close(contrast_weights(clean[part], noised[part], labels[part])[0], together[row, :length], 1e-6)
        assert not together[row, length:].any()


def test_loss_is_a_mean_over_the_weights_of_targets_alone() -> None:
    """Defect 3: the released code divides by a count that grows with the prompt."""
    token_losses, weights = torch.tensor([[2.0, 4.0, 0.0]]), torch.tensor([[1.0, 3.0, 0.0]])
    assert float(weighted_loss(token_losses, weights)) == pytest.approx((1 * 2 + 3 * 4) / 4)
    padded = [torch.nn.functional.pad(part, (0, 50)) for part in (token_losses, weights)]
    assert float(weighted_loss(*padded)) == pytest.approx(3.5)
    labels = torch.tensor([[7, 8, -100]])
    even = (labels != -100) * 2.0
    assert float(weighted_loss(token_losses, even)) == float(losses.generation_loss(token_losses, labels))
    assert float(weighted_loss(token_losses, torch.zeros(1, 3))) == 0.0


@pytest.mark.parametrize("recipe", ["nit.yaml", "cpu/nit.yaml"])
def test_the_recipe_switches_the_noise_on(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 4: the published scripts leave it off, and train plainly."""
    given = load_config(ROOT / "projects" / "ragvl" / recipe).stage
    assert given.noise_step == 500 and given.retrieved == 0.5 and given.askg == 0.0
    weights: list[Tensor] = []
    real = contrast_weights

    def seen(*args: Tensor) -> Tensor:
        weights.append(real(*args))
        return weights[-1]

    monkeypatch.setattr("ra_blip.training.answer_stage.contrast_weights", seen)
    qa_loss(answer_stage(noise_step=given.noise_step, noise_at=given.noise_at, retrieved=1.0), tmp_path)
    assert len(weights) == 1 and float(weights[0].max()) > 1.0, "the picture matters to some token"


@pytest.mark.parametrize("place", ["pixels", "features", "soft"])
def test_noise_follows_the_seed(place: str, tmp_path: Path) -> None:
    """Defect 5: the released code draws it from an unseeded state."""
    stage = answer_stage(noise_step=700, noise_at=place, retrieved=1.0)
    first, again = (stage.collate(examples(tmp_path), rng(), 0) for _ in range(2))
    losses_of = [float(stage.forward(batch)[0]["qa_loss"].detach()) for batch in (first, again)]
    assert losses_of[0] == losses_of[1]
    soft, same, other = (
        stage._noised(batch, first["prompts"]) for batch in (first, again, {**first, "noise": first["noise"] + 1})
    )
    clean = stage.model.reader.soft_tokens(stage.features(first["images"]), first["prompts"])
    assert torch.equal(soft, same) and not close(soft, other, 1e-3) and not close(soft, clean, 1e-3)
    assert not soft.requires_grad


def test_noise_is_off_by_default_and_draws_nothing(tmp_path: Path) -> None:
    assert "noise" not in answer_stage().collate(examples(tmp_path), rng(), 0)
    stages = [answer_stage(retrieved=1.0), answer_stage(noise_step=500, retrieved=1.0)]
    batches = [stage.collate(examples(tmp_path), rng(), 0) for stage in stages]
    assert torch.equal(batches[0]["prompts"].ids, batches[1]["prompts"].ids), "its seed is drawn behind all others"


def test_text_alone_is_trained_as_without_noise(tmp_path: Path) -> None:
    samples = examples(tmp_path)[:1]
    found = []
    for step in (0, 500):
        stage = answer_stage(noise_step=step, retrieved=1.0)
        found.append(float(stage.forward(stage.collate(samples, rng(), 0))[0]["qa_loss"].detach()))
    assert found[0] == found[1]


def test_weighted_loss_of_the_stage_is_the_formula(tmp_path: Path) -> None:
    stage = answer_stage(noise_step=500, noise_at="soft", retrieved=1.0)
    batch = stage.collate(examples(tmp_path), rng(), 0)
    found = stage.forward(batch)[0]["qa_loss"]
    reader, prompts = stage.model.reader, batch["prompts"]
    soft = reader.soft_tokens(stage.features(batch["images"]), prompts)
    noised = diffuse(soft, 500, torch.Generator().manual_seed(batch["noise"]), soft.std())
    rows = slice(0, len(batch["labels"]) // 2)
    labels, mask = batch["labels"][rows], prompts.mask[rows]
    logits = []
    for one in (soft, noised):
        embeds, source = reader.embed(prompts, one)
        logits.append(
            reader.generator.answer_logits(reader.generator.encode(embeds[rows], mask), mask, source[rows], labels)
        )
    weights = contrast_weights(*logits, labels)
    shares = logits[0].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -(weights * shares).sum() / weights.sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert np.isfinite(float(found.detach())) and found.requires_grad
