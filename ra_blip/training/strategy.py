"""How many processes train, and how they agree: one, data parallel, or sharded by DeepSpeed or FSDP2.

The loop knows the face of :class:`Strategy` alone. What is particular to an engine stays in ``strategy_zero.py`` and
``strategy_fsdp2.py``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import StrategyConfig, TrainConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.training import checkpoint
from ra_blip.training.optim import Resolved, build_optimizer

State = dict[str, Tensor]


class Strategy:
    """One process.

    The calls of a step, in order: :meth:`zero_grad`; for each micro batch :meth:`forward` and :meth:`backward`;
    :meth:`average_gradients`, :meth:`clip_gradients`, :meth:`step`.

    Attributes:
        rank, world: this process among how many.
        sharded: whether ranks hold parts of what trains, so that weights are whole inside :meth:`whole` only.
        device: where it computes.
        trained: trained parameters in the order of the rules; known after :meth:`prepare`.
    """

    rank = 0
    world = 1
    sharded = False

    def __init__(self, timeout: float = 600.0) -> None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        self.trained: list[nn.Parameter] = []
        self._autocast: torch.dtype | None = None

    def prepare(self, stage: Any, table: Sequence[Resolved], config: TrainConfig) -> torch.optim.Optimizer:
        """Put a stage on the device and make its optimizer; to be called once.

        Args:
            stage: a module whose ``model`` holds every parameter.
            table: the resolved parameter rules.
            config: precision and betas.

        Returns:
            an optimizer with one group a rule, which holds ``lr`` and its ``peak``.

        Raises:
            ConfigError: the strategy cannot train in this precision.
        """
        self._autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        if isinstance(stage, nn.Module):
            stage.to(self.device)
        optimizer = build_optimizer(stage.model, table, config)
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        return optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision for a forward pass."""
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._autocast)

    def forward(self, stage: Any, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """A batch to what the stage makes of it: (losses, report)."""
        with self.autocast():
            found: tuple[dict[str, Tensor], dict[str, float]] = stage.forward(batch)
        return found

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of a loss; ``last`` is False for all but the last micro batch of a step."""
        if loss.requires_grad:  # not where all that trains reads pictures, and the batch has none
            loss.backward()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make gradients equal on all ranks; nothing to do for one."""

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients down to the norm ``limit`` (0: leave them); returns the norm before, the same on all ranks.

        Where it is not finite, nothing of the step has reached weights or moments.
        """
        return nn.utils.clip_grad_norm_(parameters, limit or float("inf"))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        optimizer.step()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the step before."""
        optimizer.zero_grad(set_to_none=True)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """What a checkpoint holds: trained weights and buffers by name, and moments as ``name|key``.

        All ranks call it. Whole tensors whatever the strategy, so that a run may be continued under another one, or
        with another number of processes.

        Returns:
            on rank 0 the tensors on the CPU; empty dictionaries elsewhere.
        """
        return checkpoint.trained_state(model), checkpoint.moments(model, optimizer)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, weights: State, moments: State) -> None:
        """Take back what :meth:`state` gave; every rank is given all of it.

        Raises:
            CheckpointError: the tensors are not those that this run trains.
        """
        own = fitting(model, weights)
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        for name, parameter in model.named_parameters():
            if f"{name}|exp_avg" in moments:
                found = {key: moments[f"{name}|{key}"] for key in ("exp_avg", "exp_avg_sq", "step")}
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
                }

    def whole(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside, every rank holds the whole weights. All ranks enter it."""
        return contextlib.nullcontext()

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Leave the process group."""


class DataParallel(Strategy):
    """Every rank holds the whole model and its share of the batch; gradients are averaged before the optimizer.

    One flat all-reduce a step. Parameters without a gradient on a rank (a batch without pictures) count as zero, so
    ranks can never wait for each other.

    Args:
        timeout: seconds after which a rank that waits for another one gives up.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        super().__init__(timeout)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        limit = datetime.timedelta(seconds=timeout)
        store, self.rank, self.world = next(rendezvous("env://", timeout=limit))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # A launcher that restarts keeps its store, and in it the addresses of the processes before. Launchers of
            # several nodes count restarts each on its own: there a setting of torch's gives a new store each time.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=limit, store=store, rank=self.rank, world_size=self.world)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average over ranks, in place."""
        import torch.distributed as dist

        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch._utils._flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        flat /= self.world
        for parameter, grad in zip(parameters, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
            parameter.grad = grad

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """As for one process: all ranks hold the same."""
        return super().state(model, optimizer) if self.rank == 0 else ({}, {})

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def close(self) -> None:
        """Meet once more, then leave: a rank that leaves early can abort the others."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own trained tensors. Raises :class:`CheckpointError` where ``weights`` are not of the same names."""
    own = checkpoint.trained_state(model, own=True)
    if weights.keys() != own.keys():
        odd = sorted(weights.keys() ^ own.keys())[:3]
        raise CheckpointError(f"checkpoint: tensors {odd} ... are not the ones this run trains")
    return own


def share(count: float, device: torch.device) -> float:
    """What this rank multiplies a mean over ``count`` things with; 1 for one process.

    Ranks hold unequal numbers of labelled tokens or pairs. Weighed so, the average of the ranks' gradients is the
    gradient of the mean over all of them, as one process would have it. All ranks must call it together.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 1.0
    total = torch.tensor([float(count)], device=device)
    dist.all_reduce(total)
    return count * dist.get_world_size() / max(float(total), 1.0)


def choose(config: StrategyConfig) -> Strategy:
    """The strategy that a recipe names; ``auto`` is data parallel where a launcher started several processes.

    Raises:
        ConfigError: the name wants a launcher and there is none, or the other way round.
        MissingExtra: DeepSpeed is not installed.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    name = config.name if config.name != "auto" else ("ddp" if world > 1 else "single")
    if name == "single":
        if world > 1:
            raise ConfigError(f"strategy.name is single, but a launcher started {world} processes: use auto or ddp")
        return Strategy()
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(f"strategy.name is {name}: start it by a launcher, for example `torchrun -m ra_blip train`")
    if name == "zero":
        from ra_blip.training.strategy_zero import Zero

        return Zero(config)
    if name == "fsdp2":
        from ra_blip.training.strategy_fsdp2 import FSDP2

        return FSDP2(config)
    return DataParallel(config.timeout)


def compile_layers(model: nn.Module, backend: str) -> None:
    """Hand every layer of every stack to ``torch.compile``, in place: names stay, and equal layers compile once."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    names = [f"{name}." for name, _ in stacks]
    for name, stack in stacks:
        if not any(name.startswith(outer) for outer in names):
            for layer in stack:
                layer.compile(backend=backend, dynamic=True)
