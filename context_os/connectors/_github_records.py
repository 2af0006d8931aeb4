"""GitHub's JSON as pull requests: strict about types, tolerant of unknown fields, never raising for what came in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from context_os.connectors import Rejected, _pull
from context_os.connectors._pull import Comment, Commit, File, Person, Pull, Review
from context_os.model import content_checksum


def _cleaned(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    text = _pull.storable(value)
    if text != value and isinstance(info.context, set):
        info.context.add(info.field_name)
    return text


Text = Annotated[str, BeforeValidator(_cleaned)]
"""NUL and lone surrogates are shown by signs (see ``_pull.storable``); the fields they were in are noted."""

Words = Annotated[Text, BeforeValidator(lambda value: "" if value is None else value)]
"""Text that GitHub may give as null."""

Stamp = Annotated[str, AfterValidator(_pull.stamp)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _User(_Record):
    login: Text = Field(min_length=1)
    type: Text = "User"

    def person(self) -> Person:
        return Person(self.login, _pull.is_bot(self.login, self.type))


GHOST: Final = Person("ghost", False)
"""GitHub's own name for the author of a deleted account, which the API gives as null."""


def _person(user: _User | None) -> Person:
    return user.person() if user else GHOST


class _Branch(_Record):
    ref: Text
    sha: Text


class _Label(_Record):
    name: Text = Field(min_length=1)


class _PullRecord(_Record):
    number: int = Field(ge=1, lt=10**9)
    title: Text
    body: Words = ""
    user: _User | None = None
    state: Literal["open", "closed"]
    draft: bool = False
    created_at: Stamp
    updated_at: Stamp
    closed_at: Stamp | None = None
    merged_at: Stamp | None = None
    merge_commit_sha: Text | None = None
    base: _Branch
    head: _Branch
    labels: tuple[_Label, ...] = Field(default=(), strict=False)
    html_url: Text = ""
    changed_files: int | None = Field(default=None, ge=0)
    commits: int | None = Field(default=None, ge=0)
    review_comments: int | None = Field(default=None, ge=0)


class _FileRecord(_Record):
    filename: Text = Field(min_length=1)
    status: Literal["added", "removed", "modified", "renamed", "copied", "changed", "unchanged"]
    previous_filename: Text | None = Field(default=None, min_length=1)
    additions: int | None = Field(default=None, ge=0)
    deletions: int | None = Field(default=None, ge=0)

    def file(self) -> File:
        status = {"copied": "added", "changed": "modified", "unchanged": "modified"}.get(self.status, self.status)
        return File(self.filename, status, self.previous_filename, self.additions, self.deletions)


class _Signature(_Record):
    name: Words = ""


class _Message(_Record):
    message: Text
    author: _Signature | None = None


class _CommitRecord(_Record):
    sha: Text = Field(min_length=1)
    commit: _Message
    author: _User | None = None

    def value(self) -> Commit:
        named = self.commit.author.name if self.commit.author else ""
        return Commit(self.sha, self.commit.message, self.author.login if self.author else named or GHOST.name)


class _ReviewRecord(_Record):
    user: _User | None = None
    state: Text
    submitted_at: Stamp | None = None
    body: Words = ""

    def review(self) -> Review:
        return Review(_person(self.user), self.state.lower(), self.submitted_at, self.body)


class _CommentRecord(_Record):
    id: int = Field(ge=1)
    user: _User | None = None
    body: Words = ""
    path: Text = Field(min_length=1)
    line: int | None = None
    start_line: int | None = None
    original_line: int | None = None
    original_start_line: int | None = None
    position: int | None = None
    side: Text | None = None
    start_side: Text | None = None
    subject_type: Text | None = None
    diff_hunk: Words = ""
    commit_id: Words = ""
    original_commit_id: Words = ""
    in_reply_to_id: int | None = None
    created_at: Stamp | None = None
    html_url: Words = ""

    def comment(self) -> Comment:
        start, end, revision, side = self._place()
        return Comment(
            id=self.id,
            author=_person(self.user),
            body=self.body,
            path=self.path,
            start_line=start,
            end_line=end,
            revision=revision,
            side=side,
            hunk=self.diff_hunk,
            in_reply_to=self.in_reply_to_id,
            outdated=self.line is None and self.position is None and self.subject_type != "file",
            created_at=self.created_at,
            location=self.html_url,
        )

    def _place(self) -> tuple[int | None, int | None, str, str]:
        """First line, last line, the commit they count in, and the side. An outdated comment keeps the lines that it
        was written on; one from before GitHub told lines has those of its hunk, which ends where it was written."""
        original = self.original_commit_id or self.commit_id
        side = self.side or "RIGHT"
        if self.line and self.line > 0:
            return self._first(self.start_line, self.line), self.line, self.commit_id or original, side
        if self.original_line and self.original_line > 0:
            return self._first(self.original_start_line, self.original_line), self.original_line, original, side
        if self.subject_type == "file":
            return None, None, original, side
        line, hunk_side = last_line(self.diff_hunk)
        return line, line, original, self.side or hunk_side

    def _first(self, start: int | None, end: int) -> int:
        one_sided = self.start_side in (None, self.side)
        return start if start and one_sided and 0 < start <= end else end


_HUNK: Final = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@")


def last_line(hunk: str) -> tuple[int | None, str]:
    """Line number and side (LEFT or RIGHT) of a hunk's last line; ``(None, "RIGHT")`` for what is no hunk."""
    lines = hunk.split("\n")
    header = _HUNK.match(lines[0])
    body = [line for line in lines[1:] if not line.startswith("\\")]
    if not header or not body:
        return None, "RIGHT"
    if body[-1].startswith("-"):
        return int(header[1]) + sum(not line.startswith("+") for line in body) - 1, "LEFT"
    return int(header[2]) + sum(not line.startswith("-") for line in body) - 1, "RIGHT"


@dataclass
class Reading:
    """What reading one pull request gathers beside it. Keys and notes say where: ``files[3]``."""

    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_R = TypeVar("_R", bound=_Record)


class Summary(NamedTuple):
    """A listed pull request. The hash covers what changes when it does."""

    key: str
    hash: str
    updated_at: str


def summary_of(entry: Any) -> Summary | None:
    """None if the entry is not readable as a pull request.

    An open one's merge commit is not part of the hash: it is GitHub's trial merge and follows the base branch.
    """
    try:
        pull = _PullRecord.model_validate(entry)
    except ValidationError:
        return None
    merge = pull.merge_commit_sha if pull.merged_at else None
    labels = sorted(label.name for label in pull.labels)
    told = [
        pull.updated_at,
        pull.state,
        pull.draft,
        pull.merged_at,
        merge,
        pull.base.ref,
        pull.head.sha,
        pull.title,
        labels,
    ]
    return Summary(_pull.key_of(pull.number), content_checksum(json.dumps(told)), pull.updated_at)


def pull_request(entry: Any, entries: Callable[[str], list[Any]], reading: Reading) -> Pull | None:
    """A pull request of its record and its lists, for which ``entries`` is asked by name where there should be any.

    An unreadable record is None and Rejected; unreadable entries of the lists are Rejected one by one.
    """
    record = _read(_PullRecord, entry, "pull request", reading)
    if record is None:
        return None

    def each(kind: type[_R], name: str, count: int | None = None) -> list[_R]:
        found = [] if count == 0 else entries(name)
        read = [_read(kind, one, f"{name}[{index}]", reading) for index, one in enumerate(found)]
        return [one for one in read if one is not None]

    # What moves from page to page while they are read is told twice.
    files = {one.filename: one.file() for one in each(_FileRecord, "files", record.changed_files)}
    commits = {one.sha: one.value() for one in each(_CommitRecord, "commits", record.commits)}
    comments = {one.id: one.comment() for one in each(_CommentRecord, "comments", record.review_comments)}
    return Pull(
        number=record.number,
        title=record.title,
        body=record.body,
        author=_person(record.user),
        state=record.state,
        merged=record.merged_at is not None,
        draft=record.draft,
        created_at=record.created_at,
        merged_at=record.merged_at,
        closed_at=record.closed_at,
        base=record.base.ref,
        head=record.head.ref,
        revision=record.head.sha,
        merge_commit=record.merge_commit_sha if record.merged_at else None,
        labels=tuple(label.name for label in record.labels),
        files=tuple(files.values()),
        files_total=max(len(files), record.changed_files or 0),
        commits=tuple(commits.values()),
        commits_total=max(len(commits), record.commits or 0),
        reviews=tuple(one.review() for one in each(_ReviewRecord, "reviews")),
        comments=tuple(comments.values()),
    )


def _read(kind: type[_R], entry: Any, key: str, reading: Reading) -> _R | None:
    changed: set[str] = set()
    try:
        record = kind.model_validate(entry, context=changed)
    except ValidationError as error:
        reading.rejected.append(Rejected(key, _reasons(error), as_text(entry)))
        return None
    if changed:
        reading.notes.append(
            f"{key}: NUL or half characters in {', '.join(sorted(changed))} are shown as \u2400 or \ufffd"
        )
    return record


def _reasons(error: ValidationError) -> tuple[str, ...]:
    return tuple(
        f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}, not {ascii(one.get('input'))[:80]}"
        for one in error.errors(include_url=False)
    )


def as_text(entry: Any) -> str:
    """JSON in ASCII, so that NUL and half characters survive as escapes."""
    return json.dumps(entry, ensure_ascii=True)
