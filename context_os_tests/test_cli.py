"""The command line as scripts see it: one JSON object, exit codes, messages on standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import make_repository, write

COMMAND = Path(sys.executable).with_name("context-os")


class Terminal:
    """Runs the installed command in a folder with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("CONTEXT_OS_")}
        self.environment["CONTEXT_OS_HOME"] = str(folder / "home")
        # Whether this machine has a model must not matter.
        self.environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "cache")}

    def run(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            input=input,
            check=False,
        )

    def json(self, *arguments: str, code: int = 0, input: str | None = None) -> Any:
        done = self.run(*arguments, "--json", input=input)
        assert done.returncode == code, (done.returncode, done.stderr)
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    folder = tmp_path_factory.mktemp("cli")
    make_repository(folder / "shop")
    found = Terminal(folder)
    found.json("ingest", "shop")
    return found


def test_ingest_reports_every_connector(terminal: Terminal) -> None:
    again = terminal.json("ingest", "shop", "--connector", "symbols", "--connector", "team_rules")
    keys = {"repository", "revision", "store", "run_id", "seconds", "connectors", "vectors", "reconcile"}
    assert set(again) == keys
    assert (again["repository"], again["store"]) == ("shop", "lab")
    assert set(again["connectors"]) == {"symbols", "team_rules"}
    symbols = again["connectors"]["symbols"]
    assert {"added", "changed", "unchanged", "removed", "quarantined", "seconds", "verdict"} <= set(symbols)
    assert (symbols["added"], symbols["changed"], symbols["removed"], symbols["verdict"]) == (0, 0, 0, "passed")
    assert again["reconcile"]["ledger"] == again["reconcile"]["store"] > 0
    assert again["reconcile"]["differences"] == []


def test_search_filters_and_modes(terminal: Terminal) -> None:
    for mode in ("keyword", "hybrid"):
        found = terminal.json("search", "close the session", "--mode", mode, "--limit", "3")["items"]
        assert 0 < len(found) <= 3
        assert {"id", "score", "kind", "title", "path", "start_line", "end_line", "revision", "expires_at"} <= set(
            found[0]
        )
    methods = terminal.json("search", "session", "--kind", "method", "--path", "shop", "--language", "python")["items"]
    assert [each["title"] for each in methods] == ["Session.close"]
    assert terminal.json("search", "session", "--tenant", "stranger")["items"] == []
    assert terminal.json("search", "session", "--clearance", "public")["items"] == []
    assert terminal.json("search", "session", "--updated-from", "2199-01-01T00:00:00Z")["items"] == []


def test_vectors_come_later_and_only_when_asked_for(tmp_path: Path) -> None:
    make_repository(tmp_path / "shop")
    terminal = Terminal(tmp_path)
    refused = terminal.run("search", "session", "--mode", "vector")
    assert (refused.returncode, "embedding fetch" in refused.stderr) == (2, True)
    first = terminal.json("ingest", "shop", "--connector", "symbols")
    assert first["vectors"] == 0
    assert "embedding fetch" in terminal.run("embed").stderr
    terminal.environment["CONTEXT_OS_EMBEDDING__PROVIDER"] = "hashed"
    assert terminal.json("search", "session", "--mode", "vector")["items"] == []
    done = terminal.json("embed")
    assert done["items"] == done["vectors"] == done["embedded"] == first["reconcile"]["store"]
    assert terminal.json("embed", "--repository", "shop", "--connector", "symbols")["embedded"] == 0
    assert len(terminal.json("search", "session", "--mode", "vector", "--limit", "3")["items"]) == 3
    assert terminal.run("embed", "--repository", "nowhere").returncode == 1
    both = terminal.json("ingest", "shop", "--vectors")
    assert both["vectors"] == both["reconcile"]["store"] > first["reconcile"]["store"]
    write(tmp_path / "shop", "shop/more.py", "def more():\n    pass\n")
    later = terminal.json("ingest", "shop")
    assert later["vectors"] == both["vectors"] < later["reconcile"]["store"]
    assert terminal.json("ingest", "shop", "--vectors")["vectors"] == later["reconcile"]["store"]
    assert "with a vector" in terminal.run("ingest", "shop").stdout


def test_show_tells_where_an_item_came_from(terminal: Terminal) -> None:
    id = terminal.json("search", "release", "--kind", "function")["items"][0]["id"]
    item = terminal.json("show", id)
    assert item["id"] == id
    record = item["metadata"]["lineage"][0]
    assert record["assetKey"] == "indexed/symbols"
    assert len(record["runId"]) == 36
    assert len(record["sourceRevision"].rstrip("+")) == 40
    assert "release" in terminal.run("show", id).stdout
    assert terminal.run("show", id, "--clearance", "public").returncode == 1


def test_pack_for_a_range_a_diff_and_a_question(terminal: Terminal) -> None:
    ranged = terminal.json("pack", "--range", "HEAD~1..HEAD", "--max-tokens", "3000")
    assert {"budget", "layers", "omitted", "prompt"} <= set(ranged)
    assert ranged["budget"]["max_tokens"] == 3000 >= ranged["budget"]["used_tokens"] > 0
    entry = ranged["layers"]["active"][0]
    assert {"id", "path", "start_line", "end_line", "tokens", "score", "selector", "reason", "freshness"} <= set(entry)
    assert set(ranged["layers"]) == {"core", "catalog", "active"}
    diff = subprocess.run(
        ["git", "diff", "HEAD~1..HEAD"], cwd=terminal.folder / "shop", capture_output=True, text=True, check=True
    )
    write(terminal.folder, "change.diff", diff.stdout)
    from_file = terminal.json("pack", "--diff", "change.diff", "--max-tokens", "3000")
    assert from_file == terminal.json("pack", "--diff", "-", "--max-tokens", "3000", input=diff.stdout)
    assert from_file["prompt"] == ranged["prompt"]
    asked = terminal.json(
        "pack", "--question", "how is a session closed", "--repository", "shop", "--max-tokens", "2000"
    )
    assert asked["layers"]["active"]
    assert "tokens" in terminal.run("pack", "--range", "HEAD").stdout


def test_files_of_a_question_and_those_that_a_change_may_have_forgotten(terminal: Terminal) -> None:
    asked = terminal.json("files", "--question", "how does the pool release a session", "--limit", "3")["files"]
    assert asked[0]["path"] == "shop/pool.py"
    assert {"repository", "path", "score", "reason"} == set(asked[0])
    forgotten = [each["path"] for each in terminal.json("files", "--range", "HEAD~1..HEAD")["files"]]
    assert "shop/app.py" in forgotten
    assert "shop/pool.py" not in forgotten
    assert "shop/pool.py" in terminal.run("files", "--question", "how does the pool release a session").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "--max-tokens", "100"], 2, "say what it is for"),
        (["pack", "--range", "nope..HEAD"], 1, "no revision 'nope'"),
        (["pack", "--question", "x", "--repository", "absent"], 1, "there are: shop"),
        (["search"], 2, "Missing argument"),
        (["search", "x", "--updated-from", "yesterday"], 2, "--updated-from"),
        (["show", "no-such-id"], 1, "no item no-such-id"),
        (["ingest", "/nowhere"], 2, "does not exist"),
        (["ingest", "shop", "--connector", "telepathy"], 2, "there are:"),
        (["ingest", "shop", "--revision", "absent"], 1, "no revision 'absent'"),
        (["ingest", "home"], 1, "is not a git repository"),
        (["fly"], 2, "No such command"),
    ],
)
def test_wrong_use_is_told_in_one_message(terminal: Terminal, arguments: list[str], code: int, message: str) -> None:
    done = terminal.run(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unreachable_server_is_an_error_and_never_a_fallback(terminal: Terminal, tmp_path: Path) -> None:
    away = Terminal(tmp_path)
    away.environment["CONTEXT_OS_STORE__URL"] = "http://127.0.0.1:1"
    make_repository(tmp_path / "shop")
    for arguments in (["search", "x"], ["ingest", "shop"], ["smoke"]):
        done = away.run(*arguments)
        assert done.returncode == 1, arguments
        assert "127.0.0.1:1" in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "lab.db").exists()


def test_every_command_says_that_nobody_chose_the_store(terminal: Terminal) -> None:
    for arguments in (["search", "x"], ["config", "show"], ["smoke"], ["quarantine", "list"], ["reconcile"]):
        assert "laboratory store is used" in terminal.run(*arguments).stderr
    terminal.environment["CONTEXT_OS_STORE__KIND"] = "lab"
    try:
        assert "laboratory store is used" not in terminal.run("search", "x").stderr
    finally:
        del terminal.environment["CONTEXT_OS_STORE__KIND"]


def test_config_smoke_reconcile_quarantine_and_status(terminal: Terminal) -> None:
    values = {row["name"]: row for row in terminal.json("config", "show")["values"]}
    assert values["store.kind"]["value"] == "lab"
    assert values["home"]["source"] == "environment"
    smoke = terminal.json("smoke")
    assert smoke["ok"]
    assert {"search keyword", "search vector", "search hybrid", "delete"} <= {step["step"] for step in smoke["steps"]}
    assert terminal.json("reconcile")["differences"] == []
    quarantine = terminal.json("quarantine", "list")
    assert quarantine["records"] == []
    assert all(verdict["passed"] for verdict in quarantine["verdicts"])
    assert terminal.json("weaviate", "status")["running"] is False


def test_a_difference_exits_with_three_until_it_is_repaired(terminal: Terminal) -> None:
    id = terminal.json("search", "release", "--kind", "function")["items"][0]["id"]
    code = """
import sys
from context_os.model import Access
from context_os.settings import load
access = Access(tenant="default", principal="test", clearance="restricted")
with load().open_store() as store:
    assert store.delete(access, sys.argv[1:]) == 1
"""
    subprocess.run([sys.executable, "-c", code, id], env=terminal.environment, cwd=terminal.folder, check=True)
    found = terminal.json("reconcile", code=3)
    assert [(each["id"], each["problem"]) for each in found["differences"]] == [(id, "missing")]
    failed = terminal.json("ingest", "shop", "--connector", "symbols", code=3)
    assert failed["reconcile"]["differences"]
    terminal.json("reconcile", "--repair")
    assert terminal.json("ingest", "shop", "--connector", "symbols")["connectors"]["symbols"]["added"] == 1
    assert terminal.json("reconcile")["differences"] == []


def test_help_comes_at_once_and_names_every_command(terminal: Terminal) -> None:
    done = terminal.run("--help")
    for command in (
        "ingest",
        "search",
        "show",
        "pack",
        "config",
        "quarantine",
        "reconcile",
        "smoke",
        "weaviate",
        "ui",
        "demo",
    ):
        assert f"\n  {command} " in done.stdout
