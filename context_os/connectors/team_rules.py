"""What a team wrote down for its reviewers: rules, agents' and editors' instructions, and who owns which path.

Read are ``knowledge/rules`` (the laboratory's), ``rules`` and ``.context-os/rules``, ``AGENTS.md`` and ``CLAUDE.md`` of
any directory, ``.cursor/rules`` and ``.cursorrules``, GitHub's ``copilot-instructions.md`` and ``*.instructions.md``,
``CONTRIBUTING.md`` and ``CODEOWNERS``. Each item says in ``structured["applies_to"]`` which paths it governs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from context_os.connectors import Connector, Expectation, Known, Listing, Rejected, Repository, Unit
from context_os.connectors._files import Decoded, Files, decode, foreign
from context_os.connectors._markdown import Section, first_heading, sections, split_front_matter
from context_os.connectors._records import BadYaml, faults, load_yaml, snake, text_faults
from context_os.connectors._rule_files import CODEOWNERS, Form, form_of, globs_of, is_rule_file, texts_of
from context_os.model import Confidentiality, KnowledgeItem, Relation, Source, content_checksum
from context_os.scope import owners_of, valid_glob

WHOLE: Final = 3_000
"""Characters. A file of rules up to this stays one item; a longer one is cut at its headings."""

PART: Final = 6_000
"""Characters that one item of a cut file holds at most, some 1,500 tokens (a longer fenced block stays whole)."""

_LARGEST: Final = 3 * 2**20  # bytes; GitHub ignores a CODEOWNERS file above this size
_MOST_LISTED_OWNERS: Final = 20_000


class TeamRules(Connector):
    """One item per rule file, or per section of a long one; one item for CODEOWNERS. They never expire unless
    a rule's front matter says so.

    Front matter may hold ``title``, ``description``, ``globs`` (``paths``, ``applyTo``), ``alwaysApply``, ``severity``,
    and also ``tags``, ``owner``, ``confidentiality`` and ``ttl`` (``90d``, ``12h``, ``2w``, ``never`` or ISO 8601).
    Without an owner there, an item belongs to whom CODEOWNERS names for its file; the unit's hash covers them, so
    that a change of owners reads those files again. Of several CODEOWNERS files the first that GitHub finds counts.
    """

    name: ClassVar[str] = "team_rules"
    domain: ClassVar[str] = "code"
    kinds: ClassVar[tuple[str, ...]] = ("rule", "owners")
    summary: ClassVar[str] = "Rules for reviewers, agents' and editors' instructions, CODEOWNERS"
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["rule", "owners"]},
            "this connector yields rules and owners only",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "targets", "regex": "path:"},
            "a rule governs some path; give it a glob that does not begin with !",
        ),
        Expectation(
            "expect_column_values_to_be_between",
            {"column": "text_length", "max_value": 4 * PART},
            "a rule this long leaves a pack no room for another; give it headings",
            critical=False,
        ),
    )

    def scan(self, repository: Repository, known: Known) -> Listing:
        files = Files(repository.location, repository.revision)
        listing = files.list(lambda path: foreign(path) if is_rule_file(path) else None)
        owners, *shadowed = [path for path in CODEOWNERS if path in listing.units] or [""]
        units = {path: sha for path, sha in listing.units.items() if path not in shadowed}
        skipped = {**listing.skipped, **({"CODEOWNERS behind another": len(shadowed)} if shadowed else {})}
        rules = _rules_of(files, owners, units)
        units = {path: sha if path == owners else _unit_hash(sha, rules, path) for path, sha in units.items()}
        return replace(listing, units=units, skipped=skipped)

    def concerns(self, path: str) -> bool:
        return is_rule_file(path)

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        files = Files(repository.location, repository.revision)
        hashes = {path: hash.partition(":")[0] for path, hash in listing.units.items()}
        codeowners = next((path for path in CODEOWNERS if path in hashes), "")
        rules = _rules_of(files, codeowners, hashes)
        for key, sha, data in files.contents(keys, hashes):
            origin = Source(
                type=self.name,
                location=str(repository.location),
                accessor=files.accessor,
                revision=listing.revision,
                repository=repository.name,
                path=key,
            )
            form = form_of(key)
            if data is None or (form is None and key not in CODEOWNERS):
                yield Unit(key, "", (), notes=("the file is gone since it was listed",))
            elif form is None:
                yield self._owners(repository, origin, sha, data)
            else:
                yield self._rule(repository, origin, _unit_hash(sha, rules, key), data, form, owners_of(rules, key))

    def _owners(self, repository: Repository, origin: Source, sha: str, data: bytes) -> Unit:
        decoded = _checked(data)
        if decoded.problem:
            return Unit(origin.path, sha, (), (Rejected("file", (decoded.problem,), decoded.text),))
        rules, rejected = parse_codeowners(decoded.text)
        notes = [decoded.note] if decoded.note else []
        text = decoded.text.strip()
        if not rules:
            return Unit(origin.path, sha, (), tuple(rejected), (*notes, "names no owners"))
        if len(text) > _MOST_LISTED_OWNERS:
            text = text[: text.rindex("\n", 0, _MOST_LISTED_OWNERS) + 1 or _MOST_LISTED_OWNERS] + "..."
            notes.append(f"{len(rules)} rules; the text shows the first ones, structured has all")
        item = self.item(
            repository,
            (origin.path,),
            kind="owners",
            title=f"{origin.path}: who owns which path",
            text=text,
            source=origin,
            structured={"applies_to": ["**"], "always_apply": True, "form": "codeowners", "rules": rules},
            relations=(Relation(type="governs", target="path:**"),),
            tags=("owners", "codeowners"),
            owner=" ".join(owners_of(rules, origin.path)),
        )
        return Unit(origin.path, sha, (item,), tuple(rejected), tuple(notes))

    def _rule(
        self, repository: Repository, origin: Source, hash: str, data: bytes, form: Form, owners: list[str]
    ) -> Unit:
        decoded = _checked(data)
        notes = (decoded.note,) if decoded.note else ()
        if decoded.problem:
            return Unit(origin.path, hash, (), (Rejected("file", (decoded.problem,), decoded.text),), notes)
        try:
            header, body, skipped = _parsed(decoded.text, form)
        except _BadHeader as error:
            return Unit(origin.path, hash, (), (Rejected("front matter", error.reasons, decoded.text),), notes)
        if not body.strip():
            return Unit(origin.path, hash, (), (), (*notes, "holds no rule: the file is empty below its front matter"))
        if header.extra:
            notes = (*notes, f"unknown fields, kept in structured: {', '.join(sorted(header.extra))}")
        pieces = sections(body, PART) if len(body) > WHOLE else []
        if len(pieces) < 2:
            lines = body.split("\n")
            pieces = [Section((), 0, body, 1, len(lines))]
        draft = _Draft(form, header, skipped, " ".join(owners), origin)
        items = [self._piece(repository, draft, piece, whole=len(pieces) == 1) for piece in pieces]
        return Unit(origin.path, hash, tuple(items), (), notes)

    def _piece(self, repository: Repository, draft: _Draft, piece: Section, *, whole: bool) -> KnowledgeItem:
        form, header = draft.form, draft.header
        key = (form.key,) if whole else (form.key, *piece.headings, str(piece.ordinal))
        applies_to, always = draft.reach
        text = piece.text.strip("\n")
        if header.description and (whole or piece.start_line == 1):
            text = f"{header.description}\n\n{text}"
        return self.item(
            repository,
            key,
            kind="rule",
            title=draft.title(piece, whole),
            text=text,
            source=draft.origin.model_copy(
                update={
                    "start_line": draft.skipped_lines + piece.start_line,
                    "end_line": draft.skipped_lines + piece.end_line - len(piece.text) + len(piece.text.rstrip("\n")),
                    "language": "markdown",
                }
            ),
            structured={
                "applies_to": list(applies_to),
                "always_apply": always,
                "severity": header.severity.lower(),
                "form": form.name,
                "rule": form.key if form.key.startswith("rule-") else "",
                "headings": list(piece.headings),
                "extra": header.extra,
            },
            relations=[Relation(type="governs", target=f"path:{glob}") for glob in applies_to if glob[0] != "!"],
            tags=_tags(form, header),
            owner=header.owner or draft.owner,
            ttl=header.ttl if "ttl" in header.model_fields_set else "default",
            confidentiality=header.confidentiality,
        )


class _BadHeader(ValueError):
    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def _duration(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in {"", "never", "none"}):
        return None
    units = {"h": "hours", "d": "days", "w": "weeks"}
    short = re.fullmatch(r"\s*(\d{1,6})\s*([hdw])\s*", value) if isinstance(value, str) else None
    try:
        life = timedelta(**{units[short[2]]: int(short[1])}) if short else _ISO_DURATION.validate_python(value)
    except (ValidationError, OverflowError):
        life = timedelta(0)
    if life <= timedelta(0) or isinstance(value, int | float):
        raise ValueError("must be a duration such as 90d, 12h, 2w or P90D, or never")
    return life


_ISO_DURATION: Final = TypeAdapter(timedelta)


def _flag(value: Any) -> Any:
    words = {"true": True, "yes": True, "false": False, "no": False, "": None}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _blank(value: Any) -> Any:
    return "" if value is None else value.strip() if isinstance(value, str) else value


_Line = Annotated[str, BeforeValidator(_blank)]


class _Header(BaseModel):
    """Front matter, under any of the names that tools give its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    title: _Line = ""
    description: _Line = ""
    globs: Annotated[tuple[str, ...], BeforeValidator(globs_of)] = ()
    always_apply: Annotated[bool | None, BeforeValidator(_flag)] = None
    severity: _Line = ""
    tags: Annotated[tuple[str, ...], BeforeValidator(texts_of)] = ()
    owner: Annotated[str, BeforeValidator(lambda value: " ".join(texts_of(value)))] = ""
    confidentiality: Confidentiality | None = None
    ttl: Annotated[timedelta | None, BeforeValidator(_duration)] = None
    extra: dict[str, Any] = {}


_ALIASES: Final = {
    "name": "title",
    "paths": "globs",
    "apply_to": "globs",
    "applies_to": "globs",
    "owners": "owner",
    "owner_id": "owner",
}


def _parsed(text: str, form: Form) -> tuple[_Header, str, int]:
    """``(header, body, lines before the body)``. Raises _BadHeader with every reason."""
    if not form.header:
        return _Header(), text, 0
    try:
        matter, body, skipped = split_front_matter(text)
        value = _value(matter) if matter is not None else None
    except ValueError as error:
        raise _BadHeader(str(error)) from None
    return _header({} if value is None else value), body, skipped


def _value(matter: str) -> Any:
    """Editors read ``globs: **/*.ts`` and ``description: Style: short`` as plain text; YAML sees an alias and a second
    mapping. What YAML refuses is tried again with such values, and list entries such as ``- *.ts``, in quotes."""
    try:
        return load_yaml(matter)
    except BadYaml as error:
        try:
            return load_yaml(_quoted(matter))
        except BadYaml:
            raise error from None


def _quoted(matter: str) -> str:
    line = re.compile(r"^(description|globs|paths|applyTo|title)(\s*:[ \t]+)([^\s\"'\[{|>&].*?)[ \t]*$", re.MULTILINE)
    entry = re.compile(r"^(\s*-[ \t]+)([*!].*?)[ \t]*$", re.MULTILINE)
    matter = line.sub(lambda found: f"{found[1]}{found[2]}{json.dumps(found[3])}", matter)
    return entry.sub(lambda found: f"{found[1]}{json.dumps(found[2])}", matter)


def _header(value: Any) -> _Header:
    if not isinstance(value, dict):
        raise _BadHeader(f"front matter must be a list of 'field: value', it is a {type(value).__name__}")
    reasons = list(faults(value, "", 10_000))
    if reasons:
        raise _BadHeader(*reasons)
    fields: dict[str, Any] = {"extra": {}}
    for key, each in value.items():
        name = _ALIASES.get(snake(key), snake(key))
        if name not in _Header.model_fields or name == "extra":
            fields["extra"][key] = each
        elif name in fields and name != "globs":
            raise _BadHeader(f"{key}: given twice, under two names")
        else:
            fields[name] = [*_listed(fields[name]), *_listed(each)] if name in fields else each
    try:
        return _Header.model_validate(fields)
    except ValidationError as error:
        raise _BadHeader(*(f"{each['loc'][0]}: {_reason(each['msg'])}" for each in error.errors())) from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")


@dataclass(frozen=True)
class _Draft:
    """A rule file on its way to items. ``skipped_lines`` is how many lines its front matter takes."""

    form: Form
    header: _Header
    skipped_lines: int
    owner: str
    origin: Source

    @cached_property
    def reach(self) -> tuple[tuple[str, ...], bool]:
        """``(globs relative to the root, whether it applies without being asked for)``."""
        base, header = self.form.base, self.header
        everywhere = (f"{_escaped(base)}/**" if base else "**",)
        if header.always_apply or not header.globs:
            return everywhere, self.form.always if header.always_apply is None else header.always_apply
        always = header.always_apply is None and not {"**", "**/*", "*"}.isdisjoint(header.globs)
        return tuple(_below(base, glob) for glob in header.globs), always

    def title(self, piece: Section, whole: bool) -> str:
        path = self.origin.path
        if whole:
            return _cut(self.header.title or first_heading(piece.text) or path, 200)
        part = f" ({piece.part}/{piece.parts})" if piece.parts > 1 else ""
        return _cut(" › ".join([path, *piece.headings]), 200 - len(part)) + part  # noqa: RUF001 - as people write it


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _escaped(path: str) -> str:
    return re.sub(r"[\\*?\[\]!#]", r"\\\g<0>", path)


def _below(base: str, glob: str) -> str:
    """A glob that was written for a directory, as the root would write it."""
    if not base:
        return glob
    sign, bare = ("!", glob[1:]) if glob.startswith("!") else ("", glob)
    anchored = "/" in bare.rstrip("/")
    return f"{sign}{_escaped(base)}/{bare.lstrip('/')}" if anchored else f"{sign}{_escaped(base)}/**/{bare}"


def _tags(form: Form, header: _Header) -> tuple[str, ...]:
    severity = [f"severity:{header.severity.lower()}"] if header.severity else []
    tool = [form.name] if form.name != "rule" else []
    return tuple(dict.fromkeys(["rule", "code-review", *tool, *severity, *header.tags]))


def _checked(data: bytes) -> Decoded:
    if len(data) > _LARGEST:
        return Decoded(
            data.decode("utf-8", "replace"), f"{len(data):,} bytes; a file of rules has at most {_LARGEST:,}"
        )
    decoded = decode(data)
    fault = next(text_faults(decoded.text, _LARGEST), "")
    return decoded if decoded.problem or not fault else replace(decoded, problem=fault)


def _unit_hash(sha: str, rules: Sequence[Mapping[str, Any]], path: str) -> str:
    owners = owners_of(rules, path)
    return f"{sha}:{content_checksum(owners)[:16]}" if sha and owners else sha


def _rules_of(files: Files, path: str, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    data = next((data for _, _, data in files.contents([path], hashes)), None) if path else None
    decoded = _checked(data or b"")
    return [] if decoded.problem else parse_codeowners(decoded.text)[0]


_SECTION: Final = re.compile(r"(\^?)\[([^\]]+)\](?:\[(\d+)\])?\s*(.*)")
_OWNER: Final = re.compile(r"@@?[\w.-]+(?:/[\w.-]+)*|[^@\s]+@[^@\s]+\.[^@\s]+")


def parse_codeowners(text: str) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """``({pattern, owners, line, section} in the file's order, lines that are no rule)``.

    GitHub's syntax, and GitLab's: sections (``[Name]``, ``^[Optional]``, ``[Name][approvals] @default``) whose default
    owners a line without owners inherits, ``!exclusions`` and ``@@roles``. As on GitHub, a line with anything wrong is
    left out and the rest counts, and brackets in a pattern are no range but themselves.
    """
    rules: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    section, defaults = "", list[str]()
    for number, raw in enumerate(text.split("\n"), start=1):
        line = re.sub(r"(?:^|(?<!\\)\s)#.*", "", raw).strip()
        if not line:
            continue
        header = _SECTION.fullmatch(line)
        first, *owners = [header[2], *header[4].split()] if header else re.split(r"(?<!\\)\s+", line)
        pattern = re.sub(r"(?<!\\)\[", r"\\[", first)
        bad = [owner for owner in owners if not _OWNER.fullmatch(owner)]
        reasons = [f"{owner!r} is no owner; write @name, @organisation/team or an address" for owner in bad]
        if not header and not valid_glob(pattern):
            reasons.append(f"{first!r} is not a pattern")
        if reasons:
            rejected.append(Rejected(f"line {number}", tuple(reasons), raw))
        if header:
            section, defaults = header[2].strip(), [owner for owner in owners if owner not in bad]
        elif not reasons:
            inherited = owners or ([] if pattern.startswith("!") else list(defaults))
            rules.append({"pattern": pattern, "owners": inherited, "line": number, "section": section})
    return rules, rejected
