"""Miniature checkpoints in every public layout: LAVIS's names spelled out, Hugging Face's made by its classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ra_blip.config import GeneratorConfig, ModelConfig, QFormerConfig, RetrieverConfig, VisionConfig
from ra_blip.models.processor import Processor
from ra_blip.models.rablip import RABlip
from tests.tiny import processor, shaken

LAYERS, WIDTH, FFN, QUERIES, WORDS, POSITIONS = 3, 128, 24, 3, 263, 20  # heads of 64 and 88, as in the released ones
EYE, EYE_FFN, BLOCKS, PATCHES = 176, 32, 2, 4
LLM = 16
STAGE1, STAGE2, INSTRUCT = "lavis-stage1", "lavis-stage2", "lavis-instruct"


def vocabulary() -> int:
    """Words of the text tokenizer that the tests share."""
    return len(processor().text)


def config(**changes: Any) -> ModelConfig:
    """A model of the miniature sizes."""
    eva = {"width": EYE, "layers": BLOCKS, "heads": 2, "ffn": EYE_FFN, "patch": 8, "image_size": 16}
    llm = {"model_type": "t5", "d_model": LLM, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return ModelConfig(
        vision=VisionConfig(config={"model_type": "eva_vit", **eva, **changes.pop("eva", {})}, image_size=16),
        qformer=QFormerConfig(
            **{
                **{"width": WIDTH, "layers": LAYERS, "heads": 2, "ffn": FFN, "queries": QUERIES, "dropout": 0.0},
                **{"max_positions": POSITIONS, **changes.pop("qformer", {})},
            }
        ),
        retriever=RetrieverConfig(fusion_layers=1, dimension=12, text_length=16),
        generator=GeneratorConfig(config={**llm, **changes.pop("llm", {})}, prompt_length=64, answer_length=4),
    )


def model(seed: int = 0, **changes: Any) -> RABlip:
    """A model of these sizes, all of its weights drawn."""
    own, words = config(**changes), processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = RABlip(own, Processor(own, words.text, words.llm))
    return without_key_bias(shaken(built, seed, 0.05))


def without_key_bias(given: RABlip) -> RABlip:
    """In evaluation mode, with a tower as released: nothing that attention cannot see."""
    with torch.no_grad():
        for block in given.vision.model.blocks:
            block.attention.qkv.bias[EYE : 2 * EYE] = 0
    return given.eval()


def drawn(seed: int, device: str) -> Callable[..., Tensor]:
    """Random tensors of a shape, or nothing but the shape on the device ``meta``."""
    draw = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=draw) if device == "cpu" else torch.empty(shape, device=device)


def lavis(layout: str, llm: str = "t5", tower: bool = False, device: str = "cpu", **sizes: int) -> dict[str, Tensor]:
    """A LAVIS state dict; ``sizes`` override layers, width, ffn, words, positions, queries, eye, llm_width."""
    given = {"layers": LAYERS, "width": WIDTH, "ffn": FFN, "words": vocabulary(), "positions": POSITIONS}
    given |= {"queries": QUERIES, "eye": EYE, "llm_width": LLM, **sizes}
    width, eye, ffn = given["width"], given["eye"], given["ffn"]
    new = drawn(7, device)
    found: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        found[name] = new(*shape)

    def linear(name: str, rows: int, columns: int) -> None:
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def norm(name: str, size: int) -> None:
        put(f"{name}.weight", size)
        put(f"{name}.bias", size)

    put("query_tokens", 1, given["queries"], width)
    norm("ln_vision", eye)
    found["Qformer.bert.embeddings.position_ids"] = torch.arange(given["positions"])[None]
    if layout != STAGE2:
        put("Qformer.bert.embeddings.word_embeddings.weight", given["words"], width)
        put("Qformer.bert.embeddings.position_embeddings.weight", given["positions"], width)
    norm("Qformer.bert.embeddings.LayerNorm", width)
    for i in range(given["layers"]):
        layer = f"Qformer.bert.encoder.layer.{i}"
        for part, source in (("attention", width), *([("crossattention", eye)] if i % 2 == 0 else [])):
            linear(f"{layer}.{part}.self.query", width, width)
            linear(f"{layer}.{part}.self.key", width, source)
            linear(f"{layer}.{part}.self.value", width, source)
            linear(f"{layer}.{part}.output.dense", width, width)
            norm(f"{layer}.{part}.output.LayerNorm", width)
        for branch in ("_query",) if layout == STAGE2 else ("_query", ""):
            linear(f"{layer}.intermediate{branch}.dense", ffn, width)
            linear(f"{layer}.output{branch}.dense", width, ffn)
            norm(f"{layer}.output{branch}.LayerNorm", width)
    if layout == STAGE1:
        linear("Qformer.cls.predictions.transform.dense", width, width)
        norm("Qformer.cls.predictions.transform.LayerNorm", width)
        put("Qformer.cls.predictions.bias", given["words"])
        found["Qformer.cls.predictions.decoder.bias"] = found["Qformer.cls.predictions.bias"]
        words = found["Qformer.bert.embeddings.word_embeddings.weight"]
        found["Qformer.cls.predictions.decoder.weight"] = words
        linear("vision_proj", 256, width)
        linear("text_proj", 256, width)
        linear("itm_head", 2, width)
        found["temp"] = torch.tensor(0.07)
    else:
        linear(f"{llm}_proj", given["llm_width"], width)
    if tower:
        found |= {f"visual_encoder.{name}": value for name, value in eva().items()}
    return found


def eva(
    width: int = EYE,
    blocks: int = BLOCKS,
    ffn: int = EYE_FFN,
    patches: int = PATCHES,
    patch: int = 8,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The bare tower, as ``eva_vit_g.pth`` holds it."""
    new = drawn(8, device)
    found = {"cls_token": new(1, 1, width), "pos_embed": new(1, 1 + patches, width)}
    found |= {"patch_embed.proj.weight": new(width, 3, patch, patch), "patch_embed.proj.bias": new(width)}
    for i in range(blocks):
        shapes = {"norm1": (width,), "norm2": (width,), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
        for name, shape in shapes.items():
            found |= {f"blocks.{i}.{name}.weight": new(*shape), f"blocks.{i}.{name}.bias": new(shape[0])}
        found |= {f"blocks.{i}.attn.{one}_bias": new(width) for one in ("q", "v")}
        found[f"blocks.{i}.attn.qkv.weight"] = new(3 * width, width)
    return found


def hugging_face(layout: str, text: dict[str, Any] | None = None, seed: int = 3, **sizes: int) -> Any:
    """A model of the class that has this layout, all of its weights drawn, key biases zero as released."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2ForImageTextRetrieval,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
    )

    vision = {"hidden_size": EYE, "intermediate_size": EYE_FFN, "num_hidden_layers": BLOCKS, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "layer_norm_eps": 1e-5}
    qformer: dict[str, Any] = {"vocab_size": vocabulary(), "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    qformer |= {"num_attention_heads": 2, "intermediate_size": FFN, "max_position_embeddings": POSITIONS}
    qformer |= {"encoder_hidden_size": EYE, "use_qformer_text_input": layout == "hf-blip2-itm"}
    llm = {"model_type": "t5", "vocab_size": len(processor().llm), "d_model": LLM, "d_kv": 8, "d_ff": 24}
    llm |= {"num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, **(text or {})}
    kinds: dict[str, Any] = {
        "hf-blip2": (Blip2Config, Blip2ForConditionalGeneration),
        "hf-blip2-itm": (Blip2Config, Blip2ForImageTextRetrieval),
        "hf-instructblip": (InstructBlipConfig, InstructBlipForConditionalGeneration),
    }
    config_class, model_class = kinds[layout]
    parts = {"vision_config": vision, "qformer_config": {**qformer, **sizes}, "text_config": llm}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model_class(config_class(**parts, num_query_tokens=QUERIES, image_text_hidden_size=8))
    return shaken(built, seed, 0.05).eval()


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    """A LAVIS file."""
    torch.save({"model": tensors, "epoch": 3}, path)
    return path
