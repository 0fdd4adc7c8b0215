"""Requests that leave the machine: where they may go, and how much they may take. No name is looked up for real."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from ra_blip.errors import ConfigError, RemoteError
from ra_blip.safe_http import HttpClient, HttpConfig, Response, at, is_public, listed, parse_url
from tests.local_server import Answer, Asked, LocalServer


def client(server: LocalServer, **limits: object) -> HttpClient:
    """A client that may reach the server, and waits for nothing."""
    config = HttpConfig(**{"private_hosts": [server.host], "timeout": 2.0, **limits})  # type: ignore[arg-type]
    return HttpClient(config, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    "text",
    [
        *("ftp://a.example/x", "file:///etc/passwd", "gopher://a.example", "//a.example/x", "a.example", "", "http://"),
        *("http://user@a.example/", "http://user:pass@a.example/", "http://a.example\\@127.0.0.1/", "http:\\\\a.b"),
        *("http://a.example/\\x", "http://a.example/a b", "http://a.example/\n", "http://a.example/x\r\nHost: b"),
        *("http://a.example/ü", "http://ä.example/", "http://a.example:/", "http://a.example:99999/", "http://a.example:0/"),
        *("http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/"),
        *("http://127.0.0.1.5/", "http://1.2.3.04/", "http://[::1", "http://[::g]/", "http://[1.2.3.4]x/"),
        *("http://a.example./", "http://.a.example/", "http://a.example%2f@b/", "http://a\x00.example/", " http://a.example"),
    ],
)  # fmt: skip
def test_addresses_that_two_readers_could_read_in_two_ways_are_refused(text: str) -> None:
    with pytest.raises(RemoteError):
        parse_url(text)


def test_plain_addresses_are_taken_apart() -> None:
    url = parse_url("HTTPS://API.Example.com/a/b?key=1&x=%20#part")
    assert (url.scheme, url.host, url.port, url.target) == ("https", "api.example.com", 443, "/a/b?key=1&x=%20")
    assert str(url) == "https://api.example.com/a/b"  # a key in the query is shown nowhere
    assert parse_url("http://a.example:8080").authority == "a.example:8080"
    assert parse_url("http://a.example?x=1").target == "/?x=1"
    assert (
        parse_url("http://93.184.215.14/").host == "93.184.215.14"
        and parse_url("http://[2606::1]/").host == "[2606::1]"
    )


def test_only_addresses_of_the_open_internet_are_public() -> None:
    assert all(map(is_public, ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07::1", "64:ff9b::808:808"]))
    inside = [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "168.63.129.16", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1%eth0"),
        *("fc00::1", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1", "ff02::1"),
        *("2002:7f00:1::", "2001:0:7f00:1::", "64:ff9b:1::7f00:1", "fec0::1"),
    ]
    assert [address for address in inside if is_public(address)] == []


def test_list_of_hosts_names_ports_and_domains() -> None:
    hosts = ["api.example.com", "*.thumbs.example", "other.example:8443"]
    allowed = [
        "https://api.example.com/",
        "http://API.example.com/",
        "https://a.b.thumbs.example/",
        "https://other.example:8443/",
    ]
    refused = [
        *("https://api.example.com:8443/", "https://xapi.example.com/", "https://api.example.com.evil.example/"),
        *(
            "https://thumbs.example/",
            "https://evilthumbs.example/",
            "https://other.example/",
            "https://a.thumbs.example:81/",
        ),
    ]
    assert all(listed(parse_url(text), hosts) for text in allowed)
    assert not any(listed(parse_url(text), hosts) for text in refused)


def test_name_that_leads_to_a_private_address_is_not_contacted() -> None:
    with LocalServer(lambda asked: Answer(b"secret")) as server:
        for addresses in (["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:127.0.0.1"]):
            config = HttpConfig(hosts=[f"inner.example:{server.port}"])
            with pytest.raises(RemoteError, match="not a public address"):
                HttpClient(config, lambda host, port, found=addresses: found).fetch(
                    f"http://inner.example:{server.port}/"
                )
        with pytest.raises(RemoteError, match="not on the list of allowed hosts"):
            HttpClient(HttpConfig()).fetch(server.url)
        assert server.asked == []


def test_host_is_resolved_once_and_that_address_is_used() -> None:
    answers: Iterator[list[str]] = iter([["127.0.0.1"], ["10.0.0.1"]])  # the second would be the rebound one
    with LocalServer(lambda asked: Answer(b"here")) as server:
        name = f"own.example:{server.port}"
        found = HttpClient(HttpConfig(private_hosts=[name]), lambda host, port: next(answers)).fetch(
            f"http://{name}/x?y=1"
        )
        assert found.body == b"here" and next(answers) == ["10.0.0.1"]
        assert (server.asked[0].path, server.asked[0].headers["host"]) == ("/x?y=1", name)


@pytest.mark.parametrize(
    "location", ["http://inner.example:{port}/", "//inner.example:{port}/", "http://127.0.0.1:{port}/"]
)
def test_redirect_is_checked_like_any_address(location: str) -> None:
    with LocalServer(lambda asked: Answer(b"secret")) as inner:
        target = location.format(port=inner.port)
        with LocalServer(lambda asked: Answer(status=302, headers={"Location": target})) as outer:
            config = HttpConfig(hosts=[f"inner.example:{inner.port}"], private_hosts=[outer.host])
            with pytest.raises(RemoteError, match=r"not a public address|not on the list"):
                HttpClient(config, lambda host, port: ["127.0.0.1"]).fetch(outer.url)
        assert inner.asked == []


def test_redirects_are_followed_up_to_a_number_and_never_for_a_post() -> None:
    def answer(asked: Asked) -> Answer:
        left = int(asked.path.strip("/"))
        return Answer(b"end") if not left else Answer(status=307, headers={"Location": f"/{left - 1}"})

    with LocalServer(answer) as server:
        assert client(server).fetch(f"{server.url}/3").body == b"end"
        with pytest.raises(RemoteError, match="more than 3 redirects"):
            client(server).fetch(f"{server.url}/4")
        with pytest.raises(RemoteError, match="redirects a POST"):
            client(server).fetch(f"{server.url}/1", "POST", body=b"x")


def test_reply_of_20_mb_is_refused_with_and_without_a_length() -> None:
    piece = bytes(1 << 16)
    replies = [
        Answer(itertools.repeat(piece, 320), headers={"Content-Length": str(320 << 16)}),
        Answer(itertools.repeat(piece, 320)),
    ]
    sent = iter(replies)
    with LocalServer(lambda asked: next(sent)) as server:
        one = client(server, max_bytes=1_000_000)
        with pytest.raises(RemoteError, match="a reply of 20,971,520 bytes, more than 1,000,000"):
            one.fetch(server.url)
        with pytest.raises(RemoteError, match="a reply of more than 1,000,000 bytes"):
            one.fetch(server.url)
        assert one.requests == 2  # trying again would not help


def test_server_that_sends_a_byte_now_and_then_runs_out_of_time() -> None:
    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b"x"

    with LocalServer(lambda asked: Answer(drip())) as server:
        start = time.monotonic()
        with pytest.raises(RemoteError, match=r"no reply within 0.3 seconds \(tried 1 times\)"):
            client(server, timeout=0.3, tries=1).fetch(server.url)
        assert time.monotonic() - start < 2


def test_reply_that_ends_early_is_none() -> None:
    with (
        LocalServer(lambda asked: Answer([b"abc"], headers={"Content-Length": "10"})) as server,
        pytest.raises(RemoteError, match="IncompleteRead"),
    ):
        client(server, tries=1).fetch(server.url)


def test_busy_server_is_asked_again_after_longer_and_longer_waits() -> None:
    replies = iter([Answer(status=503), Answer(status=429, headers={"Retry-After": "7"}), Answer(b"now")])
    waits: list[float] = []
    with LocalServer(lambda asked: next(replies)) as server:
        patient = HttpClient(HttpConfig(private_hosts=[server.host], wait=0.5), sleep=waits.append)
        assert patient.fetch(server.url).body == b"now" and patient.requests == 3
    assert waits == [0.5, 7.0]


def test_wait_that_a_server_asks_for_is_bounded_and_other_refusals_are_final() -> None:
    waits: list[float] = []
    with LocalServer(
        lambda asked: Answer(b"no key", 429 if asked.path == "/busy" else 401, {"Retry-After": "999999"})
    ) as server:
        asker = HttpClient(HttpConfig(private_hosts=[server.host]), sleep=waits.append)
        with pytest.raises(RemoteError, match=r"status 429 \(tried 3 times\)"):
            asker.fetch(f"{server.url}/busy")
        assert waits == [30.0, 30.0]
        with pytest.raises(RemoteError, match="status 401: no key"):
            asker.fetch(f"{server.url}/closed?key=hidden")
    assert asker.requests == 4


def test_quota_and_patience_end_all_asking() -> None:
    with LocalServer(lambda asked: Answer(status=500 if asked.path == "/bad" else 200)) as server:
        frugal = client(server, quota=2)
        frugal.fetch(server.url), frugal.fetch(server.url)
        with pytest.raises(RemoteError, match="quota of 2 requests is used up"):
            frugal.fetch(server.url)
        hurt = client(server, tries=1, patience=2)
        for _ in range(2):
            with pytest.raises(RemoteError, match="status 500"):
                hurt.fetch(f"{server.url}/bad")
        with pytest.raises(RemoteError, match="not asked: the 2 requests before failed"):
            hurt.fetch(server.url)
        assert len(server.asked) == 4


def test_key_goes_to_the_first_host_only_and_never_in_the_open() -> None:
    with LocalServer(lambda asked: Answer(b"end")) as second:
        with LocalServer(lambda asked: Answer(status=302, headers={"Location": second.url})) as first:
            asker = HttpClient(HttpConfig(private_hosts=[first.host, second.host]))
            asker.fetch(first.url, headers={"X-Kind": "a"}, secret={"Authorization": "Bearer k"})
        assert first.asked[0].headers["authorization"] == "Bearer k"
        assert "authorization" not in second.asked[0].headers and second.asked[0].headers["x-kind"] == "a"
    with pytest.raises(RemoteError, match="over https only"):
        HttpClient(HttpConfig(hosts=["a.example"]), lambda host, port: ["127.0.0.1"]).fetch(
            "http://a.example/", secret={"K": "k"}
        )


def test_key_with_a_line_break_is_refused_and_not_shown() -> None:
    with LocalServer(lambda asked: Answer(b"")) as server, pytest.raises(RemoteError) as caught:
        client(server).fetch(server.url, secret={"Authorization": "Bearer my\nkey"})
    assert "line break" in str(caught.value) and "my" not in str(caught.value)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer(lambda asked: Answer(b"direct")) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert client(server).fetch(server.url).body == b"direct"


def test_no_server_no_name_and_no_tls_are_typed_errors() -> None:
    with LocalServer(lambda asked: Answer(b"plain")) as server, pytest.raises(RemoteError, match="SSL"):
        client(server, tries=1).fetch(server.url.replace("http:", "https:"))
    with pytest.raises(RemoteError, match="ConnectionRefused"):
        client(server, tries=1).fetch(server.url)

    def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(RemoteError, match="host not found"):
        HttpClient(HttpConfig(hosts=["a.example"], tries=1), unknown).fetch("https://a.example/")


def test_json_is_read_by_key_and_garbage_is_a_typed_error() -> None:
    assert Response(200, {}, b'{"a": [{"b": 1}, {"b": 2}]}').json("a.1.b") == 2
    assert at([1], "") == [1]
    for body in (b"<html>", b"\xff\xfe", b"", b"[" * 200_000):
        with pytest.raises(RemoteError, match="not JSON"):
            Response(200, {}, body).json()
    for key in ("x", "a.5", "a.b.c", "a.x"):
        with pytest.raises(RemoteError, match="holds no"):
            Response(200, {}, b'{"a": [1]}').json(key)


def test_limits_that_mean_nothing_are_refused() -> None:
    for wrong in ({"timeout": 0.0}, {"max_bytes": -1}, {"tries": 0}, {"redirects": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            HttpConfig(**wrong)  # type: ignore[arg-type]
