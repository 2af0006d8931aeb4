"""What a repository says beside its source: documentation by heading, configuration and other text by file.

Listed is every text file that neither ``symbols`` nor ``team_rules`` nor ``bug_specs`` reads. A unit is a file and its
hash is git's blob id. What path and size tell is skipped by ``scan`` and counted in ``Listing.skipped``; what only
the content tells (binary, generated, minified, a private key) is left to ``read``, whose unit then has no items and a
note ``skipped: ...``, so that a scan of a revision opens no blob.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import Field, field_validator

from context_os.connectors import Connector, Expectation, Known, Listing, Repository, Unit
from context_os.connectors._files import Files, decode, foreign, unwanted
from context_os.connectors._languages import language_of
from context_os.connectors._prose import (
    MOST_LINES,
    Heading,
    Passage,
    asciidoc_headings,
    cuts,
    front_title,
    markdown_headings,
    passages,
    references,
    rst_headings,
)
from context_os.connectors._records import RECORD_PATHS, is_record_file
from context_os.connectors._rule_files import is_rule_file
from context_os.model import KnowledgeItem, Relation, Source
from context_os.scope import valid_glob

_LONGEST_TITLE: Final = 200
_LONG_LINES: Final = 1_000
"""Characters a line on average from which data are minified: no person reads or wrote them."""

_SKIPPED: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for reason, pattern in {
        "lock file": r"\.(?:lock|lockfile|lockb)\Z"
        r"|(?:^|/)(?:package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.yaml|packages\.lock\.json|go\.sum|pylock(?:\.[\w-]+)?\.toml"
        r"|Package\.resolved)\Z",
        "generated": r"\.(?:map|snap|min\.\w+)\Z",
        "secret": r"\.(?:pem|key|ppk|kdbx)\Z"
        r"|(?:^|/)(?:\.env|\.netrc|\.pypirc|\.htpasswd|id_(?:rsa|dsa|ecdsa|ed25519))\Z",
        "translation": r"\.(?:po|pot|xlf|xliff)\Z",
        "drawing": r"\.(?:svg|drawio|eps|ps|dxf|ai)\Z",
        "binary": r"\.(?:png|jpe?g|jfif|gif|bmp|ico|icns|tiff?|webp|avif|heic|psd|xcf|pdf|docx?|xlsx?|pptx?|odt|ods|odp"
        r"|woff2?|ttf|otf|eot|mp[34]|m4[av]|mov|avi|mkv|webm|wav|ogg|flac|zip|tar|t?gz|t?bz2|t?xz|zst|7z|rar|jar|war"
        r"|whl|egg|gem|deb|rpm|dmg|iso|exe|dll|so|dylib|a|o|obj|lib|class|pyc|pyo|pyd|mo|wasm|bin|dat|db|sqlite3?"
        r"|pkl|pickle|np[yz]|parquet|avro|arrow|onnx|pt|pth|safetensors|h5|hdf5|shp|shx|dbf|mmdb|p12|pfx|jks|der|crt"
        r"|gpg|sig|swf|keystore)\Z",
    }.items()
)  # fmt: skip
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]{0,30}PRIVATE KEY")

_Headings = Callable[[Sequence[str]], list[Heading]]
_PLAIN: Final = ("text", rst_headings)
_PROSE: Final[dict[str, tuple[str, _Headings]]] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd"), ("markdown", markdown_headings)),
    **dict.fromkeys((".rst", ".rest"), ("restructuredtext", rst_headings)),
    **dict.fromkeys((".adoc", ".asciidoc"), ("asciidoc", asciidoc_headings)),
    **dict.fromkeys((".txt", ".text"), _PLAIN),
}
_NAMED_PROSE: Final = re.compile(
    r"(?:README|CHANGE(?:S|LOG)|HISTORY|NEWS|LICEN[CS]ES?|COPYING|NOTICE|AUTHORS|CONTRIBUTORS|MAINTAINERS|THANKS|INSTALL|TODO"
    r"|SECURITY)(?:[._-][A-Z]+)*"
)
_NO_PROSE: Final = re.compile(
    r"(?:^|/)(?:(?:[\w.-]*requirements|constraints)[\w.-]*|CMakeLists|robots|llms)\.txt\Z|(?:^|/)requirements/[^/]+\.txt\Z"
)
_LANGUAGES: Final = {
    **dict.fromkeys(("bash", "zsh", "ksh", "fish", "bats"), "sh"),
    **dict.fromkeys(("cfg", "conf"), "ini"),
    **dict.fromkeys(("jsonc", "json5"), "json"),
    "yml": "yaml",
    "htm": "html",
    "mk": "makefile",
    "ipynb": "jupyter",
}
_LANGUAGES_BY_NAME: Final = frozenset({"dockerfile", "containerfile", "makefile"})


class Documents(Connector):
    """One item per heading's section of Markdown, reStructuredText, AsciiDoc and plain text (kind ``section``), one
    per other text file (kind ``file``). Either is cut where it is longer than 200 lines.

    A section's natural key is its file's path, its headings and the how manieth of these it is, so it survives moves
    of lines. Sections mention files and symbols by name. A notebook is the text of its cells. Undecodable bytes are
    kept as escapes, with a note. ``max_bytes`` is the size from which a file is skipped as "huge".
    """

    name: ClassVar[str] = "documents"
    domain: ClassVar[str] = "documentation"
    kinds: ClassVar[tuple[str, ...]] = ("section", "file")
    summary: ClassVar[str] = "Documentation by heading, configuration and other text by file"
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["section", "file"]},
            "this connector yields sections and files only",
        ),
        Expectation(
            "expect_column_value_lengths_to_be_between",
            {"column": "path", "min_value": 1},
            "a document stands in a file",
        ),
        Expectation(
            "expect_column_values_to_not_match_regex",
            {"column": "targets", "regex": r"path:(?:/|\.\./)"},
            "what a document mentions lies inside its repository",
        ),
        Expectation(
            "expect_column_values_to_be_between",
            {"column": "text_length", "max_value": 50_000},
            "lines this long are data, and leave a pack no room for another item",
            critical=False,
        ),
    )

    max_bytes: int = Field(default=1_000_000, gt=0)

    records: tuple[str, ...] = RECORD_PATHS
    """Globs of what is left to ``bug_specs``; say here again what its ``paths`` say."""

    @field_validator("records")
    @classmethod
    def _globs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bad = [glob for glob in value if not valid_glob(glob)]
        if bad:
            raise ValueError(f"{bad[0]!r} is not a glob as .gitignore writes them")
        return value

    def scan(self, repository: Repository, known: Known) -> Listing:
        """List the text files. Raises SourceRefused for what is no folder or has no such revision, SourceError for
        a file that is there and cannot be read."""
        return Files(repository.location, repository.revision).list(self._choose, self.max_bytes)

    def concerns(self, path: str) -> bool:
        return self._choose(path) == ""

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        files = Files(repository.location, repository.revision)
        for key, blob, data in files.contents(keys, listing.units):
            if data is None:
                yield Unit(key, blob, (), notes=("gone since it was listed",))
                continue
            found = _read(key, data)
            origin = Source(
                type=self.name,
                location=str(repository.location),
                accessor=files.accessor,
                revision=listing.revision,
                repository=repository.name,
                path=key,
                language=found.language,
                metadata={"blob": blob},
            )
            yield Unit(key, blob, tuple(self._items(repository, origin, found)), notes=found.notes)

    def _choose(self, path: str) -> str | None:
        if language_of(path) is not None or is_rule_file(path) or is_record_file(path, self.records):
            return None
        return foreign(path) or next((reason for pattern, reason in _SKIPPED if pattern.search(path)), "")

    def _items(self, repository: Repository, origin: Source, found: _Document) -> Iterator[KnowledgeItem]:
        for piece in found.pieces:
            text = "\n".join(found.lines[piece.start : piece.end]).rstrip()
            lines = {"start_line": piece.start + 1, "end_line": piece.end} if found.numbered else {}
            mentioned = references(text, origin.path) if found.kind == "section" else ()
            yield self.item(
                repository,
                (origin.path, found.kind, *piece.headings, str(piece.ordinal)),
                kind=found.kind,
                title=_title(origin.path, piece),
                text=text,
                source=origin.model_copy(update=lines),
                structured={"headings": list(piece.headings), "part": piece.part, "parts": piece.parts},
                relations=[
                    Relation(type="mentions", target=target, confidence=confidence) for target, confidence in mentioned
                ],
                tags=(found.kind, found.language),
            )


def _title(path: str, piece: Passage) -> str:
    part = f" ({piece.part}/{piece.parts})" if piece.parts > 1 else ""
    title, longest = " > ".join(piece.headings) or path, _LONGEST_TITLE - len(part)
    return (title if len(title) <= longest else title[: longest - 1] + "…") + part


@dataclass(frozen=True)
class _Document:
    """A file as read. ``numbered`` says whether ``lines`` are those of the file."""

    kind: str
    language: str
    lines: Sequence[str] = ()
    pieces: Sequence[Passage] = ()
    notes: tuple[str, ...] = ()
    numbered: bool = True


def _read(path: str, data: bytes) -> _Document:
    """Never raises for what is in the file."""
    name = posixpath.basename(path)
    suffix = posixpath.splitext(name)[1].lower()
    prose = _prose(path, name, suffix)
    kind, language = ("section", prose[0]) if prose else ("file", _language(name, suffix))
    text, notes = _text(data)
    reason = _unwanted(data, text, kind)
    if reason:
        return _Document(kind, language, notes=(f"skipped: {reason}",))
    cells = _cells(text) if suffix == ".ipynb" else None
    if suffix == ".ipynb" and cells is None:
        notes.append("no notebook: its JSON is kept as it is")
    lines = (text if cells is None else cells).replace("\0", "\\x00").split("\n")
    if not lines[-1]:
        del lines[-1]
    if prose:
        pieces = passages(lines, prose[1](lines), front_title(lines) if language == "markdown" else "")
    elif any(map(str.strip, lines)):
        ends = cuts(lines, 0, len(lines))
        pieces = [Passage((), at, start, end, at + 1, len(ends)) for at, (start, end) in enumerate(ends)]
    else:
        pieces = []
    cut = max((piece.parts for piece in pieces), default=1)
    if cut > 1:
        what = "the file" if kind == "file" else "its longest section"
        notes.append(f"{what} is cut into {cut} parts of at most {MOST_LINES} lines")
    return _Document(kind, language, lines, pieces, tuple(notes) if pieces else (*notes, "empty"), cells is None)


def _prose(path: str, name: str, suffix: str) -> tuple[str, _Headings] | None:
    if _NO_PROSE.search(path):
        return None
    return _PROSE.get(suffix) or (_PLAIN if _NAMED_PROSE.fullmatch(name) else None)


def _language(name: str, suffix: str) -> str:
    """A file's format in one word: its suffix, or the name of one that has none (``makefile``, ``gitignore``)."""
    stem = name.partition(".")[0].lower()
    word = stem if stem in _LANGUAGES_BY_NAME else (suffix or name.lower()).strip(".")
    return _LANGUAGES.get(word, word if word[:1].isalpha() and word.isalnum() and len(word) <= 16 else "text")


def _text(data: bytes) -> tuple[str, list[str]]:
    """The file with plain line ends and every byte that is no text as an escape, and notes on these."""
    decoded = decode(data)
    notes = [note for note in (decoded.note, decoded.problem) if note]
    text = decoded.text.replace("\r\n", "\n")
    if "\0" in text:
        notes.append(
            f"a NUL character in line {text.count(chr(10), 0, text.index(chr(0))) + 1}; it is shown as an escape"
        )
    return text, notes


def _unwanted(data: bytes, text: str, kind: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "binary" if "\0" in text else ""
    if _PRIVATE_KEY.search(data, 0, 500):
        return "private key"
    minified = kind == "file" and len(data) > _LONG_LINES * (10 + data.count(b"\n"))
    return unwanted(data) or ("minified" if minified else "")


def _cells(text: str) -> str | None:
    """The cells of a notebook (https://nbformat.readthedocs.io) as Markdown, without outputs; None for what is none."""
    try:
        cells = json.loads(text)["cells"]
        return "\n\n".join(map(_cell, cells)).encode("utf-8", "backslashreplace").decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _cell(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    text = (source if isinstance(source, str) else "".join(source)).strip("\n")
    return f"```\n{text}\n```" if cell.get("cell_type") == "code" else text
