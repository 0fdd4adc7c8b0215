from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ra_blip.errors import CheckpointError, OutputError
from ra_blip.models.folder import (
    WEIGHTS,
    assemble,
    digest,
    locate,
    push_folder,
    read_folder,
    unique_tensors,
)
from ra_blip.models.processor import Processor, train_tokenizer
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question
from tests.crash import Crash, Crashing
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
    files = ["README.md", "config.json", "llm_tokenizer", WEIGHTS, "text_tokenizer"]
    assert sorted(path.name for path in saved.iterdir()) == files


def test_the_model_card_counts_what_is_stored(saved: Path) -> None:
    lines = (saved / "README.md").read_text().splitlines()
    assert lines[0] == "---" and "library_name: ra-blip" in lines
    counts = [
        int(line.split("|")[2].replace(",", "")) for line in lines if line.startswith("| ") and "part" not in line
    ]
    assert sum(counts) == sum(value.numel() for value in load_file(saved / WEIGHTS).values())


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


RENAME, RMTREE = os.rename, shutil.rmtree


@functools.cache
def _two() -> tuple[RABlip, RABlip]:
    """Models that no test changes."""
    return model(), model(seed=9)


@pytest.mark.parametrize("crash_at", range(1, 6))
def test_a_crash_while_saving_never_loses_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    old, new = _two()
    step = Crashing(crash_at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", step(RENAME))
        patch.setattr(shutil, "rmtree", step(RMTREE))
        try:
            new.save_pretrained(folder)
            crashed = False
        except Crash:
            crashed = True
    assert crashed == (step.steps == crash_at)
    assert RABlip.from_pretrained(folder).fingerprint in (old.fingerprint, new.fingerprint)
    new.save_pretrained(folder)
    assert RABlip.from_pretrained(folder).fingerprint == new.fingerprint
    assert os.listdir(folder.parent) == ["model"]


# ---------------------------------------------------------------- parts kept elsewhere, the hub


class Hub:
    """What the hub has, as ``from_pretrained`` of transformers is asked for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        from transformers import AutoModel, AutoModelForSeq2SeqLM

        self.folder = folder
        given = model("release")
        given.vision.model.save_pretrained(folder / "eye")
        given.reader.generator.llm.save_pretrained(folder / "llm")
        for kind in (AutoModel, AutoModelForSeq2SeqLM, AutoConfig):
            real = kind.from_pretrained
            monkeypatch.setattr(kind, "from_pretrained", self._instead(real))

    def _instead(self, real: Any) -> Any:
        def load(name: Any, *args: Any, **given: Any) -> Any:
            local = str(self.folder / name[4:]) if str(name).startswith("hub/") else name
            return real(local, *args, **given)

        return load


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RABlip:
    """A model whose tower and language model have names on the hub."""
    Hub(monkeypatch, tmp_path / "on the hub")
    config = model_config("release")
    config.vision.name, config.generator.name = "hub/eye", "hub/llm"
    config.vision.config, config.generator.config = {}, {}
    words = model("release").processor
    return RABlip(config, Processor(config, words.text, words.llm)).eval()


def test_parts_of_the_hub_are_stored_by_name_and_hash(named: RABlip, tmp_path: Path) -> None:
    named.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / WEIGHTS)
    assert not any(name.startswith(("vision.model.", "reader.generator.llm.")) for name in stored)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["references"]["vision"] == {"name": "hub/eye", "sha256": digest(named, "vision.model")}
    assert config["model"]["generator"]["name"] == "hub/llm"
    assert "hub/llm" in (tmp_path / "model" / "README.md").read_text()
    again = RABlip.from_pretrained(tmp_path / "model")
    wanted, found = named.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_part_that_was_trained_or_is_asked_for_is_stored(named: RABlip, tmp_path: Path) -> None:
    named.save_pretrained(tmp_path / "whole", whole=True)
    assert set(load_file(tmp_path / "whole" / WEIGHTS)) == set(unique_tensors(named))
    with torch.no_grad():
        next(named.vision.model.parameters()).add_(1)
    named.save_pretrained(tmp_path / "trained")
    stored = load_file(tmp_path / "trained" / WEIGHTS)
    assert any(name.startswith("vision.model.") for name in stored)
    assert not any(name.startswith("reader.generator.llm.") for name in stored)
    found = RABlip.from_pretrained(tmp_path / "trained")
    assert found.config.vision.name is None and found.fingerprint == named.fingerprint


def test_a_part_that_changed_where_it_is_kept_is_refused(named: RABlip, tmp_path: Path) -> None:
    named.save_pretrained(tmp_path / "model")
    model("release", seed=4).vision.model.save_pretrained(tmp_path / "on the hub" / "eye")
    with pytest.raises(CheckpointError, match="'hub/eye' has other weights"):
        RABlip.from_pretrained(tmp_path / "model")


def test_a_hub_id_is_fetched(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def snapshot(repo_id: str) -> str:
        asked.append(repo_id)
        if repo_id == "some/model":
            return str(saved)
        raise OSError("offline\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert RABlip.from_pretrained("some/model").fingerprint == model().fingerprint
    with pytest.raises(CheckpointError, match=r"some/other: no such folder here, .* hub \(offline\)"):
        locate("some/other")
    for name in ("some/folder/deeper", "/some/folder", str(tmp_path / "x"), Path("some/path"), "../x"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            locate(name)
    assert set(asked) == {"some/model", "some/other"}
    monkeypatch.chdir(saved.parent)
    assert locate("model") == Path("model")


def test_pushing_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> str:
            seen["private"] = private
            return f"the hub/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            if repo_id == "me/closed":
                raise OSError("not allowed")
            seen[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert model().push_to_hub("me/model", private=True) == "the hub/me/model"
    files = ["README.md", "config.json", "llm_tokenizer", WEIGHTS, "text_tokenizer"]
    assert seen == {"private": True, "me/model": files}
    with pytest.raises(OutputError, match=r"me/closed: cannot be pushed to the hub \(not allowed\)"):
        push_folder(model(), "me/closed")


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
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        RABlip.from_pretrained(folder)


def test_a_folder_of_another_format(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"format": 7}, "format 7"),
        ({"references": [1]}, "references"),
        ({"partial": ["x"]}, "converted weights of x alone"),
    ):
        (folder / "config.json").write_text(json.dumps({**value, **change}))
        with pytest.raises(CheckpointError, match=said):
            read_folder(folder)


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
