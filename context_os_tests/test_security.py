"""Access keys: what is kept of them, who is let in, and the commands that make and end them."""

from __future__ import annotations

import json
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from context_os.cli import cli
from context_os.errors import ConfigurationError, NotFound, StoreError, StoreUnavailable
from context_os.model import Access, Confidentiality, utcnow
from context_os.security import FILE_NAME, AccessKeys, Key, Role

INTERNAL = Confidentiality.INTERNAL


@pytest.fixture
def keys(tmp_path: Path) -> AccessKeys:
    return AccessKeys(tmp_path)


def make(keys: AccessKeys, **more: Any) -> tuple[Key, str]:
    key, token = keys.create("acme", INTERNAL, Role.EDITOR, "ada", **more)
    return key, token.get_secret_value()


def test_a_key_stands_for_an_access(keys: AccessKeys) -> None:
    made, token = make(keys)
    found = keys.authenticate(token)
    assert found is not None
    assert found.access == Access(tenant="acme", principal="ada", clearance=INTERNAL)
    assert found.role is Role.EDITOR
    assert found.id == made.id
    assert token.startswith(f"cos_{made.id}_")


def test_nothing_on_disk_says_the_secret(keys: AccessKeys, tmp_path: Path) -> None:
    _, token = make(keys)
    secret = token.split("_", 2)[2]
    for file in tmp_path.glob(f"{FILE_NAME}*"):
        assert secret.encode() not in file.read_bytes()
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert secret not in repr(keys.create("acme", INTERNAL, Role.VIEWER, "bob"))


@given(st.data())
def test_no_other_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    keys = AccessKeys(tmp_path_factory.getbasetemp() / "other-text")
    _, token = make(keys)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda character: character != token[place]))
    for forged in (token[:place] + other + token[place + 1 :], token[:place], token + other, data.draw(st.text())):
        assert keys.authenticate(forged) is None
    assert keys.authenticate(token) is not None


def test_a_secret_belongs_to_its_own_id(keys: AccessKeys) -> None:
    (first, one), (second, other) = make(keys), make(keys)
    assert keys.authenticate(one.replace(first.id, second.id)) is None
    assert keys.authenticate(other.replace(second.id, first.id)) is None


def test_a_revoked_key_ends_at_once_and_for_everybody(keys: AccessKeys, tmp_path: Path) -> None:
    made, token = make(keys)
    elsewhere = AccessKeys(tmp_path)
    assert elsewhere.authenticate(token)
    ended = keys.revoke(made.id)
    assert ended.state(utcnow()) == "revoked"
    assert elsewhere.authenticate(token) is None
    assert elsewhere.active(made.id) is None
    assert keys.revoke(made.id).revoked_at == ended.revoked_at
    with pytest.raises(NotFound):
        keys.revoke("nobody")


def test_an_expired_key_is_refused(keys: AccessKeys) -> None:
    made, token = make(keys, expires_at=utcnow() - timedelta(seconds=1))
    assert keys.authenticate(token) is None
    assert keys.list()[0].state(utcnow()) == "expired"
    with pytest.raises(ConfigurationError, match="expired"):
        keys.rotate(made.id)
    _, later = make(keys, expires_at=utcnow() + timedelta(hours=1))
    assert keys.authenticate(later)


def test_rotation_ends_the_old_key_and_keeps_what_it_may(keys: AccessKeys) -> None:
    old, token = make(keys, expires_at=utcnow() + timedelta(days=1))
    new, fresh = keys.rotate(old.id)
    assert keys.authenticate(token) is None
    found = keys.authenticate(fresh.get_secret_value())
    assert found is not None
    same = ("tenant", "clearance", "role", "label", "expires_at")
    assert [getattr(found, name) for name in same] == [getattr(old, name) for name in same]
    assert new.id != old.id
    with pytest.raises(ConfigurationError, match="revoked"):
        keys.rotate(old.id)


def test_last_use_is_noted_and_a_lock_keeps_nobody_out(keys: AccessKeys, tmp_path: Path, monkeypatch: Any) -> None:
    made, token = make(keys)
    assert made.last_used_at is None
    keys.authenticate(token)
    first = keys.list()[0].last_used_at
    assert first is not None
    keys.authenticate(token)
    assert keys.list()[0].last_used_at == first  # within the minute: no second write

    def full(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE keys SET last_used_at = NULL")
    monkeypatch.setattr(AccessKeys, "transaction", full)
    assert keys.authenticate(token) is not None


def test_eight_at_once_are_let_in(keys: AccessKeys) -> None:
    tokens = [make(keys)[1] for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(keys.authenticate, tokens * 5))


@pytest.mark.parametrize(("role", "may"), [(Role.VIEWER, 1), (Role.EDITOR, 2), (Role.ADMIN, 3)])
def test_roles_include_those_before_them(role: Role, may: int) -> None:
    assert [role.includes(other) for other in Role] == [True] * may + [False] * (3 - may)


def test_a_file_of_a_newer_version_or_of_somebody_else_is_refused(tmp_path: Path) -> None:
    AccessKeys(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer Context-OS"):
        AccessKeys(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE_NAME).write_text("this is no database, but a text that somebody put here" * 20)
    with pytest.raises(StoreError, match="cannot be used"):
        AccessKeys(other)


def command(home: Path, *arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli, ["access", *arguments, "--json"], env={"CONTEXT_OS_HOME": str(home)})
    assert done.exit_code == code or isinstance(done.exception, (ConfigurationError, NotFound)), done.output
    return json.loads(done.stdout) if done.exit_code == 0 else done.exception


def test_the_commands(tmp_path: Path) -> None:
    made = command(tmp_path, "create", "--label", "ci", "--role", "admin", "--tenant", "acme", "--expires", "90d")
    assert (made["role"], made["tenant"], made["clearance"], made["state"]) == ("admin", "acme", "internal", "active")
    keys = AccessKeys(tmp_path)
    assert keys.authenticate(made["key"])
    listed = command(tmp_path, "list")["keys"]
    assert [each["label"] for each in listed] == ["ci"]
    assert "key" not in listed[0]
    assert command(tmp_path, "list", "--tenant", "globex")["keys"] == []
    rotated = command(tmp_path, "rotate", made["id"])
    assert keys.authenticate(rotated["key"])
    assert command(tmp_path, "revoke", rotated["id"])["state"] == "revoked"
    assert not keys.authenticate(rotated["key"])
    assert isinstance(command(tmp_path, "revoke", "nobody"), NotFound)
    assert isinstance(command(tmp_path, "create", "--label", "x", "--expires", "soon"), ConfigurationError)
    text = CliRunner().invoke(cli, ["access", "create", "--label", "bob"], env={"CONTEXT_OS_HOME": str(tmp_path)})
    assert text.stdout.startswith("cos_")
    assert text.stdout.count("\n") == 1  # to be piped
    assert "not shown again" in text.stderr
