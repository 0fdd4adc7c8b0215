"""Frozen picture features, computed once: kept on disk where a folder is given, else in memory as far as they fit."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ra_blip.containers import Mark, stamp
from ra_blip.errors import ConfigError, OutputError
from ra_blip.images import read_picture

OPEN_SHARDS = 128  # mapped at a time
MEMORY = 4 << 30  # bytes of features that a store without a folder keeps
HASHES = 1 << 20  # content hashes remembered by name
SAME = 0.05  # of the largest feature: what computing a picture in other company may change


class FeatureStore:
    """Features by picture, as the frozen tower gives them (before any trained norm).

    A picture is known by its content, wherever it lies (a container included). On disk a shard is a ``.npy`` of uint16
    (the bits, as numpy has no bf16), which is mapped and not read, beside a ``.json`` of content hash -> CRC-32 that is
    renamed into place last, so that a killed run leaves whole shards only. A checksum is compared when a picture is
    first read; what is damaged is said, and computed again. The folder is keyed by tower and preprocessing.

    Only what is the same each time can be kept: with a folder, the first picture is computed twice, and a transform
    that is random (augmentation, dropout) is refused. Other views of a picture are pictures of their own, files that
    ``data/views.py`` writes.

    Args:
        compute: names of pictures -> (B, N, W) features.
        key: names what makes the features: weights and preprocessing.
        folder: where shards are kept; None keeps features in memory only.
        batch: pictures per call of ``compute``.
        dtype: what features are kept in.
        memory: bytes of features kept in memory; beyond, those that were not asked for the longest time go.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[str]], Tensor],
        key: str,
        folder: Path | None = None,
        batch: int = 64,
        dtype: torch.dtype = torch.bfloat16,
        memory: int = MEMORY,
    ) -> None:
        self.compute, self.key, self.batch, self.dtype, self.memory = compute, key, batch, dtype, memory
        self._memory: collections.OrderedDict[str, Tensor] = collections.OrderedDict()
        self._held = 0  # bytes in it
        self._places: dict[str, tuple[Path, int, int]] = {}  # content hash -> listing, row in its shard, CRC-32
        self._verified: set[str] = set()
        self._steady = False
        self.folder = folder / key[:16] if folder is not None else None
        if self.folder is not None:
            for listing in sorted(self.folder.glob("*.json")):
                self._attach(listing)

    def __call__(self, images: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Features (B, N, W) float32 of pictures by name, computing those that are not there yet.

        On the device that is named, else the CPU; what is computed there does not leave it on the way.

        Raises:
            ImageError: a picture is missing.
            ConfigError: the transform is random.
            OutputError: the folder cannot be written.
        """
        keys = [self.key_of(image) for image in images]
        names = dict(zip(keys, images, strict=True))
        found = {key: features for key in names if (features := self.read(key)) is not None}
        missing = [key for key in names if key not in found]
        place = device or torch.device("cpu")
        if found and place.type != "cpu":  # in one copy
            found = dict(zip(found, torch.stack(list(found.values())).to(place), strict=True))
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            features = self._compute([names[key] for key in part])
            found.update(zip(part, features, strict=True))
            if self.folder is None:
                self._remember(part, features.cpu())
            else:
                self._append(self.folder, part, features.cpu())
        return torch.stack([found[key].to(place) for key in keys]).float()

    def holds(self, image: str) -> bool:
        """Whether a picture's features are kept; can be asked from any thread. Raises :class:`ImageError`."""
        key = self.key_of(image)
        return key in self._places or key in self._memory

    def _compute(self, images: Sequence[str]) -> Tensor:
        features = self.compute(images).to(self.dtype)
        if self.folder is not None and not self._steady:
            again = self.compute(images[:1]).to(self.dtype)[0].float()
            first = features[0].float()
            if (again - first).abs().max() > SAME * first.abs().max():
                raise ConfigError(
                    f"{images[0]}: computed twice, its features differ: a random transform cannot be kept in "
                    f"{self.folder}; leave the folder out, or give each view a file of its own"
                )
            self._steady = True
        return features

    def read(self, key: str) -> Tensor | None:
        """Kept features (N, W) by content hash; None where there are none, or they are damaged, which is said."""
        if key not in self._places:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)
        listing, row, crc = self._places[key]
        shard = listing.with_suffix(".npy")
        try:
            mapped = _mapped(shard, stamp(shard))
        except (OSError, ValueError, EOFError) as error:
            self._forget([name for name, place in self._places.items() if place[0] == listing], listing, str(error))
            return None
        bits = np.array(mapped[row : row + 1])
        if key not in self._verified and zlib.crc32(bits.data) != crc:
            self._forget([key], listing, "checksum differs")
            return None
        self._verified.add(key)
        return torch.from_numpy(bits[0]).view(self.dtype)

    def key_of(self, image: str) -> str:
        """Content hash of a picture, remembered while size and time of its file or container stay."""
        return _content_hash(image, stamp(image))

    def _remember(self, names: Sequence[str], features: Tensor) -> None:
        for name, one in zip(names, features, strict=True):
            self._memory[name] = one.clone()  # a part of a batch would keep the whole of it
            self._held += one.nbytes
        while self._held > self.memory:
            self._held -= self._memory.popitem(last=False)[1].nbytes

    def _attach(self, listing: Path) -> None:
        try:
            names = json.loads(listing.read_text(encoding="utf-8"))
            self._places.update({str(key): (listing, int(row), int(crc)) for key, (row, crc) in names.items()})
        except (OSError, ValueError, TypeError, AttributeError):  # or the form of an earlier version
            print(f"ra-blip: {listing}: not a list of features; what it named is computed again", file=sys.stderr)

    def _forget(self, keys: Sequence[str], listing: Path, reason: str) -> None:
        """Say that features are damaged, and strike them off their list."""
        many = f"features of {len(keys)} picture{'s' if len(keys) > 1 else ''}"
        print(f"ra-blip: {listing.with_suffix('.npy')}: {many} damaged ({reason}), computed again", file=sys.stderr)
        for key in keys:
            del self._places[key]
        left = {name: place[1:] for name, place in self._places.items() if place[0] == listing}
        with contextlib.suppress(OSError):  # then the next process says it again
            _write(listing, lambda out: out.write(json.dumps(left).encode()))

    def _append(self, folder: Path, names: Sequence[str], features: Tensor) -> None:
        bits = features.contiguous().view(torch.uint16).numpy()
        listing = folder / f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:16]}.json"
        rows = {name: (row, zlib.crc32(bits[row])) for row, name in enumerate(names)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(listing.with_suffix(".npy"), lambda out: np.save(out, bits))
            _write(listing, lambda out: out.write(json.dumps(rows).encode()))
        except OSError as error:
            raise OutputError(f"{folder}: features cannot be written ({error.strerror or error})") from None
        self._places.update({name: (listing, *place) for name, place in rows.items()})


@functools.lru_cache(HASHES)
def _content_hash(image: str, mark: Mark | None) -> str:
    return hashlib.sha256(read_picture(image)).hexdigest()


@functools.lru_cache(OPEN_SHARDS)
def _mapped(shard: Path, mark: Mark | None) -> np.ndarray:
    return np.asarray(np.load(shard, mmap_mode="r", allow_pickle=False))


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place, then rename it there; its permissions are those of any new file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as out:
        write(out)
    os.replace(part, path)
