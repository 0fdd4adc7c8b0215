from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ra_blip.config import PrecisionConfig
from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoint_config import SETTINGS
from ra_blip.models.presets import PRESETS
from ra_blip.models.rablip import RABlip
from ra_blip.models.released import load_released
from ra_blip.records import Item, Question
from tests.tiny import TEXTS, close, picture
from tests.toy_llms import released_folder

UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
FLAN: dict[str, Any] = {**UNTIED, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}
# kind, language model, its settings; every released pairing is there in small
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("instructblip", "t5", FLAN),
    ("instructblip", "llama", UNTIED),
    ("blip-2", "t5", FLAN),
    ("blip-2", "opt", {}),
]
ASKED = ["Which country is this?", "What colour is the roof of Kimuna hall, red or blue or green?", "red"]


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from ra_blip.models.processor import train_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    train_tokenizer(TEXTS, 260, "bert").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_tokenizer: str) -> Any:
    """Their model, ours, and pictures."""
    kind, family, settings = request.param
    folder = tmp_path_factory.mktemp("released")
    theirs = released_folder(folder, kind, family, **settings)
    ours = RABlip.from_pretrained(folder, text_tokenizer=text_tokenizer)
    images = [picture(folder / "pictures", name) for name in ("red-blue", "green", "white-black")]
    return theirs, ours, images


def questions(images: list[str]) -> list[Question]:
    return [Question(str(i), *both) for i, both in enumerate(zip(ASKED, images, strict=True))]


def their_inputs(theirs: Any, ours: RABlip, asked: Question) -> dict[str, Tensor]:
    """What the Hugging Face processor makes of one question: picture tokens first, then begin token and words."""
    processor = ours.processor
    words = processor.prompt("answer", asked, []).text.removeprefix("<image> ")
    ids = [processor.image_id] * 3 + processor.llm(words).input_ids
    pixels = processor.pixels([str(asked.image)]) / 255.0
    vision = ours.config.vision
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (vision.mean, vision.std))
    given = {"pixel_values": (pixels - mean) / std, "input_ids": torch.tensor([ids])}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if theirs.config.model_type == "instructblip":
        guide = processor.text([words], return_tensors="pt")
        given |= {"qformer_input_ids": guide.input_ids, "qformer_attention_mask": guide.attention_mask}
    return given


def our_states(ours: RABlip, asked: list[Question]) -> tuple[Tensor, Any, Tensor]:
    return ours._read("answer", asked, [[]] * len(asked))


@torch.inference_mode()
def test_logits_of_a_padded_batch_and_of_one_equal_theirs(pair: Any) -> None:
    theirs, ours, images = pair
    asked = questions(images)
    labels = ours.processor.targets(["red and blue", "red", "Velora tower"])
    generator = ours.reader.generator
    states, batch, source = our_states(ours, asked)
    assert batch.mask.sum(-1).unique().numel() == 3, "padded"
    found = generator.answer_logits(states, batch.mask, source, labels)
    for row, question in enumerate(asked):
        target = labels[row : row + 1][labels[row : row + 1] != -100][None]
        given = their_inputs(theirs, ours, question)
        if ours.processor.causal:
            length = given["input_ids"].shape[1]
            given["input_ids"] = torch.cat([given["input_ids"], target], dim=1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            expected = theirs(**given).logits[:, length - 1 : -1]
        else:
            expected = theirs(**given, labels=target).logits
        assert expected.abs().max() > 0.1
        assert close(found[row : row + 1, : target.shape[1]], expected, 1e-5)
        alone, one, where = our_states(ours, [question])
        assert close(generator.answer_logits(alone, one.mask, where, target), expected, 1e-5)


@torch.inference_mode()
def test_greedy_tokens_equal_theirs(pair: Any) -> None:
    theirs, ours, images = pair
    asked = questions(images)
    generator = ours.reader.generator
    generator.config = dataclasses.replace(
        generator.config, beams=1, answer_length=7, repetition_penalty=1.0, min_answer_length=0
    )
    states, batch, source = our_states(ours, asked)
    said = generator.generate(states, batch.mask, source)
    generator.config = ours.config.generator
    for row, question in enumerate(asked):
        given = their_inputs(theirs, ours, question)
        expected = theirs.generate(**given, max_new_tokens=7, do_sample=False)[0]
        expected = expected[given["input_ids"].shape[1] :] if ours.processor.causal else expected
        assert said[row, : len(expected)].tolist() == expected.tolist()
        assert (said[row, len(expected) :] == generator.pad).all()


def test_settings_are_the_releases_and_the_report_says_what_is_new(pair: Any) -> None:
    theirs, ours, _ = pair
    layout = "hf-blip2" if theirs.config.model_type == "blip-2" else "hf-instructblip"
    generator = ours.config.generator
    assert {key: getattr(generator, key) for key in SETTINGS[layout]} == SETTINGS[layout]
    assert generator.begin == ("</s>" if theirs.config.text_config.model_type == "llama" else None)
    assert ours.config.qformer.reader_text == (layout == "hf-instructblip")
    report = ours.load_report
    assert report is not None and report.sources[0][1] == layout and not report.adapted
    new = {".".join(name.split(".")[:2]) for name in report.fresh}
    assert {"retriever.fusion", "ranker.dense", "reader.slot_embedding"} <= new
    assert not new & {"reader.qformer", "reader.project", "reader.generator", "reader.ln_vision", "vision.model"}
    assert not ours.training


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_questions_are_answered_with_and_without_knowledge(pair: Any, tmp_path: Path) -> None:
    from ra_blip.generation.pipeline import Pipeline, PipelineConfig
    from ra_blip.retrieval.index import KnowledgeIndex

    _, ours, images = pair
    ours.reader.generator.config = dataclasses.replace(ours.config.generator, answer_length=3, beams=2)
    alone = Pipeline(ours, None)(ASKED[0], image=images[0])
    assert alone.kept == [] and alone.decoding["num_beams"] == 2 and ASKED[0] in alone.prompt
    items = [Item("a", "a view of Velora tower", image=images[1]), Item("b", "Kimuna hall stands in Belor.")]
    index = KnowledgeIndex.build(items, ours)
    trace = Pipeline(ours, index, PipelineConfig(k=2, rerank="none"))(ASKED[0], image=images[0])
    assert trace.kept and set(trace.kept) <= {"a", "b"} and sum(trace.relevance) == pytest.approx(1, abs=1e-5)
    ours.reader.generator.config = ours.config.generator


def test_half_precision_and_the_same_start_every_time(tmp_path: Path, text_tokenizer: str) -> None:
    released_folder(tmp_path, "blip-2", "t5", **FLAN)
    half = PrecisionConfig("bf16", "bf16", "bf16")
    first, second = (
        RABlip.from_pretrained(tmp_path, text_tokenizer=text_tokenizer, precision=one) for one in (None, half)
    )
    dtypes = {name.partition(".")[0]: value.dtype for name, value in second.named_parameters()}
    assert dtypes["vision"] == torch.bfloat16 and dtypes["retriever"] == torch.float32
    assert {p.dtype for p in second.reader.generator.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in second.reader.qformer.parameters()} == {torch.float32}
    fusion = [model.retriever.fusion.state_dict() for model in (first, second)]
    assert all(torch.equal(fusion[0][name], fusion[1][name]) for name in fusion[0])
    asked = questions([picture(tmp_path, name) for name in ("red", "blue", "green")])
    shares = [model.select(asked, [[Item("a", "red"), Item("b", "blue")]] * 3) for model in (first, second)]
    assert shares[0][0] == pytest.approx(shares[1][0], abs=0.1)
    assert len(second.generate(asked[:1], [[]])) == 1


def test_a_saved_model_over_released_weights_is_the_same(tmp_path: Path, text_tokenizer: str) -> None:
    released_folder(tmp_path / "hub", "instructblip", "t5", **FLAN)
    first = RABlip.from_pretrained(tmp_path / "hub")
    first.save_pretrained(tmp_path / "ours")
    again = RABlip.from_pretrained(tmp_path / "ours")
    assert again.config.generator.guide == "prompt" and again.config.generator.beams == 5
    head, words = (again.reader.generator.llm.get_submodule(name).weight for name in ("lm_head", "shared"))
    assert not torch.equal(head, words), "Flan-T5's output matrix is its own"
    asked = questions([picture(tmp_path, name) for name in ("red", "blue", "green")])
    assert again.generate(asked[:1], [[]]) == first.generate(asked[:1], [[]])
    images = [str(one.image) for one in asked]
    with torch.inference_mode():
        expected = first.vision(first.processor.pixels(images))
    assert close(first.image_features(images), expected, 1e-5), "features in fp32 are the tower's own"
    kept = [RABlip.from_pretrained(tmp_path / "hub", tmp_path / "features").image_features(images) for _ in range(2)]
    assert torch.equal(kept[0], expected) and torch.equal(kept[1], expected)


@pytest.mark.parametrize(("kind", "family", "settings"), CASES, ids=lambda case: str(case))
def test_converted_weights_make_the_same_model(
    kind: str, family: str, settings: dict[str, Any], tmp_path: Path, text_tokenizer: str
) -> None:
    """Hugging Face to ours and back: each folder makes the same model, and their class says the same from the last."""
    from ra_blip.models.conversion import convert

    theirs = released_folder(tmp_path / "hub", kind, family, **settings)
    convert([tmp_path / "hub"], tmp_path / "native", "native")
    convert([tmp_path / "native"], tmp_path / "again", "hf")
    given = {} if kind == "instructblip" else {"text_tokenizer": text_tokenizer}
    models = [RABlip.from_pretrained(tmp_path / name, **given) for name in ("hub", "native", "again")]  # type: ignore[arg-type]
    first = models[0].state_dict()
    for other in models[1:]:
        assert other.config.generator == models[0].config.generator and other.config.qformer == models[0].config.qformer
        assert all(torch.equal(value, first[name]) for name, value in other.state_dict().items())
        assert other.processor.llm.get_vocab() == models[0].processor.llm.get_vocab()
    assert str(tmp_path) not in (tmp_path / "native" / "config.json").read_text(), "it can be moved"
    ours = models[0].processor
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    inputs = their_inputs(theirs, models[0], Question("q", ASKED[1], picture(tmp_path, "red-blue")))
    inputs |= {} if ours.causal else {"labels": ours.targets(["red and blue"])}
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, theirs(**inputs).logits), "it finds the place of the picture"


def test_tokenizers_that_are_not_there(tmp_path: Path, text_tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ra_blip.models.released.BERT", str(tmp_path / "no" / "bert"))
    released_folder(tmp_path / "hub", "blip-2", "opt")
    with pytest.raises(CheckpointError, match="put one into the subfolder qformer_tokenizer"):
        RABlip.from_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer of the language model"):
        RABlip.from_pretrained(tmp_path / "hub", text_tokenizer=text_tokenizer)


# ---------------------------------------------------------------- LAVIS


def lavis_files(folder: Path, kind: str, family: str, settings: dict[str, Any], text_tokenizer: str) -> RABlip:
    """The same weights as LAVIS has them: Q-Former file, tower file, the language model in a folder of its own."""
    from ra_blip.models.conversion import convert

    theirs = released_folder(folder / "hub", kind, family, **settings)
    ours = RABlip.from_pretrained(folder / "hub", text_tokenizer=text_tokenizer)
    convert([folder / "hub"], folder / "both.pth", "lavis")
    both = torch.load(folder / "both.pth", weights_only=True)["model"]
    eye = "visual_encoder."
    tower = {name.removeprefix(eye): value for name, value in both.items() if name.startswith(eye)}
    rest = {name: value for name, value in both.items() if not name.startswith((eye, "t5_model.", "opt_model."))}
    torch.save({"model": rest}, folder / "qformer.pth")
    torch.save(tower, folder / "eva_vit_g.pth")
    llm = theirs.language_model
    if family == "t5":
        llm.config.dense_act_fn = "gelu_new"  # as Flan-T5's own folder means it
    llm.save_pretrained(folder / "llm")
    ours.processor.llm.save_pretrained(folder / "llm")
    return ours


@pytest.mark.parametrize(("kind", "family", "settings"), [CASES[0], CASES[3]], ids=["instructblip t5", "blip-2 opt"])
def test_lavis_files_say_the_same(
    kind: str, family: str, settings: dict[str, Any], tmp_path: Path, text_tokenizer: str
) -> None:
    ours = lavis_files(tmp_path, kind, family, settings, text_tokenizer)
    files = [tmp_path / name for name in ("qformer.pth", "eva_vit_g.pth")]
    llm, asked = str(tmp_path / "llm"), questions([picture(tmp_path, name) for name in ("red", "blue", "green")])
    same = RABlip.from_pretrained(files, llm=llm, text_tokenizer=text_tokenizer)
    assert same.load_report is not None and len(same.load_report.sources) == 2
    assert (ours.config.generator.end, same.config.generator.end) == (
        ("</s>", "Ċ") if family == "opt" else (None, None)
    )
    if family == "t5":
        assert same.reader.generator.llm.config.dense_act_fn == "gelu"
    labels = ours.processor.targets(["red and blue"] * 3)
    with torch.inference_mode():
        found = []
        for model in (ours, same):
            states, batch, source = our_states(model, asked)
            found.append(model.reader.generator.answer_logits(states, batch.mask, source, labels))
    assert close(*found, 1e-3), "the two layouts differ in one epsilon, 1e-5 and 1e-6"
    with pytest.raises(CheckpointError, match="no language model"):
        RABlip.from_pretrained(files, text_tokenizer=text_tokenizer)
    with pytest.raises(CheckpointError, match="no vision tower"):
        RABlip.from_pretrained(files[0], llm=llm, text_tokenizer=text_tokenizer)


def test_a_preset_finds_its_files_in_a_folder(tmp_path: Path, text_tokenizer: str) -> None:
    lavis_files(tmp_path, *CASES[0], text_tokenizer)  # type: ignore[arg-type]
    preset = PRESETS["instructblip-flan-t5-xl"]
    (tmp_path / "files").mkdir()
    for (name, _), mine in zip(preset.lavis, ("eva_vit_g.pth", "qformer.pth"), strict=True):
        (tmp_path / mine).rename(tmp_path / "files" / name)
    given = {"llm": str(tmp_path / "llm"), "text_tokenizer": text_tokenizer}
    model = RABlip.from_pretrained("instructblip-flan-t5-xl", checkpoint=[tmp_path / "files"], **given)  # type: ignore[arg-type]
    assert model.config.precision == preset.config.precision
    assert next(model.vision.model.parameters()).dtype == torch.float16
    assert model.image_features([picture(tmp_path, "red")]).isfinite().all()
    with pytest.raises(CheckpointError, match=r"instruct_blip_flanxl_trimmed\.pth"):
        RABlip.from_pretrained("ra-blip-t5-base")
    with pytest.raises(CheckpointError, match=r"eva_vit_g\.pth: no such file"):
        RABlip.from_pretrained("instructblip-flan-t5-xl", checkpoint=[tmp_path / "llm" / ".."])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        RABlip.from_pretrained(tmp_path / "nothing")
    (tmp_path / "wrong.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"wrong\.pth"):
        load_released(tmp_path / "wrong.pth")
