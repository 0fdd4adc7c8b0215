from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.config import DataConfig, StageConfig
from ra_blip.data.record_examples import BalancedExamples, CaptionPictures, RecordExamples
from ra_blip.data.sources import SOURCES
from ra_blip.errors import ConfigError, DataError
from ra_blip.records import Example, Item, Question, read_items, read_questions, write_jsonl
from ra_blip.training.samples import Loader

FACTS = [Item(f"f{i}", f"Fact number {i} speaks of tower {i}.") for i in range(12)]
ANSWERED = Item("answered", "Another place, and again Velora it is.")
VIEWS = [Item(f"v{i}", f"a view of hall {i}", image=f"{i}.png") for i in range(5)]
QUESTIONS = [
    Question("q0", "Which tower?", answers=("Velora",), gold=("f0",), category="text_fact"),
    Question("q1", "Which hall?", answers=("hall 0",), gold=("v0", "v1"), negatives=("f3", "v4"), category="view"),
    Question("q2", "Is it?", answers=("no",), gold=("f1",), negatives=("f2", "f1", "answered")),
]


Records = tuple[list[Item], list[Question]]


def write(folder: Path, items: list[Item], questions: list[Question]) -> tuple[str, str]:
    given = [item if item.image is None else Item(item.id, item.text, image=str(folder / item.image)) for item in items]
    write_jsonl(folder / "items.jsonl", given)
    write_jsonl(folder / "questions.jsonl", questions)
    return str(folder / "items.jsonl"), str(folder / "questions.jsonl")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path, [*FACTS, ANSWERED, *VIEWS], QUESTIONS)


@pytest.fixture
def records(files: tuple[str, str]) -> Records:
    return read(files)


def read(files: tuple[str, str]) -> Records:
    return read_items(files[0]), read_questions(files[1])


def drawn(source: RecordExamples, index: int, times: int = 40) -> list[Example]:
    return [source.draw(index, np.random.default_rng(seed)) for seed in range(times)]


def test_a_sample_is_a_question_with_its_gold_and_others(records: Records) -> None:
    source = RecordExamples(*records, negatives=4)
    assert len(source) == 3
    for index, question in enumerate(QUESTIONS):
        for example in drawn(source, index):
            assert example.question.id == question.id
            assert tuple(item.id for item in example.gold) == question.gold
            found = [item.id for item in example.negatives]
            assert len(found) == len(set(found)) and not set(found) & set(question.gold)
            assert len(found) == (4 if index != 1 else len(found))


def test_no_negative_holds_an_answer(records: Records) -> None:
    source = RecordExamples(*records, negatives=9)
    first = Counter(item.id for example in drawn(source, 0) for item in example.negatives)
    assert set(first) == {f"f{i}" for i in range(1, 12)}, "all others, and never the one that names the answer"
    second = {item.id for example in drawn(source, 1) for item in example.negatives}
    assert second == {"v2", "v3", "v4", "f3"}
    third = {item.id for example in drawn(source, 2) for item in example.negatives}
    assert "answered" in third, "an answer of two letters stands in many words, so it excludes nothing"


def test_random_negatives_are_of_the_kind_of_the_gold(records: Records) -> None:
    for index, kind in ((0, "text"), (1, "image+text")):
        for example in drawn(RecordExamples(*records, negatives=3), index):
            listed = example.question.negatives
            assert {item.kind for item in example.negatives if item.id not in listed} <= {kind}


def mined_file(folder: Path, found: dict[str, list[str]]) -> str:
    path = folder / "hits.jsonl"
    lines = [{"id": name, "hits": [{"id": item} for item in items]} for name, items in found.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_mined_and_listed_items_make_half_of_the_negatives(records: Records, tmp_path: Path) -> None:
    hits = mined_file(tmp_path, {"q0": ["f0", "f5", "answered", "f6", "f7", "v3", "unknown"], "q9": ["f1"]})
    source = RecordExamples(*records, negatives=4, mined=hits)
    hard = {"f5", "f6", "f7", "v3"}  # neither the gold, nor one that names the answer
    counts = Counter[str]()
    for example in drawn(source, 0, 80):
        found = [item.id for item in example.negatives]
        assert len(found) == 4 and len(hard & set(found)) >= 2
        counts.update(found)
    assert min(counts[name] for name in hard) > 15 and "answered" not in counts
    assert all(counts[name] < min(counts[one] for one in hard) for name in counts if name not in hard)


def test_order_says_nothing(records: Records, tmp_path: Path) -> None:
    source = RecordExamples(*records, negatives=4, mined=mined_file(tmp_path, {"q0": ["f5"]}))
    places = Counter([item.id for item in example.negatives].index("f5") for example in drawn(source, 0, 80))
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 40


def test_a_draw_is_a_pure_function(records: Records) -> None:
    first, second = (RecordExamples(*records, negatives=4) for _ in range(2))
    second.draw(1, np.random.default_rng(3))
    assert first.draw(0, np.random.default_rng(3)) == second.draw(0, np.random.default_rng(3))
    assert len({tuple(item.id for item in example.negatives) for example in drawn(first, 0)}) > 20


def test_categories(records: Records) -> None:
    source = RecordExamples(*records, negatives=1, categories=["text_fact", "view"])
    assert [source.draw(i, np.random.default_rng()).question.id for i in range(len(source))] == ["q0", "q1"]
    with pytest.raises(DataError, match=r"no question of categories \['nothing'\]"):
        RecordExamples(*records, negatives=1, categories=["nothing"])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("bad", "Who?", gold=("gone",)), "mine: question 'bad': gold item 'gone' is not among the items"),
        (Question("bad", "Who?", gold=("f0", "gone")), "gold item 'gone'"),
        (Question("bad", "Who?"), "question 'bad': has no gold item"),
    ],
)
def test_questions_that_cannot_train_are_named(question: Question, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RecordExamples(FACTS, [QUESTIONS[0], question], negatives=1, where="mine")


@pytest.mark.parametrize(
    "line", ['{"hits": []}', '{"id": "q0"}', '{"id": "q0", "hits": [3]}', '{"id": "q0", "hits": 3}']
)
def test_mined_hits_of_another_form_are_named(records: Records, tmp_path: Path, line: str) -> None:
    path = tmp_path / "hits.jsonl"
    path.write_text(f'{{"id": "q0", "hits": []}}\n{line}\n')
    with pytest.raises(DataError, match=r"hits\.jsonl, line 2"):
        RecordExamples(*records, negatives=1, mined=str(path))


def test_texts_for_tokenizers(records: Records) -> None:
    texts = list(RecordExamples(*records, negatives=1).texts())
    assert {"Which tower?", "Velora", "hall 0", "no", FACTS[3].text, VIEWS[2].text} <= set(texts)


def test_captioned_pictures(files: tuple[str, str]) -> None:
    source = CaptionPictures(read_items(files[0]))
    assert [source.draw(i, np.random.default_rng()).id for i in range(len(source))] == [item.id for item in VIEWS]
    assert list(source.texts()) == [item.text for item in VIEWS]
    with pytest.raises(DataError, match="mine: no captioned picture"):
        CaptionPictures([*FACTS, Item("b", image="b.png")], "mine")


# ---------------------------------------------------------------- sources by name


def source_of(tmp_path: Path, stage: str = "answer", **data: Any) -> Any:
    config = DataConfig(**data)
    return SOURCES[config.name](config, StageConfig(name=stage, hard_negatives=2, negatives_max=3), tmp_path, 0)  # type: ignore[arg-type]


def test_sources_over_files(files: tuple[str, str], tmp_path: Path) -> None:
    items, questions = files
    for stage, count in (("answer", 3), ("retrieve", 2), ("rank", 3)):
        source = source_of(tmp_path, stage, name="records", items=items, questions=questions)
        assert len(source.draw(0, np.random.default_rng()).negatives) == count
    assert len(source_of(tmp_path, "pretrain", name="captions", items=items)) == 5
    with pytest.raises(ConfigError, match=r"data\.items and data\.questions"):
        source_of(tmp_path, name="records", items=items)
    with pytest.raises(ConfigError, match=r"data\.items"):
        source_of(tmp_path, "pretrain", name="captions")


def test_sources_over_a_generated_world(tmp_path: Path) -> None:
    source = source_of(tmp_path, name="atlas", entities=20, rename=True)
    example = source.draw(3, np.random.default_rng(1))
    assert len(example.negatives) == 3 and example.gold
    assert all(Path(item.image).is_file() for item in (*example.gold, *example.negatives) if item.image)
    assert (tmp_path / "world" / "world.json").is_file()
    texts = source.texts()
    assert next(texts) == next(source.texts()) and len({next(texts) for _ in range(50)}) > 20
    caption = source_of(tmp_path, "pretrain", name="atlas_captions", entities=20, pictures=6)
    assert len(caption) == 6
    item = caption.draw(2, np.random.default_rng(1))
    assert item.kind == "image+text" and Path(str(item.image)).is_file()
    assert next(iter(caption.texts()))


def test_names_of_sources() -> None:
    assert sorted(SOURCES) == ["atlas", "atlas_captions", "captions", "dataset", "records", "retrieved", "shards"]


def test_golds_of_each_kind_and_never_the_questions_own_picture(tmp_path: Path) -> None:
    gold = ("v0", "f0", "v1", "v2", "f1")
    asked = [Question("q", "Which?", image=str(tmp_path / "0.png"), gold=gold), Question("p", "And?", gold=("v3",))]
    source = RecordExamples(*read(write(tmp_path, [*FACTS, *VIEWS], asked)), negatives=0, golds=1)
    seen = Counter(tuple(item.id for item in example.gold) for example in drawn(source, 0, 200))
    assert set(seen) == {(view, fact) for view in ("v1", "v2") for fact in ("f0", "f1")}
    assert all(example.question.gold == gold for example in drawn(source, 0)), "the others stay known as golds"
    alone = [Question("q", "Which?", image=str(tmp_path / "0.png"), gold=("v0",))]
    (tmp_path / "alone").mkdir()
    source = RecordExamples(*read(write(tmp_path / "alone", [*FACTS, *VIEWS], alone)), negatives=0, golds=1)
    assert [item.id for item in source.draw(0, np.random.default_rng()).gold] == ["v0"]


def test_balanced_order_goes_round_the_entities(tmp_path: Path) -> None:
    items = [Item(f"{name}.fact", f"A fact of {name}.") for name in ("a", "b", "c")]
    asked = [
        Question(f"{name}{i}", "?", gold=(f"{name}.fact",))
        for name, count in (("a", 7), ("b", 2), ("c", 1))
        for i in range(count)
    ]
    source = BalancedExamples(*read(write(tmp_path, items, asked)), negatives=0)
    assert len(source) == 12  # four rounds of three, the first multiple of three that is not below ten
    order = source.order(5, 2)
    assert np.array_equal(order, source.order(5, 2)) and not np.array_equal(order, source.order(5, 3))
    names = [source.questions[i].id[0] for i in order]
    assert all(set(names[start : start + 3]) == {"a", "b", "c"} for start in range(0, 12, 3))
    assert Counter(source.questions[i].id for i in order)["c0"] == 4
    assert {n for k, n in Counter(source.questions[i].id for i in order).items() if k[0] == "b"} == {2}
    assert Loader(source, 3, 5, 2).at(1) == Loader(source, 3, 5, 2).at(1)


def test_category_patterns_and_views(records: Records) -> None:
    assert len(RecordExamples(*records, negatives=1, categories=["text_*", "v?ew"])) == 2
    source = RecordExamples(*records, negatives=1, view=lambda image, number: f"{image}#{number}", views=3)
    seen = {str(item.image)[-2:] for example in drawn(source, 1) for item in example.gold}
    assert seen == {"#0", "#1", "#2"}
