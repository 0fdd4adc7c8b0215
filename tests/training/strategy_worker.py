"""One rank of a short training under a strategy.

Writes the losses of all steps, the whole state after the last, and what the whole model then says, by rank 0.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ra_blip.config import ParamRule, StageConfig, StrategyConfig, TrainConfig
from ra_blip.training.optim import apply_rules
from ra_blip.training.stages import STAGES
from ra_blip.training.strategy import choose
from tests import tiny
from tests.training.samples import captions, examples

BARE_RANK = -1  # whose samples have no pictures
RULES = {
    "answer": [
        ParamRule(r"vision\..*|retriever\..*|ranker\..*|reader\.generator\.llm\..*"),
        ParamRule(".*", 1e-2, 0.1),
    ],
    "pretrain": [ParamRule(r"retriever\..*", 1e-3, 0.1), ParamRule(".*")],
}


def main(out: Path, config: StrategyConfig, name: str, begin: int, end: int, train: TrainConfig) -> None:
    model = tiny.model()
    table = apply_rules(model, RULES[name])
    stage = STAGES[name](model, StageConfig(name=name, conditioned=0.0))  # type: ignore[arg-type]
    strategy = choose(config)
    optimizer = strategy.prepare(stage, table, train)
    if begin:
        strategy.restore(model, optimizer, *(load_file(out / f"{kind}-{begin}.safetensors") for kind in ("w", "m")))
    samples = {"answer": examples, "pretrain": captions}[name](out / "pictures" / str(strategy.rank))
    if strategy.rank == BARE_RANK:
        samples = [samples[0]] * 3
        samples = [dataclasses.replace(one, negatives=()) for one in samples]  # type: ignore[type-var]
    losses = []
    for step in range(begin, end):
        torch.manual_seed(step)
        mine = [samples[1 + (step + strategy.rank) % 2], samples[(step + 2 * strategy.rank) % 3]]
        batch = stage.collate(mine, np.random.default_rng([step, 1]), step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - step / 20)
        strategy.zero_grad(optimizer)
        terms, _ = strategy.forward(stage, batch)
        loss = torch.stack([value.float() for value in terms.values()]).sum()
        strategy.backward(loss)
        strategy.average_gradients(strategy.trained)
        norm = strategy.clip_gradients(strategy.trained, train.clip)
        assert torch.isfinite(loss + norm)
        strategy.step(optimizer)
        losses.append([float(loss.detach()), float(norm)])
    weights, moments = strategy.state(model, optimizer)
    with strategy.whole(model):
        if strategy.rank == 0:
            stated = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
            save_file(stated, out / f"model-{end}.safetensors")
            save_file(weights, out / f"w-{end}.safetensors")
            save_file(moments, out / f"m-{end}.safetensors")
            (out / f"losses-{begin}-{end}.json").write_text(json.dumps(losses))
    strategy.close()
