"""What became of every tensor when weights went from one layout to another."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable


@dataclasses.dataclass
class LoadReport:
    """Every tensor on either side is in one of these; what nobody can explain is an error and never gets here.

    Attributes:
        sources: (path, layout, number of tensors) of each checkpoint, in the order of reading.
        loaded: names taken over as they are.
        adapted: name -> what was changed on the way.
        fresh: names on the receiving side that nothing was found for: they keep their start.
        formats: change of number format (``float16 -> float32``) -> how many tensors.
        ignored: names of the checkpoint that were not used -> why.
        kept: part (``vision.model`` ...) -> the model or folder that it was loaded from before.
    """

    sources: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    loaded: list[str] = dataclasses.field(default_factory=list)
    adapted: dict[str, str] = dataclasses.field(default_factory=dict)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    fresh: list[str] = dataclasses.field(default_factory=list)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Lines for a person: one a checkpoint, then one a fate; names are put together by part."""
        lines = [f"{path}: {layout}, {count} tensors" for path, layout, count in self.sources]
        lines += [f"  loaded   {len(self.loaded)}: {parts(self.loaded)}"] if self.loaded else []
        lines += [f"  adapted  {name}: {what}" for name, what in sorted(self.adapted.items())]
        lines += [f"  format   {change}: {count}" for change, count in self.formats.items()]
        lines += [f"  kept     {part}: from {source}" for part, source in self.kept.items()]
        lines += [f"  fresh    {len(self.fresh)}: {parts(self.fresh)}"] if self.fresh else []
        for why in sorted(set(self.ignored.values())):
            names = [name for name, reason in self.ignored.items() if reason == why]
            lines.append(f"  ignored  {len(names)}: {parts(names)} ({why})")
        return "\n".join(lines)


def parts(names: Iterable[str]) -> str:
    """Names put together by their first two words, with how many there are; one that is alone stands in full."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return ", ".join(f"{family} {len(found)}" if len(found) > 1 else found[0] for family, found in families.items())


def shapes_in_short(shapes: dict[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """One line for all layers' tensors of the same name, shape and dtype: numbers in the name are shown as a range."""
    families: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, (shape, dtype) in shapes.items():
        number = re.search(r"\.(\d+)\.", name)
        family = name if number is None else f"{name[: number.start(1)]}*{name[number.end(1) :]}"
        families.setdefault((family, shape, dtype), []).extend([int(number[1])] if number else [])
    lines = []
    for (family, shape, dtype), numbers in families.items():
        name = family.replace("*", ",".join(_ranges(sorted(set(numbers)))), 1) if numbers else family
        lines.append(f"{name}  {' x '.join(map(str, shape)) or 'scalar'}  {dtype}")
    return lines


def _ranges(numbers: list[int]) -> list[str]:
    """``[0, 1, 2, 5]`` as ``0-2`` and ``5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
