"""Sensors: ``operations`` looks at everything once a minute and delivers the alerts; ``follow`` keeps the index behind
what was staged."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from collections.abc import Callable

import dagster as dg

from context_os.alerts import deliver
from context_os.defs import history
from context_os.defs.resources import Workspace
from context_os.model import utcnow
from context_os.operations import Instant, Told, alert_book, look

SENSORS = ("operations", "follow")


def asking(instance: dg.DagsterInstance, tenant: str, now: Instant) -> Callable[[str], Told]:
    """What ``look`` asks Dagster with."""
    return lambda cursor: history.read(instance, cursor, tenant, SENSORS, now.wall)


@dg.sensor(
    name="operations",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Failed, slow and hanging runs, checks that failed or are missing, stale sources, the store, the "
    "quarantine, the daemon and the clocks: tells the receivers once when something begins and once when it is over.",
)
def operations(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SkipReason:
    """Scans runs itself instead of being a run-failure sensor: those take five runs a tick and never see one that
    hangs."""
    chosen = workspace.settings()
    now = Instant.now()
    book = alert_book(chosen)
    try:
        look(chosen, book, asking(context.instance, chosen.tenant, now), now)
    finally:
        # What is written already goes out, whatever this look came to.
        deliveries = deliver(book, utcnow())
    for each in deliveries:
        if each.problem:
            context.log.warning(f"{each.receiver}: {each.waiting} notices wait: {each.problem}")
    told = sum(each.sent for each in deliveries)
    return dg.SkipReason(
        f"{len(book.open())} alerts open, {told} notices delivered. `context-os alerts list` has them."
    )


follow = dg.AutomationConditionSensorDefinition(
    "follow",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Materializes what the automation conditions ask for: indexed/ follows staged/.",
)
