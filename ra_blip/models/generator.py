"""The LLM behind one face: soft prompt in, tokens out. Any Hugging Face seq2seq or causal model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra_blip.config import GeneratorConfig, LoraConfig, Precision
from ra_blip.errors import ConfigError
from ra_blip.models.from_scratch import CopyHead, LocalMixing
from ra_blip.models.llm import build_llm
from ra_blip.models.lora import add_lora


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, A, V) logits with (B, A) labels -> (B, A), 0 where the label is -100."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")


class Generator(nn.Module):
    """A seq2seq LLM with its decoding options in one place.

    Prompts come padded on the right, as embeddings (B, T, D) with a mask. ``encode`` makes of them the states that
    all other methods take, so that a prompt that is asked several things is encoded once.

    Args:
        config: prompt lengths and decoding.
        llm: the Hugging Face model with its head.
        pad: token id that fills a batch.
        eos: token id that ends an answer.
    """

    def __init__(self, config: GeneratorConfig, llm: Any, pad: int, eos: int) -> None:
        super().__init__()
        self.config = config
        self.llm = llm
        self.width: int = self.llm.get_input_embeddings().embedding_dim
        self.pad, self.eos = pad, eos
        scratch = config.from_scratch
        self.mixing = LocalMixing(self.width) if scratch.local_mixing else None
        self.copy_head = CopyHead(self.llm.lm_head) if scratch.copy_head else None
        if self.copy_head is not None:
            self.llm.lm_head = self.copy_head
        if config.lora.rank:
            add_lora(self.llm, config.lora)

    def train(self, mode: bool = True) -> Generator:
        """As usual, but a frozen LLM stays in evaluation mode, whatever is trained beside it: no dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.llm.parameters()):
            self.llm.eval()
        return self

    def adapt(self, config: LoraConfig) -> None:
        """Put low-rank adapters into an LLM that has none yet, and keep that in the config. Raises as ``add_lora``."""
        add_lora(self.llm, config)
        self.config.lora = config

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, D)."""
        return self.llm.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def word_logits(self, states: Tensor) -> Tensor:
        """States of the LLM's embedding space (B, D) against its vocabulary -> (B, V), scaled as its own output is."""
        words = self.llm.get_input_embeddings().weight
        return states.to(words.dtype) @ words.T * self.width**-0.5  # type: ignore[no-any-return]

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Prompt embeddings (B, T, D) with valid positions (B, T) -> the states (B, T, D) that the LLM answers from."""
        if self.mixing is not None:
            embeds = self.mixing(embeds, mask)
        out = self.llm.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        return out.last_hidden_state  # type: ignore[no-any-return]

    def contextual(self, states: Tensor, mask: Tensor) -> Tensor:
        """States as the ranker pools them, after the prompt was read: (B, T, D), (B, T) -> (B, T, D) float32."""
        return states.float()

    def token_losses(self, states: Tensor, mask: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced cross-entropy.

        Args:
            states: of :meth:`encode` (B, T, D).
            mask: valid source positions (B, T).
            source: source token ids (B, T), what a copy head may copy; ``pad`` where a picture stands.
            labels: (B, A) target ids, -100 where there is none.

        Returns:
            (B, A) loss per token, zero where the label is -100.
        """
        return token_losses(self.answer_logits(states, mask, source, labels), labels)

    def answer_logits(self, states: Tensor, mask: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced logits (B, A, V) float32; arguments as :meth:`token_losses`."""
        inputs = self.llm.prepare_decoder_input_ids_from_labels(labels=labels)
        return self._decode(states, mask, source, inputs)

    def first_logits(self, states: Tensor, mask: Tensor, source: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits of the first answer token, (B, V) float32; of ``tokens`` alone, in that order, where they are given.

        Then a plain output layer computes no others, which saves most of a step with a large vocabulary.
        """
        start = torch.full((len(states), 1), self.llm.config.decoder_start_token_id, device=states.device)
        return self._decode(states, mask, source, start, tokens)[:, 0]

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
        """The decoding options, as they go to ``generate``; nothing is sampled."""
        c = self.config
        return {
            "max_new_tokens": c.answer_length,
            "num_beams": c.beams,
            "do_sample": False,
            "repetition_penalty": c.repetition_penalty,
            **({"length_penalty": c.length_penalty} if c.beams > 1 else {}),
            **({"min_new_tokens": c.min_answer_length} if c.min_answer_length else {}),
        }

    def _decode(
        self, states: Tensor, mask: Tensor, source: Tensor, inputs: Tensor, tokens: Sequence[int] | None = None
    ) -> Tensor:
        with self._reading(states, mask, source):
            given = {"encoder_outputs": (states,), "attention_mask": mask, "decoder_input_ids": inputs}
            return self._logits_of(tokens, given).float()

    def _logits_of(self, tokens: Sequence[int] | None, given: dict[str, Any]) -> Tensor:
        """The LLM's logits for its arguments, of ``tokens`` alone where they are given.

        A plain output layer is then called with those rows of its matrix; another one (a copy head, whose shares are
        of the whole vocabulary, or one with adapters) computes all.
        """
        if tokens is None:
            return self.llm(**given, use_cache=False).logits  # type: ignore[no-any-return]
        head, wanted = self.llm.get_output_embeddings(), list(tokens)
        if type(head) is not nn.Linear:
            return self.llm(**given, use_cache=False).logits[..., wanted]  # type: ignore[no-any-return]
        place = next(name for name, module in self.llm.named_modules() if module is head)
        rows = {f"{place}.{name}": value[wanted] for name, value in head.named_parameters()}
        bias = getattr(self.llm, "final_logits_bias", None)  # BART's, (1, V)
        rows |= {} if bias is None else {"final_logits_bias": bias[:, wanted]}
        arguments = {**given, "use_cache": False}
        out = torch.func.functional_call(self.llm, rows, kwargs=arguments, tie_weights=False)
        return out.logits  # type: ignore[no-any-return]

    def _reading(self, states: Tensor, mask: Tensor, source: Tensor) -> contextlib.AbstractContextManager[None]:
        if self.copy_head is None:
            return contextlib.nullcontext()
        return self.copy_head.reading(states, mask.bool() & (source != self.pad), source)


class CausalGenerator(Generator):
    """A causal LLM: soft prompt, prompt and answer are one sequence, and the loss is on the answer.

    Its states are the prompt embeddings themselves. Answers are put right behind each row's last valid position, and
    for decoding rows are moved to the right, so that neither a batch's padding nor its company changes a position.
    """

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """The embeddings as they are; (B, T, D)."""
        return embeds

    def contextual(self, states: Tensor, mask: Tensor) -> Tensor:
        """The last layer's states over the prompt, (B, T, D) float32."""
        out = self.llm.base_model(inputs_embeds=states, attention_mask=mask, use_cache=False)
        return out.last_hidden_state.float()  # type: ignore[no-any-return]

    def answer_logits(self, states: Tensor, mask: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        """Teacher-forced logits (B, A, V) float32; ``source`` is not read."""
        lengths = mask.sum(-1)  # (B,)
        at = lengths[:, None] + torch.arange(labels.shape[1], device=labels.device)  # (B, A) where answers stand
        room = torch.zeros_like(states[:, :1]).expand(-1, labels.shape[1], -1)
        answer = self.embed(labels.clamp(min=0))  # (B, A, D)
        joint = torch.cat([states, room], dim=1)  # (B, T + A, D)
        joint = joint.scatter(1, at[..., None].expand_as(answer), answer.to(joint.dtype))
        valid = torch.cat([mask, torch.zeros_like(labels, dtype=mask.dtype)], dim=1)  # (B, T + A)
        valid = valid.scatter(1, at, (labels != -100).to(mask.dtype))
        first = int(lengths.min()) - 1  # the shortest prompt's last position tells its first answer token
        logits = self._logits(joint, valid, torch.arange(first, joint.shape[1] - 1, device=at.device))
        rows = (at - 1 - first)[..., None].expand(-1, -1, logits.shape[-1])
        return logits.gather(1, rows).float()

    def first_logits(self, states: Tensor, mask: Tensor, source: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """As of a seq2seq LLM; ``source`` is not read."""
        last, row = (mask.sum(-1) - 1).unique(return_inverse=True)
        logits = self._logits(states, mask, last, tokens)
        return logits[torch.arange(len(row), device=row.device), row].float()

    def generate(self, states: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        """Decode answers, (B, A') token ids; ``source`` is not read, and the prompt is not in the result.

        A repetition penalty counts the answer's own tokens and not the prompt's, as in LAVIS.
        """
        length = mask.shape[1]
        from_right = (torch.arange(length, device=mask.device) + mask.sum(-1, keepdim=True)) % length  # (B, T)
        return self.llm.generate(  # type: ignore[no-any-return]
            inputs_embeds=states.gather(1, from_right[..., None].expand_as(states)),
            attention_mask=mask.gather(1, from_right),
            **self.decoding(),
        )

    def decoding(self) -> dict[str, Any]:
        """As of a seq2seq LLM, with the ids that end and fill an answer, which causal LLMs do not agree upon."""
        return {**super().decoding(), "eos_token_id": self.eos, "pad_token_id": self.pad}

    def _logits(self, embeds: Tensor, mask: Tensor, keep: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits at the positions ``keep`` only, (B, K, V): a large vocabulary at every position fills the memory."""
        return self._logits_of(tokens, {"inputs_embeds": embeds, "attention_mask": mask, "logits_to_keep": keep})


def build_generator(
    config: GeneratorConfig, vocabulary: int, pad: int, eos: int, precision: Precision = "fp32"
) -> Generator:
    """The generator around the LLM that ``config`` names; arguments and errors as :func:`ra_blip.models.llm.build_llm`.

    Raises:
        ConfigError: also where ``from_scratch`` stands beside a causal LLM or another number format than fp32.
    """
    llm = build_llm(config, vocabulary, pad, eos, precision)
    scratch = config.from_scratch
    causal = not llm.config.is_encoder_decoder
    if (scratch.copy_head or scratch.local_mixing) and (causal or precision != "fp32"):
        raise ConfigError("model.generator.from_scratch: copy_head and local_mixing need a seq2seq LLM in fp32")
    return (CausalGenerator if causal else Generator)(config, llm, pad, eos)
