"""Reverse image search by a web API, any that takes a picture by POST and replies in JSON."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from typing import Any

from ra_blip.errors import ConfigError, RemoteError
from ra_blip.retrieval.reverse_image_config import ApiConfig
from ra_blip.retrieval.reverse_image_record import Result
from ra_blip.safe_http import HttpClient, HttpConfig, at, parse_url


class HttpProvider:
    """A :class:`~ra_blip.retrieval.reverse_image_record.Live` provider over HTTP.

    Raises:
        ConfigError: no ``url``, or the environment variable of the key is not set.
        RemoteError: the address is none that is followed.
    """

    def __init__(self, api: ApiConfig, http: HttpConfig) -> None:
        if not api.url:
            raise ConfigError("provider 'http': api.url is missing")
        self._api = api
        self._client = HttpClient(http)
        self._secret = secret_header(api.key_env, api.key_header, api.key_prefix)
        self.name = f"http {parse_url(api.url)}"

    def search(self, picture: bytes, k: int) -> list[Result]:
        """At most ``k`` results, in the reply's order. A thumbnail that does not arrive is left out, its words stay.

        Raises:
            RemoteError: the request failed, or the reply is not as configured.
        """
        kind, body = _multipart(self._api, picture) if self._api.body == "multipart" else _json(self._api, picture)
        reply = self._client.fetch(self._api.url, "POST", {"Content-Type": kind}, body, self._secret)
        found = reply.json(self._api.results)
        if not isinstance(found, list):
            raise RemoteError(f"{self.name}: {self._api.results!r} is not a list of results")
        return [self._result(one) for one in found[:k]]

    def _result(self, value: Any) -> Result:
        api = self._api
        title, link, thumbnail = (_text(value, key) for key in (api.title, api.link, api.thumbnail))
        if not (title or thumbnail):
            raise RemoteError(f"{self.name}: a result without {api.title!r} and {api.thumbnail!r}: {str(value)[:200]}")
        return Result(title, link, self._picture(thumbnail))

    def _picture(self, text: str) -> bytes:
        if text.startswith(("http://", "https://")):
            try:
                return self._client.fetch(text).body
            except RemoteError:
                return b""
        try:
            return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError):
            return b""


def secret_header(key_env: str, header: str, prefix: str) -> dict[str, str]:
    """The header with the key that an environment variable holds; none where no variable is named.

    Raises:
        ConfigError: the variable is not set.
    """
    if not key_env:
        return {}
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {key_env}, which is to hold the key, is not set")
    return {header: f"{prefix}{key}"}


def _text(value: Any, key: str) -> str:
    if not key:
        return ""
    try:
        found = at(value, key)
    except RemoteError:
        return ""
    return found if isinstance(found, str) else ""


def _multipart(api: ApiConfig, picture: bytes) -> tuple[str, bytes]:
    """A form as browsers send it (RFC 7578); the boundary comes from the content, so equal requests are equal."""
    boundary = f"ra-blip-{hashlib.sha256(picture).hexdigest()[:32]}"
    parts = [_part(boundary, f'name="{name}"', value.encode()) for name, value in api.fields.items()]
    parts.append(_part(boundary, f'name="{api.picture}"; filename="picture.jpg"\r\nContent-Type: image/jpeg', picture))
    return f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()


def _part(boundary: str, disposition: str, value: bytes) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + value + b"\r\n"


def _json(api: ApiConfig, picture: bytes) -> tuple[str, bytes]:
    value = {**api.fields, api.picture: base64.b64encode(picture).decode()}
    return "application/json", json.dumps(value).encode()
