"""The HTTP server."""

from __future__ import annotations

import logging
import os

import click

from context_os.commands import as_json_option, load_settings, print_json, say_store, store_option
from context_os.errors import ConfigurationError


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others can reach it only once there is a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0 takes a free one.")
@store_option
@as_json_option
def command(host: str, port: int, store: str | None, as_json: bool) -> None:
    """Serve search, packs, lineage, webhooks and the status page over HTTP, until it is told to stop."""
    try:
        from context_os import server
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the server needs {error.name}: pip install 'context-os[server]'") from None
    chosen = load_settings(store={"kind": store})
    say_store(chosen)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    def announce(url: str) -> None:
        if as_json:
            print_json({"url": url, "pid": os.getpid()})
        else:
            click.echo(url)

    with chosen.open_store() as opened:
        server.serve(chosen, opened, host, port, announce)
