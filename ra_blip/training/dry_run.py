"""A run before it runs: sizes, rules, memory, arithmetic and steps, from shapes alone; paths and data looked at.

Every figure is an estimate whose assumptions are printed beside it. Weights are never read: the model is built on the
meta device.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

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
    if run.stage.name == "rank":
        return 0.0  # what it reads is read without gradients
    wide = 34 * (2 if run.train.precision == "fp32" else 1)
    config, kept, load = model.config, 0.0, _load(model, run)
    layers = config.qformer.layers + (0 if load.prompts else config.retriever.fusion_layers)
    kept += load.reads * (config.qformer.queries + TEXT) * config.qformer.width * layers * wide
    if load.answers:
        llm = model.reader.generator.llm.config
        depth = getattr(llm, "num_layers", 0) + (getattr(llm, "num_decoder_layers", 0) or 0)
        depth = max(depth, getattr(llm, "num_hidden_layers", 0))
        kept += load.answers * (PROMPT + ANSWER) * model.reader.generator.width * depth * wide
    if any(p.requires_grad for p in model.vision.parameters()):
        tower = getattr(model.vision.model.config, "layers", 0) or getattr(
            model.vision.model.config, "num_hidden_layers", 12
        )
        cost = 2.0 if config.vision.gradient_checkpointing else wide
        kept += load.pictures * model.vision.patches * model.vision.width * tower * cost
    return kept


class _Load(NamedTuple):
    """What the parts are given for one sample.

    Attributes:
        pictures: that the eye sees.
        sources: pictures whose keys and values are computed; pictures that are read together have their own each time.
        reads: Q-Former passes over pictures and text; ``bare`` those whose queries alone are fused.
        prompts: that the language model reads; ``answers``: how many of them it is trained to go on from.
    """

    pictures: float
    sources: float
    reads: float
    bare: float = 0.0
    prompts: float = 0.0
    answers: float = 0.0


def _load(model: RABlip, run: RunConfig) -> _Load:
    stage, config = run.stage, model.config.generator
    if stage.name == "pretrain":
        some = 1.0 * bool(stage.itc or stage.itm or stage.itg)
        matched = min((stage.itm_samples or run.train.batch_size) / run.train.batch_size, 1) * bool(stage.itm)
        return _Load(1, some, some + 3 * matched, bare=some)
    if stage.name == "retrieve":
        items, candidates = 1 + stage.hard_negatives, 1 + stage.conditioned_candidates
        return _Load(items, items, items + stage.conditioned * (candidates - items))
    if stage.name == "rank":
        pairs = 1 + stage.negatives_max
        return _Load(pairs, pairs, pairs, prompts=pairs)
    joint = config.layout == "release"
    if stage.name == "finetune":
        items = min(run.data.keep if run.data.name == "retrieved" else 1, config.image_slots)
        return _Load(items, items, 1 if joint else items, prompts=1, answers=1)
    pairs = 2 if stage.name == "rerank" else 0
    if pairs and not (stage.qa or stage.askg or stage.answer_word or stage.answer_match):
        return _Load(pairs, pairs, pairs, prompts=pairs, answers=pairs)
    shown = min(1 + (stage.negatives_min + stage.negatives_max) / 2, config.image_slots)
    reads = 2 - stage.retrieved if joint else shown
    width = min(1 + stage.negatives_max, config.image_slots)
    sources = reads * width if joint else shown
    return _Load(pairs + shown, pairs + sources, pairs + reads, prompts=pairs + 2, answers=pairs + 2)


def _work(model: RABlip, run: RunConfig) -> list[tuple[str, float]]:
    """FLOP of one sample by part: 2 a weight and token, and as many for each gradient.

    Attention's own products are left out, and the second reading that ``stage.noise_step`` asks for.
    """
    load = _load(model, run)
    eye = _weights(model.vision) * model.vision.patches * load.pictures * _passes(model.vision)
    half = model.reader if load.prompts else model.retriever
    queries, layers, trains = model.config.qformer.queries, half.qformer.layers, run.stage.name != "rank"
    text = TEXT if half.qformer.words is not None else 0
    attention, words = _weights(layers, r"\.attention\."), _weights(layers, r"\.text_ffn\.")
    reading: float = _weights(layers, r"\.cross\.kv\.") * model.vision.patches * load.sources
    reading += load.reads * (attention * (queries + text) + words * text)
    reading += load.reads * _weights(layers, r"\.query_ffn\.|\.cross\.(q|out)\.") * queries
    if half is model.retriever:
        reading += (attention + words) * text  # the caption, or the question, alone
        reading += _weights(model.retriever.fusion) * (queries * load.reads + text * (load.reads - load.bare))
        reading += _vocabulary(half.qformer.words) * text * load.bare
    else:
        reading += _weights(model.reader.project) * queries * load.reads
    own = _passes(half.qformer) if trains else 1
    parts = [("eye", 2 * eye), ("Q-Former", 2 * own * reading)]
    if load.prompts:
        told = _told(model.reader.generator.llm, load.prompts, load.answers)
        parts.append(("language model", 2 * _passes(model.reader.generator.llm, handed_on=trains) * told))
    return parts


def _told(llm: Any, prompts: float, answers: float) -> float:
    """Weights times tokens of a language model that reads prompts and is told answers."""
    head = _vocabulary(llm.get_input_embeddings()) * ANSWER * answers
    if not llm.config.is_encoder_decoder:
        return _weights(llm.base_model) * (PROMPT * prompts + ANSWER * answers) + head
    seen = _weights(llm.get_decoder(), r"(EncDecAttention|encoder_attn)\.(k|v)")  # keys and values of the prompt
    told = (_weights(llm.get_decoder()) - seen) * ANSWER + seen * PROMPT
    return _weights(llm.get_encoder()) * PROMPT * prompts + told * answers + head


def _vocabulary(words: Any) -> int:
    """Elements of the matrix that gives a token's logits: those of the embedding, which it may be tied to."""
    return 0 if words is None else int(words.weight.numel())


def _weights(part: nn.Module, names: str = "") -> int:
    """Elements of matrices that a token is multiplied with, of those whose names match; embeddings are none."""
    return sum(
        parameter.numel()
        for name, parameter in part.named_parameters()
        if parameter.dim() > 1 and not re.search("embed|words|shared|relative_attention_bias", name)
        if re.search(names, f".{name}")
    )


def _passes(part: nn.Module, handed_on: bool = False) -> float:
    """Forward, and backward a product for each weight that trains, and for its input below others or ``handed_on``."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
    trained = sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes)
    return 1 + trained + (1 if handed_on else trained)


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
