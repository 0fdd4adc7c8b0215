"""The comparison's page: every figure of it, escaped, and the questions on which methods differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ra_blip.records import Hit, Item, Question, Trace
from ra_blip.report.comparison import differing, write_comparison
from tests.report.test_report import HOSTILE, Page


def trace(number: int, answer: str, image: str | None = None, note: str = "") -> Trace:
    item = Item(f"item-{number}", "a red hall", image=image)
    question = Question(f"q{number}", f"roof {number}?", image, answers=("red",), gold=(item.id,))
    hits = [Hit(item, 0.5, "search")]
    return Trace(question, answer, hits, [item.id], [item.id], [1.0], notes=[note] if note else [])


def figures(accuracy: float, **more: Any) -> dict[str, Any]:
    ours: dict[str, Any] = {"answer_accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1], "recall@1": 0.25}
    ours |= {"gained": 3, "lost": 1, "difference": 0.2, "difference_interval": [0.1, 0.3], "seconds": 0.5}
    ours |= {"seconds_by_stage": {"search": 0.5}, "tokens": {"prompt": 31.5}, "by_category": {"roofs": accuracy}}
    return {**ours, **more}


def written(tmp_path: Path, methods: dict[str, Any], traces: dict[str, list[Trace]]) -> Page:
    comparison = {"methods": methods, "questions": 2, "provenance": {"seed": 0}, "settings": {}}
    write_comparison(comparison, traces, tmp_path / "page.html")
    return Page((tmp_path / "page.html").read_text())


def test_the_page_holds_all_figures(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    methods = {
        "none": figures(0.3),
        "ra_blip": figures(0.5, dropped={"same_id": 7}, notes={"cut": 2}),
        "raven": figures(0.3, difference_interval=[-0.1, 0.1]),
    }
    image = str(tmp_path / "red.png")
    traces = {
        "none": [trace(0, "blue", image), trace(1, "red")],
        "ra_blip": [trace(0, "red", image), trace(1, "red")],
        "raven": [trace(0, "blue", image), trace(1, "red")],
    }
    page = written(tmp_path, methods, traces)
    for words in ("3 gained, 1 lost", "+20.0 (+10.0 to +30.0)", "not told apart", "31.5", "same id 7", "2 times: cut"):
        assert words in page.words, words
    assert "roof 0?" in page.words and "roof 1?" not in page.words  # all of them answer that one right
    text = (tmp_path / "page.html").read_text()
    assert "data:image/jpeg" in text and "http" not in text.replace("http-equiv", "")


def test_what_was_not_judged_is_not_shown_as_judged(tmp_path: Path) -> None:
    methods = {"none": figures(0.3), "ra_blip": figures(0.5), "raven": figures(0.5)}
    traces = {"none": [trace(0, "blue")], "ra_blip": [trace(0, "red")], "raven": [trace(0, "red")]}
    comparison = {"methods": methods, "questions": 1, "provenance": {}, "settings": {"raven": {"askg": False}}}
    write_comparison(comparison, traces, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.words.count("judged relevant") == 2 and page.words.count("item-0") == 3  # none (a stand-in) and ra_blip


def test_noise_is_drawn_as_one_line_a_row_at_the_shares_that_were_met(tmp_path: Path) -> None:
    methods = {
        "none": figures(0.3),
        "ra_blip:noise_0": figures(0.75, noise=0),
        "ra_blip:noise_0.75": figures(0.5, noise=0.5),
        "ra_blip@sft:k=2+noise_0": figures(1.0, noise=0),
        "ra_blip@sft:k=2+noise_0.25": figures(0.0, noise=0.25),
        "raven:noise_0": figures(0.5, noise=None),  # no question has gold
    }
    found = [trace(0, "red")]
    page = written(tmp_path, methods, dict.fromkeys(methods, found))
    lines = {given["data-series"]: given["points"] for tag, given in page.tags if tag == "polyline"}
    # 46 + 374 x, 184 - 172 y
    assert lines == {"ra_blip": "46.0,55.0 233.0,98.0", "ra_blip@sft:k=2": "46.0,12.0 139.5,184.0"}
    assert "0: 75.0, 0.5: 50.0" in page.words and "0: 100.0, 0.25: 0.0" in page.words


def test_a_model_alone_is_named_so_whatever_its_name(tmp_path: Path) -> None:
    methods = {"none": figures(0.3), "none@sft": figures(0.2), "ra_blip@sft": figures(0.5)}
    found = [trace(0, "red")]
    page = written(tmp_path, methods, dict.fromkeys(methods, found))
    assert page.words.count("the model alone") == 2 and page.words.count("3 gained, 1 lost") == 1


def test_nothing_on_the_page_comes_from_the_data_unescaped(tmp_path: Path) -> None:
    traces = {"none": [trace(0, "red")], "ra_blip": [trace(0, HOSTILE)]}
    methods = {"none": figures(0.3), "ra_blip": figures(0.5, notes={HOSTILE: 1}, by_category={HOSTILE: 0.1})}
    page = written(tmp_path, methods, traces)
    assert sum(tag == "script" for tag, _ in page.tags) == 1 and all(tag != "img" for tag, _ in page.tags)


def test_differing_questions_come_one_of_each_pattern_in_turn() -> None:
    answers = {"a": "rrrrww", "b": "wwwrww", "c": "wwrrwr"}
    words = {"r": "red", "w": "blue"}
    traces = {name: [trace(i, words[c]) for i, c in enumerate(row)] for name, row in answers.items()}
    # patterns: 0 and 1 a alone, 2 a and c, 3 and 4 agree, 5 c alone
    assert differing(traces) == [0, 2, 5, 1] and differing(traces, 2) == [0, 2]


def test_a_page_without_answers_to_score_is_written(tmp_path: Path) -> None:
    empty = figures(0.0, answer_accuracy=None, interval=None, difference_interval=None, by_category={})
    page = written(tmp_path, {"none": empty}, {"none": [Trace(Question("q", "?"))]})
    assert "Retrieval methods compared" in page.words
