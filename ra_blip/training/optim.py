"""One ordered rule list decides freezing, learning rate and weight decay; every parameter must match a rule."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ra_blip.config import ParamRule, TrainConfig
from ra_blip.errors import ConfigError


@dataclasses.dataclass
class Resolved:
    """One rule, or one layer of it, with the parameters that fell to it."""

    rule: ParamRule
    names: list[str]
    size: int


def apply_rules(model: nn.Module, rules: Sequence[ParamRule]) -> list[Resolved]:
    """Freeze or thaw every parameter by the first rule that matches its whole name.

    Returns:
        one entry a rule in order; a rule with ``layer_decay`` gives one a layer, lowest first.

    Raises:
        ConfigError: a parameter that no rule matches, a pattern that is not a regular expression or lacks the group
            that ``layer_decay`` needs, nothing to train, or something to train in half precision, where small updates
            are lost.
    """
    try:
        patterns = [re.compile(rule.match) for rule in rules]
    except re.error as error:
        raise ConfigError(f"params: {error.pattern!r} is not a regular expression ({error})") from None
    table = [Resolved(rule, [], 0) for rule in rules]
    for name, parameter in model.named_parameters():
        entry = next((row for row, pattern in zip(table, patterns, strict=True) if pattern.fullmatch(name)), None)
        if entry is None:
            raise ConfigError(f"params: no rule matches {name!r}; end the list with a rule for '.*'")
        entry.names.append(name)
        entry.size += parameter.numel()
        parameter.requires_grad_(entry.rule.lr is not None)
        if entry.rule.lr is not None and parameter.dtype in (torch.float16, torch.bfloat16):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"params: {entry.rule.match!r} trains {name!r}, which is {kind}: set model.precision for it to fp32 and"
                " train.precision to bf16, or freeze it (with model.generator.lora for the LLM)"
            )
    if not any(row.size and row.rule.lr is not None for row in table):
        raise ConfigError("params: every parameter is frozen; give at least one rule an lr")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [part for row, pattern in zip(table, patterns, strict=True) for part in _layers(row, pattern, sizes)]


def _layers(row: Resolved, pattern: re.Pattern[str], sizes: Mapping[str, int]) -> list[Resolved]:
    """Layer-wise decay (BEiT, LAVIS): the last of L layers trains at lr x decay, the first at lr x decay^L.

    What the pattern matches without its group ``layer`` lies below all layers (patches, positions): lr x decay^(L + 1).
    """
    rule = row.rule
    if rule.lr is None or rule.layer_decay == 1.0:
        return [row]
    if "layer" not in pattern.groupindex:
        raise ConfigError(f"params: {rule.match!r} has layer_decay, so it needs the layer's number as (?P<layer>\\d+)")
    found: dict[int, list[str]] = {}
    for name in row.names:
        match = pattern.fullmatch(name)
        number = match["layer"] if match else None
        found.setdefault(-1 if number is None else int(number), []).append(name)
    top = max(found, default=0) + 1
    split = []
    for layer, names in sorted(found.items()):
        lr = rule.lr * rule.layer_decay ** (top - layer)
        part = dataclasses.replace(rule, match=f"{rule.match} layer {layer}", lr=lr)
        split.append(Resolved(part, names, sum(sizes[name] for name in names)))
    return split


def describe(table: Sequence[Resolved]) -> str:
    """The resolved rules as a table for people."""
    rows = [f"{'rule':40} {'lr':>9} {'decay':>7} {'tensors':>8} {'parameters':>12}"]
    for row in table:
        lr = "frozen" if row.rule.lr is None else f"{row.rule.lr:.1e}"
        rows.append(f"{row.rule.match:40} {lr:>9} {row.rule.weight_decay:>7g} {len(row.names):>8} {row.size:>12,}")
    return "\n".join(rows)


def build_optimizer(model: nn.Module, table: Sequence[Resolved], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with one group a trained rule, in rule order; each group remembers its peak rate as ``peak``."""
    parameters = dict(model.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in row.names],
            "lr": row.rule.lr,
            "peak": row.rule.lr,
            "weight_decay": row.rule.weight_decay,
        }
        for row in table
        if row.names and row.rule.lr is not None
    ]
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]))


def schedule(step: int, config: TrainConfig) -> float:
    """Factor on the peak rate at ``step`` (from 0): linear warm-up, then cosine to ``floor``."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
