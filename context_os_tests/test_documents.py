"""The documents connector: which files are its own, sections that tile their file, what they mention, hostile bytes."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import make_repository
from samples import write as add

from context_os import settings as configuration
from context_os.connectors import Known, Listing, Repository, Unit
from context_os.connectors._prose import (
    MOST_LINES,
    asciidoc_headings,
    front_title,
    markdown_headings,
    passages,
    references,
    rst_headings,
)
from context_os.connectors.bug_specs import BugSpecs
from context_os.connectors.documents import Documents
from context_os.connectors.symbols import Symbols
from context_os.connectors.team_rules import TeamRules
from context_os.errors import SourceRefused
from context_os.git import Git, blob_hash
from context_os.ingestion import Ingestion, Report, find_repository, register
from context_os.ledger import Ledger
from context_os.model import KnowledgeItem
from context_os.stores import Filter, Mode, Query


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(root: Path, revision: str | None = None, **options: object) -> tuple[Listing, dict[str, Unit]]:
    repository = Repository("acme/shop", root, "acme", revision)
    connector = Documents.model_validate(options)
    listing = connector.scan(repository, Known())
    units = {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}
    assert {key: unit.hash for key, unit in units.items()} == dict(listing.units)
    return listing, units


def only(root: Path, name: str, content: str | bytes) -> Unit:
    write(root, {name: content})
    return read(root)[1][name]


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def outline(unit: Unit) -> list[tuple[str, int | None, int | None]]:
    return [(item.metadata.title, item.source.start_line, item.source.end_line) for item in unit.items]


def mentions(unit: Unit) -> dict[str, float]:
    return {relation.target: relation.confidence for item in unit.items for relation in item.relations}


# --- which files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "language"),
    [
        ("README.md", "section", "markdown"),
        ("README", "section", "text"),
        ("LICENSE-MIT", "section", "text"),
        ("docs/index.rst", "section", "restructuredtext"),
        ("docs/index.adoc", "section", "asciidoc"),
        ("docs/index.txt", "section", "text"),
        ("bugs/notes.txt", "section", "text"),
        ("requirements.txt", "file", "txt"),
        ("requirements/dev.txt", "file", "txt"),
        ("CMakeLists.txt", "file", "txt"),
        ("pyproject.toml", "file", "toml"),
        ("setup.cfg", "file", "ini"),
        (".github/workflows/ci.yml", "file", "yaml"),
        ("data/x.json", "file", "json"),
        ("templates/a.html", "file", "html"),
        ("a.css", "file", "css"),
        ("run.sh", "file", "sh"),
        ("Makefile", "file", "makefile"),
        ("Dockerfile.dev", "file", "dockerfile"),
        (".gitignore", "file", "gitignore"),
        ("schema.sql", "file", "sql"),
        ("main.kt", "file", "kt"),
        ("man/tool.1", "file", "text"),
        ("bin/tool", "file", "tool"),
    ],
)
def test_each_text_file_has_its_kind_and_language(tmp_path: Path, path: str, kind: str, language: str) -> None:
    (item,) = only(tmp_path, path, "Some text that says something.\n").items
    assert (item.kind, item.source.language, item.domain) == (kind, language, "documentation")
    assert (item.source.path, item.metadata.title) == (path, path)
    assert item.source.metadata["blob"] == blob_hash((tmp_path / path).read_bytes())
    assert item.metadata.ttl is None


def test_each_file_is_read_by_one_connector(tmp_path: Path) -> None:
    record = "---\nid: A-1\n---\nNotes\n"
    write(tmp_path, {"a.py": "x = 1\n", "a.pyi": "x: int\n", "AGENTS.md": "Use tabs.", "CODEOWNERS": "* @all",
                     "bugs/a.md": record, "own/a.md": record, "docs/a.md": "# A\n", "x.yaml": "a: 1\n"})  # fmt: skip
    repository = Repository("acme/shop", tmp_path, "acme")
    readers = (Symbols(), TeamRules(), BugSpecs(paths=("own/**",)), Documents(records=("own/**",)))
    listed = [path for connector in readers for path in connector.scan(repository, Known()).units]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} | {"CODEOWNERS"}
    assert "bugs/a.md" not in Documents().scan(repository, Known()).units
    with pytest.raises(ValidationError, match="not a glob"):
        Documents(records=("!",))


def test_what_path_and_size_rule_out_is_counted(tmp_path: Path) -> None:
    names = ["uv.lock", "web/package-lock.json", "go.sum", "pylock.toml", "app.js.map", "site.min.css", "logo.PNG",
             "font.woff2", "logo.svg", "locale/de.po", "key.pem", ".env", "vendor/x/README.md",
             "node_modules/x/package.json"]  # fmt: skip
    write(tmp_path, dict.fromkeys(names, "text\n") | {"big.txt": b"x\n" * 1_001, "kept.env.example": "A=1\n"})
    (tmp_path / "link.md").symlink_to("kept.env.example")
    listing, _ = read(tmp_path, max_bytes=2_000)
    assert list(listing.units) == ["kept.env.example"]
    assert listing.skipped == {"lock file": 4, "generated": 2, "binary": 2, "drawing": 1, "translation": 1, "secret": 2,
                               "vendored": 2, "huge": 1, "symlink": 1}  # fmt: skip
    assert "big.txt" in read(tmp_path, max_bytes=2_002)[0].units


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.dump", b"\x7fELF\0\0", "binary"),
        ("a.md", b"# A\0\n", "binary"),
        ("a.utf", b"\xff\xfe\0\0a\0\0\0", "binary"),
        ("a.yaml", "# Code generated by tool. DO NOT EDIT.\na: 1\n", "generated"),
        ("a.json", "[" + "1," * 20_000 + "1]", "minified"),
        ("deploy", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "private key"),
    ],
)
def test_what_only_the_content_rules_out_is_a_unit_without_items(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    unit = only(tmp_path, name, content)
    assert (unit.items, unit.notes) == ((), (f"skipped: {reason}",))


# --- sections -------------------------------------------------------------------------------------------------

GUIDE = """\
---
title: Manual
description: not a heading
---
Read this first.

# Guide

## Install ##
Run it.

```sh
# not a heading
```

~~~~
## nor this
~~~
## nor that
~~~~

    # indented, so code

### On Windows

Use setup.
<!--
# hidden
-->

Setext
title
------
- a list
  continues
---
> quoted
lazy
===

## Install
Again.

## Empty
"""


def test_markdown_is_cut_at_every_heading(tmp_path: Path) -> None:
    unit = only(tmp_path, "docs/guide.md", GUIDE)
    assert outline(unit) == [
        ("Manual", 1, 6),
        ("Manual > Guide > Install", 7, 23),
        ("Manual > Guide > Install > On Windows", 24, 30),
        ("Manual > Guide > Setext title", 31, 40),
        ("Manual > Guide > Install", 41, 43),
        ("Manual > Guide > Empty", 44, 44),
    ]
    lines = GUIDE.split("\n")
    for item in unit.items:
        assert item.source.start_line is not None
        assert "\n".join(lines[item.source.start_line - 1 : item.source.end_line]).rstrip() == item.payload.text
    assert len({item.id for item in unit.items}) == 6
    assert unit.items[1].payload.structured["headings"] == ["Manual", "Guide", "Install"]
    assert unit.items[1].metadata.tags == ("section", "markdown")
    assert unit.notes == ()


RST = """\
.. _guide:

=====
Guide
=====

Intro.

Install
=======

On Windows
----------
Use setup::

    Not a title
    -----------

Second line of a paragraph
is no title
===========

=====  =====
A      B
=====  =====

----

Größe
~~~~~
Wide.

Later
=====
End.
"""


def test_restructuredtext_is_cut_at_its_titles(tmp_path: Path) -> None:
    for name in ("guide.rst", "guide.txt"):
        assert outline(only(tmp_path, name, RST)) == [
            (name, 1, 2),
            ("Guide", 3, 8),
            ("Guide > Install > On Windows", 9, 28),
            ("Guide > Install > On Windows > Größe", 29, 32),
            ("Guide > Later", 33, 35),
        ]


def test_asciidoc_is_cut_at_its_sections(tmp_path: Path) -> None:
    text = "= Guide\n:toc:\n\n== Install\nRun.\n\n----\n== code\n----\n\n.Title\n====\n== example\n====\n\n"
    assert outline(only(tmp_path, "guide.adoc", text + "=== Deep\nx\n\nOlder\n-----\ny\n")) == [
        ("Guide", 1, 3),
        ("Guide > Install", 4, 15),
        ("Guide > Install > Deep", 16, 18),
        ("Guide > Older", 19, 21),
    ]


def test_headings_without_text_lead_to_the_first_section_below(tmp_path: Path) -> None:
    assert outline(only(tmp_path, "a.md", "\n# A\n\n## B\n\n### C\nc\n## D\n## E\ne\n")) == [
        ("A > B > C", 1, 7),
        ("A > D", 8, 8),
        ("A > E", 9, 10),
    ]


def test_a_text_without_headings_is_one_section(tmp_path: Path) -> None:
    assert outline(only(tmp_path, "notes.txt", "One.\n\nTwo.\n")) == [("notes.txt", 1, 3)]


def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    plain = only(tmp_path, "a.md", GUIDE)
    marked = only(tmp_path, "a.md", b"\xef\xbb\xbf" + GUIDE.replace("\n", "\r\n").encode())
    assert [item.metadata.checksum for item in marked.items] == [item.metadata.checksum for item in plain.items]
    assert "byte-order mark" in marked.notes[0]


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n", "\ufeff"])
@pytest.mark.parametrize("name", ["a.md", "a.yaml", "a.rst", "a.ipynb"])
def test_an_empty_file_has_no_items(tmp_path: Path, name: str, content: str) -> None:
    unit = only(tmp_path, name, content)
    assert unit.items == ()
    assert unit.notes[-1] == "empty"


def test_bytes_that_are_no_text_are_kept_as_escapes(tmp_path: Path) -> None:
    unit = only(tmp_path, "a.md", b"# Gr\xf6\xdfe\nvalue\n" + b"x" * 9_000 + b"\0\n")
    (item,) = unit.items
    assert item.metadata.title == r"Gr\xf6\xdfe"
    assert item.payload.text.endswith(r"x\x00")
    assert "byte 4 is 0xf6" in unit.notes[0]
    assert "NUL character in line 3" in unit.notes[1]
    wide = only(tmp_path, "b.md", "# Größe\r\nvalue\n".encode("utf-16"))
    assert (wide.items[0].metadata.title, wide.items[0].payload.text) == ("Größe", "# Größe\nvalue")
    assert "UTF-16" in wide.notes[0]


def test_what_is_long_is_cut_and_noted(tmp_path: Path) -> None:
    unit = only(tmp_path, "a.yaml", "".join(f"key{n}: 1\n" + "\n" * (n == 150) for n in range(450)))
    assert outline(unit) == [("a.yaml (1/3)", 1, 152), ("a.yaml (2/3)", 153, 352), ("a.yaml (3/3)", 353, 451)]
    assert unit.notes == ("the file is cut into 3 parts of at most 200 lines",)
    section = only(tmp_path, "a.md", "# A\n" + "word " * 30 + "\n# B\n" + ("word " * 30 + "\n") * 350)
    assert [item.metadata.title for item in section.items] == ["A", "B (1/3)", "B (2/3)", "B (3/3)"]
    assert section.notes == ("its longest section is cut into 3 parts of at most 200 lines",)
    assert len({item.id for item in section.items}) == 4


def test_ids_of_other_sections_survive_a_change_of_one(tmp_path: Path) -> None:
    before = {item.metadata.title: item for item in only(tmp_path, "a.md", GUIDE).items}
    changed = only(tmp_path, "a.md", GUIDE.replace("Use setup.", "Use it.\n\n### On Linux\nNothing."))
    after = {item.metadata.title: item for item in changed.items}
    assert {title: item.id for title, item in after.items()}.items() >= {
        title: item.id for title, item in before.items()
    }.items()
    assert set(after) - set(before) == {"Manual > Guide > Install > On Linux"}
    assert after["Manual"].metadata.checksum == before["Manual"].metadata.checksum


def test_a_notebook_is_the_text_of_its_cells(tmp_path: Path) -> None:
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "Words"]},
             {"cell_type": "code", "source": "print('\ud800')", "outputs": [{"data": "SECRET"}]}]  # fmt: skip
    (item,) = only(tmp_path, "a.ipynb", json.dumps({"cells": cells})).items
    assert item.payload.text == "# Title\nWords\n\n```\nprint('\\ud800')\n```"
    assert (item.source.language, item.source.start_line) == ("jupyter", None)
    broken = only(tmp_path, "b.ipynb", '{"cells": [1]}')
    assert broken.items[0].payload.text == '{"cells": [1]}'
    assert broken.notes == ("no notebook: its JSON is kept as it is",)


_LINES = st.sampled_from(
    ["# One", "## Two", "### Three", "Title", "=====", "-----", "", "", "text", "- item", "> quote", "```", "~~~~",
     "---", "+++", "<!--", "-->", "    code", "== Section", "....", "::", ".. note:: x", "\t", "#", "# #", "=", "|a|"]
)  # fmt: skip


@settings(max_examples=400)
@given(st.lists(_LINES | st.text(max_size=12).filter(lambda text: "\n" not in text), max_size=40), st.booleans())
@example(["# x"] * 450, False)
@example(["text"] * 450, True)
def test_passages_tile_the_lines(lines: list[str], titled: bool) -> None:
    for find in (markdown_headings, rst_headings, asciidoc_headings):
        headings = find(lines)
        for heading, following in zip(headings, headings[1:], strict=False):
            assert heading.end <= following.start
        found = passages(lines, headings, "Root" if titled else "")
        covered = [number for each in found for number in range(each.start, each.end)]
        assert covered == list(range(len(lines) if any(map(str.strip, lines)) else 0))
        assert all(each.start < each.end <= each.start + MOST_LINES for each in found)
        assert len({(each.headings, each.ordinal) for each in found}) == len(found)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.lists(_LINES, max_size=20).map(lambda lines: "\n".join(lines).encode()),
       name=st.sampled_from(["a.md", "a.rst", "a.adoc", "a.txt", "a.yaml", "a.ipynb"]))  # fmt: skip
def test_any_bytes_are_read_and_no_line_is_lost(tmp_path: Path, data: bytes, name: str) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    unit = only(tmp_path, name, data)
    assert unit.items or unit.notes
    for item in unit.items:
        assert KnowledgeItem.model_validate_json(item.model_dump_json(by_alias=True)).payload == item.payload
        assert item.metadata.title.strip()
        assert "\0" not in item.payload.text + item.metadata.title
    if not unit.notes and name != "a.ipynb":
        text = "\n".join(item.payload.text for item in unit.items)
        written = data.decode().replace("\r\n", "\n")
        assert [line.rstrip() for line in text.split("\n") if line.strip()] == [
            line.rstrip() for line in written.split("\n") if line.strip()
        ]


@pytest.mark.parametrize(
    "line", ["#" * 900_000, "# " + " " * 900_000 + "x", "`" * 900_000 + "x`", "- " * 450_000, "](" * 450_000,
             "`a." * 300_000, ":: " * 300_000, "]:" + " " * 900_000,
             "<!--" * 200_000, "=" * 900_000, "link:" * 180_000, "{" * 900_000]
)  # fmt: skip
def test_hostile_lines_take_no_time(line: str) -> None:
    started = time.process_time()
    for find in (markdown_headings, rst_headings, asciidoc_headings):
        assert len(find([line, line, ""])) <= 2
    assert len(references(line, "docs/a.md")) <= 60
    assert time.process_time() - started < 5


def test_front_matter_gives_the_title() -> None:
    assert front_title(["---", "title: 'A: B'", "---"]) == "A: B"
    assert front_title(["+++", 'title = "T"', "+++", "title = x"]) == "T"
    assert front_title(["---", "title: A"]) == front_title(["title: A"]) == front_title([]) == ""


# --- what they mention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../src/app.py#L3) [b](./img.png)", {"path:src/app.py": 0.9, "path:docs/img.png": 0.9}),
        ("[a](/src/app.py) [b](my%20file.md 'title')", {"path:src/app.py": 0.9, "path:docs/my file.md": 0.9}),
        ("[a][b]\n\n[b]: guide.md", {"path:docs/guide.md": 0.9}),
        ("[a](https://x.org/a.md) [b](#here) [c](mailto:a@b.co) [d](//x/a.md) [e](../../up.md) [f](page)", {}),
        ("`src/shop/app.py` and `./near.py`", {"path:src/shop/app.py": 0.8, "path:docs/near.py": 0.8}),
        ("`setup.py`", {"path:setup.py": 0.3}),
        ("``shop.app.Session`` and `shop.run()`", {"symbol:shop.app.Session": 0.7, "symbol:shop.run": 0.7}),
        ("`std::vec::Vec`", {"symbol:std.vec.Vec": 0.7}),
        (":class:`~shop.app.Session` :meth:`end <shop.end>`", {"symbol:shop.app.Session": 0.9, "symbol:shop.end": 0.9}),
        (":ref:`shop.app` :pep:`8` :setting:`A.B`", {}),
        ("`text <other.md>`_", {"path:docs/other.md": 0.9}),
        (":doc:`install` :doc:`the top </index>`", {"path:docs/install.md": 0.9, "path:docs/index.md": 0.7}),
        (".. include:: ../CHANGES.rst\n.. automodule:: shop.app", {"path:CHANGES.rst": 0.9, "symbol:shop.app": 0.9}),
        ("::: shop.app\n    options:", {"symbol:shop.app": 0.9}),
        ("xref:guide.adoc[Guide] include::part.adoc[]", {"path:docs/guide.adoc": 0.9, "path:docs/part.adoc": 0.9}),
        ("`and/or` `1.2.3` `word` `a b.c` `*.py` `x = y.z`", {}),
        ("[a](x%00.md)", {}),
    ],
)  # fmt: skip
def test_references(text: str, expected: dict[str, float]) -> None:
    assert dict(references(text, "docs/a.md")) == expected


def test_sections_mention_and_files_do_not(tmp_path: Path) -> None:
    assert mentions(only(tmp_path, "docs/a.md", "# A\nSee [it](../b.py), `a.b` and again `a.b`.\n")) == {
        "path:b.py": 0.9,
        "symbol:a.b": 0.7,
    }
    assert mentions(only(tmp_path, "a.yaml", "x: '[it](b.py)'\n")) == {}
    many = only(tmp_path, "b.md", " ".join(f"`a.b{n}`" for n in range(500)))
    assert len(many.items[0].relations) == 60


# --- where they are read from ---------------------------------------------------------------------------------


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    git(tmp_path, "init", "-q", "shop")
    write(root, {"README.md": GUIDE, "docs/ü.rst": RST, "a.toml": "x = 1\n", "app.py": "x = 1\n"})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "documents")
    return root


def test_working_tree_revision_and_bare_repository_agree(worktree: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", "shop", "bare.git")
    found = [read(worktree), read(worktree, "HEAD"), read(tmp_path / "bare.git")]
    for listing, units in found:
        assert listing.revision == git(worktree, "rev-parse", "HEAD")
        assert set(listing.units) == {"README.md", "docs/ü.rst", "a.toml"}
        assert listing.units["a.toml"] == git(worktree, "rev-parse", "HEAD:a.toml")
        assert {i.id: i.metadata.checksum for u in units.values() for i in u.items} == {
            i.id: i.metadata.checksum for u in found[0][1].values() for i in u.items
        }


def test_only_what_changed_has_another_hash(worktree: Path) -> None:
    before, _ = read(worktree)
    write(worktree, {"a.toml": "x = 2\n", "new.md": "New."})
    (worktree / "docs/ü.rst").unlink()
    (worktree / "app.py").write_text("x = 2\n")
    after, _ = read(worktree)
    assert after.revision == before.revision + "+"
    assert set(after.units.items()) - set(before.units.items()) == {
        ("a.toml", blob_hash(b"x = 2\n")),
        ("new.md", blob_hash(b"New.")),
    }
    assert "docs/ü.rst" not in after.units
    (gone,) = Documents().read(Repository("acme/shop", worktree, "acme"), before, ["docs/ü.rst"])
    assert (gone.hash, gone.items, gone.notes) == ("", (), ("gone since it was listed",))


def test_a_scan_of_a_revision_opens_no_blob(worktree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a blob was asked for")

    monkeypatch.setattr(Git, "blobs", refuse)
    assert len(Documents().scan(Repository("r", worktree, "acme", "HEAD"), Known()).units) == 3


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="not a directory"):
        read(tmp_path / "nowhere")


def test_from_a_repository_into_a_store_and_back(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "shop")
    add(root, "docs/pool.md", "# Pool\n\n## Locking\nTake the lock in `shop/pool.py`, see `shop.pool.release`.\n")
    add(root, "settings.toml", "[pool]\nsockets = 10\n")
    home = tmp_path / "home"
    home.mkdir()
    chosen = configuration.load({"home": str(home)}, start=home)
    with chosen.open_store() as store:
        ingestion = Ingestion(chosen, store, Ledger(chosen.make_home() / "ledger.db"))
        register(chosen, ingestion.ledger, "shop", root)

        def run() -> Report:
            staged = ingestion.stage("documents", find_repository(chosen, ingestion.ledger, "shop"))
            assert ingestion.judge(staged).passed
            return ingestion.index(staged)

        first = run()
        assert (first.added, first.quarantined, first.reconcile.differences) == (3, 0, ())
        assert (run().added, run().unchanged) == (0, 3)
        naming = Filter(targets=("path:shop/pool.py",), relation_types=("mentions",), domains=("documentation",))
        (section,) = store.scan(ingestion.access, naming).items
        assert (section.metadata.title, section.source.start_line, section.source.end_line) == ("Pool > Locking", 1, 4)
        hits = store.search(
            ingestion.access, Query("sockets of the pool", None, Mode.KEYWORD, 5, Filter(kinds=("file",)))
        )
        assert [hit.item.source.path for hit in hits] == ["settings.toml"]
        (root / "settings.toml").unlink()
        add(root, "docs/pool.md", "# Pool\n\n## Locking\nNever.\n")
        second = run()
        assert (second.added, second.changed, second.removed) == (0, 1, 1)
