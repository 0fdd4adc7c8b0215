"""Pictures and prompt into the LLM: Q-Former reading guided by text, projection, soft tokens at their places.

Source: RA-BLIP's generation half (its own Q-Former; slot and position embeddings over the picture concatenation).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ra_blip.config import GeneratorConfig, QFormerConfig
from ra_blip.models.attention import KeyValue, gather_kv
from ra_blip.models.from_scratch import MatchHead
from ra_blip.models.generator import Generator
from ra_blip.models.qformer import QFormer, TextUse

Read = tuple[tuple[str, ...], str]  # the pictures that are read together, and the text that guides the reading


@dataclasses.dataclass
class PromptBatch:
    """Tokenised prompts with their pictures. A picture read twice under the same guide is read once.

    Attributes:
        ids: (B, T) token ids; every position of a soft token holds the image id.
        mask: (B, T) valid positions.
        reads: what is read, R distinct entries.
        slots: (R, S) rows of the batch's picture features that each read sees, -1 for an empty slot.
        guide: (R, L) Q-Former token ids of each read.
        guide_mask: (R, L) valid guide tokens.
        uses: (M,) the read behind each block of soft tokens, blocks in prompt order.
    """

    ids: Tensor
    mask: Tensor
    reads: list[Read]
    slots: Tensor
    guide: Tensor
    guide_mask: Tensor
    uses: Tensor

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on another device."""
        tensors = ("ids", "mask", "slots", "guide", "guide_mask", "uses")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


class Reader(nn.Module):
    """Q-Former, projection and generator.

    Args:
        qformer: sizes of this half's own Q-Former.
        config: LLM, prompt layout and number of picture slots.
        vocabulary: number of Q-Former text tokens.
        feature_width: width W of the visual features.
        patches: features per picture N, for the position embedding of the ``release`` layout.
        image_id: token id that marks soft-token positions.
        generator: the LLM.
    """

    def __init__(
        self,
        qformer: QFormerConfig,
        config: GeneratorConfig,
        vocabulary: int,
        feature_width: int,
        patches: int,
        image_id: int,
        generator: Generator,
    ) -> None:
        super().__init__()
        self.image_id = image_id
        self.ln_vision = nn.LayerNorm(feature_width, eps=qformer.ln_vision_eps)
        text: TextUse = "guide" if qformer.reader_text else "none"
        self.qformer = QFormer(qformer, vocabulary, feature_width, text=text)
        self.project = nn.Linear(qformer.width, generator.width)
        self.generator = generator
        self.match_head = MatchHead(qformer.width, generator.width) if config.from_scratch.match_head else None
        self.joint = config.layout == "release"
        if self.joint:  # zero at the start: with one picture the model equals InstructBLIP
            self.slot_embedding = nn.Parameter(torch.zeros(config.image_slots, 1, feature_width))
            self.position_embedding = nn.Parameter(torch.zeros(config.image_slots, patches, feature_width))

    def soft_tokens(self, features: Tensor, batch: PromptBatch) -> Tensor:
        """Read the pictures of a batch.

        Args:
            features: (U, N, W), each distinct picture once.
            batch: which read sees which pictures, guided by what.

        Returns:
            (R, Q, D) in the LLM's space, one block a read.
        """
        source, valid = self._joint(features, batch.slots) if self.joint else self._single(features, batch.slots)
        if self.qformer.text == "none":
            out = self.qformer("image", source, valid)
        else:
            out = self.qformer("instruct", source, valid, batch.guide, batch.guide_mask)
        assert out.queries is not None
        soft: Tensor = self.project(out.queries)
        if self.match_head is not None and self.qformer.words is not None:
            soft = self.match_head.write(soft, out.queries, self.qformer.words(batch.guide), batch.guide_mask)
        return soft

    def _single(self, features: Tensor, slots: Tensor) -> tuple[list[KeyValue], None]:
        """Keys and values once per distinct picture, then one row a read."""
        kv = gather_kv(self.qformer.cross_kv(self.ln_vision(features)), slots[:, 0])
        assert kv is not None
        return kv, None

    def _joint(self, features: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures of a read side by side, (R, S x N, W), with slot and position embeddings; empty slots masked."""
        seen = self.ln_vision(features)[slots.clamp(min=0)]  # (R, S, N, W)
        seen = seen + self.slot_embedding[: slots.shape[1]] + self.position_embedding[: slots.shape[1]]
        valid = (slots >= 0)[..., None].expand(-1, -1, seen.shape[2])  # (R, S, N)
        return seen.flatten(1, 2), valid.flatten(1)

    def embed(self, batch: PromptBatch, soft: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prompt embeddings (B, T, D) with the soft tokens in place, and the source ids (B, T) with pads there."""
        here = batch.ids == self.image_id  # (B, T)
        source = batch.ids.masked_fill(here, self.generator.pad)
        embeds = self.generator.embed(source)
        if soft is not None:
            blocks = soft.index_select(0, batch.uses)  # (M, Q, D)
            embeds = embeds.masked_scatter(here[..., None], blocks.to(embeds.dtype))
        return embeds, source

    def prompt_states(self, features: Tensor | None, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """What the generator answers from (B, T, D), and source ids (B, T); ``features`` is None without pictures."""
        soft = None if features is None else self.soft_tokens(features, batch)
        embeds, source = self.embed(batch, soft)
        return self.generator.encode(embeds, batch.mask), source

    def encode(self, features: Tensor | None, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """What the ranker pools: the LLM's states over the prompt (B, T, D) float32, and source ids (B, T)."""
        states, source = self.prompt_states(features, batch)
        return self.generator.contextual(states, batch.mask), source
