"""MultimodalQA's readers on small folders of both layouts, with every fault, and on the real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.multimodalqa import MultimodalQA, MultimodalQARagVL
from ra_blip.errors import DataError
from ra_blip.evaluation.score import score
from ra_blip.records import Item, by_id, write_jsonl
from tests.data.layouts_a import (
    MMQA_TABLE,
    MMQA_TEXTS,
    mmqa_answer,
    mmqa_question,
    write_json,
    write_lines,
    write_mmqa,
    write_ragvl_mmqa,
)

TEXT = mmqa_question("q1", "TextQ", [mmqa_answer("Mask", "text")], {"t1": "text"})
LIST = mmqa_question(
    "q2",
    "Compose(TableQ,ImageListQ)",
    [mmqa_answer("Mask", "table", [1]), mmqa_answer(1988.0, "table", [2, 1])],
    {"tab": "table", "p2": "image"},
)
HIDDEN = mmqa_question("q9", "TableQ", None, {})


@pytest.fixture(params=[".jsonl", ".jsonl.gz"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_mmqa(tmp_path, request.param, [TEXT, LIST], [{**TEXT, "qid": "q3"}], [HIDDEN])
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_mmqa(tmp_path, ".jsonl", [TEXT], [{**TEXT, "qid": "q3"}], [HIDDEN])
    return tmp_path


def ids(data: Dataset, split: str) -> list[str]:
    return [question.id for question in data.questions(split)]


def test_items_are_texts_rows_of_tables_and_pictures(root: Path) -> None:
    data = MultimodalQA(root)
    items = by_id(list(data.items()))
    assert list(items) == ["t1", "t2", "tab.0", "tab.1", "tab.2", "p1", "p2"]
    assert items["t1"] == Item("t1", "Text 1.", "Page 1", source="https://en.wikipedia.org/wiki/Page_1")
    assert items["tab.0"].full_text == (
        "Ben Piazza: Filmography. Year: 1976; Title: The Bad News Bears; Role: Bob Whitewood"
    )
    assert items["tab.1"].text == "Filmography. Year: 1985; Title: Mask"  # a cell without words is passed over
    picture = f"{root}/final_dataset_images/p2.jpg"
    assert items["p2"] == Item("p2", None, "Picture 2", picture, "https://en.wikipedia.org/wiki/P2")
    assert data.problems.total == 0


def test_questions_have_the_rows_of_their_answers_as_gold(root: Path) -> None:
    data = MultimodalQA(root)
    assert MultimodalQA.recognises(root) and data.splits == ("train", "val", "test")
    text, several = data.questions("train")
    assert (text.text, text.answers, text.gold, text.category) == ("Question q1?", ("Mask",), ("t1",), "TextQ")
    assert text.negatives == ("t2", "p1", "p2", "tab.0", "tab.1", "tab.2")
    assert several.answers == ("Mask; 1988",)
    assert several.gold == ("tab.1", "tab.2", "p2")
    assert several.negatives == ("t1", "t2", "p1", "tab.0")
    (hidden,) = data.questions("test")
    assert (hidden.answers, hidden.gold) == ((), ()) and "t1" in hidden.negatives


@pytest.mark.parametrize(
    ("about", "rows"),
    [
        ({"intermediate_answers": [[mmqa_answer("Mask", "table", [1])]]}, ("tab.1",)),
        ({"wiki_entities_in_question": [{"text": "Mask", "table_cells": [[2, 0], [2, 1]]}]}, ("tab.2",)),
        ({}, ("tab.0", "tab.1", "tab.2")),
    ],
)
def test_gold_rows_of_a_table_are_those_that_the_question_rests_on(
    plain: Path, about: dict[str, Any], rows: tuple[str, ...]
) -> None:
    asked = mmqa_question("q5", "TableQ", [mmqa_answer("Yes", "text")], {"tab": "table"}, **about)
    write_lines(plain / "MMQA_dev.jsonl", [asked])
    (question,) = MultimodalQA(plain).questions("val")
    assert question.gold == rows


def test_references_keep_the_list_that_the_metric_needs(root: Path) -> None:
    assert list(MultimodalQA(root).references("train"))[1] == {
        "id": "q2",
        "answers": ["Mask", "1988"],
        "gold": ["tab.1", "tab.2", "p2"],
        "category": "Compose(TableQ,ImageListQ)",
        "modality": "table",
    }


def test_references_are_those_of_the_official_metric(root: Path, tmp_path: Path) -> None:
    references, predictions = tmp_path / "references.jsonl", tmp_path / "predictions.jsonl"
    write_jsonl(references, MultimodalQA(root).references("train"))
    write_lines(predictions, [{"id": "q1", "prediction": "Mask"}, {"id": "q2", "prediction": ["1988", "Mask"]}])
    found = score("mmqa", predictions, references)
    assert (found["questions"], found["missing"], found["list_em"], found["list_f1"]) == (2, 0, 1.0, 1.0)
    assert found["by_category"]["TextQ"]["list_em"] == 1.0


def test_train_never_sees_an_id_of_another_split(plain: Path) -> None:
    data = MultimodalQA(plain)
    assert not set(ids(data, "train")) & {*ids(data, "val"), *ids(data, "test")}
    broken = {**TEXT, "qid": "q4", "answers": []}  # left out of val, and all the same not for training
    write_lines(plain / "MMQA_dev.jsonl", [{**TEXT, "qid": "q3"}, broken])
    write_lines(plain / "MMQA_train.jsonl", [{**TEXT, "qid": f"q{number}"} for number in (1, 3, 4, 9)])
    data = MultimodalQA(plain)
    assert ids(data, "train") == ["q1"]
    assert data.problems.counts == {"evaluation id": 3}


def test_files_and_pictures_that_are_not_there_are_counted(plain: Path) -> None:
    for name in ("MMQA_texts.jsonl", "MMQA_tables.jsonl", "MMQA_train.jsonl", "final_dataset_images/p1.jpg"):
        (plain / name).unlink()
    data = MultimodalQA(plain)
    assert data.splits == ("val", "test")
    assert [item.id for item in data.items()] == ["p2"]
    assert data.problems.counts == {"missing file": 2, "missing image": 1}
    (question,) = data.questions("val")
    assert question.negatives == ("t2", "p1", "p2")  # rows are not known
    assert data.problems.counts["missing file"] == 2


def test_records_that_cannot_be_used_are_left_out_and_counted(plain: Path) -> None:
    bad = [
        TEXT,
        TEXT,
        {**TEXT, "qid": "q4", "answers": []},
        {**TEXT, "qid": "q5", "answers": [mmqa_answer(" ", "text")]},
        {**TEXT, "qid": "q6", "question": " "},
        {**TEXT, "qid": "q7", "metadata": None},
        {**TEXT, "qid": "q8", "answers": [mmqa_answer(True, "text")]},
        {**TEXT, "qid": None},
    ]
    write_lines(plain / "MMQA_train.jsonl", bad)
    data = MultimodalQA(plain)
    assert ids(data, "train") == ["q1"]
    kinds = {"duplicate id": 1, "empty answer": 2, "empty question": 1, "malformed record": 3}
    assert data.problems.counts == kinds
    assert ids(data, "train") == ["q1"] and len(list(data.references("train"))) == 1
    assert data.problems.counts == kinds  # a second pass counts nothing twice
    assert f"{plain}/MMQA_train.jsonl, line 2: question 'q1' was given before" in data.problems.messages
    with pytest.raises(DataError, match="line 2: question 'q1' was given before"):
        ids(MultimodalQA(plain, strict=True), "train")


def test_items_that_cannot_be_used_are_left_out_and_counted(plain: Path) -> None:
    path = plain / "MMQA_texts.jsonl"
    write_lines(path, [MMQA_TEXTS[0], MMQA_TEXTS[0], {**MMQA_TEXTS[1], "text": ""}, {"id": "t3"}])
    path.write_bytes(path.read_bytes() + b'{"id": "t\xff", "text": "x"}\n{"id": "t5"\n7\n')
    empty_row = [{"text": "", "links": []}]
    table = {**MMQA_TABLE["table"], "table_rows": [empty_row, *MMQA_TABLE["table"]["table_rows"]]}
    write_lines(plain / "MMQA_tables.jsonl", [{**MMQA_TABLE, "table": table}, {**MMQA_TABLE, "id": "b", "table": []}])
    write_lines(plain / "MMQA_images.jsonl", [{"id": "p1", "path": "../p1.jpg"}, {"id": "tab.1", "path": "p1.jpg"}])
    data = MultimodalQA(plain)
    assert [item.id for item in data.items()] == ["t1", "tab.1", "tab.2", "tab.3"]
    assert data.problems.counts == {
        "duplicate id": 2,
        "empty item": 2,
        "malformed record": 3,
        "not UTF-8": 1,
        "not JSON": 1,
        "missing image": 1,  # a path that leads out of the folder
    }


def test_compressed_file_that_was_cut_or_damaged_is_an_error(tmp_path: Path) -> None:
    write_mmqa(tmp_path, ".jsonl.gz", [TEXT, LIST], [], [])
    path = tmp_path / "MMQA_train.jsonl.gz"
    data = path.read_bytes()
    for damaged in (data[:-20], data[:40] + b"xxxx" + data[44:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"MMQA_train.jsonl.gz: cannot be read"):
            ids(MultimodalQA(tmp_path), "train")


# ---------------------------------------------------------------- RagVL


def test_ragvl_folder_is_read(tmp_path: Path) -> None:
    write_ragvl_mmqa(tmp_path)
    data = MultimodalQARagVL(tmp_path)
    assert MultimodalQARagVL.recognises(tmp_path) and data.splits == ("train", "val", "test")
    source = "https://en.wikipedia.org/wiki/P{}"
    folder = f"{tmp_path}/finetune/tasks/MMQA_imgs"
    assert list(data.items()) == [
        Item("p1", "A red door", "Picture 1", f"{folder}/p1.jpg", source.format(1)),
        Item("p2", None, "Picture 2", f"{folder}/p2.jpg", source.format(2)),
    ]
    (question,) = data.questions("test")
    assert (question.id, question.gold, question.negatives, question.answers) == ("q3", ("p1",), ("p2",), ("red",))
    (reference,) = data.references("val")
    assert (reference["id"], reference["answers"], reference["modality"]) == ("q2", ["red"], "image")
    assert data.problems.total == 0


def test_ragvl_train_never_sees_an_id_of_dev_or_test(tmp_path: Path) -> None:
    write_ragvl_mmqa(tmp_path)
    records = [{**TEXT, "qid": f"q{number}"} for number in (1, 2, 3)]
    write_json(tmp_path / "datasets/MMQA_train_image.json", [*records, "no object"])
    (tmp_path / "finetune/tasks/MMQA_imgs/p2.jpg").unlink()
    data = MultimodalQARagVL(tmp_path)
    assert ids(data, "train") == ["q1"]
    assert [item.id for item in data.items()] == ["p1"]
    assert data.problems.counts == {"evaluation id": 2, "malformed record": 1, "missing image": 1}


# ---------------------------------------------------------------- the real files


def test_real_files_are_read_whole() -> None:
    shared = os.environ.get("RA_BLIP_SHARED")
    if not shared:
        pytest.skip("RA_BLIP_SHARED is not set")
    data = MultimodalQA(Path(shared) / "data/mmqa_official")
    assert data.splits == ("val",)
    questions = list(data.questions("val"))
    assert len(questions) == 2_441
    assert data.problems.counts == {"missing file": 1}  # the tables are not there
    references = list(data.references("val"))
    assert sum(len(reference["answers"]) > 1 for reference in references) == 194
    assert sum(question.category == "TextQ" for question in questions) == 721
    without_gold = [question.id for question in questions if not question.gold]
    assert len(without_gold) == 30  # rest on a table of which no row is named
    assert list(data.items()) == []  # neither texts nor tables nor pictures were downloaded
    assert data.problems.counts == {"missing file": 2, "missing image": 57_058}
