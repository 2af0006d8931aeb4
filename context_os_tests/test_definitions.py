"""The Dagster definitions: what a person finds in the UI, and that running them does what it says."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from samples import make_repository, write

from context_os import plugins, settings
from context_os.definitions import defs
from context_os.defs import run
from context_os.defs.assets import repositories
from context_os.defs.resources import _translated
from context_os.errors import ConfigurationError, SourceRefused, SourceUnavailable, StoreUnavailable
from context_os.ingestion import IngestResult, connector_names, find_repository, register
from context_os.ledger import Ledger

CONNECTORS = ["bug_specs", "commits", "documents", "playbook", "pull_requests", "symbols", "team_rules"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


def ingest(repository: Path, *connectors: str, revision: str | None = None) -> IngestResult:
    chosen = settings.load()
    ledger = Ledger(chosen.make_home() / "ledger.db")
    register(chosen, ledger, "shop", repository)
    found = find_repository(chosen, ledger, "shop", revision)
    return run.ingest(chosen, found, connector_names(connectors), verbose=False)


def test_assets_checks_jobs_and_groups() -> None:
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        f"{stage}/{name}" for stage in ("staged", "indexed", "embedded") for name in CONNECTORS
    }
    assert {key.to_user_string() for key in graph.asset_check_keys} == {
        f"staged/{name}:{check}" for name in CONNECTORS for check in ("gx_critical", "gx_advisory")
    }
    assert {job.name for job in defs.resolve_all_job_defs()} >= {
        "ingest",
        "add_repository",
        *(f"ingest_{n}" for n in CONNECTORS),
    }
    for name in CONNECTORS:
        node = graph.get(dg.AssetKey(["indexed", name]))
        assert node.parent_keys == {dg.AssetKey(["staged", name])}
        assert (node.group_name, node.partitions_def) == (name, repositories)
        assert node.owners
        assert node.kinds
        assert node.description
        assert node.code_version == str(plugins.load("connectors", name).version)


def test_vectors_are_an_asset_behind_the_index(
    home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = dg.AssetKey(["embedded", "symbols"])
    assert defs.resolve_asset_graph().get(key).parent_keys == {dg.AssetKey(["indexed", "symbols"])}
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__PROVIDER", "hashed")
    chosen = settings.load()
    ledger = Ledger(chosen.make_home() / "ledger.db")
    register(chosen, ledger, "shop", repository)
    found = find_repository(chosen, ledger, "shop")
    result = run.ingest(chosen, found, ["symbols"], verbose=False, vectors=True)
    assert result.exit_code == 0, result
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        event = instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.asset_materialization is not None
    told = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    assert told["items"] == told["embedded now"] == told["dagster/row_count"] == result.reconcile["store"]
    assert (told["coverage"], told["embedding"]) == (1.0, "hashed-256-1")
    assert told["chunks/s"] > 0
    # What has no model fails there, is told, and leaves the index as it is.
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__PROVIDER", "model2vec")
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__MODEL", str(tmp_path))
    failed = run.ingest(settings.load(), found, ["symbols"], verbose=False, vectors=True)
    assert failed.exit_code == 1
    assert "must hold model.safetensors" in failed.connectors["symbols"].problem


def test_a_run_is_recorded_with_its_counts(home: Path, repository: Path) -> None:
    result = ingest(repository)
    assert result.exit_code == 0, result
    assert set(result.connectors) == set(CONNECTORS)
    assert (
        result.reconcile["ledger"]
        == result.reconcile["store"]
        == sum(each.added for each in result.connectors.values())
    )
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert instance.get_dynamic_partitions("repositories") == ["shop"]
        recorded = instance.get_run_by_id(result.run_id)
        assert recorded is not None
        assert recorded.status is dg.DagsterRunStatus.SUCCESS
        event = instance.get_latest_materialization_event(dg.AssetKey(["indexed", "symbols"]))
        assert event is not None
        metadata = event.asset_materialization.metadata
        assert metadata["added"].value == result.connectors["symbols"].added > 0
        assert event.asset_materialization.partition == "shop"
        assert event.asset_materialization.tags["dagster/data_version"]


def test_a_second_run_finds_nothing_to_do(home: Path, repository: Path) -> None:
    first = ingest(repository)
    second = ingest(repository)
    for name in CONNECTORS:
        each = second.connectors[name]
        assert (each.added, each.changed, each.removed, each.verdict) == (0, 0, 0, "passed")
        assert each.unchanged == first.connectors[name].added


def test_a_refused_batch_blocks_and_nothing_is_stored(
    home: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTEXT_OS_GATE__MAX_REFUSED_SHARE", "0.0")
    for number in range(12):
        globs = "!shop/**" if number == 7 else "shop/**"
        write(repository, f".context-os/rules/rule-{number}.md", f"---\nglobs: ['{globs}']\n---\nRule {number}.\n")
    result = ingest(repository, "team_rules", "symbols")
    assert result.exit_code == 3
    assert result.connectors["team_rules"].verdict == "refused"
    assert "1 of 13" in result.connectors["team_rules"].problem
    assert result.connectors["symbols"].verdict == "passed"
    with sqlite3.connect(home / "lab.db") as db:
        assert db.execute("SELECT count(*) FROM items WHERE kind = 'rule'").fetchone() == (0,)


def test_indexed_alone_refuses_what_was_not_checked(home: Path, repository: Path) -> None:
    ingest(repository, "team_rules")
    chosen = settings.load()
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("DELETE FROM verdicts")
    with dg.DagsterInstance.from_config(str(run.instance_folder(chosen))) as instance:
        done = defs.resolve_job_def("ingest").execute_in_process(
            instance=instance,
            partition_key="shop",
            asset_selection=[dg.AssetKey(["indexed", "team_rules"])],
            raise_on_error=False,
        )
    assert not done.success
    failure = next(event for event in done.all_events if event.is_step_failure)
    assert "BatchRefused" in failure.step_failure_data.user_failure_data.description


def test_an_old_revision_can_be_ingested(home: Path, repository: Path) -> None:
    result = ingest(repository, "symbols", revision="HEAD~1")
    assert result.exit_code == 0
    assert len(result.revision) == 40


def test_a_repository_is_added_by_its_job(home: Path, repository: Path) -> None:
    chosen = settings.load()
    with dg.DagsterInstance.from_config(str(run.instance_folder(chosen))) as instance:
        config = {"ops": {"register_repository": {"config": {"location": str(repository), "name": "team/shop"}}}}
        done = defs.resolve_job_def("add_repository").execute_in_process(instance=instance, run_config=config)
        assert done.success
        assert instance.get_dynamic_partitions("repositories") == ["team/shop"]
    assert Ledger(home / "ledger.db").repositories()[0].location == repository


def test_errors_retry_by_their_own_flag() -> None:
    again = _translated(SourceUnavailable("rate limit", retry_after=7.0))
    assert isinstance(again, dg.RetryRequested)
    assert again.seconds_to_wait == 7.0
    assert isinstance(_translated(StoreUnavailable("gone")), dg.RetryRequested)
    never = _translated(SourceRefused("bad token"))
    assert isinstance(never, dg.Failure)
    assert not never.allow_retries
    assert "bad token" in (never.description or "")


def test_connector_names_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="symbols"):
        connector_names(["telepathy"])


def test_the_code_location_loads_from_the_workspace_file(home: Path) -> None:
    command = [
        Path(sys.executable).with_name("dagster"),
        "definitions",
        "validate",
        "-w",
        run.shipped("workspace.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr.lower()
