"""Any Hugging Face language model, seq2seq or causal, by name or folder or from a config, in its number format."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ra_blip.config import GeneratorConfig, Precision
from ra_blip.errors import CheckpointError, ConfigError

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def llm_config(config: GeneratorConfig) -> Any:
    """The Hugging Face config of the LLM, with the overrides that stand beside a name; nothing is built.

    BLIP-2's and InstructBLIP's T5 were trained with the exact GELU, as ``config: {dense_act_fn: gelu}`` beside
    ``name: google/flan-t5-xl`` says; a Flan-T5 on its own uses the approximation.

    Raises:
        ConfigError: neither a name nor a config with a ``model_type``, or an override that the LLM does not know.
        CheckpointError: the name leads to no config.
    """
    from transformers import AutoConfig

    given = dict(config.config)
    kind = given.pop("model_type", None)
    if config.name:
        try:
            found = AutoConfig.from_pretrained(config.name)
        except (OSError, ValueError) as error:
            raise _unloadable(config.name, error) from None
        for key, value in given.items():
            if not hasattr(found, key):
                raise ConfigError(f"model.generator.config: {found.model_type} has no setting {key!r}")
            setattr(found, key, value)
        return found
    if kind is None:
        raise ConfigError("model.generator: give 'name' (Hugging Face name or folder) or 'config' with a 'model_type'")
    try:
        return AutoConfig.for_model(kind, **given)
    except ValueError as error:
        raise ConfigError(f"model.generator.config: {str(error).splitlines()[0]}") from None


def build_llm(config: GeneratorConfig, vocabulary: int, pad: int, eos: int, precision: Precision = "fp32") -> Any:
    """The LLM with its head.

    Args:
        config: which one.
        vocabulary: tokenizer size, for an LLM built from a config that does not say.
        pad, eos: token ids, likewise.
        precision: number format of all its weights.

    Raises:
        ConfigError: as :func:`llm_config`; T5 in fp16, whose activations overflow.
        CheckpointError: the named LLM cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if not config.name:
        ids = {"vocab_size": vocabulary, "pad_token_id": pad, "eos_token_id": eos, "decoder_start_token_id": pad}
        config = GeneratorConfig(config={**ids, **config.config})
    wanted = llm_config(config)
    if precision == "fp16" and wanted.model_type in ("t5", "mt5", "umt5"):
        raise ConfigError(f"model.precision.llm: {wanted.model_type} overflows in fp16; use bf16 or fp32")
    auto = AutoModelForSeq2SeqLM if wanted.is_encoder_decoder else AutoModelForCausalLM
    if config.name:
        try:
            return auto.from_pretrained(config.name, config=wanted, dtype=DTYPES[precision])
        except (OSError, ValueError) as error:
            raise _unloadable(config.name, error) from None
    kind: Any = auto
    llm: Any = kind.from_config(wanted, dtype=DTYPES[precision])
    if getattr(wanted, "scale_decoder_outputs", True) is False:
        # T5 v1.1 and Flan-T5 have an output matrix of their own; transformers 5 ties it where no checkpoint is read
        llm.lm_head.weight = nn.Parameter(llm.lm_head.weight.detach().clone())
    return llm


def _unloadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"LLM {name!r} cannot be loaded: {str(error).splitlines()[0]}")
