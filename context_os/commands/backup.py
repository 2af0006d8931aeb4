"""Backups: create, list, verify, restore, drill, prune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import (
    as_json_option,
    load_settings,
    print_json,
    say_store,
    store_option,
    tell,
    tenant_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from context_os.backup import Backups, Summary
    from context_os.settings import Settings
    from context_os.stores import NativeBackup

_name_argument = click.argument("name", default="newest")


def _secret_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A secret never stands among the arguments, where every user of the machine could read it."""
    file = click.option(
        "--passphrase-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file whose first line is the passphrase; default: CONTEXT_OS_BACKUP__PASSPHRASE, if set.",
    )
    ask = click.option("--ask-passphrase", is_flag=True, help="Ask for the passphrase.")
    return file(ask(command))


@click.group("backup")
def command() -> None:
    """Everything of a tenant, in a folder that any store restores."""


def _backups(chosen: Settings, passphrase_file: Path | None, ask: bool, *, confirm: bool = False) -> Backups:
    from pydantic import SecretStr

    from context_os.backup import Backups

    given = None
    if passphrase_file is not None:
        lines = passphrase_file.read_text("utf-8").splitlines()
        given = SecretStr(lines[0] if lines else "")
    elif ask:
        given = SecretStr(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
    return Backups.of(chosen, tell, given)


@command.command("create")
@click.option("--native", is_flag=True, help="By Weaviate's own means, inside the server: all tenants, and only there.")
@click.option("--incremental", is_flag=True, help="With --native: only what differs from the last native one.")
@_secret_options
@store_option
@tenant_option
@as_json_option
def backup_create(
    native: bool,
    incremental: bool,
    passphrase_file: Path | None,
    ask_passphrase: bool,
    store: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Write a backup of the tenant: items, vectors, ledger, repositories, statistics."""
    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    if native:
        _create_native(chosen, incremental, as_json)
        return
    if incremental:
        raise click.UsageError("--incremental goes with --native: a portable backup is always whole")
    backups = _backups(chosen, passphrase_file, ask_passphrase, confirm=True)
    with chosen.open_store() as opened:
        made = backups.create(opened, chosen.tenant)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        click.echo(f"{made.path}: {made.items:,} items, {made.vectors:,} vectors, {_size(made.bytes)}")


def _create_native(chosen: Settings, incremental: bool, as_json: bool) -> None:
    from context_os.backup import create_native

    with chosen.open_store() as opened:
        made = create_native(opened, incremental=incremental)
    if as_json:
        print_json(_native(made))
    else:
        base = f", on top of {made.base}" if made.base else ""
        click.echo(f"{made.name}: {made.status}{base}; it lies in the server's own backup folder")


def _native(each: NativeBackup) -> dict[str, Any]:
    created = each.created.isoformat() if each.created else None
    return {"name": each.name, "status": each.status, "base": each.base, "created": created, "bytes": each.bytes}


@command.command("list")
@store_option
@as_json_option
def backup_list(store: str | None, as_json: bool) -> None:
    """What there is, the newest first: portable ones in the folder, native ones on the server."""
    from context_os.errors import StoreError

    chosen = load_settings(store={"kind": store})
    found = _backups(chosen, None, ask=False).all()
    native: list[NativeBackup] = []
    try:
        with chosen.open_store() as opened:
            native = opened.native_backups()
    except StoreError as error:
        click.echo(f"the store cannot be asked for native backups: {error}", err=True)
    if as_json:
        rows = [each.model_dump(mode="json") for each in found]
        print_json({"folder": str(chosen.backup_folder), "backups": rows, "native": [_native(each) for each in native]})
        return
    click.echo(f"in {chosen.backup_folder}: {len(found)}")
    for each in found:
        click.echo(f"  {_line(each)}")
    for one in native:
        click.echo(f"  {one.name}  native, {one.status}{f', on top of {one.base}' if one.base else ''}")


def _line(each: Summary) -> str:
    if each.problem:
        return f"{each.name}  {each.problem}"
    held = "encrypted" if each.items is None else f"{each.items:,} items, {each.vectors:,} vectors of {each.tenant}"
    return f"{each.name}  {_size(each.bytes)}  {held}"


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


@command.command("verify")
@_name_argument
@_secret_options
@as_json_option
def backup_verify(name: str, passphrase_file: Path | None, ask_passphrase: bool, as_json: bool) -> None:
    """Look at every byte of a backup (default: the newest) and list everything that is wrong. A problem exits with 3.

    Of an encrypted one without its secret, the files are verified and the content is not.
    """
    chosen = load_settings()
    backup = _backups(chosen, passphrase_file, ask_passphrase).find(name)
    readable = backup.readable
    problems = backup.problems() if readable else backup.damage()
    if as_json:
        print_json({"name": backup.folder.name, "content_verified": readable, "problems": problems})
    elif not problems:
        click.echo(
            f"{backup.folder.name}: whole{'' if readable else '; its content was not looked at without its secret'}"
        )
    for problem in problems:
        click.echo(f"context-os: {problem}", err=True)
    sys.exit(3 if problems else 0)


@command.command("restore")
@_name_argument
@click.option("--replace", is_flag=True, help="In place of all that the tenant has now.")
@_secret_options
@store_option
@tenant_option
@as_json_option
def backup_restore(
    name: str,
    replace: bool,
    passphrase_file: Path | None,
    ask_passphrase: bool,
    store: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Bring a backup (default: the newest) back into the store, which may be of another kind.

    Everything is verified first; killed at any moment, the old state or the new one is there. What was erased since the
    backup was made does not come back.
    """
    from context_os.ledger import Ledger
    from context_os.suppression import Erasures

    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    backups = _backups(chosen, passphrase_file, ask_passphrase)
    with chosen.open_store() as opened:
        skip = Erasures(Ledger(chosen.make_home() / "ledger.db")).predicate(chosen.tenant)
        done = backups.restore(name, opened, chosen.tenant, replace=replace, skip=skip)
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo(
            f"{done.name}: {done.items:,} items and {done.vectors:,} vectors of {done.tenant} are in {done.store}; "
            f"{done.seconds:.1f} s"
        )


@command.command("drill")
@_name_argument
@_secret_options
@store_option
@as_json_option
def backup_drill(
    name: str, passphrase_file: Path | None, ask_passphrase: bool, store: str | None, as_json: bool
) -> None:
    """Restore a backup (default: the newest) into a scratch store, compare item for item, and drop it.

    A difference exits with 3. Nothing that is in use is touched.
    """
    chosen = load_settings(store={"kind": store})
    say_store(chosen)
    backups = _backups(chosen, passphrase_file, ask_passphrase)
    with chosen.open_store() as opened:
        done = backups.drill(name, opened)
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo(
            f"{done.name}: {done.items:,} items and {done.vectors:,} vectors restored in {done.restore_seconds:.1f} s, "
            f"{done.different or 'no'} differences"
        )
    for difference in done.differences:
        click.echo(f"context-os: {difference}", err=True)
    sys.exit(3 if done.different else 0)


@command.command("prune")
@click.option("--keep-daily", type=click.IntRange(0), help="Days that keep their last backup; default: as configured.")
@click.option("--keep-weekly", type=click.IntRange(0), help="Weeks that do; default: as configured.")
@as_json_option
def backup_prune(keep_daily: int | None, keep_weekly: int | None, as_json: bool) -> None:
    """Delete old portable backups. The newest that is whole always stays."""
    chosen = load_settings(backup={"keep_daily": keep_daily, "keep_weekly": keep_weekly})
    kept, gone = _backups(chosen, None, ask=False).prune(chosen.backup.keep_daily, chosen.backup.keep_weekly)
    if as_json:
        print_json({"kept": [each.name for each in kept], "deleted": [each.name for each in gone]})
    else:
        click.echo(f"{len(kept)} kept, {len(gone)} deleted{''.join(f'{chr(10)}  {each.name}' for each in gone)}")
