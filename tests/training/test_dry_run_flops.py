"""The dry run's arithmetic against what torch counts in a forward and a backward pass of each stage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ra_blip.config import ParamRule, RunConfig, StageConfig, TrainConfig, load_config
from ra_blip.models.rablip import RABlip
from ra_blip.models.reader import PromptBatch
from ra_blip.records import Item, Question
from ra_blip.training import dry_run
from ra_blip.training.engine import set_mode
from ra_blip.training.optim import apply_rules
from ra_blip.training.stages import STAGES

ROWS, QUERIES, IMAGE, SIDE = 4, 8, 2, 32  # samples, queries, the id of a soft token, pixels
TEXT, PROMPT, ANSWER = 16, 32, 8
EYE = (
    "{model_type: clip_vision_model, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 2, "
    f"num_attention_heads: 4, image_size: {SIDE}, patch_size: 8}}"
)
LLMS = {
    "t5": "{model_type: t5, d_model: 256, d_kv: 64, num_heads: 4, d_ff: 1024, num_layers: 2, vocab_size: 512, "
    "tie_word_embeddings: false, feed_forward_proj: gated-gelu}",
    "opt": "{model_type: opt, hidden_size: 256, word_embed_proj_dim: 256, num_attention_heads: 4, ffn_dim: 1024, "
    "num_hidden_layers: 2, vocab_size: 512}",
}


def model_of(layout: str, llm: str) -> RABlip:
    """Wide beside its texts, so that attention's own products are few, as at real size; tokenizers of sizes alone."""
    given = [
        f"vision={{image_size: {SIDE}, config: {EYE}}}",
        f"qformer={{width: 256, layers: 2, heads: 4, ffn: 1024, queries: {QUERIES}}}",
        "retriever={fusion_layers: 2, dimension: 256}",
        f"generator={{layout: {layout}, image_slots: 2, config: {LLMS[llm]}}}",
    ]
    sizes = dry_run._Words(512)
    words = SimpleNamespace(text=sizes, llm=sizes, image_id=IMAGE, end_id=1, dec_id=3, yes_no_ids=(4, 5))
    words.texts = lambda texts, *rest: tokens(len(texts), TEXT)
    words.pixels = lambda images: torch.zeros(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    model = RABlip(load_config(None, [f"model.{line}" for line in given]).model, words)  # type: ignore[arg-type]
    model.image_features = lambda images: model._compute_features(images).clone()  # type: ignore[method-assign]
    return model


def tokens(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask without padding."""
    return torch.full((rows, length), 7), torch.ones(rows, length, dtype=torch.long)


def prompts(rows: int, reads: int, pictures: int, blocks: int = 1) -> PromptBatch:
    """So many prompts over as many reads, of ``pictures`` each; every prompt holds ``blocks`` of them."""
    ids, mask = tokens(rows, PROMPT)
    ids[:, : blocks * QUERIES] = IMAGE
    slots = (torch.arange(reads * pictures) % (2 * ROWS)).reshape(reads, pictures)
    uses = torch.arange(rows * blocks) % reads
    return PromptBatch(ids, mask, [], slots, *tokens(reads, TEXT), uses)


def pretrain() -> dict[str, Any]:
    text, mask = tokens(ROWS, TEXT)
    return {"images": ["p"] * ROWS, "text": text, "text_mask": mask}


def retrieve(conditioned: bool) -> dict[str, Any]:
    items = [Item(f"i{i}", "a caption", image=f"p{i}") for i in range(2 * ROWS)]
    gold = torch.eye(ROWS, 2 * ROWS, dtype=torch.bool)
    return {
        **{"questions": [Question(f"q{i}", "who?") for i in range(ROWS)], "items": items, "gold": gold},
        **{"candidates": torch.rand(gold.shape), "conditioned": conditioned, "texts": ["a caption"] * 2 * ROWS},
    }


def rank() -> dict[str, Any]:
    pairs = 2 * ROWS
    return {"prompts": prompts(pairs, pairs, 1), "images": ["p"] * pairs, "relevant": torch.arange(pairs) % 2 == 0}


def answer(batch: PromptBatch) -> dict[str, Any]:
    none = {"word_reads": torch.zeros(0, dtype=torch.long), "match_reads": torch.zeros(0, 2, dtype=torch.long)}
    return {"prompts": batch, "images": ["p"] * 2 * ROWS, "labels": tokens(2 * ROWS, ANSWER)[0], "warm": False, **none}


def finetune() -> dict[str, Any]:
    return {"prompts": prompts(ROWS, ROWS, 1), "images": ["p"] * ROWS, "labels": tokens(ROWS, ANSWER)[0]}


def rerank() -> dict[str, Any]:
    return {"pairs": {**rank(), "labels": tokens(2 * ROWS, ANSWER)[0]}}


RETRIEVER, READER = r"vision\..*|reader\..*|ranker\..*", r"vision\..*|retriever\..*|ranker\..*|reader\.generator\..*"
# Two references a question; the QA prompt has the gold one alone.
ONE = StageConfig("answer", negatives_min=1, negatives_max=1, retrieved=0.0)
CASES: dict[str, tuple[StageConfig, dict[str, Any], str, str, str]] = {
    "pretrain": (StageConfig("pretrain"), pretrain(), RETRIEVER, "release", "t5"),
    "pretrain an eye": (StageConfig("pretrain", itm_samples=2), pretrain(), "none", "release", "t5"),
    "retrieve": (
        StageConfig("retrieve", hard_negatives=1, conditioned=0.0),
        *(retrieve(False), RETRIEVER, "release", "t5"),
    ),
    "retrieve, guided": (
        StageConfig("retrieve", hard_negatives=1, conditioned=1.0, conditioned_candidates=7),
        *(retrieve(True), RETRIEVER, "release", "t5"),
    ),
    "rank": (StageConfig("rank", negatives_max=1), rank(), r"(?!ranker).*", "release", "t5"),
    "answer": (ONE, answer(prompts(2 * ROWS, 2 * ROWS, 1)), READER, "interleaved", "t5"),
    "answer, joint": (ONE, answer(prompts(2 * ROWS, 2 * ROWS, 2)), READER, "release", "t5"),
    "answer, all trains": (
        *(ONE, answer(prompts(2 * ROWS, 2 * ROWS, 1))),
        *(r"vision\..*|retriever\..*|ranker\..*", "interleaved", "opt"),
    ),
    "finetune": (StageConfig("finetune"), finetune(), READER, "release", "t5"),
    "rerank": (StageConfig("rerank", qa=0.0, askg=0.0), rerank(), READER, "release", "opt"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_arithmetic_of_a_sample_is_what_torch_counts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in (("TEXT", TEXT), ("PROMPT", PROMPT), ("ANSWER", ANSWER)):
        monkeypatch.setattr(dry_run, name, length)
    config, batch, frozen, layout, llm = CASES[case]
    torch.manual_seed(0)
    model = model_of(layout, llm)
    run = RunConfig(stage=config, params=[ParamRule(frozen), ParamRule(lr=1e-4)], train=TrainConfig(batch_size=ROWS))
    apply_rules(model, run.params)
    set_mode(model)
    with FlopCounterMode(display=False) as counter:
        terms, _ = STAGES[config.name](model, config)(batch)
        torch.stack(list(terms.values())).sum().backward()
    expected = dry_run.dry_run(run, 1, model, look=False).flops * ROWS
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1), dry_run._work(model, run)
