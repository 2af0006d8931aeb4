"""What webhooks queued becomes runs."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

import dagster as dg

from context_os.defs.assets import repositories
from context_os.defs.resources import Workspace
from context_os.inbox import Inbox, Waiting

_STAGES = ("staged", "indexed", "embedded")


@dg.sensor(
    job_name="ingest",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=10,
    description="Ingests what webhooks concern: one run a repository, however many deliveries wait for it.",
)
def webhook_triggers(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult:
    """The cursor is Dagster's word that everything before it was started."""
    inbox = Inbox(workspace.settings().make_home())
    inbox.forget(context.cursor)
    waiting, cursor = inbox.waiting(context.cursor)
    if not waiting:
        return dg.SensorResult(skip_reason="no webhook waits", cursor=cursor)
    assert repositories.name is not None
    known = set(context.instance.get_dynamic_partitions(repositories.name))
    new = [each.repository for each in waiting if each.repository not in known]
    return dg.SensorResult(
        run_requests=[_run(each) for each in waiting],
        dynamic_partitions_requests=[repositories.build_add_request(new)] if new else [],
        cursor=cursor,
    )


def _run(waiting: Waiting) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=waiting.delivery,
        partition_key=waiting.repository,
        asset_selection=[dg.AssetKey([stage, name]) for name in waiting.connectors for stage in _STAGES],
        tags={"webhook/events": ", ".join(waiting.events), "webhook/deliveries": str(waiting.of)},
    )
