"""The languages that ``symbols`` reads: one declarative ``Language`` each. A new language is one more entry.

A query marks what matters with these captures; everything else is read off the marks by position:

================  ==========================================================================================
``@class``        a definition whose members belong to it; ``@function`` and ``@method`` likewise. The same
                  pattern captures its ``@name``, and its ``@body`` where that is not a field called "body";
                  ``@receiver.type`` is where a name is qualified apart from it (Go)
``@prototype``    a function's declaration: kept only where the file has no definition of that name
``@impl``         a block of methods for a type that is defined elsewhere (Rust); ``@name`` is the type
``@scope``        gives names a prefix and makes no item (an inline module, an object that holds functions)
``@namespace``    like ``@scope``, but the prefix shows in full names only; without a body it reaches on
``@wrapper``      a node that belongs to the definition ``@inner`` inside it (decorators, ``export``)
``@callee``       the name that is called, with ``@receiver`` for what stands before it
``@token``        an identifier among unparsed tokens, a call if a parenthesis follows (Rust macros)
``@base``         what the innermost class inherits, implements or embeds
``@import``       a statement or call that imports; ``Language.imports`` reads its text
``@decorator``    a decorator, annotation or attribute, of the definition whose name it stands before
``@above``        an attribute that is a sibling before its definition and belongs to it
``@comment``      a comment; ``@docstring`` a string that documents the definition whose body it starts
``@variable``     a name that the module itself defines; ``@exported`` one that it says it offers
================  ==========================================================================================
"""

from __future__ import annotations

import builtins
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Final

from tree_sitter import Language as Grammar
from tree_sitter import Query


@dataclass(frozen=True)
class Here:
    """Where an import stands: the file's path, the dotted name of the module or inline module around it, and
    what names the imports before it have bound."""

    path: str
    module: str
    bound: Mapping[str, str]


@dataclass(frozen=True)
class Import:
    """One imported thing: the reference to relate to, and the local name that it binds to a full dotted name."""

    reference: str
    confidence: float = 1.0
    name: str = ""
    dotted: str = ""


@dataclass(frozen=True)
class Language:
    """How one language is read. Names are dotted everywhere, whatever the language writes between parts.

    ``module`` makes a file's dotted name from its path ("" where packages are declared inside the file).
    ``package_file`` finds files that define, for those who import them, also what they import or export.
    ``members_in_scope``: a bare call may mean a method of the same class. ``package_in_scope``: an unknown bare
    name belongs to the same package. ``types_capitalised``: an unknown capitalised receiver is a type.
    ``test_file`` finds test files by path, its group ``subject`` naming what they test; ``test_targets`` are
    templates over its groups, with confidences. ``absolute`` is the full form of a dotted name that starts with a
    word for a place (``crate``, ``super``) inside a module, "" for others.
    ``endless`` finds what the grammar would take hours for.
    """

    name: str
    extensions: tuple[str, ...]
    grammar: tuple[str, str]
    query: str
    imports: Callable[[str, Here], Iterator[Import]]
    module: Callable[[str], str] = lambda path: ""
    package_file: str = r"(?!)"
    file_names: Callable[[str], tuple[str, ...]] = lambda path: ()
    itself: frozenset[str] = frozenset({"this"})
    members_in_scope: bool = False
    package_in_scope: bool = False
    types_capitalised: bool = False
    builtins: frozenset[str] = frozenset()
    builtin_methods: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    visibility: Callable[[str, str], str] = lambda name, head: _keyword(head)
    test_file: str = r"(?!)"
    test_targets: tuple[tuple[str, float], ...] = (("symbol:{subject}", 0.5),)
    test_name: str = r"(?!)"
    test_mark: str = r"(?!)"
    absolute: Callable[[str, str], str] = lambda name, module: ""
    endless: bytes = rb"(?!)"


def language_of(path: str, head: bytes = b"") -> Language | None:
    """The language of a file, by its extension; a header is C++ where ``head`` looks like it."""
    found = _BY_EXTENSION.get(posixpath.splitext(path)[1].lower())
    if found is not None and found.name == "c" and path.endswith(".h") and _CPP_SIGN.search(head):
        return _BY_EXTENSION[".cpp"]
    return found


@cache
def compiled(grammar: tuple[str, str], query: str) -> tuple[Grammar, Query]:
    """The grammar, whose wheel is imported on first use, and the query for it."""
    package, function = grammar
    loaded = Grammar(getattr(import_module(package), function)())
    return loaded, Query(loaded, query)


# Names of modules


def _without_extension(path: str) -> str:
    return posixpath.splitext(path)[0]


def _python_module(path: str) -> str:
    """``src/pkg/mod.py`` is pkg.mod: folders that no import can name (``my-app``) and source roots are left out."""
    parts = _without_extension(path).split("/")
    usable = next((i for i in range(len(parts) - 1, 0, -1) if not parts[i - 1].isidentifier()), 0)
    parts = parts[usable:]
    while len(parts) > 1 and parts[0] in {"src", "lib", "python"}:
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _path_module(path: str) -> str:
    stem = _without_extension(path.removesuffix(".d.ts"))
    return stem.removesuffix("/index").replace("/", ".")


def _ruby_module(path: str) -> str:
    found = re.search(r"(?:^|/)(?:lib|app/\w+)/(.+)$", _without_extension(path))
    return (found[1] if found else _without_extension(path)).replace("/", ".")


def _rust_module(path: str) -> str:
    """``crates/my-lib/src/a/mod.rs`` is my_lib.a; the crate at the root, whose name no path tells, is ``crate``."""
    stem = _without_extension(path).replace("-", "_")
    found = re.match(r"(?:.*/)?([^/]+)/src/(.+)|src/(.+)|(?:.*/)?crates/([^/]+)/(.+)", stem)
    if not found:
        return stem.replace("/", ".")
    crate, inside = found[1] or found[4] or "crate", found[2] or found[3] or found[5]
    parts = inside.split("/")
    return ".".join([crate, *parts[:-1], *(part for part in parts[-1:] if part not in {"lib", "main", "mod"})])


def _header_names(path: str) -> tuple[str, ...]:
    """What an ``#include`` may call this file: its name, and its path below a folder of headers."""
    found = re.search(r"(?:^|/)(?:include|src|lib)/(.+)$", path)
    name = posixpath.basename(path)
    return tuple(dict.fromkeys([name, _without_extension(name), found[1] if found else path]))


# Imports


def _renamed(text: str) -> tuple[str, str]:
    """``a as b`` is ("a", "b"); without a new name it is ""."""
    name, _, alias = text.strip().partition(" as ")
    return name.strip(), alias.strip()


def _python_imports(text: str, here: Here) -> Iterator[Import]:
    text = " ".join(re.sub(r"#[^\n]*|[()\\;]", " ", text).split())
    found = re.match(r"from (\.*) ?([\w.]*) ?import (.*)", text)
    if not found:
        for name, alias in map(_renamed, text.removeprefix("import").split(",")):
            root = name.split(".")[0]
            yield Import(f"symbol:{name}", 1.0, alias or root, name if alias else root)
        return
    base = _python_base(len(found[1]), found[2], here)
    if base:
        yield Import(f"symbol:{base}")
    for name, alias in map(_renamed, found[3].split(",")):
        if name and name != "*":
            full = f"{base}.{name}".lstrip(".")
            yield Import(f"symbol:{full}", 0.9, alias or name, full)


def _python_base(dots: int, name: str, here: Here) -> str:
    if not dots:
        return name
    package = here.module.split(".")
    up = dots - 1 if posixpath.basename(here.path).startswith("__init__.") else dots
    return ".".join([*package[: max(len(package) - up, 0)], *filter(None, [name])])


_SCRIPT_SOURCE: Final = re.compile(r"""(?:\bfrom\b|\bimport\b|\brequire\b)\s*\(?\s*(['"`])(.+?)\1""")
_ASSET_EXTENSIONS: Final = (".json", ".vue", ".svelte", ".css", ".scss", ".less", ".svg", ".png", ".html", ".md")
_SCRIPT_EXTENSIONS: Final = (".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".mts", ".cts")


def _script_imports(text: str, here: Here) -> Iterator[Import]:
    found = _SCRIPT_SOURCE.search(text)
    if not found:
        return
    source, module = found[2], found[2].removeprefix("node:").replace("/", ".")
    if source.startswith("."):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here.path), source))
        if source.endswith(("/", ".")):
            path = posixpath.normpath(f"{path}/index")
        module = _path_module(path if path.endswith(_SCRIPT_EXTENSIONS) else f"{path}.js")
        yield _script_path(path, here)
    yield Import(f"symbol:{module}", 0.9)
    before = re.sub(r"^\s*(?:import|export|const|let|var)\b|\btype\b", "", text[: found.start()])
    for name, alias in _script_names(before):
        yield Import(
            f"symbol:{module}.{name}" if name else f"symbol:{module}", 0.9, alias, f"{module}.{name}".strip(".")
        )


def _script_path(path: str, here: Here) -> Import:
    """The file behind a relative import. Where it names no extension it is most likely the importer's own."""
    own = posixpath.splitext(here.path)[1]
    stem, extension = posixpath.splitext(path)
    if extension in _ASSET_EXTENSIONS:
        return Import(f"path:{path}", 0.9)
    if extension not in _SCRIPT_EXTENSIONS:
        return Import(f"path:{path}{own}", 0.7)
    # TypeScript names the file that it will be compiled to.
    return Import(f"path:{stem}{own}" if "ts" in own and "js" in extension else f"path:{path}", 0.9)


def _script_names(clause: str) -> Iterator[tuple[str, str]]:
    """``(imported, local)`` for each name bound; imported is "" for the module as a whole."""
    braces = re.search(r"\{(.*)\}", clause, re.DOTALL)
    for part in braces[1].split(",") if braces else ():
        name, alias = _renamed(part.replace(":", " as ").split("=")[0].replace("\n", " "))
        if name:
            local = alias or name
            yield ("" if name == "default" else " ".join(name.split())), " ".join(local.split())
    for local in re.findall(r"[\w$]+", re.sub(r"\{.*\}|\bas\b|\bawait\b", " ", clause, flags=re.DOTALL)):
        yield "", local


def _go_imports(text: str, here: Here) -> Iterator[Import]:
    found = re.match(r"""\s*([\w.]*)\s*["`](.+?)["`]""", text)
    if not found:
        return
    parts = [part for part in found[2].split("/") if not re.fullmatch(r"v\d+", part)] or [found[2]]
    package = re.sub(r"\.v\d+$", "", parts[-1])
    yield Import(f"symbol:{found[2]}")
    name = found[1] or package
    yield Import(f"symbol:{package}", 0.6, "" if name in {".", "_"} else name, package)


def _java_imports(text: str, here: Here) -> Iterator[Import]:
    found = re.search(r"import\s+(?:static\s+)?([\w.]+?)\s*(\.\s*\*)?\s*;", text)
    if found and found[2]:
        yield Import(f"symbol:{found[1]}", 0.7)
    elif found:
        yield Import(f"symbol:{found[1]}", 1.0, found[1].rpartition(".")[2], found[1])


def _csharp_imports(text: str, here: Here) -> Iterator[Import]:
    found = re.search(r"using\s+(?:static\s+|unsafe\s+)*(?:(\w+)\s*=\s*)?(?:global::)?([\w.]+)", text)
    if found:
        yield Import(f"symbol:{found[2]}", 1.0 if found[1] else 0.7, found[1] or "", found[2])


def _tree_imports(text: str, separator: str) -> Iterator[tuple[str, str]]:
    """``(full, local)`` for each leaf of ``a::{b, c::{d as e, self}, f::*}``; local is "" for a wildcard."""
    prefixes: list[list[str]] = []
    path: list[str] = []
    alias, renaming = "", False
    for word in [*re.findall(r"[{},*]|[\w$]+", text), ","]:
        if word == "{":
            prefixes.append(path)
            path = list(path)
        elif word in ",}":
            if path and (not prefixes or path != prefixes[-1]):
                yield _leaf(path, alias)
            path, alias, renaming = list(prefixes[-1]) if prefixes else [], "", False
            if word == "}" and prefixes:
                prefixes.pop()
                path = list(prefixes[-1]) if prefixes else []
        elif word == "as":
            renaming = True
        elif renaming:
            alias = word
        else:
            path.append(word)


def _leaf(path: list[str], alias: str) -> tuple[str, str]:
    if path[-1] == "*":
        return ".".join(path[:-1]), ""
    if path[-1] == "self" and len(path) > 1:
        path = path[:-1]
    return ".".join(path), alias or path[-1]


def _rust_imports(text: str, here: Here) -> Iterator[Import]:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    module = re.match(r"(?:\s*#\[[^\]]*\])*\s*(?:pub\s*(?:\([^)]*\))?\s*)?mod\s+(\w+)", text)
    if module:
        yield Import(f"symbol:{here.module}.{module[1]}", 1.0, module[1], f"{here.module}.{module[1]}")
        return
    tree = re.sub(r"^.*?\b(?:use|extern\s+crate)\b", "", text, count=1, flags=re.DOTALL)
    for name, local in _tree_imports(tree, "::"):
        root, dot, rest = name.partition(".")
        bound = f"{here.bound[root]}{dot}{rest}" if root in here.bound else name
        full = _rust_absolute(name, here.module) or bound
        yield Import(f"symbol:{full}", 0.9 if local else 0.7, "" if local == "_" else local, full)


def _rust_absolute(name: str, module: str) -> str:
    parts, at = name.split("."), module.split(".")
    if parts[0] == "crate":
        return ".".join([at[0], *parts[1:]])
    if parts[0] not in {"self", "super"}:
        return ""
    while parts and parts[0] in {"self", "super"}:
        at = at[:-1] if parts[0] == "super" else at
        parts = parts[1:]
    return ".".join([*at, *parts])


def _php_imports(text: str, here: Here) -> Iterator[Import]:
    if found := re.match(r"\s*(?:require|include)(?:_once)?\b.*?(['\"])(.+?)\1", text, re.DOTALL):
        folder = posixpath.dirname(here.path)
        yield Import(f"path:{posixpath.normpath(posixpath.join(folder, found[2].lstrip('/')))}", 0.7)
        return
    tree = re.sub(r"^\s*use\b|\b(?:function|const)\s", " ", text)
    for name, local in _tree_imports(tree, "\\"):
        yield Import(f"symbol:{name}", 1.0, local, name)


def _ruby_imports(text: str, here: Here) -> Iterator[Import]:
    found = re.match(r"""(\w+)[\s(]+(?::\w+\s*,\s*)?(['"])(.+?)\2""", text)
    if not found:
        return
    if found[1] == "require_relative":
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here.path), found[3]))
        yield Import(f"path:{path.removesuffix('.rb')}.rb")
    else:
        yield Import(f"symbol:{found[3].removesuffix('.rb').replace('/', '.')}", 0.9)


def _c_imports(text: str, here: Here) -> Iterator[Import]:
    found = re.search(r"""include\s*(["<])([^">]+)[">]""", text)
    if not found:
        return
    if found[1] == '"':
        yield Import(f"path:{posixpath.normpath(posixpath.join(posixpath.dirname(here.path), found[2]))}", 0.8)
    yield Import(f"symbol:{found[2]}", 0.6)


# Visibility


def _keyword(head: str) -> str:
    found = re.search(r"\b(public|private|protected|internal|pub)\b", head)
    return ("public" if found[1] == "pub" else found[1]) if found else ""


def _underscore(name: str, head: str) -> str:
    return "private" if name.startswith("_") and not name.endswith("__") else "public"


def _capital(name: str, head: str) -> str:
    return "public" if name[:1].isupper() else "private"


# The table


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PYTHON_METHODS: Final = frozenset(
    name for type_ in (str, bytes, list, dict, set, tuple, int, float) for name in dir(type_) if name[0] != "_"
)

_PYTHON: Final = Language(
    name="python",
    extensions=(".py", ".pyi"),
    grammar=("tree_sitter_python", "language"),
    query="""
    (class_definition name: (identifier) @name body: (_) @body) @class
    (function_definition name: (identifier) @name body: (_) @body) @function
    (decorated_definition definition: (_) @inner) @wrapper
    (class_definition superclasses: (argument_list [(identifier) (attribute) (subscript)] @base))
    (call function: (identifier) @callee)
    (call function: (attribute object: (_) @receiver attribute: (identifier) @callee))
    [(import_statement) (import_from_statement)] @import
    (decorator) @decorator
    (comment) @comment
    (block . (expression_statement . (string) @docstring))
    (module (expression_statement (assignment left: (identifier) @variable)))
    ((module (expression_statement (assignment left: (identifier) @_all
        right: [(list (string (string_content) @exported)) (tuple (string (string_content) @exported))])))
        (#eq? @_all "__all__"))
    """,
    imports=_python_imports,
    module=_python_module,
    package_file=r"(?:^|/)__init__\.pyi?$",
    itself=_words("self cls"),
    builtins=frozenset(dir(builtins)),
    builtin_methods=_PYTHON_METHODS,
    libraries=frozenset(sys.stdlib_module_names) | _words("pytest hypothesis mock dirty_equals"),
    visibility=_underscore,
    test_file=r"(?:^|/)(?:test_(?P<subject>\w+)|(?P<subject2>\w+)_tests?)\.py$",
    test_name=r"test",
)

_SCRIPT_QUERY: Final = """
    (function_declaration name: (identifier) @name) @function
    (generator_function_declaration name: (identifier) @name) @function
    (method_definition name: (_) @name) @function
    (variable_declarator name: (identifier) @name
        value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)
                (generator_function body: (_) @body)]) @function
    (assignment_expression left: [(identifier) (member_expression)] @name
        right: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function
    (variable_declarator name: (identifier) @name value: (class body: (_) @body)) @class
    (assignment_expression left: (member_expression) @name right: (class body: (_) @body)) @class
    (pair key: (property_identifier) @name
        value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function
    (variable_declarator name: (identifier) @name value: (object)) @scope
    (assignment_expression left: (member_expression) @name right: (object)) @scope
    (export_statement declaration: (_) @inner) @wrapper
    (export_statement "default" value: (_) @inner) @wrapper
    (lexical_declaration . (variable_declarator) @inner .) @wrapper
    (variable_declaration . (variable_declarator) @inner .) @wrapper
    (expression_statement (assignment_expression) @inner) @wrapper
    (call_expression function: (identifier) @callee)
    (call_expression function: (member_expression object: (_) @receiver property: (_) @callee))
    (new_expression constructor: (identifier) @callee)
    (new_expression constructor: (member_expression object: (_) @receiver property: (_) @callee))
    (import_statement) @import
    (export_statement source: (_)) @import
    ((call_expression function: (identifier) @_f arguments: (arguments . (string))) @import
        (#eq? @_f "require"))
    (call_expression function: (import)) @import
    ((variable_declarator value: (call_expression function: (identifier) @_f)) @import
        (#eq? @_f "require"))
    (decorator) @decorator
    (comment) @comment
    (program (lexical_declaration (variable_declarator name: (identifier) @variable)))
    (program (export_statement (lexical_declaration (variable_declarator name: (identifier) @variable))))
    """

_JSX_QUERY: Final = """
    ((jsx_opening_element name: (identifier) @callee) (#match? @callee "^[A-Z]"))
    ((jsx_self_closing_element name: (identifier) @callee) (#match? @callee "^[A-Z]"))
    """

_SCRIPT_BUILTINS: Final = _words(
    "require parseInt parseFloat isNaN isFinite setTimeout setInterval setImmediate clearTimeout clearInterval "
    "queueMicrotask structuredClone encodeURIComponent decodeURIComponent encodeURI decodeURI fetch alert "
    "Object Array String Number Boolean Symbol BigInt Date RegExp Error TypeError RangeError SyntaxError Promise "
    "Map Set WeakMap WeakSet WeakRef Proxy Reflect JSON Math Intl Buffer URL URLSearchParams console process "
    "Function ArrayBuffer Uint8Array super window document globalThis"
)
_SCRIPT_METHODS: Final = _words(
    "push pop shift unshift slice splice concat join split map filter reduce reduceRight forEach find findIndex "
    "some every includes indexOf lastIndexOf sort reverse keys values entries fill flat flatMap trim toString "
    "toLowerCase toUpperCase charAt charCodeAt replace replaceAll match startsWith endsWith padStart padEnd repeat "
    "substring substr call apply bind then catch finally hasOwnProperty toFixed test exec"
)
_SCRIPT_TEST_LIBRARIES: Final = _words(
    "assert chai mocha jest vitest sinon supertest node:test node:assert after before should @jest.globals"
)
_SCRIPT_TEST_FILE: Final = (
    r"(?:(?P<dir>(?:[^/]+/)*?)(?:__tests__/)?(?:test\.)?(?P<subject>[\w.-]+?)"
    r"[.-](?:spec|test|cy)(?P<extension>\.[cm]?[jt]sx?))$"
)
_SCRIPT_PACKAGE: Final = r"(?:^|/)index\.[cm]?[jt]sx?$"
_SCRIPT_TEST_TARGETS: Final = (("path:{dir}{subject}{extension}", 0.8), ("symbol:{subject}", 0.4))

_JAVASCRIPT: Final = Language(
    name="javascript",
    extensions=(".js", ".jsx", ".mjs", ".cjs"),
    grammar=("tree_sitter_javascript", "language"),
    query=_SCRIPT_QUERY
    + _JSX_QUERY
    + """
    (class_declaration name: (_) @name) @class
    (class_heritage [(identifier) (member_expression)] @base)
    (field_definition property: (_) @name value: [(arrow_function body: (_) @body)
        (function_expression body: (_) @body)]) @function
    """,
    imports=_script_imports,
    module=_path_module,
    package_file=_SCRIPT_PACKAGE,
    builtins=_SCRIPT_BUILTINS,
    builtin_methods=_SCRIPT_METHODS,
    libraries=_SCRIPT_TEST_LIBRARIES,
    test_file=_SCRIPT_TEST_FILE,
    test_targets=_SCRIPT_TEST_TARGETS,
)

_TYPESCRIPT_QUERY: Final = (
    _SCRIPT_QUERY
    + """
    (class_declaration name: (_) @name) @class
    (abstract_class_declaration name: (_) @name) @class
    (interface_declaration name: (_) @name) @class
    (enum_declaration name: (_) @name) @class
    (type_alias_declaration name: (_) @name) @class
    (function_signature name: (_) @name) @function
    (abstract_method_signature name: (_) @name) @function
    (class_body (method_signature name: (_) @name) @function)
    (internal_module name: (_) @name) @scope
    (ambient_declaration (_) @inner) @wrapper
    (class_heritage (extends_clause value: (_) @base))
    (class_heritage (implements_clause (_) @base))
    (extends_type_clause type: (_) @base)
    (public_field_definition name: (_) @name value: [(arrow_function body: (_) @body)
        (function_expression body: (_) @body)]) @function
    """
)

_TYPESCRIPT: Final = Language(
    name="typescript",
    extensions=(".ts", ".mts", ".cts"),
    grammar=("tree_sitter_typescript", "language_typescript"),
    query=_TYPESCRIPT_QUERY,
    imports=_script_imports,
    module=_path_module,
    package_file=_SCRIPT_PACKAGE,
    builtins=_SCRIPT_BUILTINS,
    builtin_methods=_SCRIPT_METHODS,
    libraries=_SCRIPT_TEST_LIBRARIES,
    test_file=_SCRIPT_TEST_FILE,
    test_targets=_SCRIPT_TEST_TARGETS,
)

_TSX: Final = Language(
    name="typescript",
    extensions=(".tsx",),
    grammar=("tree_sitter_typescript", "language_tsx"),
    query=_TYPESCRIPT_QUERY + _JSX_QUERY,
    imports=_script_imports,
    module=_path_module,
    package_file=_SCRIPT_PACKAGE,
    builtins=_SCRIPT_BUILTINS,
    builtin_methods=_SCRIPT_METHODS,
    libraries=_SCRIPT_TEST_LIBRARIES,
    test_file=_SCRIPT_TEST_FILE,
    test_targets=_SCRIPT_TEST_TARGETS,
)

_GO: Final = Language(
    name="go",
    extensions=(".go",),
    grammar=("tree_sitter_go", "language"),
    query="""
    (function_declaration name: (identifier) @name) @function
    (method_declaration receiver: (parameter_list) @receiver.type name: (field_identifier) @name) @method
    (type_spec name: (type_identifier) @name) @class
    (type_alias name: (type_identifier) @name) @class
    (type_declaration . [(type_spec) (type_alias)] @inner .) @wrapper
    (package_clause (package_identifier) @name) @namespace
    (call_expression function: (identifier) @callee)
    (call_expression function: (selector_expression operand: (_) @receiver field: (_) @callee))
    (composite_literal type: (type_identifier) @callee)
    (composite_literal type: (qualified_type package: (_) @receiver name: (_) @callee))
    (struct_type (field_declaration_list (field_declaration !name type: (_) @base)))
    (interface_type (type_elem . [(type_identifier) (qualified_type)] @base .))
    (import_spec) @import
    (comment) @comment
    (source_file (const_declaration (const_spec name: (identifier) @variable)))
    (source_file (var_declaration (var_spec name: (identifier) @variable)))
    """,
    imports=_go_imports,
    package_in_scope=True,
    builtins=_words(
        "append cap clear close complex copy delete imag len make max min new panic print println real recover any "
        "bool byte comparable complex64 complex128 error float32 float64 int int8 int16 int32 int64 rune string uint "
        "uint8 uint16 uint32 uint64 uintptr func"
    ),
    libraries=_words("testing assert require mock suite testify httptest fmt strings errors time os reflect"),
    visibility=_capital,
    test_file=r"(?P<dir>(?:.*/)?)(?P<subject>\w+)_test\.go$",
    test_targets=(("path:{dir}{subject}.go", 0.9),),
    test_name=r"(?:Test|Benchmark|Fuzz|Example)(?![a-z])",
)

_ENDLESS_GENERICS: Final = rb"(?:(?<!<)<(?!<)[^<>;{}()]{0,50}){1000}"

_JAVA: Final = Language(
    name="java",
    endless=_ENDLESS_GENERICS,
    extensions=(".java",),
    grammar=("tree_sitter_java", "language"),
    query="""
    (class_declaration name: (_) @name) @class
    (interface_declaration name: (_) @name) @class
    (enum_declaration name: (_) @name) @class
    (record_declaration name: (_) @name) @class
    (annotation_type_declaration name: (_) @name) @class
    (method_declaration name: (_) @name) @method
    (constructor_declaration name: (_) @name) @method
    (compact_constructor_declaration name: (_) @name) @method
    (package_declaration [(scoped_identifier) (identifier)] @name) @namespace
    (method_invocation !object name: (_) @callee)
    (method_invocation object: (_) @receiver name: (_) @callee)
    (object_creation_expression type: [(type_identifier) (scoped_type_identifier) (generic_type)] @callee)
    (superclass (_) @base)
    (super_interfaces (type_list (_) @base))
    (extends_interfaces (type_list (_) @base))
    (import_declaration) @import
    [(annotation) (marker_annotation)] @decorator
    [(line_comment) (block_comment)] @comment
    """,
    imports=_java_imports,
    members_in_scope=True,
    types_capitalised=True,
    builtins=_words(
        "System String Integer Long Double Float Boolean Character Byte Short Object Math Objects Arrays Collections "
        "List Map Set Optional StringBuilder ArrayList HashMap HashSet LinkedList LinkedHashMap Thread Class super"
    ),
    builtin_methods=_words("equals hashCode toString getClass length size isEmpty append valueOf"),
    libraries=_words("java org.junit org.mockito org.assertj org.hamcrest com.google.common.truth Assert"),
    test_file=r"(?:^|/)(?:(?P<subject>\w+?)(?:Tests?|IT|TestCase)|Test(?P<subject2>[A-Z]\w*))\.java$",
    test_targets=(("symbol:{subject}", 0.7),),
    test_mark=r"@(?:\w*Test\w*)\b",
    test_name=r"test[A-Z_]",
)

_RUST: Final = Language(
    name="rust",
    extensions=(".rs",),
    grammar=("tree_sitter_rust", "language"),
    query="""
    (struct_item name: (_) @name) @class
    (enum_item name: (_) @name) @class
    (union_item name: (_) @name) @class
    (trait_item name: (_) @name) @class
    (type_item name: (_) @name) @class
    (impl_item trait: (_) @base type: (_) @name) @impl
    (impl_item !trait type: (_) @name) @impl
    (function_item name: (_) @name) @function
    (function_signature_item name: (_) @name) @function
    (macro_definition name: (_) @name (macro_rule) @body) @function
    (mod_item name: (_) @name body: (_) @body) @scope
    (mod_item !body) @import
    [(use_declaration) (extern_crate_declaration)] @import
    (trait_item bounds: (trait_bounds (_) @base))
    (call_expression function: (identifier) @callee)
    (call_expression function: (field_expression value: (_) @receiver field: (field_identifier) @callee))
    (call_expression function: (scoped_identifier) @callee)
    (call_expression function: (generic_function function: (identifier) @callee))
    (call_expression function: (generic_function function: (scoped_identifier) @callee))
    (call_expression function: (generic_function
        function: (field_expression value: (_) @receiver field: (field_identifier) @callee)))
    (struct_expression name: [(type_identifier) (scoped_type_identifier)] @callee)
    (macro_invocation macro: [(identifier) (scoped_identifier)] @callee)
    (token_tree (identifier) @token . (token_tree))
    (attribute_item) @decorator
    (attribute_item) @above
    [(line_comment) (block_comment)] @comment
    (source_file [(const_item name: (_) @variable) (static_item name: (_) @variable)])
    """,
    imports=_rust_imports,
    module=_rust_module,
    package_file=r"(?:^|/)(?:lib|mod)\.rs$",
    itself=_words("self Self"),
    types_capitalised=True,
    builtins=_words(
        "Some Ok Err None Box Vec String Option Result Rc Arc Cell RefCell Mutex HashMap HashSet BTreeMap drop "
        "println print eprintln eprint format vec assert assert_eq assert_ne debug_assert debug_assert_eq panic "
        "todo unimplemented unreachable write writeln matches include_str concat stringify env cfg dbg str u8 u16 "
        "u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64 char bool std core alloc Default From Into Self Cow"
    ),
    builtin_methods=_words(
        "unwrap expect clone to_string to_owned iter into_iter iter_mut map filter collect len is_empty push pop get "
        "get_mut insert remove as_str as_ref as_mut into unwrap_or unwrap_or_else unwrap_or_default ok err and_then "
        "map_err ok_or ok_or_else is_some is_none is_ok is_err borrow borrow_mut take next"
    ),
    libraries=_words("std core alloc"),
    test_file=r"(?:^|/)tests/(?:.*/)?(?:test_)?(?P<subject>\w+?)(?:_tests?)?\.rs$",
    test_targets=(("symbol:{subject}", 0.3),),
    test_mark=r"#\[\s*(?:(?:\w+::)*test\b|rstest|cfg\(test\))",
    absolute=_rust_absolute,
)

_C_FUNCTION: Final = "(function_declarator declarator: {names} @name)"
_C_SHAPES: Final = (
    "{declarator}",
    "(pointer_declarator declarator: {declarator})",
    "(pointer_declarator declarator: (pointer_declarator declarator: {declarator}))",
)


def _c_functions(names: str, shapes: tuple[str, ...]) -> str:
    """Functions by how their type wraps their declarator: ``f()``, ``*f()``, ``&f()``."""
    query = ""
    for shape in shapes:
        declarator = shape.format(declarator=_C_FUNCTION.format(names=names))
        query += f"(function_definition declarator: {declarator} body: (_) @body) @function\n"
        query += f"(declaration declarator: {declarator}) @prototype\n"
        if "field_identifier" in names:
            query += f"(field_declaration declarator: {declarator}) @prototype\n"
    return query


_C_QUERY: Final = """
    (struct_specifier name: (_) @name body: (_) @body) @class
    (union_specifier name: (_) @name body: (_) @body) @class
    (enum_specifier name: (_) @name body: (_) @body) @class
    (type_definition type: [(struct_specifier !name body: (_) @body) (union_specifier !name body: (_) @body)
        (enum_specifier !name body: (_) @body)] declarator: (type_identifier) @name) @class
    (type_definition type: [(struct_specifier name: (_) body: (_)) (union_specifier name: (_) body: (_))
        (enum_specifier name: (_) body: (_))] @inner) @wrapper
    (preproc_function_def name: (identifier) @name value: (_) @body) @function
    (call_expression function: (identifier) @callee)
    (call_expression function: (field_expression argument: (_) @receiver field: (field_identifier) @callee))
    (preproc_include) @import
    (comment) @comment
    """

_C: Final = Language(
    name="c",
    extensions=(".c", ".h"),
    grammar=("tree_sitter_c", "language"),
    query=_C_QUERY + _c_functions("(identifier)", _C_SHAPES),
    imports=_c_imports,
    file_names=_header_names,
    itself=frozenset(),
    builtins=_words("sizeof malloc calloc realloc free memcpy memset memcmp strlen strcmp printf fprintf defined"),
    test_file=r"(?:^|/)(?:test_(?P<subject>\w+)|(?P<subject2>\w+)_tests?)\.[ch]$",
    test_name=r"test_",
)

_CPP: Final = Language(
    name="cpp",
    extensions=(".cpp", ".cc", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".h++", ".ipp", ".tpp"),
    grammar=("tree_sitter_cpp", "language"),
    query=_C_QUERY
    + _c_functions(
        "[(identifier) (field_identifier) (qualified_identifier) (destructor_name) (operator_name)]",
        (*_C_SHAPES, "(reference_declarator {declarator})"),
    )
    + """
    (function_definition
        declarator: [(operator_cast) (qualified_identifier name: (operator_cast))] @name body: (_) @body) @function
    (class_specifier name: (_) @name body: (_) @body) @class
    (type_definition type: (class_specifier name: (_) body: (_)) @inner) @wrapper
    (template_declaration (_) @inner .) @wrapper
    (namespace_definition name: (_) @name body: (_) @body) @namespace
    (base_class_clause [(type_identifier) (qualified_identifier) (template_type)] @base)
    (call_expression function: [(qualified_identifier) (template_function)] @callee)
    (call_expression function: (field_expression argument: (_) @receiver field: (template_method) @callee))
    (new_expression type: [(type_identifier) (qualified_identifier) (template_type)] @callee)
    """,
    imports=_c_imports,
    file_names=_header_names,
    members_in_scope=True,
    types_capitalised=True,
    builtins=_words(
        "sizeof static_cast dynamic_cast reinterpret_cast const_cast decltype typeid noexcept std malloc free memcpy "
        "memset strlen printf fprintf defined move forward"
    ),
    builtin_methods=_words("size begin end push_back emplace_back c_str data empty length str"),
    test_file=r"(?:^|/)(?:test_(?P<subject>\w+)|(?P<subject2>\w+?)_?(?:[tT]ests?))\.(?:cpp|cc|cxx|hpp)$",
    test_name=r"TEST|test_",
)

_CSHARP: Final = Language(
    name="csharp",
    endless=_ENDLESS_GENERICS,
    extensions=(".cs",),
    grammar=("tree_sitter_c_sharp", "language"),
    query="""
    (class_declaration name: (_) @name) @class
    (interface_declaration name: (_) @name) @class
    (struct_declaration name: (_) @name) @class
    (record_declaration name: (_) @name) @class
    (enum_declaration name: (_) @name) @class
    (delegate_declaration name: (_) @name) @class
    (method_declaration name: (_) @name) @method
    (constructor_declaration name: (_) @name) @method
    (local_function_statement name: (_) @name) @function
    (namespace_declaration name: (_) @name) @namespace
    (file_scoped_namespace_declaration name: (_) @name) @namespace
    (invocation_expression function: [(identifier) (generic_name)] @callee)
    (invocation_expression function: (member_access_expression expression: (_) @receiver name: (_) @callee))
    (invocation_expression
        function: (conditional_access_expression
            condition: (_) @receiver (member_binding_expression name: (_) @callee)))
    (object_creation_expression type: [(identifier) (generic_name) (qualified_name)] @callee)
    (base_list [(identifier) (generic_name) (qualified_name)] @base)
    (base_list (primary_constructor_base_type type: (_) @base))
    (using_directive) @import
    (attribute_list) @decorator
    (comment) @comment
    """,
    imports=_csharp_imports,
    members_in_scope=True,
    types_capitalised=True,
    builtins=_words(
        "nameof typeof Console String Math Convert Enumerable Task Guid DateTime TimeSpan List Dictionary HashSet "
        "Exception ArgumentException ArgumentNullException InvalidOperationException StringBuilder Array Type string "
        "int long double bool object base Environment GC Interlocked Volatile"
    ),
    builtin_methods=_words("ToString Equals GetHashCode GetType ToList ToArray Select Where Any All First"),
    libraries=_words("System Xunit NUnit Moq FluentAssertions Assert"),
    test_file=r"(?:^|/)(?P<subject>\w+?)(?:Tests?|Specs?)\.cs$",
    test_targets=(("symbol:{subject}", 0.7),),
    test_mark=r"\[\s*(?:\w+\.)*(?:Fact\w*|Theory\w*|Test\w*|DataTestMethod)\b",
)

_RUBY: Final = Language(
    name="ruby",
    extensions=(".rb", ".rake", ".gemspec", ".ru"),
    grammar=("tree_sitter_ruby", "language"),
    query="""
    (class name: (_) @name) @class
    (module name: (_) @name) @class
    (method name: (_) @name) @function
    (singleton_method name: (_) @name) @function
    (superclass (_) @base)
    ((call !receiver method: (identifier) @_m arguments: (argument_list [(constant) (scope_resolution)] @base))
        (#any-of? @_m "include" "extend" "prepend"))
    (call !receiver method: (identifier) @callee)
    (call receiver: (_) @receiver method: (_) @callee)
    (body_statement (identifier) @callee)
    ((call !receiver method: (identifier) @_m) @import
        (#any-of? @_m "require" "require_relative" "load" "autoload"))
    (comment) @comment
    """,
    imports=_ruby_imports,
    file_names=lambda path: (_ruby_module(path), _ruby_module(path).rpartition(".")[2]),
    itself=_words("self"),
    members_in_scope=True,
    types_capitalised=True,
    builtins=_words(
        "puts print p pp require require_relative load autoload raise loop lambda proc format sprintf rand sleep exit "
        "abort attr_accessor attr_reader attr_writer include extend prepend private public protected module_function "
        "private_constant alias_method define_method catch throw binding block_given? freeze super yield Integer Float "
        "String Array Hash Rational Struct Class Module Object Kernel File Dir Time Proc Thread Mutex nil refine using "
        "new"
    ),
    builtin_methods=_words(
        "each map select reject inject reduce to_s to_sym to_i to_a to_h to_f nil? empty? size length first last join "
        "split strip gsub sub push pop shift unshift keys values key? include? merge dup freeze is_a? respond_to? "
        "send class inspect any? all? sort sort_by flatten compact uniq find each_with_index each_pair instance_of?"
    ),
    test_file=r"(?:^|/)(?:(?P<subject>\w+)_(?:test|spec)|test_(?P<subject2>\w+))\.rb$",
    test_name=r"test_",
)

_PHP: Final = Language(
    name="php",
    extensions=(".php",),
    grammar=("tree_sitter_php", "language_php"),
    query="""
    (class_declaration name: (_) @name) @class
    (interface_declaration name: (_) @name) @class
    (trait_declaration name: (_) @name) @class
    (enum_declaration name: (_) @name) @class
    (method_declaration name: (_) @name) @method
    (function_definition name: (_) @name) @function
    (namespace_definition name: (_) @name) @namespace
    (function_call_expression function: [(name) (qualified_name)] @callee)
    (member_call_expression object: (_) @receiver name: (name) @callee)
    (nullsafe_member_call_expression object: (_) @receiver name: (name) @callee)
    (scoped_call_expression scope: (_) @receiver name: (name) @callee)
    (object_creation_expression [(name) (qualified_name)] @callee)
    (base_clause (_) @base)
    (class_interface_clause (_) @base)
    (use_declaration [(name) (qualified_name)] @base)
    [(namespace_use_declaration) (require_expression) (require_once_expression) (include_expression)
     (include_once_expression)] @import
    (attribute_list) @decorator
    (comment) @comment
    """,
    imports=_php_imports,
    itself=_words("$this self static"),
    types_capitalised=True,
    builtins=_words(
        "count strlen strpos substr str_replace sprintf printf implode explode trim rtrim ltrim in_array is_array "
        "is_string is_int is_null is_object is_callable is_numeric array_map array_filter array_merge array_keys "
        "array_values array_key_exists array_shift array_pop array_push array_slice array_unshift json_encode "
        "json_decode preg_match preg_replace preg_split strtolower strtoupper ucfirst lcfirst call_user_func "
        "call_user_func_array func_get_args get_class method_exists class_exists function_exists property_exists "
        "file_get_contents file_put_contents file_exists fopen fclose fread fwrite header var_dump define defined "
        "intval strval floatval boolval max min usort sort ksort compact extract iterator_to_array str_starts_with "
        "Exception InvalidArgumentException RuntimeException LogicException stdClass Closure parent"
    ),
    libraries=_words("PHPUnit Prophecy Mockery"),
    test_file=r"(?:^|/)(?P<subject>\w+?)Test(?:Case)?\.php$",
    test_targets=(("symbol:{subject}", 0.7),),
    test_name=r"test",
    test_mark=r"#\[\s*Test\b",
)

LANGUAGES: Final = (_PYTHON, _JAVASCRIPT, _TYPESCRIPT, _TSX, _GO, _JAVA, _RUST, _C, _CPP, _CSHARP, _RUBY, _PHP)
_BY_EXTENSION: Final = {extension: language for language in LANGUAGES for extension in language.extensions}
_CPP_SIGN: Final = re.compile(
    rb"^\s*(?:class\s+\w+[^;]*$|namespace\b|template\s*<|using\s|public:|private:)|\w::\w", re.M
)
