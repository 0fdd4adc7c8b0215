from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ra_blip.config import GeneratorConfig, LoraConfig
from ra_blip.errors import ConfigError, MissingExtra
from ra_blip.models.generator import CausalGenerator, Generator, build_generator
from ra_blip.models.processor import Processor
from ra_blip.models.prompt import IMAGE, LABELS, Prompt
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question
from tests.tiny import close, model_config, shaken
from tests.tiny import processor as tiny_processor
from tests.toy_llms import FAMILIES, llm_settings, tokenizer

IDS = torch.tensor([[9, 10, 11, 12, 13], [14, 15, 0, 0, 0], [16, 17, 18, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
LABELS_IDS = torch.tensor([[20, 21, 2], [22, 2, -100], [23, 24, 25]])


def built(family: str, **changes: object) -> Generator:
    """A drawn generator of four answer tokens."""
    words = tokenizer(family)
    config = GeneratorConfig(config=llm_settings(family, words), answer_length=4, **changes)  # type: ignore[arg-type]
    return shaken(build_generator(config, len(words), 0, 2)).eval()  # type: ignore[no-any-return]


def states(generator: Generator) -> Tensor:
    return generator.encode(generator.embed(IDS), MASK)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_whole_sequence(family: str) -> None:
    generator = built(family)
    assert isinstance(generator, CausalGenerator)
    found = generator.token_losses(states(generator), MASK, IDS, LABELS_IDS)
    for row, (length, answer) in enumerate(((5, 3), (2, 2), (3, 3))):
        joint = torch.cat([IDS[row, :length], LABELS_IDS[row, :answer]])[None]
        logits = generator.llm(input_ids=joint).logits[0, length - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, LABELS_IDS[row, :answer], reduction="none")
        assert close(found[row, :answer], expected, 1e-5) and not found[row, answer:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_decoded_as_its_rows_and_as_the_llm_itself(family: str) -> None:
    generator = built(family)
    said = generator.generate(states(generator), MASK, IDS)
    first = generator.first_logits(states(generator), MASK, IDS)
    assert torch.equal(said[:, 0], first.argmax(-1)) and said.shape[1] <= 4
    ends = {"eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 4, "do_sample": False}
    for row, length in enumerate((5, 2, 3)):
        ids, mask = IDS[row : row + 1, :length], MASK[row : row + 1, :length]
        embeds = generator.encode(generator.embed(ids), mask)
        assert close(generator.first_logits(embeds, mask, ids)[0], first[row], 1e-5)
        alone = generator.llm.generate(ids, attention_mask=mask, **ends)[0, length:]
        assert torch.equal(generator.generate(embeds, mask, ids)[0], alone)
        assert torch.equal(said[row, : len(alone)], alone) and not said[row, len(alone) :].any()


def test_what_the_ranker_pools_was_read_and_ignores_padding() -> None:
    generator = built("llama")
    found = generator.contextual(states(generator), MASK)
    hidden = generator.llm(IDS[1:2, :2], output_hidden_states=True).hidden_states[-1]
    assert close(found[1:2, :2], hidden, 1e-5)
    other = IDS.masked_fill(MASK == 0, 30)
    assert close(found[MASK == 1], generator.contextual(generator.embed(other), MASK)[MASK == 1], 1e-6)


def test_gradients_reach_the_soft_prompt_and_nothing_behind_the_answer() -> None:
    generator = built("opt")
    embeds = generator.embed(IDS).detach().requires_grad_()
    generator.token_losses(embeds, MASK, IDS, LABELS_IDS).sum().backward()
    assert embeds.grad is not None
    assert (embeds.grad.abs().amax(-1) > 0).tolist() == MASK.bool().tolist()


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_any_seq2seq_model_has_the_same_face(family: str) -> None:
    generator = built(family)
    assert type(generator) is Generator
    encoded = states(generator)
    found = generator.token_losses(encoded, MASK, IDS, LABELS_IDS)
    out = generator.llm(input_ids=IDS[1:2, :2], labels=LABELS_IDS[1:2, :2])
    assert close(found[1, :2].mean(), out.loss, 1e-5)
    assert close(found[:, 0], -generator.first_logits(encoded, MASK, IDS).log_softmax(-1)[range(3), LABELS_IDS[:, 0]])


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_beams_lengths_and_penalties_reach_the_llm() -> None:
    generator = built("llama", beams=3, length_penalty=-1.0, repetition_penalty=1.5, min_answer_length=2)
    assert generator.decoding() == {
        **{"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "repetition_penalty": 1.5},
        **{"length_penalty": -1.0, "min_new_tokens": 2, "eos_token_id": 2, "pad_token_id": 0},
    }
    said = generator.generate(states(generator), MASK, IDS)
    assert not (said[:, :2] == 2).any(), "no answer ends before its second token"


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 2.0])
def test_a_beams_score_is_its_log_probability_over_its_length_to_the_penalty(penalty: float) -> None:
    generator = built("t5", beams=3, length_penalty=penalty)
    encoded = states(generator)[:1]
    given = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "attention_mask": MASK[:1]}
    more = {"num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    out = generator.llm.generate(**given, **generator.decoding(), **more)
    for said, score in zip(out.sequences[:, 1:], out.sequences_scores, strict=True):
        length = next((i + 1 for i, token in enumerate(said.tolist()) if token == 1), len(said))
        labels = said[None, :length]
        total = -generator.token_losses(encoded, MASK[:1], IDS[:1], labels).sum()
        assert float(score) == pytest.approx(float(total.detach()) / length**penalty, abs=1e-4)


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_llm_alone_is_in_half_precision(family: str, precision: str) -> None:
    words = tokenizer(family)
    config = GeneratorConfig(config=llm_settings(family, words), answer_length=4)
    if (family, precision) == ("t5", "fp16"):
        with pytest.raises(ConfigError, match="overflows in fp16"):
            build_generator(config, len(words), 0, 2, "fp16")
        return
    generator = build_generator(config, len(words), 0, 2, precision).eval()  # type: ignore[arg-type]
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {parameter.dtype for parameter in generator.parameters()} == {half}
    encoded = states(generator)
    assert generator.contextual(encoded, MASK).dtype == torch.float32
    assert generator.token_losses(encoded, MASK, IDS, LABELS_IDS).dtype == torch.float32
    assert generator.first_logits(encoded, MASK, IDS).dtype == torch.float32
    assert generator.generate(encoded, MASK, IDS).shape[0] == 3


def test_what_a_causal_llm_cannot_have() -> None:
    words = tokenizer("llama")
    config = GeneratorConfig(config=llm_settings("llama", words))
    config.from_scratch = dataclasses.replace(config.from_scratch, copy_head=True)
    with pytest.raises(ConfigError, match="need a seq2seq LLM"):
        build_generator(config, len(words), 0, 2)
    with pytest.raises(ConfigError, match="no-such-model"):
        build_generator(GeneratorConfig(config={"model_type": "no-such-model"}), 9, 0, 2)


def test_overrides_beside_a_name(tmp_path: object) -> None:
    generator = built("t5")
    generator.llm.save_pretrained(tmp_path)
    exact = build_generator(GeneratorConfig(name=str(tmp_path), config={"dense_act_fn": "gelu"}), 9, 0, 1)
    assert exact.llm.config.dense_act_fn == "gelu" and generator.llm.config.dense_act_fn == "relu"
    x = torch.linspace(-3, 3, 50)
    assert close(exact.llm.encoder.block[0].layer[1].DenseReluDense.act(x), torch.nn.functional.gelu(x), 1e-7)
    with pytest.raises(ConfigError, match="t5 has no setting 'activation'"):
        build_generator(GeneratorConfig(name=str(tmp_path), config={"activation": "gelu"}), 9, 0, 1)


# ---------------------------------------------------------------- adapters


def test_adapters_without_peft_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"ra-blip\[peft\]"):
        built("llama", lora=LoraConfig(rank=2))


def test_adapters_start_as_nothing_and_train_alone() -> None:
    pytest.importorskip("peft", reason="extra peft is not installed")
    plain = built("llama")
    generator = copy.deepcopy(plain)
    generator.adapt(LoraConfig(rank=2, alpha=4.0, targets=["q_proj", "v_proj"]))
    assert generator.config.lora.rank == 2
    assert close(*(g.first_logits(states(g), MASK, IDS) for g in (plain, generator)), 1e-6)
    trained = [name for name, parameter in generator.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all(".lora_" in name for name in trained)
    generator.token_losses(states(generator), MASK, IDS, LABELS_IDS).sum().backward()
    assert generator.generate(states(generator), MASK, IDS).shape[0] == 3
    with pytest.raises(ConfigError, match="lora"):
        built("llama", lora=LoraConfig(rank=2, targets=["no_such_layer"]))


def test_adapters_are_fp32_in_a_half_precision_llm_and_are_saved(tmp_path: object) -> None:
    pytest.importorskip("peft", reason="extra peft is not installed")
    lora = "generator.lora={rank: 2, targets: [q, v]}"
    config = model_config(overrides=("precision.llm=bf16", lora))
    model = RABlip(config, tiny_processor(overrides=("precision.llm=bf16", lora))).eval()
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert dtypes["reader.generator.llm.shared.weight"] == torch.bfloat16
    shaken(model)
    model.save_pretrained(str(tmp_path))
    again = RABlip.from_pretrained(str(tmp_path))
    asked = [Question("q", "Who designed Velora tower?")], [[Item("a", "Velora tower was designed by Moro.")]]
    assert again.select(*asked) == model.select(*asked) and again.generate(*asked) == model.generate(*asked)


# ---------------------------------------------------------------- prompts and answers in tokens


def processed(family: str, layout: str = "release", **changes: object) -> Processor:
    words = tokenizer(family)
    config = model_config(layout)
    settings = llm_settings(family, words)
    config.generator = dataclasses.replace(config.generator, config=settings, **changes)  # type: ignore[arg-type]
    return Processor(config, tiny_processor().text, words)


@pytest.mark.parametrize(("family", "begin"), [("llama", "<s>"), ("opt", "</s>"), ("t5", None)])
def test_the_leading_picture_stands_before_the_begin_token(family: str, begin: str | None) -> None:
    made = processed(family)
    prompts = [Prompt(f"{IMAGE} red and blue", ("x",), ("what?",)), Prompt("red and blue")]
    batch = made.prompts(prompts, {})
    tokens = [
        made.llm.convert_ids_to_tokens(row[valid == 1].tolist())
        for row, valid in zip(batch.ids, batch.mask, strict=True)
    ]
    assert tokens[0] == [IMAGE, IMAGE, *tokens[1]]
    assert tokens[1] == made.llm.convert_ids_to_tokens(made.llm("red and blue").input_ids)
    assert (tokens[1][0] if begin else tokens[1][-1]) == (begin or "</s>")


def test_vicunas_begin_token_is_the_end_token_whatever_the_tokenizer_says() -> None:
    made = processed("llama", begin="</s>")
    ids = made.prompts([Prompt(f"{IMAGE} red", ("x",), ("what?",))], {}).ids[0].tolist()
    assert ids[:3] == [made.image_id, made.image_id, 2] and 1 not in ids
    assert made.decode(torch.tensor([[0, *made.llm("red", add_special_tokens=False).input_ids, 2, 0]])) == ["red"]
    with pytest.raises(ConfigError, match=r"model\.generator\.begin: '<go>' is not a token"):
        processed("llama", begin="<go>").prompts([Prompt("red")], {})


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_answers_continue_the_prompt_and_end(family: str) -> None:
    made = processed(family)
    labels = made.targets(["red", "red and blue"])
    one, two = made.llm(["x", "x red"], add_special_tokens=False).input_ids
    inside = two[len(one) :]
    assert labels[0].tolist()[: len(inside) + 1] == [*inside, 2] and (labels[0, len(inside) + 1 :] == -100).all()
    assert made.decode(labels[1:]) == ["red and blue"]
    assert made.targets(["red and blue " * 9]).shape[1] == made.config.generator.answer_length
    assert made.targets(["red and blue " * 9])[0, -1] == 2, "an answer that is cut still ends"
    assert len(set(made.label_ids)) == len(LABELS)
    assert made.targets(["A"])[0].tolist() == [made.label_ids[0], 2]
    assert made.first_tokens(["A", ""]).tolist() == [made.label_ids[0], 2]


def test_an_ordinary_token_may_end_an_answer() -> None:
    made = processed("opt", end="Ċ")
    newline = made.llm.convert_tokens_to_ids("Ċ")
    assert made.end_id == newline and made.targets(["red"])[0, -1] == newline
    assert made.decode(torch.tensor([[*made.targets(["red"])[0].tolist(), 1]])) == ["red"]


def test_a_template_asks_and_the_guide_is_the_whole_prompt() -> None:
    made = processed("opt", template="Question: {} Short answer:", guide="prompt")
    asked = Question("q", "which colour {is} it?", image="x.png")
    alone = made.prompt("answer", asked, [])
    assert alone.text == f"{IMAGE} Question: which colour {{is}} it? Short answer:"
    assert alone.guides == ("Question: which colour {is} it? Short answer:",)
    known = made.prompt("answer", asked, [Item("a", "it is red")])
    assert known.guides == ("fact: it is red | Question: which colour {is} it? Short answer:",)
    assert "Short answer" not in made.prompt("select", asked, [Item("a", "it is red")]).text
    made.config.retriever.text_length = 6
    guide = made.prompts([known], {}).guide[0].tolist()
    whole = made.text(known.guides[0]).input_ids
    assert guide == [whole[0], *whole[-5:]], "a prompt is cut on the left"
    assert made.texts([known.guides[0]])[0][0].tolist() == [*whole[:5], whole[-1]], "a text on the right"


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_every_call_of_a_model_with_a_causal_llm(family: str) -> None:
    made = processed(family, "interleaved")
    model = shaken(RABlip(made.config, made)).eval()
    questions = [Question("a", "Who designed Velora tower?"), Question("b", "Which country is this?")]
    items = [Item("x", "Velora tower was designed by Moro."), Item("y", "red", title="Kimuna")]
    shares = model.select(questions, [items, items[:1]])
    assert sum(shares[0]) == pytest.approx(1) and shares[1] == pytest.approx([1.0])
    assert model.select(questions[:1], [items])[0] == pytest.approx(shares[0], abs=1e-5)
    found = model.generate(questions, [items, []])
    assert model.generate(questions[1:], [[]])[0] == found[1]
    assert found[0].decoding["eos_token_id"] == 2
    judged = model.judge(questions, items)
    assert close(judged[:1], model.judge(questions[:1], items[:1])) and judged.std() > 1e-4
