"""Pull requests from history and from GitHub's API: real git repositories, real HTTP on loopback."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import logging
import os
import random
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from samples import clone_of

from context_os.connectors import Known, Listing, Repository, Unit, _github, _github_records, _merges, _pull
from context_os.connectors.pull_requests import PullRequests
from context_os.errors import ConfigurationError, SourceError, SourceRefused, SourceUnavailable
from context_os.git import Git
from context_os.model import KnowledgeItem

SHARED = Path(os.environ.get("CONTEXT_OS_SHARED", Path(__file__).parents[2] / "shared"))
REPLAY = SHARED / "tools" / "github_replay.py"
RECORDED = SHARED / "data" / "github-api"

needs_shared = pytest.mark.skipif(not REPLAY.exists(), reason=f"no shared tools in {SHARED}")


# Helpers


def scan_and_read(connector: PullRequests, repository: Repository) -> tuple[Listing, dict[str, Unit]]:
    listing = connector.scan(repository, Known())
    return listing, {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}


def stored(listing: Listing, before: Known | None = None) -> Known:
    """The ledger after a listing was stored."""
    units = dict(before.units) if before and not listing.complete else {}
    # Through JSON, as a ledger keeps it.
    return Known({**units, **listing.units}, json.loads(json.dumps(dict(listing.cursor))))


def assert_storable(unit: Unit) -> None:
    """What every store and the gate demand of items."""
    assert len({item.id for item in unit.items}) == len(unit.items)
    for item in unit.items:
        assert KnowledgeItem.model_validate_json(item.model_dump_json()) == item
        assert "\0" not in item.model_dump_json().replace("\\u0000", "\0")
    for rejected in unit.rejected:
        assert rejected.reasons
        assert rejected.raw.encode()
    assert unit.items or unit.rejected


def files_of(item: KnowledgeItem) -> list[tuple[Any, ...]]:
    return sorted(
        (one["path"], one["status"], one["previous_path"], one["additions"], one["deletions"])
        for one in item.payload.structured["files"]
    )


def targets(item: KnowledgeItem, type: str) -> list[str]:
    return [one.target for one in item.relations if one.type == type]


# Commit messages

Named = _merges.Named


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Merge pull request #12 from ann/fix/x\n\nRepair x\n\nIt was broken.",
         Named(12, "Repair x", "It was broken.", "fix/x")),
        ("Merge pull request #12 from ann/fix into develop\n\nRepair x", Named(12, "Repair x", "", "fix", "develop")),
        ("Merge pull request #12 from ann/fix", Named(12, "fix", "", "fix")),
        ("Merge pull request #3 in PROJ/repo from feature/a to master\n\n* commit 'ab': x",
         Named(3, "* commit 'ab': x", "", "feature/a", "master")),
        ("Merged in feature/a (pull request #41)\n\nAdd a\n\nApproved-by: B",
         Named(41, "Add a", "Approved-by: B", "feature/a")),
        ("Merged PR 77: Add b\n\nRelated work items: #5", Named(77, "Add b", "Related work items: #5")),
        ("Pull request #8: Add c\n\nMerge in PROJ/repo from c to master",
         Named(8, "Add c", "Merge in PROJ/repo from c to master")),
        ("Merge branch 'topic' into 'main'\n\nAdd d\n\nSee merge request group/sub/proj!19",
         Named(19, "Add d", "", "topic", "main")),
        ("Add e\n\nWhy\n\nSee merge request proj!20", Named(20, "Add e", "Why")),
        ("Add f (#9)\n\n* one\n* two", Named(9, "Add f", "* one\n* two")),
        ("Add a long\nsubject (#9)", Named(9, "Add a long subject", "")),
        ('Revert "Add f (#9)" (#10)', Named(10, 'Revert "Add f (#9)"', "")),
        ("(#9)", Named(9, "", "")),
        ('Revert "Add f (#9)"', None),
        ("Add g (owner/other#9)", None),
        ("Merge branch 'main' into topic", None),
        ("Fix #9", None),
        ("Add h (#0)", None),
        ("Add h (#12345678901)", None),
        ("", None),
    ],
)  # fmt: skip
def test_messages_that_name_a_pull_request(message: str, expected: Named | None) -> None:
    assert _merges.named_by(message) == expected


WORDS = st.from_regex(r"[A-Za-z][A-Za-z ,.'-]{0,40}[a-z]", fullmatch=True)
BRANCH = st.from_regex(r"[a-z][a-z0-9._/-]{0,20}[a-z]", fullmatch=True)
NUMBER = st.integers(1, 10**9 - 1)


@given(NUMBER, BRANCH, WORDS, WORDS)
def test_what_a_forge_writes_is_read_back(number: int, branch: str, title: str, body: str) -> None:
    plain = _merges.named_by(f"{title} (#{number})\n\n{body}")
    assert plain == Named(number, " ".join(title.split(" ")).strip(), body.strip())
    merge = _merges.named_by(f"Merge pull request #{number} from owner/{branch}\n\n{title}\n\n{body}")
    assert merge == Named(number, title.strip(), body.strip(), branch)
    lab = _merges.named_by(
        f"Merge branch '{branch}' into 'main'\n\n{title}\n\n{body}\n\nSee merge request g/p!{number}"
    )
    assert lab == Named(number, title.strip(), body.strip(), branch, "main")


@given(st.text())
def test_any_message_is_read_and_names_only_a_number_in_it(message: str) -> None:
    named = _merges.named_by(message)
    assert named is None or str(named.number) in message


@given(st.text(alphabet="abc \n\t(#)12!", max_size=60))
def test_subject_and_body_keep_every_word(message: str) -> None:
    subject, body = _pull.split_message(message)
    assert f"{subject} {body}".split() == message.split()
    assert "\n" not in subject


@pytest.mark.parametrize("message", ["(#" * 200_000, " " * 400_000 + "(#1", "<!--" * 100_000, "Fixes " * 100_000])
def test_no_message_takes_long(message: str) -> None:
    started = time.process_time()
    _merges.named_by(message)
    _pull.closed_by(message, "a/b")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fixes #12", ["issue:12", "bug:12"]),
        ("fix: #12", ["issue:12", "bug:12"]),
        ("This resolved GH-12.", ["issue:12", "bug:12"]),
        ("closes Owner/Name#12", ["issue:12", "bug:12"]),
        ("closes other/name#12", ["issue:other/name#12"]),
        ("Fixes https://github.com/owner/name/issues/7", ["issue:7", "bug:7"]),
        ("Closes https://github.com/x/y/pull/7)", ["issue:x/y#7"]),
        ("resolves JIRA-123, fixes #1 and closes: #1", ["bug:JIRA-123", "issue:1", "bug:1"]),
        ("prefixes #12", []),
        ("Refs #12, see JIRA-1", []),
        ("fixes jira-12", []),
        ("<!-- write Fixes #123 here -->\nno", []),
        ("<!-- Fixes #123", []),
    ],
)
def test_closing_keywords(text: str, expected: list[str]) -> None:
    assert _pull.closed_by(text, "owner/name") == expected


@given(st.text(), st.sampled_from(["fix", "Closes", "RESOLVED"]), NUMBER)
def test_a_closing_keyword_is_found_in_any_text(around: str, word: str, number: int) -> None:
    text = f"{around.replace('<', '')}\n{word} #{number}\n"
    assert f"issue:{number}" in _pull.closed_by(text, "owner/name")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("someone", "Bot", ""), True),
        (("renovate[bot]", "User", ""), True),
        (("codecov-io", "User", ""), True),
        (("GitHub Actions", "", ""), True),
        (("x", "", "49699333+dependabot[bot]@users.noreply.github.com"), True),
        (("x", "", "action@github.com"), True),
        (("orta", "User", "orta@example.com"), False),
        (("Abbot", "User", ""), False),
    ],
)
def test_bots(arguments: tuple[str, str, str], expected: bool) -> None:
    assert _pull.is_bot(*arguments) is expected


@given(st.lists(st.tuples(st.sampled_from(" +-"), st.text(alphabet="ab", max_size=3)), min_size=1), st.integers(1, 500))
def test_the_line_under_a_comment_is_counted_in_its_hunk(rows: list[tuple[str, str]], start: int) -> None:
    hunk = "\n".join([f"@@ -{start},9 +{start + 2},9 @@ def f", *(sign + text for sign, text in rows)])
    old, new = start - 1, start + 1
    for sign, _ in rows:
        old, new = old + (sign != "+"), new + (sign != "-")
    expected = (old, "LEFT") if rows[-1][0] == "-" else (new, "RIGHT")
    assert _github_records.last_line(hunk) == expected


@given(st.text())
def test_any_hunk_gives_a_line_or_none(hunk: str) -> None:
    line, side = _github_records.last_line(hunk)
    assert line is None
    assert side == "RIGHT"


# History


class Builder:
    """Commits with fixed authors and times, so that a test says everything about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = 1_700_000_000
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, name: str = "Ann", email: str = "ann@example.com") -> str:
        self.clock += 60
        who = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email, "GIT_AUTHOR_DATE": f"{self.clock} +0200"}
        committer = {
            "GIT_COMMITTER_NAME": "Hub",
            "GIT_COMMITTER_EMAIL": "hub@x",
            "GIT_COMMITTER_DATE": f"{self.clock} +0200",
        }
        quiet = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            env={**os.environ, **who, **committer, **quiet},
            capture_output=True,
            check=True,
        )
        return done.stdout.decode("utf-8", "replace").strip()

    def write(self, path: str, content: str | bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, message: str, name: str = "Ann", email: str = "ann@example.com") -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "--cleanup=verbatim", "-m", message, name=name, email=email)
        return self.git("rev-parse", "HEAD")

    def merge(self, branch: str, message: str) -> str:
        self.git("merge", "-q", "--no-ff", "--cleanup=verbatim", "-m", message, branch)
        return self.git("rev-parse", "HEAD")


LINES = "".join(f"line {number}\n" for number in range(30))


def build(folder: Path) -> dict[str, str]:
    """A history with every kind of pull request; the commits by a short name."""
    it, made = Builder(folder), {}
    it.write("src/app.py", LINES)
    it.write("old name.txt", LINES)
    it.write("gone.py", "x = 1\n")
    it.commit("Start")
    it.git("switch", "-q", "-c", "feature")
    it.write("src/app.py", LINES.replace("line 7", "line seven"))
    it.git("mv", "old name.txt", "new näme.txt")
    made["inner1"] = it.commit("Rename and change", "Zed", "1234+zed@users.noreply.github.com")
    (folder / "gone.py").unlink()
    it.write("logo.bin", b"\0\1\2\3")
    made["inner2"] = it.commit("Remove gone\n\nResolves BUG-9", "Zed", "1234+zed@users.noreply.github.com")
    it.git("switch", "-q", "main")
    it.write("README.md", "# Read me\n")
    it.commit("Tell (no number)")
    made["12"] = it.merge("feature", "Merge pull request #12 from zed/feature\n\nTidy names\n\nFixes #3 and more.")
    it.write("deps.txt", "a==2\n")
    made["13"] = it.commit(
        "Bump a (#13)\n\nFrom 1 to 2.", "dependabot[bot]", "49699333+dependabot[bot]@users.noreply.github.com"
    )
    it.git("switch", "-q", "-c", "lab")
    it.write("lab.py", "lab = 1\n")
    it.commit("Lab work", "Ling", "ling@example.com")
    it.git("switch", "-q", "main")
    made["19"] = it.merge("lab", "Merge branch 'lab' into 'main'\n\nAdd the lab\n\nSee merge request group/proj!19")
    it.git("switch", "-q", "-c", "bucket")
    it.write("bucket.py", "bucket = 1\n")
    it.commit("Bucket work")
    it.git("switch", "-q", "main")
    made["41"] = it.merge("bucket", "Merged in bucket (pull request #41)\n\nAdd the bucket")
    it.commit('Revert "Bump a (#13)"')
    it.git("switch", "-q", "-c", "open")
    it.commit("Not merged (#99)")
    it.git("switch", "-q", "main")
    return made


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("history") / "work"
    made = build(folder)
    bare = folder.parent / "bare.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(folder), str(bare)], check=True, capture_output=True)
    # For the replay server, which reads paths as git prints them.
    subprocess.run(["git", "-C", str(bare), "config", "core.quotePath", "false"], check=True)
    return bare, made


def at(location: Path, name: str = "owner/name", revision: str | None = None) -> Repository:
    return Repository(name, location, "acme", revision)


def test_history_lists_what_was_merged(history: tuple[Path, dict[str, str]]) -> None:
    bare, made = history
    listing = PullRequests().scan(at(bare), Known())
    assert listing.units == {f"pull/{number}": made[number] for number in ("12", "13", "19", "41")}
    assert listing.complete
    assert listing.revision == Git(bare).head()


def test_a_merge_commit_tells_a_whole_pull_request(history: tuple[Path, dict[str, str]]) -> None:
    bare, made = history
    _, units = scan_and_read(PullRequests(owner="team-a"), at(bare))
    (item,) = units["pull/12"].items
    told = item.payload.structured
    assert item.metadata.title == "#12 Tidy names"
    assert (told["author"], told["author_is_bot"], told["head"], told["merged"]) == ("zed", False, "feature", True)
    assert told["merge_commit"] == item.source.revision == made["12"]
    assert told["created_at"] < told["merged_at"] == told["closed_at"]
    assert told["merged_at"].endswith("Z")
    assert [one["sha"] for one in told["commits"]] == [made["inner1"], made["inner2"]]
    assert files_of(item) == [
        ("gone.py", "removed", None, 0, 1),
        ("logo.bin", "added", None, None, None),
        ("new näme.txt", "renamed", "old name.txt", 0, 0),
        ("src/app.py", "modified", None, 1, 1),
    ]
    assert set(targets(item, "touches")) == {
        "path:gone.py", "path:logo.bin", "path:new näme.txt", "path:old name.txt", "path:src/app.py",
    }  # fmt: skip
    assert targets(item, "merges") == [f"commit:{made['12']}"]
    assert targets(item, "fixes") == ["issue:3", "bug:3", "bug:BUG-9"]
    assert item.symbols == ("#12", "pull:12")
    assert item.metadata.tags == ("closed", "merged")
    assert item.metadata.owner_id == "team-a"
    assert item.metadata.ttl is not None
    assert item.metadata.ttl.days == 730
    assert (item.source.accessor, item.source.location, item.source.path) == ("git-log", str(bare), "")
    for words in ("Tidy names", "Fixes #3 and more.", "Rename and change", "renamed new näme.txt (was old name.txt)"):
        assert words in item.payload.text


def test_squash_commits_and_other_forges(history: tuple[Path, dict[str, str]]) -> None:
    bare, made = history
    _, units = scan_and_read(PullRequests(), at(bare))
    (bump,) = units["pull/13"].items
    assert bump.metadata.title == "#13 Bump a"
    assert bump.metadata.tags == ("bot", "closed", "merged")
    assert bump.payload.structured["author"] == "dependabot[bot]"
    assert [one["sha"] for one in bump.payload.structured["commits"]] == [made["13"]]
    (lab,) = units["pull/19"].items
    assert (lab.payload.structured["base"], lab.payload.structured["author"]) == ("main", "Ling")
    assert lab.metadata.title == "#19 Add the lab"
    (bucket,) = units["pull/41"].items
    assert files_of(bucket) == [("bucket.py", "added", None, 1, 0)]
    for unit in units.values():
        assert_storable(unit)


def test_a_working_tree_and_a_bare_directory_agree(history: tuple[Path, dict[str, str]]) -> None:
    bare, _ = history
    _, here = scan_and_read(PullRequests(), at(bare))
    _, there = scan_and_read(PullRequests(), at(bare.parent / "work"))
    assert {key: one.items[0].metadata.checksum for key, one in here.items()} == {
        key: one.items[0].metadata.checksum for key, one in there.items()
    }


def test_only_the_history_of_the_revision_is_read(history: tuple[Path, dict[str, str]]) -> None:
    bare, made = history
    assert PullRequests().scan(at(bare, revision=made["13"]), Known()).units.keys() == {"pull/12", "pull/13"}
    assert "pull/99" in PullRequests().scan(at(bare, revision="open"), Known()).units
    with pytest.raises(SourceRefused, match="no revision 'nowhere'"):
        PullRequests().scan(at(bare, revision="nowhere"), Known())


def test_history_is_listed_again_only_where_it_grew(tmp_path: Path) -> None:
    build(tmp_path / "work")
    it, connector, here = Builder.__new__(Builder), PullRequests(), at(tmp_path / "work")
    it.folder, it.clock = tmp_path / "work", 1_800_000_000
    known = stored(connector.scan(here, Known()))

    same = connector.scan(here, known)
    assert (same.units, same.complete, same.cursor) == ({}, False, known.cursor)

    sha = it.commit("More (#50)")
    grown = connector.scan(here, known)
    assert (grown.units, grown.complete) == ({"pull/50": sha}, False)
    known = stored(grown, known)
    assert connector.scan(here, known).units == {}

    # A second commit for a known number: only the whole history can say which is newest.
    again = it.commit("More of it (#50)")
    whole = connector.scan(here, known)
    assert whole.complete
    assert whole.units["pull/50"] == again
    assert connector.scan(here, Known()).units == whole.units
    known = stored(whole)

    # Units that are due again are not among the known: nothing may stay unlisted then.
    due = Known({key: hash for key, hash in known.units.items() if key != "pull/13"}, known.cursor)
    assert connector.scan(here, due).complete

    it.git("reset", "-q", "--hard", "HEAD~3")
    rewritten = connector.scan(here, known)
    assert rewritten.complete
    assert "pull/50" not in rewritten.units


@pytest.mark.parametrize("revision", ["0" * 40, "--all", "", None, 7])
def test_a_cursor_that_means_nothing_leads_to_a_whole_listing(
    history: tuple[Path, dict[str, str]], revision: object
) -> None:
    known = stored(PullRequests().scan(at(history[0]), Known()))
    listing = PullRequests().scan(at(history[0]), Known(known.units, {**known.cursor, "revision": revision}))
    assert listing.complete
    assert len(listing.units) == 4


def test_a_listing_is_held_to_the_latest(history: tuple[Path, dict[str, str]]) -> None:
    connector = PullRequests(max_pull_requests=3)
    listing = connector.scan(at(history[0]), Known())
    assert list(listing.units) == ["pull/41", "pull/19", "pull/13"]
    assert not listing.complete
    assert listing.skipped == {"older than max_pull_requests": 1}
    assert PullRequests().scan(at(history[0]), stored(listing)).complete


def test_an_empty_repository_has_no_pull_requests(tmp_path: Path) -> None:
    Builder(tmp_path / "empty")
    assert PullRequests().scan(at(tmp_path / "empty"), Known()) == Listing("", {})
    with pytest.raises(SourceRefused, match="not a directory"):
        PullRequests().scan(at(tmp_path / "nowhere"), Known())


def test_commits_that_went_away_are_rejected_and_the_rest_is_read(history: tuple[Path, dict[str, str]]) -> None:
    bare, made = history
    units = {"pull/12": made["12"], "pull/13": "f" * 40, "pull/19": made["13"], "pull/20": "not a commit"}
    listing = Listing(Git(bare).head(), units)
    read = {unit.key: unit for unit in PullRequests().read(at(bare), listing, [*units, "pull/7"])}
    assert read.keys() == {*units, "pull/7"}
    assert [key for key, unit in read.items() if unit.items] == ["pull/12"]
    assert "history was rewritten" in read["pull/13"].rejected[0].reasons[0]
    assert "does not name pull/19" in read["pull/19"].rejected[0].reasons[0]


def test_the_edge_of_a_shallow_clone_is_not_taken_for_the_first_commit(tmp_path: Path) -> None:
    it = Builder(tmp_path / "deep")
    for number in (1, 2, 3):
        it.write(f"{number}.py", "x\n")
        it.commit(f"Add (#{number})")
    clone = ["git", "clone", "-q", "--bare", "--depth=2", f"file://{it.folder}", str(tmp_path / "shallow.git")]
    subprocess.run(clone, check=True, capture_output=True)
    _, units = scan_and_read(PullRequests(), at(tmp_path / "shallow.git"))
    assert [one[0] for one in files_of(units["pull/3"].items[0])] == ["3.py"]
    assert "shallow" in units["pull/2"].rejected[0].reasons[0]


def test_odd_bytes_in_history_are_shown_and_noted(tmp_path: Path) -> None:
    it = Builder(tmp_path / "odd")
    (tmp_path / "odd" / os.fsdecode(b"caf\xe9\nnew line.txt")).write_text("x\n")
    it.commit("Sizes (#5)")
    # git repairs encodings when it commits; other tools do not.
    raw = subprocess.run(["git", "cat-file", "commit", "HEAD"], cwd=it.folder, capture_output=True, check=True).stdout
    odd = raw.replace(b"Sizes", "Größe".encode("latin-1")).replace(b"author Ann", b"author A\xe9n\x1b[31m")
    write = ["git", "hash-object", "-t", "commit", "-w", "--stdin"]
    sha = subprocess.run(write, cwd=it.folder, input=odd, capture_output=True, check=True).stdout.decode().strip()
    it.git("reset", "-q", "--soft", sha)
    _, units = scan_and_read(PullRequests(), at(tmp_path / "odd"))
    unit = units["pull/5"]
    assert_storable(unit)
    assert unit.items[0].metadata.title == "#5 Gr\ufffd\ufffde"
    assert files_of(unit.items[0]) == [("caf\ufffd\nnew line.txt", "added", None, 1, 0)]
    assert any("UTF-8" in note for note in unit.notes)


def test_hostile_configuration_of_a_repository_runs_nothing(tmp_path: Path) -> None:
    it = Builder(tmp_path / "trap")
    it.write("a.trap", "1\n")
    it.write(".gitattributes", "*.trap diff=trap\n")
    it.commit("Set (#1)")
    it.git("mv", "a.trap", "b.trap")
    it.commit("Rename (#2)")
    marker = tmp_path / "ran"
    for setting in ("diff.external", "diff.trap.command", "diff.trap.textconv", "core.pager", "core.fsmonitor"):
        it.git("config", setting, f"touch {marker}")
    it.git("config", "log.showRoot", "false")
    it.git("config", "diff.renames", "false")
    it.git("config", "diff.noprefix", "true")
    _, units = scan_and_read(PullRequests(), at(tmp_path / "trap"))
    assert [one[0] for one in files_of(units["pull/1"].items[0])] == [".gitattributes", "a.trap"]
    assert files_of(units["pull/2"].items[0]) == [("b.trap", "renamed", "a.trap", 0, 0)]
    assert not marker.exists()


def test_long_texts_are_counted_where_they_end(tmp_path: Path) -> None:
    it = Builder(tmp_path / "long")
    for number in range(220):
        it.write(f"many/{number:03}.txt", f"{number}\n")
    it.commit("Many files (#1)\n\n" + "word " * 10_000)
    _, units = scan_and_read(PullRequests(), at(tmp_path / "long"))
    (item,) = units["pull/1"].items
    assert "... and 120 more files" in item.payload.text
    assert "more characters" in item.payload.text
    assert len(item.payload.structured["files"]) == len(targets(item, "touches")) == 220
    assert units["pull/1"].notes == ("29,999 of 49,999 characters of the description are left out",)


GRAPHS = st.integers(2, 25).flatmap(
    lambda size: st.tuples(
        *(st.lists(st.integers(place + 1, size - 1), max_size=3, unique=True) for place in range(size - 1)), st.just([])
    )
)


@given(GRAPHS, st.data())
def test_what_a_merge_brought_in_is_what_git_says(graph: tuple[list[int], ...], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.integers(0, len(graph) - 1), min_size=2, max_size=4, unique=True))

    def reached(start: int) -> set[int]:
        return {start}.union(*(reached(parent) for parent in graph[start]))

    expected = set().union(*(reached(end) for end in ends[1:])) - reached(ends[0])
    assert _merges._brought_in(graph, ends) == sorted(expected)


def test_commits_inside_a_merge_of_a_branch_that_followed_main(tmp_path: Path) -> None:
    it = Builder(tmp_path / "follow")
    it.commit("Start")
    it.git("switch", "-q", "-c", "topic")
    first = it.commit("One")
    it.git("switch", "-q", "main")
    it.write("main.py", "1\n")
    it.commit("Main moves")
    it.git("switch", "-q", "topic")
    follow = it.merge("main", "Merge branch 'main' into topic")
    it.write("topic.py", "1\n")
    last = it.commit("Two")
    it.git("switch", "-q", "main")
    it.merge("topic", "Merge pull request #2 from a/topic\n\nTopic")
    _, units = scan_and_read(PullRequests(), at(tmp_path / "follow"))
    (item,) = units["pull/2"].items
    assert [one["sha"] for one in item.payload.structured["commits"]] == [first, follow, last]
    assert [one[0] for one in files_of(item)] == ["topic.py"]


# Loopback servers


@dataclass
class Reply:
    status: int = 200
    body: bytes | str | Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def data(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


Route = Reply | Callable[["Stub", dict[str, str]], Reply]


class Stub:
    """A loopback GitHub that answers what a test says. ``asked`` holds path, query and headers of each request."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                stub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        asked = {key.lower(): value for key, value in handler.headers.items()}
        self.asked.append((path, query, asked))
        route = self.routes.get(path, Reply(404, {"message": "Not Found"}))
        reply = (
            route(self, {**dict(part.split("=") for part in query.split("&") if part), **asked})
            if callable(route)
            else route
        )
        data = reply.data()
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(data)), **reply.headers}
        handler.send_response(reply.status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(data)
        if int(headers["Content-Length"]) != len(data):
            handler.close_connection = True

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_github, "_BACKOFF", (0.01, 0.01, 0.01))


def hub(server: Stub | str, **options: Any) -> PullRequests:
    url = server if isinstance(server, str) else server.url
    return PullRequests(base_url=url, seconds_between_requests=0, **options)


NOWHERE = at(Path("/nowhere"))
BASE = "/repos/owner/name"


def moment(number: int) -> str:
    return f"2024-01-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00Z"


def pull_json(number: int, **changes: Any) -> dict[str, Any]:
    """What GitHub documents, in short."""
    return {
        "number": number,
        "title": f"Change {number}",
        "body": f"Fixes #{number + 1000}",
        "user": {"login": "ann", "type": "User"},
        "state": "closed",
        "draft": False,
        "created_at": moment(number),
        "updated_at": moment(number),
        "closed_at": moment(number),
        "merged_at": moment(number),
        "merge_commit_sha": f"{number:040x}",
        "base": {"ref": "main", "sha": "b" * 40},
        "head": {"ref": f"topic-{number}", "sha": "c" * 40},
        "labels": [{"name": "bug"}],
        **changes,
    }


def file_json(**changes: Any) -> dict[str, Any]:
    return {"filename": "a.py", "status": "modified", "additions": 1, "deletions": 2, **changes}


def comment_json(**changes: Any) -> dict[str, Any]:
    return {
        "id": 900,
        "user": {"login": "bob", "type": "User"},
        "body": "Why?",
        "path": "a.py",
        "line": 7,
        "start_line": None,
        "side": "RIGHT",
        "commit_id": "c" * 40,
        "original_commit_id": "d" * 40,
        "diff_hunk": "@@ -1,3 +5,3 @@\n x\n-y\n+z\n w",
        "created_at": moment(1),
        **changes,
    }


def serve(stub: Stub, *pulls: dict[str, Any], **lists: Any) -> None:
    """Pull requests in pages of a hundred, the newest change first, with ETags; ``files=[...]`` go to all of them."""

    def listed(_: Stub, asked: dict[str, str]) -> Reply:
        page = int(asked["page"])
        some = pulls[(page - 1) * 100 : page * 100]
        etag = f'"{hash(json.dumps(some, sort_keys=True))}"'
        if asked.get("if-none-match") == etag:
            return Reply(304, b"", {"ETag": etag})
        more = {"Link": '<http://evil.example/steal>; rel="next"'} if page * 100 < len(pulls) else {}
        return Reply(200, some, {"ETag": etag, **more})

    stub.routes[f"{BASE}/pulls"] = listed
    stub.routes[BASE] = Reply(200, {"full_name": "owner/name"})
    for pull in pulls:
        path = f"{BASE}/pulls/{pull.get('number')}"
        stub.routes[path] = Reply(200, pull)
        for name in ("files", "commits", "reviews", "comments"):
            stub.routes[f"{path}/{name}"] = Reply(200, lists.get(name, []))


def newest_first(count: int) -> list[dict[str, Any]]:
    return [pull_json(number) for number in range(count, 0, -1)]


# The API: what is read


def test_a_pull_request_through_the_api(stub: Stub) -> None:
    serve(
        stub,
        pull_json(5, labels=[{"name": "bug"}, {"name": "Needs review"}]),
        files=[
            file_json(),
            file_json(filename="new.py", status="renamed", previous_filename="old.py"),
            file_json(filename="c.py", status="copied", previous_filename="a.py"),
        ],
        commits=[
            {"sha": "e" * 40, "commit": {"message": "Do it\n\nCloses #77", "author": {"name": "Ann A"}}, "author": None}
        ],
        reviews=[
            {"user": {"login": "bob"}, "state": "APPROVED", "submitted_at": moment(9), "body": "Fine by me"},
            {
                "user": {"login": "codecov[bot]", "type": "Bot"},
                "state": "COMMENTED",
                "submitted_at": moment(9),
                "body": "80 %",
            },
            {"user": None, "state": "PENDING", "body": None},
        ],
        comments=[comment_json(), comment_json(id=901, in_reply_to_id=900, user={"login": "x", "type": "Bot"})],
    )
    _, units = scan_and_read(hub(stub), NOWHERE)
    unit = units["pull/5"]
    assert_storable(unit)
    assert not unit.rejected
    pull, comment, reply = unit.items
    told = pull.payload.structured
    assert pull.metadata.tags == ("closed", "merged", "label:bug", "label:Needs review")
    assert (told["author"], told["base"], told["head"], told["source"]) == ("ann", "main", "topic-5", "github")
    assert [(one["author"], one["state"], one["is_bot"]) for one in told["reviews"]] == [
        ("bob", "approved", False), ("codecov[bot]", "commented", True), ("ghost", "pending", False),
    ]  # fmt: skip
    assert told["commits"] == [{"sha": "e" * 40, "subject": "Do it", "author": "Ann A"}]
    assert [one[1] for one in files_of(pull)] == ["modified", "added", "renamed"]
    assert targets(pull, "fixes") == ["issue:1005", "bug:1005", "issue:77", "bug:77"]
    assert "Fine by me" in pull.payload.text
    assert "80 %" not in pull.payload.text
    assert pull.source.location == f"{stub.url}{BASE}/pulls/5"
    assert (comment.source.path, comment.source.start_line, comment.source.end_line) == ("a.py", 7, 7)
    assert comment.source.revision == comment.payload.structured["commit"] == "c" * 40
    assert comment.payload.text == "Why?\n\nOn a.py:7:\n@@ -1,3 +5,3 @@\n x\n-y\n+z\n w"
    assert targets(comment, "comments_on") == ["pull:5"]
    assert reply.payload.structured["in_reply_to"] == 900
    assert reply.metadata.tags == ("bot",)


@pytest.mark.parametrize(
    ("changes", "lines", "revision", "outdated"),
    [
        ({"line": 9, "start_line": 7}, (7, 9), "c", False),
        ({"line": 9, "start_line": 12}, (9, 9), "c", False),
        ({"line": 9, "start_line": 3, "start_side": "LEFT"}, (9, 9), "c", False),
        ({"line": None, "original_line": 4, "original_start_line": 2, "position": None}, (2, 4), "d", True),
        ({"line": None, "position": 3}, (7, 7), "d", False),
        ({"line": None, "position": None, "diff_hunk": ""}, (None, None), "d", True),
        ({"line": None, "subject_type": "file", "position": None}, (None, None), "d", False),
        ({"line": 0, "original_line": -1}, (7, 7), "d", False),
    ],
)
def test_where_a_comment_stands(
    changes: dict[str, Any], lines: tuple[int | None, int | None], revision: str, outdated: bool
) -> None:
    comment = _github_records._CommentRecord.model_validate(comment_json(**changes)).comment()
    assert (comment.start_line, comment.end_line) == lines
    assert comment.revision == revision * 40
    assert comment.outdated is outdated


def test_lists_known_to_be_empty_are_not_asked_for(stub: Stub) -> None:
    serve(stub, pull_json(5, changed_files=0, commits=0, review_comments=0))
    scan_and_read(hub(stub), NOWHERE)
    assert stub.paths() == [f"{BASE}/pulls", f"{BASE}/pulls/5", f"{BASE}/pulls/5/reviews"]


def test_an_open_pull_request_is_kept_apart_from_its_trial_merge(stub: Stub) -> None:
    serve(stub, pull_json(5, state="open", draft=True, merged_at=None, closed_at=None))
    listing, units = scan_and_read(hub(stub), NOWHERE)
    (item,) = units["pull/5"].items
    assert item.metadata.tags == ("open", "draft", "label:bug")
    assert item.payload.structured["merge_commit"] is None
    assert targets(item, "merges") == []
    serve(stub, pull_json(5, state="open", draft=True, merged_at=None, closed_at=None, merge_commit_sha="9" * 40))
    assert hub(stub).scan(NOWHERE, Known()).units == listing.units


def test_the_lists_of_a_pull_request_are_read_to_their_last_page(stub: Stub) -> None:
    serve(stub, pull_json(5, changed_files=250))
    names = [f"f{number:03}.py" for number in range(250)]

    def pages(_: Stub, asked: dict[str, str]) -> Reply:
        some = names[(int(asked["page"]) - 1) * 100 :][:100]
        more = {"Link": '<http://evil.example/x>; rel="next"'} if int(asked["page"]) < 3 else {}
        return Reply(200, [file_json(filename=name) for name in some], more)

    stub.routes[f"{BASE}/pulls/5/files"] = pages
    _, units = scan_and_read(hub(stub), NOWHERE)
    assert [one[0] for one in files_of(units["pull/5"].items[0])] == names


def test_a_comment_that_two_pages_tell_is_one(stub: Stub) -> None:
    """Something deleted between two pages moves the next entries to the page before, something added to the next."""
    serve(stub, pull_json(5), files=[file_json(), file_json()], comments=[comment_json(), comment_json(body="Edited")])
    _, units = scan_and_read(hub(stub), NOWHERE)
    pull, comment = units["pull/5"].items
    assert comment.payload.text.startswith("Edited")
    assert len(files_of(pull)) == 1


def test_more_files_than_github_tells_are_counted(stub: Stub) -> None:
    serve(stub, pull_json(5, changed_files=4210), files=[file_json()])
    _, units = scan_and_read(hub(stub), NOWHERE)
    assert "... and 4,209 more files" in units["pull/5"].items[0].payload.text
    assert units["pull/5"].notes == ("1 of its 4,210 files are listed",)


# The API: listings


def test_a_second_scan_is_one_conditional_request(stub: Stub) -> None:
    serve(stub, *newest_first(250))
    listing = hub(stub).scan(NOWHERE, Known())
    assert len(listing.units) == 250
    assert listing.complete
    # Three pages, and a look whether the first has changed meanwhile.
    assert [query.split("&")[1] for _, query, _ in stub.asked] == ["page=1", "page=2", "page=3", "page=1"]
    stub.asked.clear()
    again = hub(stub).scan(NOWHERE, stored(listing))
    assert (again.units, again.complete, again.cursor) == ({}, False, listing.cursor)
    assert len(stub.asked) == 1


def test_a_listing_ends_at_what_was_stored(stub: Stub) -> None:
    pulls = newest_first(450)
    serve(stub, *pulls)
    known = stored(hub(stub).scan(NOWHERE, Known()))
    stub.asked.clear()
    moved = pull_json(3, updated_at=moment(1000), title="New title")
    serve(stub, pull_json(451), moved, *(pull for pull in pulls if pull["number"] != 3))
    listing = hub(stub).scan(NOWHERE, known)
    assert len(stub.asked) == 2
    assert not listing.complete
    assert {key for key, hash in listing.units.items() if known.units.get(key) != hash} == {"pull/451", "pull/3"}
    assert hub(stub).scan(NOWHERE, stored(listing, known)).units == {}


def test_a_run_that_broke_off_does_not_hide_older_changes(stub: Stub) -> None:
    pulls = newest_first(250)
    serve(stub, *pulls)
    known = stored(hub(stub).scan(NOWHERE, Known()))
    changed = [pull_json(number, updated_at=moment(2000 + number)) for number in range(150, 0, -1)]
    serve(stub, *changed, *pulls[:100])
    partly = hub(stub).scan(NOWHERE, known)
    first_page = dict(list(partly.units.items())[:100])
    broken_off = Known({**known.units, **first_page}, known.cursor)
    listing = hub(stub).scan(NOWHERE, broken_off)
    assert len({key for key, hash in listing.units.items() if broken_off.units.get(key) != hash}) == 50


def test_units_that_are_due_again_are_listed(stub: Stub) -> None:
    serve(stub, *newest_first(250))
    known = stored(hub(stub).scan(NOWHERE, Known()))
    due = Known({key: hash for key, hash in known.units.items() if key != "pull/2"}, known.cursor)
    listing = hub(stub).scan(NOWHERE, due)
    assert listing.complete
    assert "pull/2" in listing.units


def test_a_change_while_pages_are_read_is_not_missed(stub: Stub) -> None:
    """Between two pages an unread pull request moves to the front; a complete listing without it would remove it."""
    pulls = newest_first(250)
    serve(stub, *pulls)
    before = stub.routes[f"{BASE}/pulls"]

    def moving(server: Stub, asked: dict[str, str]) -> Reply:
        assert callable(before)
        reply = before(server, asked)
        if asked["page"] == "1" and len(server.asked) == 1:
            last = pull_json(1, updated_at=moment(5000))
            serve(server, last, *pulls[:-1])
        return reply

    stub.routes[f"{BASE}/pulls"] = moving
    listing = hub(stub).scan(NOWHERE, Known())
    assert listing.complete
    assert len(listing.units) == 250
    assert "pull/1" in listing.units


def test_a_listing_through_the_api_is_held_to_the_latest(stub: Stub) -> None:
    serve(stub, *newest_first(250))
    listing = hub(stub, max_pull_requests=30).scan(NOWHERE, Known())
    assert list(listing.units)[0] == "pull/250"
    assert len(listing.units) == 30
    assert not listing.complete
    assert listing.skipped == {"beyond max_pull_requests, at least": 71}
    assert len(stub.asked) == 1
    assert hub(stub, max_pull_requests=30).scan(NOWHERE, stored(listing)).units == {}
    assert len(hub(stub).scan(NOWHERE, stored(listing)).units) == 250


def test_a_server_that_never_ends_is_left(stub: Stub) -> None:
    stub.routes[f"{BASE}/pulls"] = Reply(200, [pull_json(1)], {"Link": '<x>; rel="next"'})
    listing = hub(stub).scan(NOWHERE, Known())
    assert listing.units.keys() == {"pull/1"}
    assert not listing.complete


def test_more_changes_than_a_page_holds_leave_a_listing_incomplete(stub: Stub) -> None:
    pulls = newest_first(300)
    serve(stub, *pulls)
    before = stub.routes[f"{BASE}/pulls"]

    def moving(server: Stub, asked: dict[str, str]) -> Reply:
        assert callable(before)
        reply = before(server, asked)
        if asked["page"] == "3":
            changed = [pull_json(number, updated_at=moment(3000 + number)) for number in range(220, 100, -1)]
            serve(server, *changed, *(pull for pull in pulls if not 100 < pull["number"] <= 220))
        return reply

    stub.routes[f"{BASE}/pulls"] = moving
    listing = hub(stub).scan(NOWHERE, Known())
    assert not listing.complete
    whole = hub(stub).scan(NOWHERE, stored(listing))
    assert whole.complete
    assert sum(listing.units[key] != hash for key, hash in whole.units.items()) == 20


@pytest.mark.parametrize("moving", [1, 100])
def test_a_listing_that_never_settles_is_not_complete(stub: Stub, moving: int) -> None:
    """Each request finds other pull requests in front."""
    clock = iter(range(3000, 9000))

    def restless(_: Stub, asked: dict[str, str]) -> Reply:
        first = [pull_json(number, updated_at=moment(next(clock))) for number in range(200, 200 - moving, -1)]
        pulls = [*first, *newest_first(200 - moving)]
        page = int(asked["page"])
        return Reply(200, pulls[(page - 1) * 100 :][:100], {"Link": 'rel="next"'} if page == 1 else {})

    stub.routes[f"{BASE}/pulls"] = restless
    listing = hub(stub).scan(NOWHERE, Known())
    assert len(listing.units) == 200
    assert not listing.complete
    stub.asked.clear()
    serve(stub, *newest_first(200))
    assert hub(stub).scan(NOWHERE, stored(listing)).complete


# The API: failures


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(401, {"message": "Bad credentials"}), SourceRefused, "token is not accepted"),
        (Reply(403, {"message": "Resource not accessible"}), SourceRefused, "token may read pull requests"),
        (Reply(404, {"message": "Not Found"}), SourceRefused, "check slug"),
        (Reply(301, b"", {"Location": "http://other.example/repos/x"}), SourceRefused, "check base_url"),
        (Reply(302, b"", {"Location": "http://other.example/repos/x"}), SourceRefused, "check slug"),
        (Reply(410, "gone"), SourceRefused, "gone"),
        (Reply(500, b"<html>\xff oops</html>"), SourceUnavailable, "in trouble"),
        (Reply(503, {"message": "Unavailable"}), SourceUnavailable, "try again later"),
        (Reply(200, b'[{"number": 1, '), SourceUnavailable, "not JSON"),
        (Reply(200, b"<html>login</html>"), SourceUnavailable, "not JSON"),
        (Reply(200, b""), SourceUnavailable, "not JSON"),
        (Reply(200, {"message": "hello"}), SourceUnavailable, "a list was due"),
        (Reply(200, b"[" * 100_000), SourceUnavailable, "not JSON"),
        (Reply(200, b"[]", {"Content-Length": "50"}), SourceUnavailable, "no answer"),
        (
            Reply(200, b"[]", {"X-RateLimit-Remaining": "many", "X-RateLimit-Limit": "x"}),
            SourceUnavailable,
            "malformed",
        ),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_listing_that_fails_says_why(stub: Stub, reply: Reply, error: type[SourceError], words: str) -> None:
    stub.routes[f"{BASE}/pulls"] = reply
    with pytest.raises(error, match=words) as caught:
        hub(stub, token=SecretStr("s3cret-token")).scan(NOWHERE, Known())
    assert "s3cret-token" not in str(caught.value)
    assert error is not SourceRefused or len(stub.asked) == 1


@pytest.mark.usefixtures("quick")
def test_a_server_that_recovers_is_waited_for(stub: Stub) -> None:
    serve(stub, pull_json(5))
    good = stub.routes[f"{BASE}/pulls"]
    bad = [Reply(502), Reply(503, "<html>"), Reply(500, {"message": "x"})]
    stub.routes[f"{BASE}/pulls"] = lambda server, asked: bad.pop() if bad else good(server, asked)  # type: ignore[operator]
    assert hub(stub).scan(NOWHERE, Known()).units.keys() == {"pull/5"}
    assert len(stub.asked) == 4


@pytest.mark.parametrize(
    ("status", "headers", "message", "retry_after"),
    [
        (403, {"Retry-After": "900"}, "You have exceeded a secondary rate limit", 900),
        (429, {"Retry-After": "900"}, "Too many", 900),
        (429, {}, "Too many", 60),
        (403, {}, "You have exceeded a secondary rate limit. Please wait", 60),
        (
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "in half an hour"},
            "API rate limit exceeded",
            1800,
        ),
        (403, {"Retry-After": "Fri, 31 Dec 2049 23:59:59 GMT"}, "slow down", 60),
    ],
)
def test_a_long_wait_is_handed_on(
    stub: Stub, status: int, headers: dict[str, str], message: str, retry_after: float
) -> None:
    # Not when the tests are collected, which may be long before.
    times = {"in half an hour": str(int(time.time()) + 1800)}
    headers = {key: times.get(value, value) for key, value in headers.items()}
    stub.routes[f"{BASE}/pulls"] = Reply(status, {"message": message}, headers)
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match="rate limit") as caught:
        hub(stub, patience=5).scan(NOWHERE, Known())
    assert time.monotonic() - started < 2
    assert caught.value.retry_after == pytest.approx(retry_after, abs=30)
    assert caught.value.retryable
    assert len(stub.asked) == 1


def test_a_short_wait_is_waited(stub: Stub) -> None:
    serve(stub, pull_json(5))
    good = stub.routes[f"{BASE}/pulls"]
    now = int(time.time())
    bad = [
        Reply(
            403, {"message": "API rate limit exceeded"}, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(now)}
        )
    ]
    stub.routes[f"{BASE}/pulls"] = lambda server, asked: bad.pop() if bad else good(server, asked)  # type: ignore[operator]
    started = time.monotonic()
    assert hub(stub).scan(NOWHERE, Known()).units.keys() == {"pull/5"}
    assert 0.9 < time.monotonic() - started < 4


def test_all_waiting_together_is_bounded(stub: Stub) -> None:
    stub.routes[f"{BASE}/pulls"] = Reply(429, {"message": "slow down"}, {"Retry-After": "1"})
    started = time.monotonic()
    with pytest.raises(SourceUnavailable):
        hub(stub, patience=1.5).scan(NOWHERE, Known())
    assert time.monotonic() - started < 3
    assert len(stub.asked) == 2


@pytest.mark.usefixtures("quick")
def test_no_server_and_no_answer() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        with pytest.raises(SourceUnavailable, match="no answer"):
            hub(address).scan(NOWHERE, Known())
        port.listen()
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match="no answer"):
            hub(address, timeout=1, patience=0).scan(NOWHERE, Known())
        assert time.monotonic() - started < 4


@pytest.mark.usefixtures("quick")
def test_a_page_that_fails_in_the_middle_gives_no_listing(stub: Stub) -> None:
    serve(stub, *newest_first(250))
    good = stub.routes[f"{BASE}/pulls"]
    stub.routes[f"{BASE}/pulls"] = lambda server, asked: good(server, asked) if asked["page"] != "2" else Reply(502)  # type: ignore[operator]
    with pytest.raises(SourceUnavailable):
        hub(stub).scan(NOWHERE, Known())


@pytest.mark.usefixtures("quick")
def test_one_bad_pull_request_does_not_stop_the_others(stub: Stub) -> None:
    serve(stub, *newest_first(9))
    raw = b'{"number": 3, "title": "cut o'
    stub.routes[f"{BASE}/pulls/1"] = Reply(200, pull_json(1, title=None, state="odd", user={"login": 7}))
    stub.routes[f"{BASE}/pulls/2"] = Reply(404, {"message": "Not Found"})
    stub.routes[f"{BASE}/pulls/3"] = Reply(200, raw)
    stub.routes[f"{BASE}/pulls/4"] = Reply(200, [1, 2])
    stub.routes[f"{BASE}/pulls/5/files"] = Reply(200, b'[{"filename": "a\0b"}]')
    stub.routes[f"{BASE}/pulls/6/files"] = Reply(422, {"message": "diff took too long"})
    stub.routes[f"{BASE}/pulls/7"] = Reply(200, pull_json(8))
    stub.routes[f"{BASE}/pulls/8"] = Reply(200, b'{"number": 8, "updated_at": NaN}')
    _, units = scan_and_read(hub(stub), NOWHERE)
    assert len(units) == 9
    for unit in units.values():
        assert_storable(unit)
    assert [key for key, unit in units.items() if unit.items] == ["pull/9"]
    reasons = " ".join(units["pull/1"].rejected[0].reasons)
    assert "title: Input should be a valid string, not None" in reasons
    assert "state: " in reasons
    assert "user.login: " in reasons
    assert json.loads(units["pull/1"].rejected[0].raw)["state"] == "odd"
    assert "404" in units["pull/2"].rejected[0].reasons[0]
    assert units["pull/3"].rejected[0].raw == raw.decode()
    assert "not JSON" in units["pull/5"].rejected[0].reasons[0]
    assert "diff took too long" in units["pull/6"].rejected[0].reasons[0]
    assert "another pull request" in units["pull/7"].rejected[0].reasons[0]
    assert units["pull/3"].hash


def test_a_repository_that_vanished_refuses_instead_of_dropping_everything(stub: Stub) -> None:
    serve(stub, *newest_first(3))
    listing = hub(stub).scan(NOWHERE, Known())
    stub.routes.clear()
    with pytest.raises(SourceRefused, match="check slug"):
        list(hub(stub).read(NOWHERE, listing, list(listing.units)))


def test_a_bad_entry_of_a_list_is_rejected_alone(stub: Stub) -> None:
    serve(
        stub,
        pull_json(5),
        files=[file_json(), file_json(status="exploded"), "text"],
        reviews=[{"state": 5}],
        comments=[comment_json(), comment_json(id="901"), comment_json(path="")],
    )
    _, units = scan_and_read(hub(stub), NOWHERE)
    unit = units["pull/5"]
    assert_storable(unit)
    assert [item.kind for item in unit.items] == ["pull_request", "review_comment"]
    assert {one.key for one in unit.rejected} == {"files[1]", "files[2]", "reviews[0]", "comments[1]", "comments[2]"}


def test_entries_of_the_listing_that_are_no_pull_requests_are_rejected_with_their_text(stub: Stub) -> None:
    odd = [{"title": "no number"}, None, {**pull_json(3), "number": True}, {**pull_json(3), "number": 10**40}]
    serve(stub, pull_json(5), pull_json(4))
    stub.routes[f"{BASE}/pulls"] = Reply(200, [*odd, pull_json(5), pull_json(4, title=None)], {"ETag": '"1"'})
    listing, units = scan_and_read(hub(stub), NOWHERE)
    assert len(units["pull/4"].items) == 1
    rejected = [unit.rejected[0] for unit in units.values() if unit.rejected]
    assert [json.loads(one.raw) for one in rejected] == odd
    assert len(units["pull/5"].items) == 1
    assert json.loads(json.dumps(dict(listing.cursor))) == listing.cursor


def test_nul_and_half_characters_are_shown_and_noted(stub: Stub) -> None:
    serve(
        stub,
        pull_json(5, title="a\0b", body="x\ud800y", head={"ref": "\0", "sha": "c"}),
        comments=[comment_json(body="\0")],
    )
    _, units = scan_and_read(hub(stub), NOWHERE)
    unit = units["pull/5"]
    assert_storable(unit)
    assert unit.items[0].metadata.title == "#5 a\u2400b"
    assert "x\ufffdy" in unit.items[0].payload.text
    assert any("body" in note and "title" in note for note in unit.notes)
    assert any(note.startswith("comments[0]") for note in unit.notes)


def test_answers_that_are_not_utf8(stub: Stub) -> None:
    serve(stub, pull_json(5), pull_json(4))
    stub.routes[f"{BASE}/pulls/5"] = Reply(
        200, json.dumps(pull_json(5, title="XY")).encode().replace(b"XY", b"\xff\xfe")
    )
    latin = json.dumps(pull_json(4, title="Größe"), ensure_ascii=False).encode("latin-1")
    stub.routes[f"{BASE}/pulls/4"] = Reply(200, latin, {"Content-Type": "application/json; charset=latin-1"})
    _, units = scan_and_read(hub(stub), NOWHERE)
    assert units["pull/5"].items[0].metadata.title == "#5 \ufffd\ufffd"
    assert units["pull/5"].notes == ("what is not UTF-8 is shown as U+FFFD",)
    assert units["pull/4"].items[0].metadata.title == "#4 Größe"


def test_ten_megabytes_of_description(stub: Stub) -> None:
    serve(
        stub,
        pull_json(5, body="word " * 2_000_000 + "Fixes #6", title="t" * 5000),
        comments=[comment_json(body="x" * 50_000)],
    )
    started = time.monotonic()
    _, units = scan_and_read(hub(stub), NOWHERE)
    assert time.monotonic() - started < 10
    unit = units["pull/5"]
    assert_storable(unit)
    assert all(len(item.payload.text) < 40_000 and len(item.metadata.title) <= 300 for item in unit.items)
    assert "9,980,008 of 10,000,008 characters of the description are left out" in unit.notes
    assert "30,000 of 50,000 characters of comment 900 are left out" in unit.notes


# Configuration


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "ftp://x"}, {"base_url": "github.com"}, {"base_url": "https://user:word@x"}, {"slug": "name"},
        {"slug": "../x"}, {"slug": "x/.."}, {"slug": "a/b/c"}, {"timeout": 0}, {"max_pull_requests": 0}, {"api": "svn"},
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PullRequests(**options)


def test_the_source_is_chosen_by_what_is_configured(history: tuple[Path, dict[str, str]], stub: Stub) -> None:
    serve(stub, pull_json(5))
    assert PullRequests().scan(at(history[0]), Known()).units.keys() >= {"pull/12"}
    assert hub(stub).scan(at(history[0]), Known()).units.keys() == {"pull/5"}
    assert hub(stub, api="git").scan(at(history[0]), Known()).units.keys() >= {"pull/12"}
    assert hub(stub, slug="owner/name").scan(at(Path("/nowhere"), name="local"), Known()).units.keys() == {"pull/5"}
    with pytest.raises(ConfigurationError, match="set slug to owner/name"):
        hub(stub).scan(at(history[0], name="local"), Known())


def test_the_slug_of_a_clone_is_its_origin(stub: Stub, tmp_path: Path) -> None:
    it = Builder(tmp_path / "clone")
    it.git("remote", "add", "origin", "git@github.com:owner/name.git")
    serve(stub, pull_json(5))
    assert hub(stub).scan(at(tmp_path / "clone", name="local"), Known()).units.keys() == {"pull/5"}


def test_the_token_is_sent_and_told_to_nobody(
    stub: Stub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    serve(stub, pull_json(5))
    connector = hub(stub, token=SecretStr("s3cret-token"))
    _, units = scan_and_read(connector, NOWHERE)
    assert stub.asked[0][2]["authorization"] == "token s3cret-token"
    told = [repr(connector), connector.model_dump_json(), caplog.text, repr(units), *capfd.readouterr()]
    assert not any("s3cret-token" in one for one in told)


def test_importing_the_connector_and_reading_history_loads_no_vendor(history: tuple[Path, dict[str, str]]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from context_os.connectors import Known, Repository\n"
        "from context_os.plugins import load\n"
        "connector = load('connectors', 'pull_requests')()\n"
        f"repository = Repository('owner/name', Path({str(history[0])!r}), 'acme')\n"
        "listing = connector.scan(repository, Known())\n"
        "assert len(list(connector.read(repository, listing, list(listing.units)))) == 4\n"
        "assert not {'github', 'requests', 'urllib3'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for one in kind.__subclasses__():
        yield from subclasses(one)


def test_every_exception_of_the_vendor_is_mapped() -> None:
    import github
    import requests

    raised: list[Exception] = [github.BadAttributeException(1, (str, str), None)]
    for kind in subclasses(github.GithubException):
        raised += [kind(status, {"message": "x"}, {}, "x") for status in (400, 401, 403, 404, 429, 500, 502)]
    raised += [kind.__new__(kind, "x") for kind in subclasses(requests.RequestException)]
    assert len(raised) > 70
    for error in raised:
        with pytest.raises(SourceError), _github.vendor_errors("/x"):
            raise error


# Recorded answers and what becomes of them when they break


def recorded() -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    path = RECORDED / "pygithub_replay_pr_issue.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        answer = json.loads(line)
        if not re.search(r"/pulls(/\d+)?(\?|$)", answer["path"]):
            continue
        body = answer["body"] if isinstance(answer["body"], list) else [answer["body"]]
        found.update({json.dumps(one): one for one in body if isinstance(one, dict) and "head" in one})
    return list(found.values())


def parts_recorded(name: str) -> list[Any]:
    found: list[Any] = []
    path = RECORDED / "pygithub_replay_pr_issue.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        answer = json.loads(line)
        if re.search(rf"/pulls/(\d+/)?{name}(/\d+)?(\?|$)", answer["path"]):
            found += answer["body"] if isinstance(answer["body"], list) else [answer["body"]]
    return found


def unit_of(entry: Any, lists: dict[str, list[Any]]) -> Unit:
    """An answer's value as a unit, without the network."""
    from context_os.connectors.pull_requests import _Origin

    reading = _github_records.Reading()
    pull = _github_records.pull_request(entry, lambda name: lists.get(name, []), reading)
    if pull is None:
        return Unit("pull/1", "", (), tuple(reading.rejected))
    return PullRequests()._unit(
        NOWHERE, _Origin("github", "github-api", "x", "owner/name"), "pull/1", "", pull, reading
    )


@needs_shared
def test_every_recorded_pull_request_is_read_whole() -> None:
    pulls = recorded()
    assert len(pulls) >= 40
    lists = {name: parts_recorded(name) for name in ("files", "commits", "reviews", "comments")}
    assert all(lists.values())
    for pull in pulls:
        unit = unit_of(pull, lists)
        assert_storable(unit)
        assert not unit.rejected, (pull["url"], unit.rejected)
        assert unit.items[0].payload.structured["number"] == pull["number"]
        assert _github_records.summary_of(pull) is not None


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({}), st.just("\0\ud800"),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def broken(value: Any, path: tuple[Any, ...], junk: Any, drop: bool) -> Any:
    if not path:
        return junk
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = junk
    return value


WHOLE = {
    "pull": pull_json(5),
    "files": [file_json(), file_json(filename="b", status="renamed", previous_filename="a")],
    "commits": [
        {"sha": "e", "commit": {"message": "m", "author": {"name": "n"}}, "author": {"login": "l", "type": "User"}}
    ],
    "reviews": [{"user": {"login": "bob", "type": "Bot"}, "state": "APPROVED", "submitted_at": moment(1), "body": "b"}],
    "comments": [comment_json(), comment_json(id=2, original_line=3, start_side="LEFT", in_reply_to_id=1)],
}
PLACES = [path for path in places(WHOLE) if len(path) > 1 and not (path[0] != "pull" and len(path) < 2)]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), JUNK, st.booleans())
def test_broken_values_give_an_item_or_a_reason(path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    answer = broken(WHOLE, path, junk, drop)
    lists = {name: answer[name] for name in ("files", "commits", "reviews", "comments")}
    unit = unit_of(answer["pull"], lists)
    assert_storable(unit)
    _github_records.summary_of(answer["pull"])
    # Nothing is lost silently: what is not an item, or part of one, is among the rejected.
    kept = [item for item in unit.items if item.kind == "review_comment"]
    if unit.items:
        lost = [one for one in unit.rejected if one.key.startswith("comments[")]
        same = sum(one.get("id") == 2 for one in lists["comments"] if isinstance(one, dict)) == 2
        assert len(kept) + len(lost) == len(lists["comments"]) - same


@needs_shared
@settings(max_examples=60)
@given(st.data())
def test_broken_recordings_give_an_item_or_a_reason(data: st.DataObject) -> None:
    pull = data.draw(st.sampled_from(recorded_cache()))
    path = data.draw(st.sampled_from([one for one in places(pull) if 0 < len(one) < 3]))
    assert_storable(unit_of(broken(pull, path, data.draw(JUNK), data.draw(st.booleans())), {}))


_CACHE: list[dict[str, Any]] = []


def recorded_cache() -> list[dict[str, Any]]:
    if not _CACHE:
        _CACHE.extend(recorded())
    return _CACHE


@given(st.integers(0, 2000), st.binary(max_size=3))
def test_broken_text_is_unreadable_or_a_value(cut: int, junk: bytes) -> None:
    whole = json.dumps(pull_json(5)).encode()
    text = (whole[:cut] + junk + whole[cut + len(junk) :][: max(0, 1500 - cut)]).decode("utf-8", "replace")
    value: Any = None
    with contextlib.suppress(_github.Unreadable):
        value = _github.parsed(text, "/x")
        assert_storable(unit_of(value, {}))
    if value is None:
        with pytest.raises(_github.Unreadable) as caught:
            _github.parsed(text, "/x")
        assert caught.value.raw == text


# The replay server


class Replay:
    """The shared stand-in for GitHub in its own process, behind a relay that counts and can ask it for faults."""

    def __init__(self, *arguments: str, fault_every: int = 0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "GH_REPLAY_FAULT_EVERY": str(fault_every)}
        self.process = subprocess.Popen(
            [sys.executable, str(REPLAY), "--port", str(self.port), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline()
        self._wait()
        self.relay = Stub()
        self.relay.answer = self._forward  # type: ignore[method-assign]
        self.url = self.relay.url
        self.faults: Callable[[int], str] = lambda _: ""
        self.statuses: list[int] = []

    def _wait(self) -> None:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the replay server does not listen")

    def _forward(self, handler: BaseHTTPRequestHandler) -> None:
        fault = self.faults(len(self.statuses) + 1)
        headers = {key: value for key, value in handler.headers.items() if key.lower() in ("if-none-match", "host")}
        there = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        there.request("GET", handler.path, headers={**headers, **({"X-Fault": fault} if fault else {})})
        answer = there.getresponse()
        body = answer.read()
        self.statuses.append(answer.status)
        handler.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("server", "date"):
                handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)
        there.close()

    def close(self) -> None:
        self.relay.close()
        self.process.kill()  # it may have inherited an ignored SIGTERM
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def replay(history: tuple[Path, dict[str, str]]) -> Iterator[Replay]:
    server = Replay("--danger", str(RECORDED / "danger-js"), f"owner/name={history[0]}")
    yield server
    server.close()


@pytest.fixture
def fresh(replay: Replay) -> Replay:
    replay.statuses.clear()
    replay.faults = lambda _: ""
    return replay


@needs_shared
def test_a_whole_recorded_pull_request(fresh: Replay) -> None:
    listing, units = scan_and_read(hub(fresh.url), at(Path("/nowhere"), "artsy/emission"))
    unit = units["pull/327"]
    assert_storable(unit)
    assert not unit.rejected
    pull, *comments = unit.items
    told = pull.payload.structured
    assert pull.metadata.title == "#327 Adds support for showing the metadata and trending Artists to a Gene VC"
    assert (told["author"], told["merged_at"], told["base"]) == ("orta", "2016-10-03T09:39:23Z", "master")
    assert (len(told["files"]), len(told["commits"]), len(told["reviews"])) == (18, 6, 4)
    assert pull.source.revision == "70640811c69995d9f1d847dfab6d415fbf475820"
    where = {(one.source.path, one.source.start_line, one.source.end_line) for one in comments}
    assert where == {
        ("data/schema.graphql", 315, 315),
        ("externals/metaphysics", 1, 1),
        ("lib/containers/gene.js", 28, 28),
        ("lib/components/artist/about.js", 10, 10),
        ("lib/containers/__tests__/gene-tests.js", 34, 34),
        ("tsconfig.json", 9, 9),
    }
    # The lines are those of the very commit that was commented on.
    assert all(one.source.revision == one.payload.structured["commit"] for one in comments)
    assert {len(one.source.revision) for one in comments} == {40}
    assert fresh.statuses == [200] * 6

    again = hub(fresh.url).scan(at(Path("/nowhere"), "artsy/emission"), stored(listing))
    assert (again.units, again.complete) == ({}, False)
    assert fresh.statuses[6:] == [304]


@needs_shared
def test_the_api_and_history_tell_the_same(fresh: Replay, history: tuple[Path, dict[str, str]]) -> None:
    _, from_api = scan_and_read(hub(fresh.url), NOWHERE)
    _, from_git = scan_and_read(PullRequests(), at(history[0]))
    # The replay knows GitHub's messages only.
    assert from_api.keys() == {"pull/12", "pull/13"}
    for key, unit in from_api.items():
        (api,), (git,) = unit.items, from_git[key].items
        assert api.id == git.id
        assert api.metadata.title == git.metadata.title
        assert [one[:3] for one in files_of(api)] == [one[:3] for one in files_of(git)]
        assert sorted(api.relations, key=str) == sorted(git.relations, key=str)
        shas = [[one["sha"] for one in item.payload.structured["commits"]] for item in (api, git)]
        assert shas[0] == shas[1]
        for same in ("number", "merged", "merged_at", "merge_commit", "files_total"):
            assert api.payload.structured[same] == git.payload.structured[same]


@needs_shared
@pytest.mark.usefixtures("quick")
def test_faults_now_and_then_change_nothing(history: tuple[Path, dict[str, str]]) -> None:
    server = Replay(f"owner/name={history[0]}", fault_every=3)
    try:
        _, units = scan_and_read(hub(server.url), NOWHERE)
        assert units.keys() == {"pull/12", "pull/13"}
        assert not any(unit.rejected for unit in units.values())
        assert server.statuses.count(502) == len(server.statuses) // 3 > 0
    finally:
        server.close()


@needs_shared
@pytest.mark.parametrize("fault", ["403", "429", "502"])
def test_a_fault_once_is_retried_and_for_ever_is_told(fresh: Replay, fault: str) -> None:
    fresh.faults = lambda count: fault if count == 1 else ""
    assert hub(fresh.url).scan(NOWHERE, Known()).units
    assert fresh.statuses == [int(fault), 200]
    fresh.faults = lambda _: fault
    with pytest.raises(SourceUnavailable) as caught:
        hub(fresh.url, patience=0.5).scan(NOWHERE, Known())
    assert caught.value.retry_after == (None if fault == "502" else 1.0)


# Real repositories


def cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.mark.slow
def test_pydantic_is_read_fast_and_right() -> None:
    pydantic = clone_of("pydantic/pydantic")
    repository, connector, started = at(pydantic, "pydantic/pydantic"), PullRequests(), cpu()
    listing = connector.scan(repository, Known())
    scanned = cpu()
    assert scanned - started < 1
    assert len(listing.units) > 3_800
    units = {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}
    assert cpu() - scanned < 9  # on two cores about half of it
    assert units.keys() == listing.units.keys()
    assert not any(unit.rejected for unit in units.values())

    git = Git(pydantic)
    for key in random.Random(5).sample(sorted(units), 40):
        between, files = (f"{listing.units[key]}^1", listing.units[key]), files_of(units[key].items[0])
        rows = git.text("diff", "--numstat", "-z", "-M", *between).split("\0")
        counts = sorted(row.split("\t")[:2] for row in rows if row.count("\t") == 2)
        assert sorted(["-" if count is None else str(count) for count in one[3:]] for one in files) == counts
        paths = {path for one in files for path in (one[0], one[2]) if path}
        assert paths == set(git.text("diff", "--name-only", "-z", "--no-renames", *between).split("\0")) - {""}

    merges = [
        key for key, sha in listing.units.items() if len(git.text("rev-list", "-1", "--parents", sha).split()) > 2
    ]
    for key in merges:
        sha = listing.units[key]
        inside = git.text("rev-list", f"{sha}^1..{sha}^2").split()
        found = [one["sha"] for one in units[key].items[0].payload.structured["commits"]]
        assert sorted(found) == sorted(inside)


@pytest.mark.slow
@needs_shared
def test_pydantic_through_the_api_is_the_same() -> None:
    pydantic = clone_of("pydantic/pydantic")
    server = Replay(f"pydantic/pydantic={pydantic}")
    try:
        repository = at(pydantic, "pydantic/pydantic")
        listing = hub(server.url).scan(repository, Known())
        from_git = PullRequests().scan(repository, Known())
        assert listing.units.keys() == from_git.units.keys()
        assert len(server.statuses) == -(-len(listing.units) // 100) + 1
        assert server.statuses[-1] == 304
        some = random.Random(7).sample(sorted(listing.units), 25)
        server.statuses.clear()
        api = {unit.key: unit.items[0] for unit in hub(server.url).read(repository, listing, some)}
        git = {unit.key: unit.items[0] for unit in PullRequests().read(repository, from_git, some)}
        assert len(server.statuses) <= 5 * len(some)
        for key in some:
            assert api[key].metadata.title == git[key].metadata.title
            assert [one[:3] for one in files_of(api[key])] == [one[:3] for one in files_of(git[key])]
        server.statuses.clear()
        assert hub(server.url).scan(repository, stored(listing)).units == {}
        assert server.statuses == [304]
    finally:
        server.close()
