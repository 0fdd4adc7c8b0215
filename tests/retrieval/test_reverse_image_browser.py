"""Reverse image search on a page: a page of our own on 127.0.0.1 in a real headless Chromium, where there is one."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ra_blip.errors import ConfigError, MissingExtra, RemoteError
from ra_blip.retrieval.reverse_image import open_provider
from ra_blip.retrieval.reverse_image_browser import BrowserProvider, _resolver_rules
from ra_blip.retrieval.reverse_image_config import PageConfig
from ra_blip.safe_http import HttpConfig
from tests.local_server import Answer, Asked, LocalServer

PAGE = Path(__file__).parent / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KINDS = {".html": "text/html", ".css": "text/css"}
COLOURS = ["red", "lime", "blue", "white", "black"]


def needs_browser() -> None:
    """Skip where Playwright or Chromium is missing, and say so."""
    pytest.importorskip("playwright", reason="Playwright is not installed (pip install 'ra-blip[browser]')")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")


def reply(asked: Asked) -> Answer:
    """The page, its results, and a redirect that leads to another port of this machine."""
    path = asked.path.partition("?")[0]
    if path == "/search":
        with Image.open(io.BytesIO(asked.body)) as sent:
            assert sent.format == "JPEG"
            count = 0 if sent.width < 20 else 5
        hosts = ["s0.example", "s1.example", "s2.example", "s3.example", "s4.example"]
        found = [
            {"title": f"A {colour} tower", "link": f"https://{host}/page", "thumbnail": thumbnail(colour)}
            for colour, host in zip(COLOURS[:count], hosts, strict=False)
        ]
        return Answer(json.dumps(found).encode(), headers={"Content-Type": "application/json"})
    file = PAGE / (path.strip("/") or "index.html")
    if not file.is_file():
        return Answer(status=404)
    return Answer(file.read_bytes(), headers={"Content-Type": KINDS[file.suffix]})


def thumbnail(colour: str) -> str:
    """A small picture inside an address."""
    out = io.BytesIO()
    Image.new("RGB", (160, 120), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def write_provider(folder: Path, server: LocalServer, query: str = "") -> Path:
    """The provider's file, and the selectors for the page at a name that only the resolver below knows."""
    start = f"http://look.example:{server.port}/{query}"
    (folder / "selectors.yaml").write_text((PAGE / "selectors.yaml").read_text().replace("START", start))
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    path = folder / "provider.yaml"
    path.write_text(
        "provider: browser\nenabled: true\nrecord: record\n"
        f"http: {{private_hosts: ['look.example:{server.port}'], timeout: 5.0}}\n"
        f"page: {{selectors: selectors.yaml, executable: {CHROMIUM}, sandbox: {str(not root).lower()}}}\n"
    )
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """The server of the page, under the name look.example."""
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", ("127.0.0.1", port))])
    with LocalServer(reply) as server:
        yield server


def asked(folder: Path, size: tuple[int, int] = (60, 40)) -> str:
    """A picture to ask about."""
    path = folder / f"asked-{size[0]}.png"
    Image.new("RGB", size, "orange").save(path)
    return str(path)


def test_browser_reads_the_results_of_a_page(here: LocalServer, tmp_path: Path) -> None:
    needs_browser()
    provider = open_provider(write_provider(tmp_path, here))
    found, nothing = provider.look_up([asked(tmp_path), asked(tmp_path, (10, 10))], 4)
    assert isinstance(found, list) and nothing == []
    assert [hit.item.text for hit in found] == [f"A {colour} tower" for colour in COLOURS[:4]]
    assert [hit.item.source for hit in found] == [f"https://s{n}.example/page" for n in range(4)]
    for hit, wanted in zip(found, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], strict=True):
        with Image.open(hit.item.image or "") as picture:
            assert picture.width == 160 and picture.height in (120, 121)  # it may begin between two pixels
            pixel = picture.convert("RGB").getpixel((80, 60))
        assert isinstance(pixel, tuple) and all(abs(a - b) < 12 for a, b in zip(pixel, wanted, strict=True))
    posted = [one for one in here.asked if one.path == "/search"]
    assert len(posted) == 2 and all(one.headers["host"].startswith("look.example:") for one in here.asked)
    assert len(provider.look_up([asked(tmp_path)], 4)[0]) == 4 and len(posted) == 2  # type: ignore[arg-type]


def test_consent_is_passed_and_a_captcha_is_a_typed_error(here: LocalServer, tmp_path: Path) -> None:
    needs_browser()
    provider = open_provider(write_provider(tmp_path, here, "?consent=1"))
    (found,) = provider.look_up([asked(tmp_path)], 2)
    assert isinstance(found, list) and len(found) == 2
    (tmp_path / "other").mkdir()
    provider = open_provider(write_provider(tmp_path / "other", here, "?captcha=1"))
    (error,) = provider.look_up([asked(tmp_path)], 2)
    assert isinstance(error, RemoteError) and "consent page or captcha" in str(error)


def test_page_cannot_lead_the_browser_to_another_host_of_this_machine(tmp_path: Path, here: LocalServer) -> None:
    needs_browser()
    with LocalServer(lambda asked: Answer(b"secret")) as inner:
        jumps = "".join(f'<img src="/jump/{n}">' for n in range(3))
        targets = [
            f"http://localhost:{inner.port}/",
            f"http://127.0.0.1:{inner.port}/",
            f"http://inner.example:{inner.port}/",
        ]

        def trap(asked: Asked) -> Answer:
            if asked.path.startswith("/jump/"):
                return Answer(status=302, headers={"Location": targets[int(asked.path[-1])]})
            direct = "".join(f'<iframe src="{target}"></iframe>' for target in targets)
            page = f"{jumps}{direct}<input id=open aria-label='Search by picture'><input id=file type=file>"
            return Answer(f"{page}<p class=hit id=done><a>x</a></p>".encode(), headers={"Content-Type": "text/html"})

        with LocalServer(trap) as outer:
            (found,) = open_provider(write_provider(tmp_path, outer)).look_up([asked(tmp_path)], 1)
        assert isinstance(found, list) and found[0].item.text == "x"
        assert {one.path for one in outer.asked} >= {"/", "/jump/0", "/jump/1", "/jump/2"} and inner.asked == []


def test_browser_that_is_not_there_is_a_typed_error(here: LocalServer, tmp_path: Path) -> None:
    needs_browser()
    path = write_provider(tmp_path, here)
    path.write_text(path.read_text().replace(f"executable: {CHROMIUM}", f"executable: {tmp_path / 'none'}"))
    (error,) = open_provider(path).look_up([asked(tmp_path)], 1)
    assert isinstance(error, RemoteError) and "browser http://look.example" in str(error)


def test_playwright_that_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    (tmp_path / "s.yaml").write_text("start: 'http://a.example/'\nresults: r\ntitle: t\n")
    with pytest.raises(MissingExtra, match=r"ra-blip\[browser\]"):
        BrowserProvider(PageConfig("s.yaml"), HttpConfig(), tmp_path)
    with pytest.raises(ConfigError, match=r"page\.selectors is missing"):
        BrowserProvider(PageConfig(), HttpConfig(), tmp_path)
    (tmp_path / "s.yaml").write_text("start: 'http://a.example/'\n")
    with pytest.raises(ConfigError, match="'results' is missing"):
        BrowserProvider(PageConfig("s.yaml"), HttpConfig(), tmp_path)


def test_browser_is_given_checked_addresses_and_no_other_name() -> None:
    table = {"a.example": ["93.184.215.14"], "own.example": ["127.0.0.1"], "b.example": ["2606:2800::1"]}
    rules = _resolver_rules(HttpConfig(["a.example", "b.example"], ["own.example:81"]), lambda host, port: table[host])
    assert rules == (
        "MAP a.example 93.184.215.14, MAP b.example [2606:2800::1], MAP own.example 127.0.0.1, MAP * ~NOTFOUND"
    )
    with pytest.raises(RemoteError, match="not a public address"):
        _resolver_rules(HttpConfig(["own.example"]), lambda host, port: ["10.0.0.1"])
    with pytest.raises(ConfigError, match="full name"):
        _resolver_rules(HttpConfig(["*.example.com"]), lambda host, port: ["93.184.215.14"])
