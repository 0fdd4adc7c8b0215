from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ra_blip.config import ParamRule, RunConfig, StageConfig, load_config
from ra_blip.models.prompt import relevance_task
from ra_blip.models.rablip import RABlip
from ra_blip.training.engine import set_mode
from ra_blip.training.optim import apply_rules
from ra_blip.training.rerank_stage import Rerank, drawn_pairs
from ra_blip.training.run import train
from ra_blip.training.stages import STAGES
from tests.tiny import close, model
from tests.training.samples import examples, rng

ROOT = Path(__file__).resolve().parents[2]
ROOMY = ("generator.prompt_length=300", "generator.answer_length=8")
ALONE = {"qa": 0.0, "askg": 0.0}


def stage(**settings: Any) -> Rerank:
    built = model(overrides=ROOMY)
    apply_rules(built, [ParamRule(r"reader\..*", lr=1e-3), ParamRule(".*")])
    set_mode(built)
    return Rerank(built, StageConfig(name="rerank", **settings))


def test_pairs_are_half_gold_and_half_negatives_whoever_draws_them(tmp_path: Path) -> None:
    samples = examples(tmp_path)
    found = drawn_pairs(samples, 3)
    assert [relevant for _, _, relevant in found] == [True, False] * 3
    for (question, item, relevant), sample in zip(found, [s for s in samples for _ in range(2)], strict=True):
        assert question is sample.question and item in (sample.gold if relevant else sample.negatives)
    assert drawn_pairs(samples[1:2], 3) == found[2:4], "the same on whichever rank"
    drawn = {item.id for seed in range(40) for _, item, relevant in drawn_pairs(samples[:1], seed) if not relevant}
    assert drawn == {item.id for item in samples[0].negatives}
    lonely = dataclasses.replace(samples[0], negatives=())
    assert [relevant for _, _, relevant in drawn_pairs([lonely], 0)] == [True]


def test_loss_is_cross_entropy_of_yes_and_no_behind_the_template(tmp_path: Path) -> None:
    alone = stage(**ALONE)
    batch = alone.collate(examples(tmp_path), rng(), 0)
    terms, report = alone.forward(batch)
    assert set(terms) == {"relevance_loss"} and terms["relevance_loss"].requires_grad
    seed = int(rng().integers(2**62))
    total, count, right = 0.0, 0, 0
    built = alone.model
    for question, item, relevant in drawn_pairs(examples(tmp_path), seed):
        states, prompts, source = built._read(relevance_task(item), [question], [[item]])
        labels = built.processor.targets(["Yes" if relevant else "No"])
        per_token = built.reader.generator.token_losses(states, prompts.mask, source, labels)
        total, count = total + float(per_token.detach().sum()), count + int((labels != -100).sum())
        right += (float(built.yes_no([question], [item])[0]) > 0.5) == relevant
    assert float(terms["relevance_loss"].detach()) == pytest.approx(total / count, abs=1e-4)
    assert report["relevance_accuracy"] == pytest.approx(right / 6)


def test_beside_the_answer_losses_the_same_model_goes_on_answering(tmp_path: Path) -> None:
    blended = stage(relevance=0.5)
    batch = blended.collate(examples(tmp_path), rng(), 0)
    terms, report = blended.forward(batch)
    assert set(terms) == {"qa_loss", "askg_loss", "relevance_loss"}
    assert float(terms["relevance_loss"].detach()) == pytest.approx(0.5 * report["relevance"], abs=1e-6)
    answer = STAGES["answer"](blended.model, StageConfig(name="answer"))
    plain = answer.forward(answer.collate(examples(tmp_path), rng(), 0))[0]
    assert close(plain["qa_loss"].detach(), terms["qa_loss"].detach()), "and draws what the answer stage draws"


def test_steps_on_a_batch_bring_its_loss_down(tmp_path: Path) -> None:
    alone = stage(**ALONE)
    batch = alone.collate(examples(tmp_path), rng(), 0)
    optimizer = torch.optim.AdamW([p for p in alone.model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(8):
        loss = alone.forward(batch)[0]["relevance_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.7 * found[0]


def test_threshold_is_where_the_held_out_scores_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = stage(**ALONE)
    samples = examples(tmp_path)
    golds = {item.id for sample in samples[:2] for item in sample.gold}

    def yes_no(questions: Any, items: Any) -> torch.Tensor:
        return torch.tensor([0.8 if item.id in golds else 0.3 for item in items])

    monkeypatch.setattr(alone.model, "yes_no", yes_no)
    alone.finish(samples[:2], seed=0)
    assert alone.model.threshold == pytest.approx((0.31 + 0.80) / 2), "whole on both sides from 0.31 to 0.80"


def test_without_held_out_samples_the_natural_threshold_is_taken_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = stage(**ALONE)
    alone.finish([], seed=0)
    assert alone.model.threshold == 0.5 and "stage.held_out" in capsys.readouterr().err


def test_a_held_out_sample_with_a_damaged_picture_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = stage(**ALONE), stage(**ALONE)
    samples = examples(tmp_path)
    whole.finish(samples[:2], seed=0)
    Path(str(samples[2].question.image)).write_bytes(b"no picture")
    damaged.finish(samples, seed=0)
    assert damaged.model.threshold == whole.model.threshold
    assert "held-out sample 'pictured' is left out: " in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted((ROOT / "projects" / "ragvl").rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_can_be_read_and_name_their_own_place(recipe: Path) -> None:
    run = load_config(recipe)
    assert run.stage.name in ("answer", "rerank") and run.params[-1].lr is None
    place = recipe.relative_to(ROOT).as_posix()
    assert f"ra-blip train {place}" in recipe.read_text(encoding="utf-8")


def test_a_run_holds_samples_out_and_stores_the_threshold(tmp_path: Path) -> None:
    start = load_config(ROOT / "projects" / "debug.yaml", [f"out={tmp_path / 'start'}", "train.steps=1"])
    start.data.entities = 16
    first = train(start)
    given = [f"init={first}", f"out={tmp_path / 'rerank'}", f"data.root={tmp_path / 'start' / 'world'}"]
    given += ["data.entities=16", "train.steps=2", "train.batch_size=4", "stage.held_out=3", "checkpoint.every=0"]
    run: RunConfig = load_config(ROOT / "projects" / "ragvl" / "cpu" / "rerank.yaml", given)
    run.stage.answer_match = 0.0  # the little model has no match head
    trained = RABlip.from_pretrained(train(run))
    assert trained.threshold is not None and 0 <= trained.threshold <= 1
