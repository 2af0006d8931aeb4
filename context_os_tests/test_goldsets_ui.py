"""A person switches the nightly schedule of the goldsets on in the Dagster UI, and finds their numbers plotted.

The real ``context-os ui`` in a headless Chromium, with its daemon. No clock is moved: the settings make each minute a
night, so that the tick that comes is the schedule's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from samples import write
from test_dagster_ui import UI, _ask, _page, _server, expect
from test_dagster_ui import pytestmark as _conditions
from test_goldset_assets import make, night

from context_os import evaluation, settings
from context_os.defs import run
from context_os.goldsets import Folder

pytestmark = _conditions

TICK = 240
"""Seconds: a night is a minute, and a run takes a Python's start on a busy machine."""


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    folder = tmp_path_factory.mktemp("nights", numbered=False)
    write(folder, "context-os.toml", '[goldsets]\nschedule = "* * * * *"\n')
    make(Folder(folder / "goldsets" / "shop"), folder / "shop")
    _earlier_night(folder)
    with _server(folder) as url, _page(folder) as page:
        ui = UI(page, url, folder)
        ui.open("asset-groups")
        if _ask(url, "shouldShowNux")["shouldShowNux"]:  # an invitation to a newsletter
            page.get_by_role("button", name="Skip").click()
        page.get_by_text("Hide navigation").click()
        yield ui


def _earlier_night(folder: Path) -> None:
    """The first run, accepted as the baseline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTEXT_OS_HOME", str(folder / "home"))
        patch.chdir(folder)
        chosen = settings.load()
        with dg.DagsterInstance.from_config(str(run.instance_folder(chosen))) as instance:
            assert night(instance).success
        evaluation.accept(Folder(folder / "goldsets" / "shop"), evaluation.Runs.of(chosen, "shop").get())


def _nights(ui: UI) -> list[str]:
    """How the schedule's own runs stand."""
    of_it = '{tags: [{key: "dagster/schedule_name", value: "nightly_goldsets"}]}'
    found = _ask(ui.url, f"runsOrError(filter: {of_it}){{... on Runs{{results{{status}}}}}}")
    return [each["status"] for each in found["runsOrError"]["results"]]


def test_the_nightly_schedule_is_switched_on_and_its_numbers_are_plotted(ui: UI) -> None:
    page = ui.page
    ui.open("locations/context_os/schedules/nightly_goldsets")
    switch = page.locator("input[type=checkbox]").first  # drawn beside itself: what is clicked is its label
    expect(switch).not_to_be_checked()
    assert _nights(ui) == []
    switch.locator("xpath=..").click()
    expect(switch).to_be_checked()
    until = time.monotonic() + TICK
    while "SUCCESS" not in _nights(ui):
        assert time.monotonic() < until, (_nights(ui), (ui.folder / "ui.log").read_text()[-4_000:])
        time.sleep(1)
    ui.open("locations/context_os/schedules/nightly_goldsets")
    switch.locator("xpath=..").click()
    expect(switch).not_to_be_checked()

    ui.open("assets/goldset/shop?view=overview")
    page.get_by_role("button", name="Plots").click()
    for number in ("complete", "recall", "reciprocal rank", "lost", "tokens"):
        expect(page.get_by_text(number, exact=True)).to_be_visible()
    plots = page.locator("canvas")
    expect(plots).to_have_count(9)  # every number of the run
    expect(plots.first).to_be_visible()
    drawn = plots.first.evaluate(_DRAWN)
    assert drawn > 100, "there is a line on it"
    page.wait_for_timeout(1_500)  # a plot grows into its place
    ui.picture("goldset-plots")


_DRAWN = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let drawn = 0;
    for (let at = 3; at < data.length; at += 4) drawn += data[at] > 0;
    return drawn;
}"""
