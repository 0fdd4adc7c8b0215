"""Caption sets, InfoSeek, OVEN, Encyclopedic-VQA and shards: told by their files, read whole, every fault counted."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ra_blip.data.check import check
from ra_blip.data.readers import READERS, open_dataset, probe, recognised, write
from ra_blip.data.readers.captions import CaptionDataset
from ra_blip.data.readers.dataset import Dataset, Problems
from ra_blip.data.readers.encyclopedic import EncyclopedicVQA
from ra_blip.data.readers.infoseek import OVEN, InfoSeek
from ra_blip.data.readers.plain import Plain
from ra_blip.data.readers.reading import json_lines
from ra_blip.errors import DataError
from ra_blip.images import open_image
from ra_blip.records import Item, Question, read_items, read_questions, write_jsonl
from tests.data import layouts_b as layouts


class Expected:
    """What a layout of three training records gives: splits, items, questions a split; and where its words stand."""

    def __init__(self, splits: str, items: int, questions: list[int], file: str) -> None:
        self.splits, self.items, self.file = tuple(splits.split()), items, file
        self.questions = dict(zip(self.splits, questions, strict=True))


EXPECTED = {
    "coco": Expected("train val", 6, [0, 0], "annotations/captions_train2017.json"),
    "coco-2014": Expected("train val", 6, [0, 0], "annotations/captions_train2014.json"),
    "coco-karpathy": Expected("train val test", 3, [0, 0, 0], "dataset_coco.json"),
    "nocaps": Expected("val test", 0, [0, 0], "nocaps_val_4500_captions.json"),
    "visual-genome": Expected("train", 6, [0], "region_descriptions.json"),
    "coco-lavis": Expected("train val", 6, [0, 0], "coco/annotations/coco_karpathy_train.json"),
    "nocaps-lavis": Expected("val test", 0, [0, 0], "nocap/annotations/nocaps_val.json"),
    "visual-genome-lavis": Expected("train", 3, [3], "vg/annotations/vg_caption.json"),
    "img2dataset": Expected("train", 3, [0], "00000.tar"),
    "pictures": Expected("train", 3, [0], "00000/000000001.txt"),
    "infoseek": Expected("train val", 4, [3, 3], "infoseek_train.jsonl"),
    "oven": Expected("train val test", 4, [3, 1, 1], "oven_entity_train.jsonl"),
    "encyclopedic-vqa": Expected("train val", 5, [3, 1], "train.csv"),
}
STREAMED = ("coco", "coco-2014", "coco-karpathy", "nocaps", "coco-lavis", "visual-genome", "nocaps-lavis")
STREAMED += ("visual-genome-lavis",)  # one JSON value: a byte that is not UTF-8 ends it
ALL = pytest.mark.parametrize("name", sorted(EXPECTED))


def made(name: str, root: Path, **options: bool) -> Dataset:
    layouts.WRITERS[name](root, **options)
    return probe(root)(root)


def everything(dataset: Dataset) -> int:
    """Read all of it; how many records there are."""
    count = sum(1 for _ in dataset.items())
    for split in dataset.splits:
        count += sum(1 for _ in dataset.questions(split))
        if isinstance(dataset, CaptionDataset) and split != "train":
            count += sum(1 for _ in dataset.captions(split))
    return count


def first_picture(dataset: Dataset) -> Path:
    """A picture that a record names."""
    for split in dataset.splits:
        records: Any = dataset.captions(split) if isinstance(dataset, CaptionDataset) else dataset.questions(split)
        for record in records:
            return Path(record.image)
    raise AssertionError


@ALL
def test_a_layout_is_told_by_its_files_and_read_whole(name: str, tmp_path: Path) -> None:
    dataset, expected = made(name, tmp_path), EXPECTED[name]
    assert dataset.name == name and dataset.splits == expected.splits
    items = list(dataset.items())
    assert len({item.id for item in items}) == len(items) == expected.items
    questions = {split: list(dataset.questions(split)) for split in dataset.splits}
    assert {split: len(found) for split, found in questions.items()} == expected.questions
    assert dataset.problems.counts == {}
    with pytest.raises(DataError, match=f"{name} has no split 'dev' here"):
        list(dataset.questions("dev"))
    ids = [question.id for found in questions.values() for question in found]
    assert len(ids) == len(set(ids))


@ALL
def test_check_names_the_layout_and_opens_every_picture(name: str, tmp_path: Path) -> None:
    layouts.WRITERS[name](tmp_path)
    found = check(tmp_path)
    assert (found.layout, found.problems.messages) == (name, [])
    assert found.opened == found.pictures >= 3


@ALL
def test_a_missing_picture_is_counted_and_its_records_are_left_out(name: str, tmp_path: Path) -> None:
    whole = everything(made(name, tmp_path))
    if name == "img2dataset":
        key = "000000002"
        layouts.tar_of(tmp_path / "00000.tar", [(f"{key}.json", b"{}"), ("000000001.jpg", layouts.encoded())])
        (tmp_path / "00000_stats.json").unlink()
    else:
        first_picture(probe(tmp_path)(tmp_path)).unlink()
    dataset = probe(tmp_path)(tmp_path)
    left = everything(dataset)
    assert left < whole
    # a picture that is gone from a folder of pictures was never there; LAVIS's Visual Genome also asks about it
    times = {"pictures": 0, "visual-genome-lavis": 2}.get(name, 1)
    assert dataset.problems.total == dataset.problems.counts["missing image"] == times


@ALL
def test_a_repeated_record_is_counted_and_left_out(name: str, tmp_path: Path) -> None:
    whole = everything(made(name, tmp_path / "whole"))
    dataset = made(name, tmp_path / "again", again=True)
    assert everything(dataset) == whole
    repeatable = name in ("coco-lavis", "nocaps-lavis", "pictures", "encyclopedic-vqa")  # their ids cannot repeat
    twice = {"duplicate id": 2} if name == "infoseek" else {"duplicate id": 1}
    assert dataset.problems.counts == ({} if repeatable else twice)
    if not repeatable:
        with pytest.raises(DataError, match=r"used before|given before"):
            everything(READERS[name](tmp_path / "again", strict=True))


@ALL
def test_a_record_without_words_is_counted_and_left_out(name: str, tmp_path: Path) -> None:
    whole = everything(made(name, tmp_path / "whole"))
    dataset = made(name, tmp_path / "empty", empty=True)
    left = everything(dataset)
    if isinstance(dataset, CaptionDataset):
        assert dataset.problems.counts["empty caption"] >= 1
        bare = name in ("img2dataset", "pictures")  # there, a picture without a caption is an item
        assert left == whole if bare else left < whole
        assert bare or dataset.problems.counts["no caption"] == 1
    else:
        assert left < whole and set(dataset.problems.counts) == {"empty answer"}


@ALL
def test_bytes_that_are_not_utf8_cost_their_record_or_are_an_error_that_names_the_file(
    name: str, tmp_path: Path
) -> None:
    whole = everything(made(name, tmp_path))
    path = tmp_path / EXPECTED[name].file
    data = path.read_bytes()
    words = "café".encode()
    assert words in data
    path.write_bytes(data.replace(words, b"caf\xff\xff", 1))
    dataset = probe(tmp_path)(tmp_path)
    if name in STREAMED:
        with pytest.raises(DataError, match=rf"{path.name}, at or after line \d+: not UTF-8"):
            everything(dataset)
        assert check(tmp_path).problems.counts["unreadable file"] >= 1
    else:
        assert everything(dataset) < whole and dataset.problems.counts == {"not UTF-8": 1}


@ALL
@pytest.mark.parametrize("kind", sorted(layouts.ODD_PICTURES))
def test_palette_cmyk_16_bit_and_animated_pictures_are_read(name: str, kind: str, tmp_path: Path) -> None:
    data = layouts.ODD_PICTURES[kind]
    if name == "img2dataset":
        layouts.tar_of(tmp_path / "00000.tar", [("0.jpg", data), ("0.txt", b"words")])
    else:
        layouts.WRITERS[name](tmp_path)
        first_picture(probe(tmp_path)(tmp_path)).write_bytes(data)
    assert check(tmp_path).problems.messages == []
    picture = open_image(str(first_picture(probe(tmp_path)(tmp_path))))
    assert (picture.mode, picture.size) == ("RGB", (4, 4))


def test_captions_and_references_of_coco(tmp_path: Path) -> None:
    dataset = made("coco", tmp_path)
    assert isinstance(dataset, CaptionDataset)
    assert next(dataset.items()) == Item("1.0", "café number 1", image=str(tmp_path / "train2017/000000000001.jpg"))
    assert [item.id for item in dataset.captions("val")] == ["4.0", "4.1"]
    assert list(dataset.references("val")) == [{"id": "4", "answers": ["café number 4"] * 2}]
    (tmp_path / "annotations/captions_val2014.json").write_text("{}")
    assert probe(tmp_path)(tmp_path).name == "coco", "2014 is not mixed in"


def test_a_cut_of_coco_and_captions_of_unknown_pictures(tmp_path: Path) -> None:
    layouts.put(tmp_path / "images" / "a.jpg")
    value = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2}], "annotations": [{"image_id": 1, "caption": "a"}]}
    value["annotations"] += [{"image_id": 7, "caption": "b"}, {"caption": "c"}]
    layouts.put_json(tmp_path / "captions.json", value)
    dataset = probe(tmp_path)(tmp_path)
    assert dataset.name == "captions" and [item.id for item in dataset.items()] == ["1"]
    assert dataset.problems.counts == {"malformed record": 2, "unknown picture": 1}


def test_pictures_do_not_lie_outside_the_data_set(tmp_path: Path) -> None:
    layouts.put(tmp_path / "secret.jpg")
    images = [{"id": n, "file_name": name} for n, name in enumerate(["../../secret.jpg", str(tmp_path / "secret.jpg")])]
    captions = [{"image_id": n, "caption": "x"} for n in range(2)]
    layouts.put_json(tmp_path / "set" / "captions.json", {"images": images, "annotations": captions})
    dataset = open_dataset(tmp_path / "set", "captions")
    assert list(dataset.items()) == [] and dataset.problems.counts == {"missing image": 2}


@pytest.mark.parametrize("name", ["x" * 300 + "/a.jpg", "a\0/a.jpg"])
def test_a_picture_whose_name_no_file_can_have_is_missing(name: str, tmp_path: Path) -> None:
    value = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "x"}]}
    layouts.put_json(tmp_path / "coco" / "captions.json", value)
    asked = {"question_id": "q", "question": "?", "image": name}
    layouts.put_json(tmp_path / "lavis" / "aokvqa" / "annotations" / "aokvqa_v1p0_test.json", [asked])
    write_jsonl(tmp_path / "plain" / "items.jsonl", [{"id": "1", "image": name}])
    captions, questions, items = (open_dataset(tmp_path / one) for one in ("coco", "lavis", "plain"))
    assert [*captions.items(), *questions.questions("test"), *items.items()] == []
    assert [one.problems.counts for one in (captions, questions, items)] == [{"missing image": 1}] * 3


def test_nocaps_reports_its_domains_and_keeps_its_test_captions(tmp_path: Path) -> None:
    dataset = made("nocaps", tmp_path)
    assert [one["category"] for one in dataset.references("val")] == ["in-domain", "near-domain", "out-domain"]
    assert list(dataset.references("test")) == [{"id": "9", "answers": []}]
    lavis = made("nocaps-lavis", tmp_path / "lavis")
    assert [one["id"] for one in lavis.references("val")] == ["101", "102", "103"]


def test_lavis_visual_genome_has_questions_without_gold(tmp_path: Path) -> None:
    question = next(iter(made("visual-genome-lavis", tmp_path).questions("train")))
    assert question == Question("1", "What is 1?", str(tmp_path / "vg/images/VG_100K/1.jpg"), ("answer 1",))


def test_infoseek_golds_kinds_ranges_and_parts(tmp_path: Path) -> None:
    dataset = made("infoseek", tmp_path)
    first = next(iter(dataset.questions("train")))
    assert (first.gold, first.answers, first.category) == (("Q0",), ("answer 1", "the answer 1"), None)
    items = {item.id: item for item in dataset.items()}
    assert items["Q1"] == Item("Q1", "Content 1.", "Title 1") and items["Q3"].text == "Content 3. And more."
    found = list(dataset.references("val"))
    assert [one["kind"] for one in found] == ["string", "time", "numerical"]
    assert [one["split"] for one in found] == ["unseen_question", "unseen_entity", "unseen_entity"]
    assert found[2]["range"] == [3.6, 4.4] and "range" not in found[1]


def test_infoseek_pictures_by_the_list_of_paths(tmp_path: Path) -> None:
    made("infoseek", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "01/oven_01000001.jpg").rename(tmp_path / "mine/one.jpg")
    listed = [{"image_id": "other", "image_path": "é.jpg"}, {"image_id": "oven_01000001", "image_path": "mine/one.jpg"}]
    layouts.put_lines(tmp_path / "id2image.jsonl", listed)
    images = [question.image for question in InfoSeek(tmp_path).questions("train")]
    assert images == [str(tmp_path / "mine/one.jpg"), *(str(tmp_path / f"0{n}/oven_0{n}00000{n}.jpg") for n in (2, 3))]


def test_infoseek_without_knowledge_and_golds_says_so(tmp_path: Path) -> None:
    made("infoseek", tmp_path)
    for name in ("Wiki6M_ver_1_0.jsonl", "infoseek_train_withkb.jsonl"):
        (tmp_path / name).unlink()
    dataset = InfoSeek(tmp_path)
    assert list(dataset.items()) == [] and {q.gold for q in dataset.questions("train")} == {()}
    assert dataset.problems.counts == {"missing file": 2}


def test_a_training_question_that_validates_is_left_out(tmp_path: Path) -> None:
    made("infoseek", tmp_path)
    line = (tmp_path / "infoseek_val.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[0]
    with (tmp_path / "infoseek_train.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    dataset = InfoSeek(tmp_path)
    assert len(list(dataset.questions("train"))) == 3 and dataset.problems.counts == {"evaluation id": 1}


def test_oven_asks_for_the_entity(tmp_path: Path) -> None:
    dataset = made("oven", tmp_path)
    assert isinstance(dataset, OVEN)
    found = {question.id: question for split in dataset.splits for question in dataset.questions(split)}
    assert found["oven_query_train_00000003"].gold == ("Q3",)
    assert found["oven_query_train_00000003"].answers == ("Title 3",)
    assert found["oven_entity_test_00000005"].answers == found["oven_entity_test_00000005"].gold == ()


def test_encyclopedic_vqa_sections_golds_and_pictures(tmp_path: Path) -> None:
    dataset = made("encyclopedic-vqa", tmp_path)
    url = "https://en.wikipedia.org/wiki/"
    items = {item.id: item for item in dataset.items()}
    assert list(items) == [f"{url}A#0", f"{url}A#1", f"{url}B#0", f"{url}B#1", f"{url}B#2"], "no item without text"
    assert items[f"{url}B#2"] == Item(f"{url}B#2", "Use: Tea.", "Title B") and items[f"{url}A#0"].text == "First words."
    train = {question.id: question for question in dataset.questions("train")}
    assert list(train) == ["train-0.0", "train-0.1", "train-1"]
    assert train["train-0.0"].image == str(tmp_path / "inaturalist/train/00001_x/seven.jpg")
    assert train["train-1"].gold == (f"{url}A#0", f"{url}B#2") and train["train-1"].category == "2_hop"
    (val,) = dataset.questions("val")
    assert (val.id, val.answers) == ("val-0", ("a, b", "a, c"))
    (reference,) = dataset.references("val")
    assert (reference["answers"], reference["kind"]) == (["a&&b", "a&&c"], "multi_answer")


def test_encyclopedic_vqa_with_the_published_lists_of_inaturalist(tmp_path: Path) -> None:
    made("encyclopedic-vqa", tmp_path)
    (tmp_path / "inaturalist/train_id2name.json").unlink()
    images = [{"id": n, "width": 4, "file_name": f"train/00001_x/{n}.jpg"} for n in (6, 7, 8)]
    layouts.put_json(tmp_path / "inaturalist/train.json", {"info": {}, "images": images, "annotations": []})
    dataset = EncyclopedicVQA(tmp_path)
    assert [question.id for question in dataset.questions("train")] == ["train-0.1", "train-1"]
    assert dataset.problems.counts == {"missing image": 1}


def test_encyclopedic_vqa_rows_that_are_no_rows(tmp_path: Path) -> None:
    made("encyclopedic-vqa", tmp_path)
    with (tmp_path / "val.csv").open("a") as file:
        file.write("a,b\n")
    dataset = EncyclopedicVQA(tmp_path)
    assert len(list(dataset.questions("val"))) == 1 and dataset.problems.counts == {"malformed record": 1}
    (tmp_path / "val.csv").write_text("question,answer\n")
    with pytest.raises(DataError, match=r"val\.csv, line 1: no column 'dataset_image_ids'"):
        list(EncyclopedicVQA(tmp_path).questions("val"))


# ---------------------------------------------------------------- shards and folders of pictures


def test_shards_of_other_makers_and_shards_that_are_damaged(tmp_path: Path) -> None:
    members = [(f"a/{n}.PNG", layouts.encoded("PNG")) for n in range(2)]
    layouts.tar_of(tmp_path / "x.tar", [members[0], ("a/0.json", b'{"caption": "words"}'), members[1]])
    dataset = open_dataset(tmp_path, "img2dataset")
    zero, one = (f"{tmp_path}/x.tar#a/{n}.PNG" for n in range(2))
    assert list(dataset.items()) == [Item("a/0", "words", image=zero), Item("a/1", image=one)]
    assert isinstance(dataset, CaptionDataset) and [item.id for item in dataset.captions("train")] == ["a/0"]
    assert open_image(zero).size == (4, 4)
    data = (tmp_path / "x.tar").read_bytes()
    for cut in (data[:700], data[:1400], data[:512] + bytes([9]) * 512 + data[1024:1536] + b"x" * 512):
        (tmp_path / "x.tar").write_bytes(cut)
        dataset = open_dataset(tmp_path, "img2dataset")
        list(dataset.items())
        assert dataset.problems.counts["damaged shard"] == 1, len(cut)


def test_lost_samples_are_told_by_the_statistics_beside_a_shard(tmp_path: Path) -> None:
    layouts.img2dataset(tmp_path)
    layouts.put_json(tmp_path / "00000_stats.json", {"successes": 64})
    dataset = open_dataset(tmp_path)
    assert len(list(dataset.items())) == 3
    assert dataset.problems.messages == [f"{tmp_path}/00000.tar: 2 pictures, written were 64"]


def test_links_in_a_shard_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    dataset = open_dataset(tmp_path)
    assert list(dataset.items()) == [] and dataset.problems.counts == {"damaged shard": 1}


def test_a_second_member_of_a_key_is_said_and_other_members_are_not_read(tmp_path: Path) -> None:
    first, second = layouts.encoded("PNG"), layouts.encoded()
    members = [("a.png", first), ("a.png", second), ("a.txt", "\ufeffwords\r\n".encode()), ("a.npy", b"0" * 99)]
    layouts.tar_of(tmp_path / "x.tar", members)
    dataset = open_dataset(tmp_path)
    assert [item.text for item in dataset.items()] == ["words"]  # without Windows's mark and line end
    assert dataset.problems.messages == [f"{tmp_path}/x.tar#a: a second member .png; the first one stays"]


def test_linked_folders_are_followed_once_and_odd_names_are_said(tmp_path: Path) -> None:
    layouts.put(tmp_path / "set/train/a.jpg")
    layouts.put(tmp_path / "far/b.jpg")
    (tmp_path / "far/b.txt").write_bytes(b"\xef\xbb\xbfwords\r\n")
    (tmp_path / "set/train/linked").symlink_to(tmp_path / "far")
    (tmp_path / "set/train/round").symlink_to(tmp_path / "set/train")
    (tmp_path / "set/train/nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "set/train") + b"/\xff.jpg")).write_bytes(layouts.encoded())
    dataset = open_dataset(tmp_path / "set")
    assert [(item.id, item.text) for item in dataset.items()] == [
        ("train/a.jpg", None),
        ("train/linked/b.jpg", "words"),
    ]
    assert dataset.problems.counts == {"missing image": 1, "not UTF-8": 1}


def test_a_folder_of_pictures_with_splits_and_other_formats(tmp_path: Path) -> None:
    for name in ("train/b/2.png", "train/a/1.JPG", "val/3.webp", "train/.hidden.jpg", "train/a/4.gif"):
        layouts.put(tmp_path / name)
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.splits) == ("pictures", ("train", "val"))
    assert [item.id for item in dataset.items()] == ["train/a/1.JPG", "train/b/2.png"]
    assert dataset.problems.counts == {"unknown format": 1}


def test_compressed_lines_that_are_cut_are_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"id": %d}\n' % number for number in range(3000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    problems = Problems()
    assert [value["id"] for _, value in json_lines(tmp_path / "a.jsonl.gz", problems)] == list(range(3000))
    for damaged in (whole[: len(whole) // 2], b"no gzip", whole[:40] + bytes(40) + whole[80:]):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
            list(json_lines(tmp_path / "a.jsonl.gz", problems))


# ---------------------------------------------------------------- this package's own files, probing, writing


def test_plain_files_and_their_splits(tmp_path: Path) -> None:
    layouts.put(tmp_path / "a.jpg")
    write_jsonl(tmp_path / "items.jsonl", [Item("a", "x"), Item("b", image=str(tmp_path / "a.jpg")), Item("a", "y")])
    write_jsonl(tmp_path / "train_questions.jsonl", [Question("q", "Who?", str(tmp_path / "none.jpg"))])
    write_jsonl(tmp_path / "questions.jsonl", [Question("r", "Who?", answers=(" ",)), Question("s", "Why?")])
    with (tmp_path / "items.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "c", "image": "C#.jpg"}\n{"id": "d", "image": "x.tar#a.jpg"}\n')
    dataset = probe(tmp_path)(tmp_path)
    assert isinstance(dataset, Plain) and dataset.splits == ("train", "test")
    assert [item.id for item in dataset.items()] == ["a", "b"]
    assert [q.id for split in dataset.splits for q in dataset.questions(split)] == ["s"]
    assert dataset.problems.counts == {"duplicate id": 1, "missing image": 3, "empty answer": 1}


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    dataset = made("infoseek", tmp_path / "in")
    counts = write(dataset, tmp_path / "out")
    assert counts == {
        "items.jsonl": 4,
        "train_questions.jsonl": 3,
        "val_questions.jsonl": 3,
        "val_references.jsonl": 3,
    }
    assert read_items(tmp_path / "out/items.jsonl") == list(dataset.items())
    assert read_questions(tmp_path / "out/val_questions.jsonl") == list(dataset.questions("val"))
    lines = (tmp_path / "out/val_references.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(dataset.references("val"))


def test_a_folder_of_several_layouts_and_one_of_none(tmp_path: Path) -> None:
    for name in ("coco-lavis", "visual-genome-lavis"):
        layouts.WRITERS[name](tmp_path)
    assert [one.name for one in recognised(tmp_path)] == ["coco-lavis", "visual-genome-lavis", "pictures"]
    assert check(tmp_path).also == ["visual-genome-lavis"]
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare: no data set that is known here; looked for webqa, .*pictures"):
        probe(tmp_path / "bare")
    with pytest.raises(DataError, match="bare: not the layout 'coco'"):
        open_dataset(tmp_path / "bare", "coco")
    with pytest.raises(DataError, match="none: no such folder"):
        probe(tmp_path / "none")


def test_every_reader_is_listed_under_its_name() -> None:
    assert {name: reader.name for name, reader in READERS.items()} == {name: name for name in READERS}


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the real data are absent")
def test_the_real_data_sets_are_read_whole() -> None:
    root = Path(os.environ["RA_BLIP_SHARED"]) / "data"
    coco = open_dataset(root / "coco_free_subset")
    items = list(coco.items())
    assert (coco.name, len(items), len({item.image for item in items})) == ("captions", 165, 33)
    grocery = open_dataset(root / "grocery_store")
    assert grocery.name == "grocery" and sum(item.image is not None for item in grocery.items()) == 2640
    assert len({q.image for q in grocery.questions("test") if q.image}) == 296
    flags = open_dataset(root / "country_flags")
    assert flags.name == "flags" and sum(item.image is not None for item in flags.items()) == 120
    assert coco.problems.total == grocery.problems.total == flags.problems.total == 0
