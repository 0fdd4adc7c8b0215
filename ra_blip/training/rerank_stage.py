"""The stage that trains the generator to say Yes or No to one item: a reranker (RagVL, arXiv 2407.21439)."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra_blip.data.held_out import hold_out
from ra_blip.data.stream import Samples
from ra_blip.errors import ImageError
from ra_blip.models.generator import token_losses
from ra_blip.models.processor import Processor
from ra_blip.models.prompt import YES_NO, relevance_task
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Example, Item, Question
from ra_blip.training import losses
from ra_blip.training.answer_stage import Answer
from ra_blip.training.batches import Batch
from ra_blip.training.stage import Losses, Report
from ra_blip.training.strategy import share
from ra_blip.training.threshold import NATURAL, crossing

Pair = tuple[Question, Item, bool]


class Rerank(Answer):
    """Yes to a gold item, No to one that does not answer, equally often; plain cross-entropy on the answer.

    With a weight on ``qa``, ``askg`` or the picture heads the same model goes on learning to answer (RagVL's "blend");
    without, it becomes a reranker alone. At the end the adaptive threshold is measured on samples that were held out,
    and kept in the model's config.
    """

    def divide(self, source: Samples, seed: int) -> tuple[Samples, list[Any]]:
        """``stage.held_out`` samples are kept for the threshold."""
        return hold_out(source, self.config.held_out, seed)

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """The answer stage's batch, where it has a weight, and ``pairs``: prompts, images, labels, relevant (2B,)."""
        batch = super().collate(samples, rng, step) if self._answers else {}
        drawn = drawn_pairs(samples, int(rng.integers(2**62)))
        return {**batch, "pairs": relevance_batch(drawn, self.model.processor)}

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Term ``relevance_loss`` beside the answer stage's; reports it unweighted, and the share judged right."""
        terms, report = super().forward(batch) if self._answers else ({}, {})
        model, pairs = self.model, batch["pairs"]
        prompts: PromptBatch = pairs["prompts"].to(model.device)
        labels: Tensor = pairs["labels"].to(model.device)
        features = self.features(pairs["images"]) if pairs["images"] else None
        states, source = model.reader.prompt_states(features, prompts)
        logits = model.reader.generator.answer_logits(states, prompts.mask, source, labels)
        loss = losses.generation_loss(token_losses(logits, labels), labels)
        weight = self.config.relevance * share(int((labels != -100).sum()), model.device)
        terms["relevance_loss"] = weight * loss
        report["relevance"] = float(loss.detach())
        yes, no = (logits[:, 0, token].detach() for token in model.processor.yes_no_ids)
        report["relevance_accuracy"] = float(((yes > no).cpu() == pairs["relevant"]).float().mean())
        return terms, report

    def finish(self, held: Sequence[Example], seed: int) -> None:
        """Measure the adaptive threshold on held-out samples; 0.5, and a word on stderr, where there is none."""
        pairs = drawn_pairs(self._whole(held), seed)
        scores: dict[bool, list[float]] = {True: [], False: []}
        for start in range(0, len(pairs), 32):
            part = pairs[start : start + 32]
            found = self.model.yes_no([question for question, _, _ in part], [item for _, item, _ in part])
            for (_, _, relevant), score in zip(part, found.tolist(), strict=True):
                scores[relevant].append(score)
        measured = crossing(scores[True], scores[False])
        if measured is None:
            print(
                f"ra-blip: no threshold from {len(scores[True])} right and {len(scores[False])} wrong held-out pairs: "
                f"{NATURAL} is taken; stage.held_out says how many samples to keep for it",
                file=sys.stderr,
            )
        self.model.config.generator.threshold = NATURAL if measured is None else round(measured, 4)

    def _whole(self, samples: Sequence[Example]) -> list[Example]:
        """The samples whose pictures can be opened; the others are said."""
        open_pictures, whole = self.opener(), []
        for sample in samples:
            try:
                open_pictures(sample)
                whole.append(sample)
            except ImageError as error:
                print(f"ra-blip: held-out sample {sample.question.id!r} is left out: {error}", file=sys.stderr)
        return whole

    @property
    def _answers(self) -> bool:
        weights = self.config
        return any((weights.qa, weights.askg, weights.answer_word, weights.answer_match))


def drawn_pairs(examples: Sequence[Example], seed: int) -> list[Pair]:
    """One gold item and one negative of each example; an example without negatives gives the gold alone.

    The draws follow from ``seed`` and the question's id, so that they are the same whichever rank it falls to.
    """
    pairs: list[Pair] = []
    for example in examples:
        rng = np.random.default_rng([seed, zlib.crc32(example.question.id.encode())])
        for items, relevant in ((example.gold, True), (example.negatives, False)):
            if items:
                pairs.append((example.question, items[int(rng.integers(len(items)))], relevant))
    return pairs


def relevance_batch(pairs: Sequence[Pair], processor: Processor) -> Batch:
    """Pairs as prompts with Yes or No behind them."""
    pictures: dict[str, int] = {}
    prompts = [processor.prompt(relevance_task(item), question, [item]) for question, item, _ in pairs]
    return {
        "prompts": processor.prompts(prompts, pictures),
        "images": list(pictures),
        "labels": processor.targets([YES_NO[0] if relevant else YES_NO[1] for _, _, relevant in pairs]),
        "relevant": torch.tensor([relevant for _, _, relevant in pairs]),
    }
