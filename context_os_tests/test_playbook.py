"""The playbook of a repository: deltas, their log, dedupe, budget, locks, approval, counters that add up."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from context_os.embedding import Embedding
from context_os.errors import ConfigurationError, NotFound, StoreUnavailable
from context_os.feedback import Verdict, Vote
from context_os.model import Actor
from context_os.playbook import (
    Delta,
    Operation,
    Playbooks,
    Policy,
    Tag,
    compaction,
    importing,
    next_id,
    opposed,
    similarity,
    subject_of,
)
from context_os.playbook_formats import Bullet, Status, read, write

AT = datetime(2026, 3, 1, tzinfo=UTC)
HERE = ("acme", "web")
CLOCKS = "Never compare clocks of two machines; compare counters that one of them hands out."
LOCKS = "Take the lock before the ledger is read, otherwise another run may be faster."
FILES = "Write a temporary file and rename it, so that nobody ever sees half of it."


def delta(operation: Operation, *ids: str, key: str = "", actor: Actor = Actor.HUMAN, **changes: Any) -> Delta:
    key = key or f"{operation}:{ids}:{sorted(changes.items())}"
    return Delta(key=key[:160], operation=operation, ids=ids, changes=changes, principal="ann", actor=actor, at=AT)


def add(content: str, **changes: Any) -> Delta:
    actor = changes.pop("actor", Actor.HUMAN)
    return delta(Operation.ADD, actor=actor, content=content, section=changes.pop("section", "STATE"), **changes)


def vote(playbooks: Playbooks, bullet: str, verdict: Verdict, count: int = 1, key: str = "") -> None:
    subject = subject_of(*HERE, bullet)
    key = key or f"{bullet}:{verdict}:{count}"
    playbooks.feedback.add(
        HERE[0], [Vote(key=key, subject=subject, verdict=verdict, at=AT, principal="bob", count=count)]
    )


@pytest.fixture
def playbooks(tmp_path: Path) -> Playbooks:
    return Playbooks(tmp_path)


def contents(playbooks: Playbooks) -> dict[str, str]:
    return {each.id: each.content for each in playbooks.bullets(*HERE)}


def test_deltas_and_their_history(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS), add(LOCKS), add(FILES, section="Files on disk")])
    assert contents(playbooks) == {"state-00001": CLOCKS, "state-00002": LOCKS, "fod-00003": FILES}
    playbooks.apply(*HERE, [delta(Operation.UPDATE, "state-00001", content="Compare counters.", about=("path:a/**",))])
    playbooks.apply(*HERE, [delta(Operation.REMOVE, "state-00002")])
    assert contents(playbooks) == {"state-00001": "Compare counters.", "fod-00003": FILES}
    assert playbooks.bullet(*HERE, "state-00002").status is Status.INVALID
    assert [each.delta.operation for each in playbooks.history(*HERE, "state-00001")] == ["add", "update"]
    assert [each.applied.outcome for each in playbooks.history(*HERE)] == ["applied"] * 5


def test_the_same_again_changes_nothing(playbooks: Playbooks) -> None:
    deltas = [add(CLOCKS, helpful=3), delta(Operation.UPDATE, "state-00001", pinned=True)]
    playbooks.apply(*HERE, deltas)
    before = playbooks.bullets(*HERE), playbooks.history(*HERE)
    assert [each.outcome for each in playbooks.apply(*HERE, deltas)] == ["unchanged", "unchanged"]
    assert (playbooks.bullets(*HERE), playbooks.history(*HERE)) == before


def test_all_or_none_and_every_reason(playbooks: Playbooks) -> None:
    wrong = [
        delta(Operation.UPDATE, "state-00009", content="x"),
        delta(Operation.UPDATE, "state-00001", helpful=7),
        delta(Operation.MERGE, "state-00001"),
        add(" "),
    ]
    with pytest.raises(ConfigurationError) as refused:
        playbooks.apply(*HERE, [add(CLOCKS), *wrong])
    for reason in ("no bullet state-00009", "counters are sums", "MERGE two or more", "says nothing"):
        assert reason in str(refused.value)
    assert not playbooks.bullets(*HERE)
    told = playbooks.preview(*HERE, [add(CLOCKS), *wrong])
    assert [each.outcome for each in told] == ["applied", *["refused"] * 4]
    assert not playbooks.bullets(*HERE)


def test_what_says_the_same_is_joined_and_the_opposite_is_not(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS, tags=("time",))])
    again = CLOCKS.replace("; compare", ", but compare")
    [told] = playbooks.apply(*HERE, [add(again, tags=("clocks",), origin=("trace-7",), helpful=2)])
    assert (told.outcome, told.ids) == ("duplicate", ("state-00001",))
    [bullet] = playbooks.bullets(*HERE)
    assert (bullet.content, bullet.tags, bullet.origin, bullet.helpful) == (CLOCKS, ("time", "clocks"), ("trace-7",), 2)
    opposite = CLOCKS.replace("Never", "Always")
    [told] = playbooks.apply(*HERE, [add(opposite, actor=Actor.AUTOMATION)])
    assert (told.outcome, told.why) == ("proposed", "it reads like the opposite of state-00001")
    [told] = playbooks.apply(*HERE, [add(opposite, key="by hand")])
    assert told.outcome == "applied"


def test_similarity_on_words_that_matter() -> None:
    assert similarity(CLOCKS, CLOCKS) == pytest.approx(1)
    assert similarity(CLOCKS, FILES) < 0.3
    assert similarity("", CLOCKS) == 0
    oldest = "For the oldest entry sort by date and take the first page"
    assert opposed(oldest, oldest.replace("oldest", "newest"))
    assert opposed("Do not retry a refused write", "Do retry a refused write")
    assert not opposed(CLOCKS, CLOCKS + " Really.")


def test_a_merge_sums_counters_and_says_what_it_was_made_of(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS), add(LOCKS), add(FILES)])
    for id, helpful, harmful in (("state-00001", 3, 1), ("state-00002", 4, 0), ("state-00003", 5, 2)):
        vote(playbooks, id, Verdict.HELPFUL, helpful)
        vote(playbooks, id, Verdict.HARMFUL, harmful) if harmful else None
    merge = delta(Operation.MERGE, "state-00002", "state-00001", "state-00003", content="All of it.")
    for _ in range(2):
        playbooks.apply(*HERE, [merge])
    [bullet] = playbooks.bullets(*HERE)
    assert (bullet.id, bullet.content, bullet.helpful, bullet.harmful) == ("state-00002", "All of it.", 12, 3)
    assert bullet.derived_from == ("state-00001", "state-00003")


class _Broken(Playbooks):
    """Dies between its own transaction and the log of feedback."""

    def settle(self, tenant: str) -> None:
        raise StoreUnavailable("killed")


def test_a_kill_between_the_two_files_loses_no_vote(tmp_path: Path) -> None:
    playbooks = Playbooks(tmp_path)
    playbooks.apply(*HERE, [add(CLOCKS), add(LOCKS)])
    vote(playbooks, "state-00002", Verdict.HELPFUL, 6)
    broken = _Broken(tmp_path)
    deltas = [delta(Operation.MERGE, "state-00001", "state-00002")]
    with pytest.raises(StoreUnavailable):
        broken.apply(*HERE, deltas)
    curator_died_later = Playbooks(tmp_path)
    curator_died_later.apply(*HERE, deltas)
    vote(curator_died_later, "state-00002", Verdict.HELPFUL, 1, key="late")
    curator_died_later.apply(*HERE, deltas)
    assert [each.helpful for each in Playbooks(tmp_path).bullets(*HERE)] == [6]


def test_the_budget_takes_what_stands_lowest_and_never_what_is_pinned_or_locked(playbooks: Playbooks) -> None:
    texts = [f"Lesson {word} about nothing else {word} {word}" for word in ("ant", "bee", "cat", "dog", "elk")]
    playbooks.apply(*HERE, [add(text, id=f"s-{n}") for n, text in enumerate(texts)])
    vote(playbooks, "s-0", Verdict.HARMFUL, 9)
    vote(playbooks, "s-1", Verdict.HARMFUL, 8)
    vote(playbooks, "s-2", Verdict.HARMFUL, 7)
    vote(playbooks, "s-3", Verdict.HARMFUL, 6)
    playbooks.apply(*HERE, [delta(Operation.UPDATE, "s-0", pinned=True), delta(Operation.UPDATE, "s-1", locked=True)])
    told = playbooks.apply(*HERE, [add(CLOCKS, id="s-9")], Policy(max_bullets=4))
    assert [each.ids for each in told if each.operation is Operation.REMOVE] == [("s-2",), ("s-3",)]
    assert set(contents(playbooks)) == {"s-0", "s-1", "s-4", "s-9"}
    playbooks.apply(*HERE, [add(LOCKS)], Policy(max_tokens=100, max_bullets=1))
    assert {"s-0", "s-1"} <= set(contents(playbooks))


def test_pinned_bullets_cannot_be_removed_nor_merged_away(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS, pinned=True), add(LOCKS)])
    for wrong in (delta(Operation.REMOVE, "state-00001"), delta(Operation.MERGE, "state-00002", "state-00001")):
        with pytest.raises(ConfigurationError, match="pinned"):
            playbooks.apply(*HERE, [wrong])


def test_a_delta_on_a_locked_bullet_waits_for_somebody(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS, locked=True)])
    change = delta(Operation.UPDATE, "state-00001", content=LOCKS)
    assert playbooks.apply(*HERE, [change])[0].outcome == "proposed"
    assert playbooks.apply(*HERE, [change])[0].outcome == "proposed"
    assert contents(playbooks) == {"state-00001": CLOCKS}
    [waiting] = playbooks.proposals(*HERE)
    assert "locked" in waiting.why
    playbooks.approve(*HERE, change.key, "eve", AT)
    assert contents(playbooks) == {"state-00001": LOCKS}
    assert not playbooks.proposals(*HERE)
    with pytest.raises(NotFound):
        playbooks.approve(*HERE, change.key, "eve", AT)
    playbooks.apply(*HERE, [delta(Operation.UPDATE, "state-00001", locked=False)])
    assert not playbooks.bullet(*HERE, "state-00001").locked


def test_where_policy_asks_what_nobody_did_by_hand_waits(playbooks: Playbooks) -> None:
    policy = Policy(approve=True)
    learned = add(CLOCKS, actor=Actor.AUTOMATION)
    told = playbooks.apply(*HERE, [learned, add(LOCKS)], policy)
    assert [each.outcome for each in told] == ["proposed", "applied"]
    playbooks.reject(*HERE, learned.key, "eve", AT)
    [told] = playbooks.apply(*HERE, [learned], policy)
    assert (told.outcome, told.why) == ("unchanged", "somebody rejected this before")
    assert [each.state for each in playbooks.proposals(*HERE, "rejected")] == ["rejected"]
    assert list(contents(playbooks).values()) == [LOCKS]


def test_nothing_crosses_tenants_or_repositories(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS, helpful=2)])
    playbooks.apply("other", "web", [add(CLOCKS, helpful=5)])
    playbooks.apply("acme", "shop", [add(CLOCKS)])
    assert [each.helpful for each in playbooks.bullets(*HERE)] == [2]
    assert [each.helpful for each in playbooks.bullets("other", "web")] == [5]
    assert playbooks.repositories("acme") == ["shop", "web"]
    assert not playbooks.bullets("nobody", "web")


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    def write_some(number: int) -> None:
        word = f"word{number}"
        for each in range(5):
            Playbooks(tmp_path).apply(*HERE, [add(f"{word} {word} lesson {each} {chr(97 + each) * 4}", helpful=1)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_some, range(8)))
    bullets = Playbooks(tmp_path).bullets(*HERE)
    ids = [each.id for each in bullets]
    assert len(ids) == len(set(ids))
    assert sum(each.helpful for each in bullets) == 40


def test_compaction_merges_what_says_the_same(playbooks: Playbooks) -> None:
    near = [CLOCKS, CLOCKS + " Always.", LOCKS]
    playbooks.apply(*HERE, [add(text, helpful=n + 1, id=f"s-{n}") for n, text in enumerate(near)], Policy(alike=1))
    vote(playbooks, "s-1", Verdict.HARMFUL)
    deltas = compaction(playbooks.bullets(*HERE), Policy(), "ann", AT)
    assert [each.ids for each in deltas] == [("s-0", "s-1")]
    playbooks.apply(*HERE, deltas)
    found = {each.id: each for each in playbooks.bullets(*HERE)}
    assert set(found) == {"s-0", "s-2"}
    assert (found["s-0"].helpful, found["s-0"].harmful, found["s-0"].derived_from) == (3, 1, ("s-1",))
    assert not compaction(playbooks.bullets(*HERE), Policy(), "ann", AT)


class Meaning(Embedding):
    """Texts that begin alike mean the same."""

    name: ClassVar[str] = "meaning"

    @property
    def version(self) -> str:
        return "meaning-26"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        ASKED.extend(texts)
        return np.eye(26, dtype=np.float32)[[ord(text[0].lower()) - 97 for text in texts]]


ASKED: list[str] = []


def test_with_an_embedding_paraphrases_are_joined_and_nothing_is_embedded_twice(playbooks: Playbooks) -> None:
    deltas = [add("Close what you open."), add("Count every socket twice."), add("Never sleep in a test.")]
    told = playbooks.apply(*HERE, deltas, embedding=Meaning())
    assert [each.outcome for each in told] == ["applied", "duplicate", "applied"]
    assert len(ASKED) == len(set(ASKED)) == 3


def test_tags_are_votes_once(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS)])
    tags = [Tag("t-1", "state-00001", "helpful", ""), Tag("t-2", "state-00001", "neutral", "")]
    assert playbooks.tag(*HERE, tags, AT) == 2
    assert playbooks.tag(*HERE, [*tags, Tag("t-1", "state-00001", "harmful", "")], AT) == 0
    [bullet] = playbooks.bullets(*HERE)
    assert (bullet.helpful, bullet.harmful, bullet.neutral) == (1, 0, 1)


def test_a_file_is_imported_once_and_grows(playbooks: Playbooks) -> None:
    text = f"## STATE\n[a-1] helpful=3 harmful=1 :: {CLOCKS}\n[a-2] helpful=0 harmful=0 :: {LOCKS}\n"
    for _ in range(2):
        playbooks.apply(*HERE, importing(read(text), "ann", AT))
    assert write(playbooks.bullets(*HERE)).startswith(text)
    grown = text.replace("helpful=3", "helpful=5")
    playbooks.apply(*HERE, importing(read(grown), "ann", AT + timedelta(days=1)))
    assert write(playbooks.bullets(*HERE)).startswith(grown)
    playbooks.apply(*HERE, [delta(Operation.REMOVE, "a-2")])
    playbooks.apply(*HERE, importing(read(grown), "ann", AT))
    assert set(contents(playbooks)) == {"a-1"}


def test_an_id_that_is_taken_gets_another_one(playbooks: Playbooks) -> None:
    playbooks.apply(*HERE, [add(CLOCKS, id="a-1")])
    [told] = playbooks.apply(*HERE, [add(FILES, id="a-1")])
    assert told.ids == ("a-00002",)
    assert "a-1 stands for another lesson" in told.why
    assert next_id([], "VERIFICATION CHECKLIST") == "vc-00001"
    assert next_id([], "") == "misc-00001"
    assert next_id([Bullet(id="shr-00041", section="S", content="x")], "S") == "shr-00042"


def test_forgetting_leaves_no_byte(tmp_path: Path) -> None:
    playbooks = Playbooks(tmp_path)
    playbooks.apply(*HERE, [add("Ask zzyzx-person before touching billing."), add(LOCKS)])
    playbooks.apply("acme", "shop", [add("Ask zzyzx-person there.")])
    assert playbooks.forget("acme", lambda repository, text: repository == "web", dry=True) == 4
    assert playbooks.forget("acme", lambda repository, text: "zzyzx" in text) == 4
    assert list(contents(playbooks).values()) == [LOCKS]
    assert not any(b"zzyzx" in file.read_bytes() for file in tmp_path.glob("playbook.db*"))


WORDS = ["alpha beta", "gamma delta epsilon", "zeta", "eta theta iota", "kappa lambda mu"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(WORDS), st.integers(0, 5)),
        st.tuples(st.just("vote"), st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.just("merge"), st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.just("remove"), st.integers(1, 5), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_votes_are_never_lost_and_the_same_deltas_give_the_same_playbook(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[tuple[str, Any, int]]
) -> None:
    one, other = (Playbooks(tmp_path_factory.mktemp("home")) for _ in range(2))
    given_votes = removed = 0
    for number, (what, first, second) in enumerate(steps):
        here = {each.id: each for each in one.bullets(*HERE)}
        ids = [f"s-{first:05}", f"s-{second:05}"] if what in {"merge", "remove", "vote"} else []
        if what == "vote" and ids[0] in here:
            for each in (one, other):
                vote(each, ids[0], Verdict.HELPFUL, second, key=str(number))
            given_votes += second
            continue
        change = {
            "add": add(str(first), section="s", helpful=second, key=f"k{number}"),
            "merge": delta(Operation.MERGE, *ids, key=f"k{number}"),
            "remove": delta(Operation.REMOVE, *ids[:1], key=f"k{number}"),
        }.get(what)
        if change is None:
            continue
        [told, *_] = one.preview(*HERE, [change])
        if told.outcome in {"applied", "duplicate"}:
            removed += here[ids[0]].helpful if what == "remove" else 0
            given_votes += second if what == "add" else 0
            for each in (one, other, other):
                each.apply(*HERE, [change])
    assert one.bullets(*HERE, all=True) == other.bullets(*HERE, all=True)
    assert sum(each.helpful for each in one.bullets(*HERE)) == given_votes - removed


def test_real_playbooks_grow_into_one_and_are_compacted(shared: Path, playbooks: Playbooks) -> None:
    name = "appworld_offline_trained_no_gt_playbook.txt"
    found = read((shared / "data" / "ace" / name).read_bytes(), name)
    policy = Policy(max_bullets=1_000, max_tokens=1_000_000)
    told = playbooks.apply(*HERE, importing(found, "ann", AT), policy)
    joined = sum(each.outcome == "duplicate" for each in told)
    assert len(playbooks.bullets(*HERE)) + joined == 318
    assert 15 <= joined <= 40
    assert not compaction(playbooks.bullets(*HERE), policy, "ann", AT)
