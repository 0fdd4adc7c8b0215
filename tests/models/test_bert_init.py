"""The Q-Former's text side started from a tiny random BERT says what that BERT says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ra_blip.errors import CheckpointError
from ra_blip.models.bert_init import start_from_bert
from ra_blip.models.fusion import Fusion
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


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_fusion_gets_the_last_layers(bert: str, layers: int) -> None:
    from transformers import BertModel

    fusion = tiny.shaken(Fusion(tiny.qformer_config(), layers)).eval()
    kept = [tiny.state(layer) for layer in fusion.layers]
    start_from_bert(QFormer(tiny.qformer_config(), 50, 8), bert, fusion)
    x = torch.randn(2, 5, 16)
    theirs = list(BertModel.from_pretrained(bert).eval().encoder.layer)[-layers:] if layers else []
    for layer, given in zip(fusion.layers, theirs, strict=False):
        with torch.no_grad():
            out = given(x)
        assert tiny.close(layer(x), out if isinstance(out, torch.Tensor) else out[0])
    assert layers < 3 or all(torch.equal(v, kept[2][n]) for n, v in fusion.layers[2].state_dict().items())


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
    retriever, reader = model.retriever.qformer.eval(), model.reader.qformer
    with torch.no_grad():
        states = retriever("text", text=IDS, text_mask=MASK).text
    assert states is not None and tiny.close(states[MASK.bool()], bert_states(bert, IDS, MASK)[MASK.bool()])
    ours, theirs = tiny.state(reader), tiny.state(retriever)
    fused = model.retriever.fusion.layers[0].state_dict()
    assert torch.equal(fused["ffn.2.weight"], theirs["layers.1.text_ffn.2.weight"]), "one layer: BERT's last"
    text_side = [name for name in ours if not re.search(r"cross|query_tokens|words", name)]
    assert len(text_side) > 30 and all(torch.equal(ours[name], theirs[name]) for name in text_side)


def test_without_a_text_branch_the_rest_is_taken(bert: str) -> None:
    full, bare = (tiny.shaken(QFormer(tiny.qformer_config(), 53, 8, text=text)) for text in ("states", "none"))
    for qformer in (full, bare):
        start_from_bert(qformer, bert)
    ours, theirs = tiny.state(bare), tiny.state(full)
    assert set(theirs) - set(ours) == {name for name in theirs if re.match(r"words|positions|layers\.\d\.text_", name)}
    shared = [name for name in ours if re.search(r"\.attention|query_ffn|query_norm", name)]
    assert len(shared) == 2 * 12 and all(torch.equal(ours[name], theirs[name]) for name in shared)
