"""Goldsets in Dagster: an asset each, its numbers, its gate, and the alert of a regression with its recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from samples import git, make_repository, write

from context_os import evaluation, goldsets, settings
from context_os.alerts import Finding
from context_os.defs import run
from context_os.defs.goldsets import CHECK, goldset_assets, goldset_jobs, nightly_goldsets
from context_os.defs.resources import Workspace
from context_os.defs.sensors import asking
from context_os.git import Git
from context_os.goldsets import Folder, Place
from context_os.operations import Instant, alert_book, look
from context_os.selectors.hybrid import Hybrid
from context_os.selectors.neighbours import Neighbours

KEY = dg.AssetKey(["goldset", "shop"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A goldset of one case, accepted, in a folder of its own."""
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = Folder(tmp_path / "goldsets" / "shop")
    make(found, tmp_path / "shop")
    return found


def make(folder: Folder, repository: Path) -> None:
    make_repository(repository)
    app, pool = repository / "shop" / "app.py", repository / "shop" / "pool.py"
    app.write_text(app.read_text().replace("release(self, reason)", "release(self, reason, True)"))
    pool.write_text(pool.read_text().replace("session, reason)", "session, reason, now)"))
    git(repository, "commit", "-qam", "Release at once (#3)")
    folder.add([goldsets.from_commit(Git(repository), "shop", "HEAD")], "shop", Place(source=str(repository)))


@pytest.fixture
def instance(folder: Folder) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(run.instance_folder(settings.load()))) as opened:
        yield opened


def night(instance: dg.DagsterInstance) -> Any:
    assets = goldset_assets()
    defs = dg.Definitions(
        assets=assets,
        jobs=goldset_jobs(assets),
        schedules=nightly_goldsets(assets),
        resources={"workspace": Workspace()},
        executor=dg.in_process_executor,
    )
    return defs.resolve_job_def("goldsets").execute_in_process(instance=instance, raise_on_error=False)


def alerts(instance: dg.DagsterInstance) -> list[Finding]:
    chosen, now = settings.load(), Instant.now()
    book = alert_book(chosen)
    look(chosen, book, asking(instance, chosen.tenant, now), now)
    return [each.finding for each in book.open()]


def test_a_regression_raises_an_alert_that_says_which_case_and_ends_when_it_is_good_again(
    folder: Folder, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert night(instance).success
    newest = evaluation.Runs.of(settings.load(), "shop").get()
    evaluation.accept(folder, newest)

    done = night(instance)
    (event,) = done.get_asset_materialization_events()
    values = event.step_materialization_data.materialization.metadata
    assert {name: values[name].value for name in ("cases", "complete", "recall", "lost")} == {
        "cases": 1,
        "complete": 1.0,
        "recall": 1.0,
        "lost": 0,
    }
    assert isinstance(values["reciprocal rank"], dg.FloatMetadataValue), "a number is plotted"
    assert [(each.check_name, each.passed) for each in done.get_asset_check_evaluations()] == [(CHECK, True)]
    assert alerts(instance) == []

    with monkeypatch.context() as patch:
        for selector in (Hybrid, Neighbours):
            patch.setattr(selector, "select", lambda *_: [])
        done = night(instance)
    (check,) = done.get_asset_check_evaluations()
    assert (done.success, check.passed, check.severity) == (True, False, dg.AssetCheckSeverity.ERROR)
    assert "no selector proposed it" in str(check.metadata["why"].value)
    (finding,) = alerts(instance)
    assert finding.condition == "failed_check"
    assert finding.summary.startswith("the goldset shop regressed: lost pull-3; ")
    assert "context-os goldset compare shop" in finding.remedy

    night(instance)
    assert alerts(instance) == []


def test_what_cannot_be_run_is_an_alert_too(folder: Folder, instance: dg.DagsterInstance) -> None:
    (folder.path.parent.parent / "shop").rename(folder.path.parent.parent / "moved")
    night(instance)
    (finding,) = alerts(instance)
    assert "pull-3 could not be run" in finding.summary


def test_a_broken_goldset_fails_its_run_with_every_problem(folder: Folder, instance: dg.DagsterInstance) -> None:
    write(folder.path, "cases.jsonl", "{\n{\n")
    assert not night(instance).success
    (finding,) = alerts(instance)
    assert "cases.jsonl:1: no JSON" in finding.summary


def test_the_schedule_is_off_and_set_by_the_settings(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = goldset_assets()
    assert [key for asset in assets for key in asset.keys] == [KEY]
    (schedule,) = nightly_goldsets(assets)
    assert (schedule.default_status, schedule.cron_schedule) == (dg.DefaultScheduleStatus.STOPPED, "0 3 * * *")
    monkeypatch.setenv("CONTEXT_OS_GOLDSETS__SCHEDULE", "*/5 * * * *")
    assert nightly_goldsets(assets)[0].cron_schedule == "*/5 * * * *"
    monkeypatch.setenv("CONTEXT_OS_GOLDSETS__FOLDER", "elsewhere")
    assert (goldset_assets(), goldset_jobs([]), nightly_goldsets([])) == ([], [], [])
    monkeypatch.setenv("CONTEXT_OS_GOLDSETS__SCHEDULE", "whenever")
    assert goldset_assets() == [], "the code location loads, and whoever runs something is told"
