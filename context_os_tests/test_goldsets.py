"""Goldsets: their files, cases made of real history, and a gate that catches every kind of regression and no other."""

from __future__ import annotations

import json
import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from samples import git, make_repository, write
from servers import Model

from context_os import evaluation, goldsets, packs, settings
from context_os.cli import cli
from context_os.errors import ConfigurationError, NotFound, SourceRefused, StoreUnavailable
from context_os.evaluation import Comparison, Evaluation, Run, accept, bootstrap, compare, mcnemar
from context_os.git import Git
from context_os.goldsets import Case, Folder, Place, Things
from context_os.model import Access, Confidentiality, utcnow
from context_os.selectors.hybrid import Hybrid
from context_os.selectors.neighbours import Neighbours
from context_os.settings import PlaybookSettings, Settings
from context_os.stores import Filter, Page, Record, lab
from context_os.stores.lab import LabStore

WORDS = re.findall(
    r"\w+",
    "amber basil cedar delta ember fjord grove heron inlet jolly kayak lilac maple nylon ocean pearl quartz raven",
)
CASES = 10
CHECKOUT = Path(__file__).resolve().parent.parent

STORE = '''"""Where {0} orders are kept."""


def keep_{0}(order, ledger):
    """Write one {0} order down."""
    ledger["{0}"] = order
    return order


def drop_{0}(ledger):
    """Forget the {0} order."""
    return ledger.pop("{0}", None)
'''
VIEW = '''"""How {0} orders are shown."""


def draw_{0}(order, page):
    """One line of the page for a {0} order."""
    return page.line("{0}", order)


def blank_{0}(page):
    """The line of a {0} order that was dropped."""
    return page.line("{0}", "")
'''
RULE = """---
title: Draw in one pass
globs: ["shop/**"]
---
A page is drawn in one pass, from top to bottom.
"""
SECRET = """---
title: Prices of partners
globs: ["shop/**"]
confidentiality: restricted
---
Partners pay half.
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop in which each pull request edits how one kind of order is kept and how it is shown."""
    folder = tmp_path_factory.mktemp("goldsets") / "shop"
    folder.mkdir()
    git(folder, "init", "-q")
    for word in WORDS:
        write(folder, f"shop/{word}_store.py", STORE.format(word))
        write(folder, f"shop/{word}_view.py", VIEW.format(word))
    write(folder, ".context-os/rules/draw.md", RULE)
    write(folder, ".context-os/rules/prices.md", SECRET)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "A shop")
    base = git(folder, "rev-parse", "HEAD")
    for number, word in enumerate(WORDS[:CASES], start=1):
        git(folder, "checkout", "-q", "--detach", base)
        write(folder, f"shop/{word}_store.py", STORE.format(word).replace("return order", f"return {word}_of(order)"))
        write(folder, f"shop/{word}_view.py", VIEW.format(word).replace(", order)", f", {word}_of(order))"))
        git(folder, "commit", "-qam", f"Orders of {word} are wrapped (#{number})")
        git(folder, "branch", f"pull-{number}")
    git(folder, "checkout", "-q", "main")
    return folder


def make(folder: Path, history: Path) -> Folder:
    found = Folder(folder)
    repository = Git(history)
    cases = [goldsets.from_commit(repository, "shop", f"pull-{number}") for number in range(1, CASES + 1)]
    rule = Things(rules=("Draw in one pass",))
    cases = [
        each.model_copy(
            update={
                "max_tokens": 520,
                "expected": each.expected.model_copy(update={"rules": rule.rules}),
                "forbidden": Things(paths=(".context-os/rules/prices.md",)),
            }
        )
        for each in cases
    ]
    found.add(cases, "shop", Place(source=str(history)))
    return found


class World:
    """One goldset over that history, with its accepted baseline and one home for all of its runs."""

    def __init__(self, folder: Path, history: Path) -> None:
        self.settings = settings.load({"home": str(folder / "home")}, start=folder)
        self.folder = make(folder / "goldsets" / "shop", history)
        self.baseline = self.run()
        accept(self.folder, self.baseline)

    def run(self, chosen: Settings | None = None, **options: Any) -> Run:
        return Evaluation(chosen or self.settings, self.folder, **options).run()

    def gate(self, chosen: Settings | None = None, **options: Any) -> Comparison:
        return compare(self.run(chosen, **options), evaluation.baseline_of(self.folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, history: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), history)


# The gate: nothing planted


@pytest.mark.slow
def test_twenty_identical_runs_raise_no_alarm(world: World) -> None:
    baseline = evaluation.baseline_of(world.folder)
    for _ in range(20):
        run = Evaluation(world.settings, world.folder).run(limit=4)
        found = compare(run, baseline)
        assert (found.regressions, found.won, found.lost, found.pairs) == ((), (), (), 4)
        assert {each.mean for each in found.differences} == {0.0}


def test_the_baseline_holds_what_was_expected(world: World) -> None:
    assert not world.baseline.partial
    assert world.baseline.summary["complete"] == 1.0
    for each in world.baseline.results:
        assert {trace.kind for trace in each.traces} == {"path", "symbol", "rule"}
        assert {trace.fate.partition(" (")[0] for trace in each.traces} == {"in the pack"}
        assert each.tokens <= each.max_tokens == 520
    kept = evaluation.read_run(world.folder.baseline)
    assert kept == world.baseline, "what is written is what is read"


# The gate: each kind of regression, planted for real


@pytest.mark.parametrize("selector", [Hybrid, Neighbours])
def test_a_selector_that_is_off(world: World, monkeypatch: pytest.MonkeyPatch, selector: type) -> None:
    monkeypatch.setattr(selector, "select", lambda *_: [])
    found = world.gate()
    told = f"the selector {selector.name} proposes nothing any more; it did in {CASES} cases"
    assert told in found.regressions
    if selector is Hybrid:
        assert len(found.lost) == CASES
        assert "no selector proposed it" in found.lost[0].why[0]
        assert re.search(r"proposed by nobody, before by hybrid \(rank \d+, 0\.\d+\)", found.lost[0].why[0])


def test_a_weight_that_is_flipped(world: World) -> None:
    weights = (Path(settings.__file__).parent / "data" / "weights.toml").read_text(encoding="utf-8")
    before, table, after = weights.partition("[change.lexical.document]")
    held, bracket, rest = after.partition("\n[")
    flipped = before + table + held.replace(" = ", " = -") + bracket + rest  # one alone is stood in for by others
    assert flipped != weights
    file = write(world.settings.home, "flipped.toml", flipped)
    found = world.gate(world.settings.model_copy(update={"weights": file}))
    assert found.p_value < 0.01
    assert any("no longer complete" in each for each in found.regressions)
    assert any(each.startswith("recall fell by") for each in found.regressions)
    assert len(found.lost) == CASES
    assert "were left, was in the pack (active, body); proposed by hybrid (rank" in found.lost[0].why[0]
    assert any("other weights" in note for note in found.notes)


def test_an_expired_item_that_is_returned(world: World) -> None:
    found = world.gate(open_store=lambda chosen: Timeless(path=chosen.home / "lab.db"))
    expired = [each for each in found.regressions if "shows what the asker may not read: rule" in each]
    assert len(expired) == CASES
    assert "it expired 20" in expired[0]


class Timeless(LabStore):
    """A store that has an expired rule and forgets that it expired."""

    def scan(self, access: Access, filter: Filter, cursor: str | None = None, limit: int = 100) -> Page:
        page = super().scan(access, filter, cursor, limit)
        expired = [_expired(item) for item in page.items if item.kind == "rule"]
        self.upsert(access, [Record(item) for item in expired])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lab, "utcnow", lambda: utcnow() - timedelta(days=9))
            late = super().scan(access, filter, cursor, limit)
        return late if expired else page


def _expired(rule: Any) -> Any:
    life = {"ttl": timedelta(days=1), "updated_at": utcnow() - timedelta(days=5)}
    metadata = rule.metadata.model_copy(update=life)
    return rule.model_copy(update={"id": f"late-{rule.id.removeprefix('late-')}", "metadata": metadata})


def test_a_budget_that_is_overrun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build = packs.build

    def generous(ranked: Any, request: Any, max_tokens: int, *rest: Any) -> packs.ContextPack:
        return build(ranked, request, 2 * max_tokens, *rest)

    monkeypatch.setattr(packs, "build", generous)
    found = world.gate()
    assert len(found.regressions) == CASES
    assert re.search(r"pull-1: exceeds its ceiling: [\d,]+ tokens, the ceiling is 520", found.regressions[0])


def test_a_rule_that_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_CORE_SHARE", 0.0)
    found = world.gate()
    dropped = [each for each in found.regressions if "the rule Draw in one pass was dropped" in each]
    assert len(dropped) == CASES
    assert re.search("dropped: (left out|not whole)", dropped[0])


def test_one_dropped_rule_is_enough(world: World) -> None:
    first, *others = world.baseline.results
    traces = tuple(each.model_copy(update={"found": each.kind != "rule"}) for each in first.traces)
    worse = first.model_copy(update={"traces": traces, "recall": 0.67, "complete": False})
    run = world.baseline.model_copy(update={"results": (worse, *others)})
    (only,) = compare(run, world.baseline).regressions
    assert "the rule Draw in one pass was dropped" in only


def test_what_an_asker_may_not_read(world: World, history: Path, tmp_path: Path) -> None:
    """A restricted rule is expected by one asker, forbidden to another, and everything to another tenant's."""
    base = git(history, "rev-parse", "main")
    asked = {"repository": "shop", "base": base, "head": git(history, "rev-parse", "pull-1")}
    secret = Things(rules=("Prices of partners",))
    cases = [
        Case(id="insider", expected=secret, clearance=Confidentiality.RESTRICTED, **asked),
        Case(id="outsider", expected=secret, clearance=Confidentiality.INTERNAL, **asked),
        Case(id="another tenant", forbidden=Things(paths=("**",)), tenant="intruder", **asked),
        Case(id="leaking", forbidden=secret, clearance=Confidentiality.RESTRICTED, **asked),
    ]
    folder = Folder(tmp_path / "goldsets" / "secrets")
    folder.add(cases, "shop", Place(source=str(history)))
    run = Evaluation(world.settings, folder).run()
    insider, outsider, intruder, leaking = run.results
    assert insider.complete
    assert outsider.traces[0].fate == "filtered: it is restricted of tenant default, the asker internal of default"
    assert (intruder.tokens, intruder.violations) == (0, ())
    assert [each.kind for each in leaking.violations] == ["forbidden"]
    with pytest.raises(ConfigurationError, match="leaking: shows what it must not: rule"):
        accept(folder, run)


# Statistics


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_exact_and_does_not_care_for_sides(gained: int, lost: int) -> None:
    number, more = gained + lost, max(gained, lost)
    tail = sum(math.comb(number, k) for k in range(more, number + 1)) / 2**number
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_bootstrap_is_repeatable_and_within_the_values(values: list[float]) -> None:
    low, high = bootstrap(values, 0.95)
    assert (low, high) == bootstrap(values, 0.95)
    assert min(values) - 1e-6 <= low <= high <= max(values) + 1e-6
    mirrored = bootstrap([-each for each in values], 0.95)
    assert mirrored == pytest.approx((-high, -low), abs=1e-6)


def test_one_or_two_lost_cases_of_many_are_told_and_stop_nothing(world: World) -> None:
    results = list(world.baseline.results)
    for place in range(2):
        traces = tuple(each.model_copy(update={"found": each.kind == "rule"}) for each in results[place].traces)
        results[place] = results[place].model_copy(update={"traces": traces, "recall": 0.33, "complete": False})
    found = compare(world.baseline.model_copy(update={"results": tuple(results)}), world.baseline)
    assert found.regressions == ()
    assert [each.case for each in found.lost] == ["pull-1", "pull-2"]
    assert found.summary == "lost pull-1, pull-2; no regression"


def test_a_case_that_was_changed_is_compared_with_nothing(world: World) -> None:
    first, *others = world.baseline.results
    changed = first.model_copy(update={"digest": "other", "recall": 0.0, "complete": False})
    found = compare(world.baseline.model_copy(update={"results": (changed, *others)}), world.baseline)
    assert (found.pairs, found.lost, found.regressions) == (CASES - 1, (), ())
    assert any("1 cases of the run are not in the baseline" in note for note in found.notes)


# Files


def test_every_problem_is_listed_with_its_file_and_line(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    head = {"repositories": {"shop": {"source": ""}}, "maxTokens": 3, "connectors": {"nothing": {}}}
    write(folder, "goldset.json", json.dumps(head, indent=1))
    good = {"id": "a", "base": "1", "head": "2", "expected": {"paths": ["x"]}}
    lines = [
        json.dumps({**good, "repository": "shop"}),
        "{",
        json.dumps({**good, "id": "b", "head": ""}),
        json.dumps({"id": "c", "question": "why"}),
        json.dumps({**good, "colour": "red"}),
        json.dumps({**good, "repository": "elsewhere"}),
        json.dumps({**good, "id": "d", "base": "--output=x"}),
    ]
    write(folder, "cases.jsonl", "\n".join(lines))
    with pytest.raises(ConfigurationError) as caught:
        Folder(folder).read()
    told = str(caught.value)
    for part in (
        r"goldset\.json:4: repositories\.shop\.source",
        r"goldset\.json:7: maxTokens",
        r"cases\.jsonl:2: no JSON",
        r"cases\.jsonl:3: case b: base and head belong together",
        r"cases\.jsonl:4: case c: it judges nothing",
        r"cases\.jsonl:5: colour",
        r"cases\.jsonl:6: case a: no repository 'elsewhere'",
        r"cases\.jsonl:6: case a: another case has this id",
        r"cases\.jsonl:7: case d: '--output=x' is not a revision",
    ):
        assert re.search(part, told), (part, told)
    with pytest.raises(NotFound, match="no goldset 'nothing'"):
        Folder(tmp_path / "nothing").read()


def test_the_file_of_the_laboratory_is_read_and_run(world: World, history: Path, tmp_path: Path) -> None:
    item = _item(world, "keep_amber")
    case = {
        "id": "lab-1",
        "pullRequest": {"number": 1, "files": ["shop/amber_view.py"], "diffSummary": "Orders are wrapped"},
        "expectedFindings": [{"description": "The ledger is not locked", "severity": "high"}],
        "requiredSkills": ["review"],
        "knowledgeItems": [item],
    }
    head = {"domain": "code", "intent": "review", "version": "1", "cases": [case]}
    place = {"repositories": {"shop": {"source": str(history)}}}
    write(tmp_path / "laboratory", "goldset.json", json.dumps({**head, **place}))
    run = Evaluation(world.settings, Folder(tmp_path / "laboratory")).run()
    (result,) = run.results
    assert (result.problem, result.complete) == ("", True)
    assert result.findings.startswith("not judged: no model is configured")
    model = Model()
    asked = iter(
        [{"findings": ["No lock is taken"]}, {"covers": [{"expected": 0, "reported": True, "by": "No lock is taken"}]}]
    )
    model.answer = lambda _: next(asked, "I would rather not")
    chosen = world.settings.model_copy(update={"playbook": PlaybookSettings(url=model.url, model="small")})
    try:
        judged = Evaluation(chosen, Folder(tmp_path / "laboratory")).run()
        refused = Evaluation(chosen, Folder(tmp_path / "laboratory")).run()
    finally:
        model.close()
    assert [(each.reported, each.by) for each in judged.results[0].judged] == [(True, "No lock is taken")]
    assert judged.summary["findings"] == 1.0
    assert "not locked" not in json.dumps(model.asked[0])  # it reviews without knowing what is expected
    assert "did not answer in the form" in refused.results[0].findings
    assert compare(refused, run).regressions == ()


def _item(world: World, title: str) -> str:
    (state, *_) = sorted((world.settings.home / "goldsets" / "states" / "shop").glob("*/lab.db"))
    with LabStore(path=state) as store:
        everything = Access(tenant="default", principal="test", clearance=Confidentiality.RESTRICTED)
        found = store.scan(everything, Filter(symbols=(f"shop.amber_store.{title}",)))
    return found.items[0].id


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(names, min_size=1, max_size=5, unique=True), st.lists(names, max_size=3))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], paths: list[str]
) -> None:
    folder = Folder(tmp_path_factory.mktemp("round") / "trip")
    cases = [Case(id=id, question="why", expected=Things(paths=(*paths, "x"))) for id in ids]
    assert folder.add(cases, "shop", Place(source=".")) == cases
    assert list(folder.read().cases) == cases
    assert folder.add(cases, "shop", Place(source="elsewhere")) == []
    assert folder.read().repositories == {"shop": Place(source=".")}


def test_results_that_are_none_are_refused_with_their_line(tmp_path: Path) -> None:
    file = write(tmp_path, "baseline.jsonl", '{"run": {}}\n{"case": 1}\n')
    with pytest.raises(ConfigurationError, match=r"baseline\.jsonl:2: not the results"):
        evaluation.read_run(file)


# Where repositories come from


def test_a_url_is_cloned_once_and_fetched_for_a_commit_that_it_misses(
    world: World, history: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    git(tmp_path, "clone", "-q", "--bare", str(history), str(origin))
    folder = Folder(tmp_path / "remote")
    folder.add([goldsets.from_commit(Git(history), "shop", "pull-1")], "shop", Place(source=f"file://{origin}"))
    chosen = settings.load({"home": str(tmp_path / "home")}, start=tmp_path)
    assert Evaluation(chosen, folder).run().results[0].complete
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    write(clone, "shop/amber_store.py", STORE.format("amber").replace("None", "0"))
    write(clone, "shop/amber_view.py", VIEW.format("amber").replace('""', '"-"'))
    git(clone, "commit", "-qam", "Later (#99)")
    git(clone, "push", "-q", "origin", "HEAD:later")
    folder.add([goldsets.from_commit(Git(clone), "shop", "HEAD")], "shop", Place(source="x"))
    assert [each.problem for each in Evaluation(chosen, folder).run().results] == ["", ""]
    assert len(list((tmp_path / "home" / "goldsets" / "repositories").glob("*.git"))) == 1


def test_what_cannot_be_run_says_why_and_is_no_baseline(world: World, history: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{history}", str(shallow))
    folder = Folder(tmp_path / "partial")
    case = goldsets.from_commit(Git(history), "shop", "pull-1")
    folder.add([case], "shop", Place(source=str(shallow)))
    run = Evaluation(world.settings, folder).run()
    assert run.partial
    assert "is a shallow clone without" in run.results[0].problem
    assert "pull-1 could not be run" in compare(run, None).regressions[0]
    with pytest.raises(ConfigurationError, match="pull-1 could not be run"):
        accept(folder, run)
    elsewhere = Folder(tmp_path / "elsewhere")
    elsewhere.add([case], "shop", Place(source=f"file://{tmp_path}/nobody"))
    (result,) = Evaluation(world.settings, elsewhere).run().results
    assert result.problem.startswith("git clone: ")


def test_a_run_of_a_part_is_no_baseline(world: World) -> None:
    run = Evaluation(world.settings, world.folder).run(limit=1)
    assert run.partial
    with pytest.raises(ConfigurationError, match="pull-2 was not run\n  pull-3 was not run"):
        accept(world.folder, run)


def test_two_runs_at_once_are_refused(world: World) -> None:
    first, second = Evaluation(world.settings, world.folder), Evaluation(world.settings, world.folder)
    with first._alone(), pytest.raises(StoreUnavailable, match="another run of the goldset shop"):
        second.run(limit=1)


# Making cases


def test_a_commit_that_gives_no_case_says_why(history: Path) -> None:
    with pytest.raises(SourceRefused, match="has no parent"):
        goldsets.from_commit(Git(history), "shop", "main")
    sample = make_repository(history.parent / "sample")
    with pytest.raises(SourceRefused, match="does not edit two source files"):
        goldsets.from_commit(Git(sample), "sample", "HEAD")


def test_the_hidden_file_is_nowhere_in_the_diff(history: Path) -> None:
    case = goldsets.from_commit(Git(history), "shop", "pull-1")
    diff = goldsets.diff_of(Git(history), case)
    assert case.source == f"shop#1 merged as {case.head}"
    assert case.hidden == case.expected.paths
    assert case.hidden[0] not in diff
    assert "amber" in diff
    (symbol,) = case.expected.symbols
    assert symbol in {"shop.amber_store.keep_amber", "shop.amber_view.draw_amber"}


def invoke(*arguments: str, code: int = 0) -> dict[str, Any]:
    """The command line in this process; what it printed as JSON."""
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def team(tmp_path: Path, history: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a home in which the shop is ingested."""
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    from context_os.app import open_app
    from context_os.connectors import Repository
    from context_os.ingestion import Ingestion

    chosen = settings.load()
    with open_app(chosen) as app:
        app.ledger.register("shop", history)
        for connector in ("symbols", "team_rules"):
            Ingestion(chosen, app.store, app.ledger).update(connector, Repository("shop", history, "default", "main"))
    return tmp_path


def test_a_real_pack_becomes_a_case_by_one_command(team: Path) -> None:
    runner = CliRunner()
    pack = invoke("pack", "--repository", "shop", "--range", "main..pull-3", "--max-tokens", "900")
    added = invoke("goldset", "add", "ours", "--pack", pack["id"][:12])
    assert added["added"] == [f"pack-{pack['id'][:12]}"]
    assert invoke("goldset", "add", "ours", "--pack", pack["id"])["added"] == []
    (case,) = Folder(team / "goldsets" / "ours").read().cases
    shown = {entry["id"] for entry in (*pack["layers"]["core"], *pack["layers"]["active"])}
    assert {*case.expected.items, *case.expected.rules} <= shown
    assert case.expected.rules
    run = invoke("goldset", "run", "ours")
    assert run["run"]["complete"] == 1.0
    assert invoke("goldset", "accept", "ours")["baseline"] == run["run"]["id"]
    (row,) = invoke("goldset", "list")["goldsets"]
    assert (row["cases"], row["baseline"], row["newest"]) == (1, run["run"]["id"], run["run"]["id"])
    question = ("--question", "how is a dropped order shown?")
    asked = invoke("pack", "--repository", "shop", *question)
    other = runner.invoke(cli, ["goldset", "add", "ours", "--pack", asked["id"]])
    assert "give its question with --question, to the letter" in str(other.exception)
    invoke("goldset", "add", "ours", "--pack", asked["id"], *question)
    assert invoke("goldset", "run", "ours")["run"]["complete"] == 1.0
    done = runner.invoke(cli, ["goldset", "add", "ours", "--pack", "nothing"])
    assert done.exit_code == 1
    assert isinstance(done.exception, NotFound)


def test_a_pack_of_a_loose_diff_is_refused(team: Path, history: Path) -> None:
    file = write(team, "change.diff", git(history, "diff", "main", "pull-2"))
    pack = invoke("pack", "--repository", "shop", "--diff", str(file))
    done = CliRunner().invoke(cli, ["goldset", "add", "ours", "--pack", pack["id"]])
    assert isinstance(done.exception, ConfigurationError)
    assert "its diff was no range of commits" in str(done.exception)
    assert not (team / "goldsets").exists()


def test_cases_of_history_run_compare_and_fail_by_the_command_line(
    team: Path, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = invoke("goldset", "add", "ours", "--commit", "pull-1", "--repository", "shop")
    assert added["added"] == ["pull-1"]
    runner = CliRunner()
    assert runner.invoke(cli, ["goldset", "add", "ours"]).exit_code == 2
    done = runner.invoke(cli, ["goldset", "run", "ours", "--out", "results.jsonl"])
    assert done.exit_code == 0
    assert "pull-1 (1 of 1)" in done.stderr
    assert evaluation.read_run(team / "results.jsonl").results[0].case == "pull-1"
    assert "no baseline is accepted" in done.stdout
    invoke("goldset", "accept", "ours")
    monkeypatch.setattr(Hybrid, "select", lambda *_: [])
    worse = runner.invoke(cli, ["goldset", "run", "ours"])
    assert worse.exit_code == 1
    assert "REGRESSION: the selector hybrid proposes nothing any more" in worse.stdout
    told = runner.invoke(cli, ["goldset", "compare", "ours"])
    assert told.exit_code == 1
    assert "lost pull-1: recall 1.00 -> 0.00" in told.stdout
    assert "no selector proposed it" in " ".join(told.stdout.split())
    monkeypatch.undo()


def test_the_history_of_pull_requests_in_bulk(team: Path) -> None:
    sample = make_repository(team / "sample")
    for number, name in enumerate(("one", "two", "three"), start=3):
        write(sample, "shop/app.py", f"def open_{name}(host):\n    return host\n")
        write(sample, "shop/pool.py", f"def release_{name}(session):\n    return session\n")
        git(sample, "commit", "-qam", f"Another {name} (#{number})")
    added = invoke("goldset", "add", "bulk", "--history", "2", "--repository", "sample", "--source", str(sample))
    assert added["added"] == ["pull-4", "pull-5"]
    read = Folder(team / "goldsets" / "bulk").read()
    assert read.repositories == {"sample": Place(source=str(sample))}


def test_files_that_reviewers_commented_on_are_expected(team: Path, shared: Path) -> None:
    from test_pull_requests import Replay

    server = Replay("--danger", str(shared / "data" / "github-api" / "danger-js"))
    write(
        team,
        "context-os.toml",
        f'[connectors.pull_requests]\nbase_url = "{server.url}"\ntoken = "{"x" * 40}"\nseconds_between_requests = 0\n',
    )
    try:
        sample = make_repository(team / "emission")
        where = ("--repository", "artsy/emission", "--source", str(sample))
        added = invoke("goldset", "add", "reviewed", "--pull", "327", *where)
    finally:
        server.close()
    assert added["added"] == ["pull-327"]
    (case,) = Folder(team / "goldsets" / "reviewed").read().cases
    assert case.pull_request is not None
    assert case.hidden == case.expected.paths
    assert 0 < len(case.hidden) < len(case.pull_request.files) == 18
    assert "review comments" in case.source
    diff = goldsets.diff_of(Git(sample), case)
    assert diff.count("diff --git") == 18 - len(case.hidden)


# What is kept of it


def test_an_erasure_reaches_what_goldsets_keep(team: Path, history: Path) -> None:
    invoke("goldset", "add", "ours", "--commit", "pull-1", "--repository", "shop")
    invoke("goldset", "add", "other", "--commit", "pull-2", "--repository", "kiosk", "--source", str(history))
    for name in ("ours", "other"):
        invoke("goldset", "run", name)
    invoke("erase", "repository", "shop", "--yes")
    kept = team / "home" / "goldsets"
    assert sorted(path.name for path in kept.iterdir()) == ["runs"]
    assert not list((kept / "runs" / "ours").iterdir())
    assert len(list((kept / "runs" / "other").iterdir())) == 1
    told = invoke("goldset", "run", "ours", code=1)
    assert "this repository was erased on" in told["comparison"]["regressions"][0]
    assert not list((kept / "states").glob("ours/*/lab.db-wal"))


def test_the_teams_store_is_not_touched(team: Path) -> None:
    before = (team / "home" / "lab.db").read_bytes()
    invoke("goldset", "add", "ours", "--commit", "pull-1", "--repository", "shop")
    invoke("goldset", "run", "ours")
    assert (team / "home" / "lab.db").read_bytes() == before


# Shipped


@pytest.mark.parametrize("name", [each.name for each in goldsets.folders(CHECKOUT / "goldsets")])
def test_shipped_goldsets_are_whole(name: str) -> None:
    folder = Folder(CHECKOUT / "goldsets" / name)
    goldset, baseline = folder.read(), evaluation.baseline_of(folder)
    assert baseline is not None
    assert {each.case: each.digest for each in baseline.results} == {each.id: each.digest for each in goldset.cases}
    assert not any(each.problem or each.violations for each in baseline.results)
    assert all(case.source for case in goldset.cases)
    assert not any(case.question for case in goldset.cases), "nothing is copied from anybody"


def test_there_are_sixty_cases_in_three_languages() -> None:
    cases = [case for each in goldsets.folders(CHECKOUT / "goldsets") for case in each.read().cases]
    assert len(cases) >= 60
    endings = {Path(path).suffix for case in cases for path in case.hidden}
    assert {".py", ".ts", ".go"} <= endings


def test_this_projects_own_goldset_runs_from_its_checkout(tmp_path: Path) -> None:
    folder = Folder(CHECKOUT / "goldsets" / "context-os")
    baseline = evaluation.baseline_of(folder)
    try:
        goldsets.commit_of(Git(CHECKOUT), folder.read().cases[0].base)
    except SourceRefused as error:
        pytest.skip(f"this checkout has not the history that the cases are of: {error}")
    chosen = settings.load({"home": str(tmp_path / "home")}, start=tmp_path)
    run = Evaluation(chosen, folder).run(limit=2)
    found = compare(run, baseline)
    assert (found.pairs, [each for each in found.regressions if "could not be run" in each]) == (2, [])
    assert not [each for result in run.results for each in result.violations]
