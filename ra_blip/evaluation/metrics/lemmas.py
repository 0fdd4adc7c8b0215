"""Dictionary forms of English words, for WebQA's answer score.

The official program takes the lemmas of spaCy's model ``en_core_web_sm``, which is no package of the registry and reads
the word's part of speech off the sentence. Here lemminflect looks a word up (its dictionary is that of the NIH's
SPECIALIST lexicon, and comes with the package), and the part of speech is the first that knows the word.
"""

from __future__ import annotations

import functools
from importlib.metadata import version

_PARTS_OF_SPEECH = ("AUX", "NOUN", "VERB", "ADJ", "ADV")


@functools.cache
def lemma(word: str) -> str:
    """The dictionary form of a lower-case word; a word that the dictionary lacks is returned as it is."""
    from lemminflect import getAllLemmas

    known: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return next((known[part][0] for part in _PARTS_OF_SPEECH if part in known), word)


def lemmatise(words: list[str]) -> list[str]:
    """The dictionary form of every word."""
    return [lemma(word) for word in words]


def lemmatiser() -> str:
    """Name and version of what :func:`lemmatise` uses, to stand beside the score."""
    return f"lemminflect {version('lemminflect')}"
