"""The names of the public checkpoints in one table, read in both directions.

Layouts are those of LAVIS (stage 1, stage 2, InstructBLIP), of the Hugging Face classes with the same weights, and of
EVA ViT-g as BLIP-2 uses it. A row says under which names each of them keeps one tensor of ours, and how it is written.

``{i}`` stands for the number of a layer, ``{p}`` for weight or bias, ``{rest}`` for anything. Our names are those below
a half (``retriever`` or ``reader``), or begin with ``vision.model``.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ra_blip.errors import CheckpointError

HALVES = ("retriever", "reader")
EVA_BLOCKS = 39  # of 40: BLIP-2 reads the tower before its last block


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
        group: rows of one group are in a checkpoint together or not at all.
        native: our name.
        others: the names there: parts of one tensor, or copies of it (``how`` "tied").
        how: key of :data:`HOW`.
    """

    group: str
    native: str
    others: tuple[str, ...]
    how: str = "same"

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """The sets of names that each give the whole tensor."""
        return tuple((name,) for name in self.others) if self.how == "tied" else (self.others,)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is particular to one layout.

    Attributes:
        column: whose names hold, ``lavis`` or ``hf``.
        half: the half of ours that it fills.
        needs: groups that it always holds.
        may: groups that it holds sometimes.
        words: how its placeholders ``{self}``, ``{norm}`` and ``{text}`` read.
    """

    column: str
    half: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    words: dict[str, str] = dataclasses.field(default_factory=dict)


# What a group is, for people.
GROUPS = {
    "eva": "EVA ViT-g tower",
    "qformer": "Q-Former",
    "text": "text branch in its Q-Former",
    "captions": "captioning head",
    "matching": "matching head",
    "contrast": "projections of BLIP-2's contrastive loss",
    "temperature": "temperature",
    "project": "projection into a language model",
    "llm": "language model",
}
_STAGE1 = ("qformer", "text", "captions", "matching", "contrast", "temperature")
_HF = {"self": "attention", "norm": "qformer.layernorm", "text": "embeddings."}
_HF_INSTRUCT = {"self": "attention", "norm": "qformer.embeddings.layernorm", "text": "qformer.embeddings."}
LAYOUTS = {
    "lavis-stage1": Layout("lavis", "retriever", _STAGE1, ("eva",)),
    "lavis-stage2": Layout("lavis", "reader", ("qformer", "project"), ("eva", "llm")),
    "lavis-instruct": Layout("lavis", "reader", ("qformer", "text", "project"), ("eva", "llm")),
    "hf-blip2": Layout("hf", "reader", ("eva", "qformer", "project", "llm"), (), _HF),
    "hf-blip2-itm": Layout("hf", "retriever", ("eva", "qformer", "text", "matching", "contrast"), (), _HF),
    "hf-instructblip": Layout("hf", "reader", ("eva", "qformer", "text", "project", "llm"), (), _HF_INSTRUCT),
    "eva-vit-g": Layout("lavis", "", ("eva",)),
    "native": Layout("native", "", ()),
}

# One block of the tower: ours, LAVIS, Hugging Face.
_BLOCK: tuple[tuple[str, str | tuple[str, ...], str, str], ...] = (
    ("attention_norm.{p}", "norm1.{p}", "layer_norm1.{p}", "same"),
    ("attention.qkv.weight", "attn.qkv.weight", "self_attn.qkv.weight", "same"),
    ("attention.qkv.bias", ("attn.q_bias", "attn.v_bias"), "self_attn.qkv.bias", "no key"),
    ("attention.out.{p}", "attn.proj.{p}", "self_attn.projection.{p}", "same"),
    ("ffn_norm.{p}", "norm2.{p}", "layer_norm2.{p}", "same"),
    ("ffn.0.{p}", "mlp.fc1.{p}", "mlp.fc1.{p}", "same"),
    ("ffn.2.{p}", "mlp.fc2.{p}", "mlp.fc2.{p}", "same"),
)
_QKV = ("query", "key", "value")
# One layer of the Q-Former: group, ours, both others; {self} is "self" in LAVIS and "attention" in Hugging Face.
_LAYER: tuple[tuple[str, str, str | tuple[str, ...], str], ...] = (
    ("qformer", "attention.qkv.{p}", tuple(f"attention.{{self}}.{x}.{{p}}" for x in _QKV), "stack"),
    ("qformer", "attention.out.{p}", "attention.output.dense.{p}", "same"),
    ("qformer", "attention_norm.{p}", "attention.output.LayerNorm.{p}", "same"),
    ("qformer", "cross.q.{p}", "crossattention.{self}.query.{p}", "same"),
    ("qformer", "cross.kv.{p}", tuple(f"crossattention.{{self}}.{x}.{{p}}" for x in _QKV[1:]), "stack"),
    ("qformer", "cross.out.{p}", "crossattention.output.dense.{p}", "same"),
    ("qformer", "cross_norm.{p}", "crossattention.output.LayerNorm.{p}", "same"),
    ("qformer", "query_ffn.0.{p}", "intermediate_query.dense.{p}", "same"),
    ("qformer", "query_ffn.2.{p}", "output_query.dense.{p}", "same"),
    ("qformer", "query_norm.{p}", "output_query.LayerNorm.{p}", "same"),
    ("text", "text_ffn.0.{p}", "intermediate.dense.{p}", "same"),
    ("text", "text_ffn.2.{p}", "output.dense.{p}", "same"),
    ("text", "text_norm.{p}", "output.LayerNorm.{p}", "same"),
)
# Everything else: group, ours, LAVIS, Hugging Face (empty where it has no place).
_BERT, _CLS = "Qformer.bert.", "Qformer.cls.predictions."
_EYE, _HF_EYE = "visual_encoder.", "vision_model.embeddings."
_SINGLE: tuple[tuple[str, str, str | tuple[str, ...], str, str], ...] = (
    ("eva", "vision.model.cls_token", _EYE + "cls_token", _HF_EYE + "class_embedding", "same"),
    ("eva", "vision.model.pos_embed", _EYE + "pos_embed", _HF_EYE + "position_embedding", "same"),
    ("eva", "vision.model.patch_embed.{p}", _EYE + "patch_embed.proj.{p}", _HF_EYE + "patch_embedding.{p}", "same"),
    ("qformer", "ln_vision.{p}", "ln_vision.{p}", "vision_model.post_layernorm.{p}", "same"),
    ("qformer", "qformer.query_tokens", "query_tokens", "query_tokens", "same"),
    ("qformer", "qformer.embedding_norm.{p}", _BERT + "embeddings.LayerNorm.{p}", "{norm}.{p}", "same"),
    (
        "text",
        "qformer.words.weight",
        (_BERT + "embeddings.word_embeddings.weight", _CLS + "decoder.weight"),
        "{text}word_embeddings.weight",
        "tied",
    ),
    (
        "text",
        "qformer.positions.weight",
        _BERT + "embeddings.position_embeddings.weight",
        "{text}position_embeddings.weight",
        "same",
    ),
    ("captions", "qformer.lm_head.transform.0.{p}", _CLS + "transform.dense.{p}", "", "same"),
    ("captions", "qformer.lm_head.transform.2.{p}", _CLS + "transform.LayerNorm.{p}", "", "same"),
    ("captions", "qformer.lm_head.bias", (_CLS + "bias", _CLS + "decoder.bias"), "", "tied"),
    ("matching", "itm_head.{p}", "itm_head.{p}", "itm_head.{p}", "same"),
    ("contrast", "vision_proj.{p}", "vision_proj.{p}", "vision_projection.{p}", "same"),
    ("contrast", "text_proj.{p}", "text_proj.{p}", "text_projection.{p}", "same"),
    ("temperature", "log_temperature", "temp", "", "log"),
    ("project", "project.{p}", "{llm}_proj.{p}", "language_projection.{p}", "same"),
    ("llm", "generator.llm.{rest}", "{llm}_model.{rest}", "language_model.{rest}", "same"),
)
# What may stand in a file beside the table's rows, and why it is not read.
_PASSED_OVER = (
    (r"(Qformer\.bert\.|qformer\.)?embeddings\.position_ids", "a counter, not a weight"),
    (r".*\.rotary_emb\.inv_freq", "computed, not a weight"),
    (r".*\.EncDecAttention\.relative_attention_bias\.weight", "an old T5's, which it never used"),
    (r"(visual_encoder\.)?(norm|fc_norm|head)\.(weight|bias)", "behind the last block that BLIP-2 reads"),
    (rf"(visual_encoder\.)?blocks\.({EVA_BLOCKS}|[4-9]\d)\..*", "behind the last block that BLIP-2 reads"),
)


def _without_key(value: Tensor, parts: int) -> list[Tensor]:
    """Query and value third; a key bias moves all scores of a query alike, so that attention does not see it."""
    q, _, v = value.chunk(3)
    return [q.clone(), v.clone()]


# how -> (the parts there to our tensor, our tensor to so many parts there)
HOW: dict[str, tuple[Callable[[Sequence[Tensor]], Tensor], Callable[[Tensor, int], list[Tensor]]]] = {
    "same": (lambda parts: parts[0], lambda value, parts: [value]),
    "tied": (lambda parts: parts[0], lambda value, parts: [value] * parts),
    "stack": (lambda parts: torch.cat(list(parts)), lambda value, parts: [part.clone() for part in value.chunk(parts)]),
    "no key": (lambda parts: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]), _without_key),
    # in double precision, so that writing and reading again gives the same bits
    "log": (lambda parts: parts[0].double().log().float(), lambda value, parts: [value.double().exp()]),
}


@functools.cache
def table(layout: str, llm: str = "llm") -> tuple[Row, ...]:
    """The rows of one layout.

    Args:
        layout: key of :data:`LAYOUTS`, not ``native``.
        llm: what LAVIS calls the language model in its names: ``t5``, ``opt`` or ``llm``.
    """
    kind = LAYOUTS[layout]
    words = {"self": "self", "llm": llm, **kind.words}
    rows = []
    for group, native, lavis, hugging_face, how in _lines():
        names = lavis if kind.column == "lavis" else hugging_face
        given = (names,) if isinstance(names, str) else names
        if layout != "lavis-stage1":  # only there is the captioning head, which holds the words a second time
            given = tuple(name for name in given if not name.startswith(_CLS))
        if layout == "eva-vit-g":
            given = tuple(name.removeprefix(_EYE) for name in given)
        if group in (*kind.needs, *kind.may) and any(given):
            how = how if len(given) > 1 or how == "log" else "same"
            rows.append(Row(group, native, tuple(_filled(name, words) for name in given), how))
    return tuple(rows)


def _lines() -> Iterator[tuple[str, str, str | tuple[str, ...], str | tuple[str, ...], str]]:
    """The three literal tables as one: group, ours, LAVIS, Hugging Face, how."""
    yield from _SINGLE
    for native, lavis, hugging_face, how in _BLOCK:
        there = _under(_EYE + "blocks.{i}.", lavis), _under("vision_model.encoder.layers.{i}.", hugging_face)
        yield "eva", f"vision.model.blocks.{{i}}.{native}", *there, how
    for group, native, both, how in _LAYER:
        left, right = (_under(f"{stem}encoder.layer.{{i}}.", both) for stem in (_BERT, "qformer."))
        yield group, f"qformer.layers.{{i}}.{native}", left, right, how


def _under(prefix: str, names: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for name in ((names,) if isinstance(names, str) else names))


def _filled(name: str, words: dict[str, str]) -> str:
    for key, word in words.items():
        name = name.replace(f"{{{key}}}", word)
    return name


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    for key, expression in (("i", r"\d+"), ("p", "weight|bias"), ("rest", r".+")):
        text = text.replace(rf"\{{{key}\}}", f"(?P<{key}>{expression})")
    return re.compile(text)


def bindings(pattern: str, name: str) -> dict[str, str] | None:
    """What the placeholders of ``pattern`` stand for in ``name``; None where it does not match."""
    found = _pattern(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def row_of(rows: Sequence[Row], name: str) -> tuple[Row, dict[str, str]] | None:
    """The row of one of our names, and what its placeholders stand for."""
    for row in rows:
        if (bound := bindings(row.native, name)) is not None:
            return row, bound
    return None


def group_of(name: str) -> str:
    """The group of one of our names: a table's (``qformer``, ``text`` ...), or its first word; halves stay in front."""
    first, _, rest = name.partition(".")
    if first in HALVES and rest:
        return f"{first}.{group_of(rest)}"
    for layout in ("lavis-stage1", "lavis-instruct"):
        if found := row_of(table(layout), name):
            return found[0].group
    return first


def passed_over(name: str) -> str | None:
    """Why a name that no row knows may stand in a checkpoint; None where it may not."""
    return next((why for pattern, why in _PASSED_OVER if re.fullmatch(pattern, name)), None)


def detect(names: Sequence[str]) -> str:
    """The layout of a checkpoint by its names.

    Raises:
        CheckpointError: none that is known here.
    """
    known = set(names)

    def any_starts(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in known)

    if any_starts("Qformer.bert."):
        if any_starts(_CLS) or "temp" in known:
            return "lavis-stage1"
        return "lavis-instruct" if any_starts("Qformer.bert.encoder.layer.0.intermediate.") else "lavis-stage2"
    if any_starts("qformer.encoder.layer.") and "query_tokens" in known:
        if any_starts("qformer.embeddings.word", "qformer.embeddings.layernorm"):
            return "hf-instructblip"
        return "hf-blip2-itm" if "embeddings.word_embeddings.weight" in known else "hf-blip2"
    if "blocks.0.attn.qkv.weight" in known and "pos_embed" in known:
        return "eva-vit-g"
    if any_starts("vision.", "ranker.", *(f"{half}." for half in HALVES)):
        return "native"
    example = ", ".join(sorted(known)[:3])
    raise CheckpointError(f"no layout known here ({', '.join(LAYOUTS)}); its names begin with {example}")
