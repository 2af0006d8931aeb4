"""Prose in pieces: where the headings of Markdown, reStructuredText and AsciiDoc stand, and what a text refers to.

Every rule is linear in a line's length: nobody vouches for the files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from context_os.connectors._languages import language_of
from context_os.connectors._markdown import closes, fence, heading

MOST_LINES: Final = 200
"""Lines that one piece holds at most."""

_MOST_CHARACTERS: Final = 20_000  # of a piece with more than one line
_LONGEST_TITLE: Final = 200
_MOST_REFERENCES: Final = 60


@dataclass(frozen=True)
class Heading:
    """Lines ``start`` (with an overline) up to ``end``, exclusive, from 0. Level 1 is the outermost."""

    start: int
    end: int
    level: int
    title: str


@dataclass(frozen=True)
class Passage:
    """Lines ``start`` up to ``end``, exclusive, from 0, as part ``part`` of ``parts`` (from 1) of what stands under
    ``headings``, which lead to it from the outside in. ``ordinal`` (from 0) tells those with equal headings apart."""

    headings: tuple[str, ...]
    ordinal: int
    start: int
    end: int
    part: int
    parts: int


def passages(lines: Sequence[str], headings: Sequence[Heading], root: str = "") -> list[Passage]:
    """One passage for what stands under each heading and one for what stands before the first, cut where longer
    than ``MOST_LINES``. They tile the lines: each starts where the one before ends. A heading with nothing below
    but another, deeper heading begins that one's passage. ``root`` is a title above all others."""
    found: list[Passage] = []
    seen: dict[tuple[str, ...], int] = {}
    for names, start, end in _stretches(lines, headings, root):
        parts = cuts(lines, start, end)
        for number, (first, last) in enumerate(parts, start=1):
            found.append(Passage(names, seen.get(names, 0), first, last, number, len(parts)))
            seen[names] = seen.get(names, 0) + 1
    return found


def _stretches(
    lines: Sequence[str], headings: Sequence[Heading], root: str
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    stack = [(0, root)] if root else []
    start = 0
    first = headings[0].start if headings else len(lines)
    if any(map(str.strip, lines[:first])):
        yield tuple(name for _, name in stack), 0, first
        start = first
    for each, following in zip(headings, [*headings[1:], None], strict=False):
        end = following.start if following else len(lines)
        stack = [entry for entry in stack if entry[0] < each.level]
        if each.title and (0, each.title) != (stack[-1] if stack else None):
            stack.append((each.level, each.title))
        deeper = following is not None and following.level > each.level
        if not deeper or any(map(str.strip, lines[each.end : end])):
            yield tuple(name for _, name in stack), start, end
            start = end


def cuts(lines: Sequence[str], start: int, end: int) -> list[tuple[int, int]]:
    """``start`` to ``end`` in runs of at most ``MOST_LINES`` lines and, but for a longer line, 20,000 characters;
    after a blank line where there is one in a run's second half."""
    found = []
    while start < end:
        size, last = 0, start
        while (
            last < end and last - start < MOST_LINES and (last == start or size + len(lines[last]) < _MOST_CHARACTERS)
        ):
            size += len(lines[last]) + 1
            last += 1
        if last < end:
            halfway = start + (last - start) // 2
            last = next((at for at in range(last, halfway, -1) if not lines[at - 1].strip()), last)
        found.append((start, last))
        start = last
    return found


# Headings

_SETEXT: Final = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_OTHER_BLOCK: Final = re.compile(r" {0,3}(?:[-*+][ \t]|\d{1,9}[.)][ \t]|[>|])")
_HTML: Final = re.compile(r" {0,3}<(?:(!--)|(pre|script|style|textarea)\b)", re.IGNORECASE)
_ATTRIBUTES: Final = re.compile(r"\s*\{[^{}]*\}\Z")
_ELSEWHERE: Final = -1


def markdown_headings(lines: Sequence[str]) -> list[Heading]:
    """ATX and setext headings as CommonMark (https://spec.commonmark.org) has them, but for those inside lists and
    quotations; front matter, fences and HTML that spans lines hold none."""
    found: list[Heading] = []
    opened = until = ""
    paragraph: int | None = None  # where it began; _ELSEWHERE in a list, a quotation or a table
    for number in range(_front_matter(lines), len(lines)):
        line = lines[number]
        if opened or until:
            opened = "" if opened and closes(line, opened) else opened
            until = "" if until and until in line.lower() else until
        elif not line.strip() or (opened := fence(line)):
            paragraph = None
        elif (html := _HTML.match(line)) is not None:
            ending = "-->" if html[1] else f"</{html[2].lower()}>"
            until = "" if ending in line.lower() else ending
            paragraph = None
        elif (atx := heading(line))[0]:
            found.append(Heading(number, number + 1, atx[0], _ATTRIBUTES.sub("", atx[1][:_LONGEST_TITLE])))
            paragraph = None
        elif (setext := _SETEXT.match(line)) is not None:
            if paragraph is not None and paragraph != _ELSEWHERE:
                title = " ".join(each.strip() for each in lines[paragraph:number])[:_LONGEST_TITLE]
                found.append(Heading(paragraph, number + 1, 1 if setext[1][0] == "=" else 2, title))
            paragraph = None
        elif _OTHER_BLOCK.match(line):
            paragraph = _ELSEWHERE
        elif paragraph is None:
            paragraph = _ELSEWHERE if line.startswith(("    ", "\t")) else number
    return found


def _front_matter(lines: Sequence[str]) -> int:
    """How many lines of front matter (YAML's ``---``, TOML's ``+++``) a file begins with."""
    mark = lines[0].rstrip() if lines else ""
    if mark not in {"---", "+++"} or len(lines) < 2 or not lines[1].strip():
        return 0
    ends = {"---", "..."} if mark == "---" else {mark}
    return next((number + 1 for number in range(1, len(lines)) if lines[number].rstrip() in ends), 0)


def front_title(lines: Sequence[str]) -> str:
    """The title that front matter gives, or ""."""
    for line in lines[: _front_matter(lines)]:
        name, mark, value = line.partition("=" if lines[0].startswith("+") else ":")
        if mark and name.rstrip() == "title":
            return value.strip().strip("\"'")[:_LONGEST_TITLE]
    return ""


def rst_headings(lines: Sequence[str]) -> list[Heading]:
    """Titles with an underline, and an overline too, at the levels in which their styles first appear
    (https://docutils.sourceforge.io/docs/ref/rst/restructuredtext.html#sections)."""
    found: list[Heading] = []
    styles: dict[str, int] = {}
    number, free = 0, True
    while number < len(lines):
        line = lines[number]
        size = _titled(lines, number) if free else 0
        if size:
            style = line[0] * 2 if size == 3 else lines[number + 1][0]
            title = lines[number + size - 2].strip()[:_LONGEST_TITLE]
            found.append(Heading(number, number + size, styles.setdefault(style, len(styles) + 1), title))
        number += size or 1
        free = bool(size) or not line.strip() or line.startswith(".. ")
    return found


def _titled(lines: Sequence[str], number: int) -> int:
    """How many lines the title takes that begins in this line: 2, 3 with an overline, 0 where there is none."""
    line, *below = lines[number : number + 3]
    if not line[:1].strip() or not below:
        return 0
    if _rule(line):
        framed = len(below) == 2 and below[1].rstrip() == line.rstrip() and below[0].strip() and not _rule(below[0])
        return 3 if framed and _wide_enough(line, below[0].strip()) else 0
    return 2 if _rule(below[0]) and _wide_enough(below[0], line) else 0


def _rule(line: str) -> bool:
    text = line.rstrip()
    return (
        len(text) > 1
        and text[0] in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        and not text.strip(text[0])
        and text not in {"..", "::"}
    )


def _wide_enough(rule: str, title: str) -> bool:
    return len(rule.rstrip()) >= min(len(title.rstrip()), 4)


_BLOCK_MARKS: Final = frozenset("-./+=*_")
_UNDERLINES: Final = "=-~^+"


def asciidoc_headings(lines: Sequence[str]) -> list[Heading]:
    """``== Section`` and titles with an underline of about their length, outside delimited blocks
    (https://docs.asciidoctor.org/asciidoc/latest/sections/titles-and-levels/)."""
    found: list[Heading] = []
    block = ""
    for number, line in enumerate(lines):
        text = line.rstrip()
        if block:
            block = "" if text == block else block
            continue
        above = lines[number - 1].rstrip() if number else ""
        run = len(text) >= 4 and not text.strip(text[0])
        if run and text[0] in _UNDERLINES and above and abs(len(above) - len(text)) < 2 and above[0] not in ".[":
            if not found or found[-1].end < number:
                found.append(Heading(number - 1, number + 1, _UNDERLINES.index(text[0]) + 1, above[:_LONGEST_TITLE]))
        elif run and text[0] in _BLOCK_MARKS:
            block = text
        elif text.startswith("```"):
            block = "```"
        else:
            level, title = heading(text.replace("=", "#", len(text) - len(text.lstrip("="))))
            if level:
                found.append(Heading(number, number + 1, level, title[:_LONGEST_TITLE]))
    return found


# What a text refers to

_LINK: Final = re.compile(r"\]\([ \t]{0,9}<?([^()<>\s]{1,300})")
_DEFINITION: Final = re.compile(r"\]:[ \t]{1,9}<?([^<>\s]{1,300})")
_MACRO: Final = re.compile(r"(?:link|xref|include|image)::?([^\s\[\]]{1,300})\[")
_DIRECTIVE: Final = re.compile(r"^[ \t]{0,40}(?:\.\. [a-z:-]{1,40}|:)::[ \t]{1,9}(\S{1,200})", re.MULTILINE)
_CODE: Final = re.compile(r"`(`?)([^`\n]{1,200})`\1(_?)")
_ROLE: Final = re.compile(r":([a-z]{1,20}):\Z")
_OBJECTS: Final = frozenset(
    {"attr", "attribute", "class", "const", "data", "exc", "exception", "func", "function", "meth", "method", "mod"}
    | {"module", "obj", "object", "type"}
)
_NAME: Final = re.compile(r"([A-Za-z_]\w*(?:(?:\.|::)[A-Za-z_]\w*)+)(?:\([^()]*\))?")
_PATH: Final = re.compile(r"[\w@+./-]*[\w@+-]\.[A-Za-z]\w{0,9}")
_KNOWN_SUFFIX: Final = re.compile(r"\.(?:md|rst|toml|cfg|ini|ya?ml|json|txt|sh|html|css|sql|xml)\Z")


def references(text: str, path: str) -> list[tuple[str, float]]:
    """``("path:..." or "symbol:...", confidence)`` of what a text in the file at ``path`` names: the first 60.

    Whether it exists is not asked, or a change of one file would change another's items. Links between files are
    surest (0.9), then names that a role marks as code (0.9), paths (0.8) and names with dots (0.7) in backticks, and
    last a file's bare name (0.3)."""
    found: dict[str, float] = {}
    for target, confidence in _named(text, path):
        if target.isprintable() and len(found) < _MOST_REFERENCES:
            found[target] = max(confidence, found.get(target, 0.0))
    return list(found.items())


def _named(text: str, path: str) -> Iterator[tuple[str, float]]:
    folder = posixpath.dirname(path)
    for mark, pattern in (("](", _LINK), ("]:", _DEFINITION), (":", _MACRO)):
        if mark in text:
            yield from _paths((link[1] for link in pattern.finditer(text)), folder, 0.9)
    if ":: " in text:
        for directive in _DIRECTIVE.finditer(text):
            if _PATH.fullmatch(directive[1]) and ("/" in directive[1] or _is_file(directive[1])):
                yield from _paths([directive[1]], folder, 0.9)
            elif name := _NAME.match(directive[1]):
                yield _symbol(name[1]), 0.9
    if "`" in text:
        for code in _CODE.finditer(text):
            role = _ROLE.search(text, max(0, code.start() - 24), code.start())
            yield from _coded(code[2].strip(), role[1] if role else "", bool(code[3]), path)


def _coded(written: str, role: str, link: bool, path: str) -> Iterator[tuple[str, float]]:
    """What one text in backticks means. ``link`` is for reStructuredText's `` `text <target>`_ ``."""
    folder, suffix = posixpath.dirname(path), posixpath.splitext(path)[1]
    if written.endswith(">") and "<" in written and (role or link):
        written = written[written.rindex("<") + 1 : -1].strip()
    if link:
        yield from _paths([written], folder, 0.9)
    elif role == "doc":
        # A leading slash is the root of the documentation, which is most often the first folder.
        root = f"{path.partition('/')[0]}/" if written.startswith("/") and folder else ""
        yield from _paths([f"{root}{written.lstrip('/')}{suffix}"], "" if root else folder, 0.7 if root else 0.9)
    elif role and role not in _OBJECTS:
        return
    elif _PATH.fullmatch(written) and ("/" in written or (not role and _is_file(written))):
        yield from _paths([written], folder if written.startswith(".") else "", 0.8 if "/" in written else 0.3)
    elif name := _NAME.fullmatch(written.lstrip("~!.")):
        yield _symbol(name[1]), 0.9 if role else 0.7


def _is_file(name: str) -> bool:
    return language_of(name) is not None or _KNOWN_SUFFIX.search(name) is not None


def _symbol(name: str) -> str:
    return f"symbol:{name.replace('::', '.')}"


def _paths(links: Iterable[str], folder: str, confidence: float) -> Iterator[tuple[str, float]]:
    """Links to files of the repository, from a folder of it ("" for the root, where those with a leading slash begin
    too). Addresses elsewhere, anchors and links without a suffix, which mean pages that a tool makes, give nothing."""
    for link in links:
        bare = unquote(link.partition("#")[0].partition("?")[0])
        if ":" in bare or not posixpath.splitext(bare)[1] or bare.startswith("//"):
            continue
        whole = posixpath.normpath(posixpath.join("" if bare.startswith("/") else folder, bare.lstrip("/")))
        if not whole.startswith("../") and not whole.endswith("."):
            yield f"path:{whole}", confidence
