"""The playbook of a repository: lessons that grow by deltas, as in Zhang et al., Agentic Context Engineering (arXiv
2510.04618).

``playbook.db`` in the home keeps, for each tenant and repository, an append-only log of deltas and, written in the same
transaction, the bullets as they are now. What a delta does follows from it and the bullets alone: no clock, no chance.
A delta's key makes it idempotent. Counters are the sums of the log of feedback over a bullet's item; what a merge or an
import brings along is put there as votes with keys of their own.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from context_os.database import Database, milliseconds, time_of
from context_os.embedding import Embedding
from context_os.errors import ConfigurationError, NotFound
from context_os.feedback import FeedbackLog, Standing, Verdict, Vote
from context_os.model import Actor, FeedbackCounters, Time, Value, content_checksum, item_id
from context_os.playbook_formats import Bullet, ReadPlaybook, Status
from context_os.text import count_tokens, words

FILE_NAME: Final = "playbook.db"
ALIKE: Final = 0.85
"""Two lessons with this cosine say the same. In two public playbooks of 318 and 359 lessons 41 and 45 pairs reach it,
nearly all of them reworded copies; from 0.7 to 0.8 lessons about different calls of one interface begin."""
MEANT_ALIKE: Final = 0.92
"""The same for vectors of a model, which find paraphrases near each other and different numbers too."""


MOST_TRACES: Final = 2_000


class Operation(StrEnum):
    ADD = "add"
    UPDATE = "update"
    MERGE = "merge"
    REMOVE = "remove"


class Delta(Value):
    """One change. ``changes`` are fields of a Bullet by their Python names: all of the new one for ADD (an ``id`` is
    optional), those that change for UPDATE and MERGE. ``ids`` are what is changed or removed; of a MERGE the first one
    stays and takes the others in."""

    key: str = Field(min_length=1, max_length=160)
    operation: Operation
    ids: tuple[str, ...] = ()
    changes: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    principal: str = Field(min_length=1, max_length=200)
    actor: Actor = Actor.HUMAN
    at: Time


class Policy(Value):
    """``approve``: what nobody asked for by hand waits until somebody approves it. ``max_bullets`` and ``max_tokens``
    bound the active bullets; ``alike`` is the cosine from which two lessons are one."""

    approve: bool = False
    max_bullets: int = Field(default=200, ge=1)
    max_tokens: int = Field(default=20_000, ge=100)
    alike: float = Field(default=ALIKE, gt=0, le=1)


Outcome = Literal["applied", "duplicate", "proposed", "refused", "unchanged"]


class Applied(Value):
    """What became of a delta: the bullets it concerns now, and why."""

    key: str
    operation: Operation
    outcome: Outcome
    ids: tuple[str, ...] = ()
    why: str = ""


class Proposal(Value):
    """A delta that waits, and why it does; ``state`` is ``open``, ``approved`` or ``rejected``."""

    key: str
    state: str
    why: str
    delta: Delta
    decided_by: str = ""
    decided_at: Time | None = None


class Logged(Value):
    """An entry of the log."""

    number: int
    delta: Delta
    applied: Applied


def subject_of(tenant: str, repository: str, bullet: str) -> str:
    """The id of a bullet's item, which is what votes on it are on."""
    return item_id(tenant, "playbook", repository, bullet)


class _Refused(ConfigurationError):
    """A delta that makes no sense for the bullets as they are."""


class Playbooks(Database):
    """The playbooks of one home. Every call is of one tenant and one of its repositories."""

    what: ClassVar[str] = "the playbook"
    schemas: ClassVar[tuple[str, ...]] = (
        """
        CREATE TABLE bullets (
          tenant TEXT NOT NULL, repository TEXT NOT NULL, id TEXT NOT NULL, place INTEGER NOT NULL,
          bullet TEXT NOT NULL, PRIMARY KEY (tenant, repository, id)) STRICT, WITHOUT ROWID;
        CREATE TABLE deltas (
          number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, repository TEXT NOT NULL, key TEXT NOT NULL,
          delta TEXT NOT NULL, applied TEXT NOT NULL, votes TEXT NOT NULL, settled INTEGER NOT NULL,
          UNIQUE (tenant, repository, key)) STRICT;
        CREATE INDEX deltas_unsettled ON deltas (tenant) WHERE NOT settled;
        CREATE TABLE proposals (
          number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, repository TEXT NOT NULL, key TEXT NOT NULL,
          state TEXT NOT NULL, why TEXT NOT NULL, delta TEXT NOT NULL, decided_by TEXT NOT NULL, decided_at INTEGER,
          UNIQUE (tenant, repository, key)) STRICT;
        CREATE TABLE traces (
          tenant TEXT NOT NULL, repository TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, trace TEXT NOT NULL,
          PRIMARY KEY (tenant, repository, id)) STRICT;
        CREATE INDEX traces_by_age ON traces (tenant, repository, at);
        CREATE TABLE tags (
          tenant TEXT NOT NULL, repository TEXT NOT NULL, trace TEXT NOT NULL, bullet TEXT NOT NULL, tag TEXT NOT NULL,
          PRIMARY KEY (tenant, repository, trace, bullet)) STRICT, WITHOUT ROWID
        """,
    )

    def __init__(self, home: Path) -> None:
        super().__init__(home / FILE_NAME)
        self._home = home

    @cached_property
    def feedback(self) -> FeedbackLog:
        return FeedbackLog(self._home)

    # Reading

    def repositories(self, tenant: str) -> list[str]:
        """Those that have a playbook."""
        with self.connection() as db:
            rows = db.execute("SELECT DISTINCT repository FROM bullets WHERE tenant = ? ORDER BY 1", (tenant,))
            return [name for (name,) in rows]

    def bullets(self, tenant: str, repository: str, *, all: bool = False) -> list[Bullet]:
        """The active bullets in the order in which they came, with their counters; with ``all`` the others too."""
        with self.connection() as db:
            found = _bullets(db, tenant, repository)
        counters = self.counters(tenant, repository, list(found))
        neutral = self._neutral(tenant, repository)
        return [
            bullet.model_copy(
                update={
                    "helpful": counters[id].helpful,
                    "harmful": counters[id].harmful,
                    "neutral": bullet.neutral + neutral[id],
                }
            )
            for id, bullet in found.items()
            if all or bullet.status is Status.ACTIVE
        ]

    def bullet(self, tenant: str, repository: str, id: str) -> Bullet:
        """One bullet, whatever its status. Raises NotFound."""
        for bullet in self.bullets(tenant, repository, all=True):
            if bullet.id == id:
                return bullet
        raise NotFound(f"the playbook of {repository} has no bullet {id!r}; `context-os playbook list` shows them")

    def counters(self, tenant: str, repository: str, ids: Sequence[str]) -> dict[str, FeedbackCounters]:
        """Of every one of these ids."""
        subjects = {id: subject_of(tenant, repository, id) for id in ids}
        found = self.feedback.counters(tenant, list(subjects.values()))
        return {id: found.get(subject, FeedbackCounters()) for id, subject in subjects.items()}

    def history(self, tenant: str, repository: str, bullet: str = "") -> list[Logged]:
        """Every delta that was decided, oldest first; of one bullet where one is named."""
        query = "SELECT number, delta, applied FROM deltas WHERE tenant = ? AND repository = ? ORDER BY number"
        with self.connection() as db:
            rows = db.execute(query, (tenant, repository)).fetchall()
        found = (
            Logged(number=n, delta=Delta.model_validate_json(d), applied=Applied.model_validate_json(a))
            for n, d, a in rows
        )
        return [each for each in found if not bullet or bullet in {*each.delta.ids, *each.applied.ids}]

    def proposals(self, tenant: str, repository: str, state: str = "open") -> list[Proposal]:
        """What waits for somebody's approval, or with another state what did."""
        query = (
            "SELECT key, state, why, delta, decided_by, decided_at FROM proposals"
            " WHERE tenant = ? AND repository = ? AND state = ? ORDER BY number"
        )
        with self.connection() as db:
            rows = db.execute(query, (tenant, repository, state)).fetchall()
        return [_proposal(row) for row in rows]

    # Changing

    def apply(
        self,
        tenant: str,
        repository: str,
        deltas: Sequence[Delta],
        policy: Policy | None = None,
        embedding: Embedding | None = None,
    ) -> list[Applied]:
        """Apply deltas in their order, all or none of those that are new; a key that was applied before is told as it
        was then. Raises ConfigurationError listing every delta that makes no sense for the bullets as they are."""
        curator = _Curator(tenant, repository, policy or Policy(), embedding)
        refused: list[str] = []
        self.settle(tenant)
        with self.transaction() as db:
            done = []
            bullets = _bullets(db, tenant, repository)
            for delta in deltas:
                try:
                    done.append(self._decide(db, curator, bullets, delta))
                except _Refused as error:
                    refused.append(f"{delta.operation} {delta.key}: {error}")
            if refused:
                raise ConfigurationError("nothing was changed, because of:\n  " + "\n  ".join(refused))
            last = deltas[-1] if deltas else None
            done += self._keep_budget(db, curator, bullets, last) if last else []
        self.settle(tenant)
        return done

    def preview(
        self,
        tenant: str,
        repository: str,
        deltas: Sequence[Delta],
        policy: Policy | None = None,
        embedding: Embedding | None = None,
    ) -> list[Applied]:
        """What ``apply`` would do, undone again."""
        curator = _Curator(tenant, repository, policy or Policy(), embedding)
        done: list[Applied] = []
        try:
            with self.transaction() as db:
                bullets = _bullets(db, tenant, repository)
                for delta in deltas:
                    try:
                        done.append(self._decide(db, curator, bullets, delta))
                    except _Refused as error:
                        done.append(_told(delta, "refused", delta.ids, str(error)))
                done += self._keep_budget(db, curator, bullets, deltas[-1]) if deltas else []
                raise _UndoneError
        except _UndoneError:
            return done

    def approve(
        self, tenant: str, repository: str, key: str, principal: str, at: datetime, policy: Policy | None = None
    ) -> Applied:
        """Apply what waits, also to a locked bullet. Raises NotFound where nothing of this key waits."""
        curator = _Curator(tenant, repository, policy or Policy(), None)
        with self.transaction() as db:
            proposal = self._close(db, (tenant, repository, key), "approved", principal, at)
            reason = f"{proposal.delta.reason} (approved by {principal})".strip()
            changes = proposal.delta.changes
            if changes.get("status") == Status.PENDING:
                changes = {**changes, "status": Status.ACTIVE}
            delta = proposal.delta.model_copy(update={"reason": reason, "changes": changes})
            bullets = _bullets(db, tenant, repository)
            done = self._decide(db, curator, bullets, delta, approved=True)
            self._keep_budget(db, curator, bullets, delta)
        self.settle(tenant)
        return done

    def reject(self, tenant: str, repository: str, key: str, principal: str, at: datetime) -> Proposal:
        """It stays known, so that the same proposal is not made again. Raises NotFound as ``approve`` does."""
        with self.transaction() as db:
            return self._close(db, (tenant, repository, key), "rejected", principal, at)

    def tag(self, tenant: str, repository: str, tags: Iterable[Tag], at: datetime) -> int:
        """What a trace says of the bullets that were used in it, votes included; what it said first counts. Returns how
        many were new."""
        new = 0
        with self.transaction() as db:
            for each in tags:
                row = (tenant, repository, each.trace, each.bullet, each.tag)
                fresh = db.execute("INSERT OR IGNORE INTO tags VALUES (?,?,?,?,?)", row).rowcount
                new += fresh
                if fresh and each.tag != "neutral":
                    curator = _Curator(tenant, repository, Policy(), None)
                    vote = _vote(curator, each.bullet, each.trace, Verdict(each.tag), f"trace {each.trace}", at)
                    key = f"tag:{content_checksum(each.trace, each.bullet)[:32]}"
                    delta = Delta(
                        key=key, operation=Operation.UPDATE, ids=(each.bullet,), reason=f"{each.tag} in {each.trace}",
                        principal="reflector", actor=Actor.AUTOMATION, at=at,
                    )  # fmt: skip
                    self._log(db, tenant, repository, delta, _told(delta, "applied", (each.bullet,), each.why), [vote])
        self.settle(tenant)
        return new

    def remember(self, tenant: str, repository: str, traces: Mapping[str, tuple[datetime, str]]) -> None:
        """Keep traces, JSON by id, for what only several of them show; one that is known is replaced. Of more than
        MOST_TRACES the oldest go."""
        rows = [(tenant, repository, id, milliseconds(at), text) for id, (at, text) in traces.items()]
        with self.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO traces VALUES (?,?,?,?,?)", rows)
            db.execute(
                "DELETE FROM traces WHERE tenant = ?1 AND repository = ?2 AND id IN (SELECT id FROM traces"
                " WHERE tenant = ?1 AND repository = ?2 ORDER BY at DESC, id LIMIT -1 OFFSET ?3)",
                (tenant, repository, MOST_TRACES),
            )

    def remembered(self, tenant: str, repository: str) -> list[str]:
        """The traces that are kept, JSON, oldest first."""
        query = "SELECT trace FROM traces WHERE tenant = ? AND repository = ? ORDER BY at, id"
        with self.connection() as db:
            return [text for (text,) in db.execute(query, (tenant, repository))]

    def settle(self, tenant: str) -> None:
        """Put into the log of feedback what deltas brought along and a kill kept out of it."""
        query = "SELECT number, votes FROM deltas WHERE tenant = ? AND NOT settled"
        with self.connection() as db:
            rows = db.execute(query, (tenant,)).fetchall()
        for number, votes in rows:
            self.feedback.add(tenant, [Vote.model_validate(each) for each in json.loads(votes)])
            with self.transaction() as db:
                db.execute("UPDATE deltas SET settled = 1 WHERE number = ?", (number,))

    def forget(self, tenant: str, chosen: Callable[[str, str], bool], *, dry: bool = False) -> int:
        """Delete every row of a tenant that ``chosen`` says yes to, given its repository and its text, and overwrite it
        in the file; returns how many, with ``dry`` without doing it."""
        texts = {
            "bullets": "bullet", "deltas": "delta || applied || votes",
            "proposals": "why || delta || decided_by", "tags": "trace || bullet", "traces": "id || trace",
        }  # fmt: skip
        found = 0
        with self.connection() as db:
            db.create_function("chosen", 2, chosen, deterministic=True)
            db.execute("PRAGMA secure_delete = ON")
            for table, text in texts.items():
                where = f"FROM {table} WHERE tenant = ? AND chosen(repository, {text})"
                found += db.execute(f"SELECT count(*) {where}", (tenant,)).fetchone()[0]
                if not dry:
                    db.execute(f"DELETE {where}", (tenant,))
            if not dry:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found

    # The log and the state, inside one transaction

    def _decide(
        self,
        db: sqlite3.Connection,
        curator: _Curator,
        bullets: dict[str, Bullet],
        delta: Delta,
        *,
        approved: bool = False,
    ) -> Applied:
        place = (curator.tenant, curator.repository, delta.key)
        if (known := _known(db, place)) is not None:
            return known
        if not approved and (why := curator.needs_approval(delta, bullets)):
            return self._propose(db, curator, delta, why)
        step = curator.step(delta, bullets)
        if step.proposed and not approved:
            return self._propose(db, curator, delta, step.why)
        for bullet in step.changed:
            bullets[bullet.id] = bullet
            _put(db, curator.tenant, curator.repository, bullet)
        told = _told(delta, step.outcome, step.ids, step.why)
        self._log(db, curator.tenant, curator.repository, delta, told, self._votes(curator, delta, step.carried))
        return told

    def _votes(self, curator: _Curator, delta: Delta, carried: Sequence[_Carried]) -> list[Vote]:
        """The counters that a delta brings along as votes, each with a key. Of what was carried from there before only
        the excess is new: a file that was imported is imported again when it has grown."""
        votes = []
        for each in carried:
            subject = subject_of(curator.tenant, curator.repository, each.to)
            before = Counter[Verdict]()
            for _, vote in self.feedback.votes(curator.tenant, subject):
                before[vote.verdict] += vote.count if vote.comment == each.source else 0
            counters = each.counters or self.counters(curator.tenant, curator.repository, [each.bullet])[each.bullet]
            told = {
                Verdict.HELPFUL: (counters.helpful, counters.last_helpful_at),
                Verdict.HARMFUL: (counters.harmful, counters.last_harmful_at),
            }
            votes += [
                _vote(curator, each.to, f"{delta.key}:{each.bullet}", verdict, each.source, last or delta.at, count)
                for verdict, (total, last) in told.items()
                if (count := total - before[verdict]) > 0
            ]
        return votes

    def _propose(self, db: sqlite3.Connection, curator: _Curator, delta: Delta, why: str) -> Applied:
        row = (curator.tenant, curator.repository, delta.key, why, delta.model_dump_json())
        db.execute(
            "INSERT OR IGNORE INTO proposals (tenant, repository, key, state, why, delta, decided_by)"
            " VALUES (?, ?, ?, 'open', ?, ?, '')",
            row,
        )
        query = "SELECT state FROM proposals WHERE tenant = ? AND repository = ? AND key = ?"
        (state,) = db.execute(query, row[:3]).fetchone()
        if state == "rejected":
            return _told(delta, "unchanged", delta.ids, "somebody rejected this before")
        return _told(delta, "proposed", delta.ids, why)

    def _close(
        self, db: sqlite3.Connection, place: tuple[str, str, str], state: str, principal: str, at: datetime
    ) -> Proposal:
        changed = db.execute(
            "UPDATE proposals SET state = ?, decided_by = ?, decided_at = ?"
            " WHERE tenant = ? AND repository = ? AND key = ? AND state = 'open'",
            (state, principal, milliseconds(at), *place),
        ).rowcount
        if not changed:
            raise NotFound(f"nothing called {place[2]!r} waits in the playbook of {place[1]}; see `playbook list`")
        query = (
            "SELECT key, state, why, delta, decided_by, decided_at FROM proposals"
            " WHERE tenant = ? AND repository = ? AND key = ?"
        )
        return _proposal(db.execute(query, place).fetchone())

    def _keep_budget(
        self, db: sqlite3.Connection, curator: _Curator, bullets: dict[str, Bullet], last: Delta
    ) -> list[Applied]:
        subjects = {id: subject_of(curator.tenant, curator.repository, id) for id in bullets}
        standings = self.feedback.standings(curator.tenant, list(subjects.values()), last.at)
        none = Standing(0.0, 0.0)
        done = []
        known = {id: standings.get(subject, none) for id, subject in subjects.items()}
        for id, why in list(curator.beyond_budget(bullets, known)):
            delta = Delta(
                key=f"budget:{content_checksum(last.key, id)[:32]}", operation=Operation.REMOVE, ids=(id,), reason=why,
                principal="curator", actor=Actor.AUTOMATION, at=last.at,
            )  # fmt: skip
            done.append(self._decide(db, curator, bullets, delta, approved=True))
        return done

    def _log(
        self,
        db: sqlite3.Connection,
        tenant: str,
        repository: str,
        delta: Delta,
        applied: Applied,
        votes: Sequence[Vote] = (),
    ) -> None:
        packed = json.dumps([vote.model_dump(mode="json") for vote in votes])
        row = (tenant, repository, delta.key, delta.model_dump_json(), applied.model_dump_json(), packed, not votes)
        db.execute(
            "INSERT OR IGNORE INTO deltas (tenant, repository, key, delta, applied, votes, settled)"
            " VALUES (?,?,?,?,?,?,?)",
            row,
        )

    def _neutral(self, tenant: str, repository: str) -> Counter[str]:
        query = (
            "SELECT bullet, count(*) FROM tags WHERE tenant = ? AND repository = ? AND tag = 'neutral' GROUP BY bullet"
        )
        with self.connection() as db:
            return Counter(dict(db.execute(query, (tenant, repository)).fetchall()))


class Tag(NamedTuple):
    """How a bullet did in a trace: ``helpful``, ``harmful`` or ``neutral``, and why."""

    trace: str
    bullet: str
    tag: str
    why: str


class _UndoneError(Exception):
    """Takes a transaction back on purpose."""


class _Carried(NamedTuple):
    """Counters of ``bullet`` that come to the bullet ``to``: given ones, or those that it has. ``source`` is what the
    votes say where they come from."""

    to: str
    bullet: str
    source: str
    counters: FeedbackCounters | None = None


class _Step(NamedTuple):
    """What a delta does. ``proposed`` where somebody has to look at it first."""

    outcome: Outcome
    ids: tuple[str, ...]
    why: str = ""
    changed: tuple[Bullet, ...] = ()
    carried: tuple[_Carried, ...] = ()
    proposed: bool = False


class _Curator:
    """Says what a delta does to the bullets of one playbook, without doing it."""

    def __init__(self, tenant: str, repository: str, policy: Policy, embedding: Embedding | None) -> None:
        self.tenant = tenant
        self.repository = repository
        self.policy = policy
        self.embedding = embedding
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def needs_approval(self, delta: Delta, bullets: Mapping[str, Bullet]) -> str:
        """Why somebody has to look at it first, "" where nobody has to."""
        locked = [id for id in delta.ids if id in bullets and bullets[id].locked]
        unlocks = delta.actor is Actor.HUMAN and set(delta.changes) == {"locked"}
        if locked and not unlocks:
            return f"{', '.join(locked)} is locked"
        if self.policy.approve and delta.actor is not Actor.HUMAN:
            return "playbook.approve asks for it"
        if delta.actor is not Actor.HUMAN and delta.changes.get("status") == Status.PENDING:
            return "its words come from outside"
        return ""

    def step(self, delta: Delta, bullets: Mapping[str, Bullet]) -> _Step:
        missing = [id for id in delta.ids if id not in bullets]
        if missing:
            raise _Refused(f"there is no bullet {', '.join(missing)}")
        wanted = {Operation.ADD: delta.ids == (), Operation.MERGE: len(set(delta.ids)) == len(delta.ids) >= 2}
        if not wanted.get(delta.operation, len(delta.ids) == 1):
            raise _Refused("ADD names no bullet, UPDATE and REMOVE one, MERGE two or more different ones")
        return _STEPS[delta.operation](self, delta, bullets)

    def beyond_budget(
        self, bullets: Mapping[str, Bullet], standings: Mapping[str, Standing]
    ) -> Iterator[tuple[str, str]]:
        """What has to go, and why: the lowest standing first, of equals the one that was left alone longest. Pinned and
        locked bullets stay, and where they alone are too many so do all of them."""
        active = {id: bullet for id, bullet in bullets.items() if bullet.status is Status.ACTIVE}
        tokens = {id: count_tokens(bullet.content) for id, bullet in active.items()}
        left, used = len(active), sum(tokens.values())
        free = [id for id, bullet in active.items() if not (bullet.pinned or bullet.locked)]
        for id in sorted(free, key=lambda each: (standings[each].balance, _changed_at(active[each]), each)):
            if left <= self.policy.max_bullets and used <= self.policy.max_tokens:
                return
            yield (
                id,
                (
                    f"{left} bullets of {used} tokens, {self.policy.max_bullets} of {self.policy.max_tokens} are"
                    f" allowed; this one stands lowest ({standings[id].balance:+.2f})"
                ),
            )
            left, used = left - 1, used - tokens[id]

    def _add(self, delta: Delta, bullets: Mapping[str, Bullet]) -> _Step:
        given = {"created_at": delta.at, "updated_at": delta.at, **delta.changes}
        new = _valid({"id": next_id(bullets.values(), str(given.get("section", ""))), **given})
        known = bullets.get(new.id)
        if known is not None and known.status is Status.ACTIVE and known.content == new.content:
            return self._join(delta, known, new, "it is there already")
        if known is not None:
            new = new.model_copy(update={"id": next_id(bullets.values(), new.section)})
        active = [each for each in bullets.values() if new.status is each.status is Status.ACTIVE]
        exact = self.policy.alike >= 1
        turned = [] if exact else [each for each in active if opposed(new.content, each.content)]
        if (found := self.nearest(new.content, [each for each in active if each not in turned])) is not None:
            return self._join(delta, found[0], new, f"{found[0].id} says the same (cosine {found[1]:.2f})")
        if (found := self.nearest(new.content, turned)) is not None:
            why = f"it reads like the opposite of {found[0].id}"
            if delta.actor is Actor.HUMAN:
                return self._new(delta, new, why)
            return _Step("proposed", (found[0].id,), why, proposed=True)
        return self._new(delta, new, "" if known is None else f"{known.id} stands for another lesson")

    def _new(self, delta: Delta, new: Bullet, why: str) -> _Step:
        plain = new.model_copy(update={"helpful": 0, "harmful": 0})
        return _Step("applied", (new.id,), why, (plain,), _brought(delta, new, new.id))

    def _join(self, delta: Delta, known: Bullet, new: Bullet, why: str) -> _Step:
        """What is already said keeps its words and learns where else it was seen."""
        joined = known.model_copy(update={} if known.locked else _joined([known, new], ("origin", "tags", "about")))
        changed = (joined,) if joined != known else ()
        return _Step("duplicate", (known.id,), why, changed, _brought(delta, new, known.id))

    def _update(self, delta: Delta, bullets: Mapping[str, Bullet]) -> _Step:
        if unknown := delta.changes.keys() & {"id", "helpful", "harmful", "neutral", "created_at"}:
            raise _Refused(f"{', '.join(sorted(unknown))} cannot be changed; counters are sums of votes")
        known = bullets[delta.ids[0]]
        new = _valid({**known.model_dump(), **delta.changes, "updated_at": delta.at})
        if new.model_copy(update={"updated_at": known.updated_at}) == known:
            return _Step("unchanged", (known.id,), "it is so already")
        return _Step("applied", (known.id,), delta.reason, (new,))

    def _merge(self, delta: Delta, bullets: Mapping[str, Bullet]) -> _Step:
        first, *others = (bullets[id] for id in delta.ids)
        gone = [each.id for each in others if each.status is not Status.ACTIVE]
        if gone or first.status is not Status.ACTIVE:
            raise _Refused(f"only active bullets can be merged, not {', '.join(gone or [first.id])}")
        if pinned := [each.id for each in others if each.pinned]:
            raise _Refused(f"{', '.join(pinned)} is pinned and never goes; merge into it, or take the pin out")
        several = _joined([first, *others], ("origin", "tags", "about", "sources"))
        derived = (*first.derived_from, *(each.id for each in others))
        new = _valid(
            {
                **first.model_dump(),
                **several,
                "derived_from": tuple(dict.fromkeys(derived)),
                "neutral": sum(each.neutral for each in (first, *others)),
                "updated_at": delta.at,
                **delta.changes,
            }
        )
        retired = {"status": Status.INVALID, "updated_at": delta.at, "justification": f"merged into {first.id}"}
        carried = tuple(_Carried(first.id, each.id, f"merged from {each.id}") for each in others)
        changed = (new, *(each.model_copy(update=retired) for each in others))
        return _Step("applied", delta.ids, delta.reason, changed, carried)

    def _remove(self, delta: Delta, bullets: Mapping[str, Bullet]) -> _Step:
        known = bullets[delta.ids[0]]
        if known.pinned:
            raise _Refused(f"{known.id} is pinned and never goes; take the pin out first")
        if known.status is Status.INVALID:
            return _Step("unchanged", (known.id,), "it was removed before")
        gone = known.model_copy(update={"status": Status.INVALID, "updated_at": delta.at})
        return _Step("applied", (known.id,), delta.reason, (gone,))

    def nearest(self, content: str, others: Sequence[Bullet]) -> tuple[Bullet, float] | None:
        """The bullet that says most nearly the same, where one says the same."""
        if self.policy.alike >= 1:  # only the very same, without comparing every two
            return next(((other, 1.0) for other in others if other.content == content), None)
        cosines = [similarity(content, other.content) for other in others]
        best = max(range(len(others)), key=cosines.__getitem__, default=-1)
        if best >= 0 and cosines[best] >= self.policy.alike:
            return others[best], cosines[best]
        if not others or self.embedding is None or not self.embedding.semantic:
            return None
        mine, *theirs = self._embedded(self.embedding, [content, *(other.content for other in others)])
        meant = [float(each @ mine) for each in theirs]
        best = max(range(len(others)), key=meant.__getitem__)
        return (others[best], meant[best]) if meant[best] >= MEANT_ALIKE else None

    def _embedded(self, embedding: Embedding, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """A unit vector each; no text is embedded twice for the same deltas."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors.update(zip(new, embedding.embed(new), strict=True) if new else ())
        return [self._vectors[text] for text in texts]


def _brought(delta: Delta, new: Bullet, to: str) -> tuple[_Carried, ...]:
    """The counters that a new bullet came with. Its id in the file tells one of two imports from the other."""
    counters = FeedbackCounters(helpful=new.helpful, harmful=new.harmful)
    source = str(delta.changes.get("id", delta.key))
    return (_Carried(to, source, f"came with {source}", counters),) if new.helpful or new.harmful else ()


_STEPS: Final[Mapping[Operation, Callable[[_Curator, Delta, Mapping[str, Bullet]], _Step]]] = {
    Operation.ADD: _Curator._add,
    Operation.UPDATE: _Curator._update,
    Operation.MERGE: _Curator._merge,
    Operation.REMOVE: _Curator._remove,
}


def compaction(bullets: Sequence[Bullet], policy: Policy, principal: str, at: datetime) -> list[Delta]:
    """MERGE deltas for groups of active bullets that say the same. The one that stays is pinned, or else stood best;
    locked bullets are left alone."""
    free = [each for each in bullets if each.status is Status.ACTIVE and not each.locked]
    free.sort(key=lambda each: (not each.pinned, each.harmful - each.helpful, _changed_at(each), each.id))
    taken: set[str] = set()
    deltas = []
    for place, first in enumerate(free):
        if first.id in taken:
            continue
        group = [
            other.id
            for other in free[place + 1 :]
            if other.id not in taken
            and not other.pinned
            and similarity(first.content, other.content) >= policy.alike
            and not opposed(first.content, other.content)
        ]
        taken.update(group)
        if group:
            ids = (first.id, *group)
            deltas.append(
                Delta(
                    key=f"compact:{content_checksum(*ids, at.isoformat())[:32]}",
                    operation=Operation.MERGE,
                    ids=ids,
                    reason=f"{', '.join(group)} say the same",
                    principal=principal,
                    actor=Actor.AUTOMATION,
                    at=at,
                )
            )
    return deltas


def importing(found: ReadPlaybook, principal: str, at: datetime) -> list[Delta]:
    """ADD deltas for what a file holds. Their keys are of the content: the same file again changes nothing."""
    return [
        Delta(
            key=f"import:{content_checksum(bullet.model_dump_json())[:32]}",
            operation=Operation.ADD,
            changes=bullet.model_dump(exclude_none=True),
            reason="imported",
            principal=principal,
            at=at,
        )
        for bullet in found.bullets
    ]


# What two lessons have in common


@lru_cache(maxsize=4_096)
def _weights(text: str) -> dict[Any, float]:
    """Words and pairs of them, sublinear in how often they stand there, of length 1."""
    terms = words(text)
    counts = Counter[Any]([*terms, *pairwise(terms)])
    weights = {term: 1 + math.log(count) for term, count in counts.items()}
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {term: weight / length for term, weight in weights.items()}


def similarity(one: str, other: str) -> float:
    """Cosine over words and pairs of words, in 0..1. Without statistics of any corpus, so that it never changes."""
    mine, theirs = _weights(one), _weights(other)
    return min(sum(weight * theirs.get(term, 0.0) for term, weight in mine.items()), 1.0)


_OPPOSITES: Final = (
    ("always", "never"), ("most", "least"), ("oldest", "newest"), ("highest", "lowest"), ("maximum", "minimum"),
    ("max", "min"), ("first", "last"), ("before", "after"), ("add", "remove"), ("enable", "disable"),
    ("allow", "forbid"), ("open", "close"), ("sync", "async"), ("more", "fewer"), ("ascending", "descending"),
)  # fmt: skip
_NEGATIONS: Final = frozenset({"not", "never", "no", "avoid", "don", "dont", "without", "cannot"})


def opposed(one: str, other: str) -> bool:
    """Whether two texts that read alike differ in what turns them around: a negation, or a word and its opposite."""
    mine, theirs = set(words(one)), set(words(other))
    only, others_only = mine - theirs, theirs - mine
    turned = any((a in only and b in others_only) or (b in only and a in others_only) for a, b in _OPPOSITES)
    return turned or bool(only & _NEGATIONS) != bool(others_only & _NEGATIONS)


def next_id(bullets: Iterable[Bullet], section: str) -> str:
    """``slug-00001``: the slug that the section's bullets have, else of the section's words; the number is the next in
    the whole playbook, so that none is given twice."""
    known = list(bullets)
    slugs = Counter(each.id.rpartition("-")[0] for each in known if each.section == section and "-" in each.id)
    slug = slugs.most_common(1)[0][0] if slugs else _slug(section)
    numbers = [int(digits) for each in known if (digits := each.id.rpartition("-")[2][:9]).isdecimal()]
    return f"{slug}-{max(numbers, default=0) + 1:05}"


def _slug(section: str) -> str:
    parts = [part for part in words(section) if part.isascii() and part.isalpha()] or ["misc"]
    return parts[0][:8] if len(parts) == 1 else "".join(part[0] for part in parts[:5])


def _changed_at(bullet: Bullet) -> int:
    at = bullet.updated_at or bullet.created_at
    return milliseconds(at) if at else 0


def _joined(bullets: Sequence[Bullet], names: Iterable[str]) -> dict[str, Any]:
    """The values of all of them, each once."""
    found = {}
    for name in names:
        values = [value for bullet in bullets for value in getattr(bullet, name)]
        found[name] = tuple(value for place, value in enumerate(values) if value not in values[:place])
    return found


def _valid(fields: Mapping[str, Any]) -> Bullet:
    try:
        bullet = Bullet.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
        raise _Refused("; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details)) from None
    if not bullet.content:
        raise _Refused("a bullet without content says nothing")
    return bullet


def _vote(
    curator: _Curator, bullet: str, origin: str, verdict: Verdict, comment: str, at: datetime, count: int = 1
) -> Vote:
    return Vote(
        key=f"playbook:{content_checksum(curator.repository, bullet, origin, verdict)[:40]}",
        subject=subject_of(curator.tenant, curator.repository, bullet),
        verdict=verdict,
        at=at,
        principal="playbook",
        actor=Actor.AUTOMATION,
        origin="playbook",
        comment=comment,
        count=count,
    )


def _told(delta: Delta, outcome: Outcome, ids: Iterable[str], why: str) -> Applied:
    return Applied(key=delta.key, operation=delta.operation, outcome=outcome, ids=tuple(ids), why=why)


def _known(db: sqlite3.Connection, place: tuple[str, str, str]) -> Applied | None:
    query = "SELECT applied FROM deltas WHERE tenant = ? AND repository = ? AND key = ?"
    row = db.execute(query, place).fetchone()
    return None if row is None else Applied.model_validate_json(row[0]).model_copy(update={"outcome": "unchanged"})


def _bullets(db: sqlite3.Connection, tenant: str, repository: str) -> dict[str, Bullet]:
    query = "SELECT id, bullet FROM bullets WHERE tenant = ? AND repository = ? ORDER BY place"
    return {id: Bullet.model_validate_json(text) for id, text in db.execute(query, (tenant, repository))}


def _put(db: sqlite3.Connection, tenant: str, repository: str, bullet: Bullet) -> None:
    db.execute(
        "INSERT INTO bullets VALUES (?1, ?2, ?3, (SELECT coalesce(max(place), 0) + 1 FROM bullets"
        " WHERE tenant = ?1 AND repository = ?2), ?4) ON CONFLICT DO UPDATE SET bullet = ?4",
        (tenant, repository, bullet.id, bullet.model_dump_json()),
    )


def _proposal(row: Sequence[Any]) -> Proposal:
    key, state, why, delta, by, at = row
    return Proposal(
        key=key,
        state=state,
        why=why,
        delta=Delta.model_validate_json(delta),
        decided_by=by,
        decided_at=None if at is None else time_of(at),
    )
