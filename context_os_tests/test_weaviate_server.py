"""The local server, against the real binary where one is needed, and the parts of its store that no contract names."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_os.errors import ServerError, StoreAccessDenied, StoreError, StoreRejected, StoreUnavailable
from context_os.model import (
    Access,
    Confidentiality,
    KnowledgeItem,
    Metadata,
    Payload,
    Source,
    content_checksum,
    item_id,
    utcnow,
)
from context_os.stores import Filter, Mode, Query, Record
from context_os.stores import weaviate as module
from context_os.stores.weaviate import WeaviateStore
from context_os.weaviate_server import VERSION, Connection, WeaviateServer

SCRIPT = '#!/bin/sh\n{}\n# "title": "Weaviate REST API", "version": "{}"\n'


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def http_status(url: str, key: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the server, without one ---------------------------------------------------------------------------------------


def test_a_server_that_was_never_started_leaves_no_trace(tmp_path: Path) -> None:
    server = WeaviateServer(tmp_path / "home")
    for status in (server.status(), server.stop()):
        assert not status.running
        assert not status.ready
        assert status.pid is None
        assert "never started" in status.detail
    assert not (tmp_path / "home").exists()
    with pytest.raises(ServerError, match="start one first"):
        server.connection()


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Weaviate, no Go, an empty cache. Returns the folder that is the whole PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def executable(path: Path, body: str, version: str = VERSION) -> None:
    path.write_text(SCRIPT.format(body, version))
    path.chmod(0o755)


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/context-os/weaviate" / VERSION).iterdir())


def test_where_nothing_can_be_installed_the_error_says_what_was_tried(tmp_path: Path, bare_machine: Path) -> None:
    told: list[str] = []
    nobody = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(ServerError, match="cannot be installed") as failure:
        WeaviateServer(tmp_path / "home", releases=nobody).start(told.append)
    assert time.monotonic() - began < 10
    assert nobody in str(failure.value)
    assert "no go command" in str(failure.value)
    assert any("downloading" in line for line in told)
    assert cached(tmp_path) == ["lock"]


def test_a_go_build_that_fails_is_reported_with_its_last_words(tmp_path: Path, bare_machine: Path) -> None:
    (bare_machine / "go").write_text('#!/bin/sh\necho "go: $*" >&2\necho no space left on device >&2\nexit 1\n')
    (bare_machine / "go").chmod(0o755)
    with pytest.raises(ServerError, match=r"weaviate-server@v1\.39\.0 / no space left on device"):
        WeaviateServer(tmp_path / "home", releases=f"http://127.0.0.1:{free_port()}").start()
    assert cached(tmp_path) == ["lock"]


def test_without_a_release_the_server_is_built_with_go(tmp_path: Path, bare_machine: Path) -> None:
    built = SCRIPT.format("echo built as asked; exit 3", VERSION).replace("\n", "\\n")
    (bare_machine / "go").write_text(
        f"#!/bin/sh\n[ $CGO_ENABLED = 0 ] && printf '{built}' > \"$GOBIN/weaviate-server\"\n"
    )
    (bare_machine / "go").chmod(0o755)
    with pytest.raises(ServerError, match="built as asked"):
        WeaviateServer(tmp_path / "home", releases=f"http://127.0.0.1:{free_port()}").start()
    assert cached(tmp_path) == ["lock", "weaviate-server"]


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[str]:
    """A release folder on loopback with an archive whose server says why it ends, and its checksum."""
    folder = tmp_path / "releases" / f"v{VERSION}"
    folder.mkdir(parents=True)
    content = SCRIPT.format("echo no disk in this drive; exit 3", VERSION).encode()
    name = f"weaviate-v{VERSION}-linux-{'arm64' if os.uname().machine == 'aarch64' else 'amd64'}.tar.gz"
    with tarfile.open(folder / name, "w:gz") as archive:
        for path, data in (("../README.md", b"not this"), ("weaviate", content)):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / f"{name}.sha256").write_text(f"{digest}\n")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "releases"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the fake release is one for Linux")


@linux_only
def test_a_release_with_the_published_checksum_is_installed_and_its_failure_shown(
    tmp_path: Path, bare_machine: Path, releases: str
) -> None:
    server = WeaviateServer(tmp_path / "home", releases=releases)
    with pytest.raises(ServerError, match="ended while it started") as failure:
        server.start()
    assert "no disk in this drive" in str(failure.value)
    assert not server.status().running
    assert cached(tmp_path) == ["lock", "weaviate-server"]
    assert not (tmp_path / "README.md").exists()


@linux_only
@pytest.mark.parametrize("published", ["0" * 64, "", "not a checksum"])
def test_a_release_that_does_not_match_its_checksum_is_refused(
    tmp_path: Path, bare_machine: Path, releases: str, published: str
) -> None:
    next((tmp_path / "releases").rglob("*.sha256")).write_text(published)
    with pytest.raises(ServerError, match="SHA-256"):
        WeaviateServer(tmp_path / "home", releases=releases).start()
    assert cached(tmp_path) == ["lock"]


def test_a_server_on_path_is_taken_only_in_the_right_version(tmp_path: Path, bare_machine: Path) -> None:
    told: list[str] = []
    executable(bare_machine / "weaviate-server", "echo wrong one", "1.38.2")
    executable(bare_machine / "weaviate", "echo taken from path; exit 1")
    with pytest.raises(ServerError, match="taken from path"):
        WeaviateServer(tmp_path / "home").start(told.append)
    assert any("1.38.2" in line for line in told)


def test_a_server_that_never_gets_ready_is_stopped_at_the_deadline(tmp_path: Path, bare_machine: Path) -> None:
    executable(bare_machine / "weaviate-server", "echo waiting for a quorum; exec /bin/sleep 600")
    server = WeaviateServer(tmp_path / "home", deadline=0.5)
    with pytest.raises(ServerError, match="waiting for a quorum"):
        server.start()
    assert not server.status().running


def test_a_server_that_ignores_sigterm_is_killed_and_no_other_process(
    tmp_path: Path, bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(bare_machine / "weaviate-server", "trap '' TERM; while :; do /bin/sleep 0.1; done")
    monkeypatch.setattr("context_os.weaviate_server._STOP_PATIENCE", 0.5)
    server = WeaviateServer(tmp_path / "home", deadline=0.5)
    with pytest.raises(ServerError, match="was stopped"):
        server.start()
    assert not server.status().running


@pytest.mark.parametrize(("which", "named"), [("port", "HTTP"), ("grpc_port", "gRPC")])
def test_a_requested_port_in_use_is_named(tmp_path: Path, which: str, named: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"{named} port {port} is held by another process"):
            WeaviateServer(tmp_path, **{which: port}).start()
    assert not (tmp_path / "weaviate" / "process.json").exists()


def test_one_port_for_both_protocols_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServerError, match="two different"):
        WeaviateServer(tmp_path, port, port).start()


def test_a_recycled_pid_is_neither_taken_for_the_server_nor_killed(tmp_path: Path) -> None:
    folder = tmp_path / "weaviate"
    folder.mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (folder / "process.json").write_text(json.dumps({"pid": stranger.pid, "started": "long ago"}))
        server = WeaviateServer(tmp_path)
        assert not server.status().running
        assert not server.stop().running
        assert stranger.poll() is None
        stranger.kill()


# --- the server, for real ------------------------------------------------------------------------------------------


@pytest.mark.weaviate
@pytest.mark.slow
def test_a_life_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weaviate_server: WeaviateServer) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_CALLER", "hunter2")
    home = tmp_path / "home"
    (home / "weaviate").mkdir(parents=True)
    (home / "weaviate" / "process.json").write_text('{"pid": 1, "sta')  # a crash while writing, by another program
    (home / "weaviate" / "ports.json").write_text("{}")
    start = "import sys; from context_os.weaviate_server import WeaviateServer as W; print(W(sys.argv[1]).start().pid)"
    starters = [
        subprocess.Popen([sys.executable, "-c", start, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    pids = {starter.communicate(timeout=120)[0].strip() for starter in starters}
    server = WeaviateServer(home)
    try:
        status = server.status()
        assert pids == {str(status.pid)}  # started twice at once: one server, and it outlives both
        assert (status.running, status.ready, status.version) == (True, True, VERSION)
        assert server.start().pid == status.pid
        with pytest.raises(ServerError, match=f"already runs on port {status.grpc_port}"):
            WeaviateServer(home, grpc_port=free_port()).start()

        connection = server.connection()
        key = connection.api_key.get_secret_value()
        assert len(key) >= 43
        assert mode(server.folder) == 0o700
        assert {mode(path) for path in server.folder.iterdir() if path.is_file() and path.name != "lock"} == {0o600}
        for shown in (
            repr(status),
            status.model_dump_json(),
            repr(connection),
            (server.folder / "server.log").read_text(),
        ):
            assert key not in shown
        assert http_status(f"{status.url}/v1/schema") == 401
        assert http_status(f"{status.url}/v1/schema", "wrong") == 401
        assert http_status(f"{status.url}/v1/schema", key) == 200
        data_port = json.loads((server.folder / "ports.json").read_text())["data"]
        assert http_status(f"http://127.0.0.1:{data_port}/indices/X/shards/Y/status") == 401
        if sys.platform == "linux":
            assert b"hunter2" not in Path(f"/proc/{status.pid}/environ").read_bytes()

        store = WeaviateStore(url=connection.url, grpc_port=connection.grpc_port, api_key=connection.api_key)
        store.upsert(ACCESS, [Record(item("kept"))])
        assert not server.stop().running
        for ask in (lambda: store.count(ACCESS, Filter()), lambda: store.upsert(ACCESS, [Record(item("late"))])):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=re.escape(connection.url)):
                ask()
            assert time.monotonic() - began < 5
        assert not store.health().ready

        moved = json.loads((server.folder / "ports.json").read_text()) | {"raft": free_port(), "raft_rpc": free_port()}
        (server.folder / "ports.json").write_text(json.dumps(moved))  # as when others took them meanwhile
        again = server.start()
        assert (again.url, again.pid != status.pid) == (status.url, True)
        assert [found.id for found in store.get(ACCESS, ["kept"])] == ["kept"]
        store.close()
        assert weaviate_server.status().pid != again.pid
    finally:
        assert not server.stop().running
    assert not server.stop().running


# --- the store: laws of its encodings ------------------------------------------------------------------------------

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(ids, ids)
def test_keys_and_ordinals_are_ordered_as_ids_are(one: str, other: str) -> None:
    first, second = sorted((one, other))
    assert (module._key(first) < module._key(second)) == (first < second)
    assert 0 <= module._ordinal(first) <= module._ordinal(second) < module._ORDINALS
    assert module._id_of(module._key(one)) == one


@given(st.text(min_size=1), st.text(min_size=1))
def test_tenants_never_share_a_name_and_the_name_is_one_that_weaviate_takes(one: str, other: str) -> None:
    names = [module._tenant_name(tenant) for tenant in (one, other, module._tenant_name(one))]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert (names[0] == names[1]) == (one == other)
    assert names[2] != names[0] or one == module._tenant_name(one)


steps = st.lists(st.text("ab./ ", min_size=1, max_size=3), max_size=4).map("/".join)


@given(steps, steps)
def test_ancestors_are_the_prefixes_that_the_filter_promises(path: str, prefix: str) -> None:
    prefix = prefix.rstrip("/")
    matches = path == prefix or path.startswith(prefix + "/")
    assert not prefix or (prefix in module._ancestors(path)) == matches


def test_an_id_is_its_own_uuid_only_where_it_reads_back_the_same() -> None:
    ours = item_id("acme", "symbols", "x")
    assert module._uuid(ours) == ours
    others = [ours.upper(), f"{{{ours}}}", ours.replace("-", ""), "x", ""]
    derived = {module._uuid(id) for id in others}
    assert ours not in derived
    assert len(derived) == len(others)
    assert all(str(uuid.UUID(name)) == name for name in derived)


def test_importing_the_store_does_not_import_its_vendor() -> None:
    heavy = """
import sys, context_os.stores.weaviate, context_os.weaviate_server
print({"weaviate", "grpc", "httpx"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_exception_of_the_vendor_is_mapped() -> None:
    from weaviate import exceptions

    theirs = {
        value.__name__
        for value in vars(exceptions).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == exceptions.__name__
    }
    assert theirs == set(module._MEANING)
    assert all(kind is None or issubclass(kind, StoreError) for kind in module._MEANING.values())


def test_a_server_that_nobody_runs_is_said_at_once() -> None:
    store = WeaviateStore(url=f"http://127.0.0.1:{free_port()}", grpc_port=free_port())
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=re.escape(store.url)):
        store.count(ACCESS, Filter())
    assert time.monotonic() - began < 5
    assert store.health().detail.startswith(f"Weaviate at {store.url}")


# --- the store, for real -------------------------------------------------------------------------------------------

ACCESS = Access(tenant="acme", principal="tester", clearance=Confidentiality.RESTRICTED)


def item(id: str, text: str = "some text", ttl: timedelta | None = None, tenant: str = "acme") -> KnowledgeItem:
    now = utcnow()
    return KnowledgeItem(
        id=id,
        tenant=tenant,
        domain="code",
        kind="function",
        source=Source(type="symbols", location="x", repository="r", path="src/x.py"),
        payload=Payload(text=text),
        metadata=Metadata(
            title="A title",
            confidentiality=Confidentiality.INTERNAL,
            ttl=ttl,
            created_at=now,
            updated_at=now,
            checksum=content_checksum(text),
        ),
    )


def unit(*numbers: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.asarray(numbers, np.float32)
    return vector / np.linalg.norm(vector)


@pytest.mark.weaviate
@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
def test_pages_come_in_order_however_alike_the_ids_are(weaviate_store: WeaviateStore, limit: int) -> None:
    names = [f"item-{n:03}" for n in range(60)] + [item_id("a", "b", str(n)) for n in range(60)]
    names += ["A", "a", "Ab", "aB", "a ", " a", "\u00e9", "\U0001f600", "z" * 300]
    weaviate_store.upsert(ACCESS, [Record(item(name)) for name in names])
    found: list[str] = []
    cursor = None
    while True:
        page = weaviate_store.scan(ACCESS, Filter(), cursor, limit)
        assert len(page.items) <= limit
        found += [each.id for each in page.items]
        cursor = page.cursor
        if cursor is None:
            break
        assert len(page.items) == limit
    assert found == sorted(names)
    assert sorted(id for id, _ in weaviate_store.checksums(ACCESS, Filter())) == sorted(names)
    with pytest.raises(StoreRejected, match="not a cursor"):
        weaviate_store.scan(ACCESS, Filter(), "item-001")


@pytest.mark.weaviate
def test_each_refused_item_is_named_with_its_reason_and_the_rest_is_written(weaviate_store: WeaviateStore) -> None:
    weaviate_store.upsert(ACCESS, [Record(item("first"), unit(1, 0, 0))])
    records = [Record(item(f"good-{n}")) for n in range(500)]
    records[250:250] = [Record(item(f"bad-{n}"), unit(1, 2)) for n in range(3)] + [Record(item("torn", "\ud800"))]
    with pytest.raises(StoreRejected, match="4 items were refused") as refusal:
        weaviate_store.upsert(ACCESS, records)
    assert set(refusal.value.failures) == {"bad-0", "bad-1", "bad-2", "torn"}
    assert "wrong size" in refusal.value.failures["bad-1"]
    assert weaviate_store.count(ACCESS, Filter()) == 501
    with pytest.raises(StoreRejected) as refusal:
        weaviate_store.upsert(ACCESS, [Record(item("bad-1"), unit(1, 2)), Record(item("bad-2"), unit(3, 2))])
    assert set(refusal.value.failures) == {"bad-1", "bad-2"}


@pytest.mark.weaviate
def test_a_query_of_another_length_than_the_stored_vectors_is_rejected(weaviate_store: WeaviateStore) -> None:
    weaviate_store.upsert(ACCESS, [Record(item("a", "alpha"), unit(1, 0, 0)), Record(item("b", "beta"))])
    for query in (Query(vector=unit(1, 2), mode=Mode.VECTOR), Query("alpha", unit(1, 2))):
        with pytest.raises(StoreRejected):
            weaviate_store.search(ACCESS, query)
    with pytest.raises(StoreRejected, match="finite"):
        weaviate_store.search(ACCESS, Query(vector=np.full(3, np.nan, np.float32), mode=Mode.VECTOR))


@pytest.mark.weaviate
def test_where_nothing_has_a_vector_a_vector_finds_nothing_and_words_still_do(weaviate_store: WeaviateStore) -> None:
    weaviate_store.upsert(ACCESS, [Record(item("a", "alpha")), Record(item("b", "beta"))])
    assert weaviate_store.search(ACCESS, Query(vector=unit(1, 2), mode=Mode.VECTOR)) == []
    assert [hit.item.id for hit in weaviate_store.search(ACCESS, Query("alpha", unit(1, 2)))] == ["a"]


@pytest.mark.weaviate
def test_readers_in_many_threads_and_a_writer_do_not_disturb_each_other(weaviate_store: WeaviateStore) -> None:
    weaviate_store.upsert(ACCESS, [Record(item(f"fixed-{n}", "steady words")) for n in range(20)])

    def read(number: int) -> set[str]:
        return {hit.item.id for hit in weaviate_store.search(ACCESS, Query("steady", limit=50))}

    with ThreadPoolExecutor(8) as pool:
        writing = pool.submit(
            lambda: weaviate_store.upsert(ACCESS, [Record(item(f"n-{n}", "other")) for n in range(600)])
        )
        answers = list(pool.map(read, range(60)))
        assert writing.result().written == 600
    assert all(answer == {f"fixed-{n}" for n in range(20)} for answer in answers)


@pytest.mark.weaviate
def test_two_who_create_the_same_collection_at_once_both_succeed(
    weaviate_server: WeaviateServer, weaviate_store: WeaviateStore
) -> None:
    def write(number: int) -> int:
        with weaviate_store.model_copy() as store:
            return store.upsert(ACCESS, [Record(item(f"from-{number}"))]).written

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [1] * 4
    assert weaviate_store.count(ACCESS, Filter()) == 4


@pytest.mark.weaviate
def test_prune_reports_what_it_deleted_also_when_the_server_hides_it(weaviate_store: WeaviateStore) -> None:
    short, long = timedelta(milliseconds=1), timedelta(hours=1)
    gone = {"odd id", item_id("a", "b", "c")}
    weaviate_store.upsert(ACCESS, [Record(item(id, ttl=short)) for id in gone] + [Record(item("later", ttl=long))])
    assert weaviate_store.get(ACCESS, sorted(gone)) == []
    # The server's sweep, every five seconds, may have been faster with those two.
    assert set(weaviate_store.prune(ACCESS, utcnow())) <= gone
    assert weaviate_store.prune(ACCESS, utcnow() + 2 * long) == ["later"]
    assert weaviate_store.prune(ACCESS, utcnow() + 2 * long) == []


def stored_objects(connection: Connection, collection: str, tenant: str) -> int:
    """How many there are in truth, expired or not: deletion's dry run hides nothing."""
    body = {
        "match": {"class": collection, "where": {"path": ["clearance"], "operator": "GreaterThanEqual", "valueInt": 0}},
        "dryRun": True,
    }
    request = urllib.request.Request(
        f"{connection.url}/v1/batch/objects?tenant={tenant}",
        method="DELETE",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {connection.api_key.get_secret_value()}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["results"]["matches"])


@pytest.mark.weaviate
@pytest.mark.slow
def test_the_server_itself_sweeps_what_expired(weaviate_server: WeaviateServer, weaviate_store: WeaviateStore) -> None:
    weaviate_store.upsert(ACCESS, [Record(item("short", ttl=timedelta(seconds=1))), Record(item("kept"))])
    connection = weaviate_server.connection()
    until = time.monotonic() + 30
    while stored_objects(connection, weaviate_store.collection, "acme") == 2:
        assert time.monotonic() < until, "never swept"
        time.sleep(0.5)
    assert [each.id for each in weaviate_store.scan(ACCESS, Filter()).items] == ["kept"]


@pytest.mark.weaviate
def test_a_key_for_one_tenant_is_denied_the_other(
    weaviate_server: WeaviateServer, weaviate_store: WeaviateStore
) -> None:
    import weaviate
    from weaviate.classes.rbac import Permissions

    other = ACCESS.model_copy(update={"tenant": "globex"})
    weaviate_store.upsert(ACCESS, [Record(item("ours"))])
    weaviate_store.upsert(other, [Record(item("theirs", tenant="globex"))])
    name, collection, connection = (
        f"user-{uuid.uuid4().hex[:8]}",
        weaviate_store.collection,
        weaviate_server.connection(),
    )
    with weaviate.connect_to_local(
        port=int(connection.url.rpartition(":")[2]),
        grpc_port=connection.grpc_port,
        auth_credentials=weaviate.auth.AuthApiKey(connection.api_key.get_secret_value()),
        skip_init_checks=True,
    ) as root:
        root.roles.create(
            role_name=name,
            permissions=[
                Permissions.data(
                    collection=collection, tenant="acme", create=True, read=True, update=True, delete=True
                ),
                Permissions.collections(collection=collection, read_config=True),
                Permissions.tenants(collection=collection, tenant="acme", read=True),
            ],
        )
        key = root.users.db.create(user_id=name)
        root.users.db.assign_roles(user_id=name, role_names=name)
        try:
            with weaviate_store.model_copy(update={"api_key": module.SecretStr(key)}) as restricted:
                assert restricted.upsert(ACCESS, [Record(item("more"))]).written == 1
                assert restricted.count(ACCESS, Filter()) == 2
                assert [hit.item.id for hit in restricted.search(ACCESS, Query("text", limit=1))] == ["more"]
                for denied in (
                    lambda: restricted.get(other, ["theirs"]),
                    lambda: restricted.search(other, Query("text")),
                    lambda: restricted.delete(other, ["theirs"]),
                    lambda: restricted.upsert(other, [Record(item("theirs", tenant="globex"))]),
                    lambda: restricted.drop_tenant(ACCESS),
                ):
                    with pytest.raises(StoreAccessDenied):
                        denied()
        finally:
            root.users.db.delete(user_id=name)
            root.roles.delete(role_name=name)
    assert weaviate_store.count(other, Filter()) == 1
