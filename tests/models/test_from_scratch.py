from __future__ import annotations

import torch
from torch import Tensor, nn

from ra_blip.models.from_scratch import ConceptHead, CopyHead, LocalMixing, MatchHead
from tests.tiny import close, shaken

SOURCE = torch.tensor([[5, 6, 5, 0], [7, 7, 8, 9]])
VALID = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def head() -> CopyHead:
    torch.manual_seed(0)
    return shaken(CopyHead(nn.Linear(6, 11, bias=False)))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def set_gate(copy: CopyHead, bias: float) -> None:
    with torch.no_grad():
        copy.gate.weight.zero_()
        copy.gate.bias.fill_(bias)


def test_probabilities_sum_to_one() -> None:
    copy = head()
    with copy.reading(draw(2, 4, 6), VALID, SOURCE):
        out = copy(draw(2, 3, 6))
    assert out.shape == (2, 3, 11)
    assert close(out.exp().sum(-1), torch.ones(2, 3), 1e-5)


def test_an_open_gate_copies_the_source_and_a_closed_one_none_of_it() -> None:
    copy = head()
    with torch.no_grad():  # equal attention to every valid position
        copy.query.weight.zero_()
        copy.query.bias.zero_()
    hidden = draw(2, 1, 6)
    set_gate(copy, 40.0)
    with copy.reading(draw(2, 4, 6), VALID, SOURCE):
        copied = copy(hidden).exp()[:, 0]
    expected = torch.zeros(2, 11)
    expected[0, 5], expected[0, 6] = 2 / 3, 1 / 3  # the padded fourth position counts nowhere
    expected[1, 7], expected[1, 8], expected[1, 9] = 2 / 4, 1 / 4, 1 / 4
    assert close(copied, expected, 1e-6)
    set_gate(copy, -40.0)
    with copy.reading(draw(2, 4, 6), VALID, SOURCE):
        assert close(copy(hidden).exp(), copy.words(hidden).softmax(-1), 1e-6)


def test_the_gate_mixes() -> None:
    copy, hidden, states = head(), draw(2, 2, 6), draw(2, 4, 6)
    out = {}
    for name, bias in (("half", 0.0), ("open", 40.0), ("closed", -40.0)):
        set_gate(copy, bias)
        with copy.reading(states, VALID, SOURCE):
            out[name] = copy(hidden).exp()
    assert close(out["half"], (out["open"] + out["closed"]) / 2, 1e-6)


def test_beams_repeat_the_source() -> None:
    copy, states, hidden = head(), draw(2, 4, 6), draw(6, 1, 6)
    with copy.reading(states, VALID, SOURCE):
        beams = copy(hidden)
    with copy.reading(states.repeat_interleave(3, 0), VALID.repeat_interleave(3, 0), SOURCE.repeat_interleave(3, 0)):
        assert torch.equal(beams, copy(hidden))


def test_without_a_source_it_is_the_projection() -> None:
    copy, hidden = head(), draw(2, 1, 6)
    with copy.reading(draw(2, 4, 6), VALID, SOURCE):
        inside = copy(hidden)
    assert torch.equal(copy(hidden), copy.words(hidden)) and not close(inside, copy(hidden), 1e-2)
    assert copy.weight is copy.words.weight


def test_mixing_sees_two_neighbours_on_either_side() -> None:
    mixing, x, valid = shaken(LocalMixing(4)), draw(1, 7, 4), torch.ones(1, 7)
    before = mixing(x, valid)
    other = x.clone()
    other[0, 3] += 1
    moved = (mixing(other, valid) - before).abs().amax(-1)[0] > 1e-5
    assert moved.tolist() == [False, True, True, True, True, True, False]


def test_mixing_ignores_padding() -> None:
    mixing, x = shaken(LocalMixing(4)), draw(2, 5, 4)
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    out = mixing(x, valid)
    assert torch.equal(out, mixing(x.masked_fill(valid[..., None] == 0, 9.0), valid))
    assert close(out[0, :3], mixing(x[:1, :3], torch.ones(1, 3))[0], 1e-6)


def test_concepts_are_voted_for_by_every_patch() -> None:
    head, features = shaken(ConceptHead(4, 6)), draw(2, 3, 4)
    votes = head.score(head.norm(features)).exp()  # (2, 3, 6)
    assert close(head(features), votes.mean(1).log(), 1e-5)
    assert close(head(features.flip(1)), head(features), 1e-6), "wherever it is seen"


def test_concepts_of_a_caption_are_its_tokens_and_pairs() -> None:
    head, mask = ConceptHead(4, 997), torch.tensor([[1, 1, 1], [1, 1, 0]])
    hot = head.targets(torch.tensor([[5, 6, 7], [5, 6, 7]]), mask)
    assert hot[0].sum() == 5 and hot[1].sum() == 3, "three tokens and two pairs; two tokens and one pair"
    assert hot[:, [5, 6, 7]].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert (hot[1] <= hot[0]).all()
    turned = head.targets(torch.tensor([[7, 6, 5]]), mask[:1])[0]
    assert turned[[5, 6, 7]].all() and not torch.equal(turned, hot[0]), "a pair has a direction"
    padded = head.targets(torch.tensor([[5, 6, 9]]), mask[1:])[0]
    assert torch.equal(padded, hot[1])


def test_the_match_is_written_along_one_direction_and_read_there() -> None:
    torch.manual_seed(0)
    match = shaken(MatchHead(6, 5))
    soft, queries, words, valid = draw(3, 4, 5), draw(3, 4, 6), draw(3, 7, 6), torch.ones(3, 7)
    moved = match.write(soft, queries, words, valid) - soft
    along = moved @ match.direction / match.direction.square().sum()  # the score, in every soft token
    assert close(moved, along[..., None] * match.direction, 1e-5)
    assert close(along, along[:, :1].expand(-1, 4), 1e-5)
    assert along.abs().max() <= match.log_scale.exp() + 1e-5, "a cosine, scaled"
    assert close(match(soft + moved) - match(soft), along[:, 0] * match.direction.square().sum(), 1e-4)
    assert not close(along[0], match.write(soft, queries, words.flip(0), valid)[0] @ match.direction, 1e-3)


def test_the_match_leaves_padding_out() -> None:
    torch.manual_seed(0)
    match = shaken(MatchHead(6, 5))
    soft, queries, words = draw(1, 4, 5), draw(1, 4, 6), draw(1, 7, 6)
    valid = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    short = match.write(soft, queries, words[:, :4], valid[:, :4])
    assert close(match.write(soft, queries, words, valid), short, 1e-6)
