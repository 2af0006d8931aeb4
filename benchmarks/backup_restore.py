"""What backups cost: seconds, bytes and peak memory of a backup, a wipe, a restore and a drill, in and between stores.

A synthetic monorepo (that of growth.py) is ingested into the embedded store and gets vectors without meaning, 256
numbers each. Then every step is a whole `context-os backup` process, but the wipe, which has no command: lab is backed
up, wiped and restored; that backup goes into Weaviate, is backed up there, wiped and restored; and that one goes back
into lab. After each restore the same questions are asked as before on that kind of store: `same` is how many packs'
candidates and how many keyword searches gave the same items in the same order. Weaviate itself cuts each property's
best in the order of insertion where scores are equal, as they often are here. The memory is without the server's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import _bench as bench
from growth import Monorepo

from context_os.stores import Filter, Mode

_QUESTIONS: Final = 20


@dataclass
class Place:
    """A home with one kind of store. ``answers`` are what its questions found at first."""

    home: Path
    kind: str
    asked: Sequence[str]
    answers: list[tuple[list[str], list[str]]] = field(default_factory=list)

    def run(self, *arguments: str | Path) -> bench.Ran:
        env = {**bench.environment(self.home, self.kind), "CONTEXT_OS_EMBEDDING__PROVIDER": "hashed"}
        done = bench.run(bench.command(*arguments, "--json"), cwd=self.home, env=env)
        if done.code:
            raise SystemExit(f"context-os {arguments[0]} ended with {done.code}")
        return done

    def wipe(self) -> float:
        """Everything of the tenant but its backups; returns the seconds."""

        def work() -> None:
            with bench.opened(bench.settings_in(self.home, self.kind)) as app:
                app.store.drop_tenant(app.access)
                app.ledger.forget_tenant(app.store.identity, app.access.tenant)
                shutil.rmtree(self.home / "corpus", ignore_errors=True)

        return bench.timed(work)[0]

    def same(self) -> tuple[int, int]:
        """How many selections and how many searches found what they found at first."""
        with bench.opened(bench.settings_in(self.home, self.kind)) as app:
            found = [
                (
                    [each.item.id for each in app.select(app.request(text, "", None))],
                    [hit.item.id for hit in app.search(text, Mode.KEYWORD, 20, Filter())],
                )
                for text in self.asked
            ]
        self.answers = self.answers or found
        pairs = list(zip(self.answers, found, strict=True))
        return sum(old[0] == new[0] for old, new in pairs), sum(old[1] == new[1] for old, new in pairs)


def backup(place: Place) -> tuple[dict[str, Any], str]:
    done = place.run("backup", "create")
    told = json.loads(done.out)
    return {"step": f"backup {place.kind}", **_cost(done), "bytes": told["bytes"], "items": told["items"]}, told["name"]


def restore(place: Place, name: str, origin: str) -> dict[str, Any]:
    done = place.run("backup", "restore", name)
    told = {"items": json.loads(done.out)["items"], "same": place.same()}
    return {"step": f"restore {origin} -> {place.kind}", **_cost(done), **told}


def drill(place: Place, name: str) -> dict[str, Any]:
    return {"step": f"drill {place.kind}", **_cost(place.run("backup", "drill", name))}


def wipe(place: Place) -> dict[str, Any]:
    return {"step": f"wipe {place.kind}", "seconds": place.wipe()}


def _cost(done: bench.Ran) -> dict[str, Any]:
    return {"seconds": done.seconds, "peak": done.peak}


def measure(items: int, stores: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    made = Monorepo()
    made.write(folder / "monorepo", items)
    asked = [made.question() for _ in range(_QUESTIONS)]
    places = {kind: Place(folder / kind, kind, asked) for kind in stores}
    for place in places.values():
        place.home.mkdir()
    lab = places["lab"]
    lab.run("ingest", folder / "monorepo", "--name", "monorepo", "--connector", "symbols", "--vectors")
    lab.same()
    rows = []
    row, name = backup(lab)
    rows += [row, wipe(lab), restore(lab, name, "lab"), drill(lab, name)]
    if "weaviate" in places:
        server = places["weaviate"]
        shutil.copytree(lab.home / "backups", server.home / "backups")
        rows.append(restore(server, name, "lab"))
        row, second = backup(server)
        rows += [row, wipe(server), restore(server, second, "weaviate"), drill(server, second)]
        shutil.copytree(server.home / "backups" / second, lab.home / "backups" / second)
        lab.wipe()
        rows.append(restore(lab, second, "weaviate"))
    return rows


def tell(items: int, rows: Sequence[dict[str, Any]]) -> None:
    lines = [
        [
            row["step"],
            f"{row['seconds']:.1f}",
            f"{items / row['seconds']:,.0f}",
            f"{row['peak']:.0f}" if "peak" in row else "-",
            f"{row['bytes'] / 2**20:.1f}" if "bytes" in row else "-",
            "{} and {}".format(*row["same"]) if "same" in row else "-",
        ]
        for row in rows
    ]
    columns = ["step", "s", "items/s", "peak MB", "size MB", f"same of {_QUESTIONS}"]
    bench.show(f"Backups of {items:,} items with vectors", columns, lines)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--stores", nargs="+", choices=("lab", "weaviate"), default=["lab", "weaviate"])
    parser.add_argument("--out", type=Path, help="keep the result (JSONL); what is there is not measured again")
    options = parser.parse_args()
    if "lab" not in options.stores:
        parser.error("lab is where the items are ingested: it cannot be left out")
    about = bench.machine()
    case = f"{' '.join(options.stores)} {options.items}"
    with tempfile.TemporaryDirectory(prefix="backup-") as folder:
        done = bench.Cases(options.out or Path(folder) / "steps.jsonl")
        if case not in done:
            try:
                steps = measure(options.items, options.stores, Path(folder))
            finally:
                for kind in options.stores:
                    clear(Path(folder) / kind, kind)
            done.add({"case": case, "machine": about, "steps": steps})
        (row,) = (each for each in done.rows if each["case"] == case)
    tell(row["steps"][0]["items"], row["steps"])


def clear(home: Path, kind: str) -> None:
    """Take everything off the server."""
    if kind != "lab":
        chosen = bench.settings_in(home, kind)
        with bench.opened(chosen) as app:
            app.store.drop_tenant(app.access)
        bench.drop(chosen)


if __name__ == "__main__":
    main()
