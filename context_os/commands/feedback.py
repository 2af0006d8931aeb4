"""Feedback: say what helped, see what was said, collect it from where people say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from context_os.commands import (
    as_json_option,
    clearance_option,
    load_settings,
    print_json,
    say_store,
    store_option,
    tell,
    tenant_option,
)

if TYPE_CHECKING:
    from context_os.feedback import Vote
    from context_os.tuning import Tuned
    from context_os.voting import Cast, Voting


@click.group("feedback")
def command() -> None:
    """What helped and what harmed: votes that move ranking a little, for their tenant alone."""


@contextmanager
def _voting(store: str | None, tenant: str | None, clearance: str | None = None) -> Iterator[Voting]:
    from context_os.app import open_app
    from context_os.voting import Voting

    chosen = load_settings(store={"kind": store}, tenant=tenant, clearance=clearance)
    say_store(chosen)
    with open_app(chosen) as app:
        yield Voting(app, tell)


@command.command("add")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.argument("verdict", type=click.Choice(["helpful", "harmful"]))
@click.option("--pack", default="", help="The pack in which it was read; without an ID all that it carried.")
@click.option("--comment", default="", help="Why.")
@click.option("--key", default="", help="Your name for this vote: under one key it counts once.")
@click.option("--automation", is_flag=True, help="A program says so, such as a reviewer of its own findings.")
@store_option
@tenant_option
@clearance_option
@as_json_option
def feedback_add(
    ids: tuple[str, ...],
    verdict: str,
    pack: str,
    comment: str,
    key: str,
    automation: bool,
    store: str | None,
    tenant: str | None,
    clearance: str | None,
    as_json: bool,
) -> None:
    """Vote on items (their IDs), on the output of an action (action:ID), or on all that a pack carried."""
    from context_os.feedback import Verdict
    from context_os.model import Actor
    from context_os.voting import Ballot

    ballot = Ballot(
        subjects=ids,
        verdict=Verdict(verdict),
        pack=pack,
        comment=comment,
        actor=Actor.AUTOMATION if automation else Actor.HUMAN,
    )
    with _voting(store, tenant, clearance) as voting:
        cast = voting.cast(ballot, "cli", key)
    _show_cast(cast, as_json)


def _show_cast(cast: Cast, as_json: bool) -> None:
    if as_json:
        print_json(cast.model_dump(mode="json"))
        return
    for vote in cast.votes:
        click.echo(_line(vote))
    click.echo(f"{cast.new:,} new votes")
    if not cast.projected:
        click.echo("context-os: kept; the store is away, so items show it once it is back", err=True)


def _line(vote: Vote) -> str:
    said = f"-{vote.verdict}" if vote.count < 0 else vote.verdict.value
    times = f" x{abs(vote.count)}" if abs(vote.count) != 1 else ""
    comment = f"  {vote.comment}" if vote.comment else ""
    return (
        f"{vote.at:%Y-%m-%d %H:%M}  {said:<9}{times} {vote.subject}  {vote.principal} ({vote.origin}, {vote.actor})"
        f"  {vote.key}{comment}"
    )


@command.command("list")
@click.argument("id", required=False)
@store_option
@tenant_option
@clearance_option
@as_json_option
def feedback_list(id: str | None, store: str | None, tenant: str | None, clearance: str | None, as_json: bool) -> None:
    """The votes on ID, or all of them, oldest first."""
    with _voting(store, tenant, clearance) as voting:
        found = voting.votes(id)
    if as_json:
        print_json({"votes": [vote.model_dump(mode="json") for vote in found]})
        return
    for vote in found:
        click.echo(_line(vote))
    if not found:
        click.echo("nobody said anything yet", err=True)


@command.command("show")
@click.argument("id")
@store_option
@tenant_option
@clearance_option
@as_json_option
def feedback_show(id: str, store: str | None, tenant: str | None, clearance: str | None, as_json: bool) -> None:
    """The sums of ID and what they do to its rank."""
    from context_os.ranking import STRENGTH

    with _voting(store, tenant, clearance) as voting:
        told = voting.told(id)
    factor = round(1 + STRENGTH * told.balance, 4)
    if as_json:
        print_json({**told.model_dump(mode="json"), "factor": factor})
        return
    click.echo(f"{told.feedback.helpful:,} found it helpful, {told.feedback.harmful:,} harmful")
    click.echo(f"its scores count {factor:.3f} times (old votes count less, few move little)")


@command.command("withdraw")
@click.argument("key")
@store_option
@tenant_option
@clearance_option
@as_json_option
def feedback_withdraw(key: str, store: str | None, tenant: str | None, clearance: str | None, as_json: bool) -> None:
    """Take back the vote of KEY, as `list` shows it. Harmless a second time."""
    with _voting(store, tenant, clearance) as voting:
        cast = voting.withdraw(key)
    _show_cast(cast, as_json)


@command.command("sync")
@store_option
@tenant_option
@as_json_option
def feedback_sync(store: str | None, tenant: str | None, as_json: bool) -> None:
    """Write every sum into the store again. Nothing needs it by rule: votes and ingestions catch up by themselves."""
    with _voting(store, tenant) as voting:
        items = voting.sync()
    if as_json:
        print_json({"items": items})
    else:
        click.echo(f"{items:,} items show their votes")


@command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@store_option
@tenant_option
@clearance_option
@as_json_option
def feedback_import(file: Path, store: str | None, tenant: str | None, clearance: str | None, as_json: bool) -> None:
    """Votes of FILE: findings that were accepted or dismissed, as a JSON list or as JSON Lines.

    Each has an "id", a "verdict" (accepted, dismissed) and "items" or a "pack"; "by", "at", "comment" and "actor" if
    you like. A file with anything wrong in it is refused whole.
    """
    with _voting(store, tenant, clearance) as voting:
        cast = voting.load(file)
    _show_cast(cast, as_json)


@command.command("collect")
@click.argument("repositories", nargs=-1, metavar="[REPOSITORY]...")
@click.option(
    "--days", type=click.IntRange(1), default=90, show_default=True, help="Comments of the last so many days."
)
@store_option
@tenant_option
@as_json_option
def feedback_collect(
    repositories: tuple[str, ...], days: int, store: str | None, tenant: str | None, as_json: bool
) -> None:
    """Reactions to our reviewer's comments on GitHub, and threads that were resolved, become votes.

    Without a name of every repository. Comments are tied to items by a marker; see docs/feedback.md.
    """
    from context_os.voting import collect

    with _voting(store, tenant) as voting:
        app = voting.app
        places = [app.location(name) for name in repositories] or app.repositories()
        found = [collect(voting, place, days) for place in places]
    if as_json:
        print_json({"repositories": [each.model_dump(mode="json") for each in found]})
    for each in found if not as_json else ():
        click.echo(
            f"{each.repository}: {each.comments:,} comments, {each.looked_at:,} looked at; {each.new:,} new votes, "
            f"{each.withdrawn:,} withdrawn"
        )
        if not each.resolutions:
            click.echo("  GitHub did not tell which threads are resolved; changed lines stand for it")
    refused = [(each.repository, *one) for each in found for one in each.refused]
    for repository, url, reason in refused:
        click.echo(f"context-os: {repository}: {url}: {reason}", err=True)


@command.command("tune")
@click.argument("repositories", nargs=-1, metavar="[REPOSITORY]...")
@click.option("--dry-run", is_flag=True, help="Tell what would come out, and change nothing.")
@click.option("--forget", is_flag=True, help="Back to the packaged weights; the next tuning may find others again.")
@tenant_option
@as_json_option
def feedback_tune(
    repositories: tuple[str, ...], dry_run: bool, forget: bool, tenant: str | None, as_json: bool
) -> None:
    """Weights of a repository's own, from the votes on its packs: what tells here what a review needs.

    They are used where they rank packs that they were not fitted to better than the packaged ones; without a name of
    every repository. Votes count that name a pack (`add --pack`, GitHub's markers, findings with a pack).
    """
    from context_os.app import open_app

    if dry_run and forget:
        raise click.UsageError("--dry-run and --forget exclude each other")
    chosen = load_settings(tenant=tenant)
    with open_app(chosen) as app:
        names = [app.location(name).name for name in repositories] or [each.name for each in app.repositories()]
        if forget:
            gone = [name for name in names if app.tuning.forget(name)]
            if as_json:
                print_json({"forgotten": gone})
            for name in gone if not as_json else ():
                click.echo(f"{name}: back to the packaged weights")
            return
        found = [each for name in names for each in app.tuning.tune(name, dry=dry_run)]
    if as_json:
        print_json({"tuned": [each.model_dump(mode="json") for each in found]})
        return
    for each in found:
        _show_tuned(each)
    if not found:
        click.echo("no vote names a pack of these repositories that is kept", err=True)


def _show_tuned(tuned: Tuned) -> None:
    click.echo(f"{tuned.repository}, {tuned.model}: {tuned.packs:,} packs, {tuned.votes:,} votes")
    if tuned.before or tuned.after:
        shares = f"{tuned.before:.0%} of what helped among the first 20 before, {tuned.after:.0%} after"
        click.echo(f"  {shares} (packs that were not fitted to)")
    click.echo(f"  {'used' if tuned.used else 'not used'}: {tuned.reason}")
    for name, (old, new) in sorted(tuned.moved.items(), key=lambda each: -abs(each[1][1] - each[1][0]))[:12]:
        click.echo(f"    {name:<32} {old:6.2f} -> {new:5.2f}")
