"""The frozen eye: any Hugging Face vision model by name, folder or config, or EVA ViT-g; pixels to features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import VisionConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.eva import MODEL_TYPE, EvaConfig, EvaViT
from ra_blip.models.from_scratch import ConceptHead


class VisionTower(nn.Module):
    """uint8 pixels to patch features (B, N, W). Normalisation happens here, on the device that holds the model.

    Args:
        config: which model, at what picture size, and which hidden state is read.

    Raises:
        ConfigError: neither a name nor a config with a ``model_type`` is given, or the model cannot work as configured.
        CheckpointError: the named model cannot be loaded.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _build(config)
        self.width, self.patches = self._measure()
        self.concepts = ConceptHead(self.width, config.concepts) if config.concepts else None

    def train(self, mode: bool = True) -> VisionTower:
        """As usual, but a frozen model stays in evaluation mode: no dropout, no change of running statistics."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, N, W) features, class token first where the model has one."""
        return self.read(self.normalise(pixels))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> float32 of about mean 0 and variance 1, whatever the model's own number format."""
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.config.mean, self.config.std))
        return (pixels.float() / 255.0 - mean) / std

    def read(self, x: Tensor) -> Tensor:
        """Features (B, N, W) of normalised pixels (B, 3, S, S)."""
        x = x.to(next(self.model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        layer = self.config.layer
        if isinstance(self.model, EvaViT):
            return self.model(x, layer)  # type: ignore[no-any-return]
        if layer == -1:
            state = self.model(x).last_hidden_state
        else:
            state = self.model(x, output_hidden_states=True).hidden_states[layer]
        if state.dim() == 4:  # a convolutional map (B, W, H', W')
            state = state.flatten(2).transpose(1, 2)  # (B, N, W)
        return state  # type: ignore[no-any-return]

    def _measure(self) -> tuple[int, int]:
        """Width and number of patches, read off a pass over shapes alone: nothing is computed."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        training, device = self.training, next(self.model.parameters()).device
        self.eval()
        size = self.config.image_size
        try:
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
                shape = self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape
        except (ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"model.vision: {reason} (image_size {size}, layer {self.config.layer}); "
                "set image_size to the model's own, and layer to one that it has"
            ) from None
        self.train(training)
        return int(shape[2]), int(shape[1])


def _build(config: VisionConfig) -> Any:
    model = _load(config.name) if config.name else _from_config(config)
    if config.gradient_checkpointing and not isinstance(model, EvaViT):
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(f"model.vision.gradient_checkpointing: {error}") from None
    return model


def _load(name: str) -> Any:
    """The vision part of a Hugging Face model, by name or folder."""
    from transformers import MODEL_MAPPING, AutoModel

    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"vision model {name!r} cannot be loaded: {first}") from None
    model = getattr(model, "vision_model", model)
    if type(model.config) not in MODEL_MAPPING:  # a saved model folder could not build it again
        raise CheckpointError(
            f"vision model {name!r}: its {model.config.model_type!r} does not stand alone; BLIP-2's tower is "
            f"model.vision.config {{model_type: {MODEL_TYPE}}}"
        )
    return model


def _from_config(config: VisionConfig) -> Any:
    from transformers import AutoConfig, AutoModel

    given: dict[str, Any] = dict(config.config)
    kind = given.pop("model_type", None)
    if kind is None:
        raise ConfigError("model.vision: give 'name' (Hugging Face name or folder) or 'config' with a 'model_type'")
    if kind == MODEL_TYPE:
        return EvaViT(EvaConfig.from_dict(given), config.gradient_checkpointing)
    try:
        model = AutoModel.from_config(AutoConfig.for_model(kind, **given))
    except ValueError as error:
        raise ConfigError(f"model.vision.config: {str(error).splitlines()[0]}") from None
    return model.to(memory_format=torch.channels_last)
