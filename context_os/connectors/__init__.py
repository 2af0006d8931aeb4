"""The seam for sources. One file per connector; each reads one kind of source and yields items.

A source is divided into **units** (a file, a pull request, a record file), each with a content hash.
``scan`` lists the units and their hashes without reading more than it must; ``read`` turns units into
items. A connector keeps no state: ingestion compares the listing with its ledger, asks for the units that
changed, and advances the ledger only after the store holds the result. File times are never consulted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from context_os.model import (
    Confidentiality,
    KnowledgeItem,
    Metadata,
    Modality,
    Payload,
    Relation,
    Source,
    content_checksum,
    item_id,
    utcnow,
)
from context_os.plugins import Plugin


@dataclass(frozen=True)
class Repository:
    """What to read: ``location`` is a working tree or a bare git directory. ``revision`` None means the
    working tree where there is one, else HEAD. ``name`` is how the repository is registered."""

    name: str
    location: Path
    tenant: str
    revision: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A record that could not become an item: why, and the raw text so that nothing is lost. ``key`` says where
    inside the unit (a line number, a bug id)."""

    key: str
    reasons: tuple[str, ...]
    raw: str


@dataclass(frozen=True)
class Unit:
    """One unit as read. ``notes`` are things a person should know that reject nothing (a syntax error)."""

    key: str
    hash: str
    items: tuple[KnowledgeItem, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """``units`` maps key to content hash. With ``complete`` False, units that are known but not listed still
    exist. ``revision`` is the commit that was listed ("" outside git; a working tree that differs from its
    commit ends in "+"). ``skipped`` counts what was left out, by reason. ``cursor`` is handed back next time."""

    revision: str
    units: Mapping[str, str]
    complete: bool = True
    skipped: Mapping[str, int] = field(default_factory=dict)
    cursor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What the ledger knows of a source: unit hashes, and the cursor of the last listing that was stored."""

    units: Mapping[str, str] = field(default_factory=dict)
    cursor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """One expectation of the gate on the rows of a batch, in Great Expectations' vocabulary but without it.

    ``type`` is the expectation's snake_case name, ``kwargs`` its arguments (``column``, ``regex``, ...), ``because``
    what to tell a person whose row failed. ``critical`` quarantines the row (or refuses the batch where no row can
    be named); otherwise it advises.
    """

    type: str
    kwargs: Mapping[str, Any]
    because: str
    critical: bool = True


class Connector(Plugin):
    """Contract of a connector. Subclasses set the class variables and implement ``scan`` and ``read``.

    ``version`` is raised whenever the same source would yield other items: everything is then read again.
    """

    domain: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    modality: ClassVar[Modality] = Modality.TEXT
    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
    expectations: ClassVar[tuple[Expectation, ...]] = ()
    transport: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how to reach the source and change nothing about the items."""
    foreign_ids: ClassVar[bool] = False
    """Whether items keep ids that others gave them, which may be taken in the tenant, instead of those of ``item``."""

    ttl: timedelta | None = None
    confidentiality: Confidentiality = Confidentiality.INTERNAL
    owner: str = ""

    def scan(self, repository: Repository, known: Known) -> Listing:
        """List the units. Raises SourceError; never returns half a listing as a complete one."""
        raise NotImplementedError

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        """Yield one Unit per key, in any order. Bad records become ``Rejected``, they do not raise."""
        raise NotImplementedError

    def concerns(self, path: str) -> bool:
        """Whether a commit that changes this file may change what ``scan`` lists; True where it cannot be told from
        the path, as for connectors that read the history itself."""
        return True

    def item(
        self,
        repository: Repository,
        natural_key: Sequence[str],
        *,
        kind: str,
        title: str,
        text: str,
        source: Source,
        structured: dict[str, Any] | None = None,
        relations: Sequence[Relation] = (),
        symbols: Sequence[str] = (),
        tags: Sequence[str] = (),
        owner: str = "",
        ttl: timedelta | str | None = "default",
        confidentiality: Confidentiality | None = None,
    ) -> KnowledgeItem:
        """An item with this connector's identity, time to live, confidentiality, owner and checksum.

        The checksum covers everything a reader sees and nothing that changes from run to run (times, lineage,
        revision): equal checksums mean there is nothing to write.
        """
        now = utcnow()
        structured = structured or {}
        life = self.ttl if ttl == "default" else ttl
        assert not isinstance(life, str)
        level = confidentiality or self.confidentiality
        return KnowledgeItem(
            id=item_id(repository.tenant, self.name, repository.name, *natural_key),
            tenant=repository.tenant,
            domain=self.domain,
            kind=kind,
            modality=self.modality,
            source=source,
            payload=Payload(text=text, structured=structured),
            relations=tuple(relations),
            symbols=tuple(symbols),
            metadata=Metadata(
                title=title,
                tags=tuple(tags),
                confidentiality=level,
                ttl=life,
                created_at=now,
                updated_at=now,
                owner_id=owner or self.owner,
                checksum=checksum_of(
                    kind, title, text, source, structured, relations, symbols, tags, owner or self.owner, level, life
                ),
            ),
        )


def checksum_of(
    kind: str,
    title: str,
    text: str,
    source: Source,
    structured: dict[str, Any],
    relations: Sequence[Relation],
    symbols: Sequence[str],
    tags: Sequence[str],
    owner: str,
    level: Confidentiality,
    ttl: timedelta | None,
) -> str:
    """SHA-256 over an item's content. See ``Connector.item``."""
    return content_checksum(
        kind,
        title,
        text,
        source.path,
        source.language,
        f"{source.start_line}-{source.end_line}",
        repr(sorted(structured.items())),
        (f"{r.type}>{r.target}>{r.confidence:.3f}" for r in relations),
        symbols,
        tags,
        owner,
        level.value,
        str(ttl),
    )
