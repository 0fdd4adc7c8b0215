"""The four stages: examples to a batch, a batch to (losses, report). Nothing else knows their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ra_blip.config import StageConfig
from ra_blip.models.attention import gather_kv
from ra_blip.models.rablip import RABlip, guided_text
from ra_blip.models.ranker import Ranker
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Example, Item, Question
from ra_blip.training import batches, gather, losses
from ra_blip.training.answer_stage import Answer
from ra_blip.training.batches import Batch
from ra_blip.training.finetune_stage import Finetune
from ra_blip.training.rerank_stage import Rerank
from ra_blip.training.stage import Losses, Report, Stage
from ra_blip.training.strategy import share

__all__ = ["STAGES", "Answer", "Pretrain", "Rank", "Rerank", "Retrieve", "Stage"]


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
        """Terms ``concepts_loss``, ``itc_loss``, ``itm_loss``, ``itg_loss``, those with a weight.

        The batch is that of all ranks; each reads its own rows, and compares them with everyone's.
        """
        config, device = self.config, self.model.device
        text, mask = batch["text"].to(device), batch["text_mask"].to(device)
        rank, world = gather.place()
        own = slice(rank, None, world)
        features = self.features(batch["images"][own])
        terms: Losses = {}
        report: Report = {}
        head = self.model.vision.concepts
        if config.concepts and head is not None:
            loss = losses.concept_loss(head(features), head.targets(text[own], mask[own]))
            terms["concepts_loss"] = config.concepts * _weighed(loss, len(features), len(text))
        if config.itc or config.itm or config.itg:
            self._qformer(features, text, mask, terms, report)
        return terms, report

    def _qformer(self, features: Tensor, text: Tensor, mask: Tensor, terms: Losses, report: Report) -> None:
        """The three Q-Former losses, added to ``terms`` and ``report``: own features (B_r, N, W), all texts (B, L)."""
        retriever, config = self.model.retriever, self.config
        rank, world = gather.place()
        own_text, own_mask = text[rank::world], mask[rank::world]
        kv = retriever.kv(features)
        prefix = own_text.clone()
        prefix[:, 0] = self.model.processor.dec_id  # captioning starts from its own token
        generated = retriever.qformer("generate", kv=kv, text=prefix, text_mask=own_mask)
        assert generated.queries is not None and generated.text is not None
        pictures = retriever.project_queries(generated.queries)
        texts = retriever.text_vectors(own_text, own_mask)
        pictures, texts = gather.join_rows([len(text)] * 2, pictures, texts)  # (B, D) each
        terms["itc_loss"] = config.itc * losses.itc_loss(pictures, texts, retriever.temperature)
        words = retriever.qformer.token_logits(generated.text)
        loss = losses.itg_loss(words, own_text, own_mask)
        terms["itg_loss"] = config.itg * _weighed(loss, own_mask[:, 1:].sum(), mask[:, 1:].sum())
        similarity = losses.similarity(pictures, texts).detach()
        if config.itm:
            terms["itm_loss"] = config.itm * self._matching(features, kv, text, mask, similarity)
        hit = similarity.argmax(-1) == torch.arange(len(text), device=text.device)
        report["itc_accuracy"] = float(hit.float().mean())
        report["temperature"] = float(retriever.temperature.detach())

    def _matching(self, features: Tensor, kv: Any, text: Tensor, mask: Tensor, similarity: Tensor) -> Tensor:
        """Each pair, each picture with a hard wrong text, each text with a hard wrong picture: 3B pairs (1 of 1).

        All ranks draw the same negatives for all pairs, and each computes those of its own rows.
        """
        retriever = self.model.retriever
        rank, world = gather.place()
        size = min(max(self.config.itm_samples or len(text), world), len(text))
        scaled = similarity[:size, :size] / retriever.temperature.detach()
        draws = gather.common_generator(text.device)
        wrong_text, wrong_picture = losses.hard_negatives(scaled, draws), losses.hard_negatives(scaled.T, draws)
        wrong_text, wrong_picture = wrong_text[rank::world], wrong_picture[rank::world]
        own = torch.arange(size, device=text.device)[rank::world]
        words = torch.cat([own, wrong_text, own[: len(wrong_picture)]])
        if world == 1:
            seen = gather_kv(kv, torch.cat([own, own[: len(wrong_text)], wrong_picture])) or []
        else:  # a wrong picture may be another rank's: its features travel, its keys and values are computed here
            (everyones,) = gather.join_rows([len(text)], features)
            mine = gather_kv(kv, torch.arange(len(own), device=text.device).repeat(2)) or []
            others = retriever.kv(everyones[wrong_picture])
            seen = [(torch.cat([k, ok]), torch.cat([v, ov])) for (k, v), (ok, ov) in zip(mine, others, strict=True)]
        pooled = retriever.fused(seen, text[words], mask[words])
        matched = torch.arange(len(words), device=text.device) < len(own)
        return _weighed(losses.itm_loss(retriever.itm_head(pooled), matched), len(own), size)


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
        """Term ``retrieve_loss``; reports in-batch recall@1.

        The batch is that of all ranks: each encodes its share of the questions and of the distinct items, and compares
        everyone's.
        """
        gold = batch["gold"].to(self.model.device)
        rank, world = gather.place()
        own = slice(rank, None, world)
        questions: list[Question] = batch["questions"][own]
        items: list[Item] = batch["items"]
        asked = self._encode([q.text for q in questions], [q.image for q in questions])
        if batch["conditioned"]:
            return self._conditioned(batch, asked, gold)
        vectors = self._encode(batch["texts"][own], [item.image for item in items[own]])
        asked, vectors = gather.join_rows(gold.shape, asked, vectors)  # (B, D) and (M, D)
        temperature = self.model.retriever.temperature
        loss = losses.info_nce(asked, vectors, gold, temperature)
        if self.config.symmetric:
            wanted = gold.any(0)
            loss = loss + losses.info_nce(vectors[wanted], asked, gold.T[wanted], temperature)
            loss = (loss + self._alike(items, vectors, gold)) / 3
        with torch.no_grad():
            best = (asked @ vectors.T).argmax(-1, keepdim=True)
        return {"retrieve_loss": loss}, self._report(gold.gather(1, best))

    def shown(self, samples: Sequence[Example]) -> list[dict[str, Any]]:
        """The three nearest of all their items to each question."""
        items = {item.id: item for sample in samples for item in (*sample.gold, *sample.negatives)}
        asked = self.model.encode_question([sample.question for sample in samples])
        scores, rows = (asked @ self.model.encode_items(list(items.values())).T).topk(min(3, len(items)))
        names = list(items)
        return [
            {
                **{"question": sample.question.text, "image": sample.question.image},
                **{"gold": [item.id for item in sample.gold], "found": [names[row] for row in best]},
                "scores": [round(score, 4) for score in found],
            }
            for sample, best, found in zip(samples, rows.tolist(), scores.tolist(), strict=True)
        ]

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
        """One gold and m other candidates for each of this rank's questions, each read under that question."""
        rank, world = gather.place()
        draw = batch["candidates"].to(gold.device)
        first = (draw + gold).argmax(-1, keepdim=True)  # a random gold
        count = min(self.config.conditioned_candidates, int((~gold).sum(-1).min()))
        others = draw.masked_fill(gold, -1).topk(count, dim=-1).indices  # (B, m)
        chosen = torch.cat([first, others], dim=1)[rank::world]  # (B_r, 1 + m)
        items = [batch["items"][i] for i in chosen.flatten().tolist()]
        anchors = [question for question in batch["questions"][rank::world] for _ in range(chosen.shape[1])]
        texts = [guided_text(question, item) for question, item in zip(anchors, items, strict=True)]
        vectors = self._encode(texts, [item.image for item in items]).unflatten(0, chosen.shape)  # (B_r, 1 + m, D)
        scores = torch.einsum("bd,bmd->bm", asked, vectors) / self.model.retriever.temperature
        target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        loss = _weighed(nn.functional.cross_entropy(scores, target), len(scores), len(gold))
        return {"retrieve_loss": loss}, self._report(scores.argmax(-1) == 0)

    def _encode(self, texts: Sequence[str], images: Sequence[str | None]) -> Tensor:
        if not texts:  # more ranks than items
            return torch.zeros(0, self.model.dimension, device=self.model.device)
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

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pairs."""
        return {"rank_loss": len(batch["relevant"])}

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


def _weighed(mean: Tensor, own: Tensor | int, whole: Tensor | int) -> Tensor:
    """The mean over ``own`` things, so weighed that the mean over ranks is that over the ``whole`` batch."""
    _, world = gather.place()
    return mean if world == 1 else mean * (own * world / max(whole, 1))


STAGES: dict[str, Callable[[RABlip, StageConfig], Stage]] = {
    "pretrain": Pretrain,
    "retrieve": Retrieve,
    "rank": Rank,
    "answer": Answer,
    "rerank": Rerank,
    "finetune": Finetune,
}
