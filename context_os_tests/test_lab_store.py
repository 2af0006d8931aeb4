"""What only the embedded store promises: its file, and what happens to it when processes die and disks fill up."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from strategies import NOW, make_item, unit

from context_os.errors import StoreAccessDenied, StoreError, StoreRejected, StoreUnavailable
from context_os.model import Access, Confidentiality
from context_os.stores import Filter, Mode, Query, Record, Written, lab
from context_os.stores.lab import LabStore

ACCESS = Access(tenant="acme", principal="ann", clearance=Confidentiality.RESTRICTED)
EVERYTHING = Filter()
VECTOR = unit(1, 0, 0, 0)

# Forked: starting Python and loading the tests in each child would take longer than the tests themselves.
processes = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.db"


@pytest.fixture
def store(path: Path) -> Iterator[LabStore]:
    with LabStore(path=path, timeout=5) as opened:
        yield opened


def batch(number: int, size: int = 40) -> list[Record]:
    """Items whose every part says which batch they are of."""
    ids = (f"{number:05}-{n:02}" for n in range(size))
    word = word_of(number)
    return [Record(make_item(id, text=f"common {word}", tags=(word,), symbols=(id,)), VECTOR) for id in ids]


def word_of(number: int) -> str:
    """In letters only, so that it is one word and no part of another."""
    return "batch" + "".join(chr(ord("a") + int(digit)) for digit in f"{number:05}")


def assert_sound(path: Path) -> None:
    """SQLite and FTS5 find nothing wrong, and no table holds a row that another lacks."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for (number,) in connection.execute("SELECT number FROM tenants").fetchall():
            connection.execute(f"INSERT INTO fts_{number} (fts_{number}) VALUES ('integrity-check')")
            owned = connection.execute("SELECT row FROM items WHERE tenant = ? ORDER BY row", (number,)).fetchall()
            assert connection.execute(f"SELECT rowid FROM fts_{number} ORDER BY rowid").fetchall() == owned
        rows = connection.execute("SELECT row FROM items ORDER BY row").fetchall()
        assert connection.execute("SELECT row FROM bodies ORDER BY row").fetchall() == rows
        assert not set(connection.execute("SELECT row FROM vectors").fetchall()) - set(rows)
        assert not set(connection.execute("SELECT row FROM marks").fetchall()) - set(rows)


def start(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A child process, and the end of a pipe that it writes to."""
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=target, args=(there, *arguments), daemon=True)
    child.start()
    there.close()
    return child, here


# --- processes --------------------------------------------------------------------------------------------------


def write_for_ever(answers: Connection, path: Path, first: int) -> None:
    """Writes new batches, changes old ones and deletes some; tells each number once it is acknowledged."""
    with LabStore(path=path) as store:
        answers.send(first - 1)
        for number in range(first, first + 10_000):
            store.upsert(ACCESS, batch(number))
            answers.send(number)
            store.upsert(ACCESS, [Record(make_item(f"again-{n}", text=f"common {number}")) for n in range(20)])
            store.delete(ACCESS, [f"again-{n}" for n in range(10)])


def acknowledged(answers: Connection) -> int:
    last = -1
    try:
        while True:
            last = answers.recv()
    except EOFError:
        return last


def test_what_was_acknowledged_survives_a_kill_at_any_moment(path: Path) -> None:
    chance = random.Random(7)
    last = -1
    for round in range(12):
        child, answers = start(write_for_ever, path, last + 1)
        for _ in range(1 if round < 5 else chance.randint(2, 5)):
            last = max(last, answers.recv())  # the first only says that it begins: five die while the file is made
        time.sleep(chance.uniform(0, 0.03))
        child.kill()
        last = max(last, acknowledged(answers))
        child.join()
        with LabStore(path=path) as store:
            found = [item.id for number in range(last + 1) for item in _batch(store, number)]
            assert len(found) == 40 * (last + 1)
            # The batch that was under way is there as a whole or not at all.
            assert len(_batch(store, last + 1)) in (0, 40)
            last += len(_batch(store, last + 1)) // 40
            assert store.count(ACCESS, Filter(tags_any=(word_of(last + 1),))) == 0
        assert_sound(path)
    assert last >= 7


def _batch(store: LabStore, number: int) -> list[Any]:
    hits = store.search(ACCESS, Query(word_of(number), mode=Mode.KEYWORD, limit=100))
    items = store.scan(ACCESS, Filter(tags_any=(word_of(number),))).items
    assert sorted(hit.item.id for hit in hits) == [item.id for item in items]
    return list(items)


def read_until_told(answers: Connection, path: Path, done: Path) -> None:
    """Whole batches only, and never fewer than before."""
    seen = 0
    try:
        with LabStore(path=path) as store:
            answers.send("ready")
            while not done.exists():
                count = store.count(ACCESS, EVERYTHING)
                assert count % 40 == 0, count
                assert count >= seen
                seen = count
                hits = store.search(ACCESS, Query("common", VECTOR, limit=50))
                assert len(hits) >= min(50, count)
        answers.send(seen)
    except BaseException as error:
        answers.send(repr(error))


def test_processes_read_while_another_writes(path: Path, store: LabStore, tmp_path: Path) -> None:
    readers = [start(read_until_told, path, tmp_path / "done") for _ in range(2)]
    assert [answers.recv() for _, answers in readers] == ["ready", "ready"]
    for number in range(25):
        store.upsert(ACCESS, batch(number))
    (tmp_path / "done").touch()
    for child, answers in readers:
        seen = answers.recv()
        assert isinstance(seen, int), seen
        assert seen > 0
        child.join()
    assert store.count(ACCESS, EVERYTHING) == 1_000


def write_one(answers: Connection, path: Path, id: str, go: Path) -> None:
    while not go.exists():
        time.sleep(0)
    try:
        with LabStore(path=path) as store:
            answers.send(store.upsert(ACCESS, [Record(make_item(id))]))
    except BaseException as error:
        answers.send(repr(error))


def test_processes_may_make_the_file_at_the_same_time(tmp_path: Path) -> None:
    for round in range(4):
        path, go = tmp_path / f"{round}.db", tmp_path / f"go{round}"
        children = [start(write_one, path, f"{n}", go) for n in range(6)]
        go.touch()
        assert [answers.recv() for _, answers in children] == [Written(1, 0)] * 6
        for child, _ in children:
            child.join()
        with LabStore(path=path) as store:
            assert store.count(ACCESS, EVERYTHING) == 6


def test_threads_may_make_the_file_at_the_same_time(path: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with LabStore(path=path) as store:
                store.upsert(ACCESS, [Record(make_item(f"{number}"))])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert LabStore(path=path).count(ACCESS, EVERYTHING) == 8


def test_a_forked_child_does_not_touch_its_parents_connections(path: Path, store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    iterator = store.checksums(ACCESS, EVERYTHING)
    next(iterator)
    assert store.count(ACCESS, EVERYTHING) == 40  # a second connection, idle
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.upsert(ACCESS, batch(1))
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(iterator)) == 39
    store.upsert(ACCESS, batch(2))
    assert store.count(ACCESS, EVERYTHING) == 120
    assert_sound(path)


def test_another_process_s_vectors_are_seen(path: Path, store: LabStore) -> None:
    nearest = Query(vector=VECTOR, mode=Mode.VECTOR, limit=1)
    store.upsert(ACCESS, [Record(make_item("far"), unit(0, 1, 0, 0))])
    assert store.search(ACCESS, nearest)[0].item.id == "far"
    with LabStore(path=path) as other:
        other.upsert(ACCESS, [Record(make_item("near"), VECTOR)])
        assert store.search(ACCESS, nearest)[0].item.id == "near"
        other.delete(ACCESS, ["near"])
        assert store.search(ACCESS, nearest)[0].item.id == "far"
        other.drop_tenant(ACCESS)
        other.upsert(ACCESS, [Record(make_item("new"), unit(1, 0))])
    assert store.search(ACCESS, Query(vector=unit(1, 0), mode=Mode.VECTOR))[0].item.id == "new"


def test_equal_vectors_are_ties_wherever_they_stand(store: LabStore) -> None:
    """A matrix product may give the same row another last bit at another place."""
    chance = random.Random(3)
    for n in range(5):
        access = ACCESS.model_copy(update={"tenant": f"t{n}"})
        vector, asked = (unit(*(chance.gauss(0, 1) for _ in range(256))) for _ in range(2))
        ids = [f"{n:03}" for n in range(99)]
        store.upsert(access, [Record(make_item(id, tenant=access.tenant), vector) for id in reversed(ids)])
        hits = store.search(access, Query(vector=asked, mode=Mode.VECTOR, limit=99))
        assert [hit.item.id for hit in hits] == ids


def test_a_wrong_vector_at_the_end_of_a_long_call_refuses_all_of_it(store: LabStore) -> None:
    records = [Record(make_item(f"{n:05}"), VECTOR) for n in range(lab._CHUNK + 1)]
    with pytest.raises(StoreRejected) as refused:
        store.upsert(ACCESS, [*records, Record(make_item("wrong"), unit(1, 0))])
    assert list(refused.value.failures) == ["wrong"]
    assert store.count(ACCESS, EVERYTHING) == 0


def test_vectors_that_became_wrong_while_a_call_was_prepared(
    path: Path, store: LabStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = lab._json

    def meanwhile(value: Any, id: str) -> str:
        monkeypatch.undo()
        with LabStore(path=path) as other:
            other.upsert(ACCESS, [Record(make_item("first"), unit(1, 0))])
        return prepare(value, id)

    monkeypatch.setattr(lab, "_json", meanwhile)
    with pytest.raises(StoreRejected) as refused:
        store.upsert(ACCESS, [Record(make_item("late"), VECTOR)])
    assert list(refused.value.failures) == ["late"]
    assert store.count(ACCESS, EVERYTHING) == 1


# --- waiting for each other ---------------------------------------------------------------------------------------


@contextmanager
def somebody_writes(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def test_a_second_writer_waits_and_then_gives_up(path: Path) -> None:
    with LabStore(path=path, timeout=0.3) as store:
        store.upsert(ACCESS, batch(0))
        with somebody_writes(path):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="try again"):
                store.upsert(ACCESS, batch(1))
            assert 0.2 < time.monotonic() - began < 3
            assert store.count(ACCESS, EVERYTHING) == 40  # readers do not wait
        store.upsert(ACCESS, batch(1))
        assert store.count(ACCESS, EVERYTHING) == 80


def test_a_second_writer_gets_its_turn(path: Path, store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    with somebody_writes(path) as first:
        timer = threading.Timer(0.3, first.execute, ["COMMIT"])
        timer.start()
        store.upsert(ACCESS, batch(1))
        timer.join()
    assert store.count(ACCESS, EVERYTHING) == 80


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_that_was_there(path: Path, store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    with store._lent() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(StoreRejected, match="disk is full"):
        store.upsert(ACCESS, batch(1, size=2_000))
    assert store.count(ACCESS, EVERYTHING) == 40
    assert len(_batch(store, 0)) == 40
    assert_sound(path)
    with store._lent() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    store.upsert(ACCESS, batch(1))
    assert len(_batch(store, 1)) == 40
    assert_sound(path)


def write_against_a_limit(answers: Connection, path: Path, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # Python ignores the signal: writing fails instead
    number = 0
    try:
        with LabStore(path=path) as store:
            while True:
                store.upsert(ACCESS, batch(number))
                number += 1
    except BaseException as error:
        answers.send((number, isinstance(error, StoreError), repr(error)))


def test_a_file_that_may_not_grow_loses_nothing_that_was_there(path: Path) -> None:
    for most in (30_000, 400_000, 1_500_000):
        path.unlink(missing_ok=True)
        child, answers = start(write_against_a_limit, path, most)
        number, mapped, error = answers.recv()
        child.join()
        assert mapped, error
        with LabStore(path=path) as store:
            assert store.count(ACCESS, EVERYTHING) == 40 * number
            assert all(len(_batch(store, n)) == 40 for n in range(number))
            store.upsert(ACCESS, batch(number))
        assert_sound(path)


def test_a_store_that_may_only_be_read(store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    with store._lent() as connection:
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreAccessDenied):
        store.upsert(ACCESS, batch(1))
    assert store.count(ACCESS, EVERYTHING) == 40


# --- the file -----------------------------------------------------------------------------------------------------


def calls(store: LabStore) -> Iterator[Callable[[], object]]:
    yield lambda: store.upsert(ACCESS, batch(0))
    yield lambda: store.get(ACCESS, ["a"])
    yield lambda: store.search(ACCESS, Query("common", VECTOR))
    yield lambda: store.scan(ACCESS, EVERYTHING)
    yield lambda: list(store.checksums(ACCESS, EVERYTHING))
    yield lambda: store.count(ACCESS, EVERYTHING)
    yield lambda: store.delete(ACCESS, ["a"])
    yield lambda: store.prune(ACCESS, NOW)
    yield lambda: store.drop_tenant(ACCESS)


def assert_refused(path: Path, match: str) -> None:
    """Every call says so, and not a byte is changed."""
    before = path.read_bytes()
    with LabStore(path=path, timeout=0.2) as store:
        for call in calls(store):
            with pytest.raises(StoreError, match=match) as refused:
                call()
            assert str(path) in str(refused.value)
        assert not store.health().ready
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content",
    [b"x", b"not a database\n", b"SQLite format 3", b"\0" * 100, b'{"items": [], "updatedAt": 0}', os.urandom(10_000)],
    ids=["a byte", "a line", "a beginning", "zeros", "a laboratory's file", "noise"],
)
def test_a_file_that_is_no_database_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert_refused(path, "not a database")


def test_another_program_s_database_is_refused_and_kept(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items (id)")
    assert_refused(path, "another program")


@pytest.mark.parametrize("pragma", ["user_version = 1", "application_id = 7"])
def test_an_empty_database_of_another_program_is_refused_and_kept(path: Path, pragma: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {pragma}")
    assert_refused(path, "another program")


def test_a_newer_version_is_refused_and_kept(path: Path) -> None:
    with LabStore(path=path) as store:
        store.upsert(ACCESS, batch(0))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert_refused(path, "version 99.*newer")


def test_a_damaged_file_is_said_to_be_damaged(path: Path) -> None:
    with LabStore(path=path) as store:
        store.upsert(ACCESS, batch(0, size=500))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    with LabStore(path=path) as store, pytest.raises(StoreError, match="damaged.*backup"):
        store.count(ACCESS, EVERYTHING)


def test_an_empty_file_becomes_a_store(path: Path, store: LabStore) -> None:
    path.touch()
    assert store.count(ACCESS, EVERYTHING) == 0
    assert store.upsert(ACCESS, batch(0)) == Written(40, 0)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    store = LabStore(path=tmp_path)
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        store.count(ACCESS, EVERYTHING)
    health = store.health()
    assert not health.ready
    assert "cannot be opened" in health.detail


def test_a_path_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LabStore(path=tmp_path / "file" / "lab.db")
    with pytest.raises(StoreError, match="file"):
        store.count(ACCESS, EVERYTHING)
    assert not store.health().ready


def test_only_its_owner_may_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "lab.db"
    mask = os.umask(0)
    try:
        with LabStore(path=path) as store:
            store.upsert(ACCESS, batch(0))
            files = list(path.parent.iterdir())
            modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in files}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(("lab.db", "lab.db-wal", "lab.db-shm"), "0o600")


def test_opening_touches_nothing(path: Path) -> None:
    with LabStore(path=path) as store:
        assert store.identity
    assert not path.exists()


def test_identity_is_the_real_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    spellings = (path, Path("lab.db"), tmp_path / "link" / "lab.db", tmp_path / "x" / ".." / "lab.db")
    assert {LabStore(path=spelling).identity for spelling in spellings} == {f"lab:{path.resolve()}"}


def test_a_dropped_tenant_leaves_no_byte_behind(path: Path, store: LabStore) -> None:
    secret = make_item("secret-id", text="xyzzy", title="plugh", tags=("frotz",), symbols=("gnusto",))
    store.upsert(ACCESS, [Record(secret, VECTOR), *batch(0)])
    store.upsert(ACCESS, [Record(make_item("secret-id", text="rezrov"))])
    other = ACCESS.model_copy(update={"tenant": "other"})
    store.upsert(other, [Record(make_item("kept", tenant="other", text="blorb"))])
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    traces = (b"xyzzy", b"plugh", b"frotz", b"gnusto", b"rezrov", b"secret-id", b"acme")
    assert all(trace in everything for trace in (*traces, b"blorb"))
    store.drop_tenant(ACCESS)
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert [trace for trace in traces if trace in everything] == []
    assert b"blorb" in everything
    assert_sound(path)


def test_deleting_does_not_depend_on_how_words_are_split_today(
    path: Path, store: LabStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(ACCESS, batch(0))
    monkeypatch.setattr(lab, "words", lambda text: ["otherwise", *text.split()])
    store.upsert(ACCESS, [Record(make_item("00000-00", text="new"))])
    store.delete(ACCESS, [f"00000-{n:02}" for n in range(1, 20)])
    monkeypatch.undo()
    assert_sound(path)
    assert len(store.search(ACCESS, Query(word_of(0), mode=Mode.KEYWORD, limit=50))) == 20


def test_expired_items_can_be_deleted(store: LabStore) -> None:
    store.upsert(ACCESS, [Record(make_item("a", expired=True)), Record(make_item("b", expired=True))])
    assert store.delete(ACCESS, ["a"]) == 1
    assert store.prune(ACCESS, NOW) == ["b"]
    assert store.prune(ACCESS, NOW) == []


# --- speed, in steps of SQLite's machine so that a busy computer does not matter -----------------------------------


def steps(store: LabStore, call: Callable[[], object]) -> int:
    """How many thousand steps this call takes."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    with store._lent() as connection:
        connection.set_progress_handler(count, 1_000)
    call()
    with store._lent() as connection:
        connection.set_progress_handler(None, 0)
    return taken


def test_what_a_filter_names_is_found_without_walking_the_tenant(store: LabStore) -> None:
    records = [
        Record(make_item(f"{n:04}", path=f"src/{n}.py", symbols=(f"s{n}",), repository=f"r{n % 1000}"))
        for n in range(4_000)
    ]
    store.upsert(ACCESS, records)
    for filter in (
        Filter(ids=("0007",)),
        Filter(paths=("src/7.py",)),
        Filter(path_prefix="src/7.py"),
        Filter(symbols=("s7",)),
        Filter(targets=("nothing",)),
        Filter(kinds=("x",)),
        Filter(source_types=("symbols",), repositories=("r7",)),
    ):
        assert steps(store, lambda: store.count(ACCESS, filter)) == 0, filter  # noqa: B023
        assert steps(store, lambda: list(store.checksums(ACCESS, filter))) == 0, filter  # noqa: B023
        assert steps(store, lambda: store.scan(ACCESS, filter)) == 0, filter  # noqa: B023
    assert steps(store, lambda: store.scan(ACCESS, EVERYTHING, "2000", 10)) == 0
    assert steps(store, lambda: store.count(ACCESS, Filter(languages=("x",)))) > 5  # the measure measures
    nothing = Query("src", mode=Mode.KEYWORD, filter=Filter(kinds=("x",)))
    assert steps(store, lambda: store.search(ACCESS, nothing)) == 0


def test_the_rarest_words_of_a_long_query_decide(store: LabStore) -> None:
    common = " ".join(f"c{n}" for n in range(60))
    store.upsert(ACCESS, [Record(make_item(f"{n:04}", text=f"{common} rare{n}")) for n in range(600)])
    hits = store.search(ACCESS, Query(f"{common} rare7 unknown", mode=Mode.KEYWORD, limit=1000))
    assert hits[0].item.id == "0007"
    assert len(hits) == 600


def test_words_that_most_items_hold_change_no_answer(store: LabStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        Record(make_item(f"{n:04}", text=f"the of it word{n % 7} other{n % 3} {'more ' * (n % 5)}")) for n in range(300)
    ]
    store.upsert(ACCESS, records)
    queries = [Query("the word3 of more it", mode=Mode.KEYWORD, limit=limit) for limit in (1, 10, 400)]
    queries.append(Query("the of it", mode=Mode.KEYWORD, limit=5))
    whole = [[hit.item.id for hit in store.search(ACCESS, query)] for query in queries]
    monkeypatch.setattr(lab, "_POSTINGS", 20)
    assert [[hit.item.id for hit in store.search(ACCESS, query)] for query in queries] == whole
    assert [len(found) for found in whole] == [1, 10, 300, 5]


# --- errors -------------------------------------------------------------------------------------------------------


def sqlite_errors() -> list[type[Exception]]:
    found = [value for value in vars(sqlite3).values() if isinstance(value, type) and issubclass(value, Exception)]
    return sorted(set(found), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", sqlite_errors())
def test_every_error_of_sqlite_is_mapped(path: Path, kind: type[Exception]) -> None:
    with pytest.raises(StoreError, match=r"lab\.db"), lab._errors(path):
        raise kind("trouble")


KINDS: dict[str, type[StoreError]] = {
    "SQLITE_BUSY": StoreUnavailable,
    "SQLITE_LOCKED": StoreUnavailable,
    "SQLITE_PROTOCOL": StoreUnavailable,
    "SQLITE_IOERR": StoreUnavailable,
    "SQLITE_CANTOPEN": StoreUnavailable,
    "SQLITE_FULL": StoreRejected,
    "SQLITE_TOOBIG": StoreRejected,
    "SQLITE_READONLY": StoreAccessDenied,
    "SQLITE_PERM": StoreAccessDenied,
    "SQLITE_AUTH": StoreAccessDenied,
    "SQLITE_CORRUPT": StoreError,
    "SQLITE_NOTADB": StoreError,
    "SQLITE_ERROR": StoreError,
    "SQLITE_INTERNAL": StoreError,
    "SQLITE_SCHEMA": StoreError,
    "SQLITE_MISUSE": StoreError,
}


@pytest.mark.parametrize(("name", "kind"), sorted(KINDS.items()))
def test_the_code_decides_which_error_it_is(path: Path, name: str, kind: type[StoreError]) -> None:
    for refined in (0, 1 << 8, 5 << 8):
        error = sqlite3.OperationalError("trouble")
        error.sqlite_errorcode = getattr(sqlite3, name) | refined
        with pytest.raises(StoreError) as raised, lab._errors(path):
            raise error
        assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), StoreAccessDenied),
        (OSError(28, "No space left on device"), StoreUnavailable),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), StoreRejected),
        (sqlite3.DataError("string or blob too big"), StoreRejected),
    ],
)
def test_other_errors(path: Path, error: Exception, kind: type[StoreError]) -> None:
    with pytest.raises(StoreError) as raised, lab._errors(path):
        raise error
    assert type(raised.value) is kind


def test_text_without_utf_8_is_refused(store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    for call in (
        lambda: store.get(ACCESS, ["\udcff"]),
        lambda: store.delete(ACCESS, ["\udcff"]),
        lambda: store.count(ACCESS.model_copy(update={"tenant": "\udcff"}), EVERYTHING),
    ):
        with pytest.raises(StoreRejected, match="UTF-8"):
            call()
    assert store.count(ACCESS, EVERYTHING) == 40


def test_too_many_values_are_refused(store: LabStore) -> None:
    store.upsert(ACCESS, batch(0))
    with pytest.raises(StoreRejected, match="several parts"):
        store.count(ACCESS, Filter(targets=tuple(f"symbol:{n}" for n in range(40_000))))
