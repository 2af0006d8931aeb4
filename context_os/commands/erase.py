"""Erasing for good, with a receipt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from context_os.commands import as_json_option, load_settings, print_json, say_store, store_option, tell, tenant_option
from context_os.errors import NotFound

if TYPE_CHECKING:
    from context_os.erasure import Done, Erasure, Plan, Target

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("erase")
def command() -> None:
    """Erase a repository, a source, a tenant or a person from store, ledger, files, packs and Dagster's history.

    Without --yes it only says what would go. What was erased does not come back by ingesting it, until it is lifted.
    """


def _erasing(command: _Command) -> _Command:
    for option in (
        store_option,
        as_json_option,
        click.option("--note", default="", help="Stands in the receipt, for example a ticket's number."),
        click.option("--yes", is_flag=True, help="Do it; without this it is only said what would go."),
    ):
        command = option(command)
    return command


@command.command("repository")
@click.argument("name")
@tenant_option
@_erasing
def erase_repository(name: str, tenant: str | None, **options: Any) -> None:
    """Everything that was made of a repository, and that it was ever here."""
    _erase({"kind": "repository", "repository": name}, tenant, **options)


@command.command("source")
@click.argument("repository")
@click.argument("connector")
@tenant_option
@_erasing
def erase_source(repository: str, connector: str, tenant: str | None, **options: Any) -> None:
    """Everything that one connector made of a repository."""
    _erase({"kind": "source", "repository": repository, "connector": connector}, tenant, **options)


@command.command("tenant")
@click.argument("name")
@_erasing
def erase_tenant(name: str, **options: Any) -> None:
    """Everything of a tenant."""
    _erase({"kind": "tenant"}, name, **options)


@command.command("person")
@click.argument("patterns", nargs=-1, required=True)
@click.option("--whole", is_flag=True, help="Delete every item that mentions them, instead of redacting it.")
@tenant_option
@_erasing
def erase_person(patterns: tuple[str, ...], whole: bool, tenant: str | None, **options: Any) -> None:
    """The mentions of a person: PATTERNS are their name, e-mail address, login; words are compared, not case."""
    _erase({"kind": "person", "patterns": patterns, "whole": whole}, tenant, **options)


def _erase(
    about: dict[str, Any], tenant: str | None, *, store: str | None, note: str, yes: bool, as_json: bool
) -> None:
    from context_os.erasure import Target

    with _erasure(store, tenant) as erasure:
        target = Target(tenant=erasure.settings.tenant, **about)
        begun = _resume(erasure, target) if yes else None
        plan = None if begun else erasure.survey(target, note)
        done = begun or (erasure.perform(plan) if yes and plan else None)
    if done:
        _show_done(done, as_json)
    elif plan:
        _show_plan(plan, as_json)


def _resume(erasure: Erasure, target: Target) -> Done | None:
    """Finish what was begun; the result of the very same erasure, if that was among it."""
    same = None
    for plan in _own(erasure):
        click.echo(f"finishing the erasure {plan.receipt}, which was interrupted", err=True)
        done = erasure.perform(plan)
        same = done if plan.target == target else same
    return same


def _own(erasure: Erasure) -> list[Plan]:
    """Unfinished plans of this tenant in this store; the others are told."""
    here = (erasure.settings.tenant, erasure.store.identity)
    plans = erasure.unfinished()
    for plan in plans:
        if (plan.target.tenant, plan.store) != here:
            told = f"{plan.receipt} of tenant {plan.target.tenant} in {plan.store}"
            click.echo(
                f"context-os: the erasure {told} is unfinished; resume it with its --tenant and --store", err=True
            )
    return [plan for plan in plans if (plan.target.tenant, plan.store) == here]


@contextmanager
def _erasure(store: str | None, tenant: str | None) -> Iterator[Erasure]:
    from context_os.defs.erasing import DagsterHistory
    from context_os.erasure import Erasure

    chosen = load_settings(store={"kind": store}, tenant=tenant)
    say_store(chosen)
    with chosen.open_store() as opened:
        yield Erasure(chosen, opened, DagsterHistory(chosen), tell)


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        mentions = [each.model_dump(mode="json") for each in plan.mentions]
        about = {"kind": plan.target.kind, "tenant": plan.target.tenant, "store": plan.store}
        print_json(
            {**about, "would_erase": plan.before, "mentions": mentions, "elsewhere": plan.elsewhere, "done": False}
        )
        return
    click.secho(f"{plan.target} of tenant {plan.target.tenant} in {plan.store}", bold=True)
    _table(plan.before)
    for each in plan.mentions[:30]:
        click.echo(f"  {each.action:<9} {each.kind:<14} {each.id}  because of its {', '.join(each.fields)}")
    if len(plan.mentions) > 30:
        click.echo(f"  ... and {len(plan.mentions) - 30} more; --json lists them all")
    for place in plan.elsewhere:
        click.echo(f"  not touched: {place}")
    click.echo("nothing was erased; --yes does it")


def _table(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if count:
            click.echo(f"{count:>10,}  {name}")


def _show_done(done: Done, as_json: bool) -> None:
    if as_json:
        print_json({**done.model_dump(mode="json"), "done": True})
        return
    click.secho(f"erased; receipt {done.receipt}", bold=True)
    _table(done.before)
    click.echo(f"the receipt is {done.file}; `context-os erase verify {done.receipt}` checks it")
    if done.remains:
        click.echo(f"a disk may still hold: {done.remains}")


@command.command("resume")
@store_option
@tenant_option
@as_json_option
def erase_resume(store: str | None, tenant: str | None, as_json: bool) -> None:
    """Finish the erasures of this tenant that were interrupted."""
    with _erasure(store, tenant) as erasure:
        done = [erasure.perform(plan) for plan in _own(erasure)]
    if as_json:
        print_json({"finished": [each.model_dump(mode="json") for each in done]})
        return
    for each in done:
        _show_done(each, as_json)
    if not done:
        click.echo("no erasure is unfinished")


@command.command("lift")
@click.argument("receipt")
@tenant_option
@as_json_option
def erase_lift(receipt: str, tenant: str | None, as_json: bool) -> None:
    """Allow what a receipt is about to be ingested again. Nothing comes back by this alone."""
    from context_os.ledger import Ledger

    chosen = load_settings(tenant=tenant)
    if not Ledger(chosen.make_home() / "ledger.db").lift_erasure(chosen.tenant, receipt):
        raise NotFound(f"no erasure {receipt} of tenant {chosen.tenant} is in force here")
    if as_json:
        print_json({"receipt": receipt, "lifted": True})


@command.command("verify")
@click.argument("receipt")
@click.argument("names", nargs=-1)
@store_option
@as_json_option
def erase_verify(receipt: str, names: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Check RECEIPT (an id or a file): its signature, and that nothing of it is here now. Exits with 3 otherwise.

    A receipt does not name what was erased; give NAMES to ask whether it is about them.
    """
    from context_os.receipts import Receipts

    chosen = load_settings()
    receipts = Receipts(chosen.home)
    file = Path(receipt) if Path(receipt).is_file() else receipts.folder / f"{receipt}.json"
    if not file.is_file():
        there = ", ".join(each.stem for each in receipts.files())
        raise NotFound(f"no receipt {receipt} is here; there are: {there or 'none'}")
    claim, problems = receipts.verify(file)
    problems += receipts.missing()
    with _erasure(store, str(claim["tenant"])) as erasure:
        if erasure.store.identity != claim["store"]:
            problems.append(f"it is of the store {claim['store']}, and this is {erasure.store.identity}")
        problems += erasure.check(claim, names)
    if as_json:
        print_json({"receipt": claim["receipt"], "valid": not problems, "problems": problems, "claim": claim})
    else:
        click.echo(f"{claim['receipt']}: {claim['kind']}, {claim['at']}, by {claim['by']}")
        click.echo("the signature is good and nothing of it is here" if not problems else "it does not hold:")
    for problem in problems:
        click.echo(f"context-os: {problem}", err=True)
    sys.exit(3 if problems else 0)
