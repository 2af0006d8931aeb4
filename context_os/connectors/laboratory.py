"""What a laboratory left on its disk: its store, rules, events, snapshots and skills become items that keep their ids,
times, lineage and counters. Its lessons become bullets, which are for the playbook; its goldsets are only recognized.

The files of a laboratory are read together, because an id may stand in two of them: the same content again is one item,
another content under an id that is taken is refused, all of it. Nothing is ever taken away because a file is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import ValidationError

from context_os.connectors import Connector, Expectation, Known, Listing, Rejected, Repository, Unit
from context_os.connectors._laboratory import (
    TERMINAL,
    Document,
    Entry,
    EventRecord,
    Form,
    SkillRecord,
    SnapshotRecord,
    StoreRecord,
    checked,
    form_of,
    rule_name,
    unnamed,
)
from context_os.connectors._markdown import first_heading, split_front_matter
from context_os.connectors._records import BadYaml, load_yaml, text_faults
from context_os.connectors._rule_files import globs_of
from context_os.errors import SourceRefused
from context_os.model import (
    Actor,
    Attachment,
    Confidentiality,
    FeedbackCounters,
    KnowledgeItem,
    LineageAction,
    LineageRecord,
    Metadata,
    Modality,
    Payload,
    Relation,
    Source,
    content_checksum,
    utcnow,
)
from context_os.playbook_formats import Bullet
from context_os.playbook_formats import read as read_playbook

LARGEST: Final = 512 * 2**20
"""Bytes of a file that are read at most."""
BULLET: Final = "ace-bullet"
"""The tag of an item that is a lesson of a playbook."""

_SUFFIXES: Final = (".json", ".md", ".txt", ".yaml", ".yml")


@dataclass(frozen=True)
class Draft:
    """An entry of a file: the item or the ``bullet`` that it becomes, or ``reasons`` why it becomes none. ``place`` is
    where it stands, ``kind`` and ``tenant`` are what it says. ``same_as`` names another entry that says the same."""

    place: str
    raw: str
    kind: str
    tenant: str = ""
    item: KnowledgeItem | None = None
    bullet: Bullet | None = None
    reasons: tuple[str, ...] = ()
    same_as: str = ""


@dataclass(frozen=True)
class Part:
    """A file of a laboratory as read; ``form`` None is one that is not the laboratory's."""

    path: str
    form: Form | None
    drafts: tuple[Draft, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> tuple[KnowledgeItem, ...]:
        return tuple(each.item for each in self._accepted if each.item is not None and each.bullet is None)

    @property
    def lessons(self) -> tuple[Draft, ...]:
        """Those that become bullets."""
        return tuple(each for each in self._accepted if each.bullet is not None)

    @property
    def _accepted(self) -> Iterator[Draft]:
        return (each for each in self.drafts if not each.reasons and not each.same_as)

    def unit(self, hash: str) -> Unit:
        return Unit(
            self.path,
            hash,
            self.items,
            tuple(Rejected(each.place, each.reasons, _printable(each.raw)) for each in self.drafts if each.reasons),
            self.notes,
        )


class Laboratory(Connector):
    """``sources`` are a laboratory's folder or single files of it. Without any nothing is looked for, and what was
    migrated stays as it is: so it costs nothing to read every repository with this connector too.

    A laboratory that knows one tenant goes into the tenant of the repository, whatever it was called. Of one that knows
    several only the tenant of that very name is taken.
    """

    name: ClassVar[str] = "laboratory"
    domain: ClassVar[str] = "code"
    kinds: ClassVar[tuple[str, ...]] = ("rule", "event", "snapshot", "skill")
    summary: ClassVar[str] = "What a laboratory left on disk, once it is migrated"
    transport: ClassVar[frozenset[str]] = frozenset({"sources"})
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "source_type", "value_set": ["laboratory"]},
            "what is migrated is known by where it came from",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "unit", "regex": r"^/"},
            "a unit is a file of the laboratory by its absolute path",
        ),
    )
    foreign_ids: ClassVar[bool] = True

    sources: tuple[Path, ...] = ()

    def scan(self, repository: Repository, known: Known) -> Listing:
        digests = {str(path): _digest(path) for path in self._files()}
        whole = content_checksum(*(f"{path}:{digest}" for path, digest in digests.items()))[:16]
        return Listing("", {path: f"{digest}:{whole}" for path, digest in digests.items()}, complete=False)

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        wanted = set(keys)
        for part in self.parts(repository):
            if part.path in wanted:
                yield part.unit(listing.units[part.path])

    def concerns(self, path: str) -> bool:
        return False

    def parts(self, repository: Repository) -> list[Part]:
        """Every file that may be a laboratory's, in the order of their paths. Raises SourceRefused."""
        return _settled([self._part(path, repository) for path in self._files()], repository.tenant)

    def _files(self) -> list[Path]:
        return sorted({file for source in self.sources for file in _files_of(source.expanduser().resolve())})

    def _part(self, path: Path, repository: Repository) -> Part:
        text, problem = _read(path)
        if problem:
            return Part(str(path), "damaged", (Draft("file", text, "file", reasons=(problem,)),))
        form, value = form_of(str(path), text)
        if form == "damaged":
            damage = value.damage if isinstance(value, Document) else [Entry("file", text, reasons=(value,))]
            return Part(str(path), form, tuple(_damaged(each) for each in damage))
        if form == "playbook":
            return _playbook(path, text)
        if form == "goldset":
            return Part(str(path), form)  # no knowledge: the migration copies it
        drafts = _Reading(self, repository, path, text).drafts(form, value) if form else []
        return Part(str(path), form, tuple(drafts))


@dataclass(frozen=True)
class _Reading:
    """One file on its way to items."""

    connector: Laboratory
    repository: Repository
    path: Path
    text: str

    def drafts(self, form: Form, value: Any) -> list[Draft]:
        if form == "rule":
            return [self._rule()]
        damage = [_damaged(each) for each in value.damage] if isinstance(value, Document) else []
        return [*(self._draft(form, entry) for entry in self._entries(form, value)), *damage]

    def _entries(self, form: Form, value: Any) -> Iterator[Entry]:
        """The entries of a file that holds several, or the file as the only one."""
        if isinstance(value, Document):
            listed = value.entries.get({"store": "items", "events": "events"}.get(form, "snapshots"))
            listed = listed if listed is not None else value.entries.get("")
            if listed is not None:
                yield from listed
                return
            value = value.members
        if form != "skills":
            yield Entry("file", self.text, value)
        elif not isinstance(value["skills"], list):
            yield Entry("skills", self.text, reasons=("must be a list",))
        else:
            about = {key: each for key, each in value.items() if key != "skills"}
            for number, each in enumerate(value["skills"]):
                skill = {**each, "file": about} if isinstance(each, dict) else each
                yield Entry(f"skills[{number}]", json.dumps(each, ensure_ascii=False, default=str), skill)

    def _draft(self, form: Form, entry: Entry) -> Draft:
        if entry.reasons:
            return Draft(entry.place, entry.raw, _kind(form, entry.value), reasons=entry.reasons)
        makers = {"store": self._record, "events": self._event, "snapshot": self._snapshot, "skills": self._skill}
        return makers[form](entry)

    def _record(self, entry: Entry) -> Draft:
        value = {"id": entry.key, **entry.value} if entry.key and isinstance(entry.value, dict) else entry.value
        record, reasons = checked(StoreRecord, value)
        draft = Draft(entry.place, entry.raw, _kind("store", value), reasons=reasons)
        if record is None:
            return draft
        if entry.key and record.id != entry.key:
            return replace(draft, reasons=(f"id: {record.id!r} stands under the key {entry.key!r}",))
        is_rule = "rule" in record.metadata.tags and record.id.startswith("rule-")
        structured = dict(record.payload.structured)
        if is_rule:
            try:
                structured["applies_to"] = list(globs_of(structured.get("applies_to"))) or ["**"]
            except ValueError as error:
                return replace(draft, reasons=(f"payload.structured.applies_to: {error}",))
        item = self._item_of(record, "rule" if is_rule else record.kind, structured, value)
        item = self._migrated(item, entry.place)
        bullet = _bullet(item) if BULLET in item.metadata.tags else None
        return replace(draft, kind="lesson" if bullet else item.kind, tenant=record.tenant, item=item, bullet=bullet)

    def _item_of(
        self, record: StoreRecord, kind: str, structured: dict[str, Any], value: Mapping[str, Any]
    ) -> KnowledgeItem:
        source, metadata, feedback = record.source, record.metadata, record.feedback
        kept = {
            "source": value["source"],
            "kind": record.kind if kind != record.kind else "",
            "checksum": metadata.checksum,
            "members": {path: each for path, each in unnamed(record) if not path.startswith("source.")},
        }
        return KnowledgeItem(
            id=record.id,
            tenant=self.repository.tenant,
            domain=record.domain,
            kind=kind,
            modality=record.modality,
            source=Source(
                type=self.connector.name,
                location=source.location,
                accessor=source.accessor,
                revision=source.revision,
                repository=self.repository.name,
                metadata={"laboratory": {name: each for name, each in kept.items() if each}},
            ),
            payload=Payload(
                text=record.payload.text,
                structured=structured,
                attachments=tuple(
                    Attachment(name=each.name, media_type=each.media_type, location=each.location)
                    for each in record.payload.attachments
                ),
            ),
            metadata=Metadata(
                title=metadata.title,
                version=metadata.version,
                tags=tuple(metadata.tags),
                pii_level=metadata.pii_level,
                confidentiality=metadata.confidentiality,
                ttl=metadata.ttl_ms,
                created_at=metadata.created_at,
                updated_at=metadata.updated_at,
                lineage=tuple(
                    LineageRecord(
                        timestamp=each.timestamp,
                        actor=each.actor,
                        action=each.action,
                        notes=each.notes,
                        metadata=each.metadata,
                    )
                    for each in metadata.lineage
                ),
                owner_id=metadata.owner_id,
            ),
            relations=tuple(
                Relation(type=each.type, target=each.target, confidence=each.confidence) for each in record.relations
            ),
            symbols=tuple(record.symbols),
            feedback=FeedbackCounters(
                helpful=feedback.helpful,
                harmful=feedback.harmful,
                last_helpful_at=feedback.last_helpful_at,
                last_harmful_at=feedback.last_harmful_at,
            ),
        )

    def _migrated(self, item: KnowledgeItem, place: str) -> KnowledgeItem:
        """With a checksum over all that the laboratory said, and the record of where it was found."""
        checksum = item.metadata.checksum or content_checksum(self.connector.name, item.model_dump_json(by_alias=True))
        record = LineageRecord(
            timestamp=utcnow(),
            actor=Actor.INGESTION,
            action=LineageAction.MIGRATED,
            notes=f"from {place} of {self.path.name}",
            metadata={"file": str(self.path), "place": place},
        )
        metadata = item.metadata.model_copy(
            update={"checksum": checksum, "lineage": (*item.metadata.lineage, record)},
        )
        return item.model_copy(update={"metadata": metadata})

    def _made(
        self,
        place: str,
        id: str,
        *,
        kind: str,
        title: str,
        text: str,
        structured: dict[str, Any],
        tags: Sequence[str],
        domain: str = "",
        path: str = "",
        moment: datetime | None = None,
        checksum: str = "",
        relations: Sequence[Relation] = (),
    ) -> KnowledgeItem:
        """An item of what the laboratory did not keep as one. Without an ``id`` it is known by what it holds."""
        source = Source(type=self.connector.name, location=str(self.path), repository=self.repository.name, path=path)
        key = id or json.dumps(structured, sort_keys=True)
        item = self.connector.item(
            self.repository,
            (kind, key),
            kind=kind,
            title=title[:200],
            text=text,
            source=source,
            structured=structured,
            tags=tags,
            relations=relations,
        )
        times = {} if moment is None else {"created_at": moment, "updated_at": moment}
        metadata = item.metadata.model_copy(
            update={**times, **({"checksum": checksum} if checksum else {})},
        )
        changed = {"id": id or item.id, "domain": domain or item.domain, "metadata": metadata}
        return self._migrated(item.model_copy(update=changed), place)

    def _rule(self) -> Draft:
        name = rule_name(str(self.path))
        draft = Draft("file", self.text, "rule", reasons=tuple(text_faults(self.text, 100_000)))
        try:
            matter, body, _ = split_front_matter(self.text)
            header = load_yaml(matter) if matter else {}
            globs = list(_globs(header)) or ["**"]
        except (BadYaml, ValueError) as error:
            return replace(draft, reasons=(*draft.reasons, f"front matter: {error}"))
        if not body.strip():
            return replace(draft, reasons=(*draft.reasons, "holds no rule: the file is empty"))
        if draft.reasons:
            return draft
        item = self._made(
            "file",
            f"rule-{name}",
            kind="rule",
            title=first_heading(body) or name,
            text=self.text,
            structured={"applies_to": globs, "always_apply": True, "rule": f"rule-{name}"},
            tags=("rule", "code-review"),
            path=f"knowledge/rules/{self.path.name}",
            checksum=hashlib.sha256(self.text.encode()).hexdigest(),
            relations=[Relation(type="governs", target=f"path:{glob}") for glob in globs if glob[0] != "!"],
        )
        return replace(draft, item=item)

    def _event(self, entry: Entry) -> Draft:
        record, reasons = checked(EventRecord, entry.value)
        draft = Draft(entry.place, entry.raw, "event", reasons=reasons)
        if record is None:
            return draft
        if record.type.startswith("ACTION_") and not record.action:
            return replace(draft, reasons=("metadata.actionId: missing, so nobody can tell which action it is about",))
        about = f"{record.type} {record.action}".strip()
        item = self._made(
            entry.place,
            "",
            kind="event",
            title=about,
            text=f"{about} in session {record.session_id}\n{json.dumps(record.metadata, ensure_ascii=False)}",
            structured=entry.value,
            tags=("event", record.type),
            moment=record.timestamp,
        )
        item = item.model_copy(update={"modality": Modality.EVENT})
        return replace(draft, tenant=record.tenant_id, item=item)

    def _snapshot(self, entry: Entry) -> Draft:
        record, reasons = checked(SnapshotRecord, entry.value)
        draft = Draft(entry.place, entry.raw, "snapshot", reasons=reasons)
        if record is None:
            return draft
        item = self._made(
            entry.place,
            f"snapshot:{record.id}:{record.version}",
            kind="snapshot",
            title=f"{record.id}: configuration of {record.domain}, version {record.version}",
            text="\n\n".join(each.content for each in record.prompt_overrides),
            structured=entry.value,
            tags=("snapshot",),
            domain=record.domain,
        )
        return replace(draft, tenant=str(entry.value.get("tenant") or ""), item=item)

    def _skill(self, entry: Entry) -> Draft:
        record, reasons = checked(SkillRecord, entry.value)
        draft = Draft(entry.place, entry.raw, "skill", reasons=reasons)
        if record is None:
            return draft
        about = record.metadata
        item = self._made(
            entry.place,
            f"skill:{record.id}",
            kind="skill",
            title=about.title or record.id,
            text="\n\n".join(filter(None, (about.description, *(each.content for each in record.instructions)))),
            structured=entry.value,
            tags=("skill", *about.tags),
            domain=about.domain,
        )
        return replace(draft, item=item)


def _bullet(item: KnowledgeItem) -> Bullet | None:
    """A lesson of the store as a bullet of a playbook. None for one that a playbook cannot hold without loss: bullets
    are as open as the connector makes them, and never expire. It stays an item."""
    metadata, payload = item.metadata, item.payload
    if metadata.confidentiality is Confidentiality.RESTRICTED or metadata.ttl is not None:
        return None
    said = payload.structured.get("section")
    tags = [tag for tag in metadata.tags if tag != BULLET]
    try:
        return Bullet(
            id=item.id,
            section=said if isinstance(said, str) else next(iter(tags), ""),
            content=payload.text,
            helpful=item.feedback.helpful,
            harmful=item.feedback.harmful,
            tags=tuple(tags),
            about=tuple(each.target for each in item.relations),
            created_at=metadata.created_at,
            updated_at=metadata.updated_at,
            extra={"laboratory": item.model_dump(mode="json", by_alias=True, include=_BULLETS_ALSO)},
        )
    except ValidationError:
        return None


_BULLETS_ALSO: Final[Any] = {"source": True, "payload": {"structured"}, "metadata": {"title", "version", "lineage"}}
"""What of an item a bullet has no names for."""


def _playbook(path: Path, text: str) -> Part:
    found = read_playbook(text.encode("utf-8", "surrogateescape"), path.name)
    bullets = (Draft(each.id, each.model_dump_json(), "lesson", bullet=each) for each in found.bullets)
    problems = (Draft(each.where, each.raw, "lesson", reasons=each.reasons) for each in found.problems)
    return Part(str(path), "playbook", (*bullets, *problems), found.notes)


def _kind(form: Form, value: Any) -> str:
    """What an entry calls itself, also one that is refused."""
    said = value.get("kind") if isinstance(value, dict) else None
    if form == "store":
        return said if isinstance(said, str) and said.isprintable() and 0 < len(said) < 60 else "item"
    return {"events": "event", "skills": "skill"}.get(form, form)


def _damaged(each: Entry) -> Draft:
    return Draft(each.place, each.raw, "damage", reasons=each.reasons)


def _globs(header: Any) -> Iterable[str]:
    if not isinstance(header, dict):
        raise ValueError("must be a list of 'field: value'")
    found = next((header[name] for name in ("globs", "paths", "applyTo", "applies_to") if header.get(name)), None)
    globs: tuple[str, ...] = globs_of(found)
    return globs


# Files


def _files_of(source: Path) -> Iterator[Path]:
    """Without what is hidden and without following links, which may lead anywhere."""
    if source.is_file():
        yield source
    elif not source.is_dir():
        raise SourceRefused(f"{source} is neither a file nor a folder; name a laboratory's folder or one of its files")
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        paths = (Path(folder, name) for name in files if name.lower().endswith(_SUFFIXES))
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _digest(path: Path) -> str:
    """SHA-256 of the content; of the reason where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return content_checksum(str(error))


def _read(path: Path) -> tuple[str, str]:
    """``(text, problem)``. A byte that is no UTF-8 becomes half a surrogate pair: it costs the entry that it is in."""
    try:
        if path.stat().st_size > LARGEST:
            return "", f"{path.stat().st_size:,} bytes; at most {LARGEST:,} are read"
        data = path.read_bytes()
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), "the file is UTF-16; save it as UTF-8"
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"), ""


def _printable(text: str) -> str:
    """As it can be kept: bytes that are no UTF-8 are spelt out."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# What the files say together


def _settled(parts: Sequence[Part], tenant: str) -> list[Part]:
    parts = _of_tenant(parts, tenant)
    given: dict[str, list[tuple[Part, Draft]]] = defaultdict(list)
    for part in parts:
        for draft in part.drafts:
            if draft.item is not None and not draft.reasons:
                given[draft.item.id].append((part, draft))
    verdicts = {id(draft): judged for found in given.values() for draft, judged in _judged(found)}
    parts = [replace(part, drafts=tuple(verdicts.get(id(draft), draft) for draft in part.drafts)) for part in parts]
    return _with_unfinished(parts)


def _of_tenant(parts: Sequence[Part], tenant: str) -> list[Part]:
    named = {draft.tenant for part in parts for draft in part.drafts if draft.tenant}
    if len(named) < 2:
        return list(parts)

    def judged(draft: Draft) -> Draft:
        if draft.tenant in {"", tenant}:
            return draft
        reason = f"it belongs to the tenant {draft.tenant!r}; migrate that one by itself, with --tenant {draft.tenant}"
        return replace(draft, reasons=(reason,))

    return [replace(part, drafts=tuple(map(judged, part.drafts))) for part in parts]


def _judged(found: Sequence[tuple[Part, Draft]]) -> Iterator[tuple[Draft, Draft]]:
    """What becomes of entries with one id: the first counts where all say the same, none where they do not. A rule's
    file and its record say the same with the same text, and the record, which knows more, counts."""
    if len(found) < 2:
        return
    first = min(found, key=lambda each: each[0].form != "store")
    for part, draft in found:
        where = f"{first[1].place} of {first[0].path}"
        if draft is first[1]:
            continue
        if _same(part, draft, first[1]):
            yield draft, replace(draft, same_as=where)
        else:
            others = ", ".join(f"{each.place} of {place.path}" for place, each in found)
            reason = "the id stands here with different content"
            for _, each in found:
                yield each, replace(each, reasons=(f"{reason}: {others}",), same_as="")
            return


def _same(part: Part, one: Draft, other: Draft) -> bool:
    assert one.item is not None
    assert other.item is not None
    if part.form == "rule":
        return one.item.payload.text == other.item.payload.text
    return one.item.metadata.checksum == other.item.metadata.checksum


def _with_unfinished(parts: Sequence[Part]) -> list[Part]:
    """Notes on every action that was started and never ended."""
    ended: Counter[tuple[str, str, str]] = Counter()
    for _, key, type, _ in _actions(parts):
        ended[key] += type in TERMINAL
    notes: dict[str, list[str]] = defaultdict(list)
    for path, key, type, told in sorted(_actions(parts), key=lambda each: each[3]):
        if type == "ACTION_STARTED":
            ended[key] -= 1
            if ended[key] < 0:
                notes[path].append(f"the action {key[2]!r} of session {key[1]!r} was started and never ended ({told})")
    return [replace(part, notes=(*part.notes, *notes[part.path])) for part in parts]


def _actions(parts: Sequence[Part]) -> Iterator[tuple[str, tuple[str, str, str], str, str]]:
    for part in parts:
        for item in part.items if part.form == "events" else ():
            event = item.payload.structured
            action = str((event.get("metadata") or {}).get("actionId", ""))
            key = (str(event.get("tenantId") or ""), event["sessionId"], action)
            yield part.path, key, event["type"], f"{item.metadata.created_at:%Y-%m-%dT%H:%M:%SZ}"
