"""Where numbers go: JSON lines always, a progress bar for people; Weights & Biases and TensorBoard where asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import resource
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ra_blip.config import RunConfig
from ra_blip.errors import MissingExtra
from ra_blip.records import write_text

PEAKS = {  # TFLOP/s of dense products by torch's device name, of NVIDIA's data sheets: bf16 or fp16, fp32 without TF32
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), (312.0, 19.5)),
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), (989.0, 67.0)),
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA GeForce RTX 4090": (165.0, 82.6),
}
COUNTED = 100  # one step of so many: pictures may be computed in some epochs and kept in others


class Meter:
    """Model FLOPs utilisation: the products of a step, as torch counts them, over what the device could do meanwhile.

    What the optimizer does is not counted; layers that gradient checkpointing computes twice are, twice. Source of the
    measure: Chowdhery et al. 2022 (PaLM), appendix B.

    Args:
        device: of this rank; None, or one whose peak is not known, as a CPU's: nothing is counted.
        precision: of autocast.
    """

    def __init__(self, device: torch.device | None, precision: str) -> None:
        name = torch.cuda.get_device_name(device) if device and device.type == "cuda" else ""
        half, single = PEAKS.get(name, (0.0, 0.0))
        self.peak = 1e12 * (single if precision == "fp32" else half)
        self.flops = 0.0

    @contextlib.contextmanager
    def counting(self, step: int) -> Iterator[None]:
        """Around forward and backward of every step; the first, and then one of a hundred, is counted."""
        if not self.peak or (self.flops and step % COUNTED):
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self.flops = float(counter.get_total_flops())

    def used(self, seconds: float) -> dict[str, float]:
        """``mfu`` from 0 to 1 of a step that took so long; nothing where it is not known."""
        return {"mfu": self.flops / (seconds * self.peak)} if self.flops else {}


class Tracker:
    """``log(numbers, step)`` behind one face.

    Args:
        out: the run's folder, with ``log.jsonl``; lines of steps after ``start`` (from a run that was killed) are cut.
        start: first step of this session.
        run: its steps, its stage's name, and where its log goes.
        quiet: nothing is written or shown, as on ranks other than 0.

    Raises:
        MissingExtra: the recipe names a tracker that is not installed.
    """

    def __init__(self, out: Path, start: int, run: RunConfig, quiet: bool = False) -> None:
        self.quiet = quiet
        if quiet:
            return
        path = out / "log.jsonl"
        if path.exists():
            write_text(path, [line for line in path.open(encoding="utf-8") if _step(line) <= start])
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=run.train.steps,
            initial=start,
            desc=run.stage.name,
            dynamic_ncols=True,
            mininterval=1.0,
            file=sys.stderr,
        )
        self._board: Any = None
        self._wandb: Any = None
        if run.log.tensorboard:
            self._board = _optional("torch.utils.tensorboard", "tensorboard").SummaryWriter(
                str(out / "tensorboard"), purge_step=start + 1
            )
        if run.log.wandb:
            self._wandb = _optional("wandb", "wandb").init(
                project=run.log.wandb,
                mode=run.log.wandb_mode,
                dir=str(out),
                id=_run_id(out),
                resume="allow",
                config=dataclasses.asdict(run),
            )

    def log(self, numbers: dict[str, Any], step: int) -> None:
        """Append one line for ``step`` (from 1), move the bar, tell the other trackers."""
        if self.quiet:
            return
        line = {"step": step, **{key: _short(value) for key, value in numbers.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        shown = {key: f"{value:.3g}" for key, value in numbers.items() if key.endswith("loss") and value is not None}
        shown |= {"wait": f"{numbers['data_seconds']:.2g}s"} if numbers.get("data_seconds", 0) > 0.05 else {}
        shown |= {"damaged": f"{numbers['damaged']:,}"} if "damaged" in numbers else {}
        shown |= {"mfu": f"{numbers['mfu']:.1%}"} if "mfu" in numbers else {}
        self._bar.set_postfix({**shown, "memory": f"{numbers.get('memory_gib', 0):.3g}G"}, refresh=False)
        self._bar.update(step - self._bar.n)
        told = {key: value for key, value in numbers.items() if isinstance(value, (int, float))}
        if self._board is not None:
            for key, value in told.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(told, step=step)

    def close(self) -> None:
        """Close file, bar and trackers."""
        if self.quiet:
            return
        self._file.close()
        self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def memory_gib() -> float:
    """The most memory used so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(package, "track") from None


def _run_id(out: Path) -> str:
    """The name by which Weights & Biases knows this folder's run again when it goes on."""
    path = out / "wandb_id"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a torn last line


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
