"""Records of past bugs (BugSpecs): what was seen, why it happened, what fixed it and what keeps it from coming back.

Read from Markdown with YAML front matter, JSON (one record, a list, or ``{"bugs": [...]}``) and JSON Lines. Field names
may be snake_case, camelCase or words, nested (``fix.commit``) or flat (``fixCommit``); ``ALIASES`` lists the spellings,
BugsInPy's (https://github.com/soarsmu/BugsInPy) among them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from context_os.connectors import Connector, Expectation, Known, Listing, Rejected, Repository, Unit
from context_os.connectors._files import Files, decode
from context_os.connectors._markdown import first_heading, sections, split_front_matter
from context_os.connectors._patches import patch_targets
from context_os.connectors._records import (
    RECORD_PATHS,
    Parsed,
    faults,
    is_record_file,
    json_lines,
    json_records,
    kind_of,
    load_yaml,
    snake,
    text_faults,
)
from context_os.model import NEVER, KnowledgeItem, Relation, Source, Value
from context_os.scope import valid_glob

LONGEST_TEXT: Final = 50_000
"""Characters of any one text of a record, but for its patch; a longer one is refused."""

LONGEST_PATCH: Final = 1_000_000
KEPT_PATCH: Final = 20_000
"""Characters. A patch up to the first is read for its files and functions; the item keeps it up to the second."""

_SHOWN_LOG: Final = 4_000
_MOST_ENTRIES: Final = 500
_LONGEST_LABEL: Final = 200

CLOSED: Final = frozenset(
    {"closed", "completed", "done", "duplicate", "fixed", "invalid", "rejected", "released", "resolved", "verified"}
    | {"wontfix", "won t fix"}
)
"""Statuses, or their first words, that end a bug. Any other, or none, leaves it open."""

ALIASES: Final[Mapping[str, str]] = {
    alias: target
    for target, aliases in {
        "bug_id": "id bug key",
        "title": "name headline",
        "repository": "repo",
        "service": "component",
        "status": "state",
        "owners": "owner owner_id",
        "details": "description body",
        "opened_at": "opened created created_at reported reported_at",
        "closed_at": "closed closed_on closing_date resolved_at",
        "business_rule": "business_rule_violated violated_rule violated_business_rule rule_violated",
        "root_cause": "cause",
        "links": "link urls url references",
        "symptoms.summary": "symptom symptom_summary summary",
        "symptoms.logs": "logs symptom_logs",
        "symptoms.alerts": "alerts symptom_alerts",
        "related.bugs": "related_bug related_bug_ids",
        "related.releases": "releases release affected_releases",
        "fix.commit": "fixed_commit commit commit_sha",
        "fix.buggy_commit": "buggy_commit",
        "fix.summary": "fix_message resolution",
        "fix.files": "files changed_files",
        "fix.functions": "functions",
        "fix.tests": "tests test_file test_files",
        "fix.test_commands": "run_test test_command",
        "fix.manual_steps": "manual_steps",
        "fix.patch": "patch diff",
        "prevention.flags": "flags feature_flags",
        "prevention.notes": "",
    }.items()
    for alias in aliases.split()
}
"""Other spellings of a field -> the field. Beside these, ``fix_commit`` is ``fix.commit`` for every nested field, and a
text or a list in place of a nested part is its main field (``symptoms: "..."``)."""

_MAIN: Final = {"symptoms": "summary", "related": "bugs", "fix": "summary", "prevention": "notes"}


def _prose(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"must be text, it is {kind_of(value)}")
    return value.strip()


def _short(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _prose(value)
    if len(text) > _LONGEST_LABEL:
        raise ValueError(f"{len(text):,} characters; at most {_LONGEST_LABEL} are accepted")
    return text


def _labels(value: Any) -> Any:
    entries = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if len(entries) > _MOST_ENTRIES:
        raise ValueError(f"{len(entries)} entries; at most {_MOST_ENTRIES} are accepted")
    if any(entry is not None and (isinstance(entry, bool) or not isinstance(entry, str | int)) for entry in entries):
        raise ValueError("must be a text or a list of texts")
    texts = (str(entry).strip() for entry in entries if entry is not None)
    return tuple(dict.fromkeys(filter(None, texts)))


def _paths(value: Any) -> Any:
    """Files, also several in one text with ";" between them, as BugsInPy writes its tests."""
    parts = (part.strip().removeprefix("./") for text in _labels(value) for part in text.split(";"))
    return tuple(dict.fromkeys(part for part in parts if part))


def _lines(value: Any) -> Any:
    return tuple(line.strip() for text in _labels(value) for line in text.splitlines() if line.strip())


def _commit(value: Any) -> Any:
    text = _prose(value)
    if text and not re.fullmatch(r"[0-9a-fA-F]{7,64}", text):
        raise ValueError(f"{text[:80]!r} is no commit id; write 7 to 64 hexadecimal digits")
    return text.lower()


def _time(value: Any) -> Any:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        time = datetime.fromtimestamp(value / 1000, UTC) if isinstance(value, int) else datetime.fromisoformat(value)
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        if not 1970 <= time.year < NEVER.year:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{str(value)[:80]!r} is no date from 1970 on; write 2026-01-31 or milliseconds") from None
    return time


Prose = Annotated[str, BeforeValidator(_prose)]
Label = Annotated[str, BeforeValidator(_short)]
Labels = Annotated[tuple[str, ...], BeforeValidator(_labels)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_paths)]
CommandLines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Commit = Annotated[str, BeforeValidator(_commit)]
When = Annotated[datetime | None, BeforeValidator(_time)]


class Symptoms(Value):
    summary: Prose = ""
    logs: Labels = ()
    alerts: Labels = ()


class Related(Value):
    bugs: Labels = ()
    releases: Labels = ()


class Fix(Value):
    """``files`` and ``functions`` are read from the patch where the record does not name them. ``tests`` are paths,
    ``test_commands`` the commands that run them."""

    commit: Commit = ""
    buggy_commit: Commit = ""
    summary: Prose = ""
    files: Paths = ()
    functions: Labels = ()
    tests: Paths = ()
    test_commands: CommandLines = ()
    manual_steps: Labels = ()
    owners: Labels = ()
    patch: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""


class Prevention(Value):
    flags: Labels = ()
    alerts: Labels = ()
    tests: Labels = ()
    notes: Labels = ()


class BugSpec(Value):
    """One bug. Only ``bug_id`` must be given. Numbers are taken for texts in ids and labels only; times without
    a zone are UTC, whole numbers are epoch milliseconds."""

    bug_id: Label
    project: Label = ""
    title: Prose = ""
    repository: Label = ""
    service: Label = ""
    module: Label = ""
    severity: Label = ""
    status: Label = ""
    opened_at: When = None
    closed_at: When = None
    owners: Labels = ()
    symptoms: Symptoms = Symptoms()
    related: Related = Related()
    business_rule: Prose = ""
    root_cause: Prose = ""
    fix: Fix = Fix()
    prevention: Prevention = Prevention()
    links: Labels = ()
    details: Prose = ""

    @field_validator("bug_id")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value or re.search(r"\s", value):
            raise ValueError("must be a text or a number without spaces inside")
        return value

    @property
    def key(self) -> tuple[str, str]:
        return self.project, self.bug_id

    @property
    def reference(self) -> str:
        """What ``bug:`` relations call it: the id, behind its project where it is a bare number."""
        return _reference(self.project, self.bug_id)

    @property
    def missing(self) -> list[str]:
        """The fields without which a record is a draft."""
        seen = self.symptoms.summary or self.symptoms.logs or self.symptoms.alerts
        needed = {
            "symptoms": seen,
            "root_cause": self.root_cause,
            "fix.commit": self.fix.commit,
            "fix.tests": self.fix.tests or self.fix.test_commands,
        }
        return [field for field, value in needed.items() if not value]

    @property
    def closed(self) -> bool:
        words = re.findall(r"[a-z]+", self.status.lower())
        ended = " ".join(words) in CLOSED or (bool(words) and words[0] in CLOSED)
        return ended or (not self.status and self.closed_at is not None)

    @property
    def headline(self) -> str:
        for text in (self.title, self.symptoms.summary, self.fix.summary, self.root_cause, self.details):
            if text:
                return f"{self.reference}: {text.splitlines()[0]}"[:200]
        return self.reference


def _reference(project: str, bug_id: str) -> str:
    return f"{project}-{bug_id}" if project and bug_id.isdigit() else bug_id


class BugSpecs(Connector):
    """One item per record. A record without symptoms, root cause, fix commit or test becomes a draft: the tag
    ``draft``, and ``structured["missing"]`` names what it lacks.

    A closed bug expires ``retention`` after its closing date, or after being read where that is not known; any
    other lives as long as ``ttl`` says (for ever). Two records with one id, in one file or in two that are read
    together, are both refused, since nobody but their authors can say which is right.
    """

    name: ClassVar[str] = "bug_specs"
    domain: ClassVar[str] = "bug"
    kinds: ClassVar[tuple[str, ...]] = ("bug_spec",)
    summary: ClassVar[str] = "Records of past bugs in Markdown, JSON and JSON Lines"
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["bug_spec"]},
            "this connector yields bug records only",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "path", "regex": r"\.(?i:md|markdown|json|jsonl|ndjson)\Z"},
            "a record comes from a Markdown, JSON or JSON Lines file",
        ),
        Expectation(
            "expect_column_values_to_not_match_regex",
            {"column": "tags", "regex": r"\bdraft\b"},
            "a draft lacks its symptoms, root cause, fix commit or test; complete the record",
            critical=False,
        ),
        Expectation(
            "expect_column_value_lengths_to_be_between",
            {"column": "owner", "min_value": 1},
            "without an owner nobody is asked when this record is wrong",
            critical=False,
        ),
    )

    paths: tuple[str, ...] = RECORD_PATHS
    """Globs (see ``context_os.scope``) relative to the repository's root; only .md, .json and .jsonl files count."""

    folder: Path | None = None
    """Where the records are when the repository does not hold them; all its files of these types are read."""

    retention: timedelta = Field(default=timedelta(days=365), ge=timedelta(0), le=timedelta(days=36_500))

    @field_validator("paths")
    @classmethod
    def _globs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bad = [glob for glob in value if not valid_glob(glob)]
        if bad:
            raise ValueError(f"{bad[0]!r} is not a glob as .gitignore writes them")
        return value

    def scan(self, repository: Repository, known: Known) -> Listing:
        return self._files(repository).list(self._choose)

    def concerns(self, path: str) -> bool:
        return self.folder is not None or self._choose(path) == ""

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        files = self._files(repository)
        found = [_File.of(*each) for each in files.contents(keys, listing.units)]
        places: dict[tuple[str, str], list[str]] = defaultdict(list)
        for file in found:
            for record in file.records:
                if record.key:
                    places[record.key].append(f"{file.path} {record.place}")
        origin = Source(
            type=self.name,
            location=str(self.folder or repository.location),
            accessor=files.accessor,
            revision=listing.revision,
            repository=repository.name,
        )
        for file in found:
            yield self._unit(repository, origin, file, places)

    def _files(self, repository: Repository) -> Files:
        if self.folder is not None:
            return Files(self.folder, own_root=True)
        return Files(repository.location, repository.revision)

    def _choose(self, path: str) -> str | None:
        inside = is_record_file(path, ("**",) if self.folder is not None else self.paths)
        return "" if inside else None

    def _unit(
        self, repository: Repository, origin: Source, file: _File, places: Mapping[tuple[str, str], list[str]]
    ) -> Unit:
        items, rejected = [], []
        for record in file.records:
            others = [
                place for place in places.get(record.key or ("", ""), []) if place != f"{file.path} {record.place}"
            ]
            reasons = record.reasons
            if others:
                reasons += (f"the bug id is also at {_some(others)}; keep one record",)
            if record.spec is None or reasons:
                rejected.append(Rejected(record.label, reasons, record.raw))
            else:
                items.append(self._item(repository, origin.model_copy(update={"path": file.path}), record, record.spec))
        return Unit(file.path, file.hash, tuple(items), tuple(rejected), (*file.notes, *_notes(items)))

    def _item(self, repository: Repository, origin: Source, record: _Record, spec: BugSpec) -> KnowledgeItem:
        missing = spec.missing
        item = self.item(
            repository,
            spec.key,
            kind="bug_spec",
            title=spec.headline,
            text=rendered(spec),
            source=origin.model_copy(update={"metadata": {"place": record.place}}),
            structured=_structured(spec, record.extra, missing),
            relations=_relations(spec),
            symbols=(spec.reference,),
            tags=_tags(spec, draft=bool(missing)),
            owner=", ".join(spec.owners or spec.fix.owners),
            ttl=self.retention if spec.closed else "default",
        )
        if not spec.closed or spec.closed_at is None:
            return item
        # The checksum covers the retention, the time to live counts down to one fixed day: reading a record again
        # changes neither.
        life = spec.closed_at + self.retention - item.metadata.updated_at
        return item.model_copy(update={"metadata": item.metadata.model_copy(update={"ttl": life})})


def _some(places: Sequence[str]) -> str:
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return ", ".join(places[:5]) + more


def _notes(items: Iterable[KnowledgeItem]) -> Iterator[str]:
    """What a person should know about the records of one file, said once with its number."""
    counts: Counter[str] = Counter()
    for item in items:
        structured = item.payload.structured
        counts.update(f"drafts without {field}" for field in structured["missing"])
        counts.update(f"unknown field {name!r}, kept in structured.extra" for name in structured["extra"])
        counts["patches kept only in part"] += "patch_length" in structured
        counts["closed for longer than the retention, so they expire at once"] += (
            item.expires_at <= item.metadata.updated_at
        )
    for what, count in counts.items():
        if count:
            yield f"{what}: {count}"


def _structured(spec: BugSpec, extra: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    data = spec.model_dump(mode="json", exclude_defaults=True)
    data |= {"reference": spec.reference, "missing": missing, "extra": dict(sorted(extra.items()))}
    if len(spec.fix.patch) > KEPT_PATCH:
        end = spec.fix.patch.rfind("\n", 0, KEPT_PATCH)
        data["fix"]["patch"] = spec.fix.patch[: end if end > 0 else KEPT_PATCH]
        data["patch_length"] = len(spec.fix.patch)
    return data


def _tags(spec: BugSpec, *, draft: bool) -> list[str]:
    named = {"severity": spec.severity, "status": spec.status, "service": spec.service, "module": spec.module}
    return ["bug", *(["draft"] if draft else []), *(f"{name}:{text.lower()}" for name, text in named.items() if text)]


def _relations(spec: BugSpec) -> list[Relation]:
    """``fixes`` a commit, ``touches`` files and functions, ``tests`` files and test functions, ``related`` bugs. A
    function that only git's hunk header names (it precedes the change) counts 0.7."""
    fix = spec.fix
    pairs = [("fixes", f"commit:{fix.commit}")] if fix.commit else []
    pairs += [("touches", f"path:{path}") for path in fix.files]
    pairs += [("touches", f"symbol:{name}") for name in fix.functions]
    pairs += [("tests", f"path:{path.partition('::')[0]}") for path in fix.tests]
    pairs += [("tests", f"symbol:{name}") for name in _test_names(fix)]
    pairs += [("related", f"bug:{_reference(spec.project, bug)}") for bug in spec.related.bugs]
    guessed = {("touches", f"symbol:{name}") for name in patch_targets(fix.patch).surrounding}
    return [
        Relation(type=type, target=target, confidence=0.7 if (type, target) in guessed else 1.0)
        for type, target in dict.fromkeys(pairs)
    ]


def _test_names(fix: Fix) -> list[str]:
    """The last names in ``tests/test_x.py::TestX::test_y[1]`` and ``tests.test_x.TestX.test_y``."""
    words = [word for text in (*fix.tests, *fix.test_commands) for word in text.split()]
    found = (re.search(r"(?:::|\.)(test\w*|Test\w*)(?:\[.*\])?$", word) for word in words)
    return list(dict.fromkeys(match[1] for match in found if match))


def rendered(spec: BugSpec) -> str:
    """The record as a person would tell it. Its patch is left to ``structured``: the names in it are listed, and
    its lines would drown the words that a search is made of."""
    fix, prevention = spec.fix, spec.prevention
    facts = {"Project": spec.project, "Service": spec.service, "Module": spec.module, "Severity": spec.severity}
    facts |= {"Status": spec.status}
    logs = "\n".join(spec.symptoms.logs)
    parts = [
        spec.headline,
        ". ".join(f"{name}: {text}" for name, text in facts.items() if text),
        _paragraph("Symptoms", spec.symptoms.summary),
        _paragraph("Logs", logs if len(logs) <= _SHOWN_LOG else logs[:_SHOWN_LOG] + " ..."),
        _paragraph("Alerts", spec.symptoms.alerts),
        _paragraph("Business rule violated", spec.business_rule),
        _paragraph("Root cause", spec.root_cause),
        _paragraph("Fix", fix.summary),
        _paragraph("Fixed by commit", fix.commit),
        _paragraph("Files", fix.files),
        _paragraph("Functions", fix.functions),
        _paragraph("Tests", (*fix.tests, *_test_names(fix))),
        _paragraph("Manual steps", fix.manual_steps),
        _paragraph("Prevention", prevention.notes),
        _paragraph("Feature flags", prevention.flags),
        _paragraph("Alerts that would tell", prevention.alerts),
        _paragraph("Tests that would tell", prevention.tests),
        _paragraph("Related", (*(_reference(spec.project, bug) for bug in spec.related.bugs), *spec.related.releases)),
        _paragraph("Links", spec.links),
        spec.details,
    ]
    return "\n".join(part for part in parts if part)


def _paragraph(name: str, content: str | Sequence[str]) -> str:
    text = content if isinstance(content, str) else ", ".join(content)
    return f"{name}: {text}" if text else ""


# --- from a file to records -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """One record as understood: a spec, or ``reasons`` why it cannot become an item. ``extra`` are its unknown fields,
    ``key`` its id where it has one."""

    place: str
    raw: str
    reasons: tuple[str, ...]
    spec: BugSpec | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    key: tuple[str, str] | None = None

    @cached_property
    def label(self) -> str:
        return f"{self.place} ({_reference(*self.key)})" if self.key else self.place


@dataclass(frozen=True)
class _File:
    path: str
    hash: str
    records: tuple[_Record, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: str, hash: str, data: bytes | None) -> _File:
        if data is None:
            return cls(path, "", (), ("the file is gone since it was listed",))
        suffix = Path(path).suffix.lower()
        if suffix in {".jsonl", ".ndjson"} and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
            parsed, notes = list(json_lines(data)), decode(data[:3]).note
        else:
            decoded = decode(data)
            notes = decoded.note
            if decoded.problem:
                parsed = [Parsed("file", decoded.text, reasons=(decoded.problem,))]
            elif suffix in {".md", ".markdown"}:
                parsed = list(_markdown(decoded.text, path))
            else:
                parsed = list(json_records(decoded.text))
        records = tuple(_record(each) for each in parsed)
        found = (notes,) if notes else ()
        return cls(path, hash, records, found if records else (*found, "holds no records"))


def _markdown(text: str, path: str) -> Iterator[Parsed]:
    if not text.strip():
        return
    try:
        matter, body, _ = split_front_matter(text)
        value = load_yaml(matter) if matter is not None else None
    except ValueError as error:
        yield Parsed("front matter", text, reasons=(str(error),))
        return
    if matter is None:
        if Path(path).stem.lower() != "readme":
            reason = "no front matter: begin the file with --- and a line bug_id: ..., or move it elsewhere"
            yield Parsed("file", text, reasons=(reason,))
        return
    if isinstance(value, dict):
        value = _with_body(value, body)
    yield Parsed("file", text, value)


_FROM_BODY: Final = ("symptoms.summary", "root_cause", "business_rule", "fix.summary", "prevention.notes")


def _with_body(matter: dict[Any, Any], body: str) -> dict[Any, Any]:
    """The record with what its sections say: a section headed like a field fills it where the front matter does not,
    all other text becomes ``details``."""
    targets = {target for key in matter if isinstance(key, str) for target in _targets(key, matter[key])}
    record, rest = dict(matter), []
    for section in sections(body, len(body) + 1):
        heading, _, below = section.text.strip().partition("\n")
        name = _target(heading.lstrip("# ").rstrip("# "))
        target = f"{name}.{_MAIN[name]}" if name in _MAIN else name
        if heading.startswith("#") and target in _FROM_BODY and target not in targets and below.strip():
            record[target] = below.strip()
            targets.add(target)
        else:
            rest.append(section.text.strip())
    title = first_heading(body)
    if title and "title" not in targets:
        record["title"] = title
        rest = [text.removeprefix(f"# {title}").strip() for text in rest]
    if any(rest) and "details" not in targets:
        record["details"] = "\n\n".join(text for text in rest if text)
    return record


# --- from a value to a BugSpec --------------------------------------------------------------------------------


_GROUPS: Final[Mapping[str, type[Value]]] = {
    "symptoms": Symptoms,
    "related": Related,
    "fix": Fix,
    "prevention": Prevention,
}
_FLAT: Final = {
    f"{group}_{field}": f"{group}.{field}" for group, model in _GROUPS.items() for field in model.model_fields
}


def _target(key: str) -> str:
    """The field that a key means: ``bug_id``, ``fix.commit``, or the key itself where none is known."""
    name = snake(key)
    if name in BugSpec.model_fields:
        return name
    return _FLAT.get(name) or ALIASES.get(name) or name


def _targets(key: str, value: Any) -> Iterator[str]:
    """All fields that one entry of a record fills."""
    target = _target(key)
    if target not in _GROUPS:
        yield target
    elif isinstance(value, dict):
        yield from (_inner(target, str(name)) for name in value)
    elif value is not None:
        yield f"{target}.{_MAIN[target]}"


def _inner(group: str, key: str) -> str:
    name = snake(key)
    if name in _GROUPS[group].model_fields:
        return f"{group}.{name}"
    alias = ALIASES.get(name, "")
    return alias if alias.startswith(f"{group}.") else f"{group}.{key}"


def _record(parsed: Parsed) -> _Record:
    """Understand one value. Every reason against it is found, not only the first."""
    if parsed.value is None and parsed.reasons:
        return _Record(parsed.place, parsed.raw, parsed.reasons)
    if not isinstance(parsed.value, dict):
        reason = f"a record must be an object with fields, this is {kind_of(parsed.value)}"
        return _Record(parsed.place, parsed.raw, (*parsed.reasons, reason))
    reasons = [*parsed.reasons, *_faults(parsed.value)]
    fields, extra, ambiguous = _shaped(parsed.value)
    spec, wrong = _validated(fields)
    reasons = list(dict.fromkeys([*reasons, *ambiguous, *wrong]))
    return _Record(parsed.place, parsed.raw, tuple(reasons), spec, extra, _key(fields))


def _faults(record: dict[Any, Any]) -> Iterator[str]:
    for key, value in record.items():
        fix = value if isinstance(value, dict) and _target(str(key)) == "fix" else {}
        for name, inner in fix.items():
            yield from faults({f"{key}.{name}": inner}, "", _longest(_inner("fix", str(name))))
        if not fix:
            yield from faults({key: value}, "", _longest(_target(str(key))))


def _longest(target: str) -> int:
    return LONGEST_PATCH if target == "fix.patch" else LONGEST_TEXT


def _shaped(record: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """``(fields as BugSpec nests them, unknown fields, fields given twice)``."""
    flat: dict[str, tuple[str, Any]] = {}
    extra: dict[str, Any] = {}
    ambiguous = []
    for written, target, value in _entries(record):
        if value is None or value in ("", [], {}):
            continue
        if not _known(target):
            extra[written] = value
        elif target in flat and flat[target][1] != value:
            ambiguous.append(f"{written}: {target} is given twice, also as {flat[target][0]}")
        else:
            flat[target] = (written, value)
    fields: dict[str, Any] = {}
    for target, (_, value) in flat.items():
        group, _, name = target.rpartition(".")
        (fields.setdefault(group, {}) if group else fields)[name] = value
    return fields, extra, ambiguous


def _entries(record: dict[Any, Any]) -> Iterator[tuple[str, str, Any]]:
    """``(key as written, field, value)`` with nested parts opened."""
    for key, value in record.items():
        target = _target(str(key))
        if target in _GROUPS and isinstance(value, dict):
            yield from ((f"{key}.{name}", _inner(target, str(name)), inner) for name, inner in value.items())
        else:
            yield str(key), f"{target}.{_MAIN[target]}" if target in _GROUPS else target, value


def _known(target: str) -> bool:
    group, _, name = target.rpartition(".")
    return name in _GROUPS[group].model_fields if group in _GROUPS else target in BugSpec.model_fields


def _validated(fields: dict[str, Any]) -> tuple[BugSpec | None, list[str]]:
    try:
        spec = BugSpec.model_validate(fields)
    except ValidationError as error:
        return None, [_reason(each) for each in error.errors(include_input=False, include_url=False)]
    targets = patch_targets(spec.fix.patch)
    found = {
        "files": spec.fix.files or targets.files,
        "functions": spec.fix.functions or (*targets.inside, *targets.surrounding),
    }
    return spec.model_copy(update={"fix": spec.fix.model_copy(update=found)}), []


def _reason(error: Mapping[str, Any]) -> str:
    where = ".".join(snake(str(part)) for part in error["loc"])  # pydantic gives the camelCase alias
    if error["type"] == "missing":
        return f"{where}: missing; every record needs an id"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _key(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """The id of a record that may be wrong elsewhere, for its report and for finding its double."""
    try:
        spec = BugSpec.model_validate({name: fields[name] for name in ("bug_id", "project") if name in fields})
    except ValidationError:
        return None
    return None if any(text_faults("".join(spec.key), LONGEST_TEXT)) else spec.key
