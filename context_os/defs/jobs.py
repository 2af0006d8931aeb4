"""Jobs a person starts from the UI: ingest everything, one connector, or add a repository."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from context_os.defs.assets import repositories
from context_os.defs.history import REPOSITORY_TAG, forget_runs
from context_os.defs.resources import Workspace
from context_os.git import Git
from context_os.ingestion import register
from context_os.model import utcnow
from context_os.operations import alert_book
from context_os.operations import prune as prune_store

# Its tags win over those of whoever starts a run: the tenant is not among them.
_TAGGED: Any = dg.PartitionedConfig(
    partitions_def=repositories,
    run_config_for_partition_key_fn=lambda _: {},
    tags_for_partition_key_fn=lambda repository: {REPOSITORY_TAG: repository},
)


def ingestion_jobs(connectors: Sequence[str]) -> list[Any]:
    """``ingest`` for all connectors, ``ingest_<name>`` for each (Dagster does not export the type of an asset job)."""
    everything = dg.define_asset_job(
        "ingest",
        selection=[key for name in connectors for key in _keys(name)],
        config=_TAGGED,
        description="Every connector over one repository: stage, check, index, reconcile, embed.",
    )
    each = [
        dg.define_asset_job(
            f"ingest_{name}",
            selection=_keys(name),
            config=_TAGGED,
            description=f"The connector {name} over one repository.",
        )
        for name in connectors
    ]
    return [everything, *each]


def _keys(name: str) -> list[str]:
    return [f"staged/{name}", f"indexed/{name}", f"embedded/{name}"]


class RepositoryConfig(dg.Config):
    """``location``: absolute path of a working tree or a bare git directory. ``name``: empty takes the remote's
    ``owner/name``, else the folder's. ``revision``: empty follows the repository."""

    location: str
    name: str = ""
    revision: str = ""


@dg.op
def register_repository(context: dg.OpExecutionContext, config: RepositoryConfig, workspace: Workspace) -> None:
    """Remember the repository and add its partition."""
    location = Path(config.location).expanduser()
    with workspace.ingestion(context.log.info) as ingestion:
        name = config.name or Git(location).suggested_name()
        found = register(ingestion.settings, ingestion.ledger, name, location, config.revision or None)
    assert repositories.name is not None
    context.instance.add_dynamic_partitions(repositories.name, [found.name])
    context.log.info(f"{found.name} is {found.location}; materialize its partition to ingest it")


@dg.job(description="Register a repository, so that its partition can be materialized.")
def add_repository() -> None:
    register_repository()


@dg.op
def prune_expired(context: dg.OpExecutionContext, workspace: Workspace) -> dict[str, Any]:
    """``{"run_id", "tenants": [{"tenant", "deleted", "gone"}], "runs", "alerts"}``: what is no longer there."""
    now = utcnow()
    with workspace.ingestion(context.log.info) as ingestion:
        chosen = ingestion.settings
        tenants = prune_store(chosen, ingestion.store, context.run.run_id, now)
    runs, alerts = chosen.retention.runs, chosen.retention.alerts
    return {
        "run_id": context.run.run_id,
        "tenants": [each.model_dump() for each in tenants],
        "runs": forget_runs(context.instance, now - runs) if runs else 0,
        "alerts": alert_book(chosen).forget(now - alerts) if alerts else 0,
    }


@dg.job(description="Delete what expired from the store, with receipts, and history that is past its retention.")
def prune() -> None:
    prune_expired()
