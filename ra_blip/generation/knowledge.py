"""How kept items stand in a prompt: as pictures, as captions or as both, within a number of prompt positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from ra_blip.records import Item


class Counter(Protocol):
    """What a budget asks of a model."""

    def item_tokens(self, item: Item) -> int:
        """Positions that an item takes in a prompt."""


def _words_alone(item: Item) -> Item | None:
    return dataclasses.replace(item, image=None) if item.full_text else None


def _picture_alone(item: Item) -> Item | None:
    return dataclasses.replace(item, text=None, title=None) if item.image else None


FORMS: dict[str, Callable[[Item], Item | None]] = {
    "both": lambda item: item,
    "captions": _words_alone,
    "images": _picture_alone,
}


def present(items: Sequence[Item], form: str, budget: int, model: Counter) -> tuple[list[Item], list[str]]:
    """The items as the prompt shows them, and what was left out, in words.

    Over the budget the captions of pictures go first and then whole items, each time from the last rank on: a picture
    was retrieved for what it shows, and the best item is the last to go.

    Args:
        items: best first.
        form: ``both``, ``captions`` (an item without words is left out) or ``images`` (one without a picture is).
        budget: most prompt positions that the items may take together; 0: no limit.
        model: says how many positions an item takes.
    """
    formed = [one for one in map(FORMS[form], items) if one is not None]
    shown = list(formed)
    if budget:
        for place in reversed(range(len(shown))):
            if shown[place].kind == "image+text" and sum(map(model.item_tokens, shown)) > budget:
                shown[place] = dataclasses.replace(shown[place], text=None, title=None)
        while shown and sum(map(model.item_tokens, shown)) > budget:
            shown.pop()
    cut = sum(now is not before for now, before in zip(shown, formed, strict=False))
    remarks = {
        f"no {form} to show of {{}} kept items": len(items) - len(formed),
        f"token budget {budget}: left out the captions of {{}} pictures": cut,
        f"token budget {budget}: left out {{}} kept items": len(formed) - len(shown),
    }
    return shown, [text.format(count) for text, count in remarks.items() if count]
