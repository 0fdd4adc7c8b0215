"""P(Yes) of one item, the matching head, and where the threshold is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ra_blip.config import GeneratorConfig
from ra_blip.errors import ConfigError
from ra_blip.models.generator import Generator, build_generator
from ra_blip.models.prompt import TASKS, ask, relevance_task
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question
from tests.tiny import SCRATCH, close, model, picture, shaken
from tests.toy_llms import FAMILIES, llm_settings, tokenizer

IDS = torch.tensor([[9, 10, 11, 12, 13], [14, 15, 0, 0, 0], [16, 17, 18, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
TOKENS = (31, 7)


def pairs(folder: Path) -> tuple[list[Question], list[Item]]:
    """A text, a picture without words, a captioned picture; the last question is asked with a picture."""
    asked = [Question("a", "Who designed Velora tower?"), Question("b", "What colour is the roof?")]
    asked.append(Question("c", "Which country is this?", picture(folder, "white")))
    items = [Item("t", "Velora tower was designed by Moro."), Item("p", image=picture(folder, "red-blue"))]
    return asked, [*items, Item("c", "A view of Kimuna hall.", image=picture(folder, "green-white"))]


@pytest.mark.parametrize("family", [*FAMILIES, "t5", "bart"])
def test_two_logits_are_those_of_all_and_no_others_are_computed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer(family)
    config = GeneratorConfig(config=llm_settings(family, words), answer_length=4)
    generator: Generator = shaken(build_generator(config, len(words), 0, 2)).eval()
    if family == "bart":
        generator.llm.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    states = generator.encode(generator.embed(IDS), MASK)
    everything = generator.first_logits(states, MASK, IDS)
    widths: list[int] = []
    real = nn.functional.linear

    def linear(inputs: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        widths.append(weight.shape[0])
        return real(inputs, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", linear)
    found = generator.first_logits(states, MASK, IDS, TOKENS)
    assert close(found, everything[:, list(TOKENS)], 1e-5)
    vocabulary = generator.llm.get_output_embeddings().weight.shape[0]
    assert vocabulary not in widths and (2 in widths or family == "gpt2")
    monkeypatch.undo()
    assert torch.equal(generator.first_logits(states, MASK, IDS), everything), "the output layer is whole again"


def test_a_copy_head_gives_its_two_as_well() -> None:
    built = model(overrides=SCRATCH)
    states, batch, source = built._read("answer", [Question("a", "Who designed Velora tower?")], [[]])
    generator = built.reader.generator
    everything = generator.first_logits(states, batch.mask, source)
    assert torch.equal(generator.first_logits(states, batch.mask, source, TOKENS), everything[:, list(TOKENS)])


def test_probability_is_the_sigmoid_of_the_difference_and_ignores_company(tmp_path: Path) -> None:
    built = model(overrides=("generator.prompt_length=300",))
    asked, items = pairs(tmp_path)
    found = built.yes_no(asked, items)
    yes, no = built.processor.yes_no_ids
    for row, (question, item) in enumerate(zip(asked, items, strict=True)):
        states, batch, source = built._read(relevance_task(item), [question], [[item]])
        logits = built.reader.generator.first_logits(states, batch.mask, source)[0].detach()
        assert float(found[row]) == pytest.approx(float(torch.sigmoid(logits[yes] - logits[no])), abs=1e-5)
    assert found.std() > 1e-4 and built.yes_no([], []).shape == (0,)


def test_all_pairs_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    asked, items = pairs(tmp_path)
    sizes: list[int] = []
    real = built.reader.generator.encode
    monkeypatch.setattr(built.reader.generator, "encode", lambda x, mask: sizes.append(len(x)) or real(x, mask))
    built.yes_no(asked * 7, items * 7)
    assert sizes == [21]


def test_what_is_asked_depends_on_the_kind_of_the_item(tmp_path: Path) -> None:
    built = model(overrides=("generator.prompt_length=300",))
    asked, items = pairs(tmp_path)
    shown = [built.processor.prompt(relevance_task(i), asked[0], [i]).text for i in items]
    assert "Is this text relevant" in shown[0] and "Is this picture relevant" in shown[1]
    assert "Is this picture, with its caption, relevant" in shown[2] and "A view of Kimuna hall." in shown[2]
    assert all(text.endswith("Answer Yes or No.") and asked[0].text in text for text in shown)
    assert ask("relevance of text", "Who?", "Question: {} Answer:").startswith("Who? Is this"), (
        "not an answer's template"
    )
    assert set(TASKS) == {"answer", "select", "relevance of text", "relevance of image", "relevance of image+text"}


def test_a_tokenizer_that_cannot_tell_yes_from_no_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    monkeypatch.setattr(built.processor, "first_tokens", lambda answers: torch.tensor([5, 5]))
    with pytest.raises(ConfigError, match="begins Yes and No with one token"):
        _ = built.processor.yes_no_ids


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_causal_model_says_yes_by_the_token_behind_its_prompt(family: str, tmp_path: Path) -> None:
    from ra_blip.models.released import load_released
    from tests.toy_llms import released_folder

    released_folder(tmp_path / "released", "instructblip", family)
    built = load_released(tmp_path / "released")
    built.processor.yes_no_ids = (20, 30)  # the toy tokenizer begins both words with the token of a blank
    asked, items = pairs(tmp_path)
    found = built.yes_no(asked, items)
    assert close(found[:1], built.yes_no(asked[:1], items[:1]), 1e-5) and bool(((found > 0) & (found < 1)).all())


def test_matching_pairs_the_questions_picture_with_words_else_the_items_with_the_question(tmp_path: Path) -> None:
    built = model()
    asked, items = pairs(tmp_path)
    found = built.match(asked, items)
    assert float(found[0]) == 0.5, "a text without any picture"
    for row, image, words in ((1, items[1].image, asked[1].text), (2, asked[2].image, items[2].full_text)):
        text, mask = built.processor.texts([words])
        with torch.no_grad():
            kv = built.retriever.kv(built.image_features([str(image)]))
            logits = built.retriever.itm_head(built.retriever.fused(kv, text, mask))
        assert float(found[row]) == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
    assert close(found[1:2], built.match(asked[1:2], items[1:2])) and built.match([], []).shape == (0,)


def test_threshold_travels_with_the_model_folder(tmp_path: Path) -> None:
    built = model()
    assert built.threshold is None and built.says_yes_no
    assert not model(overrides=SCRATCH).says_yes_no, "a generator from nothing has to be taught first"
    built.config.generator.threshold = 0.37
    built.save_pretrained(tmp_path / "model")
    again = RABlip.from_pretrained(tmp_path / "model")
    assert again.threshold == 0.37 and again.says_yes_no
