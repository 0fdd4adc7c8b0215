"""Open, check, decode and resize one picture. Nothing is half-decoded: a picture is whole, or an error."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ra_blip.containers import read_bytes
from ra_blip.errors import ImageError

MAX_PIXELS = 40_000_000
JPEG, PNG, WEBP = "JPEG", "PNG", "WebP"
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    JPEG: JpegImagePlugin.JpegImageFile,
    PNG: PngImagePlugin.PngImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # inside a scan, FF00 is data and FFD0-FFD7 are restarts
_JPEG_BETWEEN_SCANS = frozenset(b"\xc4\xd9\xda\xdb\xdc\xdd\xfe") | frozenset(range(0xE0, 0xF0))
# What Pillow raises on bytes that are not a picture; it has no common base class.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError)
_DECODE_ERRORS = (*_PILLOW_ERRORS, struct.error, zlib.error, OverflowError, MemoryError, Image.DecompressionBombError)


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Read one JPEG, PNG or WebP picture, told by its content and not by its name.

    The size in the header is checked before anything is decoded, so a small file cannot fill the memory. A file that
    ends early, a JPEG whose marker structure is broken, and a PNG with a wrong checksum are refused. Pillow fills holes
    in a JPEG's data with grey and says nothing; where simplejpeg is installed (extra ``fast``) and the whole picture is
    wanted, a JPEG that its decoder warns of is refused, too. What is altered so that it decodes without a warning
    cannot be told from a picture, unless it lies in a tar with checksums.

    Every kind of picture comes out as 8-bit RGB: a palette by its colours, CMYK by Pillow's conversion, 16-bit grey by
    its upper byte, an animation by its first frame.

    Args:
        path: a file, or a place in a container: ``PATH.tar#member``, ``PATH.tsv#image id``, see ``containers.py``.
        max_pixels: largest width x height.
        at_least: a JPEG may be decoded to half, a quarter or an eighth of its size, as long as both sides keep this
            many pixels; several times as fast, and not the same pixels as resizing afterwards.

    Returns:
        An RGB picture, upright by its EXIF orientation, with transparent parts on white.

    Raises:
        ImageError: missing, of another format, too large, truncated or damaged; names the file or the place.
    """
    name = str(path)
    return decode(read_picture(name, max_pixels), name, max_pixels, at_least)


def read_picture(name: str | Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of a picture, not yet looked at, and no more of them than a picture of ``max_pixels`` can need.

    Raises:
        ImageError: as :func:`open_image`.
    """
    return read_bytes(name, limit=8 * max_pixels + 2**20)


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """As :func:`open_image`, from bytes; ``name`` is what errors call them."""
    with opened(data, name, max_pixels) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        elif image.format == JPEG and (decoder := simplejpeg()):
            decoder.decode_jpeg(data, "GRAY", strict=True, min_width=1, min_height=1)  # at an eighth: the data count
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """RGB of a picture of any mode, turned by its EXIF orientation, with transparent parts on white; in place."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _on_white(image)


@functools.cache
def simplejpeg() -> Any:
    """The package of that name, which tells what its decoder warns of; None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


@contextlib.contextmanager
def opened(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """A picture whose header and structure are checked and whose pixels are not decoded yet.

    Raises:
        ImageError: as :func:`open_image`, here or for what a decoder raises inside the ``with``.
    """
    kind = format_of(data)
    if kind is None:
        raise ImageError(f"{name}: not a JPEG, PNG or WebP picture (by its content); convert it to one of these")
    try:
        _check_pixels(name, _header_size(kind, data), max_pixels)
        _STRUCTURE_CHECKS[kind](data)
        with _OPENERS[kind](io.BytesIO(data)) as image:
            _check_pixels(name, image.size, max_pixels)
            yield image
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged or truncated {kind} picture ({reason}); replace the file") from None


def resize(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Squeeze a picture to a square by bicubic interpolation, as BLIP-2 does for evaluation (no crop).

    Args:
        image: any mode; converted to RGB.
        size: side in pixels.

    Returns:
        (3, size, size) uint8, contiguous: channels red, green, blue, rows from the top.
    """
    square = (image if image.mode == "RGB" else image.convert("RGB")).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


@dataclasses.dataclass
class Quarantine:
    """Damaged pictures, counted and listed where a run was asked to go on without them, up to a limit.

    Args:
        share: most damaged pictures in all; the first ``FEW`` are let pass whatever the share.
        in_a_row: most damaged pictures one after another: then it is not the pictures that are wrong.
    """

    share: float = 0.001
    in_a_row: int = 100
    seen: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)
    _row: int = dataclasses.field(default=0, init=False)

    FEW: ClassVar[int] = 10

    def good(self, count: int = 1) -> None:
        """Note whole pictures."""
        self.seen += count
        self._row = 0

    def bad(self, message: str) -> None:
        """Note a damaged picture by what its error says. Raises :class:`ImageError` where it is one too many."""
        self.seen += 1
        self._row += 1
        self.messages.append(message)
        if self._row >= self.in_a_row or self.total > max(self.FEW, self.share * self.seen):
            raise ImageError(
                f"{self.total} of {self.seen} pictures are damaged, more than {self.share:.2%} of all or "
                f"{self.in_a_row} in a row; the last: {message}"
            )

    @property
    def total(self) -> int:
        """How many were damaged."""
        return len(self.messages)

    def summary(self) -> str:
        """One line, ``3 of 1,000 pictures are damaged and left out``; empty where all are whole."""
        return f"{self.total:,} of {self.seen:,} pictures are damaged and left out" if self.total else ""


def format_of(data: bytes) -> str | None:
    """``JPEG``, ``PNG`` or ``WebP`` by the first bytes; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(_PNG_SIGNATURE):
        return PNG
    return WEBP if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _header_size(kind: str, data: bytes) -> tuple[int, int]:
    """Width and height of a WebP, whose Pillow class may set up the canvas on opening; the others open lazily."""
    if kind != WEBP:
        return 1, 1
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels, more than {max_pixels}; make the picture smaller")


def _check_jpeg(data: bytes) -> None:
    """Walk the markers from start to end of image: Pillow fills a hole with grey and says nothing.

    Raises:
        ValueError: a marker is missing or stands where none may.
    """
    position, scans = 2, 0
    while True:
        if data[position : position + 1] != b"\xff":
            raise ValueError(f"no marker at byte {position}" if position < len(data) else "the end is missing")
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else 0
        if marker == 0xD9:
            if not scans:
                raise ValueError("no picture data")
            return
        length = int.from_bytes(data[position + 1 : position + 3], "big")
        if length < 2 or position + 1 + length > len(data):
            raise ValueError(f"segment at byte {position} runs past the end")
        position += 1 + length
        if marker == 0xDA:
            scans += 1
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                raise ValueError("the end is missing")
            if found[1][0] not in _JPEG_BETWEEN_SCANS:
                raise ValueError(f"marker {found[1][0]:02X} inside the picture data")
            position = found.start()


def _check_png(data: bytes) -> None:
    """Verify every chunk's checksum up to the end chunk, which Pillow leaves out for the picture data.

    Raises:
        ValueError: a checksum is wrong or the end chunk is missing.
    """
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"wrong checksum in chunk {name!r}")
        if name == b"IEND":
            return
        position = end + 4
    raise ValueError("the end is missing")


def _check_webp(data: bytes) -> None:
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise ValueError("the end is missing")


_STRUCTURE_CHECKS: dict[str, Callable[[bytes], None]] = {JPEG: _check_jpeg, PNG: _check_png, WEBP: _check_webp}


def _on_white(image: Image.Image) -> Image.Image:
    """RGB of a decoded picture of any mode; 16-bit grey keeps its upper byte, where Pillow would clip to white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # converting would copy it
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
