"""Other views of a picture: flipped and cropped copies on disk, which the rest of the package treats as pictures."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from ra_blip.errors import OutputError
from ra_blip.images import open_image

LONGEST = 512  # longer side of a copy
AREA = (0.45, 0.9)  # share of the picture that a crop keeps


class Views:
    """The views of a picture by number: 0 is the picture itself, 1 its mirror image, from 2 on crops (half flipped).

    A view follows from the path and the number alone. Copies are written when they are first asked for.

    Args:
        folder: where the copies go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, image: str, number: int) -> str:
        """The path of one view. Raises :class:`ImageError` for a bad picture, :class:`OutputError` for a bad folder."""
        if not number:
            return image
        name = hashlib.sha256(f"{image}/{number}".encode()).hexdigest()
        path = self.folder / f"{name[:24]}.jpg"
        if not path.exists():
            self._write(_view(open_image(image), number, int(name[:12], 16)), path)
        return str(path)

    def _write(self, view: Image.Image, path: Path) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            view.save(beside, "JPEG", quality=95)
            os.replace(beside, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _view(picture: Image.Image, number: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = picture.size
    if number > 1:
        side = float(np.sqrt(rng.uniform(*AREA)))
        w, h = max(round(side * width), 1), max(round(side * height), 1)
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        picture = picture.crop((left, top, left + w, top + h))
    if number % 2:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = min(LONGEST / max(picture.size), 1.0)
    return picture.resize((max(round(scale * picture.width), 1), max(round(scale * picture.height), 1)))
