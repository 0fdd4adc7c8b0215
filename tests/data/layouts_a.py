"""Small data sets in the exact form in which WebQA, MultimodalQA, VQAv2, OK-VQA and A-OKVQA lie on users' disks."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Raw = dict[str, Any]
GUID = "d5bbc7c80dba11ecb1e8117146328{:03}"
FIRST = 30_000_000  # WebQA's first image id


def jpeg(shade: int = 128) -> bytes:
    """A grey picture of 2 x 2 pixels."""
    out = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, shade, shade)).save(out, "JPEG")
    return out.getvalue()


GREYS = [jpeg(shade) for shade in range(3)]


def write_json(path: Path, value: Any) -> None:
    """One JSON value on one line, as ``json.dump`` leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """JSON lines, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{json.dumps(value)}\n" for value in values).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_picture(path: Path) -> None:
    """A JPEG (by content; RagVL's pictures are called ``.png`` whatever they are)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())


# ---------------------------------------------------------------- WebQA


def image_fact(number: int, **other: Any) -> Raw:
    """A picture as WebQA names it."""
    return {
        "image_id": FIRST + number,
        "title": f"Title {number}",
        "caption": f'"Caption {number}"\r',
        "url": f"https://commons.wikimedia.org/wiki/{number}",
        "imgUrl": f"https://upload.wikimedia.org/{number}.jpg",
        **other,
    }


def text_fact(guid: str, number: int, **other: Any) -> Raw:
    """A snippet as WebQA names it."""
    fact = {"snippet_id": f"{guid}_{number}", "fact": f"Fact {number} of {guid[-3:]}.", "title": f"Page {number}"}
    return {**fact, "url": f"https://en.wikipedia.org/wiki/{number}", **other}


def webqa_record(number: int, split: str, category: str, **other: Any) -> tuple[str, Raw]:
    """(guid, record): an image question over pictures 0 and 1, or a text question over its own snippets."""
    guid = GUID.format(number)
    text = category == "text"
    record = {
        "Guid": guid,
        "split": split,
        "Qcate": category,
        "Q": f'"Question {number}?"',
        "A": [f'"Answer {number}."'],
        "Keywords_A": "TBD" if text else f"Answer {number}",
        "img_posFacts": [] if text else [image_fact(0)],
        "img_negFacts": [image_fact(1)],
        "txt_posFacts": [text_fact(guid, 0), text_fact(guid, 1)] if text else [],
        "txt_negFacts": [text_fact(guid, 2)],
    }
    return guid, {**record, **other}


def webqa_test_record(number: int) -> tuple[str, Raw]:
    """(guid, record) of the hidden split: no answers, candidates not divided."""
    guid = GUID.format(number)
    facts = {"img_Facts": [image_fact(2)], "txt_Facts": [text_fact(guid, 0)]}
    return guid, {"Guid": guid, "split": "test", "Qcate": "color", "Q": f"Question {number}?", **facts}


def write_webqa(root: Path, records: Iterable[tuple[str, Raw]], hidden: Iterable[tuple[str, Raw]] = ()) -> None:
    """The two JSON files, each one object."""
    write_json(root / "WebQA_train_val.json", dict(records))
    if found := dict(hidden):
        write_json(root / "WebQA_test.json", found)


def write_tsv(root: Path, pictures: Sequence[bytes], columns: int = 1) -> list[int]:
    """``imgs.tsv`` with its line index of one column, or UniVL-DR's of two; gives the offsets."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"{FIRST + number}\t{base64.b64encode(data).decode()}\n" for number, data in enumerate(pictures)]
    offsets = [sum(map(len, rows[:number])) for number in range(len(rows))]
    (root / "imgs.tsv").write_text("".join(rows), encoding="utf-8")
    if columns == 1:
        (root / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets), encoding="utf-8")
    else:
        lines = [f"{FIRST + number}\t{offset}\n" for number, offset in enumerate(offsets)]
        (root / "imgs.lineidx.new").write_text("".join(lines), encoding="utf-8")
    return offsets


def univldr_record(number: int, images: list[int], texts: list[str], **other: Any) -> Raw:
    """A question as UniVL-DR's ``process_data`` leaves it; the first of each list is gold."""
    return {
        "qid": GUID.format(number),
        "Q": f"Question {number}?",
        "A": [f"Answer {number}."],
        "img_posFacts": [str(FIRST + image) for image in images[:1]],
        "img_negFacts": [str(FIRST + image) for image in images[1:]],
        "txt_negFacts": texts[1:],
        "txt_posFacts": texts[:1],
        **other,
    }


def write_univldr(root: Path) -> None:
    """All files: two questions to train with, one each for dev and test, three snippets and three pictures."""
    own = GUID.format(1)
    texts = [f"{own}_{number}" for number in range(3)]
    write_lines(root / "all_docs.json", [text_fact(own, number) for number in range(3)])
    images = [{"title": f"Title {n}", "caption": f"Caption {n}", "image_id": FIRST + n} for n in range(3)]
    write_lines(root / "all_imgs.json", images)
    write_lines(root / "train.json", [univldr_record(1, [], texts), univldr_record(2, [0, 1], texts[1:2])])
    write_lines(root / "dev.json", [univldr_record(3, [1, 2], [])])
    write_lines(root / "test.json", [univldr_record(4, [2, 0], [])])
    write_tsv(root, GREYS, columns=2)


def write_ragvl_webqa(root: Path) -> None:
    """Image questions of three splits, captions, and pictures as files."""
    for split, number, own in (("train", 1, "train"), ("dev", 2, "train"), ("test", 3, "val")):
        guid, record = webqa_record(number, own, "color", EM="red")
        record["img_posFacts"] = [{"image_id": FIRST + number, "title": f"Title {number}"}]
        record["img_negFacts"] = []
        write_json(root / f"datasets/WebQA_{split}_image.json", {guid: record})
    write_json(root / "datasets/WebQA_caption_train_dev.json", {str(FIRST + 1): "Caption 1", str(FIRST + 2): "Two"})
    write_json(root / "datasets/WebQA_caption_test.json", {str(FIRST + 3): "Caption 3"})
    for number in (1, 2):
        write_picture(root / f"finetune/tasks/train_img/{FIRST + number}.png")
    write_picture(root / f"datasets/val_image/{FIRST + 3}.png")


# ---------------------------------------------------------------- MultimodalQA


def mmqa_answer(answer: Any, modality: str, rows: Iterable[int] = ()) -> Raw:
    """One answer with its cells, of column 1."""
    cells = [[row, 1] for row in rows]
    places = {"text_instances": [], "table_indices": cells, "image_instances": []}
    return {"answer": answer, "type": "string", "modality": modality, **places}


def mmqa_question(name: str, kind: str, answers: list[Raw] | None, support: dict[str, str], **metadata: Any) -> Raw:
    """A question over the texts t1, t2, the pictures p1, p2 and the table tab; ``support`` is id -> part."""
    about = {
        "wiki_entities_in_question": [],
        "wiki_entities_in_answers": [],
        "type": kind,
        "modalities": sorted(set(support.values())),
        "image_doc_ids": ["p1", "p2"],
        "text_doc_ids": ["t1", "t2"],
        "intermediate_answers": [],
        "table_id": "tab",
        **metadata,
    }
    asked = {"qid": name, "question": f"Question {name}?"}
    if answers is None:
        return {**asked, "metadata": about}
    context = [{"doc_id": document, "doc_part": part} for document, part in support.items()]
    return {**asked, "answers": answers, "metadata": about, "supporting_context": context}


MMQA_TEXTS = [
    {"title": f"Page {n}", "url": f"https://en.wikipedia.org/wiki/Page_{n}", "id": f"t{n}", "text": f"Text {n}."}
    for n in (1, 2)
]
MMQA_TABLE = {
    "title": "Ben Piazza",
    "url": "https://en.wikipedia.org/wiki/Ben_Piazza",
    "id": "tab",
    "table": {
        "table_name": "Filmography",
        "header": [{"column_name": name, "metadata": {}} for name in ("Year", "Title", "Role")],
        "table_rows": [
            [{"text": text, "links": []} for text in row]
            for row in (("1976", "The Bad News Bears", "Bob Whitewood"), ("1985", "Mask", ""), ("1988", "Clean", "Dr."))
        ],
    },
}
MMQA_IMAGES = [
    {"title": f"Picture {n}", "url": f"https://en.wikipedia.org/wiki/P{n}", "id": f"p{n}", "path": f"p{n}.jpg"}
    for n in (1, 2)
]


def write_mmqa(root: Path, ending: str, train: list[Raw], dev: list[Raw], test: list[Raw]) -> None:
    """The six files, with ``ending`` ``.jsonl`` or ``.jsonl.gz``, and the pictures."""
    parts = {"train": train, "dev": dev, "test": test}
    knowledge = {"texts": MMQA_TEXTS, "tables": [MMQA_TABLE], "images": MMQA_IMAGES}
    for name, records in {**parts, **knowledge}.items():
        write_lines(root / f"MMQA_{name}{ending}", records)
    for image in MMQA_IMAGES:
        write_picture(root / "final_dataset_images" / image["path"])


def write_ragvl_mmqa(root: Path) -> None:
    """Image questions of three splits (arrays of official records) and the pictures' metadata."""
    for split, number in (("train", 1), ("dev", 2), ("test", 3)):
        question = mmqa_question(f"q{number}", "ImageQ", [mmqa_answer("red", "image")], {"p1": "image"})
        write_json(root / f"datasets/MMQA_{split}_image.json", [question])
    metadata = {"p1": {**MMQA_IMAGES[0], "caption": "A red door"}, "p2": MMQA_IMAGES[1]}
    write_json(root / "datasets/MMQA_ImageQ_metadata.json", metadata)
    for image in MMQA_IMAGES:
        write_picture(root / "finetune/tasks/MMQA_imgs" / image["path"])


# ---------------------------------------------------------------- VQAv2, OK-VQA, A-OKVQA


TEN = ["net", "net", "net", "mesh", "net", "net", "a net", "net", "mesh", "net"]


def vqa_questions(subset: str, ids: Iterable[int]) -> Raw:
    """A question file; question n is about picture n."""
    asked = [{"image_id": number, "question": f"Question {number}?", "question_id": number} for number in ids]
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {"name": "CC"}}
    return {**head, "data_subtype": subset, "questions": asked}


def vqa_annotations(subset: str, ids: Iterable[int], **more: Any) -> Raw:
    """An annotation file with :data:`TEN` as the answers."""
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(TEN, 1)]
    annotations = [
        {
            "question_type": "four",
            "multiple_choice_answer": "net",
            "answers": answers,
            "image_id": number,
            "answer_type": "other",
            "question_id": number,
        }
        for number in ids
    ]
    head = {"info": {"version": "2.0"}, "license": {"name": "CC"}, "data_subtype": subset, "data_type": "mscoco"}
    return {**head, "annotations": annotations, **more}


def write_coco(folder: Path, subset: str, ids: Iterable[int]) -> None:
    """COCO's pictures of a subset, under the names of 2014/2015 or of 2017."""
    for number in ids:
        name = f"{number:012}.jpg" if subset.endswith("2017") else f"COCO_{subset}_{number:012}.jpg"
        write_picture(folder / subset / name)


def write_vqa(root: Path, prefix: str, subsets: dict[str, list[int]]) -> None:
    """Question and annotation files of the subsets (none of 2015), and the pictures beside them."""
    more = {} if prefix else {"question_types": {"four": "Sports and Recreation", "other": "Other"}}
    for subset, ids in subsets.items():
        write_json(root / f"{prefix}OpenEnded_mscoco_{subset}_questions.json", vqa_questions(subset, ids))
        if not subset.endswith("2015"):
            write_json(root / f"{prefix}mscoco_{subset}_annotations.json", vqa_annotations(subset, ids, **more))
        write_coco(root, subset, ids)


def lavis_entry(number: int, image: str, answered: bool) -> Raw:
    """A question of LAVIS's annotation files."""
    entry = {"question_id": number, "question": f"Question {number}?", "image": image, "dataset": "vqa"}
    return {**entry, "answer": TEN} if answered else entry


def write_lavis(root: Path) -> None:
    """A LAVIS cache with VQAv2 (questions 1, 2, 3), OK-VQA (4, 5) and A-OKVQA (6, 7)."""
    train, val, test = (f"{s}/COCO_{s}_{n:012}.jpg" for s, n in (("train2014", 1), ("val2014", 2), ("test2015", 3)))
    coco, okvqa = root / "coco/annotations", root / "okvqa/annotations"
    write_json(coco / "vqa_train.json", [lavis_entry(1, train, True)])
    write_json(coco / "vqa_val.json", [lavis_entry(2, val, True)])
    write_json(coco / "vqa_val_eval.json", [lavis_entry(2, val, False)])
    write_json(coco / "vqa_test.json", [lavis_entry(3, test, False)])
    write_json(coco / "v2_mscoco_val2014_annotations.json", vqa_annotations("val2014", [2]))
    write_json(okvqa / "okvqa_train.json", [lavis_entry(4, train, True)])
    write_json(okvqa / "vqa_val_eval.json", [lavis_entry(5, val, False)])
    types = {"question_types": {"four": "Sports and Recreation"}}
    write_json(okvqa / "mscoco_val2014_annotations.json", vqa_annotations("val2014", [5], **types))
    for split, number in (("train", 6), ("val", 7)):
        entry = {**aokvqa_entry(split, number), "image": f"{split}2017/{number:012}.jpg"}
        write_json(root / f"aokvqa/annotations/aokvqa_v1p0_{split}.json", [entry])
        write_coco(root / "coco/images", f"{split}2017", [number])
    for subset, number in (("train2014", 1), ("val2014", 2), ("test2015", 3)):
        write_coco(root / "coco/images", subset, [number])


def aokvqa_entry(split: str, number: int) -> Raw:
    """A question of A-OKVQA; those of ``test`` have neither answers nor the right choice."""
    entry = {
        "split": split,
        "image_id": number,
        "question_id": f"22MexNkBPpdZGX6sxbx{number:03}",
        "question": f"Question {number}?",
        "choices": ["skateboard", "net", "train", "cab"],
        "correct_choice_idx": 1,
        "direct_answers": TEN,
        "difficult_direct_answer": False,
        "rationales": ["One.", "Two.", "Three."],
    }
    hidden = ("correct_choice_idx", "direct_answers", "rationales")
    return {key: value for key, value in entry.items() if split != "test" or key not in hidden}


def write_aokvqa(root: Path, splits: dict[str, list[int]]) -> None:
    """The files of the splits, and the pictures of COCO 2017 beside them."""
    for split, ids in splits.items():
        write_json(root / f"aokvqa_v1p0_{split}.json", [aokvqa_entry(split, number) for number in ids])
        write_coco(root, f"{split}2017", ids)
