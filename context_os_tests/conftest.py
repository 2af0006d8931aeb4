"""Fixtures that several test files share: a real Weaviate server, a store of its own in it, the shared data."""

from __future__ import annotations

import os
import urllib.request
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from context_os.errors import ServerError
from context_os.weaviate_server import Connection, WeaviateServer

if TYPE_CHECKING:
    from context_os.stores.weaviate import WeaviateStore

_SERVER_HOME = "weaviate-home"
_FOR_TESTS = {"CONTEXT_OS_SHARED", "CONTEXT_OS_DEMO_IMAGES"}
_LONG = ("erasure", "dagster_ui", "operations", "automation", "goldsets_ui", "backup_commands", "cli")
"""Files that take minutes: begun last, one worker would be busy with them after the others are done."""


hypothesis.settings.register_profile("suite", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """The settings of whoever runs the suite are not the settings under test; workers inherit what is left."""
    config.option.loadscopereorder = False  # xdist would put files with few tests last, however long these take
    for name in [each for each in os.environ if each.startswith("CONTEXT_OS_")]:
        if name not in _FOR_TESTS:
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


class ByWhatIsShared(LoadScopeScheduling):
    """Hands tests out one by one, but those of a file that makes something once for all of them together, so that it is
    made once. (``--dist loadgroup`` of xdist 3.8 does nothing under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if _shares(self.config.rootpath / file) else nodeid


@cache
def _shares(file: Path) -> bool:
    return 'scope="module"' in file.read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByWhatIsShared:
    return ByWhatIsShared(config, log)


@pytest.fixture(scope="session")
def weaviate_server(tmp_path_factory: pytest.TempPathFactory) -> WeaviateServer:
    """A real server, shared by all xdist workers: whoever comes first starts it, the server's own lock keeps the
    others waiting, and ``pytest_sessionfinish`` of the process that owns the run stops it."""
    base = tmp_path_factory.getbasetemp()
    server = WeaviateServer((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / _SERVER_HOME)
    try:
        server.start()
    except ServerError as error:
        if "cannot be installed" in str(error):
            pytest.skip(str(error))
        raise
    return server


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    factory: pytest.TempPathFactory = session.config._tmp_path_factory
    WeaviateServer(factory.getbasetemp() / _SERVER_HOME).stop()


@pytest.fixture
def weaviate_store(weaviate_server: WeaviateServer) -> Iterator[WeaviateStore]:
    """A store with a collection of its own, dropped afterwards."""
    from context_os.stores.weaviate import WeaviateStore

    connection = weaviate_server.connection()
    collection = f"Test{uuid.uuid4().hex}"
    with WeaviateStore(
        url=connection.url, grpc_port=connection.grpc_port, api_key=connection.api_key, collection=collection
    ) as store:
        yield store
    _drop(connection, collection)


def _drop(connection: Connection, collection: str) -> None:
    request = urllib.request.Request(
        f"{connection.url}/v1/schema/{collection}",
        method="DELETE",
        headers={"Authorization": f"Bearer {connection.api_key.get_secret_value()}"},
    )
    urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that is not part of this project."""
    checkout = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("CONTEXT_OS_SHARED") or checkout.parent / "shared")
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set CONTEXT_OS_SHARED to where they are")
    return path
