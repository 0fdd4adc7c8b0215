"""WebQA's readers on small folders of the three layouts, with every fault, and on the real validation questions."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ra_blip.data.readers.dataset import Dataset
from ra_blip.data.readers.webqa import WebQA
from ra_blip.data.readers.webqa_derived import WebQARagVL, WebQAUniVLDR
from ra_blip.errors import DataError, ImageError
from ra_blip.evaluation.score import score
from ra_blip.images import open_image
from ra_blip.records import Item, by_id, write_jsonl
from tests.data.layouts_a import (
    FIRST,
    GREYS,
    GUID,
    image_fact,
    univldr_record,
    webqa_record,
    webqa_test_record,
    write_json,
    write_lines,
    write_ragvl_webqa,
    write_tsv,
    write_univldr,
    write_webqa,
)

ONE, TWO, THREE, FOUR = (GUID.format(number) for number in (1, 2, 3, 4))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    records = [webqa_record(1, "train", "text"), webqa_record(2, "train", "YesNo"), webqa_record(3, "val", "color")]
    write_webqa(tmp_path, records, [webqa_test_record(4)])
    write_tsv(tmp_path, GREYS)
    return tmp_path


def ids(data: Dataset, split: str) -> list[str]:
    return [question.id for question in data.questions(split)]


def test_official_items_are_the_pictures_and_snippets_of_all_splits_once(official: Path) -> None:
    data = WebQA(official)
    items = by_id(list(data.items()))
    assert [str(FIRST + number) in items for number in range(3)] == [True] * 3
    assert sorted(name for name in items if "_" in name) == sorted(
        [*(f"{ONE}_{n}" for n in range(3)), f"{TWO}_2", f"{THREE}_2", f"{FOUR}_0"]
    )
    assert len(items) == 9
    assert items[f"{ONE}_0"] == Item(
        f"{ONE}_0", f"Fact 0 of {ONE[-3:]}.", "Page 0", source="https://en.wikipedia.org/wiki/0"
    )
    source = "https://commons.wikimedia.org/wiki/2"
    assert items[str(FIRST + 2)] == Item(
        str(FIRST + 2), "Caption 2", "Title 2", f"{official}/imgs.tsv#{FIRST + 2}", source
    )
    assert data.problems.total == 0


def test_pictures_of_the_table_open(official: Path) -> None:
    pictures = [item.image for item in WebQA(official).items() if item.image]
    assert len(pictures) == 3
    assert [round(float(np.asarray(open_image(name)).mean())) for name in sorted(pictures)] == [0, 1, 2]


def test_pictures_of_other_modes_open_as_rgb_and_other_formats_are_refused(official: Path) -> None:
    pictures = [Image.new("P", (2, 2)), Image.new("CMYK", (2, 2)), Image.new("I;16", (2, 2)), Image.new("L", (2, 2))]
    encoded = []
    for picture, form in zip(pictures, ("PNG", "JPEG", "PNG", "GIF"), strict=True):
        out = io.BytesIO()
        picture.save(out, form)
        encoded.append(out.getvalue())
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "WEBP", save_all=True, append_images=[Image.new("RGB", (2, 2), "red")])
    write_tsv(official, [*encoded, out.getvalue()])
    write_webqa(official, [webqa_record(1, "train", "color", img_posFacts=[image_fact(n) for n in range(5)])])
    pictures_by_id = {item.id: str(item.image) for item in WebQA(official).items() if item.image}
    for number in (0, 1, 2, 4):
        opened = open_image(pictures_by_id[str(FIRST + number)])
        assert (opened.mode, opened.size) == ("RGB", (2, 2))
    with pytest.raises(ImageError, match=rf"imgs.tsv#{FIRST + 3}"):
        open_image(pictures_by_id[str(FIRST + 3)])


def test_official_questions_have_gold_negatives_and_unquoted_words(official: Path) -> None:
    data = WebQA(official)
    assert data.splits == ("train", "val", "test")
    text, picture = data.questions("train")
    assert (text.id, text.text, text.answers, text.category) == (ONE, "Question 1?", ("Answer 1.",), "text")
    assert text.gold == (f"{ONE}_0", f"{ONE}_1")
    assert text.negatives == (str(FIRST + 1), f"{ONE}_2")
    assert picture.gold == (str(FIRST),) and picture.negatives == (str(FIRST + 1), f"{TWO}_2")
    assert ids(data, "val") == [THREE]
    (hidden,) = data.questions("test")
    assert (hidden.answers, hidden.gold, hidden.negatives, hidden.category) == ((), (), (), "color")


def test_references_hold_what_the_official_scores_need(official: Path) -> None:
    data = WebQA(official)
    text, picture = data.references("train")
    assert text == {"id": ONE, "answers": ["Answer 1."], "gold": [f"{ONE}_0", f"{ONE}_1"], "category": "text"}
    assert picture == {
        "id": TWO,
        "answers": ["Answer 2."],
        "gold": [str(FIRST)],
        "category": "YesNo",
        "keywords": "Answer 2",
    }


def test_references_are_those_of_the_official_metric(official: Path, tmp_path: Path) -> None:
    references, predictions = tmp_path / "references.jsonl", tmp_path / "predictions.jsonl"
    write_jsonl(references, WebQA(official).references("train"))
    sources = {ONE: [f"{ONE}_0", f"{ONE}_1"], TWO: [str(FIRST), str(FIRST + 1)]}
    write_lines(predictions, [{"id": name, "prediction": "No", "sources": found} for name, found in sources.items()])
    found = score("webqa", predictions, references)
    assert {name: part["retrieval_f1"] for name, part in found["by_modality"].items()} == {"text": 1.0, "image": 2 / 3}
    assert found["counts"] == {"retrieval_f1": 2, "qa_acc": 1}  # a text question has no keywords


def test_train_never_sees_an_id_of_another_split(official: Path) -> None:
    data = WebQA(official)
    assert not set(ids(data, "train")) & {*ids(data, "val"), *ids(data, "test")}
    records = [webqa_record(1, "train", "text"), webqa_record(4, "train", "text")]
    write_webqa(official, records, [webqa_test_record(4)])
    data = WebQA(official)
    assert ids(data, "train") == [ONE] and ids(data, "test") == [FOUR]
    assert data.problems.counts == {"evaluation id": 1}
    assert data.problems.messages[0].endswith(f"{FOUR}: question {FOUR!r} is also in the split 'test'")


def test_texts_are_read_where_no_picture_was_downloaded(official: Path) -> None:
    (official / "imgs.tsv").unlink()
    data = WebQA(official)
    assert all(item.kind == "text" for item in data.items()) and len(list(data.items())) == 6
    assert data.problems.counts == {"missing image": 3}  # each picture once, also in the second pass
    assert f"{official}/imgs.tsv is not there" in data.problems.messages[0]
    assert ids(data, "train") == [ONE, TWO]


def test_splits_are_those_whose_file_is_there(official: Path) -> None:
    (official / "WebQA_train_val.json").unlink()
    data = WebQA(official)
    assert WebQA.recognises(official) and data.splits == ("test",)
    with pytest.raises(DataError, match="no split 'train' here; there are: test"):
        list(data.questions("train"))
    assert not WebQA.recognises(official / "nothing")


def test_picture_without_a_line_in_the_index_is_missing(official: Path) -> None:
    lines = (official / "imgs.lineidx").read_text(encoding="utf-8").splitlines()
    (official / "imgs.lineidx").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    data = WebQA(official)
    assert str(FIRST + 2) not in by_id(list(data.items()))
    assert data.problems.counts == {"missing image": 1}
    assert f"has no line for picture {FIRST + 2}" in data.problems.messages[0]


@pytest.mark.parametrize("columns", [1, 2])
def test_truncated_table_loses_the_pictures_behind_its_end_and_counts_them(official: Path, columns: int) -> None:
    (official / "imgs.lineidx").unlink()
    offsets = write_tsv(official, GREYS, columns)
    data = (official / "imgs.tsv").read_bytes()
    (official / "imgs.tsv").write_bytes(data[: offsets[1] + 50])
    webqa = WebQA(official)
    assert [item.id for item in webqa.items() if item.image] == [str(FIRST)]
    assert webqa.problems.counts == {"truncated tsv": 2}
    assert "ends before the end of picture" in webqa.problems.messages[0]


def test_table_cut_inside_its_last_row_is_truncated_but_may_lack_the_last_newline(official: Path) -> None:
    data = (official / "imgs.tsv").read_bytes()
    for cut, expected in ((1, {}), (3, {"truncated tsv": 1})):
        (official / "imgs.tsv").write_bytes(data[:-cut])
        webqa = WebQA(official)
        assert len([item for item in webqa.items() if item.image]) == (3 if cut == 1 else 2)
        assert webqa.problems.counts == expected


@pytest.mark.parametrize("lines", ["0\n100\n200\n", "0\n10\n5\n", "0\nten\n", "0\n5\t6\n", ""])
def test_index_of_another_table_is_told_and_no_picture_is_read_by_it(official: Path, lines: str) -> None:
    (official / "imgs.lineidx").write_text(lines, encoding="utf-8")
    data = WebQA(official)
    assert all(item.kind == "text" for item in data.items())
    assert data.problems.counts == {"wrong lineidx": 3}
    assert f"{official}/imgs.lineidx" in data.problems.messages[0]


def test_table_without_an_index_is_told(official: Path) -> None:
    (official / "imgs.lineidx").unlink()
    data = WebQA(official)
    assert len(list(data.items())) == 6
    assert data.problems.counts == {"missing lineidx": 3}


def test_records_that_cannot_be_used_are_left_out_and_counted(official: Path) -> None:
    bad = [
        webqa_record(1, "train", "text"),
        webqa_record(2, "train", "color"),
        webqa_record(5, "train", "text", A=[]),
        webqa_record(6, "train", "text", A=['""']),
        webqa_record(7, "train", "text", Q='""'),
        webqa_record(8, "train", "text", Q=7),
        webqa_record(9, "train", "text", txt_posFacts="none"),
        webqa_record(10, "trian", "text"),
        (GUID.format(11), []),
        webqa_record(12, "train", "color", img_posFacts=[image_fact(0, caption="Other words")]),
        webqa_record(13, "train", "color", img_posFacts=[{"image_id": None}]),
    ]
    write_webqa(official, bad)
    data = WebQA(official)
    assert ids(data, "train") == [ONE, TWO, GUID.format(12)]
    questions = dict(data.problems.counts)
    assert questions == {"empty answer": 2, "empty question": 1, "malformed record": 5}
    assert any(f"{GUID.format(8)}: 'Q' must be str, found int" in one for one in data.problems.messages)
    assert str(FIRST) in by_id(list(data.items()))
    assert data.problems.counts == {**questions, "duplicate id": 1}  # what both passes meet counts once
    with pytest.raises(DataError, match="unknown split 'trian'"):
        list(WebQA(official, strict=True).questions("train"))


def test_guid_given_twice_counts_as_duplicate(official: Path) -> None:
    guid, record = webqa_record(1, "train", "text")
    text = f'{{"{guid}": {json.dumps(record)}, "{guid}": {json.dumps(record)}}}'
    (official / "WebQA_train_val.json").write_text(text, encoding="utf-8")
    data = WebQA(official)
    assert ids(data, "train") == [guid]
    assert data.problems.counts == {"duplicate id": 1}


def test_file_that_is_no_json_or_no_utf8_is_an_error_with_its_line(official: Path) -> None:
    path = official / "WebQA_train_val.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('", "split"', '",\n "split" =', 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"WebQA_train_val.json, line \d+: not JSON"):
        ids(WebQA(official), "train")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(DataError, match=r"WebQA_train_val.json, line 1: not JSON"):
        ids(WebQA(official), "train")
    path.write_bytes(text.encode().replace(b"Question 2", b"Question \xff", 1))
    with pytest.raises(DataError, match=r"WebQA_train_val.json, .*not UTF-8"):
        ids(WebQA(official), "train")


# ---------------------------------------------------------------- UniVL-DR


def test_univldr_folder_is_read(tmp_path: Path) -> None:
    write_univldr(tmp_path)
    data = WebQAUniVLDR(tmp_path)
    assert WebQAUniVLDR.recognises(tmp_path) and not WebQA.recognises(tmp_path)
    assert data.splits == ("train", "val", "test")
    assert [item.id for item in data.items()] == [
        *(f"{ONE}_{n}" for n in range(3)),
        *(str(FIRST + n) for n in range(3)),
    ]
    picture = by_id(list(data.items()))[str(FIRST + 1)]
    assert picture == Item(str(FIRST + 1), "Caption 1", "Title 1", f"{tmp_path}/imgs.tsv#{FIRST + 1}")
    assert float(np.asarray(open_image(str(picture.image))).mean()) == 1
    text, mixed = data.questions("train")
    assert (text.gold, text.negatives, text.category) == ((f"{ONE}_0",), (f"{ONE}_1", f"{ONE}_2"), "text")
    assert (mixed.gold, mixed.negatives) == ((str(FIRST), f"{ONE}_1"), (str(FIRST + 1),))
    assert list(data.references("test")) == [
        {"id": FOUR, "answers": ["Answer 4."], "gold": [str(FIRST + 2)], "category": "image"}
    ]
    assert data.problems.total == 0


def test_univldr_train_never_sees_an_id_of_dev_or_test(tmp_path: Path) -> None:
    write_univldr(tmp_path)
    records = [univldr_record(number, [0], []) for number in (1, 3, 4)]
    write_lines(tmp_path / "train.json", records)
    data = WebQAUniVLDR(tmp_path)
    assert ids(data, "train") == [ONE]
    assert data.problems.counts == {"evaluation id": 2}


def test_univldr_lines_that_cannot_be_read_are_counted_with_their_number(tmp_path: Path) -> None:
    write_univldr(tmp_path)
    path = tmp_path / "all_docs.json"
    lines = path.read_bytes().splitlines()
    first_again = lines[0]
    empty = json.dumps({"snippet_id": "x", "fact": " "}).encode()
    path.write_bytes(b"\n".join([lines[0], b"{broken", lines[1].replace(b"Fact", b"\xe9"), b"[]", first_again, empty]))
    (tmp_path / "all_imgs.json").unlink()
    data = WebQAUniVLDR(tmp_path)
    assert [item.id for item in data.items()] == [f"{ONE}_0"]
    kinds = ("not JSON", "not UTF-8", "malformed record", "duplicate id", "empty item", "missing file")
    assert data.problems.counts == dict.fromkeys(kinds, 1)
    assert data.problems.messages[0].startswith(f"{path}, line 2: not JSON")
    assert data.problems.messages[1].startswith(f"{path}, line 3: not UTF-8")


# ---------------------------------------------------------------- RagVL


def test_ragvl_folder_is_read(tmp_path: Path) -> None:
    write_ragvl_webqa(tmp_path)
    data = WebQARagVL(tmp_path)
    assert WebQARagVL.recognises(tmp_path) and data.splits == ("train", "val", "test")
    assert list(data.items()) == [
        Item(str(FIRST + 1), "Caption 1", "Title 1", f"{tmp_path}/finetune/tasks/train_img/{FIRST + 1}.png"),
        Item(str(FIRST + 2), "Two", "Title 2", f"{tmp_path}/finetune/tasks/train_img/{FIRST + 2}.png"),
        Item(str(FIRST + 3), "Caption 3", "Title 3", f"{tmp_path}/datasets/val_image/{FIRST + 3}.png"),
    ]
    (question,) = data.questions("test")
    assert (question.id, question.gold, question.negatives) == (THREE, (str(FIRST + 3),), ())
    (reference,) = data.references("test")
    assert (reference["keywords"], reference["category"]) == ("red", "color")
    assert data.problems.total == 0


def test_ragvl_train_never_sees_a_record_of_validation(tmp_path: Path) -> None:
    write_ragvl_webqa(tmp_path)
    records = [webqa_record(1, "train", "color"), webqa_record(2, "train", "color"), webqa_record(9, "val", "color")]
    write_json(tmp_path / "datasets/WebQA_train_image.json", dict(records))
    data = WebQARagVL(tmp_path)
    assert ids(data, "train") == [ONE]
    assert data.problems.counts == {"evaluation id": 2}  # one is in dev, one says so itself


def test_ragvl_pictures_and_captions_that_are_not_there_are_counted(tmp_path: Path) -> None:
    write_ragvl_webqa(tmp_path)
    (tmp_path / f"datasets/val_image/{FIRST + 3}.png").unlink()
    (tmp_path / "datasets/WebQA_caption_test.json").unlink()
    data = WebQARagVL(tmp_path)
    assert [item.id for item in data.items()] == [str(FIRST + 1), str(FIRST + 2)]
    assert data.problems.counts == {"missing image": 1, "missing file": 1}


# ---------------------------------------------------------------- the real questions


def test_real_validation_questions_are_read_whole(tmp_path: Path) -> None:
    shared = os.environ.get("RA_BLIP_SHARED")
    if not shared:
        pytest.skip("RA_BLIP_SHARED is not set")
    path = Path(shared) / "data/webqa_official_val/webqa_val_predictions.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    records = {}
    for one in found:
        images, texts = [
            [{key: name} for name in one["gold_sources"] if ("_" in name) == text]
            for key, text in (("image_id", False), ("snippet_id", True))
        ]
        keys = ("split", "Qcate", "Q", "A", "Keywords_A")
        records[one["guid"]] = {
            **{key: one[key] for key in keys if key in one},
            "img_posFacts": [{"image_id": int(fact["image_id"])} for fact in images],
            "txt_posFacts": texts,
        }
    write_webqa(tmp_path, records.items())
    data = WebQA(tmp_path)
    questions = list(data.questions("val"))
    assert len(questions) == 4_966 and data.problems.total == 0
    assert list(data.questions("train")) == []
    golds = Counter((question.category == "text", len(question.gold)) for question in questions)
    assert golds == {(False, 1): 1_395, (False, 2): 1_116, (True, 1): 4, (True, 2): 2_360, (True, 3): 86, (True, 4): 5}
    references = list(data.references("val"))
    assert [reference["gold"] for reference in references] == [list(question.gold) for question in questions]
    assert sum("keywords" in reference for reference in references) == 2_511
