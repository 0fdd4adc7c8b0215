from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ra_blip.config import RetrieverConfig
from ra_blip.models.fusion import Fusion, Retriever
from tests.tiny import close, qformer_config, shaken


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[False, True], ids=["norm_last", "norm_first"])
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return shaken(Fusion(qformer_config(norm_first=request.param), 2)).eval()


@pytest.fixture
def retriever() -> Retriever:
    torch.manual_seed(0)
    config = RetrieverConfig(fusion_layers=2, dimension=10)
    return shaken(Retriever(qformer_config(), config, vocabulary=30, feature_width=6)).eval()


def test_every_position_hears_of_every_other(fusion: Fusion) -> None:
    queries, text = draw(2, 3, 16), draw(2, 4, 16, seed=1)
    before = fusion(queries, text, torch.ones(2, 4))
    assert before.shape == (2, 3, 16)
    for place in range(4):
        other = text.clone()
        other[0, place, 0] += 3  # not all of it: a norm would take that away
        moved = (fusion(queries, other, torch.ones(2, 4)) - before).abs().amax(-1)
        assert moved[0].min() > 1e-4 and not moved[1].any()
    other = queries.clone()
    other[0, 2, 0] += 3
    assert (fusion(other, text, torch.ones(2, 4)) - before).abs().amax(-1)[0].min() > 1e-4


def test_padding_changes_nothing(fusion: Fusion) -> None:
    queries, text = draw(2, 3, 16), draw(2, 6, 16, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    assert close(fusion(queries, text, mask), fusion(queries, text[:, :4], torch.ones(2, 4)), 2e-6)
    assert torch.equal(fusion(queries, text, mask), fusion(queries, text.masked_fill(mask[..., None] == 0, 5.0), mask))


def test_without_a_mask_all_text_is_heard(fusion: Fusion) -> None:
    queries, text = draw(2, 3, 16), draw(2, 4, 16, seed=1)
    assert torch.equal(fusion(queries, text), fusion(queries, text, torch.ones(2, 4)))


def test_no_layers_are_the_identity() -> None:
    queries = draw(2, 3, 16)
    assert torch.equal(Fusion(qformer_config(norm_first=True), 0)(queries, draw(2, 4, 16)), queries)


def test_vectors_have_length_one_and_every_kind_its_own_direction(retriever: Retriever) -> None:
    kv, text, mask = retriever.kv(draw(2, 5, 6)), torch.arange(8).reshape(2, 4), torch.ones(2, 4)
    kinds = [
        retriever.text_vectors(text, mask),
        retriever.picture_vectors(kv),
        retriever.picture_vectors(kv, text, mask),
    ]
    for vectors in kinds:
        assert vectors.shape == (2, 10) and vectors.dtype == torch.float32
        assert close(vectors.norm(dim=-1), torch.ones(2), 1e-6)
    assert not close(kinds[0], kinds[2], 1e-2) and not close(kinds[1], kinds[2], 1e-2)


def test_a_picture_vector_is_the_mean_of_the_fused_queries_alone(retriever: Retriever) -> None:
    kv, text, mask = retriever.kv(draw(2, 5, 6)), torch.arange(8).reshape(2, 4), torch.ones(2, 4)
    out = retriever.qformer("instruct", kv=kv, text=text, text_mask=mask)
    x = torch.cat([out.queries, out.text], dim=1)
    for layer in retriever.fusion.layers:
        x = layer(x, None)
    pooled = x[:, :3].mean(1)
    assert close(retriever.fused(kv, text, mask), pooled, 2e-6)
    by_hand = torch.tanh(pooled @ retriever.head.weight.T + retriever.head.bias)
    assert close(retriever.picture_vectors(kv, text, mask), by_hand / by_hand.norm(dim=-1, keepdim=True), 2e-6)


def test_a_text_vector_is_the_first_state(retriever: Retriever) -> None:
    text, mask = torch.arange(8).reshape(2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    first = retriever.qformer("text", text=text, text_mask=mask).text[:, 0]
    by_hand = torch.tanh(first @ retriever.head.weight.T + retriever.head.bias)
    assert close(retriever.text_vectors(text, mask), by_hand / by_hand.norm(dim=-1, keepdim=True), 2e-6)


def test_captioning_queries_serve_as_picture_vectors(retriever: Retriever) -> None:
    kv = retriever.kv(draw(2, 5, 6))
    text, mask = torch.arange(8).reshape(2, 4), torch.ones(2, 4)
    generated = retriever.qformer("generate", kv=kv, text=text, text_mask=mask).queries
    assert close(retriever.project_queries(generated), retriever.picture_vectors(kv), 2e-6)


def test_temperature_is_learnt_within_bounds(retriever: Retriever) -> None:
    def at(value: float) -> float:
        with torch.no_grad():
            retriever.log_temperature.fill_(math.log(value))
        return float(retriever.temperature.detach())

    assert [at(0.2), at(3.0), at(1e-6)] == pytest.approx([0.2, 0.5, 0.001])
    fresh = Retriever(qformer_config(), RetrieverConfig(fusion_layers=0, temperature=0.03), 30, 6)
    assert float(fresh.temperature.detach()) == pytest.approx(0.03)
