"""What the Weaviate store costs beside the bare client on a collection with the very same settings.

Items are the symbols of a repository, repeated under new ids where they are not enough, each with a vector of 256
numbers drawn at random. Both sides take turns in the same run.

  write   context-os   WeaviateStore.upsert into a new collection
          made, sent   the bare client's batch (200 objects, two requests at a time), making each object on the way
          sent         the same with objects made before: what the server and the client alone can do
  query   context-os   WeaviateStore.search: tenant, clearance and expiry filtered, items read back
          bare         the same words and vector, the same properties and weights, 10 results, no filter
          bare, where  the same with the filters of context-os

The server is that of the environment: CONTEXT_OS_STORE__URL, __GRPC_PORT, __API_KEY. Collections are dropped after.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import _bench as bench
import numpy as np

from context_os.connectors import Known, Repository
from context_os.connectors.symbols import Symbols
from context_os.model import Access, Confidentiality, KnowledgeItem, item_id
from context_os.stores import Filter, Mode, Query, Record
from context_os.stores import weaviate as ours
from context_os.stores.weaviate import WeaviateStore
from context_os.text import words

ACCESS: Final = Access(tenant="bench", principal="bench", clearance=Confidentiality.RESTRICTED)
_DIMENSIONS: Final = 256
_BATCH: Final = 200
_LIMIT: Final = 10


@dataclass(frozen=True)
class Bench:
    """A store on its own collection, and the bare client on the same one."""

    store: WeaviateStore
    tenant: Any
    client: Any


@contextmanager
def collection(home: Path) -> Iterator[Bench]:
    """Made by the store's own code, so that both sides have its schema; dropped afterwards."""
    chosen = bench.settings_in(home, "weaviate")
    with chosen.open_store() as store:
        assert isinstance(store, WeaviateStore)
        client = store._client()
        try:
            yield Bench(store, store._found(client, ACCESS), client)
        finally:
            client.collections.delete(store.collection)


def items(location: Path, number: int) -> list[KnowledgeItem]:
    repository = Repository("bench", location, ACCESS.tenant)
    symbols = Symbols()
    listing = symbols.scan(repository, Known())
    found = [item for unit in symbols.read(repository, listing, list(listing.units)) for item in unit.items]
    if not found:
        raise SystemExit(f"no symbols in {location}")
    copies = itertools.cycle(found)
    return [
        item.model_copy(update={"id": item_id(ACCESS.tenant, "bench", item.id, str(place))})
        for place, item in zip(range(number), copies, strict=False)
    ]


def records(location: Path, number: int) -> list[Record]:
    drawn = np.random.default_rng(0).standard_normal((number, _DIMENSIONS), dtype=np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return [Record(item, vector) for item, vector in zip(items(location, number), vectors, strict=True)]


def made(record: Record) -> Any:
    """The object as the store makes it."""
    return ours._object(ours._uuid(record.item.id), record, {})


def send(side: Bench, objects: Iterator[Any]) -> None:
    with side.tenant.batch.fixed_size(batch_size=_BATCH, concurrent_requests=2) as batch:
        for each in objects:
            batch.add_object(properties=each.properties, uuid=each.uuid, vector=each.vector)
    if side.tenant.batch.failed_objects:
        raise RuntimeError(f"the server refused {len(side.tenant.batch.failed_objects)} objects")


def write_rates(location: Path, number: int, turn: int, folder: Path) -> dict[str, float]:
    """Objects a second of each side, each into a new collection, in an order that turns from round to round."""
    given = records(location, number)
    ready = [made(record) for record in given]
    sides: list[tuple[str, Callable[[Bench], Any]]] = [
        ("context-os", lambda side: side.store.upsert(ACCESS, given)),
        ("made, sent", lambda side: send(side, map(made, given))),
        ("sent", lambda side: send(side, iter(ready))),
    ]
    rates = {}
    for name, work in sides if turn % 2 == 0 else sides[::-1]:
        with collection(folder / f"{name}-{number}-{turn}") as side:
            seconds, _ = bench.timed(lambda work=work, side=side: work(side))  # type: ignore[misc]
            rates[name] = number / seconds
    return rates


def latencies(side: Bench, given: Sequence[Record], number: int, seed: int) -> dict[str, list[float]]:
    """Seconds by mode and side; the sides take turns query by query."""
    draw = random.Random(seed)
    found: dict[str, list[float]] = {}
    for place in range(number):
        record = draw.choice(given)
        text = record.item.metadata.title
        for mode in (Mode.HYBRID, Mode.KEYWORD):
            sides = _sides(side, mode, text, draw.choice(given).vector)
            for name, work in sides if place % 2 == 0 else sides[::-1]:
                started = time.perf_counter()
                work()
                found.setdefault(f"{mode} {name}", []).append(time.perf_counter() - started)
    return found


def _sides(side: Bench, mode: Mode, text: str, vector: Any) -> list[tuple[str, Callable[[], Any]]]:
    query = Query(text, vector if mode is Mode.HYBRID else None, mode, _LIMIT)
    split = " ".join(words(text))
    return [
        ("context-os", lambda: side.store.search(ACCESS, query)),
        ("bare", lambda: _bare(side, split, query, None)),
        ("bare, where", lambda: _bare(side, split, query, ours._where(ACCESS, Filter()))),
    ]


def _bare(side: Bench, text: str, query: Query, where: Any) -> Any:
    from weaviate.classes.query import HybridFusion, MetadataQuery

    common: dict[str, Any] = {
        "query_properties": ours._KEYWORD_PROPERTIES,
        "limit": _LIMIT,
        "filters": where,
        "return_properties": ["key", "body"],
        "return_metadata": MetadataQuery(score=True),
    }
    if query.vector is None:
        return side.tenant.query.bm25(text, **common)
    return side.tenant.query.hybrid(
        text,
        vector=query.vector.tolist(),
        target_vector=ours._slot(query.version),
        alpha=query.alpha,
        fusion_type=HybridFusion.RELATIVE_SCORE,
        **common,
    )


def measure(options: Any, folder: Path, done: bench.Cases) -> None:
    for number in options.sizes:
        for turn in range(options.rounds):
            case = f"write {number} {turn}"
            if case not in done:
                bench.say(case)
                done.add(
                    {"case": case, "objects": number, "rates": write_rates(options.repository, number, turn, folder)}
                )
    left = [place for place in range(options.rounds) if f"query {place}" not in done]
    if left:
        given = records(options.repository, max(options.sizes))
        with collection(folder / "queries") as side:
            side.store.upsert(ACCESS, given)
            latencies(side, given, 20, seed=-1)
            for place in left:
                bench.say(f"query {place}")
                found = latencies(side, given, options.queries, seed=place)
                done.add({"case": f"query {place}", "objects": len(given), "seconds": found})


def tell(rows: Sequence[dict[str, Any]]) -> None:
    writes = [row for row in rows if "rates" in row]
    lines = []
    for number in sorted({row["objects"] for row in writes}):
        group = [row["rates"] for row in writes if row["objects"] == number]
        for name in group[0]:
            shares = [rates["context-os"] / rates[name] for rates in group]
            lines.append(
                [f"{number:,}", name, bench.spread([rates[name] for rates in group], "", 0), bench.spread(shares)]
            )
    bench.show("Writing", ["objects", "side", "objects a second", "context-os / side"], lines)
    queries = [row["seconds"] for row in rows if "seconds" in row]
    lines = []
    for name in queries[0] if queries else ():
        mode = name.partition(" ")[0]
        own = [bench.percentile(each[f"{mode} context-os"], 0.95) for each in queries]
        tails = [bench.percentile(each[name], 0.95) for each in queries]
        middles = [1000 * statistics.median(each[name]) for each in queries]
        ratios = [a / b for a, b in zip(own, tails, strict=True)]
        lines.append([name, bench.spread(middles), bench.spread([1000 * tail for tail in tails]), bench.spread(ratios)])
    bench.show("Queries", ["mode and side", "p50 ms", "p95 ms", "context-os / side, p95"], lines)


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="whose symbols are written")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000], help="objects (default: 5000 20000)")
    parser.add_argument("--queries", type=int, default=200, help="of each mode and side a round (default: 200)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep every round (JSONL); what is there is not repeated")
    options = parser.parse_args()
    options.repository = options.repository.absolute()
    about = bench.machine(Path(sys.prefix), ["weaviate-client"])
    with tempfile.TemporaryDirectory(prefix="store-overhead-") as folder:
        done = bench.Cases(options.out or Path(folder) / "rounds.jsonl")
        with collection(Path(folder) / "hello") as side:
            about["weaviate"] = side.store.health().version
        print(f"server: weaviate {about['weaviate']}")
        measure(options, Path(folder), done)
        tell(done.rows)


if __name__ == "__main__":
    main()
