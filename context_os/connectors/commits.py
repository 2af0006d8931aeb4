"""The commits of the main line that name no pull request: what a team did that rebases them, or never opens any.

A unit is one commit, ``commit/<id>``. Merges are left out, and so is whatever names its pull request: ``pull_requests``
tells of those. History is listed whole once and from then on only where it grew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import ClassVar, Final

from pydantic import Field

from context_os.connectors import (
    Connector,
    Expectation,
    Known,
    Listing,
    Rejected,
    Repository,
    Unit,
    _merges,
    _pull,
)
from context_os.connectors._pull import Pull
from context_os.git import Git
from context_os.model import KnowledgeItem, Relation, Source

_LONGEST_BODY: Final = 8_000
_LONGEST_TITLE: Final = 300


class Commits(Connector):
    """Configuration. ``max_commits`` holds a whole listing to the latest that many."""

    name = "commits"
    domain = "code"
    kinds = ("commit",)
    summary: ClassVar[str] = "Commits of the main line outside any pull request, and the files they changed"

    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "unit", "regex": r"^commit/[0-9a-f]{40}([0-9a-f]{24})?$"},
            "a unit is one commit, commit/<id>",
        ),
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["commit"]},
            "the connector yields commits, nothing else",
        ),
    )

    max_commits: int = Field(default=5_000, ge=1)
    ttl: timedelta | None = timedelta(days=730)

    def scan(self, repository: Repository, known: Known) -> Listing:
        """See the module. Raises SourceUnavailable and SourceRefused."""
        git = Git(repository.location)
        revision = git.resolve(repository.revision) if repository.revision else git.head()
        if not revision:
            return Listing("", {})
        old = str(known.cursor.get("revision", ""))
        if old == revision:
            return Listing(revision, {}, complete=False, cursor=known.cursor)
        grows = bool(old) and _merges.is_ancestor(git, old, revision)
        found = _merges.list_direct(git, revision, since=old if grows else "")
        listed = {_key(sha): sha for sha in found[: self.max_commits]}
        left = len(found) - len(listed)
        return Listing(
            revision,
            listed,
            complete=not grows,
            skipped={"older than max_commits": left} if left else {},
            cursor={"revision": revision},
        )

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        """A few git processes for a thousand commits."""
        git = Git(repository.location)
        for sha, told in _merges.read_direct(git, [key.rpartition("/")[2] for key in keys]):
            if isinstance(told, str):
                yield Unit(_key(sha), sha, (), (Rejected(_key(sha), (told,), sha),))
                continue
            notes: list[str] = []
            yield Unit(_key(sha), sha, (self._item(repository, git, told, notes),), (), tuple(notes))

    def _item(self, repository: Repository, git: Git, told: Pull, notes: list[str]) -> KnowledgeItem:
        paths = dict.fromkeys(path for one in told.files for path in (one.path, one.previous_path) if path)
        message = f"{told.title}\n\n{told.body}".strip()
        return self.item(
            repository,
            (_key(told.revision),),
            kind="commit",
            title=_pull.line(f"{told.revision[:10]} {told.title}".strip(), _LONGEST_TITLE),
            text="\n\n".join(
                filter(
                    None,
                    [
                        _pull.bounded(message, _LONGEST_BODY, "the message", notes),
                        f"Committed {told.merged_at}, by {told.author.name}",
                        _pull.files_section(told.files, told.files_total),
                    ],
                )
            ),
            structured={
                "author": told.author.name,
                "author_is_bot": told.author.is_bot,
                "created_at": told.created_at,
                "merged_at": told.merged_at,
                "files": [dict(vars(one)) for one in told.files],
                "files_total": told.files_total,
            },
            source=Source(
                type=self.name,
                location=git.directory,
                accessor="git-log",
                revision=told.revision,
                repository=repository.name,
            ),
            relations=[
                *(Relation(type="touches", target=f"path:{path}") for path in paths),
                *(Relation(type="fixes", target=target) for target in _pull.closed_by(message, repository.name)),
            ],
            symbols=(f"commit:{told.revision}", told.revision[:10]),
            tags=["bot"] if told.author.is_bot else [],
        )


def _key(sha: str) -> str:
    return f"commit/{sha}"
