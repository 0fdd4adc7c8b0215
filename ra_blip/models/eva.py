"""EVA ViT-g/14, the eye of BLIP-2 and InstructBLIP: a pre-norm ViT whose last block is followed by no norm.

Source: Fang et al. 2023 (EVA), Sun et al. 2023 (EVA-CLIP), with the last of its 40 blocks left out as BLIP-2 does.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ra_blip.errors import ConfigError
from ra_blip.models.attention import TransformerLayer, init_bert

MODEL_TYPE = "eva_vit"


@dataclasses.dataclass
class EvaConfig:
    """Sizes; the defaults are ViT-g's as BLIP-2 uses it (985.9 M parameters)."""

    width: int = 1408
    layers: int = 39
    heads: int = 16
    ffn: int = 6144
    patch: int = 14
    image_size: int = 224  # side in pixels that the position embeddings are for; others are interpolated
    eps: float = 1e-6  # of the blocks' norms

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> EvaConfig:
        """From ``model.vision.config`` without its ``model_type``. Raises :class:`ConfigError` naming unknown keys."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"model.vision.config: unknown keys {unknown} for {MODEL_TYPE!r}; keys: {known}")
        config = cls(**given)
        if config.width % config.heads or config.image_size % config.patch:
            raise ConfigError("model.vision.config: heads must divide width, and patch must divide image_size")
        return config

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` reads, with the ``model_type``."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}


class EvaViT(nn.Module):
    """Pixels to the states after a block, class token first.

    Keys need no bias, since one changes no attention weight; EVA has none. Here it stands, at zero, in the one bias of
    queries, keys and values.

    Args:
        config: sizes.
        gradient_checkpointing: whether training computes the blocks twice and keeps less.
    """

    def __init__(self, config: EvaConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, gradient_checkpointing
        side = config.image_size // config.patch
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + side * side, config.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.ffn, config.eps, norm_first=True)
            for _ in range(config.layers)
        )
        self.apply(init_bert)

    def forward(self, pixels: Tensor, layer: int = -1) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> (B, 1 + P x P, W).

        Args:
            pixels: S need not be the configured side.
            layer: which state: -1 is the last block's, 0 the embeddings.
        """
        x = self.patch_embed(pixels)  # (B, W, P, P)
        positions = resize_positions(self.pos_embed, x.shape[2], x.shape[3])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + positions.to(x.dtype)
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks[: range(len(self.blocks) + 1)[layer]]:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x  # type: ignore[no-any-return]


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings (1, 1 + P x P, W), class token first, for a grid of other size; bicubic, in fp32."""
    side = math.isqrt(positions.shape[1] - 1)
    if (rows, columns) == (side, side):
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()  # (1, W, P, P)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
