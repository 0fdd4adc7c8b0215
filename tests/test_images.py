"""Opening pictures: what comes out is upright RGB on white, and what is damaged, foreign or too large is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.errors import ImageError
from ra_blip.images import Quarantine, open_image, resize

SEED = 3


def _noise(size: tuple[int, int] = (40, 24)) -> Image.Image:
    values = np.random.default_rng(SEED).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def _saved(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    image.save(path, format=kind, **options)
    return path


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, kind: str) -> None:
    image = _noise()
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_image(_saved(tmp_path / "a", image, kind, **options))
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_jpeg_is_what_pillow_decodes(tmp_path: Path, options: dict[str, object]) -> None:
    path = _saved(tmp_path / "photo.png", _noise(), "JPEG", quality=90, **options)  # the name lies, the content counts
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(Image.open(path)))


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.jpg", _noise(), "JPEG")
    expected = np.asarray(open_image(path))
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    assert np.array_equal(np.asarray(open_image(path)), expected)


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to see it upright
    opened = open_image(_saved(tmp_path / "a.jpg", image, "JPEG", exif=exif, quality=95))
    assert opened.size == (8, 16)
    assert opened.getpixel((4, 2)) == (255, 255, 255)  # what was left is now on top
    assert opened.getpixel((4, 13)) == (0, 0, 0)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):  # 51 of 255 is a fifth
        image.putpixel((x, 0), (0, 0, 100, alpha))
    opened = open_image(_saved(tmp_path / "a.png", image, "PNG"))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (204, 204, 224), (0, 0, 100)]


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    opened = open_image(_saved(tmp_path / "a.png", image, "PNG", transparency=0))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (40, 50, 60)]


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16))
    opened = open_image(_saved(tmp_path / "a.png", grey, "PNG"))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, kind: str, share: float) -> None:
    path = _saved(tmp_path / "cut.img", _noise(), kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.img"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damage_is_a_picture_of_the_right_size_or_an_image_error(tmp_path: Path, kind: str) -> None:
    good = io.BytesIO()
    _noise().save(good, format=kind)
    draw = np.random.default_rng(SEED)
    path = tmp_path / "damaged.img"
    refused = 0
    for _ in range(60):
        data = bytearray(good.getvalue())
        for place in draw.integers(0, len(data), 20):
            data[place] = int(draw.integers(0, 256))
        path.write_bytes(bytes(data))
        try:
            assert open_image(path).mode == "RGB"
        except ImageError as error:
            refused += 1
            assert "damaged.img" in str(error)
    assert refused >= (60 if kind == "PNG" else 15)  # every chunk of a PNG has a checksum


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 2}, {"subsampling": 0}])
def test_altered_or_missing_picture_data_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    pytest.importorskip("simplejpeg")
    path = _saved(tmp_path / "a.jpg", _noise((320, 240)), "JPEG", quality=90, **options)
    whole, rng = path.read_bytes(), np.random.default_rng(SEED)
    at = (len(whole) // 2 + rng.integers(0, len(whole) // 3, 20)).tolist()
    altered = [whole[:n] + filling + whole[n + 200 :] for n in at for filling in (bytes(200), rng.bytes(200))]
    for data in (*altered, whole[: len(whole) // 2] + b"\xff\xd9"):  # the last ends early, with the mark of an end
        path.write_bytes(data)
        with pytest.raises(ImageError, match=r"a\.jpg: damaged or truncated JPEG"):
            open_image(path)
    path.write_bytes(whole + b"left over")
    assert open_image(path).size == (320, 240)


def test_a_hole_in_a_jpeg_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "hole.jpg", _noise((96, 96)), "JPEG", quality=95)
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + 64] = b"\xff\xc0" * 32
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="marker"):
        open_image(path)


def test_a_wrong_checksum_in_a_png_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", _noise(), "PNG")
    data = bytearray(path.read_bytes())
    data[-13] ^= 1  # last byte of the picture data's checksum; the end chunk has 12
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="checksum"):
        open_image(path)


def test_the_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_of(60_000, 60_000))  # 10 GB of pixels from under 100 bytes
    with pytest.raises(ImageError, match="60000 x 60000"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_the_pixel_cap_is_the_callers(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    path = _saved(tmp_path / "a", _noise((40, 24)), kind, **(options if kind == "WEBP" else {}))
    assert open_image(path, max_pixels=960).size == (40, 24)
    with pytest.raises(ImageError, match="40 x 24 pixels, more than 959"):
        open_image(path, max_pixels=959)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"hello, this is no picture", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        open_image(path)


def test_other_formats_are_refused_whatever_their_name(tmp_path: Path) -> None:
    for kind in ("BMP", "GIF", "TIFF"):
        with pytest.raises(ImageError, match="not a JPEG, PNG or WebP"):
            open_image(_saved(tmp_path / "photo.png", _noise(), kind))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such picture"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path)


def test_resize_squeezes_without_cropping() -> None:
    image = Image.new("RGB", (64, 4), (10, 20, 30))
    image.paste((200, 100, 50), (32, 0, 64, 4))
    small = resize(image, 8)
    assert small.shape == (3, 8, 8) and small.dtype == np.uint8 and small.flags.c_contiguous
    assert (small[:, :, :2].max(axis=(1, 2)) == [10, 20, 30]).all()  # the far left of the whole picture is still there
    assert (small[:, :, -2:].min(axis=(1, 2)) == [200, 100, 50]).all()


def test_resize_to_its_own_size_changes_nothing() -> None:
    image = _noise((12, 12))
    assert np.array_equal(resize(image, 12), np.asarray(image).transpose(2, 0, 1))


def test_the_size_of_a_jpeg_is_checked_before_decoding(tmp_path: Path) -> None:
    path = _saved(tmp_path / "bomb.jpg", _noise(), "JPEG")
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0")
    path.write_bytes(data[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + data[frame + 9 :])
    with pytest.raises(ImageError, match="60000 x 60000"):
        open_image(path)


def test_cmyk_is_converted_as_pillow_does(tmp_path: Path) -> None:
    image = _noise((16, 16)).resize((64, 64)).convert("CMYK")
    path = _saved(tmp_path / "a.jpg", image, "JPEG", quality=95)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = _saved(tmp_path / "a", frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    opened = open_image(path)
    assert opened.size == (8, 8) and opened.getpixel((4, 4)) == (255, 0, 0)


def test_a_jpeg_is_decoded_no_smaller_than_asked_for(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.jpg", _noise((400, 200)), "JPEG")
    assert open_image(path, at_least=100).size == (200, 100)
    assert open_image(path, at_least=101).size == (400, 200)
    assert open_image(path, at_least=30).size == (100, 50)
    assert open_image(_saved(tmp_path / "a.png", _noise((400, 200)), "PNG"), at_least=30).size == (400, 200)


def test_quarantine_counts_and_stops_at_its_share() -> None:
    quarantine = Quarantine(share=0.01)
    for number in range(10):
        quarantine.bad(f"{number}.jpg: cut")
        quarantine.good(5)
    assert (quarantine.seen, quarantine.total) == (60, 10), "a few are let pass, whatever the share"
    assert quarantine.summary() == "10 of 60 pictures are damaged and left out"
    with pytest.raises(ImageError, match=r"11 of 61 pictures are damaged, more than 1.00% .* the last: x\.jpg: cut"):
        quarantine.bad("x.jpg: cut")
    many = Quarantine(share=0.01, seen=10_000)
    for number in range(100):
        many.bad(f"{number}")
        many.good()
    assert many.total == 100
    assert Quarantine().summary() == ""


def test_quarantine_stops_where_all_are_damaged_in_a_row() -> None:
    quarantine = Quarantine(share=1.0, in_a_row=3)
    for _ in range(2):
        quarantine.bad("a")
    quarantine.good()
    for _ in range(2):
        quarantine.bad("a")
    with pytest.raises(ImageError, match="3 in a row"):
        quarantine.bad("a")
