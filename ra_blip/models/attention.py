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
    """Attention from query tokens to visual features of another width; keys and values can be computed once and reused.

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

    def forward(self, x: Tensor, kv: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, Q, D) against keys and values of the same B -> (B, Q, D); ``mask`` (B, 1, 1, N) bool."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, Q, D/H)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, *kv, attn_mask=mask, dropout_p=p)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Sequential):
    """Linear, exact GELU, Linear: (.., D) -> (.., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


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
    """Keys and values of the pictures that ``rows`` (B,) point at, one pair a cross-attention layer."""
    return None if kv is None else [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in kv]


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
