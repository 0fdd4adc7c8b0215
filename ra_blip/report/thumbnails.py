"""Pictures on the page: a small JPEG of each, once, as a CSS background that any number of tiles refer to."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image, ImageOps

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
        missing: paths that could not be opened, each once.
        left_out: paths that no longer fitted the budget, each once.
    """

    def __init__(self, budget: int = 7_500_000) -> None:
        self.budget = budget
        self.missing: list[str] = []
        self.left_out: list[str] = []
        self._data: dict[str, str] = {}  # digest of the thumbnail -> data URI
        self._class_of: dict[str, str | None] = {}  # path -> CSS class, None where there is nothing to show
        self._used = 0

    def __len__(self) -> int:
        return len(self._data)

    def tile(self, path: str, words: str) -> str:
        """HTML of one picture; ``words`` says what it is to who cannot see it. Never raises for a bad picture."""
        if path not in self._class_of:
            self._class_of[path] = self._embed(path)
        css_class = self._class_of[path]
        if css_class is None:
            note = "picture missing" if path in self.missing else "picture not embedded"
            return f'<div class="pic none" title="{esc(path)}"><span>{note}</span></div>'
        return f'<div class="pic {css_class}" role="img" aria-label="{esc(words)}"></div>'

    def css(self) -> str:
        """The style rules that hold the picture data, one a distinct picture."""
        rules = (f'.p{n}{{background-image:url("{uri}")}}' for n, uri in enumerate(self._data.values()))
        return "\n".join(rules)

    def _embed(self, path: str) -> str | None:
        jpeg = thumbnail(Path(path))
        if jpeg is None:
            self.missing.append(path)
            return None
        digest = hashlib.sha256(jpeg).hexdigest()
        if digest not in self._data:
            uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
            if self._used + len(uri) > self.budget:
                self.left_out.append(path)
                return None
            self._used += len(uri)
            self._data[digest] = uri
        return f"p{list(self._data).index(digest)}"


def thumbnail(path: Path) -> bytes | None:
    """A JPEG with its longest side at most :data:`SIDE`, on white where transparent; None if it cannot be opened."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            picture.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = ImageOps.exif_transpose(picture).convert("RGBA")
    except (OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError):
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", small.size, "white")
    flat.paste(small, mask=small.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "JPEG", quality=84, optimize=True)
    return out.getvalue()
