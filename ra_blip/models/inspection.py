"""What a checkpoint holds, for people and programs; values are not read."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ra_blip.models.checkpoint_tables import GROUPS, LAYOUTS, group_of
from ra_blip.models.checkpoints import View, view
from ra_blip.models.folder import locate, names_of
from ra_blip.models.lazy_tensors import Tensors, open_tensors
from ra_blip.models.load_report import shapes_in_short


@dataclasses.dataclass
class Inspection:
    """A checkpoint that was looked at.

    Attributes:
        tensors: names, shapes, formats as they stand there.
        view: the same under our names, with what is missing and what nobody can explain.
        parameters: numbers in its weights, one that stands there twice counted once.
    """

    tensors: Tensors
    view: View
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """``layout``, ``tensors``, ``parameters``, ``missing``, ``unexplained``, ``dtypes``, ``shapes``."""
        return {
            "layout": self.view.layout,
            "tensors": self.view.count,
            "parameters": self.parameters,
            "missing": self.view.missing,
            "unexplained": self.view.unexplained,
            "dtypes": dict(Counter(entry.dtype for entry in self.tensors.entries.values())),
            "shapes": {name: list(entry.shape) for name, entry in self.tensors.entries.items()},
        }

    def __str__(self) -> str:
        formats = Counter(entry.dtype for entry in self.tensors.entries.values())
        lines = [
            f"{self.tensors.path}: {self.view.layout}",
            f"{self.view.count:,} tensors, {self.parameters:,} parameters, "
            + ", ".join(f"{dtype} {count:,}" for dtype, count in formats.items()),
        ]
        here = Counter(group_of(name) for name in self.view.stored)
        lines += [f"  {GROUPS.get(group, group)}: {count}" for group, count in here.items()]
        lines += [f"  not in it: {GROUPS[group]}" for group in LAYOUTS[self.view.layout].may if group not in here]
        lines += [f"missing: {name}" for name in self.view.missing]
        lines += [f"unexplained: {name}" for name in self.view.unexplained]
        lines += [f"ignored: {name} ({why})" for name, why in self.view.ignored.items()]
        shapes = {name: (entry.shape, entry.dtype) for name, entry in self.tensors.entries.items()}
        return "\n".join([*lines, *shapes_in_short(shapes)])


def inspect(path: str | Path) -> Inspection:
    """Look at a checkpoint. Raises :class:`CheckpointError`: it is damaged, or of no layout that is known."""
    tensors = open_tensors(locate(path))
    found = view(tensors)
    if found.layout == "native" and found.path.is_dir() and (wanted := names_of(found.path)) is not None:
        found.missing = sorted(wanted - tensors.entries.keys())
        found.unexplained = sorted(tensors.entries.keys() - wanted)
    weights = [part for stored in found.stored.values() for part in stored.choices[0].values()]
    parameters = sum(math.prod(weight.shape) for weight in weights if "int" not in weight.dtype)  # not counters
    return Inspection(tensors, found, parameters)
