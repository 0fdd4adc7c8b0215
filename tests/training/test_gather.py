"""Two ranks compute what one would: losses, gradients and draws of every stage, with batches that do not divide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ra_blip.config import ParamRule, TrainConfig
from ra_blip.records import Example, Item, Question
from ra_blip.training import gather
from ra_blip.training.optim import apply_rules
from ra_blip.training.strategy import DataParallel, Strategy
from tests.tiny import picture
from tests.training.line import start
from tests.training.samples import captions, examples, rng
from tests.training.test_stages import ROOMY, TRAINED, staged

RULES = {**TRAINED, "pretrain": (r"retriever\..*",)}  # the tower's batch norm sees what a rank has
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # name -> stage, samples, settings
    "pretrain": ("pretrain", 4, {}),
    "uneven": ("pretrain", 3, {"itm_samples": 2}),
    "retrieve": ("retrieve", 3, {"conditioned": 0.0, "symmetric": True}),
    "conditioned": ("retrieve", 3, {"conditioned": 1.0, "conditioned_candidates": 2}),
    "shared gold": ("retrieve", 4, {"conditioned": 0.0}),
    "answer": ("answer", 3, {}),
    "text on one rank": ("answer", 2, {"answer_word": 0.3}),
    "rank": ("rank", 3, {}),
}


def samples_of(case: str, folder: Path) -> list[Any]:
    name, count, _ = CASES[case]
    if name == "pretrain":
        return captions(folder)[:count]
    given = examples(folder)
    if case == "text on one rank":  # rank 0 has a text fact, rank 1 a picture that says its answer
        seen = Item("p", image=picture(folder, "red"))
        given[1] = Example(Question("seen", "What colour?", answers=("red",), gold=("p",)), (seen,), ())
    if case == "shared gold":  # the fourth asks for what the first and the second bring, on other ranks
        given.append(Example(Question("both", "Who?", gold=("f0", "v0")), given[0].gold, given[1].gold))
    return given[:count]


def computed(case: str, folder: Path, strategy: Strategy) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of one step, as the loop computes them."""
    name, count, settings = CASES[case]
    stage = staged(name, ROOMY, **settings)
    table = apply_rules(stage.model, [*(ParamRule(match, lr=1e-3) for match in RULES[name]), ParamRule(".*")])
    strategy.prepare(stage, table, TrainConfig())
    samples = samples_of(case, folder)[strategy.rank : count : strategy.world]
    batch = stage.collate(gather.join(samples) if stage.batch_coupled else samples, rng(), 5)
    torch.manual_seed(3)
    terms, report = strategy.forward(stage, batch)
    strategy.backward(torch.stack([value.float() for value in terms.values()]).sum())
    strategy.average_gradients(strategy.trained)
    gradients = {name: p.grad for name, p in stage.model.named_parameters() if p.grad is not None}
    return gather.agreed({**{key: float(value.detach()) for key, value in terms.items()}, **report}), gradients


def work(folder: str, rank: int, world: int, port: int) -> None:
    """One of the ranks; rank 0 leaves what it has."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    strategy = DataParallel(60.0)
    found = {case: computed(case, Path(folder), strategy) for case in CASES}
    kept = [torch.full((2, 3), float(10 * rank + row)) for row in range(2 - rank)]  # rows 0, 10, 1
    joined = gather.join_rows([3, 3], torch.stack([row[0] for row in kept]), torch.stack([row[1] for row in kept]))
    found["rows"] = (gather.totals({"a": rank, "b": 2}, strategy.device), {"first": joined[0], "second": joined[1]})
    found["flags"] = (dict(enumerate(gather.any_rank(strategy.device, rank == 1, False, torch.tensor(rank == 0)))), {})
    logged = gather.agreed(
        {"x_loss": 4.0, "x": None if rank else 1.0, **({"only_loss": 3.0, "only": 3.0} if rank else {})}
    )
    found["logged"] = (logged, {})
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    strategy.close()
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    for case in CASES:
        samples_of(case, folder)  # the pictures, before anyone reads them
    made = start(work, 2, str(folder))
    for process in made:
        process.join(100)
    assert [process.exitcode for process in made] == [0, 0]
    return folder, torch.load(folder / "found.pt")


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_does(case: str, two_ranks: tuple[Path, dict[str, Any]]) -> None:
    folder, found = two_ranks
    numbers, gradients = computed(case, folder, Strategy())
    theirs, their_gradients = found[case]
    losses = {key: value for key, value in numbers.items() if key.endswith("_loss")}
    assert {key: theirs[key] for key in losses} == pytest.approx(losses, abs=1e-6)
    assert theirs.keys() == numbers.keys()
    largest = max(float(value.abs().max()) for value in gradients.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        same = torch.allclose(gradient, their_gradients[name], rtol=2e-6, atol=1e-6 * max(largest, 1))
        assert same, f"{name}: {float((gradient - their_gradients[name]).abs().max())}"
    assert all(float(their_gradients[name].abs().max()) == 0 for name in their_gradients.keys() - gradients.keys())


def test_rows_come_back_in_the_order_of_the_joined_batch(two_ranks: tuple[Path, dict[str, Any]]) -> None:
    _, found = two_ranks
    totals, rows = found["rows"]
    assert totals == {"a": 1, "b": 4}
    assert rows["first"].tolist() == rows["second"].tolist() == [[0.0] * 3, [10.0] * 3, [1.0] * 3]
    assert found["flags"][0] == {0: True, 1: False, 2: True}
    assert found["logged"][0] == {"x_loss": 4.0, "x": None, "only_loss": 1.5, "only": 3.0}


def test_one_process_is_the_identity() -> None:
    cpu = torch.device("cpu")
    row = torch.ones(2, 3, requires_grad=True)
    assert gather.place() == (0, 1) and gather.join([1, 2]) == [1, 2]
    assert gather.join_rows([2], row)[0] is row and gather.common_generator(cpu) is None
    assert gather.totals({"a": 3}, cpu) == {"a": 3} and gather.agreed({"loss": 1.0, "a": None}) == {
        "loss": 1.0,
        "a": None,
    }
    assert gather.any_rank(cpu, True, torch.tensor(False)) == [True, False]
