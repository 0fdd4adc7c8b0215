"""The Q-Former: learnable queries that read visual features, guided by text.

Source: Li et al. 2023 (BLIP-2), Dai et al. 2023 (InstructBLIP); one set of queries as RA-BLIP uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ra_blip.config import QFormerConfig
from ra_blip.errors import ConfigError
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
TextUse = Literal["states", "guide", "none"]


class QFormerOutput(NamedTuple):
    """States after the last layer: ``queries`` (B, Q, D) and ``text`` (B, L, D); None for a part that is not there.

    A tuple, since sharded training looks for tensors in what a module returns.
    """

    queries: Tensor | None
    text: Tensor | None


class QFormerLayer(nn.Module):
    """One layer: joint self-attention, cross-attention of the queries (where it has one), separate FFNs."""

    def __init__(self, config: QFormerConfig, feature_width: int, cross: bool, text: bool) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config.width, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.cross = CrossAttention(config.width, config.heads, feature_width, config.dropout) if cross else None
        self.cross_norm = nn.LayerNorm(config.width, eps=1e-12) if cross else None
        self.query_ffn = FeedForward(config.width, config.ffn)
        self.query_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.text_ffn = FeedForward(config.width, config.ffn) if text else None
        self.text_norm = nn.LayerNorm(config.width, eps=1e-12) if text else None
        self.text_dead = False
        self.dropout = nn.Dropout(config.dropout)

    def retire_text(self) -> None:
        """Nobody reads the text this layer gives: it is no longer computed, and its feed-forward no longer trained.

        The weights stay in the state, where checkpoints have them, but as buffers: no rule, decay or optimizer moment
        reaches them, and no rank waits for their gradient.
        """
        self.text_dead = True
        for module in [*(self.text_ffn or []), *([self.text_norm] if self.text_norm else [])]:
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.data)

    def _residual(self, x: Tensor, block: nn.Module, norm: nn.Module, *given: object) -> Tensor:
        if self.norm_first:
            return x + self.dropout(block(norm(x), *given))  # type: ignore[no-any-return]
        return norm(x + self.dropout(block(x, *given)))  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        queries: int,
        mask: Tensor | None,
        source: KeyValue | Tensor | None,
        source_mask: Tensor | None,
    ) -> Tensor:
        """(B, Q + L, D) -> (B, Q + L, D), or (B, Q, D) where the text is not read."""
        x = self._residual(x, self.attention, self.attention_norm, mask)
        q, t = x[:, :queries], x[:, queries:]  # (B, Q, D), (B, L, D)
        if not next(self.query_ffn.parameters()).requires_grad:
            # torch would copy frozen weights once a sample to multiply a slice with them: nine times slower in bf16
            q, t = q.contiguous(), t.contiguous()
        parts = []
        if queries:
            if self.cross is not None and self.cross_norm is not None and source is not None:
                q = self._residual(q, self.cross, self.cross_norm, source, source_mask)
            parts.append(self._residual(q, self.query_ffn, self.query_norm))
        if t.shape[1] and not self.text_dead:
            assert self.text_ffn is not None and self.text_norm is not None, "this Q-Former has no text branch"
            parts.append(self._residual(t, self.text_ffn, self.text_norm))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


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
        text: what becomes of text: its ``states`` are read; it is a ``guide`` of the queries alone (InstructBLIP), so
            that the last layer's text feed-forward is dead weight, see :meth:`QFormerLayer.retire_text`; or there is
            ``none``, and no text branch (BLIP-2, stage 2).
    """

    def __init__(
        self,
        config: QFormerConfig,
        vocabulary: int,
        feature_width: int,
        lm_head: bool = False,
        text: TextUse = "states",
    ) -> None:
        super().__init__()
        self.config, self.text = config, text
        branch = text != "none"
        self.words = nn.Embedding(vocabulary, config.width) if branch else None
        self.positions = nn.Embedding(config.max_positions, config.width) if branch else None
        self.embedding_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, feature_width, i % config.cross_every == 0, branch) for i in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=1e-12) if config.norm_first else nn.Identity()
        self.lm_head = LMHead(self.words) if lm_head and self.words is not None else None
        self.apply(init_bert)
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width).normal_(std=0.02))
        if text == "guide":
            self.layers[-1].retire_text()  # type: ignore[operator]

    def cross_kv(self, features: Tensor) -> list[KeyValue]:
        """Keys and values of every cross-attention layer for features (U, N, W): computed once, used by every pass."""
        return [layer.cross.key_value(features) for layer in self.layers if layer.cross is not None]  # type: ignore[union-attr, operator]

    @contextmanager
    def tapped(self, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
        """While open, record what the queries read, for pictures of it; the outputs keep their bits.

        Args:
            layers: indices; only these pay for it.

        Yields:
            layer -> weights (B, H, Q, N), one entry a pass.

        Raises:
            ConfigError: a layer has no cross-attention.
        """
        having = [i for i, layer in enumerate(self.layers) if layer.cross is not None]
        if wrong := sorted(set(layers) - set(having)):
            raise ConfigError(f"layers {wrong} of the Q-Former have no cross-attention; those that have: {having}")
        maps: dict[int, list[Tensor]] = {i: [] for i in layers}

        def record(i: int) -> Callable[[CrossAttention, tuple[Any, ...]], None]:
            return lambda cross, given: maps[i].append(cross.weights(*given).detach())

        handles = [self.layers[i].cross.register_forward_pre_hook(record(i)) for i in maps]  # type: ignore[union-attr]
        try:
            yield maps
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self,
        mode: Mode,
        kv: list[KeyValue] | Tensor | None = None,
        kv_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> QFormerOutput:
        """Run one pass.

        Args:
            mode: see the class.
            kv: from :meth:`cross_kv`, batch B; or the features (B, N, W) themselves, which is faster where no other
                pass reads them; not for ``text``. Several pictures stand side by side along N.
            kv_mask: (B, N) valid features; None where all are.
            text: (B, L) token ids; not for ``image``.
            text_mask: (B, L) valid tokens.

        Returns:
            query states, and text states unless the text is a guide alone.
        """
        queries = 0 if mode == "text" else self.query_tokens.shape[1]
        read = text is not None and self.text == "states"
        assert queries or read, "the text states of this Q-Former are not read"
        if mode == "generate" and text is not None and text_mask is None:
            text_mask = torch.ones_like(text)  # the causal mask is built from it
        parts = []
        if queries:
            assert kv is not None, "this mode reads features"
            batch = len(kv if isinstance(kv, Tensor) else kv[0][0])
            parts.append(self.query_tokens.expand(batch, -1, -1))  # (B, Q, D)
        if text is not None:
            assert self.words is not None and self.positions is not None, "this Q-Former has no text branch"
            parts.append(self.words(text) + self.positions.weight[: text.shape[1]])  # (B, L, D)
        x = self.dropout(self.embedding_norm(torch.cat(parts, dim=1)))  # (B, Q + L, D)
        mask = self._self_mask(mode, queries, text_mask)
        cross_mask = None if kv_mask is None else may_attend(kv_mask)
        sources = itertools.repeat(kv) if isinstance(kv, Tensor) else iter(kv or [])
        again = self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            source = next(sources, None) if layer.cross is not None else None
            given = (x, queries, mask, source, cross_mask)
            x = checkpoint(layer, *given, use_reentrant=False) if again else layer(*given)
        x = self.final_norm(x)
        return QFormerOutput(x[:, :queries] if queries else None, x[:, queries:] if read else None)

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
        assert self.lm_head is not None and self.words is not None, "this Q-Former was built without a captioning head"
        return self.lm_head(text_states, self.words)  # type: ignore[no-any-return]

    def copy_from(self, other: QFormer) -> None:
        """Take every weight that both hold from ``other``, a Q-Former of the same sizes."""
        own = self.state_dict()
        self.load_state_dict({key: value for key, value in other.state_dict().items() if key in own}, strict=False)
