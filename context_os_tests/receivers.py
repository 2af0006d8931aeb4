"""Real receivers of alerts on loopback: an HTTP server that can be down, refuse or hang, and a mail server."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook:
    """A webhook's receiver. ``status`` is what it answers, ``hangs`` that it never does. ``down`` closes its port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.status = 204
        self.hangs = threading.Event()
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self._server: ThreadingHTTPServer | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/secret-path"

    @property
    def events(self) -> list[str]:
        """``opened failed_run`` and so on, in the order of arrival."""
        return [f"{body['event']} {body['condition']}" for _, body in self.got]

    def up(self) -> None:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.hangs.is_set():
                    hook.released.wait(30)
                    return
                if hook.status < 300:
                    hook.got.append((self.headers["Idempotency-Key"], body))
                    hook.headers.append(dict(self.headers))
                self.send_response(hook.status)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.released = threading.Event()
        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        self.released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def hook() -> Iterator[Hook]:
    made = Hook()
    try:
        yield made
    finally:
        made.down()


class _Smtp(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as smtplib speaks without encryption."""

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        letter: list[bytes] | None = None
        for line in self.rfile:
            if letter is not None:
                if line == b".\r\n":
                    self.server.letters.append(b"".join(letter).decode())  # type: ignore[attr-defined]
                    letter = None
                    self.wfile.write(b"250 taken\r\n")
                else:
                    letter.append(line)
            elif line.upper().startswith(b"DATA"):
                letter = []
                self.wfile.write(b"354 go on\r\n")
            elif line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


@contextlib.contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """Its port, and the letters that arrived."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.daemon_threads = True
        server.letters = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1], server.letters  # type: ignore[attr-defined]
        server.shutdown()
