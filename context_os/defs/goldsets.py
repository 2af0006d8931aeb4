"""An asset a goldset, ``goldset/<name>``: its numbers are metadata that the asset's page plots over time, its gate is a
check whose failure the sensor ``operations`` makes an alert of."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

from collections.abc import Sequence
from typing import Any

import dagster as dg

from context_os import settings
from context_os.defs.resources import Workspace
from context_os.errors import ConfigurationError
from context_os.evaluation import Comparison, Run, evaluate
from context_os.goldsets import Folder, folders

CHECK = "no_regression"


def goldset_assets() -> list[dg.AssetsDefinition]:
    """Those of the settings' folder when the code location is loaded; a new one shows after a reload. Settings that
    cannot be read give none: every run says what is wrong with them."""
    try:
        place = settings.load().goldsets.folder
    except ConfigurationError:
        return []
    return [goldset_asset(folder) for folder in folders(place)]


def goldset_asset(folder: Folder) -> dg.AssetsDefinition:
    """The asset of one goldset."""
    key = dg.AssetKey(["goldset", folder.name])

    @dg.asset(
        key=key,
        group_name="goldsets",
        owners=["team:context-os"],
        kinds={"json"},
        description=f"The cases of the goldset {folder.name}: what packs must hold and must not.",
        check_specs=[
            dg.AssetCheckSpec(CHECK, asset=key, description="Against the accepted baseline, paired case by case.")
        ],
    )
    def goldset(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
        with workspace.translated() as chosen:
            run, found = evaluate(chosen, folder, context.log.info)
        return dg.MaterializeResult(metadata=_metadata(run, found), check_results=[_check(key, found)])

    return goldset


def _metadata(run: Run, found: Comparison) -> dict[str, Any]:
    """Numbers are what a page plots."""
    return {
        "cases": len(run.results),
        **{name.replace("_", " "): dg.MetadataValue.float(value) for name, value in run.summary.items()},
        "won": len(found.won),
        "lost": len(found.lost),
        "regressions": len(found.regressions),
        "run": run.id,
        "baseline": found.baseline or "none",
        "comparison": dg.MetadataValue.json(found.model_dump(mode="json")),
    }


def _check(key: dg.AssetKey, found: Comparison) -> dg.AssetCheckResult:
    why = [f"- {each.case}: {reason}" for each in found.lost for reason in each.why]
    told = "\n".join([*(f"- {each}" for each in found.regressions), *why]) or "no regression"
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=CHECK,
        passed=not found.regressions,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found.summary,
        metadata={"lost": len(found.lost), "won": len(found.won), "why": dg.MetadataValue.md(told)},
    )


def goldset_jobs(assets: Sequence[dg.AssetsDefinition]) -> list[Any]:
    """``goldsets`` runs all of them. None where there is no goldset: Dagster takes no job without assets."""
    selection = [key for asset in assets for key in asset.keys]
    description = "Every goldset: its cases, its numbers, its gate."
    return [dg.define_asset_job("goldsets", selection=selection, description=description)] if assets else []


def nightly_goldsets(assets: Sequence[dg.AssetsDefinition]) -> list[dg.ScheduleDefinition]:
    """Off until somebody switches it on. ``goldsets.schedule`` in the settings says when."""
    if not assets:
        return []
    return [
        dg.ScheduleDefinition(
            name="nightly_goldsets",
            job_name="goldsets",
            cron_schedule=settings.load().goldsets.schedule,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Runs every goldset; a regression becomes an alert that says which cases were lost.",
        )
    ]
