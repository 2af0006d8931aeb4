"""Issues to code: given an issue's text alone, where does it have to be fixed?

For every instance the repository is ingested as of its base commit (incrementally, instances in the order of their
commits), then the product is asked with the issue's text: `App.files` for files, `App.select` for functions, and
`App.pack` for what stands in packs of several sizes. Nothing of what came after the base commit is ever ingested.

An instance has SWE-bench's fields `instance_id, repo, base_commit, problem_statement`, and `gold_files` and
`gold_functions` (`path:Qualified.name`), here or in --gold FILE.jsonl; without them the files come from its `patch`.
Strict Acc@k: all of an instance's gold files (functions) are among the first k. Interrupted, it goes on where it was.

With --snapshots FOLDER what benchmarks/fit_weights.py learns from is kept, some 10 MB an instance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import _bench as bench
import numpy as np

from context_os.app import App
from context_os.change import parse_diff
from context_os.git import Git
from context_os.paths import class_of
from context_os.selectors import Request

_FILES: Final = 100
_FUNCTIONS: Final = 50
_TOP: Final = 10
_PACKS: Final = (13_000, 27_000, 50_000)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--instances", type=Path, required=True, help="JSONL, one instance a line")
    parser.add_argument("--gold", type=Path, help="JSONL with gold_files and gold_functions by instance_id")
    parser.add_argument("--repos", type=Path, required=True, help="JSON: owner/name to its git directory")
    parser.add_argument("--out", type=Path, required=True, help="JSONL, one line a case")
    parser.add_argument("--store", choices=["lab", "weaviate"], default="lab")
    parser.add_argument("--connectors", default="symbols,documents,team_rules,pull_requests,commits")
    parser.add_argument("--candidates", choices=["all", "source"], default="all", help="which files count as ranked")
    parser.add_argument("--vectors", action="store_true", help="embed every revision before asking")
    parser.add_argument("--only", help="instances of these repositories, by comma")
    parser.add_argument("--every", type=int, default=1, help="only every n-th instance of a repository")
    parser.add_argument("--no-packs", action="store_true", help="do not build packs")
    parser.add_argument("--weights", type=Path, help="folder of fit_weights.py: each repository by the others' weights")
    parser.add_argument("--beside", type=Path, help="--out of another run: how many of the first ten are the same?")
    parser.add_argument("--snapshots", type=Path, help="keep what fit_weights.py learns from in this folder")
    given = parser.parse_args()
    bench.machine()
    cases = bench.Cases(given.out)
    repositories = bench.read_repositories(given.repos)
    for name, instances in _by_repository(_instances(given), repositories):
        todo = [each for each in instances[:: given.every] if each["instance_id"] not in cases]
        if todo and (not given.only or name in given.only.split(",")):
            _repository(given, cases, name, repositories[name], todo)
    report(cases.rows, given.candidates)
    if given.beside:
        overlap(cases.rows, bench.read_lines(given.beside))


def _instances(given: Any) -> list[dict[str, Any]]:
    rows = bench.read_lines(given.instances)
    gold = {row["instance_id"]: row for row in bench.read_lines(given.gold)} if given.gold else {}
    for row in rows:
        row |= {
            key: value for key, value in gold.get(row["instance_id"], {}).items() if key.startswith(("gold", "in_"))
        }
        if "gold_files" not in row:
            row["gold_files"] = [file.path for file in parse_diff(row["patch"]).files]
    return rows


def _by_repository(
    rows: Sequence[dict[str, Any]], repositories: Mapping[str, Path]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each repository's instances, oldest commit first."""
    for name in sorted({row["repo"] for row in rows}):
        if name not in repositories:
            bench.say(f"{name} is not in --repos; its instances are left out")
            continue
        git = Git(repositories[name])
        mine = [row for row in rows if row["repo"] == name]
        when = {sha: int(git.text("show", "-s", "--format=%ct", sha)) for sha in {row["base_commit"] for row in mine}}
        yield name, sorted(mine, key=lambda row: (when[row["base_commit"]], row["instance_id"]))


def _repository(given: Any, cases: bench.Cases, name: str, location: Path, instances: list[dict[str, Any]]) -> None:
    home = given.out.with_suffix(".work") / given.store / name.replace("/", "+")
    chosen = bench.with_weights(bench.settings_in(home, given.store), given.weights, name)
    with bench.opened(chosen) as app:
        for instance in instances:
            started = time.perf_counter()
            connectors = given.connectors.split(",")
            bench.ingest(app, name, location, connectors, instance["base_commit"], vectors=given.vectors)
            row = _ask(given, app, name, instance)
            row["ingest_seconds"] = round(time.perf_counter() - started, 2)
            cases.add(row)
            bench.say(f"{instance['instance_id']}: {row['file_rank']} {row['milliseconds']:.0f} ms")


def _ask(given: Any, app: App, name: str, instance: dict[str, Any]) -> dict[str, Any]:
    request = Request(instance["problem_statement"], repositories=(name,))
    app.files(request, 1)  # what a server has in memory anyway
    seconds, hits = bench.timed(lambda: app.files(request, _FILES))
    select_seconds, ranked = bench.timed(lambda: app.select(request))
    files = [hit.path for hit in hits if given.candidates == "all" or class_of(hit.path) == "source"]
    functions = [
        f"{each.item.source.path}:{each.item.payload.structured.get('qualified_name', '')}"
        for each in ranked
        if each.item.kind in bench.CODE
    ]
    row: dict[str, Any] = {
        "case": instance["instance_id"],
        "id": instance["instance_id"],
        "repo": name,
        "ranked": files,
        "functions": functions[:_FUNCTIONS],
        "milliseconds": round(1000 * seconds, 1),
        "select_milliseconds": round(1000 * select_seconds, 1),
        "file_rank": _worst(files, instance["gold_files"]),
        "function_rank": _worst(functions, instance.get("gold_functions", [])),
        "in_locagent_274": instance.get("in_locagent_274"),
    }
    if not given.no_packs:
        row["packs"] = {str(size): _inside(app, name, instance, size) for size in _PACKS}
    if given.snapshots:
        gold = {"gold_files": instance["gold_files"], "gold_functions": instance.get("gold_functions", [])}
        bench.keep_snapshot(given.snapshots / instance["instance_id"], app, request, **gold)
    return row


def _worst(ranked: Sequence[str], gold: Sequence[str]) -> int | None:
    """The rank of the last of ``gold``, None where one is not ranked (or there is none)."""
    place = {each: number for number, each in reversed(list(enumerate(ranked, 1)))}
    return max(place[each] for each in gold) if gold and all(each in place for each in gold) else None


def _inside(app: App, name: str, instance: dict[str, Any], size: int) -> dict[str, Any]:
    """Which of the gold files a pack touches, and which gold functions it holds wholly."""
    started = time.perf_counter()
    pack = app.pack(instance["problem_statement"], "", name, size)
    seconds = time.perf_counter() - started
    paths = {entry.path for entry in pack.layers.active}
    whole = [each for each in pack.layers.active if each.kind in bench.CODE and each.rendering in {"body", "inside"}]
    names = {f"{entry.path}:{_qualified(app, entry.id)}" for entry in whole}
    functions = instance.get("gold_functions", [])
    return {
        "milliseconds": round(1000 * seconds, 1),
        "tokens": pack.budget.used_tokens,
        "files": sum(path in paths for path in instance["gold_files"]) / len(instance["gold_files"]),
        "functions": sum(each in names for each in functions) / len(functions) if functions else None,
    }


def _qualified(app: App, id: str) -> str:
    (item,) = app.store.get(app.access, [id])
    return str(item.payload.structured.get("qualified_name", ""))


def report(rows: Sequence[dict[str, Any]], candidates: str) -> None:
    """The table, from the lines alone."""
    table = []
    for label, chosen in (("all", rows), ("of LocAgent's 274", [row for row in rows if row["in_locagent_274"]])):
        if chosen:
            files = [row["file_rank"] for row in chosen]
            found = [_share(files, k) for k in (1, 5, 10)]
            reciprocal = sum(1 / rank for rank in files if rank) / len(files)
            functions = [row["function_rank"] for row in chosen]
            table.append(
                [label, len(chosen), *found, f"{reciprocal:.3f}", *(_share(functions, k) for k in (5, 10, 20))]
            )
    bench.show(
        f"Issues to code, strict, candidates: {candidates}",
        ["cases", "n", "file @1", "@5", "@10", "MRR", "function @5", "@10", "@20"],
        table,
        f"a query for files takes {bench.spread([row['milliseconds'] for row in rows], ' ms', 0)}, "
        f"all selectors {bench.spread([row['select_milliseconds'] for row in rows], ' ms', 0)}",
    )
    packed = [row for row in rows if "packs" in row]
    if packed:
        bench.show(
            "Recall inside packs",
            ["tokens", "n", "gold files touched", "gold functions whole", "pack"],
            [
                [
                    size,
                    len(packed),
                    f"{100 * np.mean([row['packs'][str(size)]['files'] for row in packed]):.1f}",
                    _mean_of([row["packs"][str(size)]["functions"] for row in packed if row["in_locagent_274"]]),
                    bench.spread([row["packs"][str(size)]["milliseconds"] for row in packed], " ms", 0),
                ]
                for size in _PACKS
            ],
        )


def overlap(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """What two runs over the same instances have in common, two stores for example."""
    beside = {row["id"]: row for row in others}
    pairs = [(row, beside[row["id"]]) for row in rows if row["id"] in beside]
    table = []
    for what in ("ranked", "functions"):
        shares = [_shared(one[what][:_TOP], other[what][:_TOP]) for one, other in pairs]
        same = sum(one[what][:_TOP] == other[what][:_TOP] for one, other in pairs)
        table.append([what, len(pairs), f"{100 * np.mean(shares):.1f}", f"{100 * min(shares):.0f}", same])
    bench.show(f"The first {_TOP} of two runs", ["what", "n", "in both %", "least %", "same in the same order"], table)


def _shared(one: Sequence[str], other: Sequence[str]) -> float:
    return len({*one} & {*other}) / max(len({*one}), len({*other}), 1)


def _mean_of(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f}" if known else "-"


def _share(ranks: Sequence[int | None], k: int) -> str:
    return f"{100 * sum(rank is not None and rank <= k for rank in ranks) / len(ranks):.1f}"


if __name__ == "__main__":
    main()
