"""Samples whose knowledge was retrieved: shares, order, tasks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ra_blip.config import DataConfig, StageConfig
from ra_blip.data.retrieved_examples import RetrievedExamples, captioning, main
from ra_blip.data.sources import SOURCES
from ra_blip.errors import ConfigError, DataError
from ra_blip.records import Item, Question, read_questions, write_jsonl

ITEMS = [Item(f"i{n}", f"caption {n}", image=f"{n}.png") for n in range(12)]
ASKED = [Question("q", "Describe this picture.", answers=("a hall",), category="caption")]
HITS = {"q": ["i7", "i2", "i9", "i4", "i0"]}


def test_samples_have_hits_nothing_or_random_items_in_their_shares() -> None:
    source = RetrievedExamples(ITEMS, ASKED, HITS, keep=2, nothing=0.2, wrong=0.3)
    drawn = [[item.id for item in source.draw(0, np.random.default_rng(n)).gold] for n in range(2_000)]
    empty = sum(not names for names in drawn) / 2_000
    strange = sum(bool(set(names) - set(HITS["q"])) for names in drawn) / 2_000
    assert abs(empty - 0.2) < 0.03
    # of two random items of 12, both are among the five hits in 10 of 66 cases
    assert abs(strange - 0.3 * (1 - 10 / 66)) < 0.03
    assert all(len(names) in (0, 2) for names in drawn)
    assert {"".join(names) for names in drawn} >= {"i7i2", "i7i0", "i9i4"}
    assert source.draw(0, np.random.default_rng(5)) == source.draw(0, np.random.default_rng(5))


def test_hits_keep_the_order_of_their_ranks() -> None:
    source = RetrievedExamples(ITEMS, ASKED, HITS, keep=3, nothing=0.0, wrong=0.0)
    place = {name: rank for rank, name in enumerate(HITS["q"])}
    for seed in range(50):
        names = [item.id for item in source.draw(0, np.random.default_rng(seed)).gold]
        assert names == sorted(names, key=place.__getitem__) and len(names) == 3
    few = RetrievedExamples(ITEMS, ASKED, {"q": ["i1"]}, keep=3, nothing=0.0, wrong=0.0)
    assert [item.id for item in few.draw(0, np.random.default_rng(0)).gold] == ["i1"]
    none = RetrievedExamples(ITEMS, ASKED, {}, keep=3, nothing=0.0, wrong=0.0)
    assert none.draw(0, np.random.default_rng(0)).gold == ()


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(DataError, match="question 'q' has no answer"):
        RetrievedExamples(ITEMS, [Question("q", "?", answers=(" ",))], {})
    with pytest.raises(DataError, match="found item 'gone' is not among the items"):
        RetrievedExamples(ITEMS, ASKED, {"q": ["gone"]})
    with pytest.raises(DataError, match="no question"):
        RetrievedExamples(ITEMS, [], {})


def test_tasks_are_mixed_by_weight(tmp_path: Path) -> None:
    asked = [Question(f"c{n}", "Describe.", answers=("x",), category="caption") for n in range(40)]
    asked += [Question(f"v{n}", "What?", answers=("y",), category="vqa number") for n in range(10)]
    write_jsonl(tmp_path / "items.jsonl", ITEMS)
    write_jsonl(tmp_path / "tasks.jsonl", asked)
    (tmp_path / "hits.jsonl").write_text('{"id": "c0", "hits": [{"id": "i1", "score": 1, "stage": "search"}]}\n')
    files = {"items": "items.jsonl", "questions": "tasks.jsonl", "mined": "hits.jsonl"}
    data = DataConfig("retrieved", **{key: str(tmp_path / name) for key, name in files.items()})  # type: ignore[arg-type]
    plain = SOURCES["retrieved"](data, StageConfig(), tmp_path, 0)
    assert len(plain) == 50 and not hasattr(plain, "order")
    data.tasks = {"caption": 1.0, "vqa*": 3.0}
    mixed = SOURCES["retrieved"](data, StageConfig(), tmp_path, 0)
    order = mixed.order(0, 0)  # type: ignore[attr-defined]
    names = [mixed.draw(int(i), np.random.default_rng(0)).question.id for i in order]
    assert sum(name.startswith("v") for name in names) / len(names) == pytest.approx(0.75, abs=0.02)
    data.tasks = {"caption": 1.0}
    with pytest.raises(DataError, match=r"'v0' of category 'vqa number' belongs to no task of data\.tasks"):
        SOURCES["retrieved"](data, StageConfig(), tmp_path, 0)
    with pytest.raises(ConfigError, match=r"needs data\.items"):
        SOURCES["retrieved"](DataConfig("retrieved"), StageConfig(), tmp_path, 0)


def test_captions_become_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [Item("5.0", "a hall", image="5.png"), Item("5.1", "a red hall", image="5.png"), Item("f", "a fact")]
    (task,) = captioning(items, "Say it.")
    assert (task.id, task.text, task.image, task.answers) == ("5", "Say it.", "5.png", ("a hall", "a red hall"))
    write_jsonl(tmp_path / "items.jsonl", items)
    assert main([str(tmp_path / "items.jsonl"), str(tmp_path / "tasks.jsonl")]) == 0
    assert read_questions(tmp_path / "tasks.jsonl")[0].category == "caption"
    write_jsonl(tmp_path / "facts.jsonl", items[2:])
    assert main([str(tmp_path / "facts.jsonl"), str(tmp_path / "no.jsonl")]) == 2
    assert "no captioned picture" in capsys.readouterr().err and not (tmp_path / "no.jsonl").exists()
    assert json.loads((tmp_path / "tasks.jsonl").read_text())["answers"] == ["a hall", "a red hall"]
