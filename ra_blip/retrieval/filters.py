"""Filters between search and ranking: what must not, or need not, reach a prompt.

They are written as one setting, ``same_id,near_picture:4,diversity:0.94``: names in :data:`FILTERS`, some with a colon
and a value, and they work in that order. A near copy of what is asked about teaches a generator to copy, and in an
evaluation it gives the answer away; near copies of each other spend the prompt on nothing new (RA-CM3, arXiv
2211.12561, and the clip-retrieval server work so).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ra_blip.errors import ConfigError
from ra_blip.images import decode, read_picture
from ra_blip.records import Hit, Item, Question, read_questions
from ra_blip.retrieval.embed import Vectors

VectorsOf = Callable[[Sequence[Item]], Vectors]


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question's candidates on their way through the filters, and the value of the filter at work."""

    question: Question
    hits: list[Hit]
    value: str
    vectors_of: VectorsOf

    @property
    def limit(self) -> float:
        """The value as a number."""
        return float(self.value)

    def cosines(self) -> Vectors:
        """(N, N) cosines of the candidates with each other."""
        vectors = self.vectors_of([hit.item for hit in self.hits])
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        return np.asarray(unit @ unit.T, dtype=np.float32)


def _where(asked: Asked, keeps: Callable[[Item], bool]) -> list[Hit]:
    return [hit for hit in asked.hits if keeps(hit.item)]


def _ids(item: Item) -> set[str]:
    """An item's id, also without the number that tells the captions of one picture apart: ``391895.2``, ``391895``."""
    return {item.id, re.sub(r"\.\d+$", "", item.id)}


def same_id(asked: Asked) -> list[Hit]:
    """Not the question itself: no item of its id (a caption's number aside), none with the picture asked about."""
    question = asked.question
    return _where(
        asked,
        lambda item: question.id not in _ids(item) and (item.image is None or item.image != question.image),
    )


def same_bytes(asked: Asked) -> list[Hit]:
    """No picture whose file is, byte for byte, that of the picture asked about."""
    mine = asked.question.image
    return _where(asked, lambda item: not (mine and item.image) or _digest(str(item.image)) != _digest(str(mine)))


def near_picture(asked: Asked) -> list[Hit]:
    """No picture whose perceptual hash differs from that of the question's picture in ``limit`` of 64 bits or fewer."""
    mine = asked.question.image

    def differs(item: Item) -> bool:
        if not mine or not item.image:
            return True
        return (picture_hash(item.image) ^ picture_hash(mine)).bit_count() > asked.limit

    return _where(asked, differs)


def query_cosine(asked: Asked) -> list[Hit]:
    """No candidate whose cosine with the query, which is its score in the search, is above the limit."""
    return [hit for hit in asked.hits if hit.score <= asked.limit]


def pair_cosine(asked: Asked) -> list[Hit]:
    """The best of each group; candidates whose cosine is above the limit are in one group, also through others."""
    near = asked.cosines() > asked.limit
    seen: set[int] = set()
    best = []
    for place in range(len(asked.hits)):
        if place in seen:
            continue
        best.append(place)
        reached = [place]
        while reached:
            new = {int(i) for i in np.flatnonzero(near[reached.pop()])} - seen
            seen |= new
            reached += new
        seen.add(place)
    return [asked.hits[place] for place in best]


def diversity(asked: Asked) -> list[Hit]:
    """A walk down the ranks that passes over what is nearer than the limit to something already taken."""
    cosines = asked.cosines()
    taken: list[int] = []
    for place in range(len(asked.hits)):
        if not taken or cosines[place, taken].max() <= asked.limit:
            taken.append(place)
    return [asked.hits[place] for place in taken]


def random_choice(asked: Asked) -> list[Hit]:
    """``limit`` candidates drawn at random, in their order; equal questions draw equally. For training data."""
    rng = np.random.default_rng(zlib.crc32(asked.question.id.encode()))
    chosen = sorted(rng.permutation(len(asked.hits))[: int(asked.limit)].tolist())
    return [asked.hits[place] for place in chosen]


def held_out(asked: Asked) -> list[Hit]:
    """No item that belongs to a question of an evaluation split: by id, by picture file, or by the picture's bytes."""
    ids, pictures = _evaluated(asked.value)
    return _where(
        asked,
        lambda item: not (ids & _ids(item)) and not (item.image and pictures and _digest(item.image) in pictures),
    )


FILTERS: dict[str, tuple[Callable[[Asked], list[Hit]], str]] = {  # what it does, and what its value is
    "same_id": (same_id, ""),
    "same_bytes": (same_bytes, ""),
    "near_picture": (near_picture, "bits"),
    "query_cosine": (query_cosine, "cosine"),
    "pair_cosine": (pair_cosine, "cosine"),
    "diversity": (diversity, "cosine"),
    "random": (random_choice, "count"),
    "held_out": (held_out, "QUESTIONS.jsonl"),
}


class Filters:
    """A chain of filters.

    Args:
        written: the chain as a setting; empty for none.
        vectors_of: gives the vectors of items; ``pair_cosine`` and ``diversity`` need it.

    Raises:
        ConfigError: an unknown filter, a value where none belongs, or none or no number where one does.
    """

    def __init__(self, written: str, vectors_of: VectorsOf | None = None) -> None:
        """Read the setting."""
        self._vectors_of = vectors_of
        self.chain: list[tuple[str, str]] = []
        for one in filter(None, (part.strip() for part in written.split(","))):
            name, _, value = one.partition(":")
            if name not in FILTERS:
                raise ConfigError(f"filters: {name!r} is not one of {', '.join(FILTERS)}")
            wanted = FILTERS[name][1]
            if bool(wanted) != bool(value):
                raise ConfigError(f"filters: write {name}{f':{wanted.upper()}' if wanted else ''}, not {one!r}")
            if wanted in ("bits", "cosine") and not _is_number(value):
                raise ConfigError(f"filters: {one!r}: {wanted} must be a number")
            if wanted == "count" and not value.isdecimal():
                raise ConfigError(f"filters: {one!r}: count must be a whole number")
            self.chain.append((name, value))

    def __call__(self, question: Question, hits: Sequence[Hit]) -> tuple[list[Hit], dict[str, list[str]]]:
        """What is left of the candidates, and the ids that each filter took out.

        Raises:
            ImageError: a picture that has to be compared cannot be opened.
            DataError: the questions of ``held_out`` cannot be read.
        """
        left, dropped = list(hits), {}
        for name, value in self.chain:
            kept = FILTERS[name][0](Asked(question, left, value, self._vectors_of or _no_vectors)) if left else []
            names = {hit.item.id for hit in kept}
            dropped[name] = [hit.item.id for hit in left if hit.item.id not in names]
            left = kept
        return left, dropped


def _is_number(value: str) -> bool:
    try:
        return float(value) == float(value)
    except ValueError:
        return False


def _no_vectors(items: Sequence[Item]) -> Vectors:
    raise ConfigError("filters: pair_cosine and diversity need vectors, and there is no model to give them")


@functools.lru_cache(maxsize=65_536)
def _digest(path: str) -> str:
    return hashlib.sha256(read_picture(path)).hexdigest()


@functools.lru_cache(maxsize=65_536)
def picture_hash(path: str) -> int:
    """64 bits of a picture: whether each of 8 x 8 grey values is darker than its right neighbour (difference hash).

    Scaling, compression and small changes of colour alter few bits; two unrelated pictures differ in about half.
    Raises :class:`~ra_blip.errors.ImageError`.
    """
    grey = np.asarray(decode(read_picture(path), path).convert("L").resize((9, 8)), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


@functools.lru_cache(maxsize=8)
def _evaluated(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """Ids of the questions in a file, and digests of the pictures that they are asked with."""
    questions = read_questions(path)
    return (
        frozenset(question.id for question in questions),
        frozenset(_digest(question.image) for question in questions if question.image),
    )
