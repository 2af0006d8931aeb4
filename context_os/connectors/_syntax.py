"""One source file as its definitions: ``parse`` is a pure function from a path and bytes to plain data.

The tree-sitter query of the file's ``Language`` marks nodes; from then on only byte offsets count: a definition
reaches from its doc comment and decorators to its end, definitions that contain each other nest, and a call, base
or decorator belongs to the innermost definition around it. No node is visited twice and nothing recurses, so that
neither a broken nor a deeply nested file can do harm.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from operator import itemgetter
from typing import Any, Final

from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, QueryCursor, Tree

from context_os.connectors._languages import Here, Import, Language, compiled, language_of

DEEPEST: Final = 10
"""Definitions nested deeper are left inside the text of the one around them: the text of each level holds the
next, so unlimited depth would cost the square of the file's size."""

_RUBBLE: Final = 10_000
"""Children of one syntax error, beyond which a file is not read: a query costs the square of their number."""

_UNFINISHED: Final = 1_000
"""Matches under way at once: a chain of ten thousand calls has all of them open at the same time."""

_DEEPEST_NODE: Final = 2_000
"""Depth in the syntax tree beyond which nothing is looked for: the cost of a query explodes with it."""

_PATIENCE: Final = 10.0
"""Seconds of processor time for one file; sound ones of a megabyte take one."""

_CHUNK: Final = 1 << 16

_CALLS: Final = 100
_IMPORTS: Final = 300
_VARIABLES: Final = 400
_STATEMENTS: Final = 40_000
_OUTLINE: Final = 8_000
_CLASS: Final = 20_000
_SIGNATURE: Final = 400
_DOCSTRING: Final = 600
_NAME: Final = 200
_NAME_TEXT: Final = 1_000
_LINES_NAMED: Final = 10

_DEFINES: Final = {
    "class": "class", "function": "function", "method": "method", "prototype": "function", "impl": "class",
    "scope": "", "namespace": "",
}  # fmt: skip
_TEST_FOLDER: Final = re.compile(r"(?:^|/)(?:tests?|specs?|__tests__|testing|testdata)/")
_CHAIN: Final = re.compile(r"[\w$@]+(?:\.[\w$@]+)*\Z")
_SEPARATORS: Final = re.compile(r"\s*(?:::|->|\?\.|\?->|&\.|\\|\.)\s*")
_NEWLINE: Final = re.compile(rb"\n")
_BLANK_LINES: Final = re.compile(r"\n(?:[ \t]*\n){2,}")
_REFERENCE: Final = re.compile(r"\w+:\S{1,300}(?<!\.)\Z")
_SIGNATURE_END: Final = re.compile(r"\s*(?:[:{=;]|;\s*end)\s*\Z")
_XML: Final = re.compile(r"</?(?:summary|remarks|para)\b[^>]*>")
_MAGIC: Final = re.compile(
    r"!|-\*-|(?:frozen_string_literal|(?:en)?coding|eslint|jshint|@ts-|@flow|noqa|pylint|rubocop)\b"
)
_QUOTE: Final = re.compile(r"[rRbBuUfF]{0,2}(\"{3}|'{3}|\"|')")
_COMMENT: Final = re.compile(r"/\*.*?(?:\*/|\Z)|//[^\n]*|^[ \t]*#(?!\[)[^\n]*", re.DOTALL | re.MULTILINE)
_COMMENT_MARK: Final = re.compile(r"^[ \t]*(?:/\*+!?|//+!?|#+!?|\*(?!/))[ \t]?|\*+/\s*\Z", re.MULTILINE)
_PARAGRAPH: Final = re.compile(r"\n\s*\n")
_TEST_CLASS: Final = re.compile(r"Test([A-Z]\w+)|([A-Z]\w+?)(?:Tests?|TestCase|Spec)")
_GENERIC: Final = re.compile(r"<[^<>]*>")
_REFERENCE_TYPE: Final = re.compile(r"\A(?:::|[&*\s]*(?:'\w+\s+)?(?:mut\s+)?(?:dyn\s+)?)")
_BRACKETS: Final = re.compile(r"[<\[({].*", re.DOTALL)

Link = tuple[str, int | str, float]
"""Type, target, confidence; a target that is a number is the place of a symbol in ``Parsed.symbols``."""


Call = tuple[str | None, str]
"""What stands before the dot ("" for nothing, None for what is no plain name) and the name that is called."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """What becomes one item. ``key`` is its natural key inside the file. Lines are 1-based and inclusive."""

    kind: str
    title: str
    key: tuple[str, str]
    text: str
    start_line: int
    end_line: int
    structured: dict[str, Any]
    links: tuple[Link, ...]
    names: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """``symbols`` starts with the module and is empty only for a file that is too broken. ``notes`` say what could
    not be read."""

    language: str
    symbols: tuple[Symbol, ...]
    notes: tuple[str, ...]


def parse(path: str, data: bytes) -> Parsed:
    """The symbols of one file. ``path`` is POSIX and decides the language, for which there must be one.

    Never raises for what is in the file: undecodable bytes are replaced and syntax errors left out, with a note.
    """
    language = language_of(path, data)
    assert language is not None, f"{path} has no grammar"
    source, notes = _clean(data)
    return _File(path, language, source, notes).parsed()


def _clean(data: bytes) -> tuple[bytes, list[str]]:
    """UTF-8 without a byte order mark and with plain line ends, which shift no line."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return data.decode("utf-8", "replace").encode(), [f"not UTF-8 from line {line} on: bytes were replaced"]
    return data, []


def _tree(grammar: Grammar, source: bytes) -> Tree | None:
    """The syntax tree, or None where it would take too long."""
    started = time.thread_time()
    try:
        return Parser(grammar).parse(
            lambda offset, _: source[offset : offset + _CHUNK],
            progress_callback=lambda *_: time.thread_time() - started > _PATIENCE,
        )
    except ValueError:  # how the binding reports a parse that was stopped
        return None


@dataclass(slots=True)
class _Definition:
    """``start`` and ``end`` bound it with all that belongs to it, ``head`` is where the declaration itself starts
    and ``body`` where its body does (``end`` without one). ``qualified`` is its name inside the module and what its
    members' names begin with, ``space`` the namespace around it. ``calls`` are as written, ``meant`` as resolved:
    name, target, confidence."""

    capture: str
    name: str
    start: int
    head: int
    name_start: int
    body: int
    end: int
    node: int
    base: str = ""
    receiver: str = ""
    parent: int = -1
    depth: int = 0
    kind: str = ""
    qualified: str = ""
    space: str = ""
    symbol: int = -1
    children: list[int] = field(default_factory=list)
    decorators: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    meant: list[tuple[str, int | str, float]] = field(default_factory=list)
    docstring: str = ""
    is_test: bool = False
    signature: str = ""

    @property
    def title(self) -> str:
        if self.capture != "impl":
            return self.qualified
        return f"impl {self.base} for {self.qualified}" if self.base else f"impl {self.qualified}"


class _File:
    def __init__(self, path: str, language: Language, source: bytes, notes: list[str]) -> None:
        self.path = path
        self.language = language
        self.source = source
        self.notes = notes
        self.module = language.module(path)
        self.definitions: list[_Definition] = []
        self.marks: dict[str, list[Node]] = {}
        self.calls: list[tuple[int, Call]] = []
        self.wrappers: dict[int, Node] = {}
        self.line_starts = [0, *map(re.Match.end, _NEWLINE.finditer(source))]
        self.segments: tuple[list[int], list[int]] = ([], [])
        self.loose_calls: list[Call] = []
        self.items: list[_Definition] = []
        self.keys: list[tuple[str, str]] = []
        self.named: dict[str, int] = {}
        self.spaces: dict[str, None] = {}
        self.bindings: dict[str, str] = {}
        self.imported: dict[str, float] = {}
        self.comments: list[tuple[int, int]] = []
        self.asides: list[tuple[int, int]] = []
        self.ends_of_names: set[str] = set()
        self.reexported: list[str] = []
        self.among_tests: set[int] = set()
        self.test_file = re.search(language.test_file, path)
        self.tests = bool(self.test_file or _TEST_FOLDER.search(path))

    def parsed(self) -> Parsed:
        if not self._mark():
            return Parsed(self.language.name, (), tuple(self.notes))
        self._extend()
        self._nest()
        self._assign()
        self._name()
        self._bind()
        self._find_tests()
        for it in self.items:
            it.signature = self._signature(it)
            it.meant = list(self._meant(it, it.calls))
        symbols = [self._module(), *map(self._symbol, self.items)]
        return Parsed(self.language.name, tuple(symbols), tuple(self.notes))

    def _text(self, start: int, end: int) -> str:
        return self.source[start:end].decode("utf-8", "replace")

    def _line(self, offset: int) -> int:
        return bisect_right(self.line_starts, offset)

    # Reading the marks

    def _mark(self) -> bool:
        grammar, query = compiled(self.language.grammar, self.language.query)
        tree = None if re.search(self.language.endless, self.source) else _tree(grammar, self.source)
        if tree is None:
            self.notes.append("too ambiguous to read")
            return False
        root = tree.root_node
        if root.has_error and not self._note_errors(root):
            return False
        cursor = QueryCursor(query, match_limit=_UNFINISHED)
        cursor.set_max_start_depth(_DEEPEST_NODE)
        for _, captures in cursor.matches(root):
            if "callee" in captures:
                self._mark_call(captures["callee"][0], captures.get("receiver"))
            elif "name" in captures:
                self._mark_definition(captures)
            elif "inner" in captures:
                self.wrappers[captures["inner"][0].id] = captures["wrapper"][0]
            else:
                for name, nodes in captures.items():
                    self.marks.setdefault(name, []).extend(nodes)
        return True

    def _note_errors(self, root: Node) -> bool:
        """Say which lines have errors, and whether the rest can be read."""
        lines = set()
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if node.is_error or node.is_missing:
                lines.add(self._line(node.start_byte))
            if node.is_error and node.child_count > _RUBBLE:
                self.notes.append(f"too broken to read, from line {self._line(node.start_byte)} on")
                return False
            waiting.extend(child for child in node.children if child.has_error)
        named = ", ".join(map(str, sorted(lines)[:_LINES_NAMED]))
        more = f" and {len(lines) - _LINES_NAMED} more" if len(lines) > _LINES_NAMED else ""
        self.notes.append(f"syntax errors at line{'s' * (len(lines) > 1)} {named}{more}")
        return True

    def _mark_call(self, callee: Node, receiver: list[Node] | None) -> None:
        name = dotted(self._text(callee.start_byte, callee.end_byte))
        if receiver is None:
            self.calls.append((callee.start_byte, ("", name)))
            return
        node = receiver[0]
        # A long receiver is a chain of calls whose last result nobody knows.
        known = node.end_byte - node.start_byte <= 100
        chain = _chain(self._text(node.start_byte, node.end_byte)) if known else None
        self.calls.append((callee.start_byte, (chain, name)))

    def _mark_definition(self, captures: dict[str, list[Node]]) -> None:
        capture = next(name for name in _DEFINES if name in captures)
        node, name = captures[capture][0], captures["name"][0]
        written = self._text(name.start_byte, name.end_byte)
        body = captures["body"][0] if "body" in captures else node.child_by_field_name("body")
        definition = _Definition(
            capture="method" if capture == "function" and ".prototype." in written else capture,
            name=defined_name(written),
            start=node.start_byte,
            head=node.start_byte,
            name_start=name.start_byte,
            body=body.start_byte if body is not None else node.end_byte,
            end=node.end_byte,
            node=node.id,
        )
        if "receiver.type" in captures:
            self._receive(definition, captures["receiver.type"][0])
        if "base" in captures:
            base = captures["base"][0]
            definition.base = dotted(self._text(base.start_byte, base.end_byte))
            definition.bases.append(definition.base)
        if capture == "namespace" and body is None:
            definition.end = len(self.source)
        if definition.name:
            self.definitions.append(definition)

    def _receive(self, definition: _Definition, receiver: Node) -> None:
        """Go's ``(e *Engine[T])``: the type qualifies the name, ``e`` is what the method calls itself."""
        words = re.findall(r"\w+", _BRACKETS.sub("", self._text(receiver.start_byte + 1, receiver.end_byte)))
        if words:
            definition.name = f"{words[-1]}.{definition.name}"
            definition.receiver = words[0] if len(words) > 1 else ""

    # Where a definition starts, and what is inside what

    def _extend(self) -> None:
        self.comments = sorted((node.start_byte, node.end_byte) for node in self.marks.get("comment", ()))
        decorators = [(node.start_byte, node.end_byte) for node in self.marks.get("decorator", ())]
        self.asides = sorted([*self.comments, *decorators])
        attributes = [(node.start_byte, node.end_byte) for node in self.marks.get("above", ())]
        above = sorted([*self.comments, *attributes])
        ends = [end for _, end in above]
        for definition in self.definitions:
            wrapper = self.wrappers.get(definition.node)
            while wrapper is not None:
                definition.start, definition.end = wrapper.start_byte, max(wrapper.end_byte, definition.end)
                if self.source[wrapper.start_byte : wrapper.start_byte + 1] != b"@":
                    definition.head = wrapper.start_byte  # "export const" is part of the signature, a decorator is not
                wrapper = self.wrappers.get(wrapper.id)
            if definition.capture != "namespace":
                definition.start = self._start_above(definition.start, above, ends)

    def _start_above(self, start: int, above: list[tuple[int, int]], ends: list[int]) -> int:
        """The start of the comments that stand right above ``start``, each on lines of its own."""
        place = bisect_right(ends, start) - 1
        while place >= 0:
            begin, end = above[place]
            gap = self.source[end - (self.source[end - 1 : end] == b"\n") : start]  # Rust's end with the line
            if gap.strip() or gap.count(b"\n") > 1 or not self._alone(begin):
                break
            start, place = begin, place - 1
        return start

    def _alone(self, offset: int) -> bool:
        return not self.source[self.line_starts[self._line(offset) - 1] : offset].strip()

    def _nest(self) -> None:
        self.definitions.sort(key=lambda it: (it.start, -it.end, it.head))
        self._drop_twins()
        around: list[int] = []
        kept: list[_Definition] = []
        for definition in self.definitions:
            while around and kept[around[-1]].end <= definition.start:
                around.pop()
            if definition.capture == "namespace" and around and definition.end == len(self.source):
                # A namespace without a body ends where the next one starts.
                while around and kept[around[-1]].capture == "namespace":
                    kept[around.pop()].end = definition.start
            if len(around) >= DEEPEST:
                continue
            definition.parent = around[-1] if around else -1
            definition.depth = len(around)
            around.append(len(kept))
            kept.append(definition)
        self.definitions = kept

    def _drop_twins(self) -> None:
        """One node can match two patterns; and a prototype says nothing where its definition is in the file."""
        bodied = {it.name for it in self.definitions if it.capture == "function"}
        unique: dict[tuple[int, int, str], _Definition] = {}
        for it in self.definitions:
            if it.capture != "prototype" or it.name not in bodied:
                unique.setdefault((it.head, it.end, it.name), it)
        self.definitions = list(unique.values())

    def _assign(self) -> None:
        """Give every mark to the innermost definition around it."""
        self.segments = _segments(self.definitions)
        for start, call in sorted([*self.calls, *self._token_calls()], key=itemgetter(0)):
            owner = self._owner(start)
            (owner.calls if owner else self.loose_calls).append(call)
        for node in self.marks.get("base", ()):
            owner = self._owner(node.start_byte)
            if owner and owner.capture == "class":
                owner.bases.append(dotted(self._text(node.start_byte, node.end_byte)))
        for node in self.marks.get("decorator", ()):
            owner = self._owner(node.start_byte)
            if owner and node.start_byte < owner.name_start:
                owner.decorators.append(_squeezed(self._text(node.start_byte, node.end_byte), _SIGNATURE))
        for node in self.marks.get("docstring", ()):
            owner = self._owner(node.start_byte)
            if owner and owner.body == node.start_byte:
                owner.docstring = _documentation(self._text(node.start_byte, node.end_byte))

    def _token_calls(self) -> Iterator[tuple[int, Call]]:
        for node in self.marks.get("token", ()):
            if self.source[node.end_byte : node.end_byte + 1] != b"(":
                continue
            before = self._text(max(node.start_byte - 100, 0), node.start_byte)
            chain = re.search(r"([\w:.]*?)(::|\.)\s*\Z", before)
            receiver = _SEPARATORS.sub(".", chain[1]) or None if chain else ""
            yield node.start_byte, (receiver, self._text(node.start_byte, node.end_byte))

    def _owner(self, offset: int) -> _Definition | None:
        starts, owners = self.segments
        place = owners[bisect_right(starts, offset) - 1] if starts and offset >= starts[0] else -1
        return self.definitions[place] if place >= 0 else None

    # Names

    def _name(self) -> None:
        for place, it in enumerate(self.definitions):
            parent = self.definitions[it.parent] if it.parent >= 0 else None
            it.space = parent.space if parent else ""
            if parent:
                parent.children.append(place)
            if it.capture == "namespace":
                it.space = _join(it.space, it.name)
                it.qualified = parent.qualified if parent else ""
                self.spaces[it.space] = None
                continue
            it.qualified = _join(parent.qualified if parent else "", it.name)
            it.kind = self._kind(it, parent)
        self._number()

    def _kind(self, it: _Definition, parent: _Definition | None) -> str:
        kind = _DEFINES[it.capture]
        member = parent is not None and parent.kind == "class"
        if kind == "function" and (member or ("." in it.name and self.language.members_in_scope)):
            return "method"
        return kind

    def _number(self) -> None:
        """Places in ``Parsed.symbols``, and which definition a name means: for functions the last one, since
        overloads come first, for types the first."""
        self.items = [it for it in self.definitions if it.kind]
        for symbol, it in enumerate(self.items, start=1):
            it.symbol = symbol
            if it.capture != "impl":
                for name in dict.fromkeys((it.qualified, self._full(it))):
                    if it.kind != "class":
                        self.named[name] = symbol
                    else:
                        self.named.setdefault(name, symbol)
        self.ends_of_names = {name.rpartition(".")[2] for name in self.named}
        self.keys = self._natural_keys()

    def _natural_keys(self) -> list[tuple[str, str]]:
        seen: Counter[str] = Counter()
        keys = []
        for it in self.items:
            name = _join(it.space, it.title)
            keys.append((name, str(seen[name])))
            seen[name] += 1
        return keys

    def _full(self, it: _Definition) -> str:
        return _join(self.module, _join(it.space, it.qualified))

    # Imports

    def _bind(self) -> None:
        for node in self.marks.get("import", ()):
            for found in self._imports(node):
                if _usable(found.reference):
                    self.imported.setdefault(found.reference, found.confidence)
                if found.name:
                    self.bindings[found.name] = found.dotted
        if re.search(self.language.package_file, self.path):
            root = self.module.partition(".")[0] + "."
            exported = [self._text(node.start_byte, node.end_byte) for node in self.marks.get("exported", ())]
            own = [name for name, full in self.bindings.items() if full.startswith(root)]
            self.reexported = [*own, *exported]

    def _imports(self, node: Node) -> Iterator[Import]:
        text = self._text(node.start_byte, min(node.end_byte, node.start_byte + 20_000))
        module = self._module_around(self._owner(node.start_byte))
        return self.language.imports(text, Here(self.path, module, self.bindings))

    def _module_around(self, it: _Definition | None) -> str:
        """The dotted name of the file's module, or of the innermost one that is written inside it."""
        while it is not None and it.capture != "scope":
            it = self.definitions[it.parent] if it.parent >= 0 else None
        return _join(self.module, it.qualified) if it else self.module

    # What a name means

    def _resolve(self, owner: _Definition | None, receiver: str | None, name: str) -> tuple[int | str, float] | None:
        """The target of a call and how sure that is; None for what belongs to the language."""
        if receiver is None:
            return None if name in self.language.builtin_methods else (f"symbol:{name}", 0.4)
        if name == "new" and self.language.name == "ruby" and receiver:
            receiver, _, name = receiver.rpartition(".")
        scoped = not receiver and "." in name
        if scoped:
            receiver, _, name = name.rpartition(".")
        if not receiver:
            return self._resolve_bare(owner, name)
        if receiver in self.language.itself or (owner is not None and receiver == owner.receiver):
            own = self.named.get(_join(self._container(owner), name))
            return (own, 0.95) if own else (f"symbol:{name}", 0.4)
        return self._resolve_dotted(owner, receiver, name, scoped)

    def _resolve_bare(self, owner: _Definition | None, name: str) -> tuple[int | str, float] | None:
        if found := self._in_scope(owner, name):
            return found
        if name in self.bindings:
            return f"symbol:{self.bindings[name]}", 0.9
        if name in self.language.builtins:
            return None
        own = self._in_package(name)
        return f"symbol:{own}", 0.5 if own == name else 0.7

    def _in_package(self, name: str) -> str:
        package = next(iter(self.spaces), "") if self.language.package_in_scope else ""
        return name if "." in name else _join(package, name)

    def _resolve_dotted(
        self, owner: _Definition | None, receiver: str, name: str, scoped: bool
    ) -> tuple[int | str, float] | None:
        """``scoped`` is how some languages tell a member of a type or namespace from one of a value."""
        if found := self._in_scope(owner, f"{receiver}.{name}"):
            return found
        root, _, rest = receiver.partition(".")
        if root in self.bindings:
            return f"symbol:{_join(_join(self.bindings[root], rest), name)}", 0.9
        if full := self.language.absolute(f"{receiver}.{name}", self._module_around(owner)):
            own = self.named.get(full)
            return (own, 1.0) if own else (f"symbol:{full}", 0.9)
        if root in self.language.builtins or (name in self.language.builtin_methods and not scoped):
            return None
        last = receiver.rpartition(".")[2]
        if not scoped and self.language.types_capitalised and last[:1].isupper() and not last.isupper():
            receiver, scoped = last, True
        return (f"symbol:{receiver}.{name}", 0.6) if scoped else (f"symbol:{name}", 0.4)

    def _in_scope(self, owner: _Definition | None, name: str) -> tuple[int, float] | None:
        """Look outwards from ``owner``; only some languages let a bare name mean a member of the class."""
        if name.rpartition(".")[2] not in self.ends_of_names:
            return None
        while owner is not None:
            if owner.kind != "class" or self.language.members_in_scope or "." in name:
                found = self.named.get(_join(owner.qualified, name))
                if found:
                    return found, 0.95 if owner.kind == "class" else 1.0
            if self.language.members_in_scope and "." in owner.name:
                found = self.named.get(_join(owner.qualified.rpartition(".")[0], name))
                if found:
                    return found, 0.95
            owner = self.definitions[owner.parent] if owner.parent >= 0 else None
        top = self.named.get(name)
        return (top, 1.0) if top else None

    def _container(self, owner: _Definition | None) -> str:
        """What ``self`` stands for: the class around, or the first part of a name like ``app.handle``."""
        while owner is not None:
            if owner.kind == "class" or owner.capture == "scope":
                return owner.qualified
            if "." in owner.name:
                return owner.qualified.rpartition(".")[0]
            owner = self.definitions[owner.parent] if owner.parent >= 0 else None
        return ""

    # Relations

    def _meant(self, owner: _Definition | None, calls: Iterable[Call]) -> Iterator[tuple[str, int | str, float]]:
        """What each call means, each target once, in the order of their first appearance."""
        seen: set[int | str] = set()
        for receiver, name in dict.fromkeys(calls):
            found = self._resolve(owner, receiver, name)
            if found and found[0] not in seen and _usable(found[0]):
                seen.add(found[0])
                yield name, *found

    def _call_links(self, it: _Definition) -> Iterator[Link]:
        found = (("calls", target, confidence) for _, target, confidence in it.meant if target != it.symbol)
        yield from islice(found, _CALLS)

    def _base_links(self, it: _Definition) -> Iterator[Link]:
        for base in dict.fromkeys(it.bases):
            parent = self.definitions[it.parent] if it.parent >= 0 else None
            found = self._in_scope(parent, base)
            if base in {"", "object"}:
                continue
            if found and found[0] != it.symbol:
                yield "inherits", found[0], 1.0
                continue
            root, _, rest = base.partition(".")
            bound = root in self.bindings
            target = _join(self.bindings[root], rest) if bound else self._in_package(base)
            if _usable(f"symbol:{target}"):
                yield "inherits", f"symbol:{target}", 0.9 if bound else 0.5

    def _tested(self, meant: Iterable[tuple[str, int | str, float]]) -> Iterator[Link]:
        """What a test calls of its own file, of what it imports, and the types that it constructs, unless a test
        library has them. Which imports are the project's own no single file tells; the others find nothing."""
        for name, target, confidence in meant:
            if isinstance(target, int):
                wanted = target not in self.among_tests
            else:
                wanted = confidence >= 0.6 or (confidence == 0.5 and name[:1].isupper())
                wanted = wanted and not self._is_library(target)
            if wanted:
                yield "tests", target, round(confidence - 0.1, 2)

    def _is_library(self, target: str) -> bool:
        name = target.partition(":")[2]
        return not self.language.libraries.isdisjoint(accumulate(name.split("."), "{}.{}".format))

    def _test_module_links(self) -> Iterator[Link]:
        if self.test_file:
            groups = {key: value or "" for key, value in self.test_file.groupdict().items()}
            groups["subject"] = groups.get("subject") or groups.get("subject2", "")
            for template, confidence in self.language.test_targets if groups["subject"] else ():
                yield "tests", template.format(**groups), confidence
        if self.tests:
            yield from islice(self._tested(self._meant(None, self.loose_calls)), _CALLS)

    def _find_tests(self) -> None:
        """Tests are what looks like one, and what only helps them: it is in a file of tests, or inside of one."""
        marked = re.compile(self.language.test_mark)
        named = re.compile(self.language.test_name)
        helping: list[bool] = []
        for it in self.definitions:
            mark = any(map(marked.search, it.decorators))
            it.is_test = it.kind not in {"", "class"} and (
                mark or (self.tests and named.match(it.name.rpartition(".")[2]) is not None)
            )
            helping.append(self.tests or mark or it.is_test or (it.parent >= 0 and helping[it.parent]))
        self.among_tests = {it.symbol for it, helps in zip(self.definitions, helping, strict=True) if helps}

    def _test_links(self, it: _Definition) -> Iterator[Link]:
        if it.kind == "class" and self.tests:
            if found := _TEST_CLASS.fullmatch(it.name):
                yield "tests", f"symbol:{found[1] or found[2]}", 0.5
        elif it.is_test:
            yield from islice(self._tested(it.meant), _CALLS)

    # Items

    def _module(self) -> Symbol:
        top = list(self._below([place for place, it in enumerate(self.definitions) if it.parent < 0]))
        statements = _bounded(_blank_lines(self._without(0, len(self.source), top, signatures=False)), _STATEMENTS)
        outline = _bounded("\n".join(self._outline(top)), _OUTLINE)
        docstring = self._module_docstring()
        title = self.module or self.path
        name = title if self.module else self.path.rpartition("/")[2]
        return Symbol(
            kind="module",
            title=title,
            key=("", "0"),
            text="\n\n".join(filter(None, [statements, outline])) or "(empty)",
            start_line=1,
            end_line=max(self._line(max(len(self.source) - 1, 0)), 1),
            structured={
                "name": name,
                "qualified_name": title,
                "signature": "",
                "docstring": docstring,
                "definitions": len(self.items),
            },
            links=tuple(self._module_links(top)),
            names=self._module_names(),
            tags=self._tags(None),
        )

    def _module_docstring(self) -> str:
        first = next(iter(self.marks.get("comment", ())), None)
        lead = re.match(rb"""\s*(?:#[^\n]*\n\s*)*[rRuU]?(\"{3}|'{3})(.*?)\1""", self.source, re.DOTALL)
        if lead and self.language.name == "python":
            return _documentation(lead[2].decode("utf-8", "replace"))
        if first is None or self.source[: first.start_byte].strip() not in {b"", b"<?php"}:
            return ""
        if (owner := self._owner(first.start_byte)) is not None and owner.kind:
            return ""
        end = first.end_byte
        for comment in self.marks["comment"][1:]:
            if self.source[end : comment.start_byte].strip() or self.source[end : comment.start_byte].count(b"\n") > 1:
                break
            end = comment.end_byte
        return _documentation(self._text(first.start_byte, end))

    def _module_links(self, top: Sequence[int]) -> Iterator[Link]:
        for place in top:
            yield "defines", self.definitions[place].symbol, 1.0
        for target, confidence in list(self.imported.items())[:_IMPORTS]:
            yield "imports", target, confidence
        yield from self._test_module_links()

    def _module_names(self) -> tuple[str, ...]:
        names = [self.module, self.module.rpartition(".")[2], *self.spaces, *self.language.file_names(self.path)]
        prefix = self.module or next(iter(self.spaces), "")
        variables = [self._text(node.start_byte, node.end_byte) for node in self.marks.get("variable", ())]
        plain = [name for name in variables if name not in self.named and name not in self.bindings]
        inside = [_join(prefix, name) for name in (*plain, *self.reexported)]
        return tuple(dict.fromkeys(filter(None, [*names, *inside[:_VARIABLES]])))

    def _symbol(self, it: _Definition) -> Symbol:
        start = self._line_start(it.start)
        links = [("defines", self.definitions[child].symbol, 1.0) for child in self._below(it.children)]
        own = self._base_links(it) if it.kind == "class" else self._call_links(it)
        name = it.qualified.rpartition(".")[2]
        return Symbol(
            kind=it.kind,
            title=it.title,
            key=self.keys[it.symbol - 1],
            text=_dedented(self._class_text(it, start) if it.kind == "class" else self._text(start, it.end)),
            start_line=self._line(it.start),
            end_line=self._line(max(it.end - 1, it.start)),
            structured=self._structured(it, name),
            links=(*links, *own, *self._test_links(it)),
            names=tuple(dict.fromkeys((name, it.qualified, self._full(it)))),
            tags=self._tags(it),
        )

    def _indent(self, offset: int) -> str:
        return self._text(self.line_starts[self._line(offset) - 1], offset) if self._alone(offset) else ""

    def _line_start(self, offset: int) -> int:
        """Where the line starts if only blanks stand before ``offset``: then the indentation belongs to the text."""
        return self.line_starts[self._line(offset) - 1] if self._alone(offset) else offset

    def _structured(self, it: _Definition, name: str) -> dict[str, Any]:
        head = self._text(it.head, it.name_start)
        docstring = it.docstring or _documentation(self._text(it.start, it.head) if it.start < it.head else "")
        structured: dict[str, Any] = {
            "name": name,
            "qualified_name": it.qualified,
            "signature": it.signature,
            "docstring": docstring,
        }
        if it.decorators:
            structured["decorators"] = it.decorators
        if visibility := self.language.visibility(name, head):
            structured["visibility"] = visibility
        return structured

    def _signature(self, it: _Definition) -> str:
        end = min(it.body, it.head + 4 * _SIGNATURE)
        text = self._without_asides(it.head, end)
        if it.body == it.end and it.kind == "class":
            text = text.partition("{")[0]
        text = _SIGNATURE_END.sub("", _squeezed(text, _SIGNATURE))
        return text if it.name_start < end else f"{text} {it.name}"

    def _without_asides(self, start: int, end: int) -> str:
        """The text without comments and decorators."""
        parts = []
        for place in range(bisect_left(self.asides, (start,)), len(self.asides)):
            begin, stop = self.asides[place]
            if begin >= end:
                break
            parts.append(self._text(start, begin))
            start = max(stop, start)
        return "".join([*parts, self._text(start, max(end, start))])

    def _below(self, places: Iterable[int]) -> Iterator[int]:
        """These definitions, with those inside in the place of a scope that is no item itself."""
        waiting = list(places)[::-1]
        while waiting:
            it = self.definitions[waiting[-1]]
            place = waiting.pop()
            if it.kind:
                yield place
            else:
                waiting.extend(it.children[::-1])

    def _without(self, start: int, end: int, places: Sequence[int], *, signatures: bool) -> str:
        """The text with each of these definitions cut down to its signature, or cut out."""
        parts = []
        for place in places:
            it = self.definitions[place]
            parts.append(self._text(start, max(it.start, start)))
            if signatures:
                indent = "\n" + self._indent(it.start)
                parts.append(indent.join([*it.decorators, it.signature]))
            start = max(it.end, start)
            start += self.source[start : start + 1] in {b";", b","}
        return "".join([*parts, self._text(start, end)])

    def _class_text(self, it: _Definition, start: int) -> str:
        inside = list(self._below(it.children))
        return _bounded(_blank_lines(self._without(start, it.end, inside, signatures=True)), _CLASS)

    def _outline(self, places: Sequence[int], indent: str = "") -> Iterator[str]:
        for place in places:
            it = self.definitions[place]
            yield f"{indent}{it.signature}"
            if it.kind == "class" and len(indent) < 2 * DEEPEST:
                yield from self._outline(list(self._below(it.children)), indent + "    ")

    def _tags(self, it: _Definition | None) -> tuple[str, ...]:
        test = it.symbol in self.among_tests if it else self.tests
        return (self.language.name, "test") if test else (self.language.name,)


def _segments(definitions: Sequence[_Definition]) -> tuple[list[int], list[int]]:
    """Offsets and, from each on, the innermost definition (-1 for none)."""
    starts: list[int] = []
    owners: list[int] = []
    around: list[int] = []

    def leave(offset: float) -> None:
        while around and definitions[around[-1]].end <= offset:
            starts.append(definitions[around.pop()].end)
            owners.append(around[-1] if around else -1)

    for place, it in enumerate(definitions):
        leave(it.start)
        around.append(place)
        starts.append(it.start)
        owners.append(place)
    leave(float("inf"))
    return starts, owners


@lru_cache(maxsize=50_000)
def dotted(text: str) -> str:
    """``a<T>::b`` is ``a.b``: one form of names for all languages. What is too long to be a name is ""."""
    if len(text) > _NAME_TEXT:
        return ""
    for _ in range(text.count("<")):
        text = _GENERIC.sub("", text)
    return _SEPARATORS.sub(".", _BRACKETS.sub("", text)).strip(" \t\r\n*&.:")


@lru_cache(maxsize=50_000)
def _chain(text: str) -> str | None:
    """The dotted form of what stands before a dot, if it is made of plain names."""
    chain = _SEPARATORS.sub(".", text)
    return chain if _CHAIN.match(chain) else None


@lru_cache(maxsize=50_000)
def defined_name(text: str) -> str:
    """The name that a definition gives, dotted. ``exports.f`` and ``this.f`` are f, ``C.prototype.f`` is C.f; an
    operator's name stays as written."""
    scope, operator, symbol = text.partition("operator")
    if operator and not symbol[:1].isalnum() and symbol[:1] != "_":
        symbol = "()" if symbol.strip().startswith("()") else symbol.partition("(")[0]
        return _join(dotted(scope), " ".join(f"{operator}{symbol}".split()))
    text = _REFERENCE_TYPE.sub("", text)
    if not re.match(r"[\w$@#~\\]", text):
        return _squeezed(text.strip("'\""), _NAME)
    name = dotted(text).replace(".prototype.", ".")
    name = re.sub(r"\A(?:module\.exports|exports|this|self)\.(?=.)", "", name)
    return name.split()[-1][:_NAME] if name.strip() else ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _usable(target: int | str) -> bool:
    """Whether a reference can be one: broken source gives names with blanks or none at all."""
    return isinstance(target, int) or _REFERENCE.match(target) is not None


def _squeezed(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bounded(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = text[:limit].rpartition("\n")[0] or text[:limit]
    return f"{kept}\n… ({text.count(chr(10), len(kept)) or 1} more lines)"


def _blank_lines(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", text).strip("\n").rstrip()


def _dedented(text: str) -> str:
    indent = text[: len(text) - len(text.lstrip(" \t"))]
    return text[len(indent) :].replace(f"\n{indent}", "\n") if indent else text


def _documentation(text: str) -> str:
    """The first paragraph of a docstring or of comments, as one line."""
    if not (text := text.strip()):
        return ""
    if quoted := _QUOTE.match(text):
        text = text[quoted.end() :].removesuffix(quoted[1])
    else:
        comments = [_COMMENT_MARK.sub("", comment) for comment in _COMMENT.findall(text)]
        text = _XML.sub("", "\n".join(comment for comment in comments if not _MAGIC.match(comment)))
    return _squeezed(_PARAGRAPH.split(text.strip(), maxsplit=1)[0], _DOCSTRING)
