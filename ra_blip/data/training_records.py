"""What training takes of a data set where it lies: its questions with golds, and as much of its knowledge as fits."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from ra_blip.data.readers.captions import CaptionDataset, captioned
from ra_blip.data.readers.dataset import Dataset
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

POOL = 200_000  # items drawn at random for negatives, beside those that questions name: Wiki6M does not fit


def training_records(
    dataset: Dataset, split: str, mined: Mapping[str, Sequence[str]], seed: int
) -> tuple[list[Question], list[Item]]:
    """The questions of one split that have gold items, and the items to train them with.

    Questions without gold, or whose gold is not among the items, or whose id a validation or test question has, too,
    are left out and counted. Of the items, those that a question names or that were mined are taken, and at most
    :data:`POOL` others.

    Args:
        dataset: the data set.
        split: ``train``; another one only where the user wants just that.
        mined: ids of hard negatives by question id.
        seed: draws the other items.

    Raises:
        DataError: no such split, or no question to train on.
    """
    require_split(dataset, split)
    held_out = {one.id for other in _held_out(dataset, split) for one in dataset.questions(other)}
    asked = [one for one in dataset.questions(split) if _can_train(one, held_out, dataset, split)]
    named = {name for one in asked for name in (*one.gold, *one.negatives, *mined.get(one.id, ()))}
    items, count = _knowledge(dataset.items(), named, seed)
    known = {item.id for item in items}
    kept = []
    for question in asked:
        if lost := [name for name in question.gold if name not in known]:
            _report(dataset, split, "unknown item", question.id, f"has gold item {lost[0]!r}, which is not there")
        else:
            kept.append(question)
    if not kept:
        raise DataError(
            f"{dataset.root}: no {split} question of {dataset.name} has its gold items here "
            f"({dataset.problems.summary()}); write them as items.jsonl and questions.jsonl (data.name=records)"
        )
    part = f" of {count:,}" if count > len(items) else ""
    say(dataset, f"{len(kept):,} questions of {split}, {len(items):,}{part} items")
    return kept, items


def captions(dataset: Dataset, split: str) -> Iterator[Item]:
    """Items with pictures to pretrain on: a caption set's split, or a knowledge base (which is one for all splits).

    A picture of the caption set that is to validate or test with, too, is left out and counted.

    Raises:
        DataError: no such split.
    """
    require_split(dataset, split)
    if not isinstance(dataset, CaptionDataset):
        yield from dataset.items()
        return
    held_out = {picture.id for other in _held_out(dataset, split) for picture in dataset.pictures(other)}
    for picture in dataset.pictures(split):
        if picture.id in held_out:
            _report(dataset, split, "evaluation id", picture.id, "is in a validation or test split, too")
        else:
            yield from captioned(picture)


def require_split(dataset: Dataset, split: str) -> None:
    """Raise :class:`DataError` for a split that is not here, saying how to train on another one all the same."""
    if split not in dataset.splits:
        there = ", ".join(dataset.splits) or "none"
        raise DataError(
            f"{dataset.root}: {dataset.name} has no split {split!r} here; there are: {there}. To train on what is "
            "there to test with, which makes its scores worthless, name it: data.split=val"
        )


def say(dataset: Dataset, read: str) -> None:
    """Print one line on stderr, in the first process only: what was read, and what was left out."""
    if os.environ.get("RANK", "0") == "0":
        left_out = dataset.problems.summary() or "nothing left out"
        print(f"{dataset.name} in {dataset.root}: {read}; {left_out}", file=sys.stderr)


def _held_out(dataset: Dataset, split: str) -> list[str]:
    """The splits that training on ``split`` must not see."""
    return [other for other in dataset.splits if other not in ("train", split)]


def _can_train(question: Question, held_out: Container[str], dataset: Dataset, split: str) -> bool:
    if question.id in held_out:
        _report(dataset, split, "evaluation id", question.id, "is in a validation or test split, too")
        return False
    if not question.gold:
        _report(dataset, split, "no gold item", question.id, "names no gold item, so it cannot be trained on")
    return bool(question.gold)


def _report(dataset: Dataset, split: str, kind: str, name: str, message: str) -> None:
    dataset.problems.report(kind, f"{dataset.root}, {split}", f"{name!r} {message}")


def _knowledge(items: Iterable[Item], named: set[str], seed: int) -> tuple[list[Item], int]:
    """The named items and a random sample of the others (reservoir sampling), and how many there are in all."""
    draw = random.Random(f"knowledge/{seed}")
    kept: list[Item] = []
    others: list[Item] = []
    passed = 0
    for item in items:
        if item.id in named:
            kept.append(item)
            continue
        passed += 1
        if len(others) < POOL:
            others.append(item)
        elif (place := draw.randrange(passed)) < POOL:
            others[place] = item
    return kept + others, len(kept) + passed
