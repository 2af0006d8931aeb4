"""Conditions: facts that somebody observed -> what is wrong now. Pure functions; nothing here reads a clock or a disk.

Two kinds. What can be seen whole at any time (a source's age, a store's counts) is judged anew at every look. What
happens (a run ends, a check is evaluated) is seen once: such a condition takes what stood at the last look and lets
each event, in order, add to it or end it.

``since`` is when a finding would have begun; the book of alerts keeps the earliest that it was told while it lasts.
No age is trusted that is negative: it is a clock's fault and no source's, and ``clock_skew`` tells it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, Literal

from context_os.alerts import Finding
from context_os.model import Time, Value
from context_os.settings import ObjectiveSettings

CONDITIONS: Final = (
    "failed_run",
    "failed_check",
    "slow_run",
    "stale_source",
    "store_unreachable",
    "store_readonly",
    "store_out_of_step",
    "quarantine_growth",
    "daemon_lag",
    "clock_skew",
)


class Check(Value):
    """One check of one run. ``missing``: the asset was materialized and nothing was said of it."""

    asset: str
    name: str
    outcome: Literal["passed", "failed", "missing"]
    detail: str = ""


class Run(Value):
    """A Dagster run. ``assets`` are those that it materialized, ``failed_assets`` those that it did not manage to.
    ``problem`` is the first error that is not a check's verdict. ``ended`` None is still running."""

    id: str
    job: str
    tenant: str
    repository: str
    outcome: Literal["running", "success", "failure", "canceled"]
    started: Time
    ended: Time | None = None
    assets: frozenset[str] = frozenset()
    failed_assets: frozenset[str] = frozenset()
    problem: str = ""
    checks: tuple[Check, ...] = ()

    @property
    def place(self) -> str:
        return "/".join(filter(None, (self.tenant, self.repository, self.job)))

    @property
    def what(self) -> str:
        return f"the run of {self.job}" + (f" over {self.repository}" if self.repository else "")


class Source(Value):
    """A scope: one connector over one repository for one tenant. ``confirmed`` is when it was last found to be what the
    store holds, None for never; ``baseline`` the quarantine that was there before, None if nobody looked."""

    tenant: str
    repository: str
    connector: str
    confirmed: Time | None
    quarantined: int = 0
    baseline: int | None = None

    @property
    def place(self) -> str:
        return f"{self.tenant}/{self.repository}/{self.connector}"

    @property
    def about(self) -> dict[str, str]:
        return {"tenant": self.tenant, "repository": self.repository, "connector": self.connector}


def failed_runs(standing: Iterable[Finding], ended: Iterable[Run]) -> list[Finding]:
    """Stands until every asset that failed was materialized by a later run, or, for a job without assets, until the job
    succeeded. A run that failed only because a check refused is the check's matter."""
    found = {each.subject: each for each in standing}
    for run in ended:
        for subject, each in list(found.items()):
            if (each.tenant, each.repository) != (run.tenant, run.repository):
                continue
            left = _names(each.asset) - run.assets
            if not left and (each.asset or (subject == run.place and run.outcome == "success")):
                del found[subject]
            elif left != _names(each.asset):
                found[subject] = each.model_copy(update={"asset": _joined(left)})
        if run.outcome == "failure" and run.problem:
            before = found.get(run.place)
            failed = run.failed_assets | (_names(before.asset) if before else frozenset())
            found[run.place] = Finding(
                condition="failed_run",
                subject=run.place,
                summary=f"{run.what} failed: {_short(run.problem)}",
                remedy="read the run's last error, mend its cause, then start the run again (`context-os ingest` or "
                "Materialize in the UI)",
                since=run.ended or run.started,
                asset=_joined(failed),
                **_about(run),
            )
    return list(found.values())


def failed_checks(standing: Iterable[Finding], ended: Iterable[Run]) -> list[Finding]:
    """Stands until the same check of the same asset and repository passes."""
    found = {each.subject: each for each in standing}
    for run in ended:
        for check in run.checks:
            subject = f"{run.tenant}/{run.repository}/{check.asset}:{check.name}"
            if check.outcome == "passed":
                found.pop(subject, None)
            else:
                found[subject] = _check_finding(run, check, subject)
    return list(found.values())


def _check_finding(run: Run, check: Check, subject: str) -> Finding:
    if check.asset.startswith("goldset/"):
        name = check.asset.partition("/")[2]
        told = f"the goldset {name} regressed: {_short(check.detail)}"
        remedy = f"`context-os goldset compare {name}` says which selector found or dropped what; mend it, or "
        remedy += f"`context-os goldset accept {name}` where the new results are wanted"
    elif check.outcome == "missing":
        told = f"{check.asset} of {run.repository} was materialized without its check {check.name}: nobody judged it"
        remedy = f"materialize {check.asset} of {run.repository} again, with its checks selected"
    else:
        told = f"the check {check.name} of {check.asset} refused {run.repository}: {_short(check.detail)}"
        remedy = "`context-os quarantine list` says which records and why; mend the source, then ingest again"
    return Finding(
        condition="failed_check",
        subject=subject,
        summary=told,
        remedy=remedy,
        since=run.ended or run.started,
        asset=check.asset,
        **_about(run),
    )


def slow_runs(
    standing: Iterable[Finding],
    ended: Iterable[Run],
    running: Iterable[Run],
    objectives: ObjectiveSettings,
    now: datetime,
) -> list[Finding]:
    """Runs beyond their objective, those that still run included: a run that hangs never ends. One that ended late
    stands until the same job over the same repository keeps its objective; one that was stopped or failed is over."""
    alive = {run.id: run for run in running}
    found = {each.subject: each for each in standing}
    for run in ended:
        if run.outcome == "success" and _is_late(run, objectives, run.ended or now):
            found[run.place] = _slow(run, objectives, run.ended or now)
        elif run.outcome == "success" or (run.place in found and found[run.place].run_id == run.id):
            found.pop(run.place, None)
    for run in alive.values():
        if _is_late(run, objectives, now):
            found[run.place] = _slow(run, objectives, now)
    return list(found.values())


def _is_late(run: Run, objectives: ObjectiveSettings, end: datetime) -> bool:
    objective = objectives.of_job(run.job)
    return objective is not None and end - run.started > objective


def _slow(run: Run, objectives: ObjectiveSettings, end: datetime) -> Finding:
    objective = objectives.of_job(run.job)
    assert objective is not None
    verb = "took" if run.ended else "has been running for"
    return Finding(
        condition="slow_run",
        subject=run.place,
        summary=f"{run.what} {verb} {told(end - run.started)}; its objective is {told(objective)}",
        remedy="open the run and look at its last event; a run that hangs is ended there with Terminate, and the next "
        "one repeats its work",
        since=run.started + objective,
        **_about(run),
    )


def stale_sources(sources: Iterable[Source], objective: timedelta | None, now: datetime) -> list[Finding]:
    """Sources that were last found to be what the store holds longer ago than the objective."""
    if objective is None:
        return []
    return [
        Finding(
            condition="stale_source",
            subject=each.place,
            summary=f"{each.connector} of {each.repository} was last up to date {told(now - each.confirmed)} ago; "
            f"the objective is {told(objective)}",
            remedy=f"`context-os ingest` {each.repository} and read what it says; then see that Dagster's daemon "
            "runs and that the schedule `nightly` is on",
            since=each.confirmed + objective,
            **each.about,
        )
        for each in sources
        if each.confirmed is not None and now - each.confirmed > objective
    ]


def quarantine_growth(sources: Iterable[Source], allowed: int, now: datetime) -> list[Finding]:
    """Quarantines with more records than before."""
    return [
        Finding(
            condition="quarantine_growth",
            subject=each.place,
            summary=f"the quarantine of {each.connector} of {each.repository} grew from {each.baseline:,} to "
            f"{each.quarantined:,} records",
            remedy=f"`context-os quarantine list --repository {each.repository} --connector {each.connector}` says "
            "which records and why; mend them at their source",
            since=now,
            **each.about,
        )
        for each in sources
        if each.baseline is not None and each.quarantined > each.baseline + allowed
    ]


def store_unreachable(detail: str, patience: timedelta, now: datetime) -> list[Finding]:
    """``detail`` "" is a store that answers."""
    if not detail:
        return []
    return [
        Finding(
            condition="store_unreachable",
            subject="store",
            summary=f"the store does not answer: {_short(detail)}",
            remedy="`context-os doctor`; a local server is started with `context-os weaviate start`",
            since=now,
            patience=patience.total_seconds(),
        )
    ]


def store_readonly(detail: str, patience: timedelta, now: datetime) -> list[Finding]:
    """``detail`` "" is a store that takes writes."""
    if not detail:
        return []
    return [
        Finding(
            condition="store_readonly",
            subject="store",
            summary=f"the store answers but takes no writes: {_short(detail)}",
            remedy="look at the free space of its disk (Weaviate turns read-only at 90 % full) and at the file's "
            "owner; make room, then set the shards READY again or restart the server",
            since=now,
            patience=patience.total_seconds(),
        )
    ]


def store_out_of_step(differing: Mapping[str, tuple[Source, str]], patience: timedelta, now: datetime) -> list[Finding]:
    """``differing`` maps a place to its source and what differs, in words."""
    return [
        Finding(
            condition="store_out_of_step",
            subject=place,
            summary=f"ledger and store disagree on {source.connector} of {source.repository}: {_short(what)}",
            remedy="`context-os reconcile` lists the differences; with `--repair`, and an ingestion, it mends them",
            since=now,
            patience=patience.total_seconds(),
            **source.about,
        )
        for place, (source, what) in differing.items()
    ]


def daemon_lag(beats: Mapping[str, datetime], objective: timedelta | None, now: datetime) -> list[Finding]:
    """``beats`` maps parts of Dagster's daemon, and sensors, to when they were last heard of. Waking up from a laptop's
    sleep must not count, hence the patience."""
    late = {name: at for name, at in beats.items() if objective is not None and now - at > objective}
    if not late or objective is None:
        return []
    oldest = min(late.values())
    return [
        Finding(
            condition="daemon_lag",
            subject="daemon",
            summary=f"Dagster's daemon lags: {', '.join(sorted(late))} last heard of {told(now - oldest)} ago; "
            f"the objective is {told(objective)}",
            remedy="see that `context-os ui` (or `dagster-daemon run`) is running and look at its last lines",
            since=oldest + objective,
            patience=120.0,
        )
    ]


def clock_skew(
    newest: Mapping[str, datetime], jump: timedelta, objective: timedelta | None, now: datetime
) -> list[Finding]:
    """``newest`` maps what was recorded to its newest time, ``jump`` is how far this machine's clock moved against the
    time since it was started."""
    if objective is None:
        return []
    ahead = {name: at - now for name, at in newest.items() if at - now > objective}
    told_of = [f"{name} has a time {told(by)} in the future" for name, by in sorted(ahead.items())]
    if abs(jump) > objective:
        told_of.append(f"this machine's clock jumped by {'+' if jump > timedelta() else '-'}{told(abs(jump))}")
    if not told_of:
        return []
    return [
        Finding(
            condition="clock_skew",
            subject="clock",
            summary=f"clocks disagree: {'; '.join(told_of)}. Ages are not judged until that is over",
            remedy="compare `date -u` on this machine, the store's and Dagster's; let them follow a time server, then "
            "ingest again",
            since=now,
        )
    ]


def told(span: timedelta) -> str:
    """ "3 d 4 h", "2 h 5 min", "40 s": the two largest parts."""
    seconds = max(0, int(span.total_seconds()))
    parts = (("d", seconds // 86400), ("h", seconds // 3600 % 24), ("min", seconds // 60 % 60), ("s", seconds % 60))
    shown = [f"{count} {unit}" for unit, count in parts if count][:2]
    return " ".join(shown) or "0 s"


def _about(run: Run) -> dict[str, str]:
    return {"tenant": run.tenant, "repository": run.repository, "run_id": run.id}


def _names(joined: str) -> frozenset[str]:
    return frozenset(filter(None, joined.split(", ")))


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _short(text: str) -> str:
    """One line of an error, for a telephone, without the password of an address that it quotes."""
    line = re.sub(r"(\w://)[^/\s@]+@", r"\1***@", " ".join(text.split()))
    return line if len(line) <= 300 else f"{line[:299]}…"
