"""What happens when a repository grows: a synthetic monorepo of 10,000, 100,000 and, if asked, 1,000,000 items.

The monorepo is made up of Python packages whose names, functions and docstrings are put together from words in the
proportions of real code: a few are everywhere, most are rare. The same size gives the same files. For every size a new
CONTEXT_OS_HOME measures `context-os ingest --connector symbols` as a whole process (seconds, peak memory of the process
tree, size on disk), no change after it, and queries in this process; then a table and, with --plot, an SVG.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import _bench as bench

from context_os.stores import Filter, Mode

_VERBS: Final = """
get set load save parse render build make find update delete create validate merge split send receive open close read
write check resolve apply convert encode decode fetch store index cancel retry schedule assign archive export import
normalize compare filter group sort cache invalidate lock release publish subscribe authorize refund ship reserve
"""
_NOUNS: Final = """
user order item invoice payment session token account product price cart customer address shipment warehouse stock
report message event job task queue worker cache key record batch file path config setting rule policy role group
tenant plan coupon tax currency rate quote contract ticket comment review rating image document template field form
page route request response header cookie client server socket stream buffer chunk block segment cursor filter query
result row column table schema migration index lock lease timer clock calendar holiday region country language
"""
_DOMAINS: Final = ("billing", "catalog", "checkout", "identity", "inventory", "messaging", "payments", "shipping")
_ITEMS_A_FILE: Final = 12
"""A module, a class, five methods, five functions."""


class Monorepo:
    """Files of about 12 items each."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)
        self._verbs, self._nouns = _VERBS.split(), _NOUNS.split()
        self._weights = [1 / (place + 1) ** 0.8 for place in range(len(self._nouns))]

    def write(self, folder: Path, items: int) -> int:
        """Returns how many files."""
        number = math.ceil(items / _ITEMS_A_FILE)
        known: list[tuple[str, str]] = []
        for place in range(number):
            domain = _DOMAINS[place % len(_DOMAINS)]
            package, module = f"{self._noun()}_{place // 400}", f"{self._noun()}_{self._noun()}_{place}"
            path = folder / "services" / domain / package / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            function = self._name()
            path.write_text(self._module(known, function), encoding="utf-8")
            known.append((f"services.{domain}.{package}.{module}", function))
        _commit(folder)
        return number

    def question(self) -> str:
        return f"where does it {self._draw.choice(self._verbs)} the {self._noun()} of a {self._noun()}"

    def _noun(self) -> str:
        return self._draw.choices(self._nouns, self._weights)[0]

    def _name(self) -> str:
        return f"{self._draw.choice(self._verbs)}_{self._noun()}_{self._noun()}"

    def _module(self, known: Sequence[tuple[str, str]], first: str) -> str:
        imported = self._draw.sample(known, min(2, len(known)))
        kind = f"{self._noun().title()}{self._noun().title()}"
        calls = [function for _, function in imported] or ["str"]
        lines = [f'"""{kind}: how a {self._noun()} becomes a {self._noun()}."""', ""]
        lines += [f"from {module} import {function}" for module, function in imported]
        lines += ["", "", f"class {kind}:", f'    """Keeps one {self._noun()} for each {self._noun()}."""', ""]
        for _ in range(5):
            lines += self._function(self._name(), "    ", calls)
        for name in (first, *(self._name() for _ in range(4))):
            lines += ["", *self._function(name, "", calls)]
        return "\n".join(lines)

    def _function(self, name: str, indent: str, calls: Sequence[str]) -> list[str]:
        taken, other = self._noun(), self._noun()
        body = [
            f"def {name}({'self, ' if indent else ''}{taken}, {other}=None):",
            f'    """{self._draw.choice(self._verbs).title()} the {taken} before its {other} expires."""',
            f"    if {other} is None:",
            f"        {other} = {self._draw.choice(calls)}({taken})",
            f"    {self._noun()}_count = len({other}) + {self._draw.randrange(100)}",
            f"    return {self._draw.choice(calls)}({other})",
            "",
        ]
        return [indent + line if line else line for line in body]


def _commit(folder: Path) -> None:
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "A monorepo")):
        subprocess.run(["git", "-C", str(folder), *author, *command], check=True)


def measure(items: int, options: Any, folder: Path) -> dict[str, Any]:
    tree, home = folder / "monorepo", folder / "home"
    home.mkdir()
    made = Monorepo()
    files = made.write(tree, items)
    command = bench.command("ingest", tree, "--name", "monorepo", "--connector", "symbols", "--json")
    cold = bench.run(command, cwd=home, env=bench.environment(home, options.store))
    if cold.code:
        raise SystemExit(f"context-os ingest ended with {cold.code}")
    again = bench.run(command, cwd=home, env=bench.environment(home, options.store))
    only = Filter(repositories=("monorepo",))
    with bench.opened(bench.settings_in(home, options.store)) as app:
        asked = [made.question() for _ in range(options.queries)]
        searches = _seconds(lambda text: app.search(text, Mode.KEYWORD, 10, only), asked)
        packs = _seconds(lambda text: app.pack(text, "", "monorepo", 4_000), asked)
    return {
        "items": json.loads(cold.out)["reconcile"]["store"],
        "files": files,
        "ingest": cold.seconds,
        "peak": cold.peak,
        "no_change": again.seconds,
        "disk_mb": {name: _size(home, pattern) for name, pattern in _FILES.items()},
        "search": statistics.median(searches),
        "search_95": bench.percentile(searches, 0.95),
        "pack": statistics.median(packs),
        "pack_95": bench.percentile(packs, 0.95),
    }


def _seconds(work: Callable[[str], Any], asked: Sequence[str]) -> list[float]:
    return [bench.timed(partial(work, text))[0] for text in asked]


_FILES: Final = {"all": "**/*", "store": "lab.db*", "ledger": "ledger.db*", "statistics": "corpus/*"}


def _size(home: Path, pattern: str) -> float:
    return sum(file.stat().st_size for file in home.glob(pattern) if file.is_file()) / 2**20


def tell(rows: Sequence[dict[str, Any]]) -> None:
    columns = [
        "items",
        "files",
        "ingest s",
        "items/s",
        "no change s",
        "peak MB",
        "disk MB",
        "of it store, ledger, statistics",
    ]
    columns += ["search p50, p95 ms", "pack p50, p95 ms"]
    lines = []
    for row in sorted(rows, key=lambda row: row["items"]):
        disk = row["disk_mb"]
        parts = ", ".join(f"{disk[name]:.0f}" for name in ("store", "ledger", "statistics"))
        lines.append(
            [
                *(
                    f"{row['items']:,}",
                    f"{row['files']:,}",
                    f"{row['ingest']:.1f}",
                    f"{row['items'] / row['ingest']:,.0f}",
                ),
                *(f"{row['no_change']:.1f}", f"{row['peak']:.0f}", f"{disk['all']:.0f}", parts),
                *(f"{1000 * row[what]:.1f}, {1000 * row[what + '_95']:.1f}" for what in ("search", "pack")),
            ]
        )
    bench.show("Growth", columns, lines)


# A plot on two logarithmic axes

_PLOTTED: Final = {
    "ingest": ("ingest, s", 1, "#1b6ca8"),
    "peak": ("peak memory, MB", 1, "#c0392b"),
    "search": ("search p50, ms", 1000, "#1e8449"),
    "pack": ("pack p50, ms", 1000, "#b9770e"),
}
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 400, 60, 20


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each measure, items against value."""
    rows = sorted(rows, key=lambda row: row["items"])
    series = {name: [row[name] * factor for row in rows] for name, (_, factor, _) in _PLOTTED.items()}
    across = _decades([row["items"] for row in rows])
    up = _decades([value for values in series.values() for value in values])

    def place(items: float, value: float) -> str:
        x = _LEFT + (math.log10(items) - across[0]) / (across[1] - across[0]) * _WIDTH
        y = _TOP + _HEIGHT - (math.log10(value) - up[0]) / (up[1] - up[0]) * _HEIGHT
        return f"{x:.1f},{y:.1f}"

    width, height = _LEFT + _WIDTH + 170, _TOP + _HEIGHT + 50
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append('<rect width="100%" height="100%" fill="white"/><g font-size="12">')
    for power in range(up[0], up[1] + 1):
        _, y = place(10 ** across[0], 10**power).split(",")
        parts.append(f'<path d="M{_LEFT} {y}h{_WIDTH}" stroke="#ddd"/><text x="4" y="{y}">{_plain(power)}</text>')
    for power in range(across[0], across[1] + 1):
        x, _ = place(10**power, 10 ** up[0]).split(",")
        parts.append(f'<path d="M{x} {_TOP}v{_HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{_plain(power)}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 42}" text-anchor="middle">items</text>')
    for number, (name, (label, _, colour)) in enumerate(_PLOTTED.items()):
        points = [place(row["items"], value) for row, value in zip(rows, series[name], strict=True)]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (point.split(",") for point in points)
        ]
        parts.append(f'<text x="{_LEFT + _WIDTH + 12}" y="{_TOP + 20 + 18 * number}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</g></svg>\n"])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _plain(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="items (default: 10000 100000)")
    parser.add_argument("--store", choices=("lab", "weaviate"), default="lab")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--out", type=Path, help="keep every size (JSONL); sizes that are there are not repeated")
    parser.add_argument("--plot", type=Path, help="write an SVG")
    options = parser.parse_args()
    about = bench.machine()
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        done = bench.Cases(options.out or Path(folder) / "sizes.jsonl")
        for items in options.sizes:
            case = f"{options.store} {items}"
            if case not in done:
                bench.say(case)
                place = Path(folder) / str(items)
                place.mkdir()
                try:
                    done.add({"case": case, "machine": about, **measure(items, options, place)})
                finally:
                    bench.drop(bench.settings_in(place / "home", options.store))
                    shutil.rmtree(place)
        rows = [row for row in done.rows if row["case"].startswith(f"{options.store} ")]
    tell(rows)
    if options.plot:
        options.plot.write_text(svg(rows), encoding="utf-8")
        print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
