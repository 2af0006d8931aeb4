"""The command line's operations: one file a command or a group of commands, named after it, its click command called
``command``. What they share is here. Nothing heavy is imported at the top of a file: help has to come at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from context_os.settings import Settings

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
store_option = click.option(
    "--store", type=click.Choice(["lab", "weaviate"]), help="Which store; default: as configured."
)
tenant_option = click.option("--tenant", help="Whose knowledge; default: as configured.")
clearance_option = click.option(
    "--clearance",
    type=click.Choice(["public", "internal", "restricted"]),
    help="Read as somebody with this clearance; default: as configured.",
)


def load_settings(**arguments: Any) -> Settings:
    from context_os import settings

    return settings.load(arguments)


def say_store(chosen: Settings) -> None:
    """Which store a command works on, and that nobody chose it when nobody did; also that an erasure waits to be
    finished."""
    for plan in (chosen.home / "erasures").glob("*.json"):
        click.echo(f"context-os: the erasure {plan.stem} is unfinished; run `context-os erase resume`", err=True)
    if chosen.store_kind == "lab":
        why = "nothing is configured, so the laboratory store is used" if chosen.store_is_default else "as chosen"
        click.echo(f"store: lab at {chosen.home / 'lab.db'} ({why})", err=True)
    else:
        click.echo(f"store: {chosen.store_kind} at {chosen.store.url or 'the local server'}", err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2))


def tell(message: str) -> None:
    click.echo(f"  {message}", err=True)
