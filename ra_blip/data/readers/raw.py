"""One object of a data set's JSON as its authors wrote it: fields by their type, or under which name it is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Kind = TypeVar("Kind", str, int, list[Any], dict[str, Any])


class Unusable(Exception):
    """A raw object cannot become a record.

    Args:
        kind: the name that it is counted under in :class:`~ra_blip.data.readers.dataset.Problems`.
        message: what is wrong with it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Raw(dict[str, Any]):
    """A raw object. Its methods raise :class:`Unusable`: ``malformed record``, and what else they name."""

    def field(self, key: str, kind: type[Kind]) -> Kind:
        """The value of a key that must be there, checked for its type."""
        found = self.get(key)
        if not isinstance(found, kind) or isinstance(found, bool):
            shown = "is missing" if found is None else f"must be {kind.__name__}, found {type(found).__name__}"
            raise Unusable("malformed record", f"{key!r} {shown}")
        return found

    def identity(self, key: str) -> str:
        """An id that files write as a string or as a whole number."""
        found = self.get(key)
        if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
            raise Unusable("malformed record", f"{key!r} must be an id, found {found!r:.60}")
        return str(found)

    def objects(self, key: str) -> list[Raw]:
        """A list of objects, empty where the key is absent."""
        found = self._list(key)
        if not all(isinstance(one, dict) for one in found):
            raise Unusable("malformed record", f"{key!r} must be a list of objects")
        return [Raw(one) for one in found]

    def strings(self, key: str) -> list[str]:
        """A list of strings, empty where the key is absent."""
        found = self._list(key)
        if not all(isinstance(one, str) for one in found):
            raise Unusable("malformed record", f"{key!r} must be a list of strings")
        return found

    def words(self, key: str, clean: Callable[[str], str] = str.strip) -> str | None:
        """A text, None where the key is absent or its text holds no word."""
        return clean(self.field(key, str)) or None if self.get(key) is not None else None

    def question(self, key: str, clean: Callable[[str], str] = str.strip) -> str:
        """The words of a question. Also ``empty question``."""
        found = clean(self.field(key, str))
        if not found:
            raise Unusable("empty question", f"{key!r} holds no word")
        return found

    def answers(self, key: str, clean: Callable[[str], str] = str.strip) -> tuple[str, ...]:
        """The answers that hold a word, none where the key is absent. Also ``empty answer``."""
        return answered(map(clean, self.strings(key)), key) if key in self else ()

    def _list(self, key: str) -> list[Any]:
        return self.field(key, list) if self.get(key) is not None else []


def answered(answers: Iterable[str], key: str) -> tuple[str, ...]:
    """The answers that hold a word. Raises :class:`Unusable`: ``empty answer`` where none does."""
    found = tuple(answer.strip() for answer in answers if answer.strip())
    if not found:
        raise Unusable("empty answer", f"{key!r} holds no answer")
    return found


def without(ids: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """``ids`` once each, in their order, but for ``others``."""
    left_out = set(others)
    return tuple(one for one in dict.fromkeys(ids) if one not in left_out)
