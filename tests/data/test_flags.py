"""The flags reader on three made-up countries, and on the real data where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ra_blip.data.readers import flags
from ra_blip.errors import DataError
from ra_blip.images import open_image, resize
from ra_blip.records import Item, by_id

COLOURS = {"red": (200, 0, 0), "white": (255, 255, 255), "blue": (0, 0, 200), "green": (0, 150, 0)}
BANDS = [("red", "white"), ("blue", "white"), ("green", "red"), ("red", "white")]  # the last looks like the first


def _entity(number: int) -> dict[str, Any]:
    top, bottom = BANDS[number]
    return {
        "id": f"c{number}",
        "name": f"Country{number}",
        "image": f"png/c{number}.png",
        "flag_description": f"description: two equal horizontal bands of {top} (top) and {bottom} meaning: none",
        "facts": {
            "capital": [f"Capital{number}"],
            "subregion": "Middle Sea",
            "languages": ["One", "Two"],  # two: no one answer, so no fact
            "currencies": ["Crown"],
        },
        "passages": {
            "independence": f"{number + 1} May 1900 (from the Sea); noted elsewhere",
            "climate": "Mild. Wet in winter.",
            "national_colors": f"{top}, {bottom}",
        },
    }


def _write(root: Path, entities: list[dict[str, Any]]) -> None:
    lines = [json.dumps(entity) + "\n" for entity in entities]
    (root / "entities.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "flags"
    (folder / "png").mkdir(parents=True)
    for number, (top, bottom) in enumerate(BANDS):
        picture = Image.new("RGB", (32, 16 + number), COLOURS[bottom])
        picture.paste(COLOURS[top], (0, 0, 32, (16 + number) // 2))
        picture.save(folder / "png" / f"c{number}.png")
    _write(folder, [_entity(number) for number in range(len(BANDS))])
    return folder


def test_items_of_one_country(root: Path) -> None:
    country = flags.read_countries(root)[1]
    assert flags.country_items(country, captioned=True) == [
        Item("c1.flag", text="the flag of Country1", image=str(root / "png" / "c1.png")),
        Item("c1.capital", "The capital of Country1 is Capital1."),
        Item("c1.region", "Country1 lies in this part of the world: Middle Sea."),
        Item("c1.currency", "The currency of Country1 is the Crown."),
        Item("c1.independence-0", "Country1, independence: 2 May 1900 (from the Sea); noted elsewhere"),
        Item("c1.climate-0", "Country1, climate: Mild. Wet in winter."),
    ]
    assert flags.country_items(country, captioned=False)[0].kind == "image"


def test_questions_of_one_country(root: Path) -> None:
    country = flags.read_countries(root)[1]
    asked = {q.id.removeprefix("c1."): q for q in flags.text_questions(country, captioned=True)}
    assert asked["text-capital"].text == "What is the capital of Country1?"
    assert asked["text-capital"].answers == ("Capital1",) and asked["text-capital"].gold == ("c1.capital",)
    assert asked["text-independence"].answers == ("2 May 1900",)
    assert asked["text-independence"].gold == ("c1.independence-0",)
    assert (
        asked["colours"].text == "What are the colours of the horizontal bands of the flag of Country1, from the top?"
    )
    assert asked["colours"].answers == ("blue and white",) and asked["colours"].gold == ("c1.flag",)
    shown = {q.id.removeprefix("c1."): q for q in flags.flag_questions(country, captioned=True, train=False)}
    assert set(shown) == {"described", "name", "flag-capital", "flag-region", "flag-currency"}
    assert shown["flag-capital"].image == country.image and shown["flag-capital"].gold == ("c1.capital",)
    assert "Country1" not in shown["described"].text and shown["described"].answers == ("Country1",)


def test_training_takes_two_hops_in_place_of_facts_by_flag(root: Path) -> None:
    country = flags.read_countries(root)[1]
    asked = {q.id.removeprefix("c1."): q for q in flags.flag_questions(country, captioned=True, train=True)}
    assert "flag-capital" not in asked and asked["second-capital"].image is None
    assert asked["second-capital"].text.endswith("flag? the flag of Country1")


def test_a_flag_without_caption_is_only_described(root: Path) -> None:
    country = flags.read_countries(root)[1]
    (question,) = flags.flag_questions(country, captioned=False, train=False)
    assert question.category == "described_picture" and question.answers == ()
    assert not [q for q in flags.text_questions(country, captioned=False) if q.category == "captioned_flag"]


def test_flags_that_look_alike_are_not_shown(root: Path) -> None:
    assert flags.lookalikes(flags.read_countries(root)) == {"c0", "c3"}
    reading = flags.read(root)
    both = reading.questions + reading.train_questions
    assert {q.id.split(".")[0] for q in both if q.category in ("flag_name", "flag_fact", "described_flag")} <= {
        "c1",
        "c2",
    }


def test_countries_are_split_and_golds_hold_answers(root: Path) -> None:
    reading = flags.read(root, seed=2)
    tested, trained = ({q.id.split(".")[0] for q in part} for part in (reading.questions, reading.train_questions))
    assert len(tested) == 1 and len(trained) == 3 and not tested & trained
    items = by_id(reading.items)
    for question in reading.questions + reading.train_questions:
        (gold,) = question.gold
        if question.answers and question.category != "captioned_flag":
            assert question.answers[0] in items[gold].full_text
    assert flags.read(root, seed=2) == reading


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (
            "three equal horizontal bands of sky blue (top), white, and sky blue; a sun",
            ("horizontal", "sky blue white sky blue"),
        ),
        ("two vertical bands of white (left side) and red; a cross", ("vertical", "white red")),
        (
            "three horizontal bands of yellow (top, double-width), blue, and red, with arms",
            ("horizontal", "yellow blue red"),
        ),
        (
            "three equal horizontal bands of green (top), white, and red with a trapezoid",
            ("horizontal", "green white red"),
        ),
        ("five equal horizontal bands of green (top and bottom) alternating with yellow", None),
        ("two horizontal bands of red (top) and a checkered, many-coloured one", None),
        ("red with a green pentacle", None),
        ("", None),
    ],
)
def test_band_colours(description: str, expected: tuple[str, str] | None) -> None:
    found = flags.band_colours(description)
    assert (found and (found[0], " ".join(found[1]))) == expected


def test_pieces_cut_at_sentences() -> None:
    text = "One two three. Four five. Six seven eight nine. Ten."
    assert flags.pieces(text, words=5) == ["One two three. Four five.", "Six seven eight nine. Ten."]
    assert flags.pieces(text, words=1) == ["One two three.", "Four five.", "Six seven eight nine.", "Ten."]
    assert flags.pieces("") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, r"entities\.jsonl, line 2: 'name' is missing"),
        ({"image": "../out.png"}, r"line 2: picture path '\.\./out\.png' must be relative"),
        ({"image": "png/gone.png"}, r"line 2: no such picture"),
        ({"facts": {"capital": "Rome"}}, r"line 2, facts: 'capital' must be list, found str"),
        ({"passages": {"climate": 3}}, r"line 2, passages: 'climate' must be str, found int"),
        ({"flag_description": 1}, r"line 2: 'flag_description' must be a string"),
        ({"id": "c0"}, r"line 2: id 'c0' was used before"),
    ],
)
def test_a_wrong_line_is_named(root: Path, change: dict[str, Any], message: str) -> None:
    _write(root, [_entity(0), {**_entity(1), **change}])
    with pytest.raises(DataError, match=message):
        flags.read(root)


def test_a_damaged_flag_is_named(root: Path) -> None:
    (root / "png" / "c2.png").write_bytes(b"no flag")
    with pytest.raises(DataError, match=r"c2\.png"):
        flags.read(root)


NAMED = {
    "red": (200, 30, 40),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "blue": (30, 60, 160),
    "green": (0, 130, 60),
}


@pytest.mark.skipif("RA_BLIP_SHARED" not in os.environ, reason="RA_BLIP_SHARED is not set: the real flags are absent")
def test_the_colours_told_of_real_flags_are_those_of_their_pixels() -> None:
    countries = flags.read_countries(Path(os.environ["RA_BLIP_SHARED"]) / "data" / "country_flags")
    assert len(countries) == 120
    checked = 0
    for country in countries:
        bands = flags.band_colours(country.description)
        if not bands or not {bands[1][0], bands[1][-1]} <= set(NAMED) or bands[1][0] == bands[1][-1]:
            continue
        pixels = resize(open_image(country.image), 64).astype(float)
        first, last = (
            (pixels[:, 1, 60], pixels[:, 62, 60]) if bands[0] == "horizontal" else (pixels[:, 1, 1], pixels[:, 1, 62])
        )
        for told, seen in ((bands[1][0], first), (bands[1][-1], last)):
            nearest = min(NAMED, key=lambda name: float(np.abs(seen - np.array(NAMED[name])).sum()))
            assert nearest == told, country.name
        checked += 1
    assert checked >= 20
