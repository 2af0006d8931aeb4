"""Questions to code: does the right file come first, and does the right code stand in a small pack?

Context-OS and semble (BM25 and its ranking, without its model: ``alpha=0.0, rerank=True``) index the same plain folder:
the files of a revision below ``root``. Each gives its first 50 results.

  NDCG@10 files    ours as `context-os files` lists them, the peer's in order of first appearance; every relevant file
                   counts alike
  NDCG@10 results  the first ten results as they come, as semble's own evaluation counts
  recall in N      share of the relevant places inside a pack of N tokens: text of that file, overlapping the lines
                   where the question gives some. semble's results are put in as they fit, the best first

--questions: ``{"repo", "revision", "query", "relevant": [{"path", "start_line"?, "end_line"?}]}``, optionally with
"root" and "language".
Relevant files that the revision does not hold are not counted, questions left without any are not asked.
Interrupted, it goes on where it was: questions that stand in --out are skipped.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import _bench as bench

from context_os.app import App
from context_os.git import Git
from context_os.selectors import Request
from context_os.text import count_tokens

_TOP: Final = 50
_BUDGETS: Final = (1_000, 2_000, 4_000)
_NAME: Final = "questions"


@dataclass(frozen=True)
class Place:
    """Lines 1-based and inclusive; None for a whole file."""

    path: str
    start: int | None = None
    end: int | None = None

    def overlaps(self, other: Place) -> bool:
        if self.path != other.path:
            return False
        if None in (self.start, self.end, other.start, other.end):
            return True
        return (self.start or 0) <= (other.end or 0) and (other.start or 0) <= (self.end or 0)


@dataclass(frozen=True)
class Answer:
    """``results`` and ``files`` best first; ``packed`` gives what is inside a number of tokens."""

    results: Sequence[Place]
    files: Sequence[str]
    packed: Callable[[int], Sequence[Place]]
    seconds: float


def ndcg(ranks: Iterable[int], relevant: int, cut: int = 10) -> float:
    """Binary gains; ``ranks`` are 1-based places of what is relevant (Järvelin and Kekäläinen, 2002)."""
    gained = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= cut)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(relevant, cut) + 1))
    return gained / ideal if ideal else 0.0


def score(answer: Answer, targets: Sequence[Place]) -> dict[str, Any]:
    files = list(answer.files)
    wanted = {target.path for target in targets}
    first = [
        next((rank for rank, place in enumerate(answer.results, 1) if place.overlaps(target)), None)
        for target in targets
    ]
    inside = {budget: answer.packed(budget) for budget in _BUDGETS}
    return {
        "files": ndcg([files.index(path) + 1 for path in wanted if path in files], len(wanted)),
        "results": ndcg([rank for rank in first if rank], len(targets)),
        "recall": {
            str(budget): sum(any(place.overlaps(target) for place in places) for target in targets) / len(targets)
            for budget, places in inside.items()
        },
        "ranked": files,
        "milliseconds": round(1000 * answer.seconds, 2),
    }


def ask_product(app: App, query: str) -> Answer:
    request = Request(query, repositories=(_NAME,))
    seconds, hits = bench.timed(lambda: app.files(request, _TOP))
    ranked = app.select(request)
    sources = [each.item.source for each in ranked if each.item.source.path]

    def packed(budget: int) -> list[Place]:
        entries = app.pack(query, "", _NAME, budget).layers.active
        return [Place(entry.path, entry.start_line, entry.end_line) for entry in entries]

    places = [Place(each.path, each.start_line, each.end_line) for each in sources[:_TOP]]
    return Answer(places, [hit.path for hit in hits], packed, seconds)


class Semble:
    """The peer, in its own environment, with its cache in ``cache``."""

    def __init__(self, peers: Path, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [str(bench.python_of(peers)), str(bench.BENCHMARKS / "_peer_semble.py")],
            env={**os.environ, "SEMBLE_CACHE_LOCATION": str(cache.absolute()), "XDG_CACHE_HOME": str(cache.absolute())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.communicate()

    def request(self, **asked: Any) -> dict[str, Any]:
        """Raises RuntimeError when the peer died; its own words are on standard error then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"semble's process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, folder: Path, queries: Sequence[str]) -> list[Answer]:
        found = self.request(folder=str(folder), queries=list(queries), top=_TOP)
        return [
            Answer([_place(chunk) for chunk in chunks], _files(chunks), _packer(chunks), seconds)
            for chunks, seconds in zip(found["answers"], found["latencies"], strict=True)
        ]


def _place(chunk: dict[str, Any]) -> Place:
    return Place(chunk["path"], chunk["start"], chunk["end"])


def _files(chunks: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(chunk["path"] for chunk in chunks))


def _packer(chunks: Sequence[dict[str, Any]]) -> Callable[[int], list[Place]]:
    costs = [count_tokens(f"{chunk['path']}:{chunk['start']}-{chunk['end']}\n{chunk['text']}\n") for chunk in chunks]

    def packed(budget: int) -> list[Place]:
        taken = []
        for chunk, cost in zip(chunks, costs, strict=True):
            if cost <= budget:
                taken.append(_place(chunk))
                budget -= cost
        return taken

    return packed


@dataclass(frozen=True)
class Question:
    case: str
    query: str
    targets: tuple[Place, ...]


def questions_of(rows: Iterable[dict[str, Any]], git: Git) -> list[Question]:
    found = []
    for row in rows:
        there = {entry.path for entry in git.files(row["revision"])}
        targets = tuple(
            Place(each["path"], each.get("start_line"), each.get("end_line"))
            for each in row["relevant"]
            if each["path"] in there
        )
        if targets:
            found.append(Question(f"{row['repo']}: {row['query']}", row["query"], targets))
        else:
            bench.say(f"not asked, no relevant file at {row['revision'][:12]}: {row['repo']}: {row['query']}")
    return found


def measure(
    rows: Sequence[dict[str, Any]], git: Git, folder: Path, semble: Semble | None, done: bench.Cases, options: Any
) -> None:
    """All questions of one revision below one root."""
    left = [question for question in questions_of(rows, git) if question.case not in done]
    if not left:
        return
    about = {"repo": rows[0]["repo"], "language": rows[0].get("language", "")}
    bench.say(f"{about['repo']}: {len(left)} questions")
    tree = bench.export(git, rows[0]["revision"], folder / "tree", rows[0].get("root", ""))
    chosen = bench.with_weights(bench.settings_in(folder / "home", options.store), options.weights, about["repo"])
    with bench.opened(chosen) as app:
        bench.ingest(app, _NAME, tree, options.connector or ["symbols"], vectors=options.vectors)
        answers = {"context-os": [ask_product(app, question.query) for question in left]}
        if semble is not None:
            answers["semble"] = semble.ask(tree, [question.query for question in left])
        for number, question in enumerate(left):
            scores = {name: score(each[number], question.targets) for name, each in answers.items()}
            ours = scores["context-os"]
            top = {"ranked": ours["ranked"], "milliseconds": ours["milliseconds"]}
            done.add({"case": question.case, "id": question.case, **about, **top, "scores": scores})
            if options.snapshots:
                asked = Request(question.query, repositories=(_NAME,))
                kept = options.snapshots / f"{about['repo'].replace('/', '+')}-{number}"
                gold = [target.path for target in question.targets]
                bench.keep_snapshot(kept, app, asked, gold, repository=about["repo"])


def tell(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        bench.say("no question is measured yet")
        return
    methods = [name for name in rows[0]["scores"] if all(name in row["scores"] for row in rows)]
    groups = {"all": list(rows)}
    for key in ("language", "repo"):
        groups |= {
            name: [row for row in rows if row[key] == name] for name in sorted({row[key] for row in rows} - {""})
        }
    lines = []
    for name, group in groups.items():
        for method in methods:
            scores = [row["scores"][method] for row in group]
            means = [statistics.fmean(each[what] for each in scores) for what in ("files", "results")]
            means += [statistics.fmean(each["recall"][str(budget)] for each in scores) for budget in _BUDGETS]
            latency = bench.spread([each["milliseconds"] for each in scores], " ms", 1)
            lines.append([f"{name} (n={len(group)})", method, *(f"{mean:.3f}" for mean in means), latency])
    columns = ["questions", "method", "NDCG@10 files", "NDCG@10 results"]
    bench.show("Questions to code", [*columns, *(f"recall in {b // 1000}k" for b in _BUDGETS), "a query"], lines)


def main() -> None:
    parser = bench.arguments(__doc__, peers="semble")
    parser.add_argument("--questions", type=Path, required=True, help="JSONL, see above")
    parser.add_argument("--repos", type=Path, required=True, help='{"repo": "/path/to/git/directory", ...}')
    parser.add_argument("--out", type=Path, required=True, help="results, one question a line (JSONL)")
    parser.add_argument("--only", action="append", help="only questions of this repo; repeatable")
    parser.add_argument("--connector", action="append", help="what to ingest (default: symbols, as semble reads code)")
    parser.add_argument("--store", choices=("lab", "weaviate"), default="lab")
    parser.add_argument("--vectors", action="store_true", help="embed what is ingested before asking")
    parser.add_argument("--weights", type=Path, help="folder of fit_weights.py: each repository by the others' weights")
    parser.add_argument("--snapshots", type=Path, help="keep what fit_weights.py learns from in this folder")
    parser.add_argument("--work", type=Path, help="folder for what is indexed (default: beside --out)")
    options = parser.parse_args()
    work = (options.work or options.out.with_suffix(".work")).absolute()
    bench.machine(options.peers_venv, ["semble"])
    repositories = bench.read_repositories(options.repos)
    done = bench.Cases(options.out)
    semble = Semble(options.peers_venv, work / "semble") if bench.has(options.peers_venv, "semble") else None
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in bench.read_lines(options.questions):
        if not options.only or row["repo"] in options.only:
            groups.setdefault((row["repo"], row["revision"], row.get("root", "")), []).append(row)
    for number, ((repo, _, _), rows) in enumerate(groups.items()):
        if repo not in repositories:
            raise SystemExit(f"{options.repos} says nothing of {repo}, which {options.questions} asks about")
        folder = work / f"{number}-{repo.replace('/', '+')}"
        measure(rows, Git(repositories[repo]), folder, semble, done, options)
    if semble is not None:
        semble.close()
    asked = {repo for repo, _, _ in groups}
    tell([row for row in done.rows if row["repo"] in asked])


if __name__ == "__main__":
    main()
