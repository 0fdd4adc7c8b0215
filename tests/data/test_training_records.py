"""Training from a data set where it lies, through the source ``dataset``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ra_blip.config import DataConfig, StageConfig
from ra_blip.data import training_records
from ra_blip.data.sources import SOURCES
from ra_blip.errors import ConfigError, DataError
from ra_blip.records import Item, Question, write_jsonl
from tests.data import layouts_b as layouts


def source_of(root: Path, stage: str = "answer", **data: Any) -> Any:
    config = DataConfig(name="dataset", root=str(root), **data)
    return SOURCES["dataset"](config, StageConfig(name=stage, negatives_max=2), root / "out", 0)  # type: ignore[arg-type]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "items.jsonl", [Item(f"i{n}", f"Words of {n}.") for n in range(40)])
    train = [Question(f"q{n}", "Who?", gold=(f"i{n}",), negatives=(f"i{n + 1}",)) for n in range(4)]
    train += [
        Question("bare", "Who?"),
        Question("lost", "Who?", gold=("none",)),
        Question("both", "Who?", gold=("i9",)),
    ]
    write_jsonl(tmp_path / "train_questions.jsonl", train)
    tests = [Question("t", "Who?", gold=("i5",)), Question("both", "Who?", gold=("i5",))]
    write_jsonl(tmp_path / "questions.jsonl", tests)
    return tmp_path


def test_a_data_set_trains_where_it_lies_and_says_what_is_left_out(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(plain)
    assert [question.id for question in source.questions] == ["q0", "q1", "q2", "q3"]
    example = source.draw(1, np.random.default_rng(0))
    assert example.gold == (Item("i1", "Words of 1."),) and len(example.negatives) == 2
    assert capsys.readouterr().err == (
        f"plain in {plain}: 4 questions of train, 40 items; "
        "3 left out: 1 no gold item, 1 evaluation id, 1 unknown item\n"
    )


def test_strict_stops_at_the_first_record_that_cannot_train(plain: Path) -> None:
    with pytest.raises(DataError, match="'bare' names no gold item"):
        source_of(plain, strict=True)


def test_validation_is_trained_on_only_where_it_is_named(plain: Path) -> None:
    assert [q.id for q in source_of(plain, split="test").questions] == ["t", "both"]
    (plain / "train_questions.jsonl").unlink()
    with pytest.raises(DataError, match=r"plain has no split 'train' here; there are: test\. To train on what is"):
        source_of(plain)
    with pytest.raises(ConfigError, match=r"data\.root"):
        SOURCES["dataset"](DataConfig(name="dataset"), StageConfig(), plain, 0)


def test_a_large_knowledge_base_is_drawn_from(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_records, "POOL", 10)
    first, again = source_of(plain), source_of(plain)
    named = {f"i{n}" for n in (*range(5), 9)}
    assert len(first.items) == 15 and named - {"i9"} <= set(first.items)
    assert list(first.items) == list(again.items)
    (plain / "hits.jsonl").write_text('{"id": "q0", "hits": [{"id": "i30"}, {"id": "i31"}]}\n')
    assert {"i30", "i31"} <= set(source_of(plain, mined=str(plain / "hits.jsonl")).items)


def test_real_layouts_train_from_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.infoseek(tmp_path / "infoseek")
    assert [q.gold for q in source_of(tmp_path / "infoseek").questions] == [("Q0",), ("Q1",), ("Q2",)]
    layouts.oven(tmp_path / "oven")
    assert len(source_of(tmp_path / "oven", dataset="oven")) == 3
    layouts.coco(tmp_path / "coco")
    pictures = source_of(tmp_path / "coco", "pretrain")
    assert len(pictures) == 6 and pictures.draw(0, np.random.default_rng(0)).kind == "image+text"
    assert "coco in" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no train question of coco has its gold items here"):
        source_of(tmp_path / "coco")


def test_a_picture_to_validate_with_is_not_pretrained_on(tmp_path: Path) -> None:
    layouts.coco(tmp_path)
    path = tmp_path / "annotations/captions_train2017.json"
    layouts.put(tmp_path / "annotations/captions_val2017.json", path.read_bytes())
    for picture in (tmp_path / "train2017").iterdir():
        layouts.put(tmp_path / "val2017" / picture.name)
    with pytest.raises(DataError, match="no captioned picture"):
        source_of(tmp_path, "pretrain")
