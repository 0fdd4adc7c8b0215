"""WebQA's pictures: one row ``image id TAB base64`` each in ``imgs.tsv``, found through a line index beside it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from ra_blip.containers import TSV_INDEXES, WEBQA_IDS, mark_of, row_index, row_offset, row_offsets
from ra_blip.data.readers.raw import Unusable
from ra_blip.errors import DataError

PROBES = 8
_ID_BYTES = 24  # enough for an id and the tab behind it


class TsvPictures:
    """Which pictures ``imgs.tsv`` holds, told from the line index without reading them.

    The index is ``imgs.lineidx`` (a byte offset a line) or UniVL-DR's ``imgs.lineidx.new`` (``image id TAB offset``);
    which of the two a file is, its columns say. A few rows are looked at: whether the index belongs to the file at all.

    Args:
        tsv: the file of pictures; it need not be there.
    """

    def __init__(self, tsv: Path) -> None:
        self.tsv = tsv

    def find(self, image_id: str) -> str:
        """The name of a picture, ``imgs.tsv#image id``.

        Raises:
            Unusable: ``missing image`` (no file of pictures, or no row for it), ``missing lineidx``, ``wrong lineidx``
                (not one of this file) or ``truncated tsv`` (the file ends before the end of the row).
        """
        index = self._index
        if not (image_id.isascii() and image_id.isdecimal()):
            raise Unusable("malformed record", f"image id {image_id!r} is not a whole number")
        offset = index.offset(int(image_id))
        if offset is None:
            raise Unusable("missing image", f"{index.path} has no line for picture {image_id}")
        if index.end(offset) > index.size:
            raise Unusable("truncated tsv", f"{self.tsv} ends before the end of picture {image_id}; copy it again")
        return f"{self.tsv}#{image_id}"

    @functools.cached_property
    def _loaded(self) -> _Index | Unusable:
        try:
            return _Index(self.tsv)
        except Unusable as error:
            return error
        except OSError as error:
            return Unusable("missing image", f"{error.filename}: cannot be read ({error.strerror})")

    @property
    def _index(self) -> _Index:
        if isinstance(self._loaded, Unusable):
            raise Unusable(self._loaded.kind, str(self._loaded))
        return self._loaded


class _Index:
    """Byte offsets of the rows, by line number or by image id."""

    def __init__(self, tsv: Path) -> None:
        if not tsv.is_file():
            raise Unusable("missing image", f"no pictures: {tsv} is not there")
        self.size = tsv.stat().st_size
        found = row_index(tsv)
        if found is None:
            wanted = tsv.with_suffix(TSV_INDEXES[0])
            raise Unusable("missing lineidx", f"{wanted} is not there, so that no picture in {tsv} can be found")
        self.path = found
        try:
            self.rows = row_offsets(found, mark_of(found))
        except DataError as error:
            raise Unusable("wrong lineidx", str(error)) from None
        self.starts = np.sort(list(self.rows.values()) if isinstance(self.rows, dict) else self.rows)
        if not (isinstance(self.rows, dict) or np.array_equal(self.starts, self.rows)):
            raise Unusable("wrong lineidx", f"{found}: the offsets do not grow; get the file again")
        self._probe(tsv)

    def offset(self, image_id: int) -> int | None:
        """Where the row of a picture begins; None where the index has none."""
        return row_offset(self.rows, image_id)

    def end(self, offset: int) -> int:
        """Where the next row begins; for the last row the file's size, and more where the row is cut."""
        place = int(self.starts.searchsorted(offset, "right"))
        return int(self.starts[place]) if place < len(self.starts) else max(self.last_end, offset + 1)

    def _probe(self, tsv: Path) -> None:
        """Look at the ids of some rows, and whether the last one is whole."""
        by_id = isinstance(self.rows, dict)
        rows = list(self.rows.items()) if isinstance(self.rows, dict) else list(enumerate(self.rows.tolist()))
        last = max(rows, key=lambda row: row[1])
        self.last_end = self.size
        with tsv.open("rb") as file:
            for wanted, offset in [*rows[:: max(1, len(rows) // PROBES)], last]:
                if offset >= self.size:
                    continue  # truncated, which is told for each picture
                file.seek(offset)
                name = file.read(_ID_BYTES).partition(b"\t")[0]
                found = int(name) if name.isdigit() else -1
                if wanted != (found if by_id or found < 0 else found % WEBQA_IDS):
                    raise Unusable("wrong lineidx", f"{self.path} is not the index of {tsv}: byte {offset} is no row")
                if offset == last[1]:
                    file.seek(-1, os.SEEK_END)
                    base64_length = self.size - offset - len(name) - 1
                    if file.read(1) != b"\n" and base64_length % 4:
                        self.last_end = self.size + 1
