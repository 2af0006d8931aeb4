"""Feedback from review comments and what it teaches, on a schedule once somebody starts it."""

# No `from __future__ import annotations` here: Dagster reads the types of parameters when it decorates.

import dagster as dg

from context_os.app import App
from context_os.defs.resources import Workspace
from context_os.model import Access
from context_os.voting import Voting, collect


class CollectConfig(dg.Config):
    """``days``: how old a comment may be. ``repository``: empty takes every registered one."""

    days: int = 90
    repository: str = ""


@dg.op(out=dg.Out(dg.Nothing))
def collect_reactions(context: dg.OpExecutionContext, config: CollectConfig, workspace: Workspace) -> None:
    """Votes from reactions and resolved threads, and every vote that the store was away for."""
    with workspace.ingestion(context.log.info) as ingestion:
        chosen = ingestion.settings
        access = Access(tenant=chosen.tenant, principal="feedback", clearance=chosen.clearance)
        voting = Voting(App(chosen, ingestion.store, access), context.log.info)
        voting.projection.catch_up()
        app = voting.app
        places = [app.location(config.repository)] if config.repository else app.repositories()
        found = [collect(voting, place, config.days) for place in places]
    for each in found:
        for url, reason in each.refused:
            context.log.warning(f"{url}: {reason}")
    context.add_output_metadata(
        {
            "new": sum(each.new for each in found),
            "withdrawn": sum(each.withdrawn for each in found),
            "refused": sum(len(each.refused) for each in found),
            "repositories": dg.MetadataValue.json([each.model_dump(mode="json") for each in found]),
        }
    )


@dg.op(ins={"collected": dg.In(dg.Nothing)})
def tune_weights(context: dg.OpExecutionContext, workspace: Workspace) -> None:
    """Weights of each repository's own, where its votes prove them."""
    with workspace.ingestion(context.log.info) as ingestion:
        chosen = ingestion.settings
        if not chosen.feedback.tune:
            context.log.info("feedback.tune is off")
            return
        access = Access(tenant=chosen.tenant, principal="feedback", clearance=chosen.clearance)
        app = App(chosen, ingestion.store, access)
        found = [each for place in app.repositories() for each in app.tuning.tune(place.name)]
    for each in found:
        context.log.info(f"{each.repository}, {each.model}: {'used' if each.used else 'not used'}, {each.reason}")
    context.add_output_metadata(
        {
            "used": sum(each.used for each in found),
            "tuned": dg.MetadataValue.json([each.model_dump(mode="json") for each in found]),
        }
    )


@dg.job(
    description="Reactions to our reviewer's comments on GitHub, and threads that were resolved, become votes; votes"
    " that name their pack tune what ranks high in its repository."
)
def collect_feedback() -> None:
    tune_weights(collect_reactions())


schedule = dg.ScheduleDefinition(
    job=collect_feedback, cron_schedule="15 * * * *", default_status=dg.DefaultScheduleStatus.STOPPED
)
"""Every hour, once somebody starts it."""
