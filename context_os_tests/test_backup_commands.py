"""Backups as people and schedules make them: the command line, Dagster's jobs, and a real server from start to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from samples import make_repository, write
from test_cli import Terminal

from context_os import settings
from context_os.definitions import defs
from context_os.defs.backup import schedules
from context_os.defs.run import instance_folder
from context_os.stores.lab import LabStore
from context_os.weaviate_server import WeaviateServer

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingested")
    make_repository(folder / "shop")
    Terminal(folder).json("ingest", "shop", "--connector", "symbols", "--connector", "team_rules")
    return folder


@pytest.fixture
def terminal(ingested: Path, tmp_path: Path) -> Terminal:
    """A copy of its own of what is ingested."""
    return Terminal(Path(shutil.copytree(ingested, tmp_path / "copy")))


def items(terminal: Terminal) -> int:
    return int(terminal.json("reconcile")["store"])


def test_create_list_verify_restore(terminal: Terminal) -> None:
    before = items(terminal)
    answer = terminal.json("search", "close the session")
    assert terminal.json("backup", "list")["backups"] == []
    made = terminal.json("backup", "create")
    assert made["items"] == before > 0
    assert (Path(made["path"]).stat().st_mode & 0o777) == 0o700
    assert all((file.stat().st_mode & 0o777) == 0o600 for file in Path(made["path"]).iterdir())
    listed = terminal.json("backup", "list")
    assert [each["name"] for each in listed["backups"]] == [made["name"]]
    assert listed["native"] == []
    assert terminal.json("backup", "verify") == {"name": made["name"], "content_verified": True, "problems": []}
    refused = terminal.run("backup", "restore")
    assert (refused.returncode, "--replace" in refused.stderr) == (3, True)
    done = terminal.json("backup", "restore", made["name"], "--replace")
    assert (done["items"], done["tenant"], done["skipped"]) == (before, "default", 0)
    assert terminal.json("search", "close the session") == answer
    assert items(terminal) == before
    for words in (["list"], ["verify"], ["restore", "--replace"], ["drill"], ["prune"], ["create"]):
        assert terminal.run("backup", *words).returncode == 0


def test_a_lost_home_is_restored_by_one_command(terminal: Terminal) -> None:
    terminal.run("backup", "create")
    answer = terminal.json("search", "close the session")
    files = terminal.json("files", "--question", "how does the pool release a session")
    home = terminal.folder / "home"
    for place in home.iterdir():
        if place.name != "backups":
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    terminal.json("backup", "restore")
    assert terminal.json("search", "close the session") == answer
    assert terminal.json("files", "--question", "how does the pool release a session") == files
    again = terminal.json("ingest", "shop", "--connector", "symbols")
    assert (again["connectors"]["symbols"]["added"], again["connectors"]["symbols"]["changed"]) == (0, 0)


def test_damage_is_told_with_exit_code_3(terminal: Terminal) -> None:
    made = terminal.json("backup", "create")
    next(Path(made["path"]).glob("items-*.parquet")).write_bytes(b"PAR1")
    told = terminal.json("backup", "verify", code=3)
    assert len(told["problems"]) == 1
    assert "items-00000.parquet" in told["problems"][0]
    for words in (["restore", "--replace"], ["drill"]):
        done = terminal.run("backup", *words)
        assert done.returncode == 3
        assert "items-00000.parquet" in done.stderr
        assert "Traceback" not in done.stderr
    assert terminal.run("backup", "verify", "absent").returncode == 1


def test_secrets_come_from_the_environment_or_a_file_and_never_show(terminal: Terminal) -> None:
    terminal.environment["CONTEXT_OS_BACKUP__PASSPHRASE"] = PASSPHRASE
    made = terminal.json("backup", "create")
    assert made["encrypted"]
    assert PASSPHRASE not in terminal.run("config", "show").stdout
    del terminal.environment["CONTEXT_OS_BACKUP__PASSPHRASE"]
    listed = terminal.json("backup", "list")["backups"][0]
    assert (listed["encrypted"], listed["items"], listed["tenant"]) == (True, None, None)
    assert terminal.json("backup", "verify") == {"name": made["name"], "content_verified": False, "problems": []}
    assert terminal.run("backup", "restore", "--replace").returncode == 3
    write(terminal.folder, "secret", f"{PASSPHRASE}\n")
    write(terminal.folder, "wrong", "another passphrase\n")
    assert terminal.json("backup", "verify", "--passphrase-file", "secret")["content_verified"]
    assert "another one" in terminal.run("backup", "restore", "--replace", "--passphrase-file", "wrong").stderr
    assert terminal.json("backup", "drill", "--passphrase-file", "secret")["different"] == 0
    assert terminal.json("backup", "restore", "--replace", "--passphrase-file", "secret")["items"] == made["items"]
    asked = terminal.json("backup", "restore", "--replace", "--ask-passphrase", input=f"{PASSPHRASE}\n")
    assert asked["items"] == made["items"]
    short = terminal.run("backup", "create", "--passphrase-file", "secret", "--passphrase-file", "short")
    assert short.returncode == 2


def test_age_keys_come_from_the_settings(terminal: Terminal) -> None:
    from pyrage import x25519

    private = x25519.Identity.generate()
    write(
        terminal.folder, "context-os.toml", f'[backup]\nrecipients = ["{private.to_public()}"]\nfolder = "elsewhere"\n'
    )
    write(terminal.folder, "key.txt", f"{private}\n")
    made = terminal.json("backup", "create")
    assert Path(made["path"]).parent == terminal.folder / "home" / "elsewhere"
    assert terminal.run("backup", "drill").returncode == 3
    terminal.environment["CONTEXT_OS_BACKUP__IDENTITY"] = "key.txt"
    assert terminal.json("backup", "drill")["items"] == made["items"]
    terminal.environment["CONTEXT_OS_BACKUP__RECIPIENTS"] = "age1nonsense"
    assert "must be public keys" in terminal.run("backup", "create").stderr


def test_prune_and_wrong_use(terminal: Terminal) -> None:
    names = [terminal.json("backup", "create")["name"] for _ in range(3)]
    done = terminal.json("backup", "prune", "--keep-daily", "1", "--keep-weekly", "0")
    assert done["kept"] == [terminal.json("backup", "list")["backups"][0]["name"]]
    assert sorted(done["kept"] + done["deleted"]) == sorted(names)
    assert terminal.run("backup", "create", "--incremental").returncode == 2
    native = terminal.run("backup", "create", "--native")
    assert (native.returncode, "no backup of its own" in native.stderr) == (1, True)
    assert "holds the tenant 'default'" in terminal.run("backup", "restore", "--tenant", "other").stderr
    assert terminal.run("backup", "restore", "nothing").returncode == 1


def test_help_of_backup_comes_without_anything_heavy() -> None:
    heavy = ("pyarrow", "numpy", "weaviate", "dagster", "cryptography", "pyrage")
    code = f"import context_os.commands.backup, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Dagster -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTEXT_OS_HOME", str(terminal.folder / "home"))
    monkeypatch.chdir(terminal.folder)
    return terminal.folder / "home"


def execute(job: str) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.from_config(str(instance_folder(settings.load()))) as instance:
        return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False)


def metadata(done: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = (each for each in done.all_events if each.event_type_value == "STEP_OUTPUT")
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def failure(done: dg.ExecuteInProcessResult) -> Any:
    assert not done.success
    event = next(event for event in done.all_events if event.is_step_failure)
    return event.step_failure_data.user_failure_data


def test_the_jobs_run_on_schedules_that_a_person_starts(home: Path) -> None:
    found = {each.name: each for each in schedules}
    assert {name: each.cron_schedule for name, each in found.items()} == {
        "backup_schedule": "30 2 * * *",
        "restore_drill_schedule": "30 4 * * 0",
    }
    assert {each.default_status for each in found.values()} == {dg.DefaultScheduleStatus.STOPPED}


def test_a_backup_and_its_drill_are_told_in_the_ui(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = failure(execute("restore_drill"))
    assert "none yet" in told.description
    made = metadata(execute("backup"))
    assert made["items"] > 0
    assert (made["kept"], made["deleted"]) == (1, [])
    done = metadata(execute("restore_drill"))
    assert (done["name"], done["items"], done["different"]) == (made["name"], made["items"], 0)
    upsert = LabStore.upsert

    def forgetful(store: LabStore, access: Any, records: Any) -> Any:
        written = upsert(store, access, records)
        store.delete(access, [records[0].item.id])
        return written

    monkeypatch.setattr(LabStore, "upsert", forgetful)
    told = failure(execute("restore_drill"))
    assert "does not restore to what it holds: 1 differences" in told.description
    assert "missing" in str(told.metadata["differences"].value)
    monkeypatch.undo()
    monkeypatch.setenv("CONTEXT_OS_HOME", str(home))
    next((home / "backups" / made["name"]).glob("items-*")).unlink()
    assert "items-00000.parquet is missing" in failure(execute("restore_drill")).description


# --- a real server, from start to end ----------------------------------------------------------------------------


@pytest.mark.weaviate
def test_health_backup_wipe_restore_and_native_backups(tmp_path: Path, weaviate_server: WeaviateServer) -> None:
    from context_os.model import Access, Confidentiality

    at = weaviate_server.connection()
    terminal = Terminal(tmp_path)
    terminal.environment |= {
        "CONTEXT_OS_STORE__URL": at.url,
        "CONTEXT_OS_STORE__GRPC_PORT": str(at.grpc_port),
        "CONTEXT_OS_STORE__API_KEY": at.api_key.get_secret_value(),
        "CONTEXT_OS_STORE__COLLECTION": f"Test{os.getpid()}Health",
    }
    make_repository(tmp_path / "shop")
    assert terminal.json("smoke")["ok"]
    before = terminal.json("ingest", "shop")["reconcile"]["store"]
    answer = terminal.json("search", "close the session")
    made = terminal.json("backup", "create")
    assert made["items"] == before
    chosen = settings.load(
        {
            "home": terminal.environment["CONTEXT_OS_HOME"],
            "store": {
                "url": at.url,
                "grpc_port": at.grpc_port,
                "api_key": at.api_key.get_secret_value(),
                "collection": terminal.environment["CONTEXT_OS_STORE__COLLECTION"],
            },
        },
        start=tmp_path,
    )
    with chosen.open_store() as store:
        assert store.health().ready
        store.drop_tenant(Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED))
    assert terminal.json("search", "close the session")["items"] == []
    assert terminal.json("reconcile", code=3)["store"] == 0
    assert terminal.json("backup", "restore", "--replace")["items"] == before
    assert terminal.json("search", "close the session") == answer
    assert items(terminal) == before
    assert terminal.json("backup", "drill")["different"] == 0
    assert "no native backup yet" in terminal.run("backup", "create", "--native", "--incremental").stderr
    whole = terminal.json("backup", "create", "--native")
    assert (whole["status"], whole["base"]) == ("SUCCESS", "")
    write(tmp_path / "shop", "shop/more.py", "def more():\n    pass\n")
    terminal.json("ingest", "shop", "--connector", "symbols")
    more = terminal.json("backup", "create", "--native", "--incremental")
    assert (more["status"], more["base"]) == ("SUCCESS", whole["name"])
    native = terminal.json("backup", "list")["native"]
    assert [each["name"] for each in native if each["name"] in {whole["name"], more["name"]}] == [
        whole["name"],
        more["name"],
    ]
    with chosen.open_store() as store:
        store.drop_tenant(Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED))
