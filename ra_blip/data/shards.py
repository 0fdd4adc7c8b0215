"""Tar shards in webdataset's layout, ``key.jpg``, ``key.json``, ``key.txt`` side by side, read by number.

An index beside each tar (:class:`ra_blip.containers.TarIndex`) gives exact counts, random access, and a checksum of
every member. ``ra-blip pack`` writes it with the tar; for shards of img2dataset or webdataset it is made when they are
first opened, which reads them once. A manifest, where ``pack`` wrote one, says which shards belong to the set.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ra_blip.containers import INDEXES, Mark, Row, TarIndex, load_index, mark_of, members, read_at, split_key
from ra_blip.data.readers.dataset import Problems
from ra_blip.data.stream import Mixture
from ra_blip.errors import DataError
from ra_blip.records import Item, Question, parse_json, parse_record

MANIFEST = "manifest.json"
PICTURES = ("jpg", "jpeg", "png", "webp")
LONGEST_CAPTION = 10_000  # letters; what is longer is a page that was taken for a caption
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Sample:
    """The members of one key, by extension (``jpg``, ``json``, ``txt``), in the order of the tar."""

    shard: Path
    key: str
    parts: dict[str, bytes]


class ShardSet:
    """Samples of a folder of tars, or of one tar, by number: in the order of the tars' names, then of the tar.

    Args:
        root: the folder, or the tar.

    Raises:
        DataError: no tar here, a shard of the manifest is missing, or a tar is damaged, cut, or not of this layout
            (naming tar and key).
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        self.shards = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        if not self.shards or not self.shards[0].is_file():
            raise DataError(f"{root}: no tar shards here")
        self.manifest = _manifest(root, self.shards) if root.is_dir() else None
        quiet = not sys.stderr.isatty()
        shards = tqdm(self.shards, desc="shards", unit="shard", disable=quiet, leave=False)
        self._ends = list(itertools.accumulate(len(_kept_index(tar, mark_of(tar)).starts) for tar in shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, number: int) -> Sample:
        """One sample with all its bytes. Raises :class:`DataError` where one of them was altered."""
        tar, mark, index, key, rows = self._rows(number)
        return Sample(tar, key, {part: index.read(tar, row, mark) for part, row in rows.items()})

    def items(self, number: int) -> list[Item]:
        """A sample as items whose picture is named, not read: one, or one a caption where `pack` found several.

        The words of a foreign sample are its ``txt``, else the caption in its ``json``.

        Raises:
            DataError: neither picture nor words, or words that are not UTF-8 or not JSON; names tar and key.
        """
        where, picture, records = self._records(number)
        found = [_item(record, picture) for record in records]
        if not all(item.image or item.full_text for item in found):
            raise DataError(f"{where}: neither a picture nor words")
        return found

    def questions(self, number: int) -> list[Question]:
        """The questions of a sample that `pack` made of them. Raises :class:`DataError` as :meth:`items`."""
        where, picture, records = self._records(number)
        return [dataclasses.replace(parse_record(one, Question, Path(), where), image=picture) for one in records]

    def _records(self, number: int) -> tuple[str, str | None, list[dict[str, Any]]]:
        """Where a sample stands, the name of its picture, and its raw records."""
        tar, _, index, key, rows = self._rows(number)
        member = next((rows[part][4].decode() for part in PICTURES if part in rows), None)
        picture = f"{tar}#{member}" if member else None
        where = f"{tar}, sample {key!r}"
        texts = {part: _text(tar, index, rows[part]) for part in ("json", "txt") if part in rows}
        value = _object(texts["json"], where) if "json" in texts else {}
        if self.manifest is not None:
            return where, picture, [value, *value.get("others", ())]
        words = texts.get("txt", "").strip() or value.get("caption")
        return where, picture, [{"id": f"{tar.stem}/{key}", "text": words}]

    def _rows(self, number: int) -> tuple[Path, Mark, TarIndex, str, dict[str, Row]]:
        """The tar of a sample, its index, the sample's key, and the rows of its members by their extension."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        tar = self.shards[shard]
        mark = mark_of(tar)
        index = _kept_index(tar, mark)
        at = number - (self._ends[shard - 1] if shard else 0)
        begin = index.starts[at]
        end = index.starts[at + 1] if at + 1 < len(index.starts) else len(index.rows)
        rows: list[Row] = index.rows[begin:end].tolist()
        key = split_key(rows[0][4].decode())[0]
        return tar, mark, index, key, {row[4].decode()[len(key) + 1 :].lower(): row for row in rows}


class ShardPictures:
    """Captioned pictures of a shard set, for pretraining: a source of ``Item``.

    Samples that cannot be trained on are left out and counted in ``problems``: without a picture, with a blank caption
    or one of more than ``LONGEST_CAPTION`` letters, with words that are not UTF-8 or not JSON.

    Args:
        root: folder of shards, or one tar.
        strict: raise the first problem instead.

    Raises:
        DataError: as :class:`ShardSet`, or nothing is left.
    """

    def __init__(self, root: str | Path, strict: bool = False) -> None:
        self.shards, self.problems = ShardSet(root), Problems(strict)
        found = np.array([row for number in range(len(self.shards)) for row in self._captions(number)])
        if self.problems.total:
            print(f"ra-blip: {root}: {self.problems.summary()}", file=sys.stderr)
        if not len(found):
            raise DataError(f"{root}: no captioned picture to train on; {self.problems.summary() or 'it is empty'}")
        self.places, self.lengths = found[:, :2], found[:, 2]

    def _captions(self, number: int) -> Iterator[tuple[int, int, int]]:
        """(sample, which of its captions, letters) of the captions to train on."""
        try:
            items = self.shards.items(number)
        except DataError as error:
            self.problems.report("unreadable", f"sample {number}", str(error))
            return
        for which, item in enumerate(items):
            length = len(item.full_text)
            if item.image is None:
                self.problems.report("without a picture", item.id, "no member with a picture")
            elif not length:
                self.problems.report("blank caption", item.id, "no words beside the picture")
            elif length > LONGEST_CAPTION:
                self.problems.report("over-long caption", item.id, f"{length} letters, more than {LONGEST_CAPTION}")
            else:
                yield number, which, length

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, index: int, rng: np.random.Generator) -> Item:
        """Caption ``index`` with its picture."""
        number, which = self.places[index]
        return self.shards.items(int(number))[int(which)]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of one epoch: shuffled window by window, so that the tars are read in long runs."""
        return Mixture([self]).order(seed, epoch)

    def texts(self) -> Iterator[str]:
        """All captions."""
        return (self.shards.items(number)[which].full_text for number, which in self.places.tolist())


# ---------------------------------------------------------------- index


@functools.lru_cache(INDEXES)
def _kept_index(tar: Path, mark: Mark) -> TarIndex:
    found = load_index(tar)
    if found is None:
        rows = list(_index_rows(tar))
        found = TarIndex(TarIndex.array(rows), checked=True)
        with contextlib.suppress(OSError):  # a folder of somebody else: the index is made again by the next process
            save_index(tar, rows, mark[0])
    return found


def _index_rows(tar: Path) -> Iterator[Row]:
    """A row for every member, with its checksum: the whole tar is read.

    Raises:
        DataError: the members of a key do not stand side by side, or two are of one extension; names the key.
    """
    seen: set[str] = set()
    current, extensions, loose = "", set[str](), 0
    for name, offset, size in members(tar):
        key, extension = split_key(name)
        if not extension:
            loose += 1
            continue
        if key != current:
            if key in seen:
                raise DataError(
                    f"{tar}: key {key!r} comes again after other keys: it is there twice, or its members do not stand "
                    f"side by side; write the shard again, sorted by name"
                )
            seen.add(key)
            current, extensions = key, set()
        if extension in extensions:
            raise DataError(f"{tar}: key {key!r} has two members .{extension}; write the shard again")
        extensions.add(extension)
        yield offset, size, _checksum(tar, offset, size), len(seen) - 1, name.encode()
    if loose:
        print(f"ra-blip: {tar}: {loose} members are not called key.extension and belong to no sample", file=sys.stderr)


def _checksum(tar: Path, offset: int, size: int) -> int:
    crc = 0
    for at in range(0, size, _CHUNK):
        crc = zlib.crc32(read_at(tar, offset + at, min(_CHUNK, size - at)), crc)
    return crc


def save_index(tar: Path, rows: Sequence[Row], size: int) -> None:
    """Write the index of a tar of ``size`` bytes beside it. Raises OSError where that folder cannot be written."""
    body = TarIndex.array(rows)
    last = (size, 0, zlib.crc32(body.tobytes()), rows[-1][3] + 1 if rows else 0, b"")
    path = TarIndex.beside(tar)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as out:
            np.save(out, np.append(body, np.array([last], body.dtype)))
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _manifest(root: Path, shards: Sequence[Path]) -> dict[str, Any] | None:
    """What ``pack`` wrote of a whole set; None for the shards of another program."""
    path = root / MANIFEST
    if not path.is_file():
        return None
    value = _object(path.read_text(encoding="utf-8", errors="replace"), str(path))
    listed = value["shards"] if isinstance(value.get("shards"), dict) else {}
    there = {tar.name: tar.stat().st_size for tar in shards}
    if listed != there:
        names = sorted(name for name in listed.keys() | there.keys() if listed.get(name) != there.get(name))
        raise DataError(f"{root}: {MANIFEST} and the shards here differ in {', '.join(names[:3])}; get the set again")
    return value


def _text(tar: Path, index: TarIndex, row: Row) -> str:
    try:
        return index.read(tar, row).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{tar}: member {row[4].decode()!r} is not UTF-8 (byte {error.start + 1})") from None


def _item(record: dict[str, Any], image: str | None) -> Item:
    """A record of `pack` or of another program; of the latter a field may be anything."""
    fields = (record.get(field) for field in ("text", "title", "source"))
    text, title, source = (found.strip() or None if isinstance(found, str) else None for found in fields)
    return Item(str(record.get("id")), text, title, image, source)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
