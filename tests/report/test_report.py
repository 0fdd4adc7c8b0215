"""The report: self-contained, escaped, faithful to the figures, bounded in size."""

from __future__ import annotations

import json
import random
import re
import tarfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ra_blip.errors import DataError, OutputError
from ra_blip.records import Hit, Item, Question, Trace, read_traces, write_jsonl
from ra_blip.report import curves, grids
from ra_blip.report.charts import linear_ticks, log_ticks
from ra_blip.report.markup import compact, esc, leaves
from ra_blip.report.page import write_report
from ra_blip.report.summary import Scored, mean_seconds, score, summarise, wilson
from ra_blip.report.thumbnails import SIDE, Pictures, thumbnail

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp; http://evil.example/x"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._skip = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words += data


def picture(path: Path, colour: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 200), colour).save(path)
    return str(path)


def trace(n: int, answer: str, image: str | None = None, category: str | None = "roofs", **changes: Any) -> Trace:
    gold = Item(f"gold-{n}", text=f"the roof of number {n}", image=image)
    other = Item(f"other-{n}", text="a river")
    values: dict[str, Any] = {
        "question": Question(f"q{n}", f"roof {n}?", answers=("red",), gold=(gold.id,), category=category),
        "answer": answer,
        "hits": [Hit(gold, 0.75, "search"), Hit(other, 0.5, "search"), Hit(other, 0.9, "rank"), Hit(gold, 0.1, "rank")],
        "kept": [other.id, gold.id],
        "judged": [gold.id],
        "relevance": [0.125, 0.875],
        "seconds": {"search": 0.25, "rank": 0.5},
    }
    return Trace(**{**values, **changes})


def metrics() -> dict[str, Any]:
    answer = {"with_retrieval": 0.8613, "without_retrieval": 0.1171, "gold_knowledge": 0.9732}
    part = {"answer": {"with_retrieval": 0.7319}, "retrieval": {"recall@1": 0.6427}, "askg": {"accuracy": 0.5533}}
    return {
        "answer": answer,
        "retrieval": {"recall@1": 0.9012, "recall@5": 0.9634, "mrr@10": 0.9278},
        "askg": {"accuracy": 0.8845},
        "by_category": {"roofs": part},
        "intervals": {"answer": {"with_retrieval": [0.8312, 0.8899]}},
        "seconds": {"search": 0.0123, "generate": 1.75},
        "provenance": {"python": "3.11.7", "revision": None, "versions": {"torch": "2.13"}},
    }


def write(tmp_path: Path, traces: list[Trace], **rest: Any) -> str:
    return write_report(traces, tmp_path / "page.html", **rest).read_text(encoding="utf-8")


def test_page_from_traces_alone(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "traces.jsonl", [trace(1, "Red."), trace(2, "blue"), trace(3, "the red", category=None)])
    text = write(tmp_path, read_traces(tmp_path / "traces.jsonl"))
    words = Page(text).words
    assert "66.7" in words  # two of three answers
    assert "roofs" in words and "uncategorised" in words
    assert 'id="losses"' not in text and 'id="edit"' not in text and 'id="provenance"' not in text
    assert words.index("roof 2?") < words.index("roof 1?", words.index("Question by question"))  # the failure first


def test_empty_traces(tmp_path: Path) -> None:
    assert "No question was asked" in write(tmp_path, [])


def test_unwritable_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_report([], tmp_path / "file" / "page.html")


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    item = Item(HOSTILE, text=HOSTILE, title=HOSTILE, image=HOSTILE)
    question = Question("q", HOSTILE, image=HOSTILE, answers=(HOSTILE,), gold=(HOSTILE,), category=HOSTILE)
    one = Trace(
        question, HOSTILE + "!", [Hit(item, 0.5, HOSTILE)], [HOSTILE], [HOSTILE], [0.5], HOSTILE, {HOSTILE: 1.0}
    )
    two = Trace(Question("r", "plain", category="plain", answers=("x",)), "y")
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"step": 1, "loss": 1.0, HOSTILE + "_loss": 2.0}) + "\n")
    edit = {"landmark": HOSTILE, "image": HOSTILE, "steps": [dict.fromkeys(("action", "question", "answer"), HOSTILE)]}
    given = {
        "by_category": {HOSTILE: {"answer": {"shuffled": 0.5}}},
        "provenance": {HOSTILE: HOSTILE},
        HOSTILE: HOSTILE,
    }
    page = Page(write(tmp_path, [one, two], metrics=given, logs={HOSTILE: log}, edit=edit, title=HOSTILE))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and tags.count("style") == 1 and "img" not in tags
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "onerror=alert(1)" in page.words  # shown, as text


def test_control_characters_are_dropped() -> None:
    assert esc("a\u202eb\x1b[31m\nc") == "ab[31m c"
    assert esc("abcdef", 4) == "abc…"


def test_no_outside_references(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", "red")
    text = write(tmp_path, [trace(1, "red", image)], metrics=metrics(), edit={"landmark": "X", "image": image})
    assert "http:" not in text.replace("http-equiv", "") and "https:" not in text and "file:" not in text
    assert "@import" not in text and str(tmp_path) not in text
    for _, attributes in Page(text).tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    assert all(found.startswith('"data:image/jpeg;base64,') for found in re.findall(r"url\(([^)]*)\)", text))


def test_policy_allows_the_page_script_only(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = write(tmp_path, [trace(1, "red")])
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


def test_numbers_equal_the_metrics_given(tmp_path: Path) -> None:
    given = metrics()
    text = write(tmp_path, [trace(1, "red"), trace(2, "blue")], metrics=given)
    values = re.findall(r'<data value="([^"]*)">([^<]*)</data>', text)
    shown = {(float(value), words) for value, words in values}
    for key, value in leaves({k: given[k] for k in ("answer", "retrieval", "askg", "by_category")}):
        assert (value, f"{100 * value:.1f}") in shown, key
    assert {(0.0123, "0.0123"), (1.75, "1.75")} <= shown
    assert "83.1&ndash;89.0" in text
    assert {value for value, _ in shown} <= {v for _, v in leaves(given) if isinstance(v, float)} | {0.25}  # chance
    assert "versions.torch" in text and "3.11.7" in text


def test_each_picture_is_embedded_once(tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "red.png", "red"), picture(tmp_path / "blue.png", "blue")
    copy = picture(tmp_path / "copy.png", "red")  # the same picture under another name
    text = write(tmp_path, [trace(n, "red", image) for n, image in enumerate([red, blue, copy, red])])
    assert text.count("data:image/jpeg") == 2
    assert "2 distinct pictures embedded" in text
    assert len(re.findall(r'class="pic p0"', text)) >= 3 and 'class="pic p1"' in text


def test_missing_pictures_are_shown_and_counted(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    images = [str(tmp_path / "absent.png"), str(damaged), str(tmp_path / "absent.png")]
    text = write(tmp_path, [trace(n, "red", image) for n, image in enumerate(images)])
    assert text.count("<span>picture missing</span>") == 3
    assert "2 pictures missing or unreadable" in text


def test_thumbnail_fits_and_flattens(tmp_path: Path) -> None:
    Image.new("RGBA", (640, 320), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    jpeg = thumbnail(tmp_path / "clear.png")
    assert jpeg is not None
    (tmp_path / "out.jpg").write_bytes(jpeg)
    with Image.open(tmp_path / "out.jpg") as small:
        assert small.size == (SIDE, SIDE // 2)
        assert small.convert("RGB").getpixel((5, 5)) == (255, 255, 255)
    assert thumbnail(tmp_path) is None


def test_a_picture_in_a_container_is_shown(tmp_path: Path) -> None:
    path = picture(tmp_path / "red.png", "red")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(path, "7.png")
    pictures = Pictures()
    assert pictures.tile(f"{tmp_path / 'shard.tar'}#7.png", "a") == pictures.tile(path, "a")
    assert (len(pictures), pictures.missing) == (1, [])
    assert "picture missing" in pictures.tile(f"{tmp_path / 'shard.tar'}#8.png", "a")


def test_picture_budget(tmp_path: Path) -> None:
    pictures = Pictures(budget=10)
    assert "picture not embedded" in pictures.tile(picture(tmp_path / "a.png", "red"), "a")
    assert pictures.left_out and not pictures.missing and pictures.css() == ""


def test_size_stays_bounded(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = []
    for n in range(500):
        noise = Image.frombytes("RGB", (SIDE, SIDE), rng.randbytes(3 * SIDE * SIDE))
        noise.save(tmp_path / f"{n}.png", compress_level=1)
        images.append(str(tmp_path / f"{n}.png"))
    traces = []
    for n in range(500):
        items = [Item(f"{n}-{k}", text="<" * 5000, image=images[(n * 20 + k) % 500]) for k in range(20)]
        hits = [Hit(item, 0.5, "search") for item in items]
        question = Question(str(n), "&" * 5000, answers=("'" * 5000,), gold=("gold",), category=f"c{n % 50}")
        traces.append(Trace(question, '"' * 5000, hits, [item.id for item in items[8:]]))
    out = write_report(traces, tmp_path / "page.html")
    assert out.stat().st_size < 12_000_000
    text = out.read_text(encoding="utf-8")
    assert text.count('<article class="case') <= grids.CASES
    assert "20 further categories with 200 questions not shown." in text
    assert "left out to bound the size" in text


def test_failures_first_with_room_for_right_ones() -> None:
    group = [Scored(trace(n, "x"), n % 3 == 0) for n in range(60)]  # 20 right, 40 wrong
    chosen = grids.choose(group, 12)
    assert [one.right for one in chosen] == [False] * 8 + [True] * 4
    few = [Scored(trace(n, "x"), n > 0) for n in range(5)]
    assert [one.right for one in grids.choose(few, 12)] == [False, True, True, True, True]
    assert [one.right for one in grids.choose(few, 3)] == [False, True, True]
    assert len(grids.choose([Scored(trace(n, "x"), False) for n in range(60)], 12)) == 12


def test_counts_of_what_is_not_shown(tmp_path: Path) -> None:
    text = write(tmp_path, [trace(n, "red" if n % 2 else "blue") for n in range(40)])
    assert "Shown: 8 of 20 wrong, 4 of 20 right. 28 questions not shown here." in text
    assert text.count('<article class="case') == 12


def test_case_shows_scores_gold_and_judgement(tmp_path: Path) -> None:
    text = write(tmp_path, [trace(1, "blue")])
    gold = next(part for part in text.split("<figure ")[1:] if 'class="tile is-gold is-judged"' in part)
    assert "<dt>search</dt><dd>0.750</dd>" in gold and "<dt>rank</dt><dd>0.100</dd>" in gold
    assert "★ gold" in gold and "judged relevant <b>0.88</b>" in gold
    assert "<span>2</span>" in gold  # its place in the last stage's list
    assert "right: red" in text


def test_hop_shows_both_searches_and_gold_not_found(tmp_path: Path) -> None:
    first, second = Item("view", text="a view of X"), Item("fact", text="X is old")
    one = Trace(
        Question("q", "who?", image=picture(tmp_path / "q.png", "red"), answers=("a",), gold=("lost",)),
        "b",
        [Hit(first, 0.8, "search"), Hit(second, 0.7, "hop")],
        ["fact", "planted"],
    )
    words = Page(write(tmp_path, [one])).words
    assert words.index("First search") < words.index("Second search")
    assert "gold not found: lost" in words and "given without a search: planted" in words


def test_edit_demonstration(tmp_path: Path) -> None:
    ask = {"question": "Roof of X?", "expected": "red"}
    steps = [
        {"action": "asked before", "answer": "blue", **ask},
        {"action": "item added", "items": ["x.view"]},
        {"action": "asked again", "answer": "Red", "items": ["x.view"], **ask},
        {"action": "asked again", "question": "Who?", "answer": "", "expected": "Kim"},
    ]
    text = write(tmp_path, [], edit={"landmark": "X Hall", "image": None, "steps": steps})
    part = text.split('<section id="edit">')[1].split("</section>")[0]
    assert re.findall(r"<h4>(.*?)</h4>", part) == ["asked before", "item added", "asked again"]
    assert re.findall(r'class="said (\w+)"', part) == ["wrong", "right", "wrong"]
    assert part.count("<li>x.view</li>") == 2 and "X Hall" in part and "<i>nothing</i>" in part


def points(text: str, kind: str, series: str) -> list[list[float]]:
    found = re.search(rf'<polyline class="{kind}[^"]*" data-series="{series}" points="([^"]*)"', text)
    assert found is not None
    return [[float(part) for part in place.split(",")] for place in found[1].split()]


def test_curves_have_every_point(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"step": n, "loss": 3 - n / 50, "itc_loss": 1 - n / 50, "lr": 1e-3 * n, "grad": 5} for n in range(1, 41)]
    rows.append({"step": 40, "loss": float("nan"), "itc_loss": 0.2})  # a resumed run logs the step again
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = curves.losses({"pretrain_one": log})
    assert len(points(text, "raw", "itc_loss")) == len(points(text, "smooth", "itc_loss")) == 40
    assert len(points(text, "raw", "loss")) == 39 and "1 value not finite" in text
    assert len(points(text, "rate", "lr")) == 39 and "grad" not in text
    xs = [x for x, _ in points(text, "raw", "itc_loss")]
    assert xs[0] == curves.LEFT and xs[-1] == curves.RIGHT and xs == sorted(xs)
    ys = [y for _, y in points(text, "raw", "loss")]
    assert ys[0] == pytest.approx(curves.TOP) and ys == sorted(ys)  # the loss falls, so the line goes down
    assert "pretrain one" in text and "optimizer step" in text and "linear scale" in text


def test_curves_choose_a_log_scale(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f'{{"step": {n}, "loss": {10.0 ** (-n)}}}\n' for n in range(4)))
    text = curves.losses({"a": tmp_path / "a"})
    ys = [y for _, y in points(text, "raw", "loss")]
    assert "log scale" in text
    steps = [after - before for before, after in pairwise(ys)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.11)


def test_long_curves_are_thinned_and_keep_spikes() -> None:
    curve = [(float(n), 1.0) for n in range(5000)]
    curve[1234] = (1234.0, 9.0)
    thinned = curves.thin(curve)
    assert len(thinned) <= curves.MAX_POINTS and (1234.0, 9.0) in thinned
    assert thinned == sorted(thinned)


def test_smoothing_keeps_a_straight_line() -> None:
    line = [(float(n), 2.0 * n) for n in range(200)]
    assert [value for _, value in curves.smooth(line)] == pytest.approx([value for _, value in line])


def test_log_without_losses_and_malformed_log(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert "No loss was logged" in curves.losses({"a": tmp_path / "empty"})
    (tmp_path / "bad").write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(DataError, match="line 2"):
        curves.losses({"a": tmp_path / "bad"})


def test_ticks() -> None:
    assert linear_ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0])
    assert linear_ticks(0.0, 4.0) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert linear_ticks(3.0, 3.0) == [3.0]
    assert log_ticks(0.01, 10.0) == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert [compact(value) for value in (0.0, 0.0001, 0.25, 1500.0, 2e6)] == ["0", "1e-4", "0.25", "1,500", "2e6"]


def test_summary_by_hand() -> None:
    found = summarise(score([trace(1, "red"), trace(2, "blue", category="b")]))
    assert found["answer"] == {"with_retrieval": 0.5}
    assert found["retrieval"] == {"recall@1": 0.0, "recall@5": 1.0, "mrr@10": 0.5}  # gold is second after ranking
    assert found["by_category"]["b"]["answer"] == {"with_retrieval": 0.0}
    alone = [trace(1, "red", hits=[], kept=[], judged=[], relevance=[])]
    assert summarise(score(alone))["answer"] == {"without_retrieval": 1.0}
    assert mean_seconds([trace(1, "a"), trace(2, "b", seconds={"rank": 1.0})]) == {"search": 0.25, "rank": 0.75}


def test_wilson_interval() -> None:
    assert wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)


def test_no_references_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    text = write(tmp_path, [Trace(Question("q", "why?"), "because")])
    assert 'data-verdict="open"' in text and "answered without retrieval" in text


def test_same_input_same_page(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", "red")
    pages = [write(tmp_path, [trace(1, "red", image)], metrics=metrics()) for _ in range(2)]
    assert pages[0] == pages[1]
