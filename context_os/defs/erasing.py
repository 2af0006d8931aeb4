"""What Dagster remembers of runs, taken out for good: their records, events, logs and the repositories' partitions."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dagster as dg

from context_os.defs.assets import repositories
from context_os.erasure import Forgotten
from context_os.errors import StoreUnavailable
from context_os.settings import Settings

_PARTITION: Final = "dagster/partition"
_OF_RUNS: Final = {
    "history/runs.db": ("runs", "run_tags"),
    "history/runs/index.db": ("event_logs", "asset_check_executions", "concurrency_slots", "pending_steps"),
}
"""Tables with a ``run_id``. Deleting a run through the instance leaves its tags and the results of its checks."""
_NAMING: Final = {
    "history/runs.db": (("bulk_actions", "body"), ("run_tags", "value"), ("kvs", "value")),
    "schedules/schedules.db": (("job_ticks", "tick_body"), ("asset_daemon_asset_evaluations", "asset_evaluation_body")),
}
"""Tables of which a row may name a repository without being of one run."""


@dataclass(frozen=True)
class DagsterHistory:
    """The history of one installation's instance, for ``erasure``. Every method may be repeated after a kill."""

    settings: Settings

    def count(self, wanted: Forgotten, mentions: Callable[[str], bool] | None) -> int:
        """How many runs would go."""
        home = _folder(self.settings)
        if not home.is_dir():
            return 0
        with dg.DagsterInstance.from_config(str(home)) as instance:
            return len(_runs(self.settings, instance, wanted, mentions))

    def forget(self, wanted: Forgotten, mentions: Callable[[str], bool] | None) -> int:
        """Delete it; says how many runs went."""
        home = _folder(self.settings)
        if not home.is_dir():
            return 0
        with dg.DagsterInstance.from_config(str(home)) as instance:
            gone = _runs(self.settings, instance, wanted, mentions)
            for run in gone:
                instance.delete_run(run)
            _remove_rows(home, wanted.partitions)
            assert repositories.name is not None
            for partition in wanted.partitions:
                instance.delete_dynamic_partition(repositories.name, partition)
            _point_at_what_is_left(home, instance)
        _remove_files(home)
        return len(gone)

    def compact(self) -> None:
        """Overwrite what deletion left in Dagster's files. An instance that keeps its history elsewhere has none."""
        for file in sorted(_folder(self.settings).rglob("*.db")):
            try:
                with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as db:
                    db.execute("VACUUM")
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                raise StoreUnavailable(f"{file} cannot be compacted, is a run or the UI at work? ({error})") from error


def _folder(settings: Settings) -> Path:
    return settings.home / "dagster"


def _runs(
    settings: Settings, instance: dg.DagsterInstance, wanted: Forgotten, mentions: Callable[[str], bool] | None
) -> list[str]:
    runs = (run for run in instance.get_runs() if _tenant(settings, run) == wanted.tenant)
    return [
        run.run_id
        for run in runs
        if _is_meant(run, wanted) or (mentions is not None and any(map(mentions, _told(instance, run))))
    ]


def _tenant(settings: Settings, run: dg.DagsterRun) -> str:
    return str(_configured(run, "resources", "workspace").get("tenant") or settings.tenant)


def _configured(run: dg.DagsterRun, *names: str) -> dict[str, Any]:
    """The config of a part of a run, empty where it has none."""
    held: Any = run.run_config
    for name in (*names, "config"):
        held = held.get(name) if isinstance(held, dict) else None
    return held if isinstance(held, dict) else {}


def _is_meant(run: dg.DagsterRun, wanted: Forgotten) -> bool:
    if wanted.everything or run.tags.get(_PARTITION) in wanted.repositories:
        return True
    added = _configured(run, "ops", "register_repository")
    return bool({str(added.get("name")), str(added.get("location"))} & set(wanted.repositories))


def _told(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[str]:
    """Everything that is kept of a run, line ends as such: an escape would be a letter of the word behind it."""
    values: list[Any] = [run, *instance.all_logs(run.run_id)]
    for value in values:
        yield dg.serialize_value(value).replace("\\n", "\n").replace("\\t", "\t")


def _remove_rows(home: Path, partitions: Collection[str]) -> None:
    """Those of runs that are not there any more, also of a call that was killed before it came to them, and those that
    name a partition."""
    known = json.dumps(sorted(_known(home)))
    for name, tables in _OF_RUNS.items():
        for table in tables:
            _delete(home / name, table, "run_id <> '' AND run_id NOT IN (SELECT value FROM json_each(?))", [known])
    for name, columns in _NAMING.items():
        for table, column in columns:
            _delete(home / name, table, f"{column} = ?1 OR instr({column}, '\"' || ?1 || '\"') > 0", partitions)


def _known(home: Path) -> set[str]:
    with closing(sqlite3.connect(home / "history" / "runs.db", timeout=30)) as db:
        return {run for (run,) in db.execute("SELECT run_id FROM runs")}


def _delete(file: Path, table: str, where: str, values: Collection[str]) -> None:
    if not file.is_file():
        return
    with closing(sqlite3.connect(file, timeout=30)) as db, db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone():
            db.executemany(f"DELETE FROM {table} WHERE {where}", ((value,) for value in values))  # noqa: S608 - constants


def _point_at_what_is_left(home: Path, instance: dg.DagsterInstance) -> None:
    """The index keeps each asset's last materialization once more: make it the last that is still there."""
    file = home / "history/runs/index.db"
    if not file.is_file():
        return
    known = _known(home)
    with closing(sqlite3.connect(file, timeout=30)) as db, db:
        for asset, run in db.execute("SELECT asset_key, last_run_id FROM asset_keys").fetchall():
            if run in known:
                continue
            left = instance.fetch_materializations(dg.AssetKey(json.loads(asset)), limit=1).records
            last = (dg.serialize_value(left[0]), left[0].run_id) if left else (None, None)
            db.execute(
                "UPDATE asset_keys SET last_materialization = ?, last_run_id = ?, cached_status_data = NULL"
                " WHERE asset_key = ?",
                (*last, asset),
            )


def _remove_files(home: Path) -> None:
    """Those of runs that are not there any more, also of a call that was killed before it came to them."""
    known = _known(home)
    for file in (home / "history" / "runs").glob("*.db*"):
        run = file.name.partition(".")[0]
        if run != "index" and run not in known:
            file.unlink(missing_ok=True)
    for folder in (home / "storage").glob("*-*-*-*-*"):
        if folder.name not in known:
            shutil.rmtree(folder, ignore_errors=True)
