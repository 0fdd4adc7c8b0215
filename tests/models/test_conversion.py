"""Between layouts: there and back bit by bit, and what Hugging Face's own classes make of what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ra_blip.__main__ import main
from ra_blip.errors import CheckpointError, OutputError
from ra_blip.models.checkpoints import load_into
from ra_blip.models.conversion import convert, export
from ra_blip.models.inspection import inspect
from ra_blip.models.lazy_tensors import open_tensors
from ra_blip.models.rablip import RABlip
from tests.models.released import INSTRUCT, STAGE1, STAGE2, eva, hugging_face, lavis, model, save
from tests.tiny import close, state
from tests.tiny import model as tiny_model

EPS = {"eps": 1e-5}  # the Hugging Face classes have one epsilon for tower and `ln_vision`


@pytest.fixture(scope="module")
def trained() -> RABlip:
    """A model of which a test changes nothing."""
    return model(eva=EPS)


@pytest.fixture(scope="module")
def folder(trained: RABlip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    place = tmp_path_factory.mktemp("trained") / "model"
    trained.save_pretrained(place)
    return place


@pytest.mark.parametrize("half", ["reader", "retriever"])
@pytest.mark.parametrize("to", ["lavis", "hf"])
def test_there_and_back_are_the_same_bits(folder: Path, tmp_path: Path, to: Any, half: str) -> None:
    there, back = tmp_path / "there.pth", tmp_path / "back"
    left = convert([folder], there, to, half)
    found = inspect(there)
    wanted = {
        "lavis": {"reader": INSTRUCT, "retriever": STAGE1},
        "hf": {"reader": "hf-instructblip", "retriever": "hf-blip2-itm"},
    }
    assert found.view.layout == wanted[to][half]
    own = {"vision_proj", "text_proj", "vision_projection", "text_projection"}  # BLIP-2's; our head serves both
    assert {name.partition(".")[0] for name in found.view.missing} == (own & {n.partition(".")[0] for n in left.fresh})
    assert found.view.unexplained == []
    if half == "retriever":  # without those a file is no whole BLIP-2, and is not read back as one
        with pytest.raises(CheckpointError, match="missing: vision_proj"):
            convert([there], back, "native")
        return
    convert([there], back, "native")
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert all(torch.equal(before[name], value) and before[name].dtype == value.dtype for name, value in after.items())
    gone = {name for name in before if name not in after}
    assert {name for name in gone if name.startswith(half)} == {
        name for name in before if name.startswith(("reader.slot_", "reader.position_"))
    }
    assert {name for name in gone if name.startswith("vision")} == set()
    assert {name.removeprefix(f"{half}.") for name in gone} <= set(left.ignored)


def test_stage_one_there_and_back(tmp_path: Path) -> None:
    files = [save(lavis(STAGE1), tmp_path / "stage1.pth"), tmp_path / "eva_vit_g.pth"]
    torch.save(eva(), files[1])
    given = {**lavis(STAGE1), **{f"visual_encoder.{name}": value for name, value in eva().items()}}
    convert(files, tmp_path / "native", "native")
    convert([tmp_path / "native"], tmp_path / "again.pth", "lavis")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert again.keys() == given.keys()
    temperature = again.pop("temp")
    assert temperature.float() == given["temp"] and all(
        torch.equal(value, given[name]) for name, value in again.items()
    )
    assert again["Qformer.cls.predictions.decoder.bias"].data_ptr() == again["Qformer.cls.predictions.bias"].data_ptr()
    convert([tmp_path / "again.pth"], tmp_path / "native again", "native")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "native again"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(first["retriever.vision_proj.weight"], given["vision_proj.weight"])


def test_lavis_to_hugging_face(tmp_path: Path) -> None:
    """A file of LAVIS and its tower give the retrieval class, complete."""
    from transformers import Blip2ForImageTextRetrieval

    torch.save(eva(), tmp_path / "eva.pth")
    report = convert([save(lavis(STAGE1), tmp_path / "a.pth"), tmp_path / "eva.pth"], tmp_path / "hf", "hf")
    assert report.fresh == []
    assert report.adapted == {
        "ln_vision": "its epsilon is 1e-05 here; the class has one for all norms of the tower, 1e-06"
    }
    loaded, told = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert torch.equal(loaded.text_projection.weight, lavis(STAGE1)["text_proj.weight"])
    assert (
        loaded.config.qformer_config.num_attention_heads == 2 and loaded.config.vision_config.num_attention_heads == 2
    )


@pytest.mark.parametrize("text", [True, False])
def test_the_class_computes_what_the_exported_reader_computes(tmp_path: Path, text: bool) -> None:
    from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

    ours = model(eva=EPS, qformer={"reader_text": text})
    report = export(ours, tmp_path / "hf")
    assert report.fresh == [] and report.adapted == {}
    kind: Any = InstructBlipForConditionalGeneration if text else Blip2ForConditionalGeneration
    theirs, told = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    theirs.eval()
    torch.manual_seed(1)
    pixels, prompt, guide = torch.randn(2, 3, 16, 16), torch.randint(5, 100, (2, 4)), torch.randint(5, 100, (2, 6))
    answer = torch.randint(5, 100, (2, 3))
    with torch.no_grad():
        read = {"text": guide, "text_mask": torch.ones(2, 6)} if text else {}
        features = ours.reader.ln_vision(ours.vision.model(pixels))
        soft = ours.reader.project(ours.reader.qformer("instruct" if text else "image", kv=features, **read).queries)
        embeds = torch.cat([soft, ours.reader.generator.embed(prompt)], dim=1)
        found = ours.reader.generator.llm(inputs_embeds=embeds, labels=answer).logits
        seen = theirs.vision_model(pixels).last_hidden_state
        queries = theirs.query_tokens.expand(2, -1, -1)
        given = {"input_ids": guide, "attention_mask": torch.ones(2, queries.shape[1] + 6)} if text else {}
        states = theirs.qformer(query_embeds=queries, encoder_hidden_states=seen, **given)[0][:, : queries.shape[1]]
        embeds = torch.cat([theirs.language_projection(states), theirs.get_input_embeddings()(prompt)], dim=1)
        wanted = theirs.language_model(inputs_embeds=embeds, labels=answer).logits
    assert close(found, wanted)
    back = model(seed=9, eva=EPS, qformer={"reader_text": text})
    load_into(back, [tmp_path / "hf"], halves=["reader"])
    first, second = state(ours), state(back)
    mapped = [n for n in first if n.startswith(("vision.", "reader.qformer", "reader.project", "reader.generator"))]
    assert all(torch.equal(first[name], second[name]) for name in mapped)
    if text:  # the tokenizers went along, where the processor of the class looks for them
        from transformers import AutoTokenizer

        for place, tokenizer in (("", ours.processor.llm), ("qformer_tokenizer", ours.processor.text)):
            assert AutoTokenizer.from_pretrained(tmp_path / "hf" / place).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_causal_language_models_keep_their_names(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40}
    inner = {"ffn_dim": 24, "word_embed_proj_dim": 16} if kind == "opt" else {"intermediate_size": 24}
    text = {"model_type": kind, **sizes, **inner}
    given = hugging_face("hf-blip2", text)
    given.save_pretrained(tmp_path / "hf")
    convert([tmp_path / "hf"], tmp_path / "native", "native")
    convert([tmp_path / "native"], tmp_path / "l.pth", "lavis")
    names = set(open_tensors(tmp_path / "l.pth").entries)
    word = "opt" if kind == "opt" else "llm"
    assert f"{word}_proj.weight" in names and any(name.startswith(f"{word}_model.model.") for name in names)
    convert([tmp_path / "native"], tmp_path / "again", "hf")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["text_config"]["model_type"] == kind and config["architectures"] == ["Blip2ForConditionalGeneration"]


def test_tensors_that_share_memory_in_a_pytorch_file(tmp_path: Path) -> None:
    given = hugging_face("hf-instructblip")
    given.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(given.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    convert([tmp_path / "hf"], tmp_path / "native", "native")
    convert([tmp_path / "hf"], tmp_path / "x.pth", "lavis")
    convert([tmp_path / "x.pth"], tmp_path / "again", "native")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "again"))
    assert "reader.generator.llm.lm_head.weight" in first and first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items() if "qkv.bias" not in name)
    ours = model(qformer={"ln_vision_eps": 1e-5}, eva={"eps": 1e-5})
    load_into(ours, [tmp_path / "native"])
    assert torch.equal(ours.reader.generator.llm.shared.weight, given.language_model.shared.weight)


def test_a_key_bias_that_was_trained_is_left_out_and_told(tmp_path: Path) -> None:
    ours = model()
    with torch.no_grad():
        ours.vision.model.blocks[0].attention.qkv.bias[176:352] = 0.5
    report = export(ours, tmp_path / "x.pth", "lavis")
    assert list(report.adapted) == ["vision.model.blocks.0.attention.qkv.bias"]


@pytest.mark.parametrize("layout", [STAGE1, INSTRUCT])
def test_converted_weights_fill_what_their_source_fills(tmp_path: Path, layout: str) -> None:
    source = save(lavis(layout), tmp_path / "a.pth")
    convert([source], tmp_path / "native", "native")
    half = "retriever" if layout == STAGE1 else "reader"
    assert json.loads((tmp_path / "native" / "config.json").read_text())["partial"] == [half]
    first, second = model(), model()
    reports = [load_into(ours, [path]) for ours, path in ((first, source), (second, tmp_path / "native"))]
    assert reports[0].loaded == reports[1].loaded and reports[0].fresh == reports[1].fresh
    assert all(torch.equal(value, state(second)[name]) for name, value in state(first).items())
    alone = load_into(model(), [tmp_path / "native"], halves=["reader"])
    assert {name.partition(".")[0] for name in alone.loaded} == {"reader"}


def test_what_a_model_of_ours_has_no_place_for_is_named(tmp_path: Path) -> None:
    tiny_model("release").save_pretrained(tmp_path / "release")
    report = load_into(tiny_model("interleaved"), [tmp_path / "release"])
    assert report.ignored == {
        f"reader.{name}_embedding": f"the model has no reader.{name}_embedding" for name in ("slot", "position")
    }


def test_what_has_no_place_elsewhere(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="norm_first"):
        export(tiny_model("release", ("qformer.norm_first=true",)), tmp_path / "a.pth", "lavis")
    with pytest.raises(CheckpointError, match="another tower has no place there"):
        export(tiny_model("release"), tmp_path / "b", "hf")
    report = export(tiny_model("release"), tmp_path / "c.pth", "lavis")
    assert {name.partition(".")[0] for name in report.ignored} == {
        *("vision", "retriever", "ranker", "slot_embedding", "position_embedding"),
    }
    torch.save(eva(), tmp_path / "eva.pth")
    with pytest.raises(CheckpointError, match="no Q-Former among the weights"):
        convert([tmp_path / "eva.pth"], tmp_path / "d", "hf")
    instruct = save(lavis(INSTRUCT), tmp_path / "i.pth")
    with pytest.raises(CheckpointError, match=r"no language model among .* hf-instructblip needs one: load"):
        convert([instruct, tmp_path / "eva.pth"], tmp_path / "d", "hf")
    with pytest.raises(CheckpointError, match="already"):
        convert([folder], tmp_path / "e", "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "eva.pth", "i.pth"]


def test_nothing_that_is_there_is_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(OutputError, match="is there already"):
            convert([folder], tmp_path / name, "lavis")
    with pytest.raises(OutputError, match="cannot be written"):
        convert([folder], tmp_path / "file" / "x", "lavis")


def test_a_tower_alone(tmp_path: Path) -> None:
    torch.save(eva(), tmp_path / "eva.pth")
    convert([tmp_path / "eva.pth"], tmp_path / "native", "native")
    convert([tmp_path / "native"], tmp_path / "again.pth", "lavis")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert again.keys() == eva().keys() and all(torch.equal(value, eva()[name]) for name, value in again.items())


def test_stage_two_over_stage_one_is_an_instruct_file(tmp_path: Path) -> None:
    paths = [save(lavis(one), tmp_path / f"{one}.pth") for one in (STAGE1, STAGE2)]
    convert(paths, tmp_path / "native", "native")
    convert([tmp_path / "native"], tmp_path / "i.pth", "lavis")
    found = inspect(tmp_path / "i.pth").view
    assert (found.layout, found.missing, found.unexplained) == (INSTRUCT, [], [])


# ---------------------------------------------------------------- the verbs


def test_inspect_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(save(lavis(STAGE1), tmp_path / "stage1.pth")), str(tmp_path / "eva.pth")]
    torch.save(eva(), files[1])
    assert main(["inspect", files[0], "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["layout"], value["tensors"], value["missing"], value["unexplained"]) == (STAGE1, 108, [], [])
    assert main(["inspect", files[0]]) == 0
    assert "not in it: EVA ViT-g tower" in capsys.readouterr().out
    assert main(["convert", *files, str(tmp_path / "hf"), "--to", "hf"]) == 0
    told = capsys.readouterr().out
    assert f"{STAGE1}, 108 tensors" in told and "eva-vit-g, 30 tensors" in told
    assert "(no place in hf-blip2-itm)" in told  # captioning head and temperature
    assert main(["inspect", str(tmp_path / "hf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "hf-blip2-itm"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("inspect nowhere", "nowhere: no such file or folder"),
        ("inspect words.bin", "words.bin: not a whole PyTorch file"),
        ("inspect foreign.pth", "foreign.pth: no layout known here"),
        ("convert foreign.pth out --to native", "foreign.pth: no layout known here"),
        ("convert stage2.pth words.bin --to hf", "words.bin: is there already"),
        ("convert stage2.pth out --to hf", "no EVA ViT-g tower among the weights, and hf-blip2 needs one"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.bin").write_text("hello")
    torch.save({"encoder.weight": torch.ones(2)}, "foreign.pth")
    save(lavis(STAGE2), Path("stage2.pth"))
    assert main(command.split()) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not Path("out").exists()
