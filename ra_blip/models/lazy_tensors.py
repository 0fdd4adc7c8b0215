"""Tensors of a checkpoint by name: shapes are known at once, values are read one by one when they are asked for."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ra_blip.errors import CheckpointError

PICKLES = (".pth", ".pt", ".bin")
_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder; each may be cut into shards listed in an index
_WRAPPERS = ("model", "state_dict", "module")  # training programs put the weights beside optimizer and epoch
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """One tensor: its shape, its dtype by name (``float32``), and how its values are had."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, value: Tensor) -> LazyTensor:
        """A tensor that is in memory, or mapped into it."""
        return cls(tuple(value.shape), str(value.dtype).removeprefix("torch."), lambda: value)


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file or folder holds."""

    path: Path
    entries: dict[str, LazyTensor]


def open_tensors(path: str | Path) -> Tensors:
    """Open a checkpoint: a ``.safetensors`` or PyTorch file, or a folder with one, whole or in shards.

    PyTorch files are mapped, not read, and only tensors and plain containers are unpickled: code in a file is refused
    and never runs. Files of PyTorch before 1.6, which cannot be mapped, are read whole.

    Raises:
        CheckpointError: nothing there, damaged, truncated, holding anything but tensors, or a shard is missing.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    return Tensors(path, _open_file(path))


def _open_file(path: Path) -> dict[str, LazyTensor]:
    pickled = path.suffix in PICKLES or zipfile.is_zipfile(path)
    entries = _open_pickle(path) if pickled else _open_safetensors(path)
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in entries):  # saved out of a data-parallel wrapper
        entries = {name.removeprefix("module."): value for name, value in entries.items()}
    return entries


def _open_folder(folder: Path) -> Tensors:
    for name in _FILES:
        if (folder / name).is_file():
            return Tensors(folder, _open_file(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return Tensors(folder, _open_shards(index))
    raise CheckpointError(f"{folder}: not a checkpoint, neither {' nor '.join(_FILES)} is here")


def _open_shards(index: Path) -> dict[str, LazyTensor]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({type(error).__name__}: {error})") from None
    shards = {}
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:  # an index must not lead out of its folder
            raise CheckpointError(f"{index}: shard {file!r} is not a plain file name")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index.parent / file}: this shard is missing; {index.name} lists it")
        shards[file] = _open_file(index.parent / file)
    for name, file in places.items():
        if name not in shards[file]:
            raise CheckpointError(f"{index.parent / file}: holds no {name!r}, which {index.name} lists there")
    return {name: shards[file][name] for name, file in places.items()}


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        handle: Any = safe_open(path, framework="pt")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (the handle is no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            try:
                value: Tensor = handle.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: {name} cannot be read ({error})") from None
            return value

        return read

    return {
        name: LazyTensor(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()), reader(name))
        for name, part in slices.items()
    }


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols; what cannot be read is an error anyway
            loaded = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # what a foreign or damaged file raises in there is not foreseeable
        asked = re.search(r"GLOBAL \S+|Unsupported operand \d+", str(error))  # for what there is no place in weights
        said = asked[0] if asked else (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = said.partition(". ")[0]  # what follows is advice, some of it on how to run the code after all
        raise CheckpointError(
            f"{path}: not a whole PyTorch file of nothing but tensors; nothing in it was executed ({reason[:200]})"
        ) from None
    weights = loaded
    while isinstance(weights, dict) and not any(isinstance(value, Tensor) for value in weights.values()):
        weights = next((weights[key] for key in _WRAPPERS if isinstance(weights.get(key), dict)), None)
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: holds no weights by name, at the top or under {', '.join(_WRAPPERS)}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is not a tensor but a {type(value).__name__}")
    return {name: LazyTensor.of(value) for name, value in weights.items()}
