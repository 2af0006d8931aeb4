"""What the benchmarks share: measuring, results that outlive an interruption, tables, Context-OS in this process."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from context_os import settings
from context_os.app import App, open_app
from context_os.connectors import Repository
from context_os.git import Git
from context_os.ingestion import Ingestion
from context_os.selectors import Request
from context_os.selectors.hybrid import asked_of, nearness
from context_os.stores import Filter

BENCHMARKS: Final = Path(__file__).parent
CODE: Final = frozenset({"function", "method", "class"})
"""Kinds of items that are code a person would change."""
_SAMPLING: Final = 0.05
_T = TypeVar("_T")
Settings = settings.Settings


# Arguments and answers


def arguments(doc: str | None, *, peers: str = "") -> argparse.ArgumentParser:
    """A parser whose help is the script's own docstring. ``peers`` is what --peers-venv has to hold."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if peers:
        parser.add_argument(
            "--peers-venv",
            type=Path,
            help=f"a virtual environment of its own with the peers: python -m venv P && P/bin/pip install {peers}",
        )
    return parser


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """A table; every column but the first is a number."""
    table = Table(title=title, caption=note or None, caption_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(peers: Path | None = None, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Where this is measured; printed, and to be kept with the numbers."""
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "context-os": version("context-os"),
    }
    found |= {name: peer_version(peers, name) for name in packages}
    print("machine: " + ", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    return found


def peer_version(peers: Path | None, package: str) -> str:
    """The version of a package in the peers' environment, or why there is none."""
    if peers is None:
        return "not given"
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python_of(peers)), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


def has(peers: Path | None, package: str) -> bool:
    return peer_version(peers, package) not in {"not given", "not installed"}


def python_of(peers: Path) -> Path:
    """Raises SystemExit for what is no environment."""
    python = peers.absolute() / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{peers} is no virtual environment: there is no {python}")
    return python


# Numbers


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Median and range, as every table here shows repeated measurements."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    ends = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{middle}{ends}{unit}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds, and what it gave."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


# Results that outlive an interruption


class Cases:
    """One JSON object a line, each with a ``case``; what is there already is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read_lines(path) if path.exists() else []
        self._done = {row["case"] for row in self.rows}

    def __contains__(self, case: str) -> bool:
        return case in self._done

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._done.add(row["case"])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. A last line that an interruption cut off is dropped from the file too."""
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        rows = [json.loads(line) for line in whole.splitlines() if line.strip()]
        path.write_text(text[: len(text) - len(rest)], encoding="utf-8")
        return rows


def read_repositories(path: Path) -> dict[str, Path]:
    """``{"owner/name": "/path/to/a/git/directory"}``; relative paths are relative to the file."""
    listed = json.loads(path.read_text(encoding="utf-8"))
    return {name: (path.parent / Path(place).expanduser()).resolve() for name, place in listed.items()}


# Other processes


@dataclass(frozen=True)
class Ran:
    """``peak`` is the proportional memory of the process and all below it, in MB, sampled every 50 ms."""

    seconds: float
    peak: float
    code: int
    out: str
    err: str


def run(
    command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None, input: str = ""
) -> Ran:
    """One process, measured. A failure is told, not raised."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = Memory(process.pid)
    with watch:
        out, err = process.communicate(input)
    seconds = time.perf_counter() - started
    if process.returncode:
        say(f"exit {process.returncode}: {' '.join(map(str, command))}\n{err[-2000:]}")
    return Ran(seconds, watch.peak, process.returncode, out, err)


class Memory:
    """Samples a process and everything below it while the block runs. ``peak`` in MB."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, sum(map(_memory, _tree(self.pid))) / 1024)
            self._over.wait(_SAMPLING)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                yield from _tree(int(child))
        except OSError:
            continue


def _memory(pid: int) -> int:
    """KiB. Proportional, so that what processes share counts once."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


# Context-OS


def command(*arguments: str | Path) -> list[str | Path]:
    """A ``context-os`` command line of this very environment."""
    return [Path(sys.executable).with_name("context-os"), *arguments]


def environment(home: Path, store: str = "lab") -> dict[str, str]:
    """For a child that shall have its state in ``home``, see ``settings_in``."""
    kind = {"CONTEXT_OS_STORE__KIND": store, "CONTEXT_OS_HOME": str(home)}
    return kind if store == "lab" else {**kind, "CONTEXT_OS_STORE__COLLECTION": collection_of(home)}


def settings_in(home: Path, store: str = "lab") -> Settings:
    """The settings of this environment with another home. The store ``weaviate`` is the server of the environment
    (CONTEXT_OS_STORE__URL), with a collection named after the home, so that nothing of yours is touched."""
    home.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {"kind": store}
    if store != "lab":
        chosen["collection"] = collection_of(home)
    found = settings.load({"home": str(home), "store": chosen}, start=home)
    if store != "lab" and not found.store.url:
        raise SystemExit("set CONTEXT_OS_STORE__URL, CONTEXT_OS_STORE__GRPC_PORT and CONTEXT_OS_STORE__API_KEY")
    return found


def with_weights(chosen: Settings, folder: Path | None, repository: str) -> Settings:
    """With the weights that fit_weights.py --write found without this repository, if a folder of them is given."""
    if folder is None:
        return chosen
    file = (folder / f"{repository.replace('/', '+')}.toml").resolve(strict=True)
    return chosen.model_copy(update={"weights": file})


def collection_of(home: Path) -> str:
    return "Bench" + hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:16]


def drop(chosen: Settings) -> None:
    """Take the collection of these settings off the server."""
    if chosen.store_kind != "lab":
        from context_os.stores.weaviate import WeaviateStore

        with chosen.open_store() as store:
            assert isinstance(store, WeaviateStore)
            store._client().collections.delete(store.collection)


@contextmanager
def opened(chosen: Settings) -> Iterator[App]:
    with open_app(chosen) as app:
        yield app


def ingest(
    app: App,
    name: str,
    location: Path,
    connectors: Sequence[str],
    revision: str | None = None,
    *,
    vectors: bool = False,
) -> None:
    """Stage, judge and index in this process, as Dagster's assets do, without Dagster. Where nothing changed it ends
    after looking, as the command line does. ``vectors`` waits until every item has one."""
    app.ledger.register(name, location)
    repository = Repository(name, location, app.settings.tenant, revision)
    ingestion = Ingestion(app.settings, app.store, app.ledger)
    for connector in connectors:
        ingestion.update(connector, repository)
        if vectors and not ingestion.embed(connector, name).version:
            raise SystemExit("no embedding is on this machine; get one with `context-os embedding fetch`")


# Snapshots


def keep_snapshot(
    folder: Path,
    app: App,
    request: Request,
    gold_files: Sequence[str],
    gold_functions: Sequence[str] = (),
    diff: str = "",
    repository: str = "",
    gold_items: Sequence[str] = (),
) -> None:
    """What fit_weights.py learns from: the statistics themselves, how near every document is, and what is gold: files,
    and functions as ``path:Qualified.name`` or as the ids of their items. ``diff`` is what the request's change was
    read from, ``repository`` the name to fit by, where another one is ingested."""
    (name,) = request.repositories
    reader = app.reader((name,))
    assert reader.corpus is not None
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(app.segment_files((name,))):
        shutil.copyfile(file, folder / f"{number}.npz")
    for key, cosines in zip(("whole", "title"), nearness(reader, reader.corpus, asked_of(request)), strict=True):
        if cosines is not None:
            np.save(folder / f"{key}.npy", cosines.astype(np.float16))
    ids = [*_ids_of(app, name, gold_functions), *gold_items]
    about = {
        "repo": repository or name,
        "question": request.question,
        "diff": diff,
        "gold_files": list(gold_files),
        "gold_functions": len(gold_functions) + len(gold_items),
        "gold_documents": reader.corpus.documents_of(ids).tolist(),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _ids_of(app: App, repository: str, functions: Sequence[str]) -> list[str]:
    """The ids of those that are ingested."""
    if not functions:
        return []
    paths = tuple({each.partition(":")[0] for each in functions})
    here = Filter(repositories=(repository,), paths=paths, kinds=tuple(CODE))
    items = app.store.scan(app.access, here, limit=20_000).items
    held = {f"{item.source.path}:{item.payload.structured.get('qualified_name', '')}": item.id for item in items}
    return [held[each] for each in functions if each in held]


# Repositories


def export(git: Git, revision: str, folder: Path, root: str = "") -> Path:
    """The files of a commit (below ``root``) in a plain folder, their paths kept. Done once."""
    mark = folder.with_name(f"{folder.name}.done")
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = git.run("archive", "--format=tar", git.resolve(revision), *([root] if root else []))
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        mark.touch()
    return folder


def clone(location: Path, folder: Path, revision: str = "HEAD") -> Path:
    """A clone with a work tree, sharing no file with its source."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", "-n", str(location), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "-q", "--detach", revision], check=True)
    return folder
