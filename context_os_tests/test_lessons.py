"""The circle closed: bullets become items, and lessons change what a pack finds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from samples import make_repository

from context_os import packs, plugins, settings
from context_os.app import App, open_app
from context_os.change import parse_diff
from context_os.connectors import Known, Repository
from context_os.connectors.playbook import Playbook
from context_os.feedback import Verdict, Vote
from context_os.ingestion import Ingestion, Report, find_repository, register
from context_os.ledger import Ledger
from context_os.model import Access, Actor, Confidentiality, LineageAction
from context_os.packs import ContextPack
from context_os.playbook import Delta, Operation, Playbooks, subject_of
from context_os.ranking import rank
from context_os.selectors import Request

AT = datetime(2026, 3, 1, tzinfo=UTC)
HERE = ("default", "shop")
LESSON = "A change of how a session is released also needs the pool's reconnect to be looked at."


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("lessons") / "shop")


@pytest.fixture
def app(tmp_path: Path, repository: Path) -> Iterator[App]:
    chosen = settings.load({"home": str(tmp_path)}, start=tmp_path)
    with open_app(chosen, Confidentiality.INTERNAL) as found:
        ingestion = Ingestion(chosen, found.store, Ledger(tmp_path / "ledger.db"))
        register(chosen, ingestion.ledger, "shop", repository)
        for connector in ("symbols", "team_rules", "pull_requests"):
            ingestion.update(connector, find_repository(chosen, ingestion.ledger, "shop"))
        yield found


def learn(app: App, content: str, **changes: Any) -> None:
    given = {"content": content, "section": "POOL", **changes}
    delta = Delta(key=content[:160], operation=Operation.ADD, changes=given, principal="ann", at=AT)
    Playbooks(app.settings.home).apply(*HERE, [delta])


def ingest(app: App) -> Report:
    ingestion = Ingestion(app.settings, app.store, app.ledger)
    return ingestion.update("playbook", find_repository(app.settings, app.ledger, "shop"))


def pack_of(app: App, question: str = "") -> ContextPack:
    diff = "" if question else app.range_diff("shop", "HEAD~1..HEAD")
    return app.pack(question, diff, "shop", 4_000)


def lessons_in(pack: ContextPack) -> list[str]:
    return [entry.title for entry in pack.layers.core if entry.kind == "lesson"]


def test_bullets_come_and_go_with_the_playbook(app: App) -> None:
    assert ingest(app).added == 0
    learn(app, LESSON, about=("path:shop/pool.py", "symbol:release"), justification="It was forgotten twice.")
    report = ingest(app)
    assert (report.added, report.verdict, report.quarantined) == (1, "passed", 0)
    item = app.show(subject_of(*HERE, "pool-00001"))
    assert (item.kind, item.payload.text) == ("lesson", LESSON)
    assert set(item.metadata.tags) == {"ace-bullet", "POOL"}
    assert [each.target for each in item.relations] == ["path:shop/pool.py", "symbol:release"]
    assert item.payload.structured["section"] == "POOL"
    assert item.metadata.ttl is None
    assert (ingest(app).added, ingest(app).changed) == (0, 0)
    Playbooks(app.settings.home).apply(
        *HERE, [Delta(key="r", operation=Operation.REMOVE, ids=("pool-00001",), principal="ann", at=AT)]
    )
    assert ingest(app).removed == 1
    assert not app.store.get(app.access, [item.id])


def test_votes_and_merges_reach_the_item(app: App) -> None:
    learn(app, LESSON)
    learn(app, "Whoever reconnects holds the lock of the pool meanwhile, for sockets leak otherwise.")
    ingest(app)
    playbooks = Playbooks(app.settings.home)
    subject = subject_of(*HERE, "pool-00002")
    playbooks.feedback.add(
        "default", [Vote(key="v", subject=subject, verdict=Verdict.HELPFUL, at=AT, principal="bob", count=4)]
    )
    assert ingest(app).changed == 1
    assert app.show(subject).feedback.helpful == 4
    merge = Delta(key="m", operation=Operation.MERGE, ids=("pool-00001", "pool-00002"), principal="ann", at=AT)
    playbooks.apply(*HERE, [merge])
    report = ingest(app)
    assert (report.changed, report.removed) == (1, 1)
    item = app.show(subject_of(*HERE, "pool-00001"))
    assert item.feedback.helpful == 4
    [compacted] = [each for each in item.metadata.lineage if each.action is LineageAction.COMPACTED]
    assert compacted.derived_from == (subject,)
    assert compacted.actor is Actor.AUTOMATION


def test_a_lesson_without_a_home_or_of_another_tenant_is_nobodys(tmp_path: Path, repository: Path) -> None:
    source = Repository("shop", repository, "default")
    assert not Playbook().scan(source, Known()).units
    assert not Playbook(home=tmp_path).scan(source, Known()).units
    assert not (tmp_path / "playbook.db").exists()
    Playbooks(tmp_path).apply(
        "other", "shop", [Delta(key="a", operation=Operation.ADD, changes={"content": "x"}, principal="a", at=AT)]
    )
    assert not Playbook(home=tmp_path).scan(source, Known()).units
    connector = settings.load({"home": str(tmp_path)}, start=tmp_path).connector("playbook")
    assert getattr(connector, "home") == tmp_path  # noqa: B009


def test_without_lessons_packs_are_what_they_were(app: App) -> None:
    """Byte for byte: what every selector but this one proposes, packed, is the pack."""
    request = app.request("", app.range_diff("shop", "HEAD~1..HEAD"), "shop")
    reader = app.reader(("shop",))
    others = [name for name in plugins.names("selectors") if name != "lessons"]
    ranked = rank(each for name in others for each in plugins.load("selectors", name)().select(reader, request))
    assert app.select(request) == ranked
    assert not plugins.load("selectors", "lessons")().select(reader, request)
    assert packs.build(ranked, request, 4_000, app._freshness, "").prompt == pack_of(app).prompt


def test_a_lesson_about_the_changed_path_stands_below_the_rules(app: App) -> None:
    learn(app, LESSON, about=("path:shop/**",))
    learn(app, "Translations are checked by the office in Lyon.", about=("path:locale/**",))
    ingest(app)
    pack = pack_of(app)
    assert [entry.kind for entry in pack.layers.core] == ["rule", "lesson"]
    assert lessons_in(pack) == [LESSON]
    assert "learned about shop/pool.py" in pack.layers.core[1].reason
    assert "### Lesson pool-00001, shop\n```\n" + LESSON in pack.prompt
    assert pack.prompt.index("### Lesson") > pack.prompt.index("Hold the pool's lock")


def test_what_a_lesson_points_at_is_found_with_it(app: App) -> None:
    question = "why do translations of invoices look wrong"
    before = {each.item.metadata.title for each in app.select(Request(question, repositories=("shop",)))}
    assert "release" not in before
    learn(app, "When translations of invoices look wrong, look at how sessions end.", about=("symbol:release",))
    ingest(app)
    found = {each.item.metadata.title: each for each in app.select(Request(question, repositories=("shop",)))}
    assert "lesson pool-00001 says: When translations of invoices" in found["release"].reasons[0]
    assert found["release"].selector == "lessons"


def test_standing_moves_a_lesson(app: App) -> None:
    for number, word in enumerate(("liked", "plain", "disliked")):
        learn(app, f"Sessions of the {word} kind {number} are closed by hand.", id=f"s-{number}", section=word)
    playbooks = Playbooks(app.settings.home)
    for id, verdict in (("s-0", Verdict.HELPFUL), ("s-2", Verdict.HARMFUL)):
        vote = Vote(key=id, subject=subject_of(*HERE, id), verdict=verdict, at=AT, principal="bob", count=20)
        playbooks.feedback.add("default", [vote])
    ingest(app)
    request = Request("sessions of a kind are closed", repositories=("shop",))
    found = plugins.load("selectors", "lessons")().select(app.reader(("shop",)), request)
    assert [each.item.payload.structured["bullet"] for each in found] == ["s-0", "s-1", "s-2"]
    assert found[2].score < found[1].score / 2


def test_lessons_take_no_more_than_their_share(app: App) -> None:
    for number in range(40):
        learn(
            app,
            f"Lesson {chr(97 + number % 26) * 5} {number}: " + f"words{number} about pools " * 12,
            id=f"s-{number}",
            about=("path:shop/**",),
        )
    ingest(app)
    pack = pack_of(app)
    used = sum(entry.tokens for entry in pack.layers.core if entry.kind == "lesson")
    assert 0 < used <= 400
    assert [entry.kind for entry in pack.layers.core][0] == "rule"
    assert pack.budget.used_tokens <= 4_000


def test_a_lesson_is_read_through_the_access_alone(app: App) -> None:
    learn(app, LESSON, about=("path:shop/**",))
    ingest(app)
    outside = app.seen_by(Access(tenant="default", principal="x", clearance=Confidentiality.PUBLIC))
    stranger = app.seen_by(Access(tenant="other", principal="x", clearance=Confidentiality.RESTRICTED))
    request = Request("", parse_diff(app.range_diff("shop", "HEAD~1..HEAD")), ("shop",))
    selector = plugins.load("selectors", "lessons")()
    assert selector.select(app.reader(("shop",)), request)
    assert not selector.select(outside.reader(("shop",)), request)
    assert not selector.select(stranger.reader(("shop",)), request)
