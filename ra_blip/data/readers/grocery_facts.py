"""What is known of the products of the Grocery Store data set: ``facts.json``, else the repository's own texts.

The repository has, beside each description that ``classes.csv`` names, ``PRODUCT_Information.txt``: lines such as
``Country and volume: Italy, ca 180g``, ``Manufacturer and volume: ARLA KO, 1l``, ``Manufacturing country: Sweden`` and
``of which sugars ca 2.7 gram``, some of them in Swedish.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from ra_blip.data.readers.reading import read_json, read_text, require
from ra_blip.errors import DataError

Entries = dict[int, tuple[dict[str, Any], str]]
"""By class id: an entry in the form of ``facts.json``, and where it stands."""
AMOUNT = re.compile(r"(?:ca\s*)?(\d+(?:\.\d+)?)\s*(kg|g|dl|ml|l)")
_COLUMNS = ("Class Name (str)", "Class ID (int)", "Coarse Class Name (str)", "Product Description Path (str)")
_NUTRIENTS = {"fat": "fat_g", "fett": "fat_g", "protein": "protein_g"}
_NUTRIENTS |= dict.fromkeys(("of which sugars", "varav sockerarter", "sugars", "sockerarter"), "sugars_g")
_NUTRIENT = re.compile(rf"^\s*({'|'.join(_NUTRIENTS)}) ca (\d+(?:\.\d+)?) gram", re.MULTILINE)
_IN_SWEDISH = """
    Argentina=Argentina Brasilien=Brazil Danmark=Denmark Frankrike=France Grekland=Greece Holland=The_Netherlands
    Italien=Italy Kina=China Marocko=Morocco Mexiko=Mexico Nederländerna=The_Netherlands Polen=Poland Spanien=Spain
    Sverige=Sweden Sydafrika=South_Africa Turkiet=Turkey Tyskland=Germany
"""
_COUNTRIES = {name: said.replace("_", " ") for name, said in (pair.split("=") for pair in _IN_SWEDISH.split())}


def entries(root: Path) -> Entries:
    """What is known of each product. Raises :class:`DataError`: a file is missing or malformed, with its place."""
    return _listed(root / "facts.json") if (root / "facts.json").is_file() else _told(root)


def _listed(path: Path) -> Entries:
    known: Entries = {}
    found = read_json(path)
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of products")
    for number, entry in enumerate(found, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
        known[require(entry, "id", int, where)] = entry, where
    return known


def _told(root: Path) -> Entries:
    known: Entries = {}
    rows = csv.DictReader(read_text(root / "classes.csv").splitlines())
    if missing := [column for column in _COLUMNS if column not in (rows.fieldnames or ())]:
        raise DataError(f"{root / 'classes.csv'}, line 1: no column {missing[0]!r}, and there is no facts.json")
    for row in rows:
        name, number, kind, described = (row[column] or "" for column in _COLUMNS)
        path = root / described.strip().lstrip("/").replace("_Description.txt", "_Information.txt")
        if not number.strip().isdecimal() or ".." in path.parts or len(path.relative_to(root).parts) < 3:
            continue  # who reads the classes says so
        entry = {"name": name.replace("-", " "), "coarse": kind.replace("-", " "), "facts": _facts(read_text(path))}
        known[int(number)] = {**entry, "group": path.relative_to(root).parts[1]}, str(path)
    return known


def _facts(text: str) -> dict[str, Any]:
    lines = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    told = {key.strip().lower(): [part.strip() for part in value.split(",")] for key, value in lines.items()}
    origin = told.get("country and volume") or told.get("country") or told.get("manufacturing country") or [""]
    maker = told.get("manufacturer and volume") or told.get("manufacturer") or [""]
    facts: dict[str, Any] = {
        "country_of_origin": _COUNTRIES.get(origin[0], origin[0]),
        "manufacturer": maker[0].title(),
    }
    for key, parts in (("approx_weight", told.get("country and volume", ())), ("volume", maker)):
        facts[key] = next((part for part in parts[1:] if AMOUNT.fullmatch(part)), "")
    nutrients = {_NUTRIENTS[name]: float(amount) for name, amount in _NUTRIENT.findall(text)}
    return {key: value for key, value in {**facts, "nutrition_per_100g": nutrients}.items() if value}
