"""Knowledge that misleads, made from the index: random items, near-duplicates of the wrong entity, another order.

Every choice is drawn from a generator seeded by (seed, purpose, question id), so that it depends neither on the other
questions nor on their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ra_blip.records import Item, Question, entity
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.search import is_negative

CHOICES = 4  # one gold and three distractors: chance is 0.25


def generator(seed: int, purpose: str, question: Question) -> np.random.Generator:
    """The random generator of one question for one purpose."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{question.id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def gold_items(index: KnowledgeIndex, question: Question) -> list[Item]:
    """The question's gold items that the index holds, in the question's order."""
    return [index.items[name] for name in dict.fromkeys(question.gold) if name in index.items]


def shuffled(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """The items in a random order that is not the given one, where there are two or more."""
    order = list(range(len(items)))
    while len(order) > 1 and order == sorted(order):
        order = [int(i) for i in rng.permutation(len(items))]
    return [items[i] for i in order]


def random_items(index: KnowledgeIndex, question: Question, count: int, rng: np.random.Generator) -> list[Item]:
    """``count`` different items drawn from the whole index, none of them gold; fewer where there are no more."""
    names = list(index.items)
    barred = set(question.gold) & index.items.keys()
    chosen: dict[str, None] = {}
    while len(chosen) < min(count, len(names) - len(barred)):
        name = names[int(rng.integers(len(names)))]
        if name not in barred:
            chosen[name] = None
    return [index.items[name] for name in chosen]


def wrong_items(
    index: KnowledgeIndex, question: Question, anchors: Sequence[Item], barred: Collection[str], count: int
) -> list[Item]:
    """Near-duplicates of the wrong entity: the items nearest to ``anchors`` in the index that do not answer.

    They are of an anchor's kind (text, picture, picture with text), of another entity than any anchor's and any gold
    item's (:func:`entity`), not in ``barred``, not gold, and no answer stands in their words. Where other entities give
    too few, items of the same entity that hold to the rest fill up; fewer than ``count`` come back where there are no
    more.
    """
    kinds = {item.kind for item in anchors}
    entities = {entity(item) for item in (*anchors, *gold_items(index, question))}
    taken = {*barred, *(item.id for item in anchors)}

    def fits(item: Item) -> bool:
        return item.kind in kinds and item.id not in taken and is_negative(question, item)

    found = _nearest(index, anchors, lambda item: fits(item) and entity(item) not in entities, count)
    if len(found) < count:
        taken |= {item.id for item in found}
        found += _nearest(index, anchors, fits, count - len(found))
    return found


def _nearest(index: KnowledgeIndex, anchors: Sequence[Item], allowed: Callable[[Item], bool], count: int) -> list[Item]:
    """The ``count`` allowed items nearest to the anchors, one anchor after the other in turn."""
    if not anchors or count < 1:
        return []
    vectors = index.vectors_of([item.id for item in anchors])
    k = min(32, len(index))
    while True:
        columns = zip(*index.search(vectors, k), strict=False)
        items = dict.fromkeys(hit.item for column in columns for hit in column)
        found = [item for item in items if allowed(item)][:count]
        if len(found) == count or k == len(index):
            return found
        k = min(4 * k, len(index))


def adversarial(
    index: KnowledgeIndex, question: Question, kept: Sequence[Item], rng: np.random.Generator
) -> list[Item]:
    """The kept items with half of them (rounded down, at least one) replaced by :func:`wrong_items`, shuffled.

    Gold items stay; of the others the lowest ranked go first, and where there are not enough of them the wrong items
    are added. They are near to the gold items, or to the best kept one where the index holds no gold.

    Args:
        index: where the replacements come from.
        question: as it was asked, with answers and gold where known.
        kept: best first.
        rng: decides the order.
    """
    count = max(len(kept) // 2, 1) if kept else 0
    replaceable = [i for i in reversed(range(len(kept))) if kept[i].id not in question.gold][:count]
    anchors = gold_items(index, question) or list(kept[:1])
    wrong = wrong_items(index, question, anchors, {item.id for item in kept}, count)
    mixed = list(kept)
    for place, item in zip(replaceable, wrong, strict=False):
        mixed[place] = item
    mixed += wrong[len(replaceable) :]
    return shuffled(mixed, rng)


def noisy(index: KnowledgeIndex, question: Question, rng: np.random.Generator, ratio: float) -> list[Item]:
    """The gold items among so many :func:`wrong_items` that ``ratio`` (below 1) of all are wrong, in random order.

    Where no number of them gives the ratio, the next lower or the next higher is drawn, so that the ratio is met by
    the mean over questions: beside one gold item, a ratio of 0.25 is one wrong item for every other question. There
    are at most three, and none where the index holds no gold item: then there are no items at all.
    """
    gold, most = gold_items(index, question), CHOICES - 1
    draw = rng.random()
    if not gold:
        return []
    count = min(int(len(gold) * ratio / (1 - ratio) + 1e-9), most)
    below, above = (n / (len(gold) + n) for n in (count, count + 1))
    if count < most and draw < (ratio - below) / (above - below):
        count += 1
    items = [*gold, *wrong_items(index, question, gold, question.gold, count)]
    return [items[int(i)] for i in rng.permutation(len(items))]


def choice(index: KnowledgeIndex, question: Question, rng: np.random.Generator) -> tuple[list[Item], int] | None:
    """Four items for the ASKG test and the place of the gold one: the first gold item of the question and three
    :func:`wrong_items` nearest to it, in random order.

    None where the index holds no gold item of the question, or too few distractors.
    """
    gold = gold_items(index, question)
    if not gold:
        return None
    wrong = wrong_items(index, question, gold[:1], question.gold, CHOICES - 1)
    if len(wrong) < CHOICES - 1:
        return None
    items = [gold[0], *wrong]
    order = [int(i) for i in rng.permutation(CHOICES)]
    return [items[i] for i in order], order.index(0)
