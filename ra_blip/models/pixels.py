"""A picture by its name to pixels at the tower's size, in three decode qualities.

Speed and likeness are those of `benchmarks/data.py`, against Pillow's full decoding and bicubic filter. ``fast`` and
``fastest`` decode a JPEG at half, a quarter or an eighth of its size where that still has as many pixels as are wanted,
and resize by torch's bicubic filter, which differs from Pillow's by rounding alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from ra_blip.images import JPEG, open_image, opened, read_picture, resize, simplejpeg, upright

Pixels = npt.NDArray[np.uint8]
Quality = Literal["exact", "fast", "fastest"]
_ORIENTATION = 0x0112  # EXIF


def pixels(name: str, size: int, quality: Quality = "exact") -> Pixels:
    """Open a picture and squeeze it to a square, without cropping.

    Args:
        name: what :func:`ra_blip.images.open_image` opens.
        size: side in pixels.
        quality: ``exact`` is :func:`ra_blip.images.resize`, BLIP-2's. ``fast`` is 38 dB like it on photographs, and
            70 dB where a picture is less than twice as large as wanted. ``fastest`` is the same with another decoder,
            simplejpeg (extra ``fast``); without it, it is ``fast``, and says so.

    Returns:
        (3, size, size) uint8, contiguous; :class:`~ra_blip.models.vision.VisionTower` normalises on the device.

    Raises:
        ImageError: as :func:`ra_blip.images.open_image`.
    """
    return QUALITIES[quality](name, size)


def _exact(name: str, size: int) -> Pixels:
    return resize(open_image(name), size)


def _fast(name: str, size: int) -> Pixels:
    return _squeeze(np.array(open_image(name, at_least=size)), size)


def _fastest(name: str, size: int) -> Pixels:
    decoder = simplejpeg()
    if decoder is None:
        _say_once()
        return _fast(name, size)
    data = read_picture(name)
    with opened(data, name) as image:
        plain = image.format == JPEG and image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
        width, height = image.size
        image.draft(None, (size, size))
        if not plain:
            return _squeeze(np.array(upright(image)), size)
        # Pillow's choice of the scale: simplejpeg would also take three quarters and the like
        scale = round(width / image.width)
        least = {"min_width": -(-width // scale), "min_height": -(-height // scale)}
        return _squeeze(decoder.decode_jpeg(data, "RGB", strict=True, **least), size)


def _squeeze(image: Pixels, size: int) -> Pixels:
    """(H, W, 3) -> (3, size, size)."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]  # channels last in memory, for which torch has a fast path
    done = interpolate(batch, size=(size, size), mode="bicubic", antialias=True)
    return done[0].contiguous().numpy()


@functools.cache
def _say_once() -> None:
    print("ra-blip: decoding 'fast', not 'fastest': pip install 'ra-blip[fast]' brings simplejpeg", file=sys.stderr)


QUALITIES: dict[str, Callable[[str, int], Pixels]] = {"exact": _exact, "fast": _fast, "fastest": _fastest}
