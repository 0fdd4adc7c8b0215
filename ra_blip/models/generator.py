"""The LLM behind one face: soft prompt in, tokens out. Any Hugging Face seq2seq model through ``inputs_embeds``."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra_blip.config import GeneratorConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.from_scratch import CopyHead, LocalMixing


class Generator(nn.Module):
    """A seq2seq LLM with its decoding options in one place.

    Args:
        config: which LLM, prompt lengths and decoding.
        vocabulary: tokenizer size, for an LLM built from a config.
        pad, eos: token ids, likewise.

    Raises:
        ConfigError: neither a name nor a config with a ``model_type``.
        CheckpointError: the named LLM cannot be loaded.
    """

    def __init__(self, config: GeneratorConfig, vocabulary: int, pad: int, eos: int) -> None:
        super().__init__()
        self.config = config
        self.llm = _build(config, vocabulary, pad, eos)
        self.width: int = self.llm.get_input_embeddings().embedding_dim
        self.pad = pad
        scratch = config.from_scratch
        self.mixing = LocalMixing(self.width) if scratch.local_mixing else None
        self.copy_head = CopyHead(self.llm.lm_head) if scratch.copy_head else None
        if self.copy_head is not None:
            self.llm.lm_head = self.copy_head

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, D)."""
        return self.llm.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def word_logits(self, states: Tensor) -> Tensor:
        """States of the LLM's embedding space (B, D) against its vocabulary -> (B, V), scaled as its own output is."""
        return states @ self.llm.get_input_embeddings().weight.T * self.width**-0.5  # type: ignore[no-any-return]

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Prompt embeddings (B, T, D) with valid positions (B, T) -> encoder states (B, T, D)."""
        if self.mixing is not None:
            embeds = self.mixing(embeds, mask)
        out = self.llm.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        return out.last_hidden_state  # type: ignore[no-any-return]

    def token_losses(self, states: Tensor, mask: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced cross-entropy.

        Args:
            states: encoder states (B, T, D).
            mask: valid source positions (B, T).
            source: source token ids (B, T), what a copy head may copy; ``pad`` where a picture stands.
            labels: (B, A) target ids, -100 where there is none.

        Returns:
            (B, A) loss per token, zero where the label is -100.
        """
        inputs = self.llm._shift_right(labels)
        with self._reading(states, mask, source):
            out = self.llm(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=inputs, use_cache=False)
        logits = out.logits.float()
        return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")

    def first_logits(self, states: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        """Logits of the first answer token, (B, V)."""
        start = torch.full((len(states), 1), self.llm.config.decoder_start_token_id, device=states.device)
        with self._reading(states, mask, source):
            out = self.llm(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=start, use_cache=False)
        return out.logits[:, 0].float()  # type: ignore[no-any-return]

    def generate(self, states: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        """Decode answers, (B, A') token ids."""
        from transformers.modeling_outputs import BaseModelOutput

        with self._reading(states, mask, source):
            out = self.llm.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                **self.decoding(),
            )
        return out  # type: ignore[no-any-return]

    def decoding(self) -> dict[str, Any]:
        """The decoding options, as they go to ``generate``."""
        c = self.config
        return {
            "max_new_tokens": c.answer_length,
            "num_beams": c.beams,
            "do_sample": False,
            "repetition_penalty": c.repetition_penalty,
            **({"length_penalty": c.length_penalty} if c.beams > 1 else {}),
        }

    def _reading(self, states: Tensor, mask: Tensor, source: Tensor) -> contextlib.AbstractContextManager[None]:
        if self.copy_head is None:
            return contextlib.nullcontext()
        return self.copy_head.reading(states, mask.bool() & (source != self.pad), source)


def _build(config: GeneratorConfig, vocabulary: int, pad: int, eos: int) -> Any:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    if config.name:
        try:
            return AutoModelForSeq2SeqLM.from_pretrained(config.name)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"LLM {config.name!r} cannot be loaded as a seq2seq model: {first}") from None
    given = dict(config.config)
    kind = given.pop("model_type", None)
    if kind is None:
        raise ConfigError("model.generator: give 'name' (Hugging Face name or folder) or 'config' with a 'model_type'")
    given = {
        "vocab_size": vocabulary,
        "pad_token_id": pad,
        "eos_token_id": eos,
        "decoder_start_token_id": pad,
        **given,
    }
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **given))
