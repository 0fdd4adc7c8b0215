"""The table of names against lists spelled out by hand, against Hugging Face's classes, and against our modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ra_blip.errors import CheckpointError
from ra_blip.models.checkpoint_tables import HOW, LAYOUTS, bindings, detect, group_of, row_of, table
from ra_blip.models.checkpoints import View, view
from ra_blip.models.fusion import Retriever
from ra_blip.models.lazy_tensors import LazyTensor, Tensors
from ra_blip.models.presets import PRESETS
from tests.models.released import INSTRUCT, STAGE1, STAGE2, eva, lavis

REAL = {"layers": 12, "width": 768, "ffn": 3072, "queries": 32, "words": 30523, "positions": 512, "eye": 1408}
# Not weights: the position counter (1 x 512), and what stands there twice.
COUNTER, TIED = 512, 30523 * 768 + 30523


def looked_at(tensors: dict[str, Tensor]) -> View:
    """A checkpoint of which only names and shapes matter."""
    return view(Tensors(Path("file"), {name: LazyTensor.of(value) for name, value in tensors.items()}))


def size(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


@pytest.mark.parametrize(
    ("layout", "llm", "tensors", "parameters"),
    [
        (STAGE1, {}, 346, 186.7e6),
        (STAGE2, {"llm_width": 2048}, 260, 105.2e6 + 768 * 2048),
        (INSTRUCT, {"llm_width": 2048}, 334, 185.7e6 + 768 * 2048),
    ],
)
def test_real_sizes_of_lavis_files(layout: str, llm: dict[str, int], tensors: int, parameters: float) -> None:
    given = lavis(layout, device="meta", **REAL, **llm)
    assert len(given) == tensors
    assert abs(size(given) - COUNTER - (TIED if layout == STAGE1 else 0) - parameters) < 1e5
    found = looked_at(given)
    assert found.layout == layout
    assert (found.missing, found.unexplained, len(found.ignored)) == ([], [], 1)
    ours = sum(torch.empty(stored.shape, device="meta").numel() for stored in found.stored.values())
    assert ours == size(given) - COUNTER - (TIED if layout == STAGE1 else 0)


def test_real_size_of_the_tower_file() -> None:
    whole = eva(1408, 40, 6144, 256, 14, device="meta")  # as published: one block more than is used, and what follows
    whole |= {f"{name}.{p}": torch.empty(3, device="meta") for name in ("norm", "head") for p in ("weight", "bias")}
    found = looked_at(whole)
    assert found.layout == "eva-vit-g" and found.missing == found.unexplained == []
    assert len(found.ignored) == 4 + 13  # a block has 13 tensors: its key bias is not stored
    assert sum(torch.empty(s.shape, device="meta").numel() for s in found.stored.values()) == 985_949_440
    assert len(found.stored) == 472


def test_the_names_of_our_modules_are_those_of_the_table() -> None:
    config = PRESETS["instructblip-flan-t5-xl"].config
    with torch.device("meta"):
        retriever = Retriever(config.qformer, config.retriever, 30523, 1408)
    ours = {name: tuple(value.shape) for name, value in retriever.state_dict().items()}
    held = {n: s.shape for n, s in looked_at(lavis(STAGE1, device="meta", **REAL)).stored.items()}
    assert {name for name in held if name not in ours} == {
        f"{x}_proj.{p}" for x in ("vision", "text") for p in ("weight", "bias")
    }
    assert all(shape == held[name] for name, shape in ours.items() if name in held)
    assert {name.partition(".")[0] for name in ours if name not in held} == {"fusion", "head"}


HF_TENSORS = {
    "hf-blip2": {"vision_model": 474, "qformer": 254, "query_tokens": 1, "language_projection": 2},
    "hf-blip2-itm": {
        **{"vision_model": 474, "qformer": 326, "query_tokens": 1, "embeddings": 2},
        **{"vision_projection": 2, "text_projection": 2, "itm_head": 2},
    },
    "hf-instructblip": {"vision_model": 474, "qformer": 328, "query_tokens": 1, "language_projection": 2},
}


@pytest.mark.parametrize("layout", HF_TENSORS)
def test_real_sizes_of_hugging_face_classes(layout: str) -> None:
    given = hugging_face_meta(layout)
    counts: dict[str, int] = {}
    for name in given:
        counts[name.partition(".")[0]] = counts.get(name.partition(".")[0], 0) + 1
    counts.pop("language_model", None)
    assert counts == HF_TENSORS[layout]
    found = looked_at(given)
    assert found.layout == layout
    assert found.missing == found.unexplained == [] and found.ignored == {}
    tower = [stored.shape for name, stored in found.stored.items() if group_of(name) == "eva"]
    assert sum(torch.empty(shape, device="meta").numel() for shape in tower) == 985_949_440


def hugging_face_meta(layout: str) -> dict[str, Tensor]:
    """The state of a Hugging Face class at real size but for the language model, without values."""
    import transformers

    llm = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    qformer = {"vocab_size": 30523, "use_qformer_text_input": layout == "hf-blip2-itm"}
    kind = "InstructBlip" if layout == "hf-instructblip" else "Blip2"
    tail = "ForImageTextRetrieval" if layout == "hf-blip2-itm" else "ForConditionalGeneration"
    config: Any = getattr(transformers, f"{kind}Config")(vision_config={}, qformer_config=qformer, text_config=llm)
    with torch.device("meta"):
        state: dict[str, Tensor] = getattr(transformers, f"{kind}{tail}")(config).state_dict()
    return state


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "native"])
def test_every_row_leads_back_to_itself(layout: str) -> None:
    rows = table(layout, "opt")
    filled = {"i": "3", "p": "bias", "rest": "model.x.weight"}
    natives = [row.native.format(**filled) for row in rows]
    others = [other.format(**filled) for row in rows for other in row.others]
    assert len(set(natives)) == len(natives) and len(set(others)) == len(others)
    for row, native in zip(rows, natives, strict=True):
        found = row_of(rows, native)
        assert found is not None and found[0] is row
        for other in row.others:
            hits = [one for one in rows for name in one.others if bindings(name, other.format(**filled)) is not None]
            assert hits == [row]


def test_names_are_anchored() -> None:
    """Only the attention inside the Q-Former is renamed; what merely looks like it is not."""
    rows = table("hf-instructblip")
    others = {row.native: row.others for row in rows}
    assert others["vision.model.blocks.{i}.attention.out.{p}"] == (
        "vision_model.encoder.layers.{i}.self_attn.projection.{p}",
    )
    assert others["qformer.layers.{i}.query_norm.{p}"] == ("qformer.encoder.layer.{i}.output_query.LayerNorm.{p}",)
    assert bindings("itm_head.{p}", "xitm_head.weight") is None
    assert bindings("a.{i}.b.{p}", "a.12.b.weight") == {"i": "12", "p": "weight"}
    assert bindings("a.{i}.b", "a.12xb") is None


def test_ways_of_writing() -> None:
    q, k, v = (torch.full((2, 3), float(value)) for value in (1, 2, 3))
    join, split = HOW["stack"]
    assert join([q, k, v])[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(split(join([q, k, v]), 3), (q, k, v), strict=True))
    join, split = HOW["no key"]
    assert join([q[0], v[0]]).tolist() == [1, 1, 1, 0, 0, 0, 3, 3, 3]
    assert [part.tolist() for part in split(torch.arange(6.0), 2)] == [[0, 1], [4, 5]]
    join, split = HOW["log"]
    for value in torch.linspace(-6.9, -0.7, 500):
        assert torch.equal(join(split(value, 1)), value)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["Qformer.bert.x", "temp"], STAGE1),
        (["Qformer.bert.x", "Qformer.cls.predictions.bias"], STAGE1),
        (["Qformer.bert.encoder.layer.0.intermediate.dense.weight"], INSTRUCT),
        (["Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"], STAGE2),
        (["query_tokens", "qformer.encoder.layer.0.x", "qformer.layernorm.weight"], "hf-blip2"),
        (["query_tokens", "qformer.encoder.layer.0.x", "embeddings.word_embeddings.weight"], "hf-blip2-itm"),
        (["query_tokens", "qformer.encoder.layer.0.x", "qformer.embeddings.layernorm.weight"], "hf-instructblip"),
        (["pos_embed", "blocks.0.attn.qkv.weight"], "eva-vit-g"),
        (["ranker.dense.weight"], "native"),
    ],
)
def test_layouts_are_known_by_their_names(names: list[str], layout: str) -> None:
    assert detect(names) == layout


def test_a_foreign_layout_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no layout known here .* bert\.pooler, encoder\.x"):
        detect(["encoder.x", "bert.pooler"])


def test_groups() -> None:
    assert group_of("retriever.qformer.layers.4.text_ffn.0.bias") == "retriever.text"
    assert group_of("qformer.layers.4.cross.kv.bias") == "qformer"
    assert group_of("reader.generator.llm.lm_head.weight") == "reader.llm"
    assert group_of("vision.model.embedder.weight") == "vision" and group_of("vision.model.cls_token") == "eva"
    assert group_of("retriever.fusion.layers.0.x") == "retriever.fusion" and group_of("ranker.dense.bias") == "ranker"
