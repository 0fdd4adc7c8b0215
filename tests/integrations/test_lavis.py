from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ra_blip.errors import CheckpointError, MissingExtra
from ra_blip.integrations import lavis
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question
from tests.tiny import close, model, picture


class FakeBase(nn.Module):
    """LAVIS's base class of models, as far as it is called."""


class FakeProcessor:
    """LAVIS's base class of processors."""


class FakeRegistry:
    """LAVIS's registry: decorators that check, getters that give None."""

    models: ClassVar[dict[str, Any]] = {}
    processors: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _decorator(cls, known: dict[str, Any], name: str, base: type) -> Callable[[type], type]:
        def wrap(made: type) -> type:
            assert issubclass(made, base)
            if name in known:
                raise KeyError(f"Name {name!r} already registered")
            known[name] = made
            return made

        return wrap

    @classmethod
    def register_model(cls, name: str) -> Callable[[type], type]:
        return cls._decorator(cls.models, name, FakeBase)

    @classmethod
    def register_processor(cls, name: str) -> Callable[[type], type]:
        return cls._decorator(cls.processors, name, FakeProcessor)

    @classmethod
    def get_model_class(cls, name: str) -> Any:
        return cls.models.get(name)

    @classmethod
    def get_processor_class(cls, name: str) -> Any:
        return cls.processors.get(name)


def fake_load(name: str, model_type: str, is_eval: bool = False, device: str = "cpu") -> tuple[Any, Any, Any]:
    """What LAVIS's ``load_model_and_preprocess`` calls, in its order."""
    from omegaconf import OmegaConf

    kind = FakeRegistry.get_model_class(name)
    built = kind.from_pretrained(model_type=model_type)
    if is_eval:
        built.eval()
    config: Any = OmegaConf.load(kind.default_config_path(model_type)).preprocess
    made = config.vis_processor.eval
    images = {"eval": FakeRegistry.get_processor_class(made.name).from_config(made)}
    return built.float().to(device), images, {"eval": FakeProcessor()}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, Any, Any]]]:
    """LAVIS's loader, over a LAVIS that is not there."""
    parts = {
        "lavis": {"__path__": []},
        "lavis.common": {"__path__": []},
        "lavis.common.registry": {"registry": FakeRegistry},
        "lavis.models": {"__path__": []},
        "lavis.models.base_model": {"BaseModel": FakeBase},
        "lavis.processors": {"__path__": []},
        "lavis.processors.base_processor": {"BaseProcessor": FakeProcessor},
    }
    for name, content in parts.items():
        made = types.ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(FakeRegistry, "models", {})
    monkeypatch.setattr(FakeRegistry, "processors", {})
    monkeypatch.setattr(lavis, "_fill_transformers", lambda: None)
    lavis.register()
    yield fake_load


@pytest.fixture(params=["stand-in", "lavis"])
def loader(request: pytest.FixtureRequest) -> Callable[..., tuple[Any, Any, Any]]:
    """The stand-in's loader, and the true one where LAVIS was added."""
    if request.param == "stand-in":
        return request.getfixturevalue("load")  # type: ignore[no-any-return]
    if importlib.util.find_spec("lavis") is None:
        pytest.skip("LAVIS is not installed (added by hand)")
    lavis.register()
    lavis.register()
    return importlib.import_module("lavis.models").load_model_and_preprocess  # type: ignore[no-any-return]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    built = model("release")
    built.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def pixels(processors: dict[str, Any], images: list[str]) -> Tensor:
    return torch.stack([processors["eval"](Image.open(image)) for image in images])


def test_registering_again_changes_nothing(load: Callable[..., Any]) -> None:
    first = FakeRegistry.models[lavis.MODEL]
    assert lavis.register() is first and set(FakeRegistry.models) == {"ra_blip"}
    assert issubclass(first, FakeBase) and set(FakeRegistry.processors) == {"ra_blip_image"}


def asked_of(files: list[str]) -> list[Question]:
    """A question about each of two pictures."""
    texts = ["Which country is this?", "What colour is the roof?"]
    return [Question(str(i), *pair) for i, pair in enumerate(zip(texts, files, strict=True))]


def test_a_model_folder_answers_through_lavis_calls(loader: Callable[..., Any], folder: str, tmp_path: Path) -> None:
    built, images, _ = loader("ra_blip", folder, is_eval=True, device="cpu")
    own = RABlip.from_pretrained(folder)
    assert not built.training and isinstance(built.model, RABlip)
    files = [picture(tmp_path, name) for name in ("red-blue", "green-white")]
    seen = pixels(images, files)
    assert seen.shape == (2, 3, 16, 16) and torch.equal(seen, own.processor.pixels(files))
    asked = asked_of(files)
    samples = {"image": seen, "text_input": [question.text for question in asked]}
    expected = [one.answer for one in own.generate(asked, [[], []])]
    assert built.generate(samples) == expected == built.predict_answers(samples)
    alone = Question("0", asked[0].text)
    assert built.generate({"text_input": [alone.text]}) == [own.generate([alone], [[]])[0].answer]
    item = Item("a", "a view of Velora tower", image=picture(tmp_path, "black"))
    known = built.generate({**samples, "knowledge": [[item], []]})
    assert known == [one.answer for one in own.generate(asked, [[item], []])]
    beams = built.generate(samples, num_beams=3, max_length=2)
    own.reader.generator.config.beams, own.reader.generator.config.answer_length = 3, 2
    assert beams == [one.answer for one in own.generate(asked, [[], []])]
    assert built.model.reader.generator.config.beams == 1, "and is as before"
    with pytest.raises(ValueError, match="not sampled"):
        built.generate(samples, use_nucleus_sampling=True)


def test_a_model_folder_encodes_through_lavis_calls(loader: Callable[..., Any], folder: str, tmp_path: Path) -> None:
    built, images, _ = loader("ra_blip", folder, is_eval=True, device="cpu")
    own = RABlip.from_pretrained(folder)
    files = [picture(tmp_path, name) for name in ("red-blue", "green-white")]
    seen, asked = pixels(images, files), asked_of(files)
    samples = {"image": seen, "text_input": [question.text for question in asked]}
    found = built.extract_features({"image": seen}, mode="image")
    vectors = own.encode_items([Item("x", image=file) for file in files])
    assert close(found.image_embeds_proj, vectors)
    assert found.image_embeds.shape == (2, own.config.qformer.width) and found.text_embeds_proj is None
    found = built.extract_features(samples, mode="text")
    assert close(found.text_embeds_proj, own.encode_question([Question("x", question.text) for question in asked]))
    found = built.extract_features(samples)
    assert close(found.multimodal_embeds_proj, own.encode_question(asked))
    with pytest.raises(ValueError, match="none of multimodal"):
        built.extract_features(samples, mode="video")


def test_pictures_of_another_size_or_form_are_refused(load: Callable[..., Any], folder: str) -> None:
    built, _, _ = load("ra_blip", folder)
    for wrong in (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 20, 20, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"makes \(B, 3, 16, 16\) uint8"):
            built.extract_features({"image": wrong}, mode="image")


def test_a_prompt_asks_for_all_pictures(load: Callable[..., Any], folder: str, tmp_path: Path) -> None:
    built, images, _ = load("ra_blip", folder)
    seen = pixels(images, [picture(tmp_path, name) for name in ("red", "green")])
    both = built.generate({"image": seen, "prompt": "What colour is the roof?"})
    assert both == built.generate({"image": seen, "text_input": ["What colour is the roof?"] * 2})
    put = built.predict_answers({"image": seen, "text_input": ["the roof"] * 2}, prompt="What colour is {}?", max_len=3)
    assert put == built.generate({"image": seen, "text_input": ["What colour is the roof?"] * 2}, max_length=3)


@pytest.mark.parametrize(
    ("wanted", "kind", "said"),
    [
        ("lavis", MissingExtra, r"by hand, see ra_blip\.integrations\.lavis.*ra-blip\[lavis\]"),
        ("iopath.common", MissingExtra, r"'iopath\.common'.*ra-blip\[lavis\]"),
        ("", CheckpointError, r"cannot be imported: cannot import name 'x'$"),
    ],
)
def test_without_a_lavis_that_works_the_error_says_why(
    wanted: str, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, package: str | None = None) -> types.ModuleType:
        if wanted:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        raise ImportError("cannot import name 'x'\nmore")

    monkeypatch.setattr(lavis, "_fill_transformers", lambda: None)
    monkeypatch.setattr(lavis.importlib, "import_module", missing)
    with pytest.raises(kind, match=said):
        lavis.register()
