"""From a question to a trace: search, hop, filter, rank, keep, judge, generate; one question or a batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, overload

from ra_blip.errors import ConfigError, ImageError, QuestionError, RetrievalError
from ra_blip.generation.knowledge import FORMS, present
from ra_blip.generation.methods import METHODS
from ra_blip.records import Hit, Item, Question, Trace
from ra_blip.retrieval.embed import Encoder, Vectors, embed_items
from ra_blip.retrieval.filters import Filters
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.rerank import RERANKERS, Judge, select
from ra_blip.retrieval.search import KINDS, QUERIES, Found, expanded, search

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

    @property
    def tokens(self) -> Mapping[str, int]:
        """Positions of the ``prompt`` and tokens of the ``answer``; empty where they are not known."""

    @property
    def note(self) -> str:
        """What went wrong, where something did; else empty."""


class Writer(Protocol):
    """What writes an answer from a question and its knowledge: the model, or an endpoint."""

    @property
    def max_items(self) -> int:
        """Most items that one prompt takes."""

    def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> Sequence[Generated]:
        """An answer to each question from its items, which stand in prompt order."""


class Answerer(Judge, Encoder, Writer, Protocol):
    """What the pipeline asks of a model, beside encoding, ranking and writing."""

    def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> Sequence[Sequence[float]]:
        """P(this item is the one that answers) for the items of each question, in order."""

    def item_tokens(self, item: Item) -> int:
        """Positions that an item takes in a prompt."""


@dataclasses.dataclass
class PipelineConfig:
    """How questions are answered.

    Attributes:
        k: candidates per search; more than the index holds means all of it.
        keep: items that reach the generator, at most as many as the model's prompt takes.
        max_images: of these, items with a picture.
        threshold: candidates that the ranker gives less are not kept, except the best.
        adaptive: the threshold is the one that was measured when the model was trained to say Yes or No; rerank has to
            be ``llm_yesno`` or ``yesno_product``.
        keep_best: keep the best also below the threshold; otherwise such a question is answered from itself alone.
        rerank: a name in :data:`ra_blip.retrieval.rerank.RERANKERS`.
        hops: 2 searches again for a question with a picture, with the words of the first hit.
        batch_size: questions (or pairs, or items) per model call.
        relevance: a kept item is judged relevant where the model's probability for it is at least this share of the
            highest one. Relative, because the probabilities of the kept items sum to 1: two items that are both
            needed get about a half each, whatever else is kept. The best is always judged relevant.
        vote: in the first search of a question with a picture, so many hits are grouped by entity; 0: none.
        focus: the answer is given from the kept items that were judged relevant alone; otherwise from all of them.
        askg: ask the model which kept items are relevant (ASKG); otherwise all of them are taken to be.
        instruction: words guide how the model reads the pictures of a prompt; otherwise nothing does (an ablation).
        fusion: picture and words are embedded together; otherwise apart, as their mean direction (an ablation).
        retriever: a name in :data:`RETRIEVERS`.
        query: what of a question is searched with, see :func:`ra_blip.retrieval.search.query_vectors`.
        kind: items that are searched: ``text``, ``image``, ``image+text`` (a captioned picture) or, empty, all.
        filters: what takes candidates out before they are ranked, see :mod:`ra_blip.retrieval.filters`.
        knowledge: ``both``, ``captions`` or ``images``: what of the kept items the prompt shows.
        token_budget: most prompt positions for knowledge, see :mod:`ra_blip.generation.knowledge`; 0: no limit.
        provider: of the retriever ``reverse_image``: ``index``, or the YAML file of another provider, see
            :class:`ra_blip.retrieval.reverse_image_config.ProviderConfig`.
        generator: who writes the answer: ``model``, or the YAML file of an endpoint, see
            :class:`ra_blip.generation.endpoint.EndpointConfig`.
    """

    k: int = 20
    keep: int = 4
    max_images: int = 4
    threshold: float = 0.1
    adaptive: bool = False
    keep_best: bool = True
    rerank: str = "product"
    hops: int = 2
    batch_size: int = 32
    relevance: float = 0.5
    vote: int = 0
    focus: bool = True
    askg: bool = True
    instruction: bool = True
    fusion: bool = True
    retriever: str = "index"
    query: str = "question"
    kind: str = ""
    filters: str = ""
    knowledge: str = "both"
    token_budget: int = 0
    provider: str = "index"
    generator: str = "model"

    @classmethod
    def of(cls, given: Sequence[str], method: str = "ra_blip") -> PipelineConfig:
        """The settings of a method with ``name=value`` pairs put over them.

        Raises:
            ConfigError: naming the pair and the names, or the method and the methods.
        """
        if method not in METHODS:
            raise ConfigError(f"method {method!r} is not one of {', '.join(METHODS)}")
        fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        values: dict[str, Any] = dict(METHODS[method])
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
        for name in ("k", "keep", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pipeline: {name} is {getattr(self, name)}, it must be 1 or more")
        if self.adaptive and self.rerank not in ("llm_yesno", "yesno_product"):
            raise ConfigError(f"pipeline: adaptive needs rerank=llm_yesno or yesno_product, not {self.rerank}")
        for name in ("threshold", "relevance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pipeline: {name} is {getattr(self, name)}, it must be from 0 to 1")
        for name in ("max_images", "vote", "token_budget"):
            if getattr(self, name) < 0:
                raise ConfigError(f"pipeline: {name} is {getattr(self, name)}, it must be 0 or more")
        known: list[tuple[str, Collection[Any]]] = [("rerank", RERANKERS), ("retriever", RETRIEVERS), ("hops", (1, 2))]
        for name, names in [*known, ("query", QUERIES), ("knowledge", FORMS), ("kind", KINDS)]:
            if getattr(self, name) not in names:
                choices = ", ".join(map(str, names))
                raise ConfigError(f"pipeline: {name} {getattr(self, name)!r} is not one of {choices}")
        Filters(self.filters)


Retriever = Callable[[Sequence[Question], int], list[Found]]
"""Questions and how many hits -> what was found, one a question; a search that fails gives no hits and a note."""


def _from_index(model: Answerer, index: KnowledgeIndex | None, config: PipelineConfig) -> Retriever | None:
    if index is None:
        return None

    def retrieve(questions: Sequence[Question], k: int) -> list[Found]:
        if not len(index):
            raise RetrievalError("the index is empty: there is nothing to search")
        size = config.batch_size
        k = min(k, len(index))
        return search(model, index, questions, k, config.hops, size, config.vote, config.query, config.kind)

    return retrieve


def _reverse_image(model: Answerer, index: KnowledgeIndex | None, config: PipelineConfig) -> Retriever | None:
    from ra_blip.retrieval.reverse_image import reverse_image

    return reverse_image(model, index, config.provider, config.batch_size, config.hops)


def _ablated(model: Any, config: PipelineConfig) -> Answerer:
    off = {part: False for part in ("instruction", "fusion") if not getattr(config, part)}
    if off and not hasattr(model, "ablated"):
        raise ConfigError(f"pipeline: {', '.join(off)}: this model cannot do without")
    ablated: Answerer = model.ablated(**off) if off else model
    return ablated


def _writer(model: Answerer, config: PipelineConfig) -> Writer:
    if config.generator == "model":
        return model
    from ra_blip.generation.endpoint import open_endpoint

    return open_endpoint(config.generator, model)


def _threshold(model: Answerer, config: PipelineConfig) -> float:
    if not config.adaptive:
        return config.threshold
    measured: float | None = getattr(model, "threshold", None)
    if measured is None:
        raise ConfigError("pipeline: adaptive: this model stores no threshold; train it with stage.name=rerank first")
    return measured


RETRIEVERS: dict[str, Callable[[Answerer, KnowledgeIndex | None, PipelineConfig], Retriever | None]] = {
    "none": lambda model, index, config: None,
    "index": _from_index,
    "reverse_image": _reverse_image,
}


class Pipeline:
    """Answers questions from an index.

    Args:
        model: encodes, ranks, judges and generates.
        index: the knowledge; None answers without retrieval.
        config: see :class:`PipelineConfig`.

    Raises:
        IndexMismatch: another model built the index.
        ConfigError: ``adaptive`` with a model that has no threshold of its own; an ablation of one that knows none.
    """

    def __init__(self, model: Answerer, index: KnowledgeIndex | None, config: PipelineConfig | None = None) -> None:
        """Check that model and index belong together, and choose what retrieves."""
        self.config = config or PipelineConfig()
        self.model = model = _ablated(model, self.config)
        if index is not None:
            index.check(model)
            if not self.config.fusion:
                index = KnowledgeIndex.build([*index.items.values()], model, batch_size=self.config.batch_size)
        self.index = index
        self.retriever = RETRIEVERS[self.config.retriever](model, index, self.config)
        self.writer = _writer(model, self.config)
        self._most = min(model.max_items, self.writer.max_items) if self.config.askg else self.writer.max_items
        self._filters = Filters(self.config.filters, self._vectors)
        self.threshold = _threshold(model, self.config)

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
        """Search, hop, filter and rank; the traces' ``hits``, ``dropped``, ``kept`` and ``seconds`` are filled.

        Where no candidate is left, ``kept`` is empty and a note says so: the question is answered from itself alone.

        Raises:
            QuestionError, ImageError: as :meth:`__call__`.
            RetrievalError: the index is empty.
        """
        for question in questions:
            _check(question)
        traces = [Trace(question=question) for question in questions]
        if self.retriever is None or not traces:
            return traces
        with _timed(traces, "search"):
            found = self.retriever(questions, self.config.k)
        candidates = [one.candidates for one in found]
        if self.config.filters:
            with _timed(traces, "filter"):
                candidates = [self._filtered(trace, hits) for trace, hits in zip(traces, candidates, strict=True)]
        with _timed(traces, "rank"):
            rerank = RERANKERS[self.config.rerank]
            ranked = rerank(self.model, [one.question for one in found], candidates, self.config.batch_size)
        keep = min(self.config.keep, self._most)
        for trace, one, rank in zip(traces, found, ranked, strict=True):
            trace.hits = one.hits + [hit for hit in rank if hit.stage == "rank"]
            kept = select(rank, keep, self.config.max_images, self.threshold, self.config.keep_best)
            trace.kept = [hit.item.id for hit in kept]
            if not kept:
                reason = "every candidate was filtered out or is below the threshold" if one.hits else "nothing found"
                trace.notes.append(f"{one.note or reason}: answered from the question alone")
        return traces

    def _filtered(self, trace: Trace, hits: Sequence[Hit]) -> list[Hit]:
        left, trace.dropped = self._filters(trace.question, hits)
        return left

    def _vectors(self, items: Sequence[Item]) -> Vectors:
        """Vectors of items: the index's where it has them, else the model's."""
        if self.index is not None and all(item.id in self.index.items for item in items):
            return self.index.vectors_of([item.id for item in items])
        return embed_items(items, self.model, self.config.batch_size)

    def answer(self, traces: Sequence[Trace], knowledge: Sequence[Sequence[Item]]) -> None:
        """Judge ``knowledge`` and answer from it; fills the traces, ``hits`` aside.

        Args:
            traces: as :meth:`retrieve` gave them; a question that took two hops is asked in its expanded form.
            knowledge: the items given to each, in prompt order; those past the writer's ``max_items`` are left out.
        """
        for start in range(0, len(traces), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            self._answer(traces[part], [list(items)[: self._most] for items in knowledge[part]])

    def _answer(self, traces: Sequence[Trace], knowledge: Sequence[Sequence[Item]]) -> None:
        questions = [expanded(trace.question, trace.hits) for trace in traces]
        shown = [present(items, self.config.knowledge, self.config.token_budget, self.model) for items in knowledge]
        knowledge = [items for items, _ in shown]
        with _timed(traces, "judge"):
            equal = [[1 / len(items) for _ in items] for items in knowledge]
            shares = self.model.select(questions, knowledge) if self.config.askg else equal
        for trace, (items, notes), relevance in zip(traces, shown, shares, strict=True):
            trace.kept = [item.id for item in items]
            trace.notes += notes
            trace.relevance = [round(float(share), 6) for share in relevance]
            trace.judged = judged(trace.kept, trace.relevance, self.config.relevance)
        with _timed(traces, "generate"):
            if self.config.focus:
                pairs = zip(traces, knowledge, strict=True)
                knowledge = [[item for item in items if item.id in trace.judged] for trace, items in pairs]
            generated = self.writer.generate(questions, knowledge)
        for trace, one in zip(traces, generated, strict=True):
            trace.answer, trace.prompt, trace.decoding = one.answer, one.prompt, dict(one.decoding)
            trace.tokens = dict(one.tokens)
            trace.notes += [one.note] if one.note else []


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
