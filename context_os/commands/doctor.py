"""Is everything in order, and if not, what is to be done."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

from context_os.commands import as_json_option, load_settings, print_json
from context_os.errors import ContextOSError

if TYPE_CHECKING:
    from context_os.ledger import Scope
    from context_os.settings import Settings
    from context_os.stores import KnowledgeStore

_ROOM = 1_000_000_000
"""Bytes that should be free where the home is."""


class Finding(NamedTuple):
    """One thing that was checked. ``state`` is ok, warn or broken; ``remedy`` "" where there is nothing to do."""

    check: str
    state: str
    detail: str
    remedy: str = ""


@click.command("doctor")
@click.option("--deliver", is_flag=True, help="Also send a test notice to every receiver of alerts.")
@as_json_option
def command(deliver: bool, as_json: bool) -> None:
    """Check everything, and print what to do for each problem. Exits with 1 if something is broken."""
    found = list(_examine(deliver=deliver))
    broken = [each for each in found if each.state == "broken"]
    if as_json:
        print_json({"ok": not broken, "checks": [each._asdict() for each in found]})
    else:
        for each in found:
            _show(each)
    sys.exit(1 if broken else 0)


def _examine(*, deliver: bool) -> Iterator[Finding]:
    try:
        chosen = load_settings()
    except ContextOSError as error:
        yield Finding("settings", "broken", str(error), "mend these lines; nothing else can be checked before")
        return
    for check in [_settings, _home, _git, _ledger, _store, _sources, _embedding, _dagster, _alerts]:
        yield from _guarded(check, chosen)
    if deliver:
        yield from _guarded(_receivers, chosen)


def _show(found: Finding) -> None:
    colour = {"ok": "green", "warn": "yellow", "broken": "red"}[found.state]
    click.echo(f"{click.style(f'{found.state:<7}', fg=colour)} {found.check}: {found.detail}")
    if found.remedy:
        click.echo(f"{'':<8}-> {found.remedy}")


def _guarded(check: Callable[[Settings], Iterator[Finding]], chosen: Settings) -> Iterator[Finding]:
    """What is broken must not keep the rest from being looked at."""
    name = check.__name__.strip("_")
    try:
        yield from check(chosen)
    except ContextOSError as error:
        yield Finding(name, "broken", str(error), "the message says what to do")
    except OSError as error:
        yield Finding(name, "broken", f"{type(error).__name__}: {error}", "see that there is room on the disk")


def _settings(chosen: Settings) -> Iterator[Finding]:
    where = str(chosen.file) if chosen.file else "no context-os.toml was found"
    layers = sorted({source.split()[0] for source in chosen.sources.values()}) or ["defaults alone"]
    yield Finding("settings", "ok", f"{where}; values from {', '.join(layers)}; `context-os config show` has each")


def _home(chosen: Settings) -> Iterator[Finding]:
    home = chosen.make_home()
    mode = home.stat().st_mode & 0o777
    if mode & 0o077:
        yield Finding("home", "warn", f"{home} may be read by others (mode {mode:o})", f"chmod 700 {home}")
    probe = home / ".doctor"
    probe.write_bytes(b"x")
    probe.unlink()
    free = shutil.disk_usage(home).free
    if free < _ROOM:
        yield Finding("home", "warn", f"only {free / 1e6:,.0f} MB are free at {home}", "make room, or move home")
    yield Finding("home", "ok", f"{home}, {free / 1e9:,.1f} GB free")


def _git(chosen: Settings) -> Iterator[Finding]:
    found = shutil.which("git")
    if found is None:
        yield Finding("git", "broken", "git is not on the PATH", "install git: repositories are read with it")
    else:
        yield Finding("git", "ok", found)


def _ledger(chosen: Settings) -> Iterator[Finding]:
    from context_os.operations import ledger

    books = ledger(chosen)
    names = {*chosen.repositories, *(each.name for each in books.repositories())}
    gone = [each.name for each in books.repositories() if not each.location.exists()]
    gone += [name for name, each in chosen.repositories.items() if not each.location.exists()]
    if gone:
        told = f"these are no longer where they were: {', '.join(sorted(gone))}"
        yield Finding("repositories", "warn", told, "ingest each from its new place, under the same --name")
    remedy = "" if names else "ingest one: `context-os ingest PATH`"
    yield Finding("ledger", "ok", f"{books.path} opens; {len(names)} repositories", remedy)


def _store(chosen: Settings) -> Iterator[Finding]:
    from context_os.operations import ledger, watched, write_refusal

    start = "start the server (`context-os weaviate start`), or mend store.url and its key"
    with chosen.open_store() as store:
        health = store.health()
        if not health.ready:
            yield Finding("store", "broken", health.detail, start)
            return
        yield Finding("store", "ok", f"{health.detail}, {health.version}")
        scopes = watched(chosen, ledger(chosen), store)
        refusal = write_refusal(store, scopes[0].tenant) if scopes else ""
        if refusal:
            yield Finding("store writes", "broken", refusal, "make room on its disk, or mend the owner of its files")
        yield from _reconcile(chosen, store, scopes)


def _reconcile(chosen: Settings, store: KnowledgeStore, scopes: list[Scope]) -> Iterator[Finding]:
    from context_os.ingestion import Ingestion, describe
    from context_os.operations import ledger

    books = ledger(chosen)
    total = 0
    for scope in scopes:
        mine = chosen.model_copy(update={"tenant": scope.tenant})
        found = Ingestion(mine, store, books).reconcile(scope)
        total += found.store
        if found.differences and not books.pending(scope):
            told = describe(found, scope.connector, scope.repository)
            yield Finding("reconcile", "broken", told, "`context-os reconcile --repair`, then ingest again")
    yield Finding("reconcile", "ok", f"{total:,} items in the store were compared with the ledger")


def _sources(chosen: Settings) -> Iterator[Finding]:
    from context_os import conditions
    from context_os.model import utcnow
    from context_os.operations import ledger, source_of, watched

    books = ledger(chosen)
    with chosen.open_store() as store:
        sources = [source_of(scope, books.count_quarantined(scope)) for scope in watched(chosen, books, store)]
    stale = conditions.stale_sources(sources, chosen.objectives.freshness, utcnow())
    for each in stale:
        yield Finding("freshness", "warn", each.summary, each.remedy)
    if sources and not stale:
        yield Finding("freshness", "ok", f"{len(sources)} sources keep their objective")
    held = sum(each.quarantined for each in sources)
    state, remedy = ("warn", "`context-os quarantine list` says which and why") if held else ("ok", "")
    yield Finding("quarantine", state, f"{held:,} records", remedy)


def _embedding(chosen: Settings) -> Iterator[Finding]:
    model = chosen.open_embedding()
    if model is None:
        yield Finding("embedding", "warn", "none: search is by word and structure", "`context-os embedding fetch`")
    else:
        yield Finding("embedding", "ok", f"{model.name} {model.version}")


def _dagster(chosen: Settings) -> Iterator[Finding]:
    if not (chosen.home / "dagster" / "dagster.yaml").exists():
        yield Finding("dagster", "ok", "nothing was run here yet; the first ingestion makes its folder")
        return
    import dagster as dg

    from context_os.conditions import daemon_lag, told
    from context_os.defs.run import instance_folder
    from context_os.defs.schedules import nightly, pruning
    from context_os.defs.sensors import SENSORS, asking
    from context_os.operations import Instant

    with dg.DagsterInstance.from_config(str(instance_folder(chosen))) as instance:
        now = Instant.now()
        seen = asking(instance, chosen.tenant, now)("")
        yield Finding("dagster", "ok", f"{instance_folder(chosen)} loads; {len(seen.running)} runs in progress")
        started = "start it with `context-os ui`, or nothing happens by itself"
        lags = daemon_lag(seen.beats, chosen.objectives.daemon, now.wall)
        if not seen.beats:
            yield Finding("daemon", "warn", "it never ran here: no schedule and no alert works", started)
        elif lags:
            yield Finding("daemon", "warn", lags[0].summary, started)
        else:
            yield Finding("daemon", "ok", f"last heard of {told(now.wall - max(seen.beats.values()))} ago")
        states = {each.instigator_name: each for each in instance.all_instigator_state()}
        for name in (nightly.name, pruning.name, *SENSORS):
            if name in states and not states[name].is_running:
                yield Finding("automation", "warn", f"{name} is off", "turn it on in the UI under Automation")


def _alerts(chosen: Settings) -> Iterator[Finding]:
    from context_os.operations import alert_book

    book = alert_book(chosen)
    for alert in book.open():
        yield Finding("alert", "warn", f"{alert.finding.condition}: {alert.finding.summary}", alert.finding.remedy)
    for name in chosen.alerts.receivers:
        waiting = book.waiting(name)
        if waiting and waiting[0].problem:
            told = f"{len(waiting)} notices wait for {name}: {waiting[0].problem}"
            yield Finding("receivers", "warn", told, "mend it, then `context-os alerts test`")
    if not chosen.alerts.receivers:
        remedy = "add one under [alerts.receivers], see docs/operations.md"
        yield Finding("receivers", "warn", "nobody is told of alerts; they are in `context-os alerts list`", remedy)


def _receivers(chosen: Settings) -> Iterator[Finding]:
    from context_os.commands.alerts import try_receivers

    for each in try_receivers(chosen):
        state, remedy = ("ok", "") if each["ok"] else ("broken", f"mend alerts.receivers.{each['receiver']}")
        yield Finding("receivers", state, f"{each['receiver']}: {each['answer']}", remedy)
