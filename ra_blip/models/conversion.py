"""Weights from one layout to another, with a report: ours, LAVIS's ``.pth``, the Hugging Face folder."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ra_blip.config import ModelConfig, TokenizerConfig
from ra_blip.errors import CheckpointError, OutputError
from ra_blip.folders import replacing
from ra_blip.models.checkpoint_config import LAVIS_LLMS, hugging_face_config, released_config, tokenizer_places
from ra_blip.models.checkpoint_tables import GROUPS, HOW, LAYOUTS, group_of, row_of, table
from ra_blip.models.checkpoints import Stored, View, expected, view
from ra_blip.models.folder import FORMAT, locate, portable, unique_tensors, write_weights
from ra_blip.models.lazy_tensors import LazyTensor, open_tensors
from ra_blip.models.load_report import LoadReport
from ra_blip.models.model_card import card
from ra_blip.models.processor import load_tokenizer
from ra_blip.models.prompt import IMAGE
from ra_blip.models.rablip import RABlip

Target = Literal["native", "lavis", "hf"]
SHARD = "5GB"
# What a layout may need and a file may lack as a whole -> what to do.
PARTS = {
    "qformer": "name its file, too",
    "eva": "name its file, too (LAVIS: eva_vit_g.pth; another tower has no place there)",
    "llm": "load the files with RABlip.from_pretrained(FILES, llm=...) and write that with conversion.export",
}
POSITION_IDS = "Qformer.bert.embeddings.position_ids"  # a buffer that LAVIS saves; transformers no longer does


@dataclasses.dataclass
class Weights:
    """One half of a model, with tower and language model, on its way into another layout.

    Attributes:
        half: ``retriever`` or ``reader``; empty for a tower alone.
        stored: our names below the half -> tensors.
        config: sizes and settings; its tokenizers, where they are known, by their folders.
    """

    half: str
    stored: dict[str, Stored]
    config: ModelConfig

    def layout(self, to: Target) -> str:
        """The layout of that family that has a place for these weights. Raises :class:`CheckpointError`: none has."""
        groups = {group_of(name) for name in self.stored}
        if to == "lavis" and "eva" in groups and "qformer" not in groups:
            return "eva-vit-g"
        if self.config.qformer.norm_first:
            raise CheckpointError("model.qformer.norm_first: BLIP-2's Q-Former normalises after attention, not before")
        kind = "retriever" if self.half == "retriever" else "instruct" if "text" in groups else "plain"
        names = {
            "lavis": {"retriever": "lavis-stage1", "instruct": "lavis-instruct", "plain": "lavis-stage2"},
            "hf": {"retriever": "hf-blip2-itm", "instruct": "hf-instructblip", "plain": "hf-blip2"},
        }
        layout = names[to][kind]
        for part in PARTS:
            if part in LAYOUTS[layout].needs and part not in groups:
                raise CheckpointError(f"no {GROUPS[part]} among the weights, and {layout} needs one: {PARTS[part]}")
        return layout


def convert(paths: Sequence[str | Path], out: str | Path, to: Target, half: str | None = None) -> LoadReport:
    """Write checkpoints in another layout.

    What has no place there is left out, and the report names it: of a model of ours fusion, heads and ranker, since the
    others hold one half. Tensors keep their number format. A result in our layout holds what was read and no more;
    ``RABlip.from_pretrained`` makes a model of it as it does of what was converted.

    Args:
        paths: one checkpoint, or several that complete each other; later ones win.
        out: a file for ``lavis``, else a folder; must not be there yet.
        to: which layout.
        half: which half of a model of ours is written; its reader where it has one.

    Raises:
        CheckpointError: as :func:`ra_blip.models.checkpoints.load_into`; or the weights have no place there.
        OutputError: ``out`` is there, or cannot be written.
    """
    views = [view(open_tensors(locate(path))) for path in paths]
    for found in views:
        found.refuse()
        if found.layout == to:
            raise CheckpointError(f"{found.path}: is in the layout {to!r} already")
    report = LoadReport(sources=[(str(found.path), found.layout, found.count) for found in views])
    for found in views:
        report.ignored.update(found.ignored)
    given = _merged(views, half, released_config([found.path for found in views]), report)
    return _write(given, Path(out), to, report)


def export(model: RABlip, out: str | Path, to: Target = "hf", half: str = "reader") -> LoadReport:
    """Write one half of a model, with its tower and language model, in another layout.

    The Hugging Face class computes what this half computes with one picture; slot and position embeddings of several
    pictures have no place there.

    Args:
        model: with EVA ViT-g as its tower, and Q-Formers that normalise after attention.
        out, to, half: as for :func:`convert`.

    Raises:
        CheckpointError: the model is none that the layout can hold.
        OutputError: ``out`` is there, or cannot be written.
    """
    tensors = unique_tensors(model)
    if any(".lora_" in name for name in tensors):
        raise CheckpointError("the language model has low-rank adapters, which no other layout holds; merge them first")
    stored = {name: Stored("same", ({name: LazyTensor.of(value.detach())},)) for name, value in tensors.items()}
    report = LoadReport(sources=[("model", "native", len(tensors))])
    given = _merged([View(Path("model"), "native", len(tensors), "", stored)], half, portable(model), report)
    with tempfile.TemporaryDirectory() as folder:
        model.processor.save(Path(folder))
        given.config.tokenizer = TokenizerConfig(text=f"{folder}/text_tokenizer", llm=f"{folder}/llm_tokenizer")
        return _write(given, Path(out), to, report)


def _merged(views: Sequence[View], half: str | None, config: ModelConfig, report: LoadReport) -> Weights:
    """The weights of one half out of all checkpoints; what belongs to the other half is reported."""
    ours = {name.partition(".")[0] for found in views if not found.half for name in found.stored}
    held = [one for one in ("reader", "retriever") if one in ours]
    chosen = next((one for one in (half, *(found.half for found in reversed(views)), *held) if one), "")
    merged = Weights(chosen, {}, config)
    for found in views:
        for name, stored in found.stored.items():
            if problem := stored.disagreement():
                raise CheckpointError(f"{found.path}: {problem}")
            first, _, rest = name.partition(".")
            if found.half or first == "vision":
                merged.stored[name] = stored
            elif first == chosen:
                merged.stored[rest] = stored
            else:
                report.ignored[name] = f"not part of the {chosen}"
    return merged


def _write(given: Weights, out: Path, to: Target, report: LoadReport) -> LoadReport:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"{out}: is there already; choose another place")
    tensors = _native(given, report) if to == "native" else _foreign(given, given.layout(to), report)
    try:
        if to == "lavis":
            _write_pickle(out, tensors)
        else:
            with replacing(out) as fresh:
                if to == "native":
                    _write_native(fresh, out.name, given, tensors)
                else:
                    _write_hf(fresh, given, tensors)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return report


def _native(given: Weights, report: LoadReport) -> dict[str, Tensor]:
    """Our names, whole."""
    seen: set[int] = set()
    groups = {g for one in LAYOUTS.values() if one.half in (given.half, "") for g in (*one.needs, *one.may)}
    tensors = {}
    for name, stored in given.stored.items():
        if group_of(name) not in groups:
            report.ignored[name] = f"no place in the {given.half}"
            continue
        whole = name if name.startswith("vision.") else f"{given.half}.{name}"
        value = stored.read().contiguous()
        if (memory := value.untyped_storage().data_ptr()) in seen:  # tied in a PyTorch file; safetensors share nothing
            value = value.clone()
        seen.add(memory)
        tensors[whole] = value
        report.loaded.append(whole)
    return tensors


def _foreign(given: Weights, layout: str, report: LoadReport) -> dict[str, Tensor]:
    """The names of another layout."""
    words = {kind: word for word, kind in LAVIS_LLMS.items()}
    rows = table(layout, words.get(str(given.config.generator.config.get("model_type")), "llm"))
    tensors: dict[str, Tensor] = {}
    kept = []
    for name, stored in given.stored.items():
        found = row_of(rows, name)
        if found is None:
            report.ignored[name] = f"no place in {layout}"
            continue
        row, bound = found
        kept.append(name)
        others = [other.format(**bound) for other in row.others]
        value = stored.read()
        tensors.update(zip(others, HOW[row.how][1](value, len(others)), strict=True))
        if row.how == "no key" and bool(value.chunk(3)[1].any()):
            report.adapted[name] = "key bias left out: attention does not depend on it"
        else:
            report.loaded += others
    if layout.startswith("lavis"):
        tensors[POSITION_IDS] = torch.arange(given.config.qformer.max_positions)[None]
    report.fresh = [name for name in expected(layout, rows, kept) if name not in tensors]
    eps, own = given.config.vision.config.get("eps"), given.config.qformer.ln_vision_eps
    if layout.startswith("hf") and eps != own:
        report.adapted["ln_vision"] = f"its epsilon is {own} here; the class has one for all norms of the tower, {eps}"
    return tensors


def _write_pickle(out: Path, tensors: dict[str, Tensor]) -> None:
    """``{"model": {...}}``, as LAVIS reads it; whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.new")
    try:
        torch.save({"model": tensors}, temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _write_native(folder: Path, name: str, given: Weights, tensors: dict[str, Tensor]) -> None:
    parts = sorted({key.partition(".")[0] for key in tensors})
    model = dataclasses.replace(given.config, tokenizer=TokenizerConfig())  # paths are this machine's
    config = {"format": FORMAT, "partial": parts, "model": dataclasses.asdict(model)}
    write_weights(folder, tensors, config)
    _write_tokenizers(folder, "native", given.config)
    (folder / "README.md").write_text(card(name, config, tensors), encoding="utf-8")


def _write_hf(folder: Path, given: Weights, tensors: dict[str, Tensor]) -> None:
    from huggingface_hub import save_torch_state_dict

    with_llm = any(name.startswith("generator.llm.") for name in given.stored)
    llm: dict[str, Any] = given.config.generator.config if with_llm else {}
    shapes = {name: stored.shape for name, stored in given.stored.items()}
    config = hugging_face_config(given.layout("hf"), given.config, shapes, llm)
    if given.config.tokenizer.llm:  # without it the class cannot tell where in a prompt the picture stands
        image = load_tokenizer(given.config.tokenizer.llm).get_vocab().get(IMAGE)
        config.image_token_index = image if image is not None and image < config.text_config.vocab_size else None
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD, metadata={"format": "pt"})
    config.save_pretrained(folder)
    _write_tokenizers(folder, given.layout("hf"), given.config)


def _write_tokenizers(folder: Path, layout: str, config: ModelConfig) -> None:
    for kind, place in tokenizer_places(layout, folder).items():
        if name := getattr(config.tokenizer, kind):
            load_tokenizer(name).save_pretrained(place)
