"""Pictures inside tars and tsv files: the right bytes, or an error that names container and place."""

from __future__ import annotations

import base64
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip import containers
from ra_blip.containers import OPEN_FILES, is_there, members, read_bytes, split, stamp
from ra_blip.errors import DataError, ImageError
from ra_blip.images import open_image

LIMIT = 1 << 20


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_tsv(path: Path, rows: dict[int, bytes], index: str = ".lineidx") -> Path:
    """WebQA's form: ``id TAB base64`` and the byte offset of each row."""
    offsets, data = [], b""
    for number, content in rows.items():
        offsets.append(len(data))
        data += b"%d\t%s\n" % (number, base64.b64encode(content))
    path.write_bytes(data)
    lines = zip(rows, offsets, strict=True)
    two = index == ".lineidx.new"
    text = "".join(f"{number}\t{offset}\n" if two else f"{offset}\n" for number, offset in lines)
    path.with_suffix(index).write_text(text)
    return path


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 3), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", {"./x/1.png": png(1), "2.png": png(2), "long/" * 40 + "3.png": png(3)})


@pytest.mark.parametrize("member", ["x/1.png", "./x/1.png", "2.png", "long/" * 40 + "3.png"])
def test_a_member_of_a_tar_is_opened(tar: Path, member: str) -> None:
    image = open_image(f"{tar}#{member}")
    assert image.size == (5, 3)
    assert image.getpixel((0, 0)) == (int(member[-5]), 0, 0)


def test_a_file_of_that_very_name_wins(tar: Path) -> None:
    (tar.parent / "a.tar#2.png").write_bytes(png(200))
    assert open_image(f"{tar}#2.png").getpixel((0, 0)) == (200, 0, 0)


def test_names_are_split_at_the_container_that_is_there(tmp_path: Path) -> None:
    assert split("photo#1.png") is None
    odd = tmp_path / "b.tar#c.tar"
    assert split(f"{odd}#d") == (tmp_path / "b.tar", "c.tar#d"), "none is there: the first"
    write_tar(odd, {"d": b"1"})
    assert split(f"{odd}#d") == (odd, "d")
    assert read_bytes(f"{odd}#d", LIMIT) == b"1"


def test_what_is_not_there_is_named(tar: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.tar: no member '9\.png' among its 3"):
        open_image(f"{tar}#9.png")
    with pytest.raises(ImageError, match=r"none\.tar: no such container \(of picture '1\.png'\)"):
        open_image(tar.with_name("none.tar#1.png"))
    with pytest.raises(ImageError, match="more than the 10 a picture may have"):
        read_bytes(f"{tar}#2.png", 10)


def test_a_container_that_was_replaced_is_read_anew(tar: Path) -> None:
    before = stamp(f"{tar}#2.png")
    assert read_bytes(f"{tar}#2.png", LIMIT) == png(2)
    write_tar(tar, {"new": b"0" * 2000, "2.png": png(9)})
    assert read_bytes(f"{tar}#2.png", LIMIT) == png(9)
    assert stamp(f"{tar}#2.png") != before
    assert stamp(tar.with_name("none.tar#x")) is None


def test_open_files_are_bounded(tmp_path: Path) -> None:
    for number in range(OPEN_FILES + 20):
        path = write_tar(tmp_path / f"{number}.tar", {"x": b"%d" % number})
        assert read_bytes(f"{path}#x", LIMIT) == b"%d" % number
    assert containers._opened.cache_info().currsize == OPEN_FILES
    held = [os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd") if _is_open(one)]
    assert sum(name.startswith(str(tmp_path)) for name in held) <= OPEN_FILES


def _is_open(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")


def test_a_forked_process_opens_its_own_file(tar: Path) -> None:
    read_bytes(f"{tar}#2.png", LIMIT)
    child = os.fork()
    if child == 0:
        fresh = containers._opened.cache_info().currsize == 0
        os._exit(0 if fresh and read_bytes(f"{tar}#2.png", LIMIT) == png(2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_bytes(f"{tar}#2.png", LIMIT) == png(2)


def test_threads_share_a_container(tmp_path: Path) -> None:
    files = {f"{number}": bytes([number]) * 3000 for number in range(200)}
    path = write_tar(tmp_path / "a.tar", files)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: read_bytes(f"{path}#{name}", LIMIT), files))
    assert found == list(files.values())


# ---------------------------------------------------------------- damaged tars


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.txt": bytes([n]) * 700 for n in range(8)}).read_bytes()
    for size in range(0, 8 * 1536 + 1024, 256):  # also between members and inside headers
        path = tmp_path / f"{size}.tar"
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"{size}\.tar"):
            list(members(path))


@pytest.mark.parametrize("fill", [b"\0", b"\xaa"])
@pytest.mark.parametrize("length", [512, 4096])
def test_a_damaged_header_is_no_silent_end(tmp_path: Path, fill: bytes, length: int) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{n:02d}.txt": b"x" * 400 for n in range(64)})
    data = bytearray(path.read_bytes())
    data[20 * 1024 : 20 * 1024 + length] = fill * length
    path.write_bytes(data)
    with tarfile.open(path) as peer:
        assert len(peer.getnames()) == 20, "the standard library stops there and says nothing"
    with pytest.raises(DataError, match="damaged header at byte 20480"):
        list(members(path))


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content in (b"", b"no tar", b"\x1f\x8b" + b"\0" * 600):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar"):
            list(members(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../x.jpg", tarfile.REGTYPE),
        ("/etc/x.jpg", tarfile.REGTYPE),
        ("x.jpg", tarfile.SYMTYPE),
        ("x.jpg", tarfile.LNKTYPE),
        ("x.jpg", tarfile.CHRTYPE),
    ],
)
def test_members_that_lead_out_of_the_tar_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"x\.jpg' (is a link, a device or|has a name that leads out)"):
        list(members(tmp_path / "a.tar"))


def test_sparse_files_and_sizes_beyond_the_end_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        sparse = tarfile.TarInfo("x.jpg")
        sparse.pax_headers = {"GNU.sparse.size": "9000", "GNU.sparse.map": "0,4"}
        sparse.size = 4
        tar.addfile(sparse, io.BytesIO(b"data"))
    with pytest.raises(DataError, match=r"x\.jpg' is a link, a device or a sparse file"):
        list(members(tmp_path / "a.tar"))
    endless = tarfile.TarInfo("x.txt")
    endless.size = 1 << 62  # reading it would ask for all of it at once
    (tmp_path / "a.tar").write_bytes(endless.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar: ends inside member 'x\.txt'"):
        list(members(tmp_path / "a.tar"))


# ---------------------------------------------------------------- tsv

ROWS = {30_000_000 + n: png(n) for n in range(4)}


@pytest.mark.parametrize("index", [".lineidx", ".lineidx.new"])
def test_a_row_of_a_tsv_is_opened(tmp_path: Path, index: str) -> None:
    tsv = write_tsv(tmp_path / "imgs.tsv", ROWS, index)
    for number in range(4):
        assert open_image(f"{tsv}#{30_000_000 + number}").getpixel((0, 0)) == (number, 0, 0)
    with pytest.raises(ImageError, match=rf"imgs\.tsv#30000009: imgs{index} has no row for it \(it has 4\)"):
        open_image(f"{tsv}#30000009")


def test_long_rows_are_read_whole(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(700_000)
    tsv = write_tsv(tmp_path / "imgs.tsv", {30_000_000: content, 30_000_001: b"1"})
    assert read_bytes(f"{tsv}#30000000", LIMIT) == content
    with pytest.raises(ImageError, match="more than"):
        read_bytes(f"{tsv}#30000000", 100_000)


def test_an_index_of_another_file_is_found_out(tmp_path: Path) -> None:
    tsv = write_tsv(tmp_path / "imgs.tsv", ROWS)
    offsets = tsv.with_suffix(".lineidx").read_text().split()
    tsv.with_suffix(".lineidx").write_text("\n".join([*offsets[1:], offsets[0]]))
    with pytest.raises(ImageError, match=r"imgs\.tsv#30000000: imgs\.lineidx leads to a row .* '30000001'"):
        open_image(f"{tsv}#30000000")
    tsv.with_suffix(".lineidx").write_text("\n".join(str(int(offset) + 3) for offset in offsets))
    with pytest.raises(ImageError, match="do not belong together"):
        open_image(f"{tsv}#30000000")
    tsv.with_suffix(".lineidx").write_text("one\ntwo\n")
    with pytest.raises(ImageError, match=r"imgs\.lineidx: not an index of rows"):
        open_image(f"{tsv}#30000000")
    tsv.with_suffix(".lineidx").unlink()
    with pytest.raises(ImageError, match=r"neither imgs\.lineidx nor imgs\.lineidx\.new"):
        open_image(f"{tsv}#30000000")


def test_a_tsv_that_is_cut_gives_whole_pictures_or_errors(tmp_path: Path) -> None:
    tsv = write_tsv(tmp_path / "imgs.tsv", ROWS)
    whole = tsv.read_bytes()
    last = int(tsv.with_suffix(".lineidx").read_text().split()[-1])
    for size in range(last - 1, len(whole) - 1):
        tsv.write_bytes(whole[:size])
        with pytest.raises(ImageError, match=r"imgs\.tsv#30000003"):
            open_image(f"{tsv}#30000003")
        assert open_image(f"{tsv}#30000000").size == (5, 3)
    tsv.write_bytes(whole[:-1])  # the line break alone is missing
    assert open_image(f"{tsv}#30000003").size == (5, 3)


def test_a_damaged_row_and_a_wrong_id_are_refused(tmp_path: Path) -> None:
    tsv = write_tsv(tmp_path / "imgs.tsv", ROWS)
    tsv.write_bytes(tsv.read_bytes().replace(b"\tiVBO", b"\ti*BO", 1))
    with pytest.raises(ImageError, match="the row is cut or damaged"):
        open_image(f"{tsv}#30000000")
    with pytest.raises(ImageError, match="a whole number"):
        open_image(f"{tsv}#one")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 300 + ".tar#a.jpg", "a\0b.jpg", "a\0/b.tsv#7"])
def test_a_name_that_no_file_can_have_is_of_no_picture(name: str) -> None:
    assert not is_there(name) and stamp(name) is None
    with pytest.raises(ImageError, match="no such"):
        read_bytes(name, LIMIT)
