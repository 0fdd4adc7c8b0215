"""Q-Former and EVA tower against transformers' BLIP-2 and InstructBLIP, with the same random weights, in fp32."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
)

from ra_blip.config import QFormerConfig
from ra_blip.models.eva import EvaConfig, EvaViT
from ra_blip.models.qformer import QFormer
from tests.hf_weights import eva_state, qformer_state
from tests.tiny import close, shaken

WORDS, FEATURES, QUERIES = 50, 20, 5
OURS = QFormerConfig(width=24, layers=4, heads=3, ffn=40, queries=QUERIES, max_positions=16, dropout=0.0)
THEIRS: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "encoder_hidden_size": FEATURES,
}
EYE: dict[str, Any] = {
    "hidden_size": FEATURES,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 36,
    "patch_size": 4,
    "image_size": 16,
}
TEXT = torch.tensor([[3, 8, 2, 9, 1, 4], [7, 3, 5, 0, 0, 0]])
TEXT_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
# two pictures of four features each; the second row has one picture
SLOTS = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(theirs: nn.Module, prefix: str = "", text: Literal["states", "none"] = "states") -> tuple[QFormer, Tensor]:
    """Our Q-Former with the weights of theirs, and its queries."""
    queries = draw(1, QUERIES, 24, seed=9)
    ours = QFormer(OURS, WORDS, FEATURES, text=text).eval()
    state = {name.removeprefix(prefix): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(qformer_state(state, queries))  # strict: every weight of ours has one of theirs
    return ours, queries


@pytest.fixture(scope="module")
def instruct() -> tuple[Any, QFormer, Tensor]:
    torch.manual_seed(0)
    theirs = shaken(InstructBlipQFormerModel(InstructBlipQFormerConfig(**THEIRS))).eval()
    return theirs, *pair(theirs)


@pytest.mark.parametrize("reuse", [True, False], ids=["keys_and_values", "features"])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(0, 1), slice(1, 2)], ids=["both", "full", "padded"])
def test_instruct_is_instructblip(instruct: tuple[Any, QFormer, Tensor], reuse: bool, rows: slice) -> None:
    theirs, ours, queries = instruct
    features, text, mask, slots = draw(2, 8, FEATURES)[rows], TEXT[rows], TEXT_MASK[rows], SLOTS[rows]
    with torch.no_grad():
        states = theirs(
            input_ids=text,
            attention_mask=torch.cat([torch.ones(len(text), QUERIES, dtype=torch.long), mask], dim=1),
            query_embeds=queries.expand(len(text), -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=slots,
        ).last_hidden_state
        out = ours("instruct", ours.cross_kv(features) if reuse else features, slots, text, mask)
    assert close(out.queries, states[:, :QUERIES])
    assert close(out.text[mask == 1], states[:, QUERIES:][mask == 1])


def test_image_and_text_alone_are_instructblip(instruct: tuple[Any, QFormer, Tensor]) -> None:
    theirs, ours, queries = instruct
    features = draw(2, 8, FEATURES)
    with torch.no_grad():
        pictures = theirs(
            input_ids=None,
            query_embeds=queries.expand(2, -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=SLOTS,
        )
        texts = theirs(input_ids=TEXT, attention_mask=TEXT_MASK)
        assert close(ours("image", features, SLOTS).queries, pictures.last_hidden_state)
        found = ours("text", text=TEXT, text_mask=TEXT_MASK).text
    assert close(found[TEXT_MASK == 1], texts.last_hidden_state[TEXT_MASK == 1])


def test_without_a_text_branch_it_is_blip2() -> None:
    torch.manual_seed(1)
    theirs = shaken(Blip2QFormerModel(Blip2QFormerConfig(**THEIRS))).eval()
    ours, queries = pair(theirs, text="none")
    for rows in (slice(0, 2), slice(1, 2)):
        features, slots = draw(2, 8, FEATURES)[rows], SLOTS[rows]
        with torch.no_grad():
            states = theirs(
                query_embeds=queries.expand(len(slots), -1, -1),
                encoder_hidden_states=features,
                encoder_attention_mask=slots,
            ).last_hidden_state
            assert close(ours("image", features, slots).queries, states)
            assert close(ours("image", ours.cross_kv(features), slots).queries, states)


def test_generate_is_blip2_under_a_unilm_mask() -> None:
    torch.manual_seed(2)
    theirs = shaken(Blip2ForImageTextRetrieval(retrieval_config())).eval()
    ours, queries = pair(theirs, "qformer.")
    sees = torch.zeros(2, 1, QUERIES + 6, QUERIES + 6, dtype=torch.bool)
    for b in range(2):
        for i in range(QUERIES + 6):
            for j in range(QUERIES + 6):
                valid = j < QUERIES or bool(TEXT_MASK[b, j - QUERIES])
                sees[b, 0, i, j] = valid and (j < QUERIES or (i >= QUERIES and j <= i))
    features = draw(2, 8, FEATURES)
    with torch.no_grad():
        states = theirs.qformer(
            query_embeds=theirs.embeddings(input_ids=TEXT, query_embeds=queries.expand(2, -1, -1)),
            query_length=QUERIES,
            attention_mask=torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min),
            encoder_hidden_states=features,
        ).last_hidden_state
        out = ours("generate", features, text=TEXT, text_mask=TEXT_MASK)
    assert close(out.queries, states[:, :QUERIES])
    assert close(out.text[TEXT_MASK == 1], states[:, QUERIES:][TEXT_MASK == 1])


def retrieval_config() -> Blip2Config:
    sides = {"vision_config": EYE, "qformer_config": {**THEIRS, "use_qformer_text_input": True}}
    return Blip2Config(**sides, num_query_tokens=QUERIES, image_text_hidden_size=14, return_dict=True)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 2)], ids=["both", "padded"])
def test_matching_and_contrast_are_blip2s(rows: slice) -> None:
    torch.manual_seed(3)
    theirs = shaken(Blip2ForImageTextRetrieval(retrieval_config())).eval()
    with torch.no_grad():
        theirs.query_tokens.copy_(draw(1, QUERIES, 24, seed=9))
    ours, _ = pair(theirs, "qformer.")
    eye, norm = eva(theirs.vision_model)
    pixels, text, mask = draw(2, 3, 16, 16)[rows], TEXT[rows], TEXT_MASK[rows]
    with torch.no_grad():
        matched = theirs(pixels, text, mask, use_image_text_matching_head=True).logits_per_image
        contrast = theirs(pixels, text, mask).logits_per_image
        features = norm(eye(pixels))
        queries = ours("match", features, text=text, text_mask=mask).queries
        assert close(theirs.itm_head(queries).mean(1), matched)
        pictures = F.normalize(theirs.vision_projection(ours("image", features).queries), dim=-1)
        words = F.normalize(theirs.text_projection(ours("text", text=text, text_mask=mask).text[:, 0]), dim=-1)
        assert close(torch.einsum("bqd,cd->bqc", pictures, words).amax(1), contrast)


def eva(theirs: Any) -> tuple[EvaViT, nn.LayerNorm]:
    """Our tower with the weights of theirs, and the norm that stands behind it."""
    sizes, eps = theirs.config, theirs.config.layer_norm_eps
    config = EvaConfig(FEATURES, sizes.num_hidden_layers, 2, 36, 4, sizes.image_size, eps)
    ours = EvaViT(config).eval()
    ours.load_state_dict(eva_state(theirs.state_dict()))
    norm = nn.LayerNorm(FEATURES, eps=eps)
    norm.load_state_dict(theirs.post_layernorm.state_dict())
    return ours, norm


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("kind", ["blip2", "instructblip"])
def test_the_tower_is_theirs(kind: str, eps: float) -> None:
    torch.manual_seed(4)
    theirs: Any
    if kind == "blip2":
        theirs = Blip2VisionModel(Blip2VisionConfig(**EYE, layer_norm_eps=eps))
    else:
        theirs = InstructBlipVisionModel(InstructBlipVisionConfig(**EYE, layer_norm_eps=eps))
    ours, norm = eva(shaken(theirs).eval())
    assert {module.eps for module in ours.modules() if isinstance(module, nn.LayerNorm)} == {eps}
    for size in (16, 24):  # the second one with interpolated positions
        for batch in (3, 1):
            pixels = draw(batch, 3, size, size, seed=size)
            with torch.no_grad():
                states = theirs(pixels, interpolate_pos_encoding=size != 16).last_hidden_state
                assert close(norm(ours(pixels)), states)


def count(module: nn.Module) -> tuple[int, int]:
    state = module.state_dict()
    return len(state), sum(value.numel() for value in state.values())


def test_real_sizes_are_the_released_ones() -> None:
    words = 30523
    with torch.device("meta"):
        stage1 = QFormer(QFormerConfig(), words, 1408, lm_head=True)
        instruct = QFormer(QFormerConfig(), words, 1408, text="guide")
        stage2 = QFormer(QFormerConfig(), words, 1408, text="none")
        tower = EvaViT(EvaConfig())
        theirs = InstructBlipQFormerModel(InstructBlipQFormerConfig(vocab_size=words))
        theirs_without = Blip2QFormerModel(Blip2QFormerConfig(vocab_size=words))
        their_tower = Blip2VisionModel(Blip2VisionConfig())
    queries, joined = 32 * 768, 12 * 4 + 6 * 2  # q, k, v (k, v) are one tensor here, three (two) there
    tensors, numbers = count(instruct)
    assert (tensors - 1 + joined, numbers - queries) == count(theirs)
    assert tensors - 1 + joined + 1 == 329  # LAVIS keeps position_ids, too, and the queries outside
    tensors, numbers = count(stage2)
    assert (tensors - 1 + joined, numbers - queries) == count(theirs_without)
    assert tensors - 1 + joined + 1 == 255
    tensors, numbers = count(stage1)
    assert tensors - 1 + joined + 1 + 2 == 336  # LAVIS stores the tied matrix again, and the bias of the head twice
    heads = 2 * 1408 + 2 * (256 * 768 + 256) + 2 * 768 + 2 + 1
    assert round((numbers + heads) / 1e6, 1) == 186.7
    assert [round((count(m)[1] + 2 * 1408) / 1e6, 1) for m in (instruct, stage2)] == [185.7, 105.2]
    norm = 2 * 1408
    tensors, numbers = count(tower)
    assert (tensors + 2, numbers + norm) == count(their_tower)
    assert tensors == 472 and round(numbers / 1e6, 1) == 985.9


def test_at_real_size_it_is_theirs() -> None:
    config = InstructBlipQFormerConfig(vocab_size=60)
    with torch.device("meta"):
        theirs: Any = InstructBlipQFormerModel(config)
        their_eye: Any = Blip2VisionModel(Blip2VisionConfig(num_hidden_layers=1))
        ours, eye = QFormer(QFormerConfig(), 60, 1408), EvaViT(EvaConfig(layers=1))
    generator = torch.Generator().manual_seed(5)
    for module in (theirs, their_eye):
        module.to_empty(device="cpu").eval()
        for name, parameter in module.named_parameters():
            spread = 0.35 if "layernorm" in name.lower() else 0.04  # about what trained weights have
            parameter.data.uniform_(-spread, spread, generator=generator)
            if "layernorm" in name.lower() and name.endswith("weight"):
                parameter.data += 1
    theirs.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    queries = draw(1, 32, 768)
    ours.load_state_dict(qformer_state(theirs.state_dict(), queries), assign=True)
    eye.load_state_dict(eva_state(their_eye.state_dict()), assign=True)
    text = torch.arange(2, 14)[None]
    with torch.no_grad():
        pixels = draw(1, 3, 224, 224)
        seen = their_eye(pixels).last_hidden_state
        norm = nn.LayerNorm(1408, eps=1e-6)
        norm.load_state_dict(their_eye.post_layernorm.state_dict())
        features = norm(eye.eval()(pixels))
        assert close(features, seen, 1e-4)
        states = theirs(
            input_ids=text,
            attention_mask=torch.ones(1, 44, dtype=torch.long),
            query_embeds=queries,
            encoder_hidden_states=seen,
        ).last_hidden_state
        for source in (features, ours.cross_kv(features)):
            out = ours.eval()("instruct", source, text=text, text_mask=torch.ones(1, 12))
            assert close(torch.cat([out.queries, out.text], dim=1), states, 1e-4)
    assert float(states.std()) > 0.5
