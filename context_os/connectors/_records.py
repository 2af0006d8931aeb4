"""Reading records that people wrote: JSON, JSON Lines and YAML without surprises, and what is wrong inside a value."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from context_os.connectors._files import decode
from context_os.scope import governs

RECORD_PATHS: Final = ("bugs/**", "bugspecs/**", ".context-os/bugs/**", "docs/bugs/**")
"""Where the records of bugs stand unless a repository says otherwise."""

YAML_LARGEST: Final = 128 * 1024
"""Characters of YAML that are parsed at most; PyYAML reads some 100,000 in a second."""

_DEEPEST: Final = 40
_SUFFIXES: Final = (".md", ".markdown", ".json", ".jsonl", ".ndjson")


def is_record_file(path: str, globs: Iterable[str]) -> bool:
    """Whether ``bug_specs`` reads the file when its records stand where the globs say."""
    return path.lower().endswith(_SUFFIXES) and governs(globs, path)


class BadYaml(ValueError):
    """YAML that is refused; the message says why and where."""


class _Loader(yaml.SafeLoader):
    """YAML in which a plain scalar stays the text that was written (``1.10``, ``no``, ``2024-01-05`` and the
    commit ``5e12345`` alike; only null is null). Aliases, keys given twice and deep nesting are refused, so that
    nothing can expand and nothing is lost."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - replaces an attribute of the base
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise BadYaml(f"line {line}: YAML aliases (*name) are not accepted")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise BadYaml(f"nested more than {_DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        assert node is None or isinstance(node, yaml.Node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise BadYaml(f"line {key.start_mark.line + 1}: the key {name!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


class _TypedLoader(_Loader):
    """The same with truth values and whole numbers; a version such as ``1.10`` stays text."""


_TypedLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), ["t", "f"])
_TypedLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:0|-?[1-9][0-9]{0,17})$"), list("-0123456789")
)


def load_yaml(text: str, *, typed: bool = False) -> Any:
    """The value of one YAML document, its scalars as texts or ``typed``. Raises BadYaml."""
    if len(text) > YAML_LARGEST:
        raise BadYaml(f"{len(text):,} characters of YAML; at most {YAML_LARGEST:,} are read")
    try:
        return yaml.load(text, _TypedLoader if typed else _Loader)  # noqa: S506 - a SafeLoader
    except BadYaml:
        raise
    except yaml.YAMLError as error:
        raise BadYaml(" ".join(str(error).split())) from None
    except (ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
        raise BadYaml(f"a value that YAML cannot hold: {error}") from None


def snake(name: str) -> str:
    """``rootCause``, ``Root cause``, ``root-cause`` and ``root_cause`` are all ``root_cause``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    return re.sub(r"[\s\-_/.]+", "_", spaced).lower().strip("_")


def faults(value: Any, where: str, longest: int) -> Iterator[str]:
    """What makes a parsed value unfit to be kept, as ``field: reason``: characters that no store takes, texts of
    more than ``longest`` characters, types that JSON lacks, deep nesting."""
    yield from _faults(value, where, longest, 0)


def _faults(value: Any, where: str, longest: int, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        yield f"{where}: nested more than {_DEEPEST} levels deep"
    elif isinstance(value, str):
        yield from (f"{where}: {fault}" for fault in text_faults(value, longest))
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str) and not any(text_faults(key, 200)):
                yield from _faults(inner, f"{where}.{key}" if where else key, longest, depth + 1)
            else:
                yield f"{where or 'record'}: the key {str(key)[:40]!r} is not a plain name"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _faults(inner, f"{where}[{index}]", longest, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} is not a number that JSON holds"
    elif value is not None and not isinstance(value, bool | int | float):
        yield f"{where}: {kind_of(value)} is not accepted; write it as text"


def kind_of(value: Any) -> str:
    """A value's type in words, for messages to people who do not write Python."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def text_faults(text: str, longest: int) -> Iterator[str]:
    """Why a text is unfit to be kept."""
    if len(text) > longest:
        yield f"{len(text):,} characters; at most {longest:,} are accepted, so link to the rest"
    if "\0" in text:
        yield f"a NUL character at position {text.index(chr(0))}; remove it"
    lone = re.search("[\ud800-\udfff]", text)
    if lone:
        yield f"half a surrogate pair at position {lone.start()}; the text is not Unicode"


@dataclass(frozen=True)
class Parsed:
    """A value on its way to a record. ``place`` says where in its file, ``raw`` is exactly what stands there, and
    ``reasons`` what is already wrong with its syntax."""

    place: str
    raw: str
    value: Any = None
    reasons: tuple[str, ...] = ()


def json_lines(data: bytes) -> Iterator[Parsed]:
    """Each line alone, so that neither a bad byte nor a truncated end costs its neighbours."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        decoded = decode(line.rstrip(b"\r") if number > 1 else line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r"))
        if not decoded.text.strip():
            continue
        if decoded.problem:
            yield Parsed(f"line {number}", decoded.text, reasons=(decoded.problem,))
        else:
            yield _alone(f"line {number}", decoded.text)


def json_records(text: str) -> Iterator[Parsed]:
    """One record, a list of them, or ``{"bugs": [...]}``. What stands before a fault in a list is still read."""
    start = after_blank(text, 0)
    if start == len(text):
        return
    opening = start if text[start] == "[" else _bugs(text, start)
    if opening is None:
        yield _alone("file", text)
        return
    at = after_blank(text, opening + 1)
    index = 0
    while at < len(text) and text[at] != "]":
        index += 1
        parsed, end = next_value(text, at, f"record {index}")
        yield parsed
        if end is None:
            return
        at = after_blank(text, end)
        if text[at : at + 1] == ",":
            at = after_blank(text, at + 1)
        elif text[at : at + 1] != "]":
            break
    tail = text[at + 1 :]
    rest = _alone("", '{"bugs": []' + tail)
    whole = text[at : at + 1] == "]" and (not tail.strip() if opening == start else not rest.reasons)
    if not whole:
        reason = f"the list is broken or cut off after its record {index}"
        yield Parsed("end of the list", text[at:], reasons=(reason,))


def _bugs(text: str, start: int) -> int | None:
    """Where the list of ``{"bugs": [`` opens; None when the text is no such object or is broken before."""
    at = after_blank(text, start + 1) if text[start] == "{" else len(text)
    while at < len(text) and text[at] == '"':
        key, end = next_value(text, at, "")
        at = after_blank(text, end) if end is not None else len(text)
        if text[at : at + 1] != ":":
            return None
        at = after_blank(text, at + 1)
        if key.value == "bugs":
            return at if text[at : at + 1] == "[" else None
        _, end = next_value(text, at, "")
        at = after_blank(text, end) if end is not None else len(text)
        at = after_blank(text, at + 1) if text[at : at + 1] == "," else len(text)
    return None


def after_blank(text: str, at: int) -> int:
    """Where what follows the white space at a position begins."""
    found = re.compile(r"[ \t\r\n]*").match(text, at)
    return found.end() if found else at


def next_value(text: str, at: int, place: str) -> tuple[Parsed, int | None]:
    """The JSON value at a position, and where it ends: None where it is broken, and the rest is its raw text."""
    problems: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
        problems.extend(f"the key {name[:80]!r} is given twice in one object" for name in twice)
        return dict(found)

    def constant(name: str) -> None:
        problems.append(f"{name} is not JSON")

    # Not strict: a control character inside a text then spoils one record and not the rest of its list.
    decoder = json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant, strict=False)
    try:
        value, end = decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return Parsed(place, text[at:], reasons=(_syntax(error),)), None
    except (ValueError, RecursionError) as error:
        return Parsed(place, text[at:], reasons=(f"not readable as JSON: {error}",)), None
    return Parsed(place, text[at:end], value, tuple(problems)), end


def _syntax(error: json.JSONDecodeError) -> str:
    ended = error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
    cut = " (the text ends before it does: was it cut off?)" if ended else ""
    return f"not JSON: {error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}{cut}"


def _alone(place: str, text: str) -> Parsed:
    parsed, end = next_value(text, after_blank(text, 0), place)
    if end is not None and text[end:].strip(" \t\r\n"):
        return Parsed(place, text, reasons=(f"something follows the record at column {end + 1}",))
    return replace(parsed, raw=text)
