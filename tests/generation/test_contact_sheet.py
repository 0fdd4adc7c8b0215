"""The drawn page of search results."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ra_blip.errors import ConfigError, ImageError
from ra_blip.generation.contact_sheet import contact_sheet
from ra_blip.records import Item

COLOURS = ["red", "lime", "blue", "white", "black", "yellow"]
RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (255, 255, 0)]


def photo(folder: Path, colour: str, size: tuple[int, int] = (44, 33)) -> str:
    """A picture of one colour."""
    path = folder / f"{colour}.png"
    Image.new("RGB", size, colour).save(path)
    return str(path)


def test_sheet_has_the_question_on_the_left_and_results_in_rows_of_four(tmp_path: Path) -> None:
    items = [Item(colour, text=f"the {colour} one", image=photo(tmp_path, colour)) for colour in COLOURS]
    sheet = contact_sheet(photo(tmp_path, "orange", (100, 50)), items)
    assert sheet.mode == "RGB" and sheet.size == (560 + 16 + 4 * 236, 560)
    assert sheet.getpixel((280, 280)) == (255, 165, 0) and sheet.getpixel((4, 4)) == (0x20, 0x21, 0x24)
    centres = [(560 + 16 + 110 + number % 4 * 236, 16 + 82 + number // 4 * 241) for number in range(6)]
    assert [sheet.getpixel(centre) for centre in centres] == RGB
    below = sheet.crop((576, 16 + 165, 576 + 220, 16 + 165 + 60))
    assert below.getextrema()[0][0] < 128 < below.getextrema()[0][1]  # a title is written there
    assert contact_sheet(photo(tmp_path, "orange", (100, 50)), items).tobytes() == sheet.tobytes()


def test_long_titles_stay_in_their_tile_and_missing_pictures_are_grey(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    items = [
        Item("a", text="W" * 500, image=str(broken)),
        Item("b", text="word " * 100, image=str(tmp_path / "none.png")),
    ]
    sheet = contact_sheet(None, items)
    assert sheet.width == 16 + 4 * 236
    assert sheet.getpixel((100, 90)) == sheet.getpixel((350, 90)) == (0xDA, 0xDC, 0xE0)
    between = sheet.crop((16 + 220 + 2, 0, 16 + 220 + 14, sheet.height))
    assert between.getextrema() == ((255, 255),) * 3
    assert sheet.crop((0, sheet.height - 14, sheet.width, sheet.height)).getextrema() == ((255, 255),) * 3


def test_picture_or_font_that_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png"):
        contact_sheet(str(tmp_path / "none.png"), [])
    with pytest.raises(ConfigError, match="font"):
        contact_sheet(None, [], str(tmp_path / "none.ttf"))
