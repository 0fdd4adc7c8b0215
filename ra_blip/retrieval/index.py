"""The knowledge index: FAISS vectors and the items they stand for, as one folder with a manifest.

Vectors are compared by inner product; on the unit vectors of the encoder that is the cosine. A vector's number in
FAISS is a hash of its item's id, so no order is shared between the vector file and the item store, and none can slip.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ra_blip.errors import ConfigError, DataError, IndexMismatch, MissingExtra, RetrievalError
from ra_blip.records import Hit, Item, by_id, read_items
from ra_blip.retrieval import index_folder
from ra_blip.retrieval.embed import Encoder, Vectors, embed_items, embed_to_shards

FLAT_LIMIT = 200_000  # up to here exact search is fast enough that nothing is gained by approximating


def import_faiss() -> Any:
    """The ``faiss`` module. Raises :class:`MissingExtra` where neither extra brought it."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtra("faiss", "cpu") from None


def choose_factory(count: int) -> str:
    """The FAISS factory string for ``count`` vectors: exact up to 200,000, then inverted lists of 8-bit codes."""
    if count <= FLAT_LIMIT:
        return "Flat"
    return f"IVF{2 ** round(np.log2(4 * np.sqrt(count)))},SQ8"


class KnowledgeIndex:
    """Items and their vectors: build, add, remove, save, load, search.

    Attributes:
        items: the items by id.
        kinds: how many there are of each kind.
        fingerprint: names the model and preprocessing that made the vectors.
        dimension: length of a vector.
        factory: FAISS factory string of the index.
    """

    def __init__(self, index: Any, items: Iterable[Item], fingerprint: Mapping[str, str | int], factory: str) -> None:
        """Join a FAISS index to its items; use :meth:`build` or :meth:`load` instead."""
        self._index = index
        self.items = {item.id: item for item in items}
        self.kinds = Counter(item.kind for item in self.items.values())
        self._by_key = {_key(item.id): item for item in self.items.values()}
        if len(self._by_key) != len(self.items):
            raise DataError("two item ids have the same 63-bit hash; rename one of them")
        self.fingerprint = dict(fingerprint)
        self.factory = factory
        self.dimension = int(index.d)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        model: Encoder,
        factory: str = "auto",
        batch_size: int = 64,
        work: str | Path | None = None,
    ) -> KnowledgeIndex:
        """Embed ``items`` and index them.

        Args:
            items: the knowledge base.
            model: the encoder.
            factory: ``auto`` (:func:`choose_factory`) or any FAISS factory string; product quantisers are written
                ``PQ32np``, for without ``np`` FAISS spends minutes in polysemous training.
            batch_size: items per encoder call.
            work: folder for resumable vector shards, for bases that take long to embed; in memory where None.

        Raises:
            RetrievalError: no items, or the encoder gave vectors that are not numbers.
            DataError: an id is used twice.
            ConfigError: FAISS does not know the factory string, or it needs more items than there are.
        """
        if not items:
            raise RetrievalError("the knowledge base is empty: nothing to index")
        _refuse_repeats([item.id for item in items])
        kind = choose_factory(len(items)) if factory == "auto" else factory
        index = _make(kind, model.dimension)
        vectors = embed_to_shards(items, model, work, batch_size) if work else embed_items(items, model, batch_size)
        try:
            index.train(vectors)
            index.add_with_ids(vectors, _keys(item.id for item in items))
        except RuntimeError as error:
            raise ConfigError(f"FAISS cannot build {kind!r} from {len(items)} items: {_reason(error)}") from None
        return cls(index, items, model.fingerprint, kind)

    def check(self, model: Encoder) -> None:
        """Refuse a model that did not make these vectors. Raises :class:`IndexMismatch` naming both values."""
        asked = dict(model.fingerprint)
        for name in sorted(self.fingerprint.keys() | asked.keys()):
            mine, other = self.fingerprint.get(name), asked.get(name)
            if mine != other:
                raise IndexMismatch(f"the index was built with {name} {mine!r}, the model has {other!r}; rebuild it")

    def add(self, items: Sequence[Item], model: Encoder, batch_size: int = 64) -> None:
        """Embed and add ``items``; search finds them at once.

        Raises:
            IndexMismatch: another model built the index.
            DataError: an id is in the index already, or given twice.
        """
        self.check(model)
        _refuse_repeats([item.id for item in items])
        for item in items:
            if item.id in self.items:
                raise DataError(f"item {item.id!r} is in the index already; remove it first to replace it")
        grown = {_key(item.id): item for item in items}
        if len(grown) != len(items) or grown.keys() & self._by_key.keys():
            raise DataError("two item ids have the same 63-bit hash; rename one of them")
        if items:
            vectors = embed_items(items, model, batch_size)
            self._index.add_with_ids(vectors, _keys(item.id for item in items))
            self.items.update(by_id(items))
            self.kinds.update(item.kind for item in items)
            self._by_key.update(grown)

    def remove(self, ids: Iterable[str]) -> None:
        """Take items out; search no longer finds them.

        Raises:
            RetrievalError: an id is not in the index, none would be left, or this kind of index cannot remove.
        """
        chosen = list(dict.fromkeys(ids))
        self._require(chosen)
        if len(chosen) == len(self.items):
            raise RetrievalError("removing every item would leave an empty index; delete its folder instead")
        if not chosen:
            return
        faiss = import_faiss()
        keys = _keys(chosen)
        try:
            # an array selector: the only one that the hash table of inverted lists takes
            removed = self._index.remove_ids(faiss.IDSelectorArray(len(keys), faiss.swig_ptr(keys)))
        except RuntimeError:
            raise RetrievalError(f"an index of kind {self.factory!r} cannot remove items; rebuild it") from None
        if removed != len(chosen):
            raise RetrievalError(f"{removed} of {len(chosen)} items were removed; the index is damaged, rebuild it")
        self.kinds.subtract(self.items[name].kind for name in chosen)
        for name in chosen:
            del self.items[name], self._by_key[_key(name)]

    def search(self, vectors: npt.ArrayLike, k: int, stage: str = "search") -> list[list[Hit]]:
        """The ``k`` items of highest inner product per row, best first; equal scores (to 1e-6) in order of id.

        Args:
            vectors: (B, D) float32.
            k: hits per row; an approximate index may find fewer.
            stage: written into the hits.

        Raises:
            RetrievalError: k is below 1 or above the number of items, or a vector is not finite or not (B, D).
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise RetrievalError(f"query vectors have shape {queries.shape}, the index needs (B, {self.dimension})")
        if not np.isfinite(queries).all():
            raise RetrievalError("a query vector holds values that are not numbers; the model's weights are damaged")
        if not 1 <= k <= len(self):
            raise RetrievalError(f"k is {k}, but the index holds {len(self)} items; choose k from 1 to {len(self)}")
        if not len(queries):
            return []
        scores, keys = self._nearest(queries, k)
        return [self._hits(*row, k, stage) for row in zip(scores, keys, strict=True)]

    def _nearest(self, queries: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """At least ``k`` columns, and as many more as have the score of the k-th, so that ties are cut by id."""
        wanted = min(k + 8, len(self))
        while True:
            scores, keys = self._index.search(queries, wanted)
            full = keys[:, -1] >= 0
            tied = np.round(scores[full, -1], 6) >= np.round(scores[full, k - 1], 6)
            if wanted == len(self) or not tied.any():
                return scores, keys
            wanted = min(2 * wanted, len(self))

    def _hits(self, scores: Vectors, keys: npt.NDArray[np.int64], k: int, stage: str) -> list[Hit]:
        # FAISS fills up with -1 where it found too few; that must never reach the item store
        found = [(round(float(s), 6), self._by_key[int(key)]) for s, key in zip(scores, keys, strict=True) if key >= 0]
        found.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [Hit(item, score, stage) for score, item in found[:k]]

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """The stored vectors of items, (len(ids), D) float32 (decoded, where the index holds codes).

        Raises:
            RetrievalError: an id is not in the index, or this kind of index cannot give vectors back.
        """
        self._require(ids)
        try:
            found = [self._index.reconstruct(_key(name)) for name in ids]
        except RuntimeError:
            raise RetrievalError(f"an index of kind {self.factory!r} cannot give vectors back") from None
        return np.asarray(found, dtype=np.float32).reshape(len(ids), self.dimension)

    def _require(self, ids: Iterable[str]) -> None:
        missing = [name for name in ids if name not in self.items]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise RetrievalError(f"item {missing[0]!r}{more}: not in the index of {len(self)} items")

    def save(self, folder: str | Path) -> None:
        """Write the index folder whole or not at all; an index that was there stays until the new one is complete.

        Raises:
            OutputError: the folder cannot be written, or holds files that are no part of an index.
        """
        faiss = import_faiss()
        header = {
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "metric": "inner_product",
            "factory": self.factory,
            "count": len(self),
            "ids": _ids_digest(self.items),
        }
        index_folder.write(
            Path(folder), header, self.items.values(), lambda path: faiss.write_index(self._index, str(path))
        )

    @classmethod
    def load(cls, folder: str | Path) -> KnowledgeIndex:
        """Read an index folder, every byte of it checked against the manifest.

        Raises:
            DataError: no index there, or a file is missing, truncated or altered.
            IndexMismatch: another format version or metric, or vectors and items do not belong together.
        """
        faiss = import_faiss()
        path, header = index_folder.open_checked(Path(folder))
        if header["metric"] != "inner_product":
            raise IndexMismatch(f"{folder}: metric {header['metric']!r}, this program searches by 'inner_product'")
        try:
            index = faiss.read_index(str(path / index_folder.VECTORS))
        except RuntimeError as error:
            raise DataError(f"{path / index_folder.VECTORS}: not a FAISS index ({_reason(error)})") from None
        items = read_items(path / index_folder.ITEMS)
        for name, found in (("dimension", int(index.d)), ("count", int(index.ntotal))):
            if found != header[name]:
                raise IndexMismatch(f"{folder}: {name} of the vectors is {found}, the manifest says {header[name]}")
        if len(items) != header["count"] or _ids_digest(item.id for item in items) != header["ids"]:
            raise IndexMismatch(f"{folder}: {len(items)} items do not match the {header['count']} of the manifest")
        return cls(index, items, header["fingerprint"], header["factory"])


def _make(factory: str, dimension: int) -> Any:
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(f"FAISS does not know the factory string {factory!r} ({_reason(error)})") from None
    lists = faiss.try_extract_index_ivf(index)
    if lists is None or isinstance(faiss.downcast_index(index), faiss.IndexRefine):
        return faiss.IndexIDMap2(index)
    # inverted lists keep ids of their own; inside an IDMap their removals would shift the numbering
    lists.nprobe = min(lists.nlist, max(16, lists.nlist // 32))
    lists.set_direct_map_type(faiss.DirectMap.Hashtable)
    return index


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def _keys(names: Iterable[str]) -> npt.NDArray[np.int64]:
    return np.array([_key(name) for name in names], dtype=np.int64)


def _ids_digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _refuse_repeats(ids: Sequence[str]) -> None:
    repeated = [name for name, times in Counter(ids).items() if times > 1]
    if repeated:
        raise DataError(f"item id {repeated[0]!r} is used more than once; ids must be unique")


def _reason(error: RuntimeError) -> str:
    """The last part of a FAISS message, which begins with function and file names of its own."""
    return str(error).strip().splitlines()[-1].rsplit(": ", 1)[-1]
