"""The ranker: P(relevant | question, item) from the frozen generator's encoder.

Source: the two-label head that the RA-BLIP release keeps (Linear, tanh, Linear on features of the LLM's width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ranker(nn.Module):
    """Classifier over pooled encoder states: Linear, tanh, Linear to two labels.

    Args:
        width: the generator's width D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.classify = nn.Linear(width, 2)

    @staticmethod
    def pool(states: Tensor, mask: Tensor) -> Tensor:
        """Mean over the valid positions: (B, T, D), (B, T) -> (B, D)."""
        weight = mask.to(states.dtype)[..., None]
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, 2) logits, "relevant" second."""
        return self.classify(torch.tanh(self.dense(pooled)))  # type: ignore[no-any-return]
