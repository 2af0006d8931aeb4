"""Which files of a repository hold a team's rules, and in which form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from context_os.scope import valid_glob

CODEOWNERS: Final = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")
"""In the order in which GitHub looks; the first that exists counts."""

_MOST_GLOBS: Final = 200


def is_rule_file(path: str) -> bool:
    """Whether ``team_rules`` reads the file."""
    return path in CODEOWNERS or form_of(path) is not None


@dataclass(frozen=True)
class Form:
    """What kind of file a rule stands in. ``base`` is the directory that it speaks about ("" for all), ``key`` its
    natural key; ``always`` says whether a file that names no globs applies without being asked for."""

    name: str
    base: str
    key: str
    always: bool
    header: bool


_BASE: Final = r"(?:(?P<base>(?!\.claude/).+?)/)?(?:\.claude/)?"
_FORMS: Final = tuple(
    (re.compile(pattern, re.DOTALL), name, always, header)
    for pattern, name, always, header in (
        (_BASE + r"AGENTS\.md", "agents", True, True),
        (_BASE + r"CLAUDE\.md", "claude", True, True),
        (r"(?:docs/|\.github/)?(?i:CONTRIBUTING)\.md", "contributing", True, True),
        (r"\.cursorrules", "cursor", True, False),
        (r"(?:(?P<base>.+?)/)?\.cursor/rules/.+\.mdc?", "cursor", False, True),
        (r"\.github/copilot-instructions\.md", "copilot", True, True),
        (r"\.github/instructions/.*\.instructions\.md", "copilot", False, True),
        (r"knowledge/rules/(?P<rule>[^/]+)\.md", "rule", True, True),
        (r"(?:\.context-os/)?rules/.+\.md", "rule", True, True),
    )
)


def form_of(path: str) -> Form | None:
    for pattern, name, always, header in _FORMS:
        found = pattern.fullmatch(path)
        if found:
            parts = found.groupdict()
            key = f"rule-{parts['rule']}" if parts.get("rule") else path
            return Form(name, parts.get("base") or "", key, always, header)
    return None


def texts_of(value: Any) -> Any:
    """A list of texts, or one text with commas (not those inside braces) between them."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = re.split(r",(?![^{}]*\})", value)
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a text or a list of texts")
    return tuple(each.strip() for each in value if each.strip())


def globs_of(value: Any) -> Any:
    """Globs as .gitignore has them, from a text or a list of texts, braces spelt out. Raises ValueError."""
    globs = tuple(dict.fromkeys(glob for each in texts_of(value) for glob in _without_braces(each)))
    bad = [glob for glob in globs if not valid_glob(glob)]
    if bad:
        raise ValueError(f"{bad[0]!r} is not a glob as .gitignore writes them")
    if len(globs) > _MOST_GLOBS:
        raise ValueError(f"{len(globs)} globs; at most {_MOST_GLOBS} are accepted, so name directories")
    return globs


def _without_braces(glob: str) -> list[str]:
    """``*.{ts,tsx}`` as ``*.ts`` and ``*.tsx``: .gitignore has no braces, editors' rules do."""
    done: list[str] = []
    open_ones = [glob]
    while open_ones:
        if len(done) + len(open_ones) > _MOST_GLOBS:
            raise ValueError(f"the braces of {glob!r} stand for more than {_MOST_GLOBS} globs")
        each = open_ones.pop(0)
        brace = re.search(r"\{([^{}]*)\}", each)
        if brace:
            open_ones.extend(
                each[: brace.start()] + choice.strip() + each[brace.end() :] for choice in brace[1].split(",")
            )
        else:
            done.append(each)
    return done
