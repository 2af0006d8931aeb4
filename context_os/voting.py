"""Who may vote on what, and where votes come from: callers, files of findings, review comments on GitHub.

One can vote on an item that one may read, on everything that a kept pack carried of it, on what it looked at and left
out, and on the output of an action (``action:<id>``). What is not there and what is not for the caller are told in the
same words.

A review comment is tied to what it was made of by a **marker** in its text, an HTML comment that GitHub does not show::

    <!-- context-os pack=<id of the pack> items=<id>,<id> -->

Without ``items`` it is about all that the pack carried. A comment is untrusted: it counts if the configured reviewer
wrote it, the pack is kept and carried the items; everything else is refused and told.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from context_os.app import App
from context_os.connectors import Repository
from context_os.connectors._remarks import Remark, Remarks
from context_os.connectors.pull_requests import PullRequests
from context_os.errors import ConfigurationError, NotFound, StoreUnavailable
from context_os.feedback import Projection, Verdict, Vote
from context_os.kept_packs import KeptPack
from context_os.ledger import Registered
from context_os.model import Actor, Confidentiality, FeedbackCounters, Source, Time, Value, content_checksum, utcnow

ACTION: Final = "action:"
"""Begins a subject that is the output of an action."""
_MARKER: Final = re.compile(r"<!--\s*context-os\s+pack=([0-9a-f]{8,64})(?:\s+items=([^\s,<>]+(?:,[^\s,<>]+)*))?\s*-->")
_REACTIONS: Final = {
    **dict.fromkeys(("+1", "heart", "hooray", "rocket"), Verdict.HELPFUL),
    **dict.fromkeys(("-1", "confused"), Verdict.HARMFUL),
}
"""What they say. ``laugh`` and ``eyes`` say nothing."""
_MOST: Final = 500
"""Subjects of one ballot."""

Progress = Callable[[str], None]


class Ballot(Value):
    """What somebody says of ``subjects``; without any, of all that ``pack`` carried and the caller may read."""

    subjects: tuple[str, ...] = Field(default=(), max_length=_MOST)
    verdict: Verdict
    pack: str = Field(default="", max_length=64)
    comment: str = Field(default="", max_length=4_000)
    actor: Actor = Actor.HUMAN


class Cast(Value):
    """``new`` of these votes were not in the log before. ``projected``: items in the store show them already; else they
    do so with the next vote, ingestion or sync."""

    votes: tuple[Vote, ...]
    new: int
    projected: bool


class Told(Value):
    """What was said of a subject. ``balance`` is in -1..1: old votes count less, few move little."""

    id: str
    feedback: FeedbackCounters
    balance: float


class Finding(Value):
    """A line of a file of findings: what became of one. ``id`` is the finding's own, and makes importing it again
    harmless."""

    id: str = Field(min_length=1, max_length=200)
    verdict: Literal["accepted", "dismissed"]
    items: tuple[str, ...] = Field(default=(), max_length=_MOST)
    pack: str = Field(default="", max_length=64)
    by: str = Field(default="", max_length=200)
    actor: Actor = Actor.HUMAN
    at: Time | None = None
    comment: str = Field(default="", max_length=4_000)

    @property
    def ballot(self) -> Ballot:
        verdict = Verdict.HELPFUL if self.verdict == "accepted" else Verdict.HARMFUL
        return Ballot(subjects=self.items, verdict=verdict, pack=self.pack, comment=self.comment, actor=self.actor)


class Collected(Value):
    """What one look at a repository's review comments found. ``refused`` is ``(comment's address, reason)``;
    ``resolutions`` says whether GitHub told which threads are resolved."""

    repository: str
    comments: int
    looked_at: int
    new: int
    withdrawn: int
    refused: tuple[tuple[str, str], ...]
    resolutions: bool
    projected: bool


@dataclass(frozen=True)
class _Look:
    url: str
    new: int = 0
    withdrawn: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Voting:
    """One caller's votes."""

    app: App
    progress: Progress = field(default=lambda _: None)

    @cached_property
    def projection(self) -> Projection:
        return Projection(self.app.feedback, self.app.store, self._tenant)

    @property
    def _tenant(self) -> str:
        return self.app.access.tenant

    def cast(self, ballot: Ballot, origin: str, request: str = "") -> Cast:
        """Vote. With ``request``, a name of the caller's own, the same again adds nothing.

        Raises NotFound naming every subject that is not there for this caller or was not looked at for the pack, and
        ConfigurationError where nothing is named or the name was used for another request.
        """
        request = request or str(uuid.uuid4())
        pack, subjects = self._subjects(ballot)
        name = f"{origin}:{content_checksum(self._principal, request)[:40]}/"
        votes = [
            Vote(
                key=f"{name}{number}",
                verdict=ballot.verdict,
                at=utcnow(),
                principal=self._principal,
                actor=ballot.actor,
                origin=origin,
                pack=pack,
                comment=ballot.comment,
                **about,
            )
            for number, about in enumerate(subjects)
        ]
        new = self.app.feedback.add(self._tenant, votes, (name, ballot.model_dump_json()))
        said = tuple(votes) if new else tuple(self.app.feedback.under(self._tenant, name))
        return Cast(votes=said, new=new, projected=self._projected())

    def withdraw(self, key: str) -> Cast:
        """Take back the vote of this key. Raises NotFound, also for one on what the caller may not read."""
        vote = self.app.feedback.find(self._tenant, key)
        if vote is not None and not vote.subject.startswith(ACTION) and not self._there([vote.subject]):
            vote = None
        if vote is None:
            raise NotFound(f"no vote has the key {key!r} in tenant {self._tenant} for {self._clearance} clearance")
        taken = self.app.feedback.withdraw(self._tenant, key, self._principal)
        return Cast(votes=(taken,), new=1, projected=self._projected())

    @property
    def _principal(self) -> str:
        return self.app.access.principal

    def told(self, subject: str) -> Told:
        """What was said of a subject. Raises NotFound for an item that is not there for this caller."""
        if not subject.startswith(ACTION):
            self.app.show(subject)
        log = self.app.feedback
        standing = log.standings(self._tenant, [subject], utcnow()).get(subject)
        return Told(
            id=subject,
            feedback=log.counters(self._tenant, [subject]).get(subject, FeedbackCounters()),
            balance=round(standing.balance, 4) if standing else 0.0,
        )

    def votes(self, subject: str | None = None) -> list[Vote]:
        """The votes of a subject, or all of the tenant's, oldest first: those on what the caller may read now."""
        found = [vote for _, vote in self.app.feedback.votes(self._tenant, subject)]
        there = self._there(list({each.subject for each in found if not each.subject.startswith(ACTION)}))
        return [vote for vote in found if vote.subject in there or vote.subject.startswith(ACTION)]

    def sync(self) -> int:
        """Write the sums of everything that was ever voted on; says of how many items."""
        return self.projection.renew_all()

    def _projected(self) -> bool:
        try:
            self.projection.catch_up()
        except StoreUnavailable:
            return False
        return True

    # What may be voted on

    def _subjects(self, ballot: Ballot) -> tuple[str, list[_About]]:
        """The pack's whole id and what a vote says of each subject."""
        wanted = tuple(dict.fromkeys(ballot.subjects))
        if not ballot.pack:
            if not wanted:
                raise ConfigurationError("name what the vote is about: items, an action, or a pack")
            there = self._there([each for each in wanted if not each.startswith(ACTION)])
            self._refuse([each for each in wanted if not each.startswith(ACTION) and each not in there])
            return "", [there.get(each, {"subject": each}) for each in wanted]
        pack = self._pack(ballot.pack)
        carried = self._readable(pack)
        also = self._left_out(pack, [each for each in wanted if each not in carried])
        known = carried | also
        self._refuse([each for each in wanted if each not in known], f" and was looked at for the pack {pack.id[:12]}")
        if not known:
            raise NotFound(f"the pack {pack.id[:12]} carried nothing that {self._clearance} clearance may read")
        return pack.id, [known[each] for each in wanted or carried]

    def _left_out(self, pack: KeptPack, ids: Sequence[str]) -> dict[str, _About]:
        """Those of these items that were judged for the pack and did not go in: what was missed can be told too."""
        if not ids or len(pack.repositories) != 1:
            return {}
        found = self.app.kept_packs.evidence(self._tenant, pack.repositories[0], [pack.id])
        return self._there([id for _, each in found for id in ids if each.place_of(id) is not None])

    def _pack(self, name: str) -> KeptPack:
        pack = self.app.kept_packs.get(self._tenant, name)
        if pack is None:
            raise NotFound(f"no pack {name} of tenant {self._tenant} is kept; packs are kept for audit.keep_packs")
        return pack

    def _readable(self, pack: KeptPack) -> dict[str, _About]:
        """What of a pack the caller may read by what it was then and, while the store can be asked, by what it is now;
        what is gone since is not there any more."""
        found = {
            each.id: _about(each.id, each.source)
            for each in pack.carried
            if self._clearance.permits(each.confidentiality)
        }
        try:
            return self._there(list(found))
        except StoreUnavailable:
            return found

    def _there(self, ids: Sequence[str]) -> dict[str, _About]:
        """Those that are there for this caller."""
        items = self.app.store.get(self.app.access, list(ids)) if ids else []
        return {item.id: _about(item.id, item.source) for item in items}

    def _refuse(self, missing: Sequence[str], also: str = "") -> None:
        if missing:
            told = f"in tenant {self._tenant} that {self._clearance} clearance may read{also}"
            raise NotFound("; ".join(f"no item {id} {told}" for id in missing))

    @property
    def _clearance(self) -> Confidentiality:
        return self.app.access.clearance

    # Findings

    def load(self, file: Path) -> Cast:
        """Votes of a file of findings, JSON (a list) or JSON Lines. Raises ConfigurationError listing everything that
        is wrong with any of them; then nothing is kept."""
        problems: list[str] = []
        votes: list[Vote] = []
        for place, value in _values(file):
            try:
                finding = Finding.model_validate(value)
                votes += self._of_finding(finding)
            except ValidationError as error:
                problems += (f"{place}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            except (NotFound, ConfigurationError) as error:
                problems.append(f"{place}: {error}")
        if problems:
            raise ConfigurationError("\n  ".join([f"nothing of {file} was kept:", *problems]))
        new = self.app.feedback.add(self._tenant, votes)
        return Cast(votes=tuple(votes), new=new, projected=self._projected())

    def _of_finding(self, finding: Finding) -> Iterator[Vote]:
        pack, subjects = self._subjects(finding.ballot)
        for about in subjects:
            yield Vote(
                key=f"finding:{content_checksum(finding.id, about['subject'])[:40]}",
                verdict=finding.ballot.verdict,
                at=finding.at or utcnow(),
                principal=finding.by or self._principal,
                actor=finding.actor,
                origin="finding",
                pack=pack,
                comment=finding.comment,
                **about,
            )

    # Review comments

    def collect(self, connector: PullRequests, repository: Repository, days: int = 90) -> Collected:
        """What people made of the reviewer's comments of the last ``days``. Asks for the reactions of those alone whose
        counts or state changed since the last look. What somebody took back is taken back here.

        Raises SourceUnavailable, SourceRefused, ConfigurationError (no reviewer is configured). What was collected
        before stays.
        """
        with connector.remarks(repository, utcnow() - timedelta(days=days), _MARKER) as remarks:
            looks = [self._look(remark, remarks) for remark in self._news(remarks.found)]
        return Collected(
            repository=repository.name,
            comments=len(remarks.found),
            looked_at=len(looks),
            new=sum(each.new for each in looks),
            withdrawn=sum(each.withdrawn for each in looks),
            refused=tuple((each.url, each.refused) for each in looks if each.refused),
            resolutions=remarks.resolutions,
            projected=self._projected(),
        )

    def _news(self, remarks: Sequence[Remark]) -> Iterator[Remark]:
        """Those of which something changed since the last look."""
        known = self.app.feedback.states(self._tenant, [remark.url for remark in remarks])
        news = [remark for remark in remarks if known.get(remark.url) != remark.state]
        for number, remark in enumerate(news, 1):
            self.progress(f"comment {number:,} of {len(news):,}")
            yield remark

    def _look(self, remark: Remark, remarks: Remarks) -> _Look:
        """One comment's votes, kept in one step with the state that they are of."""
        try:
            pack, items = self._subjects(_marked(remark))
        except NotFound as error:
            return _Look(remark.url, refused=str(error))
        given, taken = self._settled(remark, pack, items, remarks.reactions(remark))
        self.app.feedback.add(self._tenant, [*given, *taken], seen={remark.url: remark.state})
        return _Look(remark.url, len(given), len(taken))

    def _settled(
        self, remark: Remark, pack: str, items: Sequence[_About], reactions: Sequence[tuple[str, str, str]]
    ) -> tuple[list[Vote], list[Vote]]:
        """Votes to add and votes that take earlier ones back, so that the log says what GitHub says now."""
        prefix = f"github:{content_checksum(remark.url)[:24]}:"
        standing, counts = self._standing(prefix)
        given: list[Vote] = []
        wanted: set[str] = set()
        for login, verdict, at in _said(remark, reactions):
            for item in items:
                base = f"{prefix}{content_checksum(login, verdict.value, item['subject'])[:24]}"
                if base in wanted:
                    continue
                wanted.add(base)
                if base not in standing:
                    told = {**item, "verdict": verdict, "at": at, "principal": f"github:{login}", "pack": pack}
                    # Somebody who takes a reaction back and gives it again votes again.
                    told |= {"key": f"{base}#{counts.get(base, 0)}", "origin": "github"}
                    given.append(Vote.model_validate(told))
        now = utcnow()
        taken = [vote.withdrawn(now, vote.principal) for base, vote in standing.items() if base not in wanted]
        return given, taken

    def _standing(self, prefix: str) -> tuple[dict[str, Vote], dict[str, int]]:
        """Votes of a comment that nobody took back, and how many there ever were, by what they stand for."""
        standing: dict[str, Vote] = {}
        counts: dict[str, int] = {}
        for vote in self.app.feedback.under(self._tenant, prefix):
            base = vote.key.partition("#")[0]
            counts[base] = counts.get(base, 0) + 1
            if self.app.feedback.find(self._tenant, vote.withdrawn(vote.at, vote.principal).key) is None:
                standing[base] = vote
        return standing, counts


_About = dict[str, str]
"""What a vote says of its subject."""


def _about(id: str, source: Source) -> _About:
    return {"subject": id, "repository": source.repository, "connector": source.type}


def marker(pack: str, items: Sequence[str] = ()) -> str:
    """What a reviewer puts into its comment, so that reactions to it count for what it was made of."""
    return f"<!-- context-os pack={pack}{f' items={chr(44).join(items)}' if items else ''} -->"


def _marked(remark: Remark) -> Ballot:
    """What a comment is about; the verdict is not known yet."""
    found = _MARKER.search(remark.body)
    assert found is not None, "only comments with a marker are collected"
    return Ballot(
        subjects=tuple((found[2] or "").split(",")) if found[2] else (), verdict=Verdict.HELPFUL, pack=found[1]
    )


def _said(remark: Remark, reactions: Sequence[tuple[str, str, str]]) -> Iterator[tuple[str, Verdict, str]]:
    """``(login, verdict, at)``. Two hearts of one person are one vote."""
    for login, content, at in reactions:
        if content in _REACTIONS:
            yield login, _REACTIONS[content], at
    if remark.settled_by is not None:
        yield remark.settled_by, Verdict.HELPFUL, remark.updated_at


def _values(file: Path) -> Iterator[tuple[str, object]]:
    """``(place, value)`` of each finding. Raises ConfigurationError for a file that is no JSON at all."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from None
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        yield from ((f"entry {number}", value) for number, value in enumerate(whole, 1))
        return
    problems: list[str] = []
    values: list[tuple[str, object]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        raise ConfigurationError("\n  ".join([f"nothing of {file} was kept:", *problems]))
    yield from values


def collect(voting: Voting, place: Registered, days: int) -> Collected:
    """What people made of the reviewer's comments in a registered repository, with the configured connector."""
    settings = voting.app.settings
    connector = settings.connector("pull_requests")
    assert isinstance(connector, PullRequests)
    return voting.collect(connector, Repository(place.name, place.location, settings.tenant, place.revision), days)
