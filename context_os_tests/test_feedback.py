"""The log of verdicts: sums, idempotency, tenants, decay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_os.errors import ConfigurationError
from context_os.feedback import HALF_LIFE, FeedbackLog, Standing, Verdict, Vote
from context_os.model import FeedbackCounters

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def vote(key: str, subject: str = "a", verdict: str = "helpful", at: datetime = NOW, **other: object) -> Vote:
    return Vote.model_validate(
        {"key": key, "subject": subject, "verdict": verdict, "at": at, "principal": "ann", **other}
    )


def test_counters_are_sums_and_keep_the_last_times(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    later = NOW + timedelta(days=3)
    assert log.add("acme", [vote("1"), vote("2", at=later), vote("3", verdict="harmful"), vote("4", "b", count=7)]) == 4
    found = log.counters("acme", ["a", "b", "c"])
    assert found["a"] == FeedbackCounters(helpful=2, harmful=1, last_helpful_at=later, last_harmful_at=NOW)
    assert (found["b"].helpful, found["b"].harmful, "c" in found) == (7, 0, False)


def test_the_same_vote_again_changes_nothing_and_another_under_its_key_is_refused_whole(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.add("acme", [vote("1")])
    assert log.add("acme", [vote("1", at=NOW + timedelta(hours=1))]) == 0
    with pytest.raises(ConfigurationError, match="1"):
        log.add("acme", [vote("2"), vote("1", verdict="harmful")])
    assert log.counters("acme", ["a"])["a"].helpful == 1
    assert [number for number, _ in log.votes("acme")] == [1]


def test_a_vote_comes_back_as_it_was(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    given_ = vote("1", comment='said "no"', pack="ab12", origin="cli")
    log.add("acme", [given_])
    assert [each for _, each in log.votes("acme", "a")] == [given_]


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.add("acme", [vote("1")])
    log.add("rival", [vote("1", verdict="harmful")])
    assert log.counters("acme", ["a"])["a"] == FeedbackCounters(helpful=1, last_helpful_at=NOW)
    assert log.standings("rival", ["a"], NOW)["a"].helpful == 0
    assert list(log.votes("third")) == []


def test_old_votes_count_less_and_few_move_little(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.add("acme", [vote("1", at=datetime(2026, 6, 1, tzinfo=UTC))])
    assert log.standings("acme", ["a"], datetime(2026, 6, 1, tzinfo=UTC) + HALF_LIFE)["a"].helpful == pytest.approx(0.5)
    assert 0 < Standing(1, 0).balance < 0.12 < 0.9 < Standing(100, 0).balance < 1
    assert Standing(0, 5).balance == -Standing(5, 0).balance


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    FeedbackLog(tmp_path)

    def write(writer: int) -> None:
        log = FeedbackLog(tmp_path)
        for number in range(40):
            log.add("acme", [vote(f"{writer}-{number}", verdict="helpful" if number % 4 else "harmful")])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    found = FeedbackLog(tmp_path).counters("acme", ["a"])["a"]
    assert (found.helpful, found.harmful) == (16 * 30, 16 * 10)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(list(Verdict)), st.integers(0, 400), st.integers(1, 5)),
        max_size=30,
    )
)
def test_sums_by_day_agree_with_the_log(
    tmp_path_factory: pytest.TempPathFactory, given_: list[tuple[str, Verdict, int, int]]
) -> None:
    log = FeedbackLog(tmp_path_factory.mktemp("log"))
    log.add(
        "acme",
        [
            vote(str(number), subject, verdict.value, NOW - timedelta(days=days), count=count)
            for number, (subject, verdict, days, count) in enumerate(given_)
        ],
    )
    for subject, counters in log.counters("acme", ["a", "b"]).items():
        own = [each for _, each in log.votes("acme", subject)]
        assert counters.helpful == sum(each.count for each in own if each.verdict is Verdict.HELPFUL)
        assert counters.harmful == sum(each.count for each in own if each.verdict is Verdict.HARMFUL)
