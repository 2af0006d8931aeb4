"""What happens by itself: the schedule, the index behind its staging, pruning, and how long history is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml
from samples import make_repository, write

from context_os import settings
from context_os.definitions import defs
from context_os.defs import run
from context_os.defs.assets import repositories
from context_os.defs.history import REPOSITORY_TAG, TENANT_TAG, forget_runs
from context_os.defs.schedules import nightly
from context_os.goldsets import folders
from context_os.ingestion import Ingestion, find_repository, register
from context_os.ledger import Ledger
from context_os.model import Access, Confidentiality, utcnow
from context_os.operations import ledger, prune
from context_os.stores import Filter

NIGHT = datetime(2026, 3, 1, 2, tzinfo=UTC)
STAGED, INDEXED = dg.AssetKey(["staged", "team_rules"]), dg.AssetKey(["indexed", "team_rules"])


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return make_repository(tmp_path / "shop")


@pytest.fixture
def instance(repository: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(run.instance_folder(settings.load()))) as opened:
        yield opened


def books() -> Ledger:
    return ledger(settings.load())


def ingest(repository: Path, tenant: str | None = None, name: str = "shop") -> str:
    chosen = settings.load({"tenant": tenant})
    register(chosen, books(), name, repository)
    done = run.ingest(chosen, find_repository(chosen, books(), name), ["team_rules"], verbose=False)
    assert done.exit_code == 0, done
    return done.run_id


def tonight(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    context = dg.build_schedule_context(instance, scheduled_execution_time=NIGHT, resources=defs.resources)
    with context:
        asked = nightly(context)
    return asked if isinstance(asked, list) else []


# The night


def test_every_registered_repository_is_ingested_every_night(
    repository: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tonight(instance) == []
    for number in range(300):
        books().register(f"team/{number:03}", repository)
    asked = tonight(instance)
    assert len(asked) == 300
    assert [each.run_key for each in asked] == [each.run_key for each in tonight(instance)], "twice is once"
    assert set(instance.get_dynamic_partitions("repositories")) == {each.partition_key for each in asked}
    first = asked[0]
    assert (first.tags[TENANT_TAG], first.tags[REPOSITORY_TAG]) == ("default", "team/000")
    done = defs.resolve_job_def("ingest_team_rules").execute_in_process(
        instance=instance, partition_key=first.partition_key, run_config=first.run_config
    )
    assert done.success


def test_no_tenant_gets_what_another_one_ingested(repository: Path, instance: dg.DagsterInstance) -> None:
    ingest(repository, "acme")
    register(settings.load(), books(), "free", repository)
    asked = {(each.tags[TENANT_TAG], each.partition_key) for each in tonight(instance)}
    assert asked == {("acme", "shop"), ("default", "free")}
    (of_acme,) = [each for each in tonight(instance) if each.partition_key == "shop"]
    assert of_acme.run_config["resources"]["workspace"]["config"] == {"tenant": "acme"}
    # As the daemon makes runs of it: the job adds its own tags, and may not replace the tenant's.
    made = of_acme.with_resolved_tags_and_config(
        defs.resolve_job_def("ingest"), dynamic_partitions_requests=[], dynamic_partitions_store=instance
    )
    assert (made.tags[TENANT_TAG], made.tags[REPOSITORY_TAG], made.tags["dagster/partition"]) == (
        "acme",
        "shop",
        "shop",
    )
    assert made.run_config == of_acme.run_config


def test_schedules_and_sensors_are_on_by_their_default() -> None:
    repository = defs.get_repository_def()
    assert {each.name: each.default_status.value for each in repository.schedule_defs} == {
        "nightly": "RUNNING",
        "nightly_prune": "RUNNING",
        "backup_schedule": "STOPPED",
        "collect_feedback_schedule": "STOPPED",
        "restore_drill_schedule": "STOPPED",
        **({"nightly_goldsets": "STOPPED"} if folders(settings.load().goldsets.folder) else {}),
    }
    assert {each.name: each.default_status.value for each in repository.sensor_defs} == {
        "operations": "RUNNING",
        "follow": "RUNNING",
        "webhook_triggers": "RUNNING",
    }


def test_runs_say_whose_they_are_and_both_are_limited(repository: Path, instance: dg.DagsterInstance) -> None:
    run_id = ingest(repository, "acme")
    recorded = instance.get_run_by_id(run_id)
    assert recorded is not None
    assert (recorded.tags[TENANT_TAG], recorded.tags[REPOSITORY_TAG]) == ("acme", "shop")
    # What somebody starts over a partition in the UI gets its repository from the job.
    stage(repository, instance)
    (by_hand,) = [each for each in instance.get_runs() if each.run_id != run_id]
    assert (by_hand.tags[REPOSITORY_TAG], TENANT_TAG in by_hand.tags) == ("shop", False)
    limits = yaml.safe_load(run.shipped("dagster.yaml").read_text())["concurrency"]["runs"]["tag_concurrency_limits"]
    assert {each["key"] for each in limits} == {"dagster/partition", TENANT_TAG}
    assert all(each["value"]["applyLimitPerUniqueValue"] for each in limits)


# The index follows


def stage(repository: Path, instance: dg.DagsterInstance) -> None:
    register(settings.load(), books(), "shop", repository)
    instance.add_dynamic_partitions(str(repositories.name), ["shop"])
    job = defs.resolve_job_def("ingest_team_rules")
    done = job.execute_in_process(instance=instance, partition_key="shop", asset_selection=[STAGED])
    assert done.success


@pytest.mark.slow
def test_the_index_follows_news_and_nothing_runs_for_nothing(repository: Path, instance: dg.DagsterInstance) -> None:
    seen = dg.evaluate_automation_conditions(defs, instance)
    assert seen.total_requested == 0

    def look() -> int:
        nonlocal seen
        seen = dg.evaluate_automation_conditions(defs, instance, cursor=seen.cursor)
        asked = seen.get_num_requested(INDEXED)
        assert seen.total_requested == asked, "nobody else is asked"
        return asked

    def index() -> None:
        job = defs.resolve_job_def("ingest_team_rules")
        assert job.execute_in_process(instance=instance, partition_key="shop", asset_selection=[INDEXED]).success

    stage(repository, instance)
    assert look() == 1
    index()
    assert [look() for _ in range(3)] == [0, 0, 0]
    for _ in range(3):
        stage(repository, instance)  # nothing changed: the same data version
        assert [look(), look()] == [0, 0]
    write(repository, ".context-os/rules/new.md", "---\nglobs: ['shop/**']\n---\nA new rule.\n")
    stage(repository, instance)
    assert look() == 1
    index()
    assert look() == 0
    ingest(repository, name="other")
    assert [look(), look()] == [0, 0], "a new repository, of which a whole run made everything"
    # The whole job does both: what it did is not done again.
    write(repository, ".context-os/rules/new.md", "---\nglobs: ['shop/**']\n---\nAnother rule.\n")
    ingest(repository)
    assert [look(), look()] == [0, 0]


@pytest.mark.slow
def test_the_index_does_not_follow_what_was_refused(
    repository: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(repository, instance)
    seen = dg.evaluate_automation_conditions(defs, instance)
    monkeypatch.setenv("CONTEXT_OS_GATE__MAX_REFUSED_SHARE", "0.0")
    for number in range(12):
        globs = "!shop/**" if number == 7 else "shop/**"
        write(repository, f".context-os/rules/rule-{number}.md", f"---\nglobs: ['{globs}']\n---\nRule {number}.\n")
    job = defs.resolve_job_def("ingest_team_rules")
    done = job.execute_in_process(
        instance=instance, partition_key="shop", asset_selection=[STAGED], raise_on_error=False
    )
    assert not done.success
    after = dg.evaluate_automation_conditions(defs, instance, cursor=seen.cursor)
    assert after.get_num_requested(INDEXED) == 0


# Pruning


def receipts(home: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted(home.glob("receipts/*")) for line in file.read_text().splitlines()]


def test_what_expired_is_deleted_with_receipts_and_the_ledger_follows(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTEXT_OS_CONNECTORS__TEAM_RULES__TTL", "1h")
    ingest(repository)
    ingest(repository, "acme")
    chosen, later = settings.load(), utcnow() + timedelta(hours=2)
    with chosen.open_store() as store:
        held = {
            tenant: [item.id for item in store.scan(_everything(tenant), Filter()).items]
            for tenant in ("acme", "default")
        }
        done = prune(chosen, store, "run-1", later)
        assert {each.tenant: (each.deleted, each.gone) for each in done} == {"acme": (1, 0), "default": (1, 0)}
        assert all(prune(chosen, store, "run-2", later)[each].deleted == 0 for each in (0, 1))
        for scope in books().scopes(store.identity):
            assert books().ids(scope) == set()
            mine = chosen.model_copy(update={"tenant": scope.tenant})
            assert Ingestion(mine, store, books()).reconcile(scope).differences == ()
    told = receipts(tmp_path / "home")
    assert [(each["tenant"], each["ids"], each["count"], each["run_id"], each["fate"]) for each in told] == [
        (tenant, ids, 1, "run-1", "deleted") for tenant, ids in sorted(held.items())
    ]
    assert all(datetime.fromisoformat(str(each["time"])) == later for each in told)
    assert (tmp_path / "home/receipts").stat().st_mode & 0o077 == 0


def test_what_the_store_swept_by_itself_gets_a_receipt_too(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or what a prune deleted that was killed before it wrote its receipt."""
    monkeypatch.setenv("CONTEXT_OS_CONNECTORS__TEAM_RULES__TTL", "1h")
    ingest(repository)
    chosen, later = settings.load(), utcnow() + timedelta(hours=2)
    with chosen.open_store() as store:
        gone = store.prune(_everything("default"), later)
        (done,) = prune(chosen, store, "run-1", later)
    assert (done.deleted, done.gone) == (0, 1)
    (told,) = receipts(tmp_path / "home")
    assert (told["ids"], told["fate"]) == (gone, "gone")


def test_a_receipt_that_was_cut_off_spoils_no_other(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTEXT_OS_CONNECTORS__TEAM_RULES__TTL", "1h")
    ingest(repository)
    later = utcnow() + timedelta(hours=2)
    file = tmp_path / "home" / "receipts" / f"prune-{later:%Y}.jsonl"
    file.parent.mkdir()
    file.write_text('{"time": "2026-')
    chosen = settings.load()
    with chosen.open_store() as store:
        prune(chosen, store, "run-1", later)
    torn, whole = file.read_text().splitlines()
    assert torn == '{"time": "2026-'
    assert json.loads(whole)["count"] == 1


def test_what_did_not_expire_stays(repository: Path) -> None:
    ingest(repository)
    assert run.prune(settings.load())["tenants"] == [{"tenant": "default", "deleted": 0, "gone": 0}]
    with settings.load().open_store() as store:
        assert store.count(_everything("default"), Filter()) == 1


def _everything(tenant: str) -> Access:
    return Access(tenant=tenant, principal="test", clearance=Confidentiality.RESTRICTED)


# History


@pytest.mark.slow
def test_old_runs_are_forgotten_but_none_that_is_the_last_or_goes_on(
    repository: Path, instance: dg.DagsterInstance
) -> None:
    books()
    first = ingest(repository)
    other = ingest(repository, name="other")
    write(repository, ".context-os/rules/new.md", "---\nglobs: ['shop/**']\n---\nA new rule.\n")
    last = ingest(repository)
    running = instance.create_run_for_job(defs.resolve_job_def("prune"))
    instance.add_run_tags(running.run_id, {"kept": "yes"})
    assert forget_runs(instance, utcnow() - timedelta(days=1)) == 0
    assert forget_runs(instance, utcnow() + timedelta(days=1)) == 1
    assert {each.run_id for each in instance.get_runs()} == {other, last, running.run_id}
    assert not instance.get_records_for_run(first).records
    for name in ("shop", "other"):
        ids = instance.get_latest_storage_id_by_partition(INDEXED, dg.DagsterEventType.ASSET_MATERIALIZATION)
        assert name in ids
    assert instance.get_latest_materialization_event(STAGED) is not None
