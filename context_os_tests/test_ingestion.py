"""Ingestion end to end without Dagster: what is stored, what a second run does, what survives an accident."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import APP, POOL, make_repository, write

from context_os import ingestion as machine
from context_os import quality, segments, settings, staging
from context_os.errors import BatchRefused, NotFound, ReconcileDifference, StagingOutdated
from context_os.ingestion import Ingestion, Report, Staged, find_repository, register
from context_os.ledger import Ledger
from context_os.model import Confidentiality, KnowledgeItem
from context_os.segments import Segment
from context_os.stores import Filter, KnowledgeStore, Record

ALL = ("bug_specs", "documents", "pull_requests", "symbols", "team_rules")


class Bench:
    """One repository, one store, and the settings that join them."""

    def __init__(self, home: Path, repository: Path, store: KnowledgeStore, **options: Any) -> None:
        self.settings = settings.load({"home": str(home), **options}, start=home)
        self.ingestion = Ingestion(self.settings, store, Ledger(self.settings.make_home() / "ledger.db"))
        register(self.settings, self.ingestion.ledger, "shop", repository)

    def stage(self, connector: str, revision: str | None = None) -> Staged:
        return self.ingestion.stage(connector, find_repository(self.settings, self.ingestion.ledger, "shop", revision))

    def run(self, connector: str, revision: str | None = None) -> Report:
        staged = self.stage(connector, revision)
        self.ingestion.judge(staged, "run-1")
        return self.ingestion.index(staged, "run-1")

    def items(self, **filters: Any) -> dict[str, KnowledgeItem]:
        page = self.ingestion.store.scan(self.ingestion.access, Filter(**filters), limit=1000)
        assert page.cursor is None
        return {item.metadata.title: item for item in page.items}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


@pytest.fixture(params=["lab", pytest.param("weaviate", marks=[pytest.mark.weaviate])])
def bench(request: pytest.FixtureRequest, tmp_path: Path, repository: Path) -> Iterator[Bench]:
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "weaviate":
        yield Bench(home, repository, request.getfixturevalue("weaviate_store"))
        return
    with settings.load({"home": str(home)}, start=home).open_store() as store:
        yield Bench(home, repository, store)


def counts(report: Report) -> tuple[int, int, int, int]:
    return report.added, report.changed, report.unchanged, report.removed


def test_every_connector_stores_items_with_lineage(bench: Bench) -> None:
    for connector in ALL:
        report = bench.run(connector)
        assert report.added > 0
        assert report.reconcile.ledger == report.reconcile.store == report.added
        for item in bench.items(source_types=(connector,)).values():
            record = item.metadata.lineage[-1]
            assert (record.run_id, record.asset_key, record.action) == ("run-1", f"indexed/{connector}", "created")
            assert item.source.repository == "shop"
            assert len(item.metadata.checksum) == 64


def test_a_second_run_changes_nothing(bench: Bench) -> None:
    for connector in ALL:
        first = bench.run(connector)
        before = bench.items(source_types=(connector,))
        second = bench.run(connector)
        assert counts(second) == (0, 0, first.added, 0)
        assert second.data_version == first.data_version
        assert bench.items(source_types=(connector,)) == before


def test_an_edit_that_keeps_size_and_time_is_seen(bench: Bench, repository: Path) -> None:
    bench.run("symbols")
    created = bench.items()["release"].metadata.created_at
    file = repository / "shop/pool.py"
    before = file.stat()
    file.write_text(file.read_text().replace("# locked", "# LOCKED"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    report = bench.run("symbols")
    assert report.changed >= 1
    assert report.added == report.removed == 0
    changed = bench.items()["release"]
    assert "# LOCKED" in changed.payload.text
    assert changed.metadata.created_at == created
    assert changed.metadata.version == 2
    assert [record.action for record in changed.metadata.lineage] == ["created", "updated"]


@pytest.mark.parametrize("state", ["gone", "of an earlier version"])
def test_statistics_are_made_anew_from_the_store(bench: Bench, repository: Path, state: str) -> None:
    bench.run("symbols")
    (file,) = (bench.settings.home / "corpus").glob("*.npz")
    held = Segment.load(file)
    assert held is not None
    file.unlink()
    if state != "gone":
        replace(held, word=held.word[:0]).save(file)
    write(repository, "shop/extra.py", "def drain_the_pool():\n    return None\n")
    bench.run("symbols")
    (file,) = (bench.settings.home / "corpus").glob("*.npz")
    found = Segment.load(file)
    assert found is not None
    assert found.is_complete
    assert {found.id_of(number) for number in range(len(found.id))} == {it.id for it in bench.items().values()}


@pytest.mark.parametrize("refusing", [False, True])
@pytest.mark.parametrize("counted", ["while judged", "beside", "after all"])
def test_statistics_hold_what_the_store_holds_whoever_counted_it_and_whatever_was_refused(
    bench: Bench, repository: Path, counted: str, refusing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run("documents")
    write(repository, "docs/more.md", "# Taken\n\nIn.\n\n# Refused\n\nBy the store.\n\n# Again\n\nAnd again.\n")
    counted_here: list[int] = []
    extend = segments.Additions.extend
    monkeypatch.setattr(segments.Additions, "extend", lambda self, items: counted_here.append(1) or extend(self, items))
    if counted != "while judged":
        monkeypatch.setattr(machine, "_FEW", 0)
    if counted == "after all":
        monkeypatch.setattr(machine.GATE, "grow", lambda *_: False)

    def put(self: Ingestion, items: Sequence[KnowledgeItem]) -> dict[str, str]:
        taken = [item for item in items if item.metadata.title != "Refused" or not refusing]
        self.store.upsert(self.access, map(Record, taken))
        return {item.id: "no room" for item in items if item not in taken}

    monkeypatch.setattr(Ingestion, "_put", put)
    staged = bench.stage("documents")
    verdict = bench.ingestion.judge(staged)
    if refusing:
        first = quality.Refusal(id="", unit="", row=0, reasons=("by hand",))
        scope = bench.ingestion.scope("documents", "shop")
        by_hand = verdict.model_copy(update={"refusals": (first,)})
        bench.ingestion.ledger.record_verdict(scope, staged.id, True, by_hand.model_dump_json())
    assert bench.ingestion.index(staged).quarantined == (2 if refusing else 0)
    if not refusing:
        assert len(counted_here) == (counted != "beside")
    (file,) = (bench.settings.home / "corpus").glob("*.npz")
    said = _said(file)
    assert said.keys() == {item.id for item in bench.items().values()} != set()
    file.unlink()
    bench.ingestion.rebuild_segment(bench.ingestion.scope("documents", "shop"))
    assert said == _said(file)


def test_what_was_foreseen_of_another_staging_is_not_used(bench: Bench, repository: Path) -> None:
    bench.run("documents")
    for text in ("the first", "the second"):
        write(repository, "docs/more.md", f"# Same\n\nThis is {text} text of it.\n")
        staged = bench.stage("documents")
        bench.ingestion.judge(staged)
    # A process that dies before it indexes leaves the last staging to another one, which foresaw nothing of it.
    foreseen = bench.ingestion._foreseen
    write(repository, "docs/more.md", "# Same\n\nThis is the third text of it.\n")
    staged = bench.stage("documents")
    bench.ingestion.judge(staged)
    bench.ingestion._foreseen = foreseen
    bench.ingestion.index(staged)
    (file,) = (bench.settings.home / "corpus").glob("*.npz")
    assert "third" in _said(file)[bench.items()["Same"].id]


def _said(file: Path) -> dict[str, list[str]]:
    """The words of each document in a segment."""
    segment = Segment.load(file)
    assert segment is not None
    ends = np.cumsum(segment.length)
    return {
        segment.id_of(number): [segment.terms[word] for word in segment.word[end - segment.length[number] : end]]
        for number, end in enumerate(ends)
    }


def test_a_deleted_file_leaves_no_item_and_no_relation(bench: Bench, repository: Path) -> None:
    bench.run("symbols")
    gone = {item.id for item in bench.items(paths=("shop/pool.py",)).values()}
    (repository / "shop/pool.py").unlink()
    report = bench.run("symbols")
    assert report.removed == len(gone) > 0
    left = bench.items()
    assert not gone & {item.id for item in left.values()}
    assert not gone & {relation.target for item in left.values() for relation in item.relations}
    assert bench.ingestion.store.count(bench.ingestion.access, Filter(targets=tuple(gone))) == 0


def test_a_revision_and_the_working_tree_give_the_same_items(bench: Bench, repository: Path) -> None:
    bench.run("symbols")
    report = bench.run("symbols", revision="HEAD")
    assert counts(report)[:2] == (0, 0)
    older = bench.run("symbols", revision="HEAD~1")
    assert older.changed >= 1


def test_a_store_that_lost_an_item_fails_the_run_and_is_repaired(bench: Bench) -> None:
    bench.run("symbols")
    lost = bench.items()["release"]
    bench.ingestion.store.delete(bench.ingestion.access, [lost.id])
    with pytest.raises(ReconcileDifference, match="1 missing"):
        bench.run("symbols")
    scope = bench.ingestion.scope("symbols", "shop")
    bench.ingestion.repair(scope, bench.ingestion.reconcile(scope))
    assert bench.run("symbols").reconcile.differences == ()
    assert bench.items()["release"].id == lost.id


def test_an_item_nobody_knows_is_a_difference(bench: Bench) -> None:
    bench.run("symbols")
    stranger = bench.items()["release"].model_copy(update={"id": "00000000-0000-4000-8000-000000000001"})
    bench.ingestion.store.upsert(bench.ingestion.access, [machine.Record(stranger)])
    scope = bench.ingestion.scope("symbols", "shop")
    found = bench.ingestion.reconcile(scope)
    assert [(each.id, each.problem) for each in found.differences] == [(stranger.id, "unexpected")]
    bench.ingestion.repair(scope, found)
    assert bench.ingestion.reconcile(scope).differences == ()


def test_what_an_interrupted_run_wrote_and_deleted_is_undone_when_the_source_goes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    bench.run("symbols")
    before, at_first = bench.items(), (repository / "shop/app.py").read_text()
    overtaken = bench.stage("symbols")
    bench.ingestion.judge(overtaken)
    write(repository, "shop/app.py", f"{POOL}\n\ndef more():\n    return 1\n")
    with monkeypatch.context() as patched:
        patched.setattr(bench.ingestion.ledger, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench.run("symbols")
    assert bench.items().keys() != before.keys()
    write(repository, "shop/app.py", at_first)
    with pytest.raises(StagingOutdated, match="interrupted"):
        bench.ingestion.index(overtaken)
    assert bench.run("symbols").reconcile.differences == ()
    content = lambda items: {each.id: each.metadata.checksum for each in items.values()}  # noqa: E731
    assert content(bench.items()) == content(before)


def test_index_refuses_a_staging_without_a_verdict(bench: Bench) -> None:
    staged = bench.stage("symbols")
    with pytest.raises(BatchRefused, match="no verdict"):
        bench.ingestion.index(staged)
    assert bench.items() == {}


def test_index_refuses_a_staging_that_another_run_overtook(bench: Bench, repository: Path) -> None:
    old = bench.stage("symbols")
    bench.ingestion.judge(old)
    write(repository, "shop/app.py", APP + "\n\ndef more():\n    pass\n")
    bench.run("symbols")
    with pytest.raises(StagingOutdated):
        bench.ingestion.index(old)
    assert "more" in bench.items()


def test_indexing_the_same_staging_twice_is_safe(bench: Bench) -> None:
    staged = bench.stage("symbols")
    bench.ingestion.judge(staged)
    first = bench.ingestion.index(staged)
    again = bench.ingestion.index(staged)
    assert counts(again) == (0, 0, first.added, 0)


def test_a_bad_record_is_quarantined_and_the_rest_goes_on(bench: Bench, repository: Path) -> None:
    write(repository, "bugs/more.jsonl", '{"id": "SHOP-8", "title": "Second"}\n{"id": "SHOP-9", "ti\n')
    report = bench.run("bug_specs")
    assert (report.added, report.quarantined) == (2, 1)
    (kept,) = bench.ingestion.ledger.quarantined(bench.ingestion.scope("bug_specs", "shop"))
    assert kept.unit == "bugs/more.jsonl"
    assert '"SHOP-9", "ti' in kept.raw
    assert kept.reasons


def test_what_a_broken_file_gave_before_stays_until_it_is_mended(bench: Bench, repository: Path) -> None:
    bench.run("bug_specs")
    good = (repository / "bugs/shop-7.md").read_text()
    write(repository, "bugs/shop-7.md", good.replace("---\nThe pool", "The pool"))
    broken = bench.run("bug_specs")
    assert (broken.removed, broken.quarantined) == (0, 1)
    assert len(bench.items(kinds=("bug_spec",))) == 1
    write(repository, "bugs/shop-7.md", good)
    mended = bench.run("bug_specs")
    assert (mended.quarantined, len(bench.items(kinds=("bug_spec",)))) == (0, 1)
    (repository / "bugs/shop-7.md").unlink()
    assert bench.run("bug_specs").removed == 1


def test_an_id_that_another_file_already_gave_is_quarantined(bench: Bench, repository: Path) -> None:
    bench.run("bug_specs")
    write(repository, "bugs/copy.md", (repository / "bugs/shop-7.md").read_text())
    report = bench.run("bug_specs")
    assert (report.added, report.changed, report.removed, report.quarantined) == (0, 0, 0, 1)
    (kept,) = bench.ingestion.ledger.quarantined(bench.ingestion.scope("bug_specs", "shop"))
    assert "bugs/shop-7.md" in kept.reasons[0]


def test_changed_options_read_everything_again(bench: Bench, tmp_path: Path, repository: Path) -> None:
    first = bench.run("symbols")
    options = {"connectors": {"symbols": {"confidentiality": "restricted"}}}
    other = Bench(tmp_path / "home", repository, bench.ingestion.store, **options)
    report = other.run("symbols")
    assert report.changed == first.added
    assert {item.metadata.confidentiality for item in other.items().values()} == {Confidentiality.RESTRICTED}


def test_content_that_still_exists_is_refreshed_before_it_expires(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path
) -> None:
    options = {"connectors": {"symbols": {"ttl": "40d"}}}
    short = Bench(tmp_path / "home", repository, bench.ingestion.store, **options)
    first = short.run("symbols")
    later = machine.utcnow() + timedelta(days=25)
    for module in ("ingestion", "connectors", "quality"):
        monkeypatch.setattr(f"context_os.{module}.utcnow", lambda: later)
    # The gate's own process has a clock that this test cannot turn.
    here = lambda file, rows, own, **about: quality.validate(staging.frame(file), own, **about)  # noqa: E731
    monkeypatch.setattr(machine.GATE, "validate", here)
    second = short.run("symbols")
    assert (second.refreshed, second.added, second.changed) == (first.added, 0, 0)
    assert all(item.expires_at > later + timedelta(days=39) for item in short.items().values())


def test_unknown_repository_names_those_that_exist(bench: Bench) -> None:
    with pytest.raises(NotFound, match="shop"):
        find_repository(bench.settings, bench.ingestion.ledger, "nowhere")


_VICTIM = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from context_os import quality, settings, staging
    from context_os.gate import GATE
    from context_os.ingestion import Ingestion, find_repository
    from context_os.ledger import Ledger

    # The gate's process would take most of every life here to start: its imports are done once, before the forks.
    quality.warm_up()
    GATE.start = lambda: None
    GATE.validate = lambda file, rows, own, **about: quality.validate(staging.frame(file), own, **about)

    def ingest():
        chosen = settings.load()
        with chosen.open_store() as store:
            ingestion = Ingestion(chosen, store, Ledger(chosen.make_home() / "ledger.db"))
            for connector in ("symbols", "bug_specs"):
                staged = ingestion.stage(connector, find_repository(chosen, ingestion.ledger, sys.argv[1]))
                ingestion.judge(staged, "victim")
                ingestion.index(staged, "victim")

    for line in sys.stdin:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            ingest()
            os._exit(0)
        limit = float(line)
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() - began < limit:
            time.sleep(0.001)
        if done == (0, 0):
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
        print(done[1], time.monotonic() - began, flush=True)
""")


def _many_files(folder: Path, edition: int) -> None:
    """Forty modules; an edition moves, adds and removes definitions."""
    for number in range(40):
        if (number + edition) % 11 == 0:
            (folder / f"shop/m{number}.py").unlink(missing_ok=True)
        else:
            functions = range((number + edition) % 7 + 3)
            text = "\n\n".join(f"def f{number}_{each}():\n    return {edition * (each % 2)}" for each in functions)
            write(folder, f"shop/m{number}.py", f"{POOL}\n\n{text}\n")


@pytest.mark.slow
def test_killed_at_any_moment_then_run_again_is_as_if_undisturbed(
    bench: Bench, request: pytest.FixtureRequest, tmp_path: Path, repository: Path
) -> None:
    """Twenty times: change the source, kill -9 the ingesting process somewhere, change it again, run to the end."""
    chance = random.Random(20261123)
    environment = {**os.environ, "CONTEXT_OS_HOME": str(tmp_path / "home"), **_store_variables(request, bench)}
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(repository)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=tmp_path,
    ) as victims:  # fmt: skip
        assert victims.stdin is not None
        assert victims.stdout is not None

        def ingest(limit: float) -> tuple[int, float]:
            victims.stdin.write(f"{limit}\n")
            victims.stdin.flush()
            status, seconds = victims.stdout.readline().split()
            return int(status), float(seconds)

        _many_files(repository, 0)
        assert ingest(120)[0] == 0
        _many_files(repository, 1)
        status, undisturbed = ingest(120)
        assert status == 0
        killed = 0
        for edition in range(2, 22):
            _many_files(repository, edition)
            killed += ingest(chance.uniform(0.0, undisturbed))[0] == signal.SIGKILL
            _many_files(repository, edition + 100)
        assert killed >= 10
        assert ingest(120)[0] == 0
        victims.stdin.close()
    # The undisturbed run: the same source into an empty store.
    store, home = bench.ingestion.store, bench.settings.home
    survived = _content(store, bench)
    store.drop_tenant(bench.ingestion.access)
    (home / "ledger.db").rename(home / "ledger.old")
    for suffix in ("-wal", "-shm"):
        (home / f"ledger.db{suffix}").unlink(missing_ok=True)
    fresh = Ingestion(bench.settings, store, Ledger(home / "ledger.db"))
    for connector in ("symbols", "bug_specs"):
        staged = fresh.stage(connector, find_repository(bench.settings, fresh.ledger, str(repository)))
        fresh.judge(staged)
        fresh.index(staged)
    assert survived == _content(store, bench)


def _store_variables(request: pytest.FixtureRequest, bench: Bench) -> dict[str, str]:
    store = bench.ingestion.store
    if store.name == "lab":
        return {}
    return {
        "CONTEXT_OS_STORE__URL": store.url,
        "CONTEXT_OS_STORE__GRPC_PORT": str(store.grpc_port),
        "CONTEXT_OS_STORE__API_KEY": store.api_key.get_secret_value(),
        "CONTEXT_OS_STORE__COLLECTION": store.collection,
    }


def _content(store: KnowledgeStore, bench: Bench) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    cursor = None
    while True:
        page = store.scan(bench.ingestion.access, Filter(), cursor, limit=500)
        for item in page.items:
            found[item.id] = (item.metadata.checksum, item.payload, item.relations, item.symbols, item.source.path)
        cursor = page.cursor
        if cursor is None:
            return found
