"""DeepSpeed ZeRO against DDP on two ranks. Needs the extra ``deepspeed`` and a C++ compiler; skipped without.

The first run compiles DeepSpeed's communication for the CPU (a minute); set TORCH_EXTENSIONS_DIR to keep it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ra_blip.config import StrategyConfig
from tests.training.test_strategy import furthest, imported, train  # noqa: F401

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="package deepspeed is not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles; there is no C++ compiler"),
    pytest.mark.timeout(1800),
]


@pytest.mark.parametrize("stage", ["answer", "pretrain"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_zero_gives_the_losses_of_ddp_saves_goes_on_and_leaves_the_same_model(
    level: int, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled")))
    settings = {"stage": level, "stage3_param_persistence_threshold": 0}  # even the smallest weights are cut up
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": settings}))
    zero = StrategyConfig("zero", str(tmp_path / "zero.json"), timeout=240)
    ddp = train(tmp_path, StrategyConfig("ddp"), stage, 0, 10)
    wanted = load_file(tmp_path / "model-10.safetensors")
    found = train(tmp_path, zero, stage, 0, 5) + train(tmp_path, zero, stage, 5, 10)
    losses, norms = (torch.tensor(found) - torch.tensor(ddp)).abs().T
    assert losses.max() < 1e-5 and norms.max() < 1e-3
    assert furthest(load_file(tmp_path / "model-10.safetensors"), wanted) < 1e-4
