"""`context-os playbook` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from samples import make_repository

from context_os import settings
from context_os.cli import cli
from context_os.git import Git
from context_os.ingestion import register
from context_os.ledger import Ledger

LESSON = "Count sockets in the registry whenever the pool opens one."


class Desk:
    """A home in which the repository shop is registered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_repository(folder / "shop")
        chosen = settings.load(start=folder)
        register(chosen, Ledger(chosen.make_home() / "ledger.db"), "shop", Git(folder / "shop").location)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["playbook", *arguments])

    def json(self, *arguments: str) -> dict[str, object]:
        done = self.run(*arguments, "--json")
        assert done.exit_code in {0, 3}, (done.output, done.exception)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__PROVIDER", "hashed")
    return Desk(tmp_path)


def test_a_lesson_by_hand(desk: Desk) -> None:
    assert "added" in desk.run("add", "--help").output or desk.run("add", "--help").exit_code == 0
    desk.json("add", LESSON, "--section", "POOL", "--about", "path:shop/**", "--pin")
    assert "[pool-00001] helpful=0 harmful=0 (pinned) :: Count sockets" in desk.run("list").output
    assert desk.json("show", "pool-00001")["about"] == ["path:shop/**"]
    desk.json("lock", "pool-00001")
    assert "is locked" in desk.run("pin", "pool-00001", "--off").output
    desk.json("lock", "pool-00001", "--off")
    desk.json("pin", "pool-00001", "--off")
    desk.json("remove", "pool-00001", "--reason", "It is obvious.")
    assert "no lesson yet" in desk.run("list").stderr or "waits" in desk.run("list").output
    assert "(invalid)" in desk.run("list", "--all").output
    assert "remove pool-00001 applied It is obvious." in desk.run("history", "pool-00001").output


def test_import_and_export(desk: Desk) -> None:
    text = f"## POOL\n[a-1] helpful=3 harmful=1 :: {LESSON}\n[a-1] helpful=3 harmful=1 :: {LESSON}\n"
    file = desk.file("book.md", text)
    dry = desk.json("import", file, "--dry-run")
    assert dry["bullets"] == 1
    assert desk.json("list")["bullets"] == []
    for _ in range(2):
        assert "again with the same text" in desk.run("import", file).output
    assert desk.run("export").stdout.startswith(f"## POOL\n[a-1] helpful=3 harmful=1 :: {LESSON}\n")
    target = desk.folder / "out.json"
    desk.run("export", "--format", "playbook", "--output", str(target))
    assert json.loads(target.read_text())["bullets"]["a-1"]["helpful"] == 3
    assert not list(desk.folder.glob(".out*"))


def test_a_damaged_file_is_refused_whole_unless_the_rest_is_wanted(desk: Desk) -> None:
    file = desk.file("book.json", '{"bullets": {"a-1": {"content": "' + LESSON + '"}, "a-2": {"con')
    refused = desk.run("import", file)
    assert refused.exit_code == 3
    assert "book.json, line 1: no JSON from here on" in refused.stderr
    assert desk.json("list")["bullets"] == []
    assert desk.run("import", file, "--partial").exit_code == 0
    assert len(desk.json("list")["bullets"]) == 1  # type: ignore[arg-type]


def test_learning_and_approval(desk: Desk) -> None:
    traces = [
        {
            "id": f"review-{number}",
            "at": f"2026-03-0{number}T00:00:00Z",
            "paths": ["shop/pool.py"],
            "touched": ["path:shop/registry.py"],
            "comment": "lesson: Never reconnect while the lock is held by others." if number == 1 else "",
        }
        for number in (1, 2)
    ]
    file = desk.file("traces.jsonl", "\n".join(map(json.dumps, traces)))
    assert len(desk.json("learn", file, "--dry-run")["judged"]) == 2  # type: ignore[arg-type]
    told = desk.run("learn", file).output
    assert "keep: Changes in `shop/pool.py` also need `shop/registry.py`. (2 of 2" in told
    [waiting] = desk.json("list")["proposals"]  # type: ignore[misc]
    assert waiting["why"] == "its words come from outside"
    assert desk.run("approve", waiting["key"]).exit_code == 0
    assert "Never reconnect" in desk.run("list").output
    assert desk.run("reject", waiting["key"]).exit_code == 1
    assert desk.run("compact", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("list", "--repository", "nowhere"), "there are: shop"),
        (("show", "a-9"), "no bullet 'a-9'"),
        (("add", "x", "--about", "shop/**"), "path:GLOB or symbol:NAME"),
        (("remove", "a-9"), "there is no bullet a-9"),
        (("approve", "nothing"), "waits"),
    ],
)
def test_wrong_use_is_told(desk: Desk, arguments: tuple[str, ...], reason: str) -> None:
    done = desk.run(*arguments)
    assert done.exit_code != 0
    assert reason in f"{done.output}{done.exception}"


def test_a_model_needs_a_name_and_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONTEXT_OS_PLAYBOOK__URL", "http://127.0.0.1:1/v1")
    with pytest.raises(settings.ConfigurationError, match="url and model belong together"):
        settings.load(start=tmp_path)
    monkeypatch.setenv("CONTEXT_OS_PLAYBOOK__MODEL", "small")
    monkeypatch.setenv("CONTEXT_OS_PLAYBOOK__API_KEY", "s3cret")
    chosen = settings.load(start=tmp_path)
    assert chosen.playbook.open_chat() is not None
    assert "s3cret" not in json.dumps(settings.explain(chosen), default=str)
