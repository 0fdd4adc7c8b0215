"""Losses as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(B, D), (M, D) -> (B, M) inner products in float32, also under autocast: bf16 would blur them."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def itc_loss(picture_vectors: Tensor, text_vectors: Tensor, temperature: Tensor) -> Tensor:
    """Image-text contrastive loss, both ways (BLIP-2): row i of (B, D) belongs to row i of (B, D). log B at chance."""
    logits = similarity(picture_vectors, text_vectors) / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def hard_negatives(similarity: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """For each row of a (B, B) similarity, the column of one negative, drawn by softmax weight; the diagonal never.

    Args:
        similarity: on the scale of the logits.
        draws: source of the draws; torch's own by default.

    Returns:
        (B,) column indices; none for B = 1, which has no negative.
    """
    if len(similarity) < 2:
        return torch.empty(0, dtype=torch.long, device=similarity.device)
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    weights = similarity.detach().float().masked_fill(own, float("-inf")).softmax(dim=-1)
    return torch.multinomial(weights, 1, generator=draws)[:, 0]


def concept_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of (B, K) logits with (B, K) multi-hot targets: summed over concepts, mean over pictures."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(logits)


def itm_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Image-text matching: (M, 2) logits against (M,) bool. ln 2 at chance on a balanced set."""
    return F.cross_entropy(logits.float(), matched.long())


def itg_loss(logits: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """Image-grounded text generation: next-token cross-entropy, (B, L, V) logits for tokens (B, L), padding ignored.

    0 where no text has a second token.
    """
    target = text.masked_fill(text_mask == 0, -100)[:, 1:]
    summed = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, ignore_index=-100, reduction="sum")
    return summed / (target != -100).sum().clamp(min=1)


def info_nce(question_vectors: Tensor, item_vectors: Tensor, gold: Tensor, temperature: Tensor) -> Tensor:
    """Question-to-item contrastive loss with several golds.

    Each gold competes with all items that are not gold of its question; the other golds are masked out.

    Args:
        question_vectors: (B, D) unit vectors.
        item_vectors: (M, D) unit vectors.
        gold: (B, M) bool, at least one True a row.
        temperature: scalar.

    Returns:
        mean over questions of the mean over their golds.
    """
    scores = similarity(question_vectors, item_vectors) / temperature  # (B, M)
    others = scores.masked_fill(gold, float("-inf")).logsumexp(dim=-1, keepdim=True)  # (B, 1)
    per_gold = torch.logaddexp(scores, others) - scores
    return ((per_gold * gold).sum(-1) / gold.sum(-1)).mean()


def ranking_loss(logits: Tensor, relevant: Tensor) -> Tensor:
    """Two-label cross-entropy: (M, 2) logits, (M,) bool."""
    return F.cross_entropy(logits.float(), relevant.long())


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of (B, A, V) logits with labels of which ``smoothing`` is spread over the vocabulary.

    Args:
        logits: (B, A, V).
        labels: (B, A), -100 where there is none.
        smoothing: from 0, plain cross-entropy, to 1.

    Returns:
        mean over the labelled tokens.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, label_smoothing=smoothing)


def generation_loss(token_losses: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled tokens of (B, A) losses; 0 where a batch has no label."""
    return token_losses.sum() / (labels != -100).sum().clamp(min=1)
