"""Who may ask: access keys, each with a tenant, a clearance and a role, and the ``Access`` that a key stands for.

A key reads ``cos_<id>_<secret>``. The id is public and finds the row; the secret is 256 random bits, shown once and
kept only as SHA-256. A slow hash protects what people choose and others can guess. Nobody guesses 256 random bits, so
it would protect nothing more and cost every request its time. What a key may do is looked up each time it is used: a
revoked one is refused from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr

from context_os.database import Database, milliseconds, time_of
from context_os.errors import ConfigurationError, NotFound, StoreUnavailable
from context_os.model import Access, Confidentiality, Time, Value, utcnow

FILE_NAME: Final = "access.db"

_TOKEN: Final = re.compile(r"cos_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_USE_NOTED: Final = timedelta(minutes=1)
"""A key's last use is written once in this time: not every read should cost a write."""
_COLUMNS: Final = "id, tenant, clearance, role, label, created_at, last_used_at, expires_at, revoked_at"


class Role(StrEnum):
    """What a key may do; each may do what those before it may. A viewer reads, an editor also votes and appends
    lineage, an admin also sees the tenant's operations."""

    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(other) <= order.index(self)


class Key(Value):
    """A key without its secret. ``label`` says who holds it: the principal, for the record of what it did."""

    id: str
    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    clearance: Confidentiality
    role: Role
    label: str = Field(min_length=1, max_length=200)
    created_at: Time
    last_used_at: Time | None = None
    expires_at: Time | None = None
    revoked_at: Time | None = None

    @property
    def access(self) -> Access:
        return Access(tenant=self.tenant, principal=self.label, clearance=self.clearance)

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class AccessKeys(Database):
    """The keys of one home, of all its tenants."""

    what: ClassVar[str] = "the access keys"
    schemas: ClassVar[tuple[str, ...]] = (
        """
        CREATE TABLE keys (
          id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, clearance TEXT NOT NULL, role TEXT NOT NULL,
          label TEXT NOT NULL, created_at INTEGER NOT NULL, last_used_at INTEGER, expires_at INTEGER, revoked_at INTEGER
        ) STRICT
        """,
    )

    def __init__(self, home: Path) -> None:
        super().__init__(home / FILE_NAME)

    def create(
        self, tenant: str, clearance: Confidentiality, role: Role, label: str, expires_at: datetime | None = None
    ) -> tuple[Key, SecretStr]:
        """A new key and, this once, what its holder sends."""
        key, token = _made(tenant, clearance, role, label, expires_at)
        with self.transaction() as db:
            _insert(db, key, token)
        return key, token

    def authenticate(self, token: str) -> Key | None:
        """The active key that this is; None for anything else, whatever is wrong with it."""
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            return None
        with self.connection() as db:
            found = db.execute(f"SELECT hash, {_COLUMNS} FROM keys WHERE id = ?", (parts[1],)).fetchone()  # noqa: S608
        if found is None or not hmac.compare_digest(found[0], _hash(token)):
            return None
        return self._used(_key(found[1:]))

    def active(self, id: str) -> Key | None:
        """The key of this id while it may be used: what a session looks up."""
        with self.connection() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (id,)).fetchone()  # noqa: S608
        return self._used(_key(found)) if found else None

    def _used(self, key: Key) -> Key | None:
        now = utcnow()
        if key.state(now) != "active":
            return None
        if key.last_used_at is None or now - key.last_used_at > _USE_NOTED:
            try:
                with self.transaction() as db:
                    db.execute("UPDATE keys SET last_used_at = ? WHERE id = ?", (milliseconds(now), key.id))
            except StoreUnavailable:  # a full disk must not lock everybody out
                pass
        return key

    def list(self, tenant: str | None = None) -> list[Key]:
        """All keys, or a tenant's, the oldest first."""
        with self.connection() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM keys WHERE ?1 IS NULL OR tenant = ?1 ORDER BY created_at, id",  # noqa: S608
                (tenant,),
            ).fetchall()
        return [_key(row) for row in rows]

    def revoke(self, id: str) -> Key:
        """End a key, at once and for good. Harmless a second time. Raises NotFound."""
        with self.transaction() as db:
            db.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (milliseconds(utcnow()), id)
            )
            return _found(db, id)

    def rotate(self, id: str) -> tuple[Key, SecretStr]:
        """A new key for the same holder; the old one ends in the same transaction. Raises NotFound, and
        ConfigurationError for a key that has ended already."""
        with self.transaction() as db:
            old = _found(db, id)
            now = utcnow()
            if old.state(now) != "active":
                raise ConfigurationError(
                    f"the key {id} is {old.state(now)}; make a new one with `context-os access create`"
                )
            key, token = _made(old.tenant, old.clearance, old.role, old.label, old.expires_at)
            _insert(db, key, token)
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (milliseconds(now), id))
        return key, token


def _made(
    tenant: str, clearance: Confidentiality, role: Role, label: str, expires_at: datetime | None
) -> tuple[Key, SecretStr]:
    id = secrets.token_hex(6)
    key = Key(
        id=id, tenant=tenant, clearance=clearance, role=role, label=label, created_at=utcnow(), expires_at=expires_at
    )
    return key, SecretStr(f"cos_{id}_{secrets.token_urlsafe(32)}")


def _insert(db: Any, key: Key, token: SecretStr) -> None:
    times = [None if time is None else milliseconds(time) for time in (key.created_at, key.expires_at)]
    db.execute(
        "INSERT INTO keys (id, hash, tenant, clearance, role, label, created_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (key.id, _hash(token.get_secret_value()), key.tenant, key.clearance, key.role, key.label, *times),
    )


def _found(db: Any, id: str) -> Key:
    row = db.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (id,)).fetchone()  # noqa: S608
    if row is None:
        raise NotFound(f"no access key has the id {id!r}; `context-os access list` shows them")
    return _key(row)


def _key(row: Sequence[Any]) -> Key:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    times = {name: time_of(ms) for name, ms in values.items() if name.endswith("_at") and ms is not None}
    return Key(**{**values, **times})


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
