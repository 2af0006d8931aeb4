"""What happens every night: all sources are looked at, then what expired is deleted.

Both are on by default: sources have an objective for their freshness, a night in which nothing changed costs seconds,
and nothing of this runs anywhere but where somebody started Dagster's daemon.
"""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from collections.abc import Iterator

import dagster as dg

from context_os.defs.assets import repositories
from context_os.defs.history import REPOSITORY_TAG, TENANT_TAG
from context_os.defs.resources import Workspace
from context_os.operations import ledger
from context_os.settings import Settings


@dg.schedule(
    name="nightly",
    cron_schedule="0 2 * * *",
    job_name="ingest",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every connector over every registered repository, for every tenant that has it.",
)
def nightly(context: dg.ScheduleEvaluationContext, workspace: Workspace) -> list[dg.RunRequest] | dg.SkipReason:
    """A run for each tenant and repository: the same one twice in a night is the same key, and runs once."""
    chosen = workspace.settings()
    places = sorted(set(_places(chosen)))
    if not places:
        return dg.SkipReason(
            "no repository is registered; add one with the job `add_repository` or `context-os ingest`"
        )
    assert repositories.name is not None
    context.instance.add_dynamic_partitions(repositories.name, sorted({repository for _, repository in places}))
    night = f"{context.scheduled_execution_time:%Y-%m-%d}"
    return [
        dg.RunRequest(
            run_key=f"{night}/{tenant}/{repository}",
            partition_key=repository,
            run_config={"resources": {"workspace": {"config": {"tenant": tenant}}}},
            tags={TENANT_TAG: tenant, REPOSITORY_TAG: repository},
        )
        for tenant, repository in places
    ]


def _places(settings: Settings) -> Iterator[tuple[str, str]]:
    """Tenant and repository: whoever ever ingested a repository, into whichever store, and for one that nobody did the
    configured tenant. So no tenant ever gets what another one registered."""
    books = ledger(settings)
    scopes = [scope for scope in books.scopes() if scope.generation]
    for name in {*settings.repositories, *(each.name for each in books.repositories())}:
        tenants = {scope.tenant for scope in scopes if scope.repository == name}
        yield from ((tenant, name) for tenant in tenants or {settings.tenant})


pruning = dg.ScheduleDefinition(
    name="nightly_prune",
    job_name="prune",
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes what expired, with receipts, and history that is past its retention.",
)
