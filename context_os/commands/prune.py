"""Delete what expired."""

from __future__ import annotations

import click

from context_os.commands import as_json_option, load_settings, print_json, say_store, store_option


@click.command("prune")
@store_option
@as_json_option
def command(store: str | None, as_json: bool) -> None:
    """Delete expired items of every tenant, with receipts, and history that is past its retention.

    The schedule `nightly_prune` does the same. Receipts are in the home's folder `receipts`.
    """
    from context_os.defs import run

    chosen = load_settings(store={"kind": store})
    say_store(chosen)
    done = run.prune(chosen)
    if as_json:
        print_json(done)
        return
    for each in done["tenants"]:
        swept = f", {each['gone']:,} had gone by themselves" if each["gone"] else ""
        click.echo(f"{each['tenant']}: {each['deleted']:,} expired items deleted{swept}")
    click.echo(f"{done['runs']:,} old runs and {done['alerts']:,} old alerts forgotten")
