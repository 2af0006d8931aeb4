"""The status page: what its pictures say, that nothing in it is anybody else's markup, and how a browser takes it."""

from __future__ import annotations

import threading
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import headers, running

from context_os import settings, status_page
from context_os.ledger import Advance, Ledger, Quarantined
from context_os.model import utcnow
from context_os.overview import Freshness, Latency, Operations, Run, Stopwatch, look

NOW = utcnow()
CHROMIUM = Path("/usr/bin/chromium")


class Page(HTMLParser):
    """The tags and words of a page. Fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def freshness(**more: Any) -> Freshness:
    common = {"repository": "acme/shop", "connector": "symbols", "revision": "abc", "outcome": "passed", "items": 7}
    return Freshness(**{**common, "indexed_at": NOW, "checked_at": NOW, "quarantined": 0, **more})


def operations(*rows: Freshness, runs: tuple[Run, ...] = (), latencies: tuple[Latency, ...] = ()) -> Operations:
    return Operations(tenant="acme", at=NOW, freshness=rows, runs=runs, latencies=latencies)


def test_ages_verdicts_and_quarantine_are_told_in_words() -> None:
    hours = freshness(checked_at=NOW - timedelta(hours=3))
    refused = freshness(connector="team_rules", outcome="refused", quarantined=12)
    never = freshness(connector="commits", checked_at=None, indexed_at=None, outcome="none")
    run = Run(
        id="0123456789", at=NOW - timedelta(minutes=5), repository="acme/shop", connectors=("symbols", "commits"),
        rows=12_345, outcome="refused", reason="too many",
    )  # fmt: skip
    latency = Latency(operation="pack", count=4, p50=120.0, p95=2_300.0, recent=(100.0, 120.0, 2_300.0))
    page = Page(status_page.render(operations(hours, refused, never, runs=(run,), latencies=(latency,)), "ada"))
    told = " ".join(page.words)
    for words in ("3 h", "0 s, refused", "never", "5 min ago", "12,345", "too many", "01234567", "120 ms", "2.3 s"):
        assert words in told, words
    assert "team_rules of acme/shop" in told


def test_an_empty_tenant_has_a_page() -> None:
    told = " ".join(Page(status_page.render(operations(), "ada")).words)
    for words in (
        "Nothing is ingested yet",
        "No run has been recorded",
        "Nothing stands in quarantine",
        "Nothing was asked",
    ):
        assert words in told


def test_many_repositories_are_counted_beyond_what_is_drawn() -> None:
    many = [freshness(repository=f"acme/{number}", quarantined=1) for number in range(100)]
    told = " ".join(Page(status_page.render(operations(*many), "ada")).words)
    assert "and 60 more repositories" in told
    assert "and 60 more connectors" in told


@given(
    st.text(min_size=1)
    | st.sampled_from(["<script>alert(1)</script>", '" onload="x', "</title><b>", "\ud800", "'&amp;"]),
    st.integers(-(10**9), 10**9),
    st.floats(0, 1e9),
)
def test_nothing_of_others_becomes_markup(text: str, seconds: int, milliseconds: float) -> None:
    when = NOW - timedelta(seconds=seconds)
    run = Run(id=text, at=when, repository=text, connectors=(text,), rows=0, outcome="broken", reason=text)
    latency = Latency(operation=text, count=1, p50=milliseconds, p95=milliseconds, recent=(milliseconds,))
    row = freshness(repository=text, connector=text, checked_at=when, outcome="broken", quarantined=1)
    seen = operations(row, runs=(run,), latencies=(latency,)).model_copy(update={"tenant": text})
    plain = operations(
        freshness(checked_at=when, outcome="broken", quarantined=1),
        runs=(run.model_copy(update={"id": "a", "repository": "a", "connectors": ("a",), "reason": "a"}),),
        latencies=(latency.model_copy(update={"operation": "a"}),),
    )
    page = Page(status_page.render(seen, text))
    assert page.tags == Page(status_page.render(plain, "a")).tags
    assert not any(name.startswith("on") or name in {"style", "src"} for name, _ in page.attributes)
    assert Page(status_page.login(text)).tags.count("p") == 2


def test_operations_are_read_from_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    scope = ledger.scope("lab:x", "acme", "acme/shop", "symbols")
    verdict = '{"at": "2026-01-01T00:00:00Z", "run_id": "%s", "passed": %s, "broken": %s, "rows": 5, "reason": "%s"}'
    ledger.record_verdict(scope, "s-1", True, verdict % ("run-1", "true", "false", ""))
    ledger.record_verdict(scope, "s-2", False, verdict % ("run-2", "false", "true", "it broke"))
    other = ledger.scope("lab:x", "acme", "acme/shop", "commits")
    ledger.record_verdict(other, "s-3", True, verdict % ("run-2", "true", "false", ""))
    held = Quarantined("unit", "key", ("why",), "raw")
    ledger.advance(scope, Advance("f", "d", "revision", {}, "run-1", {"unit": ("h", NOW)}, quarantined=[held]))
    ledger.record_verdict(
        ledger.scope("lab:x", "globex", "other", "symbols"), "s", True, verdict % ("x", "true", "false", "")
    )
    stopwatch = Stopwatch()
    with stopwatch.timed("globex", "search"):
        pass
    seen = look(ledger, "lab:x", "acme", stopwatch)
    assert [(each.connector, each.outcome, each.quarantined) for each in seen.freshness] == [
        ("commits", "passed", 0),
        ("symbols", "broken", 1),
    ]
    assert [(run.id, run.outcome, run.rows, run.connectors) for run in seen.runs] == [
        ("run-2", "broken", 10, ("commits", "symbols")),
        ("run-1", "passed", 5, ("symbols",)),
    ]
    assert seen.runs[0].reason == "it broke"
    assert seen.latencies == ()


def test_latencies_are_counted_by_all_threads() -> None:
    stopwatch = Stopwatch()

    def work() -> None:
        for _ in range(300):
            with stopwatch.timed("acme", "search"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(ZeroDivisionError), stopwatch.timed("acme", "search"):
        raise ZeroDivisionError
    (latency,) = stopwatch.of("acme")
    assert latency.count == 2_400
    assert len(latency.recent) == 500
    assert latency.p50 <= latency.p95 <= max(latency.recent)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_logs_in_and_shows_the_pictures(tmp_path: Path, scheme: str) -> None:
    """With scripts switched off; the page asks nobody for anything, and its own policy refuses nothing of it."""
    playwright = pytest.importorskip("playwright.sync_api")
    chosen = settings.load({"home": str(tmp_path / "home")}, start=tmp_path)
    ledger = Ledger(chosen.make_home() / "ledger.db")
    with chosen.open_store() as store:
        for name in ("acme/shop", "acme/<img src=x>"):
            scope = ledger.scope(store.identity, chosen.tenant, name, "symbols")
            ledger.advance(scope, Advance("f", "d", "r", {}, "run-1"))
    token = headers(chosen.home, chosen.tenant, "admin")["Authorization"].removeprefix("Bearer ")
    asked: list[str] = []
    said: list[str] = []
    with running(chosen) as url, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(color_scheme=scheme, java_script_enabled=False).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(url)
        page.get_by_label("Access key").fill(token)
        page.get_by_role("button", name="Show the status").click()
        picture = page.get_by_role("img", name="Freshness of 2 repositories by 1 connectors")
        playwright.expect(picture).to_be_visible()
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Log out").click()
        playwright.expect(page.get_by_label("Access key")).to_be_visible()
        browser.close()
    assert {each.rpartition("/")[0] for each in asked} == {url}
    assert said == []
