"""What a checkpoint costs beside its peer: the same tensors by safetensors' own ``save_file``, flushed as well.

    python benchmarks/checkpoint.py [--megabytes 768] [--rounds 5] [--folder FOLDER] [--background] [--out FILE]

Ours computes a checksum of each file while it writes it, flushes, writes a manifest and renames. Both sides write two
files, weights and moments, on the disk of ``--folder``; they take turns within a round, what was written goes before
the next turn, and the figure is the median over the rounds of theirs / ours.

``--background``: what saving in the background could spare. A step would still wait for a copy of the tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ra_blip.records import write_text
from ra_blip.training import checkpoint

SHAPE = (3072, 768)  # of a Q-Former's feed-forward matrix in fp32: 9.4 MB
State = dict[str, dict[str, Tensor]]


def state_of(megabytes: int) -> State:
    """Weights, and AdamW's two moments of each, of so many megabytes in all; values are drawn."""
    draw = torch.Generator().manual_seed(0)
    count = max(round(megabytes * 1e6 / (3 * 4 * SHAPE[0] * SHAPE[1])), 1)
    weights = {f"layers.{i}.ffn.weight": torch.randn(SHAPE, generator=draw) for i in range(count)}
    kinds = ("exp_avg", "exp_avg_sq")
    return {"weights": weights, "optimizer": {f"{k}|{kind}": v + 1 for k, v in weights.items() for kind in kinds}}


def ours(folder: Path, tensors: State) -> None:
    """As a run saves."""
    checkpoint.save(folder, 1, tensors, {}, keep=0)


def theirs(folder: Path, tensors: State) -> None:
    """Plain files, durable: each flushed, and their folder."""
    folder.mkdir()
    for stem, given in tensors.items():
        save_file(given, folder / f"{stem}.safetensors")
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def copied(folder: Path, tensors: State) -> None:
    """What a step waits for where another thread writes."""
    for given in tensors.values():
        for value in given.values():
            value.clone()


def seconds(variant: Callable[[Path, State], None], folder: Path, tensors: State) -> tuple[float, float]:
    """Of one call, by the clock and of the processor, in a folder that is not there before and after."""
    os.sync()
    begun, busy = time.perf_counter(), time.process_time()
    variant(folder, tensors)
    spent = time.perf_counter() - begun, time.process_time() - busy
    shutil.rmtree(folder, ignore_errors=True)
    return spent


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", metavar="FOLDER", help="on the disk to write to (default: the temporary folder)")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--out", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tensors = state_of(given.megabytes)
    size = sum(value.nbytes for part in tensors.values() for value in part.values()) / 1e9
    spent: dict[str, list[tuple[float, float]]] = {
        "ours": [],
        "theirs": [],
        **({"copy": []} if given.background else {}),
    }
    variants = {"ours": ours, "theirs": theirs, "copy": copied}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for number in range(given.rounds + 1):
            for name in list(spent)[:: 1 if number % 2 else -1]:
                spent[name].append(seconds(variants[name], Path(place) / "written", tensors))
    kept = {name: values[1:] for name, values in spent.items()}  # the first round is for warming
    ratios = [peer[0] / own[0] for peer, own in zip(kept["theirs"], kept["ours"], strict=True)]
    found: dict[str, object] = {"torch": torch.__version__, "safetensors": safetensors.__version__}
    found |= {"gigabytes": round(size, 3), "rounds": given.rounds, "load": os.getloadavg()[0]}
    found |= {"ratio": round(statistics.median(ratios), 3)}
    found |= {"lowest": round(min(ratios), 3), "highest": round(max(ratios), 3)}
    for name, values in kept.items():
        clock, busy = (statistics.median(one) for one in zip(*values, strict=True))
        found |= {f"{name}_gb_per_second": round(size / clock, 3), f"{name}_processor_seconds": round(busy, 3)}
    print(json.dumps(found, indent=1))
    if given.out:
        write_text(given.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
