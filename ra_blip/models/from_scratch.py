"""Small modules for models trained from nothing, within minutes on a CPU: to see, and to copy names never seen.

Off by default: a pretrained tower sees and a pretrained LLM has learnt to copy; they need none of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMPARED = 64  # width of the space in which words and picture are compared


class ConceptHead(nn.Module):
    """Which words and word pairs of the caption does the picture show? Direct supervision for a tower without weights.

    Every patch votes for every concept, the votes are pooled by log-sum-exp: multiple-instance learning on captions
    (Fang et al. 2015). Concepts are token uni- and bigrams, hashed into buckets, so no vocabulary has to be kept.

    Args:
        width: of the patch features.
        concepts: number of buckets K.
    """

    def __init__(self, width: int, concepts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, concepts)
        nn.init.constant_(self.score.bias, -4.0)  # most concepts are absent from most pictures

    def forward(self, features: Tensor) -> Tensor:
        """Patch features (B, N, W) -> logits (B, K)."""
        votes = self.score(self.norm(features))  # (B, N, K)
        return torch.logsumexp(votes, dim=1) - math.log(votes.shape[1])

    def targets(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Caption tokens (B, L) with valid positions -> (B, K) multi-hot."""
        buckets = self.score.out_features
        pairs = (text[:, :-1] * 7919 + text[:, 1:] * 104729 + 1) % buckets  # (B, L - 1)
        hot = torch.zeros(len(text), buckets, device=text.device)
        hot.scatter_reduce_(1, text % buckets, text_mask.to(hot.dtype), "amax")
        return hot.scatter_reduce_(1, pairs, text_mask[:, 1:].to(hot.dtype), "amax")


class MatchHead(nn.Module):
    """Compares a picture with the words that guide its reading, and writes the score into its soft tokens.

    A Q-Former that starts from nothing takes many steps to find that a description and a picture can be compared;
    a bilinear score of both finds it in few. What it writes is what judging (ASKG) reads there. It is trained to tell
    the picture that is asked for among others without words (``stage.answer_match``).

    Args:
        width: of the Q-Former.
        llm_width: of the soft tokens.
    """

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, width, 3, padding=1)  # "red" belongs to the "roof" beside it
        self.words = nn.Linear(width, COMPARED)
        self.picture = nn.Linear(width, COMPARED)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.direction = nn.Parameter(F.normalize(torch.randn(llm_width), dim=0))

    def write(self, soft: Tensor, queries: Tensor, words: Tensor, valid: Tensor) -> Tensor:
        """Soft tokens (R, Q, D) of queries (R, Q, W) and guiding words (R, L, W), ``valid`` (R, L) -> (R, Q, D)."""
        kept = valid[..., None].to(words.dtype)
        near = F.gelu(self.near((words * kept).transpose(1, 2)).transpose(1, 2)) * kept
        said = F.normalize(self.words(near.sum(1) / kept.sum(1).clamp(min=1)), dim=-1)
        seen = F.normalize(self.picture(queries.mean(1)), dim=-1)
        score = (said * seen).sum(-1) * self.log_scale.exp()
        return soft + score[:, None, None] * self.direction

    def forward(self, soft: Tensor) -> Tensor:
        """(R, Q, D) soft tokens of R reads -> (R,) logits: is this the picture that is asked for?"""
        return soft.mean(1) @ self.direction


class LocalMixing(nn.Module):
    """A residual width-5 convolution over the prompt embeddings: every token learns its neighbours' names.

    It gives a shallow encoder the "what stood before me" that copying needs; two tokens of it, for one alone does not
    say where in ``1800`` a ``0`` stands.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 5, padding=2)

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
