"""Alerts: remembered while they last, told once to each receiver when they begin and once when they are over.

A ``Finding`` is something that is wrong now. ``AlertBook.settle`` compares what was found with what it remembers: what
is new opens an alert (after its patience), what is no longer found ends it, and either writes a ``Notice`` for each
receiver into the outbox, in the same transaction. ``deliver`` empties the outbox: each receiver in a thread of its own
and in order, again with growing waits until it answers, so that one that hangs holds up nobody. A notice counts as
delivered once that is recorded. A process that is killed between the two sends it again, under the same idempotency
key.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import smtplib
import sqlite3
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final, Literal

from context_os.database import Database, milliseconds, time_of
from context_os.errors import DeliveryError, StoreError
from context_os.model import Time, Value
from context_os.settings import AlertSettings, Command, Email, Receiver, Webhook

_SCHEMA: Final = """
CREATE TABLE alerts (
  id INTEGER PRIMARY KEY, uid TEXT NOT NULL, key TEXT NOT NULL, condition TEXT NOT NULL, state TEXT NOT NULL,
  finding TEXT NOT NULL, seen_at INTEGER NOT NULL, opened_at INTEGER, ended_at INTEGER);
CREATE UNIQUE INDEX alerts_standing ON alerts (key) WHERE state <> 'over';
CREATE TABLE outbox (
  id INTEGER PRIMARY KEY, receiver TEXT NOT NULL, notice TEXT NOT NULL, written_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, due_at INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL DEFAULT 'waiting', settled_at INTEGER);
CREATE INDEX outbox_waiting ON outbox (receiver, id) WHERE state = 'waiting';
CREATE TABLE memory (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID
"""
_FIRST_WAIT: Final = timedelta(seconds=10)
_LONGEST_WAIT: Final = timedelta(minutes=5)
_REFUSALS: Final = 3
"""So often a receiver may refuse a notice for what it says; then it is set aside, for it would hold up all later
ones."""
_RESERVE: Final = 256 * 1024
"""Bytes: some hundred notices."""
_TIMEOUT: Final = 10.0
"""Seconds for one answer."""
_BUDGET: Final = 20.0
"""Seconds for one round of deliveries. Dagster gives a sensor sixty."""


class Finding(Value):
    """Something that is wrong now. ``subject`` tells findings of one condition apart. ``patience`` is how many seconds
    it must be found before anybody is told. ``remedy`` is the first thing to try."""

    condition: str
    subject: str
    summary: str
    remedy: str
    since: Time
    tenant: str = ""
    repository: str = ""
    connector: str = ""
    asset: str = ""
    run_id: str = ""
    patience: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.condition}|{self.subject}"

    @property
    def where(self) -> dict[str, str]:
        """The parts of its place that are known."""
        parts = ("tenant", "repository", "connector", "asset")
        return {part: value for part in parts if (value := getattr(self, part))}


class Alert(Value):
    """A finding that is or was told. ``state`` is pending (not told yet), open or over."""

    uid: str
    state: str
    finding: Finding
    seen_at: Time
    opened_at: Time | None
    ended_at: Time | None


class Notice(Value):
    """What a receiver is told, once. ``id`` is its idempotency key, the same for every attempt."""

    id: str
    event: Literal["opened", "recovered", "test"]
    at: Time
    run_url: str
    finding: Finding

    @property
    def headline(self) -> str:
        """One line, whatever the finding quotes."""
        word = {"opened": "ALERT", "recovered": "RECOVERED", "test": "TEST"}[self.event]
        return f"{word}: {' '.join(self.finding.summary.split())}"

    @property
    def lines(self) -> list[str]:
        """Everything, for people."""
        found = self.finding
        where = ", ".join(f"{name} {value}" for name, value in found.where.items())
        first = f"First thing to try: {found.remedy}" if self.event == "opened" else ""
        over = f", over at {self.at:%Y-%m-%d %H:%M} UTC" if self.event == "recovered" else ""
        since = f"Since: {found.since:%Y-%m-%d %H:%M} UTC{over}"
        run = f"Run: {self.run_url}" if self.run_url else ""
        return [line for line in (f"Where: {where}" if where else "", since, run, first) if line]

    def body(self) -> dict[str, Any]:
        """The JSON that webhooks and commands get. Keys may be added, never renamed or removed."""
        found = self.finding
        return {
            "id": self.id,
            "event": self.event,
            "condition": found.condition,
            "what": found.summary,
            "where": found.where,
            "since": found.model_dump(mode="json")["since"],
            "at": self.model_dump(mode="json")["at"],
            "run_id": found.run_id,
            "run_url": self.run_url,
            "first_thing_to_try": found.remedy,
        }


class Waiting(Value):
    """A notice in the outbox."""

    number: int
    receiver: str
    notice: Notice
    attempts: int
    problem: str


class Delivery(Value):
    """How one receiver's part of a round went. ``problem`` "" is none."""

    receiver: str
    sent: int
    waiting: int
    problem: str


class AlertBook(Database):
    """One SQLite file: alerts, the outbox, and what conditions remember from one look to the next."""

    what = "the alerts"
    schemas = (_SCHEMA,)
    # Unlike a write-ahead log this journal stays as long as it was: on a full disk it needs no new room.
    pragmas = ("journal_mode = PERSIST", "secure_delete = ON")

    def __init__(self, path: Path, settings: AlertSettings) -> None:
        self.settings = settings
        super().__init__(path)
        with suppress(StoreError):  # a disk that is full already: there may still be room enough in the file
            self._reserve()

    def _reserve(self) -> None:
        """Room in the file, and in its journal, for what is to be told when the disk is full."""
        with self.transaction() as db:
            (free,), (page,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_size"))
            if free * page >= _RESERVE // 2:
                return
            db.execute("CREATE TABLE IF NOT EXISTS filling (bytes BLOB)")
            db.execute("INSERT INTO filling VALUES (zeroblob(?))", (_RESERVE,))
        with self.transaction() as db:
            db.execute("DROP TABLE filling")

    @contextmanager
    def turn(self, name: str) -> Iterator[bool]:
        """Whether it is our turn at something that one process does at a time. A killed one gives its turn back."""
        with self.path.with_name(f"{self.path.stem}-{name}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    # Alerts

    def standing(self, condition: str) -> list[Finding]:
        """What was found at the last look, told or not."""
        return [alert.finding for alert in self._alerts("state <> 'over' AND condition = ?", condition)]

    def open(self) -> list[Alert]:
        """Alerts that were told and last, the oldest first."""
        return self._alerts("state = 'open'")

    def over(self, limit: int) -> list[Alert]:
        """Alerts that are over, the newest first."""
        return self._alerts("state = 'over'", order=f"ended_at DESC LIMIT {int(limit)}")

    def _alerts(self, where: str, *values: object, order: str = "id") -> list[Alert]:
        columns = "uid, state, finding, seen_at, opened_at, ended_at"
        query = f"SELECT {columns} FROM alerts WHERE {where} ORDER BY {order}"  # noqa: S608 - our own words alone
        with self.transaction() as db:
            rows = db.execute(query, values).fetchall()
        return [
            Alert(
                uid=uid,
                state=state,
                finding=Finding.model_validate_json(finding),
                seen_at=time_of(seen),
                opened_at=time_of(opened) if opened is not None else None,
                ended_at=time_of(ended) if ended is not None else None,
            )
            for uid, state, finding, seen, opened, ended in rows
        ]

    def settle(
        self, looks: Mapping[str, Sequence[Finding]], now: datetime, memory: Mapping[str, str] | None = None
    ) -> list[Notice]:
        """What was found of each condition that could be looked at; alerts of all others stay as they are. Everything,
        with what is to be remembered, in one transaction. Returns what is to be told."""
        notices: list[Notice] = []
        with self.transaction() as db:
            for condition, findings in looks.items():
                notices += _Settling(db, now).settle(condition, findings, self.settings.ui)
            for notice in notices:
                rows = ((receiver, notice.model_dump_json(), milliseconds(now)) for receiver in self.settings.receivers)
                db.executemany("INSERT INTO outbox (receiver, notice, written_at) VALUES (?, ?, ?)", rows)
            db.executemany("INSERT OR REPLACE INTO memory VALUES (?, ?)", (memory or {}).items())
        return notices

    def memory(self) -> dict[str, str]:
        with self.transaction() as db:
            return dict(db.execute("SELECT name, value FROM memory"))

    def forget(self, before: datetime) -> int:
        """Delete alerts that ended, and notices that were settled, before a time; returns how many alerts."""
        with self.transaction() as db:
            db.execute("DELETE FROM outbox WHERE state <> 'waiting' AND settled_at < ?", (milliseconds(before),))
            return db.execute(
                "DELETE FROM alerts WHERE state = 'over' AND ended_at < ?", (milliseconds(before),)
            ).rowcount

    # The outbox

    def waiting(self, receiver: str) -> list[Waiting]:
        """Notices that this receiver has not taken yet, in the order in which they were written."""
        query = "SELECT id, receiver, notice, attempts, problem FROM outbox WHERE state = 'waiting' AND receiver = ?"
        with self.transaction() as db:
            rows = db.execute(f"{query} ORDER BY id", (receiver,)).fetchall()
        return [
            Waiting(
                number=number,
                receiver=name,
                notice=Notice.model_validate_json(notice),
                attempts=attempts,
                problem=problem,
            )
            for number, name, notice, attempts, problem in rows
        ]

    def due(self, receiver: str, now: datetime) -> bool:
        """Whether this receiver's first notice may be tried. A wait longer than any that we make comes from a clock
        that was wrong, and is over."""
        query = "SELECT due_at FROM outbox WHERE state = 'waiting' AND receiver = ? ORDER BY id LIMIT 1"
        with self.transaction() as db:
            row = db.execute(query, (receiver,)).fetchone()
        return row is not None and not milliseconds(now) < row[0] <= milliseconds(now + _LONGEST_WAIT)

    def sent(self, waiting: Waiting, now: datetime) -> None:
        self._finish(waiting, "sent", "", now)

    def failed(self, waiting: Waiting, error: DeliveryError, now: datetime) -> None:
        """Try again later, or set it aside if the receiver refuses what it says for good."""
        if error.refused and waiting.attempts + 1 >= _REFUSALS:
            self._finish(waiting, "refused", str(error), now)
            return
        wait = min(_FIRST_WAIT * 2 ** min(waiting.attempts, 10), _LONGEST_WAIT)
        with self.transaction() as db:
            db.execute(
                "UPDATE outbox SET attempts = attempts + 1, problem = ?, due_at = ? WHERE id = ?",
                (str(error), milliseconds(now + wait), waiting.number),
            )

    def _finish(self, waiting: Waiting, state: str, problem: str, now: datetime) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE outbox SET state = ?, problem = ?, settled_at = ?, attempts = attempts + 1 WHERE id = ?",
                (state, problem, milliseconds(now), waiting.number),
            )


class _Settling:
    """One condition's part of a settlement, inside its transaction."""

    def __init__(self, db: sqlite3.Connection, now: datetime) -> None:
        self._db = db
        self._now = now

    def settle(self, condition: str, findings: Iterable[Finding], ui: str) -> list[Notice]:
        query = "SELECT key, id, uid, state, finding, seen_at FROM alerts WHERE state <> 'over' AND condition = ?"
        standing = {key: rest for key, *rest in self._db.execute(query, (condition,)).fetchall()}
        notices = []
        for finding in {each.key: each for each in findings}.values():
            assert finding.condition == condition
            uid = self._found(finding, standing.pop(finding.key, None))
            if uid:
                notices.append(_notice(finding, uid, "opened", self._now, ui))
        for number, uid, state, text, _ in standing.values():
            if self._ended(number, state):
                notices.append(_notice(Finding.model_validate_json(text), uid, "recovered", self._now, ui))
        return notices

    def _found(self, finding: Finding, row: Sequence[Any] | None) -> str | None:
        """The alert's uid if this opens it."""
        now = milliseconds(self._now)
        number, uid, state, told, seen = row or (self._insert(finding), None, "pending", "", now)
        if told:
            since = min(finding.since, Finding.model_validate_json(told).since)
            finding = finding.model_copy(update={"since": since})
        # One that was first seen in the future was seen by a clock that was wrong.
        seen = min(seen, now)
        opens = state == "pending" and now - seen >= finding.patience * 1000
        self._db.execute(
            "UPDATE alerts SET finding = ?, seen_at = ?, state = ?, opened_at = coalesce(opened_at, ?) WHERE id = ?",
            (finding.model_dump_json(), seen, "open" if opens else state, now if opens else None, number),
        )
        return (uid or self._uid(number)) if opens else None

    def _insert(self, finding: Finding) -> int:
        values = (uuid.uuid4().hex, finding.key, finding.condition, finding.model_dump_json(), milliseconds(self._now))
        cursor = self._db.execute(
            "INSERT INTO alerts (uid, key, condition, state, finding, seen_at) VALUES (?, ?, ?, 'pending', ?, ?)",
            values,
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _uid(self, number: int) -> str:
        return str(self._db.execute("SELECT uid FROM alerts WHERE id = ?", (number,)).fetchone()[0])

    def _ended(self, number: int, state: str) -> bool:
        """Whether somebody was told of it: what nobody was told of just goes."""
        if state == "pending":
            self._db.execute("DELETE FROM alerts WHERE id = ?", (number,))
            return False
        self._db.execute(
            "UPDATE alerts SET state = 'over', ended_at = ? WHERE id = ?", (milliseconds(self._now), number)
        )
        return True


def _notice(finding: Finding, uid: str, event: Literal["opened", "recovered", "test"], at: datetime, ui: str) -> Notice:
    url = f"{ui.rstrip('/')}/runs/{finding.run_id}" if finding.run_id else ""
    return Notice(id=f"{uid}-{event}", event=event, at=at, run_url=url, finding=finding)


def trial_notice(now: datetime) -> Notice:
    """For trying out a receiver."""
    finding = Finding(
        condition="test",
        subject="test",
        summary="Context-OS can reach this receiver",
        remedy="nothing: this is only a test",
        since=now,
    )
    return _notice(finding, uuid.uuid4().hex, "test", now, "")


# Delivery


def deliver(book: AlertBook, now: datetime, *, timeout: float = _TIMEOUT, budget: float = _BUDGET) -> list[Delivery]:
    """Tell every receiver what it has not been told yet, as far as it answers. ``timeout`` and ``budget`` are in
    seconds; a receiver that is not done by then goes on by itself and reports at the next round."""
    rounds = [_Round(book, name, receiver, now, timeout, budget) for name, receiver in book.settings.receivers.items()]
    for each in rounds:
        each.start()
    deadline = time.monotonic() + budget
    for each in rounds:
        each.join(max(0.0, deadline - time.monotonic()))
    return [each.report() for each in rounds]


class _Round(threading.Thread):
    """One receiver's turn. A daemon thread: a receiver that hangs must not keep the process from ending."""

    def __init__(
        self, book: AlertBook, name: str, receiver: Receiver, now: datetime, timeout: float, budget: float
    ) -> None:
        super().__init__(name=f"alerts-{name}", daemon=True)
        self._book, self._receiver, self._told = book, receiver, name
        self._now, self._timeout, self._budget = now, timeout, budget
        self._sent = 0
        self._problem = ""

    def run(self) -> None:
        try:
            with self._book.turn(f"receiver-{self._told}") as ours:
                if ours and self._book.due(self._told, self._now):
                    self._drain()
        except StoreError as error:
            self._problem = str(error)

    def _drain(self) -> None:
        deadline = time.monotonic() + self._budget
        for waiting in self._book.waiting(self._told):
            if time.monotonic() > deadline:
                return
            try:
                send(self._receiver, waiting.notice, self._timeout)
            except DeliveryError as error:
                self._book.failed(waiting, error, self._now)
                return
            self._book.sent(waiting, self._now)
            self._sent += 1

    def report(self) -> Delivery:
        waiting = self._book.waiting(self._told)
        late = f"no answer within {self._budget:g} s" if self.is_alive() else ""
        problem = self._problem or late or (waiting[0].problem if waiting else "")
        return Delivery(receiver=self._told, sent=self._sent, waiting=len(waiting), problem=problem)


def send(receiver: Receiver, notice: Notice, timeout: float = _TIMEOUT) -> str:
    """Tell one receiver; returns what it answered. Raises DeliveryError."""
    try:
        match receiver:
            case Webhook():
                return _post(receiver, notice, timeout)
            case Email():
                return _mail(receiver, notice, timeout)
            case Command():
                return _start(receiver, notice, timeout)
    except (OSError, http.client.HTTPException, smtplib.SMTPException) as error:
        # No address in the message: that of a webhook is a secret.
        raise DeliveryError(f"{type(error).__name__}: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to a host that nobody configured."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(receiver: Webhook, notice: Notice, timeout: float) -> str:
    body = notice.body() if receiver.kind == "webhook" else _slack(notice)
    headers = {"Content-Type": "application/json", "Idempotency-Key": notice.id, "User-Agent": "context-os"}
    if receiver.token:
        headers["Authorization"] = f"Bearer {receiver.token.get_secret_value()}"
    request = urllib.request.Request(  # noqa: S310 - settings take http and https alone
        receiver.url.get_secret_value(), json.dumps(body).encode(), headers, method="POST"
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
            return f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        raise DeliveryError(f"HTTP {error.code}", refused=error.code in {400, 413, 422}) from error
    except urllib.error.URLError as error:
        raise DeliveryError(f"cannot be reached: {error.reason}") from error


def _slack(notice: Notice) -> dict[str, Any]:
    """https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks: ``text`` is what a notification shows.
    The blocks are plain text, so that a name with Slack's markup in it mentions and links nobody."""
    lines = [notice.headline, *notice.lines]
    section = {"type": "section", "text": {"type": "plain_text", "text": "\n".join(lines)[:2900]}}
    context = {"type": "context", "elements": [{"type": "plain_text", "text": f"id {notice.id}"}]}
    text = notice.headline.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": text, "blocks": [section, context]}


def _mail(receiver: Email, notice: Notice, timeout: float) -> str:
    message = EmailMessage()
    message["Subject"] = notice.headline[:200]
    message["From"] = receiver.sender
    message["To"] = ", ".join(receiver.to)
    message["Date"] = notice.at
    message["Message-ID"] = f"<{notice.id}@context-os>"
    message["X-Idempotency-Key"] = notice.id
    message.set_content("\n".join([notice.finding.summary, "", *notice.lines, ""]))
    with smtplib.SMTP(receiver.host, receiver.port, timeout=timeout) as server:
        if receiver.starttls:
            server.starttls(context=ssl.create_default_context())
        if receiver.username and receiver.password:
            server.login(receiver.username, receiver.password.get_secret_value())
        refused = server.send_message(message)
    if refused:
        raise DeliveryError(f"refused for {', '.join(refused)}")
    return f"accepted by {receiver.host}"


def _start(receiver: Command, notice: Notice, timeout: float) -> str:
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            receiver.command, stdin=subprocess.PIPE, stdout=told, stderr=told, start_new_session=True
        )
        try:
            process.communicate(json.dumps(notice.body()).encode() + b"\n", timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started itself
            process.wait()
            raise DeliveryError(f"{receiver.command[0]} did not end within {timeout:g} s and was killed") from None
        told.seek(0)
        words = told.read(2_000).decode(errors="replace").strip()
    if process.returncode:
        raise DeliveryError(f"{receiver.command[0]} ended with {process.returncode}: {words}")
    return words or "ended with 0"
