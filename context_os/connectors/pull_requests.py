"""Pull requests and their review comments, from GitHub's API or from git history alone.

Both sources yield the same items; history knows no labels, reviews, comments or open pull requests. A unit is one
pull request, ``pull/<N>``.

**Listings.** History is listed whole once and from then on only where it grew; with HEAD where the cursor is, nothing
is listed. The API is listed newest change first and ends at the first page that was known before the last stored
listing began; a first page with the ETag of the cursor is one request (304). Whatever cannot be told apart cheaply is
listed whole.

**What came in broken.** A record or an entry of the wrong shape, and an answer that is no JSON, is ``Rejected`` with
its text, the rest goes on. NUL and lone surrogates, which stores refuse, are shown as U+2400 and U+FFFD with a note.
Text beyond the limits below is counted where it ends, with a note.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from context_os.connectors import (
    Connector,
    Expectation,
    Known,
    Listing,
    Rejected,
    Repository,
    Unit,
    _github_records,
    _merges,
    _pull,
)
from context_os.connectors._github import DEFAULT_URL, PER_PAGE, Absent, Answer, Client, Unreadable
from context_os.connectors._github_records import Reading, Summary
from context_os.connectors._pull import Comment, Commit, Pull, Review
from context_os.connectors._remarks import Remarks
from context_os.errors import ConfigurationError, SourceUnavailable
from context_os.git import Git
from context_os.model import KnowledgeItem, Relation, Source

_LONGEST_BODY: Final = 20_000
_LONGEST_REVIEW: Final = 4_000
_LONGEST_LINE: Final = 400
_LONGEST_TITLE: Final = 300
_COMMITS_SHOWN: Final = 50
_HUNK_LINES: Final = 12
_MOST_LOOKS: Final = 5
_NO_PULL: Final = "an entry of GitHub's list of pull requests is not one: it lacks something needed or has a wrong type"


def _url(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query):
        raise ValueError("give https://host/api/v3, without credentials")
    return value.rstrip("/")


def _slug(value: str) -> str:
    if value and not _is_slug(value):
        raise ValueError("give owner/name")
    return value


def _is_slug(value: str) -> bool:
    return bool(re.fullmatch(r"(?!\.{1,2}/)[\w.-]+/(?!\.{1,2}$)[\w.-]+", value, re.ASCII))


@dataclass(frozen=True)
class _Origin:
    """Which of the two sources told, for the item."""

    name: Literal["github", "git"]
    accessor: str
    location: str
    slug: str


class PullRequests(Connector):
    """Configuration. ``api`` "auto" asks GitHub when a token or a base_url is given, else reads history.

    ``base_url`` is for Enterprise ("https://host/api/v3"). ``slug`` is "owner/name" where the registered name is not.
    ``timeout`` is for one answer and ``patience`` for all waiting of one scan or read (rate limits, retries), both in
    seconds. ``max_pull_requests`` holds a listing to the latest that many; older ones stay as they are. GitHub grants
    5,000 requests an hour: for the first reading of more than a thousand pull requests raise ``patience`` to hours.
    ``reviewer`` is the login that writes our reviews: what people make of its comments is feedback.
    """

    name = "pull_requests"
    domain = "code"
    kinds = ("pull_request", "review_comment")
    summary: ClassVar[str] = "Pull requests, their files, commits, reviews and inline comments"

    transport: ClassVar[frozenset[str]] = frozenset(
        {"token", "timeout", "seconds_between_requests", "patience", "reviewer"}
    )
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["pull_request", "review_comment"]},
            "the connector yields pull requests and review comments, nothing else",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "unit", "regex": r"^pull/[1-9]\d*$"},
            "a unit is one pull request, pull/<number>",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "title", "regex": r"#[1-9]\d*"},
            "a title names its pull request's number, so that people can find it",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "revision", "regex": r"^[0-9a-f]{40}([0-9a-f]{24})?$"},
            "without a commit it cannot be traced to the code",
            critical=False,
        ),
    )

    api: Literal["auto", "github", "git"] = "auto"
    token: SecretStr | None = None
    base_url: Annotated[str, AfterValidator(_url)] = ""
    slug: Annotated[str, AfterValidator(_slug)] = ""
    timeout: int = Field(default=30, ge=1, le=600)
    seconds_between_requests: float = Field(default=0.25, ge=0, le=60)
    patience: float = Field(default=120.0, ge=0, le=86_400)
    max_pull_requests: int | None = Field(default=None, ge=1)
    reviewer: str = Field(default="", max_length=100)
    ttl: timedelta | None = timedelta(days=730)

    def scan(self, repository: Repository, known: Known) -> Listing:
        """See the module. Raises SourceUnavailable, SourceRefused and ConfigurationError (no slug)."""
        if not self._asks_github:
            return self._scan_history(repository, known)
        slug = self._slug_of(repository)
        with self._client() as client:
            return _Pages(client, slug, self._scope(slug), known, self.max_pull_requests).listing()

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        """See the module. Needs three to five requests for a pull request, or a few git processes for a thousand."""
        return (
            self._read_github(repository, listing, keys)
            if self._asks_github
            else self._read_history(repository, listing, keys)
        )

    @contextmanager
    def remarks(self, repository: Repository, since: datetime, marker: re.Pattern[str]) -> Iterator[Remarks]:
        """The reviewer's comments with a marker, newest first. Raises as ``scan`` does, and ConfigurationError without
        a ``reviewer``."""
        if not self.reviewer:
            raise ConfigurationError(
                "whose review comments? set connectors.pull_requests.reviewer to the login that writes them"
            )
        slug = self._slug_of(repository)
        with self._client() as client:
            found = Remarks(client, slug, self.reviewer)
            found.look(since, marker)
            yield found

    @property
    def _asks_github(self) -> bool:
        return self.api == "github" or (self.api == "auto" and bool(self.token or self.base_url))

    def _scope(self, place: str) -> str:
        """What a cursor is worth for: one from other settings is not used."""
        return f"{self.base_url or DEFAULT_URL} {place} {self.max_pull_requests}"

    # git history

    def _scan_history(self, repository: Repository, known: Known) -> Listing:
        git = Git(repository.location)
        revision = git.resolve(repository.revision) if repository.revision else git.head()
        if not revision:
            return Listing("", {})
        scope = f"git {self.max_pull_requests}"
        old = str(known.cursor.get("revision", "")) if _is_usable(known, scope) else ""
        if old == revision:
            return Listing(revision, {}, complete=False, cursor=known.cursor)
        if old and _merges.is_ancestor(git, old, revision):
            grown = _merges.list_merged(git, revision, since=old)
            # Of several commits that name one number the newest counts, and only a whole listing knows which is.
            if not grown.keys() & known.units.keys():
                return self._listed(scope, revision, grown, len(known.units), complete=False)
        return self._listed(scope, revision, _merges.list_merged(git, revision), 0, complete=True)

    def _listed(self, scope: str, revision: str, units: dict[str, str], before: int, *, complete: bool) -> Listing:
        most = self.max_pull_requests or len(units)
        held = dict(islice(units.items(), most))
        left = len(units) - len(held)
        skipped = {"older than max_pull_requests": left} if left else {}
        cursor = {"scope": scope, "revision": revision, "count": before + len(held)}
        return Listing(revision, held, complete and not left, skipped, cursor)

    def _read_history(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        git = Git(repository.location)
        units = dict(listing.units)
        if not units.keys() >= set(keys) and listing.revision:
            units = _merges.list_merged(git, listing.revision) | units
        origin = _Origin("git", "git-log", git.directory, self.slug or repository.name)
        for key in keys:
            if key not in units:
                yield Unit(key, "", (), (Rejected(key, ("no commit names it; scan again",), key),))
        for key, pull in _merges.read_merged(git, {key: units[key] for key in keys if key in units}):
            if isinstance(pull, str):
                yield Unit(key, units[key], (), (Rejected(key, (pull,), units[key]),))
            else:
                yield self._unit(repository, origin, key, units[key], pull, Reading())

    # GitHub

    def _client(self) -> Client:
        token = self.token.get_secret_value() if self.token else ""
        return Client(self.base_url, token, self.timeout, self.seconds_between_requests, self.patience)

    def _slug_of(self, repository: Repository) -> str:
        if self.slug or _is_slug(repository.name):
            return self.slug or repository.name
        suggested = Git(repository.location).suggested_name()
        if _is_slug(suggested):
            return suggested
        raise ConfigurationError(f"which GitHub repository is {repository.name!r}? set slug to owner/name")

    def _read_github(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        slug = self._slug_of(repository)
        with self._client() as client:
            for key in keys:
                yield self._read_one(repository, client, slug, listing, key)

    def _read_one(self, repository: Repository, client: Client, slug: str, listing: Listing, key: str) -> Unit:
        known_hash, broken = listing.units.get(key, ""), listing.cursor.get("unreadable", {}).get(key)
        if broken is not None:
            return Unit(key, known_hash, (), (Rejected(key, (_NO_PULL,), broken),))
        reading, path = Reading(), f"/repos/{slug}/pulls/{_pull.number_of(key)}"
        try:
            entry, _ = client.json(path)
            pull = _github_records.pull_request(entry, lambda name: client.every(f"{path}/{name}"), reading)
        except Unreadable as error:
            return Unit(key, known_hash, (), (Rejected(key, (error.reason,), error.raw),))
        except Absent as error:
            client.get(f"/repos/{slug}")  # raises when it is the repository that cannot be seen any more
            return Unit(key, known_hash, (), (Rejected(key, (str(error),), key),))
        if pull is None or _pull.key_of(pull.number) != key:
            reading.rejected = reading.rejected or [_other(key, entry)]
            return Unit(key, known_hash, (), tuple(reading.rejected))
        summary = _github_records.summary_of(entry)
        origin = _Origin("github", "github-api", f"{self.base_url or DEFAULT_URL}{path}", slug)
        return self._unit(repository, origin, key, known_hash or (summary.hash if summary else ""), pull, reading)

    # items

    def _unit(self, repository: Repository, origin: _Origin, key: str, hash: str, pull: Pull, reading: Reading) -> Unit:
        items = [self._pull_item(repository, origin, pull, reading.notes)]
        items += [self._comment_item(repository, origin, pull, one, reading.notes) for one in pull.comments]
        if any("\ufffd" in item.payload.text for item in items):
            reading.notes.append("what is not UTF-8 is shown as U+FFFD")
        return Unit(key, hash, tuple(items), tuple(reading.rejected), tuple(reading.notes))

    def _pull_item(self, repository: Repository, origin: _Origin, pull: Pull, notes: list[str]) -> KnowledgeItem:
        return self.item(
            repository,
            (_pull.key_of(pull.number),),
            kind="pull_request",
            title=_pull.line(f"#{pull.number} {pull.title}".strip(), _LONGEST_TITLE),
            text=_pull_text(pull, notes),
            structured=_pull_fields(pull, origin, notes),
            source=Source(
                type=self.name,
                location=origin.location,
                accessor=origin.accessor,
                revision=pull.merge_commit or pull.revision,
                repository=repository.name,
            ),
            relations=_pull_relations(pull, origin.slug),
            symbols=(f"#{pull.number}", f"pull:{pull.number}"),
            tags=_pull_tags(pull),
        )

    def _comment_item(
        self, repository: Repository, origin: _Origin, pull: Pull, comment: Comment, notes: list[str]
    ) -> KnowledgeItem:
        where = f"{comment.path}:{comment.end_line}" if comment.end_line else comment.path
        key = _pull.key_of(pull.number)
        return self.item(
            repository,
            (key, f"comment/{comment.id}"),
            kind="review_comment",
            title=_pull.line(f"#{pull.number} review of {where} by {comment.author.name}", _LONGEST_TITLE),
            text=_comment_text(comment, where, notes),
            structured=_comment_fields(comment, pull, origin),
            source=Source(
                type=self.name,
                location=comment.location or origin.location,
                accessor=origin.accessor,
                revision=comment.revision,
                repository=repository.name,
                path=comment.path,
                start_line=comment.start_line,
                end_line=comment.end_line,
            ),
            relations=(
                Relation(type="comments_on", target=f"pull:{pull.number}"),
                Relation(type="touches", target=f"path:{comment.path}"),
            ),
            tags=[*(["bot"] if comment.author.is_bot else []), *(["outdated"] if comment.outdated else [])],
        )


def _other(key: str, entry: Any) -> Rejected:
    return Rejected(key, ("the answer is about another pull request",), _github_records.as_text(entry))


class _Pages:
    """One listing through the API, newest change first."""

    def __init__(self, client: Client, slug: str, scope: str, known: Known, most: int | None) -> None:
        usable = _is_usable(known, scope)
        self._client, self._path, self._scope = client, f"/repos/{slug}/pulls", scope
        self._known = dict(known.units) if usable else {}
        self._cursor: Mapping[str, Any] = known.cursor if usable else {}
        self._newest = self._before = str(self._cursor.get("newest", ""))
        self._most = most
        self._units: dict[str, str] = {}
        self._unreadable: dict[str, str] = {}

    def listing(self) -> Listing:
        entries, first = self._page(1, str(self._cursor.get("etag", "")))
        if first.unchanged:
            return Listing("", {}, complete=False, cursor=self._cursor)
        number, answer = 1, first
        while True:
            fresh, old = self._take(entries)
            if self._most and len(self._units) >= self._most:
                return self._partial(first.etag, left=self._surplus() + answer.more)
            if old:
                return self._partial(first.etag)
            if not answer.more:
                return self._whole(first, alone=number == 1)
            if not fresh:
                return Listing("", self._units, complete=False, cursor=self._no_cursor())
            number += 1
            entries, answer = self._page(number)

    def _page(self, number: int, etag: str = "") -> tuple[list[Any], Answer]:
        query = {"state": "all", "sort": "updated", "direction": "desc", "per_page": PER_PAGE, "page": number}
        try:
            entries, answer = self._client.json(self._path, query, etag)
        except Unreadable as error:
            raise SourceUnavailable(f"page {number} of the pull requests: {error.reason}") from error
        if answer.unchanged:
            return [], answer
        if not isinstance(entries, list):
            raise SourceUnavailable(f"{self._path} answered with {type(entries).__name__} where a list was due")
        return entries, answer

    def _take(self, entries: list[Any]) -> tuple[int, bool]:
        """How many entries this listing had not seen so, and whether all were stored before it began: known by hash,
        and not newer than what the stored listing had (a run that broke off may have stored its first pages only)."""
        fresh, old = 0, bool(entries)
        for entry in entries:
            key, hash, updated_at = self._summary(entry)
            fresh += self._units.get(key) != hash
            old = old and self._known.get(key) == hash and updated_at <= self._before
            self._units[key] = hash
            self._newest = max(self._newest, updated_at)
        return fresh, old

    def _summary(self, entry: Any) -> Summary:
        """An entry of the wrong shape that has a number is left to ``read``; one without is kept in the cursor."""
        summary = _github_records.summary_of(entry)
        if summary:
            return summary
        raw = _github_records.as_text(entry)
        digest = hashlib.sha256(raw.encode()).hexdigest()
        number = entry.get("number") if isinstance(entry, dict) else None
        if type(number) is int and _pull.number_of(_pull.key_of(number)):
            return Summary(_pull.key_of(number), digest, "")
        key = f"pull/unreadable-{digest[:16]}"
        self._unreadable[key] = raw
        return Summary(key, digest, "")

    def _whole(self, first: Answer, *, alone: bool) -> Listing:
        """A change while pages were read moves its pull request to the front, past the reader: look there again until
        nothing moves, without which no listing is complete and no cursor worth keeping."""
        settled = alone
        for _ in range(_MOST_LOOKS):
            if settled:
                return Listing("", self._units, cursor=self._cursor_with(first.etag))
            entries, again = self._page(1, first.etag)
            fresh = 0 if again.unchanged else self._take(entries)[0]
            if fresh and fresh == len(entries):
                break
            first, settled = (first if again.unchanged else again), not fresh
        return Listing("", self._units, complete=False, cursor=self._no_cursor())

    def _partial(self, etag: str, left: int = 0) -> Listing:
        skipped = {"beyond max_pull_requests, at least": left} if left else {}
        return Listing("", self._units, complete=False, skipped=skipped, cursor=self._cursor_with(etag))

    def _surplus(self) -> int:
        surplus = list(self._units)[self._most :]
        for key in surplus:
            del self._units[key]
        return len(surplus)

    def _cursor_with(self, etag: str) -> dict[str, Any]:
        count = len(self._known.keys() | self._units.keys())
        return {"scope": self._scope, "etag": etag, "newest": self._newest, "count": count, **self._no_cursor()}

    def _no_cursor(self) -> dict[str, Any]:
        """What ``read`` needs, and nothing that a later scan would go by."""
        return {"unreadable": self._unreadable}


def _is_usable(known: Known, scope: str) -> bool:
    """A cursor counts the units that it stands for. With fewer known, some are due again and only a whole listing
    names them."""
    count = known.cursor.get("count")
    return known.cursor.get("scope") == scope and isinstance(count, int) and count <= len(known.units)


# What readers see


def _pull_text(pull: Pull, notes: list[str]) -> str:
    parts = [
        f"#{pull.number} {pull.title}".strip(),
        _fate(pull),
        _pull.bounded(pull.body, _LONGEST_BODY, "the description", notes),
        _pull.section("Commits", [_commit_line(one) for one in pull.commits], pull.commits_total, _COMMITS_SHOWN),
        _pull.files_section(pull.files, pull.files_total),
        _pull.section("Reviews", [_review_line(one) for one in pull.reviews if one.body and not one.author.is_bot]),
    ]
    return "\n\n".join(part for part in parts if part)


def _fate(pull: Pull) -> str:
    said = f"Merged {pull.merged_at}" if pull.merged else pull.state.capitalize()
    into = f" into {pull.base}" if pull.base else ""
    origin = f" from {pull.head}" if pull.head else ""
    labels = f"; labels: {', '.join(pull.labels)}" if pull.labels else ""
    return f"{said}{into}{origin}, by {pull.author.name}{labels}"


def _commit_line(commit: Commit) -> str:
    return f"- {_pull.line(commit.subject, _LONGEST_LINE)} ({commit.author})"


def _review_line(review: Review) -> str:
    return f"- {review.author.name} ({review.state}): {_pull.line(review.body, _LONGEST_LINE)}"


def _pull_fields(pull: Pull, origin: _Origin, notes: list[str]) -> dict[str, Any]:
    for what, there, total in (
        ("files", len(pull.files), pull.files_total),
        ("commits", len(pull.commits), pull.commits_total),
    ):
        if there < total:
            notes.append(f"{there:,} of its {total:,} {what} are listed")
    return {
        "number": pull.number,
        "author": pull.author.name,
        "author_is_bot": pull.author.is_bot,
        "state": pull.state,
        "merged": pull.merged,
        "draft": pull.draft,
        "created_at": pull.created_at,
        "merged_at": pull.merged_at,
        "closed_at": pull.closed_at,
        "base": pull.base,
        "head": pull.head,
        "merge_commit": pull.merge_commit,
        "labels": list(pull.labels),
        "files": [dict(vars(one)) for one in pull.files],
        "files_total": pull.files_total,
        "commits": [
            {"sha": one.sha, "subject": _pull.line(one.subject, _LONGEST_LINE), "author": one.author}
            for one in pull.commits
        ],
        "commits_total": pull.commits_total,
        "reviews": [_review_fields(one, notes) for one in pull.reviews],
        "source": origin.name,
    }


def _review_fields(review: Review, notes: list[str]) -> dict[str, Any]:
    return {
        "author": review.author.name,
        "is_bot": review.author.is_bot,
        "state": review.state,
        "submitted_at": review.submitted_at,
        "body": _pull.bounded(review.body, _LONGEST_REVIEW, f"the review by {review.author.name}", notes),
    }


def _pull_relations(pull: Pull, slug: str) -> list[Relation]:
    paths = dict.fromkeys(path for one in pull.files for path in (one.path, one.previous_path) if path)
    told = "\n\n".join([pull.title, pull.body, *(one.message for one in pull.commits)])
    return [
        *(Relation(type="touches", target=f"path:{path}") for path in paths),
        *([Relation(type="merges", target=f"commit:{pull.merge_commit}")] if pull.merge_commit else []),
        *(Relation(type="fixes", target=target) for target in _pull.closed_by(told, slug)),
    ]


def _pull_tags(pull: Pull) -> list[str]:
    marks = {"bot": pull.author.is_bot, pull.state: True, "merged": pull.merged, "draft": pull.draft}
    return [*(mark for mark, holds in marks.items() if holds), *dict.fromkeys(f"label:{one}" for one in pull.labels)]


def _comment_text(comment: Comment, where: str, notes: list[str]) -> str:
    """The comment and the code that it stands under: the end of its hunk."""
    body = _pull.bounded(comment.body, _LONGEST_BODY, f"comment {comment.id}", notes)
    tail = [_pull.cut(line, _LONGEST_LINE) for line in comment.hunk.split("\n")[-_HUNK_LINES:] if line]
    return "\n".join([body.strip(), "", f"On {where}:", *tail]).strip()


def _comment_fields(comment: Comment, pull: Pull, origin: _Origin) -> dict[str, Any]:
    return {
        "pull": pull.number,
        "author": comment.author.name,
        "is_bot": comment.author.is_bot,
        "in_reply_to": comment.in_reply_to,
        "side": comment.side,
        "commit": comment.revision,
        "outdated": comment.outdated,
        "created_at": comment.created_at,
        "source": origin.name,
    }
