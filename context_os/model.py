"""The nouns, as frozen values without I/O. JSON form is camelCase, as the laboratory wrote it."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

_NAMESPACE: Final = uuid.UUID("6f1d4c9e-8a53-5d0b-9d1e-7b1f3c0a52e4")

NEVER: Final = datetime(2200, 1, 1, tzinfo=UTC)
"""Sentinel for "does not expire". Not 9999: Weaviate's date filters overflow there and lose the object."""


def utcnow() -> datetime:
    """The current time, aware, cut to milliseconds so that it survives every store unchanged."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _as_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a zone; write 2026-01-31T12:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("this time lies before the year 1 or after 9999 in UTC") from None


@lru_cache(maxsize=1_024)  # what is ingested together has its times in common
def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, AfterValidator(_as_utc), PlainSerializer(_iso, when_used="json")]


class Confidentiality(StrEnum):
    """How far an item may travel; ``rank`` orders the levels."""

    PUBLIC = "public"
    INTERNAL = "internal"
    RESTRICTED = "restricted"

    @property
    def rank(self) -> int:
        return list(Confidentiality).index(self)

    def permits(self, other: Confidentiality) -> bool:
        """Whether somebody cleared for this level may read something of level ``other``."""
        return other.rank <= self.rank


class PiiLevel(StrEnum):
    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Modality(StrEnum):
    TEXT = "text"
    CODE = "code"
    TABLE = "table"
    IMAGE = "image"
    EVENT = "event"


class Actor(StrEnum):
    INGESTION = "ingestion"
    HUMAN = "human"
    AUTOMATION = "automation"


class LineageAction(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    COMPACTED = "compacted"
    EXPIRED = "expired"
    APPROVED = "approved"
    ROLLBACK = "rollback"
    MIGRATED = "migrated"


class Value(BaseModel):
    """Base of every noun: frozen, strict about unknown fields, camelCase outside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, ser_json_timedelta="float"
    )


class Access(Value):
    """Who asks. Every read of a store takes one; there is no default on purpose."""

    tenant: str = Field(min_length=1)
    principal: str = Field(min_length=1)
    clearance: Confidentiality

    def may_read(self, item: KnowledgeItem, now: datetime) -> bool:
        """The rule that every store's filters must agree with."""
        return (
            item.tenant == self.tenant
            and self.clearance.permits(item.metadata.confidentiality)
            and item.expires_at > now
        )


class Source(Value):
    """Where an item came from. ``type`` is the connector's name, ``location`` what it read (a path or URL),
    ``accessor`` how, ``revision`` the commit. Lines are 1-based and inclusive. ``repository`` is the
    registered name and ``path`` is POSIX, relative to the repository's root."""

    type: str = Field(min_length=1)
    location: str
    accessor: str = ""
    revision: str = ""
    repository: str = ""
    path: str = ""
    language: str = ""
    start_line: int | None = Field(default=None, ge=1)
    end_line: int | None = Field(default=None, ge=1)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Attachment(Value):
    name: str
    media_type: str
    location: str


class Payload(Value):
    text: str
    structured: dict[str, Any] = Field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()


class LineageRecord(Value):
    """One step in an item's life. ``derived_from`` holds the ids of the items it was made of."""

    timestamp: Time
    actor: Actor
    action: LineageAction
    notes: str = ""
    run_id: str = ""
    asset_key: str = ""
    source_revision: str = ""
    derived_from: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)


class Metadata(Value):
    """``ttl`` counts from ``updated_at``, is None for "until removed", and at most a thousand years."""

    title: str = Field(min_length=1)
    version: int = Field(default=1, ge=1)
    tags: tuple[str, ...] = ()
    pii_level: PiiLevel = PiiLevel.NONE
    confidentiality: Confidentiality
    ttl: timedelta | None = Field(le=timedelta(days=365_000))
    created_at: Time
    updated_at: Time
    lineage: tuple[LineageRecord, ...] = ()
    owner_id: str = ""
    checksum: str = ""


class Relation(Value):
    """``target`` is an item's id (only inside one source unit, so that none can dangle) or a reference by
    name: ``symbol:package.module.name``, ``path:src/app.py``, ``pull:123``, ``bug:PROJ-7``, ``commit:<sha>``,
    ``rule:<name>``. ``confidence`` is in 0..1."""

    type: str = Field(min_length=1)
    target: str = Field(min_length=1)
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)


class FeedbackCounters(Value):
    helpful: int = Field(default=0, ge=0)
    harmful: int = Field(default=0, ge=0)
    last_helpful_at: Time | None = None
    last_harmful_at: Time | None = None


class KnowledgeItem(Value):
    """One piece of knowledge. ``symbols`` are the names that it defines (what ``symbol:`` references find)."""

    id: str = Field(min_length=1)
    tenant: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    modality: Modality = Modality.TEXT
    source: Source
    payload: Payload
    metadata: Metadata
    relations: tuple[Relation, ...] = ()
    symbols: tuple[str, ...] = ()
    feedback: FeedbackCounters = FeedbackCounters()

    @cached_property
    def expires_at(self) -> datetime:
        ttl = self.metadata.ttl
        if ttl is None or ttl > NEVER - self.metadata.updated_at:
            return NEVER
        return self.metadata.updated_at + ttl


@lru_cache(maxsize=4_096)  # a connector asks for those that relations point to, and again for the items themselves
def item_id(tenant: str, connector: str, *natural_key: str) -> str:
    """A stable UUID of ``(tenant, connector, natural key)``. The parts are encoded as a JSON list first, so
    that ``("a", "bc")`` and ``("ab", "c")`` differ."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([tenant, connector, *natural_key], ensure_ascii=True)))


_CANONICAL: Final = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def id_bytes(id: str) -> bytes:
    """16 bytes that stand for an id: a UUID's own, else those of one that is derived from it."""
    if _CANONICAL.fullmatch(id):
        return bytes.fromhex(id.replace("-", ""))
    return uuid.uuid5(_NAMESPACE, json.dumps(["foreign", id])).bytes


def content_checksum(*parts: str | Iterable[str]) -> str:
    """SHA-256 (hex, 64 digits) over the parts, unambiguous in where one ends and the next begins."""
    pieces: list[bytes] = []
    for part in parts:
        data = (part if isinstance(part, str) else "\x1e".join(part)).encode("utf-8", "surrogatepass")
        pieces += (len(data).to_bytes(8, "big"), data)
    return hashlib.sha256(b"".join(pieces)).hexdigest()
