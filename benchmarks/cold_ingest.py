"""How long a repository takes from nothing to the first answer, beside what its parser alone takes.

Every round begins with a new CONTEXT_OS_HOME and measures

  ingest      `context-os ingest`, the whole process, and the seconds that it reports itself
  first pack  from the start of that to the end of a first `context-os pack --question`
  peak        proportional memory of the process and all its children
  parser      tree-sitter alone parsing the very same files, which are in memory already: in one process and in one for
              each usable core. That is the limit; the ratio is ingest / parser on all cores
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import _bench as bench
from tree_sitter import Parser

from context_os.connectors import Known, Repository
from context_os.connectors._languages import compiled, language_of
from context_os.connectors.symbols import Symbols
from context_os.git import Git

Sources = list[tuple[str, bytes]]


def sources(location: Path, revision: str | None) -> Sources:
    """Path and content of what the symbols connector lists; where there is no work tree, at the revision or HEAD."""
    git = Git(location)
    listing = Symbols().scan(Repository("bench", location, "bench", revision), Known())
    if git.worktree is not None and revision is None:
        return [(path, (git.worktree / path).read_bytes()) for path in listing.units]
    paths: dict[str, list[str]] = {}
    for path, sha in listing.units.items():
        paths.setdefault(sha, []).append(path)
    return [(path, data) for sha, data in git.blobs(list(paths)) for path in paths[sha]]


def parse(files: Sequence[tuple[str, bytes]]) -> int:
    """Number of trees. Files that the grammars never finish, which the product leaves out, are left out here too."""
    parsers: dict[tuple[str, str], Parser] = {}
    number = 0
    for path, data in files:
        language = language_of(path, data)
        if language is None or re.search(language.endless, data):
            continue
        if language.grammar not in parsers:
            parsers[language.grammar] = Parser(compiled(language.grammar, language.query)[0])
        parsers[language.grammar].parse(data)
        number += 1
    return number


_shared: list[Sources] = []


def _parse_share(number: int) -> int:
    return parse(_shared[number])


def parser_seconds(files: Sources) -> tuple[float, float]:
    """In one process, and in one for each usable core, whose shares are of equal size."""
    cores = len(os.sched_getaffinity(0))
    _shared[:] = [[] for _ in range(cores)]
    loads = [0] * cores
    for path, data in sorted(files, key=lambda file: -len(file[1])):
        least = loads.index(min(loads))
        _shared[least].append((path, data))
        loads[least] += len(data)
    parse(files[:50])
    alone, _ = bench.timed(lambda: parse(files))
    # Not multiprocessing.Pool, which may wait for ever for a worker that it ended while that held the queue.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_parse_share, range(cores)))  # the first time copies memory and loads grammars
        together, _ = bench.timed(lambda: list(pool.map(_parse_share, range(cores))))
    return alone, together


def measure(options: Any, files: Sources, home: Path) -> dict[str, Any]:
    env = bench.environment(home, options.store)
    parts = ["--name", "bench", "--json", *(["--revision", options.revision] if options.revision else [])]
    parts += [part for name in options.connector or [] for part in ("--connector", name)]
    ingested = bench.run(bench.command("ingest", options.repository, *parts), cwd=home, env=env)
    if ingested.code:
        raise SystemExit(f"context-os ingest ended with {ingested.code}")
    told = json.loads(ingested.out)
    question = ["pack", "--question", options.question, "--repository", "bench", "--max-tokens", "4000", "--json"]
    packed = bench.run(bench.command(*question), cwd=home, env=env)
    if packed.code:
        raise SystemExit(f"context-os pack ended with {packed.code}")
    alone, together = parser_seconds(files)
    return {
        "ingest": ingested.seconds,
        "reported": told["seconds"],
        "items": told["reconcile"]["store"],
        "first_pack": ingested.seconds + packed.seconds,
        "peak": ingested.peak,
        "parser_one": alone,
        "parser_all": together,
        "connectors": {name: each["seconds"] for name, each in told["connectors"].items()},
        "disk_mb": sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) / 2**20,
    }


def tell(rows: Sequence[dict[str, Any]], files: Sources) -> None:
    size = sum(len(data) for _, data in files) / 2**20

    def column(name: str) -> list[float]:
        return [row[name] for row in rows]

    ratios = [row["ingest"] / row["parser_all"] for row in rows]
    lines = [
        ["ingest, whole process", bench.spread(column("ingest"), " s")],
        ["ingest, as it reports", bench.spread(column("reported"), " s")],
        ["to the first pack", bench.spread(column("first_pack"), " s")],
        ["peak memory", bench.spread(column("peak"), " MB", 0)],
        ["on disk", bench.spread(column("disk_mb"), " MB", 1)],
        ["parser, one core", bench.spread(column("parser_one"), " s")],
        ["parser, all cores", bench.spread(column("parser_all"), " s")],
        ["ingest / parser on all cores", bench.spread(ratios)],
    ]
    parts = {name: [row["connectors"][name] for row in rows] for name in rows[0]["connectors"]}
    lines += [[f"connector {name}", bench.spread(seconds, " s")] for name, seconds in parts.items()]
    note = f"{len(files):,} source files, {size:.1f} MB, {rows[0]['items']:,} items"
    bench.show("Cold ingest", ["what", f"median (range) of {len(rows)}"], lines, note)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="a work tree or a bare git directory")
    parser.add_argument("--revision", help="a commit (default: the work tree, HEAD of a bare repository)")
    parser.add_argument("--store", choices=("lab", "weaviate"), default="lab")
    parser.add_argument("--connector", action="append", help="only this connector; repeatable (default: all)")
    parser.add_argument("--question", default="where are errors raised and handled", help="for the first pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep every round (JSONL); rounds that are there are not repeated")
    options = parser.parse_args()
    options.repository = options.repository.absolute()
    about = bench.machine()
    files = sources(options.repository, options.revision)
    with tempfile.TemporaryDirectory(prefix="cold-ingest-") as folder:
        done = bench.Cases(options.out or Path(folder) / "rounds.jsonl")
        for number in range(options.rounds):
            case = f"{options.repository} {options.revision or ''} {options.store} {number}"
            if case not in done:
                home = Path(folder) / f"home-{number}"
                home.mkdir()
                bench.say(f"round {number + 1} of {options.rounds}")
                try:
                    done.add({"case": case, "machine": about, **measure(options, files, home)})
                finally:
                    bench.drop(bench.settings_in(home, options.store))
                    shutil.rmtree(home)
        tell(done.rows[-options.rounds :], files)


if __name__ == "__main__":
    main()
