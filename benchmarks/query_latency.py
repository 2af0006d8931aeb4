"""How fast searches and packs are while several callers ask at once: threads that share one store object.

Questions are the subjects of the repository's last commits. Every caller asks all of its share one after the other;
one caller alone is measured beside them, in the same run. All of it happens in this process, so callers share one
interpreter as they would in a server with threads.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import _bench as bench

from context_os.app import App
from context_os.git import Git
from context_os.stores import Filter, Mode

_NAME: Final = "bench"


def questions(location: Path, revision: str, number: int) -> list[str]:
    subjects = Git(location).text("log", "--no-merges", "-n", str(4 * number), "--format=%s", revision).splitlines()
    found = [subject for subject in dict.fromkeys(subjects) if len(subject.split()) > 2][:number]
    if not found:
        raise SystemExit(f"{location} has no commit whose subject could be asked")
    return found


def operations(app: App, budget: int) -> dict[str, Callable[[str], Any]]:
    only = Filter(repositories=(_NAME,))
    return {
        "search, keyword": lambda text: app.search(text, Mode.KEYWORD, 10, only),
        "search, default": lambda text: app.search(text, None, 10, only),
        f"pack of {budget:,} tokens": lambda text: app.pack(text, "", _NAME, budget),
    }


def latencies(work: Callable[[str], Any], asked: Sequence[str], callers: int) -> tuple[list[float], float]:
    """Seconds of each call, and of all of them together."""

    def share(number: int) -> list[float]:
        times = []
        for text in asked[number::callers]:
            started = time.perf_counter()
            work(text)
            times.append(time.perf_counter() - started)
        return times

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        times = [seconds for part in pool.map(share, range(callers)) for seconds in part]
    return times, time.perf_counter() - started


def measure(options: Any, home: Path, done: bench.Cases) -> None:
    with bench.opened(bench.settings_in(home, options.store)) as app:
        bench.ingest(app, _NAME, options.repository, options.connector, options.revision, vectors=options.vectors)
        asked = questions(options.repository, options.revision, options.queries)
        for name, work in operations(app, options.max_tokens).items():
            latencies(work, asked[:8], 1)
            for number in range(options.rounds):
                for callers in (1, options.callers):
                    case = f"{options.repository} {options.store} {name} {callers} {number}"
                    if case not in done:
                        bench.say(case)
                        times, together = latencies(work, asked, callers)
                        row = {"case": case, "what": name, "callers": callers, "seconds": times, "together": together}
                        done.add(row)


def tell(rows: Sequence[dict[str, Any]]) -> None:
    lines = []
    for what, callers in dict.fromkeys((row["what"], row["callers"]) for row in rows):
        group = [row for row in rows if (row["what"], row["callers"]) == (what, callers)]
        cells = [
            bench.spread([1000 * bench.percentile(row["seconds"], share) for row in group], "", 1)
            for share in (0.5, 0.95)
        ]
        rate = bench.spread([len(row["seconds"]) / row["together"] for row in group], "", 1)
        lines.append([what, callers, *cells, rate])
    bench.show("Latency", ["what", "callers", "p50 ms", "p95 ms", "a second"], lines, "median (range) of the rounds")


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--store", choices=("lab", "weaviate"), default="lab")
    parser.add_argument("--connector", action="append", help="repeatable (default: symbols, pull_requests)")
    parser.add_argument("--vectors", action="store_true", help="embed what is ingested before asking")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--queries", type=int, default=200, help="questions a round (default: 200)")
    parser.add_argument("--max-tokens", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep every round (JSONL); what is there is not repeated")
    options = parser.parse_args()
    options.repository = options.repository.absolute()
    options.connector = options.connector or ["symbols", "pull_requests"]
    bench.machine()
    with tempfile.TemporaryDirectory(prefix="query-latency-") as folder:
        done = bench.Cases(options.out or Path(folder) / "rounds.jsonl")
        home = Path(folder) / "home"
        try:
            measure(options, home, done)
        finally:
            bench.drop(bench.settings_in(home, options.store))
        tell(done.rows)


if __name__ == "__main__":
    main()
