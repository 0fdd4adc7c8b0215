from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ra_blip.errors import ConfigError
from ra_blip.models.attention import gather_kv
from ra_blip.models.qformer import Mode, QFormer
from tests.tiny import close, qformer_config, shaken, state

WORDS, FEATURES = 30, 6


def build(norm_first: bool = False, **changes: Any) -> QFormer:
    torch.manual_seed(0)
    return shaken(QFormer(qformer_config(norm_first=norm_first, **changes), WORDS, FEATURES, lm_head=True)).eval()


def text(batch: int = 2, length: int = 5) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) % WORDS


@pytest.fixture(params=[False, True], ids=["norm_last", "norm_first"])
def qformer(request: pytest.FixtureRequest) -> QFormer:
    return build(request.param)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, 4, FEATURES, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mode", ["text", "instruct", "match", "generate"])
def test_padding_changes_nothing(qformer: QFormer, features: Tensor, mode: Mode) -> None:
    kv = None if mode == "text" else qformer.cross_kv(features)
    short = qformer(mode, kv, text=text(), text_mask=torch.ones(2, 5))
    padded = torch.cat([text(), torch.tensor([[7, 8, 9], [1, 2, 3]])], dim=1)
    mask = torch.cat([torch.ones(2, 5), torch.zeros(2, 3)], dim=1)
    long = qformer(mode, kv, text=padded, text_mask=mask)
    assert close(short.text, long.text[:, :5], 2e-6)
    if mode != "text":
        assert close(short.queries, long.queries, 2e-6)
    other = qformer(mode, kv, text=padded.masked_fill(mask == 0, 0), text_mask=mask)
    assert torch.equal(long.text[:, :5], other.text[:, :5])


@pytest.mark.parametrize("mode", ["text", "instruct", "generate"])
def test_a_batch_equals_its_rows(qformer: QFormer, features: Tensor, mode: Mode) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    both = qformer(mode, qformer.cross_kv(features), text=text(), text_mask=mask)
    for row, length in ((0, 5), (1, 3)):
        kv = qformer.cross_kv(features[row : row + 1])
        one = qformer(mode, kv, text=text()[row : row + 1, :length], text_mask=torch.ones(1, length))
        assert close(one.text[0], both.text[row, :length])
        assert (one.queries is None) == (mode == "text")
        assert one.queries is None or close(one.queries[0], both.queries[row])


def test_in_generate_the_queries_are_blind_and_the_text_is_causal(qformer: QFormer, features: Tensor) -> None:
    kv, mask = qformer.cross_kv(features), torch.ones(2, 5)
    plain = qformer("image", kv)
    generated = qformer("generate", kv, text=text(), text_mask=mask)
    assert plain.text is None and close(plain.queries, generated.queries, 2e-6)
    for place in range(5):
        other = text()
        other[:, place] = 29
        changed = qformer("generate", kv, text=other, text_mask=mask)
        assert torch.equal(changed.queries, generated.queries)
        assert torch.equal(changed.text[:, :place], generated.text[:, :place])
        assert (changed.text - generated.text).abs().amax(-1)[:, place:].min() > 1e-4, "later tokens must see it"


def test_generate_is_causal_without_a_mask_too(qformer: QFormer, features: Tensor) -> None:
    kv = qformer.cross_kv(features)
    with_mask = qformer("generate", kv, text=text(), text_mask=torch.ones(2, 5))
    assert torch.equal(qformer("generate", kv, text=text()).text, with_mask.text)


def test_in_instruct_text_and_queries_see_each_other(qformer: QFormer, features: Tensor) -> None:
    mask = torch.ones(2, 5)
    before = qformer("instruct", qformer.cross_kv(features), text=text(), text_mask=mask)
    other = text()
    other[:, 4] = 29
    worded = qformer("instruct", qformer.cross_kv(features), text=other, text_mask=mask)
    assert (worded.queries - before.queries).abs().max() > 1e-3
    assert (worded.text - before.text).abs()[:, 0].max() > 1e-3, "not causal"
    looked = qformer("instruct", qformer.cross_kv(features + 1), text=text(), text_mask=mask)
    assert (looked.text - before.text).abs().max() > 1e-3, "the text sees the picture through the queries"
    matched = qformer("match", qformer.cross_kv(features), text=text(), text_mask=mask)
    assert torch.equal(matched.queries, before.queries)


def test_text_mode_is_a_bert_encoder() -> None:
    qformer, mask = build(), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    x = qformer.embedding_norm(qformer.words(text()) + qformer.positions.weight[:5])
    for layer in qformer.layers:
        theirs = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", 1e-12, batch_first=True).eval()
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(layer.attention.qkv.weight)
            theirs.self_attn.in_proj_bias.copy_(layer.attention.qkv.bias)
        pairs = [
            (theirs.self_attn.out_proj, layer.attention.out),
            (theirs.linear1, layer.text_ffn[0]),
            (theirs.linear2, layer.text_ffn[2]),
            (theirs.norm1, layer.attention_norm),
            (theirs.norm2, layer.text_norm),
        ]
        for copy, own in pairs:
            copy.load_state_dict(own.state_dict())
        x = theirs(x, src_key_padding_mask=mask == 0)
    ours = qformer("text", text=text(), text_mask=mask).text
    assert close(ours[mask == 1], x[mask == 1])


def test_queries_and_text_have_feed_forwards_of_their_own(features: Tensor) -> None:
    qformer, mask = build(layers=1), torch.ones(2, 5)
    kv = qformer.cross_kv(features)
    before = qformer("instruct", kv, text=text(), text_mask=mask)
    shaken(qformer.layers[0].query_ffn, seed=5)
    after = qformer("instruct", kv, text=text(), text_mask=mask)
    assert torch.equal(before.text, after.text) and not close(before.queries, after.queries, 1e-3)
    shaken(qformer.layers[0].text_ffn, seed=6)
    last = qformer("instruct", kv, text=text(), text_mask=mask)
    assert torch.equal(after.queries, last.queries) and not close(after.text, last.text, 1e-3)


def test_keys_and_values_once_a_picture_equal_those_of_every_row(qformer: QFormer, features: Tensor) -> None:
    rows = torch.tensor([1, 1, 0])
    shared = qformer("image", gather_kv(qformer.cross_kv(features), rows)).queries
    assert torch.equal(shared, qformer("image", qformer.cross_kv(features[rows])).queries)
    assert torch.equal(shared[0], shared[1]) and not close(shared[0], shared[2], 1e-3)


def test_features_can_be_given_as_they_are(qformer: QFormer, features: Tensor) -> None:
    mask = torch.ones(2, 5)
    many = torch.randn(2, 40, FEATURES)  # so many that keys and values are not built
    for given in (features, many):
        valid = (torch.arange(given.shape[1]) < 3 * torch.arange(1, 3)[:, None]).int()
        ours, shared = (qformer("instruct", read, valid, text(), mask) for read in (given, qformer.cross_kv(given)))
        assert close(ours.queries, shared.queries, 2e-6) and close(ours.text, shared.text, 2e-6)


@pytest.mark.parametrize("count", [4, 40])
def test_masked_features_are_not_read(qformer: QFormer, count: int) -> None:
    features = torch.randn(2, count, FEATURES)
    valid = (torch.arange(count) < torch.tensor([[3], [2]])).int()
    changed = features.masked_fill(valid[..., None] == 0, 9.0)
    both = [qformer("image", qformer.cross_kv(f), kv_mask=valid).queries for f in (features, changed)]
    assert torch.equal(*both)
    assert torch.equal(*[qformer("image", f, kv_mask=valid).queries for f in (features, changed)])
    assert not close(both[0], qformer("image", qformer.cross_kv(features)).queries, 1e-3)


def test_cross_attention_stands_in_every_second_layer() -> None:
    layers = build(layers=5, cross_every=2).layers
    assert [layer.cross is not None for layer in layers] == [True, False, True, False, True]
    assert len(build(layers=3, cross_every=1).cross_kv(torch.randn(1, 2, FEATURES))) == 3


def test_logits_are_tied_to_the_words(features: Tensor) -> None:
    qformer = build()
    states = qformer("generate", qformer.cross_kv(features), text=text(), text_mask=torch.ones(2, 5)).text
    before = qformer.token_logits(states)
    assert before.shape == (2, 5, WORDS)
    with torch.no_grad():
        qformer.words.weight[4] += 1
    moved = (qformer.token_logits(states) - before).abs().amax((0, 1)) > 1e-4
    assert moved.nonzero().flatten().tolist() == [4]


def test_copy_from_takes_every_shared_weight() -> None:
    source = build()
    target = QFormer(qformer_config(), WORDS, FEATURES)
    target.copy_from(source)
    taken, given = state(target), state(source)
    assert all(torch.equal(value, given[name]) for name, value in taken.items())
    assert {name.partition(".")[0] for name in set(given) - set(taken)} == {"lm_head"}


def guided(source: QFormer) -> QFormer:
    """A Q-Former with the weights of ``source`` whose text states are not read."""
    target = QFormer(source.config, WORDS, FEATURES, text="guide").eval()
    target.copy_from(source)
    return target


def test_text_that_only_guides_leaves_the_queries_as_they_are(qformer: QFormer, features: Tensor) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    guide = guided(qformer)
    out = guide("instruct", features, text=text(), text_mask=mask)
    assert out.text is None
    assert torch.equal(out.queries, qformer("instruct", features, text=text(), text_mask=mask).queries)
    assert torch.equal(guide("image", features).queries, qformer("image", features).queries)
    with pytest.raises(AssertionError, match="not read"):
        guide("text", text=text(), text_mask=mask)


def test_the_dead_text_feed_forward_is_kept_but_not_trained(features: Tensor) -> None:
    source = build()
    guide = guided(source)
    dead = {f"layers.1.text_{name}" for name in ("ffn.0.weight", "ffn.0.bias", "ffn.2.weight", "ffn.2.bias")}
    dead |= {"layers.1.text_norm.weight", "layers.1.text_norm.bias"}
    given = {name: value for name, value in state(source).items() if not name.startswith("lm_head")}
    assert state(guide).keys() == given.keys() and all(torch.equal(state(guide)[name], given[name]) for name in dead)
    assert set(given) - {name for name, _ in guide.named_parameters()} == dead
    guide("instruct", features, text=text(), text_mask=torch.ones(2, 5)).queries.sum().backward()
    assert [name for name, value in guide.named_parameters() if value.grad is None] == []


def test_frozen_it_gives_the_same(qformer: QFormer, features: Tensor) -> None:
    before = qformer("instruct", features, text=text(), text_mask=torch.ones(2, 5))
    after = qformer.requires_grad_(False)("instruct", features, text=text(), text_mask=torch.ones(2, 5))
    assert close(after.queries, before.queries, 2e-6) and close(after.text, before.text, 2e-6)


def test_without_a_text_branch(features: Tensor) -> None:
    source = build()
    bare = QFormer(source.config, WORDS, FEATURES, text="none").eval()
    bare.load_state_dict({name: value for name, value in state(source).items() if name in bare.state_dict()})
    gone = {re.sub(r"(layers\.\d\.)?(\w+)\..*", r"\2", name) for name in set(state(source)) - set(state(bare))}
    assert gone == {"words", "positions", "text_ffn", "text_norm", "lm_head"}
    assert torch.equal(bare("image", features).queries, source("image", features).queries)
    with pytest.raises(AssertionError, match="no text branch"):
        bare("instruct", features, text=text())


def test_taps_show_what_was_read_and_change_no_bit(features: Tensor) -> None:
    qformer, mask = build(layers=4), torch.ones(2, 5)
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    before = qformer("instruct", features, valid, text(), mask)
    with qformer.tapped([0, 2]) as maps:
        for source in (features, qformer.cross_kv(features)):
            after = qformer("instruct", source, valid, text(), mask)
            assert close(after.queries, before.queries, 2e-6)
        assert torch.equal(qformer("instruct", features, valid, text(), mask).queries, before.queries)
    assert [len(maps[i]) for i in (0, 2)] == [3, 3] and maps[0][0].shape == (2, 2, 3, 4)
    assert close(maps[2][0], maps[2][1]) and torch.equal(maps[2][0], maps[2][2])
    assert close(maps[0][0].sum(-1), torch.ones(2, 2, 3)) and not maps[0][0][0, :, :, 3].any()
    x = qformer.embedding_norm(
        torch.cat([qformer.query_tokens.expand(2, -1, -1), qformer.words(text()) + qformer.positions.weight[:5]], 1)
    )
    first = qformer.layers[0]
    asked = first.attention_norm(x + first.attention(x))[:, :3]
    keys, _ = first.cross.key_value(features)
    scores = first.cross.q(asked).unflatten(-1, (2, 8)).transpose(1, 2) @ keys.transpose(-1, -2) / 8**0.5
    assert close(maps[0][0], scores.masked_fill(valid[:, None, None] == 0, -1e9).softmax(-1))
    qformer("image", features)
    assert len(maps[0]) == 3, "closed"
    with (
        pytest.raises(ConfigError, match=r"layers \[1\] .* no cross-attention; those that have: \[0, 2\]"),
        qformer.tapped([1, 2]),
    ):
        pass


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_computed_twice_give_the_same_gradient(features: Tensor, dropout: float) -> None:
    gradients = []
    for again in (False, True):
        qformer = build(gradient_checkpointing=again, dropout=dropout).train()
        torch.manual_seed(4)
        kv = qformer.cross_kv(features)
        qformer("instruct", kv, text=text(), text_mask=torch.ones(2, 5)).queries.square().sum().backward()
        gradients.append({name: value.grad for name, value in qformer.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())
