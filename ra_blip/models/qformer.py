"""The Q-Former: learnable queries that read visual features, guided by text.

Source: Li et al. 2023 (BLIP-2), Dai et al. 2023 (InstructBLIP); one set of queries as RA-BLIP uses it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from ra_blip.config import QFormerConfig
from ra_blip.models.attention import (
    CrossAttention,
    FeedForward,
    KeyValue,
    SelfAttention,
    init_bert,
    may_attend,
    unilm_mask,
)

Mode = Literal["image", "text", "instruct", "match", "generate"]


@dataclasses.dataclass
class QFormerOutput:
    """States after the last layer: ``queries`` (B, Q, D) and ``text`` (B, L, D); None for a part that was not given."""

    queries: Tensor | None
    text: Tensor | None


class QFormerLayer(nn.Module):
    """One layer: joint self-attention, cross-attention of the queries (where it has one), separate FFNs."""

    def __init__(self, config: QFormerConfig, feature_width: int, cross: bool) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config.width, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.cross = CrossAttention(config.width, config.heads, feature_width, config.dropout) if cross else None
        self.cross_norm = nn.LayerNorm(config.width, eps=1e-12) if cross else None
        self.query_ffn = FeedForward(config.width, config.ffn)
        self.query_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.text_ffn = FeedForward(config.width, config.ffn)
        self.text_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def _residual(self, x: Tensor, block: nn.Module, norm: nn.Module, *given: object) -> Tensor:
        if self.norm_first:
            return x + self.dropout(block(norm(x), *given))  # type: ignore[no-any-return]
        return norm(x + self.dropout(block(x, *given)))  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, queries: int, mask: Tensor | None, kv: KeyValue | None, kv_mask: Tensor | None
    ) -> Tensor:
        """(B, Q + L, D) -> (B, Q + L, D)."""
        x = self._residual(x, self.attention, self.attention_norm, mask)
        q, t = x[:, :queries], x[:, queries:]  # (B, Q, D), (B, L, D)
        if queries and self.cross is not None and self.cross_norm is not None and kv is not None:
            q = self._residual(q, self.cross, self.cross_norm, kv, kv_mask)
        if queries:
            q = self._residual(q, self.query_ffn, self.query_norm)
        if t.shape[1]:
            t = self._residual(t, self.text_ffn, self.text_norm)
        return torch.cat([q, t], dim=1)


class LMHead(nn.Module):
    """BERT's masked-language-model head, its output matrix tied to the word embeddings: (B, L, D) -> (B, L, V)."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        width = words.embedding_dim
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, x: Tensor, words: nn.Embedding) -> Tensor:
        """Logits over the vocabulary; ``words`` is the Q-Former's own embedding."""
        return nn.functional.linear(self.transform(x), words.weight, self.bias)


class QFormer(nn.Module):
    """Learnable queries with named attention modes.

    ======== ============================== ==================== ===============
    mode     self-attention                 cross-attention      use
    ======== ============================== ==================== ===============
    image    queries among themselves       queries to features  ITC, plain pictures
    text     text among itself              none                 text vectors
    instruct queries and text, both ways    queries to features  question- or caption-guided extraction
    match    as instruct                    queries to features  matching (ITM)
    generate UniLM: text causal, queries    queries to features  captioning (ITG); its query states
             blind to text                                       equal those of ``image``
    ======== ============================== ==================== ===============

    Args:
        config: sizes.
        vocabulary: number of text tokens.
        feature_width: width W of the visual features.
        lm_head: whether to hold the captioning head.
    """

    def __init__(self, config: QFormerConfig, vocabulary: int, feature_width: int, lm_head: bool = False) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, feature_width, cross=i % config.cross_every == 0) for i in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=1e-12) if config.norm_first else nn.Identity()
        self.lm_head = LMHead(self.words) if lm_head else None
        self.apply(init_bert)
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width).normal_(std=0.02))

    def cross_kv(self, features: Tensor) -> list[KeyValue]:
        """Keys and values of every cross-attention layer for features (U, N, W): computed once, used by every pass."""
        return [layer.cross.key_value(features) for layer in self.layers if layer.cross is not None]  # type: ignore[union-attr, operator]

    def forward(
        self,
        mode: Mode,
        kv: list[KeyValue] | None = None,
        kv_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> QFormerOutput:
        """Run one pass.

        Args:
            mode: see the class.
            kv: from :meth:`cross_kv`, batch B; not for ``text``.
            kv_mask: (B, N) valid features; None where all are.
            text: (B, L) token ids; not for ``image``.
            text_mask: (B, L) valid tokens.

        Returns:
            query and text states.
        """
        queries = 0 if mode == "text" else self.query_tokens.shape[1]
        if mode == "generate" and text is not None and text_mask is None:
            text_mask = torch.ones_like(text)  # the causal mask is built from it
        parts = []
        if queries:
            assert kv is not None, "this mode reads features"
            parts.append(self.query_tokens.expand(kv[0][0].shape[0], -1, -1))  # (B, Q, D)
        if text is not None:
            parts.append(self.words(text) + self.positions.weight[: text.shape[1]])  # (B, L, D)
        x = self.dropout(self.embedding_norm(torch.cat(parts, dim=1)))  # (B, Q + L, D)
        mask = self._self_mask(mode, queries, text_mask)
        cross_mask = None if kv_mask is None else may_attend(kv_mask)
        pairs = iter(kv or [])
        for layer in self.layers:
            pair = next(pairs, None) if layer.cross is not None else None
            x = layer(x, queries, mask, pair, cross_mask)
        x = self.final_norm(x)
        return QFormerOutput(x[:, :queries] if queries else None, x[:, queries:] if text is not None else None)

    @staticmethod
    def _self_mask(mode: Mode, queries: int, text_mask: Tensor | None) -> Tensor | None:
        if text_mask is None:
            return None
        if mode == "generate":
            return unilm_mask(queries, text_mask)
        valid = torch.cat([text_mask.new_ones(text_mask.shape[0], queries), text_mask], dim=1)
        return may_attend(valid)

    def token_logits(self, text_states: Tensor) -> Tensor:
        """Captioning logits (B, L, V) of text states (B, L, D); needs the head."""
        assert self.lm_head is not None, "this Q-Former was built without a captioning head"
        return self.lm_head(text_states, self.words)  # type: ignore[no-any-return]

    def copy_from(self, other: QFormer) -> None:
        """Take every weight that both hold from ``other``, a Q-Former of the same sizes."""
        own = self.state_dict()
        self.load_state_dict({key: value for key, value in other.state_dict().items() if key in own}, strict=False)
