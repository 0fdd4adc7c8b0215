"""Strategies against each other on two gloo ranks: the same losses, checkpoints that any of them goes on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ra_blip.config import StrategyConfig, TrainConfig
from ra_blip.errors import ConfigError
from ra_blip.training.strategy import choose
from ra_blip.training.strategy_zero import offloads, read_settings
from tests import tiny
from tests.training import strategy_worker

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(420)  # two ranks on a busy machine


def rank(number: int, port: int, out: Path, config: StrategyConfig, stage: str, begin: int, end: int) -> None:
    given = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in given.items()})
    torch.set_num_threads(1)
    try:
        strategy_worker.main(out, config, stage, begin, end, TrainConfig())
    except BaseException:
        (out / f"error-{number}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # a gloo thread may abort the process on its way out, after all is done


def train(out: Path, config: StrategyConfig, stage: str, begin: int, end: int) -> list[list[float]]:
    """Losses and gradient norms of the steps, of two forked ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank, args=(number, port, out, config, stage, begin, end)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        process.kill()
    errors = [path.read_text() for path in sorted(out.glob("error-*"))]
    assert not errors, errors[0]
    found: list[list[float]] = json.loads((out / f"losses-{begin}-{end}.json").read_text())
    return found


def furthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models. A bias of keys moves no output, so that AdamW follows rounding there."""
    assert found.keys() == wanted.keys()
    keys = {name for name in wanted if name.endswith((".qkv.bias", ".kv.bias"))}
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted.keys() - keys)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import once, before the ranks are forked, what each of them would import."""
    from ra_blip.training import strategy_fsdp2  # noqa: F401

    tiny.model()


@pytest.mark.parametrize("stage", ["answer", "pretrain"])
def test_fsdp2_gives_the_losses_and_the_model_of_ddp_and_goes_on_from_its_checkpoint(
    stage: str, tmp_path: Path
) -> None:
    ddp = train(tmp_path, StrategyConfig("ddp", timeout=60), stage, 0, 2)
    ddp += train(tmp_path, StrategyConfig("ddp", timeout=60), stage, 2, 4)
    wanted = load_file(tmp_path / "model-4.safetensors")
    fsdp = train(tmp_path, StrategyConfig("fsdp2", timeout=60), stage, 2, 4)  # from the checkpoint that ddp wrote
    assert torch.allclose(torch.tensor(ddp[2:]), torch.tensor(fsdp), atol=1e-5, rtol=1e-5)
    assert furthest(load_file(tmp_path / "model-4.safetensors"), wanted) < 1e-5
    moments = load_file(tmp_path / "m-4.safetensors")
    assert {float(value) for name, value in moments.items() if name.endswith("|step")} == {4.0}


def test_sharded_ranks_of_which_one_has_no_pictures_stop_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_worker, "BARE_RANK", 1)
    with pytest.raises(AssertionError, match="some ranks have pictures and others have none"):
        train(tmp_path, StrategyConfig("fsdp2", timeout=60), "answer", 0, 1)


def test_what_a_launcher_and_a_recipe_say_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert choose(StrategyConfig()).world == choose(StrategyConfig("single")).world == 1
    for name in ("ddp", "zero", "fsdp2"):
        with pytest.raises(ConfigError, match=f"strategy.name is {name}: start it by a launcher"):
            choose(StrategyConfig(name))  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a launcher started 2 processes"):
        choose(StrategyConfig("single"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "not JSON"),
        ("[]", "names no zero_optimization.stage"),
        ('{"zero_optimization": {"stage": 4}}', "stage is 4, not 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}', "leave out gradient_clipping .the recipe's"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_deepspeed_file_is_one_line(written: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    if written is not None:
        path.write_text(written)
    with pytest.raises(ConfigError, match=message):
        read_settings(str(path))


def test_the_shipped_deepspeed_files_can_be_read() -> None:
    found: dict[str, Any] = {
        path.stem: read_settings(str(path)) for path in (ROOT / "projects/deepspeed").glob("*.json")
    }
    stages = {name: settings["zero_optimization"]["stage"] for name, settings in found.items()}
    assert stages == {"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}
    assert {name for name, settings in found.items() if offloads(settings)} == {"zero2_offload", "zero3_offload"}
    assert read_settings(None) == {"zero_optimization": {"stage": 2}}
