"""Every condition with its fault injected for real, seen by a real receiver: one alert, one recovery, nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._daemon.types import DaemonHeartbeat
from receivers import Hook, hook
from samples import make_repository, write

from context_os import settings
from context_os.alerts import deliver
from context_os.conditions import CONDITIONS, Run, failed_runs
from context_os.definitions import defs
from context_os.defs import history, run
from context_os.defs.assets import repositories
from context_os.defs.sensors import asking
from context_os.ingestion import IngestResult, find_repository, register
from context_os.ledger import Advance, Ledger
from context_os.model import Access, Confidentiality, utcnow
from context_os.operations import Instant, alert_book, ledger, look
from context_os.stores import Filter
from context_os.weaviate_server import WeaviateServer

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EVERYTHING = Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED)


class Site:
    """A home with a repository in it, a receiver, and a clock that only ``tick`` moves."""

    def __init__(self, folder: Path, team: Hook, history: Path) -> None:
        self.folder = folder
        self.team = team
        # Dagster takes seconds to make its tables: every site starts with a copy of empty ones.
        shutil.copytree(history, self.chosen.make_home() / "dagster")
        self.now = Instant(utcnow(), 1_000.0, "boot")
        self.repository = make_repository(folder / "shop")

    @property
    def chosen(self) -> settings.Settings:
        return settings.load(start=self.folder)

    @property
    def ledger(self) -> Ledger:
        return ledger(self.chosen)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(run.instance_folder(self.chosen)))

    def ingest(self, connector: str = "team_rules") -> IngestResult:
        register(self.chosen, self.ledger, "shop", self.repository)
        return run.ingest(self.chosen, find_repository(self.chosen, self.ledger, "shop"), [connector], verbose=False)

    def tick(self, after: timedelta = MINUTE, *, jump: timedelta = timedelta(), times: int = 1) -> None:
        """Let time pass, look, deliver. ``jump`` is by how much somebody moved the clock meanwhile."""
        for _ in range(times):
            self.now = Instant(self.now.wall + after + jump, self.now.steady + after.total_seconds(), self.now.boot)
            chosen = self.chosen
            book = alert_book(chosen)
            with self.instance() as instance:
                look(chosen, book, asking(instance, chosen.tenant, self.now), self.now)
            deliver(book, self.now.wall)

    def told_once_and_over(self, condition: str) -> None:
        assert self.team.events == [f"opened {condition}", f"recovered {condition}"]
        opened = self.team.got[0][1]
        assert opened["what"]
        assert opened["first_thing_to_try"]
        assert condition in CONDITIONS


@pytest.fixture(scope="session")
def no_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run.instance_folder(settings.Settings(home=tmp_path_factory.mktemp("history")))
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        instance.get_runs_count()
        instance.all_asset_keys()
        instance.all_instigator_state()
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_history: Path) -> Iterator[Site]:
    with hook() as team:
        monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("CONTEXT_OS_ALERTS__RECEIVERS__TEAM__KIND", "webhook")
        monkeypatch.setenv("CONTEXT_OS_ALERTS__RECEIVERS__TEAM__URL", team.url)
        monkeypatch.chdir(tmp_path)
        yield Site(tmp_path, team, no_history)


# Runs and checks


def test_a_failed_run(site: Site) -> None:
    site.ingest()
    site.tick()
    moved = site.repository.rename(site.folder / "elsewhere")
    assert site.ingest().exit_code == 1
    site.tick(times=3)
    assert site.ingest().exit_code == 1  # it fails again: nobody is told again
    site.tick(times=3)
    moved.rename(site.repository)
    assert site.ingest().exit_code == 0
    site.tick(times=3)
    site.told_once_and_over("failed_run")
    body = site.team.got[0][1]
    assert body["where"] == {"tenant": "default", "repository": "shop", "asset": "staged/team_rules"}
    assert body["run_url"] == f"http://127.0.0.1:3000/runs/{body['run_id']}"
    assert str(site.repository) in body["what"]


def test_the_same_asset_of_another_repository_or_tenant_ends_no_failure() -> None:
    def ended(tenant: str, repository: str, outcome: str, hours: int, *, assets: tuple[str, ...] = ()) -> Run:
        start = datetime(2026, 3, 1, hours, tzinfo=UTC)
        failed = frozenset({"staged/symbols", "staged/commits"} if outcome == "failure" else ())
        return Run(
            id=f"{tenant}-{repository}-{hours}", job="ingest", tenant=tenant, repository=repository, outcome=outcome,
            started=start, ended=start + MINUTE, assets=frozenset(assets), failed_assets=failed,
            problem="no\nnetwork to https://bot:pa55@host/x" if failed else "",
        )  # fmt: skip

    both = ("staged/symbols", "staged/commits")
    standing = failed_runs([], [ended("acme", "shop", "failure", 1)])
    assert standing[0].summary.endswith("failed: no network to https://***@host/x")
    standing = failed_runs(standing, [ended("acme", "other", "success", 2, assets=both)])
    standing = failed_runs(standing, [ended("rival", "shop", "success", 3, assets=both)])
    assert [each.asset for each in standing] == ["staged/commits, staged/symbols"]
    standing = failed_runs(standing, [ended("acme", "shop", "success", 4, assets=both[:1])])
    assert [each.asset for each in standing] == ["staged/commits"]
    assert failed_runs(standing, [ended("acme", "shop", "success", 5, assets=both[1:])]) == []


def test_a_check_that_fails_is_told_as_that_and_not_as_a_failed_run_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTEXT_OS_GATE__MAX_REFUSED_SHARE", "0.0")
    for number in range(12):
        write(site.repository, f".context-os/rules/{number}.md", f"---\nglobs: ['shop/**']\n---\nRule {number}.\n")
    bad = write(site.repository, ".context-os/rules/bad.md", "---\nglobs: ['!shop/**']\n---\nA rule.\n")
    assert site.ingest().exit_code == 3
    site.tick(times=3)
    bad.unlink()
    assert site.ingest().exit_code == 0
    site.tick(times=3)
    site.told_once_and_over("failed_check")
    assert site.team.got[0][1]["where"]["asset"] == "staged/team_rules"


def unchecked() -> dg.Definitions:
    """An asset under the name of a staging, whose checks were left out."""

    @dg.asset(key=dg.AssetKey(["staged", "team_rules"]), partitions_def=repositories)
    def staged() -> None: ...

    return dg.Definitions([staged], jobs=[dg.define_asset_job("unchecked")], executor=dg.in_process_executor)


@pytest.mark.slow
def test_a_check_that_is_missing(site: Site) -> None:
    site.ingest()
    site.tick()
    with site.instance() as instance:
        job = unchecked().resolve_job_def("unchecked")
        assert job.execute_in_process(instance=instance, partition_key="shop").success
    site.tick(times=3)
    assert site.team.events == ["opened failed_check", "opened failed_check"], "one for each of its two checks"
    assert "nobody judged it" in site.team.got[0][1]["what"]
    site.ingest()
    site.tick(times=3)
    assert site.team.events[2:] == ["recovered failed_check", "recovered failed_check"]
    assert len(site.team.got) == 4


def waiting_job(released: threading.Event, started: threading.Event) -> dg.JobDefinition:
    @dg.op
    def wait() -> None:
        started.set()
        released.wait(60)

    @dg.job
    def stuck() -> None:
        wait()

    return stuck


@contextlib.contextmanager
def hanging_run(site: Site) -> Iterator[Callable[[], None]]:
    """A real run that is in progress until the callable is called."""
    started, released = threading.Event(), threading.Event()

    def work() -> None:
        with site.instance() as instance:
            waiting_job(released, started).execute_in_process(instance=instance)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)

    def release() -> None:
        released.set()
        thread.join()

    try:
        yield release
    finally:
        release()


def test_a_run_that_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_OBJECTIVES__JOBS__STUCK", "20m")
    with hanging_run(site) as release:
        site.tick(10 * MINUTE)
        assert site.team.events == []
        site.tick(10 * MINUTE, times=4)
        assert site.team.events == ["opened slow_run"]
        assert "stuck has been running for" in site.team.got[0][1]["what"]
        release()
    site.tick(times=3)
    site.told_once_and_over("slow_run")


def test_a_run_that_was_stopped_is_no_longer_slow(site: Site) -> None:
    with hanging_run(site) as release:
        site.tick(2 * HOUR, times=2)
        with site.instance() as instance:
            (record,) = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            instance.report_run_canceled(record.dagster_run)
        site.tick(times=3)
        release()
    site.told_once_and_over("slow_run")


def record(instance: dg.DagsterInstance, made: dg.DagsterRun, kind: Any, at: datetime) -> None:
    event = DagsterEvent(kind.value, made.job_name)
    instance.handle_new_event(
        dg.EventLogEntry(
            error_info=None, level="debug", user_message="", run_id=made.run_id, timestamp=at.timestamp(),
            job_name=made.job_name, dagster_event=event,
        )
    )  # fmt: skip


def test_a_burst_of_runs_is_read_in_order_and_each_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_AT_ONCE", 3)
    now = utcnow()
    ends = [dg.DagsterEventType.RUN_FAILURE] * 7 + [dg.DagsterEventType.RUN_SUCCESS] * 4
    random.Random(3).shuffle(ends)
    with site.instance() as instance:
        job = defs.resolve_job_def("prune")
        made = [instance.create_run_for_job(job) for _ in ends]
        for each, kind in zip(made, ends, strict=True):
            record(instance, each, kind, now)
        cursor, seen = "", []
        for _ in range(10):
            told = history.read(instance, cursor, "default", [], now)
            cursor = told.cursor
            seen += [each.id for each in told.ended]
        assert seen == [each.run_id for each in made]
        # Somebody deleted the whole history: what happens then is seen all the same.
        assert history.read(instance, "999999", "default", [], now).ended != []


# Sources


def test_a_stale_source(site: Site) -> None:
    site.ingest()
    site.tick()
    site.tick(12 * HOUR, times=6)
    assert site.team.events == ["opened stale_source"]
    assert site.team.got[0][1]["where"] == {"tenant": "default", "repository": "shop", "connector": "team_rules"}
    site.now = Instant(utcnow() + MINUTE, site.now.steady, "after a reboot")
    site.ingest()  # nothing changed at the source: looking at it is what makes it fresh
    site.tick(times=3)
    site.told_once_and_over("stale_source")


def test_looking_without_a_run_keeps_a_source_fresh(site: Site) -> None:
    from context_os.ingestion import Ingestion

    site.ingest()
    with sqlite3.connect(site.ledger.path) as db:
        db.execute("UPDATE scopes SET indexed_at = 0, confirmed_at = 0")
    with site.chosen.open_store() as store:
        found = Ingestion(site.chosen, store, site.ledger)
        assert found.current("team_rules", find_repository(site.chosen, site.ledger, "shop")) is not None
    site.tick(times=3)
    assert site.team.events == []


def test_a_repository_that_is_no_longer_registered_is_not_stale(site: Site) -> None:
    site.ingest()
    with sqlite3.connect(site.ledger.path) as db:
        db.execute("DELETE FROM repositories")
    site.tick(12 * HOUR, times=6)
    assert site.team.events == []


@pytest.mark.slow
def test_a_quarantine_that_grows(site: Site) -> None:
    write(site.repository, ".context-os/rules/old.md", "---\nglobs: ['!shop/**']\n---\nA rule.\n")
    site.ingest()
    site.tick(times=2)
    assert site.team.events == [], "what was there at first is no growth"
    bad = write(site.repository, ".context-os/rules/new.md", "---\nglobs: ['!shop/**']\n---\nAnother rule.\n")
    for name in "ab":
        write(site.repository, f".context-os/rules/{name}.md", f"---\nglobs: ['shop/**']\n---\nRule {name}.\n")
    assert site.ingest().exit_code == 0
    site.tick(times=3)
    assert site.team.events == ["opened quarantine_growth"]
    assert "from 1 to 2" in site.team.got[0][1]["what"]
    bad.unlink()
    assert site.ingest().exit_code == 0
    site.tick(times=3)
    site.told_once_and_over("quarantine_growth")


# The store


def test_a_store_that_does_not_answer(site: Site) -> None:
    site.ingest()
    site.tick()
    file = site.chosen.home / "lab.db"
    moved = file.rename(site.chosen.home / "lab.aside")
    file.mkdir()
    site.tick()
    assert site.team.events == [], "it has patience"
    site.tick(times=4)
    assert site.team.events == ["opened store_unreachable"]
    file.rmdir()
    moved.rename(file)
    site.tick(times=3)
    site.told_once_and_over("store_unreachable")


def test_a_store_out_of_step_with_the_ledger(site: Site) -> None:
    site.ingest()
    site.tick()
    with site.chosen.open_store() as store:
        victim = store.scan(EVERYTHING, Filter()).items[0]
        store.delete(EVERYTHING, [victim.id])
        site.tick(times=5)
        from context_os.ingestion import Ingestion

        ingestion = Ingestion(site.chosen, store, site.ledger)
        scope = ingestion.scope("team_rules", "shop")
        ingestion.repair(scope, ingestion.reconcile(scope))
    site.ingest()
    site.tick(times=3)
    site.told_once_and_over("store_out_of_step")


def test_the_same_number_of_other_items_is_found_by_the_full_reconcile(site: Site) -> None:
    site.ingest()
    site.tick(times=3)
    with sqlite3.connect(site.ledger.path) as db:
        (right,) = db.execute("SELECT checksum FROM entries").fetchone()
        db.execute("UPDATE entries SET checksum = 'other'")
    site.tick(12 * HOUR)
    assert site.team.events == []
    site.tick(13 * HOUR)
    site.tick(times=3)
    assert site.team.events == ["opened store_out_of_step"]
    with sqlite3.connect(site.ledger.path) as db:
        db.execute("UPDATE entries SET checksum = ?", (right,))
    site.tick(11 * MINUTE)
    site.tick(times=2)
    site.told_once_and_over("store_out_of_step")


def test_a_write_in_progress_is_no_difference(site: Site) -> None:
    site.ingest()
    site.tick()
    with site.chosen.open_store() as store:
        scope = site.ledger.scope(store.identity, "default", "shop", "team_rules")
        site.ledger.announce(scope, "staging", ["an id that is about to be written"])
        store.delete(EVERYTHING, [store.scan(EVERYTHING, Filter()).items[0].id])
    site.tick(times=4)
    assert site.team.events == []


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"x" * 4096)


@pytest.mark.slow
def test_a_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home, store, ledger and the book of alerts itself are on it."""
    with small_disk(site.folder / "disk", "24m") as disk:
        monkeypatch.setenv("CONTEXT_OS_HOME", str(disk / "home"))
        monkeypatch.setattr(site, "instance", lambda: dg.DagsterInstance.from_config(str(outside)))
        chosen = site.chosen
        outside = site.folder / "dagster"
        shutil.copytree(run.instance_folder(chosen), outside)
        assert site.ingest().exit_code == 0
        site.tick(times=2)
        fill(disk / "filling")
        assert shutil.disk_usage(disk).free == 0
        site.tick(times=5)
        assert len(site.team.events) == 1
        (disk / "filling").unlink()
        site.tick(times=3)
        opened, recovered = site.team.events
        assert opened in {"opened store_readonly", "opened store_unreachable"}
        assert recovered == opened.replace("opened", "recovered")


@pytest.mark.slow
def test_a_store_that_became_read_only(site: Site) -> None:
    """The whole folder on a disk that is remounted read-only, as Linux does after an error."""
    with small_disk(site.folder / "disk", "24m") as disk:
        site.ingest()
        home = site.chosen.home
        for name in ("lab.db", "lab.db-wal", "lab.db-shm"):
            if (home / name).exists():
                shutil.move(home / name, disk / name)
        (home / "lab.db").symlink_to(disk / "lab.db")
        site.tick(times=2)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        site.tick(times=5)
        assert len(site.team.events) == 1
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        site.tick(times=3)
        site.told_once_and_over(site.team.events[0].removeprefix("opened "))


# The clock


def test_a_clock_that_jumps_makes_one_alert_and_no_false_ones(site: Site) -> None:
    site.ingest()
    with hanging_run(site):
        site.tick(times=2)
        site.tick(jump=5 * DAY)
        site.tick(10 * MINUTE, times=3)
        assert site.team.events == ["opened clock_skew"]
        assert "jumped by +5 d" in site.team.got[0][1]["what"]
        site.tick(jump=-5 * DAY)
        site.tick(times=3)
    site.told_once_and_over("clock_skew")


def test_what_was_recorded_in_the_future_is_a_clock_and_nobodys_age(site: Site) -> None:
    site.ingest()
    site.tick()
    # A machine that starts with an old clock, and is corrected later.
    right = site.now
    site.now = Instant(right.wall - 30 * DAY, 5.0, "another boot")
    site.tick(times=3)
    assert site.team.events == ["opened clock_skew"]
    assert "in the future" in site.team.got[0][1]["what"]
    site.now = Instant(right.wall + 10 * MINUTE, 5.0, "yet another boot")
    site.tick(times=3)
    site.told_once_and_over("clock_skew")


# The daemon


@pytest.mark.slow
def test_a_daemon_that_is_killed(site: Site, tmp_path: Path) -> None:
    """The real one, with our sensors on by their own default; it delivers, dies, and somebody else notices."""
    site.ingest()
    moved = site.repository.rename(site.folder / "elsewhere")
    site.ingest()
    with daemon(site):
        wait_for(lambda: site.team.events == ["opened failed_run"])
        with site.instance() as instance:
            wait_for(lambda: "sensor operations" in history._beats(instance, ["operations"]))
    moved.rename(site.repository)
    site.ingest()
    site.now = Instant(utcnow(), 1_000.0, "boot")
    site.tick(times=2)
    assert site.team.events == ["opened failed_run", "recovered failed_run"]
    site.tick(15 * MINUTE)
    site.tick(times=5)
    assert site.team.events[2:] == ["opened daemon_lag"]
    with daemon(site), site.instance() as instance:
        before = utcnow()
        wait_for(lambda: min(history._beats(instance, ["operations"]).values()) > before)
        site.now = Instant(utcnow(), 1_000.0, "later")
        site.tick(timedelta(seconds=1))
    assert site.team.events[2:] == ["opened daemon_lag", "recovered daemon_lag"]


@contextlib.contextmanager
def daemon(site: Site) -> Iterator[None]:
    home = str(run.instance_folder(site.chosen))
    with (site.folder / "daemon.log").open("a") as log:
        process = subprocess.Popen(
            [shutil.which("dagster-daemon") or str(Path(os.sys.executable).with_name("dagster-daemon")), "run",
             "-m", "context_os.definitions"],
            env={**os.environ, "DAGSTER_HOME": home}, cwd=site.folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    from time import monotonic, sleep

    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it did not happen"
        sleep(0.5)


# A server


@pytest.mark.slow
@pytest.mark.weaviate
def test_a_server_that_turns_read_only_and_one_that_is_stopped(
    site: Site, monkeypatch: pytest.MonkeyPatch, weaviate_server: WeaviateServer
) -> None:
    monkeypatch.setenv("CONTEXT_OS_STORE__KIND", "weaviate")
    server = WeaviateServer(site.chosen.home)
    server.start()
    try:
        assert site.ingest().exit_code == 0
        site.tick(times=2)
        set_shard(server, "READONLY")
        site.tick(times=5)
        assert site.team.events == ["opened store_readonly"]
        set_shard(server, "READY")
        site.tick(times=3)
        site.told_once_and_over("store_readonly")
        site.team.got.clear()
        server.stop()
        site.tick(times=5)
        assert site.team.events == ["opened store_unreachable"]
        server.start()
        site.tick(times=3)
        site.told_once_and_over("store_unreachable")
    finally:
        server.stop()


def set_shard(server: WeaviateServer, status: str) -> None:
    connection = server.connection()
    headers = {"Authorization": f"Bearer {connection.api_key.get_secret_value()}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{connection.url}/v1/schema/KnowledgeItem/shards/default",
        json.dumps({"status": status}).encode(), headers, method="PUT",
    )  # fmt: skip
    urllib.request.urlopen(request, timeout=10).close()


# A day without trouble


class Day:
    """Runs as Dagster would have recorded them at the times of a day that is still to come."""

    def __init__(self, site: Site, instance: dg.DagsterInstance) -> None:
        self.site = site
        self.instance = instance
        self.job = defs.resolve_job_def("ingest_team_rules")
        self.random = random.Random(7)
        begin = site.now.wall
        self.starts = sorted(
            (begin + timedelta(seconds=self.random.randrange(82_000)) for _ in range(200)), reverse=True
        )
        self.going: list[tuple[datetime, dg.DagsterRun]] = []

    def until(self, now: datetime) -> None:
        """Everything that happened by now: runs that began, and those that ended. Some take nearly as long as they
        may."""
        while self.starts and self.starts[-1] <= now:
            at = self.starts.pop()
            tags = {"dagster/partition": f"team/{self.random.randrange(20):02}", history.TENANT_TAG: "default"}
            made = self.instance.create_run_for_job(self.job, tags=tags)
            self._event(made, dg.DagsterEventType.RUN_START, at)
            self.going.append((at + timedelta(seconds=self.random.choice([3, 20, 200, 3_000])), made))
        for end, made in sorted(self.going, key=lambda each: each[0]):
            if end <= now:
                self.going.remove((end, made))
                self._end(made, end)

    def _end(self, made: dg.DagsterRun, end: datetime) -> None:
        """Staged with its checks, indexed, confirmed; now and then stopped by a person, or with advice."""
        if self.random.random() < 0.05:
            self._event(made, dg.DagsterEventType.RUN_CANCELED, end)
            return
        name = made.tags["dagster/partition"]
        for stage in ("staged", "indexed"):
            key = dg.AssetKey([stage, "team_rules"])
            data = StepMaterializationData(dg.AssetMaterialization(key, partition=name))
            self._event(made, dg.DagsterEventType.ASSET_MATERIALIZATION, end, data, f"{stage}__team_rules")
            for check in history.CHECKS if stage == "staged" else ():
                advice = check == "gx_advisory" and self.random.random() < 0.3
                evaluation = AssetCheckEvaluation(
                    asset_key=key, check_name=check, passed=not advice, metadata={},
                    severity=dg.AssetCheckSeverity.WARN if advice else dg.AssetCheckSeverity.ERROR,
                )  # fmt: skip
                self._event(made, dg.DagsterEventType.ASSET_CHECK_EVALUATION, end, evaluation, "staged__team_rules")
        self._event(made, dg.DagsterEventType.RUN_SUCCESS, end)
        self._confirm(name, end)

    def _event(self, made: dg.DagsterRun, kind: Any, at: datetime, data: Any = None, step: str | None = None) -> None:
        event = DagsterEvent(kind.value, made.job_name, step_key=step, event_specific_data=data)
        self.instance.handle_new_event(
            dg.EventLogEntry(
                error_info=None, level="debug", user_message="", run_id=made.run_id, timestamp=at.timestamp(),
                step_key=step, job_name=made.job_name, dagster_event=event,
            )
        )  # fmt: skip

    def _confirm(self, name: str, at: datetime) -> None:
        with sqlite3.connect(self.site.ledger.path) as db:
            db.execute("UPDATE scopes SET confirmed_at = ? WHERE repository = ?", (int(at.timestamp() * 1000), name))


@pytest.mark.slow
def test_a_day_of_two_hundred_runs_without_trouble_makes_no_alert(site: Site) -> None:
    with site.chosen.open_store() as store:
        for number in range(20):
            register(site.chosen, site.ledger, f"team/{number:02}", site.repository)
            scope = site.ledger.scope(store.identity, "default", f"team/{number:02}", "team_rules")
            site.ledger.advance(scope, Advance("f", "v", "r", {}, "run"))
    end = site.now.wall + DAY
    with site.instance() as instance:
        site.instance = lambda: contextlib.nullcontext(instance)
        day = Day(site, instance)
        while site.now.wall < end:
            day.until(site.now.wall)
            beat(instance, site.now.wall)
            site.tick(5 * MINUTE)
        assert (day.starts, day.going) == ([], [])
        assert instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])) > 180
        del site.instance
    assert site.team.got == []
    book = alert_book(site.chosen)
    assert (book.open(), book.over(10)) == ([], [])
    assert int(book.memory()["runs"]) > 200, "the runs were looked at"
    # The same day would not have been quiet with one failure in it.
    moved = site.repository.rename(site.folder / "elsewhere")
    site.ingest()
    site.tick()
    assert site.team.events == ["opened failed_run"]
    assert moved.exists()


def beat(instance: dg.DagsterInstance, at: datetime) -> None:
    for kind in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), kind, "one"))
