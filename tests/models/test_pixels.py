"""Pixels at the tower's size: `exact` is Pillow's, `fast` and `fastest` are like it, and just as strict."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from ra_blip import images
from ra_blip.config import ModelConfig, VisionConfig
from ra_blip.errors import ImageError
from ra_blip.images import open_image, resize
from ra_blip.models import pixels as module
from ra_blip.models.pixels import QUALITIES, Quality, pixels

SIZE = 64


def photo(size: tuple[int, int]) -> Image.Image:
    """Something smooth with edges, unlike noise."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.paste((250, 240, 10), (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
    return image


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels, of 8-bit pictures."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9)))


@pytest.fixture(params=["fast", "fastest"])
def quality(request: pytest.FixtureRequest) -> Quality:
    """``fastest`` with its decoder where that is installed, else what stands in for it."""
    chosen: Quality = request.param
    return chosen


def test_exact_is_the_squeeze_of_the_opened_picture(tmp_path: Path) -> None:
    photo((300, 200)).save(tmp_path / "a.jpg")
    assert np.array_equal(pixels(str(tmp_path / "a.jpg"), SIZE), resize(open_image(tmp_path / "a.jpg"), SIZE))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 140)])
def test_a_large_jpeg_is_like_exact(tmp_path: Path, quality: Quality, size: tuple[int, int]) -> None:
    photo(size).save(tmp_path / "a.jpg", quality=90)
    found = pixels(str(tmp_path / "a.jpg"), SIZE, quality)
    assert found.shape == (3, SIZE, SIZE) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert psnr(found, pixels(str(tmp_path / "a.jpg"), SIZE)) >= 38


def test_what_is_not_decoded_smaller_differs_by_rounding_alone(tmp_path: Path, quality: Quality) -> None:
    photo((100, 90)).save(tmp_path / "a.jpg", quality=90)
    photo((300, 200)).save(tmp_path / "a.png")
    for name in ("a.jpg", "a.png"):
        exact = pixels(str(tmp_path / name), SIZE).astype(int)
        found = pixels(str(tmp_path / name), SIZE, quality).astype(int)
        assert np.abs(found - exact).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_come_out_as_exact_has_them(tmp_path: Path, quality: Quality, mode: str) -> None:
    photo((640, 480)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    assert psnr(*(pixels(str(tmp_path / "a.jpg"), SIZE, one) for one in ("exact", quality))) >= 38


def test_orientation_is_applied(tmp_path: Path, quality: Quality) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((640, 480)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert psnr(*(pixels(str(tmp_path / "a.jpg"), SIZE, one) for one in ("exact", quality))) >= 38


def test_every_quality_refuses_damage(tmp_path: Path) -> None:
    photo((640, 480)).save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    hole = bytearray(data)
    hole[len(data) // 2 : len(data) // 2 + 64] = b"\xff\xc0" * 32
    for number, damaged in enumerate([data[: len(data) // 2], data[:-2], bytes(hole), b"", b"text"]):
        (tmp_path / f"{number}.jpg").write_bytes(damaged)
        for quality in QUALITIES:
            with pytest.raises(ImageError, match=rf"{number}\.jpg"):
                pixels(str(tmp_path / f"{number}.jpg"), SIZE, quality)  # type: ignore[arg-type]


def test_fastest_without_its_decoder_is_fast_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    images.simplejpeg.cache_clear()
    module._say_once.cache_clear()
    photo((640, 480)).save(tmp_path / "a.jpg", quality=90)
    found = [pixels(str(tmp_path / "a.jpg"), SIZE, one) for one in ("fastest", "fastest", "fast")]
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[2])
    assert capsys.readouterr().err.count("pip install 'ra-blip[fast]'") == 1
    images.simplejpeg.cache_clear()


def test_the_quality_is_part_of_the_configuration() -> None:
    assert ModelConfig().vision.decode == "exact"
    assert set(QUALITIES) == set(get_args(get_type_hints(VisionConfig)["decode"]))


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED names no folder of real data")
def test_photographs_are_within_38_decibels(quality: Quality) -> None:
    folder = Path(os.environ["RA_BLIP_SHARED"]) / "data" / "coco_free_subset" / "images"
    found = []
    for path in sorted(folder.iterdir()):
        exact = pixels(str(path), 224)
        found.append(psnr(pixels(str(path), 224, quality), exact))
    assert len(found) == 33 and np.mean(found) >= 38
