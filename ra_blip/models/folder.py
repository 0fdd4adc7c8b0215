"""The model folder: ``config.json``, ``model.safetensors``, two tokenizers. Written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ra_blip.config import ModelConfig, model_config_from_dict
from ra_blip.errors import CheckpointError, ConfigError, OutputError

if TYPE_CHECKING:
    from ra_blip.models.processor import Processor
    from ra_blip.models.rablip import RABlip

WEIGHTS = "model.safetensors"


@dataclasses.dataclass
class Weights:
    """Tensors of a model folder by name, not yet in a model."""

    path: Path
    tensors: dict[str, Tensor]

    def into(self, model: nn.Module) -> None:
        """Load them. Raises :class:`CheckpointError` naming tensors that are missing, unexpected or misshapen."""
        wanted = unique_tensors(model)
        missing = sorted(set(wanted) - set(self.tensors))
        extra = sorted(set(self.tensors) - set(wanted))
        if missing or extra:
            raise CheckpointError(f"{self.path}: missing {missing[:3]}, unexpected {extra[:3]} (first three each)")
        for name, value in self.tensors.items():
            if wanted[name].shape != value.shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {tuple(value.shape)}, the model needs {tuple(wanted[name].shape)}"
                )
        with torch.no_grad():
            for name, value in self.tensors.items():
                wanted[name].copy_(value)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state by name, a tensor that stands under several names (tied embeddings) once, under the first."""
    seen: set[tuple[int, torch.Size]] = set()
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        mark = (value.data_ptr(), value.shape)
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        found[name] = value
    return found


def read_folder(folder: Path) -> tuple[ModelConfig, Weights]:
    """Config and weights of a model folder.

    Raises:
        CheckpointError: a file is missing, cannot be read or is not what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: not a model folder, {Path(error.filename or WEIGHTS).name} is missing"
        ) from None
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{folder}: damaged model folder ({error})") from None
    if not isinstance(value, dict) or "model" not in value:
        raise CheckpointError(f"{folder}/config.json: no 'model' entry; was this folder written by ra_blip?")
    try:
        return model_config_from_dict(value["model"], f"{folder}/config.json"), Weights(folder / WEIGHTS, tensors)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_folder(folder: Path, model: RABlip, processor: Processor) -> None:
    """Write a model folder beside its place, then rename it there. Raises :class:`OutputError`."""
    from safetensors.torch import save_file

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        os.chmod(temporary, 0o777 & ~_umask())
        tensors = {name: value.detach().contiguous() for name, value in unique_tensors(model).items()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        config = {"format": 1, "model": dataclasses.asdict(portable(model))}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        processor.save(temporary)
        swap_folder(temporary, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def portable(model: RABlip) -> ModelConfig:
    """The config with every Hugging Face name replaced by the config behind it: the folder then needs no other."""
    config = dataclasses.replace(model.config)
    vision: Any = model.vision.model
    config.vision = dataclasses.replace(config.vision, name=None, config=_plain(vision.config.to_dict()))
    llm: Any = model.reader.generator.llm
    config.generator = dataclasses.replace(config.generator, name=None, config=_plain(llm.config.to_dict()))
    config.qformer = dataclasses.replace(config.qformer, text_init=None)
    config.tokenizer = dataclasses.replace(config.tokenizer, text=None, llm=None)
    return config


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    dropped = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id")
    return {key: found for key, found in value.items() if key not in dropped and found is not None}


def swap_folder(new: Path, place: Path) -> None:
    """Put a finished folder in its place; what stood there before goes last, so that one of both is always whole."""
    old = None
    if place.exists():
        old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.old."))
        os.rename(place, old / "folder")
    os.rename(new, place)
    if old is not None:
        shutil.rmtree(old)


def assemble(parts: dict[str, Path], out: Path) -> None:
    """One model folder from several: each prefix (``vision``, ``retriever`` ...) is taken from the folder named for it.

    Raises:
        CheckpointError: a folder is not a model folder, or they do not belong together.
    """
    from ra_blip.models.rablip import RABlip

    base = next(iter(parts.values()))
    model = RABlip.from_pretrained(base)
    for path in set(parts.values()) - {base}:
        _check_words(model.processor, path)
    loaded = {path: read_folder(path)[1].tensors for path in set(parts.values())}
    tensors = {
        name: value
        for prefix, path in parts.items()
        for name, value in loaded[path].items()
        if name.startswith(f"{prefix}.")
    }
    Weights(out, tensors).into(model)
    model.save_pretrained(out)


def _check_words(wanted: Processor, path: Path) -> None:
    """Weights read token ids: parts with other vocabularies fit in shape and read nonsense."""
    from ra_blip.models.processor import Processor

    found = Processor.load(wanted.config, path)
    for name, ours, theirs in (("text", wanted.text, found.text), ("llm", wanted.llm, found.llm)):
        if ours.get_vocab() != theirs.get_vocab():
            raise CheckpointError(f"{path}: its {name}_tokenizer has another vocabulary than the first folder's")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
