"""Weights of transformers' BLIP-2 and InstructBLIP modules under our names, written without our own tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LAYER = {
    "attention.attention.query": "attention.qkv",  # rows in this order
    "attention.attention.key": "attention.qkv",
    "attention.attention.value": "attention.qkv",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "crossattention.attention.query": "cross.q",
    "crossattention.attention.key": "cross.kv",
    "crossattention.attention.value": "cross.kv",
    "crossattention.output.dense": "cross.out",
    "crossattention.output.LayerNorm": "cross_norm",
    "intermediate.dense": "text_ffn.0",
    "output.dense": "text_ffn.2",
    "output.LayerNorm": "text_norm",
    "intermediate_query.dense": "query_ffn.0",
    "output_query.dense": "query_ffn.2",
    "output_query.LayerNorm": "query_norm",
}
TOP = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.layernorm": "embedding_norm",
    "layernorm": "embedding_norm",
}
BLOCK = {
    "layer_norm1": "attention_norm",
    "self_attn.qkv": "attention.qkv",
    "self_attn.projection": "attention.out",
    "layer_norm2": "ffn_norm",
    "mlp.fc1": "ffn.0",
    "mlp.fc2": "ffn.2",
}
VISION = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.weight",
    "embeddings.patch_embedding.bias": "patch_embed.bias",
}


def qformer_state(theirs: Mapping[str, Tensor], query_tokens: Tensor) -> dict[str, Tensor]:
    """A Q-Former's state from that of a Hugging Face one, whose embeddings may lie beside it."""
    found: dict[str, list[Tensor]] = {"query_tokens": [query_tokens.detach()]}
    for part in LAYER:  # in this order, so that what is joined is joined rightly
        for name, value in theirs.items():
            left, _, right = name.partition(f".{part}.")
            if left.startswith("encoder.layer.") and left.count(".") == 2 and right:
                found.setdefault(f"layers.{left.split('.')[2]}.{LAYER[part]}.{right}", []).append(value)
    for name, value in theirs.items():
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            found[f"{TOP[stem]}.{kind}"] = [value]
    return {name: torch.cat(values) if len(values) > 1 else values[0] for name, values in found.items()}


def eva_state(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An EVA tower's state from that of a Hugging Face BLIP-2 vision model; the norm at its end is left out."""
    found = {ours: theirs[name] for name, ours in VISION.items()}
    for name, value in theirs.items():
        if name.startswith("encoder.layers."):
            _, _, number, rest = name.split(".", 3)
            stem, _, kind = rest.rpartition(".")
            found[f"blocks.{number}.{BLOCK[stem]}.{kind}"] = value
    return found
