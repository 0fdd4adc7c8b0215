"""Tar shards as img2dataset and webdataset write them: ``00000.tar`` with ``KEY.jpg``, ``KEY.txt``, ``KEY.json``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from ra_blip.containers import members, read_at, split_key
from ra_blip.data.readers.captions import SPLITS, CaptionDataset, Picture
from ra_blip.data.readers.pictures import ENDINGS, caption
from ra_blip.errors import DataError


class Img2Dataset(CaptionDataset):
    """``*.tar`` in the folder, or in ``train``, ``val`` and ``test`` below it; read in place, nothing is extracted.

    The members of a key stand together; its picture is the first JPEG, PNG or WebP of them, its caption ``KEY.txt``,
    else ``caption`` of ``KEY.json``. Pictures are named ``00000.tar#000000012.jpg``, and a key is an id. Without a
    caption a picture is an item, too. A shard that is damaged or cut, that holds anything but plain files, or another
    number of pictures than the ``00000_stats.json`` beside it says, is reported as ``damaged shard``.
    """

    name = "img2dataset"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By a tar file; one beside a manifest is :class:`~ra_blip.data.readers.packed.Packed`."""
        if (root / "manifest.json").is_file():
            return False
        return any(any(folder.glob("*.tar")) for folder in (root, *(root / split for split in SPLITS)))

    @property
    def splits(self) -> tuple[str, ...]:
        """The folders with such names that hold shards; ``train`` for shards in the root."""
        return tuple(split for split in SPLITS if self._shards(split)) or ("train",)

    def _shards(self, split: str) -> list[Path]:
        return sorted((self.root / split).glob("*.tar"))

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        for shard in self._shards(split) or sorted(self.root.glob("*.tar")):
            yield from self._shard(shard)

    def _shard(self, path: Path) -> Iterator[tuple[str, Picture]]:
        count = 0
        for key, group in itertools.groupby(self._members(path), key=lambda member: split_key(member[0])[0]):
            where = f"{path}#{key}"
            parts: dict[str, tuple[str, bytes]] = {}
            for name, data in group:
                if (extension := split_key(name)[1]) in parts:
                    self.problems.report("duplicate id", where, f"a second member .{extension}; the first one stays")
                parts.setdefault(extension, (name, data))
            images = [name for name, _ in parts.values() if name.lower().endswith(ENDINGS)]
            if not images:
                self.problems.report("missing image", where, f"key {key!r} has no picture, only {', '.join(parts)}")
                continue
            count += 1
            try:
                said = caption({ending: data for ending, (_, data) in parts.items()})
            except UnicodeError:
                self.problems.report("not UTF-8", where, "the caption is not UTF-8")
            except (json.JSONDecodeError, RecursionError):
                self.problems.report("not JSON", where, f"{key}.json is not JSON")
            else:
                yield where, Picture(key, f"{path}#{images[0]}", self._words([] if said is None else [said], where))
        self._compare(path, count)

    def _members(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Name of each member of a shard, with the bytes of those that may hold its caption."""
        try:
            for name, offset, size in members(path):
                yield name, read_at(path, offset, size) if split_key(name)[1] in ("txt", "json") else b""
        except DataError as error:
            self.problems.report("damaged shard", str(path), f"the rest of it is lost: {error}")

    def _compare(self, path: Path, count: int) -> None:
        """Compare the number of pictures with the one that img2dataset wrote down."""
        beside = path.with_name(f"{path.stem}_stats.json")
        try:
            expected = json.loads(beside.read_text(encoding="utf-8")).get("successes") if beside.is_file() else None
        except (OSError, ValueError, AttributeError):
            expected = f"nothing readable in {beside.name}"
        if expected is not None and expected != count:
            self.problems.report("damaged shard", str(path), f"{count} pictures, written were {expected}")
