from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ra_blip.config import GeneratorConfig, LoraConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.generator import Generator, build_generator
from ra_blip.models.ranker import Ranker
from tests.tiny import SCRATCH, close, model, model_config, shaken

IDS = torch.tensor([[9, 10, 11, 1], [12, 13, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LABELS = torch.tensor([[20, 21, 4], [22, 4, -100]])


@pytest.fixture(params=[(), SCRATCH], ids=["plain", "from scratch"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return model(overrides=request.param).reader.generator


def encoded(generator: Generator) -> Tensor:
    return generator.encode(generator.embed(IDS), MASK)


def test_token_losses_by_one_step_at_a_time(generator: Generator) -> None:
    states = encoded(generator)
    found = generator.token_losses(states, MASK, IDS, LABELS)
    assert found.shape == (2, 3) and float(found[1, 2].detach()) == 0
    first = -generator.first_logits(states, MASK, IDS).log_softmax(-1)[[0, 1], LABELS[:, 0]]
    assert close(found[:, 0], first, 1e-4)
    for row, length in ((0, 3), (1, 2)):
        alone = generator.token_losses(
            states[row : row + 1], MASK[row : row + 1], IDS[row : row + 1], LABELS[row : row + 1]
        )
        assert close(alone[0, :length], found[row, :length], 1e-4)


def test_what_comes_later_changes_no_earlier_loss(generator: Generator) -> None:
    states, other = encoded(generator), LABELS.clone()
    other[:, 1] = 30
    first, second = (generator.token_losses(states, MASK, IDS, labels) for labels in (LABELS, other))
    assert torch.equal(first[:, 0], second[:, 0]) and not close(first[:, 1], second[:, 1], 1e-3)


def test_padding_of_the_prompt_is_not_read(generator: Generator) -> None:
    states = encoded(generator)
    other = generator.encode(generator.embed(IDS.masked_fill(MASK == 0, 33)), MASK)
    assert close(states[MASK == 1], other[MASK == 1], 1e-6)
    noisy = states.masked_fill(MASK[..., None] == 0, 7.0)
    source = IDS.masked_fill(MASK == 0, 33)
    assert close(generator.first_logits(states, MASK, IDS), generator.first_logits(noisy, MASK, source), 1e-5)


def test_greedy_decoding_follows_the_first_logits(generator: Generator) -> None:
    states = encoded(generator)
    said = generator.generate(states, MASK, IDS)
    best = generator.first_logits(states, MASK, IDS).argmax(-1)
    assert torch.equal(said[:, 1], best) and torch.equal(generator.generate(states, MASK, IDS), said)


def test_copying_leaves_pictures_and_padding_out() -> None:
    generator = model(overrides=SCRATCH).reader.generator
    assert generator.copy_head is not None
    with torch.no_grad():
        generator.copy_head.gate.weight.zero_()
        generator.copy_head.gate.bias.fill_(40.0)
    source = IDS.masked_fill(IDS == 10, generator.pad)  # where a picture stands, the reader puts the pad
    shares = generator.first_logits(encoded(generator), MASK, source).exp()
    copied = [set((row > 1e-6).nonzero().flatten().tolist()) for row in shares]
    assert copied == [{9, 11, 1}, {12, 13}]
    assert generator.copy_head._source is None, "nothing is kept after the call"


def test_word_logits_are_scaled_products_with_the_vocabulary() -> None:
    generator = model().reader.generator
    states = torch.randn(2, 16)
    table = generator.llm.get_input_embeddings().weight
    assert close(generator.word_logits(states), torch.einsum("bd,vd->bv", states, table) / 4, 1e-5)


def test_decoding_options() -> None:
    options = GeneratorConfig(answer_length=7, beams=1, repetition_penalty=1.5, length_penalty=-1.0)
    built = build_generator(dataclasses.replace(options, config=model_config().generator.config), 50, 0, 4)
    assert built.decoding() == {"max_new_tokens": 7, "num_beams": 1, "do_sample": False, "repetition_penalty": 1.5}
    built.config.beams = 5
    assert built.decoding()["length_penalty"] == -1.0


def test_a_frozen_llm_has_no_dropout_beside_what_is_trained() -> None:
    built = model(overrides=("generator.config.dropout_rate=0.5",))
    reader, generator = built.reader, built.reader.generator
    generator.requires_grad_(False)
    reader.train()
    assert reader.qformer.training and not any(module.training for module in generator.llm.modules())
    assert torch.equal(encoded(generator), encoded(generator))
    generator.requires_grad_(True)
    reader.train()
    assert all(module.training for module in generator.llm.modules())
    assert not torch.equal(encoded(generator), encoded(generator))
    generator.adapt(LoraConfig(rank=2))
    reader.train()
    assert generator.llm.training, "low-rank adapters are trained in it"


def test_an_llm_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.generator"):
        build_generator(GeneratorConfig(), 50, 0, 4)
    with pytest.raises(CheckpointError, match="no-such-folder/llm"):
        build_generator(GeneratorConfig(name="./no-such-folder/llm"), 50, 0, 4)


def test_the_ranker_pools_valid_states_only() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [9.0, 9.0], [9.0, 9.0]]])
    pooled = Ranker.pool(states, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert pooled.tolist() == [[2.0, 4.0], [5.0, 5.0]]
    ranker = shaken(Ranker(2))
    hidden = torch.tanh(pooled @ ranker.dense.weight.T + ranker.dense.bias)
    assert close(ranker(pooled), hidden @ ranker.classify.weight.T + ranker.classify.bias, 1e-6)
    assert not Ranker.pool(states, torch.zeros(2, 3)).any(), "and an empty prompt divides by nothing"
