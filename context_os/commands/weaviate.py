"""A local Weaviate server: start, status, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from context_os.commands import as_json_option, load_settings, print_json

if TYPE_CHECKING:
    from context_os.weaviate_server import Status, WeaviateServer


@click.group("weaviate")
def command() -> None:
    """A real Weaviate server on this machine, without Docker."""


def _server(port: int | None = None, grpc_port: int | None = None) -> WeaviateServer:
    from context_os.weaviate_server import WeaviateServer

    return WeaviateServer(load_settings().make_home(), port=port, grpc_port=grpc_port)


@command.command("start")
@click.option("--port", type=click.IntRange(1, 65535), help="HTTP port; default: 8089, or a free one.")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="gRPC port; default: 50089, or a free one.")
@as_json_option
def weaviate_start(port: int | None, grpc_port: int | None, as_json: bool) -> None:
    """Start it; install it first where it is missing. Harmless when it runs already."""
    _show_status(_server(port, grpc_port).start(lambda message: click.echo(message, err=True)), as_json)


@command.command("status")
@as_json_option
def weaviate_status(as_json: bool) -> None:
    """Whether it runs, where, and where its key is."""
    _show_status(_server().status(), as_json)


@command.command("stop")
@as_json_option
def weaviate_stop(as_json: bool) -> None:
    """Stop it. Its data stays."""
    _show_status(_server().stop(), as_json)


def _show_status(status: Status, as_json: bool) -> None:
    values = status.model_dump(mode="json")
    if as_json:
        print_json(values)
    else:
        for name, value in values.items():
            click.echo(f"{name:<10} {value}")
