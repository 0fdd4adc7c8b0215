"""Recorded searches: what a live provider found is kept by the picture's content, and answers for it from then on.

A record is a folder: ``searches/DIGEST.json`` (provider, time, results in order) and ``thumbnails/DIGEST.jpg``. It is
the cache of a live provider, and, without one, what makes an evaluation repeatable.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ra_blip.errors import DataError, ImageError, OutputError, RABlipError, RemoteError
from ra_blip.images import decode, read_picture
from ra_blip.records import Hit, Item, write_text
from ra_blip.safe_http import parse_url

TITLE = 200  # most characters of a title that are kept
THUMBNAIL = 320  # longer side of a thumbnail in pixels
_MAX_THUMBNAIL_PIXELS = 16_000_000


@dataclasses.dataclass(frozen=True)
class Result:
    """One result of a live search: the words, the page's address, the small picture's bytes."""

    title: str
    link: str = ""
    thumbnail: bytes = b""


class Live(Protocol):
    """A provider that searches."""

    @property
    def name(self) -> str:
        """Which one, and where."""

    def search(self, picture: bytes, k: int) -> list[Result]:
        """At most ``k`` results for a JPEG, best first. Raises :class:`RABlipError` for whatever goes wrong."""


class Recorded:
    """A live provider with its record, or a record alone.

    Args:
        live: searches; None: what is not in the record is an error.
        folder: the record; None keeps one for the life of this object, as thumbnails need a place.
        per_site: most results of one host.
        upload_side: longer side of the picture that is sent.

    Raises:
        OutputError: the record cannot be written.
    """

    def __init__(self, live: Live | None, folder: Path | None, per_site: int = 3, upload_side: int = 1024) -> None:
        self._live = live
        self._temporary = tempfile.TemporaryDirectory(prefix="ra-blip-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(folder or "")
        self._per_site = per_site
        self._upload_side = upload_side
        if live is not None:
            try:
                (self._folder / "thumbnails").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{self._folder}: cannot be written ({error.strerror or error})") from None

    def look_up(self, pictures: Sequence[str], k: int) -> list[list[Hit] | RABlipError]:
        """At most ``k`` hits for each picture, best first, or the error that there was instead.

        Items are ``rir-RANK-DIGEST`` with the page's title as text, the thumbnail and the page's address as source.
        Scores are 1 / rank: a search engine's order is all that can be compared.
        """
        answers: list[list[Hit] | RABlipError] = []
        for picture in pictures:
            try:
                answers.append(self._look_up(picture, k))
            except RABlipError as error:
                answers.append(error)
        return answers

    def _look_up(self, picture: str, k: int) -> list[Hit]:
        data = read_picture(picture)
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / "searches" / f"{digest}.json"
        record = _read(path) if path.is_file() else None
        if self._live is None:
            if record is None:
                raise RemoteError(f"{self._folder}: holds no search for {picture}")
        elif record is None or (record["provider"] == self._live.name and record["asked"] < k):
            record = self._search(self._live, upload(data, picture, self._upload_side), digest, k)
        elif record["provider"] != self._live.name:
            raise DataError(f"{path}: recorded by {record['provider']!r}, not {self._live.name!r}; use another folder")
        return self._hits(record["results"], digest, k)

    def _search(self, live: Live, picture: bytes, digest: str, k: int) -> dict[str, Any]:
        found = live.search(picture, k)[:k]
        results = [self._kept(result) for result in found]
        record = {
            "provider": live.name,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "asked": k,
            "results": [one for one in results if one["title"] or one["thumbnail"]],
        }
        write_text(self._folder / "searches" / f"{digest}.json", json.dumps(record, indent=1, ensure_ascii=False))
        return record

    def _kept(self, result: Result) -> dict[str, Any]:
        """A result as it is recorded; a thumbnail that is no picture is left out, its words stay."""
        kept = {"title": one_line(result.title, TITLE), "link": _link(result.link), "thumbnail": ""}
        if result.thumbnail:
            try:
                image = decode(result.thumbnail, "thumbnail", _MAX_THUMBNAIL_PIXELS)
            except ImageError as error:
                return {**kept, "damaged": str(error)}
            small = jpeg(image, THUMBNAIL)
            kept["thumbnail"] = f"thumbnails/{hashlib.sha256(small).hexdigest()[:24]}.jpg"
            try:
                (self._folder / kept["thumbnail"]).write_bytes(small)
            except OSError as error:
                raise OutputError(f"{self._folder}: cannot be written ({error.strerror or error})") from None
        return kept

    def _hits(self, results: Sequence[dict[str, Any]], digest: str, k: int) -> list[Hit]:
        sites: Counter[str] = Counter()
        hits: list[Hit] = []
        for rank, result in enumerate(results, 1):
            site = result["link"] and parse_url(result["link"]).host
            sites[site] += 1
            if site and sites[site] > self._per_site:
                continue
            image = str(self._folder / result["thumbnail"]) if result["thumbnail"] else None
            item = Item(
                f"rir-{rank}-{digest[:12]}", result["title"] or None, image=image, source=result["link"] or None
            )
            hits.append(Hit(item, round(1 / rank, 6), "search"))
        return hits[:k]


def one_line(text: str, limit: int) -> str:
    """Words of a stranger on one line: no control characters, single spaces, at most ``limit`` characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"


def upload(data: bytes, name: str, side: int) -> bytes:
    """A picture's bytes as a JPEG of at most ``side`` pixels, without metadata. Raises :class:`ImageError`."""
    return jpeg(decode(data, name), side)


def jpeg(image: Image.Image, side: int) -> bytes:
    """An RGB picture as a JPEG of at most ``side`` pixels, without metadata; makes ``image`` itself smaller."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(out, "JPEG", quality=90)  # a new one has no metadata
    return out.getvalue()


def _link(text: str) -> str:
    """The page's address where it is a plain one, else nothing: it is shown, and never followed."""
    try:
        parse_url(text)
    except RemoteError:
        return ""
    return text


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        results = [{"link": "", "thumbnail": "", **one} for one in record["results"]]
        for one in results:
            if not all(isinstance(one[key], str) for key in ("title", "link", "thumbnail")):
                raise TypeError("title, link and thumbnail are strings")
            if one["thumbnail"] and Path(one["thumbnail"]).parent != Path("thumbnails"):
                raise ValueError("a thumbnail lies in the folder thumbnails")
            one["link"] = _link(one["link"])
        return {"provider": str(record["provider"]), "asked": int(record["asked"]), "results": results}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a recorded search ({error!r})") from None
