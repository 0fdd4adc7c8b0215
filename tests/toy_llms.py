"""Toy language models of several families with tokenizers in each family's style, and released folders around them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from tests.tiny import TEXTS, shaken

FAMILIES = ("llama", "opt", "qwen2", "gpt2")  # causal
SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0},
    "bart": {
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "max_position_embeddings": 96},
    },
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "opt": {
        **{"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "max_position_embeddings": 96, "dropout": 0.0},
    },
    "qwen2": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        "num_key_value_heads": 1,
    },
    "gpt2": {
        **{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
}


@functools.cache
def _trained(style: str) -> Any:
    import tokenizers as tk

    specials = {
        "t5": ["<pad>", "</s>", "<unk>"],
        "llama": ["<unk>", "<s>", "</s>"],
        "vicuna": ["<unk>", "<s>", "</s>"],
        "opt": ["<s>", "<pad>", "</s>", "<unk>"],
    }[style]
    inner = tk.Tokenizer(tk.models.BPE(unk_token="<unk>"))
    if style == "opt":
        inner.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tk.decoders.ByteLevel()
        alphabet = ["Ċ", "Ġ"]
    else:
        inner.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = tk.decoders.Metaspace(prepend_scheme="first")
        alphabet = ["▁"]
    letters = [chr(code) for code in range(33, 127)]
    inner.train_from_iterator(
        TEXTS,
        tk.trainers.BpeTrainer(
            vocab_size=260, special_tokens=specials, initial_alphabet=[*letters, *alphabet], show_progress=False
        ),
    )
    template = {"t5": "$A </s>", "llama": "<s> $A", "vicuna": "</s> $A", "opt": "</s> $A"}[style]
    used = [(token, inner.token_to_id(token)) for token in specials if token in template.split()]
    inner.post_processor = tk.processors.TemplateProcessing(single=template, special_tokens=used)
    return inner


def tokenizer(family: str) -> Any:
    """A new tokenizer in a family's style: T5 ends with ``</s>``; Llama begins with ``<s>``, Vicuna as OPT ``</s>``."""
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    style = family if family in ("t5", "llama", "vicuna") else "opt"
    names = {"unk_token": "<unk>", "eos_token": "</s>"}
    names |= {"pad_token": "<pad>"} if style in ("t5", "opt") else {}
    names |= {"t5": {}, "llama": {"bos_token": "<s>"}}.get(style, {"bos_token": "</s>"})
    inner = tk.Tokenizer.from_str(_trained(style).to_str())
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def llm_settings(family: str, words: Any, **changes: Any) -> dict[str, Any]:
    """A config as it stands in a recipe, for a vocabulary that leaves room for one more token."""
    ids = {"pad_token_id": words.pad_token_id or 0, "eos_token_id": words.eos_token_id}
    ids |= {"decoder_start_token_id": ids["pad_token_id"]} if family in ("t5", "bart") else {}
    return {"model_type": family, **SIZES[family], **ids, "vocab_size": len(words) + 3, **changes}


def released_folder(folder: Path, kind: str, family: str, seed: int = 0, **text: Any) -> Any:
    """Write a folder as the hub has them, of toy size and with every weight drawn, and return the model in it.

    Args:
        folder: where.
        kind: ``blip-2`` or ``instructblip``.
        family: the language model's.
        seed: of the weights.
        text: further settings of the language model.
    """
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
    )

    from ra_blip.models.processor import train_tokenizer

    words, guide = tokenizer("vicuna" if family == "llama" else family), train_tokenizer(TEXTS, 260, "bert")
    words.add_tokens(["<image>"], special_tokens=True)
    small = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 1}
    sizes = {  # one head each, as wide as the released models' heads: LAVIS files do not say how many there are
        "vision_config": {**small, "hidden_size": 88, "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6},
        "qformer_config": {
            **{**small, "hidden_size": 64, "encoder_hidden_size": 88},
            **{"vocab_size": len(guide), "max_position_embeddings": 64},
        },
        "text_config": llm_settings(family, words, **text),
        "num_query_tokens": 3,
        "image_token_index": words.convert_tokens_to_ids("<image>"),
    }
    configs = {"blip-2": Blip2Config, "instructblip": InstructBlipConfig}
    models = {"blip-2": Blip2ForConditionalGeneration, "instructblip": InstructBlipForConditionalGeneration}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models[kind](configs[kind](**sizes))
    head = model.language_model.get_output_embeddings()
    if text.get("tie_word_embeddings") is False:  # as Flan-T5 and Llama have it
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model = shaken(model, seed, 0.1).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if kind == "instructblip":
        guide.save_pretrained(folder / "qformer_tokenizer")
    return model
