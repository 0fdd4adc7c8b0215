"""BARTScore on a tiny random BART, against one pair at a time without padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from ra_blip.errors import CheckpointError
from ra_blip.evaluation.bart_score import BartScore

WORDS = ["a", "red", "blue", "cat", "dog", "bird", "sat", "on", "the", "mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with one layer and a vocabulary of ten words."""
    folder = tmp_path_factory.mktemp("bart")
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = BartConfig(
        **size, vocab_size=len(vocabulary), encoder_attention_heads=2, decoder_attention_heads=2, init_std=0.5
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_score_is_the_mean_log_probability_per_token(folder: Path) -> None:
    pairs = [("a red cat sat on the mat", "a cat"), ("blue", "the blue bird sat"), ("dog", ""), ("a", "a")]
    scores = BartScore(folder, batch_size=3)([source for source, _ in pairs], [target for _, target in pairs])
    model = BartForConditionalGeneration.from_pretrained(folder).eval()
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    for score, (source, target) in zip(scores, pairs, strict=True):
        read = [0, *(ids[word] for word in source.split()), 2]
        said = [0, *(ids[word] for word in target.split()), 2]
        shifted = [model.config.decoder_start_token_id, *said[:-1]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([shifted])).logits[0]
        wanted = sum(float(row.log_softmax(-1)[word]) for row, word in zip(logits, said, strict=True)) / len(said)
        assert score == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == 4
    with pytest.raises(ValueError, match="1 sources for 0"):
        BartScore(folder)(["a"], [])


def test_weights_replace_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = BartForConditionalGeneration(BartConfig.from_pretrained(folder))
    torch.save(other.state_dict(), tmp_path / "bart.pth")
    changed = BartScore(folder, tmp_path / "bart.pth")(["a cat"], ["a dog"])
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((folder / name).read_bytes())
    assert changed == pytest.approx(BartScore(tmp_path / "other")(["a cat"], ["a dog"]), abs=1e-6)
    assert changed != pytest.approx(BartScore(folder)(["a cat"], ["a dog"]), abs=1e-3)


def test_what_cannot_be_loaded_is_a_typed_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no sequence-to-sequence model"):
        BartScore(tmp_path)
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        BartScore(folder, tmp_path / "bad.pth")
    torch.save({"model.shared.weight": torch.zeros(2, 2)}, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match="do not fit the model"):
        BartScore(folder, tmp_path / "small.pth")
