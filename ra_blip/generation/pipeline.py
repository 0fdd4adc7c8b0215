"""From a question to a trace: search, hop, rank, keep, judge, generate; one question or a batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, overload

from ra_blip.errors import ConfigError, ImageError, QuestionError, RetrievalError
from ra_blip.records import Item, Question, Trace
from ra_blip.retrieval.embed import Encoder
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.rerank import RERANKERS, Judge, select
from ra_blip.retrieval.search import expanded, search

MAX_CHARACTERS = 8_000


class Generated(Protocol):
    """An answer, the prompt that led to it and the options that it was decoded with."""

    @property
    def answer(self) -> str:
        """The answer."""

    @property
    def prompt(self) -> str:
        """The text given to the language model."""

    @property
    def decoding(self) -> Mapping[str, Any]:
        """Beams, lengths and penalties; empty where there are none to name."""


class Answerer(Encoder, Judge, Protocol):
    """What the pipeline asks of a model, beside encoding and ranking."""

    @property
    def max_items(self) -> int:
        """Most items that one prompt takes."""

    def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> Sequence[Sequence[float]]:
        """P(this item is the one that answers) for the items of each question, in order."""

    def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> Sequence[Generated]:
        """An answer to each question from its items, which stand in prompt order."""


@dataclasses.dataclass
class PipelineConfig:
    """How questions are answered.

    Attributes:
        k: candidates per search; more than the index holds means all of it.
        keep: items that reach the generator, at most as many as the model's prompt takes.
        max_images: of these, items with a picture.
        threshold: candidates that the ranker gives less are not kept, except the best.
        rerank: a name in :data:`ra_blip.retrieval.rerank.RERANKERS`.
        hops: 2 searches again for a question with a picture, with the words of the first hit.
        batch_size: questions (or pairs, or items) per model call.
        relevance: a kept item is judged relevant where the model's probability for it is at least this share of the
            highest one. Relative, because the probabilities of the kept items sum to 1: two items that are both
            needed get about a half each, whatever else is kept. The best is always judged relevant.
        vote: in the first search of a question with a picture, so many hits are grouped by entity; 0: none.
        focus: the answer is given from the kept items that were judged relevant alone; otherwise from all of them.
    """

    k: int = 20
    keep: int = 4
    max_images: int = 4
    threshold: float = 0.1
    rerank: str = "product"
    hops: int = 2
    batch_size: int = 32
    relevance: float = 0.5
    vote: int = 0
    focus: bool = True

    @classmethod
    def of(cls, given: Sequence[str]) -> PipelineConfig:
        """The defaults with ``name=value`` pairs put in. Raises :class:`ConfigError` naming the pair and the names."""
        fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for pair in given:
            name, _, value = pair.partition("=")
            try:
                kind = type(fields[name])
                values[name] = {"true": True, "false": False}[value] if kind is bool else kind(value)
            except (KeyError, ValueError):
                if name not in fields:
                    raise ConfigError(f"pipeline: {pair!r} sets none of {', '.join(fields)}") from None
                raise ConfigError(f"pipeline: {pair!r}: not a value like {fields[name]!r}") from None
        return cls(**values)

    def __post_init__(self) -> None:
        """Refuse values that mean nothing. Raises :class:`ConfigError` naming key and value."""
        for name in ("k", "keep", "hops", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pipeline: {name} is {getattr(self, name)}, it must be 1 or more")
        for name in ("threshold", "relevance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pipeline: {name} is {getattr(self, name)}, it must be from 0 to 1")
        if self.max_images < 0 or self.vote < 0 or self.hops > 2:
            counts = f"max_images {self.max_images} and vote {self.vote}"
            raise ConfigError(f"pipeline: {counts} must be 0 or more, hops {self.hops} 1 or 2")
        if self.rerank not in RERANKERS:
            raise ConfigError(f"pipeline: rerank {self.rerank!r} is not one of {', '.join(RERANKERS)}")


class Pipeline:
    """Answers questions from an index.

    Args:
        model: encodes, ranks, judges and generates.
        index: the knowledge; None answers without retrieval.
        config: see :class:`PipelineConfig`.

    Raises:
        IndexMismatch: another model built the index.
    """

    def __init__(self, model: Answerer, index: KnowledgeIndex | None, config: PipelineConfig | None = None) -> None:
        """Check that model and index belong together."""
        self.model = model
        self.index = index
        self.config = config or PipelineConfig()
        if index is not None:
            index.check(model)

    # a string is a sequence of strings; the first signature catches it
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, question: str | Question, image: str | Path | None = None
    ) -> Trace: ...

    @overload
    def __call__(self, question: Sequence[str | Question], image: None = None) -> list[Trace]: ...

    def __call__(
        self, question: str | Question | Sequence[str | Question], image: str | Path | None = None
    ) -> Trace | list[Trace]:
        """Answer one question, or a batch of them by the same calls.

        Args:
            question: the question or questions.
            image: a picture that one question, given as a string, is asked with.

        Raises:
            QuestionError: empty, or longer than 8,000 characters; ``image`` beside a batch or a ``Question``.
            ImageError: the picture does not exist or cannot be opened.
        """
        if image is not None and not isinstance(question, str):
            raise QuestionError("image goes with one question given as a string; a Question names its own")
        single = isinstance(question, (str, Question))
        asked = [question] if isinstance(question, (str, Question)) else list(question)
        traces = self.retrieve([_question(one, number, image) for number, one in enumerate(asked, 1)])
        self.answer(traces, [self.items_of(trace) for trace in traces])
        return traces[0] if single else traces

    def items_of(self, trace: Trace) -> list[Item]:
        """The kept items of a trace, in prompt order."""
        items = {hit.item.id: hit.item for hit in trace.hits}
        return [items[name] for name in trace.kept]

    def retrieve(self, questions: Sequence[Question]) -> list[Trace]:
        """Search, hop and rank; the traces' ``hits``, ``kept`` and ``seconds`` are filled.

        Raises:
            QuestionError, ImageError: as :meth:`__call__`.
            RetrievalError: the index is empty.
        """
        for question in questions:
            _check(question)
        traces = [Trace(question=question) for question in questions]
        if self.index is None or not traces:
            return traces
        if not len(self.index):
            raise RetrievalError("the index is empty: there is nothing to search")
        k = min(self.config.k, len(self.index))
        with _timed(traces, "search"):
            config = self.config
            found = search(self.model, self.index, questions, k, config.hops, config.batch_size, config.vote)
        candidates = [one.candidates for one in found]
        with _timed(traces, "rank"):
            rerank = RERANKERS[self.config.rerank]
            ranked = rerank(self.model, [one.question for one in found], candidates, self.config.batch_size)
        keep = min(self.config.keep, self.model.max_items)
        for trace, one, rank in zip(traces, found, ranked, strict=True):
            trace.hits = one.hits + [hit for hit in rank if hit.stage == "rank"]
            trace.kept = [hit.item.id for hit in select(rank, keep, self.config.max_images, self.config.threshold)]
        return traces

    def answer(self, traces: Sequence[Trace], knowledge: Sequence[Sequence[Item]]) -> None:
        """Judge ``knowledge`` and answer from it; fills the traces, ``hits`` aside.

        Args:
            traces: as :meth:`retrieve` gave them; a question that took two hops is asked in its expanded form.
            knowledge: the items given to each, in prompt order; those past the model's ``max_items`` are left out.
        """
        for start in range(0, len(traces), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            self._answer(traces[part], [list(items)[: self.model.max_items] for items in knowledge[part]])

    def _answer(self, traces: Sequence[Trace], knowledge: Sequence[Sequence[Item]]) -> None:
        questions = [expanded(trace.question, trace.hits) for trace in traces]
        with _timed(traces, "judge"):
            relevance = self.model.select(questions, knowledge)
        for trace, items, shares in zip(traces, knowledge, relevance, strict=True):
            trace.kept = [item.id for item in items]
            trace.relevance = [round(float(share), 6) for share in shares]
            trace.judged = judged(trace.kept, trace.relevance, self.config.relevance)
        with _timed(traces, "generate"):
            if self.config.focus:
                pairs = zip(traces, knowledge, strict=True)
                knowledge = [[item for item in items if item.id in trace.judged] for trace, items in pairs]
            generated = self.model.generate(questions, knowledge)
        for trace, one in zip(traces, generated, strict=True):
            trace.answer, trace.prompt, trace.decoding = one.answer, one.prompt, dict(one.decoding)


def judged(kept: Sequence[str], relevance: Sequence[float], share: float) -> list[str]:
    """Ids of the kept items whose probability is at least ``share`` of the highest, most relevant first."""
    limit = share * max(relevance, default=0.0)
    pairs = [(name, value) for name, value in zip(kept, relevance, strict=True) if value >= limit]
    return [name for name, _ in sorted(pairs, key=lambda pair: -pair[1])]


def _question(question: str | Question, number: int, image: str | Path | None) -> Question:
    if isinstance(question, Question):
        return question
    return Question(id=f"question-{number}", text=question, image=str(image) if image is not None else None)


def _check(question: Question) -> None:
    if not question.text.strip():
        raise QuestionError(f"question {question.id!r} is empty")
    if len(question.text) > MAX_CHARACTERS:
        raise QuestionError(
            f"question {question.id!r} has {len(question.text):,} characters, at most {MAX_CHARACTERS:,}"
        )
    if question.image is not None and not Path(question.image).is_file():
        raise ImageError(f"question {question.id!r}: no such picture: {question.image}")


@contextmanager
def _timed(traces: Sequence[Trace], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    share = (time.perf_counter() - start) / max(len(traces), 1)
    for trace in traces:
        trace.seconds[stage] = trace.seconds.get(stage, 0.0) + share
