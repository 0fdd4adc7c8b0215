"""The smallest real models: a two-layer Q-Former, a one-layer T5, an untrained eye, tokenizers of a few texts."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ra_blip.config import ModelConfig, QFormerConfig, load_config
from ra_blip.models.processor import Processor, train_tokenizer
from ra_blip.models.rablip import RABlip

COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 40, 210),
    "green": (20, 160, 60),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "brown": (120, 70, 20),
}
TEXTS = [
    "Velora tower was designed by Moro in 1921 and stands in Ardia.",
    "Kimuna hall was designed by Tavi in 1875 and stands in Belor.",
    "Who designed Velora tower? What colour is the roof of Kimuna hall? Which country is this?",
    "A view of Velora tower. A view of Kimuna hall. The roof is red and blue, green or white.",
    "title: fact: caption of image 1: Which item is related to this question?",
]


def qformer_config(**changes: Any) -> QFormerConfig:
    """Two layers, the first of which reads features."""
    given = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "queries": 3, "cross_every": 2, "dropout": 0.0}
    return QFormerConfig(**{**given, "max_positions": 64, **changes})


def model_config(layout: str = "interleaved", overrides: tuple[str, ...] = ()) -> ModelConfig:
    """Sizes of everything; ``overrides`` are ``a.b=c`` below ``model``."""
    eye = "{model_type: resnet, embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1], layer_type: basic}"
    llm = "{model_type: t5, d_model: 16, d_kv: 8, d_ff: 24, num_layers: 1, num_heads: 2, dropout_rate: 0.0}"
    given = [
        f"vision={{image_size: 16, config: {eye}}}",
        "qformer={width: 16, layers: 2, heads: 2, ffn: 24, queries: 2, dropout: 0.0, max_positions: 64}",
        "retriever={fusion_layers: 1, dimension: 12, text_length: 32}",
        f"generator={{layout: {layout}, image_slots: 3, prompt_length: 160, answer_length: 6, config: {llm}}}",
        *overrides,
    ]
    return load_config(None, [f"model.{line}" for line in given]).model


@functools.cache
def _tokenizers() -> tuple[Any, Any]:
    return train_tokenizer(TEXTS, 260, "bert"), train_tokenizer(TEXTS, 260, "t5")


def processor(layout: str = "interleaved", overrides: tuple[str, ...] = ()) -> Processor:
    """A processor of :func:`model_config`; the tokenizers are shared by all tests of a run."""
    return Processor(model_config(layout, overrides), *_tokenizers())


def model(layout: str = "interleaved", overrides: tuple[str, ...] = (), seed: int = 0) -> RABlip:
    """A model in evaluation mode whose every weight is drawn, so that no path through it is closed by a zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = RABlip(model_config(layout, overrides), processor(layout, overrides))
    return shaken(built, seed).eval()


SCRATCH = tuple(f"generator.from_scratch.{name}=true" for name in ("overlap_marks", "copy_head", "local_mixing"))


def shaken(module: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """The module with noise on every parameter; the usual small starts would hide an effect below any tolerance."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draw)
    return module


def picture(folder: Path, name: str) -> str:
    """A small picture in two colours; ``name`` is ``red-blue`` or ``red``."""
    first, _, second = name.partition("-")
    image = Image.new("RGB", (20, 20), COLOURS[first])
    if second:
        image.paste(COLOURS[second], (0, 0, 20, 9))
    folder.mkdir(parents=True, exist_ok=True)
    path, beside = folder / f"{name}.png", folder / f".{name}.{os.getpid()}.png"
    image.save(beside)
    os.replace(beside, path)  # as a whole: two ranks write and read it at once
    return str(path)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal within an absolute tolerance."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance) if a.numel() else a.shape == b.shape


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(config: Any, **fields: Any) -> Any:
    """A config dataclass with other values."""
    return dataclasses.replace(config, **fields)
