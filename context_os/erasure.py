"""Erasing a repository, a source, a tenant or a person from everything that this installation keeps, with a receipt.

``survey`` says what would go, ``perform`` does it: the plan is written down first, then the ledger remembers (as
digests) that this must not come back, then store, ledger, files, packs, journal and Dagster's history are cleared and
compacted, and what is left is counted. Only when that is nothing is the receipt signed and the plan deleted. Every step
may be repeated, so a run that was killed is finished by the next one, and until then every command tells of the plan.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import Field

from context_os import goldsets
from context_os.errors import ConfigurationError, NotFound, StoreError, StoreUnavailable
from context_os.feedback import FeedbackLog, Vote
from context_os.ingestion import Ingestion, Progress
from context_os.kept_packs import KeptPack, KeptPacks
from context_os.ledger import ErasureRow, Ledger, Scope
from context_os.lineage import Journal, RunRecord
from context_os.model import Actor, KnowledgeItem, LineageAction, LineageRecord, Time, Value, utcnow
from context_os.playbook import Playbooks
from context_os.receipts import Receipts
from context_os.settings import Settings
from context_os.stores import Filter, KnowledgeStore, Record
from context_os.suppression import Erased, Erasures, Kind, Suppression
from context_os.tuning import tuned_file

_BESIDE: Final = ("alerts.db", "inbox.db", "metrics.db")
"""Files of the home in which a row may name what goes: it goes with it."""
_PAGE: Final = 1_000
_BATCH: Final = 500


class Target(Value):
    """What is to be erased. ``patterns`` are a person's names, addresses and logins; with ``whole`` an item that
    mentions them goes altogether instead of being redacted."""

    kind: Kind
    tenant: str
    repository: str = ""
    connector: str = ""
    patterns: tuple[str, ...] = ()
    whole: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        by_kind = {"repository": (self.repository,), "source": (self.connector, self.repository)}
        return by_kind.get(self.kind, (self.tenant,)) if self.kind != "person" else self.patterns

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(self.names if self.kind != 'source' else self.names[::-1])}"


class Mention(Value):
    """An item of a person: what becomes of it, and which of its fields say why."""

    id: str
    kind: str
    action: str
    fields: tuple[str, ...]


class Forgotten(Value):
    """What of the history of runs goes. Runs of the ``tenant`` over these ``repositories`` (names and paths), all of
    them with ``everything``, and the ``partitions``, which are nobody else's."""

    tenant: str
    repositories: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    everything: bool = False


class History(Protocol):
    """Dagster's history, which only ``defs`` may reach. Runs an event of which ``mentions`` go too."""

    def count(self, wanted: Forgotten, mentions: Callable[[str], bool] | None) -> int: ...

    def forget(self, wanted: Forgotten, mentions: Callable[[str], bool] | None) -> int: ...

    def compact(self) -> None: ...


class ScopeRef(Value):
    id: int
    repository: str
    connector: str


class Plan(Value):
    """What an erasure will do. It names what it erases: it is deleted with the last step. ``before`` counts what there
    was; ``elsewhere`` says where else the target is known, which this erasure does not touch."""

    receipt: str
    target: Target
    store: str
    principal: str
    note: str
    at: Time
    salt: str
    what: str
    scopes: tuple[ScopeRef, ...] = ()
    deleted: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    redacted: tuple[str, ...] = ()
    mentions: tuple[Mention, ...] = ()
    history: Forgotten
    before: dict[str, int] = Field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()

    @property
    def row(self) -> ErasureRow:
        return ErasureRow(
            self.receipt, self.target.tenant, self.target.kind, self.salt, self.what, self.derived, self.at
        )

    @cached_property
    def erased(self) -> Erased:
        return Erased.of(self.row)

    @cached_property
    def ids(self) -> frozenset[str]:
        """Of every item that goes or changes."""
        return frozenset((*self.deleted, *self.derived, *self.redacted))

    def joined(self, later: Plan) -> Plan:
        """What either of two looks found; the counts are those of the first."""
        both = ("scopes", "deleted", "derived", "redacted")
        found = {name: tuple(dict.fromkeys((*getattr(self, name), *getattr(later, name)))) for name in both}
        gone = {*found["deleted"], *found["derived"]}
        found["redacted"] = tuple(id for id in found["redacted"] if id not in gone)
        return self.model_copy(update=found)


class Done(Value):
    """``after`` counts what is left by the same names as ``before``; ``remains`` is what the store's disk may still
    hold, and until when."""

    receipt: str
    file: Path
    kind: str
    before: dict[str, int]
    after: dict[str, int]
    remains: str


@dataclass(frozen=True)
class Erasure:
    """Erasures of one installation's tenant, in the configured store."""

    settings: Settings
    store: KnowledgeStore
    history: History
    progress: Progress = field(default=lambda _: None)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.make_home() / "ledger.db")

    @cached_property
    def ingestion(self) -> Ingestion:
        return Ingestion(self.settings, self.store, self.ledger, self.progress)

    @cached_property
    def packs(self) -> KeptPacks:
        return KeptPacks(self.settings.make_home() / "packs.db", self.settings.audit.keep_packs)

    @cached_property
    def playbooks(self) -> Playbooks:
        return Playbooks(self.settings.make_home())

    @cached_property
    def feedback(self) -> FeedbackLog:
        return FeedbackLog(self.settings.make_home())

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.settings.make_home())

    @cached_property
    def receipts(self) -> Receipts:
        return Receipts(self.settings.make_home())

    # What would go

    def survey(self, target: Target, note: str = "") -> Plan:
        """What an erasure would do now. Raises NotFound for what nothing is known of, ConfigurationError for a pattern
        without a word."""
        at, receipt = utcnow(), f"{utcnow():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}"
        erased = Erased.new(receipt, target.tenant, target.kind, target.names, at, whole=target.whole)
        row = erased.row()
        plan = Plan(
            receipt=receipt,
            target=target,
            store=self.store.identity,
            principal=self.settings.principal,
            note=note,
            at=at,
            salt=row.salt,
            what=row.what,
            history=self._history_of(target),
            elsewhere=tuple(self._elsewhere(target)),
        )
        plan = self._looked(plan)
        plan = plan.model_copy(update={"before": self._count(plan)})
        if not any(plan.before.values()) and (target.kind == "person" or not plan.scopes):
            raise NotFound(f"nothing is known here of {target}; {self._known()}")
        return plan

    def _looked(self, plan: Plan) -> Plan:
        """The plan with the scopes and items that it is about now."""
        erased, target = plan.erased, plan.target
        scopes = [each for each in self._scopes() if target.kind == "person" or _covers(target, each)]
        suppression = Suppression((erased,))
        deleted: list[str] = []
        redacted: list[str] = []
        mentions: list[Mention] = []
        children: dict[str, list[str]] = {}
        for item in self._items():
            for parent in {id for record in item.metadata.lineage for id in record.derived_from}:
                children.setdefault(parent, []).append(item.id)
            kept = suppression.item(item) if target.kind == "person" else None
            if target.kind != "person" and not _made_of(target, item):
                continue
            if kept is item:
                continue
            (deleted if kept is None else redacted).append(item.id)
            if target.kind == "person":
                action = "deleted" if kept is None else "redacted"
                fields = tuple(erased.fields(item))
                mentions.append(Mention(id=item.id, kind=item.kind, action=action, fields=fields))
        known = [id for scope in scopes for id in self.ledger.ids(scope)] if target.kind != "person" else []
        deleted = list(dict.fromkeys([*deleted, *known]))
        derived = _below(deleted, children)
        return plan.model_copy(
            update={
                "scopes": tuple(ScopeRef(id=e.id, repository=e.repository, connector=e.connector) for e in scopes),
                "deleted": tuple(deleted),
                "derived": tuple(derived),
                "redacted": tuple(id for id in redacted if id not in set(derived)),
                "mentions": tuple(mentions),
            }
        )

    def _history_of(self, target: Target) -> Forgotten:
        if target.kind == "person":
            return Forgotten(tenant=target.tenant)
        names = [target.repository] if target.repository else [scope.repository for scope in self._scopes()]
        alone = [name for name in dict.fromkeys(names) if not self._others(target, name)]
        places = [str(each.location) for each in self.ledger.repositories() if each.name in alone]
        return Forgotten(
            tenant=target.tenant,
            repositories=(*dict.fromkeys(names), *places),
            partitions=() if target.kind == "source" else tuple(alone),
            everything=target.kind == "tenant",
        )

    def _others(self, target: Target, repository: str) -> bool:
        """Whether another tenant or another store has something of this repository too."""
        there = self.ledger.scopes_of_repository(repository)
        return any((each.tenant, each.store) != (target.tenant, self.store.identity) for each in there)

    def _elsewhere(self, target: Target) -> Iterator[str]:
        for name in [target.repository] if target.repository else []:
            there = self.ledger.scopes_of_repository(name)
            stores = {each.store for each in there if each.tenant == target.tenant} - {self.store.identity}
            yield from (f"the store {store} has it too: erase there as well, with --store" for store in sorted(stores))
            if name in self.settings.repositories:
                yield f"the settings file {self.settings.file} names it: take it out there"

    def _known(self) -> str:
        names = sorted({scope.repository for scope in self._scopes()})
        return f"this tenant has: {', '.join(names) or 'nothing'}"

    def _count(self, plan: Plan) -> dict[str, int]:
        """What there is of it now, by place."""
        rows = self.ledger.rows_of([each.id for each in plan.scopes]) if plan.target.kind != "person" else {}
        return {
            "items": len(plan.deleted),
            "derived items": len(plan.derived),
            "items to redact": len(plan.redacted),
            **{f"ledger {table}": count for table, count in rows.items()},
            "packs": sum(self._in_pack(plan, pack) for pack in self.packs.all(plan.target.tenant)),
            "playbook": self.playbooks.forget(plan.target.tenant, self._in_playbook(plan), dry=True),
            "votes": self.feedback.count(plan.target.tenant, self._in_vote(plan)),
            "journal": sum(self._in_journal(plan, line.record) for line in self.journal.lines() if line.record),
            "runs": self.history.count(plan.history, self._mentions(plan)),
        }

    # Doing it

    def perform(self, plan: Plan) -> Done:
        """Erase what a plan says. Raises StoreError when something is left, with the plan kept for the next call."""
        with self._alone():
            begun = self._file(plan).exists()
            self._write(plan)
            self.ledger.record_erasure(plan.row)
            with self._locked_scopes():
                if begun:
                    self.store.compact(self.ingestion.access)  # a store that moves its items may have been killed at it
                plan = plan.joined(self._looked(plan))
                self._write(plan)
                self.ledger.record_erasure(plan.row)  # with what was derived since
                self._clear_store(plan)
                self._clear_ledger(plan)
                self._clear_files(plan)
                self.progress("compacting the store, so that nothing can be read from what was deleted")
                remains = self.store.compact(self.ingestion.access)
            self.progress("packs, journal and the history of runs")
            self.packs.forget(plan.target.tenant, lambda pack: self._in_pack(plan, pack))
            self.playbooks.forget(plan.target.tenant, self._in_playbook(plan))
            self._clear_votes(plan)
            self.journal.erase(lambda record: self._in_journal(plan, record), plan.receipt)
            self.history.forget(plan.history, self._mentions(plan))
            for name in _BESIDE:
                _forget_rows(self.settings.home / name, self._tells(plan))
            self._clear_goldsets(plan)
            self.ledger.compact()
            self.packs.compact()
            self.feedback.compact()
            self.history.compact()
            return self._finish(plan, "; ".join(filter(None, (remains, self._in_backups()))))

    def unfinished(self) -> list[Plan]:
        """Plans of erasures that were begun and not finished, oldest first."""
        files = sorted(self._folder.glob("*.json"))
        return [Plan.model_validate_json(file.read_bytes()) for file in files]

    def _clear_store(self, plan: Plan) -> None:
        self.progress(f"{len(plan.deleted) + len(plan.derived):,} items to delete, {len(plan.redacted):,} to redact")
        access, target = self.ingestion.access, plan.target
        self.store.prune(access, utcnow())
        if target.kind == "tenant":
            self.store.drop_tenant(access)
            return
        if target.kind in {"repository", "source"}:
            for scope in plan.scopes:
                self.store.delete_by_source(access, scope.connector, scope.repository)
        self.store.delete(access, [*plan.deleted, *plan.derived])
        suppression = Suppression((plan.erased,))
        for ids in _batches(plan.redacted):
            items = self.store.get(access, ids)
            kept = [(item, suppression.item(item)) for item in items]
            self.store.upsert(access, [Record(_noted(new, plan)) for old, new in kept if new and new is not old])

    def _clear_ledger(self, plan: Plan) -> None:
        if plan.target.kind != "person":
            self.ledger.erase_scopes(each.id for each in plan.scopes)
            for name in plan.history.partitions:
                self.ledger.unregister(name)
        self._forget_elsewhere(plan)

    def _clear_votes(self, plan: Plan) -> None:
        """Those on what goes, and those of a person or that mention one: then the items that stay show one less."""
        tenant = plan.target.tenant
        if plan.target.kind == "tenant":
            self.feedback.forget_tenant(tenant)
            return
        self.feedback.forget_subjects(tenant, {*plan.deleted, *plan.derived})
        if self.feedback.forget(tenant, self._in_vote(plan)):
            self.ingestion.projection.catch_up()
        self.feedback.forget_states(tenant)

    def _forget_elsewhere(self, plan: Plan) -> None:
        """In scopes that stay: items that went because they were derived, and what mentions a person."""
        gone: dict[str, str | None] = dict.fromkeys((*plan.derived, *plan.deleted))
        for scope in self._scopes():
            owned = self.ledger.ids(scope) & plan.ids
            redacted = sorted(owned - gone.keys())
            items = [item for ids in _batches(redacted) for item in self.store.get(self.ingestion.access, ids)]
            checksums = {id: gone[id] for id in owned & gone.keys()}
            checksums |= {item.id: item.metadata.checksum for item in items}
            if checksums or plan.target.kind == "person":
                self.ledger.rewrite(scope, checksums, plan.erased.mentions)

    def _clear_files(self, plan: Plan) -> None:
        """What is kept beside the store. The cache of vectors goes as a whole: it does not say whose they are."""
        home = self.settings.make_home()
        for file in home.glob("vectors.db*"):
            file.unlink(missing_ok=True)
        self._clear_weights(plan.target)
        for each in plan.scopes if plan.target.kind != "person" else ():
            self.ingestion.forget_files(each.id)
        for scope in self._scopes():
            if plan.target.kind == "person" or self._touches(scope, plan):
                self.ingestion.forget_files(scope.id)
                self.ingestion.rebuild_segment(scope)

    def _clear_weights(self, target: Target) -> None:
        """A repository's own weights bear its name; those of everything are a folder."""
        if target.kind == "tenant":
            shutil.rmtree(tuned_file(self.settings.home, target.tenant, "x").parent, ignore_errors=True)
        elif target.kind == "repository":
            tuned_file(self.settings.home, target.tenant, target.repository).unlink(missing_ok=True)

    def _clear_goldsets(self, plan: Plan) -> None:
        """What goldsets ingested and cloned goes as a whole, the next run reads it again; of their results those that
        tell of it."""
        folder = self.settings.home / goldsets.FOLDER
        for name in ("states", "repositories"):
            shutil.rmtree(folder / name, ignore_errors=True)
        tells = self._tells(plan)
        for file in sorted(folder.glob("runs/*/*.jsonl")):
            if tells(file.read_text(encoding="utf-8")):
                file.unlink()

    def _touches(self, scope: Scope, plan: Plan) -> bool:
        """Whether a scope that stays lost derived items: its files are of the generation before."""
        file = self.settings.home / "corpus" / f"{scope.id}-{scope.generation}.npz"
        return bool(plan.derived) and bool(scope.generation) and not file.exists()

    def _finish(self, plan: Plan, remains: str) -> Done:
        after = self._left(plan)
        if any(after.values()):
            told = ", ".join(f"{count:,} {name}" for name, count in after.items() if count)
            raise StoreError(f"not everything of it is gone ({told}); `context-os erase resume` tries again")
        claim = {
            "kind": plan.target.kind,
            "tenant": plan.target.tenant,
            "store": plan.store,
            "salt": plan.salt,
            "what": plan.what,
            "at": plan.at.isoformat(),
            "finished_at": utcnow().isoformat(),
            "by": plan.principal,
            "note": plan.note,
            "before": plan.before,
            "after": after,
            "ids": {"count": len(plan.ids), "sha256": _hash_of(plan.ids)},
            "remains": remains,
        }
        file = self.receipts.issue(plan.receipt, claim)
        self._file(plan).unlink(missing_ok=True)
        return Done(
            receipt=plan.receipt, file=file, kind=plan.target.kind, before=plan.before, after=after, remains=remains
        )

    # What is left

    def _left(self, plan: Plan) -> dict[str, int]:
        now = self._looked(plan)
        return self._count(
            plan.model_copy(
                update={
                    "deleted": tuple({*now.deleted, *self._there((*plan.deleted, *plan.derived))}),
                    "derived": (),
                    "redacted": now.redacted,
                    "scopes": plan.scopes,
                }
            )
        )

    def _in_backups(self) -> str:
        """What is said of backups: they are not opened, for some lie elsewhere and some need a secret."""
        folder = self.settings.backup_folder
        count = sum(1 for _ in folder.glob("*/manifest.json"))
        return (
            f"{count} backups in {folder} may hold it until they are pruned; a restore leaves it out" if count else ""
        )

    def _there(self, ids: Sequence[str]) -> list[str]:
        return [item.id for some in _batches(ids) for item in self.store.get(self.ingestion.access, some)]

    def check(self, claim: Mapping[str, Any], names: Sequence[str] = ()) -> list[str]:
        """What contradicts a receipt now: items that it says are gone, what the ledger, the packs and the journal have
        of it; and with ``names``, whether it is about them."""
        tenant = str(claim["tenant"])
        known = {each.receipt: each for each in Erasures(self.ledger).of(tenant)}
        row = ErasureRow(claim["receipt"], tenant, claim["kind"], claim["salt"], claim["what"], (), _time(claim["at"]))
        erased = known.get(claim["receipt"])
        problems = [] if erased else ["the ledger does not remember it: a restored backup would bring it back"]
        erased = erased or Erased.of(row)
        if names and not _about(erased, names):
            problems.append(f"it is not about {' '.join(names)}")
        # What was written since was ingested anew, which only a lifted erasure allows.
        since = (lambda item: item.metadata.updated_at > erased.at) if erased.lifted else (lambda _: False)
        left = [item.id for item in self._items() if not since(item) and _was(erased, item)]
        if left:
            problems.append(f"the store has {len(left):,} items of it, first {left[0]}")
        for scope in self._scopes():
            count = self.ledger.count(scope)
            covered = erased.kind != "person" and erased.covers(scope.repository, scope.connector)
            if count and covered and not erased.lifted:
                problems.append(f"the ledger has {count:,} items of it, of the connector {scope.connector}")
        packs = [pack.id for pack in self.packs.all(tenant) if _pack_of(erased, erased.ids, pack)]
        if packs and not erased.lifted:
            problems.append(f"{len(packs):,} kept packs carry something of it, first {packs[0]}")
        return problems

    # Where things are

    def _scopes(self) -> list[Scope]:
        return self.ledger.scopes(self.store.identity, self.settings.tenant)

    def _items(self) -> Iterator[KnowledgeItem]:
        """Every item of the tenant, whatever its confidentiality."""
        cursor: str | None = None
        while True:
            page = self.store.scan(self.ingestion.access, Filter(), cursor, _PAGE)
            yield from page.items
            if page.cursor is None:
                return
            cursor = page.cursor

    def _in_pack(self, plan: Plan, pack: KeptPack) -> bool:
        """A pack that was asked of all repositories may say something of any."""
        target = plan.target
        if target.kind == "repository" and (not pack.repositories or target.repository in pack.repositories):
            return True
        return target.kind == "tenant" or _pack_of(plan.erased, plan.ids, pack)

    def _in_playbook(self, plan: Plan) -> Callable[[str, str], bool]:
        """Whether a row of a repository's playbook, with its text, goes. Lessons that mention a person go whole."""
        target = plan.target
        if target.kind == "person":
            return lambda _, text: plan.erased.mentions(text)
        whole = target.kind == "tenant" or (target.kind == "source" and target.connector != "playbook")
        return lambda repository, _: target.kind == "tenant" if whole else repository == target.repository

    def _in_journal(self, plan: Plan, record: RunRecord) -> bool:
        if record.tenant != plan.target.tenant:
            return False
        if plan.target.kind == "person":
            return plan.erased.mentions(record.model_dump_json())
        return plan.erased.covers(record.repository, record.connector)

    def _in_vote(self, plan: Plan) -> Callable[[Vote], bool]:
        if plan.target.kind == "person":
            return lambda vote: plan.erased.mentions(vote.principal) or plan.erased.mentions(vote.comment)
        gone, covers = {*plan.deleted, *plan.derived}, plan.erased.covers
        return lambda vote: (
            vote.subject in gone or plan.target.kind == "tenant" or covers(vote.repository, vote.connector)
        )

    def _mentions(self, plan: Plan) -> Callable[[str], bool] | None:
        return plan.erased.mentions if plan.target.kind == "person" else None

    def _tells(self, plan: Plan) -> Callable[[str], bool]:
        """Whether a value of a row is about what goes: it names it, alone or as a value inside JSON."""
        if plan.target.kind == "person":
            return plan.erased.mentions
        names = {*plan.history.partitions, *plan.history.repositories}
        if plan.target.kind == "tenant":
            names.add(plan.target.tenant)
        elif plan.target.kind == "source":
            names = set()  # the repository stays
        quoted = [json.dumps(name) for name in names]
        return lambda value: value in names or any(each in value for each in quoted)

    @contextmanager
    def _locked_scopes(self) -> Iterator[None]:
        """No ingestion of the tenant writes meanwhile."""
        with ExitStack() as locks:
            for scope in self._scopes():
                locks.enter_context(self.ingestion.lock(scope))
            yield

    @property
    def _folder(self) -> Path:
        return folder_of_plans(self.settings.home)

    def _file(self, plan: Plan) -> Path:
        return self._folder / f"{plan.receipt}.json"

    def _write(self, plan: Plan) -> None:
        partial = self._file(plan).with_suffix(".writing")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(plan.model_dump_json())
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self._file(plan))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One erasure at a time. Raises StoreUnavailable while another is at work."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreUnavailable("another erasure is at work here; wait until it has ended") from None
            yield


def folder_of_plans(home: Path) -> Path:
    return home / "erasures"


def _covers(target: Target, scope: Scope) -> bool:
    if target.kind == "tenant":
        return True
    return scope.repository == target.repository and target.connector in {"", scope.connector}


def _made_of(target: Target, item: KnowledgeItem) -> bool:
    if target.kind == "tenant":
        return True
    return item.source.repository == target.repository and target.connector in {"", item.source.type}


def _below(ids: Iterable[str], children: Mapping[str, list[str]]) -> list[str]:
    """Everything that was derived of these, and of that in turn, without themselves."""
    first = set(ids)
    found: dict[str, None] = {}
    waiting = list(first)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found and child not in first:
                found[child] = None
                waiting.append(child)
    return list(found)


def _noted(item: KnowledgeItem, plan: Plan) -> KnowledgeItem:
    """The item with a record of why it reads as it does."""
    record = LineageRecord(
        timestamp=utcnow(), actor=Actor.HUMAN, action=LineageAction.UPDATED, notes=f"redacted, receipt {plan.receipt}"
    )
    lineage = (*item.metadata.lineage, record)
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"lineage": lineage})})


def _pack_of(erased: Erased, ids: Collection[str], pack: KeptPack) -> bool:
    if any(each.id in ids for each in pack.carried):
        return True
    if erased.kind == "person":
        return erased.mentions(pack.prompt) or erased.mentions("\n\n\n\n".join(each.title for each in pack.carried))
    return any(erased.covers(each.source.repository, each.source.type) for each in pack.carried)


def _was(erased: Erased, item: KnowledgeItem) -> bool:
    if erased.kind == "person":
        return Suppression((erased,)).item(item) is not item
    return item.id in erased.ids or erased.covers(item.source.repository, item.source.type)


def _about(erased: Erased, names: Sequence[str]) -> bool:
    if erased.kind == "person":
        return all(erased.mentions(name) for name in names)
    return erased.names(*(names[::-1] if erased.kind == "source" else names))


def _hash_of(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


def _time(text: str) -> Any:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} in the receipt is no time") from None


def _forget_rows(file: Path, tells: Callable[[str], bool]) -> None:
    """Delete every row of which a text tells, and overwrite it in the file."""
    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(file, timeout=30)) as db:
            db.create_function("tells", 1, lambda value: isinstance(value, str) and tells(value), deterministic=True)
            db.execute("PRAGMA secure_delete = ON")
            with db:
                tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
                for (table,) in tables.fetchall():
                    columns = [f'tells("{name}")' for _, name, *_ in db.execute(f'PRAGMA table_info("{table}")')]
                    db.execute(f'DELETE FROM "{table}" WHERE {" OR ".join(columns)}')  # noqa: S608 - the file's own names
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{file} cannot be cleared, is the server or a run at work in it? ({error})") from error
