"""FAISS against brute force; save, load, edit; every kind of damage is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import ConfigError, DataError, IndexMismatch, OutputError, RABlipError, RetrievalError
from ra_blip.records import Item
from ra_blip.retrieval import index_folder
from ra_blip.retrieval.index import KnowledgeIndex, choose_factory
from tests.crash import Crash, Crashing
from tests.fakes import FakeModel, world

pytest.importorskip("faiss")


class VectorModel(FakeModel):
    """Gives every item the vector listed for its id."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        super().__init__(dimension=len(next(iter(vectors.values()))))
        self.vectors = vectors

    def encode_items(self, items: Sequence[Item]) -> Any:
        return np.array([self.vectors[item.id] for item in items], dtype=np.float32)


def random_model(count: int, dimension: int = 16, seed: int = 0) -> tuple[list[Item], VectorModel]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(f"item-{n:03d}", text=f"text {n}") for n in range(count)]
    return items, VectorModel({item.id: vector for item, vector in zip(items, vectors, strict=True)})


def brute_force(model: VectorModel, ids: Sequence[str], queries: Any, k: int) -> list[list[str]]:
    table = np.stack([model.vectors[name] for name in ids]).astype(np.float64)
    order = np.argsort(-(queries.astype(np.float64) @ table.T), axis=1)[:, :k]
    return [[ids[i] for i in row] for row in order]


def ids_of(hits: Any) -> list[list[str]]:
    return [[hit.item.id for hit in row] for row in hits]


@pytest.mark.parametrize("queries", [1, 40])
def test_flat_equals_brute_force_through_save_add_and_remove(tmp_path: Path, queries: int) -> None:
    items, model = random_model(120)
    asked = np.random.default_rng(1).standard_normal((queries, 16)).astype(np.float32)
    index = KnowledgeIndex.build(items[:100], model)
    assert index.factory == "Flat"
    assert ids_of(index.search(asked, 7)) == brute_force(model, [i.id for i in items[:100]], asked, 7)
    index.add(items[100:], model)
    index.remove(["item-003", "item-110", "item-050"])
    left = [i.id for i in items if i.id not in ("item-003", "item-110", "item-050")]
    assert ids_of(index.search(asked, 9)) == brute_force(model, left, asked, 9)
    index.save(tmp_path / "index")
    loaded = KnowledgeIndex.load(tmp_path / "index")
    assert len(loaded) == 117 and loaded.items == index.items and loaded.kinds == index.kinds == {"text": 117}
    assert loaded.search(asked, 117) == index.search(asked, 117)
    loaded.add([Item("item-003", image="a.png")], model)
    assert loaded.kinds == {"text": 117, "image": 1} and len(loaded.search(asked, 118)[0]) == 118
    top = loaded.search(asked[:1], 1)[0][0]
    assert top.score == pytest.approx(float(asked[0] @ model.vectors[top.item.id]), abs=1e-5)
    assert top.stage == "search"
    np.testing.assert_array_equal(
        loaded.vectors_of(["item-111", "item-003"]), [model.vectors["item-111"], model.vectors["item-003"]]
    )


def test_equal_scores_are_ordered_and_cut_by_id() -> None:
    rng = np.random.default_rng(0)
    names = [f"same-{n:02d}" for n in rng.permutation(60)]
    items = [Item(name, text="x") for name in names] + [Item("best", text="x")]
    model = VectorModel({**{name: [1.0, 0.0] for name in names}, "best": [0.0, 1.0]})
    index = KnowledgeIndex.build(items, model)
    found = ids_of(index.search([[0.1, 1.0]], 5))
    assert found == [["best", "same-00", "same-01", "same-02", "same-03"]]
    index.remove(["same-01"])
    assert ids_of(index.search([[0.1, 1.0]], 3)) == [["best", "same-00", "same-02"]]


@pytest.mark.parametrize("factory", ["IVF4,SQ8", "IVF4,Flat"])
def test_inverted_lists_add_remove_and_give_no_phantom(tmp_path: Path, factory: str) -> None:
    items, model = random_model(200)
    index = KnowledgeIndex.build(items[:190], model, factory)
    index.add(items[190:], model)
    index.remove([f"item-{n:03d}" for n in range(0, 200, 2)])
    index.save(tmp_path / "index")
    loaded = KnowledgeIndex.load(tmp_path / "index")
    own = [loaded.search(model.vectors[f"item-{n:03d}"][None], 1)[0][0].item.id for n in range(1, 200, 2)]
    assert own == [f"item-{n:03d}" for n in range(1, 200, 2)]
    np.testing.assert_allclose(loaded.vectors_of(["item-195"])[0], model.vectors["item-195"], atol=0.02)
    loaded._index.nprobe = 1
    hits = loaded.search(model.vectors["item-001"][None], 100)[0]
    assert 0 < len(hits) < 100  # one list of four: FAISS fills up with -1, which no hit comes from
    assert all(int(hit.item.id[-1]) % 2 for hit in hits)


def test_auto_choice() -> None:
    assert choose_factory(200_000) == "Flat"
    assert choose_factory(1_000_000) == "IVF4096,SQ8"


def test_pictures_are_found_after_the_folder_and_pictures_move_together(tmp_path: Path) -> None:
    items, _ = world(tmp_path / "a")
    KnowledgeIndex.build(items, FakeModel()).save(tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    for item in KnowledgeIndex.load(tmp_path / "b" / "index").items.values():
        assert item.image is None or Path(item.image).is_file()


def test_input_errors(tmp_path: Path) -> None:
    items, _ = world(tmp_path)
    model = FakeModel()
    with pytest.raises(RetrievalError, match="knowledge base is empty"):
        KnowledgeIndex.build([], model)
    with pytest.raises(DataError, match=r"'velora\.view' is used more than once"):
        KnowledgeIndex.build([*items, items[0]], model)
    with pytest.raises(ConfigError, match="'Nonsense7'"):
        KnowledgeIndex.build(items, model, "Nonsense7")
    with pytest.raises(ConfigError, match="30 items"):
        KnowledgeIndex.build(items, model, "IVF64,Flat")
    index = KnowledgeIndex.build(items, model)
    query = model.encode_items(items[:1])
    for k in (0, 31):
        with pytest.raises(RetrievalError, match=rf"k is {k}, .* 30 items"):
            index.search(query, k)
    with pytest.raises(RetrievalError, match="not numbers"):
        index.search(query * np.nan, 1)
    with pytest.raises(RetrievalError, match=r"\(1, 5\)"):
        index.search(query[:, :5], 1)
    with pytest.raises(DataError, match="in the index already"):
        index.add([items[4]], model)
    with pytest.raises(RetrievalError, match="'nowhere' and 1 more"):
        index.remove(["velora.view", "nowhere", "neither"])
    with pytest.raises(RetrievalError, match="empty index"):
        index.remove(list(index.items))
    with pytest.raises(IndexMismatch, match="'weights-0', the model has 'weights-1'"):
        index.check(FakeModel(seed=1))
    with pytest.raises(IndexMismatch, match="weights-1"):
        index.add([Item("new", text="new")], FakeModel(seed=1))
    assert len(index) == 30 and index.search(query, 30)[0][0].item.id == "velora.view"
    assert index.search(np.empty((0, 256)), 3) == []


def saved(tmp_path: Path) -> Path:
    KnowledgeIndex.build([Item(f"i{n}", text=f"word{n}") for n in range(12)], FakeModel(dimension=16)).save(
        tmp_path / "index"
    )
    return tmp_path / "index"


@pytest.mark.parametrize("name", [index_folder.VECTORS, index_folder.ITEMS, index_folder.MANIFEST])
def test_every_bit_flip_cut_or_loss_is_found(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path) / name
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 150):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises((DataError, IndexMismatch)):
            KnowledgeIndex.load(path.parent)
    for length in np.linspace(0, len(good) - 1, 10).astype(int):
        if name == index_folder.MANIFEST and length == len(good) - 1:
            continue  # the final newline says nothing
        path.write_bytes(good[:length])
        with pytest.raises((DataError, IndexMismatch)):
            KnowledgeIndex.load(path.parent)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        KnowledgeIndex.load(path.parent)
    path.write_bytes(good)
    assert len(KnowledgeIndex.load(path.parent)) == 12


def test_message_of_truncation_names_both_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path) / index_folder.VECTORS
    size = path.stat().st_size
    os.truncate(path, 40)
    with pytest.raises(DataError, match=rf"index\.faiss: 40 bytes, the manifest says {size}"):
        KnowledgeIndex.load(path.parent)


def test_other_version_and_no_index(tmp_path: Path) -> None:
    path = saved(tmp_path) / index_folder.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(IndexMismatch, match="version 99, this program reads version 1"):
        KnowledgeIndex.load(path.parent)
    with pytest.raises(DataError, match="no index here"):
        KnowledgeIndex.load(tmp_path / "nothing")


def test_items_and_vectors_of_two_indexes_do_not_mix(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    header = json.loads((folder / index_folder.MANIFEST).read_text())
    lines = (folder / index_folder.ITEMS).read_text().splitlines(keepends=True)
    (folder / index_folder.ITEMS).write_text("".join(lines[:-1]))
    header.pop("digest")
    header["files"][index_folder.ITEMS] = index_folder._stamp(folder / index_folder.ITEMS)
    header["digest"] = index_folder._digest(header)
    (folder / index_folder.MANIFEST).write_text(json.dumps(header))
    with pytest.raises(IndexMismatch, match="11 items do not match the 12"):
        KnowledgeIndex.load(folder)


RENAME, RMTREE = os.rename, shutil.rmtree


@pytest.mark.parametrize("crash_at", range(1, 8))
def test_a_crash_while_saving_never_loses_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    folder = saved(tmp_path)
    model = FakeModel(dimension=16)
    index = KnowledgeIndex.load(folder)
    index.add([Item("new", text="new")], model)
    step = Crashing(crash_at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", step(RENAME))
        patch.setattr(shutil, "rmtree", step(RMTREE))
        patch.setattr(index_folder, "write_jsonl", step(index_folder.write_jsonl))
        patch.setattr(index_folder, "write_text", step(index_folder.write_text))
        try:
            index.save(folder)
            crashed = False
        except Crash:
            crashed = True
    assert crashed == (step.steps == crash_at)
    assert len(KnowledgeIndex.load(folder)) in (12, 13)
    index.save(folder)
    assert len(KnowledgeIndex.load(folder)) == 13
    assert sorted(os.listdir(tmp_path)) == ["index"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "notes.txt").write_text("mine")
    index = KnowledgeIndex.load(folder)
    with pytest.raises(OutputError, match=r"notes\.txt"):
        index.save(folder)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError):
            index.save(place)
    assert (folder / "notes.txt").read_text() == "mine"


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RABlipError) as caught:
        KnowledgeIndex.load(tmp_path / "two\nlines")
    assert "\n" not in str(caught.value)


def test_build_through_shards_gives_the_same_index(tmp_path: Path) -> None:
    items, _ = world(tmp_path)
    direct = KnowledgeIndex.build(items, FakeModel())
    resumed = KnowledgeIndex.build(items, FakeModel(), work=tmp_path / "work")
    queries = FakeModel().encode_items(items)
    assert resumed.search(queries, 5) == direct.search(queries, 5)
