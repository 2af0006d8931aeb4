"""Vectors behind the index: what is embedded again after an edit, a kill, another model, and what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from models import write_static_model
from samples import make_repository, write
from test_ingestion import Bench

from context_os import ingestion as machine
from context_os import quality, settings, staging
from context_os.ingestion import Embedded, embedded_text
from context_os.ledger import Ledger
from context_os.model import id_bytes
from context_os.stores import KnowledgeStore, Mode, Query
from context_os.vectors import VectorTable

HASHED = {"embedding": {"provider": "hashed"}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


@pytest.fixture(params=["lab", pytest.param("weaviate", marks=[pytest.mark.weaviate])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KnowledgeStore]:
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "weaviate":
        yield request.getfixturevalue("weaviate_store")
        return
    with settings.load({"home": str(home)}, start=home).open_store() as opened:
        yield opened


@pytest.fixture
def bench(tmp_path: Path, repository: Path, store: KnowledgeStore) -> Bench:
    return Bench(tmp_path / "home", repository, store, **HASHED)


def embed(bench: Bench, connector: str = "symbols") -> Embedded:
    return bench.ingestion.embed(connector, "shop")


def found(bench: Bench) -> set[str]:
    """Titles of what a vector search of the configured embedding finds."""
    model = bench.ingestion.embedding
    assert model is not None
    query = Query(vector=model.embed(["pool"])[0], mode=Mode.VECTOR, limit=500, version=model.version)
    return {hit.item.metadata.title for hit in bench.ingestion.store.search(bench.ingestion.access, query)}


def test_items_are_there_before_their_vectors(bench: Bench) -> None:
    added = bench.run("symbols").added
    assert found(bench) == set()
    first = embed(bench)
    assert (first.version, first.items, first.vectors, first.embedded) == ("hashed-256-1", added, added, added)
    assert first.coverage == 1
    assert found(bench) == set(bench.items())
    again = embed(bench)
    assert (again.vectors, again.embedded) == (added, 0)


def table_of(bench: Bench) -> VectorTable:
    (file,) = (bench.ingestion.settings.home / "corpus").glob("vectors-*.npy")
    table = VectorTable.load(file)
    assert table is not None
    return table


def test_the_table_holds_what_the_store_holds(bench: Bench, repository: Path) -> None:
    bench.run("symbols")
    embed(bench)
    assert table_of(bench).ids == {id_bytes(item.id) for item in bench.items().values()}
    (repository / "shop" / "pool.py").unlink()
    write(repository, "shop/count.py", "def count():\n    return 7\n")
    bench.run("symbols")
    embed(bench)
    assert table_of(bench).ids == {id_bytes(item.id) for item in bench.items().values()}


def test_a_table_that_is_gone_is_made_again_without_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("symbols")
    embed(bench)
    before = table_of(bench).rows.tobytes()
    for file in (bench.ingestion.settings.home / "corpus").glob("vectors-*.npy"):
        file.unlink()
    model = bench.ingestion.embedding
    monkeypatch.setattr(type(model), "embed", lambda *_: pytest.fail("the model was asked"))
    embed(bench)
    assert table_of(bench).rows.tobytes() == before


def test_only_what_changed_is_embedded_again(bench: Bench, repository: Path) -> None:
    total = bench.run("symbols").added
    embed(bench)
    write(repository, "shop/pool.py", (repository / "shop/pool.py").read_text().replace("# locked", "# unlocked"))
    report = bench.run("symbols")
    assert 0 < report.changed < total
    assert found(bench) < set(bench.items())
    after = embed(bench)
    assert (after.embedded, after.vectors) == (report.changed, total)
    assert found(bench) == set(bench.items())


def test_a_change_that_is_taken_back_before_anybody_embeds(bench: Bench, repository: Path) -> None:
    bench.run("symbols")
    embed(bench)
    before = (repository / "shop/pool.py").read_text()
    write(repository, "shop/pool.py", before.replace("# locked", "# unlocked"))
    changed = bench.run("symbols").changed
    write(repository, "shop/pool.py", before)
    bench.run("symbols")
    assert embed(bench).embedded == changed
    assert found(bench) == set(bench.items())


def test_an_interrupted_run_costs_vectors_and_hides_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    bench.run("symbols")
    embed(bench)
    before = (repository / "shop/pool.py").read_text()
    for other in (before.replace("# locked", "# unlocked"), ""):
        write(repository, "shop/pool.py", other)
        with monkeypatch.context() as patched:
            patched.setattr(bench.ingestion.ledger, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                bench.run("symbols")
        write(repository, "shop/pool.py", before)
        bench.run("symbols")
        assert embed(bench).embedded > 0
        assert found(bench) == set(bench.items())


def test_repair_forgets_the_vectors_of_what_it_deletes(bench: Bench) -> None:
    bench.run("symbols")
    embed(bench)
    lost = bench.items()["release"]
    bench.ingestion.store.delete(bench.ingestion.access, [lost.id])
    scope = bench.ingestion.scope("symbols", "shop")
    bench.ingestion.repair(scope, bench.ingestion.reconcile(scope))
    bench.run("symbols")
    assert embed(bench).embedded >= 1
    assert found(bench) == set(bench.items())


def test_a_longer_life_costs_no_vector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path, store: KnowledgeStore
) -> None:
    options = {**HASHED, "connectors": {"symbols": {"ttl": "40d"}}}
    short = Bench(tmp_path / "home", repository, store, **options)
    added = short.run("symbols").added
    embed(short)
    later = machine.utcnow() + timedelta(days=25)
    for module in ("ingestion", "connectors", "quality"):
        monkeypatch.setattr(f"context_os.{module}.utcnow", lambda: later)
    here = lambda file, rows, own, **about: quality.validate(staging.frame(file), own, **about)  # noqa: E731
    monkeypatch.setattr(machine.GATE, "validate", here)
    assert short.run("symbols").refreshed == added
    assert embed(short).embedded == 0
    assert found(short) == set(short.items())


_VICTIM = """
import os, signal, sys
from context_os import ingestion, settings
from context_os.ledger import Ledger

ingestion._EMBEDDED_AT_ONCE = 2
record, calls = Ledger.record_vectors, []

def die_after_two(self, *arguments):
    calls.append(arguments)
    if len(calls) == 3:  # the store has the third batch, the ledger does not know
        os.kill(os.getpid(), signal.SIGKILL)
    record(self, *arguments)

Ledger.record_vectors = die_after_two
chosen = settings.load({"embedding": {"provider": "hashed"}})
with chosen.open_store() as store:
    ingestion.Ingestion(chosen, store, Ledger(chosen.home / "ledger.db")).embed("symbols", "shop")
"""


def test_killed_in_the_middle_it_goes_on_with_at_most_one_batch_again(bench: Bench, tmp_path: Path) -> None:
    total = bench.run("symbols").added
    assert total > 6
    environment = {**os.environ, "CONTEXT_OS_HOME": str(tmp_path / "home"), **_store_variables(bench.ingestion.store)}
    done = subprocess.run([sys.executable, "-c", _VICTIM], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(found(bench)) == 6
    rest = embed(bench)
    assert (rest.embedded, rest.vectors) == (total - 4, total)
    assert found(bench) == set(bench.items())


def _store_variables(store: Any) -> dict[str, str]:
    if store.name == "lab":
        return {}
    return {
        "CONTEXT_OS_STORE__URL": store.url,
        "CONTEXT_OS_STORE__GRPC_PORT": str(store.grpc_port),
        "CONTEXT_OS_STORE__API_KEY": store.api_key.get_secret_value(),
        "CONTEXT_OS_STORE__COLLECTION": store.collection,
    }


def test_another_model_embeds_everything_anew_beside_the_old(
    bench: Bench, tmp_path: Path, repository: Path, store: KnowledgeStore
) -> None:
    pytest.importorskip("tokenizers")
    total = bench.run("symbols").added
    embed(bench)
    folder = write_static_model(tmp_path / "static", 12)
    options = {"embedding": {"provider": "model2vec", "model": str(folder)}}
    other = Bench(tmp_path / "home", repository, store, **options)
    assert found(other) == set()
    done = embed(other)
    assert done.version.endswith("-float32-12")
    assert (done.embedded, done.vectors) == (total, total)
    assert found(other) == set(bench.items())
    assert embed(other).embedded == 0


def test_without_a_model_that_knows_meaning_nothing_is_done(
    tmp_path: Path, repository: Path, store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for provider in ("auto", "none"):
        bench = Bench(tmp_path / "home", repository, store, embedding={"provider": provider})
        items = bench.run("symbols").reconcile.store
        done = embed(bench)
        assert (done.version, done.items, done.vectors, done.embedded, done.coverage) == ("", items, 0, 0, 0)


def test_what_is_embedded_says_where_it_is_and_how_it_begins(bench: Bench) -> None:
    bench.run("symbols")
    text = embedded_text(bench.items()["release"])
    assert text.startswith("shop/pool.py\nrelease\n")
    assert "# locked" in text
    long = bench.items()["release"]
    long = long.model_copy(update={"payload": long.payload.model_copy(update={"text": "line\n" * 500})})
    assert embedded_text(long).count("line") == 60


def test_a_ledger_of_before_vectors_is_taken_over(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "ledger.db"
    scope = Ledger(path).scope("lab:x", "acme", "shop", "symbols")
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE vectors")
        db.execute("DROP TABLE tallies")
        db.execute("DROP TABLE erasures")
        db.execute("ALTER TABLE scopes DROP COLUMN confirmed_at")
        db.execute("PRAGMA user_version = 1")
    db.close()
    ledger = Ledger(path)
    assert ledger.scope("lab:x", "acme", "shop", "symbols") == scope
    assert ledger.without_vector(scope, "m") == []
    assert ledger.count_vectors(scope) == {}
