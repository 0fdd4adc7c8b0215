"""The bytes of a picture by its name: a file, or a place in a container, ``PATH.tar#member`` or ``PATH.tsv#id``.

A tar is never unpacked: its members are read where they lie, by an index of their places (:class:`TarIndex`).
A tsv is WebQA's: rows ``id TAB base64``, and beside it the byte offsets of the rows, ``PATH.lineidx`` (a number a line;
the row of a picture is its id modulo 10,000,000) or ``PATH.lineidx.new`` (``id TAB offset``, as UniVL-DR writes it).
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ra_blip.errors import DataError, ImageError

OPEN_FILES = 32  # containers held open by a process
INDEXES = 64  # indexes held in memory
WEBQA_IDS = 10_000_000  # a WebQA picture's row is its id modulo this
_INSIDE = re.compile(r"\.(?:tar|tsv)(?=#)")
_CHUNK = 1 << 18

TSV_INDEXES = (".lineidx", ".lineidx.new")  # endings in place of .tsv

Offsets = npt.NDArray[np.int64] | dict[int, int]  # of rows by their number, or by the picture's id
Mark = tuple[int, int]  # size and time of a file: another pair, another file
Row = tuple[int, int, int, int, bytes]  # of a tar's index: offset, size, CRC-32, sample, name


def split(name: str | Path) -> tuple[Path, str] | None:
    """Container and place in it; None for the name of a plain file. A file of that very name wins."""
    text = os.fspath(name)
    if (".tar#" not in text and ".tsv#" not in text) or os.path.exists(text):
        return None
    found = [(Path(text[: at.end()]), text[at.end() + 1 :]) for at in _INSIDE.finditer(text)]
    return next((pair for pair in found if os.path.isfile(pair[0])), found[0])


def is_there(name: str | Path) -> bool:
    """Whether the file, or the container of a picture, is there."""
    inside = split(name)
    return os.path.isfile(inside[0] if inside else name)  # False for a name that no file can have, too: pathlib raises


def stamp(name: str | Path) -> Mark | None:
    """What changes when the file or container of a picture does; None where there is none."""
    inside = split(name)
    try:
        return mark_of(inside[0] if inside else Path(name))
    except (OSError, ValueError):  # the second for a name that no file can have
        return None


def read_bytes(name: str | Path, limit: int) -> bytes:
    """The bytes behind a picture's name.

    Args:
        name: a file, ``PATH.tar#member`` or ``PATH.tsv#id``.
        limit: most bytes that a picture may have.

    Raises:
        ImageError: nothing there, too large, or the container is damaged; names container and place.
    """
    inside = split(name)
    if inside is None:
        return _read_file(Path(name), limit)
    container, place = inside
    try:
        if not os.path.exists(container):
            raise ImageError(f"{container}: no such container (of picture {place!r})")
        return (_read_tar if container.suffix == ".tar" else _read_tsv)(container, place, limit)
    except OSError as error:
        raise ImageError(f"{container}: cannot be read ({error.strerror or error})") from None
    except ImageError:
        raise
    except DataError as error:  # the container itself; here it is one picture that cannot be had
        raise ImageError(str(error)) from None


def read_at(path: Path, offset: int, size: int, mark: Mark | None = None) -> bytes:
    """Bytes of a file by position, fewer where it ends; the file stays open for this process. Raises OSError.

    Who has just asked for its ``mark`` can give it: of reading a small member asking is a third.
    """
    return _opened(path, mark or mark_of(path)).read(offset, size)


def mark_of(path: Path) -> Mark:
    """Size and time of a file. Raises OSError."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


class OpenFile:
    """An open file. It is read by position only, so that threads can share it, and closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes by position; fewer where the file ends."""
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(OPEN_FILES)
def _opened(path: Path, mark: Mark) -> OpenFile:
    return OpenFile(path)


os.register_at_fork(after_in_child=_opened.cache_clear)  # a forked worker opens its own


def _read_file(path: Path, limit: int) -> bytes:
    if not os.path.exists(path):
        raise ImageError(f"{path}: no such picture")
    if not path.is_file():  # a pipe would block, a folder cannot be read
        raise ImageError(f"{path}: not a file")
    try:
        _check_size(str(path), path.stat().st_size, limit)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise ImageError(f"{name}: {size} bytes, more than the {limit} a picture may have")


# ---------------------------------------------------------------- tar


class TarIndex:
    """Where the members of a tar lie.

    On disk, beside ``X.tar``, it is ``X.index.npy``: a structured array, one row a member in the order of the tar, and
    a last row that describes the whole, with the tar's size as ``offset``, the number of samples as ``sample``, and the
    CRC-32 of the rows before it as ``crc``. ``sample`` numbers the samples (members of one key) from 0.

    Args:
        rows: the members' rows, without the last.
        checked: whether ``crc`` holds checksums; a tar that was only looked through has none.
    """

    def __init__(self, rows: npt.NDArray[np.void], checked: bool) -> None:
        self.rows, self.checked = rows, checked
        self.starts = np.flatnonzero(np.diff(rows["sample"], prepend=-1))  # first row of each sample

    @functools.cached_property
    def by_name(self) -> dict[str, int]:
        """Row of a member by its name."""
        return {name.decode("utf-8"): row for row, name in enumerate(self.rows["name"].tolist())}

    @staticmethod
    def beside(tar: Path) -> Path:
        """The place of a tar's index."""
        return tar.with_suffix(".index.npy")

    @staticmethod
    def array(rows: Sequence[Row]) -> npt.NDArray[np.void]:
        """Rows as the structured array that an index is."""
        return np.array(rows, TarIndex.dtype(max((len(row[4]) for row in rows), default=1)))

    @staticmethod
    def dtype(longest: int) -> np.dtype[np.void]:
        """Type of a row whose name has at most ``longest`` bytes."""
        columns = [("offset", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("sample", "<i4"), ("name", f"S{longest}")]
        return np.dtype(columns)

    def read(self, tar: Path, row: Row, mark: Mark | None = None) -> bytes:
        """The bytes of one member. Raises :class:`DataError` where the tar ends early or a checksum differs."""
        offset, size, crc, _, name = row
        data = read_at(tar, offset, size, mark)
        if len(data) != size:
            raise DataError(f"{tar}: ends inside member {name.decode()!r}; get the file again")
        if self.checked and zlib.crc32(data) != crc:
            raise DataError(f"{tar}: member {name.decode()!r} was altered (checksum differs); get the file again")
        return data


def load_index(tar: Path) -> TarIndex | None:
    """The index beside a tar, mapped and not read; None where there is none.

    Raises:
        DataError: the index is damaged, or the tar has another size than when it was indexed.
    """
    path = TarIndex.beside(tar)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        last = rows[-1].item()
        whole = rows.dtype == TarIndex.dtype(rows.dtype["name"].itemsize) and last[1] == 0
    except FileNotFoundError:
        return None
    except Exception:  # numpy parses the header with Python's own parser, and lets its errors through
        whole = False
    if not whole or zlib.crc32(rows[:-1].tobytes()) != last[2]:
        raise DataError(f"{path}: damaged; delete it, and {tar.name} is indexed anew")
    size = tar.stat().st_size
    if size != last[0]:
        raise DataError(
            f"{tar}: {size} bytes, {path.name} says {last[0]}: cut or replaced since; get the file again, or delete "
            f"the index if this is the right one"
        )
    return TarIndex(rows[:-1], checked=True)


def members(tar: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the members of a tar in order, from its headers alone; a leading ``./`` is dropped.

    Raises:
        DataError: not an uncompressed tar, damaged or cut, or a member that is no regular file with a plain name.
    """
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            for member in iter(archive.next, None):
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not member.isdir():
                    name = _plain_name(tar, member)
                    if member.offset_data + member.size > size:  # or memory for it all would be asked for
                        raise DataError(f"{tar}: ends inside member {name!r}; get the file again")
                    yield name, member.offset_data, member.size
            _check_end(tar, file.fileno(), archive.offset)
    except (tarfile.TarError, UnicodeError, ValueError) as error:
        raise DataError(f"{tar}: not a whole uncompressed tar ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{tar}: cannot be read ({error.strerror or error})") from None


def split_key(name: str) -> tuple[str, str]:
    """``dir/000.seg.png`` -> ``dir/000`` and ``seg.png``, as webdataset does; the second is empty if there is none."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def _plain_name(tar: Path, member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or member.issparse():
        raise DataError(f"{tar}: member {name!r} is a link, a device or a sparse file; only regular files are read")
    if member.size < 0:
        raise DataError(f"{tar}: member {name!r} has the size {member.size}; get the file again")
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(f"{tar}: member {name!r} has a name that leads out of the tar; only plain names are read")
    return name


def _check_end(tar: Path, descriptor: int, offset: int) -> None:
    """A damaged header looks like the end to ``tarfile``; a true end is two blocks of zeros, and then only zeros."""
    at = offset
    while block := os.pread(descriptor, _CHUNK, at):
        if block.count(0) != len(block):
            raise DataError(f"{tar}: damaged header at byte {offset}, what follows cannot be read; get the file again")
        at += len(block)
    if at - offset < 2 * tarfile.BLOCKSIZE:
        raise DataError(f"{tar}: ends at byte {at} without the mark of an end, it was cut; get the file again")


@functools.lru_cache(INDEXES)
def _tar_index(tar: Path, mark: Mark) -> TarIndex:
    found = load_index(tar)
    if found is not None:
        return found
    rows = [(offset, size, 0, 0, name.encode("utf-8")) for name, offset, size in members(tar)]
    return TarIndex(TarIndex.array(rows), checked=False)


def _read_tar(tar: Path, place: str, limit: int) -> bytes:
    index = _tar_index(tar, mark_of(tar))
    number = index.by_name.get(place.removeprefix("./"))
    if number is None:
        raise ImageError(f"{tar}: no member {place!r} among its {len(index.rows)}")
    row: Row = index.rows[number].item()
    _check_size(f"{tar}#{place}", row[1], limit)
    return index.read(tar, row)


# ---------------------------------------------------------------- tsv


def row_index(tsv: Path) -> Path | None:
    """The index of rows beside a tsv; None where there is none."""
    return next((path for end in TSV_INDEXES if (path := tsv.with_suffix(end)).is_file()), None)


@functools.lru_cache(INDEXES)
def row_offsets(index: Path, mark: Mark) -> Offsets:
    """The byte offsets of rows by row number, or by id where the index has two columns.

    Raises:
        DataError: not such an index.
    """
    try:
        lines = [line.split() for line in index.read_bytes().split(b"\n") if line.strip()]
        numbers = np.array(lines, dtype=np.int64)  # a ValueError where lines differ in their columns
        if numbers.ndim == 2 and numbers.shape[1] == 2:
            return dict(numbers.tolist())
        if numbers.ndim == 2 and numbers.shape[1] == 1:
            return numbers[:, 0]
    except (OSError, ValueError, OverflowError):
        pass
    raise DataError(f"{index}: not an index of rows (an offset a line, or 'id TAB offset'); get the file again")


def row_offset(offsets: Offsets, image_id: int) -> int | None:
    """Where the row of a picture begins; None where the index has none."""
    if isinstance(offsets, dict):
        return offsets.get(image_id)
    row = image_id % WEBQA_IDS
    return int(offsets[row]) if row < len(offsets) else None


def _read_tsv(tsv: Path, place: str, limit: int) -> bytes:
    index = row_index(tsv)
    if index is None:
        one, other = (tsv.with_suffix(end).name for end in TSV_INDEXES)
        raise ImageError(f"{tsv}: neither {one} nor {other} lies beside it; get one of them")
    where = f"{tsv}#{place}"
    if not place.isascii() or not place.isdecimal():
        raise ImageError(f"{where}: the id of a picture in a tsv is a whole number")
    offsets = row_offsets(index, mark_of(index))
    offset = row_offset(offsets, int(place))
    if offset is None:
        raise ImageError(f"{where}: {index.name} has no row for it (it has {len(offsets)})")
    row = _row(tsv, offset, limit * 4 // 3 + 64, where)
    found, tab, text = row.partition(b"\t")
    if found != place.encode() or not tab:
        raise ImageError(
            f"{where}: {index.name} leads to a row that begins with {found[:20].decode('latin-1')!r}: index and tsv do "
            f"not belong together, or one of them is damaged; get both again"
        )
    try:
        return base64.b64decode(text.rstrip(b"\r\n"), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{where}: the row is cut or damaged ({error}); get {tsv.name} again") from None


def _row(tsv: Path, offset: int, limit: int, where: str) -> bytes:
    size = tsv.stat().st_size
    if not 0 <= offset < size:
        raise ImageError(f"{where}: its row begins at byte {offset}, the file ends at {size}: cut; get it again")
    row = bytearray()
    while block := read_at(tsv, offset + len(row), _CHUNK):
        head, newline, _ = block.partition(b"\n")
        row += head
        if newline:
            break
        _check_size(where, len(row), limit)
    return bytes(row)
