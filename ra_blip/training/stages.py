"""The four stages: examples to a batch, a batch to (losses, report). Nothing else knows their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.config import StageConfig
from ra_blip.errors import ConfigError
from ra_blip.models.attention import gather_kv
from ra_blip.models.rablip import RABlip, guided_text
from ra_blip.models.ranker import Ranker
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Example, Item, Question
from ra_blip.training import batches, losses
from ra_blip.training.batches import Batch
from ra_blip.training.strategy import share

Losses = dict[str, Tensor]
Report = dict[str, float]


class Stage(nn.Module):
    """Base: holds the model and the weights of the losses.

    Args:
        model: trained in place.
        config: loss weights and draws.
    """

    batch_coupled = False  # True where the loss compares the samples of a batch with each other

    def __init__(self, model: RABlip, config: StageConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> Batch:
        """Samples of the data source -> batch; draws from ``rng`` only."""
        raise TypeError(f"{type(self).__name__} is not a stage")

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Batch -> (terms to differentiate, already weighted; numbers to log)."""
        raise TypeError(f"{type(self).__name__} is not a stage")

    def features(self, images: Sequence[str]) -> Tensor:
        """Picture features (U, N, W): live where the tower is trained, else frozen and cached."""
        if any(parameter.requires_grad for parameter in self.model.vision.parameters()):
            return self.model.vision(self.model.processor.pixels(images).to(self.model.device))  # type: ignore[no-any-return]
        return self.model.image_features(images)


class Pretrain(Stage):
    """Q-Former pretraining on captioned pictures: ITC, ITM with hard in-batch negatives, ITG (BLIP-2, stage 1).

    The picture's keys and values are computed once for all passes, and the query states of the captioning pass serve
    the contrastive loss: there the queries are blind to the text.
    """

    batch_coupled = True

    def collate(self, samples: Sequence[Item], rng: np.random.Generator, step: int) -> Batch:
        """See :func:`ra_blip.training.batches.pretrain_batch`."""
        return batches.pretrain_batch(samples, self.model.processor)

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Terms ``concepts_loss``, ``itc_loss``, ``itm_loss``, ``itg_loss``, those with a weight."""
        config, device = self.config, self.model.device
        text, mask = batch["text"].to(device), batch["text_mask"].to(device)
        features = self.features(batch["images"])
        terms: Losses = {}
        report: Report = {}
        head = self.model.vision.concepts
        if config.concepts and head is not None:
            loss = losses.concept_loss(head(features), head.targets(text, mask))
            terms["concepts_loss"] = config.concepts * loss
        if config.itc or config.itm or config.itg:
            self._qformer(features, text, mask, terms, report)
        return terms, report

    def _qformer(self, features: Tensor, text: Tensor, mask: Tensor, terms: Losses, report: Report) -> None:
        """The three Q-Former losses, added to ``terms`` and ``report``."""
        retriever, config = self.model.retriever, self.config
        kv = retriever.kv(features)
        prefix = text.clone()
        prefix[:, 0] = self.model.processor.dec_id  # captioning starts from its own token
        generated = retriever.qformer("generate", kv=kv, text=prefix, text_mask=mask)
        assert generated.queries is not None and generated.text is not None
        pictures = retriever.project_queries(generated.queries)
        texts = retriever.text_vectors(text, mask)
        terms["itc_loss"] = config.itc * losses.itc_loss(pictures, texts, retriever.temperature)
        words = retriever.qformer.token_logits(generated.text)
        terms["itg_loss"] = config.itg * losses.itg_loss(words, text, mask)
        similarity = losses.similarity(pictures, texts).detach()
        if config.itm:
            terms["itm_loss"] = config.itm * self._matching(kv, text, mask, similarity)
        hit = similarity.argmax(-1) == torch.arange(len(text), device=text.device)
        report["itc_accuracy"] = float(hit.float().mean())
        report["temperature"] = float(retriever.temperature.detach())

    def _matching(self, kv: Any, text: Tensor, mask: Tensor, similarity: Tensor) -> Tensor:
        """Each pair, each picture with a hard wrong text, each text with a hard wrong picture: 3B pairs (1 of 1)."""
        retriever = self.model.retriever
        size = min(self.config.itm_samples or len(text), len(text))
        text, mask, similarity = text[:size], mask[:size], similarity[:size, :size]
        own = torch.arange(size, device=text.device)
        scaled = similarity / retriever.temperature.detach()
        wrong_text, wrong_picture = losses.hard_negatives(scaled), losses.hard_negatives(scaled.T)
        pictures = torch.cat([own, own[: len(wrong_text)], wrong_picture])
        words = torch.cat([own, wrong_text, own[: len(wrong_picture)]])
        pooled = retriever.fused(gather_kv(kv, pictures) or [], text[words], mask[words])
        matched = torch.arange(len(pictures), device=text.device) < size
        return losses.itm_loss(retriever.itm_head(pooled), matched)


class Retrieve(Stage):
    """Questions to items in the shared space: InfoNCE over in-batch and hard negatives, all golds masked.

    Leakage rule: a picture conditioned on a question carries that question in its vector, so in-batch negatives would
    let the loss match questions with questions. Batches are therefore either unconditioned (the vector that an index
    can hold), or, with probability ``conditioned``, every candidate of a question is re-encoded under the ANCHOR's
    question.
    """

    batch_coupled = True

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """As :func:`ra_blip.training.batches.retrieve_batch`, tokenised, plus ``conditioned``: bool."""
        batch = batches.retrieve_batch(samples, self.config)
        batch["conditioned"] = bool(rng.random() < self.config.conditioned)
        size, count = batch["gold"].shape
        batch["candidates"] = torch.from_numpy(rng.random((size, count)))
        bare = rng.random(count) < self.config.caption_dropout
        items: list[Item] = batch["items"]
        batch["texts"] = ["" if one and item.image else item.full_text for item, one in zip(items, bare, strict=True)]
        return batch

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Term ``retrieve_loss``; reports in-batch recall@1."""
        gold = batch["gold"].to(self.model.device)
        questions: list[Question] = batch["questions"]
        asked = self._encode([q.text for q in questions], [q.image for q in questions])
        if batch["conditioned"]:
            return self._conditioned(batch, asked, gold)
        vectors = self._encode(batch["texts"], [item.image for item in batch["items"]])
        temperature = self.model.retriever.temperature
        loss = losses.info_nce(asked, vectors, gold, temperature)
        if self.config.symmetric:
            wanted = gold.any(0)
            loss = loss + losses.info_nce(vectors[wanted], asked, gold.T[wanted], temperature)
            loss = (loss + self._alike(batch["items"], vectors, gold)) / 3
        with torch.no_grad():
            best = (asked @ vectors.T).argmax(-1, keepdim=True)
        return {"retrieve_loss": loss}, self._report(gold.gather(1, best))

    def _alike(self, items: Sequence[Item], vectors: Tensor, gold: Tensor) -> Tensor:
        """Pictures look among the texts for those that answer the same question; 0 where there are none."""
        pictured = torch.tensor([item.image is not None for item in items], device=gold.device)
        together = (gold.float().T @ gold.float() > 0)[pictured][:, ~pictured]  # (pictures, texts)
        some = together.any(1)
        if not some.any():
            return vectors.sum() * 0
        pictures, texts = vectors[pictured][some], vectors[~pictured]
        return losses.info_nce(pictures, texts, together[some], self.model.retriever.temperature)

    def _conditioned(self, batch: Batch, asked: Tensor, gold: Tensor) -> tuple[Losses, Report]:
        """One gold and m other candidates a question, each read under that question."""
        draw = batch["candidates"].to(gold.device)
        first = (draw + gold).argmax(-1, keepdim=True)  # a random gold
        count = min(self.config.conditioned_candidates, int((~gold).sum(-1).min()))
        others = draw.masked_fill(gold, -1).topk(count, dim=-1).indices  # (B, m)
        chosen = torch.cat([first, others], dim=1)  # (B, 1 + m)
        items = [batch["items"][i] for i in chosen.flatten().tolist()]
        anchors = [question for question in batch["questions"] for _ in range(chosen.shape[1])]
        texts = [guided_text(question, item) for question, item in zip(anchors, items, strict=True)]
        vectors = self._encode(texts, [item.image for item in items]).unflatten(0, chosen.shape)  # (B, 1 + m, D)
        scores = torch.einsum("bd,bmd->bm", asked, vectors) / self.model.retriever.temperature
        target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        loss = nn.functional.cross_entropy(scores, target)
        return {"retrieve_loss": loss}, self._report(scores.argmax(-1) == 0)

    def _encode(self, texts: Sequence[str], images: Sequence[str | None]) -> Tensor:
        distinct = list(dict.fromkeys(image for image in images if image is not None))
        features = self.features(distinct) if distinct else None
        if features is not None and self.config.token_dropout:  # the same tokens of all pictures: fewer for good
            kept = max(round(features.shape[1] * (1 - self.config.token_dropout)), 1)
            features = features[:, torch.randperm(features.shape[1])[:kept]]
        return self.model.encode_records(texts, images, {image: i for i, image in enumerate(distinct)}, features)

    def _report(self, hit: Tensor) -> Report:
        return {"recall@1": float(hit.float().mean()), "temperature": float(self.model.retriever.temperature.detach())}


class Rank(Stage):
    """The classifier over frozen encoder features of (question, item) pairs."""

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """As :func:`ra_blip.training.batches.rank_batch`, with ``prompts`` and ``images``."""
        batch = batches.rank_batch(samples)
        processor = self.model.processor
        pairs = zip(batch["questions"], batch["items"], strict=True)
        pictures: dict[str, int] = {}
        batch["prompts"] = processor.prompts([processor.prompt("answer", q, [item]) for q, item in pairs], pictures)
        batch["images"] = list(pictures)
        return batch

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Term ``rank_loss``; reports the share judged right."""
        prompts: PromptBatch = batch["prompts"].to(self.model.device)
        with torch.no_grad():
            features = self.features(batch["images"]) if batch["images"] else None
            states, _ = self.model.reader.encode(features, prompts)
            pooled = Ranker.pool(states, prompts.mask)
        logits = self.model.ranker(pooled)
        relevant = batch["relevant"].to(logits.device)
        right = (logits.argmax(-1) == relevant).float().mean()
        loss = share(len(relevant), logits.device) * losses.ranking_loss(logits, relevant)
        return {"rank_loss": loss}, {"rank_accuracy": float(right)}


class Answer(Stage):
    """The generator: QA plus weighted ASKG, both read from the same pictures in the same step (RA-BLIP)."""

    def collate(self, samples: Sequence[Example], rng: np.random.Generator, step: int) -> Batch:
        """As :func:`ra_blip.training.batches.answer_batch`, plus ``warm``: whether this step is warm-up."""
        warm = step < self.config.warmup_steps
        retrieved = self.config.warmup_retrieved if warm else self.config.retrieved
        batch = batches.answer_batch(samples, self.model.processor, self.config, retrieved, rng)
        return {**batch, "warm": warm}

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
            for name, loss in self._generation(prompts, labels, soft).items():
                rows = labels[: len(labels) // 2] if name == "qa" else labels[len(labels) // 2 :]
                terms[f"{name}_loss"] = weights[name] * share(int((rows != -100).sum()), model.device) * loss
                report[name] = float(loss.detach())
        if soft is not None:
            self._reading(batch, soft, terms, report)
        if not terms:
            raise ConfigError("stage: every loss has weight 0 for these samples; give qa, askg or answer_word a weight")
        return terms, report

    def _reading(self, batch: Batch, soft: Tensor, terms: Losses, report: Report) -> None:
        """What the soft tokens (R, Q, D) themselves say: the answer's first word, and which picture is asked for."""
        reader, config = self.model.reader, self.config
        heads: list[tuple[str, float, Tensor, Tensor]] = []
        if config.answer_word and len(batch["word_reads"]):
            words = reader.generator.word_logits(soft[batch["word_reads"].to(soft.device)].mean(1))
            heads.append(("word", config.answer_word, words, batch["word_targets"].to(soft.device)))
        if config.answer_match and len(batch["match_reads"]):
            if reader.match_head is None:
                raise ConfigError("stage.answer_match: the model has no model.generator.from_scratch.match_head")
            reads = batch["match_reads"].to(soft.device)  # (E, m)
            scores = reader.match_head(soft)[reads.clamp(min=0)].masked_fill(reads < 0, float("-inf"))
            heads.append(("match", config.answer_match, scores, reads.new_zeros(len(reads))))
        for name, weight, logits, target in heads:
            loss = nn.functional.cross_entropy(logits.float(), target)
            terms[f"{name}_loss"] = weight * share(len(target), soft.device) * loss
            report[f"{name}_accuracy"] = float((logits.argmax(-1) == target).float().mean())

    def _generation(self, prompts: PromptBatch, labels: Tensor, soft: Tensor | None) -> Losses:
        """The losses of the two branches; each is as long as its own longest prompt and answer."""
        reader, size = self.model.reader, len(labels) // 2
        embeds, source = reader.embed(prompts, soft)
        found: Losses = {}
        for name, rows in (("qa", slice(0, size)), ("askg", slice(size, None))):
            end = int(prompts.mask[rows].sum(-1).max())
            mask, target = prompts.mask[rows, :end], labels[rows]
            target = target[:, : int((target != -100).sum(-1).max())]
            states = reader.generator.encode(embeds[rows, :end], mask)
            per_token = reader.generator.token_losses(states, mask, source[rows, :end], target)
            found[name] = losses.generation_loss(per_token, target)
        return found


STAGES: dict[str, Callable[[RABlip, StageConfig], Stage]] = {
    "pretrain": Pretrain,
    "retrieve": Retrieve,
    "rank": Rank,
    "answer": Answer,
}
