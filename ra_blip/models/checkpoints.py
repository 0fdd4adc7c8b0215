"""Public checkpoints into our modules: found by their names, checked as a whole, read tensor by tensor, reported.

Everything is compared by name and shape before the first value is written: a checkpoint that does not fit changes
nothing. Rows of ``checkpoint_tables`` say what belongs where.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoint_tables import (
    GROUPS,
    HALVES,
    HOW,
    LAYOUTS,
    Row,
    bindings,
    detect,
    group_of,
    passed_over,
    table,
)
from ra_blip.models.eva import resize_positions
from ra_blip.models.folder import locate, tied_names
from ra_blip.models.lazy_tensors import LazyTensor, Tensors, open_tensors
from ra_blip.models.load_report import LoadReport

VOCABULARY_SLACK = 256  # rows by which vocabularies of one tokenizer differ: added tokens, padding to a round number
_VOCABULARIES = re.compile(r".*\.(words\.weight|lm_head\.bias|shared\.weight|embed_tokens\.weight|lm_head\.weight)")


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of ours as a checkpoint holds it.

    Attributes:
        how: key of ``checkpoint_tables.HOW``.
        choices: names there and their tensors; each choice gives the whole tensor.
    """

    how: str
    choices: tuple[dict[str, LazyTensor], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after reading."""
        shapes = [part.shape for part in self.choices[0].values()]
        rows = {"stack": lambda: sum(shape[0] for shape in shapes), "no key": lambda: 3 * shapes[0][0]}
        return (rows[self.how](), *shapes[0][1:]) if self.how in rows else shapes[0]

    @property
    def dtype(self) -> str:
        """The number format there, by name."""
        return next(iter(self.choices[0].values())).dtype

    def read(self) -> Tensor:
        """The values."""
        return self._join(self.choices[0])

    def disagreement(self) -> str | None:
        """Two names of what is one tensor for us, with different values; None where all agree."""
        for other in self.choices[1:]:
            if not torch.equal(self.read(), self._join(other)):
                return f"{'+'.join(self.choices[0])} and {'+'.join(other)} differ, and are one tensor here"
        return None

    def _join(self, parts: dict[str, LazyTensor]) -> Tensor:
        return HOW[self.how][0]([part.read() for part in parts.values()])


@dataclasses.dataclass
class View:
    """A checkpoint under our names.

    Attributes:
        path, layout, count: which file, which layout, how many tensors.
        half: which half of ours its names are below; empty where they are whole names of ours.
        stored: our name -> what holds it.
        missing: names that the layout always has, and this file has not.
        ignored: names that need no place -> why.
        unexplained: names that do not belong to the layout.
        llm: LAVIS's word for the language model in its names: ``t5``, ``opt`` or ``llm``.
    """

    path: Path
    layout: str
    count: int
    half: str
    stored: dict[str, Stored]
    missing: list[str] = dataclasses.field(default_factory=list)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    unexplained: list[str] = dataclasses.field(default_factory=list)
    llm: str = "llm"

    def names(self, name: str) -> list[str]:
        """The names there of one of ours."""
        return [part for choice in self.stored[name].choices for part in choice]

    def refuse(self, missing: Sequence[str] = (), unexplained: Sequence[str] = (), wrong: Sequence[str] = ()) -> None:
        """Raise :class:`CheckpointError` if anything is wrong, here or with what is given."""
        problems = [*wrong[:3]]
        for label, names in (
            ("missing", [*self.missing, *missing]),
            ("unexplained", [*self.unexplained, *unexplained]),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                problems.append(f"{label}: {', '.join(names[:3])}{more}")
        if problems:
            raise CheckpointError(f"{self.path} ({self.layout}): {'; '.join(problems)}")


def view(tensors: Tensors) -> View:
    """Find the layout of a checkpoint, and what its names are here. Raises :class:`CheckpointError`: none is known."""
    entries = tensors.entries
    try:
        layout = detect(list(entries))
    except CheckpointError as error:
        raise CheckpointError(f"{tensors.path}: {error}") from None
    found = View(tensors.path, layout, len(entries), LAYOUTS[layout].half, {})
    if layout == "native":
        here = {name.partition(".")[0] for name in entries}.difference(["vision"])
        found.half = next(iter(here)) if len(here) == 1 and here.issubset(HALVES) else ""  # of converted weights
        for name, value in entries.items():
            found.stored[name.removeprefix(f"{found.half}.")] = Stored("same", ({name: value},))
        return found
    found.llm = next((word for word in ("t5", "opt") if f"{word}_proj.weight" in entries), "llm")
    rows = table(layout, found.llm)
    wanted: dict[str, tuple[Row, dict[str, str]]] = {}
    for name in entries:
        if (why := passed_over(name)) is not None:
            found.ignored[name] = why
        elif (place := _place(rows, name)) is None:
            found.unexplained.append(name)
        else:
            wanted[place[0].native.format(**place[1])] = place
    for name, (row, bound) in wanted.items():
        choices = [[other.format(**bound) for other in choice] for choice in row.choices]
        whole = tuple({part: entries[part] for part in choice} for choice in choices if entries.keys() >= set(choice))
        if whole:
            found.stored[name] = Stored(row.how, whole)
    found.missing = [name for name in expected(layout, rows, found.stored) if name not in entries]
    return found


def _place(rows: Sequence[Row], name: str) -> tuple[Row, dict[str, str]] | None:
    for row in rows:
        for other in row.others:
            if (bound := bindings(other, name)) is not None:
                return row, bound
    return None


def expected(layout: str, rows: Sequence[Row], stored: Collection[str]) -> Iterator[str]:
    """Every name there that a whole checkpoint of the sizes found has; a language model's names are its own affair."""
    here = {group_of(name) for name in stored}
    for row in rows:
        if row.group == "llm" or not (row.group in LAYOUTS[layout].needs or row.group in here):
            continue
        others = row.others[:1] if row.how == "tied" else row.others
        for i in layers_of(stored, row.native) if "{i}" in row.native else [0]:
            for p in ("weight", "bias") if "{p}" in row.native else ("",):
                yield from (other.format(i=i, p=p) for other in others)


def layers_of(names: Collection[str], native: str) -> range:
    """The numbers that ``{i}`` of a native name pattern stands for in a whole checkpoint with the layers of ``names``.

    Cross-attention stands in the first layer and in every so-manyth one from there.
    """
    stem = native[: native.index("{i}")]
    numbers = {(name, int(name[len(stem) :].partition(".")[0])) for name in names if name.startswith(stem)}
    layers = 1 + max((number for _, number in numbers), default=0)
    if ".cross" not in native:
        return range(layers)
    crossed = sorted({number for name, number in numbers if ".cross" in name})
    step = min((b - a for a, b in itertools.pairwise(crossed)), default=layers)
    return range(0, layers, step)


def load_into(
    model: nn.Module, paths: Sequence[str | Path], halves: Sequence[str] = HALVES, fresh: Sequence[str] = ()
) -> LoadReport:
    """Fill a model from checkpoints of any layout; where several hold a tensor, the later one wins.

    Args:
        model: a ``RABlip``, or a module with its names.
        paths: files, folders or hub ids, as :func:`ra_blip.models.folder.locate` finds them.
        halves: which halves take a released Q-Former: both start from the same weights unless one is named.
        fresh: prefixes of our names that keep their start although a checkpoint holds them, such as
            ``reader.project`` for a language model of another width.

    Returns:
        what became of every tensor on either side.

    Raises:
        CheckpointError: a file is damaged or of no known layout, lacks tensors, holds some that nobody can explain, or
            shapes do not fit. The model is as it was then.
    """
    targets = tied_names(model)
    report = LoadReport(kept=_loaded_by_name(model))
    plan: dict[str, tuple[Tensor, Stored, str]] = {}
    for path in paths:
        found = view(open_tensors(locate(path)))
        found.refuse()
        report.sources.append((str(path), found.layout, found.count))
        report.ignored.update(found.ignored)
        plan.update(_match(targets, found, halves, fresh, report))
    with torch.no_grad():
        for name, (tensor, stored, adapted) in plan.items():
            _copy(tensor, stored.read(), adapted)
            if adapted:
                report.adapted[name] = adapted
            else:
                report.loaded.append(name)
            own = str(tensor.dtype).removeprefix("torch.")
            if stored.dtype != own:
                report.formats[f"{stored.dtype} -> {own}"] += 1
    report.kept = {part: source for part, source in report.kept.items() if not any(n.startswith(part) for n in plan)}
    report.fresh = [name for name in targets if name not in plan and not name.startswith(tuple(report.kept))]
    return report


def _match(
    targets: dict[str, tuple[Tensor, list[str]]],
    found: View,
    halves: Sequence[str],
    fresh: Sequence[str],
    report: LoadReport,
) -> dict[str, tuple[Tensor, Stored, str]]:
    """Our names that this checkpoint fills: tensor, what fills it, and how it is adapted ("" for not at all)."""
    plan: dict[str, tuple[Tensor, Stored, str]] = {}
    missing, wrong, used, here = [], [], set[str](), set[str]()
    groups = {group_of(name) for name in found.stored}
    for name, (tensor, names) in targets.items():
        keys = [key for one in names if (key := _key(one, found.half, halves))]
        here.update(group_of(key) for key in keys)
        holding = [found.stored[key] for key in keys if key in found.stored]
        used.update(keys)
        if name.startswith(tuple(fresh)):
            asked = [one for key in keys if key in found.stored for one in found.names(key)]
            report.ignored.update(dict.fromkeys(asked, "its place was asked to keep its start"))
        elif holding:
            stored = Stored(holding[0].how, tuple(choice for one in holding for choice in one.choices))
            adapted = _adaptation(name, stored.shape, tuple(tensor.shape))
            wrong += [problem for problem in (stored.disagreement(), _misfit(name, stored, tensor, adapted)) if problem]
            plan[name] = (tensor, stored, adapted or "")
        elif groups.intersection(group_of(key) for key in keys):
            missing.append(name)
    left = [name for name in found.stored if name not in used]
    for name in left:
        if group_of(name) not in here:
            what = GROUPS.get(group_of(name), group_of(name))
            report.ignored.update(dict.fromkeys(found.names(name), f"the model has no {what}"))
    found.refuse(missing, [name for name in left if group_of(name) in here], wrong)
    return plan


def _key(name: str, within: str, halves: Sequence[str]) -> str:
    """Under which of our names a view of the half ``within`` holds a model's tensor; empty where it cannot."""
    if ".lora_" in name:
        return ""
    name = name.replace(".base_layer.", ".")  # a projection with adapters beside it
    half, _, rest = name.partition(".")
    if not within or half == "vision":
        return name
    return rest if half in halves else ""


def _adaptation(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    """How a tensor is made to fit: "" not at all, else in words; None where it cannot be."""
    if found == wanted:
        return ""
    if name.endswith("vision.model.pos_embed") and found[2:] == wanted[2:]:
        return f"positions interpolated from {found[1] - 1} to {wanted[1] - 1} patches"
    if _VOCABULARIES.fullmatch(name) and found[1:] == wanted[1:] and abs(found[0] - wanted[0]) < VOCABULARY_SLACK:
        shared = min(found[0], wanted[0])
        rest = "the others keep their start" if wanted[0] > shared else "the others are left out"
        return f"{shared} of {max(found[0], wanted[0])} vocabulary rows, {rest}"
    return None


def _misfit(name: str, stored: Stored, tensor: Tensor, adapted: str | None) -> str | None:
    if adapted is not None:
        return None
    problem = f"{name} has shape {stored.shape}, the model needs {tuple(tensor.shape)}"
    if name.startswith("reader.project"):
        problem += f": made for a language model of width {stored.shape[0]}, this one has {tensor.shape[0]}"
    return problem


def _copy(tensor: Tensor, value: Tensor, adapted: str) -> None:
    if adapted.startswith("positions"):
        side = round((tensor.shape[1] - 1) ** 0.5)
        tensor.copy_(resize_positions(value.float(), side, side))
    elif adapted:
        rows = min(len(tensor), len(value))
        tensor[:rows].copy_(value[:rows])
    else:
        tensor.copy_(value)


def _loaded_by_name(model: nn.Module) -> dict[str, str]:
    """Parts that came with weights of their own."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return {}
    named = {"vision.model": config.vision.name, "reader.generator.llm": config.generator.name}
    return {part: name for part, name in named.items() if name}
