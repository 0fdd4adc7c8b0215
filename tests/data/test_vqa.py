"""The readers of VQAv2, OK-VQA and A-OKVQA, official and LAVIS's layouts, on small folders with every fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.vqa import AOKVQA, OKVQA, AOKVQALavis, OKVQALavis, VQAv2, VQAv2Lavis
from ra_blip.errors import DataError
from ra_blip.evaluation.score import score
from ra_blip.records import write_jsonl
from tests.data.layouts_a import (
    TEN,
    aokvqa_entry,
    lavis_entry,
    vqa_annotations,
    vqa_questions,
    write_aokvqa,
    write_coco,
    write_json,
    write_lavis,
    write_lines,
    write_vqa,
)

SUBSETS = {"train2014": [1, 2], "val2014": [3], "test2015": [4]}


def ids(data: Dataset, split: str) -> list[str]:
    return [question.id for question in data.questions(split)]


def test_vqav2_is_read(tmp_path: Path) -> None:
    write_vqa(tmp_path, "v2_", SUBSETS)
    data = VQAv2(tmp_path)
    assert VQAv2.recognises(tmp_path) and not OKVQA.recognises(tmp_path)
    assert data.splits == ("train", "val", "test") and list(data.items()) == []
    first, second = data.questions("train")
    assert (first.id, second.id, first.text, first.category) == ("1", "2", "Question 1?", "other")
    assert first.image == f"{tmp_path}/train2014/COCO_train2014_000000000001.jpg"
    assert first.answers == tuple(TEN) and first.gold == ()
    (hidden,) = data.questions("test")
    assert hidden.answers == () and hidden.image == f"{tmp_path}/test2015/COCO_test2015_000000000004.jpg"
    assert list(data.references("val")) == [{"id": "3", "answers": TEN, "category": "other"}]
    assert data.problems.total == 0


def test_okvqa_is_read_with_its_categories_in_words(tmp_path: Path) -> None:
    write_vqa(tmp_path, "", {"train2014": [1], "val2014": [2]})
    data = OKVQA(tmp_path)
    assert OKVQA.recognises(tmp_path) and not VQAv2.recognises(tmp_path)
    assert data.splits == ("train", "test")
    (question,) = data.questions("test")
    assert (question.id, question.answers, question.category) == ("2", tuple(TEN), "Sports and Recreation")
    assert question.image == f"{tmp_path}/val2014/COCO_val2014_000000000002.jpg"


def test_folders_of_the_official_programs_are_found(tmp_path: Path) -> None:
    write_json(tmp_path / "Questions/v2_OpenEnded_mscoco_val2014_questions.json", vqa_questions("val2014", [1]))
    write_json(tmp_path / "Annotations/v2_mscoco_val2014_annotations.json", vqa_annotations("val2014", [1]))
    write_json(tmp_path / "Questions/v2_OpenEnded_mscoco_test-dev2015_questions.json", vqa_questions("test", [2]))
    write_coco(tmp_path / "Images/mscoco", "val2014", [1])
    write_coco(tmp_path / "coco/images", "test2015", [2])
    data = VQAv2(tmp_path)
    assert data.splits == ("val", "test")
    (val,), (test,) = data.questions("val"), data.questions("test")
    assert val.answers == tuple(TEN) and val.image == f"{tmp_path}/Images/mscoco/val2014/COCO_val2014_{1:012}.jpg"
    assert test.image == f"{tmp_path}/coco/images/test2015/COCO_test2015_{2:012}.jpg"
    assert data.problems.total == 0


def test_aokvqa_is_read_with_choices_in_its_references(tmp_path: Path) -> None:
    write_aokvqa(tmp_path, {"train": [1], "val": [2], "test": [3]})
    data = AOKVQA(tmp_path)
    assert data.splits == ("train", "val", "test")
    (question,) = data.questions("val")
    assert (question.id, question.answers) == ("22MexNkBPpdZGX6sxbx002", tuple(TEN))
    assert question.image == f"{tmp_path}/val2017/000000000002.jpg"
    assert list(data.references("val")) == [
        {
            "id": question.id,
            "answers": TEN,
            "choices": ["skateboard", "net", "train", "cab"],
            "choice": "net",
            "difficult_direct_answer": False,
        }
    ]
    (hidden,), (reference,) = data.questions("test"), data.references("test")
    assert hidden.answers == () and reference["answers"] == [] and "choice" not in reference
    assert data.problems.total == 0
    write_json(tmp_path / "aokvqa_v1p0_test.json", [{**aokvqa_entry("test", 3), "choices": "net"}])
    assert list(data.references("test")) == []
    assert data.problems.messages == [
        f"{tmp_path}/aokvqa_v1p0_test.json, line 1, entry 1: 'choices' must be list, found str"
    ]


def test_references_are_those_of_the_official_metrics(tmp_path: Path) -> None:
    write_vqa(tmp_path, "v2_", {"val2014": [1]})
    write_aokvqa(tmp_path, {"val": [2]})
    references, predictions = tmp_path / "references.jsonl", tmp_path / "predictions.jsonl"
    for data, name, metric, said, expected in (
        (VQAv2(tmp_path), "1", "vqa", {"prediction": "mesh"}, {"accuracy": 0.6}),  # two of ten, each left out once
        (
            AOKVQA(tmp_path),
            "22MexNkBPpdZGX6sxbx002",
            "aokvqa",
            {"prediction": "mesh", "choice": "net"},
            {"accuracy": 2 / 3, "multiple_choice": 1.0},
        ),
    ):
        write_jsonl(references, data.references("val"))
        write_lines(predictions, [{"id": name, **said}])
        found = score(metric, predictions, references)
        assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_lavis_cache_is_read(tmp_path: Path) -> None:
    write_lavis(tmp_path)
    vqav2, okvqa, aokvqa = VQAv2Lavis(tmp_path), OKVQALavis(tmp_path), AOKVQALavis(tmp_path)
    assert all(type(data).recognises(tmp_path) for data in (vqav2, okvqa, aokvqa))
    assert (vqav2.splits, okvqa.splits) == (("train", "val", "test"), ("train", "test"))
    assert aokvqa.splits == ("train", "val")
    assert [ids(vqav2, split) for split in vqav2.splits] == [["1"], ["2"], ["3"]]
    (question,) = vqav2.questions("val")  # its answers come from the official annotations
    assert (question.answers, question.category) == (tuple(TEN), "other")
    assert question.image == f"{tmp_path}/coco/images/val2014/COCO_val2014_000000000002.jpg"
    (question,) = okvqa.questions("test")
    assert (question.answers, question.category) == (tuple(TEN), "Sports and Recreation")
    (question,) = aokvqa.questions("val")
    assert question.image == f"{tmp_path}/coco/images/val2017/000000000007.jpg"
    assert all(data.problems.total == 0 for data in (vqav2, okvqa, aokvqa))


def test_lavis_validation_is_read_from_the_file_that_is_there(tmp_path: Path) -> None:
    write_lavis(tmp_path)
    (tmp_path / "coco/annotations/v2_mscoco_val2014_annotations.json").unlink()
    data = VQAv2Lavis(tmp_path)
    (question,) = data.questions("val")
    assert question.answers == () and data.problems.counts == {"missing file": 1}
    (tmp_path / "coco/annotations/vqa_val_eval.json").unlink()
    data = VQAv2Lavis(tmp_path)
    (question,) = data.questions("val")
    assert question.answers == tuple(TEN) and data.problems.total == 0


def test_train_never_sees_an_id_of_another_split(tmp_path: Path) -> None:
    write_vqa(tmp_path / "vqav2", "v2_", {**SUBSETS, "train2014": [1, 2, 3, 4]})
    write_vqa(tmp_path / "okvqa", "", {"train2014": [1, 2], "val2014": [2]})
    write_aokvqa(tmp_path / "aokvqa", {"train": [1, 2, 3], "val": [2], "test": [3]})
    write_lavis(tmp_path / "lavis")
    train, image = tmp_path / "lavis/coco/annotations/vqa_train.json", f"train2014/COCO_train2014_{1:012}.jpg"
    write_json(train, [lavis_entry(number, image, True) for number in (1, 2, 3)])
    readers = (VQAv2(tmp_path / "vqav2"), OKVQA(tmp_path / "okvqa"), AOKVQA(tmp_path / "aokvqa"))
    for data, left_out in zip((*readers, VQAv2Lavis(tmp_path / "lavis")), (2, 1, 2, 2), strict=True):
        others = {name for split in data.splits if split != "train" for name in ids(data, split)}
        assert ids(data, "train") and not set(ids(data, "train")) & others
        assert data.problems.counts == {"evaluation id": left_out}


def test_question_without_its_picture_is_left_out_but_can_be_scored(tmp_path: Path) -> None:
    write_vqa(tmp_path, "v2_", SUBSETS)
    (tmp_path / "train2014/COCO_train2014_000000000001.jpg").unlink()
    data = VQAv2(tmp_path)
    assert ids(data, "train") == ["2"]
    assert data.problems.counts == {"missing image": 1}
    assert "train2014/COCO_train2014_000000000001.jpg" in data.problems.messages[0]
    assert [reference["id"] for reference in data.references("train")] == ["1", "2"]


def test_questions_without_an_annotation_file_have_no_answers(tmp_path: Path) -> None:
    write_vqa(tmp_path, "v2_", SUBSETS)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    data = VQAv2(tmp_path)
    (question,) = data.questions("val")
    assert question.answers == ()
    assert data.problems.counts == {"missing file": 1}


def test_records_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    write_vqa(tmp_path, "v2_", {"train2014": [1, 2, 3, 4, 5]})
    questions = vqa_questions("train2014", [1, 2, 2, 3, 4, 5])
    questions["questions"] += [
        "no object",
        {"image_id": "1", "question": "Whose?", "question_id": 1},
        {"image_id": 1, "question": "Whose?", "question_id": None},
    ]
    questions["questions"][5]["question"] = " "
    write_json(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", questions)
    annotations = vqa_annotations("train2014", [1, 2, 2, 3, 5])  # none for 4
    annotations["annotations"][3]["answers"] = []
    annotations["annotations"].append({"question_id": 1, "answers": None})
    write_json(tmp_path / "v2_mscoco_train2014_annotations.json", annotations)
    data = VQAv2(tmp_path)
    assert ids(data, "train") == ["1", "2"]
    assert data.problems.counts == {
        "duplicate id": 3,  # question 2 and its annotation, and a second annotation of question 1
        "empty answer": 2,
        "empty question": 1,
        "malformed record": 3,
    }
    message = next(one for one in data.problems.messages if "no object" in one or "found str" in one)
    assert "questions.json, line 1, entry 7: expected an object" in message


def test_choice_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_aokvqa(tmp_path, {"train": [1, 2]})
    entry = {**aokvqa_entry("train", 2), "correct_choice_idx": 4}
    write_json(tmp_path / "aokvqa_v1p0_train.json", [aokvqa_entry("train", 1), entry])
    data = AOKVQA(tmp_path)
    assert len(ids(data, "train")) == 1
    assert data.problems.counts == {"malformed record": 1}
    with pytest.raises(DataError, match="entry 2: 'correct_choice_idx' is 4, there are 4"):
        ids(AOKVQA(tmp_path, strict=True), "train")


def test_file_that_is_no_json_or_no_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    write_aokvqa(tmp_path, {"train": [1, 2]})
    path = tmp_path / "aokvqa_v1p0_train.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('}, {"split"', '},\n {"split"')[:-9], encoding="utf-8")
    with pytest.raises(DataError, match=r"aokvqa_v1p0_train.json, line 2: not JSON"):
        ids(AOKVQA(tmp_path), "train")
    path.write_bytes(text.encode().replace(b"Two.", b"Tw\xf6."))
    with pytest.raises(DataError, match=r"aokvqa_v1p0_train.json, .*not UTF-8"):
        ids(AOKVQA(tmp_path), "train")
    write_json(path, {"no": "array"})
    with pytest.raises(DataError, match=r"aokvqa_v1p0_train.json, line 1: not JSON \(expected '\['"):
        ids(AOKVQA(tmp_path), "train")
