"""Review context: hide one changed file of a merged pull request; is it among the first files that the rest brings?

Cases come from the merge and squash commits of real repositories: the base is the commit before the change, and only
what is reachable from it is ingested or counted. One changed source file that the base holds is left out of the diff.
Candidates are all source files of the base (what the symbols connector lists), minus those in the diff, for every
method alike:

  context-os         what `context-os files` lists for the diff alone
  bm25               BM25 over whole files, the query is every word of the diff's touched lines and paths
  cochange           how often a file changed together with the diff's files in the last 2,000 commits
  code-review-graph  `code-review-graph impact` on a graph of the base (with --peers-venv)

Interrupted, it goes on where it was: cases that stand in --out are skipped.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import _bench as bench

from context_os.app import App
from context_os.change import parse_diff
from context_os.connectors import Known, Repository
from context_os.connectors.symbols import Symbols
from context_os.evaluation import mcnemar
from context_os.git import Git
from context_os.model import KnowledgeItem
from context_os.selectors import Request
from context_os.selectors.neighbours import changed_items
from context_os.text import words

PULL: Final = re.compile(r"^Merge pull request #\d+ |\(#\d+\)$")
TEST: Final = re.compile(r"(?:^|/)(?:tests?|specs?|__tests__)/|(?:^|/)test_|[_.-](?:test|spec)s?\.\w+$|Tests?\.\w+$")
_MOST_FILES: Final = 12
_SWEEPING: Final = 30
_COMMITS: Final = 2_000
_CUTS: Final = (1, 5, 10)
_TOP: Final = 100
_K1: Final = 1.2
_B: Final = 0.75


@dataclass(frozen=True)
class Case:
    """``files`` are the paths that stay in the diff, ``hidden`` the one that is left out. ``head`` may be ""."""

    repo: str
    base: str
    head: str
    files: tuple[str, ...]
    hidden: str

    @property
    def name(self) -> str:
        return f"{self.repo}@{(self.head or self.base)[:12]}-{self.hidden}"


# Cases


def mine(name: str, git: Git, number: int) -> list[Case]:
    """Cases evenly spread over the last pull requests of the main line, oldest first."""
    rows = git.text("log", "--first-parent", "-n", str(60 * number), "--format=%H%x09%s", git.resolve("HEAD"))
    heads = [sha for sha, _, subject in (row.partition("\t") for row in rows.splitlines()) if PULL.search(subject)]
    found: list[Case] = []
    # From the newest back until four times as many are found, so that the spread costs no more than that.
    for head in heads:
        case = case_of(name, git, head)
        if case is not None:
            found.append(case)
        if len(found) == 4 * number:
            break
    step = max(1, len(found) // number)
    return found[::step][:number][::-1]


def case_of(name: str, git: Git, head: str) -> Case | None:
    parents = git.text("rev-list", "--parents", "-n", "1", head).split()[1:]
    if not parents:
        return None
    changed = _changed(git, parents[0], head)
    if not 2 <= len(changed) <= _MOST_FILES:
        return None
    before, after = sources(git, parents[0]), sources(git, head)
    hideable = sorted(path for path, status in changed.items() if status == "M" and path in before)
    code = [path for path in changed if path in before or path in after]
    if not hideable or len(code) < 2:
        return None
    hidden = hideable[int(hashlib.sha256(head.encode()).hexdigest(), 16) % len(hideable)]
    return Case(name, parents[0], head, tuple(path for path in changed if path != hidden), hidden)


def _changed(git: Git, base: str, head: str) -> dict[str, str]:
    fields = git.text("diff", "-M", "--name-status", "-z", base, head).split("\0")
    changed: dict[str, str] = {}
    rest = iter(fields)
    for status in filter(None, rest):
        path = next(rest)
        if status[0] in "RC":
            path = next(rest)
        changed[path] = status[0]
    return changed


def sources(git: Git, revision: str) -> dict[str, str]:
    """Path to blob of what the product would read as source code at a commit."""
    listing = Symbols().scan(Repository("", Path(git.directory), "bench", revision), Known())
    return dict(listing.units)


def completed(git: Git, case: Case) -> Case:
    """With the commit that made the change, where the case does not name it: the one right after its base that touched
    those files; "" where there is none."""
    if case.head:
        return case
    wanted = {*case.files, case.hidden}
    rows = git.text("log", "--all", "--format=%H %P", f"--ancestry-path=^{case.base}", f"^{case.base}").splitlines()
    heads = [row.split()[0] for row in rows if row.split()[1:2] == [case.base]]
    touched = {head: set(_changed(git, case.base, head)) for head in heads}
    fitting = [head for head in heads if wanted <= touched[head]]
    return replace(case, head=min(fitting, key=lambda head: (len(touched[head]), head), default=""))


def diff_without(git: Git, case: Case) -> str:
    """What is left of the change; where nobody knows its lines, the names of its files."""
    if not case.head:
        return "".join(f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n" for path in case.files)
    plain = ("--no-color", "--no-ext-diff", "--no-textconv")
    return git.text("diff", "-M", *plain, case.base, case.head, "--", ".", f":(top,exclude,literal){case.hidden}")


def hidden_diff(git: Git, case: Case) -> str:
    """What the change did to the hidden file; "" where nobody knows."""
    if not case.head:
        return ""
    return git.text("diff", "-M", "--no-color", case.base, case.head, "--", f":(top,literal){case.hidden}")


def touched(app: App, repository: str, diff: str) -> list[KnowledgeItem]:
    """The functions and classes that a diff's lines overlap, as they are ingested."""
    reader = app.reader((repository,))
    return [item for file in parse_diff(diff).files for item in changed_items(reader, (repository,), file)]


# Baselines: each ranks the candidates, best first, and leaves out what it knows nothing of


def touched_words(diff: str) -> Counter[str]:
    """Words of the touched lines and of the paths, with how often they stand there."""
    change = parse_diff(diff)
    lines = (line for file in change.files for hunk in file.hunks for line in (*hunk.added, *hunk.removed))
    return Counter(word for text in (*lines, *change.paths) for word in words(text))


class FileWords:
    """The words of every blob that was ever asked for."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._known: dict[str, Counter[str]] = {}

    def bm25(self, query: Iterable[str], files: dict[str, str]) -> list[str]:
        """Robertson and Zaragoza (2009): text and path of each file, every word of the query once."""
        self._learn(files.values())
        bags = {path: self._known[sha] + Counter(words(path)) for path, sha in files.items() if sha in self._known}
        lengths = {path: bag.total() for path, bag in bags.items()}
        average = sum(lengths.values()) / max(len(lengths), 1)
        scores: dict[str, float] = defaultdict(float)
        for word in set(query):
            holders = [path for path, bag in bags.items() if word in bag]
            idf = math.log(1 + (len(bags) - len(holders) + 0.5) / (len(holders) + 0.5))
            for path in holders:
                count = bags[path][word]
                scores[path] += idf * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * lengths[path] / average))
        return _best(scores)

    def _learn(self, shas: Iterable[str]) -> None:
        for sha, data in self._git.blobs(list({sha for sha in shas if sha not in self._known})):
            self._known[sha] = Counter(words(data.decode("utf-8", "replace")))


def cochanged(git: Git, base: str, paths: Sequence[str], candidates: Iterable[str]) -> list[str]:
    """Files by how many commits before ``base`` changed them together with one of ``paths``."""
    allowed, given = set(candidates), set(paths)
    rows = git.text("log", "--no-merges", "-n", str(_COMMITS), "--name-only", "-z", "--format=%x01", base)
    counts: Counter[str] = Counter()
    for row in rows.split("\x01"):
        files = {path.strip("\n") for path in row.split("\0")} - {""}
        if len(files) <= _SWEEPING:
            for path in (files & allowed) - given:
                counts[path] += len(files & given)
    return _best({path: count for path, count in counts.items() if count})


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda path: (-scores[path], path))


class Graph:
    """code-review-graph on a work tree of its own."""

    def __init__(self, peers: Path, git: Git, folder: Path) -> None:
        self._command = peers / "bin" / "code-review-graph"
        self._git, self._tree = git, folder
        self._built = ""

    def impact(self, case: Case) -> list[str]:
        """On the graph of the last ``move``."""
        there = [path for path in case.files if (self._tree / path).is_file()]
        if not there:
            return []
        done = bench.run(
            [self._command, "impact", "--repo", self._tree, "--max-results", "500", "--files", *there], cwd=self._tree
        )
        nodes = json.loads(done.out).get("impacted_nodes", []) if done.code == 0 else []
        root = f"{self._tree}/"
        return list(dict.fromkeys(node["file_path"].removeprefix(root) for node in nodes))

    def move(self, base: str) -> None:
        """Build the graph of a commit, or bring it there from the last one."""
        if not self._tree.exists():
            bench.clone(Path(self._git.directory), self._tree, base)
        subprocess.run(["git", "-C", str(self._tree), "checkout", "-q", "-f", "--detach", base], check=True)
        verb = ["update", "--base", self._built] if self._built else ["build"]
        done = bench.run([self._command, *verb, "--repo", self._tree, "-q", "--skip-flows"], cwd=self._tree)
        if done.code == 0:
            self._built = base


# The product


class Product:
    """Context-OS, brought from base to base. Begun anew where the next base does not follow the last one, since what
    was ingested later would tell of the future."""

    def __init__(self, git: Git, name: str, home: Path, options: Any) -> None:
        self._git, self._name, self._home = git, name, home
        self._connectors = options.connector or ["symbols", "documents", "pull_requests", "commits"]
        self._vectors, self._snapshots, self._weights = options.vectors, options.snapshots, options.weights
        self._mark = home / "ingested-revision"

    def files(self, case: Case, diff: str) -> tuple[list[str], float]:
        """Ranked files, and the seconds that took."""
        if not self._follows(case.base):
            shutil.rmtree(self._home, ignore_errors=True)
        with bench.opened(bench.with_weights(bench.settings_in(self._home), self._weights, self._name)) as app:
            self._mark.write_text(case.base, encoding="utf-8")
            place = Path(self._git.directory)
            bench.ingest(app, self._name, place, self._connectors, case.base, vectors=self._vectors)
            request = Request("", parse_diff(diff), (self._name,))
            if self._snapshots:
                folder = self._snapshots / case.name.replace("/", "+")
                gold = [item.id for item in touched(app, self._name, hidden_diff(self._git, case))]
                bench.keep_snapshot(folder, app, request, [case.hidden], diff=diff, gold_items=gold)
            app.files(request, 1)  # what a server has in memory anyway
            seconds, hits = bench.timed(lambda: app.files(request, _TOP))
            return [hit.path for hit in hits], seconds

    def _follows(self, base: str) -> bool:
        if not self._mark.exists():
            return not self._home.exists()
        last = self._mark.read_text(encoding="utf-8")
        return self._git.text("merge-base", last, base).strip() == last


# Running and telling


def measure(
    case: Case, git: Git, product: Product, texts: FileWords, graph: Graph | None
) -> Iterator[tuple[str, list[str], float]]:
    """Each method's name, its files best first, and its seconds."""
    diff = diff_without(git, case)
    paths = parse_diff(diff).paths
    candidates = {path: sha for path, sha in sources(git, case.base).items() if path not in paths}

    def mine_only(files: Iterable[str]) -> list[str]:
        return [path for path in files if path in candidates]

    files, seconds = product.files(case, diff)
    yield "context-os", mine_only(files), seconds
    seconds, files = bench.timed(lambda: texts.bm25(touched_words(diff), candidates))
    yield "bm25", files, seconds
    seconds, files = bench.timed(lambda: cochanged(git, case.base, paths, candidates))
    yield "cochange", files, seconds
    if graph is not None:
        graph.move(case.base)
        seconds, files = bench.timed(lambda: graph.impact(case))
        yield "code-review-graph", mine_only(files), seconds


def row_of(case: Case, measured: Iterable[tuple[str, list[str], float]]) -> dict[str, Any]:
    ranks: dict[str, int | None] = {}
    took: dict[str, float] = {}
    ranked: dict[str, list[str]] = {}
    for method, files, seconds in measured:
        ranked[method] = files
        ranks[method] = files.index(case.hidden) + 1 if case.hidden in files else None
        took[method] = round(seconds, 4)
    kind = "test" if TEST.search(case.hidden) else "source"
    top = {"ranked": ranked["context-os"], "milliseconds": round(1000 * took["context-os"], 1)}
    return {"case": case.name, "id": case.name, **asdict(case), **top, "kind": kind, "ranks": ranks, "seconds": took}


def hits(rows: Sequence[dict[str, Any]], method: str, cut: int) -> int:
    return sum((row["ranks"][method] or math.inf) <= cut for row in rows)


def tell(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        bench.say("no case is measured yet")
        return
    methods = [name for name in rows[0]["ranks"] if all(name in row["ranks"] for row in rows)]
    groups = {"all": rows}
    groups |= {f"hidden {kind}": [row for row in rows if row["kind"] == kind] for kind in ("source", "test")}
    groups |= {repo: [row for row in rows if row["repo"] == repo] for repo in sorted({row["repo"] for row in rows})}
    lines = []
    for name, group in groups.items():
        for method in methods:
            shares = [f"{100 * hits(group, method, cut) / len(group):.1f}" for cut in _CUTS] if group else []
            times = [row["seconds"][method] for row in group]
            lines.append([f"{name} (n={len(group)})", method, *shares, bench.spread(times, " s")])
    columns = ["cases", "method", *(f"@{cut} %" for cut in _CUTS), "a query"]
    bench.show("Is the hidden file among the first k?", columns, [line for line in lines if len(line) == len(columns)])
    for other in methods[1:]:
        for cut in _CUTS:
            won = [(_hit(row, methods[0], cut), _hit(row, other, cut)) for row in rows]
            gained, lost = sum(a and not b for a, b in won), sum(b and not a for a, b in won)
            print(f"{methods[0]} against {other} @{cut}: +{gained} -{lost}, p={mcnemar(gained, lost):.3g}")


def _hit(row: dict[str, Any], method: str, cut: int) -> bool:
    return (row["ranks"][method] or math.inf) <= cut


def cases_of(options: Any, repositories: dict[str, Path]) -> list[Case]:
    """Those of --cases, else mined; --cases that does not exist yet is written."""
    if options.cases and options.cases.exists():
        rows = bench.read_lines(options.cases)
        return [Case(row["repo"], row["base"], row.get("head", ""), tuple(row["files"]), row["hidden"]) for row in rows]
    found = [case for name, place in repositories.items() for case in mine(name, Git(place), options.per_repository)]
    if options.cases:
        options.cases.parent.mkdir(parents=True, exist_ok=True)
        options.cases.write_text("".join(json.dumps(asdict(case)) + "\n" for case in found), encoding="utf-8")
    return found


def main() -> None:
    parser = bench.arguments(__doc__, peers="code-review-graph")
    parser.add_argument("--repos", type=Path, required=True, help='{"owner/name": "/path/to/git/directory", ...}')
    parser.add_argument("--cases", type=Path, help="cases to use (JSONL); where it is not there yet, it is written")
    parser.add_argument("--out", type=Path, required=True, help="results, one case a line (JSONL)")
    parser.add_argument("--per-repository", type=int, default=25, help="cases of each repository (default: 25)")
    parser.add_argument(
        "--connector", action="append", help="what to ingest (default: symbols, documents, pull_requests, commits)"
    )
    parser.add_argument("--weights", type=Path, help="folder of fit_weights.py: each repository by the others' weights")
    parser.add_argument("--snapshots", type=Path, help="keep what fit_weights.py learns from in this folder")
    parser.add_argument("--vectors", action="store_true", help="embed what is ingested before asking")
    parser.add_argument("--work", type=Path, help="folder for what is ingested (default: beside --out)")
    options = parser.parse_args()
    options.work = options.work or options.out.with_suffix(".work")
    peers = options.peers_venv if bench.has(options.peers_venv, "code-review-graph") else None
    bench.machine(options.peers_venv, ["code-review-graph"])
    repositories = bench.read_repositories(options.repos)
    done = bench.Cases(options.out)
    every = cases_of(options, repositories)
    for name, place in repositories.items():
        git, folder = Git(place), (options.work / name.replace("/", "+")).absolute()
        left = [case for case in every if case.repo == name and case.name not in done]
        product, texts = (
            Product(git, name, folder / "home", options),
            FileWords(git),
        )
        graph = Graph(peers, git, folder / "tree") if peers else None
        for number, case in enumerate(left, start=1):
            bench.say(f"{case.name} ({number} of {len(left)})")
            known = completed(git, case)
            done.add(row_of(case, measure(known, git, product, texts, graph)))
    tell([row for row in done.rows if row["repo"] in repositories])


if __name__ == "__main__":
    main()
