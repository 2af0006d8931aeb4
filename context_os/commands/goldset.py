"""Goldsets: whether packs still hold what they must, case by case against an accepted baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from context_os.commands import as_json_option, load_settings, print_json, tell
from context_os.errors import NotFound

if TYPE_CHECKING:
    from context_os.evaluation import Comparison, Run
    from context_os.goldsets import Case, Folder, Place
    from context_os.kept_packs import KeptPack
    from context_os.settings import Settings


@click.group("goldset")
def command() -> None:
    """Cases with what a pack must contain: run them, compare with the accepted results, add new ones.

    \b
    context-os goldset add mine --history 30 --repository acme/shop   cases from merged pull requests
    context-os goldset run mine                                       exits with 1 on a regression
    context-os goldset compare mine                                   which cases were lost, and why
    context-os goldset accept mine                                    the newest run becomes the baseline
    """


@command.command("list")
@as_json_option
def list_goldsets(as_json: bool) -> None:
    """Every goldset with its cases, its baseline and its newest run."""
    from context_os.evaluation import Runs, baseline_of
    from context_os.goldsets import folders

    chosen = load_settings()
    rows: list[dict[str, Any]] = []
    for folder in folders(chosen.goldsets.folder):
        found, baseline, runs = folder.read(), baseline_of(folder), Runs.of(chosen, folder.name)
        rows.append(
            {
                "name": folder.name,
                "cases": len(found.cases),
                "repositories": sorted(found.repositories),
                "baseline": baseline.id if baseline else None,
                "newest": runs.ids()[-1] if runs.ids() else None,
            }
        )
    if as_json:
        print_json({"folder": str(chosen.goldsets.folder), "goldsets": rows})
        return
    for row in rows:
        accepted = f"baseline {row['baseline']}" if row["baseline"] else "no baseline"
        newest = f"newest run {row['newest']}" if row["newest"] else "never run here"
        click.echo(f"{row['name']}: {row['cases']} cases over {', '.join(row['repositories'])}; {accepted}; {newest}")
    if not rows:
        click.echo(f"no goldset in {chosen.goldsets.folder}; `context-os goldset add` makes one", err=True)


@command.command("run")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many cases; such a run is no baseline.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the results here, a case a line."
)
@as_json_option
def run_goldset(name: str, limit: int | None, out: Path | None, as_json: bool) -> None:
    """Run the cases of NAME and compare them with its baseline. Exits with 1 on a regression.

    What the cases need is ingested below the home, apart from the team's store; the next run finds it there.
    """
    from context_os.evaluation import evaluate, write_run

    chosen = load_settings()
    run, found = evaluate(chosen, _folder(chosen, name), tell, limit)
    if out is not None:
        write_run(out, run)
    _report(run, found, as_json)


@command.command("compare")
@click.argument("name")
@click.option("--run", "id", default="newest", show_default=True, help="Which run, by its id.")
@as_json_option
def compare_goldset(name: str, id: str, as_json: bool) -> None:
    """A run of NAME against its baseline: which cases were won and lost, and which selector found or dropped what.
    Exits with 1 on a regression."""
    from context_os.evaluation import Runs, baseline_of, compare

    chosen = load_settings()
    folder = _folder(chosen, name)
    run = Runs.of(chosen, name).get(id)
    _report(run, compare(run, baseline_of(folder)), as_json)


@command.command("accept")
@click.argument("name")
@click.option("--run", "id", default="newest", show_default=True, help="Which run, by its id.")
@as_json_option
def accept_goldset(name: str, id: str, as_json: bool) -> None:
    """Make the newest run the baseline of NAME. Refused, with every reason, for a run that is partial or shows what
    must never be."""
    from context_os.evaluation import Runs, accept

    chosen = load_settings()
    folder = _folder(chosen, name)
    run = Runs.of(chosen, name).get(id)
    accept(folder, run)
    if as_json:
        print_json({"goldset": name, "baseline": run.id, "file": str(folder.baseline), **run.summary})
    else:
        click.echo(f"{folder.baseline} holds run {run.id} now; commit it")


@command.command("add")
@click.argument("name")
@click.option("--pack", "pack", help="From a pack that was handed out, by its id or the beginning of it.")
@click.option("--commit", help="From one merged commit: one file of it is left out, and expected.")
@click.option("--history", type=click.IntRange(1), metavar="N", help="From the last pull requests, N spread evenly.")
@click.option("--pull", type=click.IntRange(1), metavar="N", help="From GitHub: files that reviewers commented on.")
@click.option("--question", default="", help="What the pack of --pack was asked; no more than a digest of it is kept.")
@click.option("--repository", help="Which repository; needed when there are several.")
@click.option("--source", help="Where the goldset finds it: a path or a URL to clone; default: its location here.")
@as_json_option
def add_cases(
    name: str,
    pack: str | None,
    commit: str | None,
    history: int | None,
    pull: int | None,
    question: str,
    repository: str | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Add cases to NAME, which is made if it is not there. Adding the same again changes nothing."""
    from context_os.goldsets import NAME, Folder, commit_of, from_commit, from_history, from_pack, from_pull, located

    if sum(each is not None for each in (pack, commit, history, pull)) != 1:
        raise click.UsageError("give one of --pack ID, --commit SHA, --history N, --pull N")
    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name!r} is no name for a goldset: letters, digits, '.', '_' and '-'")
    chosen = load_settings()
    folder = Folder(chosen.goldsets.folder / name)
    cases: list[Case] = []
    kept = _kept(chosen, pack) if pack is not None else None
    if kept is not None and len(kept.repositories) == 1:
        repository = kept.repositories[0]
    repository, place = _place(chosen, folder, repository, source)
    git = located(chosen, folder, repository, place)
    if kept is not None:
        cases = [from_pack(git, repository, kept, question)]
    elif commit is not None:
        cases = [from_commit(git, repository, commit_of(git, commit))]
    elif history is not None:
        cases = from_history(git, repository, place.revision or "HEAD", history)
    elif pull is not None:
        cases = [from_pull(git, repository, pull, _github(chosen))]
    new = folder.add(cases, repository, place, chosen.tenant)
    if as_json:
        print_json({"goldset": name, "folder": str(folder.path), "added": [each.id for each in new]})
        return
    for each in new:
        click.echo(f"{each.id}: {len(each.wanted)} things expected; {each.source}")
    click.echo(f"{len(new)} of {len(cases)} cases added to {folder.path}; `context-os goldset run {name}` runs them")


def _folder(chosen: Settings, name: str) -> Folder:
    from context_os.goldsets import folders

    found = {each.name: each for each in folders(chosen.goldsets.folder)}
    if name not in found:
        raise NotFound(
            f"no goldset {name!r} in {chosen.goldsets.folder}; there are: {', '.join(found) or 'none, add one'}"
        )
    return found[name]


def _kept(chosen: Settings, id: str) -> KeptPack:
    from context_os.app import open_app

    with open_app(chosen) as app:
        kept = app.kept_packs.get(chosen.tenant, id)
    if kept is None:
        raise NotFound(f"no pack {id} is kept for tenant {chosen.tenant}; `context-os pack` says its pack's id")
    return kept


def _place(chosen: Settings, folder: Folder, repository: str | None, source: str | None) -> tuple[str, Place]:
    """A repository's name and where it is: what the goldset says, else ``source``, else its location here."""
    from context_os.app import open_app
    from context_os.goldsets import HEAD_FILE, Place

    known = folder.read().repositories if (folder.path / HEAD_FILE).is_file() else {}
    if repository is None and len(known) == 1:
        repository = next(iter(known))
    if repository is not None and repository in known:
        return repository, known[repository]
    if repository is not None and source is not None:
        return repository, Place(source=source)
    with open_app(chosen) as app:
        names = [each.name for each in app.repositories()]
        if repository is None and len(names) != 1:
            raise click.UsageError(f"give --repository; there are: {', '.join(names) or 'none, give --source too'}")
        found = app.location(repository or names[0])
    return found.name, Place(source=source or str(found.location.resolve()))


def _github(chosen: Settings) -> Any:
    """The configured connector of pull requests, asking GitHub."""
    return chosen.connector("pull_requests").model_copy(update={"api": "github"})


def _report(run: Run, found: Comparison, as_json: bool) -> None:
    if as_json:
        about = run.model_dump(mode="json", exclude={"results"})
        print_json({"run": {**about, **run.summary}, "comparison": found.model_dump(mode="json")})
    else:
        _show(run, found)
    sys.exit(1 if found.regressions else 0)


def _show(run: Run, found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{run.goldset}, run {run.id}")
    for column in ("case", "recall", "found", "rank", "tokens", "seconds"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for each in run.results:
        traces = f"{sum(one.found for one in each.traces)} of {len(each.traces)}" if not each.problem else each.problem
        table.add_row(
            each.case,
            f"{each.recall:.2f}",
            traces,
            f"{each.reciprocal_rank:.2f}",
            f"{each.tokens:,}",
            f"{each.seconds:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    means = run.summary
    click.echo(
        f"recall {means['recall']:.3f}, complete {means['complete']:.3f}, reciprocal rank "
        f"{means['reciprocal_rank']:.3f} over {len(run.results)} cases"
    )
    judged = [one for each in run.results for one in each.judged]
    if judged:
        click.echo(f"{sum(one.reported for one in judged)} of {len(judged)} expected findings reported by the model")
    for reason in dict.fromkeys(each.findings for each in run.results if each.findings):
        click.echo(f"expected findings of {sum(each.findings == reason for each in run.results)} cases {reason}")
    _show_comparison(found)


def _show_comparison(found: Comparison) -> None:
    for note in found.notes:
        click.echo(f"note: {note}")
    for each in found.differences if found.baseline else ():
        click.echo(f"{each.measure}: {each.mean:+.3f} ({each.low:+.3f} to {each.high:+.3f}) over {found.pairs} cases")
    for word, shifts in (("won", found.won), ("lost", found.lost)):
        for shift in shifts:
            click.echo(f"{word} {shift.case}: recall {shift.before:.2f} -> {shift.now:.2f}")
            for why in shift.why:
                click.echo(f"  {why}")
    for regression in found.regressions:
        click.secho(f"REGRESSION: {regression}", fg="red")
    if not found.regressions:
        against = found.baseline or "no baseline"
        click.echo(f"no regression; {len(found.won)} cases won, {len(found.lost)} lost against {against}")
