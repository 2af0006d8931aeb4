"""Dagster's root: ``dagster dev -m context_os.definitions``, or through ``workspace.yaml``."""

from __future__ import annotations

import dagster as dg

from context_os import plugins
from context_os.defs.assets import connector_assets
from context_os.defs.backup import backup, restore_drill
from context_os.defs.backup import schedules as backup_schedules
from context_os.defs.feedback import collect_feedback
from context_os.defs.feedback import schedule as feedback_schedule
from context_os.defs.goldsets import goldset_assets, goldset_jobs, nightly_goldsets
from context_os.defs.jobs import add_repository, ingestion_jobs, prune
from context_os.defs.migrating import migrate
from context_os.defs.resources import Workspace
from context_os.defs.schedules import nightly, pruning
from context_os.defs.sensors import follow, operations
from context_os.defs.triggers import webhook_triggers

_CONNECTORS = plugins.names("connectors")
_GOLDSETS = goldset_assets()

defs = dg.Definitions(
    assets=[asset for name in _CONNECTORS for asset in connector_assets(name)] + _GOLDSETS,
    jobs=[
        *ingestion_jobs(_CONNECTORS),
        add_repository,
        prune,
        migrate,
        backup,
        restore_drill,
        collect_feedback,
        *goldset_jobs(_GOLDSETS),
    ],
    schedules=[nightly, pruning, *backup_schedules, feedback_schedule, *nightly_goldsets(_GOLDSETS)],
    sensors=[operations, follow, webhook_triggers],
    resources={"workspace": Workspace()},
    # The multiprocess executor starts a Python for every step: 9.5 s instead of 0.4 s for two trivial assets.
    executor=dg.in_process_executor,
)
