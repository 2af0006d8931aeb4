"""A repository's own weights: fitted to votes, used only where they prove themselves, never across tenants."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from samples import make_repository
from strategies import make_item
from test_cli import Terminal

from context_os import relevance
from context_os.app import open_app
from context_os.change import parse_diff
from context_os.errors import ConfigurationError, NotFound
from context_os.feedback import FeedbackLog, Verdict, Vote
from context_os.kept_packs import Evidence, KeptPacks
from context_os.model import Access, Confidentiality, utcnow
from context_os.packs import build
from context_os.ranking import rank
from context_os.selectors import Candidate, Judgement, Request
from context_os.settings import Settings
from context_os.tuning import LEAST, Tuning, tuned_file
from context_os.voting import Ballot, Voting

MODEL = "change.lexical"
DIFF = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a{0}\n+b{0}\n"


class House:
    """Packs and votes of one home, without a store."""

    def __init__(self, home: Path, tenant: str = "acme", seed: int = 7) -> None:
        self.log, self.packs = FeedbackLog(home), KeptPacks(home / "packs.db")
        self.tuning = Tuning(home, tenant, self.log, self.packs)
        self.tenant, self._random, self._votes = tenant, random.Random(seed), 0

    def pack(self, number: int) -> tuple[str, list[Candidate]]:
        """One of 60 candidates with three features; the third says nothing to the packaged weights alone."""
        found = []
        for place in range(60):
            features = {
                "document.words": self._random.random(),
                "of_file.nearby": self._random.random(),
                "kind.method": float(self._random.random() < 0.5),
            }
            item = make_item(f"i{number}-{place}", tenant=self.tenant, path="x.py")
            found.append(Candidate(item, self._random.random(), "hybrid", "said", Judgement(MODEL, features)))
        request = Request("", parse_diff(DIFF.format(number)), ("shop",))
        access = Access(tenant=self.tenant, principal="ann", clearance=Confidentiality.RESTRICTED)
        kept = self.packs.keep(build(rank(found), request, 2_000, lambda _: {}, ""), request, access, found)
        assert kept is not None
        return kept.id, found

    def vote(self, pack: str, id: str, verdict: Verdict = Verdict.HELPFUL) -> Vote:
        self._votes += 1
        said = Vote(
            key=f"v{self._votes}",
            subject=id,
            verdict=verdict,
            at=utcnow() - timedelta(days=1),
            principal="ann",
            pack=pack,
            repository="shop",
        )
        self.log.add(self.tenant, [said])
        return said

    def review(self, number: int, by: str | None) -> Vote:
        """A pack in which what has most of a feature was found helpful; without one anything."""
        pack, found = self.pack(number)
        best = max(found, key=lambda each: (each.judgement or Judgement("", {})).features.get(by or "", 0.0))
        return self.vote(pack, (best if by else self._random.choice(found)).item.id)


def test_what_tells_here_is_learned_and_used(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(60):
        house.review(number, "of_file.nearby")
    (told,) = house.tuning.tune("shop")
    assert (told.model, told.packs, told.votes, told.used) == (MODEL, 60, 60, True)
    assert told.after > told.before
    old, new = told.moved["of_file.nearby"]
    assert old == relevance.model("change", semantic=False).of_file.get("nearby", 0.0)
    assert new > old + 0.5
    base = relevance.model("change", semantic=False)
    own = relevance.tuned(base, tuned_file(tmp_path, "acme", "shop"))
    assert own.tuned
    assert own.of_file["nearby"] == new
    assert own.file == base.file  # which files a request is about is not tuned
    assert house.tuning.tune("shop") == [told]  # the same votes, the same weights


def test_a_handful_and_noise_change_nothing(tmp_path: Path) -> None:
    few = House(tmp_path / "few")
    for number in range(LEAST - 1):
        few.review(number, "of_file.nearby")
    (told,) = few.tuning.tune("shop")
    assert (told.used, told.packs) == (False, LEAST - 1)
    assert str(LEAST) in told.reason
    refused = 0
    for seed in range(8):
        noisy = House(tmp_path / f"noise{seed}", seed=seed)
        for number in range(30):
            noisy.review(number, None)
        (told,) = noisy.tuning.tune("shop")
        refused += not told.used
        assert told.used == tuned_file(tmp_path / f"noise{seed}", "acme", "shop").exists()
        assert max((abs(new - old) for old, new in told.moved.values()), default=0.0) < 0.6
    assert refused >= 2


def test_weights_that_do_not_prove_themselves_any_more_go(tmp_path: Path) -> None:
    house = House(tmp_path)
    said = [house.review(number, "of_file.nearby") for number in range(40)]
    file = tuned_file(tmp_path, "acme", "shop")
    house.tuning.tune("shop", dry=True)
    assert not file.exists()
    house.tuning.tune("shop")
    assert file.stat().st_mode & 0o077 == 0
    for vote in said:
        house.log.withdraw("acme", vote.key, "ann")
    assert house.tuning.tune("shop") == []
    assert not file.exists()
    assert not house.tuning.forget("shop")


def test_votes_of_another_tenant_and_another_repository_weigh_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(40):
        house.review(number, "of_file.nearby")
    rival = Tuning(tmp_path, "rival", house.log, house.packs)
    assert rival.tune("shop") == []
    assert house.tuning.tune("elsewhere") == []
    house.tuning.tune("shop")
    assert tuned_file(tmp_path, "acme", "shop") != tuned_file(tmp_path, "rival", "shop")
    assert not tuned_file(tmp_path, "rival", "shop").exists()
    assert tuned_file(tmp_path, "../x", "../../y/z").resolve().is_relative_to(tmp_path / "weights")


def test_weights_made_of_others_are_not_used_and_a_spoiled_file_is_told(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(40):
        house.review(number, "of_file.nearby")
    house.tuning.tune("shop")
    file, base = tuned_file(tmp_path, "acme", "shop"), relevance.model("change", semantic=False)
    assert not relevance.tuned(relevance.model("issue", semantic=False), file).tuned
    text = file.read_text()
    file.write_text(text.replace(base.digest, "0" * 16))
    assert relevance.tuned(base, file) == base
    file.write_text(text[: len(text) // 2] + "[[")
    with pytest.raises(ConfigurationError, match="feedback tune"):
        relevance.tuned(base, file)
    file.write_text(text.replace('"words" = ', '"words" = "much" # ', 1))
    with pytest.raises(ConfigurationError, match="feedback tune"):
        relevance.tuned(base, file)
    assert relevance.tuned(base, tmp_path / "none.toml") == base


@hypothesis_settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["document.words", "of_file.test", "kind.class"]), st.floats(-4, 4, width=16)),
        min_size=1,
        max_size=30,
    )
)
def test_evidence_is_kept_whole(rows: Sequence[dict[str, float]]) -> None:
    judged = [
        Candidate(make_item(f"i{number}"), 1.0, "hybrid", "said", Judgement(MODEL, row))
        for number, row in enumerate(rows)
    ]
    made = Evidence.of([*judged, Candidate(make_item("other"), 1.0, "bugs", "said")])
    assert made is not None
    again = Evidence.unpacked(made.packed())
    assert (again.model, again.columns) == (made.model, made.columns)
    assert np.array_equal(again.rows, made.rows)
    for number, row in enumerate(rows):
        place = again.place_of(f"i{number}")
        assert place == number
        assert {name: row.get(name, 0.0) for name in again.columns} == dict(
            zip(again.columns, again.rows[number].tolist(), strict=True)
        )
    assert again.place_of("other") is None
    stranger = Candidate(make_item("stranger"), 1.0, "theirs", "said", Judgement("another", {"x": 1.0}))
    mixed = Evidence.of([*judged, judged[0], stranger])  # another's model does not keep a pack from being handed out
    assert mixed is not None
    assert (mixed.model, len(mixed.marks)) == (MODEL, len(judged))
    assert Evidence.of([]) is None


def test_packs_of_an_older_version_stay_and_get_a_place_for_evidence(tmp_path: Path) -> None:
    house = House(tmp_path)
    first, _ = house.pack(1)
    with sqlite3.connect(tmp_path / "packs.db") as db:
        db.execute("DROP TABLE evidence")
        db.execute("PRAGMA user_version = 1")
    assert house.packs.get("acme", first) is not None
    second, _ = house.pack(2)
    assert [pack.id for pack, _ in house.packs.evidence("acme", "shop", [first, second])] == [second]
    assert house.packs.forget("acme", lambda pack: True) == 2
    assert list(house.packs.evidence("acme", "shop", [first, second])) == []


# As a person sees it


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    folder = tmp_path_factory.mktemp("tuning")
    make_repository(folder / "shop")
    found = Terminal(folder)
    found.json("ingest", "shop", "--connector", "symbols")
    return found


def settings_of(terminal: Terminal) -> Settings:
    return Settings(home=Path(terminal.environment["CONTEXT_OS_HOME"]))


def test_from_packs_and_votes_to_weights_and_back(terminal: Terminal) -> None:
    with open_app(settings_of(terminal)) as app:
        voting = Voting(app)
        for number in range(LEAST + 8):
            built = app.pack(f"session pool close release order {number}", "", "shop", 700)
            ids = [
                id for _, each in app.kept_packs.evidence("default", "shop", [built.id]) for id in _judged(app, each)
            ]
            voting.cast(Ballot(subjects=(sorted(ids)[0],), verdict=Verdict.HELPFUL, pack=built.id), "cli")
        with pytest.raises(NotFound, match="looked at for the pack"):
            voting.cast(Ballot(subjects=("nobody",), verdict=Verdict.HELPFUL, pack=built.id), "cli")
    (told,) = terminal.json("feedback", "tune", "shop", "--dry-run")["tuned"]
    assert (told["model"], told["packs"]) == ("question.lexical", LEAST + 8)
    file = tuned_file(settings_of(terminal).home, "default", "shop")
    assert not file.exists()
    assert told["used"], told
    shown = terminal.run("feedback", "tune").stdout
    assert "question.lexical" in shown
    assert " -> " in shown
    assert file.exists()
    asked = ("pack", "--repository", "shop", "--question", "close the session")
    assert "weighed by what helped in this repository" in terminal.json(*asked)["retrieval"]
    assert terminal.json("feedback", "tune", "shop", "--forget") == {"forgotten": ["shop"]}
    assert "weighed by" not in terminal.json(*asked)["retrieval"]
    assert terminal.run("feedback", "tune", "shop", "--forget", "--dry-run").returncode == 2
    assert "nowhere" in terminal.run("feedback", "tune", "nowhere").stderr


def _judged(app: object, evidence: Evidence) -> list[str]:
    from context_os.app import App
    from context_os.stores import Filter

    assert isinstance(app, App)
    items = app.store.scan(app.access, Filter(), limit=500).items
    return [item.id for item in items if evidence.place_of(item.id) is not None]
