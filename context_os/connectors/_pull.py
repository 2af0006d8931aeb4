"""What a pull request is here, whichever source told it, how its texts are read (who is a bot, what it closes), and how
they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

MOST_FILES: Final = 3000
"""GitHub's own limit for the files of one pull request; history alone is held to the same."""

_FILES_SHOWN: Final = 100

MOST_COMMITS: Final = 250
"""GitHub's own limit for the commits of one pull request."""


@dataclass(frozen=True)
class Person:
    name: str
    is_bot: bool


@dataclass(frozen=True)
class File:
    """``status`` is added, modified, removed or renamed. Counts are lines, None for binary files."""

    path: str
    status: str
    previous_path: str | None
    additions: int | None
    deletions: int | None


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    author: str

    @property
    def subject(self) -> str:
        return split_message(self.message)[0]


@dataclass(frozen=True)
class Review:
    author: Person
    state: str
    submitted_at: str | None
    body: str


@dataclass(frozen=True)
class Comment:
    """An inline review comment. Lines are 1-based and belong to ``revision``, on the old side if ``side`` is LEFT."""

    id: int
    author: Person
    body: str
    path: str
    start_line: int | None
    end_line: int | None
    revision: str
    side: str
    hunk: str
    in_reply_to: int | None
    outdated: bool
    created_at: str | None
    location: str


@dataclass(frozen=True)
class Pull:
    """Times are ISO 8601 in UTC. ``files_total`` and ``commits_total`` count those beyond the limits too."""

    number: int
    title: str
    body: str
    author: Person
    state: str
    merged: bool
    draft: bool
    created_at: str | None
    merged_at: str | None
    closed_at: str | None
    base: str
    head: str
    revision: str
    merge_commit: str | None
    labels: tuple[str, ...]
    files: tuple[File, ...]
    files_total: int
    commits: tuple[Commit, ...]
    commits_total: int
    reviews: tuple[Review, ...] = ()
    comments: tuple[Comment, ...] = ()


def key_of(number: int) -> str:
    return f"pull/{number}"


def number_of(key: str) -> int | None:
    found = re.fullmatch(r"pull/([1-9]\d{0,8})", key)
    return int(found[1]) if found else None


def stamp(text: str) -> str:
    """An ISO 8601 time with a zone, as UTC to the second. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    try:
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except OverflowError as error:
        raise ValueError(f"{text!r} is out of range") from error


_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """NUL and lone surrogates, which databases and UTF-8 refuse, shown as U+2400 and U+FFFD."""
    return _UNSTORABLE.sub(lambda found: "\u2400" if found[0] == "\0" else "\ufffd", text)


def split_message(message: str) -> tuple[str, str]:
    """Subject and body of a commit message as git tells them apart: the first paragraph on one line, the rest."""
    lines = message.strip().splitlines()
    end = next((index for index, line in enumerate(lines) if not line.strip()), len(lines))
    return " ".join(line.strip() for line in lines[:end]), "\n".join(lines[end:]).strip()


_BOTS: Final = frozenset({
    "allcontributors", "codecov", "codecov-commenter", "codecov-io", "codspeed-hq", "coveralls", "danger",
    "dependabot", "dependabot-preview", "dependabot-support", "github-actions", "gitlab-bot", "greenkeeper",
    "greenkeeperio-bot", "imgbot", "k8s-ci-robot", "mergify", "netlify", "pre-commit-ci", "pyup-bot", "renovate",
    "renovate-bot", "semantic-release-bot", "snyk-bot", "sonarcloud", "stale", "vercel", "weblate", "web-flow",
})  # fmt: skip
_BOT_ADDRESSES: Final = frozenset({"action@github.com", "bot@renovateapp.com", "support@dependabot.com"})


def is_bot(name: str, type: str = "", email: str = "") -> bool:
    """Whether an author is a program: GitHub's ``type``, a login ending in ``[bot]`` or ``-bot``, or a known one."""
    name, email = name.strip().casefold(), email.strip().casefold()
    marked = type.casefold() == "bot" or name.endswith(("[bot]", "-bot")) or "[bot]@" in email
    return marked or name.replace(" ", "-") in _BOTS or email in _BOT_ADDRESSES


_KEYWORD: Final = r"(?i:\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?))"
_CLOSING: Final = re.compile(
    _KEYWORD + r"[ \t]?:?\s{1,3}(?:"
    r"https?://[^\s/]{1,200}/(?P<of_url>[\w.-]{1,100}/[\w.-]{1,100})/(?:issues|pull)/(?P<url>\d{1,9})"
    r"|(?P<of>[\w.-]{1,100}/[\w.-]{1,100})?#(?P<number>\d{1,9})"
    r"|GH-(?P<gh>\d{1,9})"
    r"|(?P<tracker>[A-Z][A-Z0-9]{1,19}-\d{1,9})"
    r")\b"
)
_HIDDEN: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_LONGEST_SEARCHED: Final = 100_000


def closed_by(text: str, slug: str) -> list[str]:
    """Targets that a text says it closes, in order: ``issue:12`` and ``bug:12`` for "Fixes #12",
    ``issue:owner/name#12`` for another repository, ``bug:PROJ-7`` for a tracker's key.

    The keywords are GitHub's. HTML comments do not count (pull request templates explain the keywords there).
    """
    found: dict[str, None] = {}
    for match in _CLOSING.finditer(_HIDDEN.sub("", text[:_LONGEST_SEARCHED])):
        found.update(dict.fromkeys(_targets(match, slug)))
    return list(found)


def _targets(match: re.Match[str], slug: str) -> list[str]:
    if match["tracker"]:
        return [f"bug:{match['tracker']}"]
    number = int(match["url"] or match["number"] or match["gh"])
    elsewhere = match["of_url"] or match["of"]
    if elsewhere and elsewhere.casefold() != slug.casefold():
        return [f"issue:{elsewhere}#{number}"]
    return [f"issue:{number}", f"bug:{number}"]


# What readers see


def files_section(files: Sequence[File], total: int) -> str:
    """The first hundred files with what became of them."""
    return section("Files", [_file_line(one) for one in files], total, _FILES_SHOWN)


def section(title: str, lines: Sequence[str], total: int | None = None, most: int = 50) -> str:
    """A list that says how many more there are."""
    total = len(lines) if total is None else total
    if not total:
        return ""
    shown = lines[:most]
    more = [f"... and {total - len(shown):,} more {title.lower()}"] if total > len(shown) else []
    return "\n".join([f"{title} ({total:,}):", *shown, *more])


def _file_line(file: File) -> str:
    was = f" (was {file.previous_path})" if file.previous_path else ""
    counts = "" if file.additions is None else f" +{file.additions} -{file.deletions or 0}"
    return f"- {file.status} {file.path}{was}{counts}"


def line(text: str, most: int) -> str:
    """On one line, and no longer than that."""
    return cut(" ".join(text.split()), most)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def bounded(text: str, most: int, what: str, notes: list[str]) -> str:
    """A text that says, and lets a note say, how much of it is left out."""
    left = len(text) - most
    if left <= 0:
        return text
    notes.append(f"{left:,} of {len(text):,} characters of {what} are left out")
    return f"{text[:most]}\n... and {left:,} more characters"
