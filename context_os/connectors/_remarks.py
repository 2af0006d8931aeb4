"""Review comments of one author on GitHub, with what people made of them: reactions, and threads that were resolved.

Comments and reactions are REST's, whether a thread is resolved only GraphQL tells (``reviewThreads.isResolved``). Where
it is not to be had (an old Enterprise, a token without the right) a comment whose lines were changed since stands for
one that was dealt with.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import Field, ValidationError

from context_os.connectors import _github_records, _pull
from context_os.connectors._github import PER_PAGE, Client, Unreadable
from context_os.connectors._github_records import Stamp, Text, Words, _Record, _User
from context_os.errors import SourceRefused, SourceUnavailable

_THREADS: Final = """
query($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) { pullRequest(number: $number) {
    reviewThreads(first: 100, after: $after) {
      pageInfo { hasNextPage endCursor }
      nodes { isResolved resolvedBy { login __typename } comments(first: 1) { nodes { databaseId } } } } } }
}"""
_MOST_PAGES: Final = 200


@dataclass(frozen=True)
class Remark:
    """A comment of the reviewer. ``state`` changes when what people made of it does; ``settled_by`` is who resolved its
    thread, None while nobody did."""

    id: int
    url: str
    body: str
    updated_at: str
    state: str
    settled_by: str | None


class _Comment(_Record):
    id: int
    html_url: Words = ""
    user: _User | None = None
    body: Words = ""
    created_at: Stamp
    updated_at: Stamp
    line: int | None = None
    position: int | None = None
    subject_type: Text | None = None
    pull_request_url: Text
    reactions: dict[str, Any] = Field(default_factory=dict)


class _Reaction(_Record):
    content: Text
    user: _User | None = None
    created_at: Stamp


class Remarks:
    """One look at a repository. ``resolutions`` says whether GitHub told which threads are resolved."""

    def __init__(self, client: Client, slug: str, reviewer: str) -> None:
        self._client = client
        self._slug = slug
        self._reviewer = reviewer.casefold()
        self.resolutions = True
        self.found: list[Remark] = []

    def look(self, since: datetime, marker: re.Pattern[str]) -> None:
        comments = [each for each in self._comments(since) if self._is_ours(each) and marker.search(each.body)]
        settled: dict[int, str] = {}
        for number in sorted({_number(each) for each in comments}):
            settled |= self._resolved(number)
        self.found = [self._remark(each, settled) for each in comments]

    def reactions(self, remark: Remark) -> list[tuple[str, str, str]]:
        """``(login, content, at)`` of everybody's but bots' and the reviewer's own."""
        found = []
        for entry in self._client.every(f"/repos/{self._slug}/pulls/comments/{remark.id}/reactions"):
            try:
                each = _Reaction.model_validate(entry)
            except ValidationError:
                continue  # of somebody whose account is gone, or of a kind that is not known yet
            if each.user is not None and self._is_person(each.user.login, each.user.type):
                found.append((each.user.login, each.content, each.created_at))
        return found

    def _is_person(self, login: str, kind: str) -> bool:
        return not _pull.is_bot(login, kind) and login.casefold() != self._reviewer

    def _is_ours(self, comment: _Comment) -> bool:
        return comment.user is not None and comment.user.login.casefold() == self._reviewer

    def _comments(self, since: datetime) -> list[_Comment]:
        """Newest first, to the first page that is older."""
        found: list[_Comment] = []
        query = {"sort": "created", "direction": "desc", "per_page": PER_PAGE}
        for page in range(1, _MOST_PAGES + 1):
            try:
                entries, answer = self._client.json(f"/repos/{self._slug}/pulls/comments", {**query, "page": page})
            except Unreadable as error:
                raise SourceUnavailable(f"page {page} of the review comments: {error.reason}") from error
            read = [each for each in map(_read, entries if isinstance(entries, list) else []) if each is not None]
            found += [each for each in read if datetime.fromisoformat(each.created_at) >= since]
            if not answer.more or any(datetime.fromisoformat(each.created_at) < since for each in read):
                break
        return found

    def _resolved(self, number: int) -> dict[int, str]:
        """Who resolved the threads of a pull request, by the comment that began them."""
        found: dict[int, str] = {}
        owner, _, name = self._slug.partition("/")
        after: str | None = None
        while self.resolutions:
            asked = {"owner": owner, "name": name, "number": number, "after": after}
            try:
                data = self._client.graphql(_THREADS, asked)
                threads = data["repository"]["pullRequest"]["reviewThreads"]
            except (SourceRefused, Unreadable, TypeError, KeyError):
                self.resolutions = False
                break
            for node in threads["nodes"]:
                found |= self._settler(node)
            if not threads["pageInfo"]["hasNextPage"]:
                break
            after = threads["pageInfo"]["endCursor"]
        return found

    def _settler(self, node: Any) -> dict[int, str]:
        who = node.get("resolvedBy") or {"login": _github_records.GHOST.name, "__typename": "User"}
        if not node.get("isResolved") or not self._is_person(who["login"], who.get("__typename", "User")):
            return {}
        return {first["databaseId"]: who["login"] for first in node["comments"]["nodes"]}

    def _remark(self, comment: _Comment, settled: dict[int, str]) -> Remark:
        outdated = comment.line is None and comment.position is None and comment.subject_type != "file"
        by = settled.get(comment.id) if self.resolutions else ("outdated" if outdated else None)
        counts = sorted((name, count) for name, count in comment.reactions.items() if isinstance(count, int))
        return Remark(
            id=comment.id,
            url=comment.html_url or f"{self._slug}#{comment.id}",
            body=comment.body,
            updated_at=comment.updated_at,
            state=json.dumps([counts, by, comment.updated_at]),
            settled_by=by,
        )


def _read(entry: Any) -> _Comment | None:
    try:
        return _Comment.model_validate(entry)
    except ValidationError:
        return None


def _number(comment: _Comment) -> int:
    return int(comment.pull_request_url.rpartition("/")[2] or 0)
