"""Backups: what is in them, that they restore to the same state in any store, and every way that may go wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr
from samples import make_repository, write
from strategies import make_item, unit

from context_os import plugins, settings, takeover
from context_os.app import App
from context_os.archive import MANIFEST, Archive, Keys
from context_os.backup import Backups, create_native
from context_os.errors import BackupError, BackupRefused, ConfigurationError, NotFound, StoreAccessDenied
from context_os.ingestion import Ingestion, find_repository, register
from context_os.ledger import TABLES, Ledger
from context_os.model import Access, Confidentiality, FeedbackCounters, KnowledgeItem
from context_os.stores import Filter, KnowledgeStore, Mode, Query, Record
from context_os.weaviate_server import WeaviateServer

EVERYTHING = Filter()
MODEL = "hashed-256-1"
QUESTIONS = ("how does the pool release a session", "lock", "open a session for a host", "sockets leak")
WEAVIATE = pytest.param("weaviate", marks=[pytest.mark.weaviate])
PAIRS = [
    pytest.param(source, target, marks=[pytest.mark.weaviate]) if "weaviate" in (source, target) else (source, target)
    for source in ("lab", "weaviate")
    for target in ("lab", "weaviate")
]

Make = Callable[[str, str], "Home"]


class Home:
    """A home with a store of its own, as a person has it."""

    def __init__(self, folder: Path, store: KnowledgeStore) -> None:
        self.folder = folder
        self.settings = settings.load({"home": str(folder), "embedding": {"provider": "hashed"}}, start=folder)
        self.store = store
        self.ledger = Ledger(self.settings.make_home() / "ledger.db")
        self.ingestion = Ingestion(self.settings, store, self.ledger)
        self.access = self.ingestion.access
        self.backups = Backups(folder, folder / "backups")

    def ingest(self, repository: Path, *connectors: str) -> None:
        register(self.settings, self.ledger, "shop", repository)
        for name in connectors or plugins.names("connectors"):
            staged = self.ingestion.stage(name, find_repository(self.settings, self.ledger, "shop"))
            self.ingestion.judge(staged, "run-1")
            self.ingestion.index(staged, "run-1")
            self.ingestion.embed(name, "shop")

    def items(self) -> dict[str, KnowledgeItem]:
        page = self.store.scan(self.access, EVERYTHING, limit=5_000)
        assert page.cursor is None
        return {item.id: item for item in page.items}

    def vectors(self, version: str = MODEL) -> dict[str, list[float]]:
        found = self.store.vectors(self.access, list(self.items()), version)
        return {id: vector.tolist() for id, vector in found.items()}

    def books(self) -> dict[str, list[dict[str, Any]]]:
        """The ledger's rows of the tenant, without the numbers that each ledger gives anew."""
        scopes = {
            each.id: (each.repository, each.connector) for each in self.ledger.scopes(self.store.identity, "default")
        }
        found = {}
        for table in TABLES:
            rows = list(self.ledger.export(table, self.store.identity, "default"))
            key = "id" if table == "scopes" else "scope"
            hidden = {"store", "generation"} | ({"id"} if table in {"scopes", "quarantine", "verdicts"} else set())
            kept = [
                {"of": scopes[row[key]], **{k: v for k, v in row.items() if k not in hidden | {key}}} for row in rows
            ]
            found[table] = sorted(kept, key=repr)
        return found

    def answers(self, **options: Any) -> dict[str, Any]:
        """What searches find, in order."""
        app = App(self.settings.model_copy(update=options), self.store, self.access)
        found: dict[str, Any] = {}
        for question in QUESTIONS:
            request = app.request(question, "", "shop")
            found[f"select {question}"] = [(each.item.id, each.score) for each in app.select(request)]
            found[f"files {question}"] = app.files(request, 20)
            for mode in Mode:
                hits = app.search(question, mode, 20, EVERYTHING)
                found[f"{mode} {question}"] = [hit.item.id for hit in hits]
        return found

    def differences(self) -> list[Any]:
        scopes = self.ledger.scopes(self.store.identity, "default")
        return [each for scope in scopes for each in self.ingestion.reconcile(scope).differences]


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Homes with stores of a kind; what they left on the server is dropped."""
    made: list[KnowledgeStore] = []

    def build(kind: str, name: str) -> Home:
        folder = tmp_path / name
        folder.mkdir()
        store: KnowledgeStore
        if kind == "weaviate":
            server: WeaviateServer = request.getfixturevalue("weaviate_server")
            at = server.connection()
            store = plugins.load("stores", "weaviate")(
                url=at.url, grpc_port=at.grpc_port, api_key=at.api_key, collection=f"Test{uuid.uuid4().hex}"
            )
        else:
            store = plugins.load("stores", "lab")(path=folder / "lab.db")
        made.append(store)
        return Home(folder, store)

    yield build
    for store in made:
        store.drop_tenant(takeover.access("default"))
        store.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


def fill(home: Home, number: int = 30) -> list[KnowledgeItem]:
    """Items that no connector made: of every confidentiality, some with vectors of one version or another."""
    levels = list(Confidentiality)
    items = [
        make_item(
            str(uuid.UUID(int=place)),
            tenant="default",
            text=f"common words number {place} 日本 \N{GRINNING FACE}",
            confidentiality=levels[place % 3],
            tags=("tag", str(place)),
            structured={"deep": {"place": place, "none": None, "list": [1.5, True]}},
        ).model_copy(update={"feedback": FeedbackCounters(helpful=place, last_helpful_at=datetime.now(UTC))})
        for place in range(number)
    ]
    items = [KnowledgeItem.model_validate_json(item.model_dump_json()) for item in items]
    home.store.upsert(
        home.access, [Record(item, unit(1, place, 2) if place % 2 else None) for place, item in enumerate(items)]
    )
    return items


# --- what is in it, and that it comes back -----------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_restore_brings_back_the_same_state(make: Make, repository: Path, source: str, target: str) -> None:
    first, second = make(source, "first"), make(target, "second")
    first.ingest(repository)
    made = first.backups.create(first.store, "default")
    assert (made.items, made.vectors, made.encrypted) == (len(first.items()), len(first.vectors()), False)
    shutil.copytree(first.folder / "backups", second.folder / "backups")
    done = second.backups.restore(made.name, second.store, "default")
    assert (done.items, done.vectors, done.skipped) == (made.items, made.vectors, 0)
    assert second.items() == first.items()
    assert np.allclose(list(second.vectors().values()), [first.vectors()[id] for id in second.vectors()], atol=1e-6)
    assert second.vectors().keys() == first.vectors().keys()
    assert second.books() == first.books()
    assert second.ledger.repositories() == first.ledger.repositories()
    assert second.differences() == []
    if source == target:
        assert second.answers() == first.answers()
        assert second.vectors() == first.vectors()
    for name in ("symbols", "documents"):
        seen = second.ingestion.current(name, find_repository(second.settings, second.ledger, "shop"))
        assert seen is not None  # there is nothing to be ingested again
        assert second.ingestion.embed(name, "shop").embedded == 0
    assert not (second.folder / "restore" / "journal.json").exists()


@pytest.mark.parametrize("kind", ["lab", WEAVIATE])
def test_items_of_every_confidentiality_and_of_no_connector_come_back(make: Make, kind: str) -> None:
    first, second = make(kind, "first"), make(kind, "second")
    items = fill(first)
    summary = first.backups.create(first.store, "default")
    assert (summary.items, summary.vectors) == (30, 15)
    second.backups = Backups(second.folder, first.folder / "backups")
    second.backups.restore("newest", second.store, "default")
    assert list(second.items().values()) == items
    assert second.vectors("") == first.vectors("")
    query = Query(text="common words", mode=Mode.KEYWORD, limit=50)
    found = [[hit.item.id for hit in home.store.search(home.access, query)] for home in (first, second)]
    assert found[0] == found[1]
    assert len(found[0]) == 30


def test_what_else_the_home_keeps_comes_back_where_it_is_missing(make: Make, tmp_path: Path) -> None:
    first, second = make("lab", "first"), make("lab", "second")
    fill(first, 3)
    database = sqlite3.connect(first.folder / "access.db")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE grants (name TEXT)")
    database.execute("INSERT INTO grants VALUES ('ann')")
    database.commit()  # stays in the log: a plain copy of the file would miss it
    write(first.folder, "receipts/2026/one.json", "{}")
    write(first.folder, "lineage/empty.jsonl", "")
    write(first.folder, "vectors.db", "derivable")
    first.backups.create(first.store, "default")
    database.close()
    write(second.folder, "receipts/2026/one.json", "mine")
    Backups(second.folder, first.folder / "backups").restore("newest", second.store, "default")
    assert (second.folder / "receipts/2026/one.json").read_text() == "mine"
    assert (second.folder / "lineage/empty.jsonl").read_text() == ""
    assert not (second.folder / "vectors.db").exists()
    with sqlite3.connect(second.folder / "access.db") as restored:
        assert restored.execute("SELECT name FROM grants").fetchall() == [("ann",)]


def test_a_tenant_is_restored_among_others(make: Make, tmp_path: Path) -> None:
    home = make("lab", "home")
    fill(home)
    theirs = Access(tenant="globex", principal="ann", clearance=Confidentiality.RESTRICTED)
    home.store.upsert(theirs, [Record(make_item("theirs", tenant="globex"))])
    other = home.ledger.scope(home.store.identity, "globex", "web", "symbols")
    home.backups.create(home.store, "default")
    home.store.upsert(home.access, [Record(make_item("later", tenant="default"))])
    home.backups.restore("newest", home.store, "default", replace=True)
    assert len(home.items()) == 30
    assert home.store.count(theirs, EVERYTHING) == 1
    assert home.ledger.scopes(home.store.identity, "globex") == [other]


def test_a_restore_never_overwrites_unasked(make: Make, repository: Path) -> None:
    home = make("lab", "home")
    home.ingest(repository, "symbols")
    name = home.backups.create(home.store, "default").name
    before = home.items()
    with pytest.raises(BackupRefused, match="--replace"):
        home.backups.restore(name, home.store, "default")
    with pytest.raises(BackupRefused, match="holds the tenant 'default'"):
        home.backups.restore(name, home.store, "other", replace=True)
    with pytest.raises(NotFound, match=name):
        home.backups.restore("absent", home.store, "default")
    write(repository, "shop/more.py", "def more():\n    pass\n")
    home.ingest(repository, "symbols")
    assert len(home.items()) > len(before)
    staged = home.ingestion.stage("symbols", find_repository(home.settings, home.ledger, "shop"))
    old = home.ledger.scope(home.store.identity, "default", "shop", "symbols")
    home.backups.restore(name, home.store, "default", replace=True)
    assert home.items() == before
    new = home.ledger.scope(home.store.identity, "default", "shop", "symbols")
    assert new.generation > old.generation  # what was staged before cannot be taken for one of now
    assert not list((home.folder / "corpus").glob(f"{old.id}-*"))
    home.ingestion.judge(staged, "run-2")
    with pytest.raises(Exception, match="materialize|No such file"):
        home.ingestion.index(staged, "run-2")
    home.ingest(repository, "symbols")
    assert home.differences() == []


def test_an_empty_tenant_is_backed_up_and_restored_too(make: Make) -> None:
    home = make("lab", "home")
    home.backups.create(home.store, "default")
    fill(home)
    home.backups.restore("newest", home.store, "default", replace=True)
    assert home.items() == {}


@pytest.mark.parametrize("kind", ["lab", WEAVIATE])
def test_what_was_erased_does_not_come_back(make: Make, repository: Path, kind: str) -> None:
    first, second = make(kind, "first"), make(kind, "second")
    first.ingest(repository, "symbols", "documents")
    erased = {item.id for item in first.items().values() if item.source.path == "shop/pool.py"}
    assert erased
    first.backups.create(first.store, "default")
    backups = Backups(second.folder, first.folder / "backups")
    done = backups.restore("newest", second.store, "default", skip=lambda item: item.id in erased)
    assert done.skipped == len(erased)
    assert set(second.items()) == set(first.items()) - erased
    assert second.differences() == []
    told = repr(second.answers())
    assert not any(id in told for id in erased)
    for file in (second.folder / "corpus").glob("*.npz"):
        with np.load(file) as segment:
            assert b"locked" not in segment["terms"].tobytes()
    for name in ("symbols", "documents"):
        assert second.ingestion.embed(name, "shop").embedded == 0


def test_a_home_that_was_moved_or_copied_keeps_its_ledger(make: Make, repository: Path, tmp_path: Path) -> None:
    home = make("lab", "home")
    home.ingest(repository, "symbols")
    books = home.books()
    home.store.close()
    home.folder.rename(tmp_path / "moved")
    chosen = settings.load({"home": str(tmp_path / "moved"), "embedding": {"provider": "hashed"}}, start=tmp_path)
    with chosen.open_store() as store:
        moved = Home(tmp_path / "moved", store)
        assert moved.books() == books
        assert moved.differences() == []
        made = moved.backups.create(store, "default")
        assert Archive(made.path, Keys()).contents.rows("ledger_scopes") == 1


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plain and an encrypted backup of the same home, to be copied before they are damaged."""
    folder = tmp_path_factory.mktemp("made")
    home = Home(folder, plugins.load("stores", "lab")(path=folder / "lab.db"))
    home.ingest(make_repository(folder / "shop"), "symbols", "team_rules")
    write(folder, "lineage/log.jsonl", "line\n")
    with home.store:
        plain = home.backups.create(home.store, "default")
        sealed = Backups(folder, folder / "backups", Keys(SECRET)).create(home.store, "default")
    return plain.path, sealed.path


SECRET = SecretStr("correct horse battery")


@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encrypted=st.booleans())
def test_a_flipped_byte_anywhere_is_found(
    made: tuple[Path, Path], tmp_path: Path, data: st.DataObject, encrypted: bool
) -> None:
    original = made[encrypted]
    file = data.draw(st.sampled_from(sorted(path.name for path in original.iterdir())))
    raw = bytearray((original / file).read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    copy = tmp_path / uuid.uuid4().hex
    copy.mkdir()
    for each in original.iterdir():
        (copy / each.name).hardlink_to(each)
    (copy / file).unlink()
    (copy / file).write_bytes(raw)
    archive = Archive(copy, Keys(SECRET))
    problems = archive.problems()
    assert problems
    assert any(file in problem for problem in problems)
    with pytest.raises(BackupRefused, match="cannot be used"):
        archive.check()
    shutil.rmtree(copy)


def test_what_is_whole_has_no_problems(made: tuple[Path, Path]) -> None:
    for path in made:
        assert Archive(path, Keys(SECRET)).problems() == []


def damaged(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to / "backups" / path.name))


def test_every_problem_is_listed_and_nothing_is_touched(made: tuple[Path, Path], make: Make) -> None:
    home = make("lab", "home")
    items = fill(home)
    copy = damaged(made[0], home.folder)
    files = sorted(each.name for each in copy.glob("*.parquet"))
    (copy / files[0]).unlink()
    (copy / files[1]).write_bytes((copy / files[1]).read_bytes()[:-7])
    raw = bytearray((copy / files[2]).read_bytes())
    raw[9] ^= 1
    (copy / files[2]).write_bytes(raw)
    with pytest.raises(BackupRefused) as caught:
        home.backups.restore("newest", home.store, "default", replace=True)
    assert len(caught.value.problems) == 3
    for file, word in zip(files, ("missing", "bytes instead of", "SHA-256"), strict=False):
        assert any(file in problem and word in problem for problem in caught.value.problems)
    assert caught.value.exit_code == 3
    assert list(home.items().values()) == items
    assert not (home.folder / "restore" / "journal.json").exists()


def rewrite(path: Path, **changes: Any) -> None:
    """A manifest that says something else and is sealed again, as somebody with bad intentions would."""
    from context_os.archive import _json

    manifest = Archive(path, Keys()).manifest
    contents = manifest.contents
    if "contents" in changes and contents is not None:
        changes["contents"] = contents.model_copy(update=changes["contents"])
    (path / MANIFEST).write_bytes(_json(manifest.model_copy(update=changes).sealed()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "newer Context-OS"),
        ({"contents": {"ledger": 99}}, "newer Context-OS"),
        ({"contents": {"held": ()}}, "not as many"),
        ({"contents": {"parts": ()}}, "other files"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    made: tuple[Path, Path], make: Make, changes: dict[str, Any], told: str
) -> None:
    home = make("lab", "home")
    rewrite(damaged(made[0], home.folder), **changes)
    with pytest.raises(BackupError, match=told):
        home.backups.restore(made[0].name, home.store, "default")
    assert home.items() == {}


def test_a_file_never_leaves_the_home(make: Make) -> None:
    home = make("lab", "home")
    fill(home, 2)
    write(home.folder, "lineage/log.jsonl", "line\n")
    made = home.backups.create(home.store, "default")
    from context_os import archive

    name = next(part.name for part in Archive(made.path, Keys()).contents.parts if part.table == "files")
    (table,) = archive.tables([{"path": "../../evil", "data": b"x"}], archive.TABLES["files"])
    import pyarrow.parquet as pq

    pq.write_table(table, made.path / name)
    data = (made.path / name).read_bytes()
    files = Archive(made.path, Keys()).manifest.files
    changed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(made.path, files=tuple(each.model_copy(update=changed) if each.name == name else each for each in files))
    with pytest.raises(BackupRefused, match="does not belong"):
        home.backups.restore("newest", home.store, "default", replace=True)
    assert len(home.items()) == 2
    assert not (home.folder.parent / "evil").exists()


# --- encryption --------------------------------------------------------------------------------------------------


def test_an_encrypted_backup_tells_nothing_without_its_secret(made: tuple[Path, Path], make: Make) -> None:
    path = made[1]
    for file in path.iterdir():
        raw = file.read_bytes()
        assert not any(word in raw for word in (b"shop", b"symbols", b"release", b"default", b"PAR1"))
        assert file.name == MANIFEST or file.name == "contents" or file.name.endswith(".bin")
    listed = Backups(path.parent.parent, path.parent).all()
    assert [(each.encrypted, each.items, each.tenant) for each in listed if each.encrypted] == [(True, None, None)]
    assert Archive(path, Keys()).damage() == []
    home = make("lab", "home")
    for keys, told in (
        (Keys(), "CONTEXT_OS_BACKUP__PASSPHRASE"),
        (Keys(SecretStr("another passphrase")), "passphrase is another"),
    ):
        with pytest.raises(BackupRefused, match=told):
            Backups(home.folder, path.parent, keys).restore(path.name, home.store, "default")
    Backups(home.folder, path.parent, Keys(SECRET)).restore(path.name, home.store, "default")
    assert home.items()


def test_age_encrypts_for_whoever_has_the_private_key(make: Make, tmp_path: Path) -> None:
    from pyrage import x25519

    private = x25519.Identity.generate()
    key = write(tmp_path, "key.txt", f"# created: today\n# public key: {private.to_public()}\n{private}\n")
    home = make("lab", "home")
    items = fill(home)
    maker = Backups(home.folder, home.folder / "backups", Keys(recipients=(str(private.to_public()),)))
    name = maker.create(home.store, "default").name
    with pytest.raises(BackupRefused, match="private key"):
        maker.restore(name, home.store, "default", replace=True)
    other = write(tmp_path, "other.txt", f"{x25519.Identity.generate()}\n")
    with pytest.raises(BackupRefused, match="key is another"):
        Backups(home.folder, maker.folder, Keys(identity=other)).restore(name, home.store, "default", replace=True)
    home.store.drop_tenant(home.access)
    Backups(home.folder, maker.folder, Keys(identity=key)).restore(name, home.store, "default")
    assert list(home.items().values()) == items
    with pytest.raises(ConfigurationError, match="age1"):
        Backups(home.folder, maker.folder, Keys(recipients=("age1nonsense",))).create(home.store, "default")
    with pytest.raises(ConfigurationError, match="12 characters"):
        Backups(home.folder, maker.folder, Keys(SecretStr("short"))).create(home.store, "default")


# --- accidents ---------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from context_os import settings, takeover
from context_os.backup import Backups, create_native
from context_os.ledger import Ledger
from context_os.segments import Segment

home, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
chosen = settings.load({"home": home, "embedding": {"provider": "hashed"}}, start=__import__("pathlib").Path(home))

def watched(owner, method):
    call = getattr(owner, method)
    def step(*arguments, **options):
        global left
        if left == 0:
            print("killed before", method, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    setattr(owner, method, step)

with chosen.open_store() as store:
    kind = type(store)
    places = [(kind, "upsert"), (kind, "take_over"), (kind, "drop_tenant"), (Ledger, "take_in"), (Ledger, "take_over")]
    places += [(Ledger, "register"), (takeover.Takeover, "decide"), (takeover.Takeover, "_move_files")]
    places += [(takeover.Takeover, "_forget_files"), (takeover.Takeover, "_close"), (takeover, "_write")]
    places += [(kind, "_clear")] if hasattr(kind, "_clear") else []
    for owner, method in places if left >= 0 else ():
        watched(owner, method)
    Backups.of(chosen).restore(name, store, "default", replace=True)
print("done", flush=True)
"""


def child(home: Path, name: str, left: int, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home), name, str(left)],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def no_rubbish(home: Home) -> None:
    """Nothing of the other state is left anywhere."""
    assert not (home.folder / "restore" / "journal.json").exists()
    assert not (home.folder / "restore" / "files").exists()
    with sqlite3.connect(home.folder / "ledger.db") as db:
        assert {store for (store,) in db.execute("SELECT DISTINCT store FROM scopes")} == {home.store.identity}
        for table in TABLES[1:]:
            orphans = db.execute(f"SELECT count(*) FROM {table} WHERE scope NOT IN (SELECT id FROM scopes)").fetchone()
            assert orphans == (0,), table
    scopes = home.ledger.scopes(home.store.identity, "default")
    expected = {f"{each.id}-{each.generation}.npz" for each in scopes}
    assert {file.name for file in (home.folder / "corpus").glob("[0-9]*.npz")} == expected
    if home.store.name == "lab":
        with sqlite3.connect(home.folder / "lab.db") as db:
            assert db.execute("SELECT tenant FROM tenants").fetchall() == [("default",)]
            (kept,) = db.execute("SELECT count(*) FROM items").fetchone()
            assert kept == len(home.items())


@pytest.fixture
def two_states(make: Make, repository: Path) -> tuple[Home, str, dict[str, KnowledgeItem], dict[str, KnowledgeItem]]:
    """A home in its second state, with a backup of the first: its name, the items of the one and of the other."""
    home = make("lab", "home")
    home.ingest(repository, "symbols", "team_rules")
    write(home.folder, "lineage/log.jsonl", "line\n")
    old = home.items()
    name = home.backups.create(home.store, "default").name
    write(repository, "shop/more.py", "def more():\n    pass\n")
    (repository / "shop/pool.py").unlink()
    home.ingest(repository, "symbols", "documents")
    (home.folder / "lineage/log.jsonl").unlink()
    home.store.close()
    return home, name, old, home.items()


def reopened(folder: Path) -> Home:
    """As the next command finds it."""
    chosen = settings.load({"home": str(folder), "embedding": {"provider": "hashed"}}, start=folder)
    return Home(folder, chosen.open_store())


@pytest.mark.slow
def test_a_restore_that_is_killed_at_any_step_leaves_one_state_or_the_other(
    two_states: tuple[Home, str, dict[str, KnowledgeItem], dict[str, KnowledgeItem]], tmp_path: Path
) -> None:
    home, name, before, after = two_states
    seen = []
    for left in range(60):
        copy = Path(shutil.copytree(home.folder, tmp_path / f"copy-{left}"))
        with child(copy, name, left) as ended:
            out, error = ended.communicate(timeout=120)
        assert ended.returncode in {0, -signal.SIGKILL}, error
        found = reopened(copy)
        items = found.items()
        assert items in (before, after), out
        restored = items == before
        seen.append(restored)
        assert found.differences() == []
        assert (copy / "lineage/log.jsonl").exists() == restored
        assert {each.connector for each in found.ledger.scopes(found.store.identity, "default")} == (
            {"symbols", "team_rules"} if restored else {"symbols", "team_rules", "documents"}
        )
        no_rubbish(found)
        found.store.close()
        shutil.rmtree(copy)
        if ended.returncode == 0:
            break
    assert out.strip() == "done"
    assert seen == sorted(seen)  # once it was decided, it stays
    assert {False, True} == set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_restore_that_is_killed_at_any_time_leaves_one_state_or_the_other(
    two_states: tuple[Home, str, dict[str, KnowledgeItem], dict[str, KnowledgeItem]], tmp_path: Path, share: float
) -> None:
    home, name, before, after = two_states
    whole = Path(shutil.copytree(home.folder, tmp_path / "whole"))
    started = time.monotonic()
    with child(whole, name, -1) as ended:
        assert ended.communicate(timeout=120)[0] == "done\n"
    seconds = time.monotonic() - started
    with child(home.folder, name, -1) as ended:
        time.sleep(seconds * share)
        ended.kill()
        ended.communicate()
    found = reopened(home.folder)
    assert found.items() in (before, after)
    assert found.differences() == []
    no_rubbish(found)
    found.store.close()


def test_what_a_restore_is_building_is_seen_by_nobody(
    two_states: tuple[Home, str, dict[str, KnowledgeItem], dict[str, KnowledgeItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name, before, after = two_states
    answers = home.answers()
    looked = []

    def look(*arguments: Any) -> None:
        other = reopened(home.folder)  # somebody else's command: neither waits nor undoes what is at work
        looked.append((other.items(), other.answers()))
        other.store.close()
        with (
            pytest.raises(BackupRefused, match="another restore"),
            takeover.begun(home.folder, home.store, home.ledger, "default", "second", name),
        ):
            pass
        decide(*arguments)

    decide = takeover.Takeover.decide
    monkeypatch.setattr(takeover.Takeover, "decide", look)
    home.backups.restore(name, home.store, "default", replace=True)
    assert looked == [(after, answers)]
    assert home.items() == before


def test_a_restore_that_fails_leaves_no_trace(
    two_states: tuple[Home, str, dict[str, KnowledgeItem], dict[str, KnowledgeItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name, _, after = two_states

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "register", fail)
    (home.folder / "ledger.db").touch()
    with sqlite3.connect(home.folder / "ledger.db") as db:
        db.execute("DELETE FROM repositories")
    with pytest.raises(OSError, match="No space"):
        home.backups.restore(name, home.store, "default", replace=True)
    assert home.items() == after
    no_rubbish(home)


def test_ingestions_wait_for_a_backup(make: Make, repository: Path) -> None:
    home = make("lab", "home")
    home.ingest(repository, "symbols")
    code = "import sys; from context_os.ledger import Ledger; from pathlib import Path\n" + textwrap.dedent("""
        with Ledger(Path(sys.argv[1])).writing():
            print("writing", flush=True)
    """)
    with home.ledger.alone():
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(home.folder / "ledger.db")], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
    assert other.communicate(timeout=30)[0] == "writing\n"


def fill_with_noise(home: Home) -> None:
    noise = np.random.default_rng(1).bytes(200_000).hex()
    home.store.upsert(home.access, [Record(make_item("noise", tenant="default", text=noise))])


def test_a_disk_that_fills_up_leaves_no_half_backup(make: Make, tmp_path: Path) -> None:
    home = make("lab", "home")
    fill_with_noise(home)
    kept = home.backups.create(home.store, "default")
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from context_os.backup import Backups
        from context_os.errors import BackupError
        from context_os.stores.lab import LabStore
        import context_os.archive, pyarrow.parquet
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        home = Path(sys.argv[1])
        try:
            Backups(home, home / "backups").create(LabStore(path=home / "lab.db"), "default")
        except BackupError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", code, str(home.folder)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert "nothing is left" in done.stdout
    assert [each.name for each in home.backups.all()] == [kept.name]
    assert [each.name for each in (home.folder / "backups").iterdir()] == [kept.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_small_disk_that_fills_up_leaves_no_half_backup(make: Make, tmp_path: Path) -> None:
    home = make("lab", "home")
    fill_with_noise(home)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(BackupError, match="No space left"):
            Backups(home.folder, disk).create(home.store, "default")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_maker_that_is_killed_leaves_nothing_that_is_listed(make: Make) -> None:
    home = make("lab", "home")
    fill(home)
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from context_os import archive
        from context_os.backup import Backups
        from context_os.stores.lab import LabStore
        archive.Writer.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        home = Path(sys.argv[1])
        Backups(home, home / "backups").create(LabStore(path=home / "lab.db"), "default")
    """)
    done = subprocess.run([sys.executable, "-c", code, str(home.folder)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert home.backups.all() == []
    assert len(list((home.folder / "backups").iterdir())) == 1
    made = home.backups.create(home.store, "default")
    assert [each.name for each in (home.folder / "backups").iterdir()] == [made.name]


# --- keeping and trying out --------------------------------------------------------------------------------------


def aged(path: Path, name: str, when: datetime) -> None:
    copy = Path(shutil.copytree(path, path.parent / name))
    rewrite(copy, created=when, name=name)


def test_prune_keeps_days_weeks_and_the_newest_that_is_whole(make: Make) -> None:
    home = make("lab", "home")
    fill(home, 3)
    first = home.backups.create(home.store, "default")
    noon = datetime(2026, 3, 31, 12, tzinfo=UTC)  # a Tuesday
    for days in range(30):
        aged(first.path, f"day-{days:02}", noon - timedelta(days=days))
        aged(first.path, f"day-{days:02}-early", noon - timedelta(days=days, hours=3))
    shutil.rmtree(first.path)
    kept, gone = home.backups.prune(daily=3, weekly=3)
    assert [each.name for each in kept] == ["day-00", "day-01", "day-02", "day-09"]  # two Sundays, beside the days
    assert len(gone) == 56
    assert [each.name for each in home.backups.all()] == [each.name for each in kept]
    damaged = next((home.folder / "backups" / "day-00").glob("*.parquet"))
    damaged.write_bytes(b"gone")
    kept, gone = home.backups.prune(daily=0, weekly=0)
    assert [each.name for each in kept] == ["day-01"]
    next((home.folder / "backups" / "day-01").glob("*.parquet")).unlink()
    assert home.backups.prune(daily=0, weekly=0)[1] == []  # with none that is whole, nothing goes


@pytest.mark.parametrize("kind", ["lab", WEAVIATE])
def test_a_drill_compares_and_leaves_nothing_behind(
    make: Make, repository: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make(kind, "home")
    home.ingest(repository, "symbols")
    fill(home)
    made = home.backups.create(home.store, "default")
    before = (home.items(), home.books())
    done = home.backups.drill("newest", home.store)
    assert (done.items, done.vectors, done.different, done.differences) == (made.items, made.vectors, 0, ())
    assert (home.items(), home.books()) == before
    assert not (home.folder / "drill").exists()
    loses = next(iter(before[0]))
    upsert = type(home.store).upsert

    def forgetful(store: KnowledgeStore, access: Access, records: list[Record]) -> Any:
        done = upsert(store, access, records)
        store.delete(access, [loses])
        return done

    monkeypatch.setattr(type(home.store), "upsert", forgetful)
    assert home.backups.drill("newest", home.store).differences == (f"{loses}: missing",)
    if kind == "weaviate":
        with home.store._talking() as client:
            left = [name for name in client.collections.list_all() if name.startswith(f"{home.store.collection}_")]
            assert left == []
            assert not [name for name in client.alias.list_all() if name.startswith(home.store.collection)]


@pytest.mark.slow
@pytest.mark.weaviate
def test_a_restore_into_a_server_that_is_killed_leaves_one_state_or_the_other(
    make: Make, repository: Path, weaviate_server: WeaviateServer
) -> None:
    home = make("weaviate", "home")
    home.ingest(repository, "symbols")
    before = home.items()
    name = home.backups.create(home.store, "default").name
    write(repository, "shop/more.py", "def more():\n    pass\n")
    home.ingest(repository, "symbols")
    after = home.items()
    later = home.backups.create(home.store, "default").name
    at = weaviate_server.connection()
    server = {
        "CONTEXT_OS_STORE__URL": at.url,
        "CONTEXT_OS_STORE__GRPC_PORT": str(at.grpc_port),
        "CONTEXT_OS_STORE__API_KEY": at.api_key.get_secret_value(),
        "CONTEXT_OS_STORE__COLLECTION": home.store.collection,  # type: ignore[attr-defined]
    }
    chosen = settings.load({"home": str(home.folder), "store": {
        "url": at.url, "grpc_port": at.grpc_port, "api_key": at.api_key.get_secret_value(),
        "collection": server["CONTEXT_OS_STORE__COLLECTION"],
    }}, start=home.folder)  # fmt: skip
    outcomes = set()
    for left in (0, 4, 10, 12, 13, 14, 15, 16):
        with child(home.folder, name, left, **server) as ended:
            error = ended.communicate(timeout=120)[1]
        assert ended.returncode in {0, -signal.SIGKILL}, error
        with chosen.open_store() as store:
            found = Home(home.folder, store)
            assert found.items() in (before, after)
            assert found.differences() == []
            outcomes.add((ended.returncode, found.items() == before))
            no_rubbish(found)
            with store._talking() as client:
                assert len(store._collections(client)) <= 2  # the store's own, and the one that holds the tenant
            if found.items() == before:
                found.backups.restore(later, store, "default", replace=True)
            assert found.items() == after
    assert outcomes >= {(-signal.SIGKILL, False), (-signal.SIGKILL, True)}


# --- what the runbook says about the server ----------------------------------------------------------------------


@pytest.mark.weaviate
def test_a_role_for_one_tenant_covers_what_a_restore_makes(make: Make, weaviate_server: WeaviateServer) -> None:
    from weaviate.classes.rbac import Permissions

    home = make("weaviate", "home")
    items = fill(home, 5)
    home.backups.create(home.store, "default")
    home.backups.restore("newest", home.store, "default", replace=True)
    theirs = Access(tenant="globex", principal="ann", clearance=Confidentiality.RESTRICTED)
    home.store.upsert(theirs, [Record(make_item("theirs", tenant="globex"))])
    collection, name = home.store.collection, f"user-{uuid.uuid4().hex[:8]}"  # type: ignore[attr-defined]

    def key_with(pattern: str) -> SecretStr:
        rights = {"create": True, "read": True, "update": True, "delete": True}
        root.roles.create(
            role_name=name,
            permissions=[
                Permissions.data(collection=pattern, tenant="default", **rights),
                Permissions.collections(collection=pattern, read_config=True),
                Permissions.tenants(collection=pattern, tenant="default", read=True),
                Permissions.alias(alias=pattern, collection=pattern, read=True),
            ],
        )
        key = SecretStr(root.users.db.create(user_id=name))
        root.users.db.assign_roles(user_id=name, role_names=name)
        return key

    with home.store._talking() as root:  # type: ignore[attr-defined]
        try:
            with home.store.model_copy(update={"api_key": key_with(f"{collection}*")}) as restricted:
                found = restricted.scan(home.access, EVERYTHING).items
                assert sorted(item.id for item in found) == sorted(item.id for item in items)
                assert restricted.upsert(home.access, [Record(make_item("more", tenant="default"))]).written == 1
                with pytest.raises(StoreAccessDenied):
                    restricted.scan(theirs, EVERYTHING)
        finally:
            root.users.db.delete(user_id=name)
            root.roles.delete(role_name=name)


@pytest.mark.weaviate
def test_a_native_backup_is_restored_once_its_collections_are_gone(make: Make) -> None:
    home = make("weaviate", "home")
    items = fill(home, 5)
    home.backups.create(home.store, "default")
    home.backups.restore("newest", home.store, "default", replace=True)  # behind an alias, in a collection of its own
    made = create_native(home.store, incremental=False)
    with home.store._talking() as client:  # type: ignore[attr-defined]
        places = home.store._collections(client)  # type: ignore[attr-defined]
        assert len(places) == 2
        client.collections.delete(places)
        client.backup.restore(backup_id=made.name, backend="filesystem", wait_for_completion=True, overwrite_alias=True)
    with home.store.model_copy() as anew:
        assert sorted(anew.scan(home.access, EVERYTHING).items, key=lambda item: item.id) == items
