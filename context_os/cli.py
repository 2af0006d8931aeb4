"""The command line. Every command takes ``--json`` and then prints exactly one object on standard output.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused (by the gate, by a store, by a difference found).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from context_os import __version__, commands
from context_os.commands import (
    as_json_option,
    clearance_option,
    load_settings,
    print_json,
    say_store,
    store_option,
    tell,
    tenant_option,
)
from context_os.errors import ConfigurationError, ContextOSError, NotFound

# Everything else is imported by the command that needs it: help has to come at once.
if TYPE_CHECKING:
    from context_os.app import App
    from context_os.connectors import Repository
    from context_os.ingestion import IngestResult
    from context_os.ledger import Ledger
    from context_os.model import KnowledgeItem
    from context_os.packs import ContextPack
    from context_os.settings import Settings
    from context_os.stores import Filter

_Command = TypeVar("_Command", bound=Callable[..., Any])


def main() -> None:
    """Entry point: errors of ours become one message and an exit code, never a trace."""
    gc.set_threshold(100_000, 50, 100)  # a command ends before cycles add up; looking for them costs a tenth of it
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ContextOSError as error:
        _fail(error)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(error: ContextOSError) -> NoReturn:
    click.echo(f"context-os: {error}", err=True)
    sys.exit(error.exit_code)


class _Commands(click.Group):
    """With one command for each file in ``commands``, imported when somebody asks for it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(
            {*super().list_commands(context), *(each.name for each in pkgutil.iter_modules(commands.__path__))}
        )

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name.isidentifier() and (Path(commands.__path__[0]) / f"{name}.py").is_file():
            found: click.Command = importlib.import_module(f"context_os.commands.{name}").command
            return found
        return super().get_command(context, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="context-os")
def cli() -> None:
    """What a team knows about its code, kept with lineage and handed to an AI reviewer inside a token budget.

    \b
    A first session:
      context-os ingest path/to/repository
      context-os search "where are sessions closed"
      context-os pack --range HEAD~1..HEAD --max-tokens 8000
      context-os ui
    """


# Ingestion


@cli.command()
@click.argument("location", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--revision", help="A commit, branch or tag; default: the working tree, or HEAD of a bare repository.")
@click.option("--connector", "connectors", multiple=True, help="Only this connector; may be given several times.")
@click.option("--name", help="The repository's name; default: owner/name of its remote, else its folder's name.")
@click.option("--vectors", is_flag=True, help="Embed as well; else `context-os embed` catches up later.")
@store_option
@tenant_option
@as_json_option
def ingest(
    location: Path,
    revision: str | None,
    connectors: tuple[str, ...],
    name: str | None,
    vectors: bool,
    store: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Ingest a repository (a working tree or a bare git directory) through Dagster, in this process.

    The run is recorded, so that `context-os ui` shows it. Running it again reads only what changed.
    """
    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    from context_os.git import Git
    from context_os.ingestion import connector_names, find_repository, register
    from context_os.ledger import Ledger

    names = connector_names(connectors)
    ledger = Ledger(chosen.make_home() / "ledger.db")
    git = Git(location)
    if revision:
        git.resolve(revision)
    found = register(chosen, ledger, name or git.suggested_name(), location)
    repository = find_repository(chosen, ledger, found.name, revision)
    result = _already_ingested(chosen, ledger, repository, names, vectors)
    if result is None:
        click.echo(f"ingesting {location} ...", err=True)
        from context_os.defs import run

        result = run.ingest(chosen, repository, names, verbose=not as_json, vectors=vectors)
    result = result.model_copy(update={"vectors": _count_vectors(chosen, ledger, result)})
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _show_ingest(result)
    for connector, each in result.connectors.items():
        if each.problem:
            click.echo(f"context-os: {connector}: {each.problem}", err=True)
    sys.exit(result.exit_code)


def _already_ingested(
    chosen: Settings, ledger: Ledger, repository: Repository, names: list[str], vectors: bool
) -> IngestResult | None:
    """What a run would report that finds nothing to do. Dagster takes seconds to import; this takes none of it.

    Also the moment to notice an unreachable store, before anything is read for it.
    """
    from context_os.errors import StoreUnavailable
    from context_os.gate import GATE
    from context_os.ingestion import Ingestion, IngestResult

    started = time.monotonic()
    with chosen.open_store() as opened:
        health = opened.health()
        if not health.ready:
            raise StoreUnavailable(f"the store is not ready: {health.detail}")
        if _failed_before(chosen, repository):
            return None  # what a run did not manage is over only when a run does
        ingestion = Ingestion(chosen, opened, ledger)
        reports = {}
        for name in names:
            report = ingestion.current(name, repository)
            if report is None:
                # Something changed: the gate's imports and Dagster's then take their seconds side by side.
                GATE.start()
                return None
            reports[name] = report
        if vectors:
            ingestion.progress = tell
            for name in names:
                ingestion.embed(name, repository.name)
    return IngestResult.of(
        reports,
        {},
        repository=repository.name,
        store=chosen.store_kind,
        run_id=max(reports.values(), key=lambda report: report.indexed_at).run_id,
        seconds=round(time.monotonic() - started, 3),
    )


def _failed_before(chosen: Settings, repository: Repository) -> bool:
    """Whether an alert about a run over this repository is open."""
    if not (chosen.home / "alerts.db").exists():
        return False
    from context_os.operations import alert_book

    found = [alert.finding for alert in alert_book(chosen).open()]
    return any(each.run_id and (each.tenant, each.repository) == (chosen.tenant, repository.name) for each in found)


def _count_vectors(chosen: Settings, ledger: Ledger, result: IngestResult) -> int:
    """Of the version that most items have: the configured embedding might have to be loaded to say its own."""
    with chosen.open_store() as opened:
        scopes = [ledger.scope(opened.identity, chosen.tenant, result.repository, name) for name in result.connectors]
    return sum(next(iter(ledger.count_vectors(scope).values()), 0) for scope in scopes)


def _show_ingest(result: IngestResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.repository} at {result.revision[:12] or 'no revision'} in {result.store}")
    counts = ("added", "changed", "unchanged", "removed", "quarantined")
    table.add_column("connector")
    for column in (*counts, "seconds"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for name, each in result.connectors.items():
        table.add_row(name, *(f"{getattr(each, count):,}" for count in counts), f"{each.seconds:.2f}", each.verdict)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(
        f"{result.reconcile['store']:,} items in the store, {result.vectors:,} with a vector, "
        f"{result.reconcile['ledger']:,} in the ledger; "
        f"{result.seconds:.1f} s in all; run {result.run_id}"
    )


@cli.command()
@click.option("--repository", help="Only this repository.")
@click.option("--connector", "connectors", multiple=True, help="Only this connector; may be given several times.")
@store_option
@tenant_option
@as_json_option
def embed(
    repository: str | None, connectors: tuple[str, ...], store: str | None, tenant: str | None, as_json: bool
) -> None:
    """Give every item that lacks one its vector. Stop it whenever you like; the next call goes on there."""
    from context_os.ingestion import Ingestion, connector_names
    from context_os.ledger import Ledger

    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    names = connector_names(connectors)
    with chosen.open_store() as opened:
        ingestion = Ingestion(chosen, opened, Ledger(chosen.make_home() / "ledger.db"), tell)
        scopes = ingestion.ledger.scopes(opened.identity, chosen.tenant)
        known = sorted({scope.repository for scope in scopes})
        if repository is not None and repository not in known:
            raise NotFound(f"nothing of {repository!r} is ingested; there are: {', '.join(known) or 'none yet'}")
        wanted = [each for each in scopes if each.connector in names and repository in {None, each.repository}]
        done = [ingestion.embed(scope.connector, scope.repository) for scope in wanted]
    if any(not each.version for each in done):
        raise ConfigurationError(
            "no embedding is on this machine; get one with `context-os embedding fetch`, or set embedding.provider"
        )
    if as_json:
        totals = {key: sum(getattr(each, key) for each in done) for key in ("items", "vectors", "embedded")}
        seconds = round(sum(each.seconds for each in done), 3)
        print_json({**totals, "seconds": seconds, "scopes": [each.model_dump(mode="json") for each in done]})
        return
    for each in done:
        rate = f", {each.embedded / each.seconds:,.0f} a second" if each.embedded else ""
        place = f"{each.repository} {each.connector}"
        click.echo(f"{place}: {each.vectors:,} of {each.items:,} items have a vector; {each.embedded:,} new{rate}")


@cli.command()
@click.argument("location", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--max-tokens", type=click.IntRange(1), default=8_000, show_default=True, help="The pack's hard budget.")
@click.pass_context
def demo(context: click.Context, location: Path, max_tokens: int) -> None:
    """A repository in, a pack out: ingest it on the embedded store, then build a pack for its last change."""
    from context_os.git import Git

    name = Git(location).suggested_name()
    try:
        context.invoke(ingest, location=location, name=name, store="lab")
    except SystemExit as ended:
        if ended.code:
            raise
    click.echo(f"\nThe pack for the last change of {name}:", err=True)
    context.invoke(pack, revisions="HEAD", repository=name, max_tokens=max_tokens, store="lab")
    click.echo("\nNext: `make ui` (or `context-os ui`) shows these runs, the assets and their checks in Dagster's UI;")
    click.echo(f"      `context-os search WORDS` and `context-os pack --question TEXT` ask {name}.")


@cli.command()
@click.option("--repair", is_flag=True, help="Delete what is unexpected; read again what is missing or different.")
@store_option
@tenant_option
@as_json_option
def reconcile(repair: bool, store: str | None, tenant: str | None, as_json: bool) -> None:
    """Compare the ledger with the store, item by item. A difference exits with 3."""
    from context_os.ingestion import Ingestion, describe
    from context_os.ledger import Ledger

    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    with chosen.open_store() as opened:
        ingestion = Ingestion(chosen, opened, Ledger(chosen.make_home() / "ledger.db"))
        scopes = ingestion.ledger.scopes(opened.identity, chosen.tenant)
        found = [(scope, ingestion.reconcile(scope)) for scope in scopes]
        for scope, each in found:
            if repair and each.differences:
                ingestion.repair(scope, each)
    differences = [each.model_dump(mode="json") for _, one in found for each in one.differences]
    if as_json:
        totals = {"ledger": sum(each.ledger for _, each in found), "store": sum(each.store for _, each in found)}
        print_json({**totals, "differences": differences, "repaired": repair and bool(differences)})
    for scope, each in found:
        if each.differences:
            click.echo(f"context-os: {describe(each, scope.connector, scope.repository)}", err=True)
        elif not as_json:
            click.echo(f"{scope.repository} {scope.connector}: {each.store:,} items, as the ledger expects")
    sys.exit(3 if differences and not repair else 0)


@cli.group()
def quarantine() -> None:
    """What the gate and the connectors kept out, and why."""


@quarantine.command("list")
@click.option("--repository", help="Only this repository.")
@click.option("--connector", help="Only this connector.")
@click.option("--raw", is_flag=True, help="With the raw text of every record.")
@store_option
@tenant_option
@as_json_option
def quarantine_list(
    repository: str | None, connector: str | None, raw: bool, store: str | None, tenant: str | None, as_json: bool
) -> None:
    """What stands in quarantine now, and the last verdict of every connector."""
    from context_os.ledger import Ledger

    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    ledger = Ledger(chosen.make_home() / "ledger.db")
    records: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    with chosen.open_store() as opened:
        identity = opened.identity
    for scope in ledger.scopes(identity, chosen.tenant):
        if repository in {None, scope.repository} and connector in {None, scope.connector}:
            place = {"repository": scope.repository, "connector": scope.connector}
            verdict = json.loads(ledger.verdict(scope) or "{}")
            verdicts.append({**place, **{key: verdict.get(key) for key in _VERDICT_KEYS}})
            for each in ledger.quarantined(scope):
                at = each.at.isoformat() if each.at else None
                text = {"raw": each.raw} if raw else {"raw_characters": len(each.raw)}
                records.append({**place, "unit": each.unit, "key": each.key, "reasons": each.reasons, "at": at, **text})
    if as_json:
        print_json({"records": records, "verdicts": verdicts})
        return
    for row in verdicts:
        state = "passed" if row["passed"] else "broken" if row["broken"] else "refused"
        refused = f": {row['reason']}" if row["reason"] else ""
        click.echo(f"{row['repository']} {row['connector']}: last verdict {state}, {row['rows']} rows{refused}")
    for row in records:
        click.echo(f"\n{row['repository']} {row['connector']}  {row['unit']}  {row['key']}")
        for reason in row["reasons"]:
            click.echo(f"  - {reason}")
        if raw:
            click.echo(row["raw"])
    click.echo(f"\n{len(records)} records in quarantine")


_VERDICT_KEYS = ("passed", "broken", "rows", "accepted", "reason", "at", "run_id", "data_version", "results")


# Reading


def _filter_options(command: _Command) -> _Command:
    for option in (
        click.option("--repository", "repositories", multiple=True, help="Only of this repository; repeatable."),
        click.option("--domain", "domains", multiple=True, help="Only of this domain (code, bug, ...); repeatable."),
        click.option("--kind", "kinds", multiple=True, help="Only of this kind (function, pull_request, ...)."),
        click.option("--tag", "tags_any", multiple=True, help="With any of these tags; repeatable."),
        click.option("--all-tags", "tags_all", multiple=True, help="With all of these tags; repeatable."),
        click.option("--path", "path_prefix", default="", help="Below this path."),
        click.option("--language", "languages", multiple=True, help="In this language; repeatable."),
        click.option("--source", "source_types", multiple=True, help="From this connector; repeatable."),
        click.option("--updated-from", help="Indexed at or after this ISO time."),
        click.option("--updated-to", help="Indexed before this ISO time."),
    ):
        command = option(command)
    return command


def _filter(options: dict[str, Any]) -> Filter:
    from pydantic import ValidationError

    from context_os.stores import Filter

    try:
        return Filter(**{key: value for key, value in options.items() if value})
    except ValidationError as error:
        wrong = "; ".join(f"--{each['loc'][0]}: {each['msg']}".replace("_", "-") for each in error.errors())
        raise ConfigurationError(wrong) from None


@cli.command()
@click.argument("query")
@click.option("--mode", type=click.Choice(["keyword", "vector", "hybrid"]), help="Default: what works best here.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@_filter_options
@store_option
@tenant_option
@clearance_option
@as_json_option
def search(
    query: str,
    mode: str | None,
    limit: int,
    store: str | None,
    tenant: str | None,
    clearance: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find items by words, by vector, or by both."""
    from context_os.app import open_app, summary
    from context_os.stores import Mode

    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        hits = app.search(query, Mode(mode) if mode else None, limit, _filter(filters))
    if as_json:
        print_json({"items": [summary(hit.item, hit.score) for hit in hits]})
        return
    for hit in hits:
        source = hit.item.source
        lines = f":{source.start_line}-{source.end_line}" if source.start_line else ""
        click.echo(f"{hit.score:8.3f}  {hit.item.kind:<14} {hit.item.metadata.title}")
        click.echo(f"          {source.path or source.repository}{lines}  {hit.item.id}")
    if not hits:
        click.echo("nothing found", err=True)


@cli.command()
@click.argument("id")
@store_option
@tenant_option
@clearance_option
@as_json_option
def show(id: str, store: str | None, tenant: str | None, clearance: str | None, as_json: bool) -> None:
    """One item, with its lineage back to the commit it came from and the run that put it there."""
    from context_os.app import open_app

    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        item = app.show(id)
    if as_json:
        print_json(item.model_dump(mode="json", by_alias=True))
    else:
        _show_item(item)


def _show_item(item: KnowledgeItem) -> None:
    source, metadata = item.source, item.metadata
    lines = f":{source.start_line}-{source.end_line}" if source.start_line else ""
    click.secho(f"{item.kind} {metadata.title}", bold=True)
    click.echo(f"  {source.repository}  {source.path}{lines}  at {source.revision[:12] or 'no revision'}")
    click.echo(
        f"  {metadata.confidentiality}, version {metadata.version}, expires {item.expires_at:%Y-%m-%d}, {item.id}"
    )
    if metadata.tags:
        click.echo(f"  tags: {', '.join(metadata.tags)}")
    for record in metadata.lineage:
        run = f" by {record.asset_key} in run {record.run_id}" if record.run_id else ""
        click.echo(f"  {record.timestamp:%Y-%m-%d %H:%M:%S} {record.action}{run} from {record.source_revision[:12]}")
    for relation in item.relations[:30]:
        click.echo(f"  {relation.type} {relation.target} ({relation.confidence:.2f})")
    if len(item.relations) > 30:
        click.echo(f"  ... and {len(item.relations) - 30} more relations")
    click.echo()
    click.echo(item.payload.text)


def _about(command: _Command) -> _Command:
    """The options that say what a pack or a list of files is for."""
    for option in (
        click.option("--repository", help="Which repository; needed when there are several."),
        click.option("--question", default="", help="A question, an issue's text, a stack trace."),
        click.option("--range", "revisions", help="A..B, A...B or one commit of the repository."),
        click.option("--diff", type=click.File("r", encoding="utf-8", errors="replace"), help="A unified diff; or -."),
    ):
        command = option(command)
    return command


def _check_about(diff: Any, revisions: str | None, question: str) -> None:
    if diff is not None and revisions:
        raise click.UsageError("give --diff or --range, not both")
    if diff is None and not revisions and not question:
        raise click.UsageError("say what it is for: --diff FILE, --range A..B or --question TEXT")


def _about_of(app: App, diff: Any, revisions: str | None, repository: str | None) -> tuple[str, str | None]:
    """The diff's text and the repository."""
    names = [each.name for each in app.repositories()]
    if repository is None and len(names) == 1:
        repository = names[0]
    if repository is not None:
        app.location(repository)
    if revisions and repository is None:
        raise click.UsageError(f"--range needs --repository; there are: {', '.join(names) or 'none yet'}")
    if revisions and repository:
        return app.range_diff(repository, revisions), repository
    return diff.read() if diff else "", repository


@cli.command()
@_about
@click.option("--max-tokens", type=click.IntRange(1), default=8_000, show_default=True, help="The hard budget.")
@click.option("--explain", is_flag=True, help="Trace every line of the prompt back to an item.")
@store_option
@tenant_option
@clearance_option
@as_json_option
def pack(
    diff: Any,
    revisions: str | None,
    question: str,
    repository: str | None,
    max_tokens: int,
    explain: bool,
    store: str | None,
    tenant: str | None,
    clearance: str | None,
    as_json: bool,
) -> None:
    """Build a context pack: what a reviewer should know about a change or a question, inside a token budget."""
    from context_os.app import open_app

    _check_about(diff, revisions, question)
    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        text, repository = _about_of(app, diff, revisions, repository)
        commits = app.range_commits(repository, revisions) if revisions and repository else None
        built = app.pack(question, text, repository, max_tokens, commits)
    if built.prompt and not built.id and chosen.audit.keep_packs != timedelta(0):
        click.echo(f"context-os: this pack could not be kept for audits in {chosen.home / 'packs.db'}", err=True)
    if as_json:
        print_json(built.model_dump(mode="json", exclude=set() if explain else {"explain"}))
    elif explain:
        _show_explained(built)
    else:
        _show_pack(built)


@cli.command()
@_about
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@store_option
@tenant_option
@clearance_option
@as_json_option
def files(
    diff: Any,
    revisions: str | None,
    question: str,
    repository: str | None,
    limit: int,
    store: str | None,
    tenant: str | None,
    clearance: str | None,
    as_json: bool,
) -> None:
    """List the files that a question is about, or that a change may have forgotten, the best first."""
    from context_os.app import open_app

    _check_about(diff, revisions, question)
    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        text, repository = _about_of(app, diff, revisions, repository)
        found = app.files(app.request(question, text, repository), limit)
    if as_json:
        print_json({"files": [hit._asdict() for hit in found]})
        return
    for hit in found:
        click.echo(f"{hit.score:8.3f}  {hit.path}")
        click.secho(f"{'':>10}{hit.reason}", dim=True)


def _show_pack(built: ContextPack) -> None:
    click.secho(f"{built.budget.used_tokens:,} of {built.budget.max_tokens:,} tokens; {built.retrieval}", bold=True)
    if built.id:
        click.echo(f"pack {built.id} (`context-os audit pack {built.id[:12]}` traces it)")
    for layer in ("core", "catalog", "active"):
        entries = getattr(built.layers, layer)
        click.secho(f"\n{layer} ({len(entries)} entries, {sum(entry.tokens for entry in entries):,} tokens)", bold=True)
        for entry in entries:
            lines = f":{entry.start_line}-{entry.end_line}" if entry.start_line else ""
            stale = "  STALE" if entry.freshness and entry.freshness.state == "stale" else ""
            place = f"{entry.path}{lines}{stale}"
            click.echo(f"{entry.tokens:>7,}  {entry.score:5.2f}  {entry.kind} {entry.title}  {place}")
            if layer != "catalog":
                click.secho(f"{'':>16}{entry.selector}: {entry.reason}", dim=True)
    click.secho(f"\nleft out ({len(built.omitted)})", bold=True)
    for omission in built.omitted[:5]:
        click.echo(f"  {omission.title}: {omission.reason}")
    if len(built.omitted) > 5:
        click.echo(f"  ... and {len(built.omitted) - 5} more; --json lists them all, and has the prompt")


def _show_explained(built: ContextPack) -> None:
    entries = {entry.id: entry for layer in ("core", "catalog", "active") for entry in getattr(built.layers, layer)}
    titles = {omission.id: omission.title for omission in built.omitted}
    titles |= {id: entry.title for id, entry in entries.items()}
    prompt = built.prompt.split("\n")
    for block in built.explain:
        lines = f"{block.first_line}-{block.last_line}"
        click.secho(f"{lines:>11}  {block.rendering:<9} {block.tokens:>6,} tokens", bold=True, nl=False)
        if block.id is None:
            click.echo(f"  {prompt[block.first_line - 1][:80]}")
            continue
        entry = entries[block.id]
        place = f"{entry.path}:{entry.start_line}-{entry.end_line}" if entry.start_line else entry.path
        click.echo(f"  {entry.kind} {entry.title}  {place}  [{block.id}]")
        worth = f"worth {block.value:.3f} of a score of {block.score:.3f}"
        instead = f"; without it {titles[block.displaced]} would stand here" if block.displaced else ""
        click.secho(f"{'':>13}{worth}{instead}", dim=True)
        click.secho(f"{'':>13}{block.selector}: {'; '.join(block.reasons)}", dim=True)
        for record in block.lineage[-1:]:
            run = f" in run {record.run_id}" if record.run_id else ""
            click.secho(f"{'':>13}read from {block.revision or 'no commit'}, {record.action}{run}", dim=True)


# The house


@cli.group("config")
def config_group() -> None:
    """Settings."""


@config_group.command("show")
@as_json_option
def config_show(as_json: bool) -> None:
    """Every setting with its value and where it came from; secrets are masked."""
    from context_os.settings import explain

    chosen = load_settings()
    rows = explain(chosen)
    if as_json:
        print_json({"file": str(chosen.file) if chosen.file else None, "values": rows})
        return
    say_store(chosen)
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['value']!s:<40}  {row['source']}")


@cli.command()
@store_option
@as_json_option
def smoke(store: str | None, as_json: bool) -> None:
    """Write, read back, filter, search all three ways and delete, in a tenant of its own, on the configured store."""
    from context_os.smoke import run

    chosen = load_settings(store={"kind": store})
    say_store(chosen)
    with chosen.open_store() as opened:
        steps = run(opened)
    ok = all(step["ok"] for step in steps)
    if as_json:
        print_json({"ok": ok, "store": chosen.store_kind, "steps": steps})
    else:
        for step in steps:
            click.echo(f"{'ok    ' if step['ok'] else 'FAILED'} {step['step']:<16} {step['detail']}")
    if not ok:
        click.echo("context-os: the store does not do what it must; see the steps above", err=True)
        sys.exit(1)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="It has no login: keep it on this machine.")
def ui(port: int, host: str) -> None:
    """The Dagster UI: add repositories, start ingestion, watch it."""
    from context_os.defs.run import instance_folder, shipped

    chosen = load_settings()
    say_store(chosen)
    home = instance_folder(chosen)
    click.echo(f"http://{host}:{port} (state in {home})", err=True)
    environment = {**os.environ, "DAGSTER_HOME": str(home), "CONTEXT_OS_HOME": str(chosen.home)}
    arguments = ["dagster", "dev", "-w", str(shipped("workspace.yaml")), "-h", host, "-p", str(port)]
    # A script's background job ignores SIGINT, and Dagster would then ignore SIGTERM too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not a child but this very process: stopping it stops the UI, whoever sends the signal.
    os.execve(sys.executable, [sys.executable, "-m", *arguments], environment)


if __name__ == "__main__":
    main()
