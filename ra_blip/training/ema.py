"""An exponential moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Averages ``a <- decay a + (1 - decay) w`` after each step; they begin as the weights themselves.

    Args:
        model: whose trained parameters are averaged.
        decay: between 0 and 1, for example 0.999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take the weights in; after each optimizer step."""
        self._update(list(self.average.values()), [p.detach() for p in self._parameters.values()], 0)

    def restore(self, average: Mapping[str, Tensor]) -> None:
        """Continue from the averages of a checkpoint."""
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
