"""Which source a recipe's name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ra_blip.config import load_config
from ra_blip.data.sources import SOURCES


@pytest.mark.parametrize(
    ("stage", "purpose"),
    [("retrieve", "retrieve"), ("rerank", "rerank"), ("answer", "answer"), ("rank", "answer")],
)
def test_samples_of_the_generated_world_suit_the_stage(stage: str, purpose: str, tmp_path: Path) -> None:
    run = load_config(None, [f"stage.name={stage}", "data.name=atlas", "data.entities=16"])
    source = SOURCES["atlas"](run.data, run.stage, tmp_path, 0)
    assert source.purpose == purpose  # type: ignore[attr-defined]
