from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ra_blip.config import ParamRule, StageConfig
from ra_blip.errors import ConfigError
from ra_blip.models.rablip import RABlip
from ra_blip.records import Example, Item, Question
from ra_blip.training import losses
from ra_blip.training.engine import set_mode
from ra_blip.training.finetune_stage import Finetune
from ra_blip.training.optim import apply_rules
from ra_blip.training.stages import STAGES, Answer, Pretrain, Rank, Rerank, Retrieve, Stage
from tests.tiny import SCRATCH, changed, close, model
from tests.training.samples import captions, examples, rng

ROOMY = ("generator.prompt_length=300", "generator.answer_length=8")
TRAINED = {  # stage -> what its recipe trains
    "pretrain": (r"(vision|retriever)\..*",),
    "retrieve": (r"retriever\.(?!itm_head|qformer\.lm_head).*",),
    "answer": (r"reader\..*",),
    "rank": (r"ranker\..*",),
}


def staged(name: str, overrides: tuple[str, ...] = ROOMY, **settings: Any) -> Any:
    """A stage over a model whose parameters are frozen as in a recipe."""
    built = model(overrides=overrides)
    apply_rules(built, [*(ParamRule(match, lr=1e-3) for match in TRAINED[name]), ParamRule(".*")])
    set_mode(built)
    return STAGES[name](built, StageConfig(name=name, **settings))  # type: ignore[arg-type]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def moved_by(stage: Stage, batch: dict[str, Any]) -> set[str]:
    """Parameters with a gradient that is not zero."""
    torch.manual_seed(0)
    total(stage.forward(batch)[0]).backward()
    named = stage.model.named_parameters()
    return {name for name, p in named if p.grad is not None and bool(p.grad.abs().max() > 0)}


def samples_for(name: str, folder: Path) -> list[Any]:
    return captions(folder) if name == "pretrain" else examples(folder)


def test_names_of_stages() -> None:
    expected = {"pretrain": Pretrain, "retrieve": Retrieve, "rank": Rank, "answer": Answer, "rerank": Rerank}
    assert {**expected, "finetune": Finetune} == STAGES
    assert [name for name, stage in STAGES.items() if stage.batch_coupled] == ["pretrain", "retrieve"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["pretrain", "retrieve", "answer", "rank"])
def test_gradient_reaches_what_the_stage_trains_and_nothing_else(name: str, tmp_path: Path) -> None:
    stage = staged(name)
    moved = moved_by(stage, stage.collate(samples_for(name, tmp_path), rng(), 0))
    wanted = {parameter for parameter, value in stage.model.named_parameters() if value.requires_grad}
    assert moved <= wanted
    parts = {part.partition(".")[0] for part in wanted}
    assert {part.partition(".")[0] for part in moved} == parts
    idle = {part for part in wanted - moved if "relative_attention_bias" not in part}
    # What no loss of the stage can read: biases behind a softmax over keys, words and positions that do not occur.
    assert len(idle) <= 0.2 * len(wanted), sorted(idle)


@pytest.mark.parametrize("name", ["retrieve", "answer", "rank"])
def test_a_batch_of_one(name: str, tmp_path: Path) -> None:
    for example in examples(tmp_path):
        for settings in ({"conditioned": 0.0}, {"conditioned": 1.0}) if name == "retrieve" else ({},):
            stage = staged(name, **settings)
            loss = total(stage.forward(stage.collate([example], rng(), 0))[0])
            assert torch.isfinite(loss) and float(loss.detach()) > 0


@pytest.mark.parametrize("name", ["answer", "rank"])
def test_parts_of_a_batch_count_by_what_they_hold(name: str, tmp_path: Path) -> None:
    stage, samples = staged(name), examples(tmp_path)
    batches = [stage.collate(part, rng(), 0) for part in (samples, samples[:1], samples[1:])]
    whole, first, second = ({key: float(v.detach()) for key, v in stage.forward(b)[0].items()} for b in batches)
    counted, one, two = (stage.counts(batch) for batch in batches)
    assert {key: one[key] + two[key] for key in counted} == counted
    for key, value in whole.items():
        joined = (first[key] * one[key] + second[key] * two[key]) / counted[key]
        assert joined == pytest.approx(value, abs=1e-5)
        assert one[key] != two[key], "the plain mean of the two would be another number"


def test_what_is_shown_of_an_evaluation(tmp_path: Path) -> None:
    samples = examples(tmp_path)
    answer, retrieve = staged("answer"), staged("retrieve")
    for stage in (answer, retrieve):
        stage.model.eval()
    said = answer.shown(samples)
    knowledge = [[*one.gold, one.negatives[0]] for one in samples]
    expected = [made.answer for made in answer.model.generate([one.question for one in samples], knowledge)]
    assert [row["generated"] for row in said] == expected and said[1]["answers"] == ["red"]
    assert said[2]["knowledge"] == ["f1", "f2", "v1"] and said[2]["image"] == samples[2].question.image
    found = retrieve.shown(samples)
    for row, one in zip(found, samples, strict=True):
        assert row["gold"] == [item.id for item in one.gold] and len(row["found"]) == 3
        assert row["scores"] == sorted(row["scores"], reverse=True)
        best = {item.id: item for sample in samples for item in (*sample.gold, *sample.negatives)}[row["found"][0]]
        score = retrieve.model.encode_question([one.question]) @ retrieve.model.encode_items([best]).T
        assert row["scores"][0] == pytest.approx(float(score), abs=1e-3)
    assert json.dumps([*said, *found]) and staged("rank").shown(samples) == []


# ---------------------------------------------------------------- answer


def answer_terms(stage: Answer, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """QA and ASKG losses computed one prompt at a time, then averaged over all labelled tokens."""
    prompts, built = batch["prompts"], stage.model
    features = built.image_features(batch["images"])
    states, source = built.reader.encode(features, prompts)
    per_token = built.reader.generator.token_losses(states, prompts.mask, source, batch["labels"])
    size = len(per_token) // 2
    rows = [per_token[:size], per_token[size:]]
    counts = [(batch["labels"][:size] != -100).sum(), (batch["labels"][size:] != -100).sum()]
    return rows[0].sum() / counts[0], rows[1].sum() / counts[1]


@pytest.mark.parametrize("overrides", [ROOMY, (*ROOMY, *SCRATCH)])
def test_the_answer_loss_is_qa_plus_a_tenth_of_askg(overrides: tuple[str, ...], tmp_path: Path) -> None:
    stage = staged("answer", overrides)
    batch = stage.collate(examples(tmp_path), rng(), 5)
    terms, report = stage.forward(batch)
    qa, askg = answer_terms(stage, batch)
    assert set(terms) == {"qa_loss", "askg_loss"}
    assert close(terms["qa_loss"], qa, 1e-4) and close(terms["askg_loss"], 0.1 * askg, 1e-5)
    assert report["qa"] == pytest.approx(float(qa.detach()), abs=1e-4)
    assert report["askg"] == pytest.approx(float(askg.detach()), abs=1e-4)


def test_weights_of_the_warm_up(tmp_path: Path) -> None:
    stage = staged("answer", warmup_steps=3, warmup_askg=0.7, askg=0.2)
    askg = {}
    for step in (0, 2, 3, 9):
        terms, report = stage.forward(stage.collate(examples(tmp_path), rng(), step))
        askg[step] = float(terms["askg_loss"].detach()) / report["askg"]
    assert askg == pytest.approx({0: 0.7, 2: 0.7, 3: 0.2, 9: 0.2})


def test_distractors_follow_the_warm_up(tmp_path: Path) -> None:
    stage = staged("answer", warmup_steps=3, warmup_retrieved=0.0, retrieved=1.0, negatives_min=4)
    lengths = []
    for step in (0, 3):
        batch = stage.collate(examples(tmp_path)[:1], rng(), step)
        lengths.append(batch["prompts"].mask.sum(-1).tolist())
    assert lengths[0][0] < lengths[0][1] - 20, "the golds alone"
    assert lengths[1][0] > lengths[0][0] + 20, "and with distractors"


def test_the_soft_tokens_tell_the_picture_that_is_asked_for(tmp_path: Path) -> None:
    pictures = [changed(item, text=None) for item in captions(tmp_path)[:3]]
    asked = Question("q", "What colour is the roof?", answers=("red",), gold=(pictures[0].id,))
    samples = [Example(asked, (pictures[0],), tuple(pictures[1:]))]
    made = ("generator.from_scratch.match_head=true",)
    stage = staged("answer", ROOMY + made, qa=0.0, askg=0.0, answer_match=0.5, negatives_min=2, negatives_max=3)
    batch = stage.collate(samples, rng(), 0)
    terms, report = stage.forward(batch)
    soft = stage.model.reader.soft_tokens(stage.features(batch["images"]), batch["prompts"])
    scores = stage.model.reader.match_head(soft)[batch["match_reads"][0, :3]]
    assert terms.keys() == {"match_loss"}
    expected = 0.5 * (scores.logsumexp(0) - scores[0])
    assert float(terms["match_loss"].detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert report["match_accuracy"] == float(scores.argmax() == 0)
    with pytest.raises(ConfigError, match="match_head"):
        staged("answer", answer_match=1.0, negatives_min=2).forward(batch)


def test_prompts_without_pictures_train(tmp_path: Path) -> None:
    stage = staged("answer")
    batch = stage.collate(examples(tmp_path)[:1], rng(), 0)
    assert batch["images"] == []
    moved = moved_by(stage, batch)
    assert moved and all(name.startswith("reader.generator") for name in moved)


# ---------------------------------------------------------------- retrieve


def test_the_retrieve_loss_is_info_nce_over_plain_vectors(tmp_path: Path) -> None:
    stage = staged("retrieve", conditioned=0.0)
    batch = stage.collate(examples(tmp_path), rng(), 0)
    assert batch["conditioned"] is False
    terms, report = stage.forward(batch)
    built = stage.model
    asked, items = built.encode_question(batch["questions"]), built.encode_items(batch["items"])
    expected = losses.info_nce(asked, items, batch["gold"], built.retriever.temperature)
    assert close(terms["retrieve_loss"], expected, 1e-4)
    best = (asked @ items.T).argmax(-1)
    hits = [bool(batch["gold"][row, column]) for row, column in enumerate(best.tolist())]
    assert report["recall@1"] == pytest.approx(sum(hits) / 3)
    assert report["temperature"] == pytest.approx(float(built.retriever.temperature.detach()))


def test_conditioned_is_drawn_by_its_probability(tmp_path: Path) -> None:
    for probability, expected in ((0.0, {False}), (1.0, {True}), (0.5, {True, False})):
        stage = staged("retrieve", conditioned=probability)
        assert {stage.collate(examples(tmp_path), rng(s), 0)["conditioned"] for s in range(20)} == expected


def spy(built: RABlip, seen: list[tuple[list[str], list[str | None]]]) -> Callable[..., Tensor]:
    encode = built.encode_records

    def watching(texts: Sequence[str], images: Sequence[str | None], *rest: Any) -> Tensor:
        seen.append((list(texts), list(images)))
        return encode(texts, images, *rest)

    return watching


@pytest.mark.parametrize("count", [1, 3, 50])
def test_no_candidate_carries_another_question(count: int, tmp_path: Path) -> None:
    """The leakage probe: all candidates of an anchor are read under its own question, so none stands out by it."""
    stage = staged("retrieve", conditioned=1.0, conditioned_candidates=count, hard_negatives=4)
    samples = examples(tmp_path)
    questions = [example.question.text for example in samples]
    golds = [[gold.full_text for gold in example.gold] for example in samples]
    batch = stage.collate(samples, rng(), 0)
    seen: list[tuple[list[str], list[str | None]]] = []
    stage.model.encode_records = spy(stage.model, seen)
    stage.forward(batch)
    (asked, _), (texts, images) = seen
    assert asked == questions
    width = 1 + min(count, int((~batch["gold"]).sum(-1).min()))
    assert len(texts) == 3 * width
    for anchor, question in enumerate(questions):
        rows = range(anchor * width, (anchor + 1) * width)
        own = [texts[row].removeprefix(f"{question} ") for row in rows]
        assert own[0] in golds[anchor] and not set(own[1:]) & set(golds[anchor])
        assert len({(texts[row], images[row]) for row in rows}) == width
        for row in rows:
            assert (images[row] is not None) == texts[row].startswith(question), (
                "a text is not conditioned, a picture is"
            )
            assert not any(other in texts[row] for other in questions if other != question)


def test_the_conditioned_loss_by_hand(tmp_path: Path) -> None:
    stage = staged("retrieve", conditioned=1.0, conditioned_candidates=4)
    batch = stage.collate(examples(tmp_path), rng(), 0)
    seen: list[tuple[list[str], list[str | None]]] = []
    built = stage.model
    built.encode_records = spy(built, seen)
    found = float(stage.forward(batch)[0]["retrieve_loss"].detach())
    (_, _), (texts, images) = seen
    with torch.no_grad():
        vectors = built._encode(texts, images).unflatten(0, (3, -1))
        scores = (built.encode_question(batch["questions"])[:, None] * vectors).sum(-1) / built.retriever.temperature
        expected = -scores.log_softmax(-1)[:, 0].mean()
    assert found == pytest.approx(float(expected), abs=1e-4)


# ---------------------------------------------------------------- rank and pretrain


def test_the_ranker_learns_from_all_pairs_and_frozen_states(tmp_path: Path) -> None:
    stage = staged("rank")
    batch = stage.collate(examples(tmp_path), rng(), 0)
    terms, report = stage.forward(batch)
    judged = stage.model.judge(batch["questions"], batch["items"])
    relevant = batch["relevant"]
    expected = -torch.where(relevant, judged, 1 - judged).log().mean()
    assert close(terms["rank_loss"], expected, 1e-4)
    assert report["rank_accuracy"] == pytest.approx(float(((judged > 0.5) == relevant).float().mean()))


def test_pretraining_terms(tmp_path: Path) -> None:
    stage = staged("pretrain", itc=1.0, itm=2.0, itg=3.0)
    stage.model.eval()  # the norms of the tower would see another batch
    batch = stage.collate(captions(tmp_path), rng(), 0)
    torch.manual_seed(0)
    terms, report = stage.forward(batch)
    assert {"itc_loss", "itm_loss", "itg_loss"} <= set(terms)
    retriever = stage.model.retriever
    with torch.no_grad():
        kv = retriever.kv(stage.model.vision(stage.model.processor.pixels(batch["images"])))
        pictures, texts = retriever.picture_vectors(kv), retriever.text_vectors(batch["text"], batch["text_mask"])
        assert close(terms["itc_loss"], losses.itc_loss(pictures, texts, retriever.temperature), 1e-4)
        prefix = batch["text"].clone()
        prefix[:, 0] = stage.model.processor.dec_id
        states = retriever.qformer("generate", kv, text=prefix, text_mask=batch["text_mask"]).text
        words = losses.itg_loss(retriever.qformer.token_logits(states), batch["text"], batch["text_mask"])
        assert close(terms["itg_loss"], 3 * words, 1e-3)
        right = (pictures @ texts.T).argmax(-1) == torch.arange(4)
    assert report["itc_accuracy"] == pytest.approx(float(right.float().mean()))
    stage.config = changed(stage.config, itm=0.0)
    assert "itm_loss" not in stage.forward(batch)[0]


def test_matching_pairs_are_true_once_and_wrong_twice(tmp_path: Path) -> None:
    stage = staged("pretrain", itm_samples=3)
    batch = stage.collate(captions(tmp_path), rng(), 0)
    retriever, seen = stage.model.retriever, list[tuple[Tensor, Tensor]]()
    fused = retriever.fused

    def watching(kv: Any, text: Tensor, mask: Tensor) -> Tensor:
        seen.append((kv[0][0], text))
        return fused(kv, text, mask)

    retriever.fused = watching
    stage.forward(batch)
    ((keys, text),) = seen
    assert len(text) == 9
    picture_of = [next(i for i in range(3) if torch.equal(keys[row], keys[i])) for row in range(9)]
    text_of = [next(i for i in range(3) if torch.equal(text[row], batch["text"][i])) for row in range(9)]
    assert picture_of[:6] == text_of[:3] * 2 == [0, 1, 2, 0, 1, 2] and text_of[6:] == [0, 1, 2]
    assert all(picture_of[row] != text_of[row] for row in range(3, 9))


def test_a_stage_of_its_own_says_what_it_is_not(tmp_path: Path) -> None:
    bare = Stage(model(), StageConfig())
    for call in (lambda: bare.collate(list[Example](), rng(), 0), lambda: bare.forward({})):
        with pytest.raises(TypeError, match="not a stage"):
            call()


def test_the_tower_is_live_where_it_trains_and_cached_where_it_is_frozen(tmp_path: Path) -> None:
    images = [str(item.image) for item in captions(tmp_path)]
    live, frozen = staged("pretrain"), staged("answer")
    assert live.features(images).requires_grad and live.model._store is None
    assert not frozen.features(images).requires_grad and frozen.model._store is not None
    assert not frozen.model.vision.training and live.model.vision.training


def retrieve_vectors(stage: Retrieve, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        asked = stage._encode([q.text for q in batch["questions"]], [q.image for q in batch["questions"]])
        return asked, stage._encode(batch["texts"], [item.image for item in batch["items"]])


def test_the_symmetric_loss_is_the_mean_of_three(tmp_path: Path) -> None:
    stage = staged("retrieve", conditioned=0.0, symmetric=True)
    batch = stage.collate(examples(tmp_path), rng(), 0)
    stage.model.eval()
    asked, vectors = retrieve_vectors(stage, batch)
    gold, temperature = batch["gold"], stage.model.retriever.temperature
    pictured = torch.tensor([item.image is not None for item in batch["items"]])
    together = torch.zeros(int(pictured.sum()), int((~pictured).sum()), dtype=torch.bool)
    for row in gold:
        together |= row[pictured][:, None] & row[~pictured][None]
    wanted, some = gold.any(0), together.any(1)
    parts = [
        losses.info_nce(asked, vectors, gold, temperature),
        losses.info_nce(vectors[wanted], asked, gold.T[wanted], temperature),
    ]
    if some.any():
        texts = vectors[~pictured]
        parts.append(losses.info_nce(vectors[pictured][some], texts, together[some], temperature))
    assert close(stage.forward(batch)[0]["retrieve_loss"], torch.stack(parts).sum() / 3, 1e-4)


def test_pictures_find_the_texts_of_their_question() -> None:
    stage = staged("retrieve", symmetric=True)
    items = [Item("p", image="p.png"), Item("t", "text"), Item("u", "text"), Item("q", image="q.png")]
    vectors = torch.nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    gold = torch.tensor([[True, True, False, False], [False, False, True, False]])
    scores = vectors[0] @ vectors[1:3].T / stage.model.retriever.temperature.detach()
    expected = -torch.log_softmax(scores, -1)[0]  # p belongs to t; q and u have no partner
    assert close(stage._alike(items, vectors, gold).detach(), expected, 1e-5)
    assert float(stage._alike(items, vectors, gold[1:]).detach()) == 0


def test_captions_and_tokens_are_dropped(tmp_path: Path) -> None:
    plain, bare = (staged("retrieve", caption_dropout=share) for share in (0.0, 1.0))
    samples = examples(tmp_path)
    with_words, without = (stage.collate(samples, rng(), 0) for stage in (plain, bare))
    assert with_words["texts"] == [item.full_text for item in with_words["items"]]
    assert without["texts"] == ["" if item.image else item.full_text for item in without["items"]]
    stage = staged("retrieve", token_dropout=0.75)
    seen = []
    inner = stage.model.encode_records
    stage.model.encode_records = lambda *given: seen.append(given[3].shape) or inner(*given)
    images = [q.image for q in with_words["questions"] if q.image] or [i.image for i in with_words["items"] if i.image]
    stage._encode([""] * len(images), images)
    assert seen[0][1] == max(round(stage.model.vision.patches * 0.25), 1)
