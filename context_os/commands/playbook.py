"""The playbook: lessons of a repository, how they came, and what is proposed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import as_json_option, load_settings, print_json, tell, tenant_option
from context_os.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from context_os.playbook import Applied, Delta, Playbooks
    from context_os.playbook_formats import Bullet, ReadPlaybook
    from context_os.settings import Settings

repository_option = click.option("--repository", help="Whose playbook; default: the only one that is known.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would happen, change nothing.")


@click.group("playbook")
def command() -> None:
    """Lessons that reviews taught: list, add, import, learn, approve. Packs see them after the next `ingest`."""


class _Book:
    """One playbook as the commands use it."""

    def __init__(self, tenant: str | None, repository: str | None) -> None:
        from context_os.playbook import Playbooks

        self.settings: Settings = load_settings(tenant=tenant)
        self.tenant = self.settings.tenant
        self.playbooks: Playbooks = Playbooks(self.settings.make_home())
        self.repository = _named(self.settings, self.playbooks, repository)

    @property
    def place(self) -> tuple[str, str]:
        return self.tenant, self.repository

    def delta(self, operation: str, *ids: str, reason: str = "", **changes: Any) -> Delta:
        """A change that the caller asks for now."""
        from context_os.model import utcnow
        from context_os.playbook import Delta, Operation

        return Delta(
            key=f"cli:{os.urandom(12).hex()}",
            operation=Operation(operation),
            ids=ids,
            changes=changes,
            reason=reason,
            principal=self.settings.principal,
            at=utcnow(),
        )

    def apply(self, deltas: Sequence[Delta], *, dry: bool = False) -> list[Applied]:
        run = self.playbooks.preview if dry else self.playbooks.apply
        return run(*self.place, deltas, self.settings.playbook.policy, self.settings.open_embedding())


def _named(chosen: Settings, playbooks: Playbooks, repository: str | None) -> str:
    """The repository that is meant. Raises NotFound for one that nobody knows, ConfigurationError for several."""
    from context_os.ledger import Ledger

    registered = [each.name for each in Ledger(chosen.home / "ledger.db").repositories()]
    known = sorted({*registered, *chosen.repositories, *playbooks.repositories(chosen.tenant)})
    told = ", ".join(known) or "none, ingest one first"
    if repository is not None and repository not in known:
        raise NotFound(f"no repository is called {repository!r}; there are: {told}")
    if repository is None and len(known) != 1:
        raise ConfigurationError(f"say which playbook with --repository; there are: {told}")
    return repository or known[0]


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Also what was removed or merged away.")
@repository_option
@tenant_option
@as_json_option
def playbook_list(everything: bool, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """The bullets with their counters, and what waits for approval."""
    book = _Book(tenant, repository)
    bullets = book.playbooks.bullets(*book.place, all=everything)
    waiting = book.playbooks.proposals(*book.place)
    if as_json:
        found = [each.model_dump(mode="json") for each in bullets]
        print_json(
            {
                "repository": book.repository,
                "bullets": found,
                "proposals": [each.model_dump(mode="json") for each in waiting],
            }
        )
        return
    for section in dict.fromkeys(each.section for each in bullets):
        click.echo(f"## {section or '(no section)'}")
        for bullet in bullets:
            if bullet.section == section:
                click.echo(_line(bullet))
    for each in waiting:
        about = each.delta.changes.get("content") or ", ".join(each.delta.ids)
        click.echo(f"waits: {each.key} {each.delta.operation} {about} ({each.why})")
    if not bullets and not waiting:
        click.echo("no lesson yet; `context-os playbook add` or `import` brings some", err=True)


def _line(bullet: Bullet) -> str:
    marks = [name for name in ("pinned", "locked") if getattr(bullet, name)]
    marks += [] if bullet.status.value == "active" else [bullet.status.value]
    told = f" ({', '.join(marks)})" if marks else ""
    text = " ".join(bullet.content.split())
    return f"[{bullet.id}] helpful={bullet.helpful} harmful={bullet.harmful}{told} :: {text}"


@command.command("show")
@click.argument("id")
@repository_option
@tenant_option
@as_json_option
def playbook_show(id: str, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Everything about one bullet."""
    from context_os.playbook import subject_of

    book = _Book(tenant, repository)
    bullet = book.playbooks.bullet(*book.place, id)
    told = {**bullet.model_dump(mode="json"), "item": subject_of(*book.place, id)}
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        if value not in (None, "", [], {}, False):
            click.echo(f"{name}: {value}")


@command.command("add")
@click.argument("content")
@click.option("--section", default="", help="Its heading.")
@click.option("--about", multiple=True, metavar="REFERENCE", help="path:src/** or symbol:name; may be given often.")
@click.option("--tag", "tags", multiple=True)
@click.option("--pin", is_flag=True, help="It never goes for want of room.")
@repository_option
@tenant_option
@as_json_option
def playbook_add(
    content: str,
    section: str,
    about: tuple[str, ...],
    tags: tuple[str, ...],
    pin: bool,
    repository: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Add a lesson. One that says what another says already is joined with it."""
    from context_os.scope import valid_glob

    wrong = [each for each in about if not _is_reference(each, valid_glob)]
    if wrong:
        raise ConfigurationError(f"--about takes path:GLOB or symbol:NAME, not: {', '.join(wrong)}")
    book = _Book(tenant, repository)
    delta = book.delta("add", content=content, section=section, about=about, tags=tags, pinned=pin)
    _show(book.apply([delta]), as_json)


def _is_reference(text: str, valid_glob: Any) -> bool:
    kind, _, name = text.partition(":")
    return bool(name.strip()) and (kind == "symbol" or (kind == "path" and bool(valid_glob(name))))


@command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--partial", is_flag=True, help="Import what can be read, also where something cannot.")
@dry_run_option
@repository_option
@tenant_option
@as_json_option
def playbook_import(
    file: Path, partial: bool, dry_run: bool, repository: str | None, tenant: str | None, as_json: bool
) -> None:
    """Import a playbook: the official text, Markdown, or JSON with bullets or skills. Again it changes nothing.

    A file with a problem is refused whole, with every problem told.
    """
    from context_os.model import utcnow
    from context_os.playbook import importing
    from context_os.playbook_formats import read

    book = _Book(tenant, repository)
    found = read(file.read_bytes(), file.name)
    refused = bool(found.problems) and not partial
    deltas = importing(found, book.settings.principal, utcnow())
    done = [] if refused else book.apply(deltas, dry=dry_run)
    if as_json:
        print_json({**_told_file(found), "refused": refused, "dry_run": dry_run, "applied": _dumped(done)})
    else:
        _say_file(found)
        _show(done, as_json=False)
    if refused:
        click.echo("context-os: nothing was imported; mend the file, or take the rest with --partial", err=True)
        sys.exit(3)


def _told_file(found: ReadPlaybook) -> dict[str, Any]:
    return {
        "format": found.format,
        "bullets": len(found.bullets),
        "problems": [each.model_dump(mode="json") for each in found.problems],
        "notes": list(found.notes),
    }


def _say_file(found: ReadPlaybook) -> None:
    click.echo(f"{len(found.bullets)} bullets in the {found.format} format")
    for note in found.notes:
        tell(note)
    for problem in found.problems:
        click.echo(f"context-os: {problem.where}: {'; '.join(problem.reasons)}", err=True)


@command.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["official", "plain", "playbook", "skillbook"]),
    default="official",
    show_default=True,
    help="official text, text without counters, or JSON.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: standard output.")
@click.option("--all", "everything", is_flag=True, help="Also what was removed or merged away.")
@repository_option
@tenant_option
def playbook_export(
    form: str, output: Path | None, everything: bool, repository: str | None, tenant: str | None
) -> None:
    """Write a playbook so that `import` gives the very same, whatever the format."""
    from context_os.playbook_formats import FORMS, write

    book = _Book(tenant, repository)
    chosen = next(each for each in FORMS if each == form)
    text = write(book.playbooks.bullets(*book.place, all=everything), chosen)
    if output is None:
        click.echo(text, nl=False)
        return
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(output)
    click.echo(f"{output}: written", err=True)


@command.command("learn")
@click.argument("traces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@dry_run_option
@repository_option
@tenant_option
@as_json_option
def playbook_learn(traces: Path, dry_run: bool, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Learn from traces of reviews, JSON lines: what was handed out, what the change needed, what people said.

    Lessons whose words come from outside, and all of them where `playbook.approve` is set, wait for `approve`.
    """
    from context_os.learning import learn, read_traces

    book = _Book(tenant, repository)
    chat = book.settings.playbook.open_chat()
    tell(f"by rule and with {chat.model}" if chat else "by rule; playbook.url and playbook.model name a model")
    found = learn(
        book.playbooks,
        *book.place,
        read_traces(traces.read_text(encoding="utf-8"), traces.name),
        book.settings.playbook.policy,
        embedding=book.settings.open_embedding(),
        chat=chat,
        dry=dry_run,
    )
    if as_json:
        print_json({**found.model_dump(mode="json"), "dry_run": dry_run})
        return
    click.echo(f"{found.traces} traces, {found.tagged} lessons tagged, {len(found.judged)} candidates")
    for each in found.judged:
        click.echo(f"{each.judgement}: {each.candidate.content} ({each.why})")
        _show([each.applied] if each.applied else [], as_json=False)
    _show(found.curated, as_json=False)
    for note in found.notes:
        click.echo(f"context-os: {note}", err=True)


@command.command("approve")
@click.argument("key")
@repository_option
@tenant_option
@as_json_option
def playbook_approve(key: str, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Do what waits under this key, as `list` shows it."""
    from context_os.model import utcnow

    book = _Book(tenant, repository)
    policy = book.settings.playbook.policy
    done = book.playbooks.approve(*book.place, key, book.settings.principal, utcnow(), policy)
    _show([done], as_json)


@command.command("reject")
@click.argument("key")
@repository_option
@tenant_option
@as_json_option
def playbook_reject(key: str, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Turn down what waits under this key, for good."""
    from context_os.model import utcnow

    book = _Book(tenant, repository)
    done = book.playbooks.reject(*book.place, key, book.settings.principal, utcnow())
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo(f"{key}: rejected")


@command.command("pin")
@click.argument("id")
@click.option("--off", is_flag=True, help="Take the pin out.")
@repository_option
@tenant_option
@as_json_option
def playbook_pin(id: str, off: bool, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Keep a bullet, whatever the budget."""
    book = _Book(tenant, repository)
    _show(book.apply([book.delta("update", id, pinned=not off)]), as_json)


@command.command("lock")
@click.argument("id")
@click.option("--off", is_flag=True, help="Unlock it.")
@repository_option
@tenant_option
@as_json_option
def playbook_lock(id: str, off: bool, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Let nothing change a bullet unless somebody approves it."""
    book = _Book(tenant, repository)
    _show(book.apply([book.delta("update", id, locked=not off)]), as_json)


@command.command("remove")
@click.argument("id")
@click.option("--reason", default="", help="Why, for the history.")
@repository_option
@tenant_option
@as_json_option
def playbook_remove(id: str, reason: str, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Take a bullet out. Its history stays."""
    book = _Book(tenant, repository)
    _show(book.apply([book.delta("remove", id, reason=reason)]), as_json)


@command.command("compact")
@dry_run_option
@repository_option
@tenant_option
@as_json_option
def playbook_compact(dry_run: bool, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Merge bullets that say the same; their counters add up."""
    from context_os.model import utcnow
    from context_os.playbook import compaction

    book = _Book(tenant, repository)
    bullets = book.playbooks.bullets(*book.place)
    deltas = compaction(bullets, book.settings.playbook.policy, book.settings.principal, utcnow())
    _show(book.apply(deltas, dry=dry_run), as_json)


@command.command("history")
@click.argument("id", default="")
@repository_option
@tenant_option
@as_json_option
def playbook_history(id: str, repository: str | None, tenant: str | None, as_json: bool) -> None:
    """Every change, oldest first; of one bullet where one is named."""
    book = _Book(tenant, repository)
    found = book.playbooks.history(*book.place, id)
    if as_json:
        print_json({"history": [each.model_dump(mode="json") for each in found]})
        return
    for each in found:
        told = f"{each.delta.at:%Y-%m-%d %H:%M} {each.delta.principal}: {each.delta.operation}"
        click.echo(f"{told} {', '.join(each.applied.ids)} {each.applied.outcome} {each.applied.why}".rstrip())


def _show(done: Sequence[Applied], as_json: bool) -> None:
    if as_json:
        print_json({"applied": _dumped(done)})
        return
    for each in done:
        why = f" ({each.why})" if each.why else ""
        click.echo(f"{each.operation} {', '.join(each.ids) or each.key}: {each.outcome}{why}")


def _dumped(done: Sequence[Applied]) -> list[dict[str, Any]]:
    return [each.model_dump(mode="json") for each in done]
