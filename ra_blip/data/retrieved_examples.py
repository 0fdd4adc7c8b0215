"""Training samples whose knowledge is what was retrieved for them, right or wrong: RAVEN's fine-tuning.

The tasks are instructions ("Describe this picture.", a question about a picture) and are mixed by weight.

``python -m ra_blip.data.retrieved_examples ITEMS.jsonl QUESTIONS.jsonl`` makes captioning tasks of captioned pictures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ra_blip.data.record_examples import read_mined
from ra_blip.data.stream import Mixture, Samples
from ra_blip.errors import DataError, RABlipError
from ra_blip.records import Example, Item, Question, by_id, read_items, write_jsonl

INSTRUCTION = "Describe this picture."
CAPTION = "caption"  # category of captioning tasks


class RetrievedExamples:
    """Questions with what a search found for them.

    A sample has up to ``keep`` of its hits, drawn anew each time and in the order of their ranks. Some samples have
    nothing, and some have items drawn from all, so that the model neither needs retrieval nor trusts it blindly.

    Args:
        items: the knowledge base.
        questions: with answers; gold items are not needed.
        hits: ids of what was found, best first, by question id; none for a question that nothing was found for.
        keep: most items of a sample.
        nothing: probability of a sample without items.
        wrong: probability of a sample with random items.
        where: what the questions come from, for messages.

    Raises:
        DataError: no questions, a question without an answer, or a hit that is not among the items.
    """

    def __init__(
        self,
        items: Sequence[Item],
        questions: Sequence[Question],
        hits: Mapping[str, Sequence[str]],
        keep: int = 3,
        nothing: float = 0.1,
        wrong: float = 0.1,
        where: str = "data",
    ) -> None:
        known = by_id(items)
        if not questions:
            raise DataError(f"{where}: no question of this task")
        for question in questions:
            if not any(answer.strip() for answer in question.answers):
                raise DataError(f"{where}: question {question.id!r} has no answer to learn")
            lost = [name for name in hits.get(question.id, ()) if name not in known]
            if lost:
                raise DataError(f"{where}: question {question.id!r}: found item {lost[0]!r} is not among the items")
        self.items, self.questions = list(items), list(questions)
        self.found = [[known[name] for name in hits.get(question.id, ())] for question in questions]
        self.keep, self.nothing, self.wrong = keep, nothing, wrong

    def __len__(self) -> int:
        """Questions."""
        return len(self.questions)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Question ``index`` with the items that stand in its prompt."""
        chance = rng.random()
        if chance < self.nothing:
            return Example(self.questions[index], ())
        pool = self.items if chance < self.nothing + self.wrong else self.found[index]
        if len(pool) <= self.keep:
            return Example(self.questions[index], tuple(pool))
        return Example(self.questions[index], tuple(pool[i] for i in sorted(rng.choice(len(pool), self.keep, False))))

    def texts(self) -> Iterator[str]:
        """Questions, answers and items."""
        for question in self.questions:
            yield from (question.text, *question.answers)
        yield from (item.full_text for item in self.items if item.full_text)


def task_mixture(
    items: Sequence[Item],
    questions: Sequence[Question],
    hits: str,
    tasks: Mapping[str, float],
    keep: int,
    nothing: float,
    wrong: float,
    where: str,
) -> Samples:
    """Samples of several tasks, mixed by weight.

    Args:
        items: the knowledge base.
        questions: of all tasks.
        hits: file of ``ra-blip search`` over the questions.
        tasks: category (``*`` for any letters) -> weight; all questions in one where empty.
        keep, nothing, wrong, where: as of :class:`RetrievedExamples`.

    Raises:
        DataError: as :class:`RetrievedExamples`; also a question that belongs to no task or to two.
        ConfigError: weights below 0, or none above.
    """
    found = read_mined(hits)
    parts: dict[str, list[Question]] = {task: [] for task in tasks or ("*",)}
    for question in questions:
        fitting = [task for task in parts if fnmatchcase(question.category or "", task)]
        if len(fitting) != 1:
            what = f"belongs to the tasks {', '.join(fitting)}" if fitting else "belongs to no task"
            raise DataError(f"{where}: question {question.id!r} of category {question.category!r} {what} of data.tasks")
        parts[fitting[0]].append(question)
    made = [
        RetrievedExamples(items, part, found, keep, nothing, wrong, f"{where}, task {task!r}")
        for task, part in parts.items()
    ]
    return Mixture(made, list(tasks.values())) if len(made) > 1 else made[0]


def captioning(items: Iterable[Item], instruction: str = INSTRUCTION) -> list[Question]:
    """A captioning task for each captioned picture; the captions ``ID.0``, ``ID.1`` ... of one are its answers."""
    tasks: dict[str, tuple[str, list[str]]] = {}
    for item in items:
        if item.image and item.full_text:
            name = re.sub(r"\.\d+$", "", item.id)
            tasks.setdefault(name, (item.image, []))[1].append(item.full_text)
    return [Question(name, instruction, image, tuple(said), category=CAPTION) for name, (image, said) in tasks.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write captioning tasks; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ra_blip.data.retrieved_examples", description=captioning.__doc__)
    parser.add_argument("items", metavar="ITEMS.jsonl")
    parser.add_argument("out", metavar="QUESTIONS.jsonl")
    parser.add_argument("--instruction", default=INSTRUCTION, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        tasks = captioning(read_items(given.items), given.instruction)
        if not tasks:
            raise DataError(f"{given.items}: no captioned picture")
        write_jsonl(given.out, tasks)
    except RABlipError as error:
        print(f"retrieved_examples: {error}", file=sys.stderr)
        return 2
    print(f"{len(tasks)} captioning tasks in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
