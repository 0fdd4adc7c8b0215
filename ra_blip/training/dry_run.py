"""A run before it runs: sizes, rules, memory, arithmetic and steps, from shapes alone; paths and data looked at.

Every figure is an estimate whose assumptions are printed beside it. Weights are never read: the model is built on the
meta device.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ra_blip.config import GeneratorConfig, ModelConfig, RunConfig
from ra_blip.errors import ConfigError, RABlipError
from ra_blip.models.checkpoint_config import released_config
from ra_blip.models.folder import read_config
from ra_blip.models.presets import PRESETS
from ra_blip.models.rablip import RABlip
from ra_blip.models.released import is_released
from ra_blip.training.optim import apply_rules, describe

TEXT, PROMPT, ANSWER = 32, 192, 16  # tokens of a caption or question, of a generator's prompt, of an answer
RATE = 300e12  # FLOP/s of one GPU, 38 % of what an H200 reaches in bf16 matrix products
BERT, T5 = 30523, 32128  # vocabulary sizes where a tokenizer is named and not read
GIB = 2**30


@dataclasses.dataclass
class Plan:
    """What a run would be.

    Attributes:
        text: for people, many lines.
        parameters: of the whole model; ``trained``: of those that train.
        memory: bytes on each GPU: weights, gradients, moments and activations.
        flops: of one sample, forward and backward.
        hours: for all steps on the GPUs that were asked about.
        problems: what would stop the run; none where it can start.
    """

    text: str
    parameters: int
    trained: int
    memory: dict[str, float]
    flops: float
    hours: float
    problems: list[str]


def dry_run(run: RunConfig, gpus: int = 1, model: RABlip | None = None, look: bool = True) -> Plan:
    """Plan a run.

    Args:
        run: the recipe.
        gpus: how many share the batch.
        model: as :func:`shapes_of` builds it, where there is one already.
        look: whether to open the data and look for ``init``, the output folder and DeepSpeed's file.

    Raises:
        ConfigError: the recipe is impossible: sizes, rules, or a batch that the GPUs cannot share.
    """
    if run.train.batch_size % gpus:
        raise ConfigError(f"train.batch_size {run.train.batch_size} cannot be shared by {gpus} GPUs")
    model = model or shapes_of(run)
    table = apply_rules(model, run.params)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = _memory(model, run, gpus)
    flops = sum(work for _, work in _work(model, run))
    hours = flops * run.train.batch_size * run.train.steps / (gpus * RATE) / 3600
    problems, found = _look(run) if look else ([], [])
    share = run.train.batch_size // gpus
    lines = [
        f"stage {run.stage.name}: {run.train.steps:,} steps of {run.train.batch_size} samples, {share} a GPU",
        *(f"  {name:10} {sum(p.numel() for p in part.parameters()):>15,}" for name, part in model.named_children()),
        f"  {'all':10} {parameters:>15,} parameters, {trained:,} of them train",
        "",
        describe([row for row in table if row.names]),
        "",
        f"memory a GPU, {run.strategy.name}: {sum(memory.values()) / GIB:.1f} GiB, namely "
        + ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in memory.items()),
        f"arithmetic a sample: {flops / 1e9:,.0f} GFLOP, namely "
        + ", ".join(f"{name} {work / 1e9:,.0f}" for name, work in _work(model, run)),
        f"  (pictures of {model.vision.patches} tokens, texts of {TEXT}, prompts of {PROMPT}, answers of {ANSWER}; each"
        " item a picture that no cache has)",
        f"time: {hours:.2g} h on {gpus} GPU{'s' * (gpus > 1)} at {RATE / 1e12:.0f} TFLOP/s each",
        *found,
        *(f"PROBLEM {problem}" for problem in problems),
    ]
    return Plan("\n".join(lines), parameters, trained, memory, flops, hours, problems)


def shapes_of(run: RunConfig) -> RABlip:
    """The run's model on the meta device. Nothing is downloaded for the presets' language models."""
    config = sizes_of(run)
    words = SimpleNamespace(text=_Words(BERT if config.tokenizer.text or run.init else config.tokenizer.vocabulary))
    words.llm = _Words(int(config.generator.config.get("vocab_size", T5)))
    words.image_id, words.end_id = 2, 1
    with torch.device("meta"):
        return RABlip(config, words)  # type: ignore[arg-type]


def sizes_of(run: RunConfig) -> ModelConfig:
    """The configuration that the run would have, naming no other model: of ``init`` where that is known, else its own.

    Raises:
        ConfigError: a named language or vision model whose sizes cannot be found.
    """
    known = {**PRESETS, **{preset.hf: preset for preset in PRESETS.values() if preset.hf}}
    if run.init in known:
        config = known[run.init].config
        config.generator.lora = run.model.generator.lora
    elif run.init and Path(run.init).exists():
        config = released_config([run.init]) if is_released(run.init) else read_config(Path(run.init))
    else:
        config = copy.deepcopy(run.model)
    config.generator = _generator(config.generator)
    if config.vision.name and not config.vision.config:
        config.vision.config = _hub(config.vision.name)
    config.vision.name = None
    return config


def _generator(config: GeneratorConfig) -> GeneratorConfig:
    """With the sizes of the language model that it names."""
    if not config.name:
        return config
    known = {preset.llm: preset.llm_config for preset in PRESETS.values()}
    sizes = known[config.name] if config.name in known else _hub(config.name)
    return dataclasses.replace(config, name=None, config={**sizes, **config.config})


def _hub(name: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: its sizes cannot be found ({str(error).splitlines()[0]})") from None
    return dict(getattr(found, "vision_config", found).to_dict())


class _Words:
    """A tokenizer's size without the tokenizer."""

    pad_token_id = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def _memory(model: RABlip, run: RunConfig, gpus: int) -> dict[str, float]:
    """Bytes on each GPU. Shared out: moments from ZeRO-1, gradients from 2, weights from 3 and FSDP2 on."""
    level, offload = _sharding(run)
    weights = 0.0
    for part in model.children():
        trains = any(p.requires_grad for p in part.parameters())
        held = sum(p.numel() * p.element_size() for p in part.parameters())
        weights += held / gpus if level == 3 and trains else held
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = 8.0 * trained + (4.0 * trained if run.strategy.name == "zero" else 0.0)  # ZeRO's own fp32 copy
    gradients = 4.0 * trained / (gpus if level >= 2 else 1)
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": 0.0 if offload else moments / (gpus if level >= 1 else 1),
        "activations": _activations(model, run) * run.train.batch_size / gpus / run.train.accumulate,
    }


def _sharding(run: RunConfig) -> tuple[int, bool]:
    """ZeRO's level (FSDP2 is 3), and whether moments wait on the CPU."""
    if run.strategy.name == "zero":
        from ra_blip.training.strategy_zero import offloads, read_settings

        settings = read_settings(run.strategy.config)
        return int(settings["zero_optimization"]["stage"]), offloads(settings)
    return (3, run.strategy.cpu_offload) if run.strategy.name == "fsdp2" else (0, False)


def _activations(model: RABlip, run: RunConfig) -> float:
    """Bytes kept for the backward pass of one sample: about 34 a token and channel in a 16-bit layer, twice in fp32.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", equation 1, without the
    attention matrix, which fused attention does not keep.
    """
    wide = 34 * (2 if run.train.precision == "fp32" else 1)
    config, kept = model.config, 0.0
    layers = config.qformer.layers + (config.retriever.fusion_layers if run.stage.name != "answer" else 0)
    kept += _reads(run, model)[1] * (config.qformer.queries + TEXT) * config.qformer.width * layers * wide
    if run.stage.name == "answer":
        llm = model.reader.generator.llm.config
        depth = getattr(llm, "num_layers", 0) + (getattr(llm, "num_decoder_layers", 0) or 0)
        depth = max(depth, getattr(llm, "num_hidden_layers", 0))
        kept += 2 * (PROMPT + ANSWER) * model.reader.generator.width * depth * wide
    if any(p.requires_grad for p in model.vision.parameters()):
        tower = getattr(model.vision.model.config, "layers", 0) or getattr(
            model.vision.model.config, "num_hidden_layers", 12
        )
        cost = 2.0 if config.vision.gradient_checkpointing else wide
        kept += _reads(run, model)[0] * model.vision.patches * model.vision.width * tower * cost
    return kept


def _reads(run: RunConfig, model: RABlip) -> tuple[float, float]:
    """Pictures that the eye sees, and Q-Former passes over a picture and a text, of one sample."""
    stage = run.stage
    if stage.name == "pretrain":
        return 1.0, 1.0 * bool(stage.itc or stage.itg) + 3.0 * bool(stage.itm)
    if stage.name == "retrieve":
        return 1.0 + stage.hard_negatives, 1.0 + stage.hard_negatives
    if stage.name == "answer":
        shown = 1 + (stage.negatives_min + stage.negatives_max) / 2
        shown = min(shown, model.config.generator.image_slots or shown)
        return shown, 1 + shown
    return 1.0 + stage.negatives_max, 1.0 + stage.negatives_max


def _work(model: RABlip, run: RunConfig) -> list[tuple[str, float]]:
    """FLOP of one sample by part: 2 a weight and token, times what :func:`_passes` says of backward passes."""
    stage, config = run.stage.name, model.config
    pictures, reads = _reads(run, model)
    queries, patches = config.qformer.queries, model.vision.patches
    eye = 2 * _weights(model.vision) * patches * pictures * _passes(model.vision)
    half = model.reader if stage in ("answer", "rank", "rerank") else model.retriever
    layers = half.qformer.layers
    own = _passes(half.qformer)
    cross = _weights(layers, "cross.kv") * patches * pictures
    alone = TEXT * (_weights(layers, "attention") + _weights(layers, "text_ffn")) if half is model.retriever else 0
    both = _weights(layers, "attention") * (queries + TEXT) + _weights(layers, "text_ffn") * TEXT
    both += (_weights(layers, "query_ffn") + _weights(layers, "cross.q", "cross.out")) * queries
    reading = 2 * own * (cross + alone + both * reads)
    done = [("eye", eye), ("Q-Former", reading)]
    if half is model.retriever:
        fused = _weights(model.retriever.fusion) * (queries + TEXT) * reads
        table = half.qformer.words
        words = table.weight.numel() * TEXT if run.stage.itg and table is not None else 0
        done += [("fusion", 2 * _passes(model.retriever.fusion) * fused)]
        done += [("captioning head", 2 * own * words)] if stage == "pretrain" else []
    else:
        llm = model.reader.generator.llm
        branches = 2 if stage == "answer" else reads
        tokens = _weights(llm, without="decoder") * PROMPT
        tokens += _weights(llm, "decoder") * ANSWER if stage == "answer" else 0
        back = 1 if stage != "answer" else max(2, _passes(llm))  # a frozen model still hands gradients through
        done += [("language model", 2 * back * branches * tokens)]
    return done


def _weights(part: nn.Module, *names: str, without: str = "\0") -> int:
    """Elements of matrices that a token is multiplied with, of those whose names have one of ``names`` in them."""
    return sum(
        parameter.numel()
        for name, parameter in part.named_parameters()
        if parameter.dim() > 1 and "embed" not in name and "words" not in name and "shared" not in name
        if (not names or any(wanted in name for wanted in names)) and without not in name
    )


def _passes(part: nn.Module) -> int:
    """3 where it trains (forward, and two products backward), 1 where it is frozen."""
    return 3 if any(parameter.requires_grad for parameter in part.parameters()) else 1


def _look(run: RunConfig) -> tuple[list[str], list[str]]:
    """What would stop the run, and what was found."""
    problems: list[str] = []
    found: list[str] = []
    for line, problem in _checks(run):
        (problems if problem else found).append(line)
    return problems, found


def _checks(run: RunConfig) -> Iterator[tuple[str, bool]]:
    from ra_blip.data.sources import SOURCES

    known = {*PRESETS, *(preset.hf for preset in PRESETS.values())}
    if run.init and run.init not in known and not Path(run.init).exists():
        yield f"init: {run.init} is not there; the sizes above are those of the recipe's own `model`", True
    parent = next(path for path in (Path(run.out), *Path(run.out).resolve().parents) if path.exists())
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        yield f"out: {run.out} cannot be written", True
    if run.strategy.name == "zero":
        import importlib.util

        if importlib.util.find_spec("deepspeed") is None:
            yield "strategy: package 'deepspeed' is not installed: pip install 'ra-blip[deepspeed]'", True
    if run.data.name.startswith("atlas"):
        yield "data: a generated world", False
        return
    try:
        count = len(SOURCES[run.data.name](run.data, run.stage, Path(run.out), run.seed))
    except RABlipError as error:
        yield f"data: {error}", True
    else:
        epochs = run.train.steps * run.train.batch_size / max(count, 1)
        yield f"data: {count:,} samples, {epochs:.1f} epochs", False
