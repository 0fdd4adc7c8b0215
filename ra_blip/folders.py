"""Folders that are replaced as a whole: a reader, or a run that was killed, finds the old one or the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A new folder beside ``place`` to be filled; it takes that place when the block ends without an error.

    What stood there is renamed first and deleted last; :func:`standing` finds it under its other name if a crash falls
    between the two renames. Two processes must not replace the same folder at the same time.

    Raises:
        OSError: not writable.
    """
    place = Path(os.path.abspath(place))
    fresh, previous = _sibling(place, "new"), _sibling(place, "previous")
    if previous.exists() and not place.exists():
        os.rename(previous, place)  # a crash between the renames: first back to a known state
    for leftover in (fresh, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        _sync(*(path for path in fresh.rglob("*") if path.is_file()), fresh)
        if place.exists():
            os.rename(place, previous)
        os.rename(fresh, place)
        _sync(place.parent)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def standing(place: Path) -> Path:
    """Where the folder of this name is to be read: there, or where a replacement that was killed has left it."""
    previous = _sibling(place, "previous")
    return previous if not place.exists() and previous.exists() else place


def _sibling(place: Path, role: str) -> Path:
    place = Path(os.path.abspath(place))
    return place.with_name(f".{place.name}.{role}")


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
