"""Team rules: every form of file, which paths each governs, who owns what, and sections that lose nothing."""

from __future__ import annotations

import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pathspec import PathSpec

from context_os.connectors import Known, Listing, Repository, Unit
from context_os.connectors._markdown import sections
from context_os.connectors.team_rules import PART, WHOLE, TeamRules, parse_codeowners
from context_os.model import Confidentiality, KnowledgeItem
from context_os.scope import governs, owners_of, valid_glob


def write(root: Path, files: dict[str, str | bytes]) -> Repository:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Repository("acme/shop", root, "acme")


def read(repository: Repository, connector: TeamRules | None = None) -> dict[str, Unit]:
    connector = connector or TeamRules()
    listing = connector.scan(repository, Known())
    units = {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}
    assert {key: unit.hash for key, unit in units.items()} == dict(listing.units)
    return units


def only(root: Path, name: str, content: str | bytes) -> Unit:
    return read(write(root, {name: content}))[name]


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def scope(item: KnowledgeItem) -> tuple[list[str], bool]:
    return item.payload.structured["applies_to"], item.payload.structured["always_apply"]


# --- which files, and which paths they govern -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "header", "applies_to", "always"),
    [
        ("AGENTS.md", "", ["**"], True),
        ("CLAUDE.md", "", ["**"], True),
        (".claude/CLAUDE.md", "", ["**"], True),
        ("web/api/AGENTS.md", "", ["web/api/**"], True),
        ("web/.claude/CLAUDE.md", "", ["web/**"], True),
        ("web/[slug]/AGENTS.md", "", [r"web/\[slug\]/**"], True),
        ("web/AGENTS.md", "globs: '*.ts, /lib/*.js, !gen/**'", ["web/**/*.ts", "web/lib/*.js", "!web/gen/**"], False),
        ("knowledge/rules/naming.md", "", ["**"], True),
        ("rules/deep/er/naming.md", "", ["**"], True),
        (".context-os/rules/naming.md", "paths: [src/**, lib/]", ["src/**", "lib/"], False),
        ("rules/a.md", "applyTo: '**'", ["**"], True),
        ("rules/a.md", "globs: src/**\nalwaysApply: true", ["**"], True),
        ("rules/a.md", "alwaysApply: false", ["**"], False),
        (".cursorrules", "", ["**"], True),
        (".cursor/rules/a.mdc", "description: Style: short\nglobs: *.ts,*.{js,jsx}\nalwaysApply: false",
            ["*.ts", "*.js", "*.jsx"], False),
        (".cursor/rules/deep/a.md", "globs:\n  - **/*.ts\n  - !gen/*\n", ["**/*.ts", "!gen/*"], False),
        (".cursor/rules/a.mdc", "description: when writing SQL\nglobs:\nalwaysApply: false", ["**"], False),
        (".cursor/rules/a.mdc", "globs:\nalwaysApply: true", ["**"], True),
        ("web/.cursor/rules/a.mdc", "globs: src/*.ts", ["web/src/*.ts"], False),
        ("web/.cursor/rules/a.mdc", "alwaysApply: true", ["web/**"], True),
        (".github/copilot-instructions.md", "", ["**"], True),
        (".github/instructions/py.instructions.md", 'applyTo: "**/*.py,**/*.pyi"', ["**/*.py", "**/*.pyi"], False),
        (".github/instructions/deep/all.instructions.md", "applyTo: '**'", ["**"], True),
        (".github/instructions/none.instructions.md", "description: by hand", ["**"], False),
        ("CONTRIBUTING.md", "", ["**"], True),
        ("docs/CONTRIBUTING.md", "", ["**"], True),
        (".github/CONTRIBUTING.md", "", ["**"], True),
    ],
)  # fmt: skip
def test_each_form_says_which_paths_it_governs(
    tmp_path: Path, path: str, header: str, applies_to: list[str], always: bool
) -> None:
    unit = only(tmp_path, path, f"---\n{header}\n---\nUse tabs.\n" if header else "Use tabs.\n")
    assert unit.rejected == ()
    (item,) = unit.items
    assert scope(item) == (applies_to, always)
    assert item.kind == "rule"
    assert item.metadata.ttl is None
    assert {"rule", "code-review"} <= set(item.metadata.tags)
    assert item.payload.text.endswith("Use tabs.")
    expected = [f"path:{glob}" for glob in applies_to if not glob.startswith("!")]
    assert [relation.target for relation in item.relations if relation.type == "governs"] == expected


def test_other_files_are_not_listed(tmp_path: Path) -> None:
    others = ["README.md", "knowledge/rules/deep/x.md", "src/CONTRIBUTING.md", "rules/x.txt", "src/rules/x.md",
              "AGENTS.md.bak", "src/.cursorrules", "src/CODEOWNERS", "node_modules/x/AGENTS.md"]  # fmt: skip
    repository = write(tmp_path, dict.fromkeys(others, "text"))
    listing = TeamRules().scan(repository, Known())
    assert (listing.units, listing.skipped) == ({}, {"vendored": 1})


def test_the_laboratorys_rules_keep_their_natural_key(tmp_path: Path) -> None:
    (item,) = only(tmp_path, "knowledge/rules/naming.md", "# Names\nSay what it is.\n").items
    expected = TeamRules().item(
        write(tmp_path, {}), ("rule-naming",), kind="rule", title="x", text="x", source=item.source
    )
    assert item.id == expected.id
    assert item.metadata.title == "Names"
    assert item.metadata.tags == ("rule", "code-review")
    assert item.payload.structured["rule"] == "rule-naming"


def test_front_matter_decides_over_the_defaults(tmp_path: Path) -> None:
    text = """---
title: Money
description: "How amounts are kept"
globs: [src/pay/**]
severity: High
tags: money, payments
owner: "@acme/pay"
confidentiality: restricted
ttl: 90d
reviewed: 2026-01-31
---
Never use floats.
"""
    unit = only(tmp_path, "rules/money.md", text)
    (item,) = unit.items
    assert item.metadata.title == "Money"
    assert item.payload.text == "How amounts are kept\n\nNever use floats."
    assert item.metadata.tags == ("rule", "code-review", "severity:high", "money", "payments")
    assert item.metadata.owner_id == "@acme/pay"
    assert item.metadata.confidentiality is Confidentiality.RESTRICTED
    assert item.metadata.ttl == timedelta(days=90)
    assert item.payload.structured["severity"] == "high"
    assert item.payload.structured["extra"] == {"reviewed": "2026-01-31"}
    assert unit.notes == ("unknown fields, kept in structured: reviewed",)
    assert (item.source.start_line, item.source.end_line) == (12, 12)


@pytest.mark.parametrize(("ttl", "life"), [("12h", timedelta(hours=12)), ("2w", timedelta(weeks=2)),
                                           ("P1DT1H", timedelta(hours=25)), ("never", None)])  # fmt: skip
def test_a_rule_may_say_how_long_it_holds(tmp_path: Path, ttl: str, life: timedelta | None) -> None:
    write(tmp_path, {"rules/a.md": f"---\nttl: {ttl}\n---\nx", "rules/b.md": "x"})
    units = read(Repository("r", tmp_path, "acme"), TeamRules(ttl=timedelta(days=5)))
    assert units["rules/a.md"].items[0].metadata.ttl == life
    assert units["rules/b.md"].items[0].metadata.ttl == timedelta(days=5)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("rules/a.md", "---\nglobs: x\nno end", ["never ends"]),
        ("rules/a.md", "---\nglobs: [x\n---\n", ["line 1"]),
        ("rules/a.md", "---\n- x\n---\n", ["must be a list of 'field: value'"]),
        ("rules/a.md", "---\na: &a [x]\nb: *a\n---\n", ["line 2: YAML aliases"]),
        ("rules/a.md", "---\nglobs: ['!']\nttl: soon\nconfidentiality: secret\nalwaysApply: maybe\ntitle: [x]\n---\nx",
            ["globs: '!' is not a glob", "ttl: must be a duration", "confidentiality: Input should be 'public'",
             "always_apply: must be true or false", "title: Input should be a valid string"]),
        ("rules/a.md", "---\nttl: 0d\n---\nx", ["ttl"]),
        ("rules/a.md", "---\nglobs: 'a{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}'\n---\nx", ["more than 200 globs"]),
        ("rules/a.md", "---\nname: a\ntitle: b\n---\nx", ["given twice"]),
        ("AGENTS.md", b"\xff\xfe" + "Use tabs".encode("utf-16-le"), ["UTF-16"]),
        ("AGENTS.md", "Größe".encode("latin-1"), ["byte 2 is 0xf6"]),
        ("AGENTS.md", "a\0b", ["NUL"]),
        ("AGENTS.md", "x" * (3 * 2**20 + 1), ["3,145,729 bytes"]),
        ("CODEOWNERS", "* @a\0", ["NUL"]),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_every_reason_and_its_text(
    tmp_path: Path, path: str, content: str | bytes, words: list[str]
) -> None:
    write(tmp_path, {path: content, "CLAUDE.md": "Good."})
    units = read(Repository("r", tmp_path, "acme"))
    assert units[path].items == ()
    (refused,) = units[path].rejected
    for word in words:
        assert word in "; ".join(refused.reasons)
    assert refused.raw
    if isinstance(content, str):
        assert refused.raw == content
    assert len(units["CLAUDE.md"].items) == 1


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    text = "---\ntitle: T\n---\n# A\nUse tabs.\n"
    first = only(tmp_path, "rules/a.md", text)
    second = only(tmp_path, "rules/a.md", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert first.items[0].metadata.checksum == second.items[0].metadata.checksum
    assert "byte-order mark" in second.notes[0]


def test_an_empty_file_is_no_rule_and_no_error(tmp_path: Path) -> None:
    unit = only(tmp_path, "AGENTS.md", " \n")
    assert (unit.items, unit.rejected) == ((), ())
    assert "holds no rule" in unit.notes[0]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=150) | st.text(max_size=150).map(lambda text: text.encode("utf-8", "replace")),
       path=st.sampled_from(["rules/a.md", ".cursor/rules/a.mdc", "CODEOWNERS"]), front=st.booleans())  # fmt: skip
def test_no_bytes_raise(tmp_path: Path, data: bytes, path: str, front: bool) -> None:
    for old in ("rules/a.md", ".cursor/rules/a.mdc", "CODEOWNERS"):
        (tmp_path / old).unlink(missing_ok=True)
    unit = only(tmp_path, path, b"---\n" + data + b"\n---\nx" if front else data)
    assert unit.items or unit.rejected or unit.notes
    for item in unit.items:
        assert KnowledgeItem.model_validate_json(item.model_dump_json(by_alias=True)).payload == item.payload


# --- sections -------------------------------------------------------------------------------------------------

LONG = "word " * (WHOLE // 5)
GUIDE = f"""# Guide

Read this first.

## Testing
{LONG}

### Fixtures
Keep them small.

```sh
## not a heading
# nor this
```

## Style

## Style
Second.

    ## indented, so code

~~~~
## also not
~~~
## still not
~~~~
"""


def test_a_long_file_is_cut_at_its_top_headings(tmp_path: Path) -> None:
    unit = only(tmp_path, "web/AGENTS.md", GUIDE)
    titles = [item.metadata.title for item in unit.items]
    assert titles == [f"web/AGENTS.md › {name}" for name in ("Guide", "Testing", "Style")]
    guide, testing, style = unit.items
    assert guide.payload.text == "# Guide\n\nRead this first."
    assert "### Fixtures" in testing.payload.text
    assert "# nor this" in testing.payload.text
    assert "## still not" in style.payload.text
    lines = GUIDE.split("\n")
    for item in unit.items:
        assert item.source.start_line is not None
        assert "\n".join(lines[item.source.start_line - 1 : item.source.end_line]) == item.payload.text
        assert scope(item) == (["web/**"], True)


def test_ids_of_other_sections_survive_a_change_of_one(tmp_path: Path) -> None:
    before = {item.metadata.title: item.id for item in only(tmp_path, "AGENTS.md", GUIDE).items}
    changed = GUIDE.replace("Read this first.", "New.\n\n## Added\nMore.").replace("Second.", "Third.")
    after = {item.metadata.title: item.id for item in only(tmp_path, "AGENTS.md", changed).items}
    assert after.items() >= before.items()
    assert len(after) == len(before) + 1


def test_equal_headings_and_long_sections_get_different_ids(tmp_path: Path) -> None:
    paragraphs = "\n\n".join(f"Paragraph {n}. " + "x" * 500 for n in range(30))
    unit = only(tmp_path, "AGENTS.md", f"## A\n{paragraphs}\n## B\none\n## B\ntwo\n")
    titles = [item.metadata.title for item in unit.items]
    assert titles[:3] == ["AGENTS.md › A (1/3)", "AGENTS.md › A (2/3)", "AGENTS.md › A (3/3)"]
    assert titles[3:] == ["AGENTS.md › B", "AGENTS.md › B"]
    assert len({item.id for item in unit.items}) == len(titles)
    assert all(len(item.payload.text) <= PART for item in unit.items)


def test_a_long_fence_is_not_cut() -> None:
    code = "\n".join(f"call({n})" for n in range(2000))
    found = sections(f"## A\nBefore.\n\n```py\n{code}\n```\n\nAfter.", 1000)
    (fenced,) = [section.text for section in found if "```py" in section.text]
    assert f"```py\n{code}\n```" in fenced
    assert "After." in found[-1].text


_LINES = st.sampled_from(["# One", "## Two", "### Three", "## Two", "", "", "text", "more text here", "- item",
                          "x" * 45, "#no heading", "## Closed ##", "    ## code"])  # fmt: skip
_FENCES = st.builds(
    lambda fence, lines: "\n".join([fence, *lines, fence]),
    st.sampled_from(["```", "~~~~", "`````"]),
    st.lists(st.sampled_from(["## Two", "", "code()", "y" * 30, "``", "~~~"]), max_size=6),
)


def without_headings(text: str) -> str:
    return "".join(line for line in text.split("\n") if line not in {"# One", "## Two", "### Three", "## Closed ##"})


@settings(max_examples=300)
@given(st.lists(_LINES | _FENCES, max_size=30), st.integers(20, 120))
def test_sections_lose_nothing_keep_the_order_and_cut_no_fence(pieces: list[str], longest: int) -> None:
    text = "\n".join(pieces)
    found = sections(text, longest)
    assert without_headings("\n".join(section.text for section in found)) == without_headings(text)
    for fence in (piece for piece in pieces if piece.startswith(("`", "~"))):
        assert any(fence in section.text for section in found)
    keys = [(section.headings, section.ordinal) for section in found]
    assert len(keys) == len(set(keys))
    assert [section.start_line for section in found] == sorted(section.start_line for section in found)


@settings(max_examples=200)
@given(st.lists(_LINES, max_size=30).map("\n".join), st.integers(20, 120))
def test_a_part_is_longer_than_its_bound_only_by_the_headings_it_begins_with(text: str, longest: int) -> None:
    for section in sections(text, longest):
        assert len(without_headings(section.text)) <= longest


def test_several_titles_are_sections_too() -> None:
    found = sections("# A\none\n# B\ntwo", 100)
    assert [section.headings for section in found] == [("A",), ("B",)]
    found = sections("# A\none\n## X\n1\n# B\n## X\n2", 100)
    assert [section.headings for section in found] == [("A",), ("A", "X"), ("B", "X")]
    found = sections("# T\n### A\none\n### B\ntwo", 100)
    assert [section.headings for section in found] == [("A",), ("B",)]


# --- globs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("globs", "matched", "not_matched"),
    [
        (["**"], ["a", "a/b/c"], []),
        (["*"], ["a", "a/b/c"], []),
        (["*.py"], ["a.py", "x/y/a.py"], ["a.pyc", "py"]),
        (["/*.py"], ["a.py"], ["x/a.py"]),
        (["src/**"], ["src/a", "src/x/y"], ["src", "lib/src/a"]),
        (["src"], ["src", "src/a", "lib/src/a"], ["srcs/a"]),
        (["src/"], ["src/a", "lib/src/a"], ["src"]),
        (["/src/"], ["src/a"], ["lib/src/a"]),
        (["src/*"], ["src/a"], ["src/x/y"]),
        (["src/*.py"], ["src/a.py"], ["src/x/a.py", "lib/src/a.py"]),
        (["**/test_*.py"], ["test_a.py", "x/y/test_b.py"], ["x/atest_a.py"]),
        (["a/**/z"], ["a/z", "a/b/c/z", "a/z/q"], ["b/a/z"]),
        (["src/**", "!src/gen/**"], ["src/a"], ["src/gen/a"]),
        (["!src/gen/**", "src/**"], ["src/gen/a"], []),
        (["!src/**"], [], ["src/a", "b"]),
        (["file?.[ch]"], ["file1.c", "x/fileA.h"], ["file.c", "file1.o", "file/.c"]),
        (["[!a]x"], ["bx"], ["ax"]),
        ([r"\!x", r"\#y", r"web/\[slug\]/**"], ["!x", "#y", "web/[slug]/p.ts"], ["x", "web/s/p.ts"]),
        (["./a"], [], ["a"]),
        (["# comment", ""], [], ["# comment", "a"]),
        ([], [], ["a"]),
    ],
)  # fmt: skip
def test_globs_are_gitignores(globs: list[str], matched: list[str], not_matched: list[str]) -> None:
    assert [path for path in matched if not governs(globs, path)] == []
    assert [path for path in not_matched if governs(globs, path)] == []
    assert all(governs(globs, f"./{path}") for path in matched)


_SEGMENT = st.text("ab*?[]!\\^-. #", max_size=5) | st.sampled_from(["**", "*", "a", "b", "[ab]", "[!a]", "docs"])
_GLOB = st.builds(
    lambda sign, lead, segments, tail: sign + lead + "/".join(segments) + tail,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(_SEGMENT, min_size=1, max_size=4),
    st.sampled_from(["", "/", " "]),
)
_PATH = st.lists(
    st.text("ab.[]*\\!", min_size=1, max_size=4) | st.sampled_from(["a", "b", "docs"]), min_size=1, max_size=5
)


@settings(max_examples=200)
@given(st.lists(_GLOB, min_size=1, max_size=3), _PATH.filter(lambda parts: parts[0] != ".").map("/".join))
def test_globs_agree_with_pathspec(globs: list[str], path: str) -> None:
    try:
        expected = PathSpec.from_lines("gitignore", globs)
    except ValueError:
        assert not all(map(valid_glob, globs))
        return
    assert governs(globs, path) == expected.match_file(path)


@pytest.mark.parametrize("glob", ["**/*a*a*a/**/*a*a*a/**/b", "**/" * 300 + "b", "*a" * 400 + "b", "[" * 900])
def test_a_hostile_glob_takes_no_time(glob: str) -> None:
    path = "/".join(["a" * 200] * 18)
    started = time.process_time()
    assert not governs([glob], path)
    assert time.process_time() - started < 1.0
    assert not valid_glob(glob + "x" * 1000)


# --- CODEOWNERS -----------------------------------------------------------------------------------------------

GITHUB = """# This is a comment.
*       @global-owner1 @global-owner2
*.js    @js-owner #This is an inline comment.
*.go docs@example.com
*.txt @octo-org/octocats
/build/logs/ @doctocat
docs/* docs@example.com
apps/ @octocat
/docs/ @doctocat
/scripts/ @doctocat @octocat
**/logs @octocat
/apps/ @octocat
/apps/github
/apps/github/kept @doctocat
with\\ space.md @spacer
/web/[slug]/ @router
"""


@pytest.mark.parametrize(
    ("path", "owners"),
    [
        ("README.md", ["@global-owner1", "@global-owner2"]),
        ("src/deep/app.js", ["@js-owner"]),
        ("main.go", ["docs@example.com"]),
        ("notes/a.txt", ["@octo-org/octocats"]),
        ("build/other.md", ["@global-owner1", "@global-owner2"]),
        ("docs/getting-started.md", ["@doctocat"]),
        ("docs/build-app/troubleshooting.md", ["@doctocat"]),
        ("web/apps/x.py", ["@octocat"]),
        ("scripts/run.sh", ["@doctocat", "@octocat"]),
        ("build/logs/today", ["@octocat"]),
        ("deeply/nested/logs/x", ["@octocat"]),
        ("apps/main.js", ["@octocat"]),
        ("apps/github/main.js", []),
        ("apps/github/kept/x", ["@doctocat"]),
        ("with space.md", ["@spacer"]),
        ("web/[slug]/page.ts", ["@router"]),
        ("web/s/page.ts", ["@global-owner1", "@global-owner2"]),
    ],
)
def test_codeowners_as_githubs_documentation_explains_it(path: str, owners: list[str]) -> None:
    """The example of https://docs.github.com/articles/about-code-owners, with three rules added at its end. Brackets
    are no range there."""
    rules, rejected = parse_codeowners(GITHUB)
    assert rejected == []
    assert owners_of(rules, path) == owners


def test_docs_star_means_direct_children_only() -> None:
    """ "docs/* will match docs/getting-started.md but not docs/build-app/troubleshooting.md" (GitHub)."""
    rules, _ = parse_codeowners("docs/* docs@example.com")
    assert owners_of(rules, "docs/getting-started.md") == ["docs@example.com"]
    assert owners_of(rules, "docs/build-app/troubleshooting.md") == []


GITLAB = """* @everybody
[Documentation] @docs-team
docs/
README.md @writer
!docs/generated/

^[Database][2] @db-a @group/with/nested
/db/
README.md

[documentation]
CHANGELOG.md @@maintainers
"""


@pytest.mark.parametrize(
    ("path", "owners"),
    [
        ("src/a.rb", ["@everybody"]),
        ("docs/a.md", ["@everybody", "@docs-team"]),
        ("docs/generated/a.md", ["@everybody"]),
        ("README.md", ["@everybody", "@writer", "@db-a", "@group/with/nested"]),
        ("db/a.sql", ["@everybody", "@db-a", "@group/with/nested"]),
        ("CHANGELOG.md", ["@everybody", "@@maintainers"]),
    ],
)
def test_codeowners_with_gitlabs_sections(path: str, owners: list[str]) -> None:
    rules, rejected = parse_codeowners(GITLAB)
    assert rejected == []
    assert owners_of(rules, path) == owners


def test_bad_lines_of_codeowners_are_refused_and_the_rest_counts(tmp_path: Path) -> None:
    unit = only(tmp_path, "CODEOWNERS", "* @all\nsrc/ nobody @x\n! @x\n[Docs] oops @docs\ndocs/\n")
    assert [refused.key for refused in unit.rejected] == ["line 2", "line 3", "line 4"]
    assert unit.rejected[0].raw == "src/ nobody @x"
    assert "'nobody' is no owner" in unit.rejected[0].reasons[0]
    rules = unit.items[0].payload.structured["rules"]
    assert rules == [
        {"pattern": "*", "owners": ["@all"], "line": 1, "section": ""},
        {"pattern": "docs/", "owners": ["@docs"], "line": 5, "section": "Docs"},
    ]


def test_codeowners_is_one_item_however_long(tmp_path: Path) -> None:
    text = "".join(f"/src/module{n}/ @team{n}\n" for n in range(3000))
    unit = only(tmp_path, ".github/CODEOWNERS", text)
    (item,) = unit.items
    assert item.kind == "owners"
    assert len(item.payload.structured["rules"]) == 3000
    assert owners_of(item.payload.structured["rules"], "src/module2999/x") == ["@team2999"]
    assert len(item.payload.text) < 20_100
    assert "3000 rules" in unit.notes[0]


def test_the_first_codeowners_that_github_finds_counts(tmp_path: Path) -> None:
    repository = write(tmp_path, {"docs/CODEOWNERS": "* @c", "CODEOWNERS": "* @b", "AGENTS.md": "x"})
    listing = TeamRules().scan(repository, Known())
    assert set(listing.units) == {"CODEOWNERS", "AGENTS.md"}
    assert listing.skipped == {"CODEOWNERS behind another": 1}
    assert read(repository)["AGENTS.md"].items[0].metadata.owner_id == "@b"
    write(tmp_path, {".github/CODEOWNERS": "* @a"})
    assert read(repository)["AGENTS.md"].items[0].metadata.owner_id == "@a"


def test_rules_belong_to_whom_codeowners_names_else_to_the_configured_owner(tmp_path: Path) -> None:
    repository = write(tmp_path, {"AGENTS.md": "x", "rules/a.md": "x", "CODEOWNERS": "/rules/ @acme/rules @ana"})
    units = read(repository, TeamRules(owner="lead"))
    assert units["rules/a.md"].items[0].metadata.owner_id == "@acme/rules @ana"
    assert units["AGENTS.md"].items[0].metadata.owner_id == "lead"


def test_a_change_of_owners_reads_just_their_files_again(tmp_path: Path) -> None:
    repository = write(tmp_path, {"AGENTS.md": "x", "rules/a.md": "x", "CODEOWNERS": "/rules/ @ana"})
    before = TeamRules().scan(repository, Known()).units
    write(tmp_path, {"CODEOWNERS": "/rules/ @bob"})
    after = TeamRules().scan(repository, Known()).units
    assert {key for key in after if after[key] != before[key]} == {"CODEOWNERS", "rules/a.md"}


# --- where they are read from ---------------------------------------------------------------------------------


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    git(tmp_path, "init", "-q", "shop")
    write(root, {"AGENTS.md": GUIDE, "web/CLAUDE.md": "Use tabs.", "rules/a.md": "---\nglobs: '*.ts'\n---\nx",
                 "CODEOWNERS": GITHUB, ".cursor/rules/ü.mdc": "x", "src/app.py": "x = 1"})  # fmt: skip
    (root / "CLAUDE.md").symlink_to("AGENTS.md")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "rules")
    return root


def contents(repository: Repository) -> dict[str, tuple[str, str]]:
    items = [item for unit in read(repository).values() for item in unit.items]
    return {item.id: (item.metadata.checksum, item.source.path) for item in items}


def listed(repository: Repository) -> Listing:
    return TeamRules().scan(repository, Known())


def test_working_tree_revision_and_bare_repository_agree(worktree: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", "shop", "bare.git")
    places = [
        Repository("acme/shop", worktree, "acme"),
        Repository("acme/shop", worktree, "acme", "HEAD"),
        Repository("acme/shop", tmp_path / "bare.git", "acme"),
    ]
    tree, revision, bare = map(contents, places)
    assert tree == revision == bare
    assert len(tree) == 7
    first, *others = map(listed, places)
    assert all((other.units, other.revision) == (first.units, first.revision) for other in others)
    assert first.revision == git(worktree, "rev-parse", "HEAD")
    assert first.skipped == {"symlink": 1}


def test_a_deleted_rule_disappears_from_the_listing(worktree: Path) -> None:
    tree = Repository("acme/shop", worktree, "acme")
    before = listed(tree)
    (worktree / "rules" / "a.md").unlink()
    after = listed(tree)
    assert set(before.units) - set(after.units) == {"rules/a.md"}
    assert after.complete
    assert after.revision == before.revision + "+"
    git(worktree, "commit", "-qam", "no rule")
    assert "rules/a.md" not in listed(Repository("acme/shop", worktree, "acme", "HEAD")).units
    assert "rules/a.md" in listed(Repository("acme/shop", worktree, "acme", "HEAD~1")).units


def test_a_linked_directory_leads_nowhere(worktree: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside", {"AGENTS.md": "secret"})
    (worktree / "web").rename(worktree / "gone")
    (worktree / "web").symlink_to(tmp_path / "outside")
    write(tmp_path / "outside", {"CLAUDE.md": "secret"})
    assert not any(path.startswith("web/") for path in listed(Repository("r", worktree, "acme")).units)


def test_the_rules_of_this_very_repository_can_be_read() -> None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    assert all(not unit.rejected for unit in read(Repository("context-os", root, "acme")).values())
