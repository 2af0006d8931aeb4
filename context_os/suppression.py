"""What was erased and must not come back: what ingestion keeps out, and what a restored backup leaves out.

The ledger remembers every erasure by keyed digests: who knows a name can ask whether it is meant, nobody reads it
there.
A repository, a source and a tenant are known by the digest of their names. A person is known by patterns (a name, an
address, a login); each is a row of words, and a text mentions the person where the words follow each other, whatever
their case and whatever stands between them (``Ada Lovelace``, ``ada.lovelace``, ``ada_lovelace``). Text is redacted; an
item that is *called* after the person (its path) or was said by them (a comment) goes as a whole.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, Literal

from context_os.connectors import Listing, Rejected, Unit
from context_os.errors import ConfigurationError, SourceRefused
from context_os.ledger import ErasureRow, Ledger
from context_os.model import Attachment, KnowledgeItem, Value, content_checksum

Kind = Literal["repository", "source", "tenant", "person"]

MARK: Final = "[erased]"
"""What stands in the place of a person."""
_WORD: Final = re.compile(r"[^\W_]+")
_BETWEEN: Final = 3
"""Characters between two words of a mention at most."""
_MOST_KNOWN: Final = 200_000


@dataclass(frozen=True)
class Erased:
    """One erasure. ``digests`` maps a digest to the number of its words (0 for a name that has to match as a whole);
    ``whole``: a person's mentions are deleted with all of their item."""

    receipt: str
    tenant: str
    kind: Kind
    salt: str
    digests: Mapping[str, int]
    at: datetime
    ids: frozenset[str] = frozenset()
    lifted: bool = False
    whole: bool = False
    _known: dict[tuple[str, ...], bool] = field(default_factory=dict, compare=False)

    @classmethod
    def new(
        cls, receipt: str, tenant: str, kind: Kind, names: Sequence[str], at: datetime, *, whole: bool = False
    ) -> Erased:
        """``names`` are the patterns of a person, the connector's and the repository's name of a source, or one name.
        Raises ConfigurationError for a pattern without a word."""
        salt = secrets.token_hex(16)
        if kind != "person":
            return cls(receipt, tenant, kind, salt, {_digest(salt, tuple(names)): 0}, at)
        rows = [_words(name) for name in names]
        if not all(rows):
            raise ConfigurationError("a pattern needs at least one letter or digit")
        return cls(receipt, tenant, kind, salt, {_digest(salt, row): len(row) for row in rows}, at, whole=whole)

    @classmethod
    def of(cls, row: ErasureRow) -> Erased:
        what = json.loads(row.what)
        kind: Kind = row.kind  # type: ignore[assignment]  # only ours are written
        lifted = row.lifted_at is not None
        return cls(
            row.receipt, row.tenant, kind, row.salt, what["digests"], row.at, frozenset(row.ids), lifted, what["whole"]
        )

    def row(self, ids: Iterable[str] = ()) -> ErasureRow:
        what = json.dumps({"digests": dict(self.digests), "whole": self.whole}, sort_keys=True)
        return ErasureRow(self.receipt, self.tenant, self.kind, self.salt, what, tuple(ids), self.at)

    def names(self, *names: str) -> bool:
        """Whether it is of this repository, of this ``connector, repository``, or of this tenant."""
        return self.kind != "person" and _digest(self.salt, names) in self.digests

    def covers(self, repository: str, connector: str) -> bool:
        """Whether it took everything that a connector made of a repository."""
        if self.kind == "tenant":
            return True
        return self.names(repository) if self.kind == "repository" else self.names(connector, repository)

    def mentions(self, text: str) -> bool:
        return self.kind == "person" and bool(self._spans(text))

    def fields(self, item: KnowledgeItem) -> list[str]:
        """Which of an item's fields mention the person."""
        return [name for name, value in _told(item).items() if self.mentions(_APART.join(_texts(value)))]

    def redacted(self, text: str) -> str:
        """The text with the mark in the place of every mention."""
        for start, end in reversed(self._spans(text)):
            text = f"{text[:start]}{MARK}{text[end:]}"
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        words = [(_folded(match[0]), match.start(), match.end()) for match in _WORD.finditer(text)]
        lengths = sorted(set(self.digests.values()), reverse=True)
        place = 0
        while place < len(words):
            length = next((length for length in lengths if self._meant(words[place : place + length], length)), 0)
            if length:
                found.append((words[place][1], words[place + length - 1][2]))
            place += length or 1
        return found

    def _meant(self, words: Sequence[tuple[str, int, int]], length: int) -> bool:
        if len(words) < length or any(after[1] - before[2] > _BETWEEN for before, after in pairwise(words)):
            return False
        key = tuple(word for word, _, _ in words)
        known = self._known.get(key)
        if known is None:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            known = self._known[key] = self.digests.get(_digest(self.salt, key)) == length
        return known


def _words(text: str) -> tuple[str, ...]:
    return tuple(_folded(word) for word in _WORD.findall(text))


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()


def _digest(salt: str, names: Sequence[str]) -> str:
    told = "\x1f".join(names).encode("utf-8", "surrogatepass")
    return hmac.new(bytes.fromhex(salt), told, hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True)
class Suppression:
    """A tenant's erasures that were not lifted, as ingestion applies them."""

    erased: tuple[Erased, ...]

    @property
    def receipts(self) -> frozenset[str]:
        return frozenset(each.receipt for each in self.erased)

    def check(self, repository: str) -> None:
        """Raises SourceRefused for what was erased as a whole."""
        for each in self.erased:
            if each.kind == "tenant" or (each.kind == "repository" and each.names(repository)):
                raise SourceRefused(
                    f"this {each.kind} was erased on {each.at:%Y-%m-%d %H:%M}; "
                    f"`context-os erase lift {each.receipt}` lets it be ingested again"
                )

    def listing(self, connector: str, repository: str, found: Listing) -> Listing:
        """What may be read of a source: nothing of one that was erased, no unit that is called after a person."""
        if any(each.kind == "source" and each.covers(repository, connector) for each in self.erased):
            return replace(found, units={}, complete=True, cursor={}, skipped={"erased": len(found.units)})
        kept = {key: hash for key, hash in found.units.items() if not self.mentions(key)}
        left = len(found.units) - len(kept)
        return replace(found, units=kept, skipped={**found.skipped, "erased": left}) if left else found

    def unit(self, unit: Unit) -> Unit:
        """What may be staged of a unit."""
        if not self._persons:
            return unit
        items = (self.item(item) for item in unit.items)
        return replace(
            unit,
            items=tuple(item for item in items if item is not None),
            rejected=tuple(self._rejected(each) for each in unit.rejected),
            notes=tuple(map(self.redacted, unit.notes)),
        )

    def item(self, item: KnowledgeItem) -> KnowledgeItem | None:
        """The item without its mentions, the very same where it has none, None where it has to go."""
        for each in self._persons:
            kept = _without(each, item)
            if kept is None:
                return None
            item = kept
        return item

    def redacted(self, text: str) -> str:
        for each in self._persons:
            text = each.redacted(text)
        return text

    def mentions(self, text: str) -> bool:
        return any(each.mentions(text) for each in self._persons)

    def _rejected(self, record: Rejected) -> Rejected:
        reasons = tuple(map(self.redacted, record.reasons))
        return Rejected(self.redacted(record.key), reasons, self.redacted(record.raw))

    @property
    def _persons(self) -> list[Erased]:
        return [each for each in self.erased if each.kind == "person"]


def _without(erased: Erased, item: KnowledgeItem) -> KnowledgeItem | None:
    source, payload, metadata = item.source, item.payload, item.metadata
    if not erased.mentions(_APART.join(_texts(_told(item)))):
        return item
    said = item.kind.endswith("comment") and erased.mentions(str(payload.structured.get("author", "")))
    if erased.whole or said or erased.mentions(source.path):
        return None
    kept = item.model_copy(
        update={
            "source": source.model_copy(update=_redacted_fields(erased, source, ("location", "metadata"))),
            "payload": payload.model_copy(
                update=_redacted_fields(erased, payload, ("text", "structured", "attachments"))
            ),
            "relations": tuple(each for each in item.relations if not erased.mentions(each.target)),
            "symbols": tuple(each for each in item.symbols if not erased.mentions(each)),
            "metadata": metadata.model_copy(
                update={
                    **_redacted_fields(erased, metadata, ("title", "owner_id")),
                    "tags": tuple(each for each in metadata.tags if not erased.mentions(each)),
                    "lineage": tuple(
                        each.model_copy(update=_redacted_fields(erased, each, ("notes", "metadata")))
                        for each in metadata.lineage
                    ),
                    "checksum": "",
                }
            ),
        }
    )
    checksum = content_checksum("redacted", kept.model_dump_json(include=_CONTENT))
    return kept.model_copy(update={"metadata": kept.metadata.model_copy(update={"checksum": checksum})})


_APART: Final = "\n" * (_BETWEEN + 1)
_CONTENT: Final[Any] = {
    "kind": True,
    "source": {"path", "language", "start_line", "end_line"},
    "payload": True,
    "relations": True,
    "symbols": True,
    "metadata": {"title", "tags", "owner_id", "confidentiality"},
}
"""What says what an item is, whenever it was read: an equal reading has to have an equal checksum."""


def _told(item: KnowledgeItem) -> dict[str, Any]:
    """What of an item may mention somebody, by the field's name."""
    source, payload, metadata = item.source, item.payload, item.metadata
    return {
        "path": source.path,
        "title": metadata.title,
        "owner": metadata.owner_id,
        "author": payload.structured.get("author"),
        "text": payload.text,
        "structured": payload.structured,
        "attachments": [[each.name, each.location] for each in payload.attachments],
        "tags": metadata.tags,
        "symbols": item.symbols,
        "relations": [each.target for each in item.relations],
        "source": [source.location, source.metadata],
        "lineage": [[each.notes, each.metadata] for each in metadata.lineage],
    }


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from map(str, value)
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


def _redacted_fields(erased: Erased, value: Value, names: Sequence[str]) -> dict[str, Any]:
    return {name: _redacted(erased, getattr(value, name)) for name in names}


def _redacted(erased: Erased, value: Any) -> Any:
    if isinstance(value, str):
        return erased.redacted(value)
    if isinstance(value, list | tuple):
        return type(value)(_redacted(erased, each) for each in value)
    if isinstance(value, dict):
        return {erased.redacted(key): _redacted(erased, each) for key, each in value.items()}
    if isinstance(value, Attachment):
        return value.model_copy(update=_redacted_fields(erased, value, ("name", "location")))
    return value


@dataclass(frozen=True)
class Erasures:
    """The erasures that a ledger remembers."""

    ledger: Ledger

    def of(self, tenant: str) -> list[Erased]:
        return [Erased.of(row) for row in self.ledger.erasures(tenant)]

    def suppression(self, tenant: str) -> Suppression:
        return Suppression(tuple(each for each in self.of(tenant) if not each.lifted))

    def restored(self, tenant: str) -> Callable[[KnowledgeItem], KnowledgeItem | None]:
        """What a restore may bring back of an item from before: itself, itself without a person, or None. What was
        written after an erasure was ingested anew, and lifted by whoever did that."""
        everything = self.of(tenant)

        def allowed(item: KnowledgeItem) -> KnowledgeItem | None:
            earlier = [each for each in everything if item.metadata.updated_at <= each.at]
            if any(item.id in each.ids or _covers(each, item) for each in earlier):
                return None
            return Suppression(tuple(earlier)).item(item)

        return allowed

    def predicate(self, tenant: str) -> Callable[[KnowledgeItem], bool]:
        """Whether an item, as it is, was erased: a restore must not write it. ``restored`` gives the redacted form of
        one that only mentioned somebody."""
        allowed = self.restored(tenant)
        return lambda item: allowed(item) is not item


def _covers(erased: Erased, item: KnowledgeItem) -> bool:
    return erased.kind != "person" and erased.covers(item.source.repository, item.source.type)
