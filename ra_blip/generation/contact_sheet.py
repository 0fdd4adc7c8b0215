"""One picture of a search: large on the left what was asked about, in a grid on the right what was found, with titles.

It stands in for the screenshot of a results page that RIR (arXiv 2405.18740) gives a model, and needs no browser. A
model must see it at about full size to read the titles; a Q-Former at 224 pixels cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from ra_blip.errors import ConfigError, ImageError
from ra_blip.images import open_image
from ra_blip.records import Item

COLUMNS, TITLE, LINES = 4, 80, 3  # characters of a title, and lines that they take at most
_LEFT, _TILE, _PICTURE, _GAP, _LINE = 560, 220, 165, 16, 20  # pixels
_DARK, _PAPER, _GREY, _INK = "#202124", "#ffffff", "#dadce0", "#202124"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(picture: str | None, items: Sequence[Item], font: str = "") -> Image.Image:
    """Draw the sheet.

    Args:
        picture: what was asked about; None leaves the left half out.
        items: in order; a picture that is missing or damaged is a grey field above its title.
        font: a TrueType file for scripts that Pillow's own font lacks (it has Latin letters).

    Returns:
        An RGB picture, four tiles a row; equal input gives equal pixels.

    Raises:
        ImageError: ``picture`` cannot be opened.
        ConfigError: ``font`` cannot be read.
    """
    letters = _font(font)
    rows = -(-len(items) // COLUMNS)
    left = _LEFT if picture else 0
    tile = _PICTURE + LINES * _LINE + _GAP
    size = (left + _GAP + COLUMNS * (_TILE + _GAP), max(_GAP + rows * tile, _LEFT if picture else 1))
    sheet = Image.new("RGB", size, _PAPER)
    if picture:
        sheet.paste(Image.new("RGB", (left, size[1]), _DARK), (0, 0))
        _put(sheet, open_image(picture), (_GAP, _GAP, left - _GAP, size[1] - _GAP))
    draw = ImageDraw.Draw(sheet)
    for number, item in enumerate(items):
        x = left + _GAP + number % COLUMNS * (_TILE + _GAP)
        y = _GAP + number // COLUMNS * tile
        box = (x, y, x + _TILE, y + _PICTURE)
        found = _open(item)
        if found is None:
            draw.rectangle(box, fill=_GREY)
        else:
            _put(sheet, found, box)
        for line, text in enumerate(_wrapped(item.full_text[:TITLE], letters)):
            draw.text((x, y + _PICTURE + 4 + line * _LINE), text, fill=_INK, font=letters)
    return sheet


def _font(path: str) -> Font:
    try:
        return ImageFont.truetype(path, 15) if path else ImageFont.load_default(15)
    except OSError as error:
        raise ConfigError(f"font {path}: cannot be read ({error})") from None


def _open(item: Item) -> Image.Image | None:
    try:
        return open_image(item.image) if item.image else None
    except ImageError:
        return None


def _put(sheet: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Fit a picture into a box, in its middle, larger or smaller, its proportions kept."""
    x, y, right, bottom = box
    scale = min((right - x) / picture.width, (bottom - y) / picture.height)
    fitted = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    sheet.paste(fitted, (x + (right - x - fitted.width) // 2, y + (bottom - y - fitted.height) // 2))


def _wrapped(text: str, letters: Font) -> Iterator[str]:
    """At most :data:`LINES` lines that are no wider than a tile; a word that is wider is cut."""
    words, lines = text.split(), 0
    while words and lines < LINES:
        line = words.pop(0)
        while len(line) > 1 and letters.getlength(line) > _TILE:
            line = line[:-1]
        while words and letters.getlength(f"{line} {words[0]}") <= _TILE:
            line = f"{line} {words.pop(0)}"
        lines += 1
        yield line
