"""Running ingestion in this process, recorded in the Dagster instance so that the UI shows it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from context_os import errors
from context_os.connectors import Repository
from context_os.definitions import defs
from context_os.defs.assets import repositories
from context_os.defs.history import REPOSITORY_TAG, TENANT_TAG, why
from context_os.errors import StoreError
from context_os.ingestion import ConnectorResult, IngestResult, Report
from context_os.migration import Migration
from context_os.settings import Settings

_STAGES = ("staged", "indexed", "embedded")


def instance_folder(settings: Settings) -> Path:
    """DAGSTER_HOME of this checkout, with its ``dagster.yaml``."""
    folder = settings.make_home() / "dagster"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        shutil.copyfile(shipped("dagster.yaml"), folder / "dagster.yaml")
    return folder


def shipped(name: str) -> Path:
    """A file that stands at the top of a checkout and inside the installed package."""
    package = Path(__file__).parent.parent
    return next(path for path in (package / "data" / name, package.parent / name) if path.is_file())


def ingest(
    settings: Settings, repository: Repository, connectors: Sequence[str], *, verbose: bool, vectors: bool = False
) -> IngestResult:
    """Run the connectors over a repository, with ``vectors`` to their last asset. Never raises for what a run can fail
    of; the result tells."""
    started = time.monotonic()
    assert repositories.name is not None
    with dg.DagsterInstance.from_config(str(instance_folder(settings))) as instance:
        instance.add_dynamic_partitions(repositories.name, [repository.name])
        job = defs.resolve_job_def("ingest")
        stages = _STAGES if vectors else _STAGES[:-1]
        done = job.execute_in_process(
            instance=instance,
            partition_key=repository.name,
            asset_selection=[dg.AssetKey([stage, name]) for name in connectors for stage in stages],
            run_config=_run_config(settings, repository, connectors, verbose),
            tags={TENANT_TAG: settings.tenant, REPOSITORY_TAG: repository.name},
            raise_on_error=False,
        )
    failed = {event.step_key for event in done.all_events if event.is_step_failure}
    reports = {name: each for name, each in _reports(done).items() if f"embedded__{name}" not in failed}
    return IngestResult.of(
        reports,
        {name: _why_not(name, done) for name in connectors if name not in reports},
        repository=repository.name,
        store=settings.store_kind,
        run_id=done.run_id,
        seconds=round(time.monotonic() - started, 3),
    )


def prune(settings: Settings) -> dict[str, Any]:
    """Run the job ``prune``: what ``defs.jobs.prune_expired`` returned. Raises StoreError with why it failed."""
    config = {
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        "resources": {"workspace": {"config": {"store": settings.store_kind}}},
    }
    with dg.DagsterInstance.from_config(str(instance_folder(settings))) as instance:
        job = defs.resolve_job_def("prune")
        done = job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)
    for event in done.all_events:
        if event.is_step_failure:
            raise StoreError(f"pruning failed: {why(event)}")
    result: dict[str, Any] = done.output_for_node("prune_expired")
    return result


def migrate(settings: Settings, sources: Sequence[Path], repository: str, *, verbose: bool) -> Migration:
    """Run the job ``migrate``. Raises what made it fail, as the error that it was."""
    config = _run_config(settings, Repository(repository, sources[0], settings.tenant), (), verbose)
    place = {"sources": [str(each.resolve()) for each in sources], "into_repository": repository}
    config["ops"] = {"migrate_laboratory": {"config": place}}
    with dg.DagsterInstance.from_config(str(instance_folder(settings))) as instance:
        done = defs.resolve_job_def("migrate").execute_in_process(
            instance=instance,
            run_config=config,
            tags={TENANT_TAG: settings.tenant, REPOSITORY_TAG: repository},
            raise_on_error=False,
        )
    for event in done.all_events:
        if event.is_step_failure:
            kind, _, told = why(event).partition(": ")
            error = getattr(errors, kind) if kind in errors.__all__ else StoreError
            raise error(f"the migration failed: {told or kind}")
    return Migration.model_validate(done.output_for_node("migrate_laboratory"))


def _run_config(settings: Settings, repository: Repository, connectors: Sequence[str], verbose: bool) -> dict[str, Any]:
    workspace = {"store": settings.store_kind, "tenant": settings.tenant, "verbose": verbose}
    config: dict[str, Any] = {
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        "resources": {"workspace": {"config": workspace}},
    }
    if repository.revision:
        config["ops"] = {f"staged__{name}": {"config": {"revision": repository.revision}} for name in connectors}
    return config


def _reports(done: dg.ExecuteInProcessResult) -> dict[str, Report]:
    found = {}
    for event in done.get_asset_materialization_events():
        data = event.step_materialization_data.materialization
        if data.asset_key.path[0] == "indexed":
            found[data.asset_key.path[1]] = Report.model_validate(data.metadata["report"].value)
    return found


def _why_not(name: str, done: dg.ExecuteInProcessResult) -> ConnectorResult:
    for check in done.get_asset_check_evaluations():
        if check.asset_key.path[-1] == name and check.blocking and not check.passed:
            return ConnectorResult(verdict="refused", problem=check.description or "the gate refused the batch")
    problem = _failure(name, done)
    refused = problem.startswith(("ReconcileDifference", "BatchRefused"))
    return ConnectorResult(verdict="refused" if refused else "failed", problem=problem)


def _failure(name: str, done: dg.ExecuteInProcessResult) -> str:
    for event in done.all_events:
        if event.is_step_failure and event.step_key in {f"{stage}__{name}" for stage in _STAGES}:
            return why(event)
    return "it did not run, because something before it failed"
