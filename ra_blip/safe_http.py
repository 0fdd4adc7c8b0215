"""The one way out to the network: http(s) to hosts on a list, at public addresses, with caps on size, time and number.

A URL is taken apart by one pattern, and the request is made from these parts, so that no second parser can read it
another way. The host is resolved once, every address is checked, and the connection goes to a checked address: a name
that changes its address between check and use gains nothing. A redirect is a new URL and goes through all of it again.
Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ra_blip.errors import ConfigError, RemoteError

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-\"$-\[\]-~]*)?(?:#[!-~]*)?",
    re.ASCII | re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 30.0  # seconds between two tries, whatever the server asks for
# Public by number, private by use: Azure's host agent. The other clouds' metadata lie in link-local or shared ranges.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER = tuple(ipaddress.ip_network(one) for one in ("::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10"))

Resolve = Callable[[str, int], Sequence[str]]


@dataclasses.dataclass
class HttpConfig:
    """Where requests may go, and how much of anything they may take.

    Attributes:
        hosts: allowed hosts: ``api.example.com`` (port 80 or 443), ``api.example.com:8443``, ``*.example.com`` (every
            name below it). A host that is not listed is never contacted, by a redirect neither.
        private_hosts: of these, written in the same way, the private, loopback or link-local address is allowed: a
            server of one's own.
        timeout: seconds for one exchange, from connecting to the last byte; looking a name up comes on top.
        max_bytes: largest reply.
        redirects: most redirects of a GET; a POST is never redirected.
        tries: how often a request is made when the server is busy (408, 425, 429, 5xx) or the connection fails.
        wait: seconds before the second try, doubled each time; a server's ``Retry-After`` counts up to 30 seconds.
        quota: most requests in the life of a client, repeated tries and redirects included.
        patience: after so many failures in a row nothing more is asked.
    """

    hosts: list[str] = dataclasses.field(default_factory=list)
    private_hosts: list[str] = dataclasses.field(default_factory=list)
    timeout: float = 20.0
    max_bytes: int = 5_000_000
    redirects: int = 3
    tries: int = 3
    wait: float = 1.0
    quota: int = 1000
    patience: int = 5

    def __post_init__(self) -> None:
        """Refuse values that mean nothing. Raises :class:`ConfigError` naming key and value."""
        for name in ("timeout", "max_bytes", "tries", "quota", "patience"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"http: {name} is {getattr(self, name)}, it must be more than 0")
        for name in ("redirects", "wait"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"http: {name} is {getattr(self, name)}, it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Url:
    """A URL in parts, host in lower case; ``target`` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        """Without the query, which may hold a key."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    @property
    def authority(self) -> str:
        """Host, and the port where it is not the scheme's own."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Response:
    """A reply of status 2xx; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, key: str = "") -> Any:
        """What the body says, or of it what stands at ``key``: keys and list positions joined by dots.

        Raises:
            RemoteError: the body is not JSON, or has no such key.
        """
        try:
            return at(json.loads(self.body), key)
        except (ValueError, RecursionError):
            raise RemoteError(f"the reply is not JSON: {self.body[:100]!r}") from None


class _Busy(RemoteError):
    """What another try may mend."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def parse_url(text: str) -> Url:
    """Take a URL apart.

    Raises:
        RemoteError: not http(s); a user name, a backslash, white space, a control character or a letter beyond ASCII
            in it; a number in a notation other than four decimal parts for a host.
    """
    found = _URL.fullmatch(text)
    if found is None:
        raise RemoteError(f"not an address that is followed: {text[:100]!r} (plain http or https, no user name)")
    scheme, host, target = found["scheme"].lower(), found["host"].lower(), found["target"] or "/"
    port = int(found["port"]) if found["port"] else _PORTS[scheme]
    last = host.rpartition(".")[2]
    if host[0] == "[" or last.isdigit() or last.startswith("0x"):
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            raise RemoteError(
                f"host {host!r} is a number in an odd notation; write a name or a plain address"
            ) from None
    if not 0 < port < 65536:
        raise RemoteError(f"{scheme}://{host}: no such port: {port}")
    return Url(scheme, host, port, target if target[0] == "/" else f"/{target}")


def at(value: Any, key: str) -> Any:
    """What stands at ``key`` in parsed JSON. Raises :class:`RemoteError` where nothing does."""
    found = value
    for part in key.split(".") if key else ():
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise RemoteError(f"the reply holds no {key!r}: {json.dumps(value)[:200]}") from None
    return found


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet: not private, loopback, link-local, shared, reserved or a
    cloud's metadata service, nor an IPv6 address that carries such an IPv4 address in it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped is not None or any(ip in network for network in _NEVER):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip not in _METADATA


def listed(url: Url, hosts: Sequence[str]) -> bool:
    """Whether a list of ``host``, ``host:port`` and ``*.domain`` names this URL's host at this port."""
    usual = url.port == _PORTS[url.scheme]
    for entry in (one.lower() for one in hosts):
        if not usual and not entry.endswith(f":{url.port}"):
            continue
        name = entry.removesuffix(f":{url.port}")
        if name == url.host or (name.startswith("*.") and url.host.endswith(name[1:])):
            return True
    return False


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host, by the system's resolver. Raises :class:`OSError`."""
    return [str(one[4][0]) for one in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)]


class HttpClient:
    """Makes requests within an :class:`HttpConfig`.

    Args:
        config: the limits.
        resolver: host and port to addresses; another one in tests.
        sleep: how to wait between tries.

    Attributes:
        requests: made so far.
    """

    def __init__(
        self, config: HttpConfig, resolver: Resolve = resolve, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config
        self.requests = 0
        self._resolve = resolver
        self._sleep = sleep
        self._failures = 0

    def address_of(self, url: Url) -> str:
        """The address to connect to.

        Raises:
            RemoteError: the host is not listed, not found, or one of its addresses is not public.
        """
        private = listed(url, self.config.private_hosts)
        if not private and not listed(url, self.config.hosts):
            raise RemoteError(f"{url}: host {url.authority!r} is not on the list of allowed hosts")
        try:
            addresses = list(self._resolve(url.host, url.port))
        except (OSError, UnicodeError) as error:
            raise _Busy(f"{url}: host not found ({error})") from None
        if not addresses:
            raise RemoteError(f"{url}: host not found")
        for address in addresses:
            if not private and not is_public(address):
                raise RemoteError(f"{url}: {address} is not a public address; it is not contacted")
        return addresses[0]

    def fetch(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        secret: Mapping[str, str] | None = None,
    ) -> Response:
        """One reply, after as many tries and redirects as allowed.

        Args:
            url: where to.
            method: ``GET`` or ``POST``.
            headers: sent along.
            body: sent along.
            secret: headers that hold a key: sent to the first host only, and over https only, except to a private host.

        Raises:
            RemoteError: refused by the limits, or failed at the last try; names the URL without its query.
        """
        if self._failures >= self.config.patience:
            raise RemoteError(f"not asked: the {self._failures} requests before failed, one after another")
        try:
            response = self._tried(url, method, dict(headers or {}), body, dict(secret or {}))
        except RemoteError:
            self._failures += 1
            raise
        self._failures = 0
        return response

    def _tried(
        self, url: str, method: str, headers: dict[str, str], body: bytes | None, secret: dict[str, str]
    ) -> Response:
        wait = self.config.wait
        for left in reversed(range(self.config.tries)):
            try:
                return self._followed(url, method, headers, body, secret)
            except _Busy as busy:
                if not left:
                    raise RemoteError(f"{busy} (tried {self.config.tries} times)") from None
                self._sleep(min(max(wait, busy.wait), _LONGEST_WAIT))
                wait *= 2
        raise AssertionError("tries is at least 1")

    def _followed(
        self, text: str, method: str, headers: dict[str, str], body: bytes | None, secret: dict[str, str]
    ) -> Response:
        first = url = parse_url(text)
        for _ in range(self.config.redirects + 1):
            same = (url.scheme, url.host, url.port) == (first.scheme, first.host, first.port)
            if secret and same and url.scheme == "http" and not listed(url, self.config.private_hosts):
                raise RemoteError(f"{url}: a key is sent over https only")
            response = self._once(url, method, {**headers, **(secret if same else {})}, body)
            if response.status // 100 == 2:
                return response
            if response.status // 100 != 3:
                said = response.body[:200].decode("utf-8", "replace")
                raise RemoteError(f"{url}: status {response.status}: {said}")
            if method != "GET":
                raise RemoteError(f"{url}: redirects a {method}, which is not followed; write the final address")
            url = _redirected(url, response.headers.get("location", ""))
        raise RemoteError(f"{first}: more than {self.config.redirects} redirects")

    def _once(self, url: Url, method: str, headers: dict[str, str], body: bytes | None) -> Response:
        address = self.address_of(url)
        if self.requests >= self.config.quota:
            raise RemoteError(f"{url}: the quota of {self.config.quota} requests is used up")
        self.requests += 1
        headers = {"Host": url.authority, "User-Agent": "ra-blip", "Accept-Encoding": "identity", **headers}
        start, late = time.monotonic(), threading.Event()
        try:
            with _connected(url, address, self.config.timeout) as line:
                # each read has its own timeout; only closing the line stops a server that sends a byte now and then
                left = max(self.config.timeout - (time.monotonic() - start), 0.01)
                watch = threading.Timer(left, _hang_up, [line, late])
                watch.daemon = True
                watch.start()
                try:
                    response = self._exchange(url, line, method, headers, body)
                finally:
                    watch.cancel()
            if late.is_set():  # a reply without a length looks whole where the line was cut
                raise TimeoutError
            return response
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Busy(f"{url}: no reply within {self.config.timeout:g} seconds") from None
            raise _Busy(f"{url}: {type(error).__name__}: {str(error)[:200]}") from None
        except ValueError:  # http.client shows the header, which may be the key
            raise RemoteError(f"{url}: a header holds a line break or a letter that none may hold") from None

    def _exchange(
        self, url: Url, line: socket.socket, method: str, headers: dict[str, str], body: bytes | None
    ) -> Response:
        connection = http.client.HTTPConnection(url.host.strip("[]"), url.port)
        connection.sock = line
        connection.request(method, url.target, body=body, headers=headers)
        reply = connection.getresponse()
        limit = self.config.max_bytes
        if (reply.length or 0) > limit:
            raise RemoteError(f"{url}: a reply of {reply.length:,} bytes, more than {limit:,}")
        data = reply.read(limit + 1)
        if len(data) > limit:
            raise RemoteError(f"{url}: a reply of more than {limit:,} bytes")
        if reply.length:
            raise http.client.IncompleteRead(data, reply.length)
        found = {name.lower(): value for name, value in reply.getheaders()}
        if reply.status in _TRY_AGAIN:
            after = found.get("retry-after", "")
            raise _Busy(f"{url}: status {reply.status}", float(after) if after.isdecimal() else 0.0)
        return Response(reply.status, found, data)


def _redirected(url: Url, location: str) -> Url:
    """Where a redirect leads, relative or not; the same parser reads it."""
    if location.startswith("//"):
        return parse_url(f"{url.scheme}:{location}")
    if location.startswith("/"):
        return parse_url(f"{url.scheme}://{url.authority}{location}")
    target = parse_url(location)
    if url.scheme == "https" and target.scheme == "http":
        raise RemoteError(f"{url}: redirects from https to http")
    return target


def _connected(url: Url, address: str, timeout: float) -> socket.socket:
    line = socket.create_connection((address, url.port), timeout=timeout)
    if url.scheme == "http":
        return line
    try:
        return ssl.create_default_context().wrap_socket(line, server_hostname=url.host.strip("[]"))
    except BaseException:
        line.close()
        raise


def _hang_up(line: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # closed in the meantime
        socket.socket.shutdown(line, socket.SHUT_RDWR)  # SSLSocket's own also drops what the reader is using
