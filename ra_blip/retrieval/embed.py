"""Stream a knowledge base or questions through the encoder: vectors in memory, or resumable shards on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ra_blip.containers import stamp
from ra_blip.errors import OutputError, RetrievalError
from ra_blip.records import Item, Question, write_text

Vectors = npt.NDArray[np.float32]
SHARD_FORMAT = 1


class Encoder(Protocol):
    """What retrieval asks of a model: one encoder for questions and items, and a name for what made a vector."""

    @property
    def dimension(self) -> int:
        """Length D of a vector."""

    @property
    def fingerprint(self) -> Mapping[str, str | int]:
        """Names weights and preprocessing; equal fingerprints mean comparable vectors."""

    def encode_question(self, questions: Sequence[Question]) -> Any:
        """(B, D) float32 tensor, L2-normalised."""

    def encode_items(self, items: Sequence[Item]) -> Any:
        """(B, D) float32 tensor, L2-normalised."""


def batches(keys: Sequence[tuple[str, int]], size: int) -> list[list[int]]:
    """Positions in batches of at most ``size``, each of one kind and of similar length, which saves padding.

    Args:
        keys: (kind, length) of every record.
        size: largest batch.
    """
    order = sorted(range(len(keys)), key=lambda i: (*keys[i], i))
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda i: keys[i][0])]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def item_key(item: Item) -> tuple[str, int]:
    """The batching key of an item."""
    return item.kind, len(item.full_text)


def question_key(question: Question) -> tuple[str, int]:
    """The batching key of a question."""
    return "image" if question.image else "text", len(question.text)


def to_numpy(values: Any) -> Vectors:
    """A tensor on any device and of any float type, or an array, as float32 numpy."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()  # numpy knows neither devices nor bfloat16
    return np.asarray(values, dtype=np.float32)


def embed_items(items: Sequence[Item], model: Encoder, batch_size: int = 64, progress: bool = True) -> Vectors:
    """Vectors of ``items`` in their order, (N, D) float32.

    Raises:
        RetrievalError: a vector holds a value that is not a number, naming the item.
    """
    return _embed(items, model.encode_items, item_key, model.dimension, batch_size, progress)


def embed_questions(questions: Sequence[Question], model: Encoder, batch_size: int = 64) -> Vectors:
    """Vectors of ``questions`` in their order, (N, D) float32; errors as :func:`embed_items`."""
    return _embed(questions, model.encode_question, question_key, model.dimension, batch_size, False)


def _embed(
    records: Sequence[Any],
    encode: Callable[[Sequence[Any]], Any],
    key: Callable[[Any], tuple[str, int]],
    dimension: int,
    batch_size: int,
    progress: bool,
) -> Vectors:
    vectors = np.empty((len(records), dimension), dtype=np.float32)
    disable = None if progress else True  # None: shown on a terminal only
    with tqdm(total=len(records), desc="embed", unit="item", disable=disable) as bar:
        for positions in batches([key(record) for record in records], batch_size):
            found = to_numpy(encode([records[i] for i in positions]))
            if found.shape != (len(positions), dimension):
                raise RetrievalError(f"the encoder gave shape {found.shape}, expected {(len(positions), dimension)}")
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                bad = records[positions[int(np.argmin(finite))]]
                raise RetrievalError(f"the vector of {bad.id!r} is not finite; the model's weights are damaged")
            vectors[positions] = found
            bar.update(len(positions))
    return vectors


def embed_to_shards(
    items: Sequence[Item], model: Encoder, folder: str | Path, batch_size: int = 64, shard_size: int = 10_000
) -> Vectors:
    """Vectors of a large knowledge base, kept on disk as they are made: a killed run continues at the next shard.

    ``folder`` receives ``plan.json`` (what is embedded, by which model), ``ids.json``, ``vectors-00000.npy`` and so on,
    and last ``manifest.json`` with each shard's checksum; every file appears whole or not at all. Shards in the
    folder that were made from other items, by another model or with another shard size are discarded.

    Returns:
        (N, D) float32.

    Raises:
        RetrievalError: as :func:`embed_items`.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    starts = range(0, len(items), shard_size)
    known = _begin(folder, _plan(items, model, shard_size), [item.id for item in items])
    parts, shards = [], {}
    for number, start in enumerate(tqdm(starts, desc="shards", unit="shard", disable=None)):
        path = folder / f"vectors-{number:05d}.npy"
        part = items[start : start + shard_size]
        vectors = _read_shard(path, (len(part), model.dimension), known.get(path.name))
        if vectors is None:
            vectors = embed_items(part, model, batch_size, progress=False)
            _write_shard(path, vectors)
        shards[path.name] = hashlib.sha256(vectors.tobytes()).hexdigest()
        parts.append(vectors)
    write_text(folder / "manifest.json", json.dumps({"format": SHARD_FORMAT, "count": len(items), "shards": shards}))
    return np.concatenate(parts) if parts else np.empty((0, model.dimension), dtype=np.float32)


def _plan(items: Sequence[Item], model: Encoder, shard_size: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for item in items:
        # replaced under the same name, it is another picture; that one is missing, the encoder says
        mark = stamp(item.image) if item.image else None
        digest.update(repr((item.id, item.title, item.text, item.image, mark)).encode())
    return {
        "format": SHARD_FORMAT,
        "fingerprint": dict(model.fingerprint),
        "dimension": model.dimension,
        "count": len(items),
        "shard_size": shard_size,
        "items": digest.hexdigest(),
    }


def _begin(folder: Path, plan: dict[str, Any], ids: list[str]) -> dict[str, str]:
    """Make ``folder`` ready for ``plan`` and return the checksums of the shards of a finished run."""
    try:
        found = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == plan:
        try:
            shards: dict[str, str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
            return shards
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    for stale in [folder / "manifest.json", *sorted(folder.glob("vectors-*.npy"))]:
        stale.unlink(missing_ok=True)
    write_text(folder / "ids.json", json.dumps(ids, ensure_ascii=False))
    write_text(folder / "plan.json", json.dumps(plan))
    return {}


def _read_shard(path: Path, shape: tuple[int, int], digest: str | None) -> Vectors | None:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if vectors.shape != shape or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        return None
    if digest is not None and hashlib.sha256(vectors.tobytes()).hexdigest() != digest:
        return None
    return np.asarray(vectors, dtype=np.float32)


def _write_shard(path: Path, vectors: Vectors) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out:
            np.save(out, vectors, allow_pickle=False)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
