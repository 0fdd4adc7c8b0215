"""DeepSpeed ZeRO: moments (stage 1), gradients (2) and weights (3) in parts, on the GPU or the CPU, as its JSON says.

Weights that train stay fp32, and bf16 is autocast, as without DeepSpeed: the same recipe gives the same losses.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import StrategyConfig, TrainConfig
from ra_blip.errors import ConfigError, MissingExtra
from ra_blip.training.optim import Resolved
from ra_blip.training.strategy_sharded import MOMENTS, Sharded, trains, unhooked

OURS = {  # what a recipe decides; "auto" is allowed for each
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_clipping": "train.clip",
    "optimizer": "params and train.betas",
    "scheduler": "train.warmup and train.floor",
    "bf16": "train.precision",
    "fp16": "train.precision",
}


class Zero(Sharded):
    """ZeRO stage 1, 2 or 3 (extra ``deepspeed``).

    Args:
        config: names DeepSpeed's JSON; stage 2 without offload where it names none.

    Raises:
        ConfigError: the file cannot be read, or sets what the recipe decides.
        MissingExtra: DeepSpeed is not installed.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self.settings = read_settings(config.config)
        self.stage = int(self.settings["zero_optimization"]["stage"])
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        try:
            import deepspeed
        except ImportError:
            raise MissingExtra("deepspeed", "deepspeed") from None
        deepspeed.logger.setLevel("WARNING")
        super().__init__(config.timeout)
        deepspeed.init_distributed("nccl" if self.device.type == "cuda" else "gloo", verbose=False)

    def prepare(self, stage: Any, table: Sequence[Resolved], config: TrainConfig) -> torch.optim.Optimizer:
        """As for one process; DeepSpeed takes over the optimizer and everything that has a trained parameter."""
        import deepspeed

        self.refuse_fp16(config)
        optimizer = super().prepare(stage, table, config)
        if offloads(self.settings):  # AdamW runs on the CPU: torch's fused one needs no compiler, unlike DeepSpeed's
            for group in optimizer.param_groups:
                group["fused"] = True
        settings = {
            **{key: value for key, value in self.settings.items() if value != "auto"},
            "train_micro_batch_size_per_gpu": 1,  # only counted with; batches are made by the loop
            "gradient_clipping": config.clip,
            "zero_force_ds_cpu_optimizer": False,
        }
        self._scalars = [parameter for parameter in stage.parameters() if parameter.dim() == 0]
        for (
            scalar
        ) in self._scalars:  # DeepSpeed cannot send a tensor without dimensions; one of one element works alike
            scalar.data = scalar.data.reshape(1)
        wrapped = _Wrapped(stage, self)
        with _set_aside(stage.model):
            self.engine, *_ = deepspeed.initialize(model=wrapped, optimizer=optimizer, config=settings)
        return optimizer

    def run(self, stage: Any, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Through DeepSpeed's engine."""
        found: tuple[dict[str, Tensor], dict[str, float]] = self.engine(batch)
        return found

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """By DeepSpeed, which reduces gradients on the way."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Clip, check and update: one call for DeepSpeed, which touches nothing where the norm is not finite."""
        self.engine.step()
        return torch.as_tensor(float(self.engine.get_global_grad_norm()))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Done by :meth:`clip_gradients`."""

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """DeepSpeed forgets gradients after each update."""

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """Gathered by DeepSpeed."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole: Tensor = safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)
        return whole.reshape(()) if any(parameter is scalar for scalar in self._scalars) else whole

    def write(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Into the fp32 weights that the optimizer updates, and into those that the model computes with."""
        if self.stage == 3:
            self._write_part(parameter, value, key)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)

    def _write_part(self, parameter: Any, value: Tensor, key: str | None) -> None:
        """Stage 3; DeepSpeed's own way in takes no parameter whose size the ranks do not divide."""
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = int(parameter.ds_tensor.ds_numel)
        padded = nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
        part = padded[size * self.rank : size * (self.rank + 1)]
        if key:
            safe_set_local_optimizer_state(parameter, part, key)
            return
        safe_set_local_fp32_param(parameter, part)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if self.rank == 0:
                parameter.data.copy_(value)

    def steps_done(self) -> Tensor | None:
        """Read off the inner AdamW."""
        states = list(self.engine.optimizer.optimizer.state.values())
        return states[0]["step"] if states and "step" in states[0] else None

    def start_moments(self, step: Tensor) -> None:
        """DeepSpeed links moments to parameters after its first update only; here there was none."""
        wrapper = self.engine.optimizer
        flat = wrapper.fp32_partitioned_groups_flat if self.stage == 3 else wrapper.single_partition_of_fp32_groups
        for part in flat:
            zeros = {key: torch.zeros_like(part) for key in MOMENTS}
            wrapper.optimizer.state[part] = {"step": step.clone(), **zeros}
        if self.stage < 3:
            wrapper._lazy_init_hp_params_optimizer_state()

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """All weights on all ranks: stages 1 and 2 have them anyway."""
        import deepspeed

        parts = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
        with deepspeed.zero.GatheredParameters(parts, enabled=self.stage == 3), unhooked(self.engine.module):
            for scalar in self._scalars:
                scalar.data = scalar.data.reshape(())
            try:
                yield
            finally:
                for scalar in self._scalars:
                    scalar.data = scalar.data.reshape(1)


class _Wrapped(nn.Module):
    """What DeepSpeed sees of a stage: the parts in which something trains.

    The precision is set inside, since DeepSpeed turns off an autocast that is opened around it.
    """

    def __init__(self, stage: nn.Module, strategy: Zero) -> None:
        super().__init__()
        self.stage = stage
        self._autocast = strategy.autocast
        frozen = [part for part in stage.model.children() if not trains(part)]  # type: ignore[union-attr]
        self._aside = {id(parameter) for part in frozen for parameter in part.parameters()}

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Without the parts that stay whole: DeepSpeed goes through these to cut them up and bring them together."""
        return ((name, p) for name, p in super().named_parameters(*args, **options) if id(p) not in self._aside)

    def forward(self, batch: dict[str, Any]) -> Any:
        with self._autocast():
            return self.stage(batch)


@contextlib.contextmanager
def _set_aside(model: nn.Module) -> Iterator[None]:
    """Keep hooks off the parts of a model in which nothing trains: they stay whole on every rank.

    The frozen eye is asked for features whenever the cache lacks them, which ranks do at different times.
    """
    frozen = {name: part for name, part in model.named_children() if not trains(part)}
    order = list(model._modules)
    for name in frozen:
        del model._modules[name]
    try:
        yield
    finally:
        rest = dict(model._modules)
        model._modules.clear()
        model._modules.update({name: rest.get(name, frozen.get(name)) for name in order})


def read_settings(path: str | None) -> dict[str, Any]:
    """DeepSpeed's settings from its JSON.

    Raises:
        ConfigError: no such file, not JSON, no ZeRO stage, or a setting that the recipe decides.
    """
    if path is None:
        return {"zero_optimization": {"stage": 2}}
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        stage = settings["zero_optimization"]["stage"]
    except OSError as error:
        raise ConfigError(f"strategy.config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"strategy.config {path}: not JSON ({error})") from None
    except (KeyError, TypeError):
        raise ConfigError(f"strategy.config {path}: it names no zero_optimization.stage") from None
    if stage not in (1, 2, 3):
        raise ConfigError(f"strategy.config {path}: zero_optimization.stage is {stage!r}, not 1, 2 or 3")
    taken = [f"{key} (the recipe's {OURS[key]})" for key in settings if key in OURS and settings[key] != "auto"]
    if taken:
        raise ConfigError(f"strategy.config {path}: leave out {', '.join(taken)}")
    return dict(settings)


def offloads(settings: dict[str, Any]) -> bool:
    """Whether moments and fp32 weights wait on the CPU (or on a disk)."""
    return bool(settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none")
