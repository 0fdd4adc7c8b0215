"""Frozen picture features, computed once: in memory always, on disk where a folder is given."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ra_blip.errors import OutputError


class FeatureStore:
    """Features by picture, bf16, as the frozen tower gives them (before any trained norm).

    On disk a shard is a ``.npy`` of uint16 (the bits of bf16) beside a ``.json`` of content hashes, renamed into
    place last, so that a killed run leaves whole shards only. The folder is keyed by tower and preprocessing.

    Args:
        compute: paths -> (B, N, W) features of those pictures.
        key: names what makes the features: weights and preprocessing.
        folder: where shards are kept; None keeps features in memory only.
        batch: pictures per call of ``compute``.
    """

    def __init__(
        self, compute: Callable[[Sequence[str]], Tensor], key: str, folder: Path | None = None, batch: int = 64
    ) -> None:
        self.compute, self.key, self.batch = compute, key, batch
        self._memory: dict[str, Tensor] = {}
        self._shards: dict[str, tuple[np.ndarray, int]] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}
        self.folder = folder / key[:16] if folder is not None else None
        if self.folder is not None:
            self._open(self.folder)

    def __call__(self, images: Sequence[str]) -> Tensor:
        """Features (B, N, W) float32 of pictures by path, computing those that are not there yet."""
        keys = [self._hash(image) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if not self._known(key)}
        names = list(missing)
        for start in range(0, len(names), self.batch):
            part = names[start : start + self.batch]
            found = self.compute([missing[name] for name in part]).to(torch.bfloat16).cpu()
            if self.folder is None:
                self._memory.update(zip(part, found, strict=True))
            else:
                self._append(self.folder, part, found)
        return torch.stack([self._get(key) for key in keys]).float()

    def _known(self, key: str) -> bool:
        return key in self._memory or key in self._shards

    def _get(self, key: str) -> Tensor:
        if key in self._memory:
            return self._memory[key]
        shard, row = self._shards[key]
        return torch.from_numpy(np.array(shard[row])).view(torch.bfloat16)

    def _hash(self, image: str) -> str:
        """Content hash of a file, remembered while its size and time stay."""
        try:
            stat = os.stat(image)
        except OSError:
            return image  # opening it will raise the typed error
        mark = (image, stat.st_size, stat.st_mtime_ns)
        if mark not in self._hashes:
            self._hashes[mark] = hashlib.sha256(Path(image).read_bytes()).hexdigest()
        return self._hashes[mark]

    def _open(self, folder: Path) -> None:
        for listing in sorted(folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):  # a damaged shard: its pictures are computed again
                self._attach(listing, json.loads(listing.read_text(encoding="utf-8")))

    def _attach(self, listing: Path, names: list[str]) -> None:
        shard = np.load(listing.with_suffix(".npy"), mmap_mode="r")
        if len(shard) == len(names):
            self._shards.update({name: (shard, row) for row, name in enumerate(names)})

    def _append(self, folder: Path, names: list[str], features: Tensor) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:16]}"
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as out:
                np.save(out, features.contiguous().view(torch.uint16).numpy())
            os.replace(out.name, folder / f"{stem}.npy")
            with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as listing:
                json.dump(names, listing)
            os.replace(listing.name, folder / f"{stem}.json")
        except OSError as error:
            raise OutputError(f"{folder}: features cannot be written ({error.strerror or error})") from None
        self._attach(folder / f"{stem}.json", names)
