"""Reverse image search on a web page, driven in a headless Chromium by a file of selectors that the user can edit.

The browser is held to the allowed hosts twice. Each is resolved and checked once, before the start, and Chromium is
given these addresses and told that no other name exists, whatever a page or a redirect asks for. And every request is
looked at by the one URL parser before it leaves.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from ra_blip.config import load_settings
from ra_blip.errors import ConfigError, MissingExtra, RemoteError
from ra_blip.retrieval.reverse_image_config import PageConfig, Selectors, Step
from ra_blip.retrieval.reverse_image_record import Result
from ra_blip.safe_http import HttpClient, HttpConfig, Resolve, listed, parse_url, resolve

OPTIONAL_SECONDS = 2.0
_MOST_NODES = 200  # results that are looked at on a page, however many it shows


class BrowserProvider:
    """A :class:`~ra_blip.retrieval.reverse_image_record.Live` provider on a page; each search has a browser of its own.

    Args:
        page: executable, sandbox and the file of selectors.
        http: allowed hosts, without ``*``; ``timeout`` is that of each step.
        folder: where the file of selectors is looked for.

    Raises:
        ConfigError: no selectors, or a selector that is needed is empty.
        MissingExtra: Playwright is not installed.
        RemoteError: a host is not found, or not public.
    """

    def __init__(self, page: PageConfig, http: HttpConfig, folder: Path) -> None:
        if not page.selectors:
            raise ConfigError("provider 'browser': page.selectors is missing, the file that says how to read the page")
        self._selectors = load_settings(folder / page.selectors, Selectors)
        for name in ("start", "results", "title"):
            if not getattr(self._selectors, name):
                raise ConfigError(f"{folder / page.selectors}: {name!r} is missing")
        _playwright()
        self._page = page
        self._http = http
        self._rules = _resolver_rules(http)
        self._searches = 0
        self.name = f"browser {parse_url(self._selectors.start)}"

    def search(self, picture: bytes, k: int) -> list[Result]:
        """At most ``k`` results, in the page's order.

        Raises:
            RemoteError: the browser does not start, a step finds nothing, or a consent page or captcha stands in the
                way; names the selector.
        """
        if self._searches >= self._http.quota:
            raise RemoteError(f"{self.name}: the quota of {self._http.quota} searches is used up")
        self._searches += 1
        # Playwright does not start in a thread that runs an event loop, as notebooks do
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._opened, picture, k).result()

    def _opened(self, picture: bytes, k: int) -> list[Result]:
        api, limit = _playwright(), 1000 * self._http.timeout
        options = {"executable_path": self._page.executable or None, "chromium_sandbox": self._page.sandbox}
        flags = [f"--host-resolver-rules={self._rules}", "--no-proxy-server"]
        try:
            with api.sync_playwright() as driver:
                browser = driver.chromium.launch(**options, args=flags, timeout=limit)
                try:
                    context = browser.new_context(service_workers="block", accept_downloads=False)
                    context.set_default_timeout(limit)
                    context.route("**/*", functools.partial(_guard, self._http))
                    context.route_web_socket("**/*", lambda socket: socket.close())
                    return self._searched(context.new_page(), picture, k)
                finally:
                    browser.close()
        except (api.Error, OSError) as error:
            raise RemoteError(f"{self.name}: {' '.join(str(error).split())[:300]}") from None

    def _searched(self, page: Any, picture: bytes, k: int) -> list[Result]:
        chosen = self._selectors
        page.goto(chosen.start, wait_until="domcontentloaded")
        for step in chosen.steps:
            self._step(page, step, picture)
        ends = ", ".join(filter(None, (chosen.results, chosen.nothing, chosen.blocked)))
        page.locator(ends).first.wait_for(state="attached")
        if chosen.blocked and page.locator(chosen.blocked).count():
            raise RemoteError(f"{self.name}: a consent page or captcha stands in the way ({chosen.blocked!r})")
        found = page.locator(chosen.results)
        return [self._result(page, found.nth(n)) for n in range(min(found.count(), k, _MOST_NODES))]

    def _step(self, page: Any, step: Step, picture: bytes) -> None:
        spot = page.locator(step.at).first
        if step.optional:
            try:
                spot.wait_for(timeout=1000 * min(OPTIONAL_SECONDS, self._http.timeout))
            except _playwright().TimeoutError:
                return
        if step.do == "click":
            spot.click()
        elif step.do == "upload":
            spot.set_input_files({"name": "picture.jpg", "mimeType": "image/jpeg", "buffer": picture})
        else:
            spot.wait_for()

    def _result(self, page: Any, result: Any) -> Result:
        chosen = self._selectors
        title = result.locator(chosen.title)
        link, small = result.locator(chosen.link), result.locator(chosen.thumbnail)
        words = title.first.inner_text() if title.count() else ""
        target = link.first.get_attribute("href") if link.count() else None
        picture = small.first.screenshot(type="png") if small.count() and small.first.is_visible() else b""
        return Result(words, urljoin(page.url, target) if target else "", picture)


def _guard(http: HttpConfig, route: Any) -> None:
    """Let a request through to an allowed host only."""
    text = route.request.url
    try:
        allowed = text.startswith(("data:", "blob:")) or listed(parse_url(text), [*http.hosts, *http.private_hosts])
    except RemoteError:
        allowed = False
    if allowed:
        route.continue_()
    else:
        route.abort("blockedbyclient")


def _resolver_rules(http: HttpConfig, resolver: Resolve = resolve) -> str:
    """Chromium's ``--host-resolver-rules``: the allowed hosts at their checked addresses, and nothing else."""
    client = HttpClient(http, resolver)
    rules = []
    for entry in dict.fromkeys([*http.hosts, *http.private_hosts]):
        if "*" in entry:
            raise ConfigError(f"http.hosts: {entry!r}: the browser needs every host by its full name")
        url = parse_url(f"https://{entry}")
        address = client.address_of(url)
        rules.append(f"MAP {url.host} {f'[{address}]' if ':' in address else address}")
    return ", ".join([*rules, "MAP * ~NOTFOUND"])


def _playwright() -> Any:
    try:
        import playwright.sync_api as api
    except ImportError:
        raise MissingExtra("playwright", "browser") from None
    return api
