"""The read side over HTTP, lineage and webhooks: one process, one open store, every caller through its own ``Access``.

Nobody without a key gets a byte of a request to ``/v1`` parsed. Every error is a problem document (RFC 9457) whose
words are for the caller: paths, addresses and traces stay in the log. Answers are the objects that the command line
prints with ``--json``. What a webhook asks for is queued in the inbox; Dagster's sensor takes it from there.
"""

# No `from __future__ import annotations` here: FastAPI reads the types of parameters when it decorates.

import ipaddress
import json
import logging
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from context_os import __version__, overview, plugins, status_page, telemetry, webhooks
from context_os.app import App, summary
from context_os.connectors import Connector
from context_os.errors import (
    ConfigurationError,
    ContextOSError,
    NotFound,
    SourceRefused,
    SourceUnavailable,
    StoreAccessDenied,
    StoreRejected,
)
from context_os.feedback import Verdict
from context_os.inbox import Inbox, Trigger
from context_os.model import Access, Actor, KnowledgeItem, LineageAction, LineageRecord, Time, Value, utcnow
from context_os.packs import MINIMUM_TOKENS, ContextPack
from context_os.question import LONGEST
from context_os.security import AccessKeys, Key, Role
from context_os.selectors import Request as Asked
from context_os.settings import Settings
from context_os.stores import Filter, KnowledgeStore, Mode
from context_os.voting import Ballot, Told, Voting

_LOG: Final = logging.getLogger("context_os.server")

_MEGABYTE: Final = 2**20
_LARGEST: Final = {"/v1/": 4 * _MEGABYTE, "/webhooks/": 25 * _MEGABYTE}
"""Bytes of a body; GitHub sends at most 25 MB."""
_LARGEST_FORM: Final = 4_096
_AGAIN: Final = 5
"""Seconds after which somebody may try again what is not to be had just now."""
_SESSION: Final = 8 * 3600
"""Seconds that the status page stays open for a key."""
_MOST_SESSIONS: Final = 1_000
_COOKIE: Final = "context_os_session"
_STOPPING: Final = 20
"""Seconds that requests under way have when the server is told to stop."""


# What is sent and answered


class Fault(BaseModel):
    """One thing that is wrong with a request, and where in it: ``body/question``, ``query/limit``."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it. ``errors`` lists every fault of a request that does not fit."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no item"}]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[Fault] = []


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _written_out(value: object) -> object:
    """Pydantic also takes bare numbers for times, and guesses their unit."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[T ]", value, re.ASCII):
        raise ValueError("write a time as 2026-01-31T12:00:00Z")
    return value


Moment = Annotated[Time, BeforeValidator(_written_out)]
Some = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=20)]


class SearchQuery(_Sent):
    """The parameters of a search. Filters combine with AND, the values of one with OR, except ``all_tags``."""

    q: str = Field(
        min_length=1, max_length=2_000, description="What to look for, in words.", examples=["close a session"]
    )
    mode: Mode | None = Field(None, description="Without one: hybrid where vectors carry meaning, else keyword.")
    limit: int = Field(10, ge=1, le=100)
    repository: Some = []
    domain: Some = []
    kind: Some = Field([], examples=[["function", "method"]])
    tag: Some = Field([], description="Any of these.")
    all_tags: Some = Field([], description="All of these.")
    path: str = Field("", max_length=1_000, description="This path or anything below it.")
    language: Some = []
    source: Some = Field([], description="The connector.", examples=[["symbols"]])
    updated_from: Moment | None = Field(None, description="Inclusive.")
    updated_to: Moment | None = Field(None, description="Exclusive.")

    def filter(self) -> Filter:
        return Filter(
            repositories=tuple(self.repository),
            domains=tuple(self.domain),
            kinds=tuple(self.kind),
            tags_any=tuple(self.tag),
            tags_all=tuple(self.all_tags),
            path_prefix=self.path,
            languages=tuple(self.language),
            source_types=tuple(self.source),
            updated_from=self.updated_from,
            updated_to=self.updated_to,
        )


_EITHER: Final[dict[str, Any]] = {"anyOf": [{"required": ["question"]}, {"required": ["diff"]}]}


class About(_Sent):
    """What is asked: a question, a unified diff, or both."""

    question: str = Field("", max_length=LONGEST, description="A question, an issue or a stack trace.")
    diff: str = Field("", max_length=2 * _MEGABYTE, description="A unified diff, as `git diff` prints it.")
    repository: str | None = Field(None, max_length=1_000, description="Only from this one; without it, from all.")


class PackRequest(About):
    model_config = ConfigDict(
        json_schema_extra={**_EITHER, "examples": [{"question": "Where are sessions closed?", "max_tokens": 4000}]}
    )

    max_tokens: int = Field(8_000, ge=MINIMUM_TOKENS, le=1_000_000, description="The hard budget of the prompt.")
    explain: bool = Field(False, description="Trace every line of the prompt back to an item.")


class FilesRequest(About):
    model_config = ConfigDict(
        json_schema_extra={**_EITHER, "examples": [{"question": "Where are sessions closed?", "limit": 5}]}
    )

    limit: int = Field(10, ge=1, le=1_000)


Subject = Annotated[str, Field(min_length=1, max_length=200)]


class FeedbackVote(Value):
    """What somebody says of items, or of everything that a pack carried. Time, principal and key are the server's to
    say."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["ids"], "properties": {"ids": {"minItems": 1}}},
                {"required": ["pack"], "properties": {"pack": {"minLength": 1}}},
            ],
            "examples": [{"verdict": "helpful", "ids": ["0c1f7a52-6d0e-5b8e-9a2b-3f6f0a4f9d11"]}],
        }
    )

    verdict: Verdict
    ids: tuple[Subject, ...] = Field(
        (), max_length=500, description="Items, or `action:<id>` for an action's output; none: all of the pack."
    )
    pack: str = Field("", max_length=64, description="The pack in which they were read; it must have carried them.")
    comment: str = Field("", max_length=4_000)
    actor: Literal["human", "automation"] = "human"


class VoteState(BaseModel):
    key: str
    id: str
    verdict: Verdict
    at: Time


class VotesAnswer(BaseModel):
    """``shown``: items show these votes already; else they do so a little later."""

    votes: list[VoteState]
    shown: bool


Note = Annotated[str, Field(max_length=500)]


class LineageStep(Value):
    """A step in an item's life that did not come from ingestion. Time, principal and key are the server's to say."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"action": "approved", "actor": "human", "notes": "Read and still true."}]}
    )

    action: Literal["approved", "rollback", "compacted"]
    actor: Literal["human", "automation"] = "automation"
    notes: str = Field("", max_length=4_000)
    source_revision: str = Field("", max_length=200)
    derived_from: tuple[Annotated[str, Field(max_length=200)], ...] = Field((), max_length=100)
    metadata: dict[Annotated[str, Field(max_length=100)], Note] = Field(default_factory=dict, max_length=20)


class SearchHit(BaseModel):
    id: str
    score: float
    kind: str
    title: str
    repository: str
    path: str
    start_line: int | None
    end_line: int | None
    revision: str
    expires_at: str


class SearchAnswer(BaseModel):
    """The best first. Scores compare within one answer only."""

    items: list[SearchHit]


class FileFound(BaseModel):
    repository: str
    path: str
    score: float
    reason: str


class FilesAnswer(BaseModel):
    """The best first."""

    files: list[FileFound]


class ConnectorState(BaseModel):
    """``items`` counts what the caller may read. ``indexed_at`` is when they last changed."""

    connector: str
    revision: str
    indexed_at: Time | None
    items: int


class RepositoryState(BaseModel):
    name: str
    connectors: list[ConnectorState]


class RepositoriesAnswer(BaseModel):
    """Every repository of which the caller may read anything."""

    repositories: list[RepositoryState]


class Delivered(BaseModel):
    """What became of a webhook's delivery."""

    status: Literal["queued", "ignored", "duplicate", "pong"]
    detail: str


class State(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__


# Errors


_MEANINGS: Final = {
    400: "The body cannot be read as JSON.",
    401: "No access key, or one that is unknown, expired or revoked.",
    403: "The key may not do this.",
    404: "Nothing of this name exists, or not for you: the two are not told apart.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request does not fit; every fault is listed.",
    429: "This key asks too often; `Retry-After` says in how many seconds it may again.",
    503: "Not to be had just now; the same request may succeed after `Retry-After` seconds.",
}


def _declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These errors, for the OpenAPI document."""
    after = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": after} if status in {429, 503} else {}),
        }
        for status in statuses
    }


_READS: Final = _declared(401, 403, 413, 422, 429, 503)
_FINDS: Final = _READS | _declared(404)
_TAKES: Final = _FINDS | _declared(400)


def _problem(status: int, detail: str, headers: dict[str, str] | None = None, faults: Sequence[Fault] = ()) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if faults:
        body["errors"] = [fault.model_dump() for fault in faults]
    # Escaped to ASCII: a fault may name a key that has no UTF-8 form.
    return Response(json.dumps(body), status, headers, media_type="application/problem+json")


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = {**(error.headers or {})}
    return _problem(error.status_code, str(error.detail), headers)


def _unfit(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [Fault(pointer="/".join(map(str, each["loc"])), detail=each["msg"]) for each in error.errors()]
    return _problem(422, "the request does not fit; see `errors`", faults=faults)


def _failed(_: Request, error: Exception) -> Response:
    """An error of ours. Its message may name files and servers, so the caller gets other words."""
    if isinstance(error, NotFound):
        return _problem(404, str(error))
    _LOG.error("%s: %s", type(error).__name__, error)
    if isinstance(error, ContextOSError) and error.retryable:
        wait = error.retry_after if isinstance(error, SourceUnavailable) and error.retry_after else _AGAIN
        return _problem(503, "a part that this needs cannot be reached just now", {"Retry-After": str(round(wait))})
    if isinstance(error, StoreRejected):
        return _problem(422, "the store does not take this request")
    if isinstance(error, StoreAccessDenied):
        return _problem(403, "the store does not do this for this server; its log says why")
    return _problem(500, "something failed that should not; the server's log says what")


def _crashed(_: Request, error: Exception) -> Response:
    _LOG.error("unexpected", exc_info=error)
    return _problem(500, "something failed that should not; the server's log says what")


# Before a request is parsed


class _Gate:
    """Size, key and rate of a request, before anybody parses it. ``request.state.key`` is the caller's key."""

    def __init__(self, app: ASGIApp, keys: AccessKeys, per_minute: int, *, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._rate = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._private = ("/v1/",) if open_metrics else ("/v1/", "/metrics")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"].startswith(self._private):
                scope.setdefault("state", {})["key"] = await self._admitted(scope)
            whole = await _body(scope, receive)
        except HTTPException as refusal:
            await _refused(Request(scope), refusal)(scope, receive, send)
            return
        await self._app(scope, _replayed(whole, receive), send)

    async def _admitted(self, scope: Scope) -> Key:
        kind, _, token = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").partition(" ")
        try:
            key = await run_in_threadpool(self._keys.authenticate, token.strip()) if kind.lower() == "bearer" else None
        except ContextOSError as error:
            _LOG.error("%s", error)
            raise HTTPException(503, "keys cannot be looked up just now", {"Retry-After": str(_AGAIN)}) from None
        if key is None:
            raise HTTPException(
                401, "send an access key as `Authorization: Bearer cos_...`", {"WWW-Authenticate": "Bearer"}
            )
        if not self._limiter.hit(self._rate, key.id):
            until = self._limiter.get_window_stats(self._rate, key.id).reset_time
            wait = {"Retry-After": str(max(1, round(until - time.time())))}
            raise HTTPException(429, f"this key may ask {self._rate.amount} times a minute", wait)
        return key


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. Raises 413 as soon as it is known to be too large."""
    most = next((size for prefix, size in _LARGEST.items() if scope["path"].startswith(prefix)), _LARGEST_FORM)
    too_large = HTTPException(413, f"a body here has at most {most:,} bytes", {"Connection": "close"})
    announced = dict(scope["headers"]).get(b"content-length", b"")
    if announced.isdigit() and int(announced[:20]) > most:
        raise too_large
    whole = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body ended before it was whole")
        whole += message.get("body", b"")
        if len(whole) > most:
            raise too_large
        if not message.get("more_body", False):
            return bytes(whole)


def _replayed(whole: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    waiting: list[Message] = [{"type": "http.request", "body": whole, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _raw(request: Request) -> bytes:
    return await request.body()


_bearer: Final = HTTPBearer(
    auto_error=False, description="An access key: `context-os access create --label NAME` makes one.", scheme_name="key"
)
Raw = Annotated[bytes, Depends(_raw)]


def _with(role: Role) -> Callable[..., Key]:
    def caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Key:
        key: Key = request.state.key
        if not key.role.includes(role):
            raise HTTPException(403, f"this needs the role {role}; the key {key.id} has the role {key.role}")
        return key

    return caller


Viewer = Annotated[Key, Depends(_with(Role.VIEWER))]
Editor = Annotated[Key, Depends(_with(Role.EDITOR))]
Admin = Annotated[Key, Depends(_with(Role.ADMIN))]


@dataclass
class _Sessions:
    """Who has the status page open, in memory: a random token, the key's id, and until when. Threads may share it."""

    _open: dict[str, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, key: Key) -> str:
        token = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._open) >= _MOST_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[token] = (key.id, time.monotonic() + _SESSION)
        return token

    def key_id(self, token: str) -> str | None:
        with self._lock:
            id, until = self._open.get(token, ("", 0.0))
        return id if time.monotonic() < until else None

    def end(self, token: str) -> None:
        with self._lock:
            self._open.pop(token, None)


# The routes


class Server:
    """What the routes share. ``app`` sees the store as the settings' own principal; each caller gets its own view."""

    def __init__(self, settings: Settings, store: KnowledgeStore) -> None:
        home = settings.make_home()
        nobody = Access(tenant=settings.tenant, principal="server", clearance=settings.clearance)
        self.settings = settings
        self.app = App(settings, store, nobody)
        self.keys = AccessKeys(home)
        self.inbox = Inbox(home)
        self.stopwatch = overview.Stopwatch()
        self.sessions = _Sessions()

    def view(self, key: Key) -> App:
        return self.app.seen_by(key.access)

    def operations(self, key: Key) -> overview.Operations:
        return overview.look(self.app.ledger, self.app.store.identity, key.tenant, self.stopwatch)

    def repositories(self, key: Key) -> list[RepositoryState]:
        """By name, with what this caller may read of each; what it may read nothing of is not there."""
        view = self.view(key)
        found: dict[str, list[ConnectorState]] = {}
        for scope in view.ledger.scopes(view.store.identity, key.tenant):
            of_this = Filter(repositories=(scope.repository,), source_types=(scope.connector,))
            if items := view.store.count(view.access, of_this):
                found.setdefault(scope.repository, []).append(
                    ConnectorState(
                        connector=scope.connector, revision=scope.revision, indexed_at=scope.indexed_at, items=items
                    )
                )
        return [RepositoryState(name=name, connectors=states) for name, states in sorted(found.items())]

    def asked(self, key: Key, about: About) -> tuple[App, Asked]:
        """The caller's view and what is asked of it. 404 for a repository that is not there for this caller, 422 where
        nothing is asked."""
        view = self.view(key)
        if about.repository is not None:
            seen = about.repository and view.store.count(view.access, Filter(repositories=(about.repository,)))
            if not seen:
                raise HTTPException(404, f"no repository is called {about.repository!r} for this key")
        try:
            return view, view.request(about.question, about.diff, about.repository)
        except ConfigurationError as error:
            raise HTTPException(422, str(error)) from None

    def connectors(self) -> dict[str, Connector]:
        return {name: self.settings.connector(name) for name in plugins.names("connectors")}


def create(settings: Settings, store: KnowledgeStore, *, open_metrics: bool = True) -> FastAPI:
    """The application. Without ``open_metrics`` an admin's key is needed to read metrics, which are of all tenants."""
    server = Server(settings, store)
    api = FastAPI(
        title="Context-OS",
        version=__version__,
        description="What a team knows about its code: search it, build packs from it, follow where it came from.",
        docs_url=None,  # both load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    for kind, handler in {
        StarletteHTTPException: _refused,
        RequestValidationError: _unfit,
        ContextOSError: _failed,
        Exception: _crashed,
    }.items():
        api.add_exception_handler(kind, handler)
    api.add_middleware(
        _Gate, keys=server.keys, per_minute=settings.server.requests_per_minute, open_metrics=open_metrics
    )
    _reading(api, server)
    _lineage(api, server)
    _feedback(api, server)
    _watching(api, server, open_metrics=open_metrics)
    _receiving(api, server)
    _looking(api, server)
    _describe(api)
    return api


def _reading(api: FastAPI, server: Server) -> None:
    @api.get("/v1/search", responses=_READS, summary="Search items by words, by vectors, or both")
    def search(asked: Annotated[SearchQuery, Query()], key: Viewer) -> SearchAnswer:
        """Finds what this key may read. Nothing found is an empty list."""
        view = server.view(key)
        if asked.mode is Mode.VECTOR and view.embedding is None:
            raise HTTPException(422, "vector search needs an embedding, and this server has none; use another mode")
        with server.stopwatch.timed(key.tenant, "search"):
            hits = view.search(asked.q, asked.mode, asked.limit, asked.filter())
        return SearchAnswer(items=[SearchHit(**summary(hit.item, hit.score)) for hit in hits])

    @api.get("/v1/items/{id}", responses=_FINDS, summary="One item, whole, with its lineage")
    def item(id: str, key: Viewer) -> KnowledgeItem:
        """In the exchange form (camelCase). What is not there and what is not for this key are not told apart."""
        return server.view(key).show(id)

    @api.post(
        "/v1/packs",
        responses=_TAKES | {200: {"content": _json_of("Pack.ContextPack")}},
        response_model=None,
        summary="A context pack inside a token budget",
    )
    def pack(wanted: PackRequest, key: Viewer) -> Response:
        """For a question, a change, or both. The prompt never exceeds ``max_tokens``."""
        view, _ = server.asked(key, wanted)
        with server.stopwatch.timed(key.tenant, "pack"):
            built = view.pack(wanted.question, wanted.diff, wanted.repository, wanted.max_tokens)
        without = set() if wanted.explain else {"explain"}
        return Response(built.model_dump_json(exclude=without), media_type="application/json")

    @api.post("/v1/files", responses=_TAKES, summary="The files that a question or a change is about")
    def files(wanted: FilesRequest, key: Viewer) -> FilesAnswer:
        """Those that a change names already are left out. Needs the statistics of an ingestion on this machine."""
        view, asked = server.asked(key, wanted)
        with server.stopwatch.timed(key.tenant, "files"):
            found = view.files(asked, wanted.limit)
        return FilesAnswer(files=[FileFound(**hit._asdict()) for hit in found])

    @api.get("/v1/repositories", responses=_READS, summary="The repositories that this key may read")
    def repositories(key: Viewer) -> RepositoriesAnswer:
        return RepositoriesAnswer(repositories=server.repositories(key))


def _request_name(description: str, example: str) -> Any:
    """The header by which a request that is sent again is known."""
    return Header(min_length=1, max_length=200, pattern=r"^[!-~]+$", description=description, examples=[example])


def _lineage(api: FastAPI, server: Server) -> None:
    @api.post("/v1/items/{id}/lineage", status_code=201, responses=_TAKES, summary="Append a step to an item's lineage")
    def append(
        id: str,
        step: LineageStep,
        idempotency_key: Annotated[
            str,
            _request_name(
                "Your name for this step. Sent again within a week, the step is not appended twice.",
                "review-4711-approved",
            ),
        ],
        key: Editor,
    ) -> LineageRecord:
        """Answers the record as it stands in the item. The same key with another step is refused."""
        view = server.view(key)
        view.show(id)
        record = LineageRecord(
            timestamp=utcnow(),
            actor=Actor(step.actor),
            action=LineageAction(step.action),
            notes=step.notes,
            source_revision=step.source_revision,
            derived_from=step.derived_from,
            # The request's name too: an item takes no record twice, and two steps may be alike to the millisecond.
            metadata={**step.metadata, "principal": key.label, "key": key.id, "request": idempotency_key},
        )
        try:
            kept = server.inbox.once((key.tenant, key.label, id, idempotency_key), step.model_dump_json(), record)
        except ConfigurationError as error:
            raise HTTPException(422, str(error)) from None
        view.store.append_lineage(view.access, id, kept)
        return kept


def _feedback(api: FastAPI, server: Server) -> None:
    @api.post("/v1/feedback", status_code=201, responses=_TAKES, summary="Say what helped and what harmed")
    def vote(
        said: FeedbackVote,
        idempotency_key: Annotated[
            str,
            _request_name("Your name for this vote. Sent again, it does not count twice.", "review-4711-finding-3"),
        ],
        key: Editor,
    ) -> VotesAnswer:
        """Votes move ranking a little, for this tenant alone. The same key with another vote is refused."""
        told = said.model_dump(exclude={"ids"})
        try:
            cast = Voting(server.view(key)).cast(Ballot(subjects=said.ids, **told), "http", idempotency_key)
        except ConfigurationError as error:
            raise HTTPException(422, str(error)) from None
        votes = [VoteState(key=each.key, id=each.subject, verdict=each.verdict, at=each.at) for each in cast.votes]
        return VotesAnswer(votes=votes, shown=cast.projected)

    @api.get("/v1/items/{id}/feedback", responses=_FINDS, summary="What was said of an item")
    def feedback(id: str, key: Viewer) -> Told:
        """Exact sums. Who said what and why is for those who run the server."""
        return Voting(server.view(key)).told(id)


def _watching(api: FastAPI, server: Server, *, open_metrics: bool) -> None:
    @api.get("/v1/operations", responses=_READS, summary="How the tenant's ingestion and reading do")
    def tenant_operations(key: Admin) -> overview.Operations:
        """Counts and times of the whole tenant, whatever the key's clearance; no content."""
        return server.operations(key)

    @api.get("/healthz", summary="The process is alive")
    def healthz() -> State:
        return State()

    @api.get("/readyz", responses=_declared(503), summary="The store and the ledger answer")
    def readyz() -> State:
        again = {"Retry-After": str(_AGAIN)}
        health = server.app.store.health()
        if not health.ready:
            _LOG.error("not ready: %s", health.detail)
            raise HTTPException(503, "the store is not ready", again)
        try:
            server.app.ledger.scopes(server.app.store.identity, server.settings.tenant)
        except ContextOSError as error:
            _LOG.error("not ready: %s", error)
            raise HTTPException(503, "the ledger is not ready", again) from None
        return State()

    measured = {200: {"description": "In Prometheus' text format.", "content": {"text/plain": {}}}}
    guarded = {} if open_metrics else {"dependencies": [Depends(_with(Role.ADMIN))]}

    @api.get("/metrics", responses=measured, response_model=None, summary="Metrics of this process", **guarded)  # type: ignore[arg-type]
    def metrics() -> Response:
        body, kind = telemetry.exposition()
        return Response(body, headers={"Content-Type": kind})


def _receiving(api: FastAPI, server: Server) -> None:
    secret = server.settings.server.webhook_secret
    body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}

    @api.post(
        "/webhooks/github",
        status_code=202,
        responses=_declared(403, 404, 413, 415, 422, 503),
        openapi_extra={"requestBody": body},
        summary="Where GitHub sends push and pull_request events",
    )
    def github(
        raw: Raw,
        x_hub_signature_256: Annotated[str, Header(description="`sha256=` and the HMAC of the body.")] = "",
        x_github_event: Annotated[str, Header()] = "",
        x_github_delivery: Annotated[str, Header()] = "",
        content_type: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Delivered:
        """Starts the ingestion that the event concerns and no other. A delivery that came before starts nothing."""
        if secret is None:
            _LOG.warning("a webhook came and was refused: set CONTEXT_OS_SERVER__WEBHOOK_SECRET to take them")
            raise HTTPException(404, "webhooks are not taken here")
        if not webhooks.is_signed(secret, raw, x_hub_signature_256):
            raise HTTPException(403, "X-Hub-Signature-256 is not the signature of this body under our secret")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "set the webhook's content type to application/json")
        if not x_github_event or not 1 <= len(x_github_delivery) <= 100 or not x_github_delivery.isascii():
            raise HTTPException(422, "X-GitHub-Event and X-GitHub-Delivery must be sent as GitHub sends them")
        if x_github_event == "ping":
            return Delivered(status="pong", detail="the secret is right")
        return _delivered(server, x_github_event, x_github_delivery, raw)


def _delivered(server: Server, event: str, delivery: str, raw: bytes) -> Delivered:
    try:
        found = webhooks.read(event, raw, server.app.repositories(), server.connectors())
    except SourceRefused as error:
        raise HTTPException(422, str(error)) from None
    trigger = found if isinstance(found, Trigger) else None
    if not server.inbox.accept(delivery, trigger):
        return Delivered(status="duplicate", detail="this delivery came before; nothing was started")
    if trigger is None:
        return Delivered(status="ignored", detail=str(found))
    _LOG.info("%s of %s queued: %s (delivery %s)", event, trigger.repository, trigger.connectors, delivery)
    return Delivered(status="queued", detail=f"{len(trigger.connectors)} connectors")


def _looking(api: FastAPI, server: Server) -> None:
    """The status page: HTML for people, not a part of the API."""

    def page(body: str, status: int = 200) -> HTMLResponse:
        return HTMLResponse(body, status, headers=status_page.HEADERS)

    def of_session(request: Request) -> Key | None:
        id = server.sessions.key_id(request.cookies.get(_COOKIE, ""))
        key = server.keys.active(id) if id else None
        return key if key is not None and key.role.includes(Role.ADMIN) else None

    @api.get("/", include_in_schema=False)
    def status(request: Request) -> HTMLResponse:
        key = of_session(request)
        if key is None:
            return page(status_page.login())
        return page(status_page.render(server.operations(key), key.label))

    @api.post("/login", include_in_schema=False)
    def login(request: Request, raw: Raw) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise HTTPException(403, "log in from the page of this server")
        form = parse_qs(raw.decode("utf-8", "replace"), max_num_fields=5)
        key = server.keys.authenticate(form.get("key", [""])[0].strip())
        if key is None:
            return page(status_page.login("This is no key that may be used."), 403)
        if not key.role.includes(Role.ADMIN):
            return page(status_page.login(f"This key is a {key.role}'s; the page is for admins of a tenant."), 403)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            _COOKIE, server.sessions.begin(key), max_age=_SESSION, httponly=True, samesite="strict", secure=secure
        )
        return answer

    @api.post("/logout", include_in_schema=False)
    def logout(request: Request) -> Response:
        server.sessions.end(request.cookies.get(_COOKIE, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(_COOKIE, httponly=True, samesite="strict")
        return answer


# The document


def _json_of(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}


def _describe(api: FastAPI) -> None:
    """Adds what FastAPI does not find by itself: problems, and packs under the names of the command line."""
    made = api.openapi
    _, packs = models_json_schema(
        [(ContextPack, "serialization")], by_alias=False, ref_template="#/components/schemas/Pack.{model}"
    )
    extra = {f"Pack.{name}": schema for name, schema in packs["$defs"].items()}
    extra["Pack.ContextPack"]["required"] = [
        name for name in extra["Pack.ContextPack"]["required"] if name != "explain"
    ]

    def described() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = made()
            schemas = document["components"]["schemas"]
            schemas |= extra | {"Problem": Problem.model_json_schema(ref_template="#/components/schemas/{model}")}
            schemas |= schemas["Problem"].pop("$defs")
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = described  # type: ignore[method-assign]


# Running it


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(settings: Settings, store: KnowledgeStore, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished. ``announce`` gets the URL once it answers there.

    Port 0 is any free one. Raises ConfigurationError for an address that is not ours, and for one that others can reach
    while there is no key.
    """
    if not is_loopback(host) and not any(
        key.state(utcnow()) == "active" for key in AccessKeys(settings.make_home()).list()
    ):
        raise ConfigurationError(
            f"{host} can be reached by others and there is no access key yet; make one with `context-os access create`"
        )
    application = create(settings, store, open_metrics=is_loopback(host))
    # uvicorn raises the signal once more when it has stopped: the store is to be closed then, and all is well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            application, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_STOPPING
        )
        uvicorn.Server(config).run(sockets=[listener])


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}; name another") from None
    # Whoever reads the URL may connect at once: the connection waits for uvicorn to accept it.
    listener.listen(512)
    return listener
