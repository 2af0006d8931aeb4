"""A real server on loopback, in a thread or as the installed command, GitHub's side of a webhook, and a model."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydantic import SecretStr

from context_os import server
from context_os.chat import Chat
from context_os.model import Confidentiality
from context_os.security import AccessKeys, Role
from context_os.settings import Settings

SECRET = "a secret of the tests"
COMMAND = Path(sys.executable).with_name("context-os")


@contextlib.contextmanager
def running(settings: Settings, *, open_metrics: bool = True) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    with settings.open_store() as store, server._listening("127.0.0.1", 0) as listener:
        application = server.create(settings, store, open_metrics=open_metrics)
        config = uvicorn.Config(application, log_config=None, access_log=False)
        serving = uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            serving.should_exit = True
            thread.join(30)


@contextlib.contextmanager
def serving(home: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command ``context-os serve`` and its URL; killed afterwards if it still runs."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CONTEXT_OS_")}
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--json", *arguments],
        cwd=home,
        env={**inherited, "CONTEXT_OS_HOME": str(home), "CONTEXT_OS_EMBEDDING__PROVIDER": "none", **environment},
        stdout=subprocess.PIPE,
        stderr=(home / "server.log").open("w"),
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "server.log").read_text()
        yield process, json.loads(line)["url"]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def headers(home: Path, tenant: str, role: str, clearance: str = "internal", label: str = "") -> dict[str, str]:
    """Of a request with a new key."""
    _, token = AccessKeys(home).create(tenant, Confidentiality(clearance), Role(role), label or f"{tenant} {role}")
    return {"Authorization": f"Bearer {token.get_secret_value()}"}


def deliver(
    url: str, event: str, payload: Any, delivery: str, *, secret: str = SECRET, body: bytes | None = None, **more: str
) -> httpx.Response:
    """Send a webhook as GitHub does."""
    body = json.dumps(payload).encode() if body is None else body
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    sent = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": signature,
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return httpx.post(f"{url}/webhooks/github", content=body, headers=sent, timeout=30)


def push(name: str = "acme/shop", *paths: str, ref: str = "refs/heads/main", **more: Any) -> dict[str, Any]:
    """A push event with what we read of it."""
    return {
        "ref": ref,
        "created": False,
        "deleted": False,
        "forced": False,
        "commits": [{"added": [], "modified": list(paths), "removed": []}],
        "repository": {"full_name": name, "default_branch": "main"},
        **more,
    }


def wait_until(condition: Any, seconds: float = 30) -> Any:
    """What the condition says once it holds."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
    return found


class Model:
    """Answers chat completions with what ``answer`` says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda _: {}
        self.statuses: list[int] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.asked.append(asked)
                model.headers.append(dict(self.headers))
                status = model.statuses.pop(0) if model.statuses else 200
                said = model.answer(asked) if status == 200 else {}
                text = said if isinstance(said, str) else json.dumps(said)
                body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def chat(self, **more: Any) -> Chat:
        return Chat(self.url, "small", SecretStr("s3cret"), pause=0, **more)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
