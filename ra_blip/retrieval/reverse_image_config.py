"""The YAML file of a reverse image search provider, as dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ra_blip.safe_http import HttpConfig


@dataclasses.dataclass
class ApiConfig:
    """A web API that takes a picture by POST and replies in JSON.

    Attributes:
        url: where to.
        body: the picture as a file of a form (``multipart``), or in base64 in a JSON object (``json``).
        picture: name of the field that holds it.
        fields: further fields, the same for each request.
        key_env: name of the environment variable that holds the key; the key itself stands in no file.
        key_header: header that carries it.
        key_prefix: what stands before it there.
        results: where the list of results stands in the reply, keys joined by dots (``data.matches``); empty: the
            reply is the list.
        title: key of a result's words, in the same way.
        link: key of the page's address.
        thumbnail: key of the small picture, an address or base64 (``data:`` or bare).
    """

    url: str = ""
    body: Literal["multipart", "json"] = "multipart"
    picture: str = "image"
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    key_env: str = ""
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    results: str = "results"
    title: str = "title"
    link: str = "link"
    thumbnail: str = "thumbnail"


@dataclasses.dataclass
class Step:
    """One action on a page: ``click`` it, ``upload`` the picture to it, or ``wait`` until it shows."""

    do: Literal["click", "upload", "wait"] = "wait"
    at: str = ""
    optional: bool = False  # where it does not show within two seconds, go on: a consent page that not everyone sees


@dataclasses.dataclass
class Selectors:
    """How a page of reverse image search is driven and read, by CSS selectors: the file to edit when the page changes.

    Attributes:
        start: address of the page.
        steps: what leads from there to the results.
        results: selector of one result.
        title, link, thumbnail: selectors inside a result: its words, its link, its small picture.
        nothing: selector of what says that there are no results.
        blocked: selector of a consent page or captcha that stands in the way.
    """

    start: str = ""
    steps: list[Step] = dataclasses.field(default_factory=list)
    results: str = ""
    title: str = ""
    link: str = "a"
    thumbnail: str = "img"
    nothing: str = ""
    blocked: str = ""


@dataclasses.dataclass
class PageConfig:
    """A page in a headless browser.

    Attributes:
        selectors: the file of :class:`Selectors`.
        executable: path of a Chromium; empty: the one that Playwright installed.
        sandbox: whether Chromium's sandbox is on; it does not run as root.
    """

    selectors: str = ""
    executable: str = ""
    sandbox: bool = True


@dataclasses.dataclass
class ProviderConfig:
    """A provider of reverse image search.

    Attributes:
        provider: ``replay`` answers from a record alone; ``http`` and ``browser`` search, and keep a record.
        enabled: agrees that ``http`` and ``browser`` send the pictures of questions to the hosts listed.
        record: folder of recorded results. What is in it is not searched for again. Needed by ``replay``; else
            empty means for this run alone, and traces then name thumbnails that are gone.
        per_site: most results of one host, so that no single site fills the list.
        upload_side: longer side in pixels of the JPEG that is sent in place of the picture, without its metadata.
        http: allowed hosts and limits, of ``http`` and ``browser``.
        api: the API of ``http``.
        page: the page of ``browser``.
    """

    provider: Literal["replay", "http", "browser"] = "replay"
    enabled: bool = False
    record: str = ""
    per_site: int = 3
    upload_side: int = 1024
    http: HttpConfig = dataclasses.field(default_factory=HttpConfig)
    api: ApiConfig = dataclasses.field(default_factory=ApiConfig)
    page: PageConfig = dataclasses.field(default_factory=PageConfig)
