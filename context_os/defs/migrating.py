"""A laboratory brought over, as a job: what happened is metadata of its run."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from pathlib import Path
from typing import Any

import dagster as dg

from context_os.defs.assets import repositories
from context_os.defs.resources import Workspace
from context_os.migration import CONNECTOR, Migration, rehearse
from context_os.migration import migrate as bring_over


class LaboratoryConfig(dg.Config):
    """``sources``: absolute paths of a laboratory's folder or of single files. ``into_repository``: the name of the
    repository whose knowledge it becomes. ``dry_run`` says what would happen and touches nothing."""

    sources: list[str]
    into_repository: str
    dry_run: bool = False


@dg.op
def migrate_laboratory(
    context: dg.OpExecutionContext, config: LaboratoryConfig, workspace: Workspace
) -> dict[str, Any]:
    """What ``Migration`` tells, as JSON."""
    sources = [Path(each) for each in config.sources]
    if config.dry_run:
        done = rehearse(workspace.settings(), sources, config.into_repository, context.log.info)
    else:
        with workspace.ingestion(context.log.info) as ingestion:
            done = bring_over(ingestion, sources, config.into_repository, context.run.run_id)
        assert repositories.name is not None
        context.instance.add_dynamic_partitions(repositories.name, [done.repository])
        context.log_event(
            dg.AssetMaterialization(
                dg.AssetKey(["indexed", CONNECTOR]), partition=done.repository, metadata=_metadata(done)
            )
        )
    context.add_output_metadata(_metadata(done))
    return done.model_dump(mode="json")


def _metadata(done: Migration) -> dict[str, Any]:
    kinds = {kind: tally.model_dump(exclude_defaults=True) for kind, tally in done.kinds.items()}
    return {
        "written": done.written,
        "refused": len(done.refused),
        "expired": len(done.expired),
        "votes": done.votes,
        "kinds": dg.MetadataValue.json(kinds),
        "report": dg.MetadataValue.json(done.model_dump(mode="json")),
    }


@dg.job(description="Bring a laboratory's store, rules, events, snapshots and skills into the store.")
def migrate() -> None:
    migrate_laboratory()
