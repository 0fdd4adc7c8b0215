"""Multi-head attention as the Q-Former and the fusion module use it. Masks are boolean and say "may attend"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values.

    Args:
        width: model width D.
        heads: number of heads; must divide D.
        dropout: probability on the attention weights while training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``mask`` (B or 1, 1, T or 1, T) bool; a row without any gives the output bias."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D/H)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)  # (B, H, T, D/H)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention from query tokens to visual features of another width.

    Keys and values can be computed once and reused by many passes. Features that one pass alone reads need neither: the
    key projection moves to the queries and the value projection behind the sum, (q Wk) X' and (A X) Wv, which is the
    same attention with fewer products wherever few queries read many features.

    Args:
        width: model width D.
        heads: number of heads.
        feature_width: width W of the features.
        dropout: probability on the attention weights while training.
    """

    def __init__(self, width: int, heads: int, feature_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(feature_width, 2 * width)
        self.out = nn.Linear(width, width)

    def key_value(self, features: Tensor) -> KeyValue:
        """(U, N, W) -> keys and values, (U, H, N, D/H) each."""
        k, v = self.kv(features).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, source: KeyValue | Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``source``: keys and values of :meth:`key_value`, or the features (B, N, W) themselves.

        Args:
            x: (B, Q, D).
            source: of the same B.
            mask: (B, 1, 1, N) bool; a row without any feature gives the output bias.

        Returns:
            (B, Q, D).
        """
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (B, Q, H, D/H)
        p = self.dropout if self.training else 0.0
        if isinstance(source, Tensor):
            if self._absorbs(q, source) and not p:
                return self.out(self._absorbed(q, source, mask))  # type: ignore[no-any-return]
            source = self.key_value(source)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), *source, attn_mask=mask, dropout_p=p)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, source: KeyValue | Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each query of each head reads of each feature, (B, H, Q, N), of what :meth:`forward` is given."""
        keys, _ = self.key_value(source) if isinstance(source, Tensor) else source
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return _shares(q @ keys.mT * keys.shape[-1] ** -0.5, mask)

    @staticmethod
    def _absorbs(q: Tensor, features: Tensor) -> bool:
        """Whether the absorbed form needs fewer products than keys and values do (both divided by 4 x B x W)."""
        (_, queries, heads, width), count = q.shape, features.shape[1]
        return queries * (heads * width + heads * count) < count * heads * width

    def _absorbed(self, q: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """(B, Q, H, D/H) and (B, N, W) -> (B, Q, D). The key bias drops out of the softmax; weights sum to one, so the
        value bias is added once."""
        keys, values = self.kv.weight.unflatten(0, (2, self.heads, -1))  # (H, D/H, W) each
        probes = torch.einsum("bqhd,hdw->bhqw", q * q.shape[-1] ** -0.5, keys).flatten(1, 2)  # (B, H x Q, W)
        shares = _shares(probes @ features.mT, None if mask is None else mask[:, 0])  # (B, H x Q, N)
        seen = (shares @ features).unflatten(1, (self.heads, -1))  # (B, H, Q, W)
        mixed = torch.einsum("bhqw,hdw->bqhd", seen, values).flatten(2)  # (B, Q, D)
        bias = self.kv.bias[self.kv.out_features // 2 :]
        return mixed + (bias if mask is None else bias * mask[:, 0].any(-1, keepdim=True))


def _shares(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over what may be attended to, on the last axis; a row without any is all zeros, as in torch's own."""
    if mask is None:
        return scores.softmax(-1)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0.0)


class FeedForward(nn.Sequential):
    """Linear, exact GELU, Linear: (.., D) -> (.., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerLayer(nn.Module):
    """Self-attention and ONE feed-forward for all positions, each with its norm and a residual.

    Args:
        width: model width D.
        heads: number of heads.
        ffn: hidden width of the feed-forward.
        eps: of both norms.
        norm_first: the norms stand before the blocks (ViT) or after the sums (BERT).
        dropout: probability on attention weights and on what each block adds.
    """

    def __init__(
        self, width: int, heads: int, ffn: int, eps: float, norm_first: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``mask`` (B, 1, 1, T) bool."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.ffn(self.ffn_norm(x)))  # type: ignore[no-any-return]
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))  # type: ignore[no-any-return]


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation for one module, to be used with ``nn.Module.apply``: normal weights, zero biases.

    The deviation is 0.02 at BERT's width 768 and grows as the input gets narrower, so that a small model's signals
    are as strong as a large one's at the start.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 * (768 / module.weight.shape[1]) ** 0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def gather_kv(kv: list[KeyValue] | None, rows: Tensor) -> list[KeyValue] | None:
    """Keys and values of the pictures that ``rows`` (B,) point at, one pair a cross-attention layer.

    Those of a single picture are repeated without a copy.
    """
    if kv is None:
        return None
    if all(len(k) == 1 for k, _ in kv):
        return [(k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in kv]
    return [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in kv]


def may_attend(valid: Tensor) -> Tensor:
    """(B, T) bool or 0/1 mask of valid positions -> (B, 1, 1, T) bool attention mask."""
    return valid.bool()[:, None, None, :]


def unilm_mask(queries: int, text_valid: Tensor) -> Tensor:
    """UniLM mask: query positions see query positions; text sees the queries and the text up to itself.

    Args:
        queries: number Q of query positions, which come first.
        text_valid: (B, L) valid text positions.

    Returns:
        (B, 1, Q + L, Q + L) bool. Source: Dong et al. 2019, as BLIP-2's captioning loss uses it.
    """
    batch, length = text_valid.shape
    total = queries + length
    position = torch.arange(total, device=text_valid.device)
    sees = (position[None, :] <= position[:, None]) | (position[None, :] < queries)  # (T, T)
    valid = torch.cat([text_valid.new_ones(batch, queries), text_valid], dim=1).bool()
    return sees[None, None] & valid[:, None, None, :]
