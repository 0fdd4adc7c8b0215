"""The stage that trains the generator on answers alone, whatever stands in its prompt (RAVEN, arXiv 2406.19150)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ra_blip.models.reader import PromptBatch
from ra_blip.records import Example
from ra_blip.training import losses
from ra_blip.training.batches import Batch
from ra_blip.training.stage import Losses, Report, Stage
from ra_blip.training.strategy import share


class Finetune(Stage):
    """Label-smoothed cross-entropy of an answer, drawn from those of the question, given the sample's items.

    No loss on retrieval and no parameter of its own. The items of a sample (``Example.gold``) may be none.
    """

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """``prompts``: PromptBatch of B rows; ``images``: pictures in feature order; ``labels`` (B, A)."""
        processor, draw = self.model.processor, int(rng.integers(2**62))
        answers = []
        for example in samples:
            # drawn by the question's id, so that it does not hang on the rank that the sample falls to
            own = np.random.default_rng([draw, zlib.crc32(example.question.id.encode())])
            said = [answer for answer in example.question.answers if answer.strip()]
            answers.append(said[int(own.integers(len(said)))])
        pictures: dict[str, int] = {}
        written = [processor.prompt("answer", example.question, example.gold) for example in samples]
        prompts = processor.prompts(written, pictures)
        return {"prompts": prompts, "images": list(pictures), "labels": processor.targets(answers)}

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Term ``answer_loss``; reports the share of answer tokens that the model puts first."""
        model, reader = self.model, self.model.reader
        prompts: PromptBatch = batch["prompts"].to(model.device)
        labels = batch["labels"].to(model.device)
        features = self.features(batch["images"]) if batch["images"] else None
        states, source = reader.prompt_states(features, prompts)
        logits = reader.generator.answer_logits(states, prompts.mask, source, labels)
        known = labels != -100
        loss = losses.smoothed_loss(logits, labels, self.config.label_smoothing)
        right = (logits.argmax(-1) == labels)[known].float().mean()
        return {"answer_loss": share(int(known.sum()), model.device) * loss}, {"token_accuracy": float(right)}
