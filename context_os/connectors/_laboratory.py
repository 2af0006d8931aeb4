"""What the laboratory wrote to its disk: which file is what, its JSON entry by entry, and what an entry must be.

An entry that is damaged or wrong costs nobody but itself: its end is looked for by its brackets, and what stands
behind it is read on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from context_os.connectors._records import BadYaml, after_blank, faults, kind_of, load_yaml, next_value
from context_os.model import Actor, Confidentiality, LineageAction, Modality, PiiLevel, utcnow

Form = Literal["store", "rule", "events", "snapshot", "skills", "playbook", "goldset", "damaged"]

LONGEST_TEXT: Final = 2_000_000
"""Characters of any one text; the gate takes no more either."""
LONGEST_OVERRIDE: Final = 2_000
"""Characters of one override of a prompt."""

_RULE: Final = re.compile(r"(?:^|/)knowledge/rules/(?P<name>[^/]+)\.md\Z")
_BULLET: Final = re.compile(r"^\s*(?:[-*]\s+)?\[[^\s\[\]]*\d\](?:\s+helpful=\d+|\s+\S)", re.MULTILINE)
_FENCED: Final = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_COLLECTIONS: Final = ("items", "events", "snapshots")
_OVERRIDES: Final = "v2PromptOverrides"


@dataclass(frozen=True)
class Entry:
    """A value as it stands in a file. ``place`` says where (``items[3]``, ``items["a"]``), ``key`` is its name there,
    ``raw`` its text, and ``reasons`` what is already wrong with it."""

    place: str
    raw: str
    value: Any = None
    key: str = ""
    reasons: tuple[str, ...] = ()


@dataclass
class Document:
    """A JSON file: the members of its object, the entries of those that are collections, and what is damaged."""

    members: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    damage: list[Entry] = field(default_factory=list)


def read_document(text: str) -> Document:
    """Never raises: what stands before and behind a damage is there, and the damage is told."""
    walk = _Walk(text)
    document = Document(damage=walk.damage)
    if text[walk.at : walk.at + 1] == "[":
        document.entries[""] = list(walk.entries("entries"))
    elif text[walk.at : walk.at + 1] == "{":
        for member in walk.members("file"):
            _read_member(walk, member.key, document)
    else:
        walk.stop("file", "not JSON: neither an object nor a list begins here")
    if text[walk.at :].strip():
        walk.stop("end of the file", "something follows")
    return document


def _read_member(walk: _Walk, name: str, document: Document) -> None:
    if name in _COLLECTIONS and walk.opens():
        document.entries.setdefault(name, []).extend(walk.entries(name))
        return
    found = walk.value(name)
    if found is not None:
        document.members[name] = found.value
        walk.damage += [found] if found.reasons else []


_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_SCALAR: Final = re.compile(r"[^,\]}]*")


class _Walk:
    """Goes through a JSON text; ``at`` is where. ``damage`` is what belongs to no entry, or cannot be told apart."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = after_blank(text, 0)
        self.damage: list[Entry] = []

    def opens(self) -> bool:
        return self.text[self.at : self.at + 1] in {"{", "["}

    def stop(self, place: str, *reasons: str) -> None:
        self.damage.append(Entry(place, self.text[self.at :], reasons=reasons))
        self.at = len(self.text)

    def entries(self, name: str) -> Iterator[Entry]:
        """Of the list or the object that opens here."""
        if self.text[self.at] == "{":
            found = ((member.key, self.value(member.place)) for member in self.members(name))
        else:
            found = (("", self.value(f"{name}[{number}]")) for number in self._separated(name, "]"))
        yield from (replace(entry, key=key) for key, entry in found if entry is not None)

    def members(self, name: str) -> Iterator[Entry]:
        """The keys of the object that opens here; the caller takes each value before it asks for the next."""
        for _ in self._separated(name, "}"):
            key, end = next_value(self.text, self.at, name)
            colon = after_blank(self.text, end) if end is not None else len(self.text)
            if not isinstance(key.value, str) or self.text[colon : colon + 1] != ":":
                self.stop(f"inside {name}", "the object is broken or cut off: no key and colon stand here")
                return
            self.at = after_blank(self.text, colon + 1)
            yield Entry(f"{name}[{_quoted(key.value)}]", "", key=key.value)

    def value(self, place: str) -> Entry | None:
        """What stands here. What is broken is passed over by its brackets; None where they do not close."""
        start = self.at
        parsed, end = next_value(self.text, start, place)
        if end is None:
            end = self._behind(start)
        if end is None:
            self.stop(place, *parsed.reasons)
            return None
        self.at = end
        return Entry(place, self.text[start:end], parsed.value, reasons=parsed.reasons)

    def _separated(self, name: str, closing: str) -> Iterator[int]:
        """The number of each value, with ``at`` on its beginning, up to the closing bracket."""
        self.at = after_blank(self.text, self.at + 1)
        number = 0
        while self.text[self.at : self.at + 1] not in {closing, ""}:
            yield number
            number += 1
            self.at = after_blank(self.text, self.at)
            following = self.text[self.at : self.at + 1]
            if following == ",":
                self.at = after_blank(self.text, self.at + 1)
            elif following not in {closing, ""}:
                self.stop(f"inside {name}", f"broken behind entry {number}: a comma or {closing} must follow")
        if self.at >= len(self.text) and not self.damage:
            self.stop(f"inside {name}", f"cut off behind entry {number}: {closing} is missing")
        self.at = after_blank(self.text, self.at + 1)

    def _behind(self, start: int) -> int | None:
        """Where the value ends by its brackets, None where they do not close."""
        if self.text[start : start + 1] not in {"{", "["}:
            found = _SCALAR.match(self.text, start)
            return found.end() if found and start < found.end() < len(self.text) else None
        depth = 0
        for token in _TOKEN.finditer(self.text, start):
            depth += (token[0] in "{[") - (token[0] in "}]")
            if not depth:
                return token.end()
        return None


def _quoted(key: str) -> str:
    shown = key if len(key) <= 80 else key[:79] + "…"
    return '"' + shown.replace('"', "'") + '"'


def form_of(path: str, text: str) -> tuple[Form | None, Any]:
    """Which of the laboratory's files it is, and what was read to find out: a Document, or the value of its YAML. None
    for what is none of them."""
    if _RULE.search(path):
        return "rule", None
    if path.lower().endswith((".md", ".txt")):
        return ("playbook" if _BULLET.search(_FENCED.sub("", text)) else None), None
    if path.lower().endswith((".yaml", ".yml")):
        return _form_of_yaml(text)
    document = read_document(text)
    return _form_of_document(document), document


def rule_name(path: str) -> str:
    """Of ``knowledge/rules/<name>.md``."""
    found = _RULE.search(path)
    assert found is not None
    return found["name"]


def _form_of_yaml(text: str) -> tuple[Form | None, Any]:
    try:
        value = load_yaml(text, typed=True)
    except BadYaml as error:
        known = re.search(r"^(?:skills|promptOverrides)\s*:", text, re.MULTILINE)
        return ("damaged" if known else None), str(error)
    if isinstance(value, dict) and "skills" in value:
        return "skills", value
    return ("snapshot" if isinstance(value, dict) and _is_snapshot(value) else None), value


def _form_of_document(document: Document) -> Form | None:
    members, listed = document.members, document.entries.get("", [])
    snapshots = any(isinstance(entry.value, dict) and _is_snapshot(entry.value) for entry in listed)
    signs: tuple[tuple[Form, bool], ...] = (
        ("store", "items" in document.entries),
        ("events", "events" in document.entries),
        ("goldset", "cases" in members),
        ("playbook", "bullets" in members or isinstance(members.get("skills"), dict)),
        ("skills", "skills" in members),
        ("snapshot", snapshots or "snapshots" in document.entries or _is_snapshot(members)),
        ("damaged", bool(document.damage)),
    )
    return next((form for form, there in signs if there), None)


def _is_snapshot(value: Mapping[str, Any]) -> bool:
    return "promptOverrides" in value or _OVERRIDES in value or {"id", "domain", "version", "config"} <= value.keys()


# What an entry must be


def _moment(value: Any) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        shown = value if isinstance(value, float) else kind_of(value)
        raise ValueError(f"must be a time in whole milliseconds since 1970, it is {shown}")
    if value < 0:
        raise ValueError(f"{str(value)[:40]} lies before 1970")
    if value < _EARLIEST:
        raise ValueError(f"{value} would be in 1970-73: are these seconds? Times are in milliseconds")
    if value > (utcnow() - _EPOCH + timedelta(days=1)) / timedelta(milliseconds=1):
        raise ValueError(f"{str(value)[:40]} lies in the future; times are in milliseconds since 1970")
    return _EPOCH + timedelta(milliseconds=int(value))


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST: Final = 100_000_000_000
"""Milliseconds: in 1973. What is below was counted in seconds, or never set."""


def _ttl(value: Any) -> timedelta:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _LONGEST_TTL:
        raise ValueError(f"must be null or 1 to {_LONGEST_TTL} milliseconds, it is {str(value)[:40]}")
    return timedelta(milliseconds=value)


_LONGEST_TTL: Final = 365_000 * 86_400_000


def _count(value: Any) -> int:
    whole = not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1
    if not whole or not 0 <= value <= _MOST:
        raise ValueError(f"must be a whole number from 0 to {_MOST}, it is {str(value)[:40]}")
    return int(value)


_MOST: Final = 1_000_000_000
_E = TypeVar("_E", bound=StrEnum)


def _one_of(levels: type[_E]) -> Callable[[Any], _E]:
    def chosen(value: Any) -> _E:
        if value not in list(levels):
            raise ValueError(f"must be one of {', '.join(levels)}, it is {str(value)[:40]!r}")
        return levels(value)

    return chosen


_ID: Final = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,198}[^\s\x00-\x1f\x7f])?")


def _id(value: Any) -> Any:
    if isinstance(value, str) and not _ID.fullmatch(value):
        raise ValueError("must have 1 to 200 characters, no control characters, no space at its ends")
    return value


def _override(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_OVERRIDE:
        raise ValueError(f"{len(value):,} characters; an override has at most {LONGEST_OVERRIDE:,}")
    return value


Moment = Annotated[datetime, BeforeValidator(_moment)]
Count = Annotated[int, BeforeValidator(_count)]
Id = Annotated[str, BeforeValidator(_id)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Override = Annotated[str, BeforeValidator(_override)]


class _Part(BaseModel):
    """A member that is null counts as not given; one that has no name here is kept (``model_extra``)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


class _Source(_Part):
    type: Name
    location: str = ""
    accessor: str = ""
    revision: str = ""


class _Attachment(_Part):
    name: str
    media_type: str = ""
    location: str


class _Payload(_Part):
    text: str
    structured: dict[str, Any] = {}
    attachments: list[_Attachment] = []


class _Lineage(_Part):
    timestamp: Moment
    actor: Annotated[Actor, BeforeValidator(_one_of(Actor))]
    action: Annotated[LineageAction, BeforeValidator(_one_of(LineageAction))]
    notes: str = ""
    metadata: dict[str, Any] = {}


class _Metadata(_Part):
    title: Annotated[str, Field(min_length=1, max_length=1_000)]
    version: Annotated[Count, Field(ge=1)] = 1
    tags: list[str] = []
    pii_level: Annotated[PiiLevel, BeforeValidator(_one_of(PiiLevel))] = PiiLevel.NONE
    confidentiality: Annotated[Confidentiality, BeforeValidator(_one_of(Confidentiality))]
    ttl_ms: Annotated[timedelta | None, BeforeValidator(_ttl)] = None
    created_at: Moment
    updated_at: Moment
    lineage: list[_Lineage] = []
    owner_id: str = ""
    checksum: str = ""


class _Relation(_Part):
    type: Name
    target: Annotated[str, Field(min_length=1)]
    confidence: Annotated[float, Field(ge=0, le=1, strict=False)] = 1.0


class _Feedback(_Part):
    helpful: Count = 0
    harmful: Count = 0
    last_helpful_at: Moment | None = None
    last_harmful_at: Moment | None = None


class StoreRecord(_Part):
    """An item of ``store.json``."""

    id: Id
    tenant: str = ""
    domain: Name
    kind: Name
    modality: Annotated[Modality, BeforeValidator(_one_of(Modality))] = Modality.TEXT
    source: _Source
    payload: _Payload
    metadata: _Metadata
    relations: list[_Relation] = []
    symbols: list[str] = []
    feedback: _Feedback = _Feedback()


EVENTS: Final = frozenset(
    {"SELECTION", "DELIVERY", "UPDATE", "ERROR"}
    | {f"ACTION_{step}" for step in ("STARTED", "COMPLETED", "FAILED", "DENIED", "RETRIED", "SKIPPED", "CANCELLED")}
    | {"ACTION_APPROVAL_REQUESTED", "ACTION_APPROVAL_RESOLVED"}
)
TERMINAL: Final = frozenset(f"ACTION_{step}" for step in ("COMPLETED", "FAILED", "DENIED", "SKIPPED", "CANCELLED"))
"""What ends an action that was started."""


def _event_type(value: Any) -> Any:
    if isinstance(value, str) and value not in EVENTS and not re.fullmatch(r"INGESTION_[A-Z_]+", value):
        raise ValueError(f"no event is called {value[:40]!r}")
    return value


class EventRecord(_Part):
    type: Annotated[str, BeforeValidator(_event_type)]
    session_id: Name
    tenant_id: str = ""
    timestamp: Moment
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)] | None = None
    metadata: dict[str, Any] = {}

    @property
    def action(self) -> str:
        """ "" for what is no action's."""
        return str(self.metadata.get("actionId", ""))


class _Tool(_Part):
    mcp_id: Name
    tool_name: Name


class _Instruction(_Part):
    id: Name
    role: str = ""
    scope: str = ""
    content: Override


class _PromptOverride(_Instruction):
    required_tools: list[_Tool] = []
    required_actions: list[Any] = []
    dependencies: list[Any] = []


class _Action(_Part):
    id: Name
    type: Literal["mcp", "workflow", "internal", "http"]
    trigger: Literal["pre_core", "pre_delivery", "post_delivery", "async", "background"] | None = None


class SnapshotRecord(_Part):
    """A domain's configuration as saved."""

    id: Name
    domain: Name
    version: str | int
    config: dict[str, Any] = {}
    prompt_overrides: list[_PromptOverride] = []
    actions: list[_Action] = []


class _SkillMetadata(_Part):
    title: str = ""
    description: str = ""
    version: str | int = ""
    domain: str = ""
    tags: list[str] = []


class _Required(_Part):
    description: str = ""
    action: Any = None


class SkillRecord(_Part):
    id: Name
    metadata: _SkillMetadata = _SkillMetadata()
    instructions: list[_Instruction] = []
    required_tools: list[_Tool | str] = []
    required_actions: list[_Required] = []
    resources: list[Any] = []


_R = TypeVar("_R", bound=_Part)


def checked(kind: type[_R], value: Any) -> tuple[_R | None, tuple[str, ...]]:
    """The entry as what it must be, or every reason why it is not, each with the path inside the entry."""
    reasons = tuple(faults(value, "", LONGEST_TEXT))
    if not isinstance(value, dict):
        return None, (f"must be an object, it is {kind_of(value)}",)
    if kind in {SnapshotRecord, SkillRecord}:
        reasons += tuple(_long_overrides(value))
    try:
        record = kind.model_validate(value)
    except ValidationError as error:
        return None, (*reasons, *_complaints(error))
    return (None, reasons) if reasons else (record, ())


def _complaints(error: ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in each["loc"]).lstrip(".")
        if each["type"] == "missing":
            yield f"{where}: missing"
        elif each["type"].endswith("_type"):
            wanted = each["msg"].removeprefix("Input should be ").replace("dictionary", "object")
            yield f"{where}: must be {wanted}, it is {kind_of(each['input'])}"
        else:
            yield f"{where}: {each['msg'].removeprefix('Value error, ')}"


def _long_overrides(value: Mapping[str, Any]) -> Iterator[str]:
    """Of the plain overrides, wherever they stand in the configuration."""
    waiting: list[tuple[str, Any, bool]] = [("", value, False)]
    while waiting:
        where, each, override = waiting.pop()
        if override and isinstance(each, str) and len(each) > LONGEST_OVERRIDE:
            yield f"{where}: {len(each):,} characters; an override has at most {LONGEST_OVERRIDE:,}"
        pairs: Sequence[tuple[Any, Any]] = (
            list(each.items()) if isinstance(each, dict) else list(enumerate(each)) if isinstance(each, list) else []
        )
        for key, inner in pairs:
            place = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}".lstrip(".")
            waiting.append((place, inner, override or key == _OVERRIDES))


def unnamed(part: BaseModel, where: str = "") -> Iterator[tuple[str, Any]]:
    """The members that have no name here, each with its path."""
    for name, value in (part.model_extra or {}).items():
        yield f"{where}{name}", value
    for name in type(part).model_fields:
        value = getattr(part, name)
        listed = enumerate(value) if isinstance(value, list) else [(None, value)]
        for number, each in listed:
            if isinstance(each, BaseModel):
                yield from unnamed(each, f"{where}{to_camel(name)}{'' if number is None else f'[{number}]'}.")
