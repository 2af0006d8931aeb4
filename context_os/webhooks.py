"""GitHub's webhooks: is a delivery theirs, and which repository and connectors does it concern?

The signature is HMAC-SHA256 of the raw body under the shared secret (GitHub Docs, "Validating webhook deliveries"). It
covers the body alone, not the delivery's id: whoever recorded a signed body could send it again under a new id. All
that this starts is a run that finds nothing new.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, SecretStr, ValidationError

from context_os.connectors import Connector
from context_os.errors import SourceRefused
from context_os.inbox import Trigger
from context_os.ledger import Registered

_ALL_COMMITS: Final = 2048
"""A push lists so many commits at most."""


def is_signed(secret: SecretStr, body: bytes, signature: str) -> bool:
    """Whether ``X-Hub-Signature-256`` is that of this body. Takes the same time wherever they differ."""
    expected = "sha256=" + hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


class Ignored(str):
    """Why a delivery starts nothing."""

    __slots__ = ()


class _Repository(BaseModel):
    full_name: str
    default_branch: str = ""


class _Commit(BaseModel):
    added: list[str] = []
    modified: list[str] = []
    removed: list[str] = []


class _Push(BaseModel):
    ref: str
    created: bool = False
    deleted: bool = False
    forced: bool = False
    commits: list[_Commit] = []
    repository: _Repository


class _Base(BaseModel):
    ref: str


class _Pull(BaseModel):
    merged: bool | None = False
    base: _Base


class _PullRequest(BaseModel):
    action: str
    pull_request: _Pull
    repository: _Repository


def read(
    event: str, body: bytes, repositories: Sequence[Registered], connectors: Mapping[str, Connector]
) -> Trigger | Ignored:
    """What a signed delivery asks for. Raises SourceRefused for a body that is not what the event says."""
    try:
        if event == "push":
            return _of_push(_Push.model_validate(_object(body)), repositories, connectors)
        if event == "pull_request":
            return _of_pull_request(_PullRequest.model_validate(_object(body)), repositories)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceRefused(f"this is no {event} event of GitHub's: {where}: {first['msg']}") from None
    return Ignored(f"nothing follows the event {event!r}")


def _object(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise SourceRefused("the body is not JSON; set the webhook's content type to application/json") from None


def _of_push(push: _Push, repositories: Sequence[Registered], connectors: Mapping[str, Connector]) -> Trigger | Ignored:
    known = _known(push.repository, repositories)
    if known is None:
        return Ignored("no repository of this name is registered here")
    if push.deleted:
        return Ignored("a branch or tag was deleted")
    followed = known.revision or push.repository.default_branch
    if not _is(push.ref, followed, tags=known.revision is not None):
        return Ignored("another branch or tag is followed")
    paths = {path for commit in push.commits for path in (*commit.added, *commit.modified, *commit.removed)}
    # What a forced push took away is not listed, and neither is what a new branch had before.
    unsure = push.forced or push.created or not paths or len(push.commits) >= _ALL_COMMITS
    names = [name for name, each in connectors.items() if unsure or any(map(each.concerns, paths))]
    return Trigger(known.name, tuple(names), "push")


def _of_pull_request(event: _PullRequest, repositories: Sequence[Registered]) -> Trigger | Ignored:
    known = _known(event.repository, repositories)
    if known is None:
        return Ignored("no repository of this name is registered here")
    followed = known.revision or event.repository.default_branch
    merged = event.action == "closed" and event.pull_request.merged and event.pull_request.base.ref == followed
    return Trigger(known.name, ("pull_requests", "symbols") if merged else ("pull_requests",), "pull_request")


def _known(named: _Repository, repositories: Sequence[Registered]) -> Registered | None:
    """GitHub compares names without case; two of ours that differ in it alone are told apart."""
    alike = [each for each in repositories if each.name.casefold() == named.full_name.casefold()]
    return next((each for each in alike if each.name == named.full_name), alike[0] if alike else None)


def _is(ref: str, followed: str, *, tags: bool) -> bool:
    return ref in {followed, f"refs/heads/{followed}", *([f"refs/tags/{followed}"] if tags else [])}
