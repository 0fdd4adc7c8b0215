"""A web server on 127.0.0.1 for tests, that answers what it is told to and remembers what it was asked."""

from __future__ import annotations

import dataclasses
import http.server
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any


@dataclasses.dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclasses.dataclass
class Answer:
    """A reply; a body of pieces is sent piece by piece, without a length unless ``headers`` says one."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class LocalServer:
    """Use as a context manager; ``answer`` gets each request and says the reply."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                outer.asked.append(asked)
                reply = answer(asked)
                self.send_response(reply.status)
                pieces = [reply.body] if isinstance(reply.body, bytes) else reply.body
                lengths = {"Content-Length": str(len(reply.body))} if isinstance(reply.body, bytes) else {}
                for name, value in {**lengths, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                except OSError:
                    pass  # the client has hung up

            do_GET = do_POST = _reply

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> LocalServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
