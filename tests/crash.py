"""A process that dies at its n-th step, for tests of what a kill leaves behind."""

from __future__ import annotations

from typing import Any


class Crash(BaseException):
    """The end of the process, as far as a test can have it."""


class Crashing:
    """Counts calls of the functions it wraps; the ``at``-th raises :class:`Crash` instead."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def __call__(self, function: Any) -> Any:
        """``function``, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.steps == self.at:
                raise Crash
            return function(*args, **kwargs)

        return call
