"""Sizes between layouts: a checkpoint's shapes to our configuration, and ours to the Hugging Face classes'."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ra_blip.config import ModelConfig, VisionConfig
from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoint_tables import HALVES
from ra_blip.models.checkpoints import View, layers_of, view
from ra_blip.models.eva import MODEL_TYPE, EvaConfig
from ra_blip.models.folder import plain, read_config
from ra_blip.models.lazy_tensors import open_tensors

HEAD, EVA_HEAD = 64, 88  # widths of one attention head in BERT and in ViT-g; a LAVIS file does not say
HUGGING_FACE = {
    "hf-blip2": "Blip2ForConditionalGeneration",
    "hf-blip2-itm": "Blip2ForImageTextRetrieval",
    "hf-instructblip": "InstructBlipForConditionalGeneration",
}
LAVIS_LLMS = {"t5": "t5", "opt": "opt", "llm": "llama"}  # LAVIS's word -> model_type
# What the released models are asked with: LAVIS's own defaults, the instruction alone for InstructBLIP.
INSTRUCT = {"guide": "prompt", "beams": 5, "answer_length": 256, "min_answer_length": 1, "repetition_penalty": 1.5}
BLIP2 = {"template": "Question: {} Short answer:", "beams": 5, "answer_length": 30, "min_answer_length": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "lavis-instruct": INSTRUCT,
    "hf-instructblip": INSTRUCT,
    "lavis-stage2": {**BLIP2, "length_penalty": -1.0},
    "hf-blip2": {**BLIP2, "length_penalty": -1.0},
}
OPT_END = "Ċ"  # BLIP-2's OPT models were trained to end a caption with a new line
Shapes = Mapping[str, tuple[int, ...]]


def released_config(paths: Sequence[str | Path]) -> ModelConfig:
    """The configuration behind released checkpoints.

    Sizes are read off the tensors. Head counts, epsilons and the language model come from ``config.json`` where a path
    is a Hugging Face folder; a LAVIS file names no language model, and its heads have BLIP-2's widths (64; ViT-g: 88).
    Prompt and decoding are the release's. Tokenizers are named by the folder that holds them.

    Raises:
        CheckpointError: as :func:`ra_blip.models.checkpoints.view`; or a width is no multiple of a head's.
    """
    views = [view(open_tensors(path)) for path in paths]
    config = None
    for found in views:
        if found.layout == "native" and found.path.is_dir():
            config = read_config(found.path)
    if config is None:
        given = next((_hugging_face(found.path) for found in reversed(views) if found.layout.startswith("hf-")), None)
        config = config_of(shapes_of(views), given)
    for found in views:
        config.generator = dataclasses.replace(config.generator, **SETTINGS.get(found.layout, {}))
        if found.layout == "lavis-stage2" and found.llm == "opt":
            config.generator.end = OPT_END
        if "project.weight" in found.stored and not config.generator.config and found.layout.startswith("lavis-"):
            config.generator.config = {"model_type": LAVIS_LLMS[found.llm]}
        for kind, place in tokenizer_places(found.layout, found.path).items():
            if (place / "tokenizer_config.json").is_file():
                setattr(config.tokenizer, kind, str(place))
    return config


def tokenizer_places(layout: str, folder: Path) -> dict[str, Path]:
    """Where a folder of this layout keeps the tokenizers of ``llm`` and of the Q-Former, ``text``."""
    if layout == "native":
        return {"llm": folder / "llm_tokenizer", "text": folder / "text_tokenizer"}
    if layout == "hf-blip2-itm":
        return {"text": folder}
    return {"llm": folder, "text": folder / "qformer_tokenizer"} if layout.startswith("hf-") else {}


def shapes_of(views: Sequence[View]) -> dict[str, tuple[int, ...]]:
    """Shapes by our names below a half; later checkpoints win."""
    shapes = {}
    for found in views:
        for name, stored in found.stored.items():
            half, _, rest = name.partition(".")
            shapes[rest if half in HALVES else name] = stored.shape
    return shapes


def config_of(shapes: Shapes, given: Any = None) -> ModelConfig:
    """The configuration of tensors with these shapes; ``given`` is the Hugging Face config that came with them."""
    config = ModelConfig()
    eye = getattr(given, "vision_config", None)
    if "vision.model.pos_embed" in shapes:
        config.vision = _vision(shapes, eye)
    elif "ln_vision.weight" in shapes and shapes["ln_vision.weight"][0] == EvaConfig.width:
        config.vision = VisionConfig(config=EvaConfig().to_dict())  # LAVIS keeps the frozen tower in another file
    if "qformer.query_tokens" in shapes:
        _set_qformer(config, shapes, getattr(given, "qformer_config", None))
    if eye is not None:
        config.qformer.ln_vision_eps = eye.layer_norm_eps
    if (llm := getattr(given, "text_config", None)) is not None:
        config.generator.config = plain(llm.to_dict())
    return config


def _vision(shapes: Shapes, given: Any) -> VisionConfig:
    width, _, patch, _ = shapes["vision.model.patch_embed.weight"]
    side = patch * math.isqrt(shapes["vision.model.pos_embed"][1] - 1)
    eva = EvaConfig(
        width=width,
        layers=len(layers_of(shapes, "vision.model.blocks.{i}.ffn.0.weight")),
        heads=given.num_attention_heads if given is not None else _heads(width, EVA_HEAD, "EVA ViT-g"),
        ffn=shapes["vision.model.blocks.0.ffn.0.weight"][0],
        patch=patch,
        image_size=side,
        eps=given.layer_norm_eps if given is not None else EvaConfig.eps,
    )
    return VisionConfig(config=eva.to_dict(), image_size=side)


def _set_qformer(config: ModelConfig, shapes: Shapes, given: Any) -> None:
    _, queries, width = shapes["qformer.query_tokens"]
    crossed = layers_of(shapes, "qformer.layers.{i}.cross.q.weight")
    config.qformer = dataclasses.replace(
        config.qformer,
        width=width,
        queries=queries,
        layers=len(layers_of(shapes, "qformer.layers.{i}.query_norm.weight")),
        heads=given.num_attention_heads if given is not None else _heads(width, HEAD, "Q-Former"),
        ffn=shapes["qformer.layers.0.query_ffn.0.weight"][0],
        cross_every=crossed.step,
        reader_text="qformer.words.weight" in shapes,
    )
    if "qformer.positions.weight" in shapes:
        config.qformer.max_positions = shapes["qformer.positions.weight"][0]


def _heads(width: int, head: int, part: str) -> int:
    if width % head:
        raise CheckpointError(f"{part} of width {width}: its number of heads is unknown, {head} does not divide it")
    return width // head


def _hugging_face(folder: Path) -> Any:
    from transformers import AutoConfig

    if not folder.is_dir():
        return None
    try:
        return AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json: cannot be read ({str(error).splitlines()[0]})") from None


def hugging_face_config(layout: str, config: ModelConfig, shapes: Shapes, llm: Mapping[str, Any]) -> Any:
    """The config of the Hugging Face class that has this layout.

    Args:
        layout: ``hf-blip2``, ``hf-blip2-itm`` or ``hf-instructblip``.
        config: ours; its tower is EVA ViT-g.
        shapes: of our tensors, below a half.
        llm: the language model's config with its ``model_type``; empty for none.

    Raises:
        CheckpointError: our model is none of theirs: it has another tower.
    """
    from transformers import Blip2Config, InstructBlipConfig

    if config.vision.config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"model.vision: BLIP-2's classes hold an {MODEL_TYPE!r}, this model has another tower")
    eva = EvaConfig(**{key: value for key, value in config.vision.config.items() if key != "model_type"})
    vision: dict[str, Any] = {
        "hidden_size": eva.width,
        "intermediate_size": eva.ffn,
        "num_hidden_layers": eva.layers,
        "num_attention_heads": eva.heads,
        "image_size": eva.image_size,
        "patch_size": eva.patch,
        "layer_norm_eps": eva.eps,
    }
    qformer: dict[str, Any] = {
        "hidden_size": config.qformer.width,
        "num_hidden_layers": config.qformer.layers,
        "num_attention_heads": config.qformer.heads,
        "intermediate_size": config.qformer.ffn,
        "max_position_embeddings": config.qformer.max_positions,
        "cross_attention_frequency": config.qformer.cross_every,
        "encoder_hidden_size": eva.width,
    }
    if "qformer.words.weight" in shapes:
        qformer["vocab_size"] = shapes["qformer.words.weight"][0]
    parts: dict[str, Any] = {
        "vision_config": vision,
        "qformer_config": qformer,
        "num_query_tokens": config.qformer.queries,
        "architectures": [HUGGING_FACE[layout]],
        **({"text_config": dict(llm)} if llm else {}),
    }
    if layout == "hf-instructblip":
        return InstructBlipConfig(**parts)
    if layout == "hf-blip2-itm":
        qformer["use_qformer_text_input"] = True
        parts["image_text_hidden_size"] = shapes.get("vision_proj.weight", (256,))[0]
    return Blip2Config(**parts)
