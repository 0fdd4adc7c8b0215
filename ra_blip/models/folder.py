"""The model folder: ``config.json``, ``model.safetensors``, two tokenizers, a model card. Whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ra_blip.config import ModelConfig, merged
from ra_blip.errors import CheckpointError, ConfigError, OutputError
from ra_blip.folders import replacing, standing
from ra_blip.models.lazy_tensors import LazyTensor, open_tensors
from ra_blip.models.model_card import card
from ra_blip.models.presets import PRESETS

if TYPE_CHECKING:
    from ra_blip.models.processor import Processor
    from ra_blip.models.rablip import RABlip

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
REFERRED = {"vision": "vision.model", "generator": "reader.generator.llm"}  # section of the config -> part of the model
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass
class Weights:
    """Tensors of a model folder by name, not yet read.

    Attributes:
        references: section (``vision``, ``generator``) -> name and ``sha256`` of a part whose weights are elsewhere.
    """

    path: Path
    tensors: dict[str, LazyTensor]
    references: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def into(self, model: nn.Module) -> None:
        """Load them; a model that they do not fit stays as it is.

        Raises:
            CheckpointError: naming tensors that are missing, unexpected or misshapen; or a part that is kept elsewhere
                has other weights there than it had.
        """
        for section, wanted in self.references.items():
            found = digest(model, REFERRED[section])
            if found != wanted["sha256"]:
                raise CheckpointError(
                    f"{self.path}: {wanted['name']!r} has other weights ({found[:12]}) than those this model was saved "
                    f"with ({wanted['sha256'][:12]})"
                )
        tensors = unique_tensors(model)
        wanted_here = {name: value for name, value in tensors.items() if not _elsewhere(name, self.references)}
        missing = sorted(set(wanted_here) - set(self.tensors))
        extra = sorted(set(self.tensors) - set(wanted_here))
        if missing or extra:
            raise CheckpointError(f"{self.path}: missing {missing[:3]}, unexpected {extra[:3]} (first three each)")
        for name, value in self.tensors.items():
            if tuple(tensors[name].shape) != value.shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {value.shape}, the model needs {tuple(tensors[name].shape)}"
                )
        with torch.no_grad():
            for name, value in self.tensors.items():
                tensors[name].copy_(value.read())


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state by name, a tensor that stands under several names (tied embeddings) once, under the first."""
    return {name: value for name, (value, _) in tied_names(model).items()}


def tied_names(model: nn.Module) -> dict[str, tuple[Tensor, list[str]]]:
    """First name -> the tensor and all its names, for parameters and saved buffers."""
    first: dict[tuple[int, torch.Size], str] = {}
    found: dict[str, tuple[Tensor, list[str]]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        known = first.setdefault((value.data_ptr() or id(value), value.shape), name)
        found.setdefault(known, (value, []))[1].append(name)
    return found


def locate(source: str | Path) -> Path:
    """Where a model is on this machine: a folder, a file, or the copy of a Hugging Face hub id (``owner/name``).

    A folder whose replacement was killed midway is found where that left it. Only something that looks like a hub id,
    and is nothing here, is asked for on the hub.

    Raises:
        CheckpointError: it is nowhere.
    """
    place = standing(Path(source))
    if place.exists():
        return place
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        known = "" if "/" in str(source) else f", and no preset of that name (there are {', '.join(PRESETS)})"
        raise CheckpointError(f"{source}: no such file or folder{known}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source))
    except Exception as error:  # network, proxy, access and cache fail in many classes of several packages
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source}: no such folder here, and not to be had from the hub ({first})") from None


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a folder of ours. Raises :class:`CheckpointError` as :func:`read_folder`."""
    return _parse(folder)[0]


def names_of(folder: Path) -> set[str] | None:
    """The tensors that a model folder has by its configuration, which is built without values.

    None where that does not say: of converted weights, and where a part is kept elsewhere.

    Raises:
        CheckpointError: configuration or tokenizers cannot be read.
    """
    from ra_blip.models.processor import Processor
    from ra_blip.models.rablip import RABlip

    config, references, partial = _parse(folder)
    if references or partial:
        return None
    processor = Processor.load(config, folder)
    with torch.device("meta"):
        return set(unique_tensors(RABlip(config, processor)))


def read_folder(folder: Path) -> tuple[ModelConfig, Weights]:
    """Config and weights of a model folder; the weights' values are read later.

    Raises:
        CheckpointError: a file is missing, cannot be read or is not what its name says.
    """
    config, references, partial = _parse(folder)
    if partial:
        raise CheckpointError(
            f"{folder}: holds converted weights of {', '.join(partial)} alone; RABlip.from_pretrained and "
            "save_pretrained make a model folder of them"
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: not a model folder, {WEIGHTS} is missing")
    return config, Weights(folder / WEIGHTS, open_tensors(folder / WEIGHTS).entries, references)


def _parse(folder: Path) -> tuple[ModelConfig, dict[str, dict[str, str]], list[str]]:
    """Configuration, references and, of converted weights, what they are of."""
    path = folder / CONFIG
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: not a model folder, {CONFIG} is missing") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{folder}: damaged model folder, {CONFIG} cannot be read ({error})") from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise CheckpointError(f"{path}: no 'model' entry; was this folder written by ra_blip?")
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {value.get('format')!r}, this program reads a model of format {FORMAT}")
    references = value.get("references", {})
    if not isinstance(references, dict) or not all(
        section in REFERRED and isinstance(one, dict) and {"name", "sha256"} <= one.keys()
        for section, one in references.items()
    ):
        raise CheckpointError(f"{path}: 'references' of the model cannot be read")
    try:
        return merged(ModelConfig(), value["model"], str(path)), references, value.get("partial", [])
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_folder(folder: Path, model: RABlip, processor: Processor, whole: bool = False) -> None:
    """Write a model folder beside its place, then put it there.

    Args:
        folder: replaced as a whole.
        model, processor: what is written.
        whole: store the weights of every part; otherwise one that has a hub name, and still the weights that it came
            with, is stored as that name and a hash.

    Raises:
        OutputError: it cannot be written.
    """
    kept = {} if whole else {section: one for section, one in model.references.items() if _unchanged(model, section)}
    tensors = {n: v.detach().contiguous() for n, v in unique_tensors(model).items() if not _elsewhere(n, kept)}
    config = {"format": FORMAT, "model": dataclasses.asdict(portable(model, kept))}
    if kept:
        config["references"] = kept
    try:
        with replacing(folder) as fresh:
            write_weights(fresh, tensors, config)
            (fresh / "README.md").write_text(card(folder.name, config, tensors), encoding="utf-8")
            processor.save(fresh)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def write_weights(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """``model.safetensors`` and ``config.json``."""
    from safetensors.torch import save_file

    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def references(model: RABlip) -> dict[str, dict[str, str]]:
    """Name and hash of the parts that a new model got from the hub; one of a local folder is nobody else's to find."""
    named = {section: getattr(model.config, section).name for section in REFERRED}
    return {
        section: {"name": name, "sha256": digest(model, REFERRED[section])}
        for section, name in named.items()
        if name and not Path(name).exists()
    }


def digest(model: nn.Module, part: str) -> str:
    """sha256 over the names and tensors of one part; low-rank adapters, which stand beside its own, do not count."""
    found = hashlib.sha256()
    for name, value in sorted(model.get_submodule(part).state_dict().items()):
        if ".lora_" not in name:
            found.update(name.replace(".base_layer.", ".").encode())
            found.update(value.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _unchanged(model: RABlip, section: str) -> bool:
    return digest(model, REFERRED[section]) == model.references[section]["sha256"]


def _elsewhere(name: str, kept: dict[str, dict[str, str]]) -> bool:
    """Whether the weights of this name are kept by reference."""
    return ".lora_" not in name and any(name.startswith(f"{REFERRED[section]}.") for section in kept)


def portable(model: RABlip, kept: dict[str, dict[str, str]] | None = None) -> ModelConfig:
    """The config with every Hugging Face name replaced by the config behind it, but for the parts in ``kept``."""
    config = dataclasses.replace(model.config)
    if "vision" not in (kept or {}):
        vision: Any = model.vision.model
        config.vision = dataclasses.replace(config.vision, name=None, config=plain(vision.config.to_dict()))
    if "generator" not in (kept or {}):
        llm: Any = model.reader.generator.llm
        config.generator = dataclasses.replace(config.generator, name=None, config=plain(llm.config.to_dict()))
    config.qformer = dataclasses.replace(config.qformer, text_init=None)
    config.tokenizer = dataclasses.replace(config.tokenizer, text=None, llm=None)
    return config


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """What a Hugging Face config says of the model, without what it says of files and versions."""
    dropped = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id")
    return {key: found for key, found in value.items() if key not in dropped and found is not None}


def push_folder(model: RABlip, repo_id: str, private: bool | None = None, whole: bool = False) -> str:
    """Write a model folder and upload it to the Hugging Face hub, with the caller's login; returns its address.

    Raises:
        OutputError: the upload failed.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / repo_id.rpartition("/")[2]
        write_folder(place, model, model.processor, whole)
        try:
            url = HfApi().create_repo(repo_id, private=private, exist_ok=True)
            HfApi().upload_folder(repo_id=repo_id, folder_path=place)
        except Exception as error:  # network, proxy and access fail in many classes of several packages
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OutputError(f"{repo_id}: cannot be pushed to the hub ({first})") from None
    return str(url)


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
    loaded = {path: read_folder(path)[1] for path in set(parts.values())}
    tensors = {
        name: value
        for prefix, path in parts.items()
        for name, value in loaded[path].tensors.items()
        if name.startswith(f"{prefix}.")
    }
    Weights(out, tensors, loaded[base].references).into(model)
    model.save_pretrained(out)


def _check_words(wanted: Processor, path: Path) -> None:
    """Weights read token ids: parts with other vocabularies fit in shape and read nonsense."""
    from ra_blip.models.processor import Processor

    found = Processor.load(wanted.config, path)
    for name, ours, theirs in (("text", wanted.text, found.text), ("llm", wanted.llm, found.llm)):
        if ours.get_vocab() != theirs.get_vocab():
            raise CheckpointError(f"{path}: its {name}_tokenizer has another vocabulary than the first folder's")
