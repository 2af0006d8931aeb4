"""Playbooks as files: the four formats that Agentic Context Engineering is met in (Zhang et al., arXiv 2510.04618).

``official``: ``## SECTION`` headings and lines ``[slug-00001] helpful=4 harmful=1 :: text``, as its authors publish it.
``plain``: the same without counters. ``playbook`` and ``skillbook``: JSON with ``bullets`` or ``skills`` by id, a list
of ids for each section, and times. Markdown with prose around the lines is read as ``official``.

Reading loses nothing silently: what is no bullet is a ``Problem`` with its raw text, what was settled is a note.
Writing loses nothing at all: what a format has no place for goes where its other readers do not look, a comment behind
the last line or a member ``contextOs`` beside the bullets. Other readers take a bullet for one line, so a text of
several lines is written as one, and its line ends stand in the comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, Field, PlainSerializer, ValidationError

from context_os.errors import ConfigurationError
from context_os.model import Time, Value, content_checksum

Form = Literal["official", "plain", "playbook", "skillbook"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)
_MOST: Final = 1_000_000_000


class Status(StrEnum):
    """``invalid`` bullets are kept for what they once said, and shown to nobody who asks for advice."""

    ACTIVE = "active"
    PENDING = "pending"
    INVALID = "invalid"


def _one_line(text: str) -> str:
    return " ".join(text.split())


Microseconds = Annotated[Time, PlainSerializer(datetime.isoformat, when_used="json")]
"""A time as others wrote it: to the microsecond."""


class Bullet(Value):
    """One lesson. ``about`` says which code it concerns, as relations name it (``path:src/**``, ``symbol:pkg.name``);
    ``origin`` names the traces and packs it was learned from, ``derived_from`` the bullets it was merged of. ``extra``
    keeps what another writer said and this one has no name for."""

    id: str = Field(pattern=r"^[^\s\[\]]+$", max_length=120)
    section: Annotated[str, AfterValidator(_one_line)] = ""
    content: Annotated[str, AfterValidator(str.strip)] = Field(max_length=50_000)
    helpful: int = Field(default=0, ge=0, le=_MOST)
    harmful: int = Field(default=0, ge=0, le=_MOST)
    neutral: int = Field(default=0, ge=0, le=_MOST)
    status: Status = Status.ACTIVE
    pinned: bool = False
    locked: bool = False
    tags: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    justification: str = ""
    evidence: str = ""
    sources: tuple[Any, ...] = ()
    origin: tuple[str, ...] = ()
    derived_from: tuple[str, ...] = ()
    created_at: Microseconds | None = None
    updated_at: Microseconds | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class Problem(Value):
    """What could not be read: where (a line or an id), why, and its raw text."""

    where: str
    reasons: tuple[str, ...]
    raw: str


class ReadPlaybook(Value):
    """``sections`` in their order, those without bullets too; ``extra`` are the other members of a JSON file."""

    format: Form
    bullets: tuple[Bullet, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)


def read(text: str | bytes, name: str = "playbook") -> ReadPlaybook:
    """A playbook in whichever of the formats; ``name`` is the file's, for the messages. Never raises for what a file
    holds.

    The same id again with the same text is one bullet with the greater counters; with another text it is kept under
    ``<id>x2``. Both are told in ``notes``.
    """
    reading = _Reading(name)
    text = reading.decoded(text).removeprefix("\ufeff").replace("\r\n", "\n")
    if text.lstrip()[:1] == "{" or (name.endswith(".json") and not text.strip()):
        return _read_json(text, reading)
    return _read_lines(text, reading)


def write(
    bullets: Sequence[Bullet],
    format: Form = "official",
    *,
    sections: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> str:
    """The text of a file that ``read`` gives these very bullets back for, grouped by section: those of ``sections``
    first, then the others as they come (JSON keeps their order too). Raises ConfigurationError for two bullets of one
    id."""
    ids = [bullet.id for bullet in bullets]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ConfigurationError(f"a playbook holds every id once, not: {', '.join(twice)}")
    grouped = _grouped(bullets, sections)
    if format in {"playbook", "skillbook"}:
        return _json_text(bullets, grouped, format, extra or {})
    return _line_text(grouped, format)


class _Reading:
    """What was found so far, and where."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bullets: dict[str, Bullet] = {}
        self.places: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.sections: dict[str, None] = {}

    def decoded(self, text: str | bytes) -> str:
        if isinstance(text, str):
            return text
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            self.problem(f"byte {error.start}", error.object[error.start : error.start + 40].hex(), "no UTF-8 here")
            return text.decode("utf-8", "replace")

    def problem(self, where: str, raw: str, *reasons: str) -> None:
        self.problems.append(Problem(where=f"{self.name}, {where}", reasons=reasons, raw=raw))

    def note(self, where: str, text: str) -> None:
        self.notes.append(f"{self.name}, {where}: {text}")

    def add(self, where: str, raw: str, fields: Mapping[str, Any]) -> None:
        try:
            bullet = Bullet.model_validate(fields)
        except ValidationError as error:
            self.problem(where, raw, *_complaints(error))
            return
        if not bullet.content:
            self.problem(where, raw, f"bullet {bullet.id} has no text; the file may be cut off here")
            return
        self.sections.setdefault(bullet.section)
        self._keep(where, bullet)

    def _keep(self, where: str, bullet: Bullet) -> None:
        number, id = 1, bullet.id
        while (other := self.bullets.get(id)) is not None and other.content != bullet.content:
            number += 1
            id = f"{bullet.id}x{number}"
        if other is not None:
            self.note(where, f"{bullet.id} again with the same text as {self.places[id]}: one bullet")
            counters = {each: max(getattr(other, each), getattr(bullet, each)) for each in _COUNTERS}
            self.bullets[id] = other.model_copy(update=counters)
            return
        if number > 1:
            self.note(where, f"{bullet.id} stands for another text at {self.places[bullet.id]}: kept as {id}")
        self.bullets[id] = bullet.model_copy(update={"id": id})
        self.places[id] = where

    def result(self, form: Form, extra: Mapping[str, Any] | None = None) -> ReadPlaybook:
        return ReadPlaybook(
            format=form,
            bullets=tuple(self.bullets.values()),
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            sections=tuple(section for section in self.sections if section),
            extra=dict(extra or {}),
        )


_COUNTERS: Final = ("helpful", "harmful", "neutral")


def _complaints(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_input=False, include_url=False):
        place = ".".join(str(part) for part in detail["loc"])
        yield f"{place}: {detail['msg'].removeprefix('Value error, ')}"


def _grouped(bullets: Sequence[Bullet], sections: Sequence[str]) -> dict[str, list[Bullet]]:
    grouped: dict[str, list[Bullet]] = {"": []}
    grouped |= {_one_line(section): [] for section in sections}
    for bullet in bullets:
        grouped.setdefault(bullet.section, []).append(bullet)
    return grouped


# Lines

_HEADING: Final = re.compile(r"#{1,6}[ \t]+(?P<text>\S.*)")
_FENCE: Final = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<rest>.*)")
_HEAD: Final = re.compile(r"(?:[-*+][ \t]+)?\[(?P<id>[^\s\[\]]+)\](?P<rest>.*)", re.DOTALL)
_COUNTED: Final = re.compile(
    r"\s*(?P<counters>(?:[,;]?\s*(?:helpful|harmful|neutral)\s*=\s*\d+)*)\s*::(?P<text>.*)", re.DOTALL | re.IGNORECASE
)
_COUNTER: Final = re.compile(r"(helpful|harmful|neutral)\s*=\s*(\d+)", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[ \t]+(?P<text>\S.*)", re.DOTALL)
_PLAIN_ID: Final = re.compile(r"(?:[\w.]+(?:-[\w.]+)*-)?\d+\w*")
"""Without ``::`` only what looks like an id begins a bullet: ``[x] done`` and ``[1.0] a release`` begin none."""
_BROKEN: Final = re.compile(r"\s*(?:h(?:elpful|armful)?|neutral)\s*=|.*\s::(?:\s|$)", re.IGNORECASE | re.DOTALL)
_UNCLOSED: Final = re.compile(r"\[(?:[\w.]+(?:-[\w.]+)*-)?\d*\w*$")
_COMPANION: Final = re.compile(r"<!-- context-os: (?P<json>.*)-->\s*")
_COMPANION_START: Final = "<!-- context-os:"


def _read_lines(text: str, reading: _Reading) -> ReadPlaybook:
    lines = text.split("\n")
    reader = _Lines(lines, reading)
    reader.run()
    if reading.bullets and lines[-1].strip() and not lines[-1].rstrip().endswith("-->"):
        reading.note(f"line {len(lines)}", "the last line has no end: if the file was cut off, so is its last bullet")
    _join_companion(reader.companion, reading)
    if text.strip() and not reading.bullets and not reading.problems:
        reading.note("all of it", "no line here is a bullet")
    return reading.result("official" if reader.counted or not reading.bullets else "plain")


class _Lines:
    """One pass over the lines. ``open`` is the bullet that further lines may belong to."""

    def __init__(self, lines: Sequence[str], reading: _Reading) -> None:
        self.lines = lines
        self.reading = reading
        self.section = ""
        self.counted = False
        self.companion: dict[str, Any] = {}
        self.open: _Open | None = None

    def run(self) -> None:
        at = self._front_matter()
        while at < len(self.lines):
            at = self._line(at)
        self._close()

    def _line(self, at: int) -> int:
        """Reads the line at this place; returns where to go on."""
        line = self.lines[at]
        if self.open is not None and self.open.takes(line):
            if line[:1].isspace() and _HEAD.match(line.strip()) and line.strip():
                self.reading.note(f"line {at + 1}", f"indented, so it is text of {self.open.id}")
            self.open.lines.append(line)
            return at + 1
        if not line.strip():
            if self.open is not None:
                self.open.lines.append("")
            return at + 1
        self._close()
        if fence := _FENCE.fullmatch(line):
            return self._fenced(at, fence["fence"])
        if line.startswith("<!--"):
            return self._comment(at)
        if heading := _HEADING.fullmatch(line.rstrip()):
            self.section = _one_line(heading["text"])
            if line.startswith("## "):
                self.reading.sections.setdefault(self.section)
        else:
            self._begin(at, line)
        return at + 1

    def _begin(self, at: int, line: str) -> None:
        where = f"line {at + 1}"
        head = _HEAD.fullmatch(line.strip())
        if head is None:
            if _UNCLOSED.fullmatch(line.strip()):
                self.reading.problem(where, line, "a bullet begins here and is cut off")
            return
        if counted := _COUNTED.fullmatch(head["rest"]):
            counters = {name.lower(): int(value[:12]) for name, value in _COUNTER.findall(counted["counters"])}
            self.counted = self.counted or bool(counters)
            self.open = _Open(head["id"], where, line, {**counters, "section": self.section}, counted["text"].strip())
        elif _BROKEN.match(head["rest"]):
            self.reading.problem(
                where, line, "neither `[id] helpful=N harmful=N :: text` nor `[id] text`, with N from 0 on"
            )
        elif _PLAIN_ID.fullmatch(head["id"]):
            if plain := _PLAIN.fullmatch(head["rest"]):
                self.open = _Open(head["id"], where, line, {"section": self.section}, plain["text"].strip())
            elif not head["rest"].strip():
                self.reading.problem(where, line, f"bullet {head['id']} has no text; the file may be cut off here")

    def _close(self) -> None:
        if self.open is not None:
            each = self.open
            self.reading.add(each.where, each.raw, {**each.fields, "id": each.id, "content": each.content})
        self.open = None

    def _front_matter(self) -> int:
        if self.lines[0].rstrip() != "---":
            return 0
        for at, line in enumerate(self.lines[1:], 1):
            if line.rstrip() in {"---", "..."}:
                self.reading.note(f"lines 1 to {at + 1}", "front matter, not read")
                return at + 1
            if _HEADING.fullmatch(line.rstrip()) or (_HEAD.match(line) and "::" in line):
                break
        self.reading.note("line 1", "--- begins front matter that has no end: read as text")
        return 1

    def _fenced(self, at: int, fence: str) -> int:
        for end in range(at + 1, len(self.lines)):
            closing = _FENCE.fullmatch(self.lines[end])
            if closing and closing["fence"].startswith(fence) and not closing["rest"].strip():
                return end + 1
        raw = "\n".join(self.lines[at:])
        self.reading.problem(f"lines {at + 1} to {len(self.lines)}", raw, f"{fence} opens a block that nothing closes")
        return len(self.lines)

    def _comment(self, at: int) -> int:
        end = next((n for n in range(at, len(self.lines)) if "-->" in self.lines[n]), len(self.lines))
        raw = "\n".join(self.lines[at : end + 1])
        where = f"line {at + 1}"
        if found := _COMPANION.fullmatch(raw):
            try:
                self.companion = dict(json.loads(found["json"]))
            except (ValueError, TypeError, RecursionError):
                self.reading.problem(where, raw, _LOST_COMPANION)
        elif raw.startswith(_COMPANION_START):
            self.reading.problem(where, raw, _LOST_COMPANION)
        elif end == len(self.lines):
            self.reading.problem(where, raw, "<!-- opens a comment that nothing closes")
        return end + 1


_LOST_COMPANION: Final = "the comment that holds times, status, tags and the like is damaged: not read"


class _Open:
    """A bullet whose end was not seen yet."""

    def __init__(self, id: str, where: str, raw: str, fields: dict[str, Any], text: str) -> None:
        self.id, self.where, self.first, self.fields, self.text = id, where, raw, fields, text
        self.lines: list[str] = []

    def takes(self, line: str) -> bool:
        """Indented lines always; others only right below, before an empty line and before anything else begins."""
        if not line.strip():
            return False
        if line[0] in " \t":
            return True
        if any(not each for each in self.lines) and (self.text or any(self.lines)):
            return False
        return not (
            _HEADING.match(line)
            or _FENCE.match(line)
            or _HEAD.match(line)
            or _UNCLOSED.fullmatch(line.strip())
            or line.startswith("<!--")
            or line.rstrip() in {"---", "***", "___"}
        )

    @property
    def raw(self) -> str:
        return "\n".join([self.first, *self.lines])

    @property
    def content(self) -> str:
        indents = [len(line) - len(line.lstrip(" \t")) for line in self.lines if line.strip()]
        cut = min(indents, default=0)
        return "\n".join([self.text, *(line[cut:].rstrip() for line in self.lines)]).strip()


def _line_text(grouped: Mapping[str, Sequence[Bullet]], format: str) -> str:
    parts = []
    for section, bullets in grouped.items():
        lines = [f"## {section}"] if section else []
        lines += [_line(bullet, format) for bullet in bullets]
        parts += ["\n".join(lines) + "\n"] if lines else []
    text = "\n".join(parts)
    companion = _companion([bullet for bullets in grouped.values() for bullet in bullets], text)
    return f"{text}\n{companion}\n" if companion else text


def _line(bullet: Bullet, format: str) -> str:
    counters = f" helpful={bullet.helpful} harmful={bullet.harmful} ::" if format == "official" else ""
    if format == "plain" and not _reads_plain(bullet):
        counters = " ::"
    return f"[{bullet.id}]{counters} {' '.join(bullet.content.split())}"


def _reads_plain(bullet: Bullet) -> bool:
    rest = f" {bullet.content}"
    return bool(_PLAIN_ID.fullmatch(bullet.id)) and not (_COUNTED.match(rest) or _BROKEN.match(rest))


def _companion(bullets: Iterable[Bullet], text: str) -> str:
    """Everything that the lines alone would not give back, by id."""
    seen = {each.id: each for each in read(text).bullets}
    told: dict[str, dict[str, Any]] = {}
    for bullet in bullets:
        was, is_now = (each.model_dump(mode="json", by_alias=True) for each in (seen[bullet.id], bullet))
        if missing := {name: value for name, value in is_now.items() if value != was[name]}:
            shown = {"shown": content_checksum(was["content"])} if "content" in missing else {}
            told[bullet.id] = {**missing, **shown}
    if not told:
        return ""
    packed = json.dumps({"format": 1, "bullets": told}, ensure_ascii=False, separators=(",", ":"))
    safe = packed.replace("<", "\\u003c").replace(">", "\\u003e")
    return f"{_COMPANION_START} {_ascii_breaks(safe)} -->"


def _ascii_breaks(packed: str) -> str:
    """Nothing in the comment may look like the end of a line to anybody."""
    return "".join(f"\\u{ord(each):04x}" if each in "\x7f\x85\u2028\u2029" else each for each in packed)


def _join_companion(companion: Mapping[str, Any], reading: _Reading) -> None:
    told = companion.get("bullets")
    for id, fields in told.items() if isinstance(told, dict) else ():
        bullet = reading.bullets.get(id)
        if bullet is None:
            reading.note("its comment", f"speaks of {id}, which no line shows any more")
            continue
        added = {key: value for key, value in fields.items() if key != "shown"} if isinstance(fields, dict) else {}
        if "content" in added and fields.get("shown") != content_checksum(bullet.content):
            added.pop("content")  # somebody edited the line since: what people see counts
        try:
            reading.bullets[id] = Bullet.model_validate({**bullet.model_dump(by_alias=True), **added})
        except ValidationError as error:
            reading.problem(f"its comment on {id}", json.dumps(fields), *_complaints(error))


# JSON

_NAMES: Final[Mapping[str, str]] = {"created_at": "createdAt", "updated_at": "updatedAt"}
_CLASSIC: Final = ("id", "section", "content", "helpful", "harmful", "neutral", "created_at", "updated_at")
_SKILL: Final = ("justification", "evidence", "status", "sources")
_OURS: Final = "contextOs"


_HALF: Final = re.compile("[\ud800-\udfff]")


class _CutError(Exception):
    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def _read_json(text: str, reading: _Reading) -> ReadPlaybook:
    cursor = _Cursor(text)
    found: dict[str, Any] = {}
    form: Form = "playbook"
    entries: list[tuple[str, Any, str]] = []
    try:
        for name in cursor.members():
            if name in {"bullets", "skills"} and cursor.next() == "{":
                form = "skillbook" if name == "skills" else "playbook"
                for key in cursor.members():
                    start = cursor.at
                    entries.append((key, cursor.value(), f"{key} in {cursor.line(start)}"))
            else:
                found[name] = cursor.value()
        cursor.end()
    except _CutError as error:
        reading.problem(cursor.line(error.at), text[error.at :], "no JSON from here on; what stands before it was read")
    sections = found.pop("sections", None)
    for section in sections if isinstance(sections, dict) else ():
        reading.sections.setdefault(_one_line(str(section)))
    for key, entry, where in entries:
        _read_entry(key, entry, where, reading)
    _join_companion(found.pop(_OURS, None) or {}, reading)
    if not entries and not reading.problems and not ({"next_id"} & set(found) or isinstance(sections, dict)):
        reading.problem("line 1", text, "this JSON holds neither `bullets` nor `skills`")
    found.pop("next_id", None)
    return reading.result(form, found)


def _read_entry(key: str, entry: Any, where: str, reading: _Reading) -> None:
    raw = json.dumps(entry)
    if not isinstance(entry, dict):
        reading.problem(where, raw, "a bullet is an object with `content`")
        return
    if _HALF.search(json.dumps(entry, ensure_ascii=False)):
        reading.problem(where, raw, "holds half a surrogate pair: that is no Unicode and cannot be stored")
        return
    fields = {_NAMES.get(name, name): value for name, value in entry.items() if name in (*_CLASSIC, *_SKILL)}
    if fields.setdefault("id", key) != key:
        reading.note(where, f"filed under {key}, called {fields['id']}: the latter counts")
    for name in _NAMES.values():
        fields[name] = _with_zone(fields.get(name))
    for name in ("justification", "evidence", "sources", "section"):
        if fields.get(name) is None:
            fields.pop(name, None)
    fields["extra"] = {name: value for name, value in entry.items() if name not in (*_CLASSIC, *_SKILL)}
    reading.add(where, raw, fields)


def _with_zone(time: Any) -> Any:
    """Times without a zone are meant in UTC: that is what the writers of these files use."""
    try:
        found = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        return time
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class _Cursor:
    """Reads JSON member by member, so that half a file gives what its first half holds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The character that comes next, behind white space; "" at the end."""
        while self.text[self.at : self.at + 1] and self.text[self.at] in " \t\n\r":
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _expect(self, *wanted: str) -> str:
        found = self.next()
        if not found or found not in wanted:
            raise _CutError(self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        start = self.at
        self.next()
        try:
            value, self.at = self._decoder.raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            raise _CutError(start) from None
        return value

    def members(self) -> Iterator[str]:
        """The names of an object's members; whoever asks reads each value before the next."""
        self._expect("{")
        if self.next() == "}":
            self.at += 1
            return
        while True:
            start = self.at
            if self.next() != '"':
                raise _CutError(start)
            name = str(self.value())
            try:
                self._expect(":")
                yield name
            except _CutError:
                raise _CutError(start) from None
            if self._expect(",", "}") == "}":
                return

    def end(self) -> None:
        if self.next():
            raise _CutError(self.at)

    def line(self, at: int) -> str:
        return f"line {self.text.count(chr(10), 0, at) + 1}"


def _json_text(
    bullets: Sequence[Bullet], grouped: Mapping[str, Sequence[Bullet]], format: str, extra: Mapping[str, Any]
) -> str:
    entries = {bullet.id: _entry(bullet, format) for bullet in bullets}
    document: dict[str, Any] = {
        "bullets" if format == "playbook" else "skills": entries,
        "sections": {name: [bullet.id for bullet in each] for name, each in grouped.items() if name or each},
        "next_id": max([len(bullets), *(_number(bullet.id) for bullet in bullets)]),
        **extra,
    }
    reading = _Reading("it")
    for id, entry in entries.items():
        _read_entry(id, entry, id, reading)
    told = {}
    for bullet in bullets:
        was, is_now = (each.model_dump(mode="json", by_alias=True) for each in (reading.bullets[bullet.id], bullet))
        if missing := {name: value for name, value in is_now.items() if value != was[name]}:
            told[bullet.id] = missing
    if told:
        document[_OURS] = {"format": 1, "bullets": told}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _entry(bullet: Bullet, format: str) -> dict[str, Any]:
    """Only members that the format's own readers know: they refuse others."""
    dump = bullet.model_dump(mode="json")
    names = [name for name in _CLASSIC if dump[name] is not None]
    if format == "skillbook":
        names += _SKILL
    elif bullet.status is not Status.ACTIVE:
        names += ["status"]
    return {name: dump[name] for name in names} | bullet.extra


def _number(id: str) -> int:
    digits = re.search(r"(\d{1,9})\w*$", id)
    return int(digits[1]) if digits else 0
