"""The SQLite files of ours: what a session shares, and what it does not."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from context_os.database import Database
from context_os.errors import StoreError, StoreUnavailable


class Notes(Database):
    what = "the notes"
    schemas = ("CREATE TABLE notes (note TEXT NOT NULL)",)

    def add(self, note: str | None) -> None:
        with self.transaction() as db:
            db.execute("INSERT INTO notes VALUES (?)", (note,))

    def all(self) -> list[str]:
        with self.connection() as db:
            return [note for (note,) in db.execute("SELECT note FROM notes")]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "deep" / "notes.db")


@pytest.fixture
def opened(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each connection that is opened from now on."""
    found: list[int] = []
    connect = sqlite3.connect

    def counting(*args: object, **kwargs: object) -> sqlite3.Connection:
        found.append(len(found))
        return connect(*args, **kwargs)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", counting)
    return found


def test_a_session_shares_one_connection_and_gives_it_back(notes: Notes, opened: list[int]) -> None:
    with notes.session(), notes.session():
        notes.add("one")
        notes.add("two")
        assert notes.all() == ["one", "two"]
    assert len(opened) == 1
    assert notes.all() == ["one", "two"]
    assert len(opened) == 2
    assert not notes.path.with_name("notes.db-wal").exists()


def test_another_thread_has_no_part_in_a_session(notes: Notes, opened: list[int]) -> None:
    with notes.session():
        thread = threading.Thread(target=notes.add, args=("from beside",))
        thread.start()
        thread.join()
        assert notes.all() == ["from beside"]
    assert len(opened) == 2


def test_a_transaction_that_fails_in_a_session_is_undone_and_the_session_goes_on(notes: Notes) -> None:
    with notes.session():
        with pytest.raises(StoreError, match=r"^the notes in .*notes\.db cannot be used: NOT NULL"):
            notes.add(None)
        with pytest.raises(KeyError), notes.transaction() as db:
            db.execute("INSERT INTO notes VALUES ('half')")
            raise KeyError
        notes.add("whole")
        assert notes.all() == ["whole"]


def test_what_goes_wrong_elsewhere_in_a_session_keeps_its_name(notes: Notes) -> None:
    with pytest.raises(sqlite3.OperationalError), notes.session():
        sqlite3.connect(":memory:").execute("SELECT * FROM nowhere")


def test_a_session_on_what_is_no_database_says_so(notes: Notes) -> None:
    notes.path.write_bytes(b"no database, and long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match="the notes"), notes.session():
        raise AssertionError


def test_a_folder_in_its_place_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "notes.db").mkdir()
    with pytest.raises(StoreUnavailable, match="the notes"):
        Notes(tmp_path / "notes.db")
