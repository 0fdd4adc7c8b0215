"""RA-BLIP over released BLIP-2 and InstructBLIP weights: which settings those models were trained with, and loading.

Sources: the released configurations of LAVIS, and the Hugging Face folders that were converted from them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ra_blip.config import ModelConfig, PrecisionConfig
from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoint_config import released_config
from ra_blip.models.checkpoints import load_into, view
from ra_blip.models.folder import locate
from ra_blip.models.lazy_tensors import open_tensors
from ra_blip.models.llm import llm_config
from ra_blip.models.presets import PRESETS, Preset
from ra_blip.models.processor import Processor, load_tokenizer
from ra_blip.models.rablip import RABlip

BERT = "google-bert/bert-base-uncased"  # the tokenizer of every released Q-Former
EXACT = PrecisionConfig(features="fp32")
VICUNA_BEGIN = "</s>"  # trained with the end token in the place of the begin token


def is_released(source: str | Path) -> bool:
    """Whether it is a preset's name, a checkpoint file, a Hugging Face folder or converted weights.

    Raises as :func:`ra_blip.models.folder.locate`.
    """
    if str(source) in PRESETS:
        return True
    place = locate(source)
    if place.is_file():
        return True
    try:
        value = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and (value.get("model_type") in ("blip-2", "instructblip") or "partial" in value)


def load_released(
    source: str | Path | Sequence[str | Path],
    checkpoint: Sequence[str | Path] = (),
    llm: str | None = None,
    text_tokenizer: str | None = None,
    precision: PrecisionConfig | None = None,
    features: Path | None = None,
) -> RABlip:
    """Released weights in a new model, in evaluation mode; what came from where is its ``load_report``.

    What the release has no weights for (fusion, ranker, slot embeddings; the retriever's text side after stage 2)
    starts from one fixed seed, so that an index built with one load fits the next.

    Args:
        source: a Hugging Face folder or hub id of BLIP-2 or InstructBLIP, or what ``convert`` made of one; LAVIS
            files, each over the ones before it (``eva_vit_g.pth`` among them); or a name in
            :data:`ra_blip.models.presets.PRESETS`.
        checkpoint: a preset's files, or the folder that holds them; its hub id where there are none.
        llm: name or folder of the language model, for LAVIS files, which hold none.
        text_tokenizer: name or folder of the Q-Former's tokenizer, BERT's where the folder has none.
        precision: number formats of the frozen parts; by default a preset's, else fp32.
        features: folder in which frozen picture features are kept.

    Raises:
        CheckpointError: as :func:`ra_blip.models.checkpoints.load_into`; no language model, no vision tower.
    """
    preset = PRESETS.get(source) if isinstance(source, str) else None
    given = [source] if isinstance(source, (str, Path)) else list(source)
    paths = _files_of(preset, checkpoint) if preset else [locate(path) for path in given]
    config = released_config(paths)
    config.precision = dataclasses.replace(precision or (preset.config.precision if preset else EXACT))
    stored = {name for path in paths for name in view(open_tensors(path)).stored}
    if not any(name.startswith("vision.model.") for name in stored):
        raise CheckpointError(f"{paths[-1]}: no vision tower in it; give its file, too (LAVIS: eva_vit_g.pth)")
    if not any(name.startswith("generator.llm.") for name in stored):
        _name_llm(config, llm or (preset.llm if preset else None), paths)
    if not config.tokenizer.llm:
        raise CheckpointError(f"{paths[-1]}: no tokenizer of the language model in it; save that into the folder")
    config.tokenizer.text = text_tokenizer or config.tokenizer.text or _bert(paths)
    processor = Processor.build(config)
    _match_tokens(config, processor.llm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RABlip(config, processor, features)
    model.load_report = load_into(model, paths, fresh=preset.fresh if preset else ())
    return model.eval()


def _files_of(preset: Preset, given: Sequence[str | Path]) -> list[Path]:
    """A preset's checkpoints: those given, those in the folder that is given, or its folder on the hub."""
    names = [name for name, _ in preset.lavis]
    if not given and not preset.hf:
        raise CheckpointError(
            f"this preset has no folder on the hub; give its files as checkpoint=: {', '.join(names)}"
        )
    paths = [locate(path) for path in given or [preset.hf]]
    if len(paths) == 1 and paths[0].is_dir() and not (paths[0] / "config.json").exists():
        return [locate(paths[0] / name) for name in names]
    return paths


def _name_llm(config: ModelConfig, llm: str | None, paths: Sequence[Path]) -> None:
    """The language model that a file without one was trained with, from its own place."""
    if llm is None:
        raise CheckpointError(f"{paths[-1]}: no language model in it; give its name or folder as llm=")
    config.generator.name, config.generator.config = llm, {}
    if getattr(llm_config(config.generator), "is_gated_act", False):
        config.generator.config = {"dense_act_fn": "gelu"}  # LAVIS runs Flan-T5 with the exact GELU
    config.tokenizer.llm = llm


def _bert(paths: Sequence[Path]) -> str:
    """The tokenizer of the released Q-Formers. Raises :class:`CheckpointError`: it is not to be had."""
    try:
        load_tokenizer(BERT)
    except CheckpointError as error:
        raise CheckpointError(
            f"{paths[-1]}: no tokenizer of its Q-Former in it; give one as text_tokenizer=, or put one into the "
            f"subfolder qformer_tokenizer, text_tokenizer in a folder of ours ({error})"
        ) from None
    return BERT


def _match_tokens(config: ModelConfig, tokenizer: Any) -> None:
    """Begin and end tokens as in training, whatever the tokenizer of today says."""
    llm = llm_config(config.generator)
    if llm.is_encoder_decoder:
        return
    if llm.model_type == "llama":
        config.generator.begin = VICUNA_BEGIN
    named = config.generator.end or config.generator.name
    if not named and isinstance(llm.eos_token_id, int):  # the config that came with the weights says
        config.generator.end = tokenizer.convert_ids_to_tokens(llm.eos_token_id)
