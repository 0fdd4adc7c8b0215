from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from ra_blip.config import TokenizerConfig
from ra_blip.errors import CheckpointError, ImageError
from ra_blip.models.processor import Processor, train_tokenizer
from ra_blip.models.prompt import LABELS
from ra_blip.records import Item, Question
from tests.tiny import TEXTS, model_config, picture, processor

ASKED = Question("q", "Who designed Velora tower?")


def test_training_a_tokenizer_is_deterministic() -> None:
    for style in ("bert", "t5"):
        first, second = (train_tokenizer(TEXTS, 260, style) for _ in range(2))
        assert first.get_vocab() == second.get_vocab()
        assert first(TEXTS).input_ids == second(TEXTS).input_ids


def test_styles_of_tokenizers() -> None:
    bert, t5 = train_tokenizer(TEXTS, 260, "bert"), train_tokenizer(TEXTS, 260, "t5")
    tokens = bert.convert_ids_to_tokens(bert("Velora TOWER").input_ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and "".join(tokens[1:-1]).islower()
    tokens = t5.convert_ids_to_tokens(t5("Velora").input_ids)
    assert tokens[-1] == "</s>" and tokens[0].startswith("V")
    for text in ("Moro", "velora tower", "red and blue", "1921", "qxzjkvwy 0123456789"):
        assert t5.decode(t5(text).input_ids, skip_special_tokens=True) == text


def test_special_ids() -> None:
    made = processor()
    assert len(set(made.label_ids)) == len(LABELS) == 26
    assert made.llm.convert_ids_to_tokens(made.label_ids) == list(LABELS)
    assert made.llm("a <image> b").input_ids.count(made.image_id) == 1
    assert made.text.convert_ids_to_tokens(made.dec_id) == "[DEC]"


def test_a_saved_processor_is_the_same(tmp_path: Path) -> None:
    made = processor()
    made.save(tmp_path)
    again = Processor.load(made.config, tmp_path)
    assert (again.image_id, again.dec_id, again.label_ids) == (made.image_id, made.dec_id, made.label_ids)
    assert (len(again.text), len(again.llm)) == (len(made.text), len(made.llm))
    prompt = made.prompt("select", ASKED, [Item("a", "Velora tower [B] | was designed by Moro", image="x.png")])
    assert (
        again.prompt("select", ASKED, [Item("a", "Velora tower [B] | was designed by Moro", image="x.png")]) == prompt
    )
    first, second = made.prompts([prompt], {}), again.prompts([prompt], {})
    assert torch.equal(first.ids, second.ids) and torch.equal(first.guide, second.guide)
    assert torch.equal(made.targets(TEXTS), again.targets(TEXTS))


def test_missing_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="text_tokenizer"):
        Processor.load(model_config(), tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.tokenizer"):
        Processor.build(model_config())


def test_build_trains_or_loads(tmp_path: Path) -> None:
    processor().text.save_pretrained(tmp_path)
    config = dataclasses.replace(model_config(), tokenizer=TokenizerConfig(text=str(tmp_path), vocabulary=260))
    built = Processor.build(config, TEXTS)
    assert built.text.get_vocab() == processor().text.get_vocab()
    assert set(built.llm.get_vocab()) == set(processor().llm.get_vocab())
    assert (
        len(Processor.build(dataclasses.replace(config, tokenizer=TokenizerConfig(vocabulary=150)), TEXTS).llm) == 150
    )


def test_targets_are_masked_where_padded() -> None:
    made = processor()
    labels = made.targets(["red", "red and blue"])
    ends = [row.tolist().index(made.llm.eos_token_id) for row in labels]
    assert labels.shape[1] == ends[1] + 1
    assert (labels[0, ends[0] + 1 :] == -100).all() and len(labels[0, ends[0] + 1 :]) > 0
    assert (labels[0, : ends[0] + 1] >= 0).all() and (labels[1] >= 0).all()
    assert made.decode(labels[1:]) == ["red and blue"]
    assert made.targets(["red and blue " * 20]).shape[1] == made.config.generator.answer_length


def test_first_tokens() -> None:
    made = processor()
    assert made.first_tokens(["red and blue", "A"]).tolist() == [
        made.targets(["red and blue"])[0, 0].item(),
        made.label_ids[0],
    ]


def test_texts_are_padded_on_the_right_and_cut() -> None:
    made = processor()
    ids, mask = made.texts(["Velora", "Velora tower was designed by Moro"])
    assert (
        mask[1].all() and mask[0].tolist() == sorted(mask[0].tolist(), reverse=True) and mask[0].sum() < mask[1].sum()
    )
    assert (ids[:, 0] == made.text.cls_token_id).all()
    assert (ids[0][mask[0] == 0] == made.text.pad_token_id).all()
    assert made.texts(["word " * 400])[0].shape[1] == made.config.retriever.text_length
    assert made.texts(["word " * 400], length=7)[0].shape[1] == 7


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("layout", ["interleaved", "release"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_long_items_are_cut_and_the_question_is_whole(layout: str, count: int) -> None:
    made = processor(layout)
    asked = Question("q", "Which country is this, and who designed the Velora tower that stands in it?")
    items = [Item(str(i), text=f"{name} tower was designed by Moro. " * 60) for i, name in enumerate(LABELS[:count])]
    prompt = made.prompt("answer", asked, items)
    assert prompt.text.endswith(f" | {asked.text}")
    length = made.prompts([prompt], {}).ids.shape[1]
    limit = made.config.generator.prompt_length
    assert 0.7 * limit < length <= limit, "the room is used, and not more"


def test_items_are_cut_evenly_and_short_ones_are_not() -> None:
    made = processor()
    words = "Velora tower was designed by Moro. " * 60
    prompt = made.prompt("answer", ASKED, [Item("0", text=words), Item("1", text=words), Item("2", text="red roof")])
    first, second, third, asked = prompt.text.split(" | ")
    assert first[4:] == second[4:] and words.startswith(first[4:].strip()) and len(first) < len(words)
    assert (third, asked) == ("[C] red roof", ASKED.text)


def test_a_text_of_many_tokens_in_few_letters_is_cut_by_tokens() -> None:
    made = processor()
    limit = made.config.generator.prompt_length
    prompt = made.prompt("answer", ASKED, [Item("0", text="? ; . " * 200)])
    assert made.prompts([prompt], {}).ids.shape[1] <= limit and prompt.text.endswith(ASKED.text)


def test_room_is_left_for_pictures() -> None:
    made = processor(overrides=("qformer.queries=16",))
    items = [Item(str(i), text="Velora tower was designed by Moro. " * 60, image=f"{i}.png") for i in range(3)]
    batch = made.prompts([made.prompt("answer", ASKED, items)], {})
    assert (batch.ids == made.image_id).sum() == 3 * 16
    assert batch.ids.shape[1] <= made.config.generator.prompt_length


def test_pictures_get_rows_in_the_order_of_their_first_use() -> None:
    made = processor()
    pictures = {"known.png": 0}
    items = [Item("a", image="b.png"), Item("b", image="known.png"), Item("c", image="b.png")]
    batch = made.prompts([made.prompt("answer", ASKED, items)], pictures)
    assert pictures == {"known.png": 0, "b.png": 1}
    assert batch.slots[batch.uses].flatten().tolist() == [1, 0, 1]


# ---------------------------------------------------------------- pixels


def test_pixels_of_pictures(tmp_path: Path) -> None:
    made = processor()
    red, blue = picture(tmp_path, "red"), picture(tmp_path, "blue")
    pixels = made.pixels([red, blue, red])
    assert pixels.shape == (3, 3, 16, 16) and pixels.dtype == torch.uint8
    assert torch.equal(pixels[0], pixels[2])
    assert pixels[0, :, 8, 8].tolist() == [220, 30, 30] and pixels[1, :, 8, 8].tolist() == [30, 40, 210]
    with pytest.raises(ImageError, match=r"gone\.png"):
        made.pixels([red, str(tmp_path / "gone.png")])


def test_pixels_by_threads_are_the_same(tmp_path: Path) -> None:
    names = [picture(tmp_path, name) for name in ("red", "blue", "green", "white-black")]
    threaded = processor()
    threaded.workers = 3
    assert torch.equal(threaded.pixels(names), processor().pixels(names))
    assert threaded.open(names[1])[:, 8, 8].tolist() == [30, 40, 210]
    assert threaded._pixels.cache_info().misses == 4, "what was opened is not opened again"
    with pytest.raises(ImageError, match=r"gone\.png"):
        threaded.pixels([*names, str(tmp_path / "gone.png")])


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    made = processor()
    path = picture(tmp_path, "red")
    made.pixels([path])
    os.replace(picture(tmp_path, "blue"), path)
    assert made.pixels([path])[0, :, 8, 8].tolist() == [30, 40, 210]


def test_decimals_come_back_as_they_were() -> None:
    t5 = train_tokenizer([*TEXTS, "0.5 kg, 1.05 kg or 9.3 g"], 280, "t5")
    for text in ("9.3 g", "1.05 kg", "0.5 kg, or in 1921. Velora"):
        assert t5.decode(t5(text).input_ids, skip_special_tokens=True) == text
