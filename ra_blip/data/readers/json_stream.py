"""The members of one large JSON object, or the elements of one large array, without holding the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ra_blip.errors import DataError
from ra_blip.records import HALF_CHARACTER

CHUNK = 2**18  # characters read at a time
LONGEST = 2**28  # characters that one member may have
_NEAR_END = 16  # an error this close to what was read so far may only mean that the rest is not there yet


def members(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (file, line and key; key; value) of each member of the object that a file holds.

    Memory: a few MB, and what the longest member needs.

    Raises:
        DataError: the file is missing, not UTF-8, no JSON object, or cut short; with its line.
    """
    with _Window(path) as window:
        for where, key in window.names():
            yield f"{where}, {key}", key, window.value()
        window.finish()


def elements(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (file, line and number from 1, value) of each element of an array; as :func:`members`.

    Args:
        path: the file.
        key: the array is this member of the file's object; without it the file holds the array.
    """
    with _Window(path) as window:
        if key is not None and not window.find(key):
            raise DataError(f"{path}: no member {key!r}")
        for number, where in enumerate(window.array(), 1):
            yield f"{where}, entry {number}", window.value()
        if key is None:
            window.finish()


def member(path: Path, key: str) -> Any:
    """The value of one member of the object that a file holds, None without it; those before it are not held."""
    with _Window(path) as window:
        return window.value() if window.find(key) else None


class _Window:
    """A moving piece of a file, long enough for the value that is being decoded."""

    def __init__(self, path: Path) -> None:
        self._path, self._text, self._at, self._line = path, "", 0, 1
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        try:
            self._file = path.open(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def where(self) -> str:
        """File and line of what comes next."""
        self._peek()
        return f"{self._path}, line {self._line}"

    def error(self, reason: str) -> DataError:
        return DataError(f"{self._path}, line {self._line}: not JSON ({reason})")

    def take(self, mark: str) -> None:
        """Step over a punctuation mark, which must come next."""
        if self._peek() != mark:
            raise self.error(f"expected {mark!r}, found {self._peek() or 'the end of the file'!r}")
        self._step(1)

    def names(self) -> Iterator[tuple[str, str]]:
        """(where, key) of an object's members; the caller steps over each value before it asks for the next key."""
        for where in self._inside("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self.error("a key must be a string")
            self.take(":")
            yield where, key

    def find(self, key: str) -> bool:
        """Step to the value of an object's member; what stands before it is not held. False where there is none."""
        for _, name in self.names():
            if name == key:
                return True
            self.skip()
        return False

    def array(self) -> Iterator[str]:
        """Where each element of an array stands; the caller steps over each before it asks for the next."""
        return self._inside("[", "]")

    def skip(self) -> None:
        """Step over the value that comes next; an array is not held."""
        if self._peek() != "[":
            self.value()
            return
        for _ in self.array():
            self.value()

    def finish(self) -> None:
        """Make sure that the file ends here."""
        if self._peek():
            raise self.error("more follows after the end")

    def _inside(self, opening: str, closing: str) -> Iterator[str]:
        self.take(opening)
        first = True
        while self._peek() != closing:
            if not first:
                self.take(",")
            first = False
            yield self.where
        self.take(closing)

    def value(self) -> Any:
        """Decode the value that comes next and step over it."""
        self._peek()
        while True:
            try:
                found, end = self._decode(self._text, self._at)
                if HALF_CHARACTER.search(self._text, self._at, end):
                    json.dumps(found, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_END or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    self._step(error.pos - self._at)
                    raise self.error(error.msg) from None
            except UnicodeEncodeError:
                raise self.error("half a character, a lone surrogate") from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            else:
                if end + 2 < len(self._text) or self._ended:  # a number near the end may go on: 1, 1.5, 1e+5
                    self._step(end - self._at)
                    return found
            if len(self._text) - self._at > LONGEST:
                raise self.error(f"a value of more than {LONGEST:,} characters")
            self._read()

    def _peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._step(1)
            if self._ended:
                return ""
            self._read()

    def _step(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _read(self) -> None:
        left = self._text[self._at :]
        try:
            more = self._file.read(max(CHUNK, len(left)))
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}, at or after line {self._line}: not UTF-8 ({error.reason})") from None
        self._text, self._at, self._ended = left + more, 0, not more
