"""Reverse image search: the local index, a record, a web API on 127.0.0.1; and what happens when it fails."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ra_blip.commands import _trace_to_text
from ra_blip.errors import ConfigError, DataError, IndexMismatch, RABlipError, RemoteError
from ra_blip.generation.pipeline import Pipeline, PipelineConfig
from ra_blip.records import Hit, Item, Question, read_traces, write_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from ra_blip.retrieval.reverse_image import IndexProvider, open_provider, reverse_image
from ra_blip.retrieval.reverse_image_config import ApiConfig
from ra_blip.retrieval.reverse_image_http import HttpProvider
from ra_blip.retrieval.reverse_image_record import Recorded, Result, one_line, upload
from ra_blip.safe_http import HttpConfig
from tests.fakes import FakeModel, world
from tests.local_server import Answer, Asked, LocalServer

pytest.importorskip("faiss")


def photo(path: Path, colour: str = "red", size: tuple[int, int] = (40, 30)) -> str:
    """A real picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return str(path)


def png(colour: str) -> bytes:
    """The bytes of a small picture."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


class Canned:
    """A live provider that gives what it was told to, or fails."""

    name = "canned"

    def __init__(self, results: list[Result] | RABlipError) -> None:
        self.results = results
        self.seen: list[bytes] = []

    def search(self, picture: bytes, k: int) -> list[Result]:
        self.seen.append(picture)
        if isinstance(self.results, RABlipError):
            raise self.results
        return self.results


def hits(answer: list[Hit] | RABlipError) -> list[Hit]:
    """An answer that is no error."""
    assert not isinstance(answer, RABlipError), answer
    return answer


def test_index_compares_pictures_with_pictures_and_gives_their_captioned_items(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    bare = [Item("bare", image=questions[1].image)]  # the very picture, but no words: of no use to a reader
    model = FakeModel()
    index = KnowledgeIndex.build([*items, *bare], model)
    asked = [question.image for question in questions if question.image]
    found = [hits(one) for one in IndexProvider(model, index).look_up(asked, 3)]
    shown = [question.gold[0].replace("place", "view") for question in questions[1::2]]
    assert [one[0].item.id for one in found] == shown
    assert all(one[0].score == pytest.approx(1, abs=1e-5) for one in found)  # the caption is not in the way
    assert all(len(one) == 3 and all(hit.item.kind == "image+text" for hit in one) for one in found)
    assert all(one[0].score >= one[1].score >= one[2].score for one in found)
    assert len(hits(IndexProvider(model, index).look_up(asked[:1], 100)[0])) == 10  # as many as there are
    texts = [item for item in items if not item.image]
    assert IndexProvider(model, KnowledgeIndex.build([*texts, *bare], model)).look_up(asked[:1], 3) == [[]]
    with pytest.raises(IndexMismatch):
        IndexProvider(FakeModel(seed=1), index)


def test_second_hop_looks_up_the_facts_of_what_was_recognised(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    traces = Pipeline(model, index, PipelineConfig.of([], method="rir"))(questions)
    assert [trace.answer for trace in traces[1::2]] == [question.answers[0] for question in questions[1::2]]
    assert all(trace.stage("search") and trace.stage("hop") for trace in traces[1::2])
    assert all(trace.notes and not trace.hits for trace in traces[::2])


PAPER = ["hops=1", "rerank=none", "threshold=0", "askg=false"]  # the results themselves before the generator


def test_method_rir_as_in_the_paper_answers_from_what_looks_alike_and_says_when_it_cannot(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    model = FakeModel()
    index = KnowledgeIndex.build(items, model)
    traces = Pipeline(model, index, PipelineConfig.of(PAPER, method="rir"))(questions)
    with_picture, without = traces[1::2], traces[::2]
    for trace in with_picture:  # what points away from the picture (a negative cosine) is not kept
        assert trace.kept == [hit.item.id for hit in trace.hits if hit.score >= 0][:4] and not trace.notes
        assert trace.kept[0] == trace.question.gold[0].replace("place", "view")
    assert all(trace.stage("search") and not trace.stage("hop") for trace in with_picture)
    assert all(trace.kept == [] and trace.answer == "unknown" for trace in without)
    assert {tuple(trace.notes) for trace in without} == {
        ("no picture to search with: answered from the question alone",)
    }
    with pytest.raises(ConfigError, match="provider 'index' looks at the pictures of an index"):
        Pipeline(model, None, PipelineConfig.of([], method="rir"))


def test_search_is_recorded_once_and_replayed_without_the_provider(tmp_path: Path) -> None:
    picture = photo(tmp_path / "asked.png")
    results = [
        Result("Velora \x1b[2J Tower\n- a page", "https://a.example/1", png("blue")),
        Result("not a picture", "https://b.example/2", b"<svg onload=x>"),
        Result("odd link", "javascript:alert(1)"),
        Result("", "https://c.example/"),
    ]
    live = Canned(results)
    recorded = Recorded(live, tmp_path / "record")
    first = hits(recorded.look_up([picture], 12)[0])
    assert [hit.item.text for hit in first] == ["Velora [2J Tower - a page", "not a picture", "odd link"]
    assert [hit.item.source for hit in first] == ["https://a.example/1", "https://b.example/2", None]
    assert [hit.score for hit in first] == [1.0, 0.5, 0.333333]
    assert [hit.item.image is not None for hit in first] == [True, False, False]
    with Image.open(first[0].item.image or "") as kept:
        assert kept.size == (8, 8) and kept.format == "JPEG"
    (written,) = (tmp_path / "record" / "searches").iterdir()
    assert "not a JPEG" in json.loads(written.read_text())["results"][1]["damaged"]
    again = hits(recorded.look_up([picture], 12)[0])
    (tmp_path / "replay.yaml").write_text("record: record\n")
    replayed = hits(open_provider(tmp_path / "replay.yaml").look_up([picture], 2)[0])
    assert len(live.seen) == 1 and again == first
    assert [hit.item.id for hit in replayed] == [hit.item.id for hit in first[:2]]
    other = open_provider(tmp_path / "replay.yaml").look_up([photo(tmp_path / "other.png", "green")], 2)[0]
    assert isinstance(other, RemoteError) and "holds no search for" in str(other)
    live.name = "another"
    (mixed,) = recorded.look_up([picture], 12)
    assert isinstance(mixed, DataError) and "recorded by 'canned', not 'another'" in str(mixed)


def test_more_results_than_recorded_are_searched_for_again(tmp_path: Path) -> None:
    picture = photo(tmp_path / "asked.png")
    live = Canned([Result(f"title {n}", f"https://s{n}.example/") for n in range(9)])
    recorded = Recorded(live, tmp_path / "record")
    assert [len(hits(recorded.look_up([picture], k)[0])) for k in (2, 5, 3)] == [2, 5, 3]
    assert len(live.seen) == 2


def test_no_site_fills_the_list(tmp_path: Path) -> None:
    picture = photo(tmp_path / "asked.png")
    flood = [Result(f"buy {n}", f"https://spam.example/{n}", png("blue")) for n in range(100)]
    live = Canned([*flood, Result("the tower", "https://good.example/")])
    found = hits(Recorded(live, None, per_site=3).look_up([picture], 101)[0])
    assert [hit.item.source for hit in found] == [f"https://spam.example/{n}" for n in range(3)] + [
        "https://good.example/"
    ]


def test_near_copies_of_one_source_are_taken_out_of_an_index_without_building_it_anew(tmp_path: Path) -> None:
    items, questions = world(tmp_path)
    image = questions[1].image
    poison = [Item(f"bad-{n}", text="velora", image=image, source="evil") for n in range(100)]
    model = FakeModel()
    index = KnowledgeIndex.build([*items, *poison], model)
    provider = IndexProvider(model, index)
    assert {hit.item.source for hit in hits(provider.look_up([image or ""], 10)[0])} == {"evil"}
    index.remove([item.id for item in index.items.values() if item.source == "evil"])
    assert hits(IndexProvider(model, index).look_up([image or ""], 10)[0])[0].item.id == "velora.view"


def test_picture_that_is_sent_is_small_and_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "asked.jpg"
    exif = Image.Exif()
    exif[0x8298] = "who took it"
    Image.new("RGB", (3000, 1500), "red").save(path, exif=exif)
    live = Canned([])
    assert Recorded(live, None, upload_side=512).look_up([str(path)], 3) == [[]]
    with Image.open(io.BytesIO(live.seen[0])) as sent:
        assert sent.size == (512, 256) and sent.format == "JPEG" and not dict(sent.getexif())
    assert b"who took it" in path.read_bytes() and b"who took it" not in live.seen[0]
    assert upload(path.read_bytes(), "x", 512) == live.seen[0]


def test_strangers_words_come_on_one_line_and_cut() -> None:
    assert one_line("a\n\tb\x00c\u202e d", 50) == "a b c d"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


API = "provider: http\nenabled: true\nrecord: record\nhttp: {{private_hosts: ['{host}'], timeout: 1.0, tries: 1}}\n"


def write_api(folder: Path, server: LocalServer, **api: str) -> Path:
    """A provider's file for a server."""
    path = folder / "provider.yaml"
    fields = {"url": f"{server.url}/search?hl=en", **api}
    path.write_text(API.format(host=server.host) + f"api: {json.dumps(fields)}\n")
    return path


def test_web_api_gets_the_picture_and_its_reply_becomes_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/thumbs/"):
            return Answer(png("blue")) if asked.path == "/thumbs/1" else Answer(status=404)
        inline = "data:image/png;base64," + base64.b64encode(png("green")).decode()
        thumbs = [f"http://{asked.headers['host']}/thumbs/1", f"http://{asked.headers['host']}/thumbs/2", inline, "%%%"]
        found = [
            {"name": f"title {n}", "page": {"url": f"https://s{n}.example/"}, "thumbs": [thumb]}
            for n, thumb in enumerate(thumbs)
        ]
        return Answer(json.dumps({"data": {"matches": found}}).encode())

    monkeypatch.setenv("SEARCH_KEY", " k-123\n")
    keys = {
        "key_env": "SEARCH_KEY",
        "results": "data.matches",
        "title": "name",
        "link": "page.url",
        "thumbnail": "thumbs.0",
    }
    with LocalServer(answer) as server:
        provider = open_provider(write_api(tmp_path, server, **keys))
        found = hits(provider.look_up([photo(tmp_path / "asked.png")], 12)[0])
    assert [(hit.item.text, hit.item.source) for hit in found] == [
        (f"title {n}", f"https://s{n}.example/") for n in range(4)
    ]
    assert [hit.item.image is not None for hit in found] == [True, False, True, False]
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/search?hl=en")
    assert asked.headers["authorization"] == "Bearer k-123"
    boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
    head, _, rest = asked.body.partition(b"\r\n\r\n")
    assert head.startswith(b"--" + boundary) and b'name="image"; filename="picture.jpg"' in head
    jpeg = rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")
    with Image.open(io.BytesIO(jpeg)) as sent:
        assert sent.size == (40, 30)
    assert all("authorization" not in one.headers for one in server.asked[1:])  # pictures are fetched without it


def test_web_api_may_take_the_picture_in_json() -> None:
    with LocalServer(lambda asked: Answer(b'[{"title": "a"}, {"title": "b"}]')) as server:
        config = ApiConfig(url=server.url, body="json", picture="img", fields={"lang": "en"}, results="")
        found = HttpProvider(config, HttpConfig(private_hosts=[server.host])).search(b"jpeg", 1)
    assert found == [Result("a")]
    assert json.loads(server.asked[0].body) == {"lang": "en", "img": base64.b64encode(b"jpeg").decode()}


FAILURES: dict[str, tuple[Callable[[Asked], Answer], str]] = {
    "garbage": (lambda asked: Answer(b"<html>what?"), "not JSON"),
    "nesting": (lambda asked: Answer(b"[" * 100_000), "not JSON"),
    "another shape": (lambda asked: Answer(b'{"results": {"a": 1}}'), "is not a list"),
    "empty results": (lambda asked: Answer(b'{"results": [{}, 3]}'), "a result without"),
    "busy": (lambda asked: Answer(status=429), "status 429"),
    "broken": (lambda asked: Answer(status=500), "status 500"),
    "20 MB": (lambda asked: Answer(itertools.repeat(bytes(1 << 16), 320)), "more than 5,000,000"),
    "redirect inside": (
        lambda asked: Answer(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"}),
        "redirects a POST",
    ),
    "nothing found": (lambda asked: Answer(b'{"results": []}'), "found nothing"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_provider_that_fails_leaves_an_answer_without_retrieval_and_a_note(kind: str, tmp_path: Path) -> None:
    reply, words = FAILURES[kind]
    question = Question("q", "Which tower is this?", photo(tmp_path / "asked.png"))
    with LocalServer(reply) as server:
        config = PipelineConfig.of([f"provider={write_api(tmp_path, server)}"], method="rir")
        trace = Pipeline(FakeModel(), None, config)([question])[0]
    assert trace.answer == "unknown" and trace.hits == [] and trace.kept == []
    assert len(trace.notes) == 1 and words in trace.notes[0]
    assert trace.notes[0].endswith("answered from the question alone")
    assert f"  note: {trace.notes[0]}" in _trace_to_text(trace).splitlines()
    write_jsonl(tmp_path / "traces.jsonl", [trace])
    assert read_traces(tmp_path / "traces.jsonl")[0].notes == trace.notes


def test_provider_that_hangs_leaves_an_answer_without_retrieval(tmp_path: Path) -> None:
    import threading

    free = threading.Event()

    def hang(asked: Asked) -> Answer:
        free.wait(5)
        return Answer()

    with LocalServer(hang) as server:
        path = write_api(tmp_path, server)
        path.write_text(path.read_text().replace("timeout: 1.0", "timeout: 0.2"))
        found = reverse_image(FakeModel(), None, str(path), 4)(
            [Question("q", "What?", photo(tmp_path / "asked.png")), Question("p", "What?")], 3
        )
        free.set()
    assert [one.hits for one in found] == [[], []]
    assert "no reply within 0.2 seconds" in found[0].note and found[1].note == "no picture to search with"


def test_damaged_picture_of_a_question_fails_alone(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    answers = Recorded(Canned([Result("fine")]), None).look_up([str(bad), photo(tmp_path / "good.png")], 3)
    assert isinstance(answers[0], RABlipError) and hits(answers[1])[0].item.text == "fine"


def test_nothing_leaves_the_machine_unless_it_is_enabled(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    for provider in ("http", "browser"):
        path.write_text(f"provider: {provider}\n")
        with pytest.raises(ConfigError, match="'enabled: true' agrees to that"):
            open_provider(path)
    path.write_text("provider: http\nenabled: true\n")
    with pytest.raises(ConfigError, match=r"api\.url is missing"):
        open_provider(path)
    path.write_text("provider: http\nenabled: true\napi: {url: 'https://a.example/', key_env: NO_SUCH_VARIABLE_X}\n")
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE_X"):
        open_provider(path)
    for text in ("provider: replay\n", "provider: replay\nrecord: none\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="must name its folder"):
            open_provider(path)
    path.write_text("provder: replay\n")
    with pytest.raises(ConfigError, match="provder"):
        open_provider(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"results": []}', '{"provider": "x", "asked": 3, "results": [{"title": 3}]}'),
        '{"provider": "x", "asked": 3, "results": [{"title": "a", "thumbnail": "../../secret.jpg"}]}',
    ],
)
def test_record_that_was_damaged_is_a_typed_error(text: str, tmp_path: Path) -> None:
    picture = photo(tmp_path / "asked.png")
    hits(Recorded(Canned([Result("a")]), tmp_path / "record").look_up([picture], 3)[0])
    (path,) = (tmp_path / "record" / "searches").iterdir()
    path.write_text(text)
    (answer,) = Recorded(None, tmp_path / "record").look_up([picture], 3)
    assert isinstance(answer, DataError) and "not a recorded search" in str(answer)
