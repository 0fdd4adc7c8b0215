"""WebQA's pictures: one row ``image id TAB base64`` each in ``imgs.tsv``, found through a line index beside it."""

from __future__ import annotations

import bisect
import functools
import os
from pathlib import Path

from ra_blip.containers import WEBQA_IDS
from ra_blip.data.readers.layout import Unusable

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
        if not image_id.isdecimal():
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
        candidates = (tsv.with_suffix(".lineidx"), tsv.with_suffix(".lineidx.new"))
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise Unusable("missing lineidx", f"{candidates[0]} is not there, so that no picture in {tsv} can be found")
        self.path = found
        self._read()
        self._probe(tsv)

    def offset(self, image_id: int) -> int | None:
        """Where the row of a picture begins; None where the index has none."""
        if self.by_id is not None:
            return self.by_id.get(image_id)
        line = image_id % WEBQA_IDS
        return self.offsets[line] if line < len(self.offsets) else None

    def end(self, offset: int) -> int:
        """Where the next row begins; for the last row the file's size, and more where the row is cut."""
        place = bisect.bisect_right(self.offsets, offset)
        return self.offsets[place] if place < len(self.offsets) else max(self.last_end, offset + 1)

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")
            rows = [[int(part) for part in line.split()] for line in lines if line.strip()]
        except ValueError as error:
            raise Unusable("wrong lineidx", f"{self.path}: not a line index ({error})") from None
        columns = {len(row) for row in rows}
        self.by_id: dict[int, int] | None = {row[0]: row[1] for row in rows} if columns == {2} else None
        self.offsets = sorted(row[-1] for row in rows)
        ordered = self.by_id is not None or all(
            row[0] == offset for row, offset in zip(rows, self.offsets, strict=True)
        )
        if columns not in ({1}, {2}) or not ordered:
            raise Unusable("wrong lineidx", f"{self.path}: expected one growing offset, or id and offset, a line")

    def _probe(self, tsv: Path) -> None:
        """Look at the ids of some rows, and whether the last one is whole."""
        rows = list(self.by_id.items()) if self.by_id is not None else list(enumerate(self.offsets))
        last = max(rows, key=lambda row: row[1])
        self.last_end = self.size
        with tsv.open("rb") as file:
            for wanted, offset in [*rows[:: max(1, len(rows) // PROBES)], last]:
                if offset >= self.size:
                    continue  # truncated, which is told for each picture
                file.seek(offset)
                name = file.read(_ID_BYTES).partition(b"\t")[0]
                found = int(name) if name.isdigit() else -1
                if wanted != (found if self.by_id is not None or found < 0 else found % WEBQA_IDS):
                    raise Unusable("wrong lineidx", f"{self.path} is not the index of {tsv}: byte {offset} is no row")
                if offset == last[1]:
                    file.seek(-1, os.SEEK_END)
                    base64_length = self.size - offset - len(name) - 1
                    if file.read(1) != b"\n" and base64_length % 4:
                        self.last_end = self.size + 1
