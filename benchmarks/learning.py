"""Does it learn? Half of a repository's pull requests teach, the other half is reviewed with and without that.

A case is a merged pull request with one changed file left out of its diff, as in hidden_file.py; what the review should
have been given are the functions that the change touched in that file. The older half is reviewed first: each pack is
kept, what the pull request really touched becomes a trace, and each item that it touched gets a helpful vote. Then
`context-os playbook learn` makes lessons of the traces, by rule, without a model, and `context-os feedback tune` fits
the repository's own weights to the votes. The newer half is reviewed twice, by two homes that differ in nothing but
votes, lessons and weights: at each case's own base, with the history up to it. Nothing learns from the newer half, and
no case sees what came after it.

Tells for both: functions of the hidden file that stand wholly in packs of each budget, and the mean of that over the
budgets, which is what counts; packs that touch the hidden file at all; paired differences with their 95 % bootstrap
intervals (10,000 resamples of cases), exact McNemar, and each case that became worse by name. Interrupted, it goes on
where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import _bench as bench
import hidden_file
import numpy as np
from hidden_file import Case

from context_os.app import App
from context_os.evaluation import bootstrap, mcnemar
from context_os.feedback import Verdict, Vote
from context_os.git import Git
from context_os.learning import Trace, learn
from context_os.model import Actor, KnowledgeItem
from context_os.packs import ContextPack
from context_os.playbook import Playbooks

_ARMS: Final = ("untaught", "taught")
_CONNECTORS: Final = ("symbols", "documents", "pull_requests", "commits")


def mine(name: str, git: Git, number: int) -> list[Case]:
    """The newest pull requests of the main line that leave a file to hide, oldest first: without gaps, since what is
    learned is about work that goes on."""
    rows = git.text("log", "--first-parent", "-n", str(12 * number), "--format=%H%x09%s", git.resolve("HEAD"))
    found: list[Case] = []
    for head, _, subject in (row.partition("\t") for row in rows.splitlines()):
        case = hidden_file.case_of(name, git, head) if hidden_file.PULL.search(subject) else None
        if case is not None:
            found.append(case)
        if len(found) == number:
            break
    return found[::-1]


class Review:
    """One case at its base, in one home."""

    def __init__(self, app: App, git: Git, case: Case, budgets: Sequence[int]) -> None:
        self._app, self._case = app, case
        self.diff = hidden_file.diff_without(git, case)
        self._hidden = hidden_file.hidden_diff(git, case)
        self.packs: dict[int, ContextPack] = {each: app.pack("", self.diff, case.repo, each) for each in budgets}

    @property
    def pack(self) -> ContextPack:
        """The largest."""
        return self.packs[max(self.packs)]

    def gold(self) -> list[KnowledgeItem]:
        """The functions of the hidden file that the change touched."""
        return self._touched(self._hidden)

    def _touched(self, diff: str) -> list[KnowledgeItem]:
        return hidden_file.touched(self._app, self._case.repo, diff)

    def trace(self, number: int) -> Trace:
        carried = self._app.store.get(self._app.access, [entry.id for entry in self.pack.layers.active])
        touched = (*self.gold(), *self._touched(self.diff))
        return Trace(
            id=self._case.head[:40],
            at=datetime.fromtimestamp(number, UTC),
            pack=self.pack.id,
            paths=self._case.files,
            carried=tuple(dict.fromkeys(reference for item in carried for reference in _references(item))),
            touched=tuple(dict.fromkeys(reference for item in touched for reference in _references(item))),
        )

    def votes(self, at: datetime) -> list[Vote]:
        """What the change touched was worth having."""
        needed = {item.id for item in (*self.gold(), *self._touched(self.diff))}
        return [
            Vote(
                key=f"{self._case.name[:120]}:{id}",
                subject=id,
                verdict=Verdict.HELPFUL,
                at=at,
                principal="benchmark",
                actor=Actor.AUTOMATION,
                pack=self.pack.id,
                repository=self._case.repo,
            )
            for id in sorted(needed)
        ]

    def score(self) -> dict[str, Any]:
        gold = [item.id for item in self.gold()]
        functions, files = {}, {}
        for budget, pack in self.packs.items():
            whole = {entry.id for entry in pack.layers.active}
            functions[str(budget)] = sum(id in whole for id in gold) / len(gold) if gold else None
            files[str(budget)] = any(entry.path == self._case.hidden for entry in pack.layers.active)
        lessons = sum(entry.kind == "lesson" for entry in self.pack.layers.core)
        return {"functions": functions, "files": files, "gold": len(gold), "lessons": lessons}


def _references(item: KnowledgeItem) -> Iterable[str]:
    yield f"path:{item.source.path}"
    if item.kind in bench.CODE and item.symbols:
        yield f"symbol:{max(item.symbols, key=len)}"


class School:
    """One repository: the home that is taught, the one that is not, and the cases."""

    def __init__(self, folder: Path, name: str, location: Path, cases: Sequence[Case], budgets: Sequence[int]) -> None:
        self._folder, self._name, self._location, self._budgets = folder, name, location, budgets
        self._git = Git(location)
        half = len(cases) // 2
        self._lessons, self.exam = cases[:half], cases[half:]

    def teach(self) -> None:
        """Done once."""
        mark = self._folder / "taught.done"
        if mark.exists():
            return
        home = self._folder / "taught"
        traces = bench.Cases(self._folder / "traces.jsonl")
        for number, case in enumerate(self._lessons):
            if case.name not in traces:
                with self._at(home, case) as review:
                    votes = [each.model_dump(mode="json") for each in review.votes(datetime.now(UTC))]
                    trace = review.trace(number).model_dump(mode="json")
                    traces.add({"case": case.name, "trace": trace, "votes": votes, **review.score()})
                bench.say(f"{case.name} taught ({number + 1} of {len(self._lessons)})")
        untaught = self._folder / "untaught"
        shutil.rmtree(untaught, ignore_errors=True)
        shutil.copytree(home, untaught)
        self._learn(home, traces.rows)
        mark.touch()

    def _learn(self, home: Path, rows: Sequence[dict[str, Any]]) -> None:
        chosen = bench.settings_in(home)
        with bench.opened(chosen) as app:
            votes = [Vote.model_validate(vote) for row in rows for vote in row["votes"]]
            app.feedback.add(chosen.tenant, votes)
            traces = [Trace.model_validate(row["trace"]) for row in rows]
            learned = learn(Playbooks(chosen.home), chosen.tenant, self._name, traces, chosen.playbook.policy)
            bench.ingest(app, self._name, self._location, ["playbook"], self._lessons[-1].base)
            tuned = app.tuning.tune(self._name)
        kept = [each for each in learned.judged if each.applied and each.applied.outcome == "applied"]
        bench.say(f"{self._name}: {len(votes)} votes, {len(kept)} lessons of {len(traces)} traces")
        for each in tuned:
            bench.say(f"{each.model}: {each.before:.1%} -> {each.after:.1%}, {each.reason}")

    def examine(self, case: Case) -> dict[str, Any]:
        row: dict[str, Any] = {"case": case.name, **asdict(case)}
        for arm in _ARMS:
            with self._at(self._folder / arm, case) as review:
                row[arm] = review.score()
        return row

    def _at(self, home: Path, case: Case) -> _Opened:
        return _Opened(self, home, case)

    def open(self, home: Path, case: Case, app: App) -> Review:
        bench.ingest(app, self._name, self._location, _CONNECTORS, case.base)
        return Review(app, self._git, case, self._budgets)


class _Opened:
    """A review whose store is closed afterwards."""

    def __init__(self, school: School, home: Path, case: Case) -> None:
        self._school, self._home, self._case = school, home, case
        self._opened = bench.opened(bench.settings_in(home))

    def __enter__(self) -> Review:
        return self._school.open(self._home, self._case, self._opened.__enter__())

    def __exit__(self, *failure: Any) -> None:
        self._opened.__exit__(*failure)


# Telling


def tell(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        bench.say("no case is measured yet")
        return
    budgets = list(rows[0][_ARMS[0]]["functions"])
    groups = {repo: [row for row in rows if row["repo"] == repo] for repo in sorted({row["repo"] for row in rows})}
    table = [_line(name, group, budgets) for name, group in [*groups.items(), ("all", list(rows))]]
    table += [_line(f"all, {budget} tokens", rows, [budget]) for budget in budgets]
    columns = ["repository", "n", "functions whole, untaught %", "taught %", "gain", "95 %"]
    columns += ["file touched, untaught %", "taught %", "won, lost", "p"]
    bench.show(f"With and without what the older half taught, packs of {', '.join(budgets)}", columns, table)
    worse = [row for row in rows if _gain(row, budgets) < 0 or _lost(row, budgets[-1])]
    print(f"{len(worse)} of {len(rows)} became worse, {sum(_gain(row, budgets) > 0 for row in rows)} better:")
    for row in worse:
        before, after = (_whole(row[arm], budgets) for arm in _ARMS)
        lost = f", its file is not in the pack of {budgets[-1]} any more" if _lost(row, budgets[-1]) else ""
        print(f"  {row['case']}: functions {100 * before:.0f} % -> {100 * after:.0f} %{lost}")


def _lost(row: dict[str, Any], budget: str) -> bool:
    before, after = (bool(row[arm]["files"][budget]) for arm in _ARMS)
    return before and not after


def _line(name: str, rows: Sequence[dict[str, Any]], budgets: Sequence[str]) -> list[object]:
    counted = [row for row in rows if row["untaught"]["gold"]]
    gains = np.array([_gain(row, budgets) for row in counted])
    low, high = bootstrap(gains.tolist(), 0.95)
    files = [tuple(row[arm]["files"][budgets[-1]] for arm in _ARMS) for row in rows]
    won, lost = sum(after and not before for before, after in files), sum(b and not a for b, a in files)
    return [
        name,
        len(counted),
        *(f"{100 * np.mean([_whole(row[arm], budgets) for row in counted]):.1f}" for arm in _ARMS),
        f"{100 * gains.mean():+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        *(f"{100 * np.mean([pair[place] for pair in files]):.1f}" for place in range(2)),
        f"+{won} -{lost}",
        f"{mcnemar(won, lost):.3g}",
    ]


def _gain(row: dict[str, Any], budgets: Sequence[str]) -> float:
    before, after = (_whole(row[arm], budgets) for arm in _ARMS)
    return after - before


def _whole(score: dict[str, Any], budgets: Sequence[str]) -> float:
    return float(np.mean([score["functions"][budget] or 0 for budget in budgets]))


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--repos", type=Path, required=True, help='{"owner/name": "/path/to/git/directory", ...}')
    parser.add_argument("--out", type=Path, required=True, help="results, one case a line (JSONL)")
    parser.add_argument("--per-repository", type=int, default=200, help="pull requests of each (default: 200)")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[2_000, 4_000, 8_000],
        help="tokens of packs (default: 2000 4000 8000)",
    )
    options = parser.parse_args()
    bench.machine()
    done = bench.Cases(options.out)
    repositories = bench.read_repositories(options.repos)
    for name, location in repositories.items():
        folder = options.out.absolute().with_suffix(".work") / name.replace("/", "+")
        folder.mkdir(parents=True, exist_ok=True)
        school = School(folder, name, location, _cases(folder, name, location, options), options.budgets)
        school.teach()
        for number, case in enumerate(school.exam, start=1):
            if case.name not in done:
                done.add(school.examine(case))
                bench.say(f"{case.name} ({number} of {len(school.exam)})")
    tell([row for row in done.rows if row["repo"] in repositories])


def _cases(folder: Path, name: str, location: Path, options: Any) -> list[Case]:
    """Mined once."""
    file = folder / "cases.jsonl"
    if not file.exists():
        found = mine(name, Git(location), options.per_repository)
        file.write_text("".join(json.dumps(asdict(case)) + "\n" for case in found), encoding="utf-8")
    return [Case(**{**row, "files": tuple(row["files"])}) for row in bench.read_lines(file)]


if __name__ == "__main__":
    main()
