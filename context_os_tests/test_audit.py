"""Audits: every sentence of a pack ends at a commit that holds it, whoever deletes Dagster's runs, and nobody is told
what they may not read."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from samples import clone_of, git, make_repository, write
from test_cli import Terminal

from context_os import plugins, settings
from context_os.app import App, open_app
from context_os.audit import HOLDING, Audit
from context_os.errors import ConfigurationError, NotFound
from context_os.graph import MOST_SHOWN, Node, as_dot, as_page, as_text
from context_os.ingestion import Ingestion, find_repository, register
from context_os.kept_packs import KeptPack, KeptPacks
from context_os.ledger import Ledger
from context_os.model import Access, Actor, Confidentiality, LineageAction, LineageRecord, utcnow
from context_os.settings import Settings
from context_os.stores import Filter, Record

CONNECTORS = ("bug_specs", "commits", "documents", "pull_requests", "symbols", "team_rules")


def configured(home: Path) -> Settings:
    return settings.load(
        {"home": str(home), "store": {"kind": "lab"}, "embedding": {"provider": "none"}}, start=home.parent
    )


def fill(chosen: Settings, location: Path, name: str, revision: str | None = None, *connectors: str) -> None:
    """Ingest without Dagster: an audit needs none."""
    ledger = Ledger(chosen.make_home() / "ledger.db")
    register(chosen, ledger, name, location, revision)
    with chosen.open_store() as store:
        ingestion = Ingestion(chosen, store, ledger)
        for connector in connectors or CONNECTORS:
            staged = ingestion.stage(connector, find_repository(chosen, ledger, name))
            ingestion.judge(staged, "0b0d7d55-7d3e-5b3c-9b55-0f2b7a0f6d31")
            ingestion.index(staged, "0b0d7d55-7d3e-5b3c-9b55-0f2b7a0f6d31")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("audit")
    make_repository(folder / "shop")
    found = configured(folder / "home")
    fill(found, folder / "shop", "shop")
    return found


@pytest.fixture
def app(chosen: Settings) -> Iterator[App]:
    with open_app(chosen) as found:
        yield found


def nodes(root: Node) -> Iterator[Node]:
    yield root
    for child in root.children:
        yield from nodes(child)


def states(app: App, kept: KeptPack) -> Counter[str]:
    """How the commit behind every line of a pack holds it; lines of the pack itself and of the request have none."""
    audit, found = Audit(app), Counter[str]()
    for span in kept.spans:
        for line in range(span.first_line, span.last_line + 1):
            leaves = [node for node in nodes(audit.pack(kept, [line])) if not node.children]
            assert len(leaves) == 1
            assert leaves[0].kind == ("commit" if span.id else "source")
            if span.id:
                assert leaves[0].state in HOLDING, (kept.prompt.split("\n")[line - 1], leaves[0])
                found[leaves[0].state] += 1
    return found


def kept(app: App, question: str, repository: str = "shop", max_tokens: int = 8_000) -> KeptPack:
    built = app.pack(question, "", repository, max_tokens)
    assert built.id
    found = app.kept_packs.get(app.access.tenant, built.id)
    assert found is not None
    assert found.prompt == built.prompt
    return found


def test_every_sentence_of_a_pack_ends_at_a_commit_that_holds_it(app: App) -> None:
    total = Counter[str]()
    for question in ("how is a session closed", "sockets leak", "which rule about the lock", "tests of the pool"):
        total += states(app, kept(app, question))
    assert total["verbatim"] > 60
    assert total["itself"] > 0


def _real(tmp_path: Path, location: Path, revision: str, questions: list[str]) -> Counter[str]:
    chosen = configured(tmp_path / "home")
    fill(chosen, location, "real", revision)
    total = Counter[str]()
    with open_app(chosen) as app:
        for question in questions:
            total += states(app, kept(app, question, "real"))
        base = app.range_diff("real", "HEAD")
        built = app.pack("", base, "real", 8_000)
        change = app.kept_packs.get(app.access.tenant, built.id)
        assert change is not None
        total += states(app, change)
    return total


@pytest.mark.slow
def test_every_sentence_of_packs_about_this_project(tmp_path: Path) -> None:
    checkout = Path(__file__).resolve().parent.parent
    if subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("this checkout has no history")
    questions = ["how does the ledger advance", "which expectations quarantine a row", "vectors are cached by text"]
    total = _real(tmp_path, checkout, "HEAD", questions)
    assert total.total() > 500
    assert total["verbatim"] > 0.6 * total.total(), total
    print(dict(total))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pallets/flask", "psf/requests"])
def test_every_sentence_of_packs_about_other_projects(tmp_path: Path, name: str) -> None:
    repository = clone_of(name)
    questions = ["how is a session closed", "redirects are followed", "the documentation of the command line"]
    total = _real(tmp_path, repository, "HEAD", questions)
    assert total.total() > 300
    assert total["verbatim"] > 0.6 * total.total(), total
    print(name, dict(total))


def test_a_sentence_is_found_whatever_its_line_breaks(app: App) -> None:
    found = kept(app, "how is a session closed")
    audit = Audit(app)
    lines = audit.lines_with(found, 'def close(self, reason):\n  """Close it and give')
    said = [found.prompt.split("\n")[line - 1].strip() for line in lines]
    assert said == ["def close(self, reason):", '"""Close it and give the socket back."""']
    commit = [node for node in nodes(audit.pack(found, lines)) if node.kind == "commit"]
    assert [each.state for each in commit] == ["verbatim"]
    with pytest.raises(NotFound, match="does not say"):
        audit.lines_with(found, "nobody said this")
    with pytest.raises(NotFound, match="no line"):
        audit.pack(found, [10_000])


def test_what_the_commit_does_not_hold_is_told(app: App, chosen: Settings) -> None:
    found = kept(app, "how is a session closed")
    carried = next(each for each in found.carried if each.title == "Session.close")
    audit = Audit(app)
    assert audit.held(carried).state == "verbatim"
    assert audit.held(carried, ["something else"]).state == "rendered"
    moved = carried.model_copy(update={"source": carried.source.model_copy(update={"metadata": {"blob": "0" * 40}})})
    assert audit.held(moved, ["something else"]).state == "absent"
    gone = carried.model_copy(update={"source": carried.source.model_copy(update={"revision": "1" * 40})})
    assert audit.held(gone).state == "unreachable"
    away = carried.model_copy(update={"source": carried.source.model_copy(update={"path": "shop/no.py"})})
    assert audit.held(away).state == "absent"
    none = carried.model_copy(update={"source": carried.source.model_copy(update={"revision": ""})})
    assert audit.held(none).state == "none"


def test_a_working_tree_is_told_as_such_until_it_is_committed(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "shop")
    write(folder, "shop/fresh.py", "def fresh(session):\n    return session  # not committed\n")
    chosen = configured(tmp_path / "home")
    fill(chosen, folder, "shop", None, "symbols")
    head = git(folder, "rev-parse", "HEAD")
    with open_app(chosen) as app:
        found = kept(app, "fresh session not committed")
        carried = {each.title: each for each in found.carried}
        assert carried["fresh"].source.revision == f"{head}+"
        held = Audit(app).held(carried["fresh"])
        assert (held.state, held.commit) == ("worktree", head)
        assert "nearest" in held.detail
        # What the commit has as well is held by it, though the tree as a whole differed.
        assert Audit(app).held(carried["Session"]).state == "verbatim"
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "Commit it")
        later = Audit(app).held(carried["fresh"])
        assert (later.state, later.commit) == ("verbatim", git(folder, "rev-parse", "HEAD"))
        assert "committed as this" in later.detail


def test_items_that_changed_or_went_are_told_from_what_the_pack_carried(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "shop")
    chosen = configured(tmp_path / "home")
    fill(chosen, folder, "shop", None, "symbols")
    with open_app(chosen) as app:
        found = kept(app, "how is a session closed and released by the pool")
    first = git(folder, "rev-parse", "HEAD")
    (folder / "shop" / "pool.py").unlink()
    write(folder, "shop/app.py", "class Session:\n    def close(self, reason):\n        return reason\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Without a pool")
    fill(chosen, folder, "shop", None, "symbols")
    with open_app(chosen) as app:
        told = {node.title: node for node in nodes(Audit(app).pack(found)) if node.kind == "item"}
        assert told["function release"].state == "gone since"
        assert told["method Session.close"].state == "changed since"
        assert set(states(app, found)) <= {"verbatim", "rendered"}
        assert {node.id for node in nodes(Audit(app).pack(found)) if node.kind == "commit"} == {first}


def test_nothing_restricted_is_told_to_others(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "shop")
    chosen = configured(tmp_path / "home")
    fill(chosen, folder, "shop", None, "symbols")
    everything = Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED)
    with open_app(chosen, Confidentiality.RESTRICTED) as app:
        item = next(
            each for each in app.store.scan(everything, Filter()).items if each.metadata.title == "Session.close"
        )
        level = {"confidentiality": Confidentiality.RESTRICTED, "checksum": "raised"}
        app.store.upsert(
            everything, [Record(item.model_copy(update={"metadata": item.metadata.model_copy(update=level)}))]
        )
        found = kept(app, "how is a session closed")
        assert any(each.id == item.id for each in found.carried)
        assert any(node.id == item.id for node in nodes(Audit(app).pack(found)))
        sha = git(folder, "rev-parse", "HEAD")
        assert any(node.id == item.id for node in nodes(Audit(app).commit("shop", sha)))
    with open_app(chosen) as app:
        told = list(nodes(Audit(app).pack(found)))
        assert told[1:]
        assert not any(node.id == item.id or "Session.close" in f"{node.title}{node.detail}" for node in told)
        (line,) = Audit(app).lines_with(found, "def close(self, reason):")[:1]
        hidden = [span for span in found.spans if span.id == item.id and span.first_line <= line <= span.last_line]
        if hidden:
            with pytest.raises(NotFound):
                Audit(app).pack(found, [line])
        assert not any(node.id == item.id for node in nodes(Audit(app).commit("shop", sha)))
        with pytest.raises(NotFound, match="no item"):
            Audit(app).item(item.id)
        with pytest.raises(NotFound, match="is kept"):
            Audit(
                App(chosen, app.store, Access(tenant="other", principal="x", clearance=everything.clearance))
            ).find_pack(found.id)


def test_a_commit_leads_down_to_items_derived_ones_and_packs(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "shop")
    chosen = configured(tmp_path / "home")
    fill(chosen, folder, "shop")
    everything = Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED)
    with open_app(chosen) as app:
        item = next(
            each for each in app.store.scan(everything, Filter()).items if each.metadata.title == "Session.close"
        )
        made = LineageRecord(
            timestamp=utcnow(), actor=Actor.AUTOMATION, action=LineageAction.CREATED, derived_from=(item.id,)
        )
        lesson = item.model_copy(
            update={
                "id": "0b0d7d55-7d3e-5b3c-9b55-0f2b7a0f6d31",
                "kind": "lesson",
                "metadata": item.metadata.model_copy(update={"lineage": (made,), "title": "Close once"}),
                "source": item.source.model_copy(
                    update={"revision": "", "repository": "", "path": "", "type": "playbook"}
                ),
            }
        )
        app.store.upsert(everything, [Record(lesson)])
        found = kept(app, "how is a session closed")
        tree = Audit(app).commit("shop", "HEAD")
        assert tree.id == git(folder, "rev-parse", "HEAD")
        (below,) = [node for node in tree.children if node.id == item.id]
        kinds = {(child.kind, child.id) for child in below.children}
        assert {("item", lesson.id), ("pack", found.id)} <= kinds
        up = Audit(app).item(lesson.id)
        assert any(node.id == item.id and node.kind == "item" for node in up.children)
        merge = git(folder, "log", "--merges", "-1", "--format=%H")
        assert [node.title for node in Audit(app).commit("shop", merge[:10]).children] == [
            "pull_request #1 Test opening a session"
        ]
        with pytest.raises(NotFound, match="nothing that you may read"):
            Audit(app).commit("shop", git(folder, "rev-parse", f"{merge}^2"))


def test_packs_are_kept_once_found_by_their_beginning_and_go_with_age(app: App, tmp_path: Path) -> None:
    first = kept(app, "how is a session closed")
    assert kept(app, "how is a session closed").id == first.id
    assert Audit(app).find_pack(first.id[:10]).id == first.id
    other = kept(app, "what does the pool do")
    assert other.id != first.id
    carried = {each.id for each in first.carried} & {each.id for each in other.carried}
    assert {pack.id for pack in app.kept_packs.carrying("default", carried)} >= {first.id, other.id}
    none = KeptPacks(tmp_path / "packs.db", timedelta(0))
    built = app.pack("how is a session closed", "", "shop", 2_000)
    assert none.keep(built, app.request("x", "", "shop"), app.access, []) is None
    short = KeptPacks(tmp_path / "packs.db", timedelta(milliseconds=1))
    proposed = app.propose(app.request("how is a session closed", "", "shop"))
    candidates = [each for found in proposed.values() for each in found]
    for number in range(64):
        short.keep(built, app.request(f"question {number}", "", "shop"), app.access, candidates)
    assert len(list(short.all("default"))) < 64
    assert short.forget("default", lambda pack: True) >= 0
    assert list(short.all("default")) == []


def test_a_pack_that_cannot_be_kept_is_handed_out_all_the_same(chosen: Settings) -> None:
    file = chosen.home / "packs.db"
    file.rename(chosen.home / "saved.db")
    file.mkdir()
    try:
        with open_app(chosen) as app:
            built = app.pack("how is a session closed", "", "shop", 2_000)
    finally:
        file.rmdir()
        (chosen.home / "saved.db").rename(file)
    assert (built.id, bool(built.prompt)) == ("", True)


def test_a_pack_in_a_file(app: App, tmp_path: Path) -> None:
    built = app.pack("how is a session closed", "", "shop", 4_000)
    whole = write(tmp_path, "pack.json", built.model_dump_json())
    assert Audit(app).find_pack(str(whole)).id == built.id
    unkept = built.model_copy(update={"id": "f" * 32})
    file = write(tmp_path, "unkept.json", unkept.model_dump_json())
    assert set(states(app, Audit(app).find_pack(str(file)))) <= HOLDING
    bare = write(tmp_path, "bare.json", unkept.model_copy(update={"explain": ()}).model_dump_json())
    with pytest.raises(ConfigurationError, match="does not say where its lines come from"):
        Audit(app).find_pack(str(bare))
    with pytest.raises(ConfigurationError, match="holds no pack"):
        Audit(app).find_pack(str(write(tmp_path, "no.json", "{}")))


def test_the_pictures(app: App) -> None:
    tree = Audit(app).pack(kept(app, "how is a session closed"))
    text = "\n".join(as_text(tree))
    assert "commit" in text
    assert "[verbatim]" in text
    dot = as_dot(tree)
    assert dot.count(" -> ") >= len(tree.children)
    evil = Node(kind="item", id="x", title='<script>alert(1)</script> "quoted"', children=tree.children)
    page = as_page(evil, "<b>Audit</b>")
    assert "<script>" not in page
    assert "<b>Audit" not in page
    assert page.count('class="node') == len({(n.kind, n.id, n.state) for n in nodes(evil)})
    many = Node(
        kind="commit", id="c", title="c", children=tuple(Node(kind="item", id=str(n), title="t") for n in range(99))
    )
    assert f"and {99 - MOST_SHOWN} more" in as_page(many, "many")
    assert len(list(as_text(many))) == MOST_SHOWN + 3


@pytest.mark.browser
def test_the_page_is_drawn_by_a_real_browser(app: App, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    tree = Audit(app).pack(kept(app, "how is a session closed"))
    file = write(tmp_path, "audit.html", as_page(tree, "Audit"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.on("request", lambda request: None if request.url.startswith("file:") else told.append(request.url))
        page.goto(f"file://{file}")
        boxes = [box.bounding_box() for box in page.locator("svg .node").all()]
        overflow = page.evaluate(
            "[...document.querySelectorAll('.node')].filter(n => [...n.querySelectorAll('text')].some(t =>"
            " t.getBBox().x + t.getBBox().width > n.querySelector('rect').getBBox().width)).length"
        )
        browser.close()
    assert told == []
    assert overflow == 0
    corners = {(round(box["x"]), round(box["y"])) for box in boxes if box}
    assert len(corners) == len(boxes) == len({(node.kind, node.id, node.state) for node in nodes(tree)})


def test_audits_outlive_dagsters_runs(tmp_path: Path) -> None:
    make_repository(tmp_path / "shop")
    terminal = Terminal(tmp_path)
    run = terminal.json("ingest", "shop")["run_id"]
    pack = terminal.json("pack", "--question", "how is a session closed", "--explain")
    before = terminal.json("audit", "pack", pack["id"])
    terminal.json("audit", "export", "--out", "journal.jsonl")
    terminal.json("audit", "export", "--openlineage", "--out", "events.jsonl")
    shutil.rmtree(tmp_path / "home" / "dagster")
    assert terminal.json("audit", "pack", pack["id"]) == before
    runs = [node for item in before["children"] for node in item["children"]]
    assert {node["id"].split()[0] for node in runs} == {run}
    assert all("added" in node["detail"] for node in runs)
    assert terminal.json("audit", "verify", "journal.jsonl")["lines"] == len(plugins.names("connectors"))
    terminal.json("audit", "export", "--out", "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "journal.jsonl").read_bytes()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(events) == 2 * len(plugins.names("connectors"))
    assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in events} == {run}
    text = terminal.run("audit", "pack", pack["id"], "--sentence", "return release(self, reason)")
    assert "[verbatim]" in text.stdout
    assert terminal.run("audit", "pack", pack["id"], "--dot").stdout.startswith("digraph")
    assert terminal.run("audit", "pack", pack["id"], "--html", "audit.html").returncode == 0
    assert "<svg" in (tmp_path / "audit.html").read_text()
    assert terminal.run("audit", "item", pack["explain"][1]["id"] or "x").returncode in {0, 1}
    assert terminal.run("audit", "commit", "shop", "HEAD").returncode == 0
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3] + ["{}\n"]))
    assert terminal.run("audit", "verify", "journal.jsonl").returncode == 3
