"""Files of weights: what is read, and everything that is refused without being executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoints import view
from ra_blip.models.lazy_tensors import open_tensors
from tests.models.released import STAGE2, lavis, save


class Executed:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("old", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, old: bool) -> None:
    torch.save({"model": {"x": Executed(tmp_path / "ran")}}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Executed(tmp_path / "ran")))
    for name in ("a.pth", "b.bin"):
        with pytest.raises(CheckpointError, match=r"nothing in it was executed \((GLOBAL posix|Unsupp)") as caught:
            open_tensors(tmp_path / name)
        assert "weights_only" not in str(caught.value), "no advice on how to execute it"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1, -2000])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    save_file(lavis(STAGE2), tmp_path / "cut.safetensors")
    save(lavis(STAGE2), tmp_path / "cut.pth")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=name):
            open_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"a": 3}}, "holds no weights by name"),
        ({"model": {"a": torch.ones(2), "b": [1]}}, "'b' is not a tensor but a list"),
        ([torch.ones(2)], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"encoder.x": torch.ones(2)}, "no layout known here"),
    ],
)
def test_wrong_files(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        view(open_tensors(tmp_path / "x.pth"))


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("hello")
    for name, said in (
        ("words.txt", "not a whole safetensors file"),
        ("nothing", "no such file"),
        (".", "not a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=said):
            open_tensors(tmp_path / name)


@pytest.mark.parametrize("places", [{"x": "../other.safetensors"}, {"x": "a/b"}, {"x": 3}, [1], {"x": "gone.bin"}])
def test_an_index_cannot_lead_elsewhere(tmp_path: Path, places: Any) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError):
        open_tensors(tmp_path / "in")


def test_wrappers_of_training_programs_are_taken_off(tmp_path: Path) -> None:
    plain = lavis(STAGE2)
    torch.save({"state_dict": {f"module.{name}": value for name, value in plain.items()}}, tmp_path / "a.pth")
    torch.save(plain, tmp_path / "b.bin", _use_new_zipfile_serialization=False)
    torch.save({"model": plain, "epoch": 3}, tmp_path / "c.ckpt")
    for name in ("a.pth", "b.bin", "c.ckpt"):
        entries = open_tensors(tmp_path / name).entries
        assert entries.keys() == plain.keys()
        assert all(torch.equal(entry.read(), plain[key]) for key, entry in entries.items())
