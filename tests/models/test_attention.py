from __future__ import annotations

import pytest
import torch
from torch import nn

from ra_blip.models.attention import (
    CrossAttention,
    SelfAttention,
    TransformerLayer,
    gather_kv,
    init_bert,
    may_attend,
    unilm_mask,
)
from tests.tiny import close, shaken


def reference(width: int, heads: int, qkv: nn.Linear, out: nn.Linear) -> nn.MultiheadAttention:
    """torch's own attention with the same weights."""
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(qkv.weight)
        theirs.in_proj_bias.copy_(qkv.bias)
        theirs.out_proj.weight.copy_(out.weight)
        theirs.out_proj.bias.copy_(out.bias)
    return theirs


def test_self_attention_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, x = SelfAttention(12, 3), torch.randn(2, 5, 12)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected, _ = reference(12, 3, ours.qkv, ours.out)(x, x, x, key_padding_mask=valid == 0)
    assert close(ours(x, may_attend(valid)), expected)
    assert not close(ours(x), expected)


def cross_reference(ours: CrossAttention) -> nn.MultiheadAttention:
    """torch's own attention over keys and values of another width, with the same weights."""
    width = ours.q.in_features
    theirs = nn.MultiheadAttention(width, ours.heads, batch_first=True, kdim=7, vdim=7)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.q.weight)
        theirs.k_proj_weight.copy_(ours.kv.weight[:width])
        theirs.v_proj_weight.copy_(ours.kv.weight[width:])
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    return theirs


@pytest.mark.parametrize("count", [4, 40], ids=["few_features", "many_features"])
def test_cross_attention_is_multi_head_attention(count: int) -> None:
    torch.manual_seed(1)
    ours = shaken(CrossAttention(12, 3, feature_width=7))
    x, features = torch.randn(2, 2, 12), torch.randn(2, count, 7)
    valid = torch.rand(2, count) < 0.6
    expected, shares = cross_reference(ours)(x, features, features, key_padding_mask=~valid, average_attn_weights=False)
    mask = may_attend(valid)
    assert ours._absorbs(ours.q(x).unflatten(-1, (3, -1)), features) == (count == 40), "both forms are met"
    for source in (features, ours.key_value(features)):
        assert close(ours(x, source, mask), expected)
        assert close(ours.weights(x, source, mask), shares)
        assert not close(ours(x, source), expected, 1e-3)


def test_what_nothing_may_be_read_from_gives_the_output_bias() -> None:
    cross, x, features = shaken(CrossAttention(12, 3, 7)), torch.randn(2, 2, 12), torch.randn(2, 40, 7)
    mask = may_attend(torch.arange(80).reshape(2, 40) < 40)  # the second row has no feature
    for source in (features, cross.key_value(features)):
        out = cross(x, source, mask)
        assert torch.equal(out[1], cross.out.bias.expand(2, -1)) and torch.isfinite(out).all()
        assert not cross.weights(x, source, mask)[1].any()


def test_masked_features_change_no_bit() -> None:
    cross, x, features = shaken(CrossAttention(12, 3, 7)), torch.randn(2, 2, 12), torch.randn(2, 40, 7)
    mask = may_attend(torch.rand(2, 40) < 0.5)
    other = torch.where(mask[:, 0, 0, :, None], features, 1e4)
    assert torch.equal(cross(x, features, mask), cross(x, other, mask))
    assert torch.equal(cross(x, cross.key_value(features), mask), cross(x, cross.key_value(other), mask))


def test_with_dropout_features_are_read_as_keys_and_values_are() -> None:
    cross, x, features = (
        shaken(CrossAttention(12, 3, 7, dropout=0.5)).train(),
        torch.randn(2, 2, 12),
        torch.randn(2, 40, 7),
    )
    drawn = []
    for source in (features, cross.key_value(features)):
        torch.manual_seed(3)
        drawn.append(cross(x, source))
    assert torch.equal(*drawn) and not close(drawn[0], cross.eval()(x, features), 1e-3)


def test_both_forms_have_the_same_gradient() -> None:
    torch.manual_seed(2)
    cross, x, features = shaken(CrossAttention(12, 3, 7)), torch.randn(2, 2, 12), torch.randn(2, 40, 7)
    gradients = []
    for read in (lambda: features, lambda: cross.key_value(features)):
        cross.zero_grad()
        cross(x, read()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in cross.parameters()])
    assert all(close(a, b, 1e-4) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_layer_is_torchs(norm_first: bool) -> None:
    ours = shaken(TransformerLayer(12, 3, 20, 1e-6, norm_first)).eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", 1e-6, batch_first=True, norm_first=norm_first).eval()
    own = dict(zip(theirs.state_dict(), LAYER_NAMES, strict=True))
    theirs.load_state_dict({name: ours.state_dict()[mine] for name, mine in own.items()})
    x, valid = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = theirs(x, src_key_padding_mask=valid == 0)
    assert close(ours(x, may_attend(valid))[valid == 1], expected[valid == 1])
    assert close(ours(x), theirs(x))


LAYER_NAMES = [
    *("attention.qkv.weight", "attention.qkv.bias", "attention.out.weight", "attention.out.bias"),
    *("ffn.0.weight", "ffn.0.bias", "ffn.2.weight", "ffn.2.bias"),
    *("attention_norm.weight", "attention_norm.bias", "ffn_norm.weight", "ffn_norm.bias"),
]


@pytest.mark.parametrize("pictures", [3, 1])
def test_keys_and_values_gathered_equal_those_computed_per_row(pictures: int) -> None:
    cross, features = shaken(CrossAttention(8, 2, 6)), torch.randn(pictures, 5, 6)
    rows = torch.tensor([2, 0, 2, 1]) % pictures
    gathered = gather_kv([cross.key_value(features)], rows)
    assert gathered is not None
    assert all(torch.equal(a, b) for a, b in zip(gathered[0], cross.key_value(features[rows]), strict=True))
    assert gather_kv(None, rows) is None


def test_keys_and_values_of_one_picture_are_not_copied() -> None:
    cross = CrossAttention(8, 2, 6)
    keys, values = cross.key_value(torch.randn(1, 5, 6))
    gathered = gather_kv([(keys, values)], torch.zeros(7, dtype=torch.long))
    assert gathered is not None and gathered[0][0].shape == (7, 2, 5, 4)
    assert gathered[0][0].data_ptr() == keys.data_ptr() and gathered[0][1].data_ptr() == values.data_ptr()


def test_unilm_mask_by_hand() -> None:
    seen = unilm_mask(2, torch.tensor([[1, 1, 0]]))[0, 0].int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0],  # queries see queries
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # a text token sees queries and the text up to itself
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],  # what is padding is seen by none
    ]


def test_init_bert() -> None:
    linear, embedding = nn.Linear(200, 200), nn.Embedding(300, 100)
    for module in (linear, embedding):
        init_bert(module)
        wanted = 0.02 * (768 / module.weight.shape[1]) ** 0.5  # as strong a signal as at BERT's width
        assert abs(float(module.weight.detach().std()) - wanted) < 1e-3
    assert not linear.bias.any()
