"""Start from a BERT: a Q-Former's embeddings, self-attention and feed-forwards (as BLIP-2 does), and the fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ra_blip.errors import CheckpointError
from ra_blip.models.fusion import Fusion
from ra_blip.models.qformer import QFormer


def start_from_bert(qformer: QFormer, name: str, fusion: Fusion | None = None) -> None:
    """Copy a BERT-architecture model into ``qformer``, as many layers as both have.

    Queries get the text's feed-forward weights to start from. Tokens that were added to the tokenizer, cross-attention
    and query tokens keep their random start. The norms stand where BERT has them only with ``norm_first`` off.

    Args:
        qformer: changed in place.
        name: Hugging Face name or folder of the model.
        fusion: of the same sizes; it gets the last layers, so that it continues what the Q-Former began.

    Raises:
        CheckpointError: it cannot be loaded, is not of BERT's architecture, or its widths are others.
    """
    bert = _load(name)
    _check(qformer, bert.config, name)
    with torch.no_grad():
        if qformer.words is not None and qformer.positions is not None:
            _copy(qformer.words.weight, bert.embeddings.word_embeddings.weight)
            _copy(qformer.positions.weight, bert.embeddings.position_embeddings.weight)
            # every token is of type 0 here; its embedding goes into the positions
            qformer.positions.weight += bert.embeddings.token_type_embeddings.weight[0]
        qformer.embedding_norm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
        for layer, given in zip(qformer.layers, bert.encoder.layer, strict=False):
            _copy_layer(layer, given, [(layer.text_ffn, layer.text_norm), (layer.query_ffn, layer.query_norm)])
        if fusion is not None:
            last = list(bert.encoder.layer)[-len(fusion.layers) :]
            for layer, given in zip(fusion.layers, last, strict=False):
                _copy_layer(layer, given, [(layer.ffn, layer.ffn_norm)])


def _copy_layer(layer: Any, given: Any, feed_forwards: Sequence[tuple[Any, Any]]) -> None:
    own, heads = layer.attention, given.attention.self
    projections = (heads.query, heads.key, heads.value)
    own.qkv.weight.copy_(torch.cat([part.weight for part in projections]))
    own.qkv.bias.copy_(torch.cat([part.bias for part in projections]))
    own.out.load_state_dict(given.attention.output.dense.state_dict())
    layer.attention_norm.load_state_dict(given.attention.output.LayerNorm.state_dict())
    for ffn, norm in feed_forwards:
        if ffn is None:  # no text branch
            continue
        ffn[0].load_state_dict(given.intermediate.dense.state_dict())
        ffn[2].load_state_dict(given.output.dense.state_dict())
        norm.load_state_dict(given.output.LayerNorm.state_dict())


def _copy(own: Tensor, given: Tensor) -> None:
    rows = min(len(own), len(given))
    own[:rows] = given[:rows]


def _load(name: str) -> Any:
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"model.qformer.text_init: {name!r} cannot be loaded: {first}") from None
    if getattr(model.config, "model_type", "") != "bert":
        raise CheckpointError(f"model.qformer.text_init: {name!r} is a {model.config.model_type!r}, not a 'bert'")
    return model


def _check(qformer: QFormer, found: Any, name: str) -> None:
    """Widths, heads and activation must be equal; a vocabulary that is larger than the tokenizer's is another one."""
    config = qformer.config
    wanted = {
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
    }
    for key, value in wanted.items():
        if getattr(found, key) != value:
            raise CheckpointError(
                f"model.qformer.text_init: {name!r} has {key} {getattr(found, key)}, the Q-Former {value}; "
                "change model.qformer to fit"
            )
    if qformer.words is None:
        return
    if found.max_position_embeddings < config.max_positions or found.vocab_size > qformer.words.num_embeddings:
        raise CheckpointError(
            f"model.qformer.text_init: {name!r} has {found.max_position_embeddings} positions and {found.vocab_size} "
            f"tokens, the Q-Former {config.max_positions} and {qformer.words.num_embeddings}; "
            "set model.qformer.max_positions, and model.tokenizer.text to the same model"
        )
