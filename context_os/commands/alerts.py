"""What is wrong, who was told, and telling them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import as_json_option, load_settings, print_json

if TYPE_CHECKING:
    from context_os.alerts import Alert, AlertBook
    from context_os.settings import Settings


@click.group("alerts")
def command() -> None:
    """What is wrong, who was told, and telling them."""


@command.command("list")
@click.option("--limit", type=click.IntRange(0, 1000), default=10, show_default=True, help="How many that are over.")
@as_json_option
def alerts_list(limit: int, as_json: bool) -> None:
    """Alerts that are open, the last ones that are over, and notices that wait for a receiver."""
    from context_os.operations import alert_book

    book = alert_book(load_settings())
    open_alerts, over = book.open(), book.over(limit)
    waiting = {name: book.waiting(name) for name in book.settings.receivers}
    if as_json:
        receivers = [
            {"receiver": name, "waiting": len(each), "problem": each[0].problem if each else ""}
            for name, each in waiting.items()
        ]
        told = {"open": [_row(each) for each in open_alerts], "over": [_row(each) for each in over]}
        print_json({**told, "receivers": receivers})
        return
    for alert in open_alerts:
        _show(alert)
    if not open_alerts:
        click.echo("no alert is open")
    for alert in over:
        click.secho(f"over  {alert.ended_at:%Y-%m-%d %H:%M}  {alert.finding.summary}", dim=True)
    for name, each in waiting.items():
        if each:
            click.echo(f"{len(each)} notices wait for {name}: {each[0].problem or 'not tried yet'}")
    if not waiting:
        click.secho("no receiver is configured: see [alerts.receivers] in docs/operations.md", dim=True)


def _row(alert: Alert) -> dict[str, Any]:
    found = alert.finding
    times = alert.model_dump(mode="json", include={"opened_at", "ended_at"})
    return {
        "id": alert.uid,
        "condition": found.condition,
        "what": found.summary,
        "where": found.where,
        "since": found.model_dump(mode="json")["since"],
        **times,
        "run_id": found.run_id,
        "first_thing_to_try": found.remedy,
    }


def _show(alert: Alert) -> None:
    found = alert.finding
    click.secho(f"OPEN  {found.condition}: {found.summary}", bold=True)
    where = ", ".join(f"{name} {value}" for name, value in found.where.items())
    run = f"; run {found.run_id}" if found.run_id else ""
    click.echo(f"      since {found.since:%Y-%m-%d %H:%M} UTC{'; ' if where else ''}{where}{run}")
    click.echo(f"      first thing to try: {found.remedy}")


@command.command("test")
@as_json_option
def alerts_test(as_json: bool) -> None:
    """Send a test notice to every receiver and say what each answered. Exits with 1 if one did not take it."""
    from context_os.errors import ConfigurationError

    chosen = load_settings()
    if not chosen.alerts.receivers:
        raise ConfigurationError("no receiver is configured: add one under [alerts.receivers], see docs/operations.md")
    answers = try_receivers(chosen)
    if as_json:
        print_json({"receivers": answers})
    else:
        for each in answers:
            click.echo(f"{each['receiver']:<20} {'took it' if each['ok'] else 'FAILED'}: {each['answer']}")
    sys.exit(0 if all(each["ok"] for each in answers) else 1)


def try_receivers(chosen: Settings) -> list[dict[str, Any]]:
    """What each receiver answered to a test notice: ``{"receiver", "kind", "ok", "answer"}``."""
    from context_os.alerts import send, trial_notice
    from context_os.errors import DeliveryError
    from context_os.model import utcnow

    answers = []
    for name, receiver in chosen.alerts.receivers.items():
        try:
            ok, answer = True, send(receiver, trial_notice(utcnow()))
        except DeliveryError as error:
            ok, answer = False, str(error)
        answers.append({"receiver": name, "kind": receiver.kind, "ok": ok, "answer": answer})
    return answers


@command.command("deliver")
@as_json_option
def alerts_deliver(as_json: bool) -> None:
    """Look at everything once and deliver what is to be told, as the sensor `operations` does every minute.

    From cron or a systemd timer it is what notices that Dagster's daemon itself is gone.
    """
    from context_os.alerts import deliver
    from context_os.model import utcnow
    from context_os.operations import alert_book

    chosen = load_settings()
    book = alert_book(chosen)
    _look(chosen, book)
    deliveries = deliver(book, utcnow())
    if as_json:
        print_json({"open": len(book.open()), "receivers": [each.model_dump() for each in deliveries]})
    else:
        click.echo(f"{len(book.open())} alerts open")
        for each in deliveries:
            problem = f": {each.problem}" if each.problem else ""
            click.echo(f"{each.receiver}: {each.sent} delivered, {each.waiting} wait{problem}")
    sys.exit(1 if any(each.problem for each in deliveries) else 0)


def _look(chosen: Settings, book: AlertBook) -> None:
    from context_os.operations import Instant, look

    now = Instant.now()
    if not (chosen.home / "dagster" / "dagster.yaml").exists():
        look(chosen, book, None, now)
        return
    import dagster as dg

    from context_os.defs.run import instance_folder
    from context_os.defs.sensors import asking

    with dg.DagsterInstance.from_config(str(instance_folder(chosen))) as instance:
        look(chosen, book, asking(instance, chosen.tenant, now), now)
