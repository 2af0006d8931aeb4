"""What Dagster remembers, as facts: runs that ended, runs that are running, when the daemon was last heard of. And how
long it remembers: ``forget_runs``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from context_os.conditions import Check, Run
from context_os.operations import Told

REPOSITORY_TAG: Final = "context-os/repository"
TENANT_TAG: Final = "context-os/tenant"
"""What runs carry: the repository always, the tenant unless somebody started the run in the UI."""
CHECKS: Final = ("gx_critical", "gx_advisory")
"""What is said of every materialization of ``staged/<connector>``."""

_ENDS: Final = {
    dg.DagsterEventType.RUN_SUCCESS: "success",
    dg.DagsterEventType.RUN_FAILURE: "failure",
    dg.DagsterEventType.RUN_CANCELED: "canceled",
}
_AT_ONCE: Final = 200
"""Runs of one kind for one look: a sensor has a minute."""
_FIRST_LOOK: Final = timedelta(days=1)
"""How far back the first look goes: what failed long ago is no news."""
_ALIVE: Final = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_OVER: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def read(instance: dg.DagsterInstance, cursor: str, tenant: str, sensors: Iterable[str], now: datetime) -> Told:
    """What happened since ``cursor``, "" for the first look. ``tenant`` is whose a run is that says nothing of it, and
    ``sensors`` are those that should tick."""
    events, cursor = _ends(instance, cursor, now)
    records = {each.dagster_run.run_id: each for each in _records(instance, [event.run_id for event in events])}
    ended = [_run(instance, records[event.run_id], event, tenant) for event in events if event.run_id in records]
    alive = instance.get_run_records(dg.RunsFilter(statuses=_ALIVE))
    return Told(ended, [_run(instance, each, None, tenant) for each in alive], _beats(instance, sensors), cursor)


def _ends(instance: dg.DagsterInstance, cursor: str, now: datetime) -> tuple[list[dg.EventLogEntry], str]:
    """The events that ended runs, in order. Not by run-status sensors: those take five runs a tick."""
    newest = max((each.storage_id for kind in _ENDS for each in _changes(instance, kind, limit=1)), default=-1)
    if cursor and newest < int(cursor):
        cursor = ""  # another history than the one that the cursor is from
    found = {
        kind: _changes(
            instance,
            kind,
            limit=_AT_ONCE,
            ascending=True,
            after_storage_id=int(cursor) if cursor else None,
            after_timestamp=None if cursor else (now - _FIRST_LOOK).timestamp(),
        )
        for kind in _ENDS
    }
    # Where there was more of one kind than was taken, the others wait for the rest of it: order matters.
    last = min((each[-1].storage_id for each in found.values() if len(each) == _AT_ONCE), default=newest)
    records = sorted((each for kind in found.values() for each in kind), key=lambda each: each.storage_id)
    taken = [each for each in records if each.storage_id <= last]
    return [each.event_log_entry for each in taken], str(taken[-1].storage_id) if taken else cursor


def _changes(
    instance: dg.DagsterInstance, kind: Any, *, limit: int, ascending: bool = False, **bounds: Any
) -> Sequence[dg.EventLogRecord]:
    filter = dg.RunStatusChangeRecordsFilter(kind, **bounds)
    return instance.fetch_run_status_changes(filter, limit=limit, ascending=ascending).records


def _records(instance: dg.DagsterInstance, ids: Sequence[str]) -> Sequence[Any]:
    return instance.get_run_records(dg.RunsFilter(run_ids=list(ids))) if ids else ()


def _run(instance: dg.DagsterInstance, record: Any, end: dg.EventLogEntry | None, tenant: str) -> Run:
    run = record.dagster_run
    seen = _Events(instance, run.run_id) if end is not None else None
    kind = end.dagster_event.event_type if end is not None and end.dagster_event is not None else None
    outcome: Any = _ENDS[kind] if kind is not None else "running"
    return Run(
        id=run.run_id,
        job=run.job_name,
        tenant=run.tags.get(TENANT_TAG) or _configured_tenant(run.run_config) or tenant,
        repository=run.tags.get(REPOSITORY_TAG) or run.tags.get("dagster/partition", ""),
        outcome=outcome,
        started=_time(record.start_time) if record.start_time else record.create_timestamp.replace(tzinfo=UTC),
        ended=_time(end.timestamp) if end is not None else None,
        assets=seen.materialized if seen else frozenset(),
        failed_assets=seen.failed if seen else frozenset(),
        problem=seen.problem(end) if seen and end is not None and outcome == "failure" else "",
        checks=seen.checks if seen else (),
    )


def _configured_tenant(config: Any) -> str:
    """Of a run that somebody started in the UI, "" if it is the settings' own."""
    for part in ("resources", "workspace", "config", "tenant"):
        config = config.get(part) if isinstance(config, dict) else None
    return config if isinstance(config, str) else ""


class _Events:
    """What happened inside one run."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        kinds = {
            dg.DagsterEventType.ASSET_MATERIALIZATION,
            dg.DagsterEventType.ASSET_CHECK_EVALUATION,
            dg.DagsterEventType.STEP_FAILURE,
        }
        records = instance.get_records_for_run(run_id, of_type=kinds).records
        events = [each.event_log_entry.dagster_event for each in records]
        self._events = [each for each in events if each is not None]
        self.materialized = frozenset(
            each.asset_key.to_user_string() for each in self._events if each.is_step_materialization and each.asset_key
        )
        self._failures = [each for each in self._events if each.is_step_failure and not _by_a_check(each)]
        self.failed = frozenset(_asset(each.step_key or "") for each in self._failures) - {""}
        self.checks = tuple(self._checks())

    def _checks(self) -> Iterator[Check]:
        said = set()
        for event in self._events:
            if event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                continue
            data: Any = event.asset_check_evaluation_data
            asset = data.asset_key.to_user_string()
            said.add((asset, data.check_name))
            # Advice that applies is worth a look and blocks nothing: nobody is called for it.
            good = data.passed or data.severity is dg.AssetCheckSeverity.WARN
            yield Check(
                asset=asset,
                name=data.check_name,
                outcome="passed" if good else "failed",
                detail=data.description or "",
            )
        for asset in sorted(self.materialized):
            for name in CHECKS if asset.startswith("staged/") else ():
                if (asset, name) not in said:
                    yield Check(asset=asset, name=name, outcome="missing")

    def problem(self, end: dg.EventLogEntry) -> str:
        """The first error that is not a check's verdict, "" if there is none."""
        for event in self._failures:
            return why(event)
        if any(each.outcome == "failed" for each in self.checks):
            return ""
        assert end.dagster_event is not None
        return end.dagster_event.message or "it ended without a reason: its process was killed"


def _by_a_check(event: Any) -> bool:
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def why(event: dg.DagsterEvent) -> str:
    """Why a step failed: what the asset said, else the innermost message, since Dagster wraps what is raised."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error: Any = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else "failed without a reason"


def _asset(step: str) -> str:
    return step.replace("__", "/") if "__" in step else ""


def _beats(instance: dg.DagsterInstance, sensors: Iterable[str]) -> dict[str, datetime]:
    required = set(instance.get_required_daemon_types())
    beats = {
        f"daemon {name.lower()}": _time(beat.timestamp)
        for name, beat in instance.get_daemon_heartbeats().items()
        if name in required
    }
    for state in instance.all_instigator_state():
        ticked = getattr(state.instigator_data, "last_tick_timestamp", None)
        if state.is_running and ticked and state.instigator_name in set(sensors):
            beats[f"sensor {state.instigator_name}"] = _time(ticked)
    return beats


# Retention


def forget_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete what Dagster knows of runs that ended before a time; returns how many. Never a run in progress, and never
    one that made the newest materialization of any partition: what is in the store keeps its history."""
    filter = dg.RunsFilter(statuses=_OVER, updated_before=before)
    old = {each.dagster_run.run_id for each in instance.get_run_records(filter)}
    if old:
        old -= set(_newest_makers(instance))
    for run_id in sorted(old):
        instance.delete_run(run_id)
    return len(old)


def _newest_makers(instance: dg.DagsterInstance) -> Iterator[str]:
    for key in instance.all_asset_keys():
        newest = instance.get_latest_materialization_event(key)
        if newest is not None:
            yield newest.run_id
        ids = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        wanted = sorted(ids.values())
        for start in range(0, len(wanted), 500):
            chosen = dg.AssetRecordsFilter(asset_key=key, storage_ids=wanted[start : start + 500])
            for record in instance.fetch_materializations(chosen, limit=500).records:
                yield record.run_id


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
