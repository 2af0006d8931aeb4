"""The server as its callers see it: over real sockets, held against its own OpenAPI document, between tenants."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from samples import make_repository
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from servers import COMMAND, SECRET, headers, running, serving
from strategies import make_item

from context_os import plugins, settings
from context_os.app import open_app
from context_os.errors import ConfigurationError
from context_os.ingestion import Ingestion, find_repository, register
from context_os.ledger import Ledger
from context_os.model import Access, Confidentiality
from context_os.security import AccessKeys, Role
from context_os.server import serve
from context_os.settings import Settings
from context_os.stores import Filter, Record

if TYPE_CHECKING:
    from context_os.stores.weaviate import WeaviateStore

HIDDEN = "Quetzalcoatlus"
"""A word that only an item above the callers' clearance holds."""


def chosen(home: Path, **more: Any) -> Settings:
    """Settings that the environment's have no part in."""
    server = {"webhook_secret": SECRET, "requests_per_minute": 1_000_000, **more}
    return settings.load(
        {"home": str(home), "tenant": "acme", "embedding": {"provider": "hashed"}, "server": server}, start=home
    )


@dataclass(frozen=True)
class Served:
    """A running server, where its state is, and an item, a path and a diff of the tenant acme."""

    url: str
    home: Path
    item: str
    diff: str

    def ask(self, method: str, path: str, key: dict[str, str], **more: Any) -> httpx.Response:
        return httpx.request(
            method, f"{self.url}{path}", headers={**key, **more.pop("headers", {})}, timeout=60, **more
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    repository = make_repository(folder / "shop")
    home = folder / "home"
    found = chosen(home)
    with open_app(found) as app:
        ingestion = Ingestion(found, app.store, Ledger(home / "ledger.db"))
        register(found, ingestion.ledger, "acme/shop", repository)
        for connector in plugins.names("connectors"):
            staged = ingestion.stage(connector, find_repository(found, ingestion.ledger, "acme/shop"))
            ingestion.judge(staged, "run-1")
            ingestion.index(staged, "run-1")
        everything = Access(tenant="acme", principal="test", clearance=Confidentiality.RESTRICTED)
        secret = make_item("hidden", text=HIDDEN, title=HIDDEN, confidentiality=Confidentiality.RESTRICTED)
        app.store.upsert(everything, [Record(secret)])
        item = app.store.scan(everything, Filter(kinds=("function",)), limit=1).items[0].id
        diff = app.range_diff("acme/shop", "HEAD~1..HEAD")
    with running(found) as url:
        yield Served(url, home, item, diff)


@pytest.fixture(scope="module")
def viewer(served: Served) -> dict[str, str]:
    return headers(served.home, "acme", "viewer")


@pytest.fixture(scope="module")
def editor(served: Served) -> dict[str, str]:
    return headers(served.home, "acme", "editor")


@pytest.fixture(scope="module")
def admin(served: Served) -> dict[str, str]:
    return headers(served.home, "acme", "admin")


@pytest.fixture(scope="module")
def stranger(served: Served) -> dict[str, str]:
    return headers(served.home, "globex", "admin", "restricted")


QUESTION = {"question": "Where are sessions closed?", "max_tokens": 2_000}
VOTE = {"verdict": "helpful", "comment": "It named the lock."}
STEP = {"action": "approved", "actor": "human", "notes": "Read and still true."}


Ask = Callable[[Served, dict[str, str], dict[str, str]], httpx.Response]


def _get(path: str) -> Ask:
    return lambda served, key, seen: served.ask("GET", path.format(**seen), key)


def _search(served: Served, key: dict[str, str], seen: dict[str, str]) -> httpx.Response:
    asked = {"q": seen["words"], "path": seen["path"], "repository": seen["repository"]}
    return served.ask("GET", "/v1/search", key, params={name: value for name, value in asked.items() if value})


def _post(path: str, **more: Any) -> Ask:
    def ask(served: Served, key: dict[str, str], seen: dict[str, str]) -> httpx.Response:
        body = {"question": seen["words"], "diff": seen["diff"], **more}
        return served.ask("POST", path, key, json={**body, "repository": seen["repository"] or None})

    return ask


def _append(served: Served, key: dict[str, str], seen: dict[str, str]) -> httpx.Response:
    sent = {**key, "Idempotency-Key": "stranger"}
    return served.ask("POST", f"/v1/items/{seen['item']}/lineage", sent, json=STEP)


def _vote(served: Served, key: dict[str, str], seen: dict[str, str]) -> httpx.Response:
    sent = {**key, "Idempotency-Key": f"stranger {seen['item']}".replace(" ", "-")}
    return served.ask("POST", "/v1/feedback", sent, json={**VOTE, "ids": [seen["item"]]})


ENDPOINTS: dict[str, Ask] = {
    "GET /v1/search": _search,
    "GET /v1/items/{id}": _get("/v1/items/{item}"),
    "POST /v1/packs": _post("/v1/packs", explain=True),
    "POST /v1/files": _post("/v1/files"),
    "GET /v1/repositories": _get("/v1/repositories"),
    "POST /v1/items/{id}/lineage": _append,
    "POST /v1/feedback": _vote,
    "GET /v1/items/{id}/feedback": _get("/v1/items/{item}/feedback"),
    "GET /v1/operations": _get("/v1/operations"),
}
OPEN = {"GET /healthz", "GET /readyz", "GET /metrics", "POST /webhooks/github"}
"""What speaks of no tenant."""


# Reading


def test_search_finds_and_filters(served: Served, viewer: dict[str, str]) -> None:
    found = served.ask("GET", "/v1/search", viewer, params={"q": "close the session", "limit": 3}).json()["items"]
    assert 0 < len(found) <= 3
    narrowed = {"q": "session", "kind": ["method", "class"], "path": "shop", "language": "python"}
    kinds = {each["kind"] for each in served.ask("GET", "/v1/search", viewer, params=narrowed).json()["items"]}
    assert kinds == {"method", "class"}
    nothing = {"q": "session", "repository": "acme/other"}
    assert served.ask("GET", "/v1/search", viewer, params=nothing).json() == {"items": []}


def test_answers_are_those_of_the_command_line(served: Served, viewer: dict[str, str]) -> None:
    def command(*arguments: str) -> Any:
        environment = {
            "CONTEXT_OS_HOME": str(served.home),
            "CONTEXT_OS_EMBEDDING__PROVIDER": "hashed",
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(
            [COMMAND, *arguments, "--tenant", "acme", "--json"], cwd=served.home, env={**environment, **_python_path()},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    asked = QUESTION["question"]
    of = ("--question", str(asked), "--repository", "acme/shop")
    pack = served.ask("POST", "/v1/packs", viewer, json={**QUESTION, "repository": "acme/shop"}).json()
    # A pack's id also says who asked.
    assert {**pack, "id": ""} == {**command("pack", *of, "--max-tokens", "2000"), "id": ""}
    wanted = {"question": asked, "repository": "acme/shop", "limit": 5}
    assert served.ask("POST", "/v1/files", viewer, json=wanted).json() == command("files", *of, "--limit", "5")
    search = served.ask("GET", "/v1/search", viewer, params={"q": "session", "limit": 4, "mode": "keyword"}).json()
    assert search == command("search", "session", "--limit", "4", "--mode", "keyword")


def _python_path() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PYTHONPATH", "XDG_CACHE_HOME") if name in os.environ}


def test_a_pack_for_a_change_and_its_explanation(served: Served, viewer: dict[str, str]) -> None:
    asked = {"diff": served.diff, "repository": "acme/shop", "max_tokens": 3_000}
    pack = served.ask("POST", "/v1/packs", viewer, json=asked).json()
    assert pack["layers"]["core"][0]["kind"] == "rule"
    assert 0 < pack["budget"]["used_tokens"] <= 3_000
    assert "explain" not in pack
    explained = served.ask("POST", "/v1/packs", viewer, json={**asked, "explain": True}).json()
    assert explained["prompt"] == pack["prompt"]
    assert explained["explain"][-1]["last_line"] == pack["prompt"].count("\n")


def test_an_item_and_the_repositories(served: Served, viewer: dict[str, str]) -> None:
    item = served.ask("GET", f"/v1/items/{served.item}", viewer).json()
    assert item["id"] == served.item
    assert item["metadata"]["lineage"][0]["runId"] == "run-1"
    (found,) = served.ask("GET", "/v1/repositories", viewer).json()["repositories"]
    assert found["name"] == "acme/shop"
    nothing_here = {"laboratory", "playbook"}  # no laboratory, no lesson
    assert {each["connector"] for each in found["connectors"]} == set(plugins.names("connectors")) - nothing_here
    assert all(each["items"] > 0 and each["indexed_at"] for each in found["connectors"])


def test_clearance_holds(served: Served, viewer: dict[str, str]) -> None:
    public = headers(served.home, "acme", "viewer", "public")
    cleared = headers(served.home, "acme", "viewer", "restricted")
    assert served.ask("GET", "/v1/items/hidden", cleared).status_code == 200
    for key in (viewer, public):
        missing = served.ask("GET", "/v1/items/nowhere", key)
        assert served.ask("GET", "/v1/items/hidden", key).text.replace("hidden", "nowhere") == missing.text
        assert served.ask("GET", "/v1/search", key, params={"q": HIDDEN}).json() == {"items": []}
    # Connectors give internal items: of a repository of which it may read nothing, a public key learns nothing.
    assert served.ask("GET", "/v1/repositories", public).json() == {"repositories": []}
    assert served.ask("POST", "/v1/packs", public, json={**QUESTION, "repository": "acme/shop"}).status_code == 404


def test_roles_hold(served: Served, viewer: dict[str, str], editor: dict[str, str], admin: dict[str, str]) -> None:
    def statuses(key: dict[str, str]) -> list[int]:
        step = {**key, "Idempotency-Key": f"roles-{id(key)}"}
        return [
            served.ask("GET", "/v1/search", key, params={"q": "session"}).status_code,
            served.ask("POST", f"/v1/items/{served.item}/lineage", step, json=STEP).status_code,
            served.ask("GET", "/v1/operations", key).status_code,
        ]

    assert statuses(viewer) == [200, 403, 403]
    assert statuses(editor) == [200, 201, 403]
    assert statuses(admin) == [200, 201, 200]


# Errors


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert (told["status"], bool(told["title"]), bool(told["detail"])) == (status, True, True)
    return told


def test_every_error_is_a_problem(served: Served, viewer: dict[str, str]) -> None:
    ask = served.ask
    assert ask("GET", "/v1/search", {}, params={"q": "a"}).headers["www-authenticate"] == "Bearer"
    problem(ask("GET", "/v1/nowhere", {}), 401)
    problem(ask("GET", "/nowhere", {}), 404)
    problem(ask("GET", "/v1/nowhere", viewer), 404)
    assert ask("DELETE", "/v1/search", viewer).headers["allow"] == "GET"
    problem(ask("DELETE", "/v1/search", viewer), 405)
    problem(ask("POST", "/v1/packs", viewer, content=b"{", headers={"Content-Type": "application/json"}), 422)
    problem(ask("POST", "/v1/packs", viewer, content=b"\xff", headers={"Content-Type": "application/json"}), 400)
    problem(ask("POST", "/v1/packs", viewer, content=b"[" * 100_000, headers={"Content-Type": "application/json"}), 400)
    unfit = problem(ask("GET", "/v1/search", viewer, params={"limit": "0", "colour": "red"}), 422)
    assert {each["pointer"] for each in unfit["errors"]} == {"query/q", "query/limit", "query/colour"}
    problem(ask("POST", "/v1/packs", viewer, json={"max_tokens": 100}), 422)
    problem(ask("POST", "/v1/packs", viewer, json={"diff": "no diff at all"}), 422)
    problem(ask("POST", "/v1/packs", viewer, json={**QUESTION, "repository": "acme/other"}), 404)
    problem(ask("POST", "/v1/files", viewer, json={"question": "a", "repository": ""}), 404)


def test_who_has_no_key_is_told_nothing_else(served: Served) -> None:
    _, token = AccessKeys(served.home).create("acme", Confidentiality.INTERNAL, Role.VIEWER, "for a moment")
    key = {"Authorization": f"Bearer {token.get_secret_value()}"}
    assert served.ask("GET", "/v1/repositories", key).status_code == 200
    AccessKeys(served.home).revoke(token.get_secret_value().split("_")[1])
    answers = {
        served.ask("POST", "/v1/packs", sent, content=b"{" * 10).text
        for sent in (
            {},
            key,
            {"Authorization": "Basic YTpi"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer cos_"},
        )
    }
    assert len(answers) == 1
    assert problem(served.ask("GET", "/v1/repositories", key), 401)


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_every_endpoint_asks_for_a_key(served: Served, endpoint: str) -> None:
    seen = {"item": served.item, "words": "session", "path": "", "repository": "", "diff": ""}
    problem(ENDPOINTS[endpoint](served, {}, seen), 401)


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused_before_it_is_read(served: Served, viewer: dict[str, str], *, announced: bool) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(6 * 1024):
            yield b" " * 1024

    content: Any = b" " * (6 * 2**20) if announced else body()
    with contextlib.suppress(httpx.WriteError):  # the server may close while we still write
        problem(served.ask("POST", "/v1/packs", viewer, content=content), 413)
    assert served.ask("GET", "/v1/repositories", viewer).status_code == 200


def test_one_key_may_ask_so_often_and_others_do_not_feel_it(tmp_path: Path) -> None:
    found = chosen(tmp_path, requests_per_minute=3)
    with running(found) as url:
        eager, calm = headers(tmp_path, "acme", "viewer"), headers(tmp_path, "acme", "viewer")
        statuses = [httpx.get(f"{url}/v1/repositories", headers=eager).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refused = httpx.get(f"{url}/v1/repositories", headers=eager)
        problem(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert httpx.get(f"{url}/v1/repositories", headers=calm).status_code == 200


def test_a_store_that_is_away_is_503_without_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = {"url": f"http://127.0.0.1:{port}", "grpc_port": port}
    found = settings.load({"home": str(tmp_path), "store": store, "embedding": {"provider": "none"}}, start=tmp_path)
    key = headers(tmp_path, "acme", "viewer")
    with running(found) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        for path in ("/readyz", "/v1/search?q=a", "/v1/items/x"):
            answer = httpx.get(f"{url}{path}", headers=key, timeout=60)
            problem(answer, 503)
            assert answer.headers["retry-after"] == "5"
            assert str(port) not in answer.text


@pytest.mark.weaviate
def test_eight_callers_at_once_on_weaviate(weaviate_store: WeaviateStore, tmp_path: Path) -> None:
    fields = {name: getattr(weaviate_store, name) for name in ("url", "grpc_port", "api_key", "collection")}
    found = settings.load({"home": str(tmp_path), "store": fields, "embedding": {"provider": "none"}}, start=tmp_path)
    words = ("alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
    keys = {}
    for tenant in ("acme", "globex"):
        items = [
            make_item(f"{tenant}-{number}", tenant=tenant, text=f"{word} common") for number, word in enumerate(words)
        ]
        weaviate_store.upsert(
            Access(tenant=tenant, principal="test", clearance=Confidentiality.PUBLIC), map(Record, items)
        )
        keys[tenant] = headers(tmp_path, tenant, "editor")

    with running(found) as url:

        def find(tenant: str, number: int) -> list[str]:
            answer = httpx.get(f"{url}/v1/search", params={"q": words[number]}, headers=keys[tenant], timeout=60)
            return [each["id"] for each in answer.json()["items"]]

        def append(number: int) -> int:
            sent = {**keys["acme"], "Idempotency-Key": f"step-{number % 4}"}
            answer = httpx.post(f"{url}/v1/items/acme-0/lineage", json=STEP, headers=sent, timeout=60)
            return answer.status_code

        asks = [(tenant, number) for number in range(8) for tenant in keys] * 3
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(append, range(16))) == {201}
            for (tenant, number), got in zip(asks, pool.map(lambda ask: find(*ask), asks), strict=True):
                assert got == [f"{tenant}-{number}"]
        item = httpx.get(f"{url}/v1/items/acme-0", headers=keys["acme"]).json()
        assert len(item["metadata"]["lineage"]) == 4
        assert httpx.get(f"{url}/v1/items/acme-0", headers=keys["globex"]).status_code == 404


def test_a_ledger_that_is_damaged_is_told_without_its_path(tmp_path: Path) -> None:
    found = chosen(tmp_path)
    key = headers(tmp_path, "acme", "viewer")
    with running(found) as url:
        assert httpx.get(f"{url}/v1/repositories", headers=key).status_code == 200
        for file in tmp_path.glob("ledger.db*"):
            file.unlink()
        (tmp_path / "ledger.db").write_bytes(b"this is not a database" * 100)
        problem(httpx.get(f"{url}/readyz"), 503)
        answer = httpx.get(f"{url}/v1/repositories", headers=key)
        problem(answer, 500)
        assert "ledger" not in answer.text
        assert str(tmp_path) not in answer.text
        (tmp_path / "ledger.db").unlink()
        (tmp_path / "ledger.db").mkdir()
        answer = httpx.get(f"{url}/readyz")
        problem(answer, 503)
        assert str(tmp_path) not in answer.text


# Lineage


def lineage(served: Served, key: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = served.ask("GET", f"/v1/items/{served.item}", key).json()["metadata"]["lineage"]
    return found


def test_a_step_is_appended_once(served: Served, editor: dict[str, str]) -> None:
    before = lineage(served, editor)
    step = {**STEP, "metadata": {"principal": "somebody else", "ticket": "4711"}, "sourceRevision": "abc"}
    sent = {**editor, "Idempotency-Key": "once"}

    def append(_: int) -> httpx.Response:
        return served.ask("POST", f"/v1/items/{served.item}/lineage", sent, json=step)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(append, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    record = answers[0].json()
    assert record["metadata"]["principal"] == "acme editor"  # not what the caller says
    assert record["metadata"]["ticket"] == "4711"
    assert lineage(served, editor) == [*before, record]
    other = served.ask("POST", f"/v1/items/{served.item}/lineage", sent, json={**step, "notes": "changed"})
    problem(other, 422)
    assert lineage(served, editor) == [*before, record]


def test_a_step_needs_its_key_its_item_and_a_shape(served: Served, editor: dict[str, str]) -> None:
    before = lineage(served, editor)
    path = f"/v1/items/{served.item}/lineage"
    problem(served.ask("POST", path, editor, json=STEP), 422)
    sent = {**editor, "Idempotency-Key": "shape"}
    problem(served.ask("POST", "/v1/items/nowhere/lineage", sent, json=STEP), 404)
    for wrong in (
        {**STEP, "action": "created"},
        {**STEP, "actor": "ingestion"},
        {**STEP, "timestamp": "2026-01-01T00:00:00Z"},
    ):
        problem(served.ask("POST", path, sent, json=wrong), 422)
    assert lineage(served, editor) == before


# Feedback


def counted(served: Served, key: dict[str, str]) -> tuple[int, int]:
    found = served.ask("GET", f"/v1/items/{served.item}/feedback", key).json()["feedback"]
    return found["helpful"], found["harmful"]


def test_a_vote_counts_once_and_shows_on_its_item(
    served: Served, viewer: dict[str, str], editor: dict[str, str]
) -> None:
    helpful, harmful = counted(served, viewer)
    sent = {**editor, "Idempotency-Key": "vote-once"}

    def vote(_: int) -> httpx.Response:
        return served.ask("POST", "/v1/feedback", sent, json={**VOTE, "ids": [served.item]})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(vote, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({json.dumps(answer.json()["votes"]) for answer in answers}) == 1
    assert answers[0].json()["shown"]
    assert counted(served, viewer) == (helpful + 1, harmful)
    item = served.ask("GET", f"/v1/items/{served.item}", viewer).json()
    assert item["feedback"]["helpful"] == helpful + 1
    other = {"verdict": "harmful", "ids": [served.item]}
    assert "another request" in problem(served.ask("POST", "/v1/feedback", sent, json=other), 422)["detail"]
    assert counted(served, viewer) == (helpful + 1, harmful)


def test_who_may_vote_on_what(served: Served, viewer: dict[str, str], editor: dict[str, str]) -> None:
    vote = {"verdict": "harmful", "ids": [served.item]}
    sent = {"Idempotency-Key": "rights"}
    problem(served.ask("POST", "/v1/feedback", {**viewer, **sent}, json=vote), 403)
    problem(served.ask("POST", "/v1/feedback", editor, json=vote), 422)
    problem(served.ask("POST", "/v1/feedback", {**editor, **sent}, json={"verdict": "harmful"}), 422)
    told = [
        problem(served.ask("POST", "/v1/feedback", {**editor, **sent}, json={**vote, "ids": [id]}), 404)["detail"]
        for id in ("hidden", "absent")
    ]
    assert told[0].replace("hidden", "absent") == told[1]
    problem(served.ask("POST", "/v1/feedback", {**editor, **sent}, json={**vote, "pack": "f" * 32}), 404)


def test_a_vote_on_all_that_a_pack_carried(served: Served, editor: dict[str, str]) -> None:
    pack = served.ask("POST", "/v1/packs", editor, json={**QUESTION, "explain": True}).json()
    sent = {**editor, "Idempotency-Key": "whole pack"}
    sent["Idempotency-Key"] = "whole-pack"
    answer = served.ask("POST", "/v1/feedback", sent, json={"verdict": "helpful", "pack": pack["id"]})
    assert answer.status_code == 201
    carried = {block["id"] for block in pack["explain"] if block["id"]}
    assert {vote["id"] for vote in answer.json()["votes"]} == carried
    again = {**editor, "Idempotency-Key": "not-carried"}
    other = served.ask("POST", "/v1/feedback", again, json={**VOTE, "pack": pack["id"], "ids": ["elsewhere"]})
    assert "was looked at for the pack" in problem(other, 404)["detail"]


def test_the_examples_of_both_write_apis_run(served: Served, editor: dict[str, str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "feedback.md").read_text(encoding="utf-8")
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ curl")]
    assert len(commands) == 4
    pack = served.ask("POST", "/v1/packs", editor, json=QUESTION).json()["id"]
    about = {"URL": served.url, "ITEM": served.item, "PACK": pack, "AUTH": f"Authorization: {editor['Authorization']}"}
    for _ in range(2):  # again: nothing is refused, nothing counts twice
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", command], env={**os.environ, **about}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert json.loads(done.stdout)


# Tenants


def test_every_endpoint_is_tried_by_strangers(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert found == ENDPOINTS.keys() | OPEN


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_another_tenants_key_sees_nothing(
    served: Served, viewer: dict[str, str], stranger: dict[str, str], data: st.DataObject
) -> None:
    """What exists for acme and what was never there are the same to globex, on every endpoint, whatever is asked."""
    name = data.draw(st.sampled_from(sorted(ENDPOINTS)))
    items = [served.item, "hidden", *(each["id"] for each in _some_items(served, viewer))]
    seen = {
        "item": data.draw(st.sampled_from(items)),
        "words": data.draw(st.sampled_from(["session", HIDDEN, "release the lock", "SHOP-7 sockets leak"])),
        "path": data.draw(st.sampled_from(["", "shop", "shop/app.py"])),
        "repository": data.draw(st.sampled_from(["", "acme/shop"])),
        "diff": data.draw(st.sampled_from(["", served.diff])),
    }
    invented = {"item": "0" * 36, "repository": "acme/none"}
    other = {**seen, **{key: value for key, value in invented.items() if seen[key]}}
    ask = ENDPOINTS[name]
    real, nothing = ask(served, stranger, seen), ask(served, stranger, other)
    assert real.status_code == nothing.status_code
    assert _without(real, seen) == _without(nothing, other)
    for word in ("shop/pool.py", "run-1", "SHOP-7: ", HIDDEN):
        assert word not in real.text.replace(seen["words"], "").replace(json.dumps(seen["diff"])[1:-1], "")
    if name.startswith("GET"):
        assert "acme" not in real.text.replace(seen["repository"] or "acme/shop", "")


def _some_items(served: Served, key: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = served.ask("GET", "/v1/search", key, params={"q": "session", "limit": 5}).json()[
        "items"
    ]
    return found


def _without(answer: httpx.Response, sent: dict[str, str]) -> str:
    """The answer without what was asked for, and without the times at which it was given."""
    text = answer.text
    for value in (sent["item"], sent["repository"]):
        text = text.replace(value, "*") if value else text
    if answer.url.path == "/v1/operations":
        told = json.loads(text)
        return json.dumps([told["tenant"], told["freshness"], told["runs"]])
    return text


def test_a_stranger_appends_nothing(served: Served, stranger: dict[str, str], viewer: dict[str, str]) -> None:
    before = lineage(served, viewer)
    assert _append(served, stranger, {"item": served.item}).status_code == 404
    assert lineage(served, viewer) == before


def test_eight_callers_at_once_get_their_own_answers(
    served: Served, viewer: dict[str, str], stranger: dict[str, str]
) -> None:
    public = headers(served.home, "acme", "viewer", "public")
    cleared = headers(served.home, "acme", "viewer", "restricted")
    seen = {"item": served.item, "words": "close the session", "path": "", "repository": "", "diff": served.diff}
    asks = [
        (name, number)
        for name in ("GET /v1/search", "GET /v1/items/{id}", "POST /v1/packs", "POST /v1/files", "GET /v1/repositories")
        for number in range(4)
    ]
    keys = [viewer, stranger, public, cleared]

    def answer(ask: tuple[str, int]) -> tuple[int, str]:
        got = ENDPOINTS[ask[0]](served, keys[ask[1]], seen)
        return got.status_code, got.text

    alone = {ask: answer(ask) for ask in asks}
    assert len(set(alone.values())) > 8
    many = asks * 6
    with ThreadPoolExecutor(8) as pool:
        for ask, got in zip(many, pool.map(answer, many), strict=True):
            assert got == alone[ask], ask


# The document


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    """Without its keys: whether they are asked for has its own test, and here they are always the right ones."""
    found = httpx.get(f"{served.url}/openapi.json").json()
    for methods in found["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(found)
    schema.config.update(base_url=served.url)
    return schema


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
NOTHING_TO_GET_WRONG = OPEN - {"POST /webhooks/github"} | {
    "GET /v1/items/{id}",
    "GET /v1/items/{id}/feedback",
    "GET /v1/repositories",
    "GET /v1/operations",
}
"""Without parameters, or any text is one."""
LONGEST_URL = 60_000
"""Characters. The HTTP layer itself refuses what is longer, before the application sees it."""


@pytest.mark.parametrize("role", ["viewer", "editor", "admin"])
@pytest.mark.parametrize(
    ("endpoint", "mode"),
    [
        (endpoint, mode)
        for endpoint in sorted(ENDPOINTS.keys() | OPEN)
        for mode in (POSITIVE, NEGATIVE)
        if mode is POSITIVE or endpoint not in NOTHING_TO_GET_WRONG
    ],
)
def test_the_server_keeps_its_document(
    served: Served, document: Any, endpoint: str, role: str, mode: GenerationMode, request: pytest.FixtureRequest
) -> None:
    """Status codes, content types, bodies and headers as declared; what does not fit is refused, what fits is not."""
    method, path = endpoint.split()
    key = request.getfixturevalue(role)
    # That a text is a unified diff no schema can say: one that is none is refused with 422.
    # Nor that a key was used for another vote.
    unsaid = [positive_data_acceptance] if path in {"/v1/packs", "/v1/files", "/v1/feedback"} else []

    @hypothesis_settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        assume(len(urlencode(case.query or {}, doseq=True, errors="replace")) < LONGEST_URL)
        case.call_and_validate(headers=key, excluded_checks=unsaid, timeout=60)

    check()


def test_the_document_says_what_it_must(served: Served) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            what = f"{method} {path}"
            assert operation["summary"], what
            declared = operation["responses"]
            if path.startswith("/v1/"):
                assert {"401", "403", "413", "422", "429", "503"} <= declared.keys(), what
                assert operation["security"] == [{"key": []}], what
                assert "Retry-After" in declared["429"]["headers"], what
            for status, answer in declared.items():
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"], (what, status)
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    assert {name for name in text.split('"') if name.startswith("#/components/schemas/")} <= {
        f"#/components/schemas/{name}" for name in document["components"]["schemas"]
    }


# The process


def test_health_readiness_and_metrics(served: Served, admin: dict[str, str], viewer: dict[str, str]) -> None:
    assert httpx.get(f"{served.url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{served.url}/readyz").json()["status"] == "ok"
    measured = httpx.get(f"{served.url}/metrics")
    assert measured.headers["content-type"].startswith("text/plain")
    assert "# TYPE" in measured.text
    with running(chosen(served.home), open_metrics=False) as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/metrics", headers=viewer).status_code == 403
        assert httpx.get(f"{url}/metrics", headers=admin).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_others_reach_it_only_once_there_is_a_key(tmp_path: Path) -> None:
    found = chosen(tmp_path)
    with found.open_store() as store:
        for host in ("0.0.0.0", "::", "198.51.100.7", "example.org"):
            with pytest.raises(ConfigurationError, match="access create"):
                serve(found, store, host, 0, print)
        key, _ = AccessKeys(tmp_path).create("acme", Confidentiality.INTERNAL, Role.VIEWER, "revoked")
        AccessKeys(tmp_path).revoke(key.id)
        with pytest.raises(ConfigurationError, match="access create"):
            serve(found, store, "0.0.0.0", 0, print)
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="cannot listen"):
            serve(found, store, "127.0.0.1", taken.getsockname()[1], print)


@pytest.mark.slow
def test_it_stops_when_told_and_finishes_what_it_began(tmp_path: Path) -> None:
    key = headers(tmp_path, "default", "viewer")
    with serving(tmp_path) as (process, url):
        with sqlite3.connect(tmp_path / "access.db", isolation_level=None) as db:
            # Whoever notes a key's first use has to wait for this: a request that takes a while.
            db.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(httpx.get, f"{url}/v1/repositories", headers=key, timeout=60)
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                time.sleep(1)
                assert process.poll() is None
                db.execute("ROLLBACK")
                assert answer.result().status_code == 200
        assert process.wait(30) == 0
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log
    with pytest.raises(httpx.HTTPError):
        httpx.get(url)


# The status page


def login(served: Served, key: dict[str, str], **more: str) -> httpx.Response:
    token = key["Authorization"].removeprefix("Bearer ")
    return httpx.post(f"{served.url}/login", data={"key": token}, headers=more, timeout=30)


def test_the_page_shows_nothing_without_a_key(served: Served, viewer: dict[str, str]) -> None:
    plain = httpx.get(f"{served.url}/")
    assert plain.status_code == 200
    for answer in (plain, login(served, viewer), login(served, {"Authorization": "Bearer cos_x"})):
        assert "acme" not in answer.text
        assert "<svg" not in answer.text
        assert "set-cookie" not in answer.headers
    assert "viewer" in login(served, viewer).text
    forged = httpx.get(f"{served.url}/", cookies={"context_os_session": "a" * 43})
    assert forged.text == plain.text


def test_an_admin_sees_the_operations_of_its_tenant(
    served: Served, admin: dict[str, str], stranger: dict[str, str]
) -> None:
    served.ask("GET", "/v1/search", admin, params={"q": "session"})
    answer = login(served, admin)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    page = httpx.get(f"{served.url}/", cookies=dict(answer.cookies))
    for word in ("acme/shop", "Freshness", "Recent runs", "Quarantine", "p95", "run-1", "team rules"):
        assert word in page.text
    assert page.text.count("<svg") >= 3
    assert "<script" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert page.headers["cache-control"] == "no-store"
    other = httpx.get(f"{served.url}/", cookies=dict(login(served, stranger).cookies))
    assert "globex" in other.text
    assert "acme" not in other.text


def test_a_session_ends_with_its_key_and_by_logging_out(served: Served) -> None:
    key, token = AccessKeys(served.home).create("acme", Confidentiality.INTERNAL, Role.ADMIN, "short")
    sent = {"Authorization": f"Bearer {token.get_secret_value()}"}
    one, two = dict(login(served, sent).cookies), dict(login(served, sent).cookies)
    assert "Freshness" in httpx.get(f"{served.url}/", cookies=one).text
    httpx.post(f"{served.url}/logout", cookies=one)
    assert "Freshness" not in httpx.get(f"{served.url}/", cookies=one).text
    assert "Freshness" in httpx.get(f"{served.url}/", cookies=two).text
    AccessKeys(served.home).revoke(key.id)
    assert "Freshness" not in httpx.get(f"{served.url}/", cookies=two).text


def test_another_site_cannot_log_anybody_in(served: Served, admin: dict[str, str]) -> None:
    problem(login(served, admin, **{"Sec-Fetch-Site": "cross-site"}), 403)
