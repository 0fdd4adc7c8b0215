"""Pictures on the page: a small JPEG of each, once, as a CSS background that any number of tiles refer to."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from ra_blip.containers import read_bytes
from ra_blip.errors import ImageError
from ra_blip.report.markup import esc

SIDE = 160  # longest side of a thumbnail in pixels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # never PostScript and its like, which run programs
MAX_FILE_BYTES = 64_000_000
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded


class Pictures:
    """The pictures that a page shows.

    Args:
        budget: most bytes of embedded picture data; later pictures are shown as an empty tile and counted.

    Attributes:
        missing: names of those that could not be opened, each once.
        left_out: names of those that no longer fitted the budget, each once.
    """

    def __init__(self, budget: int = 7_500_000) -> None:
        self.budget = budget
        self.missing: list[str] = []
        self.left_out: list[str] = []
        self._data: dict[str, str] = {}  # data URI of a thumbnail -> its CSS class
        self._class_of: dict[str, str | None] = {}  # name -> CSS class, None where there is nothing to show
        self._used = 0

    def __len__(self) -> int:
        return len(self._data)

    def tile(self, name: str, words: str) -> str:
        """HTML of one picture; ``words`` says what it is to who cannot see it. Never raises for a bad picture."""
        if name not in self._class_of:
            self._class_of[name] = self._embed(name)
        css_class = self._class_of[name]
        if css_class is None:
            note = "picture missing" if name in self.missing else "picture not embedded"
            return f'<div class="pic none" title="{esc(name)}"><span>{note}</span></div>'
        return f'<div class="pic {css_class}" role="img" aria-label="{esc(words)}"></div>'

    def css(self) -> str:
        """The style rules that hold the picture data, one a distinct picture."""
        return "\n".join(f'.{name}{{background-image:url("{uri}")}}' for uri, name in self._data.items())

    def _embed(self, name: str) -> str | None:
        jpeg = thumbnail(name)
        if jpeg is None:
            self.missing.append(name)
            return None
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
        if uri not in self._data:
            if self._used + len(uri) > self.budget:
                self.left_out.append(name)
                return None
            self._used += len(uri)
            self._data[uri] = f"p{len(self._data)}"
        return self._data[uri]


def thumbnail(name: str | Path) -> bytes | None:
    """A JPEG with its longest side at most :data:`SIDE`, on white where transparent; None if it cannot be opened.

    Args:
        name: a file, or a picture's place in a container, see :mod:`ra_blip.containers`.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(name, MAX_FILE_BYTES)), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            picture.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = ImageOps.exif_transpose(picture).convert("RGBA")
    except (ImageError, OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError):
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", small.size, "white")
    flat.paste(small, mask=small.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "JPEG", quality=84, optimize=True)
    return out.getvalue()
