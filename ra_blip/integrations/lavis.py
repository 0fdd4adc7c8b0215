"""Our models under LAVIS's calls, where a LAVIS can be imported.

LAVIS 1.0.2 pins packages of 2022, so it is added by hand to the extra, with the packages that bring a torch of their
own::

    pip install 'ra-blip[lavis]'
    pip install --no-deps salesforce-lavis==1.0.2 timm torchvision    # a torchvision built for the torch that is there

After :func:`register`, which may be called again::

    model, image_processors, text_processors = load_model_and_preprocess("ra_blip", "runs/demo/model", is_eval=True)
    model.generate({"image": pixels, "text_input": ["which tower is this?"]})

The registry, model building, ``generate``, ``predict_answers`` and ``extract_features`` are served; LAVIS's runner is
not.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import sys
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ra_blip.errors import CheckpointError, MissingExtra
from ra_blip.images import resize
from ra_blip.models.llm import DTYPES
from ra_blip.models.rablip import RABlip
from ra_blip.records import Question

MODEL, IMAGE_PROCESSOR = "ra_blip", "ra_blip_image"
BY_HAND = ("lavis", "timm", "torchvision")


@dataclasses.dataclass
class LavisFeatures:
    """What ``extract_features`` gives; the names are LAVIS's, and what a mode does not make is None.

    Attributes:
        image_embeds, multimodal_embeds: fused queries, read alone or guided by the text; mean over them (B, width).
        image_embeds_proj, text_embeds_proj, multimodal_embeds_proj: unit vectors in the shared space (B, D).
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None
    multimodal_embeds_proj: Tensor | None = None


class LavisModel:
    """What LAVIS calls on a model; :func:`register` joins it with LAVIS's own base class.

    A ``samples`` dict holds ``image`` (B, 3, S, S) uint8 as the registered processor makes it, ``text_input`` or
    ``prompt`` (one text, or one a picture), and perhaps ``knowledge``: for each question a list of
    :class:`ra_blip.records.Item`.
    """

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, int]] = {}  # LAVIS's name; types loaded so far -> picture size
    model: RABlip

    def __init__(self, model: RABlip) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_pretrained(cls, model_type: str) -> LavisModel:
        """The model type is a model folder, a hub id or a preset. Raises as :meth:`RABlip.from_pretrained`."""
        model = RABlip.from_pretrained(model_type)
        cls.PRETRAINED_MODEL_CONFIG_DICT[model_type] = model.config.vision.image_size
        return cls(model)

    @classmethod
    def default_config_path(cls, model_type: str) -> io.StringIO:
        """The configuration that LAVIS builds processors from after the model: its picture size, as a stream."""
        processor = {"name": IMAGE_PROCESSOR, "image_size": cls.PRETRAINED_MODEL_CONFIG_DICT[model_type]}
        return io.StringIO(json.dumps({"preprocess": {"vis_processor": {"train": processor, "eval": processor}}}))

    @torch.inference_mode()
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int | None = None,
        max_length: int | None = None,
        min_length: int | None = None,
        repetition_penalty: float | None = None,
        length_penalty: float | None = None,
    ) -> list[str]:
        """Answers; options that are None stay the model's. Raises ValueError: sampling, which nothing here does."""
        if use_nucleus_sampling:
            raise ValueError("use_nucleus_sampling: answers are not sampled")
        given: dict[str, Any] = {
            "beams": num_beams,
            "answer_length": max_length,
            "min_answer_length": min_length,
            "repetition_penalty": repetition_penalty,
            "length_penalty": length_penalty,
        }
        generator, processor, pixels = self.model.reader.generator, self.model.processor, samples.get("image")
        rows = {} if pixels is None else {f"sample {row}": row for row in range(len(pixels))}
        texts = self._texts(samples)
        images: list[str | None] = [*rows] if rows else [None] * len(texts)
        asked = [Question(str(i), *pair) for i, pair in enumerate(zip(texts, images, strict=True))]
        knowledge = samples.get("knowledge") or [[]] * len(asked)
        prompts = [processor.prompt("answer", q, items) for q, items in zip(asked, knowledge, strict=True)]
        batch = processor.prompts(prompts, rows).to(self.model.device)
        parts = [] if pixels is None else [self._features(pixels)]
        if files := [image for image in rows if image not in images]:  # the knowledge's pictures
            parts.append(self.model.image_features(files))
        states, source = self.model.reader.prompt_states(torch.cat(parts) if parts else None, batch)
        before = generator.config
        generator.config = dataclasses.replace(
            before, **{key: value for key, value in given.items() if value is not None}
        )
        try:
            return processor.decode(generator.generate(states, batch.mask, source))
        finally:
            generator.config = before

    def predict_answers(self, samples: Mapping[str, Any], prompt: str = "", **options: Any) -> list[str]:
        """As :meth:`generate`; ``prompt`` with ``{}`` for the question. ``max_len``, ``min_len``: tokens."""
        names = {"max_len": "max_length", "min_len": "min_length"}
        options = {names.get(key, key): value for key, value in options.items() if key != "inference_method"}
        texts = [prompt.replace("{}", text) if prompt else text for text in self._texts(samples)]
        return self.generate({**samples, "text_input": texts, "prompt": None}, **options)

    @torch.inference_mode()
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> LavisFeatures:
        """Vectors of pictures, texts, or pictures read under a text's guidance. Raises ValueError: another mode."""
        if mode not in ("multimodal", "image", "text"):
            raise ValueError(f"mode {mode!r} is none of multimodal, image, text")
        retriever, found = self.model.retriever, LavisFeatures()
        if mode != "image":
            ids, mask = (part.to(self.model.device) for part in self.model.processor.texts(self._texts(samples)))
        if mode == "text":
            return dataclasses.replace(found, text_embeds_proj=retriever.text_vectors(ids, mask))
        kv = retriever.kv(self._features(samples["image"]))
        if mode == "image":
            return dataclasses.replace(
                found, image_embeds=retriever.fused(kv), image_embeds_proj=retriever.picture_vectors(kv)
            )
        fused, vectors = retriever.fused(kv, ids, mask), retriever.picture_vectors(kv, ids, mask)
        return dataclasses.replace(found, multimodal_embeds=fused, multimodal_embeds_proj=vectors)

    def _texts(self, samples: Mapping[str, Any]) -> list[str]:
        given = samples.get("prompt") or samples["text_input"]
        if isinstance(given, str):
            return [given] * (len(samples["image"]) if samples.get("image") is not None else 1)
        return list(given)

    def _features(self, pixels: Tensor) -> Tensor:
        size = self.model.config.vision.image_size
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, size, size):
            found = f"{tuple(pixels.shape)} {pixels.dtype}"
            raise ValueError(f"image is {found}; {IMAGE_PROCESSOR!r} makes (B, 3, {size}, {size}) uint8")
        kept = DTYPES[self.model.config.precision.features]  # the same bits as of a picture that is a file
        return self.model.vision(pixels.to(self.model.device)).to(kept).float()  # type: ignore[no-any-return]


class ImageProcessor:
    """A PIL picture to (3, S, S) uint8; the model normalises by itself. Joined with LAVIS's own base class."""

    def __init__(self, image_size: int = 224) -> None:
        super().__init__()
        self.image_size = image_size

    def __call__(self, item: Any) -> Tensor:
        """Squeeze to a square."""
        return torch.from_numpy(resize(item, self.image_size))

    @classmethod
    def from_config(cls, cfg: Any = None) -> ImageProcessor:
        """LAVIS's constructor; reads ``image_size``."""
        return cls(int((cfg or {}).get("image_size", 224)))


def register() -> type[Any]:
    """Put our model and processor into LAVIS's registry, once; further calls change nothing.

    Returns:
        the registered model class.

    Raises:
        MissingExtra: a LAVIS, or a package that it needs, is not installed.
        CheckpointError: LAVIS is installed and cannot be imported for another reason, which the message names.
    """
    registry = _import_lavis().registry
    if (known := registry.get_model_class(MODEL)) is not None:
        return known  # type: ignore[no-any-return]
    base = importlib.import_module("lavis.models.base_model").BaseModel
    processor = importlib.import_module("lavis.processors.base_processor").BaseProcessor
    registry.register_processor(IMAGE_PROCESSOR)(type("RABlipImageProcessor", (ImageProcessor, processor), {}))
    made: type[Any] = type("RABlipModel", (LavisModel, base), {})
    registry.register_model(MODEL)(made)
    return made


def _import_lavis() -> Any:
    """LAVIS's registry module; what LAVIS misses in a current transformers is put there first."""
    _fill_transformers()
    try:
        importlib.import_module("lavis")
        return importlib.import_module("lavis.common.registry")
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        hint = f"{name} (by hand, see ra_blip.integrations.lavis)" if name.partition(".")[0] in BY_HAND else name
        raise MissingExtra(hint, "lavis") from None
    except (ImportError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"LAVIS is installed and cannot be imported: {str(error).splitlines()[0]}") from error


def _fill_transformers() -> None:
    """Names that LAVIS imports and transformers 5 has elsewhere or no more; none of them runs in our models."""
    from transformers import modeling_utils, pytorch_utils, utils

    def gone(*_: object, **__: object) -> None:
        raise CheckpointError("transformers 5 has no head pruning and no device maps by hand any more")

    for name in ("apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices"):
        for module in (pytorch_utils, modeling_utils):
            if not hasattr(module, name):
                setattr(module, name, getattr(pytorch_utils, name, gone))
    name = "transformers.utils.model_parallel_utils"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        made: Any = types.ModuleType(name)
        made.assert_device_map = made.get_device_map = gone
        sys.modules[name] = utils.model_parallel_utils = made  # type: ignore[attr-defined]
