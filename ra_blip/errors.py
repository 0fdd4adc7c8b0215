"""Typed errors. Each says what is wrong, where, and what to do; the command line prints one as a single line."""

from __future__ import annotations


class RABlipError(Exception):
    """Base of every error this package raises on bad input; never raised itself.

    Args:
        message: one line that names the file, key or value, and the remedy. Control characters
            (a file name or a caption may hold terminal escapes) are shown escaped.

    Attributes:
        exit_code: of the command line.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(RABlipError):
    """A recipe or an override is wrong: unknown key, wrong type, impossible combination."""


class DataError(RABlipError):
    """A data file is wrong: missing, malformed (with its line number), or inconsistent."""


class ImageError(DataError):
    """A picture cannot be opened, is damaged, too large, or of a format that is not allowed."""


class QuestionError(RABlipError):
    """A question is empty or longer than the model can be asked."""


class IndexMismatch(RABlipError):
    """An index was built by another model, preprocessing or metric than the one asked to read it."""


class RetrievalError(RABlipError):
    """A search that cannot be answered: empty index, k larger than the index, vectors that are not numbers."""


class RemoteError(RABlipError):
    """A service on the network failed, or an address was refused: host not allowed, not public, reply too large."""


class CheckpointError(RABlipError):
    """A checkpoint or model folder is incomplete, damaged or of a layout that is not known."""


class OutputError(RABlipError):
    """The output folder cannot be written, or is in use by another run."""


class MissingExtra(RABlipError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"package {package!r} is not installed: pip install 'ra-blip[{extra}]'")
