"""Miniature checkpoints in all layouts into a model: every value in place, every misfit named, nothing half loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ra_blip.errors import CheckpointError
from ra_blip.models import lazy_tensors
from ra_blip.models.checkpoint_config import released_config
from ra_blip.models.checkpoints import load_into
from ra_blip.models.eva import resize_positions
from ra_blip.models.inspection import inspect
from ra_blip.models.lazy_tensors import LazyTensor, open_tensors
from ra_blip.models.rablip import RABlip
from tests.models.released import INSTRUCT, STAGE1, STAGE2, WIDTH, eva, hugging_face, lavis, model, save, vocabulary
from tests.tiny import close, state

TEXT_PARTS = ("words.", "positions.", "text_ffn.", "text_norm.")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint a layout, which no test writes to."""
    folder = tmp_path_factory.mktemp("released")
    found = {layout: save(lavis(layout), folder / f"{layout}.pth") for layout in (STAGE1, STAGE2, INSTRUCT)}
    torch.save(eva(), folder / "eva_vit_g.pth")
    found["eva-vit-g"] = folder / "eva_vit_g.pth"
    for layout in ("hf-blip2", "hf-blip2-itm", "hf-instructblip"):
        found[layout] = folder / layout
        hugging_face(layout).save_pretrained(found[layout])
    return found


@pytest.fixture
def fresh() -> RABlip:
    return model()


@pytest.mark.parametrize(
    "layout", [STAGE1, STAGE2, INSTRUCT, "eva-vit-g", "hf-blip2", "hf-blip2-itm", "hf-instructblip"]
)
def test_every_layout_loads_with_nothing_unexplained(files: dict[str, Path], fresh: RABlip, layout: str) -> None:
    before = state(fresh)
    report = load_into(fresh, [files[layout]])
    assert report.sources == [(str(files[layout]), layout, len(open_tensors(files[layout]).entries))]
    after = state(fresh)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed - tied(fresh) == set(report.loaded) and report.adapted == {}
    assert set(report.fresh) == set(before) - set(report.loaded) - tied(fresh)
    whole = {name for name in before if name.startswith(("retriever.qformer.", "reader.qformer."))}
    if layout == "eva-vit-g":
        whole = set()
    elif layout in (STAGE2, "hf-blip2"):  # no text branch
        whole = {name for name in whole if not any(part in name for part in (*TEXT_PARTS, "lm_head."))}
    elif layout != STAGE1:
        whole = {name for name in whole if "lm_head." not in name}
    assert whole == {name for name in report.loaded if ".qformer." in name}
    has = {name.rpartition(".")[0] for name in report.loaded}
    assert ("vision.model.patch_embed" in has) == (layout == "eva-vit-g" or layout.startswith("hf"))
    assert ("reader.project" in has) == (layout in (STAGE2, INSTRUCT, "hf-blip2", "hf-instructblip"))
    assert ("retriever.itm_head" in has) == (layout in (STAGE1, "hf-blip2-itm"))


def tied(given: RABlip) -> set[str]:
    """Names that are another tensor's second name."""
    from ra_blip.models.folder import tied_names

    return {name for _, names in tied_names(given).values() for name in names[1:]}


def test_values_are_where_they_belong(files: dict[str, Path], fresh: RABlip) -> None:
    load_into(fresh, [files[STAGE1], files["eva-vit-g"]])
    given, tower, got = lavis(STAGE1), eva(), state(fresh)
    attention = [given[f"Qformer.bert.encoder.layer.1.attention.self.{x}.bias"] for x in ("query", "key", "value")]
    assert torch.equal(got["retriever.qformer.layers.1.attention.qkv.bias"], torch.cat(attention))
    cross = [given[f"Qformer.bert.encoder.layer.2.crossattention.self.{x}.weight"] for x in ("key", "value")]
    assert torch.equal(got["reader.qformer.layers.2.cross.kv.weight"], torch.cat(cross))
    ffn = given["Qformer.bert.encoder.layer.0.output_query.dense.weight"]
    assert torch.equal(got["reader.qformer.layers.0.query_ffn.2.weight"], ffn)
    ffn = given["Qformer.bert.encoder.layer.0.output.dense.weight"]
    assert torch.equal(got["retriever.qformer.layers.0.text_ffn.2.weight"], ffn)
    assert torch.equal(got["retriever.log_temperature"], torch.tensor(0.07, dtype=torch.float64).log().float())
    bias = torch.cat([tower["blocks.1.attn.q_bias"], torch.zeros(176), tower["blocks.1.attn.v_bias"]])
    assert torch.equal(got["vision.model.blocks.1.attention.qkv.bias"], bias)


@pytest.mark.parametrize("layout", ["hf-blip2", "hf-instructblip"])
def test_the_reader_gives_what_the_hugging_face_class_gives(files: dict[str, Path], layout: str) -> None:
    with_text = layout == "hf-instructblip"
    ours = model(qformer={"reader_text": with_text, "ln_vision_eps": 1e-5}, eva={"eps": 1e-5})
    load_into(ours, [files[layout]])
    theirs: Any = hugging_face(layout)
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    guide = torch.randint(0, vocabulary(), (2, 5))
    with torch.no_grad():
        seen = theirs.vision_model(pixels).last_hidden_state
        given: dict[str, Any] = {"encoder_hidden_states": seen}
        queries = theirs.query_tokens.expand(2, -1, -1)
        if with_text:
            given |= {"input_ids": guide, "attention_mask": torch.ones(2, queries.shape[1] + 5)}
        wanted = theirs.language_projection(theirs.qformer(query_embeds=queries, **given)[0][:, : queries.shape[1]])
        features = ours.reader.ln_vision(ours.vision.model(pixels))
        text = {"text": guide, "text_mask": torch.ones(2, 5)} if with_text else {}
        read = ours.reader.qformer("instruct" if with_text else "image", kv=features, **text)
        found = ours.reader.project(read.queries)
    assert close(features, seen) and close(found, wanted)
    mine, others = ours.reader.generator.llm.state_dict(), theirs.language_model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in others.items())


def test_a_second_checkpoint_is_laid_over_the_first(files: dict[str, Path], fresh: RABlip) -> None:
    report = load_into(fresh, [files[STAGE1], files[STAGE2]])
    text = "qformer.layers.0.text_ffn.0.weight"
    assert f"retriever.{text}" in report.loaded and f"reader.{text}" in report.loaded
    with torch.no_grad():
        first, second = lavis(STAGE1), lavis(STAGE2)
    got = state(fresh)
    assert torch.equal(got[f"reader.{text}"], first["Qformer.bert.encoder.layer.0.intermediate.dense.weight"])
    query = "Qformer.bert.encoder.layer.1.intermediate_query.dense.weight"
    assert not torch.equal(first[query], second[query])
    assert torch.equal(got["reader.qformer.layers.1.query_ffn.0.weight"], second[query])


def test_one_half_alone(files: dict[str, Path], fresh: RABlip) -> None:
    report = load_into(fresh, [files[STAGE1]], halves=["retriever"])
    assert {name.partition(".")[0] for name in report.loaded} == {"retriever"}
    assert any("reader.qformer" in name for name in report.fresh)


def test_the_report_can_be_read(files: dict[str, Path], fresh: RABlip) -> None:
    text = str(load_into(fresh, [files[STAGE1]]))
    assert f"{STAGE1}, {len(lavis(STAGE1))} tensors" in text
    assert "retriever.qformer 80" in text.partition("loaded")[2].partition("\n")[0]
    assert "the model has no projections of BLIP-2's contrastive loss" in text
    assert "position_ids (a counter, not a weight)" in text
    assert "retriever.head 2" in text.partition("fresh")[2].partition("\n")[0]


# ---------------------------------------------------------------- adaptation


def test_vocabularies_of_other_length(tmp_path: Path, fresh: RABlip) -> None:
    fewer = save(lavis(STAGE1, words=vocabulary() - 1), tmp_path / "fewer.pth")
    kept = state(fresh)["reader.qformer.words.weight"][-1].clone()
    report = load_into(fresh, [fewer])
    told = f"{vocabulary() - 1} of {vocabulary()} vocabulary rows, the others keep their start"
    names = ["reader.qformer.words.weight", "retriever.qformer.lm_head.bias", "retriever.qformer.words.weight"]
    assert report.adapted == dict.fromkeys(names, told)
    words = state(fresh)["reader.qformer.words.weight"]
    given = lavis(STAGE1, words=vocabulary() - 1)["Qformer.bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words[:-1], given) and torch.equal(words[-1], kept)
    more = load_into(fresh, [save(lavis(STAGE1, words=vocabulary() + 4), tmp_path / "more.pth")])
    assert "the others are left out" in more.adapted["reader.qformer.words.weight"]
    with pytest.raises(CheckpointError, match=r"words.weight has shape \(900, 128\), the model needs"):
        load_into(fresh, [save(lavis(STAGE1, words=900), tmp_path / "other.pth")])


def test_positions_of_another_picture_size(files: dict[str, Path]) -> None:
    larger = model(eva={"image_size": 24})
    report = load_into(larger, [files["eva-vit-g"]])
    assert report.adapted == {"vision.model.pos_embed": "positions interpolated from 4 to 9 patches"}
    wanted = resize_positions(eva()["pos_embed"], 3, 3)
    assert torch.equal(larger.vision.model.pos_embed, wanted) and wanted.shape == (1, 10, 176)


def test_number_formats_are_those_of_the_model(tmp_path: Path, fresh: RABlip) -> None:
    torch.save({name: value.half() for name, value in eva().items()}, tmp_path / "half.pth")
    report = load_into(fresh, [tmp_path / "half.pth"])
    assert report.formats == {"float16 -> float32": len(report.loaded)}
    assert torch.equal(fresh.vision.model.cls_token, eva()["cls_token"].half().float())


def test_what_old_files_hold_beside_the_weights(files: dict[str, Path], tmp_path: Path, fresh: RABlip) -> None:
    given = {name: entry.read() for name, entry in open_tensors(files["hf-instructblip"]).entries.items()}
    given["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    given["qformer.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(given, tmp_path / "pytorch_model.bin")
    report = load_into(fresh, [tmp_path])
    assert sorted(report.ignored.values()) == ["a counter, not a weight", "computed, not a weight"]


def test_another_language_model(files: dict[str, Path], tmp_path: Path, fresh: RABlip) -> None:
    wide = save(lavis(INSTRUCT, llm="llm", llm_width=24), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="made for a language model of width 24, this one has 16"):
        load_into(fresh, [wide])
    report = load_into(fresh, [wide], fresh=["reader.project"])
    assert {"reader.project.weight", "reader.project.bias"} <= set(report.fresh)
    assert {"llm_proj.weight", "llm_proj.bias"} <= set(report.ignored)
    deeper = model(llm={"num_layers": 2, "num_decoder_layers": 2})
    with pytest.raises(CheckpointError, match=r"missing: reader\.generator\.llm\.encoder\.block\.1"):
        load_into(deeper, [files["hf-instructblip"]])


def test_a_tower_of_another_kind_is_left_alone(files: dict[str, Path]) -> None:
    from ra_blip.config import VisionConfig
    from ra_blip.models.processor import Processor
    from tests.models.released import config
    from tests.tiny import processor

    own = config()
    vit = {"model_type": "vit", "hidden_size": 176, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    own.vision = VisionConfig(config={**vit, "intermediate_size": 8, "image_size": 16}, image_size=16)
    clip = RABlip(own, Processor(own, processor().text, processor().llm))
    before = state(clip.vision)
    report = load_into(clip, [files["hf-instructblip"]])
    assert all(torch.equal(before[name], value) for name, value in state(clip.vision).items())
    assert "the model has no EVA ViT-g tower" in report.ignored.values()


# ---------------------------------------------------------------- what is wrong


def broken(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], layout: str = INSTRUCT) -> Path:
    tensors = lavis(layout)
    change(tensors)
    return save(tensors, tmp_path / "broken.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("Qformer.bert.encoder.layer.1.attention.self.key.bias"), r"missing: .*layer\.1.*key\.bias"),
        (lambda t: t.pop("query_tokens"), "missing: query_tokens"),
        (lambda t: t.pop("Qformer.bert.encoder.layer.1.intermediate.dense.bias"), r"missing: .*intermediate\.dense"),
        (lambda t: t.update({"Qformer.bert.extra": torch.ones(2)}), "unexplained: Qformer.bert.extra"),
        (lambda t: t.update({"query_tokens": torch.ones(1, 9, WIDTH)}), r"query_tokens has shape \(1, 9, 128\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    tmp_path: Path, fresh: RABlip, files: dict[str, Path], change: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    before = state(fresh)
    with pytest.raises(CheckpointError, match=said):
        load_into(fresh, [files[STAGE1], broken(tmp_path, change)])
    assert all(torch.equal(before[name], value) for name, value in state(fresh).items())


def test_a_deeper_q_former_is_not_cut(tmp_path: Path, fresh: RABlip) -> None:
    with pytest.raises(CheckpointError, match=r"unexplained: qformer\.layers\.3\."):
        load_into(fresh, [save(lavis(STAGE1, layers=4), tmp_path / "deep.pth")])
    with pytest.raises(CheckpointError, match=r"missing: (retriever|reader)\.qformer\.layers\.2\."):
        load_into(fresh, [save(lavis(STAGE1, layers=2), tmp_path / "flat.pth")])


def test_two_names_of_one_tensor_must_agree(tmp_path: Path, fresh: RABlip) -> None:
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["Qformer.cls.predictions.decoder.weight"] = tensors["Qformer.cls.predictions.decoder.weight"] + 1

    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight and .*decoder\.weight differ"):
        load_into(fresh, [broken(tmp_path, untie, STAGE1)])


# ---------------------------------------------------------------- folders, lazily


def sharded(folder: Path) -> Path:
    """A Hugging Face folder in several files."""
    hugging_face("hf-instructblip").save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards(tmp_path: Path, files: dict[str, Path]) -> None:
    first, second = model(), model()
    load_into(first, [sharded(tmp_path / "model")])
    load_into(second, [files["hf-instructblip"]])
    assert all(torch.equal(value, state(second)[name]) for name, value in state(first).items())
    next(iter(sorted((tmp_path / "model").glob("*.safetensors")))).unlink()
    with pytest.raises(CheckpointError, match="this shard is missing"):
        open_tensors(tmp_path / "model")


def test_only_what_is_used_is_read(files: dict[str, Path], fresh: RABlip, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose language model is another: its tensors are looked at by name and shape alone."""
    read = 0
    real = lazy_tensors._open_folder

    def counting(folder: Path) -> lazy_tensors.Tensors:
        def counted(entry: LazyTensor) -> LazyTensor:
            def read_it() -> Tensor:
                nonlocal read
                value = entry.read()
                read += value.numel()
                return value

            return LazyTensor(entry.shape, entry.dtype, read_it)

        found = real(folder)
        return lazy_tensors.Tensors(found.path, {name: counted(entry) for name, entry in found.entries.items()})

    monkeypatch.setattr(lazy_tensors, "_open_folder", counting)
    skipped = ["reader.generator", "vision", "reader.qformer", "reader.ln_vision", "reader.project"]
    report = load_into(fresh, [files["hf-instructblip"]], halves=["retriever"], fresh=skipped)
    used = sum(dict(fresh.state_dict())[name].numel() for name in report.loaded)
    assert read == used > 0
    assert all(name.startswith("retriever.") for name in report.loaded)


# ---------------------------------------------------------------- sizes read off, and shown


def test_sizes_are_read_off(files: dict[str, Path]) -> None:
    wanted = model().config
    for paths in ([files[INSTRUCT], files["eva-vit-g"]], [files["hf-instructblip"]]):
        found = released_config(paths)
        eps = {"eps": 1e-5} if len(paths) == 1 else {}
        assert found.vision.config == {**wanted.vision.config, "eps": 1e-6, **eps}
        assert found.vision.image_size == 16
        for name in ("width", "layers", "heads", "ffn", "queries", "cross_every", "max_positions", "reader_text"):
            assert getattr(found.qformer, name) == getattr(wanted.qformer, name), name
    assert found.qformer.ln_vision_eps == 1e-5
    assert {key: found.generator.config[key] for key in ("model_type", "d_model")} == {
        "model_type": "t5",
        "d_model": 16,
    }
    assert released_config([files[STAGE2]]).generator.config == {"model_type": "t5"}
    assert not released_config([files["hf-blip2"]]).qformer.reader_text


@pytest.mark.parametrize("layout", [STAGE1, STAGE2, INSTRUCT, "eva-vit-g", "hf-blip2", "hf-blip2-itm"])
def test_inspection(files: dict[str, Path], layout: str) -> None:
    found = inspect(files[layout])
    value = found.to_json()
    entries = open_tensors(files[layout]).entries
    assert (value["layout"], value["tensors"]) == (layout, len(entries))
    assert value["missing"] == value["unexplained"] == []
    assert value["shapes"]["ln_vision.weight" if layout.startswith("lavis") else next(iter(entries))] == list(
        entries["ln_vision.weight" if layout.startswith("lavis") else next(iter(entries))].shape
    )
    assert f"{layout}\n" in str(found)


def test_inspection_says_what_is_missing(tmp_path: Path) -> None:
    tensors = lavis(STAGE1)
    weights = sum(value.numel() for value in tensors.values()) - 20  # the position counter
    weights -= vocabulary() * (WIDTH + 1)  # words and their bias stand there twice
    whole = inspect(save(tensors, tmp_path / "a.pth")).to_json()
    assert (whole["parameters"], whole["dtypes"]) == (weights, {"float32": len(tensors) - 1, "int64": 1})
    del tensors["itm_head.bias"], tensors["Qformer.bert.encoder.layer.2.crossattention.self.key.weight"]
    tensors["surprise"] = torch.ones(3)
    found = inspect(save(tensors, tmp_path / "b.pth"))
    assert sorted(found.view.missing) == [
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight",
        "itm_head.bias",
    ]
    assert found.view.unexplained == ["surprise"]
    assert "missing: itm_head.bias" in str(found) and "unexplained: surprise" in str(found)
    assert "Qformer.bert.encoder.layer.0-2.attention.self.query.weight  128 x 128  float32" in str(found)


def test_our_own_folder_is_a_layout_too(tmp_path: Path, fresh: RABlip) -> None:
    other = model(seed=5)
    other.save_pretrained(tmp_path / "model")
    report = load_into(fresh, [tmp_path / "model"])
    assert report.fresh == [] and report.ignored == {}
    assert all(torch.equal(value, state(fresh)[name]) for name, value in state(other).items())
    found = inspect(tmp_path / "model").to_json()
    assert (found["layout"], found["missing"], found["unexplained"]) == ("native", [], [])
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert (found["tensors"], found["parameters"]) == (len(stored), sum(value.numel() for value in stored.values()))
    stored["ranker.extra"] = stored.pop("ranker.dense.bias")
    save_file(stored, tmp_path / "model" / "model.safetensors")
    found = inspect(tmp_path / "model").to_json()
    assert (found["missing"], found["unexplained"]) == (["ranker.dense.bias"], ["ranker.extra"])


def test_parameters_are_those_that_stand_in_the_file(files: dict[str, Path]) -> None:
    counts = {layout: inspect(path).parameters for layout, path in files.items()}
    assert counts["eva-vit-g"] == sum(value.numel() for value in eva().values()), "a key bias is not in it"
    twice = {"Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"}
    once = {name: value for name, value in lavis(STAGE1).items() if name not in twice and "position_ids" not in name}
    assert counts[STAGE1] == sum(value.numel() for value in once.values())
