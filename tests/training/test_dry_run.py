from __future__ import annotations

from pathlib import Path

import pytest

from ra_blip.__main__ import main
from ra_blip.config import RunConfig, load_config
from ra_blip.errors import ConfigError
from ra_blip.training.dry_run import RATE, dry_run, shapes_of, sizes_of

ROOT = Path(__file__).resolve().parents[2]
DEBUG = ROOT / "projects" / "debug.yaml"


@pytest.fixture(scope="module")
def model() -> object:
    return shapes_of(load_config(DEBUG))


def recipe(*overrides: str) -> RunConfig:
    return load_config(DEBUG, list(overrides))


def test_sizes_memory_and_time_of_a_small_run(model: object) -> None:
    plan = dry_run(recipe(), 2, model)  # type: ignore[arg-type]
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}  # type: ignore[attr-defined]
    assert plan.parameters == sum(parts.values()) and plan.trained == parts["reader"]
    assert all(parameter.is_meta for parameter in model.parameters())  # type: ignore[attr-defined]
    assert plan.memory["weights"] == 4 * plan.parameters  # all fp32
    assert (plan.memory["gradients"], plan.memory["moments"]) == (4 * plan.trained, 8 * plan.trained)
    assert plan.hours == pytest.approx(plan.flops * 8 * 16 / (2 * RATE) / 3600)
    assert not plan.problems and "data: a generated world" in plan.text
    assert "16 steps of 8 samples, 4 a GPU" in plan.text and "vision\\..*" in plan.text


def test_sharding_divides_what_it_says(model: object, tmp_path: Path) -> None:
    whole = dry_run(recipe(), 4, model, look=False)  # type: ignore[arg-type]
    sharded = dry_run(recipe("strategy.name=fsdp2"), 4, model, look=False)  # type: ignore[arg-type]
    reader, rest = 4 * whole.trained, whole.memory["weights"] - 4 * whole.trained
    assert sharded.memory["weights"] == rest + reader / 4  # parts in which nothing trains stay whole
    assert sharded.memory["gradients"] == whole.memory["gradients"] / 4
    assert sharded.memory["moments"] == whole.memory["moments"] / 4
    for name, gradients, moments in (("zero1", 4, 3), ("zero2", 1, 3), ("zero3_offload", 1, 0)):
        given = recipe("strategy.name=zero", f"strategy.config={ROOT}/projects/deepspeed/{name}.json")
        memory = dry_run(given, 4, model, look=False).memory  # type: ignore[arg-type]
        assert memory["gradients"] == gradients * whole.trained
        assert memory["moments"] == moments * whole.trained  # 8 for AdamW and 4 for its fp32 weights, of 4 GPUs


def test_more_that_trains_costs_more(model: object) -> None:
    frozen = dry_run(recipe(), 1, model, look=False)  # type: ignore[arg-type]
    seen = dry_run(recipe("params=[{match: '.*', lr: 1e-4}]"), 1, model, look=False)  # type: ignore[arg-type]
    assert seen.flops > frozen.flops and seen.memory["activations"] > frozen.memory["activations"]
    half = dry_run(recipe("train.accumulate=2"), 1, model, look=False)  # type: ignore[arg-type]
    assert half.memory["activations"] == frozen.memory["activations"] / 2


def test_what_is_missing_is_a_problem_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    given = ["data={name: records}", f"init={tmp_path}/model", f"out={tmp_path}/file", "strategy.timeout=9"]
    assert main(["train", str(DEBUG), *given, "--dry-run", "--gpus", "8"]) == 2
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("PROBLEM")]
    assert [problem.split()[1] for problem in problems] == ["init:", "out:", "data:"]
    assert main(["train", str(DEBUG), f"out={tmp_path}/run", "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_is_refused(model: object) -> None:
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared by 3 GPUs"):
        dry_run(recipe(), 3, model)  # type: ignore[arg-type]


def test_sizes_come_from_the_release_that_a_run_starts_from() -> None:
    sizes = sizes_of(recipe("init=instructblip-flan-t5-xl", "model.generator.lora.rank=4"))
    assert sizes.qformer.width == 768 and sizes.generator.config["d_model"] == 2048
    assert sizes.generator.lora.rank == 4
    named = sizes_of(load_config(None, ["model.generator={name: google/flan-t5-xxl, config: {dropout_rate: 0.5}}"]))
    assert named.generator.name is None
    assert (named.generator.config["d_model"], named.generator.config["dropout_rate"]) == (4096, 0.5)
