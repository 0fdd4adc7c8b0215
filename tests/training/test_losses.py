from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ra_blip.training.losses import (
    concept_loss,
    generation_loss,
    hard_negatives,
    info_nce,
    itc_loss,
    itg_loss,
    itm_loss,
    ranking_loss,
    similarity,
)

ONE = torch.tensor(1.0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_similarity_stays_exact_under_autocast() -> None:
    a, b = F.normalize(draw(4, 64), dim=-1), F.normalize(draw(6, 64), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity(a, b)
    assert found.dtype == torch.float32 and torch.equal(found, a @ b.T)
    assert similarity(a.bfloat16(), b).dtype == torch.float32


@pytest.mark.parametrize("size", [2, 7])
def test_itc_at_chance_is_log_b(size: int) -> None:
    same = F.normalize(torch.ones(size, 5), dim=-1)
    assert float(itc_loss(same, same, torch.tensor(0.07))) == pytest.approx(math.log(size), abs=1e-5)


def test_itc_by_hand() -> None:
    pictures, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # logits at temperature 0.5: [[2, 1.2], [0, 1.6]]
    rows = [math.log(1 + math.exp(1.2 - 2)), math.log(1 + math.exp(0 - 1.6))]
    columns = [math.log(1 + math.exp(0 - 2)), math.log(1 + math.exp(1.2 - 1.6))]
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert float(itc_loss(pictures, texts, torch.tensor(0.5))) == pytest.approx(expected, abs=1e-6)


def test_two_labels_at_chance_are_ln_2() -> None:
    zero = torch.zeros(4, 2)
    for loss in (itm_loss, ranking_loss):
        assert float(loss(zero, torch.tensor([True, False, True, False]))) == pytest.approx(math.log(2))


def test_the_second_label_means_yes() -> None:
    logits = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))) / 2
    for loss in (itm_loss, ranking_loss):
        assert float(loss(logits, torch.tensor([True, False]))) == pytest.approx(expected)
        assert float(loss(logits, torch.tensor([False, True]))) > 1.5


def loop_nce(questions: Tensor, items: Tensor, gold: Tensor, temperature: float) -> float:
    """The same by plain loops."""
    total = 0.0
    for q in range(len(questions)):
        scores = [float(questions[q] @ item) / temperature for item in items]
        losses = []
        for g in range(len(items)):
            if gold[q, g]:
                rivals = [scores[i] for i in range(len(items)) if not gold[q, i]]
                losses.append(-math.log(math.exp(scores[g]) / sum(map(math.exp, [scores[g], *rivals]))))
        total += sum(losses) / len(losses)
    return total / len(questions)


def test_info_nce_with_several_golds() -> None:
    questions, items = F.normalize(draw(3, 6), dim=-1), F.normalize(draw(5, 6) + 0.3, dim=-1)
    gold = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    for temperature in (1.0, 0.1):
        found = float(info_nce(questions, items, gold, torch.tensor(temperature)))
        assert found == pytest.approx(loop_nce(questions, items, gold, temperature), rel=1e-5)


def test_info_nce_at_chance_is_the_log_of_a_gold_and_its_rivals() -> None:
    same = F.normalize(torch.ones(4, 3), dim=-1)
    gold = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]]).bool()
    expected = (math.log(3) + math.log(4)) / 2
    assert float(info_nce(same[:2], same, gold, ONE)) == pytest.approx(expected, abs=1e-5)


def test_info_nce_without_rivals_is_zero_and_so_is_its_gradient() -> None:
    questions = draw(1, 3).requires_grad_()
    loss = info_nce(questions, draw(2, 3), torch.ones(1, 2).bool(), ONE)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0) and not questions.grad.any()  # and not NaN, which any() would show


def test_hard_negatives_are_never_the_own_one_and_follow_the_weights() -> None:
    torch.manual_seed(0)
    odds = torch.tensor([[9.0, math.log(3), 0.0], [0.0, 9.0, 0.0], [math.log(4), 0.0, 9.0]])
    counts = torch.zeros(3, 3)
    for _ in range(2000):
        counts[torch.arange(3), hard_negatives(odds)] += 1
    expected = torch.tensor([[0, 0.75, 0.25], [0.5, 0, 0.5], [0.8, 0.2, 0]])
    assert not counts.diagonal().any()
    assert (counts / 2000 - expected).abs().max() < 0.04


def test_one_pair_has_no_hard_negative() -> None:
    assert hard_negatives(torch.zeros(1, 1)).shape == (0,)


def test_hard_negatives_send_no_gradient() -> None:
    odds = draw(3, 3).requires_grad_()
    assert not hard_negatives(odds).requires_grad


def test_itg_predicts_the_next_token_and_leaves_padding_out() -> None:
    logits, text = draw(2, 4, 7), torch.tensor([[1, 2, 3, 4], [1, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    log = logits.log_softmax(-1)
    picked = [log[0, 0, 2], log[0, 1, 3], log[0, 2, 4], log[1, 0, 5]]  # what stands next, four times
    assert float(itg_loss(logits, text, mask)) == pytest.approx(-float(sum(picked)) / 4, abs=1e-6)
    other = logits.clone()
    other[1, 1:] += draw(3, 7)  # predicts padding
    other[0, 3] += draw(7)  # predicts what comes after the end
    assert torch.equal(itg_loss(other, text, mask), itg_loss(logits, text, mask))


def test_itg_of_texts_without_a_second_token_is_zero_and_so_is_its_gradient() -> None:
    logits = draw(2, 4, 7).requires_grad_()
    loss = itg_loss(logits, torch.ones(2, 4).long(), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


def test_generation_loss_is_the_mean_over_labelled_tokens() -> None:
    labels = torch.tensor([[3, 4, -100], [5, -100, -100]])
    per_token = torch.tensor([[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]])
    assert float(generation_loss(per_token, labels)) == 3.0
    assert float(generation_loss(torch.zeros(1, 2), torch.full((1, 2), -100))) == 0.0


def test_concepts_are_summed_and_averaged_over_pictures() -> None:
    logits, targets = draw(3, 5), torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    chances = torch.sigmoid(logits)
    expected = -(targets * chances.log() + (1 - targets) * (1 - chances).log()).sum(1).mean()
    assert float(concept_loss(logits, targets)) == pytest.approx(float(expected), rel=1e-5)
    assert float(concept_loss(torch.zeros(4, 5), torch.zeros(4, 5))) == pytest.approx(5 * math.log(2))
