"""The stage that trains the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.errors import ConfigError
from ra_blip.models.generator import token_losses
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Example
from ra_blip.training import batches, losses
from ra_blip.training.batches import Batch
from ra_blip.training.noise import contrast_weights, diffuse, weighted_loss
from ra_blip.training.stage import Losses, Report, Stage
from ra_blip.training.strategy import share


class Answer(Stage):
    """The generator: QA plus weighted ASKG, both read from the same pictures in the same step (RA-BLIP).

    With ``noise_step`` the QA tokens are weighed by what they owe to the pictures, see ``training/noise.py``; without,
    they weigh the same. Prompts with hard negatives in them (``retrieved``) are RagVL's noise at the level of data.
    """

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """As :func:`ra_blip.training.batches.answer_batch`, plus ``warm``: whether this step is warm-up.

        With noise, ``noise`` is the seed that it is drawn from.
        """
        warm = step < self.config.warmup_steps
        retrieved = self.config.warmup_retrieved if warm else self.config.retrieved
        batch = batches.answer_batch(samples, self.model.processor, self.config, retrieved, rng)
        noise = {"noise": int(rng.integers(2**62))} if self.config.noise_step else {}
        return {**batch, "warm": warm, **noise}

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Terms ``qa_loss``, ``askg_loss``, ``word_loss``, ``match_loss``, those with a weight.

        The report has the first two unweighted.
        """
        model, config = self.model, self.config
        prompts: PromptBatch = batch["prompts"].to(model.device)
        labels = batch["labels"].to(model.device)
        soft = model.reader.soft_tokens(self.features(batch["images"]), prompts) if batch["images"] else None
        weights = {"qa": config.qa, "askg": config.warmup_askg if batch["warm"] else config.askg}
        terms: Losses = {}
        report: Report = {}
        if any(weights.values()):
            noised = self._noised(batch, prompts) if config.noise_step and batch["images"] else None
            for name, (loss, mass) in self._generation(prompts, labels, soft, noised).items():
                terms[f"{name}_loss"] = weights[name] * share(mass, model.device) * loss
                report[name] = float(loss.detach())
        self._reading(batch, soft, terms, report)
        if not terms:
            raise ConfigError("stage: every loss has weight 0 for these samples; give qa, askg or answer_word a weight")
        return terms, report

    def counts(self, batch: Batch) -> dict[str, int]:
        """Labelled tokens of each branch, and readings of each picture head."""
        labelled = (batch["labels"] != -100).sum(-1)
        size = len(labelled) // 2
        qa = {} if self.config.noise_step else {"qa_loss": int(labelled[:size].sum())}  # noise weighs tokens later
        heads = {"word_loss": len(batch["word_reads"]), "match_loss": len(batch["match_reads"])}
        return {**qa, "askg_loss": int(labelled[size:].sum()), **heads}

    def shown(self, samples: Sequence[Example]) -> list[dict[str, Any]]:
        """Answers generated from the golds and the fewest negatives."""
        questions = [sample.question for sample in samples]
        knowledge = [[*one.gold, *one.negatives[: self.config.negatives_min]] for one in samples]
        generated = self.model.generate(questions, knowledge)
        return [
            {
                **{"question": question.text, "image": question.image, "knowledge": [item.id for item in items]},
                **{"answers": list(question.answers), "generated": made.answer},
            }
            for question, items, made in zip(questions, knowledge, generated, strict=True)
        ]

    def _reading(self, batch: Batch, soft: Tensor | None, terms: Losses, report: Report) -> None:
        """What the soft tokens (R, Q, D) themselves say: the answer's first word, and which picture is asked for."""
        reader, config = self.model.reader, self.config
        heads: dict[str, tuple[Tensor, Tensor]] = {}
        if soft is not None and config.answer_word and len(batch["word_reads"]):
            words = reader.generator.word_logits(soft[batch["word_reads"].to(soft.device)].mean(1))
            heads["word"] = (words, batch["word_targets"].to(soft.device))
        if soft is not None and config.answer_match and len(batch["match_reads"]):
            if reader.match_head is None:
                raise ConfigError("stage.answer_match: the model has no model.generator.from_scratch.match_head")
            reads = batch["match_reads"].to(soft.device)  # (E, m)
            scores = reader.match_head(soft)[reads.clamp(min=0)].masked_fill(reads < 0, float("-inf"))
            heads["match"] = (scores, reads.new_zeros(len(reads)))
        for name, weight in (("word", config.answer_word), ("match", config.answer_match)):
            if not weight:
                continue
            part = share(len(heads[name][1]) if name in heads else 0, self.model.device)  # ranks without pictures too
            if name in heads:
                logits, target = heads[name]
                terms[f"{name}_loss"] = weight * part * nn.functional.cross_entropy(logits.float(), target)
                report[f"{name}_accuracy"] = float((logits.argmax(-1) == target).float().mean())

    def _generation(
        self, prompts: PromptBatch, labels: Tensor, soft: Tensor | None, noised: Tensor | None
    ) -> dict[str, tuple[Tensor, float]]:
        """The losses of the two branches, and what each is a mean over: as many targets, or the sum of their weights.

        Each branch is as long as its own longest prompt and answer.
        """
        reader, size = self.model.reader, len(labels) // 2
        embeds, source = reader.embed(prompts, soft)
        found: dict[str, tuple[Tensor, float]] = {}
        for name, rows in (("qa", slice(0, size)), ("askg", slice(size, None))):
            end = int(prompts.mask[rows].sum(-1).max())
            mask, target = prompts.mask[rows, :end], labels[rows]
            target = target[:, : int((target != -100).sum(-1).max())]
            states = reader.generator.encode(embeds[rows, :end], mask)
            logits = reader.generator.answer_logits(states, mask, source[rows, :end], target)
            per_token = token_losses(logits, target)
            if name == "qa" and noised is not None:
                with torch.no_grad():
                    twin = reader.generator.encode(reader.embed(prompts, noised)[0][rows, :end], mask)
                    blind = reader.generator.answer_logits(twin, mask, source[rows, :end], target)
                weights = contrast_weights(logits, blind, target)
                found[name] = weighted_loss(per_token, weights), float(weights.sum())
            else:
                found[name] = losses.generation_loss(per_token, target), float((target != -100).sum())
        return found

    @torch.no_grad()
    def _noised(self, batch: Batch, prompts: PromptBatch) -> Tensor:
        """Soft tokens (R, Q, D) of the same pictures under noise.

        Features and soft tokens are noised by their own standard deviation, normalised pixels have one of about 1.
        """
        model, step, place = self.model, self.config.noise_step, self.config.noise_at
        draw = torch.Generator().manual_seed(batch["noise"])
        if place == "pixels":
            pixels = model.vision.normalise(model.processor.pixels(batch["images"]).to(model.device))
            return model.reader.soft_tokens(model.vision.read(diffuse(pixels, step, draw)).float(), prompts)
        features = self.features(batch["images"])
        if place == "features":
            return model.reader.soft_tokens(diffuse(features, step, draw, features.std()), prompts)
        soft = model.reader.soft_tokens(features, prompts)
        return diffuse(soft, step, draw, soft.std())
