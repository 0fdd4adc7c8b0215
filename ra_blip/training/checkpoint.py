"""Checkpoints that are whole or absent: files, then a manifest with sizes and checksums, then one rename."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.errors import CheckpointError, OutputError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")


def save(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write ``folder/step-N``: trained weights and buffers, optimizer moments, state. Older ones beyond ``keep`` go.

    Raises:
        OutputError: it cannot be written; what was complete before is untouched.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:07d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob(".step-*"):  # of a run that was killed while saving; a folder has one run at a time
            shutil.rmtree(torn)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}."))
        save_file(trained_state(model), temporary / "weights.safetensors")
        save_file(_moments(model, optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        files = {path.name: [path.stat().st_size, _crc(path)] for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    for old in list(complete(folder))[:-keep] if keep else []:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """Checkpoints of ``folder`` whose manifest agrees with their files, oldest first; others are passed over."""
    found = sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return [path for path in found if damage(path) is None]


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, crc) in files.items():
            file = path / name
            if file.stat().st_size != size:
                return f"{file} is {file.stat().st_size} bytes, its manifest says {size}"
            if _crc(file) != crc:
                return f"{file} was altered: its checksum is not the manifest's"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path / MANIFEST}: {error}"
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what :func:`save` wrote; returns the state. Raises :class:`CheckpointError` where tensors do not fit."""
    from safetensors.torch import load_file

    weights = load_file(path / "weights.safetensors")
    wanted = trained_state(model, own=True)
    if weights.keys() != wanted.keys():
        odd = sorted(weights.keys() ^ wanted.keys())[:3]
        raise CheckpointError(f"{path}: tensors {odd} ... are not the ones this run trains")
    with torch.no_grad():
        for name, value in weights.items():
            wanted[name].copy_(value)
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if f"{name}|exp_avg" in moments:
            optimizer.state[parameter] = {key: moments[f"{name}|{key}"] for key in ("exp_avg", "exp_avg_sq", "step")}
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def trained_state(model: nn.Module, own: bool = False) -> dict[str, Tensor]:
    """Trained parameters, and the buffers of parts that train, by name; ``own`` gives the tensors themselves."""
    trained: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            trained.update({f"{prefix}.{k}": b for k, b in module.named_buffers(recurse=False)})
    if own:
        return trained
    return {name: value.detach().clone().contiguous() for name, value in trained.items()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = value.detach().clone().contiguous()
    return out


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc
