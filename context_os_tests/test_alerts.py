"""The book of alerts and its delivery: once per opening, once when it is over, kept while a receiver is down."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from receivers import Hook, hook, mailbox

from context_os.alerts import AlertBook, Finding, Notice, deliver, send, trial_notice
from context_os.errors import ConfigurationError, DeliveryError
from context_os.settings import AlertSettings, Command, Email, Receiver, Webhook, explain, load

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def team() -> Iterator[Hook]:
    with hook() as made:
        yield made


def webhook(to: Hook, kind: str = "webhook") -> Webhook:
    return Webhook(kind=kind, url=SecretStr(to.url))


def open_book(folder: Path, **receivers: Receiver) -> AlertBook:
    return AlertBook(folder / "alerts.db", AlertSettings(receivers=receivers))


def finding(subject: str = "shop", condition: str = "failed_run", **about: object) -> Finding:
    values = {"summary": f"{subject} is broken", "remedy": "mend it", "since": START, **about}
    return Finding(condition=condition, subject=subject, **values)


def test_an_alert_is_told_once_and_once_when_it_is_over(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    place = {"tenant": "acme", "repository": "shop", "connector": "symbols", "asset": "staged/symbols"}
    for minute in range(5):
        book.settle({"failed_run": [finding(run_id="r1", **place)]}, START + minute * MINUTE)
        deliver(book, START + minute * MINUTE)
    for minute in range(5, 8):
        book.settle({"failed_run": []}, START + minute * MINUTE)
        deliver(book, START + minute * MINUTE)
    assert team.events == ["opened failed_run", "recovered failed_run"]
    key, body = team.got[0]
    assert body["id"] == key
    assert body["where"] == place
    assert (body["what"], body["first_thing_to_try"]) == ("shop is broken", "mend it")
    assert body["run_url"] == "http://127.0.0.1:3000/runs/r1"
    assert body["since"] == "2026-03-01T12:00:00.000Z"
    (over,) = book.over(10)
    assert (over.opened_at, over.ended_at) == (START, START + 5 * MINUTE)
    # Broken again: that is another opening, under another key.
    book.settle({"failed_run": [finding()]}, START + 9 * MINUTE)
    deliver(book, START + 9 * MINUTE)
    assert team.events[2:] == ["opened failed_run"]
    assert len({key for key, _ in team.got}) == 3


def test_what_is_found_too_shortly_is_not_told(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    brief = finding(patience=90.0)
    assert book.settle({"failed_run": [brief]}, START) == []
    assert book.settle({"failed_run": [brief]}, START + MINUTE) == []
    assert book.open() == []
    assert book.settle({"failed_run": []}, START + 2 * MINUTE) == []
    assert book.over(10) == []
    assert book.settle({"failed_run": [brief]}, START + 3 * MINUTE) == []
    (told,) = book.settle({"failed_run": [brief]}, START + 5 * MINUTE)
    assert told.event == "opened"


def test_patience_ends_although_the_clock_was_set_back(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    brief = finding(patience=90.0)
    book.settle({"failed_run": [brief]}, START + timedelta(days=300))
    assert book.settle({"failed_run": [brief]}, START) == []
    assert len(book.settle({"failed_run": [brief]}, START + 2 * MINUTE)) == 1


def test_what_cannot_be_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.settle({"failed_run": [finding()], "slow_run": [finding(condition="slow_run")]}, START)
    book.settle({"slow_run": []}, START + MINUTE)
    assert [alert.finding.condition for alert in book.open()] == ["failed_run"]


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=12))
@hypothesis_settings(max_examples=25)
def test_openings_and_recoveries_alternate(tmp_path_factory: pytest.TempPathFactory, looks: list[set[str]]) -> None:
    book = open_book(tmp_path_factory.mktemp("book"), nobody=Command(kind="command", command=("true",)))
    for minute, found in enumerate(looks):
        book.settle({"failed_run": [finding(each) for each in sorted(found)]}, START + minute * MINUTE)
    for subject in "abc":
        told = [each.notice for each in book.waiting("nobody") if each.notice.finding.subject == subject]
        expected = [
            "opened" if subject in after else "recovered"
            for before, after in zip([set(), *looks], looks, strict=False)
            if (subject in before) != (subject in after)
        ]
        assert [each.event for each in told] == expected
    assert len({each.notice.id for each in book.waiting("nobody")}) == len(book.waiting("nobody"))


# Receivers that are not well


def test_a_receiver_that_was_down_for_ten_minutes_gets_everything_once_and_in_order(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    team.down()
    tried = 0
    for minute in range(10):
        now = START + minute * MINUTE
        found = [finding()] if minute < 4 else []
        other = [finding(condition="slow_run")] if minute >= 2 else []
        book.settle({"failed_run": found, "slow_run": other}, now)
        (told,) = deliver(book, now)
        assert told.sent == 0
        assert told.waiting == len(book.waiting("team"))
        assert "cannot be reached" in told.problem
        assert team.url not in told.problem
        tried = book.waiting("team")[0].attempts
    assert 4 <= tried < 10, "the waits must grow"
    team.up()
    for minute in range(10, 16):
        deliver(book, START + minute * MINUTE)
    assert team.events == ["opened failed_run", "opened slow_run", "recovered failed_run"]
    assert book.waiting("team") == []


def test_one_that_hangs_holds_up_nobody(tmp_path: Path, team: Hook) -> None:
    with hook() as dead:
        dead.hangs.set()
        book = open_book(tmp_path, a_dead=webhook(dead), team=webhook(team))
        book.settle({"failed_run": [finding()]}, START)
        started = time.monotonic()
        told = {each.receiver: each for each in deliver(book, START, timeout=0.3, budget=5)}
        assert time.monotonic() - started < 5
        assert (told["team"].sent, told["a_dead"].sent) == (1, 0)
        assert "timed out" in told["a_dead"].problem
        # One that does not even time out is left behind, and its turn is taken by nobody else meanwhile.
        later = START + timedelta(hours=1)
        assert {each.receiver: each.problem for each in deliver(book, later, timeout=20, budget=0.2)} == {
            "a_dead": "no answer within 0.2 s",
            "team": "",
        }
        assert [each.sent for each in deliver(book, later, timeout=20, budget=0.2)] == [0, 0]
    assert team.events == ["opened failed_run"]


def test_a_notice_that_is_refused_for_what_it_says_holds_up_no_later_one(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    book.settle({"failed_run": [finding()]}, START)
    team.status = 400
    for minute in (0, 1, 2):
        deliver(book, START + minute * MINUTE)
    team.status = 200
    book.settle({"slow_run": [finding(condition="slow_run")]}, START + 3 * MINUTE)
    deliver(book, START + 3 * MINUTE)
    assert team.events == ["opened slow_run"]
    with sqlite3.connect(book.path) as db:
        assert db.execute("SELECT state, problem FROM outbox ORDER BY id").fetchall() == [
            ("refused", "HTTP 400"),
            ("sent", ""),
        ]


@pytest.mark.parametrize("status", [302, 401, 404, 500, 503])
def test_any_other_answer_keeps_it(tmp_path: Path, team: Hook, status: int) -> None:
    book = open_book(tmp_path, team=webhook(team))
    book.settle({"failed_run": [finding()]}, START)
    team.status = status
    for minute in range(0, 30, 6):
        assert deliver(book, START + minute * MINUTE)[0].problem == f"HTTP {status}"
    team.status = 200
    deliver(book, START + 40 * MINUTE)
    assert team.events == ["opened failed_run"]


KILLED = """
import os, signal, sys
from pathlib import Path
from datetime import datetime, UTC
from pydantic import SecretStr
from context_os.alerts import AlertBook, deliver
from context_os.settings import AlertSettings, Webhook

class Killed(AlertBook):
    def sent(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

receivers = {"team": Webhook(kind="webhook", url=SecretStr(sys.argv[2]))}
deliver(Killed(Path(sys.argv[1]), AlertSettings(receivers=receivers)), datetime.fromisoformat(sys.argv[3]))
"""


def test_killed_between_sending_and_recording_it_is_sent_again_under_the_same_key(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    book.settle({"failed_run": [finding()]}, START)
    dead = subprocess.run([sys.executable, "-c", KILLED, book.path, team.url, START.isoformat()], check=False)
    assert dead.returncode == -signal.SIGKILL
    deliver(book, START)
    deliver(book, START + MINUTE)
    assert len(team.got) == 2
    assert team.got[0] == team.got[1]


def test_two_processes_deliver_nothing_twice(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    for number in range(5):
        book.settle({"failed_run": [finding(str(each)) for each in range(number + 1)]}, START)
    with book.turn("receiver-team") as ours:
        assert ours
        assert deliver(book, START)[0].sent == 0
    deliver(book, START)
    assert len(team.got) == 5


def test_a_wait_of_a_clock_that_was_wrong_is_over(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    book.settle({"failed_run": [finding()]}, START)
    team.status = 500
    deliver(book, START + timedelta(days=3000))
    team.status = 200
    deliver(book, START + MINUTE)
    assert team.events == ["opened failed_run"]


def test_without_receivers_alerts_are_still_kept_and_a_new_receiver_gets_no_old_ones(
    tmp_path: Path, team: Hook
) -> None:
    book = open_book(tmp_path)
    book.settle({"failed_run": [finding()]}, START)
    assert deliver(book, START) == []
    later = open_book(tmp_path, team=webhook(team))
    assert len(later.open()) == 1
    deliver(later, START)
    assert team.events == []


def test_what_is_over_for_long_is_forgotten_and_what_waits_is_not(tmp_path: Path, team: Hook) -> None:
    book = open_book(tmp_path, team=webhook(team))
    book.settle({"failed_run": [finding()], "slow_run": [finding(condition="slow_run")]}, START)
    book.settle({"failed_run": []}, START + MINUTE)
    assert book.forget(START) == 0
    assert book.forget(START + timedelta(days=90)) == 1
    assert (len(book.open()), len(book.over(10)), len(book.waiting("team"))) == (1, 0, 3)


# Kinds of receivers


def test_slack_gets_text_and_blocks_and_no_markup_of_others(tmp_path: Path, team: Hook) -> None:
    evil = finding("<!channel> & <http://evil|click>\nme")
    notice = Notice(id="n", event="opened", at=START, run_url="http://ui/runs/1", finding=evil)
    send(webhook(team, "slack"), notice)
    _, body = team.got[0]
    assert set(body) == {"text", "blocks"}
    assert body["text"].startswith("ALERT: &lt;!channel&gt; &amp; ")
    assert {block["type"] for block in body["blocks"]} == {"section", "context"}
    assert all(part["type"] == "plain_text" for part in [body["blocks"][0]["text"], *body["blocks"][1]["elements"]])
    assert "First thing to try: mend it" in body["blocks"][0]["text"]["text"]


def test_a_token_is_sent_as_a_bearers(team: Hook) -> None:
    receiver = Webhook(kind="webhook", url=SecretStr(team.url), token=SecretStr("t0ken"))
    send(receiver, trial_notice(START))
    assert team.headers[0]["Authorization"] == "Bearer t0ken"
    assert "t0ken" not in repr(receiver)
    assert "secret-path" not in repr(receiver)


def test_a_mail_has_everything_in_it() -> None:
    with mailbox() as (port, letters):
        receiver = Email(
            kind="email", host="127.0.0.1", port=port, starttls=False, sender="bot@example.org", to=("ada@example.org",)
        )
        notice = Notice(id="n1", event="opened", at=START, run_url="http://ui/runs/1", finding=finding("shop\nBcc: x"))
        send(receiver, notice)
    (letter,) = letters
    assert "Subject: ALERT: shop Bcc: x is broken" in letter
    assert "Message-ID: <n1@context-os>" in letter
    assert "First thing to try: mend it" in letter
    assert "Run: http://ui/runs/1" in letter


def test_a_command_reads_json(tmp_path: Path) -> None:
    program = "import json, sys; print(json.load(sys.stdin)['first_thing_to_try'])"
    told = send(Command(kind="command", command=(sys.executable, "-c", program)), trial_notice(START))
    assert told == "nothing: this is only a test"
    with pytest.raises(DeliveryError, match="ended with 3: no such pager"):
        send(
            Command(kind="command", command=(sys.executable, "-c", "import sys; print('no such pager'); sys.exit(3)")),
            trial_notice(START),
        )
    with pytest.raises(DeliveryError, match="FileNotFoundError"):
        send(Command(kind="command", command=(str(tmp_path / "none"),)), trial_notice(START))


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; wait"
    with pytest.raises(DeliveryError, match="was killed"):
        send(Command(kind="command", command=("sh", "-c", script)), trial_notice(START), timeout=0.5)
    child = int(pid.read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the command's child outlived it")


# Settings


def test_receivers_are_read_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "context-os.toml").write_text(
        '[alerts.receivers.team]\nkind = "slack"\n'
        '[alerts.receivers.ops]\nkind = "email"\nhost = "mx"\nsender = "a@b"\nto = ["c@d"]\n'
        '[objectives]\nrun = "20m"\nfreshness = "never"\n[objectives.jobs]\ningest = "5m"\n[retention]\nruns = "30d"\n'
    )
    monkeypatch.setenv("CONTEXT_OS_ALERTS__RECEIVERS__TEAM__URL", "https://hooks.example.org/T000/secret")
    monkeypatch.setenv("CONTEXT_OS_ALERTS__RECEIVERS__OPS__PASSWORD", "pa55")
    chosen = load(start=tmp_path)
    assert chosen.objectives.of_job("ingest") == timedelta(minutes=5)
    assert chosen.objectives.of_job("prune") == timedelta(minutes=20)
    assert chosen.objectives.freshness is None
    assert chosen.retention.runs == timedelta(days=30)
    assert set(chosen.alerts.receivers) == {"team", "ops"}
    shown = json.dumps(explain(chosen))
    assert "T000" not in shown
    assert "pa55" not in shown


def test_a_file_that_was_merely_found_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "context-os.toml"
    file.write_text('[alerts.receivers.evil]\nkind = "command"\ncommand = ["touch", "owned"]\n')
    with pytest.raises(ConfigurationError, match="only from a file that CONTEXT_OS_CONFIG names"):
        load(start=tmp_path)
    monkeypatch.setenv("CONTEXT_OS_CONFIG", str(file))
    assert set(load(start=tmp_path).alerts.receivers) == {"evil"}


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "https://host/a b", "hooks.example.org"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Webhook(kind="webhook", url=SecretStr(url))
