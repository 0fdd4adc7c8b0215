"""Examples to batches: which prompts, which references in which order, which pictures. All draws are ``rng``'s."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ra_blip.config import StageConfig
from ra_blip.errors import DataError
from ra_blip.models.processor import Processor
from ra_blip.models.prompt import LABELS, guide_of
from ra_blip.models.reader import Read
from ra_blip.records import Example, Item, Question

Batch = dict[str, Any]


def pretrain_batch(items: Sequence[Item], processor: Processor) -> Batch:
    """Captioned pictures.

    Returns:
        ``images``: paths; ``text`` (B, L) and ``text_mask``: caption tokens.
    """
    text, mask = processor.texts([item.full_text for item in items])
    return {"images": [str(item.image) for item in items], "text": text, "text_mask": mask}


def retrieve_batch(examples: Sequence[Example], stage: StageConfig) -> Batch:
    """Questions, and every distinct item among their golds and hard negatives.

    Returns:
        ``questions``; ``items``; ``gold`` (B, M) bool.
    """
    items: dict[str, Item] = {}
    for example in examples:
        for item in (*example.gold, *example.negatives[: stage.hard_negatives]):
            items.setdefault(item.id, item)
    column = {name: i for i, name in enumerate(items)}
    gold = torch.zeros(len(examples), len(items), dtype=torch.bool)
    for row, example in enumerate(examples):
        known = [column[name] for name in example.question.gold if name in column]  # golds that others brought, too
        gold[row, [column[item.id] for item in example.gold] + known] = True
    return {"questions": [example.question for example in examples], "items": list(items.values()), "gold": gold}


def rank_batch(examples: Sequence[Example]) -> Batch:
    """(question, item) pairs.

    Returns:
        ``questions`` and ``items`` of equal length M; ``relevant`` (M,) bool.
    """
    pairs: list[tuple[Question, Item, bool]] = []
    for example in examples:
        pairs += [(example.question, item, True) for item in example.gold]
        pairs += [(example.question, item, False) for item in example.negatives]
    return {
        "questions": [question for question, _, _ in pairs],
        "items": [item for _, item, _ in pairs],
        "relevant": torch.tensor([relevant for _, _, relevant in pairs]),
    }


def answer_batch(
    examples: Sequence[Example], processor: Processor, stage: StageConfig, retrieved: float, rng: np.random.Generator
) -> Batch:
    """Two prompts an example: QA first, then ASKG over shuffled references (1 to 4 negatives, redrawn each time).

    Args:
        examples: with at least one gold item each.
        processor: tokenises.
        stage: how many negatives.
        retrieved: probability that the QA prompt holds the distractors, too.
        rng: source of all draws.

    Returns:
        ``prompts``: PromptBatch of 2B rows, QA rows first; ``images``: pictures in feature order; ``labels`` (2B, A);
        ``word_reads`` and ``word_targets`` (W,): reads of gold pictures, where all gold items are pictures and it is
        known what each says, and its first token; ``match_reads`` (E, negatives_max + 1): the reads of the pictures
        without words of one prompt, the one asked for first, -1 where there are no more.

    Raises:
        DataError: a question without an answer.
    """
    answer_prompts, select_prompts, answers, letters, words, matches = [], [], [], [], [], []
    step = int(rng.integers(2**62))
    for example in examples:
        # A sample's draws follow from the step and its id, so that they are the same whichever rank it falls to.
        rng = np.random.default_rng([step, zlib.crc32(example.question.id.encode())])
        count = int(rng.integers(stage.negatives_min, stage.negatives_max + 1))
        pool = [example.negatives[i] for i in rng.permutation(len(example.negatives))[:count]]
        references = [(item, True) for item in example.gold] + [(item, False) for item in pool]
        references = [references[i] for i in rng.permutation(len(references))]
        shown = references if rng.random() < retrieved else [pair for pair in references if pair[1]]
        question = example.question
        answer_prompts.append(processor.prompt("answer", question, [item for item, _ in shown]))
        select_prompts.append(processor.prompt("select", question, [item for item, _ in references]))
        golds = [i for i, (_, relevant) in enumerate(references) if relevant]
        letters.append(LABELS[golds[int(rng.integers(len(golds)))]])
        said = [answer for answer in question.answers if answer.strip()]
        if not said:
            raise DataError(f"question {question.id!r} has no answer to learn; the answer stage needs one for each")
        answers.append(said[int(rng.integers(len(said)))])
        parts = example.parts or (answers[-1],)
        if len(example.gold) == len(parts) and all(item.image for item in example.gold):
            words += [(_read(question, item), part) for item, part in zip(example.gold, parts, strict=True)]
        if [item.kind for item in example.gold] == ["image"]:
            wordless = [item for item in (*example.gold, *pool) if item.kind == "image"]
            matches.append([_read(question, item) for item in wordless])
    pictures: dict[str, int] = {}
    prompts = processor.prompts(answer_prompts + select_prompts, pictures)
    row = {read: i for i, read in enumerate(prompts.reads)}
    known = [(row[read], word) for read, word in words if read in row]
    places = [[row[read] for read in group if read in row] for group in matches]
    return {
        "prompts": prompts,
        "images": list(pictures),
        "labels": processor.targets(answers + letters),
        "word_reads": torch.tensor([read for read, _ in known], dtype=torch.long),
        "word_targets": processor.first_tokens([word for _, word in known]),
        "match_reads": _padded([group for group in places if len(group) > 1], stage.negatives_max + 1),
    }


def _read(question: Question, item: Item) -> Read:
    return (str(item.image),), guide_of(question, item)


def _padded(groups: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Rows of numbers, (len(groups), width), filled up with -1."""
    rows = [[*group, *[-1] * (width - len(group))] for group in groups]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
