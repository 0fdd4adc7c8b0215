"""Noise-injected training: how much does each answer token owe to the picture? Pure functions of tensors.

Source: RagVL (arXiv 2407.21439), whose token weights are those of CAL (arXiv 2405.17871): the logit of the target token
with the picture, less its logit with the picture under diffusion noise. A token that needs the picture weighs more.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 1000
FLOOR, CEILING = 1.0, 5.0  # of a token's weight
WINDOW = 3  # positions that a weight is averaged over


@functools.cache
def alpha_bar(step: int) -> float:
    """Share of the variance that is still signal after so many of :data:`STEPS` diffusion steps: 0.7448 after 500.

    The noise of each step is a sigmoid of a ramp from -6 to 6, scaled into [1e-5, 5e-3].
    """
    ramp = torch.linspace(-6.0, 6.0, STEPS, dtype=torch.float64)
    betas = torch.sigmoid(ramp) * (5e-3 - 1e-5) + 1e-5
    return float(torch.cumprod(1 - betas, 0)[step])


def diffuse(clean: Tensor, step: int, draw: torch.Generator, scale: float | Tensor = 1.0) -> Tensor:
    """``sqrt(a) clean + sqrt(1 - a) scale eps``, with ``a`` of :func:`alpha_bar` and ``eps`` standard normal.

    Args:
        clean: any shape.
        step: 0 to 999.
        draw: a CPU generator, so that every device is given the same noise.
        scale: standard deviation of what is noised; 1 for normalised pixels.
    """
    signal = alpha_bar(step)
    noise = torch.randn(clean.shape, generator=draw).to(clean)
    noised: Tensor = signal**0.5 * clean + (1 - signal) ** 0.5 * scale * noise
    return noised


def contrast_weights(clean: Tensor, noised: Tensor, labels: Tensor) -> Tensor:
    """The weight of each target token.

    The gain of the target token's logit through the picture, kept within [1, 5], then averaged over the neighbours
    that the same answer has: neither other samples nor the prompt enter.

    Args:
        clean: (B, A, V) logits with the picture.
        noised: (B, A, V) logits with its noised twin.
        labels: (B, A) target ids, -100 where there is none.

    Returns:
        (B, A), without gradient; 0 where there is no target.
    """
    valid = (labels != -100).float()
    target = labels.clamp(min=0)[..., None]
    gain = (clean.detach().gather(-1, target) - noised.detach().gather(-1, target))[..., 0].float()
    gain = gain.clamp(FLOOR, CEILING) * valid
    around = torch.ones(1, 1, WINDOW, device=labels.device)
    summed, count = (F.conv1d(x[:, None], around, padding=WINDOW // 2)[:, 0] for x in (gain, valid))
    return summed / count.clamp(min=1) * valid


def weighted_loss(token_losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of (B, A) losses by (B, A) weights; the plain mean over targets where all weigh the same, 0 without any."""
    total = weights.sum()
    return (token_losses * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))
