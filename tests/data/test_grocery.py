"""The grocery reader on a small folder of the public layout, and on the real one where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ra_blip.data import readers
from ra_blip.data.readers import grocery
from ra_blip.data.readers.reading import listing
from ra_blip.errors import DataError, OutputError
from ra_blip.records import by_id, read_items, read_questions

NUTRITION = {"sugars_g": 4.8, "fat_g": 3.0, "protein_g": 3.4, "salt_g": 0.1}
FACTS: list[dict[str, Any]] = [
    {"name": "Pink Lady", "coarse": "Apple", "group": "Fruit", "facts": {"approx_weight": "ca 180g"}},
    {"name": "Water Melon", "coarse": "Melon", "group": "Fruit", "facts": {"approx_weight": "ca 1.05kg"}},
    {"name": "Lime", "coarse": "Lime", "group": "Fruit", "facts": {"country_of_origin": "Brazil"}},
    {
        "name": "Good Milk",
        "coarse": "Milk",
        "group": "Packages",
        "facts": {
            "country_of_origin": "Sweden",
            "manufacturer": "Good",
            "volume": "1l",
            "nutrition_per_100g": NUTRITION,
        },
    },
    {
        "name": "Oat Drink",
        "coarse": "Milk",
        "group": "Packages",
        "facts": {"volume": "2l", "nutrition_per_100g": {"of_which_sugars_g": 9.0, "fat_g": 0.0}},
    },
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "grocery"
    entries = [{"id": number, "coarse_id": 0, **entry} for number, entry in enumerate(FACTS)]
    columns = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
    classes = [columns, *(f"{entry['name']},{entry['id']},{entry['coarse']},0" for entry in entries)]
    for split, count in (("train", 3), ("val", 2)):
        lines = []
        for entry in entries:
            for number in range(1, count + 1):
                path = f"{split}/{entry['group']}/{entry['name'].replace(' ', '-')}_{number}.jpg"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (2, 2)).save(folder / path)
                lines.append(f"{path}, {entry['id']}, 0")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "classes.csv").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_items_hold_training_photographs_and_facts(root: Path) -> None:
    items = by_id(grocery.read(root, keys=list(grocery.FACTS)).items)
    photos = [item for item in items.values() if item.image]
    assert len(photos) == 15 and all(f"{root}/train/" in str(item.image) for item in photos)
    assert items["pink-lady.photo-2"].text == "a photo of Pink Lady"
    assert items["pink-lady.photo-2"].image == str(root / "train/Fruit/Pink-Lady_2.jpg")
    assert {name: item.text for name, item in items.items() if name.startswith("good-milk.") and not item.image} == {
        "good-milk.product": "Good Milk is a kind of milk, packaged product.",
        "good-milk.origin": "Good Milk comes from Sweden.",
        "good-milk.maker": "Good Milk is made by Good.",
        "good-milk.volume": "One package of Good Milk holds 1 l.",
        "good-milk.sugar": "100 g of Good Milk hold 4.8 g of sugar.",
        "good-milk.fat": "100 g of Good Milk hold 3 g of fat.",
        "good-milk.protein": "100 g of Good Milk hold 3.4 g of protein.",
    }
    assert items["water-melon.weight"].text == "One piece of Water Melon weighs about 1.05 kg."
    assert items["oat-drink.sugar"].text == "100 g of Oat Drink hold 9 g of sugar."  # the other name of the field


def test_one_item_a_product(root: Path) -> None:
    reading = grocery.read(root, facts="product")
    items = by_id(reading.items)
    assert sum(not item.image for item in items.values()) == len(FACTS)
    assert items["lime.product"].text == "Lime is a kind of lime, fruit. Lime comes from Brazil."
    assert {gold for q in reading.questions for gold in q.gold} == {name for name in items if name.endswith(".product")}


@pytest.mark.parametrize("facts", ["fact", "product"])
def test_gold_items_exist_and_hold_the_answer(root: Path, facts: grocery.FactLayout) -> None:
    reading = grocery.read(root, facts)
    items = by_id(reading.items)
    for question in reading.questions + reading.train_questions:
        texts = [items[name].full_text for name in question.gold]  # KeyError where an item is missing
        if question.answers:
            assert any(question.answers[0] in text for text in texts), question
    ids = [question.id for question in reading.questions + reading.train_questions]
    assert len(set(ids)) == len(ids)


def test_validation_photographs_are_only_asked_about(root: Path) -> None:
    reading = grocery.read(root)
    asked = {question.image for question in reading.questions if question.image}
    assert asked == {str(path) for path in (root / "val").rglob("*.jpg")}
    assert not asked & {item.image for item in reading.items}
    assert not asked & {question.image for question in reading.train_questions}


def test_named_products_are_split(root: Path) -> None:
    reading = grocery.read(root, seed=1)
    tested = {q.id.split(".")[0] for q in reading.questions if str(q.category).startswith("text_")}
    trained = {q.id.split(".")[0] for q in reading.train_questions if q.image is None}
    assert tested and trained and not tested & trained
    names = [entry["name"] for entry in FACTS]
    assert tested | trained == {name.lower().replace(" ", "-") for name in names}
    by_name = [q for q in reading.train_questions if q.image is None]
    held = [name for name in names if name.lower().replace(" ", "-") in tested]
    assert not [q for q in by_name if any(name in q.text for name in held)]


def test_fat_and_protein_are_told_and_asked_only_if_wanted(root: Path) -> None:
    usual, all_of_them = grocery.read(root), grocery.read(root, keys=list(grocery.FACTS))
    kinds = [{item.id.partition(".")[2] for item in one.items if not item.image} for one in (usual, all_of_them)]
    assert kinds[1] - kinds[0] == {"fat", "protein"}
    asked = [{q.category for q in one.questions} for one in (usual, all_of_them)]
    assert asked[1] - asked[0] >= {"picture_fat", "picture_protein"}
    assert not [q for q in usual.questions + usual.train_questions if "fat" in q.text.lower().split()]


def test_recognition_is_answered_in_training_only(root: Path) -> None:
    reading = grocery.read(root)
    tested, trained = (
        [q for q in questions if q.category == "picture_product"]
        for questions in (reading.questions, reading.train_questions)
    )
    assert len(tested) == 10 and not any(q.answers for q in tested)
    assert {q.gold for q in tested} == {(item.id,) for item in reading.items if item.id.endswith(".product")}
    assert len(trained) == 15 and all(q.answers for q in trained)


def test_negatives_are_the_same_fact_of_like_products_and_other_facts_of_the_product(root: Path) -> None:
    products = [
        grocery.Product(0, "Oat Drink", "milk", "packaged product", {"volume": "2 l", "sugar": "9 g"}),
        grocery.Product(1, "Good Milk", "milk", "packaged product", {"volume": "1 l"}),
        grocery.Product(2, "Lime", "lime", "fruit", {"volume": "1 l"}),
    ]
    asked = grocery.with_negatives(grocery.text_questions(products[:1], "fact", "train", 0), products, "fact")
    assert {q.gold[0]: set(q.negatives) for q in asked} == {
        "oat-drink.volume": {"good-milk.volume", "oat-drink.product", "oat-drink.sugar"},
        "oat-drink.sugar": {"oat-drink.product", "oat-drink.volume"},
    }
    held = {item.id for item in grocery.read(root).items}
    assert all(set(q.negatives) <= held for q in grocery.read(root).train_questions)


def test_first_hop_leads_to_the_product_and_its_photographs(root: Path) -> None:
    hops = [q for q in grocery.read(root).train_questions if q.category == "first_hop"]
    assert len(hops) == 15 and not any(q.answers for q in hops)
    assert next(q.gold for q in hops if q.id == "lime.photo-2.first") == (
        "lime.product",
        *(f"lime.photo-{number}" for number in (1, 2, 3)),
    )


def test_second_hop_has_the_found_words_in_place_of_the_picture(root: Path) -> None:
    products = grocery.read_products(root)
    texts = {q.text for q in grocery.second_hops([products[2]], "fact")}
    question = "From which country does this product come?"
    assert {text for text in texts if text.startswith(question)} == {
        f"{question} a photo of Lime",
        f"{question} Lime is a kind of lime, fruit.",
        f"{question} Lime comes from Brazil.",
    }


def test_comparisons_name_the_larger_and_leave_out_close_values() -> None:
    values = {"a": "180 g", "b": "190 g", "c": "1.05 kg"}  # a and b differ by less than a tenth
    products = [grocery.Product(i, name, "x", "fruit", {"weight": v}) for i, (name, v) in enumerate(values.items())]
    asked = [q for q in grocery.text_questions(products, "fact", "test", 0) if q.category == "compare_weight"]
    assert {frozenset(q.gold) for q in asked} == {
        frozenset({"a.weight", "c.weight"}),
        frozenset({"b.weight", "c.weight"}),
    }
    assert {q.answers for q in asked} == {("c",)}
    assert {q.text.startswith("Which weighs more, c or") for q in asked} == {True, False}  # named first in half of them


def test_same_seed_same_records_and_another_seed_another_split(root: Path) -> None:
    assert grocery.read(root, seed=4) == grocery.read(root, seed=4)
    products = grocery.read_products(root)
    assert len({frozenset(grocery.held_out(products, seed)) for seed in range(8)}) > 1


def test_written_files_read_back(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = readers.write(readers.open_dataset(root, "grocery"), out)
    reading = grocery.read(root)
    assert counts == {
        "items.jsonl": len(reading.items),
        "questions.jsonl": len(reading.questions),
        "train_questions.jsonl": len(reading.train_questions),
        "references.jsonl": len(reading.questions),
    }
    assert read_items(out / "items.jsonl") == reading.items
    assert read_questions(out / "questions.jsonl") == reading.questions
    assert read_questions(out / "train_questions.jsonl") == reading.train_questions


@pytest.mark.parametrize(
    ("file", "line", "content", "message"),
    [
        ("train.txt", 2, "train/Fruit/Lime_1.jpg, 2", r"train\.txt, line 2: expected 'path, class, coarse class'"),
        ("train.txt", 2, "train/Fruit/Lime_1.jpg, two, 0", r"line 2: class 'two' is not a whole number"),
        ("train.txt", 2, "train/Fruit/Lime_1.jpg, 77, 0", r"line 2: class 77 is not in .*classes\.csv"),
        ("train.txt", 2, "train/Fruit/gone.jpg, 2, 0", r"line 2: no such picture: .*gone\.jpg"),
        ("train.txt", 2, "train/../val/Fruit/Lime_1.jpg, 2, 0", r"line 2: .*stay inside"),
        ("train.txt", 2, "val/Fruit/Lime_1.jpg, 2, 0", r"line 2: .*splits must not mix"),
        ("train.txt", 2, "train/Fruit/Pink-Lady_1.jpg, 0, 0", r"line 2: photograph was already listed in line 1"),
        ("classes.csv", 1, "name,id", r"classes\.csv, line 1: no column 'Class ID"),
        ("classes.csv", 3, "Lime,0,Lime,0", r"classes\.csv, line 3: class 0 was already given in .*line 2"),
        ("classes.csv", 3, "Lime,9,Lime,0", r"classes\.csv, line 3: class 9 has no entry in .*facts\.json"),
    ],
)
def test_a_wrong_line_is_named(root: Path, file: str, line: int, content: str, message: str) -> None:
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    lines[line - 1] = content
    (root / file).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        grocery.read(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"facts\.json, entry 1: 'id' is missing"),
        ({"name": 3}, r"entry 1: 'name' must be str, found int"),
        ({"name": "Lime"}, r"entry 3: the name 'Lime' is empty or another product's"),
        ({"facts": {"approx_weight": "heavy"}}, r"entry 1: 'heavy' is not an amount"),
        ({"facts": {"nutrition_per_100g": {"fat_g": "much"}}}, r"entry 1: 'fat_g' must be a number, found str"),
        ({"facts": []}, r"entry 1: 'facts' must be dict, found list"),
    ],
)
def test_a_wrong_fact_is_named(root: Path, change: dict[str, Any], message: str) -> None:
    entries = json.loads((root / "facts.json").read_text(encoding="utf-8"))
    entries[0].update(change)
    (root / "facts.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        grocery.read(root)


def test_broken_json_and_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    (root / "facts.json").write_text('[\n{"id": 0,\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"facts\.json, line 3: not JSON"):
        grocery.read(root)
    with pytest.raises(DataError, match="no such file; is this the root"):
        grocery.read(tmp_path / "elsewhere")
    (root / "facts.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="expected a list of products"):
        grocery.read(root)


def test_unwritable_output_and_unknown_reader(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError):
        readers.write(readers.open_dataset(root, "grocery"), tmp_path / "file")
    with pytest.raises(DataError, match=r"no reader named 'groceries'; there are: .*flags, grocery"):
        readers.open_dataset(root, "groceries")


MILK = """Title: Standardmjölk 3%
Manufacturer and volume: GOOD KO , 1l
Manufacturing country: Sverige
Nutrition values per 100 gram:
   fett ca 3 gram
   varav mättat fett ca 1.9 gram
   varav sockerarter ca 4.8 gram
   protein ca 3.4 gram
"""


def cloned(root: Path) -> Path:
    """The fixture as the repository has it: no facts.json, but texts beside the descriptions that classes.csv names."""
    told = {
        "Pink Lady": "Country and volume: Italy, ca 180g \n",
        "Water Melon": "Country and volume: , ca 1.05kg\r\n",
        "Lime": "Title: Lime\nCountry: Brazil\nURL: https://x.y/z\n",
        "Good Milk": MILK,
        "Oat Drink": "Manufacturer and volume: OAT, 2l\n   of which sugars ca 9 gram \n   fat ca 0 gram",
    }
    (root / "facts.json").unlink()
    lines = [
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Product Description Path (str)"
    ]
    for number, entry in enumerate(FACTS):
        name = entry["name"].replace(" ", "-")
        path = f"iconic-images-and-descriptions/{entry['group']}/{name}/{name}_Description.txt"
        (root / path).parent.mkdir(parents=True)
        (root / path.replace("Description", "Information")).write_text(told[entry["name"]], encoding="utf-8")
        lines.append(f"{name},{number},{entry['coarse']},0,/{path}")
    (root / "classes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root.parent / "clone").mkdir()
    return root.rename(root.parent / "clone" / "dataset").parent


def test_the_repository_as_it_is_cloned(root: Path) -> None:
    expected = grocery.read_products(root)
    clone = cloned(root)
    dataset = readers.probe(clone)(clone)
    assert dataset.name == "grocery" and sum(item.image is not None for item in dataset.items()) == 15
    found = grocery.read_products(clone / "dataset")
    assert [(one.name, one.kind, one.group) for one in found.values()] == [
        (one.name, one.kind, one.group) for one in expected.values()
    ]
    assert [one.facts for one in found.values()] == [
        {"origin": "Italy", "weight": "180 g"},
        {"weight": "1.05 kg"},
        {"origin": "Brazil"},
        {"origin": "Sweden", "maker": "Good Ko", "volume": "1 l", "sugar": "4.8 g", "fat": "3 g", "protein": "3.4 g"},
        {"maker": "Oat", "volume": "2 l", "sugar": "9 g", "fat": "0 g"},
    ]


def test_a_clone_without_a_text_says_so(root: Path) -> None:
    folder = cloned(root) / "dataset"
    lost = next(folder.rglob("Lime_Information.txt"))
    lost.unlink()
    with pytest.raises(DataError, match=r"Lime_Information\.txt: no such file"):
        grocery.read(folder)
    (folder / "classes.csv").write_text("Class ID (int)\n0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'Class Name \(str\)', and there is no facts\.json"):
        grocery.read(folder)


def test_listing() -> None:
    assert [listing("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


@pytest.mark.skipif(
    "RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the real photographs are absent"
)
def test_the_real_photographs() -> None:
    reading = grocery.read(Path(os.environ["RA_BLIP_SHARED"]) / "data" / "grocery_store")
    assert sum(item.image is not None for item in reading.items) == 2640
    assert sum(q.category == "picture_product" for q in reading.questions) == 296
    assert sum(item.id.endswith(".origin") for item in reading.items) == 77
    assert sum(item.id.endswith(".maker") for item in reading.items) == 31
    assert sum(item.id.endswith(".weight") for item in reading.items) == 35
