"""Reverse image search: the pictures most like the one that a question is asked with, and the words beside them.

Method: RIR (Xu et al. 2024, "Reverse Image Retrieval Cues Parametric Memory in Multimodal LLMs"). Providers behind one
face: ``index`` looks at the captioned pictures of the local index; the others are named by a YAML file, see
:class:`~ra_blip.retrieval.reverse_image_config.ProviderConfig`. A provider that fails never stops a run: the question
goes on without hits, and a note says why.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ra_blip.config import load_settings
from ra_blip.errors import ConfigError, ImageError, RABlipError
from ra_blip.records import Hit, Item, Question
from ra_blip.retrieval.embed import Encoder, embed_items
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.reverse_image_config import ProviderConfig
from ra_blip.retrieval.reverse_image_record import Live, Recorded
from ra_blip.retrieval.search import Found, second_hop

Retriever = Callable[[Sequence[Question], int], list[Found]]


class Provider(Protocol):
    """Where pictures are looked up."""

    def look_up(self, pictures: Sequence[str], k: int) -> list[list[Hit] | RABlipError]:
        """At most ``k`` hits for each picture, best first, or the error that there was instead."""


def reverse_image(
    model: Encoder, index: KnowledgeIndex | None, provider: str, batch_size: int, hops: int = 1
) -> Retriever:
    """The retriever that looks questions' pictures up.

    Args:
        model: encodes pictures, for the provider ``index``.
        index: the local index, for the provider ``index`` and a second hop.
        provider: ``index``, or the YAML file of another provider.
        batch_size: pictures per encoder call.
        hops: 2 searches the index, where there is one, for the question with the words of its best hit.

    Returns:
        A function of questions and ``k``. It raises nothing for a search that fails, for a question without a picture
        or for one without results: its :class:`~ra_blip.retrieval.search.Found` has no hits and a note.

    Raises:
        ConfigError: no index for the provider ``index``, or a wrong file, see :func:`open_provider`.
    """
    source: Provider
    if provider != "index":
        source = open_provider(provider)
    elif index is not None:
        source = IndexProvider(model, index, batch_size)
    else:
        raise ConfigError("provider 'index' looks at the pictures of an index: give one, or another provider")

    def retrieve(questions: Sequence[Question], k: int) -> list[Found]:
        pictures = {question.image: None for question in questions if question.image is not None}
        answers = dict(zip(pictures, source.look_up(list(pictures), k), strict=True))
        found = [_found(question, answers.get(question.image or "")) for question in questions]
        if hops < 2 or index is None or not any(one.hits for one in found):
            return found
        return second_hop(model, index, found, min(k, len(index)), batch_size)

    return retrieve


def _found(question: Question, answer: list[Hit] | RABlipError | None) -> Found:
    if answer is None:
        return Found(question, [], "no picture to search with")
    if isinstance(answer, RABlipError):
        return Found(question, [], f"the reverse image search failed ({answer})")
    return Found(question, answer, "" if answer else "the reverse image search found nothing")


class IndexProvider:
    """Image to image over the captioned pictures of a local index, whose words are what such a search is made for.

    Pictures are compared with pictures: those of the index are encoded again without their captions, once, at the first
    search. A picture alone lies nearer to all other pictures alone than to its own captioned copy.

    Args:
        model: the encoder that built ``index``.
        index: the items.
        batch_size: pictures per encoder call.

    Raises:
        IndexMismatch: another model built the index.
    """

    def __init__(self, model: Encoder, index: KnowledgeIndex, batch_size: int = 32) -> None:
        index.check(model)
        self._model = model
        self._items = {item.id: item for item in index.items.values() if item.kind == "image+text"}
        self._batch_size = batch_size

    @functools.cached_property
    def _pictures(self) -> KnowledgeIndex:
        alone = [Item(item.id, image=item.image) for item in self._items.values()]
        return KnowledgeIndex.build(alone, self._model, batch_size=self._batch_size)

    def look_up(self, pictures: Sequence[str], k: int) -> list[list[Hit] | RABlipError]:
        """As :meth:`Provider.look_up`, with the items of the index and the cosine of the two pictures."""
        if not self._items or not pictures:
            return [[] for _ in pictures]
        asked = [Item(str(number), image=picture) for number, picture in enumerate(pictures)]
        try:
            vectors = embed_items(asked, self._model, self._batch_size, progress=False)
            found = self._pictures.search(vectors, min(k, len(self._items)))
        except ImageError as error:
            if len(pictures) == 1:
                return [error]
            return [answer for picture in pictures for answer in self.look_up([picture], k)]  # one is damaged: which?
        return [[dataclasses.replace(hit, item=self._items[hit.item.id]) for hit in hits] for hits in found]


def open_provider(path: str | Path) -> Recorded:
    """The provider that a YAML file describes; paths in it start from its folder.

    Raises:
        ConfigError: no such file, an unknown key or a wrong value, a live provider that is not enabled or whose record
            was made by another one, a replay without a record.
        MissingExtra: the browser needs Playwright.
    """
    path = Path(path)
    config = load_settings(path, ProviderConfig)
    record = path.parent / config.record if config.record else None
    live: Live | None = None
    if config.provider == "replay":
        if record is None or not record.is_dir():
            raise ConfigError(f"{path}: replay reads a record: 'record' must name its folder")
    elif not config.enabled:
        raise ConfigError(f"{path}: pictures of questions would leave this machine; 'enabled: true' agrees to that")
    elif config.provider == "http":
        from ra_blip.retrieval.reverse_image_http import HttpProvider

        live = HttpProvider(config.api, config.http)
    else:
        from ra_blip.retrieval.reverse_image_browser import BrowserProvider

        live = BrowserProvider(config.page, config.http, path.parent)
    return Recorded(live, record, config.per_site, config.upload_side)
