"""Where what a pack says comes from, what became of a commit, and the journal of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from context_os.commands import (
    as_json_option,
    clearance_option,
    load_settings,
    print_json,
    say_store,
    store_option,
    tenant_option,
)
from context_os.errors import ConfigurationError

if TYPE_CHECKING:
    from context_os.audit import Audit
    from context_os.graph import Node

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("audit")
def command() -> None:
    """From a sentence of a pack back to the commit that holds it, and from a commit to what was made of it."""


def _shown(command: _Command) -> _Command:
    for option in (
        store_option,
        tenant_option,
        clearance_option,
        as_json_option,
        click.option(
            "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with a graph."
        ),
        click.option("--dot", is_flag=True, help="Print Graphviz's language instead of text."),
    ):
        command = option(command)
    return command


@command.command("pack")
@click.argument("pack")
@click.option("--sentence", help="Only what says this; line breaks and spaces do not matter.")
@click.option(
    "--line", "lines", type=click.IntRange(1), multiple=True, help="Only this line of the prompt; repeatable."
)
@_shown
def audit_pack(pack: str, sentence: str | None, lines: tuple[int, ...], **shown: Any) -> None:
    """The items of PACK (an id, the beginning of one, or a file) back to the runs and commits they are from.

    A commit is opened and compared: exits with 3 where one does not hold what the pack says.
    """

    def walk(audit: Audit) -> Node:
        found = audit.find_pack(pack)
        chosen = [*lines, *(audit.lines_with(found, sentence) if sentence else ())]
        return audit.pack(found, chosen)

    _audit(walk, f"Audit of pack {pack}", **shown)


@command.command("item")
@click.argument("id")
@_shown
def audit_item(id: str, **shown: Any) -> None:
    """One item: its history, what it was derived from and what was derived of it, the packs that carried it."""
    _audit(lambda audit: audit.item(id), f"Audit of item {id}", **shown)


@command.command("commit")
@click.argument("repository")
@click.argument("revision")
@_shown
def audit_commit(repository: str, revision: str, **shown: Any) -> None:
    """What was made of a commit: items, what was derived of them, and the packs that carried them."""
    _audit(lambda audit: audit.commit(repository, revision), f"Audit of {revision} in {repository}", **shown)


def _audit(
    walk: Callable[[Audit], Node],
    title: str,
    *,
    store: str | None,
    tenant: str | None,
    clearance: str | None,
    as_json: bool,
    page: Path | None,
    dot: bool,
) -> None:
    from context_os.app import open_app
    from context_os.audit import Audit
    from context_os.graph import as_dot, as_page, as_text

    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        found = walk(Audit(app))
    if page is not None:
        _write(page, as_page(found, title))
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif dot:
        click.echo(as_dot(found), nl=False)
    elif page is None:
        click.echo("\n".join(as_text(found)))
    sys.exit(3 if any(node.state == "absent" for node in _nodes(found)) else 0)


def _nodes(root: Node) -> list[Node]:
    return [root, *(node for child in root.children for node in _nodes(child))]


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.writing")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"written to {file}", err=True)


@command.command("export")
@click.option("--since", help="Only runs from this ISO time on, for example 2026-01-31T12:00:00Z.")
@click.option("--openlineage", is_flag=True, help="As OpenLineage RunEvents instead of the journal's own lines.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Written beside, then renamed."
)
@tenant_option
@as_json_option
def audit_export(since: str | None, openlineage: bool, out: Path, tenant: str | None, as_json: bool) -> None:
    """What every connector's run did, one JSON object a line. Needs neither Dagster nor a store."""
    import json

    from context_os.lineage import Journal, export, run_events

    chosen = load_settings(tenant=tenant)
    journal, start = Journal(chosen.home), _time(since)
    if openlineage:
        lines = [
            json.dumps(event, ensure_ascii=False) + "\n" for event in run_events(journal.lines(), chosen.tenant, start)
        ]
    else:
        lines = list(export(journal.lines(), chosen.tenant, start))
    _write(out, "".join(lines))
    if as_json:
        print_json({"file": str(out), "lines": len(lines), "format": "openlineage" if openlineage else "journal"})


def _time(text: str | None) -> Any:
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise click.UsageError(f"--since {text!r} is no ISO time, such as 2026-01-31T12:00:00Z") from None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


@command.command("verify")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--head", default="", help="A hash noted earlier, whose line must still be there.")
@as_json_option
def audit_verify(files: tuple[Path, ...], head: str, as_json: bool) -> None:
    """Check the chain of the journal, or of exported FILES in their order. A broken chain exits with 3."""
    from context_os.lineage import Journal, verify

    found = verify(list(files) or Journal(load_settings().home).files(), head, whole=not files)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        erased = f", {found.erased} of them erased" if found.erased else ""
        click.echo(f"lines {found.first} to {found.last}: {found.lines:,} read{erased}; the last hash is {found.head}")
    for problem in found.problems:
        click.echo(f"context-os: {problem}", err=True)
    sys.exit(3 if found.problems else 0)
