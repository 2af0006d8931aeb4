"""Bring over what a laboratory left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from context_os.commands import as_json_option, load_settings, print_json, say_store, store_option, tell, tenant_option

if TYPE_CHECKING:
    from context_os.migration import Migration

_SHOWN = 50


@click.command("migrate")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--into-repository", required=True, metavar="NAME", help="Whose knowledge it becomes, by its name.")
@click.option("--dry-run", is_flag=True, help="Say exactly what would happen; touch neither store nor home.")
@store_option
@tenant_option
@as_json_option
def command(
    sources: tuple[Path, ...],
    into_repository: str,
    dry_run: bool,
    store: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Migrate a laboratory: SOURCES are its folder, or single files (store.json, rules, events, snapshots, skills,
    playbooks, goldsets).

    Ids, counters, lineage and times are kept. What is refused is listed with its reasons and stays in quarantine; the
    rest goes on. The sources are only read, and migrating again changes nothing.
    """
    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    if dry_run:
        from context_os.migration import rehearse

        done = rehearse(chosen, sources, into_repository, tell)
    else:
        from context_os.defs import run

        done = run.migrate(chosen, sources, into_repository, verbose=not as_json)
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        _show(done)


def _show(done: Migration) -> None:
    click.echo(f"{len(done.files):,} files of a laboratory, {len(done.skipped):,} others passed over")
    columns = ("found", "added", "changed", "unchanged", "same", "expired", "refused", "left_out")
    click.echo(f"{'':<20}" + "".join(f"{name.replace('_', ' '):>11}" for name in columns))
    for kind, tally in done.kinds.items():
        click.echo(f"{kind:<20}" + "".join(f"{getattr(tally, name):>11,}" for name in columns))
    for refused in done.refused[:_SHOWN]:
        click.echo(f"\nrefused: {refused.place} of {refused.file}")
        for reason in refused.reasons:
            click.echo(f"  - {reason}")
    if len(done.refused) > _SHOWN:
        click.echo(f"\n... and {len(done.refused) - _SHOWN:,} more refused; --json lists them all")
    for gone in done.expired[:_SHOWN]:
        click.echo(f"expired on {gone.at}: {gone.id} ({gone.place} of {gone.file})")
    for note in done.notes[:_SHOWN]:
        click.echo(f"note: {note}")
    where = f"into {done.repository} of tenant {done.tenant} in {done.store}"
    if done.dry_run:
        click.echo(f"\ndry run: {done.written:,} entries would be written {where}; nothing was touched")
        return
    assert done.reconcile is not None
    click.echo(
        f"\n{done.written:,} entries written {where}, {done.votes:,} of them votes; the ledger expects "
        f"{done.reconcile.ledger:,} items of this laboratory and the store holds {done.reconcile.store:,}; "
        f"{done.seconds:.1f} s, run {done.run_id}"
    )
