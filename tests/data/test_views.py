"""Flipped and cropped copies: which pixels they hold, and that they follow from path and number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.data.views import Views
from ra_blip.errors import ImageError, OutputError


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """Red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:100, 0:200]
    pixels = np.stack([columns, 2 * rows, 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_the_picture_itself_and_its_mirror_image(picture: str, tmp_path: Path) -> None:
    views = Views(tmp_path / "views")
    assert views(picture, 0) == picture and not (tmp_path / "views").exists()
    mirrored = pixels(views(picture, 1))
    assert mirrored.shape == (100, 200, 3)
    assert np.abs(mirrored - pixels(picture)[:, ::-1]).mean() < 3  # JPEG


def test_crops_hold_a_part(picture: str, tmp_path: Path) -> None:
    views = Views(tmp_path / "views")
    for number in (2, 3, 4, 5):
        crop = pixels(views(picture, number))
        assert 0.42 < crop.shape[0] * crop.shape[1] / 20_000 < 0.93
        rising = crop[:, -1, 0].mean() > crop[:, 0, 0].mean()
        assert rising == (number % 2 == 0), "every other is mirrored"


def test_a_view_follows_from_path_and_number(picture: str, tmp_path: Path) -> None:
    first, second = (Views(tmp_path / name) for name in ("one", "two"))
    for number in (1, 2, 3):
        assert Path(first(picture, number)).read_bytes() == Path(second(picture, number)).read_bytes()
    assert len({first(picture, number) for number in range(4)}) == 4
    before = Path(first(picture, 2)).stat().st_mtime_ns
    assert Path(first(picture, 2)).stat().st_mtime_ns == before, "written once"


def test_threads_that_ask_for_one_view_at_once_get_it_whole(picture: str, tmp_path: Path) -> None:
    alone, shared = Views(tmp_path / "alone"), Views(tmp_path / "shared")
    with ThreadPoolExecutor(4) as pool:
        for number in range(1, 9):
            (path,) = set(pool.map(lambda which: shared(picture, which), [number] * 4))
            assert Path(path).read_bytes() == Path(alone(picture, number)).read_bytes()
    assert len(list((tmp_path / "shared").iterdir())) == 8, "nothing half done is left"


def test_bad_picture_and_bad_folder(picture: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        Views(tmp_path / "views")(str(tmp_path / "broken.png"), 1)
    with pytest.raises(OutputError, match="cannot be written"):
        Views(tmp_path / "broken.png")(picture, 1)
