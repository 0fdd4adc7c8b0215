"""Released models by name: their files, how large those are, the memory they need, and the configuration behind them.

Sources: the file lists of LAVIS and the configurations of the named Hugging Face models.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from ra_blip.config import GeneratorConfig, ModelConfig, Precision, PrecisionConfig, QFormerConfig, VisionConfig
from ra_blip.models.eva import EvaConfig

EVA = ("eva_vit_g.pth", 1935)


@dataclasses.dataclass(frozen=True)
class Preset:
    """One released model.

    Attributes:
        hf: Hugging Face hub id of the whole model; empty where only the LAVIS files go with this language model.
        lavis: LAVIS files and their sizes in MiB; each is read over the ones before.
        llm: hub id of the language model, which no LAVIS file holds.
        llm_config: what that model is, enough to build it without its files.
        memory: GiB for all weights: Q-Formers, fusion, heads in fp32, tower in fp16, language model in ``precision``.
        precision: of the language model.
        reader_text: whether the Q-Former reads the question (InstructBLIP) or the picture alone (BLIP-2).
        fresh: parts that the files hold for another language model, and that start untrained.
    """

    hf: str
    lavis: tuple[tuple[str, int], ...]
    llm: str
    llm_config: dict[str, Any]
    memory: float
    precision: Precision = "bf16"
    reader_text: bool = True
    fresh: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        """The configuration at real size; it names no other model, so that it builds offline."""
        return ModelConfig(
            vision=VisionConfig(config=EvaConfig().to_dict()),
            qformer=QFormerConfig(reader_text=self.reader_text),
            generator=GeneratorConfig(config=copy.deepcopy(self.llm_config)),
            precision=PrecisionConfig(vision="fp16", llm=self.precision),
        )


def _t5(width: int, ffn: int, heads: int, layers: int = 24, **rest: Any) -> dict[str, Any]:
    sizes = {"d_model": width, "d_ff": ffn, "num_heads": heads, "num_layers": layers, "num_decoder_layers": layers}
    return {"model_type": "t5", "vocab_size": 32128, "d_kv": 64, **sizes, **rest}


def _llama(width: int, ffn: int, heads: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": ffn, "num_attention_heads": heads, "num_hidden_layers": layers}
    known = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    return {"model_type": "llama", "vocab_size": 32001, **sizes, **known}  # 32000 and LAVIS's [PAD]


# Flan-T5 as BLIP-2 runs it, with the exact GELU; its output matrix is its own, and its states are not scaled.
_FLAN: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
_FLAN_XL = _t5(2048, 5120, 32, **_FLAN)
_FLAN_XXL = _t5(4096, 10240, 64, **_FLAN)
_OPT = {
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 2560,
    "word_embed_proj_dim": 2560,
    "ffn_dim": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_INSTRUCT_XL = ("instruct_blip_flanxl_trimmed.pth", 714)

PRESETS = {
    "blip2-flan-t5-xl": Preset(
        hf="Salesforce/blip2-flan-t5-xl",
        lavis=(EVA, ("blip2_pretrained_flant5xl.pth", 407)),
        llm="google/flan-t5-xl",
        llm_config=_FLAN_XL,
        memory=8.3,
        reader_text=False,
    ),
    "blip2-opt-2.7b": Preset(
        hf="Salesforce/blip2-opt-2.7b",
        lavis=(EVA, ("blip2_pretrained_opt2.7b.pth", 409)),
        llm="facebook/opt-2.7b",
        llm_config=_OPT,
        memory=8.0,
        precision="fp16",
        reader_text=False,
    ),
    "instructblip-flan-t5-xl": Preset(
        hf="Salesforce/instructblip-flan-t5-xl",
        lavis=(EVA, _INSTRUCT_XL),
        llm="google/flan-t5-xl",
        llm_config=_FLAN_XL,
        memory=8.6,
    ),
    "instructblip-flan-t5-xxl": Preset(
        hf="Salesforce/instructblip-flan-t5-xxl",
        lavis=(EVA, ("instruct_blip_flanxxl_trimmed.pth", 720)),
        llm="google/flan-t5-xxl",
        llm_config=_FLAN_XXL,
        memory=24.1,
    ),
    "instructblip-vicuna-7b": Preset(
        hf="Salesforce/instructblip-vicuna-7b",
        lavis=(EVA, ("instruct_blip_vicuna7b_trimmed.pth", 720)),
        llm="lmsys/vicuna-7b-v1.1",
        llm_config=_llama(4096, 11008, 32, 32),
        memory=15.9,
        precision="fp16",
    ),
    "instructblip-vicuna-13b": Preset(
        hf="Salesforce/instructblip-vicuna-13b",
        lavis=(EVA, ("instruct_blip_vicuna13b_trimmed.pth", 723)),
        llm="lmsys/vicuna-13b-v1.1",
        llm_config=_llama(5120, 13824, 40, 40),
        memory=27.7,
        precision="fp16",
    ),
    # RA-BLIP's small sizes start from the Q-Former of InstructBLIP Flan-T5-XL, whose projection is too wide for them.
    "ra-blip-t5-base": Preset(
        hf="",
        lavis=(EVA, _INSTRUCT_XL),
        llm="google-t5/t5-base",
        llm_config=_t5(768, 3072, 12, 12),
        memory=3.7,
        fresh=("reader.project",),
    ),
    "ra-blip-t5-large": Preset(
        hf="",
        lavis=(EVA, _INSTRUCT_XL),
        llm="google-t5/t5-large",
        llm_config=_t5(1024, 4096, 16),
        memory=4.7,
        fresh=("reader.project",),
    ),
}
