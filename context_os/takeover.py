"""How a restore becomes visible: built beside, then decided in one file, then carried out by whoever comes next.

A tenant's state lies in a store and in the ledger, which no transaction spans. So a restore

1. writes the **journal** ``restore/journal.json``, then builds beside what readers see: the items in
   ``store.beside(name)``, the scopes under that place's identity in the ledger, files under numbers and names that
   nobody uses yet;
2. **decides** by replacing the journal with one that says so: renaming that file is the whole restore's commit;
3. **carries out**: store, ledger and files take over, each of them in one step that may be repeated; then the journal
   goes.

A process that dies before the decision leaves the old state and rubbish beside it, one that dies later the new state
with steps to repeat. ``Settings.open_store`` calls ``recover``, which does away with the one and finishes the other, so
that no reader comes between. Whether a restore still lives is told by a lock that the kernel frees when it dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from context_os.errors import BackupError, BackupRefused
from context_os.feedback import FILE_NAME, FeedbackLog
from context_os.ledger import Ledger
from context_os.model import Access, Confidentiality, Value
from context_os.stores import KnowledgeStore


class Journal(Value):
    """``store`` and ``beside`` are identities of the ledger. ``forgotten`` are the numbers of the scopes that are
    replaced; ``items`` and ``scopes`` how many take their place."""

    name: str
    tenant: str
    store: str
    beside: str
    backup: str
    decided: bool = False
    items: int = 0
    scopes: int = 0
    forgotten: tuple[int, ...] = ()

    @classmethod
    def read(cls, home: Path) -> Self | None:
        try:
            return cls.model_validate_json(_journal(home).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise BackupError(
                f"{_journal(home)} cannot be read: {error}; a newer Context-OS may have left it"
            ) from None


class Takeover:
    """One restore that this process is at work on, holding the lock of its home."""

    def __init__(self, home: Path, store: KnowledgeStore, ledger: Ledger, journal: Journal) -> None:
        self.home = home
        self.store = store
        self.ledger = ledger
        self.journal = journal
        self.access = access(journal.tenant)

    @property
    def files(self) -> Path:
        """Where files of the home wait, under the names that they will have there."""
        return _folder(self.home) / "files"

    def decide(self, items: int, scopes: int) -> None:
        """From here on the restore is done, even if somebody else has to carry it out."""
        forgotten = self.ledger.scopes(self.journal.store, self.journal.tenant)
        decision = {"decided": True, "items": items, "scopes": scopes, "forgotten": tuple(one.id for one in forgotten)}
        self.journal = self.journal.model_copy(update=decision)
        _write(self.home, self.journal)

    def carry_out(self) -> None:
        """After the decision. May be repeated from any point."""
        journal = self.journal
        if journal.items:
            self.store.take_over(self.access, journal.name)
        else:
            self.store.drop_tenant(self.access)
        if journal.scopes:
            self.ledger.take_over(journal.beside, journal.store, journal.tenant)
        else:
            self.ledger.forget_tenant(journal.store, journal.tenant)
        self._move_files()
        self._forget_files(journal.forgotten)
        if (self.home / FILE_NAME).is_file():
            # What came back shows the votes of its time. The next vote, ingestion or sync writes today's.
            FeedbackLog(self.home).forget_projection(journal.tenant)
        self._close()

    def abandon(self) -> None:
        """Before the decision: leave no trace."""
        self.store.discard(self.access, self.journal.name)
        scopes = self.ledger.scopes(self.journal.beside, self.journal.tenant)
        self._forget_files(scope.id for scope in scopes)
        self.ledger.forget_tenant(self.journal.beside, self.journal.tenant)
        self._close()

    def _move_files(self) -> None:
        """What is there by now stays: it is newer, and may be others' too."""
        for file in sorted(self.files.rglob("*")):
            target = self.home / file.relative_to(self.files)
            if file.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                file.replace(target)

    def _forget_files(self, scopes: Iterable[int]) -> None:
        for scope in scopes:
            for pattern in (f"{scope}-*", f"vectors-{scope}-*"):
                for file in (self.home / "corpus").glob(pattern):
                    file.unlink(missing_ok=True)
            shutil.rmtree(self.home / "staging" / str(scope), ignore_errors=True)

    def _close(self) -> None:
        shutil.rmtree(self.files, ignore_errors=True)
        _journal(self.home).unlink(missing_ok=True)


def access(tenant: str) -> Access:
    """Everything of a tenant."""
    return Access(tenant=tenant, principal="backup", clearance=Confidentiality.RESTRICTED)


@contextmanager
def begun(home: Path, store: KnowledgeStore, ledger: Ledger, tenant: str, name: str, backup: str) -> Iterator[Takeover]:
    """A restore into a tenant of a store. Whoever leaves without having decided, leaves no trace. Raises BackupRefused
    while another one is at work in this home."""
    with _lock(home, wait=False) as held:
        if not held:
            raise BackupRefused(f"another restore is at work in {home}; wait for its end")
        _recover(home, store, ledger)
        beside = store.beside(name).identity
        journal = Journal(name=name, tenant=tenant, store=store.identity, beside=beside, backup=backup)
        _write(home, journal)
        takeover = Takeover(home, store, ledger, journal)
        try:
            yield takeover
        finally:
            if not takeover.journal.decided:
                takeover.abandon()


def recover(home: Path, store: KnowledgeStore, ledger: Callable[[], Ledger]) -> None:
    """Finish or undo what a restore into this store left that died. One that is still building is left alone; for one
    that is just being carried out, this waits."""
    journal = Journal.read(home)
    if journal is None or journal.store != store.identity:
        return
    with _lock(home, wait=journal.decided) as held:
        if held:
            _recover(home, store, ledger())


def _recover(home: Path, store: KnowledgeStore, ledger: Ledger) -> None:
    journal = Journal.read(home)
    if journal is None:
        return
    if journal.store != store.identity:
        raise BackupRefused(
            f"a restore into {journal.store} was interrupted; any command with that store ends it. If that store is no "
            f"more, delete {_journal(home)}"
        )
    takeover = Takeover(home, store, ledger, journal)
    if journal.decided:
        takeover.carry_out()
    else:
        takeover.abandon()


def _folder(home: Path) -> Path:
    return home / "restore"


def _journal(home: Path) -> Path:
    return _folder(home) / "journal.json"


def _write(home: Path, journal: Journal) -> None:
    """All or nothing, also when the power goes."""
    partial = _journal(home).with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(journal.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(_journal(home))
    folder = os.open(_folder(home), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _lock(home: Path, *, wait: bool) -> Iterator[bool]:
    """Whether it was got; without ``wait`` at once."""
    _folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
    with (_folder(home) / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
