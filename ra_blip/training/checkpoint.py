"""Checkpoints that are whole or absent: files, then a manifest with sizes and checksums, then one rename.

A folder of checkpoints holds ``step-0000100``, ``step-0000200`` ... and ``latest``, the name of the last one written.
Nothing here trusts that name: what is newest or best is found among those whose files agree with their manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.errors import CheckpointError, OutputError
from ra_blip.records import write_text

MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"
_NAME = re.compile(r"step-(\d+)")
_KINDS = {  # safetensors' names of number formats
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24  # bytes between two updates of the checksum: they are still in the processor's cache
_MARKED = 4096  # values of a frozen tensor that its mark looks at

Tensors = Mapping[str, Mapping[str, Tensor]]
Parts = Iterable["memoryview[int] | bytes"]


def save(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Write ``folder/step-N``. Checkpoints older than the last ``keep`` go (0 keeps all), but never the best one.

    Args:
        folder: of all checkpoints of a run; one run at a time writes there.
        step: steps done.
        tensors: file stem -> tensors by name, for example ``weights`` and ``optimizer``.
        state: JSON values; ``score``, the larger the better, makes a checkpoint a candidate for the best one.
        keep: how many.

    Raises:
        OutputError: it cannot be written; what was complete before is untouched, and nothing half-written stays.
    """
    target = folder / f"step-{step:07d}"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob(".step-*"):  # of a run that was killed while saving
            shutil.rmtree(torn)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}."))
        files: dict[str, Parts] = {f"{stem}.safetensors": _layout(given) for stem, given in tensors.items()}
        files[STATE] = [json.dumps({"step": step, **state}).encode()]
        written = {name: _write(temporary / name, parts) for name, parts in files.items()}
        _write(temporary / MANIFEST, [json.dumps({"step": step, "files": written}).encode()])
        _sync(temporary)
        if target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)
        _sync(folder)
        write_text(folder / LATEST, target.name + "\n")
        _prune(folder, keep)
    except OSError as error:
        needed = sum(value.nbytes for given in tensors.values() for value in given.values())
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); {_room(folder, needed)}") from None
    return target


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, if any, and what is wrong with each newer one."""
    passed_over: list[str] = []
    for path in reversed(_named(folder)):
        wrong = damage(path)
        if wrong is None:
            return path, passed_over
        passed_over.append(wrong)
    return None, passed_over


def best(folder: Path) -> Path | None:
    """The whole checkpoint with the highest score, the earlier of two equal ones; None where none has a score."""
    ranked = sorted(_scores(_named(folder)).items(), key=lambda pair: (-pair[1], pair[0]))
    return next((path for path, _ in ranked if damage(path) is None), None)


def complete(folder: Path) -> list[Path]:
    """Checkpoints of ``folder`` whose manifest agrees with their files, oldest first; others are passed over."""
    return [path for path in _named(folder) if damage(path) is None]


def damage(path: Path, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint, None if nothing is; not ``thorough``: presence and sizes only."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, crc) in files.items():
            file = path / name
            if file.stat().st_size != size:
                return f"{file} is {file.stat().st_size} bytes, its manifest says {size}"
            if thorough and _crc(file) != crc:
                return f"{file} was altered: its checksum is not the manifest's"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path / MANIFEST}: {error}"
    return None


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What :func:`save` was given: tensors by file stem and name, on the CPU, and the state with ``step``.

    Raises:
        CheckpointError: a file is not there or is not what it should be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from None
    return tensors, state


# ------------------------------------------------------------------ what a model gives


def trained_state(model: nn.Module, own: bool = False) -> dict[str, Tensor]:
    """Trained parameters, and the buffers of parts that train, by name; ``own`` gives the tensors themselves."""
    trained: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            trained.update({f"{prefix}.{k}": b for k, b in module.named_buffers(recurse=False)})
    if own:
        return trained
    return {name: value.detach().clone().contiguous() for name, value in trained.items()}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as ``parameter|key``, e.g. ``exp_avg``, ``exp_avg_sq`` and ``step`` of AdamW."""
    out: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = value.detach().clone().contiguous()
    return out


def frozen_marks(model: nn.Module) -> dict[str, int]:
    """One checksum a part (child) of the model over its frozen parameters: names, shapes, formats, sampled values.

    Frozen weights are not in a checkpoint: a run makes them again, and this says whether they are the same ones. Of
    each tensor at most 4,096 evenly spaced values count, so that an LLM of many gigabytes takes a second.
    """
    marks: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not parameter.is_meta:
            part = name.partition(".")[0]
            flat = parameter.detach().flatten()
            seen = flat[:: max(len(flat) // _MARKED, 1)].cpu().contiguous()
            crc = zlib.crc32(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode(), marks.get(part, 0))
            marks[part] = zlib.crc32(_bytes(seen), crc)
    return marks


# ------------------------------------------------------------------ files


def _named(folder: Path) -> list[Path]:
    """Checkpoints by name, oldest first, whole or not."""
    found = [(match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def _scores(paths: list[Path]) -> dict[Path, float]:
    scores = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            scores[path] = float(json.loads((path / STATE).read_text(encoding="utf-8"))["score"])
    return scores


def _prune(folder: Path, keep: int) -> None:
    """Delete what is older than the last ``keep`` whole ones, except the best. A look at sizes tells what is whole."""
    whole = [path for path in _named(folder) if damage(path, thorough=False) is None]
    scores = _scores(whole)
    kept = max(scores, key=lambda path: scores[path]) if scores else None
    for old in whole[:-keep] if keep else []:
        if old != kept:
            shutil.rmtree(old)


def _layout(tensors: Mapping[str, Tensor]) -> Iterator[memoryview[int] | bytes]:
    """A safetensors file in parts: the header's length, the header, each tensor's bytes, widest formats first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        value, start = tensors[name], end
        end += value.nbytes
        header[name] = {"dtype": _KINDS[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the values begin at a multiple of eight bytes
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield _bytes(tensors[name])


def _bytes(value: Tensor) -> memoryview[int]:
    """The memory of a tensor, without a copy where it is contiguous and on the CPU."""
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write(path: Path, parts: Parts) -> tuple[int, int]:
    """Write and flush a file to the disk -> (bytes, checksum), computed on the way."""
    size = crc = 0
    with path.open("wb", buffering=0) as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                crc = zlib.crc32(chunk, crc)
                while len(chunk):
                    chunk = chunk[file.write(chunk) :]
            size += len(part)
        os.fsync(file.fileno())
    return size, crc


def _sync(folder: Path) -> None:
    """Make a folder's entries durable, as fsync does for the content of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _room(folder: Path, needed: int) -> str:
    try:
        free = f", {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free"
    except OSError:
        free = ""
    return f"it needs {needed / 2**20:,.1f} MiB{free}"


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
