"""Votes from their sources to items, ranking and metrics: real stores, a real GitHub-shaped server, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from samples import APP, make_repository, write
from strategies import make_item

from context_os import inventory, settings, telemetry
from context_os.app import App, open_app
from context_os.connectors.pull_requests import PullRequests
from context_os.errors import ConfigurationError, NotFound, StoreUnavailable
from context_os.feedback import FeedbackLog, Projection, Standing, Verdict
from context_os.ingestion import Ingestion, find_repository, register
from context_os.ledger import Ledger
from context_os.model import Access, Confidentiality, FeedbackCounters, KnowledgeItem, utcnow
from context_os.packs import build
from context_os.ranking import STRENGTH, rank
from context_os.selectors import Candidate
from context_os.settings import Settings
from context_os.stores import Filter, KnowledgeStore, Record
from context_os.stores.lab import LabStore
from context_os.voting import Ballot, Voting, collect, marker

EVERYTHING = Access(tenant="acme", principal="test", clearance=Confidentiality.RESTRICTED)


def chosen(home: Path, **more: Any) -> Settings:
    return settings.load(
        {"home": str(home), "tenant": "acme", "principal": "ann", "embedding": {"provider": "hashed"}, **more},
        start=home.parent,
    )


def ingest(found: Settings, store: KnowledgeStore, repository: Path) -> None:
    ingestion = Ingestion(found, store, Ledger(found.make_home() / "ledger.db"))
    register(found, ingestion.ledger, "acme/shop", repository)
    for connector in ("symbols", "team_rules"):
        staged = ingestion.stage(connector, find_repository(found, ingestion.ledger, "acme/shop"))
        ingestion.judge(staged, "run-1")
        ingestion.index(staged, "run-1")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "shop")


@pytest.fixture
def app(tmp_path: Path, shop: Path) -> Iterator[App]:
    found = chosen(tmp_path / "home")
    with open_app(found) as app:
        ingest(found, app.store, shop)
        yield app


def function(app: App, name: str = "release") -> KnowledgeItem:
    page = app.store.scan(EVERYTHING, Filter(kinds=("function", "method")))
    return next(item for item in page.items if name in item.metadata.title)


def ballot(*subjects: str, verdict: Verdict = Verdict.HELPFUL, **more: Any) -> Ballot:
    return Ballot(subjects=subjects, verdict=verdict, **more)


def shown(app: App, id: str) -> tuple[int, int]:
    found = app.store.get(EVERYTHING, [id])[0].feedback
    return found.helpful, found.harmful


# What may be voted on


def test_a_vote_shows_and_is_withdrawn_once(app: App) -> None:
    voting, id = Voting(app), function(app).id
    cast = voting.cast(ballot(id, comment="It named the lock."), "cli", "mine")
    assert (cast.new, cast.projected, shown(app, id)) == (1, True, (1, 0))
    assert voting.cast(ballot(id, comment="It named the lock."), "cli", "mine").votes == cast.votes
    with pytest.raises(ConfigurationError, match="another request"):
        voting.cast(ballot(id, verdict=Verdict.HARMFUL), "cli", "mine")
    assert voting.told(id).feedback.helpful == 1
    for _ in range(2):
        voting.withdraw(cast.votes[0].key)
    assert shown(app, id) == (0, 0)
    assert [vote.count for vote in voting.votes(id)] == [1, -1]
    with pytest.raises(NotFound):
        voting.withdraw("nothing")


def test_what_is_not_for_the_caller_is_not_told_from_what_is_not_there(app: App) -> None:
    app.store.upsert(EVERYTHING, [Record(make_item("secret", confidentiality=Confidentiality.RESTRICTED))])
    cleared = Voting(app.seen_by(EVERYTHING))
    key = cleared.cast(ballot("secret"), "cli").votes[0].key
    voting, told = Voting(app), []
    for id in ("secret", "absent"):
        with pytest.raises(NotFound) as refused:
            voting.cast(ballot(id), "cli")
        told.append(str(refused.value).replace(id, "*"))
    assert told[0] == told[1]
    assert (len(voting.votes()), len(cleared.votes())) == (0, 1)
    with pytest.raises(NotFound):
        voting.withdraw(key)
    with pytest.raises(ConfigurationError, match="name what"):
        voting.cast(ballot(), "cli")
    assert voting.cast(ballot("action:review-1"), "cli").new == 1


def test_a_pack_is_voted_on_as_a_whole_or_for_what_it_carried(app: App) -> None:
    pack = app.pack("Where is a session released?", "", None, 2_000)
    carried = {each.id for each in app.kept_packs.get("acme", pack.id or "").carried}  # type: ignore[union-attr]
    voting = Voting(app)
    assert {vote.subject for vote in voting.cast(ballot(pack=(pack.id or "")[:12]), "cli").votes} == carried
    with pytest.raises(NotFound, match="was looked at for the pack"):
        voting.cast(ballot("elsewhere", pack=pack.id or ""), "cli")
    with pytest.raises(NotFound, match="kept"):
        voting.cast(ballot(pack="f" * 32), "cli")


# Exact whatever happens


class Away(LabStore):
    """A real store whose counters cannot be reached."""

    def put_feedback(self, *_: Any) -> set[str]:
        raise StoreUnavailable("away")


def test_votes_are_kept_while_the_store_is_away_and_show_later(app: App) -> None:
    id = function(app).id
    away = App(app.settings, Away(path=app.settings.home / "lab.db"), app.access)
    assert [Voting(away).cast(ballot(id), "cli").projected for _ in range(3)] == [False] * 3
    assert shown(app, id) == (0, 0)
    assert Voting(app).cast(ballot(id), "cli").projected
    assert shown(app, id) == (4, 0)


def test_ingestion_catches_up_and_what_comes_back_shows_its_votes(app: App, shop: Path) -> None:
    id = function(app, "close").id
    away = App(app.settings, Away(path=app.settings.home / "lab.db"), app.access)
    Voting(away).cast(ballot(id), "cli")
    write(shop, "shop/pool.py", "def release(session, reason):\n    return reason\n")
    ingest(app.settings, app.store, shop)
    assert shown(app, id) == (1, 0)
    write(shop, "shop/app.py", APP.replace("Close it and", "Close it soon and"))
    ingest(app.settings, app.store, shop)
    assert shown(app, id) == (1, 0)
    (shop / "shop/app.py").unlink()
    ingest(app.settings, app.store, shop)
    assert app.store.get(EVERYTHING, [id]) == []
    write(shop, "shop/app.py", APP)
    ingest(app.settings, app.store, shop)
    assert shown(app, id) == (1, 0)


def test_a_stale_store_is_mended_by_repair_and_sync(app: App, shop: Path) -> None:
    item = function(app)
    Voting(app).cast(ballot(item.id), "cli")
    app.store.put_feedback(EVERYTHING, {item.id: FeedbackCounters(harmful=9)})
    assert Voting(app).sync() == 1
    assert shown(app, item.id) == (1, 0)
    app.store.delete(EVERYTHING, [item.id])
    ingestion = Ingestion(app.settings, app.store, app.ledger)
    for scope in ingestion.ledger.scopes(app.store.identity, "acme"):
        ingestion.repair(scope, ingestion.reconcile(scope))
    ingest(app.settings, app.store, shop)
    assert shown(app, item.id) == (1, 0)


def test_a_restore_shows_the_votes_of_today(app: App) -> None:
    from context_os.backup import Backups

    id = function(app).id
    backups = Backups.of(app.settings, lambda _: None)
    Voting(app).cast(ballot(id), "cli")
    made = backups.create(app.store, "acme")
    Voting(app).cast(ballot(id), "cli")
    backups.restore(made.name, app.store, "acme", replace=True)
    assert shown(app, id) == (1, 0)
    Projection(FeedbackLog(app.settings.home), app.store, "acme").catch_up()
    assert shown(app, id) == (2, 0)


ITEMS = list("abcdefghij")
WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from context_os import settings
from context_os.app import open_app
from context_os.feedback import Verdict
from context_os.voting import Ballot, Voting

# Each ballot is ten votes.
home, name, threads, each = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chosen = settings.load({"home": home, "tenant": "acme", "embedding": {"provider": "none"}}, start=Path(home))
with open_app(chosen) as app:
    def write(writer):
        for number in range(each):
            verdict = Verdict.HELPFUL if number % 4 else Verdict.HARMFUL
            Voting(app).cast(Ballot(subjects=tuple("abcdefghij"), verdict=verdict), "cli", f"{name}-{writer}-{number}")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
"""


def many_writers(home: Path, environment: dict[str, str], processes: int, threads: int, each: int) -> None:
    command = [sys.executable, "-c", WRITER, str(home)]
    writers = [
        subprocess.Popen([*command, str(number), str(threads), str(each)], env={**os.environ, **environment})
        for number in range(processes)
    ]
    assert [writer.wait() for writer in writers] == [0] * processes


def check_exact(found: Settings, environment: dict[str, str], processes: int, threads: int, each: int) -> None:
    with found.open_store() as store:
        store.upsert(EVERYTHING, [Record(make_item(id)) for id in ITEMS])
        many_writers(found.home, environment, processes, threads, each)
        ballots = processes * threads * each
        expected = (ballots * 3 // 4, ballots // 4)
        told = {item.id: (item.feedback.helpful, item.feedback.harmful) for item in store.get(EVERYTHING, ITEMS)}
        assert told == dict.fromkeys(ITEMS, expected)
        assert sum(votes for *_, votes in FeedbackLog(found.home).tallies()) == ballots * len(ITEMS)


def test_writers_of_two_processes_count_exactly(tmp_path: Path) -> None:
    check_exact(chosen(tmp_path / "home"), {}, processes=2, threads=8, each=12)


BALLOTS = int(os.environ.get("TEST_BALLOTS", "8"))
"""Of ten votes each, of every one of 64 writers; 100 are a thousand votes a writer, and take some minutes."""


@pytest.mark.slow
def test_sixty_four_writers_count_exactly_in_the_laboratory(tmp_path: Path) -> None:
    check_exact(chosen(tmp_path / "home"), {}, processes=4, threads=16, each=BALLOTS)


def _weaviate(home: Path, store: Any) -> tuple[Settings, dict[str, str]]:
    key = store.api_key.get_secret_value() if store.api_key else ""
    about = {"kind": "weaviate", "url": store.url, "grpc_port": store.grpc_port, "collection": store.collection}
    environment = {f"CONTEXT_OS_STORE__{name.upper()}": str(value) for name, value in {**about, "api_key": key}.items()}
    return chosen(home, store={**about, "api_key": key}), environment


@pytest.mark.weaviate
def test_writers_of_two_processes_count_exactly_in_weaviate(tmp_path: Path, weaviate_store: Any) -> None:
    check_exact(*_weaviate(tmp_path / "home", weaviate_store), processes=2, threads=8, each=12)


@pytest.mark.slow
@pytest.mark.weaviate
def test_sixty_four_writers_count_exactly_in_weaviate(tmp_path: Path, weaviate_store: Any) -> None:
    check_exact(*_weaviate(tmp_path / "home", weaviate_store), processes=4, threads=16, each=BALLOTS)


# Ranking


def candidates(*scores: float) -> list[Candidate]:
    return [
        Candidate(item=make_item(f"i{number}"), score=score, reason="said", selector="hybrid")
        for number, score in enumerate(scores)
    ]


def standing(helpful: int, harmful: int) -> Standing:
    return Standing(helpful, harmful, (helpful, harmful))


def test_without_votes_everything_is_as_it_was(app: App) -> None:
    some = candidates(0.3, 0.9, 0.5)
    assert rank(some) == rank(some, {}) == rank(some, {"elsewhere": standing(9, 0), "i0": standing(0, 0)})
    request = app.request("Where is a session released?", "", None)
    before = build(app.select(request), request, 2_000, app._freshness, "").model_dump_json()
    stranger = app.seen_by(app.access.model_copy(update={"tenant": "rival"}))
    stranger.store.upsert(stranger.access, [Record(function(app).model_copy(update={"tenant": "rival"}))])
    assert Voting(stranger).cast(ballot(function(app).id, verdict=Verdict.HARMFUL), "cli").projected
    assert build(app.select(request), request, 2_000, app._freshness, "").model_dump_json() == before


def test_a_vote_moves_a_score_and_the_reason_says_so(app: App) -> None:
    request, id = app.request("Where is a session released?", "", None), function(app).id
    before = {each.item.id: each for each in app.select(request)}
    for verdict in (Verdict.HELPFUL, Verdict.HELPFUL, Verdict.HELPFUL, Verdict.HARMFUL):
        Voting(app).cast(ballot(id, verdict=verdict), "cli")
    after = {each.item.id: each for each in app.select(request)}
    assert after[id].score > before[id].score
    assert after[id].reasons[-1] == "3 found it helpful, 1 harmful"
    assert {key: each.score for key, each in after.items() if key != id} == {
        key: each.score for key, each in before.items() if key != id
    }


@hypothesis_settings(max_examples=200)
@given(st.floats(0.01, 1), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 100))
def test_votes_are_bounded_and_monotone(score: float, helpful: int, harmful: int, more: int) -> None:
    def scored(helpful: int, harmful: int) -> float:
        return rank(candidates(score), {"i0": standing(helpful, harmful)})[0].score

    plain = rank(candidates(score))[0].score
    assert plain * (1 - STRENGTH) - 1e-6 <= scored(helpful, harmful) <= plain * (1 + STRENGTH) + 1e-6
    assert scored(helpful + more, harmful) >= scored(helpful, harmful) >= scored(helpful, harmful + more)
    assert abs(scored(1, 0) / plain - 1) < 0.03 + 1e-4 / plain


# Metrics, erasure


def test_metrics_are_what_the_log_says(app: App) -> None:
    voting, id = Voting(app), function(app).id
    key = voting.cast(ballot(id), "cli").votes[0].key
    voting.cast(ballot(id, verdict=Verdict.HARMFUL), "http")
    voting.withdraw(key)
    log = FeedbackLog(app.settings.home)
    log.forget("acme", lambda vote: vote.verdict is Verdict.HARMFUL)
    found = {
        each.labels[1:]: each.value
        for each in inventory.samples(app.settings.home / "ledger.db")
        if each.metric is telemetry.VOTES
    }
    assert found == {
        ("cli", "helpful"): 1,
        ("cli", "withdrawn"): 1,
        ("http", "harmful"): 1,
        ("http", "erased"): 1,
    }
    signs = sum(value if outcome != "erased" else -value for (_, outcome), value in found.items())
    assert signs == len(list(log.votes("acme")))


def erase(app: App, **about: Any) -> None:
    from context_os.defs.erasing import DagsterHistory
    from context_os.erasure import Erasure, Target

    erasure = Erasure(app.settings, app.store, DagsterHistory(app.settings))
    erasure.perform(erasure.survey(Target(tenant="acme", **about)))


def kept_bytes(app: App) -> bytes:
    return b"".join(file.read_bytes() for file in app.settings.home.glob("feedback.db*"))


def test_a_persons_votes_are_erased_and_their_items_show_it(app: App) -> None:
    id = function(app).id
    Voting(app.seen_by(app.access.model_copy(update={"principal": "Zacharias Quimby"}))).cast(ballot(id), "cli")
    Voting(app).cast(ballot(id, comment="as Quimby said"), "cli")
    Voting(app).cast(ballot(id, verdict=Verdict.HARMFUL), "cli")
    Voting(app.seen_by(app.access.model_copy(update={"principal": "Zacharias Quimby"}))).cast(
        ballot(function(app, "close").id), "cli"
    )
    assert b"Quimby" in kept_bytes(app)
    erase(app, kind="person", patterns=("Quimby",))
    assert b"Quimby" not in kept_bytes(app)
    assert shown(app, id) == (0, 1)
    assert shown(app, function(app, "close").id) == (0, 0)


def test_votes_go_with_their_repository_and_their_tenant(app: App) -> None:
    gone = function(app, "close").id
    Voting(app).cast(ballot(gone, comment="a comment on what is gone"), "cli")
    Voting(app).cast(ballot("action:review-1", comment="stays"), "cli")
    app.store.delete(EVERYTHING, [gone])  # whoever erases later does not see it any more
    Voting(app).cast(ballot(function(app).id, comment="a comment on what is there"), "cli")
    erase(app, kind="repository", repository="acme/shop")
    assert [vote.comment for _, vote in FeedbackLog(app.settings.home).votes("acme")] == ["stays"]
    assert b"a comment on" not in kept_bytes(app)
    assert b"acme/shop" not in kept_bytes(app)
    erase(app, kind="tenant")
    assert b"acme" not in kept_bytes(app)


# Findings


def test_findings_are_imported_once(app: App, tmp_path: Path) -> None:
    id, other = function(app).id, function(app, "close").id
    file = tmp_path / "findings.jsonl"
    lines = [
        {"id": "f1", "verdict": "accepted", "items": [id], "by": "bo", "at": "2026-01-02T03:04:05Z"},
        {"id": "f2", "verdict": "dismissed", "items": [id, other], "actor": "automation"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert Voting(app).load(file).new == 3
    assert (shown(app, id), shown(app, other)) == ((1, 1), (0, 1))
    file.write_text(json.dumps(lines))
    assert Voting(app).load(file).new == 0


def test_a_file_with_anything_wrong_is_refused_whole_with_every_problem(app: App, tmp_path: Path) -> None:
    good = {"id": "f1", "verdict": "accepted", "items": [function(app).id]}
    lines = [
        good,
        {**good, "verdict": "fine"},
        {"id": "f3", "verdict": "accepted", "items": ["absent"]},
        {**good, "items": []},
    ]
    file = tmp_path / "findings.json"
    file.write_text(json.dumps(lines))
    with pytest.raises(ConfigurationError) as refused:
        Voting(app).load(file)
    assert all(f"entry {number}" in str(refused.value) for number in (2, 3, 4))
    file.write_text("{}\n{nothing\n[")
    with pytest.raises(ConfigurationError, match="line 2(.|\n)*line 3"):
        Voting(app).load(file)
    assert Voting(app).votes() == []


# GitHub


class GitHub(ThreadingHTTPServer):
    """As much of GitHub's API as a look at review comments asks for. ``graphql`` off answers 404 there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.comments: list[dict[str, Any]] = []
        self.reactions: dict[int, list[dict[str, Any]]] = {}
        self.resolved: dict[int, str] = {}
        self.graphql = True
        self.asked: list[str] = []

    def comment(self, id: int, body: str, login: str = "helper[bot]", **more: Any) -> None:
        now = utcnow().isoformat()
        url = f"https://github.test/acme/shop/pull/1#discussion_r{id}"
        about = {"id": id, "html_url": url, "user": {"login": login, "type": "User"}, "body": body, "line": 3}
        self.comments.insert(
            0,
            {
                **about,
                "created_at": now,
                "updated_at": now,
                "pull_request_url": "https://x/repos/acme/shop/pulls/1",
                **more,
            },
        )

    def react(self, id: int, login: str, content: str, type: str = "User") -> None:
        user = {"login": login, "type": type}
        self.reactions.setdefault(id, []).append({"content": content, "user": user, "created_at": utcnow().isoformat()})

    def unreact(self, id: int, login: str) -> None:
        self.reactions[id] = [each for each in self.reactions[id] if each["user"]["login"] != login]

    def told(self) -> list[dict[str, Any]]:
        """The comments with the counts of their reactions."""
        return [{**each, "reactions": {**self._counts(each["id"]), "url": "https://x"}} for each in self.comments]

    def _counts(self, id: int) -> dict[str, int]:
        contents = [each["content"] for each in self.reactions.get(id, [])]
        return {content: contents.count(content) for content in ("+1", "-1", "heart", "confused", "eyes")}

    def threads(self) -> Any:
        nodes = [
            {
                "isResolved": each["id"] in self.resolved,
                "resolvedBy": {"login": self.resolved[each["id"]], "__typename": "User"}
                if each["id"] in self.resolved
                else None,
                "comments": {"nodes": [{"databaseId": each["id"]}]},
            }
            for each in self.comments
        ]
        threads = {"pageInfo": {"hasNextPage": False, "endCursor": None}, "nodes": nodes}
        return {"data": {"repository": {"pullRequest": {"reviewThreads": threads}}}}


class _Answers(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/v3")
        self.server.asked.append(path)
        if path == "/repos/acme/shop/pulls/comments":
            self._answer(200, self.server.told())
        elif path.endswith("/reactions"):
            self._answer(200, self.server.reactions.get(int(path.split("/")[-2]), []))
        else:
            self._answer(404, {"message": "Not Found"})

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.graphql:
            self._answer(200, self.server.threads())
        else:
            self._answer(404, {"message": "Not Found"})

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def reviewing(app: App, github: GitHub) -> Voting:
    options = {
        "base_url": f"http://127.0.0.1:{github.server_port}/api/v3",
        "reviewer": "helper[bot]",
        "seconds_between_requests": 0,
        "patience": 0,
    }
    found = app.settings.model_copy(update={"connectors": {"pull_requests": options}})
    other = App(found, app.store, app.access)
    return Voting(other)


def collected(voting: Voting) -> Any:
    return collect(voting, voting.app.location("acme/shop"), 90)


def test_reactions_become_votes_and_what_is_taken_back_is_withdrawn(reviewing: Voting, github: GitHub) -> None:
    app = reviewing.app
    pack = app.pack("Where is a session released?", "", None, 2_000).id or ""
    one = function(app).id
    github.comment(1, f"Take the lock.\n{marker(pack, [one])}")
    github.react(1, "bo", "+1")
    github.react(1, "bo", "heart")  # one person, one vote
    github.react(1, "cy", "confused")
    github.react(1, "ci[bot]", "+1", "Bot")
    github.react(1, "helper[bot]", "+1")
    github.react(1, "di", "eyes")
    found = collected(reviewing)
    assert (found.comments, found.looked_at, found.new, found.withdrawn) == (1, 1, 2, 0)
    assert (found.resolutions, found.refused, found.projected) == (True, (), True)
    assert shown(app, one) == (1, 1)
    asked = len(github.asked)
    assert collected(reviewing).looked_at == 0
    assert [path for path in github.asked[asked:] if path.endswith("reactions")] == []
    github.unreact(1, "cy")
    found = collected(reviewing)
    assert (found.new, found.withdrawn, shown(app, one)) == (0, 1, (1, 0))
    github.react(1, "cy", "confused")
    assert (collected(reviewing).new, shown(app, one)) == (1, (1, 1))
    github.resolved[1] = "ed"
    assert (collected(reviewing).new, shown(app, one)) == (1, (2, 1))
    del github.resolved[1]
    assert (collected(reviewing).withdrawn, shown(app, one)) == (1, (1, 1))
    assert {vote.principal for vote in reviewing.votes(one)} == {"github:bo", "github:cy", "github:ed"}


def test_comments_are_untrusted(reviewing: Voting, github: GitHub) -> None:
    app = reviewing.app
    pack = app.pack("Where is a session released?", "", None, 2_000).id or ""
    github.comment(1, marker(pack), login="mallory")
    github.comment(2, marker("f" * 32))
    github.comment(3, marker(pack, ["elsewhere"]))
    github.comment(4, "no marker")
    for number in range(1, 5):
        github.react(number, "bo", "+1")
    found = collected(reviewing)
    assert (found.comments, found.new) == (2, 0)
    assert [url[-1] for url, _ in found.refused] == ["3", "2"]
    assert reviewing.votes() == []


def test_without_graphql_changed_lines_stand_for_resolved(reviewing: Voting, github: GitHub) -> None:
    app = reviewing.app
    pack = app.pack("Where is a session released?", "", None, 2_000).id or ""
    one = function(app).id
    github.graphql = False
    github.comment(1, marker(pack, [one]), line=None, position=None)
    found = collected(reviewing)
    assert (found.resolutions, found.new, shown(app, one)) == (False, 1, (1, 0))


def test_nobody_reviews_unless_somebody_is_named(app: App) -> None:
    with pytest.raises(ConfigurationError, match="reviewer"):
        collected(Voting(app))
    assert "reviewer" in PullRequests.transport  # naming one reads nothing again


def test_the_job_collects_and_catches_up(reviewing: Voting, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    from context_os.definitions import defs
    from context_os.defs.resources import Workspace

    app = reviewing.app
    pack = app.pack("Where is a session released?", "", None, 2_000).id or ""
    one = function(app).id
    github.comment(1, marker(pack, [one]))
    github.react(1, "bo", "rocket")
    options = app.settings.connectors["pull_requests"]
    file = app.settings.home.parent / "context-os.toml"
    told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    file.write_text(f'home = "{app.settings.home}"\ntenant = "acme"\n[connectors.pull_requests]\n{told}\n')
    monkeypatch.chdir(file.parent)
    with dg.DagsterInstance.ephemeral() as instance:
        done = defs.resolve_job_def("collect_feedback").execute_in_process(
            instance=instance, resources={"workspace": Workspace()}
        )
    assert done.success
    assert shown(app, one) == (1, 0)


def test_many_voters_at_once_in_one_process(app: App) -> None:
    id = function(app).id
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Voting(app).cast(ballot(id), "cli"), range(40)))
    assert shown(app, id) == (40, 0)
