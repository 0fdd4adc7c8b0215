"""The Q-Former's text side started from a tiny random BERT says what that BERT says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ra_blip.errors import CheckpointError
from ra_blip.models.bert_init import start_from_bert
from ra_blip.models.qformer import QFormer
from ra_blip.models.rablip import RABlip
from tests import tiny


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A folder with a BERT of two layers, every weight drawn."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    tiny.shaken(BertModel(config)).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def bert_states(folder: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from transformers import BertModel

    with torch.no_grad():
        states: torch.Tensor = BertModel.from_pretrained(folder).eval()(ids, attention_mask=mask).last_hidden_state
    return states


IDS = torch.tensor([[2, 7, 31, 49, 3], [2, 8, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_text_mode_equals_bert(bert: str) -> None:
    qformer = tiny.shaken(QFormer(tiny.qformer_config(), 53, 8)).eval()  # three tokens more than BERT knows
    kept = qformer.words.weight[50:].clone()
    start_from_bert(qformer, bert)
    with torch.no_grad():
        states = qformer("text", text=IDS, text_mask=MASK).text
    valid = MASK.bool()
    assert tiny.close(states[valid], bert_states(bert, IDS, MASK)[valid])
    assert torch.equal(qformer.words.weight[50:], kept)
    layer = qformer.layers[0]
    assert torch.equal(layer.query_ffn[0].weight, layer.text_ffn[0].weight)


def test_as_many_layers_as_both_have(bert: str) -> None:
    deep = tiny.shaken(QFormer(tiny.qformer_config(layers=3), 50, 8))
    last = tiny.state(deep.layers[2])
    start_from_bert(deep, bert)
    assert all(torch.equal(value, last[name]) for name, value in deep.layers[2].state_dict().items())
    shallow = QFormer(tiny.qformer_config(layers=1), 50, 8)
    start_from_bert(shallow, bert)
    assert torch.equal(shallow.layers[0].text_ffn[2].weight, deep.layers[0].text_ffn[2].weight)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"width": 32}, 50, "has hidden_size 16, the Q-Former 32; change model.qformer"),
        ({"ffn": 32}, 50, "has intermediate_size 24, the Q-Former 32"),
        ({"heads": 4}, 50, "has num_attention_heads 2, the Q-Former 4"),
        ({"max_positions": 65}, 50, "has 64 positions and 50 tokens, the Q-Former 65 and 50"),
        ({}, 40, "has 64 positions and 50 tokens, the Q-Former 64 and 40; .*model.tokenizer.text"),
    ],
)
def test_other_sizes_are_refused(bert: str, changes: dict[str, int], words: int, message: str) -> None:
    qformer = QFormer(tiny.qformer_config(**changes), words, 8)
    before = tiny.state(qformer)
    with pytest.raises(CheckpointError, match=message):
        start_from_bert(qformer, bert)
    assert all(torch.equal(value, before[name]) for name, value in qformer.state_dict().items())


def test_another_architecture_and_no_model_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path / "t5")
    qformer = QFormer(tiny.qformer_config(), 50, 8)
    with pytest.raises(CheckpointError, match="is a 't5', not a 'bert'"):
        start_from_bert(qformer, str(tmp_path / "t5"))
    with pytest.raises(CheckpointError, match=r"text_init: '.*nothing' cannot be loaded"):
        start_from_bert(qformer, str(tmp_path / "nothing"))


def test_a_new_model_starts_both_halves(bert: str) -> None:
    model = RABlip.build(tiny.model_config(overrides=(f"qformer.text_init={bert}",)), tiny.TEXTS)
    given = bert_states(bert, IDS, MASK)
    for half in (model.retriever, model.reader):
        with torch.no_grad():
            states = half.qformer.eval()("text", text=IDS, text_mask=MASK).text
        assert states is not None and tiny.close(states[MASK.bool()], given[MASK.bool()])
