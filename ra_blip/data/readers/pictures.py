"""A folder of pictures: any depth, captions from ``name.txt`` (else ``name.json``) beside ``name.jpg``."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ra_blip.data.readers.captions import SPLITS, CaptionDataset, Picture
from ra_blip.records import parse_json

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
OTHER_ENDINGS = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")  # pictures that this package does not open
_LOOKED_AT = 200  # folders that are searched for a first picture


class PictureFolder(CaptionDataset):
    """Pictures below a folder, told by the ending of their names; the "files" form of img2dataset is of this kind.

    Folders ``train``, ``val`` and ``test`` right below the root are splits; without them all is for training. A
    picture's id is its path below the root. Pictures without a caption are items, too, but nothing to pretrain on.
    Files with other endings are companions or no concern of this reader, and hidden files and folders are passed over.
    Linked folders are followed, and read once however often they are linked.
    """

    name = "pictures"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By a picture in one of the first folders."""
        walk = itertools.islice(os.walk(root), _LOOKED_AT)
        return any(file.lower().endswith(ENDINGS) for _, _, files in walk for file in files)

    @property
    def splits(self) -> tuple[str, ...]:
        """The folders with such names; ``train`` where there are none."""
        return tuple(split for split in SPLITS if (self.root / split).is_dir()) or ("train",)

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        inside, seen = self.root / split, set[str]()
        for folder, below, files in os.walk(inside if inside.is_dir() else self.root, followlinks=True):
            below[:] = sorted(one for one in below if not one.startswith("."))
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            for file in sorted(one for one in files if not one.startswith(".")):
                path = Path(folder, file)
                if path.suffix.lower() in ENDINGS:
                    yield from self._one(path)
                elif path.suffix.lower() in OTHER_ENDINGS:
                    self.problems.report("unknown format", str(path), "not a JPEG, PNG or WebP picture; convert it")

    def _one(self, path: Path) -> Iterator[tuple[str, Picture]]:
        name = path.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            self.problems.report("not UTF-8", str(path), "its name is not UTF-8; rename it")
            return
        if not path.is_file():
            self.problems.report("missing image", str(path), "a link that leads nowhere, or no file")
            return
        try:
            beside = {ending: path.with_suffix(f".{ending}") for ending in ("txt", "json")}
            said = caption({ending: file.read_bytes() for ending, file in beside.items() if file.is_file()})
        except UnicodeError:
            self.problems.report("not UTF-8", str(path), "its caption is not UTF-8")
        except (json.JSONDecodeError, RecursionError):
            self.problems.report("not JSON", str(path), f"{path.stem}.json beside it is not JSON")
        else:
            words = self._words([] if said is None else [said], str(path))
            yield str(path), Picture(name, str(path), words)


def caption(parts: Mapping[str, bytes]) -> Any:
    """The caption among the files beside a picture, by their endings: ``txt``, else ``caption`` of ``json``.

    Returns:
        None where there is none.

    Raises:
        UnicodeError: not UTF-8.
        json.JSONDecodeError: not JSON.
    """
    if "txt" in parts:
        return parts["txt"].decode("utf-8-sig")
    found = parse_json(parts["json"].decode("utf-8-sig")) if "json" in parts else None
    return found.get("caption") if isinstance(found, dict) else None
