from __future__ import annotations

import torch
from torch import nn

from ra_blip.models.attention import CrossAttention, SelfAttention, gather_kv, init_bert, may_attend, unilm_mask
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


def test_cross_attention_is_multi_head_attention() -> None:
    torch.manual_seed(1)
    ours = CrossAttention(12, 3, feature_width=7)
    x, features = torch.randn(2, 4, 12), torch.randn(2, 6, 7)
    valid = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1]])
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, kdim=7, vdim=7)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.q.weight)
        theirs.k_proj_weight.copy_(ours.kv.weight[:12])
        theirs.v_proj_weight.copy_(ours.kv.weight[12:])
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    expected, _ = theirs(x, features, features, key_padding_mask=valid == 0)
    assert close(ours(x, ours.key_value(features), may_attend(valid)), expected)


def test_keys_and_values_gathered_equal_those_computed_per_row() -> None:
    cross, features, rows = shaken(CrossAttention(8, 2, 6)), torch.randn(3, 5, 6), torch.tensor([2, 0, 2, 1])
    gathered = gather_kv([cross.key_value(features)], rows)
    assert gathered is not None
    assert all(torch.equal(a, b) for a, b in zip(gathered[0], cross.key_value(features[rows]), strict=True))
    assert gather_kv(None, rows) is None


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
