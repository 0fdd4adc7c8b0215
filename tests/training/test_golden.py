"""Twenty steps of every stage on the generated world give the losses of the committed files.

They were made with torch 2.13 on a CPU with AVX-512, one thread: there they are equal to the last bit, elsewhere to
1e-4. After a change that is meant to alter them: ``python -m tests.training.test_golden`` writes them anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ra_blip.config import RunConfig, load_config
from ra_blip.data.sources import SOURCES
from ra_blip.training.engine import fit
from ra_blip.training.optim import apply_rules
from ra_blip.training.run import build_model
from ra_blip.training.stages import STAGES
from ra_blip.training.strategy import Strategy

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
MADE_WITH = ("2.13", "AVX512")
TRAINED = {
    "pretrain": r"retriever\..*",
    "retrieve": r"retriever\.(?!itm_head|qformer\.lm_head).*",
    "rank": r"ranker\..*",
    "answer": r"reader\..*",
}
DATA = {"pretrain": ("data.name=atlas_captions", "data.pictures=24")}


class Listening(Strategy):
    """Keeps every loss."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Note it first."""
        self.losses.append(loss.item())
        super().backward(loss, last)


def recipe(name: str, out: Path, world: Path) -> RunConfig:
    """The debug recipe's model under another stage, with dropout, so that its draws count too."""
    given = [f"out={out}", f"data.root={world}", f"stage.name={name}", "data.entities=16", "data.rename=false"]
    rules = f"[{{match: '{TRAINED[name]}', lr: 1e-3, weight_decay: 0.01}}, {{match: '.*'}}]"
    sizes = ["train.steps=20", "train.batch_size=4", "model.qformer.dropout=0.1", f"params={rules}"]
    return load_config(ROOT / "projects" / "debug.yaml", [*given, *sizes, *DATA.get(name, ())])


def losses_of(name: str, out: Path, world: Path) -> list[float]:
    """The losses of twenty steps."""
    run = recipe(name, out, world)
    out.mkdir()
    source = SOURCES[run.data.name](run.data, run.stage, out, run.seed)
    model: Any = build_model(run, source)
    strategy = Listening()
    table = apply_rules(model, run.params)
    fit(STAGES[name](model, run.stage), source, table, run, out, strategy)
    return strategy.losses


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_twenty_steps_give_the_committed_losses(name: str, world: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = losses_of(name, tmp_path / "run", world / ("captions" if name in DATA else "atlas"))
    finally:
        torch.set_num_threads(threads)
    wanted = [float.fromhex(line.split()[1]) for line in (GOLDEN / f"{name}.txt").read_text().splitlines()]
    assert found == pytest.approx(wanted, abs=1e-4)
    if torch.__version__.startswith(MADE_WITH[0]) and MADE_WITH[1] in torch.backends.cpu.get_cpu_capability():
        assert found == wanted


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for stage in sorted(TRAINED):
        with tempfile.TemporaryDirectory() as place:
            seen = losses_of(stage, Path(place) / "run", Path(place) / "world")
        lines = [f"{step} {value.hex()} {value:.6f}\n" for step, value in enumerate(seen, 1)]
        (GOLDEN / f"{stage}.txt").write_text("".join(lines))
