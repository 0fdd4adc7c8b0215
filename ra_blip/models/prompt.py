"""Prompt assembly: a question and its knowledge become one string with picture markers. Pure functions over records.

Two layouts:

``release``
    What the RA-BLIP release feeds: picture captions, then text facts, then the question, parts joined by a bar; all
    pictures are read together and stand in one block at the front.
``interleaved``
    Each item stands behind its letter, with its own picture at its own place. Nothing in it depends on the order.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Sequence

from ra_blip.records import Item, Question

IMAGE = "<image>"  # where the soft tokens of a picture stand
LABELS = string.ascii_uppercase  # names of references in the judging task
FIRST, LATER, WEAK = "*", "^", "+"  # prompt-level overlap marks, see `mark_overlap`
_WORD = re.compile(r"\w+")
# What would look like markup of ours or of a tokenizer. Single brackets go, too: "[ A ]" and "[|A]" become the tokens
# of "[A]"; so do their full-width forms, which the tokenizers of large models fold into the plain ones.
_STRUCTURE = re.compile("<[^<>\\s]{1,20}>|[][|*^\uff3b\uff3d\uff5c\uff0a\uff3e]")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the generator is given.

    Attributes:
        text: the LLM's text with ``IMAGE`` markers.
        images: pictures in the order of their markers (``interleaved``) or of their slots (``release``).
        guides: the text that guides the Q-Former: one a picture (``interleaved``) or one in all (``release``).
    """

    text: str
    images: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()


def clean(text: str) -> str:
    """Neutralise what an item's text could use to change the structure of the prompt; blanks collapse."""
    return " ".join(_STRUCTURE.sub(" ", text).split())


def mark_overlap(text: str, question: str) -> tuple[str, str]:
    """Mark what a text shares with the question: names, that is capitalised words of four letters or more.

    A shared name of several words ("Velora Tower") gets a strong mark: ``*`` where the question names it first, ``^``
    where it names another before it, so that an answer can follow the question's order. A single shared word
    ("Tower") gets the weak mark. This is a crutch for a generator trained from nothing; a pretrained LLM compares
    names by itself.

    Returns:
        the mark of the whole text (its strongest, empty for none), to stand beside its label, and the text with the
        strong mark before each shared name.
    """
    asked = _name_places(question)
    words = text.split()
    places = [min((asked[part] for part in _WORD.findall(word) if part in asked), default=None) for word in words]
    out: list[str] = []
    strongest = ""
    for i, word in enumerate(words):
        place = places[i]
        if place is not None and not (i and places[i - 1] is not None):
            if i + 1 < len(words) and places[i + 1] is not None:
                mark = LATER if place else FIRST
                out.append(mark)
                strongest = mark if strongest in ("", WEAK) else strongest
            else:
                strongest = strongest or WEAK
        out.append(word)
    return strongest, " ".join(out)


def _name_places(question: str) -> dict[str, int]:
    """Each capitalised word of four letters or more -> how many names of several words stand before its own."""
    places: dict[str, int] = {}
    names, run = 0, 0
    for word in [*question.split(), ""]:
        parts = [part for part in _WORD.findall(word) if part[0].isupper() and len(part) > 3]
        for part in parts:
            places.setdefault(part, names)
        if not parts:
            names += run > 1
        run = run + 1 if parts else 0
    return places


def guide_of(question: Question, item: Item) -> str:
    """The text that guides the reading of one item's picture: question and caption."""
    return f"{question.text} {clean(item.full_text)}".strip()


def answer_task(question: str) -> str:
    """The question as the QA branch asks it."""
    return question


def select_task(question: str) -> str:
    """The question as the ASKG branch asks it: the template of the paper's figure."""
    return f"{question} Which item is related to this question?"


YES_NO = ("Yes", "No")
SHOWN = {"text": "text", "image": "picture", "image+text": "picture, with its caption,"}


def relevance_task(item: Item) -> str:
    """The task that asks for Yes or No to one item; what it asks depends on the item's kind."""
    return f"relevance of {item.kind}"


def _relevance(question: str, shown: str) -> str:
    return f"{question} Is this {shown} relevant to the question? Answer {YES_NO[0]} or {YES_NO[1]}."


TASKS: dict[str, Callable[[str], str]] = {
    "answer": answer_task,
    "select": select_task,
    **{f"relevance of {kind}": functools.partial(_relevance, shown=shown) for kind, shown in SHOWN.items()},
}


def ask(task: str, question: str, template: str = "{}") -> str:
    """The question as a task puts it; ``template`` with ``{}`` for the question is how an answer is asked for."""
    words = TASKS[task](question)
    return template.replace("{}", words) if task == "answer" else words


def interleaved(
    task: str, question: Question, items: Sequence[Item], slots: int, marks: bool, template: str = "{}"
) -> Prompt:
    """Every item behind its letter, picture in place. Pictures beyond ``slots`` are left out, their captions stay."""
    parts, images, guides = [], [], []
    if question.image is not None:
        images.append(question.image)
        guides.append(question.text)
        parts.append(IMAGE)
    for label, item in zip(LABELS, items, strict=False):
        words = clean(item.full_text)
        shown = item.image is not None and len(images) < slots
        if item.image is not None and shown:
            images.append(item.image)
            guides.append(guide_of(question, item))
        mark, text = mark_overlap(words, question.text) if marks else ("", words)
        parts.append(" ".join(part for part in (f"[{label}{mark}]", IMAGE if shown else "", text) if part))
    text = " | ".join([*parts, ask(task, clean(question.text), template)])
    return Prompt(text, tuple(images), tuple(guides))


def release(
    task: str, question: Question, items: Sequence[Item], slots: int, marks: bool, template: str = "{}"
) -> Prompt:
    """Captions, then facts, then the question; all pictures in one block. In judging, labels stand before the items."""
    pictures = [item.image for item in items if item.image is not None]
    images = tuple(([question.image] if question.image else []) + pictures)[:slots]
    captions: list[str] = []
    facts: list[str] = []
    for letter, item in zip(LABELS, items, strict=False):
        label = f"[{letter}] " if task == "select" else ""
        words = clean(item.text or "")
        words = mark_overlap(words, question.text)[1] if marks else words
        if item.image is not None:
            captions.append(f"{label}caption of image {len(captions) + 1}: {words}".rstrip(": "))
        else:
            title = f"title: {clean(item.title)} " if item.title else ""
            facts.append(f"{label}{title}fact: {words}")
    parts = ["; ".join(captions), "; ".join(facts), ask(task, clean(question.text), template)]
    text = (IMAGE + " " if images else "") + " | ".join(part for part in parts if part)
    said = [clean(question.text), *(clean(item.full_text) for item in items if item.image)]
    guide = " ".join(part for part in said if part)
    return Prompt(text, images, (guide,) if images else ())


LAYOUTS: dict[str, Callable[[str, Question, Sequence[Item], int, bool, str], Prompt]] = {
    "interleaved": interleaved,
    "release": release,
}
