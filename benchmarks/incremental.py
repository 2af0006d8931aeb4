"""What a change costs, and whether it is seen: Context-OS and its peers on one work tree that changes step by step.

  cold        nothing is known yet
  no change   nothing happened since
  edited      one file: a function is renamed
  same stat   the same file: renamed once more, to a name of equal length, and the file's time put back
  deleted     that file is gone
  touched     every file gets a new time, none a new content

Every round begins anew on its own clone. After edits each index is asked for the new name, after the deletion for the
last one: "missed" says that it did not know, or still knew. "in process" leaves out the start of the program (for
Context-OS: also Dagster, whose run is in the whole process; its gate is warm). semble runs without its model
(see _peer_semble.py), CocoIndex splits source files into SQLite, code-review-graph runs with its defaults.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import _bench as bench

from context_os.app import App
from context_os.connectors import Known, Repository
from context_os.connectors.symbols import Symbols
from context_os.stores import Filter, Mode

STEPS: Final = ("cold", "no change", "edited", "same stat", "deleted", "touched")
_NAME: Final = "bench"


@dataclass(frozen=True)
class Took:
    """Seconds; None where an arm has no such measurement."""

    whole: float | None
    inside: float | None


class Arm(Protocol):
    """One program with a state of its own. ``knows`` asks what its index holds, and is not measured."""

    name: str

    def update(self) -> Took: ...

    def knows(self, word: str) -> bool: ...


# The work tree


class Tree:
    """A clone, its victim (a source file with a function of a long enough name) and what to expect after each step."""

    def __init__(self, location: Path, folder: Path, revision: str) -> None:
        self.folder = bench.clone(location, folder, revision)
        self.units = list(Symbols().scan(self._repository(), Known()).units)
        self.file, self.word = self._victim()

    def _repository(self) -> Repository:
        return Repository(_NAME, self.folder, "bench")

    def _victim(self) -> tuple[Path, str]:
        """From the middle of the list on, so that it is no accident of the first folder."""
        symbols = Symbols()
        listing = symbols.scan(self._repository(), Known())
        middle = len(self.units) // 2
        for path in (self.units[middle:] + self.units[:middle])[:200]:
            for unit in symbols.read(self._repository(), listing, [path]):
                for item in unit.items:
                    word = re.split(r"\W", item.symbols[0])[-1] if item.symbols else ""
                    if item.kind == "function" and len(word) >= 8 and word.isascii():
                        return self.folder / path, word
        raise SystemExit(f"no function with a name of 8 letters in the first 200 files of {self.folder}")

    def step(self, name: str) -> tuple[str, bool]:
        """Do it; returns a word and whether an index that is up to date knows it."""
        if name == "edited":
            self._rename("zq" + self.word)
        elif name == "same stat":
            before = self.file.stat()
            self._rename("qz" + self.word[2:])
            os.utime(self.file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert self.file.stat().st_size == before.st_size
        elif name == "deleted":
            self.file.unlink()
        elif name == "touched":
            for path in self.units:
                if (self.folder / path).exists():
                    os.utime(self.folder / path)
        return self.word, name not in {"deleted", "touched"}

    def _rename(self, word: str) -> None:
        text = self.file.read_bytes()
        self.file.write_bytes(re.sub(rb"\b%s\b" % self.word.encode(), word.encode(), text))
        self.word = word


# Context-OS


def _holds(app: App, word: str) -> bool:
    """To the letter: a search also finds what shares a part of the name."""
    hits = app.search(word, Mode.KEYWORD, 50, Filter(repositories=(_NAME,)))
    return any(word in hit.item.payload.text for hit in hits)


def warm_up(folder: Path) -> None:
    """The gate takes seconds to import what it needs: let it, on a file of nobody's."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "one.py").write_text("def one():\n    return 1\n", encoding="utf-8")
    with bench.opened(bench.settings_in(folder / "home")) as app:
        bench.ingest(app, "warm-up", folder / "code", ["symbols"])


class InProcess:
    name = "context-os, in process"

    def __init__(self, tree: Tree, home: Path, connectors: Sequence[str]) -> None:
        self._tree, self._settings, self._connectors = tree, bench.settings_in(home), connectors
        warm_up(home.with_name(f"{home.name}-warm-up"))

    def update(self) -> Took:
        def work() -> None:
            with bench.opened(self._settings) as app:
                bench.ingest(app, _NAME, self._tree.folder, self._connectors)

        return Took(None, bench.timed(work)[0])

    def knows(self, word: str) -> bool:
        with bench.opened(self._settings) as app:
            return _holds(app, word)


class CommandLine:
    name = "context-os"

    def __init__(self, tree: Tree, home: Path, connectors: Sequence[str]) -> None:
        self._settings = bench.settings_in(home)
        chosen = [part for name in connectors for part in ("--connector", name)]
        self._command = bench.command("ingest", tree.folder, "--name", _NAME, "--json", *chosen)
        self._home = home

    def update(self) -> Took:
        done = bench.run(self._command, cwd=self._home, env=bench.environment(self._home))
        return Took(done.seconds, None if done.code else float(json.loads(done.out)["seconds"]))

    def knows(self, word: str) -> bool:
        with bench.opened(self._settings) as app:
            return _holds(app, word)


# Peers


class Semble:
    name = "semble"

    def __init__(self, tree: Tree, state: Path, peers: Path) -> None:
        self._folder = str(tree.folder)
        self._env = {"SEMBLE_CACHE_LOCATION": str(state), "XDG_CACHE_HOME": str(state)}
        self._script = [bench.python_of(peers), bench.BENCHMARKS / "_peer_semble.py"]

    def update(self) -> Took:
        done, answer = self._ask({"folder": self._folder})
        return Took(done, answer["seconds"])

    def knows(self, word: str) -> bool:
        _, answer = self._ask({"folder": self._folder, "queries": [word], "top": 20})
        return any(word in chunk["text"] for chunk in answer["answers"][0])

    def _ask(self, request: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        done = bench.run(self._script, env=self._env, input=json.dumps(request) + "\n")
        if done.code:
            raise RuntimeError(f"semble ended with {done.code}")
        answer: dict[str, Any] = json.loads(done.out)
        return done.seconds, answer


class CocoIndex:
    name = "cocoindex"

    def __init__(self, tree: Tree, state: Path, peers: Path) -> None:
        endings = sorted({Path(path).suffix for path in tree.units})
        self._state = state
        self._command: list[str | Path] = [
            bench.python_of(peers),
            bench.BENCHMARKS / "_peer_cocoindex.py",
            tree.folder,
            state,
            *endings,
        ]

    def update(self) -> Took:
        done = bench.run(self._command, env={"COCOINDEX_DISABLE_USAGE_TRACKING": "1"})
        if done.code:
            raise RuntimeError(f"cocoindex ended with {done.code}")
        return Took(done.seconds, float(json.loads(done.out.splitlines()[-1])["seconds"]))

    def knows(self, word: str) -> bool:
        return _in_table(self._state / "chunks.db", "SELECT 1 FROM chunks WHERE instr(text, ?)", word)


class Graph:
    name = "code-review-graph"

    def __init__(self, tree: Tree, state: Path, peers: Path) -> None:
        self._command = peers.absolute() / "bin" / "code-review-graph"
        self._tree, self._built, self._home = tree.folder, False, state

    def update(self) -> Took:
        verb = "update" if self._built else "build"
        self._home.mkdir(parents=True, exist_ok=True)
        env = {"HOME": str(self._home)}
        done = bench.run([self._command, verb, "--repo", self._tree, "-q"], cwd=self._tree, env=env)
        if done.code:
            raise RuntimeError(f"code-review-graph {verb} ended with {done.code}")
        self._built = True
        return Took(done.seconds, None)

    def knows(self, word: str) -> bool:
        return any(
            _in_table(file, "SELECT 1 FROM nodes WHERE name = ?", word)
            for file in (self._tree / ".code-review-graph").glob("*.db")
        )


ARMS: Final = (InProcess.name, CommandLine.name, Semble.name, CocoIndex.name, Graph.name)


def _in_table(file: Path, query: str, word: str) -> bool:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        return connection.execute(query, (word,)).fetchone() is not None


# Running and telling


def arms(tree: Callable[[str], Tree], folder: Path, options: Any) -> list[tuple[Arm, Tree]]:
    """Each with a clone and a state of its own, so that nobody sees another's files."""
    connectors, wanted = options.connector or ["symbols"], set(ARMS) - set(options.without or ())
    made: list[tuple[Arm, Tree]] = []
    for name in (InProcess.name, CommandLine.name):
        if name in wanted:
            own, home = tree(name.replace(" ", "-")), folder / f"{name}-home"
            kind = InProcess if name == InProcess.name else CommandLine
            made.append((kind(own, home, connectors), own))
    for peer in (Semble, CocoIndex, Graph):
        if peer.name in wanted and bench.has(options.peers_venv, peer.name):
            own = tree(peer.name)
            made.append((peer(own, folder / f"{peer.name}-state", options.peers_venv), own))
    return made


def measure(options: Any, number: int, folder: Path, done: bench.Cases) -> None:
    def tree(name: str) -> Tree:
        return Tree(options.repository, folder / name, options.revision)

    for arm, own in arms(tree, folder, options):
        steps: dict[str, Any] = {}
        case = f"{options.repository} {number} {arm.name}"
        if case in done:
            continue
        for step in STEPS:
            bench.say(f"round {number + 1}: {arm.name}: {step}")
            word, expected = own.step(step)
            took = arm.update()
            steps[step] = {"whole": took.whole, "inside": took.inside, "seen": arm.knows(word) is expected}
        done.add({"case": case, "arm": arm.name, "files": len(own.units), "steps": steps})


def tell(rows: Sequence[dict[str, Any]]) -> None:
    lines = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        group = [row["steps"] for row in rows if row["arm"] == name]
        for what, label in (("whole", "whole process"), ("inside", "in process")):
            cells = []
            for step in STEPS:
                times = [steps[step][what] for steps in group if steps[step][what] is not None]
                missed = "" if all(steps[step]["seen"] for steps in group) else " missed"
                cells.append(bench.spread(times) + missed if times else "-")
            if set(cells) != {"-"}:
                lines.append([name, label, *cells])
    note = f"seconds, median (range); {rows[0]['files']:,} source files" if rows else ""
    bench.show("Incremental ingestion", ["what", "measured", *STEPS], lines, note)


def main() -> None:
    parser = bench.arguments(__doc__, peers="cocoindex semble code-review-graph")
    parser.add_argument("--repository", type=Path, required=True, help="a git directory or work tree; it is cloned")
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--connector", action="append", help="repeatable (default: symbols, since peers read code)")
    parser.add_argument("--without", action="append", choices=ARMS, help="leave this out; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep every round (JSONL); what is there is not repeated")
    options = parser.parse_args()
    options.repository = options.repository.absolute()
    bench.machine(options.peers_venv, ["cocoindex", "semble", "code-review-graph"])
    with tempfile.TemporaryDirectory(prefix="incremental-") as folder:
        done = bench.Cases(options.out or Path(folder) / "rounds.jsonl")
        for number in range(options.rounds):
            place = Path(folder) / str(number)
            place.mkdir()
            measure(options, number, place, done)
            shutil.rmtree(place)
        tell([row for row in done.rows if row["case"].startswith(f"{options.repository} ")])


if __name__ == "__main__":
    main()
