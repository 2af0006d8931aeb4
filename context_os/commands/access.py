"""Access keys: make, list, revoke, rotate."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import as_json_option, load_settings, print_json
from context_os.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from context_os.security import AccessKeys, Key


@click.group("access")
def command() -> None:
    """Who may ask the server: keys with a tenant, a clearance and a role."""


def _keys() -> AccessKeys:
    from context_os.security import AccessKeys

    return AccessKeys(load_settings().make_home())


@command.command("create")
@click.option("--label", required=True, help="Who holds it: a person, a pipeline.")
@click.option("--role", type=click.Choice(["viewer", "editor", "admin"]), default="viewer", show_default=True)
@click.option("--tenant", help="Whose knowledge; default: as configured.")
@click.option(
    "--clearance",
    type=click.Choice(["public", "internal", "restricted"]),
    default="internal",
    show_default=True,
    help="What it may read at most.",
)
@click.option("--expires", metavar="DURATION", help="Such as 90d or 12h; default: never.")
@as_json_option
def access_create(
    label: str, role: str, tenant: str | None, clearance: str, expires: str | None, as_json: bool
) -> None:
    """Make a key and show it, this once: only its hash is kept."""
    from context_os.model import Confidentiality, utcnow
    from context_os.security import Role

    life = _duration(expires)
    chosen = load_settings(tenant=tenant)
    key, token = _keys().create(
        chosen.tenant, Confidentiality(clearance), Role(role), label, None if life is None else utcnow() + life
    )
    _show_new(key, token, as_json)


@command.command("list")
@click.option("--tenant", help="Only this tenant's.")
@as_json_option
def access_list(tenant: str | None, as_json: bool) -> None:
    """All keys, without their secrets."""
    found = [_told(key) for key in _keys().list(tenant)]
    if as_json:
        print_json({"keys": found})
        return
    for key in found:
        used = key["last_used_at"] or "never"
        click.echo(
            f"{key['id']}  {key['state']:<8} {key['role']:<7} {key['tenant']} {key['clearance']}"
            f"  {key['label']}  used: {used}  expires: {key['expires_at'] or 'never'}"
        )
    if not found:
        click.echo("no key yet; `context-os access create --label NAME` makes one", err=True)


@command.command("revoke")
@click.argument("id")
@as_json_option
def access_revoke(id: str, as_json: bool) -> None:
    """End a key, at once and for good."""
    key = _keys().revoke(id)
    if as_json:
        print_json(_told(key))
    else:
        click.echo(f"{key.id} ({key.label}) is revoked")


@command.command("rotate")
@click.argument("id")
@as_json_option
def access_rotate(id: str, as_json: bool) -> None:
    """A new key for the same holder. The old one ends at once."""
    _show_new(*_keys().rotate(id), as_json)


def _duration(text: str | None) -> timedelta | None:
    from context_os.settings import parse_duration

    life = None if text is None else parse_duration(text)
    if life is not None and (not isinstance(life, timedelta) or life <= timedelta(0)):
        raise ConfigurationError(f"--expires {text!r} is no duration; write 90d, 12h or never")
    return life


def _told(key: Key) -> dict[str, Any]:
    from context_os.model import utcnow

    return {**key.model_dump(mode="json"), "state": key.state(utcnow())}


def _show_new(key: Key, token: SecretStr, as_json: bool) -> None:
    if as_json:
        print_json({**_told(key), "key": token.get_secret_value()})
        return
    click.echo(token.get_secret_value())
    click.echo(f"{key.id}: a {key.role} of {key.tenant} with {key.clearance} clearance, for {key.label}", err=True)
    click.echo("Keep it now: it is not shown again, and only its hash is stored.", err=True)
