"""Whole runs of ``projects/debug.yaml``, in this process and in two."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ra_blip.config import RunConfig, load_config
from ra_blip.errors import ConfigError, OutputError
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question, write_jsonl
from ra_blip.training import checkpoint
from ra_blip.training.run import check_same, held_out, locked, train
from ra_blip.training.strategy import share
from tests.tiny import close
from tests.training.line import TIMING

ROOT = Path(__file__).resolve().parents[2]
DEBUG = ROOT / "projects" / "debug.yaml"


def recipe(out: Path, world: Path, *overrides: str) -> RunConfig:
    return load_config(DEBUG, [f"out={out}", f"data.root={world}", "train.steps=6", "checkpoint.every=1", *overrides])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """Six steps without a break, all checkpoints kept; not to be written to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert train(recipe(out, world, "checkpoint.keep=9")) == out / "model"
    return out


def exported(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def test_what_a_run_leaves(straight: Path) -> None:
    assert {path.name for path in straight.iterdir()} >= {
        "config.yaml",
        "params.txt",
        "log.jsonl",
        "checkpoints",
        "model",
    }
    assert [line["step"] for line in log_of(straight)] == [1, 2, 3, 4, 5, 6]
    assert all(
        line["loss"] == pytest.approx(line["qa_loss"] + line["askg_loss"], rel=1e-4) for line in log_of(straight)
    )
    assert load_config(straight / "config.yaml").train.steps == 6
    assert "frozen" in (straight / "params.txt").read_text()
    assert RABlip.from_pretrained(straight / "model").generate([Question("q", "Who?")], [[Item("a", "Moro")]])


def test_only_what_the_rules_train_moves(straight: Path, world: Path, tmp_path: Path) -> None:
    train(recipe(tmp_path, world, "params[1].lr=1e-12"))
    still, moved = exported(tmp_path), exported(straight)
    parts = {name.partition(".")[0] for name, value in moved.items() if not close(value, still[name], 1e-6)}
    assert parts == {"reader"}


def test_a_killed_run_goes_on_bit_for_bit(straight: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "model")
    for path in checkpoint.complete(out / "checkpoints")[4:]:
        shutil.rmtree(path)
    torn = out / "checkpoints" / "step-0000004" / "weights.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (out / "checkpoints" / ".step-0000005.abc").mkdir()
    train(recipe(out, world, "checkpoint.keep=9"))
    wanted, found = exported(straight), exported(out)
    assert wanted.keys() == found.keys()
    assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []
    assert log_of(out) == log_of(straight), "each step once, the same numbers"
    for name in ("text_tokenizer", "llm_tokenizer"):
        first, second = (json.loads((o / "model" / name / "tokenizer.json").read_text()) for o in (straight, out))
        assert first["model"] == second["model"]


def test_a_finished_run_returns_at_once(straight: Path, world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (straight / "model").rglob("*")}
    assert train(recipe(straight, world, "checkpoint.keep=9")) == straight / "model"
    assert before == {path: path.stat().st_mtime_ns for path in (straight / "model").rglob("*")}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.steps=7", "train.steps 6 -> 7"),
        ("params[1].lr=2e-3", "params"),
        ("seed=1", "seed 0 -> 1"),
        ("model.qformer.queries=3", "model.qformer.queries 2 -> 3"),
    ],
)
def test_other_settings_need_another_folder(straight: Path, world: Path, override: str, named: str) -> None:
    before = (straight / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="holds a run of other settings") as error:
        train(recipe(straight, world, override))
    assert named in str(error.value)
    assert (straight / "config.yaml").read_text() == before


def test_a_run_that_could_not_begin_binds_nobody(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such category"):
        train(recipe(tmp_path, world, "data.categories=[no such category]"))
    assert train(recipe(tmp_path, world, "train.steps=1")) == tmp_path / "model"


def test_what_may_change_between_sessions(straight: Path, world: Path) -> None:
    free = ["checkpoint.every=2", "train.log_every=5", "data.features=kept", "strategy.timeout=9", "train.max_skips=1"]
    check_same(recipe(straight, world, *free, "log.tensorboard=true", "train.workers=2", "data.damaged=0"), straight)
    with pytest.raises(ConfigError, match=r"train\.clip"):
        check_same(recipe(straight, world, *free, "train.clip=2"), straight)


def test_init_takes_the_weights_and_sizes_of_a_folder(straight: Path, world: Path, tmp_path: Path) -> None:
    init = f"init={straight / 'model'}"
    train(recipe(tmp_path, world, init, "train.steps=1", "params[1].lr=1e-12", "model.qformer.width=999"))
    first, second = exported(straight), exported(tmp_path)
    assert first.keys() == second.keys() and all(close(value, second[name], 1e-6) for name, value in first.items())


def test_the_readers_qformer_from_the_retrievers(world: Path, tmp_path: Path) -> None:
    train(recipe(tmp_path, world, "stage.qformer_from_retriever=true", "train.steps=1", "params[1].lr=1e-12"))
    found = exported(tmp_path)
    pairs = [(name, name.replace("reader.", "retriever.", 1)) for name in found if name.startswith("reader.qformer.")]
    pairs += [(f"reader.ln_vision.{part}", f"retriever.ln_vision.{part}") for part in ("weight", "bias")]
    assert len(pairs) > 20 and all(close(found[reader], found[retriever], 1e-6) for reader, retriever in pairs)


# ---------------------------------------------------------------- held-out samples


def test_what_a_run_is_evaluated_on_must_be_held_out(world: Path, tmp_path: Path) -> None:
    assert held_out(recipe(tmp_path, world), tmp_path) is None
    with pytest.raises(ConfigError, match=r"evaluation.data: say where the held-out samples are"):
        held_out(recipe(tmp_path, world, "evaluation.every=2"), tmp_path)
    with pytest.raises(ConfigError, match=r"evaluation.data: Key 'splt'"):
        held_out(recipe(tmp_path, world, "evaluation.every=2", "evaluation.data={splt: val}"), tmp_path)
    items, questions = tmp_path / "items.jsonl", tmp_path / "val.jsonl"
    write_jsonl(items, [Item("a", "Velora Tower was designed by Moro."), Item("b", "Kimuna Hall stands in Belor.")])
    write_jsonl(questions, [Question("q", "Who designed Velora Tower?", answers=("Moro",), gold=("a",))])
    other = f"{{name: records, items: {items}, questions: {questions}}}"
    found = held_out(recipe(tmp_path, world, "evaluation.every=2", f"evaluation.data={other}"), tmp_path)
    assert found is not None and len(found) == 1


# ---------------------------------------------------------------- one run a folder


def hold(out: str, held: Any, done: Any) -> None:
    with locked(Path(out)):
        held.set()
        done.wait(30)


def test_a_second_run_in_the_folder_is_refused(straight: Path, world: Path) -> None:
    held = rf"another run is writing here \(process {os.getpid()} on .* since 20"
    with locked(straight), pytest.raises(OutputError, match=held):
        train(recipe(straight, world, "checkpoint.keep=9"))
    with locked(straight):
        pass  # free again


def test_the_lock_holds_between_processes_and_falls_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), held, done))
    holder.start()
    assert held.wait(30)
    with pytest.raises(OutputError, match="another run"), locked(tmp_path):
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path):
        pass


def test_an_out_that_cannot_be_written(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="file"):
            train(recipe(out, world))


# ---------------------------------------------------------------- two processes


def test_two_ranks_train_as_one(world: Path, tmp_path: Path) -> None:
    train(recipe(tmp_path / "one", world, "train.steps=4"))
    given = [f"out={tmp_path / 'two'}", f"data.root={world}", "train.steps=4", "checkpoint.every=1"]
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ra_blip",
        "train",
        str(DEBUG),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launch, *given], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
    far = {name: float((value - two[name]).abs().max()) for name, value in one.items() if not close(value, two[name])}
    assert far == {}
    assert [line["step"] for line in log_of(tmp_path / "two")] == [1, 2, 3, 4]


def test_ranks_weigh_their_means_by_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(7, torch.device("cpu")) == 1.0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for mine, others in ((6, 2), (2, 6), (0, 0)):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total, others=others: total.add_(others))
        shares.append(share(mine, torch.device("cpu")))
    # Means of 6 and of 2 things, averaged with these weights, are the mean of all 8.
    assert shares == [1.5, 0.5, 0.0]
