"""The commands `alerts`, `prune` and `doctor` as a person and a script see them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from receivers import Hook, hook
from samples import make_repository
from test_cli import Terminal


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    folder = tmp_path_factory.mktemp("doctor")
    make_repository(folder / "shop")
    found = Terminal(folder)
    found.json("ingest", "shop", "--connector", "team_rules")
    return found


@pytest.fixture
def team(terminal: Terminal) -> Iterator[Hook]:
    with hook() as made:
        prefix = "CONTEXT_OS_ALERTS__RECEIVERS__TEAM__"
        terminal.environment |= {f"{prefix}KIND": "webhook", f"{prefix}URL": made.url}
        yield made
        for name in ("KIND", "URL"):
            del terminal.environment[prefix + name]


def found(told: dict[str, Any], check: str) -> list[tuple[str, str, str]]:
    return [(each["state"], each["detail"], each["remedy"]) for each in told["checks"] if each["check"] == check]


def test_a_house_in_order(terminal: Terminal) -> None:
    told = terminal.json("doctor")
    assert told["ok"]
    checks = {each["check"] for each in told["checks"]}
    assert {"settings", "home", "git", "ledger", "store", "reconcile", "freshness", "quarantine", "embedding"} <= checks
    assert {"dagster", "daemon", "receivers"} <= checks
    assert not [each for each in told["checks"] if each["state"] == "broken"]
    assert all(each["remedy"] for each in told["checks"] if each["state"] != "ok")
    (state, detail, _) = found(told, "freshness")[0]
    assert (state, detail) == ("ok", "1 sources keep their objective")
    text = terminal.run("doctor").stdout
    assert "-> start it with `context-os ui`" in text


@pytest.mark.slow
def test_every_problem_is_told_with_what_to_do(terminal: Terminal) -> None:
    home = terminal.folder / "home"
    home.chmod(0o755)
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("UPDATE scopes SET indexed_at = 0, confirmed_at = 0")
        (id, scope, unit, checksum, expires) = db.execute(
            "SELECT id, scope, unit, checksum, expires_at FROM entries LIMIT 1"
        ).fetchone()
        db.execute("UPDATE entries SET checksum = 'other'")
    told = terminal.json("doctor", code=1)
    assert not told["ok"]
    assert found(told, "home")[0][0] == "warn"
    assert found(told, "freshness")[0][0] == "warn"
    assert found(told, "reconcile")[0][0] == "broken"
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("UPDATE entries SET checksum = ? WHERE id = ?", (checksum, id))
    home.chmod(0o700)
    moved = (home / "lab.db").rename(home / "aside")
    (home / "lab.db").mkdir()
    told = terminal.json("doctor", code=1)
    assert found(told, "store")[0][0] == "broken"
    assert found(told, "git")[0][0] == "ok", "the rest is looked at all the same"
    (home / "lab.db").rmdir()
    moved.rename(home / "lab.db")
    terminal.json("ingest", "shop", "--connector", "team_rules")
    assert terminal.json("doctor")["ok"]


def test_settings_with_problems_are_the_first_finding(terminal: Terminal) -> None:
    terminal.environment["CONTEXT_OS_OBJECTIVES__RUN"] = "soon"
    told = terminal.json("doctor", code=1)
    del terminal.environment["CONTEXT_OS_OBJECTIVES__RUN"]
    assert [each["check"] for each in told["checks"]] == ["settings"]
    assert "objectives.run" in told["checks"][0]["detail"]


def test_without_git_nothing_is_read(terminal: Terminal) -> None:
    path = terminal.environment["PATH"]
    terminal.environment["PATH"] = str(terminal.folder)
    told = terminal.json("doctor", code=1)
    terminal.environment["PATH"] = path
    assert found(told, "git")[0][0] == "broken"
    assert shutil.which("git")


@pytest.mark.slow
def test_receivers_are_tried_only_when_asked(terminal: Terminal, team: Hook) -> None:
    terminal.json("doctor")
    assert team.got == []
    told = terminal.json("doctor", "--deliver")
    assert ("ok", "team: HTTP 204", "") in found(told, "receivers")
    team.status = 500
    told = terminal.json("doctor", "--deliver", code=1)
    assert found(told, "receivers")[-1][:2] == ("broken", "team: HTTP 500")


def test_a_test_notice_goes_to_every_receiver(terminal: Terminal, team: Hook) -> None:
    (answer,) = terminal.json("alerts", "test")["receivers"]
    assert answer == {"receiver": "team", "kind": "webhook", "ok": True, "answer": "HTTP 204"}
    assert [body["event"] for _, body in team.got] == ["test"]
    team.down()
    done = terminal.run("alerts", "test")
    assert done.returncode == 1
    assert "FAILED: cannot be reached" in done.stdout
    assert "secret-path" not in done.stdout + done.stderr


def test_a_test_without_receivers_is_wrong_use(terminal: Terminal) -> None:
    assert terminal.run("alerts", "test").returncode == 2


@pytest.mark.slow
def test_a_failure_is_listed_delivered_and_over_after_another_ingestion(terminal: Terminal, team: Hook) -> None:
    provider, model = "CONTEXT_OS_EMBEDDING__PROVIDER", "CONTEXT_OS_EMBEDDING__MODEL"
    again = ("ingest", "shop", "--connector", "team_rules", "--connector", "bug_specs", "--vectors")
    terminal.environment |= {provider: "model2vec", model: str(terminal.folder)}
    assert terminal.run(*again).returncode == 1
    told = terminal.json("alerts", "deliver")
    assert told == {"open": 1, "receivers": [{"receiver": "team", "sent": 1, "waiting": 0, "problem": ""}]}
    (alert,) = terminal.json("alerts", "list")["open"]
    assert (alert["condition"], alert["where"]["repository"]) == ("failed_run", "shop")
    assert alert["where"]["asset"] == "embedded/bug_specs, embedded/team_rules"
    assert "OPEN  failed_run" in terminal.run("alerts", "list").stdout
    told = terminal.json("doctor", code=1)
    assert [state for state, _, _ in found(told, "alert")] == ["warn"]
    assert "must hold model.safetensors" in found(told, "embedding")[0][1]
    # Nothing changed at the source: the open alert is why there is a run at all.
    terminal.environment[provider] = "hashed"
    del terminal.environment[model]
    terminal.json(*again)
    del terminal.environment[provider]
    terminal.json("alerts", "deliver")
    listed = terminal.json("alerts", "list")
    assert (listed["open"], len(listed["over"])) == ([], 1)
    assert team.events == ["opened failed_run", "recovered failed_run"]


def test_prune_says_what_it_deleted(terminal: Terminal) -> None:
    done = terminal.json("prune")
    assert done["tenants"] == [{"tenant": "default", "deleted": 0, "gone": 0}]
    assert done["run_id"]
    assert "0 expired items deleted" in terminal.run("prune").stdout


def test_nothing_of_this_is_readable_for_others(terminal: Terminal) -> None:
    terminal.json("alerts", "list")  # the file is made when it is first asked for
    assert (terminal.folder / "home" / "alerts.db").stat().st_mode & 0o077 == 0
    assert (terminal.folder / "home" / "alerts.db-journal").stat().st_mode & 0o077 == 0
