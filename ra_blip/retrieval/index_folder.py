"""The files of a knowledge index: written as one folder by rename, read only after every checksum agrees."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ra_blip.errors import DataError, IndexMismatch, OutputError
from ra_blip.folders import replacing, standing
from ra_blip.records import Item, write_jsonl, write_text

FORMAT = 1
VECTORS = "index.faiss"
ITEMS = "items.jsonl"
MANIFEST = "manifest.json"
HEADER = {"fingerprint": dict, "dimension": int, "metric": str, "factory": str, "count": int, "ids": str}


def write(folder: Path, header: dict[str, Any], items: Iterable[Item], write_vectors: Callable[[Path], None]) -> None:
    """Write an index folder beside its place and rename it there.

    See :func:`ra_blip.folders.replacing` for what a crash leaves.

    Raises:
        OutputError: not writable, or the folder holds files that are no part of an index.
    """
    folder = Path(os.path.abspath(folder))
    _refuse_foreign(folder)
    try:
        with replacing(folder) as fresh:
            write_vectors(fresh / VECTORS)
            # a sibling folder is equally deep, so that relative picture paths stay true after the rename
            write_jsonl(fresh / ITEMS, items)
            manifest = {"format": FORMAT, **header, "files": {name: _stamp(fresh / name) for name in (VECTORS, ITEMS)}}
            write_text(fresh / MANIFEST, json.dumps({**manifest, "digest": _digest(manifest)}, indent=1) + "\n")
    except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError where it cannot write
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[-1]
        raise OutputError(f"{folder}: the index cannot be written ({reason})") from None


def open_checked(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder to read and its manifest, after sizes and checksums agree.

    Raises:
        DataError: nothing there, or a file is missing, truncated or altered.
        IndexMismatch: another format version.
    """
    place = standing(folder)
    manifest = _read_manifest(place)
    for name, stamp in manifest["files"].items():
        path = place / name
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"{path}: missing; build the index again") from None
        if size != stamp["size"]:
            raise DataError(f"{path}: {size} bytes, the manifest says {stamp['size']}; build the index again")
        if _stamp(path)["sha256"] != stamp["sha256"]:
            raise DataError(f"{path}: altered since it was written (checksum differs); build the index again")
    return place, manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no index here ({MANIFEST} is missing); build one with 'ra-blip index'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a manifest ({error}); build the index again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DataError(f"{path}: not the manifest of an index; build the index again")
    if manifest["format"] != FORMAT:
        raise IndexMismatch(f"{path}: format version {manifest['format']!r}, this program reads version {FORMAT}")
    digest = manifest.pop("digest", None)
    whole = all(isinstance(manifest.get(name), kind) for name, kind in HEADER.items())
    if digest != _digest(manifest) or not whole or set(manifest.get("files", ())) != {VECTORS, ITEMS}:
        raise DataError(f"{path}: altered since it was written (checksum differs); build the index again")
    return manifest


def _refuse_foreign(folder: Path) -> None:
    """Saving replaces the folder, so that it must hold nothing but an index."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is a file; an index is a folder")
    try:
        foreign = sorted(set(os.listdir(folder)) - {VECTORS, ITEMS, MANIFEST})
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror})") from None
    if foreign:
        raise OutputError(f"{folder}: holds {foreign[0]!r}, which is no part of an index; choose another folder")


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
