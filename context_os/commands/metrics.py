"""What this home's processes did and what it holds: for Prometheus, for a person, and the dashboards to look at it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import as_json_option, load_settings, print_json
from context_os.errors import ConfigurationError, ContextOSError

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler


@click.group("metrics")
def command() -> None:
    """Metrics of everything that used this home, in every process."""


@command.command("show")
@as_json_option
def metrics_show(as_json: bool) -> None:
    """Print them as Prometheus reads them."""
    from context_os import telemetry

    load_settings().start_telemetry()
    if as_json:
        print_json({"samples": telemetry.samples()})
    else:
        click.echo(telemetry.exposition()[0].decode(), nl=False)


@command.command("serve")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="It has no login, and names repositories.")
@as_json_option
def metrics_serve(port: int, host: str, as_json: bool) -> None:
    """Serve them at /metrics until stopped."""
    from http.server import ThreadingHTTPServer

    load_settings().start_telemetry()
    try:
        server = ThreadingHTTPServer((host, port), _endpoint())
    except OSError as error:
        raise ConfigurationError(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port"
        ) from error
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{server.server_port}/metrics"
    if as_json:
        print_json({"url": url})
    click.echo(url, err=True)
    # Whoever started us in the background may have had us ignore what is to stop us.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with server:
        server.serve_forever()


@command.command("write")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: telemetry.textfile, or the home."
)
@as_json_option
def metrics_write(out: Path | None, as_json: bool) -> None:
    """Write them for node_exporter's textfile collector: the whole file or nothing."""
    from context_os import telemetry

    chosen = load_settings()
    chosen.start_telemetry()
    path = out or chosen.telemetry.textfile or chosen.make_home() / "metrics" / "context_os.prom"
    try:
        telemetry.write_textfile(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    if as_json:
        print_json({"file": str(path)})
    else:
        click.echo(str(path))


@command.command("dashboards")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Made where it is not there."
)
@as_json_option
def metrics_dashboards(out: Path, as_json: bool) -> None:
    """Write the Grafana dashboards and the Prometheus rules into a folder, to be provisioned from there."""
    import shutil

    data = Path(__file__).parent.parent / "data"
    written = []
    for file in sorted([*data.glob("dashboards/*.json"), *data.glob("rules/*.yml")]):
        target = out / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        written.append(str(shutil.copyfile(file, target)))
    if as_json:
        print_json({"files": written})
    else:
        click.echo("\n".join(written))


def _endpoint() -> type[BaseHTTPRequestHandler]:
    from http.server import BaseHTTPRequestHandler

    from context_os import telemetry

    class Endpoint(BaseHTTPRequestHandler):
        """GET /metrics and nothing else."""

        server_version = "context-os"

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._answer(404, b"metrics are at /metrics\n", "text/plain; charset=utf-8")
                return
            try:
                body, kind = telemetry.exposition()
            except ContextOSError as error:
                click.echo(f"context-os: {error}", err=True)
                self._answer(503, b"the ledger cannot be read; see the log\n", "text/plain; charset=utf-8")
            else:
                self._answer(200, body, kind)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A scrape every few seconds is no news."""

    return Endpoint
