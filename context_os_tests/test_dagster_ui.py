"""A person adds a repository, starts an ingestion and follows it, from the Dagster UI alone.

The real ``context-os ui`` in a headless Chromium. Each test keeps its pictures in its temporary folder;
``CONTEXT_OS_DEMO_IMAGES=docs/images`` makes those of the README anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from samples import git, make_repository, write

from context_os import plugins
from context_os.model import Access, Confidentiality
from context_os.stores import Filter
from context_os.stores.lab import LabStore

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STARTED, ENDED = 300, 300
"""Seconds. On two cores shared with others a start took 26 to 52 and a run some 20; a busier machine takes longer."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]


@dataclass(frozen=True)
class UI:
    """A running Dagster UI, the browser's page on it, and every host that the page asked for anything."""

    page: playwright.Page
    url: str
    folder: Path
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}/{path}")

    def held(self, connector: str, repository: str) -> int:
        """Items in the store, asked past Dagster."""
        everything = Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED)
        with LabStore(path=self.folder / "home" / "lab.db") as store:
            of_this = Filter(source_types=(connector,), repositories=(repository,))
            return sum(1 for _ in store.checksums(everything, of_this))

    def picture(self, name: str) -> None:
        self.page.mouse.move(0, 0)
        folder = Path(os.environ.get("CONTEXT_OS_DEMO_IMAGES") or self.folder)
        self.page.screenshot(path=folder / f"{name}.png")


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    folder = tmp_path_factory.mktemp("ui", numbered=False)
    with _server(folder) as url, _page(folder) as page:
        ui = UI(page, url, folder)
        page.on("request", lambda request: ui.hosts.add(urlsplit(request.url).netloc))
        ui.open("asset-groups")
        if _ask(url, "shouldShowNux")["shouldShowNux"]:  # an invitation to a newsletter
            page.get_by_role("button", name="Skip").click()
        page.get_by_text("Hide navigation").click()
        yield ui


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """``context-os ui`` in a process group of its own, which is gone afterwards with all that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONTEXT_OS", "DAGSTER"))}
    log = folder / "ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("context-os"), "ui", "--port", str(port)],
            cwd=folder,
            env={**environment, "CONTEXT_OS_HOME": str(folder / "home")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(server)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTED
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            found = _ask(url, "workspaceOrError{... on Workspace{locationEntries{locationOrLoadError{__typename}}}}")
            assert "RepositoryLocation" in str(found), f"{found}\n{log.read_text()}"
            return
        time.sleep(0.25)
    pytest.fail(f"the UI did not answer in {STARTED} s:\n{log.read_text()}")


def _ask(url: str, field: str) -> dict[str, Any]:
    query = json.dumps({"query": f"{{{field}}}"}).encode()
    request = urllib.request.Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        data: dict[str, Any] = json.load(answer)["data"]
    return data


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(30)
    # Whatever of the group did not follow its leader.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


@contextlib.contextmanager
def _page(folder: Path) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=CHROMIUM,
            headless=False,  # it is: `--headless=new` is among the arguments; this would add the old one
            args=ARGUMENTS,
            viewport={"width": 1440, "height": 900},
        )
        browser.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield browser.pages[0]
        browser.close()


def _add_by_job(ui: UI, repository: Path, name: str) -> None:
    """The job ``add_repository``, as its Launchpad asks for it."""
    page = ui.page
    ui.open("locations/context_os/jobs/add_repository/playground")
    expect(page.get_by_text("Missing required config entry").first).to_be_visible()
    page.locator(".CodeMirror").click()
    page.keyboard.press("ControlOrMeta+A")
    config = {"ops": {"register_repository": {"config": {"location": str(repository), "name": name}}}}
    page.keyboard.insert_text(json.dumps(config))
    page.get_by_role("button", name="Launch Run").click()
    assert _outcome(ui) == "Success"


def _launch(ui: UI, partition: str, *, new: bool) -> str:
    """Materialize everything for one repository, and follow the run to its end."""
    page = ui.page
    ui.open("asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    page.wait_for_load_state("networkidle")  # what arrives later would undo the choice
    if new:
        page.get_by_text("Add a partition").click()
        page.get_by_placeholder("name").fill(partition)
        page.get_by_role("button", name="Save").click()
    else:
        page.get_by_text("Select a partition or create one").click()
        page.get_by_role("menuitem").filter(has_text=re.compile(rf"^{re.escape(partition)}")).last.click()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("link", name="View", exact=True).click()
    return _outcome(ui)


def _outcome(ui: UI) -> str:
    """What the run's own page says in the end."""
    ui.page.wait_for_url("**/runs/*")
    either = re.compile("^(Success|Failure)$")
    ended = ui.page.get_by_text(either).first
    expect(ended).to_be_visible(timeout=ENDED * 1000)
    return str(ended.inner_text())


def _metadata(ui: UI) -> dict[str, str]:
    """The table of metadata on an asset's page: key and value (between them stands the time)."""
    table = ui.page.locator("table").filter(has=ui.page.get_by_text("Timestamp", exact=True))
    expect(table).to_be_visible()
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    return {row[0].strip(): row[-1].strip() for row in rows if len(row) > 1}


def _choose(page: playwright.Page, choice: str) -> None:
    """From the graph's menu. A graph that is laid out meanwhile draws the menu anew under the pointer."""
    item = page.get_by_role("menuitem", name=choice)
    for patience in (5_000, 5_000, 60_000):
        page.get_by_role("button").filter(has=page.get_by_label("settings", exact=True)).last.click()
        try:
            item.click(timeout=patience)
        except playwright.TimeoutError:
            page.keyboard.press("Escape")
            continue
        expect(item).to_be_hidden()
        return
    pytest.fail(f"{choice!r} cannot be chosen")


def _show_graph(ui: UI) -> None:
    """All groups open, from the top down, as large as they fit."""
    page = ui.page
    # Groups stand side by side; made small, Dagster shows them without a word.
    page.set_viewport_size({"width": 360 * len(plugins.names("connectors")), "height": 1100})
    ui.open("asset-groups")
    expect(page.get_by_label("zoom_in")).to_be_visible()
    page.get_by_placeholder("Jump to").locator("xpath=following::button[1]").click()
    for choice in ("Change graph to vertical orientation", "Expand all groups"):
        _choose(page, choice)
        expect(page.get_by_label("zoom_in")).to_be_visible()
    assets = 3 * len(plugins.names("connectors"))  # staged, indexed, embedded
    expect(page.get_by_text("1 partition", exact=True)).to_have_count(assets)


def test_a_repository_is_added_ingested_and_its_counts_are_shown(ui: UI) -> None:
    repository = make_repository(ui.folder / "shop")
    _add_by_job(ui, repository, "shop")
    assert _launch(ui, "shop", new=False) == "Success"

    ui.open("assets/staged/symbols?view=overview")
    assert _metadata(ui)["units changed"] == "3"
    ui.open("assets/indexed/symbols?view=overview")
    shown = _metadata(ui)
    in_store = ui.held("symbols", "shop")
    assert in_store > 0
    assert (shown["added"], shown["changed"], shown["removed"], shown["quarantined"]) == (str(in_store), "0", "0", "0")
    assert shown["revision"] == git(repository, "rev-parse", "HEAD")
    ui.picture("ingestion-run")

    _show_graph(ui)
    ui.picture("asset-graph")
    assert ui.hosts - {""} == {urlsplit(ui.url).netloc}, "the UI talks to this machine alone"


def test_a_failed_check_blocks_and_says_why(ui: UI) -> None:
    """Most files of this repository were unpacked by a tool that made a folder of another system's drive."""
    repository = make_repository(ui.folder / "legacy")
    for number in range(12):
        write(repository, f"C:/export/report_{number:02}.py", f"def render_{number}(rows):\n    return list(rows)\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Unpack the archive")
    page, partition = ui.page, quote(str(repository), safe="")

    assert _launch(ui, str(repository), new=True) == "Failure"
    reason = "1 blocking asset check failed with ERROR severity: staged/symbols: gx_critical"
    expect(page.get_by_text(reason).first).to_be_visible()

    ui.open(f"assets/staged/symbols?view=partitions&partition={partition}")
    expect(page.get_by_text("records refused by the gate")).to_be_visible()
    ui.open(f"assets/indexed/symbols?view=partitions&partition={partition}")
    expect(page.get_by_text("failed, and did not materialize this asset.")).to_be_visible()

    ui.open("assets/staged/symbols?view=checks&checkDetail=gx_critical")
    expect(page.get_by_text("This is a blocking asset check.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"24 of \d+ rows were refused, more than 50%: path must"))).to_be_visible()
    expect(page.get_by_text("C:/export/report_00.py").first).to_be_visible()
    ui.picture("blocked-check")

    assert ui.held("symbols", str(repository)) == 0
    assert ui.held("bug_specs", str(repository)) == 1, "the other connectors' batches went on"
