from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ra_blip.config import StageConfig
from ra_blip.errors import DataError
from ra_blip.models.processor import Processor
from ra_blip.records import Example, Question
from ra_blip.training.batches import Batch, answer_batch, pretrain_batch, rank_batch, retrieve_batch
from tests.tiny import changed, processor
from tests.training.samples import captions, examples, rng

ROOMY = ("generator.prompt_length=400", "generator.answer_length=12")


@pytest.fixture(scope="module")
def made() -> Processor:
    return processor(overrides=ROOMY)


def answers_of(made: Processor, batch: Batch) -> list[str]:
    return made.decode(batch["labels"].clamp(min=0))


def prompts_of(made: Processor, batch: Batch) -> list[list[str]]:
    """The parts of every prompt, as tokens joined by blanks."""
    prompts = batch["prompts"]
    rows = [ids[mask.bool()] for ids, mask in zip(prompts.ids, prompts.mask, strict=True)]
    return [" ".join(made.llm.convert_ids_to_tokens(row.tolist())).split(" | ") for row in rows]


def test_pretraining_batches_hold_pictures_and_their_captions(made: Processor, tmp_path: Path) -> None:
    items = captions(tmp_path)
    batch = pretrain_batch(items, made)
    assert batch["images"] == [item.image for item in items]
    for row, mask, item in zip(batch["text"], batch["text_mask"], items, strict=True):
        assert row[mask == 1].tolist() == made.text(item.text).input_ids


def test_retrieval_batches_hold_every_item_once_and_know_all_golds(tmp_path: Path) -> None:
    first, second, third = examples(tmp_path)
    batch = retrieve_batch([first, second, third], StageConfig(hard_negatives=2))
    assert [item.id for item in batch["items"]] == ["f0", "f1", "f2", "v0", "v1", "v2", "f3"]
    assert batch["gold"].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
    ]
    assert batch["questions"] == [first.question, second.question, third.question]


def test_a_gold_that_another_question_brought_counts(tmp_path: Path) -> None:
    first, _, third = examples(tmp_path)
    half = changed(third, gold=third.gold[:1], negatives=())  # f2, its other gold, comes as a negative of the first
    batch = retrieve_batch([first, half], StageConfig(hard_negatives=4))
    assert [item.id for item in batch["items"]] == ["f0", "f1", "f2", "f3", "f4"]
    assert batch["gold"][1].int().tolist() == [0, 1, 1, 0, 0]


def test_rank_batches_pair_questions_with_all_their_items(tmp_path: Path) -> None:
    batch = rank_batch(examples(tmp_path))
    pairs = Counter((q.id, bool(r)) for q, r in zip(batch["questions"], batch["relevant"], strict=True))
    assert pairs == {("text", True): 1, ("text", False): 4, ("view", True): 1, ("view", False): 4} | {
        ("pictured", True): 2,
        ("pictured", False): 4,
    }
    for question, item, relevant in zip(batch["questions"], batch["items"], batch["relevant"].tolist(), strict=True):
        assert relevant == (item.id in question.gold)


# ---------------------------------------------------------------- answering


def test_the_label_is_the_letter_of_a_gold_item(made: Processor, tmp_path: Path) -> None:
    samples, places = examples(tmp_path), Counter[str]()
    for seed in range(40):
        batch = answer_batch(samples, made, StageConfig(), 0.5, rng(seed))
        letters, parts = answers_of(made, batch)[3:], prompts_of(made, batch)[3:]
        for example, letter, found in zip(samples, letters, parts, strict=True):
            (item,) = (part for part in found if part.startswith(f"[ {letter} ]"))
            golds = [" ".join(made.llm.tokenize(gold.full_text)) for gold in example.gold]
            assert any(item.endswith(gold) for gold in golds)
        places[letters[0]] += 1
    assert set(places) == set("ABCDE") and max(places.values()) < 25, "golds stand anywhere"


def test_permuting_the_references_permutes_the_label(made: Processor, tmp_path: Path) -> None:
    """One question, always the same five references: the letter goes with the gold one, and nothing else is learnt."""
    (example, *_), said = examples(tmp_path), {}
    (gold,) = (" ".join(made.llm.tokenize(item.full_text)) for item in example.gold)
    for seed in range(40):
        batch = answer_batch([example], made, StageConfig(negatives_min=4, negatives_max=4), 0.0, rng(seed))
        references = prompts_of(made, batch)[1][:5]
        words = tuple(reference.partition("] ")[2] for reference in references)
        letter = answers_of(made, batch)[1]
        assert "ABCDE".index(letter) == next(i for i, text in enumerate(words) if text.endswith(gold))
        said[words] = letter
    assert len({frozenset(words) for words in said}) == 1 and len(said) > 20
    assert set(said.values()) == set("ABCDE")


def test_answers_are_drawn_from_the_list(made: Processor, tmp_path: Path) -> None:
    drawn = [
        answers_of(made, answer_batch(examples(tmp_path), made, StageConfig(), 0.0, rng(s)))[:3] for s in range(20)
    ]
    assert {row[0] for row in drawn} == {"Moro", "moro"}
    assert {tuple(row[1:]) for row in drawn} == {("red", "Ardia")}


@pytest.mark.parametrize(("least", "most"), [(1, 4), (2, 3), (4, 9)])
def test_the_number_of_negatives_is_redrawn_within_its_range(
    made: Processor, tmp_path: Path, least: int, most: int
) -> None:
    stage, counts = StageConfig(negatives_min=least, negatives_max=most), set()
    for seed in range(40):
        found = prompts_of(made, answer_batch(examples(tmp_path)[:1], made, stage, 0.0, rng(seed)))
        counts.add(len(found[1]) - 2)  # the gold item and the question
    assert counts == set(range(least, min(most, 4) + 1))  # four are there


def test_negatives_are_redrawn(made: Processor, tmp_path: Path) -> None:
    stage = StageConfig(negatives_min=1, negatives_max=1)
    drawn = set()
    for seed in range(40):
        found = prompts_of(made, answer_batch(examples(tmp_path)[:1], made, stage, 0.0, rng(seed)))[1]
        drawn |= {part[6:7] for part in found[:-1]}
    assert drawn == set("VKABC")


def test_distractors_in_the_answer_prompt_follow_the_probability(made: Processor, tmp_path: Path) -> None:
    def sizes(retrieved: float) -> list[tuple[int, int]]:
        out = []
        for seed in range(60):
            found = prompts_of(made, answer_batch(examples(tmp_path)[:1], made, StageConfig(), retrieved, rng(seed)))
            out.append((len(found[0]) - 1, len(found[1]) - 1))
        return out

    assert {answer for answer, _ in sizes(0.0)} == {1}
    assert all(answer == select for answer, select in sizes(1.0))
    share = np.mean([answer > 1 for answer, _ in sizes(0.5)])
    assert 0.3 < share < 0.7


def test_both_branches_ask_the_same_references(made: Processor, tmp_path: Path) -> None:
    found = prompts_of(made, answer_batch(examples(tmp_path), made, StageConfig(), 1.0, rng(3)))
    for answer, select in zip(found[:3], found[3:], strict=True):
        assert answer[:-1] == select[:-1]
        assert "Which item is related" in made.llm.convert_tokens_to_string(select[-1].split())
        assert "Which item is related" not in made.llm.convert_tokens_to_string(answer[-1].split())


def test_the_gold_picture_says_the_answer(made: Processor, tmp_path: Path) -> None:
    batch = answer_batch(examples(tmp_path), made, StageConfig(negatives_min=2), 0.0, rng(1))
    ((images, guide),) = [batch["prompts"].reads[read] for read in batch["word_reads"].tolist()]
    assert Path(images[0]).stem == "red-blue" and guide.startswith("What colour is the roof?")
    assert batch["word_targets"].tolist() == made.first_tokens(["red"]).tolist()
    none = answer_batch(examples(tmp_path)[:1], made, StageConfig(), 0.0, rng(1))
    assert none["word_reads"].shape == none["word_targets"].shape == (0,)


def test_pictures_without_words_are_matched_the_gold_one_first(made: Processor, tmp_path: Path) -> None:
    pictures = [replace(item, text=None) for item in captions(tmp_path)[:3]]
    asked = Question("q", "What colour is the roof?", answers=("red",), gold=(pictures[0].id,))
    one = Example(asked, (pictures[0],), tuple(pictures[1:]))
    batch = answer_batch([one, *examples(tmp_path)], made, StageConfig(negatives_min=2, negatives_max=3), 0.0, rng(1))
    reads = batch["prompts"].reads
    (row,) = batch["match_reads"].tolist()
    assert [reads[read][0][0] if read >= 0 else None for read in row][:1] == [pictures[0].image]
    assert {reads[read][0][0] for read in row[:3]} == {item.image for item in pictures} and row[3] == -1
    alone = answer_batch([replace(one, negatives=())], made, StageConfig(), 0.0, rng(1))
    assert alone["match_reads"].shape == (0, StageConfig().negatives_max + 1)


def test_all_draws_come_from_the_generator(made: Processor, tmp_path: Path) -> None:
    first, second, third = (answer_batch(examples(tmp_path), made, StageConfig(), 0.5, rng(s)) for s in (4, 4, 5))
    assert torch.equal(first["prompts"].ids, second["prompts"].ids) and torch.equal(first["labels"], second["labels"])
    assert first["prompts"].ids.shape != third["prompts"].ids.shape or not torch.equal(
        first["prompts"].ids, third["prompts"].ids
    )


def test_a_question_without_an_answer_is_named(made: Processor, tmp_path: Path) -> None:
    (first, *_) = examples(tmp_path)
    for answers in ((), ("",), (" ", "")):
        silent = Example(changed(first.question, answers=answers), first.gold, first.negatives)
        with pytest.raises(DataError, match="'text' has no answer"):
            answer_batch([silent], made, StageConfig(), 0.0, rng())
    half = Example(changed(first.question, answers=("", "Moro")), first.gold, first.negatives)
    for seed in range(5):
        assert answers_of(made, answer_batch([half], made, StageConfig(), 0.0, rng(seed)))[0] == "Moro"
