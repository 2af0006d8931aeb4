"""Which files of a repository hold a team's rules, and in which form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

CODEOWNERS: Final = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")
"""In the order in which GitHub looks; the first that exists counts."""


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
