"""Small data sets in the exact form in which caption sets, InfoSeek, OVEN, Encyclopedic-VQA and tar shards lie on disk.

Each writer takes the folder and makes three training pictures (or rows) and, where the data set has such a split, one
to validate with. ``again`` repeats the first record; ``empty`` takes the words from the first record.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

Raw = dict[str, Any]


def encoded(kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture of 4 x 4 pixels."""
    out = io.BytesIO()
    Image.new(mode, (4, 4), 1).save(out, kind, **options)
    return out.getvalue()


ODD_PICTURES = {  # what users' folders hold under the name of a JPEG
    "palette": encoded("PNG", "P"),
    "cmyk": encoded("JPEG", "CMYK"),
    "16 bit": encoded("PNG", "I;16"),
    "animated": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), 200)]),
}


def put(path: Path, data: bytes | None = None) -> None:
    """A file, a JPEG by default, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if data is None else data)


def put_json(path: Path, value: Any) -> None:
    """One JSON value; letters as UTF-8, as they are published."""
    put(path, json.dumps(value, ensure_ascii=False).encode())


def put_lines(path: Path, values: Iterable[Any]) -> None:
    """JSON lines."""
    put(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def said(number: int, empty: bool = False) -> str:
    """A caption with a letter that is not ASCII."""
    return " " if empty else f"caf\u00e9 number {number}"


# ---------------------------------------------------------------- captions


def coco(root: Path, again: bool = False, empty: bool = False, year: str = "2017") -> None:
    """``annotations/captions_*.json``, ``train2017/``, ``val2017/``."""
    for split, numbers in (("train", [1, 2, 3]), ("val", [4])):
        name = (f"COCO_{split}2014_" if year == "2014" else "") + "{:012}.jpg"
        images = [{"license": 1, "file_name": name.format(n), "height": 4, "width": 4, "id": n} for n in numbers]
        captions = [
            {"image_id": n, "id": 10 * n + k, "caption": said(n, empty and n == 1)} for n in numbers for k in range(2)
        ]
        for image in images:
            put(root / f"{split}{year}" / str(image["file_name"]))
        images += images[:1] if again and split == "train" else []
        value = {"info": {"year": int(year)}, "images": images, "licenses": [], "annotations": captions}
        put_json(root / "annotations" / f"captions_{split}{year}.json", value)


def coco_2014(root: Path, again: bool = False, empty: bool = False) -> None:
    """As 2017, with the split in the file names."""
    coco(root, again, empty, "2014")


def karpathy(root: Path, again: bool = False, empty: bool = False) -> None:
    """``dataset_coco.json``; the third picture is ``restval``."""
    images = []
    for number, split in ((1, "train"), (2, "train"), (3, "restval"), (4, "val")):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012}.jpg"
        put(root / folder / name)
        words = said(number, empty and number == 1)
        sentence = {"tokens": words.split(), "raw": words, "imgid": number, "sentid": number}
        more = {"sentids": [number], "imgid": number, "sentences": [sentence], "cocoid": number}
        images.append({"filepath": folder, "filename": name, "split": split, **more})
    put_json(root / "dataset_coco.json", {"images": images + images[: int(again)], "dataset": "coco"})


def nocaps(root: Path, again: bool = False, empty: bool = False) -> None:
    """Validation with captions and domains, test without; no training."""
    domains = ["in-domain", "near-domain", "out-domain"]
    images = [
        {"id": n, "file_name": f"{n:016x}.jpg", "open_images_id": f"{n:016x}", "domain": domains[n]} for n in range(3)
    ]
    for image in images:
        put(root / "val" / str(image["file_name"]))
    put(root / "test" / "f.jpg")
    captions = [
        {"image_id": n, "id": 10 * n + k, "caption": said(n, empty and n == 0)} for n in range(3) for k in (0, 1)
    ]
    value = {"licenses": [], "info": {}, "images": images + images[: int(again)], "annotations": captions}
    put_json(root / "nocaps_val_4500_captions.json", value)
    hidden = {"licenses": [], "info": {}, "images": [{"id": 9, "file_name": "f.jpg", "open_images_id": "f"}]}
    put_json(root / "nocaps_test_image_info.json", hidden)


def visual_genome(root: Path, again: bool = False, empty: bool = False) -> None:
    """``region_descriptions.json``; pictures in two folders."""
    entries = []
    for number in (1, 2, 3):
        put(root / ("VG_100K_2" if number == 2 else "VG_100K") / f"{number}.jpg")
        box = {"image_id": number, "width": 2, "height": 2, "x": 0, "y": 0}
        phrases = [said(number, empty and number == 1), said(number + 10, empty and number == 1)]
        regions = [{"region_id": 10 * number + k, "phrase": phrase, **box} for k, phrase in enumerate(phrases)]
        entries.append({"id": number, "regions": regions})
    put_json(root / "region_descriptions.json", entries + entries[: int(again)])


def lavis_coco(root: Path, again: bool = False, empty: bool = False) -> None:
    """A caption an entry in training, a list elsewhere. A picture that comes again is no fault here."""
    train = []
    for number in (1, 2, 3):
        image = f"val2014/COCO_val2014_{number:012}.jpg"
        put(root / "coco" / "images" / image)
        for k in range(2):
            words = said(number + 10 * k, empty and number == 1)
            train.append({"caption": words, "image": image, "image_id": f"coco_{number}"})
    put(root / "coco/images/val2014/COCO_val2014_000000000004.jpg")
    val = [{"image": "val2014/COCO_val2014_000000000004.jpg", "caption": [said(4), said(14)]}]
    put_json(root / "coco/annotations/coco_karpathy_train.json", train)
    put_json(root / "coco/annotations/coco_karpathy_val.json", val)


def lavis_nocaps(root: Path, again: bool = False, empty: bool = False) -> None:
    """``nocaps_val.json`` with lists, ``nocaps_test.json`` without captions."""
    entries = []
    for number in (1, 2, 3):
        put(root / "nocap" / "images" / "val" / f"{number}.jpg")
        words = [said(number, empty and number == 1)] * 2
        entries.append({"image": f"val/{number}.jpg", "caption": words, "img_id": 100 + number})
    put(root / "nocap" / "images" / "test" / "9.jpg")
    put_json(root / "nocap/annotations/nocaps_val.json", entries)
    put_json(root / "nocap/annotations/nocaps_test.json", [{"image": "test/9.jpg", "img_id": 109}])


def lavis_vg(root: Path, again: bool = False, empty: bool = False) -> None:
    """``vg_caption.json`` and ``vg_qa.json``, which name pictures by a path of another machine."""
    captions, questions = [], []
    for number in (1, 2, 3):
        put(root / "vg" / "images" / "VG_100K" / f"{number}.jpg")
        image = f"/export/share/visual-genome/image/{number}.jpg"
        words = said(number, empty and number == 1)
        captions.append({"image": image, "caption": words, "image_id": f"vg_{number}", "dataset": "vg"})
        answer = [] if empty and number == 1 else [f"answer {number}"]
        asked = {"question_id": number, "question": f"What is {number}?", "answer": answer}
        questions.append({**asked, "image": image, "dataset": "vg"})
    put_json(root / "vg/annotations/vg_caption.json", captions)
    put_json(root / "vg/annotations/vg_qa.json", questions + questions[: int(again)])


def tar_of(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A shard as img2dataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


def img2dataset(root: Path, again: bool = False, empty: bool = False) -> None:
    """Two shards with their statistics; keys are not in order."""
    keys = {"00000": ["000000002", "000000001"], "00001": ["000010003", *(["000000002"] if again else [])]}
    for shard, names in keys.items():
        members: list[tuple[str, bytes]] = []
        for key in names:
            words = said(int(key[-1]), empty and key == "000000002")
            told = {"caption": words, "url": "http://x", "key": key, "status": "success", "width": 4, "height": 4}
            members += [(f"{key}.jpg", encoded()), (f"{key}.json", json.dumps(told).encode())]
            members.append((f"{key}.txt", words.encode()))
        tar_of(root / f"{shard}.tar", members)
        put_json(root / f"{shard}_stats.json", {"count": len(names) + 3, "successes": len(names)})


def picture_folder(root: Path, again: bool = False, empty: bool = False) -> None:
    """The "files" form of img2dataset, one picture captioned in its JSON file only."""
    for number in (1, 2, 3):
        key = root / "00000" / f"00000000{number}"
        put(key.with_suffix(".jpg"))
        put_json(key.with_suffix(".json"), {"caption": said(number), "key": key.name})
        if number < 3:
            put(key.with_suffix(".txt"), said(number, empty and number == 1).encode())
    put_json(root / "00000_stats.json", {"successes": 3})


# ---------------------------------------------------------------- questions


def infoseek(root: Path, again: bool = False, empty: bool = False) -> None:
    """Questions, golds, kinds, Wiki6M and pictures of the OVEN snapshot."""
    rows: dict[str, list[Raw]] = {"train": [], "val": []}
    kinds = ["String", "Time", "Numerical"]
    for split, numbers in (("train", [1, 2, 3]), ("val", [4, 5, 6])):
        for n in numbers:
            image, answer = f"oven_{n:02}00000{n}", [f"answer {n}", f"the answer {n}"]
            put(root / f"{n:02}" / f"{image}.jpg")
            counted: list[Any] = [{"wikidata": 4.0, "range": [3.6, 4.4]}] if split == "val" and n == 6 else answer
            row = {"data_id": f"infoseek_{split}_{n:08}", "image_id": image, "question": f"How is caf\u00e9 {n}?"}
            part = "val_unseen_question" if n == 4 else "val_unseen_entity"
            listed = [] if empty and n == 1 else answer
            rows[split].append(
                {**row, "answer": listed, "answer_eval": counted, "data_split": part if split == "val" else "train"}
            )
        known = [{"data_id": r["data_id"], "entity_id": f"Q{k}", "entity_text": "x"} for k, r in enumerate(rows[split])]
        put_lines(root / f"infoseek_{split}_withkb.jsonl", known)
        put_lines(root / f"infoseek_{split}.jsonl", rows[split] + (rows[split][:1] if again else []))
    told = [{"data_id": row["data_id"], "question_type": kind} for row, kind in zip(rows["val"], kinds, strict=True)]
    put_lines(root / "infoseek_val_qtype.jsonl", told)
    wiki6m(root)


def wiki6m(root: Path) -> None:
    """Four articles, one without a summary."""
    articles = [
        {
            "wikidata_id": f"Q{n}",
            "wikipedia_title": f"Title {n}",
            "wikipedia_content": f"Content {n}. And more.",
            "wikipedia_summary": None if n == 3 else f"Content {n}.",
            "wikipedia_image_url": "http://x",
        }
        for n in range(4)
    ]
    put_lines(root / "Wiki6M_ver_1_0.jsonl", articles)


def oven(root: Path, again: bool = False, empty: bool = False) -> None:
    """Entity and query questions, the test split without entities."""

    def row(part: str, split: str, n: int) -> Raw:
        image = f"oven_{n:02}00000{n}"
        put(root / "oven_images" / f"{n:02}" / f"{image}.jpg")
        name = {"data_id": f"oven_{part}_{split}_{n:08}", "image_id": image, "question": f"What is this caf\u00e9 {n}?"}
        known = {"entity_id": f"Q{n}", "entity_text": "" if empty and n == 1 else f"Title {n}"}
        return {**name, **(known if split != "test" else {}), "data_split": f"{part}_{split}"}

    train = [row("entity", "train", 1), row("entity", "train", 2)]
    put_lines(root / "oven_entity_train.jsonl", train + train[: int(again)])
    put_lines(root / "oven_query_train.jsonl", [row("query", "train", 3)])
    put_lines(root / "oven_query_val.jsonl", [row("query", "val", 0)])
    put_lines(root / "oven_entity_test.jsonl", [row("entity", "test", 5)])
    wiki6m(root)


COLUMNS = [
    *("question", "question_original", "answer", "dataset_image_ids", "dataset_name", "dataset_category_id"),
    *("question_type", "wikipedia_url", "wikipedia_title", "evidence", "evidence_section_id"),
    *("evidence_section_title", "encyclopedic_vqa_split", "wikipedia_url_used_in_train"),
]


def encyclopedic_row(split: str, **given: str) -> Raw:
    """A row with the defaults of a templated question about a landmark."""
    usual = {
        "question": "How old is this caf\u00e9?",
        "answer": "old|very old",
        "dataset_image_ids": "abc0000000000000",
        "dataset_name": "landmarks",
        "question_type": "templated",
        "wikipedia_url": "https://en.wikipedia.org/wiki/A",
        "evidence_section_id": "1",
        "encyclopedic_vqa_split": split,
    }
    return {**dict.fromkeys(COLUMNS, ""), **usual, **given}


def encyclopedic(root: Path, again: bool = False, empty: bool = False) -> None:
    """Tables, a knowledge base of two articles, iNaturalist by an id-to-path file, landmarks by their ids."""
    two_hop = {"wikipedia_url": "https://en.wikipedia.org/wiki/A|https://en.wikipedia.org/wiki/B"}
    rows = {
        "train": [
            encyclopedic_row("train", dataset_image_ids="7|8", dataset_name="inaturalist", answer="" if empty else "x"),
            encyclopedic_row("train", question_type="2_hop", evidence_section_id="0|2", **two_hop),
        ],
        "val": [encyclopedic_row("val", dataset_image_ids="abc0000000000000|abd", answer="a&&b|a&&c")],
    }
    rows["val"][0]["question_type"] = "multi_answer"
    for split, table in rows.items():
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        put(root / f"{split}.csv", out.getvalue().encode())
    pages = {
        f"https://en.wikipedia.org/wiki/{name}": {
            "title": f"Title {name}",
            "section_titles": [f"Title {name}", "History", "Nothing" if name == "A" else "Use"],
            "section_texts": ["First words.", "It is old.", "" if name == "A" else "Tea."],
            "image_urls": [],
            "image_reference_descriptions": [],
            "image_section_indices": [],
            "url": f"https://en.wikipedia.org/wiki/{name}",
        }
        for name in "AB"
    }
    put_json(root / "encyclopedic_kb_wiki.json", pages)
    put_json(root / "inaturalist" / "train_id2name.json", {"7": "train/00001_x/seven.jpg", "8": "train/00001_x/8.jpg"})
    put(root / "inaturalist/train/00001_x/seven.jpg")
    put(root / "inaturalist/train/00001_x/8.jpg")
    put(root / "landmarks/train/a/b/c/abc0000000000000.jpg")


WRITERS: dict[str, Callable[..., None]] = {
    "coco": coco,
    "coco-2014": coco_2014,
    "coco-karpathy": karpathy,
    "nocaps": nocaps,
    "visual-genome": visual_genome,
    "coco-lavis": lavis_coco,
    "nocaps-lavis": lavis_nocaps,
    "visual-genome-lavis": lavis_vg,
    "img2dataset": img2dataset,
    "pictures": picture_folder,
    "infoseek": infoseek,
    "oven": oven,
    "encyclopedic-vqa": encyclopedic,
}
