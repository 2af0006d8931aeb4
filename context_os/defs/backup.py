"""Backups on a schedule, and restores for trial: what happened is metadata in the UI, a failed trial a failed run."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

import dagster as dg

from context_os.backup import Backups
from context_os.defs.resources import Workspace


@dg.op
def create_backup(context: dg.OpExecutionContext, workspace: Workspace) -> None:
    """Back the tenant up, then prune by the settings."""
    with workspace.ingestion(context.log.info) as ingestion:
        chosen = ingestion.settings
        backups = Backups.of(chosen, context.log.info)
        made = backups.create(ingestion.store, chosen.tenant)
        kept, gone = backups.prune(chosen.backup.keep_daily, chosen.backup.keep_weekly)
    told = {name: value for name, value in made.model_dump(mode="json").items() if value not in {None, ""}}
    context.add_output_metadata({**told, "kept": len(kept), "deleted": [each.name for each in gone]})


@dg.op
def try_restore(context: dg.OpExecutionContext, workspace: Workspace) -> None:
    """Restore the newest backup into a scratch store, compare it item for item, drop it. A difference fails the run."""
    with workspace.ingestion(context.log.info) as ingestion:
        done = Backups.of(ingestion.settings, context.log.info).drill("newest", ingestion.store)
    values = done.model_dump(mode="json")
    context.add_output_metadata({**values, "differences": dg.MetadataValue.json(values["differences"])})
    if done.different:
        raise dg.Failure(
            f"{done.name} does not restore to what it holds: {done.different} differences, first {done.differences[0]}",
            metadata={"differences": dg.MetadataValue.json(values["differences"])},
            allow_retries=False,
        )


@dg.job(description="Back up the tenant of the settings; prune what the retention no longer keeps.")
def backup() -> None:
    create_backup()


@dg.job(description="Restore the newest backup into a scratch store, compare it item for item, and drop it.")
def restore_drill() -> None:
    try_restore()


schedules = [
    dg.ScheduleDefinition(job=job, cron_schedule=when, default_status=dg.DefaultScheduleStatus.STOPPED)
    for job, when in ((backup, "30 2 * * *"), (restore_drill, "30 4 * * 0"))
]
"""Every night and every Sunday, once somebody starts them."""
