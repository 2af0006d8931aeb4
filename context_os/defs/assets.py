"""Three assets a connector: ``staged/<name>``, with the gate as its blocking check, ``indexed/<name>``, and behind it
``embedded/<name>``."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from context_os import plugins, quality
from context_os.connectors import Connector
from context_os.defs.resources import Workspace
from context_os.ingestion import Embedded, Report, find_repository
from context_os.staging import Staged

repositories = dg.DynamicPartitionsDefinition(name="repositories")
"""One partition a repository: its registered name, or its absolute path."""


AFTER_NEWS = (
    (
        dg.AutomationCondition.newly_missing()
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    ).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.in_progress()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("after news")
"""When what it is made of has another data version, once. Dagster's own ``eager`` also fires on an unchanged one."""


class StageConfig(dg.Config):
    """``revision``: a commit, branch or tag; empty follows the repository (its working tree, or HEAD)."""

    revision: str = ""


def connector_assets(name: str) -> list[dg.AssetsDefinition]:
    """The assets of one connector."""
    connector: type[Connector] = plugins.load("connectors", name)
    staged_key, indexed_key = dg.AssetKey(["staged", name]), dg.AssetKey(["indexed", name])
    common: dict[str, Any] = {
        "partitions_def": repositories,
        "group_name": name,
        "owners": ["team:context-os"],
        "code_version": str(connector.version),
    }

    @dg.asset(
        key=staged_key,
        description=f"{connector.summary}. What changed since the last run, before the gate.",
        kinds={"parquet", connector.modality.value},
        check_specs=[
            dg.AssetCheckSpec(
                "gx_critical", asset=staged_key, blocking=True, description="A failed batch is not indexed."
            ),
            dg.AssetCheckSpec("gx_advisory", asset=staged_key, description="Worth a look; blocks nothing."),
        ],
        **common,
    )
    def staged(context: dg.AssetExecutionContext, config: StageConfig, workspace: Workspace) -> dg.MaterializeResult:
        with workspace.ingestion(context.log.info) as ingestion:
            repository = find_repository(
                ingestion.settings, ingestion.ledger, context.partition_key, config.revision or None
            )
            found = ingestion.stage(name, repository)
            verdict = ingestion.judge(found, context.run.run_id)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(found.data_version),
            metadata=_staged_metadata(found, verdict),
            check_results=[_check(staged_key, found, verdict, critical=critical) for critical in (True, False)],
        )

    @dg.asset(
        key=indexed_key,
        deps=[staged_key],
        automation_condition=AFTER_NEWS,
        description=f"{connector.summary}. In the store, reconciled with the ledger.",
        kinds={"weaviate", "sqlite"},
        **common,
    )
    def indexed(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
        with workspace.ingestion(context.log.info) as ingestion:
            report = ingestion.index(ingestion.newest_staged(name, context.partition_key), context.run.run_id)
            where = ingestion.store.identity
        return dg.MaterializeResult(
            data_version=dg.DataVersion(report.data_version), metadata=_indexed_metadata(report, where)
        )

    @dg.asset(
        key=dg.AssetKey(["embedded", name]),
        deps=[indexed_key],
        description=f"{connector.summary}. Their vectors, which catch up behind the index.",
        kinds={"onnx"},
        **common,
    )
    def embedded(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
        with workspace.ingestion(context.log.info) as ingestion:
            done = ingestion.embed(name, context.partition_key)
            indexed_version = ingestion.scope(name, context.partition_key).data_version
        return dg.MaterializeResult(
            data_version=dg.DataVersion(f"{indexed_version}-{done.version or 'none'}-{done.vectors}"),
            metadata=_embedded_metadata(done),
        )

    return [staged, indexed, embedded]


def _staged_metadata(found: Staged, verdict: quality.Verdict) -> Mapping[str, Any]:
    notes = "\n".join(f"- {note}" for note in found.notes[:50]) or "none"
    return {
        "dagster/row_count": found.rows,
        "units changed": len(found.units),
        "units removed": len(found.removed_units),
        "records rejected": found.rejected,
        "records refused by the gate": len(verdict.refusals),
        "seconds": found.seconds,
        "gate seconds": round(verdict.seconds, 3),
        "revision": found.revision or "none",
        "skipped": dg.MetadataValue.json(found.skipped),
        "notes": dg.MetadataValue.md(notes),
    }


def _indexed_metadata(report: Report, store: str) -> Mapping[str, Any]:
    counts = ("added", "changed", "unchanged", "removed", "quarantined", "refreshed")
    return {
        "dagster/row_count": report.reconcile.store,
        **{count: getattr(report, count) for count in counts},
        "seconds": report.seconds,
        "revision": report.revision or "none",
        "store": store,
        "report": dg.MetadataValue.json(report.model_dump(mode="json")),
    }


def _embedded_metadata(done: Embedded) -> Mapping[str, Any]:
    return {
        "dagster/row_count": done.vectors,
        "embedding": done.version or "none: `context-os embedding fetch` gets one",
        "coverage": round(done.coverage, 4),
        "items": done.items,
        "embedded now": done.embedded,
        "chunks/s": round(done.embedded / done.seconds, 1) if done.embedded else 0.0,
        "seconds": done.seconds,
    }


def _check(asset: dg.AssetKey, found: Staged, verdict: quality.Verdict, *, critical: bool) -> dg.AssetCheckResult:
    rows = quality.table(verdict, critical)
    failed = sum(not row["success"] for row in rows)
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name="gx_critical" if critical else "gx_advisory",
        passed=verdict.passed if critical else failed == 0,
        severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
        description=_told(verdict) if critical else f"{failed} of {len(rows)} pieces of advice apply",
        metadata={
            # A check has no partition: without its name nobody knows which repository failed.
            "repository": found.repository,
            "rows": verdict.rows,
            "accepted": verdict.accepted,
            "refused": len(verdict.refusals),
            "what was checked": dg.MetadataValue.table([_record(row) for row in rows]) if rows else "nothing to check",
        },
    )


def _told(verdict: quality.Verdict) -> str:
    return verdict.reason or f"{verdict.accepted:,} of {verdict.rows:,} rows accepted"


def _record(row: Mapping[str, Any]) -> dg.TableRecord:
    """A row for the UI: what must hold comes first, and a long name in words, for a page wraps those only."""
    return dg.TableRecord(
        {
            "must hold": row["because"],
            "holds": row["success"],
            "fail": row["unexpected_count"],
            "%": row["unexpected_percent"],
            "columns": row["columns"],
            "sample": row["sample"],
            "expectation": row["expectation"].removeprefix("expect_").replace("_", " "),
            "exception": row["exception"],
        }
    )
