"""The frozen eye: any Hugging Face vision model, by name or folder or built from a config; pixels to features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import VisionConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.from_scratch import ConceptHead


class VisionTower(nn.Module):
    """uint8 pixels to patch features (B, N, W). Normalisation happens here, on the device that holds the model.

    Args:
        config: which model, at what picture size, and which hidden state is read.

    Raises:
        ConfigError: neither a name nor a config with a ``model_type`` is given.
        CheckpointError: the named model cannot be loaded.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _build(config)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.width, self.patches = self._measure()
        self.concepts = ConceptHead(self.width, config.concepts) if config.concepts else None

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, N, W) features, class token first where the model has one."""
        x = (pixels.to(self.mean.dtype) / 255.0 - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        if self.config.layer == -1:
            state = self.model(x).last_hidden_state
        else:
            state = self.model(x, output_hidden_states=True).hidden_states[self.config.layer]
        if state.dim() == 4:  # a convolutional map (B, W, H', W')
            state = state.flatten(2).transpose(1, 2)  # (B, N, W)
        return state  # type: ignore[no-any-return]

    def _measure(self) -> tuple[int, int]:
        """Width and number of patches, read off a pass over shapes alone: nothing is computed."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        training = self.training
        self.eval()
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            pixels = torch.zeros(1, 3, self.config.image_size, self.config.image_size, dtype=torch.uint8)
            shape = self(pixels).shape
        self.train(training)
        return int(shape[2]), int(shape[1])


def _build(config: VisionConfig) -> Any:
    from transformers import AutoConfig, AutoModel

    if config.name:
        try:
            model = AutoModel.from_pretrained(config.name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"vision model {config.name!r} cannot be loaded: {first}") from None
        return getattr(model, "vision_model", model)
    given: dict[str, Any] = dict(config.config)
    kind = given.pop("model_type", None)
    if kind is None:
        raise ConfigError("model.vision: give 'name' (Hugging Face name or folder) or 'config' with a 'model_type'")
    model = AutoModel.from_config(AutoConfig.for_model(kind, **given))
    return model.to(memory_format=torch.channels_last)
