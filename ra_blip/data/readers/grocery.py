"""The Grocery Store photographs (Klasson et al., WACV 2019) with product facts, as a knowledge base and its questions.

Knowledge: every training photograph, captioned with its product; one text item that names each product; the product's
facts, one text item a fact or all in one (``facts="product"``). Item ids are ``PRODUCT.KIND``, as in ``lime.origin``.

Splits: the validation photographs are asked about and are never knowledge; training questions are asked about the
training photographs. Questions without a picture, and comparisons, are split by product: a quarter of the products is
kept for testing. (Their training photographs are asked about in training: all products are known by sight.)

Categories: ``picture_product`` (which product is this? of a validation photograph it has no answer, only the product to
be found); ``picture_KEY``, ``text_KEY`` and ``compare_KEY`` for the keys of :data:`FACTS`, of which :data:`ASKED` are
told and asked unless others are wanted. Two more are for training only, as a question with a picture may be answered in
two searches: ``first_hop`` leads from a photograph to the text that names its product and to all its photographs (draw
one of each; it has no answer), and ``second_KEY`` is the question with the words that the first search found in place
of the picture.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ra_blip.data.readers.grocery_facts import AMOUNT, entries
from ra_blip.data.readers.reading import Reading, picture, read_text, require
from ra_blip.errors import DataError
from ra_blip.records import Item, Question

FactLayout = Literal["fact", "product"]
Pair = tuple["Product", "Product"]
HELD_OUT = 0.25  # share of the products whose facts are asked for by name in testing only
COMPARISONS = {"train": 240, "test": 40}  # at most this many pairs a fact


@dataclasses.dataclass(frozen=True)
class Fact:
    """One kind of fact: how it is told as knowledge and asked for, by name and with a picture."""

    sentence: str
    by_picture: tuple[str, ...]
    by_name: tuple[str, ...]
    comparison: str = ""


FACTS: dict[str, Fact] = {
    "origin": Fact(
        "{name} comes from {value}.",
        ("From which country does this product come?", "What is the country of origin of this product?"),
        ("From which country does {name} come?", "What is the country of origin of {name}?"),
    ),
    "maker": Fact(
        "{name} is made by {value}.",
        ("Who makes this product?", "Which company made this?"),
        ("Who makes {name}?", "Which company made {name}?"),
    ),
    "volume": Fact(
        "One package of {name} holds {value}.",
        ("How much does one package of this hold?", "What is the volume of this package?"),
        ("How much does one package of {name} hold?", "What is the volume of a package of {name}?"),
    ),
    "weight": Fact(
        "One piece of {name} weighs about {value}.",
        ("How much does one piece of this weigh?", "What is the weight of this product?"),
        ("How much does one piece of {name} weigh?", "What is the weight of {name}?"),
        "Which weighs more, {first} or {second}?",
    ),
    **{
        key: Fact(
            f"100 g of {{name}} hold {{value}} of {key}.",
            (f"How much {key} is in 100 g of this?", f"How many grams of {key} do 100 g of this product hold?"),
            (f"How much {key} is in 100 g of {{name}}?", f"How many grams of {key} do 100 g of {{name}} hold?"),
            f"Which has more {key}, {{first}} or {{second}}?",
        )
        for key in ("sugar", "fat", "protein")
    },
}
ASKED = ("origin", "maker", "volume", "weight", "sugar")
RECOGNITION = ("Which product is this?", "What is the name of this product?")
GROUPS = {"Fruit": "fruit", "Vegetables": "vegetable", "Packages": "packaged product"}
_NUTRIENTS = {"sugar": ("sugars_g", "of_which_sugars_g"), "fat": ("fat_g",), "protein": ("protein_g",)}
_PLAIN = {"origin": "country_of_origin", "maker": "manufacturer", "volume": "volume", "weight": "approx_weight"}
_GRAMS = {"kg": 1000.0, "g": 1.0}


@dataclasses.dataclass(frozen=True)
class Product:
    """One product: its class, name, kind (``apple``), group (``fruit``), and its facts by the keys of ``FACTS``."""

    number: int
    name: str
    kind: str
    group: str
    facts: dict[str, str]

    @property
    def id(self) -> str:
        """The name as it stands before the dot in the ids of everything about this product."""
        return "-".join(re.findall(r"\w+", self.name.lower()))

    @property
    def caption(self) -> str:
        """The words under every photograph of it."""
        return f"a photo of {self.name}"

    @property
    def introduction(self) -> str:
        """The text of the item that names it."""
        return f"{self.name} is a kind of {self.kind}, {self.group}."

    def knowing(self, keys: Sequence[str]) -> Product:
        """The same product with some of its facts."""
        return dataclasses.replace(self, facts={key: value for key, value in self.facts.items() if key in keys})

    def sentence(self, key: str) -> str:
        """One of its facts as knowledge."""
        return FACTS[key].sentence.format(name=self.name, value=self.facts[key])


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photograph: its id (``lime.photo-3`` in training, ``lime.val-3`` else), path and product."""

    id: str
    path: str
    product: Product


def read(root: str | Path, facts: FactLayout = "fact", seed: int = 0, keys: Sequence[str] = ASKED) -> Reading:
    """Read the public folder layout: ``classes.csv``, ``train.txt``, ``val.txt``, the photographs, and what is known.

    Facts are those of ``facts.json`` or of the public texts, see :mod:`~ra_blip.data.readers.grocery_facts`.

    Args:
        root: the folder that holds them.
        facts: one text item a ``fact``, or one a ``product`` that tells all.
        seed: draws the held-out products and the compared pairs.
        keys: which of :data:`FACTS` are told and asked.

    Raises:
        DataError: a file is missing or malformed, with its line, or a listed photograph does not exist.
    """
    root = Path(root)
    products = {number: product.knowing(keys) for number, product in read_products(root).items()}
    train, val = read_photos(root, "train", products), read_photos(root, "val", products)
    tested = held_out(products, seed)
    kept = [product for product in products.values() if product.id not in tested]
    photos = [Item(photo.id, text=photo.product.caption, image=photo.path) for photo in train]
    texts = [item for product in products.values() for item in product_items(product, facts)]
    asked = [product for product in products.values() if product.id in tested]
    by_words = [*second_hops(kept, facts), *text_questions(kept, facts, "train", seed)]
    return Reading(
        items=photos + texts,
        questions=[*map(_unanswered, picture_questions(val, facts)), *text_questions(asked, facts, "test", seed)],
        train_questions=[
            *picture_questions(train, facts),
            *first_hops(train),
            *with_negatives(by_words, list(products.values()), facts),
        ],
    )


def read_products(root: Path) -> dict[int, Product]:
    """The products of ``classes.csv`` with what is known of them, by class id. Raises :class:`DataError`."""
    known = entries(root)
    products: dict[int, Product] = {}
    names: set[str] = set()
    for number, where in read_classes(root).items():
        if number not in known:
            raise DataError(f"{where}: class {number} has no entry in facts.json, nor a description")
        products[number] = product = _product(number, *known[number])
        if not product.id or product.id in names:
            raise DataError(f"{known[number][1]}: the name {product.name!r} is empty or another product's, too")
        names.add(product.id)
    return products


def read_classes(root: Path) -> dict[int, str]:
    """The class ids of ``classes.csv``, each with the place it was read from. Raises :class:`DataError`."""
    path = root / "classes.csv"
    rows = csv.DictReader(read_text(path).splitlines())
    column = "Class ID (int)"
    if column not in (rows.fieldnames or []):
        raise DataError(f"{path}, line 1: no column {column!r}")
    found: dict[int, str] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        id_ = _class_id(row[column] or "", where)
        if id_ in found:
            raise DataError(f"{where}: class {id_} was already given in {found[id_]}")
        found[id_] = where
    if not found:
        raise DataError(f"{path}: holds no class")
    return found


def read_photos(root: Path, split: Literal["train", "val"], products: dict[int, Product]) -> list[Photo]:
    """The photographs that ``train.txt`` or ``val.txt`` lists. Raises :class:`DataError` with file and line."""
    path = root / f"{split}.txt"
    kind = {"train": "photo", "val": "val"}[split]
    counts: Counter[int] = Counter()
    seen: dict[str, int] = {}
    photos = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3:
            raise DataError(f"{where}: expected 'path, class, coarse class', found {len(parts)} parts")
        id_ = _class_id(parts[1], where)
        if id_ not in products:
            raise DataError(f"{where}: class {id_} is not in {root / 'classes.csv'}")
        if not parts[0].startswith(f"{split}/"):
            raise DataError(f"{where}: {parts[0]!r} lies outside {split}/; splits must not mix")
        if seen.setdefault(parts[0], number) != number:
            raise DataError(f"{where}: photograph was already listed in line {seen[parts[0]]}")
        counts[id_] += 1
        name = f"{products[id_].id}.{kind}-{counts[id_]}"
        photos.append(Photo(name, picture(root, parts[0], where), products[id_]))
    if not photos:
        raise DataError(f"{path}: lists no photograph")
    return photos


def held_out(products: dict[int, Product], seed: int) -> set[str]:
    """Ids of the products that only test questions name: :data:`HELD_OUT` of every group, at least one."""
    chosen: set[str] = set()
    for group in sorted({product.group for product in products.values()}):
        ids = sorted(product.id for product in products.values() if product.group == group)
        chosen.update(random.Random(f"{seed}/{group}").sample(ids, max(1, round(HELD_OUT * len(ids)))))
    return chosen


def product_items(product: Product, facts: FactLayout) -> list[Item]:
    """The text items about one product."""
    if facts == "product":
        sentences = [product.introduction, *(product.sentence(key) for key in product.facts)]
        return [Item(f"{product.id}.product", " ".join(sentences))]
    named = Item(f"{product.id}.product", product.introduction)
    return [named, *(Item(_gold(product, key, facts), product.sentence(key)) for key in product.facts)]


def picture_questions(photos: list[Photo], facts: FactLayout) -> list[Question]:
    """For each photograph: which product it shows, and every fact known of it."""
    questions = []
    for number, photo in enumerate(photos):
        product = photo.product
        for key, value in {"product": product.name, **product.facts}.items():
            forms = _by_picture(key)
            text, gold = forms[number % len(forms)], (_gold(product, key, facts),)
            name = f"{photo.id}.{key}"
            questions.append(Question(name, text, photo.path, (value,), gold, category=f"picture_{key}"))
    return questions


def first_hops(photos: list[Photo]) -> list[Question]:
    """Each photograph with one of the questions asked about it, leading to its product's text and photographs."""
    alike: dict[str, list[str]] = {}
    for photo in photos:
        alike.setdefault(photo.product.id, []).append(photo.id)
    questions = []
    for number, photo in enumerate(photos):
        forms = RECOGNITION + tuple(form for key in photo.product.facts for form in FACTS[key].by_picture)
        gold = (f"{photo.product.id}.product", *alike[photo.product.id])
        text = forms[number % len(forms)]
        questions.append(Question(f"{photo.id}.first", text, photo.path, gold=gold, category="first_hop"))
    return questions


def second_hops(products: list[Product], facts: FactLayout) -> list[Question]:
    """The questions about a picture, each with the words of an item that may have been found for it."""
    questions = []
    for product in products:
        for key, value in {"product": product.name, **product.facts}.items():
            gold = (_gold(product, key, facts),)
            right = {f"{product.id}.product", *gold}
            texts = [item.full_text for item in product_items(product, facts) if item.id in right]
            found = [product.caption, *texts]
            for number, (form, words) in enumerate(itertools.product(_by_picture(key), found)):
                name = f"{product.id}.second-{key}-{number}"
                questions.append(Question(name, f"{form} {words}", None, (value,), gold, category=f"second_{key}"))
    return questions


def text_questions(products: list[Product], facts: FactLayout, split: str, seed: int) -> list[Question]:
    """Questions that name their product, and comparisons of two; ``split`` (``train``, ``test``) caps the pairs."""
    questions = []
    for product in products:
        for key, value in product.facts.items():
            gold = (_gold(product, key, facts),)
            for number, form in enumerate(FACTS[key].by_name):
                text, name = form.format(name=product.name), f"{product.id}.text-{key}-{number}"
                questions.append(Question(name, text, None, (value,), gold, category=f"text_{key}"))
    for key, fact in FACTS.items():
        if fact.comparison:
            questions += _comparisons(products, key, facts, COMPARISONS[split], random.Random(f"{seed}/{split}/{key}"))
    return questions


def with_negatives(questions: list[Question], products: list[Product], facts: FactLayout) -> list[Question]:
    """The questions with what is easily taken for their gold: that fact of like products, other facts of it."""
    kinds: dict[str, list[Product]] = {}
    for product in products:
        kinds.setdefault(product.kind, []).append(product)
    near: dict[str, dict[str, None]] = {}
    for product in products:
        for key in ("product", *product.facts):
            own = [_gold(product, other, facts) for other in ("product", *product.facts)]
            alike = [_gold(one, key, facts) for one in kinds[product.kind] if key == "product" or key in one.facts]
            near.setdefault(_gold(product, key, facts), {}).update(dict.fromkeys([*alike, *own]))
    return [
        dataclasses.replace(q, negatives=tuple(dict.fromkeys(n for g in q.gold for n in near[g] if n not in q.gold)))
        for q in questions
    ]


def _comparisons(
    products: list[Product], key: str, facts: FactLayout, most: int, draw: random.Random
) -> list[Question]:
    """Pairs whose values differ by a tenth or more; the larger is named first in every other one."""
    pairs: list[Pair] = []
    known = [product for product in products if key in product.facts]
    for first, second in itertools.combinations(known, 2):
        small, large = sorted((first, second), key=lambda product: _number(product.facts[key]))
        if _number(large.facts[key]) >= 1.1 * _number(small.facts[key]) > 0:
            pairs.append((large, small))
    questions = []
    for number, (large, small) in enumerate(draw.sample(pairs, min(most, len(pairs)))):
        first, second = (large, small) if number % 2 else (small, large)
        text = FACTS[key].comparison.format(first=first.name, second=second.name)
        gold = (_gold(first, key, facts), _gold(second, key, facts))
        name = f"{first.id}.{key}-or-{second.id}"
        questions.append(Question(name, text, None, (large.name,), gold, category=f"compare_{key}"))
    return questions


def _by_picture(key: str) -> tuple[str, ...]:
    return RECOGNITION if key == "product" else FACTS[key].by_picture


def _unanswered(question: Question) -> Question:
    """Recognition in testing: the product is to be found, and no answer is scored."""
    return dataclasses.replace(question, answers=()) if question.category == "picture_product" else question


def _gold(product: Product, key: str, facts: FactLayout) -> str:
    return f"{product.id}.{'product' if facts == 'product' else key}"


def _product(number: int, entry: dict[str, Any], where: str) -> Product:
    raw = require(entry, "facts", dict, where)
    found = {key: require(raw, name, str, where) for key, name in _PLAIN.items() if name in raw}
    for key in ("volume", "weight"):
        if key in found:
            found[key] = _amount(found[key], where)
    nutrition = require(raw, "nutrition_per_100g", dict, where) if "nutrition_per_100g" in raw else {}
    for key, names in _NUTRIENTS.items():
        values = [nutrition[name] for name in names if name in nutrition]
        if values and (not isinstance(values[0], (int, float)) or isinstance(values[0], bool)):
            raise DataError(f"{where}: {names[0]!r} must be a number, found {type(values[0]).__name__}")
        if values:
            found[key] = f"{values[0]:g} g"
    name, kind = (require(entry, key, str, where) for key in ("name", "coarse"))
    group = require(entry, "group", str, where)
    facts = {key: found[key] for key in FACTS if key in found}
    return Product(number, name, kind.lower(), GROUPS.get(group, group.lower()), facts)


def _amount(text: str, where: str) -> str:
    """``ca 1.05kg`` as ``1.05 kg``."""
    found = AMOUNT.fullmatch(text.strip())
    if not found:
        raise DataError(f"{where}: {text!r} is not an amount such as 'ca 180g' or '1l'")
    return f"{found[1]} {found[2]}"


def _number(amount: str) -> float:
    number, unit = amount.split()
    return float(number) * _GRAMS.get(unit, 1.0)


def _class_id(text: str, where: str) -> int:
    if not text.strip().isdecimal():
        raise DataError(f"{where}: class {text!r} is not a whole number from 0")
    return int(text)
