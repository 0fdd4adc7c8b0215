"""What DeepSpeed ZeRO and FSDP2 have in common: weights or moments lie in pieces, checkpoints hold them whole."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import TrainConfig
from ra_blip.errors import ConfigError
from ra_blip.training import checkpoint
from ra_blip.training.strategy import DataParallel, State, fitting

MOMENTS = ("exp_avg", "exp_avg_sq")


class Sharded(DataParallel):
    """Data parallel, with every rank keeping its part only.

    Tensors are gathered one by one where a checkpoint is written, so that rank 0 holds one whole copy of what trains in
    CPU memory and no GPU holds more than one whole tensor beside its part.
    """

    sharded = True

    @abstractmethod
    def read(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """The whole of a parameter, or of its moment ``key``. All ranks call it."""

    @abstractmethod
    def write(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Take this rank's part of a whole value. All ranks call it."""

    @abstractmethod
    def steps_done(self) -> Tensor | None:
        """How many updates AdamW made, as its ``step``; None before the first."""

    @abstractmethod
    def start_moments(self, step: Tensor) -> None:
        """Make moments of zeros after so many updates, for :meth:`write` to fill."""

    def refuse_fp16(self, config: TrainConfig) -> None:
        """Raises :class:`ConfigError` for fp16, whose loss scaling is made for whole gradients."""
        if config.precision == "fp16":
            raise ConfigError("train.precision fp16 goes with strategy.name single and ddp; take bf16 or fp32")

    def forward(self, stage: Any, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Through the wrapped module, whose hooks bring the weights together.

        Raises:
            ConfigError: one rank's batch has pictures where another's has none. They would run different layers, and
                wait for each other until the timeout.
        """
        mine = sum(flag << bit for bit, flag in enumerate(_kinds(batch)))
        kinds = torch.tensor([mine, -mine], device=self.device)
        torch.distributed.all_reduce(kinds, torch.distributed.ReduceOp.MAX)
        if int(kinds[0]) != -int(kinds[1]):
            raise ConfigError(
                "strategy: in this step some ranks have pictures and others have none, which sharded weights cannot"
                " serve: raise train.batch_size, or take strategy.name ddp"
            )
        return self.run(stage, batch)

    @abstractmethod
    def run(self, stage: Any, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The forward pass itself."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The backward pass has done it."""

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """As for one process, gathered tensor by tensor."""
        weights: State = {}
        moments: State = {}
        parameters = dict(model.named_parameters())
        for name, value in checkpoint.trained_state(model, own=True).items():
            whole = self.read(parameters[name]) if name in parameters else value
            self._keep(weights, name, whole)
        done = self.steps_done()
        for name, parameter in parameters.items() if done is not None else ():
            if parameter.requires_grad:
                for key in MOMENTS:
                    self._keep(moments, f"{name}|{key}", self.read(parameter, key))
                self._keep(moments, f"{name}|step", done)
        return weights, moments

    def _keep(self, into: State, name: str, value: Tensor | None) -> None:
        if self.rank == 0 and value is not None:
            into[name] = value.detach().to("cpu", copy=True).contiguous()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, weights: State, moments: State) -> None:
        """As for one process, each rank its part."""
        own, parameters = fitting(model, weights), dict(model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                if name in parameters:
                    self.write(parameters[name], value.to(self.device))
                else:
                    own[name].copy_(value)
        steps = [value for name, value in moments.items() if name.endswith("|step")]
        if steps:
            self.start_moments(steps[0].clone())
        for name, parameter in parameters.items():
            for key in MOMENTS if f"{name}|exp_avg" in moments else ():
                self.write(parameter, moments[f"{name}|{key}"].to(self.device), key)


def trains(part: nn.Module) -> bool:
    """Whether anything in a part of the model trains."""
    return any(parameter.requires_grad for parameter in part.parameters())


@contextlib.contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """Inside, no hook that brings weights together or cuts them up runs: the module is as it was built."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")
    found = [(part, kind, getattr(part, kind)) for part in module.modules() for kind in kinds]
    for part, kind, _ in found:
        setattr(part, kind, OrderedDict())
    try:
        yield
    finally:
        for part, kind, hooks in found:
            setattr(part, kind, hooks)


def _kinds(batch: dict[str, Any]) -> list[bool]:
    """What decides which layers run: pictures at all, and for questions and items whether some and whether all."""
    found = [bool(batch.get("images"))]
    for name in ("questions", "items"):
        pictured = [record.image is not None for record in batch.get(name, ()) if hasattr(record, "image")]
        found += [any(pictured), all(pictured)]
    return found
