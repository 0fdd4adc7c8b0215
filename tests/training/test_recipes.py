"""The recipes of the repository: they parse, their rules fit the model, and the debug recipe trains at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from ra_blip.config import load_config
from ra_blip.data.sources import SOURCES
from ra_blip.training.optim import apply_rules
from ra_blip.training.run import train
from ra_blip.training.stages import STAGES
from tests.tiny import SCRATCH, model

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
RECIPES = sorted(path for path in PROJECTS.rglob("*.yaml") if path.parent.name != "rir")  # these are no trainings


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(PROJECTS)) for path in RECIPES])
def test_a_recipe_parses_and_its_rules_fit(path: Path) -> None:
    run = load_config(path)
    assert run.stage.name in STAGES and run.data.name in SOURCES
    lora: tuple[str, ...] = ()
    if run.model.generator.lora.rank:
        pytest.importorskip("peft", reason="extra peft is not installed")
        lora = ("generator.lora={rank: 2, targets: [q, v]}",)
    built = model(overrides=(*SCRATCH, "vision.concepts=8", *lora))
    table = apply_rules(built, run.params)
    dead = [row.rule.match for row in table[:-1] if not row.names]
    assert dead == [], "a rule that matches nothing is a misspelt one"


def test_there_are_recipes() -> None:
    assert {"debug.yaml", "answer.yaml"} <= {path.name for path in RECIPES}


def test_the_debug_recipe_trains_within_a_minute(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    run = load_config(PROJECTS / "debug.yaml", [f"out={tmp_path / 'run'}", "seed=0"])
    assert run.stage.name == "answer" and run.train.threads == 1
    begun = time.monotonic()
    train(run)
    assert time.monotonic() - begun < 60
    torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, run.train.steps + 1)) and len(lines) >= 12
    assert sum(line["loss"] for line in lines[-4:]) < sum(line["loss"] for line in lines[:4])
    assert list((tmp_path / "run" / "model").glob("*.safetensors"))
