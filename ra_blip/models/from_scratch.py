"""Two small modules that let a generator trained from nothing copy names it never saw, within minutes on a CPU.

Off by default: a pretrained LLM has learnt to copy and needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalMixing(nn.Module):
    """A residual width-3 convolution over the prompt embeddings: every token learns its neighbours' names.

    It gives a shallow encoder the "what stood before me" that copying needs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) with valid positions (B, T) -> (B, T, D)."""
        x = x * valid[..., None]
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class CopyHead(nn.Module):
    """Pointer-generator output layer (See et al. 2017): a gate mixes the vocabulary with the tokens of the source.

    It takes the place of the LLM's output projection, and needs :meth:`reading` around each decoder call.

    Args:
        words: the output projection it wraps, (V, D).
    """

    def __init__(self, words: nn.Linear) -> None:
        super().__init__()
        width = words.in_features
        self.words = words
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.gate = nn.Linear(width, 1)
        self._source: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The wrapped projection's matrix, for libraries that tie or resize embeddings."""
        return self.words.weight

    @contextmanager
    def reading(self, states: Tensor, valid: Tensor, tokens: Tensor) -> Iterator[None]:
        """Point at encoder ``states`` (B, T, D); ``valid`` (B, T) positions that may be copied; ``tokens`` (B, T)."""
        self._source = (self.key(states), valid.bool(), tokens)
        try:
            yield
        finally:
            self._source = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Decoder states (B, t, D) -> log-probabilities (B, t, V). With beams B is a multiple of the source's batch."""
        words = self.words(hidden)
        if self._source is None:
            return words  # type: ignore[no-any-return]
        beams = hidden.shape[0] // self._source[0].shape[0]
        keys, valid, tokens = (part.repeat_interleave(beams, dim=0) for part in self._source)
        state = self.norm(hidden)
        scores = self.query(state) @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5  # (B, t, T)
        pointer = scores.masked_fill(~valid[:, None], -1e9).float().softmax(dim=-1)
        gate = torch.sigmoid(self.gate(state).float())  # (B, t, 1)
        mixed = (1 - gate) * F.softmax(words.float(), dim=-1)  # (B, t, V)
        index = tokens[:, None].expand(-1, hidden.shape[1], -1)
        mixed = mixed.scatter_add(-1, index, gate * pointer)
        return torch.log(mixed + 1e-9)
