"""FSDP2 (``torch.distributed.fsdp.fully_shard``): weights, gradients and moments in parts, with torch alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ra_blip.config import StrategyConfig, TrainConfig
from ra_blip.training.optim import Resolved, build_optimizer
from ra_blip.training.strategy import DataParallel
from ra_blip.training.strategy_sharded import MOMENTS, Sharded, trains, unhooked


class FSDP2(Sharded):
    """Every layer of a stack is brought together when it computes; the rest of the model before each pass.

    Args:
        config: timeout, and whether weights and moments wait in CPU memory.
    """

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config.timeout)
        self.cpu_offload = config.cpu_offload

    def prepare(self, stage: Any, table: Sequence[Resolved], config: TrainConfig) -> torch.optim.Optimizer:
        """As for one process; parts in which nothing trains stay whole on every rank."""
        self.refuse_fp16(config)
        super().prepare(stage, table, config)
        mesh = init_device_mesh(self.device.type, (self.world,))
        policy = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.cpu_offload else OffloadPolicy()
        parts = list(stage.model.children())
        kept = {p for part in parts if not trains(part) for p in part.parameters()}
        kept |= {p for p in stage.model.parameters() if p.dim() == 0}  # FSDP2 takes no scalars: they stay on all ranks
        for part in parts:
            for layer in _layers(part) if trains(part) else ():
                fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(stage, mesh=mesh, offload_policy=policy, ignored_params=kept)
        self.stage = stage
        self.optimizer = build_optimizer(stage.model, _scalars_apart(stage.model, table), config)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return self.optimizer

    def run(self, stage: Any, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Through the stage's hooks."""
        with self.autocast():
            found: tuple[dict[str, Tensor], dict[str, float]] = stage(batch)
        return found

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The backward pass has done it, but for scalars; what no rank used counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        scalars = [parameter for parameter in parameters if parameter.dim() == 0]
        if scalars:
            DataParallel.average_gradients(self, scalars)

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """The norm is that of all parts together."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        parts = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
        scalars = [grad for grad in grads if not isinstance(grad, DTensor)]
        square = nn.utils.get_total_norm(parts).to(self.device) ** 2
        torch.distributed.all_reduce(square)
        norm = (square + nn.utils.get_total_norm(scalars).to(self.device) ** 2).sqrt()
        if limit:
            scale = (limit / (norm + 1e-6)).clamp(max=1.0)
            for grad in (*parts, *scalars):
                grad.mul_(scale.to(grad.device))
        return norm

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """Gathered by DTensor."""
        value = self._part(parameter, key)
        if not isinstance(value, DTensor):
            return value
        near = value.to(self.device)
        assert isinstance(near, DTensor)
        return near.full_tensor()

    def write(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Cut by DTensor."""
        target = self._part(parameter, key)
        with torch.no_grad():
            if isinstance(target, DTensor):
                cut = distribute_tensor(value, target.device_mesh, target.placements)
                target.to_local().copy_(cut.to_local())
            else:
                target.copy_(value)

    def steps_done(self) -> Tensor | None:
        """Read off AdamW."""
        states = list(self.optimizer.state.values())
        return states[0]["step"] if states else None

    def start_moments(self, step: Tensor) -> None:
        """One for each parameter, cut as the parameter is."""
        for parameter in self.trained:
            zeros = {key: torch.zeros_like(parameter) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": step.clone(), **zeros}

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """All weights on all ranks."""
        parts = [part for part in self.stage.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
        try:
            with unhooked(self.stage):
                yield
        finally:
            for part in parts:
                part.reshard()

    def _part(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        found: Tensor = self.optimizer.state[parameter][key] if key else parameter
        return found


def _layers(part: nn.Module) -> Iterator[nn.Module]:
    """The layers that Hugging Face models name as not to be split: what is brought together at a time."""
    for module in part.modules():
        names = getattr(module, "_no_split_modules", None)
        if names and isinstance(module, PreTrainedModel):
            yield from (layer for layer in module.modules() if type(layer).__name__ in names)


def _scalars_apart(model: nn.Module, table: Sequence[Resolved]) -> list[Resolved]:
    """The rules with scalars in groups of their own: AdamW takes parts and whole tensors apart only."""
    parameters, found = dict(model.named_parameters()), []
    for row in table:
        for scalar in (False, True):
            names = [name for name in row.names if (parameters[name].dim() == 0) == scalar]
            found.append(Resolved(row.rule, names, sum(parameters[name].numel() for name in names)))
    return found
