from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ra_blip.errors import CheckpointError, OutputError
from ra_blip.models.folder import WEIGHTS, assemble, read_folder, swap_folder, unique_tensors
from ra_blip.models.processor import Processor, train_tokenizer
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question
from tests.tiny import SCRATCH, TEXTS, model, model_config, picture

TIED = ("generator.config.tie_word_embeddings=true",)
UNTIED = ("generator.config.tie_word_embeddings=false",)
ASKED = [Question("q", "Who designed Velora tower?"), Question("r", "Which country is this?")]


def known(folder: Path) -> list[Item]:
    return [
        Item("a", "Velora tower was designed by Moro."),
        Item("b", "a view of Velora tower", image=picture(folder, "red")),
        Item("c", image=picture(folder, "blue-green")),
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that no test writes to."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "model"
    for path in saved.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(saved)).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("layout", "overrides"),
    [
        ("interleaved", ()),
        ("release", UNTIED),
        ("interleaved", (*SCRATCH, *TIED)),
        ("interleaved", (*SCRATCH, *UNTIED)),
        ("interleaved", ("qformer.norm_first=true", "retriever.fusion_layers=0")),
    ],
)
def test_a_loaded_model_gives_the_same_bits(layout: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    first, items = model(layout, overrides), known(tmp_path)
    first.save_pretrained(tmp_path / "model")
    second = RABlip.from_pretrained(tmp_path / "model")
    assert not second.training
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.encode_items(items), second.encode_items(items))
    assert torch.equal(first.encode_question(ASKED), second.encode_question(ASKED))
    assert torch.equal(first.judge(ASKED, items[:2]), second.judge(ASKED, items[:2]))
    knowledge = [items, items[:1]]
    assert first.select(ASKED, knowledge) == second.select(ASKED, knowledge)
    assert first.generate(ASKED, knowledge) == second.generate(ASKED, knowledge)
    wanted, found = first.state_dict(), second.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())
    second.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "model" / WEIGHTS).read_bytes()
    assert read_folder(tmp_path / "again")[0] == read_folder(tmp_path / "model")[0]


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    built = model(overrides=(*SCRATCH, *TIED))
    names = set(unique_tensors(built))
    assert len([name for name in names if "llm" in name and ("shared" in name or "lm_head.words" in name)]) == 1
    built.save_pretrained(tmp_path / "model")
    assert set(load_file(tmp_path / "model" / WEIGHTS)) == names
    llm = RABlip.from_pretrained(tmp_path / "model").reader.generator.llm
    assert llm.lm_head.words.weight is llm.get_input_embeddings().weight


def test_the_folder_names_no_other(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())["model"]
    assert [config[part]["name"] for part in ("vision", "generator")] == [None, None]
    assert (config["tokenizer"]["text"], config["tokenizer"]["llm"]) == (None, None)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "llm_tokenizer", WEIGHTS, "text_tokenizer"]


def test_saving_over_a_folder_replaces_it_and_leaves_nothing_beside_it(folder: Path) -> None:
    (folder / "stale").write_text("old")
    other = model(seed=9)
    other.save_pretrained(folder)
    assert not (folder / "stale").exists() and [path.name for path in folder.parent.iterdir()] == ["model"]
    assert RABlip.from_pretrained(folder).fingerprint == other.fingerprint


def test_saving_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        model().save_pretrained(tmp_path / "file" / "model")


def test_swap(tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swap_folder(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "new"]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        RABlip.from_pretrained(folder)


def test_missing_tokenizers_are_named(folder: Path) -> None:
    for path in (folder / "llm_tokenizer").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="llm_tokenizer"):
        RABlip.from_pretrained(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        RABlip.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"damaged model folder"):
        RABlip.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"model_type": "t5", "d_model": 8}', '{"model": 3}', "\x00"])
def test_a_foreign_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="model"):
        RABlip.from_pretrained(folder)


def test_an_unknown_key_in_the_config_is_named(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    value["model"]["qformer"]["widht"] = 3
    (folder / "config.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="widht"):
        RABlip.from_pretrained(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_do_not_fit_are_named(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    if change == "missing":
        del tensors["retriever.head.weight"]
    elif change == "extra":
        tensors["retriever.haed.weight"] = torch.zeros(3)
    else:
        tensors["retriever.head.weight"] = torch.zeros(3, 5)
    save_file(tensors, folder / WEIGHTS)
    match = {"missing": "missing.*head", "extra": "unexpected.*haed", "shape": r"head.weight has shape \(3, 5\)"}
    with pytest.raises(CheckpointError, match=match[change]):
        RABlip.from_pretrained(folder)


# ---------------------------------------------------------------- assembling


def test_each_part_comes_from_its_folder(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model(seed=5).save_pretrained(other)
    parts = {"vision": saved, "retriever": other, "reader": saved, "ranker": other}
    assemble(parts, tmp_path / "out")
    first, second, made = (load_file(path / WEIGHTS) for path in (saved, other, tmp_path / "out"))
    for name, value in made.items():
        source = first if parts[name.partition(".")[0]] == saved else second
        assert torch.equal(value, source[name]), name
    assert not torch.equal(first["ranker.dense.weight"], second["ranker.dense.weight"])
    assert RABlip.from_pretrained(tmp_path / "out").encode_question(ASKED).shape == (2, 12)


def test_parts_that_do_not_belong_together(saved: Path, tmp_path: Path) -> None:
    model(overrides=("retriever.dimension=7",)).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"retriever\.head"):
        assemble({"vision": saved, "retriever": tmp_path / "other", "reader": saved, "ranker": saved}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    other = Processor(model_config(), train_tokenizer(TEXTS[1:], 260, "bert"), model().processor.llm)
    RABlip(model_config(), other).save_pretrained(tmp_path / "words")
    with pytest.raises(CheckpointError, match="text_tokenizer has another vocabulary"):
        assemble({"vision": saved, "retriever": tmp_path / "words", "reader": saved, "ranker": saved}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="missing"):
        assemble({"vision": saved, "reader": saved}, tmp_path / "out")
