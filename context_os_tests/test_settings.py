"""Where settings come from, what is wrong with them, and what they never show."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from context_os import settings
from context_os.errors import ConfigurationError


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONTEXT_OS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def configure(folder: Path, text: str) -> None:
    (folder / "context-os.toml").write_text(text, encoding="utf-8")


def test_with_nothing_configured_the_laboratory_store_is_used(tmp_path: Path) -> None:
    found = settings.load()
    assert (found.store_kind, found.store_is_default) == ("lab", True)
    assert found.home == tmp_path / ".context-os"


def test_a_url_alone_means_weaviate_and_is_never_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_STORE__URL", "http://127.0.0.1:1")
    found = settings.load()
    assert (found.store_kind, found.store_is_default) == ("weaviate", False)
    with found.open_store() as store:
        health = store.health()
    assert not health.ready
    assert "127.0.0.1:1" in health.detail


def test_arguments_beat_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, 'tenant = "from-file"\nprincipal = "from-file"\nclearance = "public"\n')
    monkeypatch.setenv("CONTEXT_OS_TENANT", "from-environment")
    monkeypatch.setenv("CONTEXT_OS_PRINCIPAL", "from-environment")
    found = settings.load({"tenant": "from-argument", "principal": None})
    assert (found.tenant, found.principal, found.clearance) == ("from-argument", "from-environment", "public")
    origin = {row["name"]: row["source"] for row in settings.explain(found)}
    assert origin["tenant"] == "argument"
    assert origin["principal"] == "environment"
    assert origin["clearance"].startswith("file ")
    assert origin["store.grpc_port"] == "default"


def test_the_file_is_found_from_a_folder_below_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    configure(tmp_path, 'home = "state"\n[repositories."a/b"]\nlocation = "code"\n')
    below = tmp_path / "one" / "two"
    below.mkdir(parents=True)
    found = settings.load(start=below)
    assert found.home == tmp_path / "state"
    assert found.repositories["a/b"].location == tmp_path / "code"


def test_every_problem_is_told_at_once_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(
        tmp_path,
        """
tenant = "not a tenant!"
colour = "red"
[store]
kind = "paper"
grpc_port = 99999999
[gate]
max_refused_share = 7
[connectors.symbols]
ttl = "soon"
speed = 9
[connectors.telepathy]
""",
    )
    monkeypatch.setenv("CONTEXT_OS_CLEARANCE", "cosmic")
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    told = str(caught.value)
    for name in ("tenant", "colour", "store.kind", "store.grpc_port", "gate.max_refused_share", "clearance"):
        assert f"  {name}: " in told
    assert "connectors.symbols.ttl" in told
    assert "connectors.symbols.speed: no such setting" in told
    assert "connectors.telepathy: no such connector" in told
    assert "(from environment)" in told
    assert "context-os.toml" in told
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["tenant = ", "tenant = 'a'\ntenant = 'b'", "\x00"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    configure(tmp_path, text)
    with pytest.raises(ConfigurationError, match=r"context-os\.toml"):
        settings.load()


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigurationError, match=r"absent\.toml is not a file"):
        settings.load()


def test_secrets_are_masked_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_STORE__API_KEY", "hunter2-store")
    monkeypatch.setenv("CONTEXT_OS_CONNECTORS__PULL_REQUESTS__TOKEN", "hunter2-token")
    found = settings.load()
    shown = f"{settings.explain(found)} {found!r} {found.connector('pull_requests')!r}"
    assert "hunter2-store" not in shown
    assert "hunter2-token" not in str(settings.explain(found)) + repr(found.connector("pull_requests"))
    assert found.store.api_key is not None
    assert found.store.api_key.get_secret_value() == "hunter2-store"


def test_durations_are_written_as_people_say_them(tmp_path: Path) -> None:
    configure(tmp_path, '[connectors.symbols]\nttl = "36h"\n[connectors.team_rules]\nttl = "never"\n')
    found = settings.load()
    assert found.connector("symbols").ttl == timedelta(hours=36)
    assert found.connector("team_rules").ttl is None


def test_two_homes_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "one"))
    one = settings.load()
    monkeypatch.setenv("CONTEXT_OS_HOME", str(tmp_path / "two"))
    two = settings.load()
    with one.open_store() as first, two.open_store() as second:
        assert first.identity != second.identity
    assert (one.home.stat().st_mode & 0o777) == 0o700
