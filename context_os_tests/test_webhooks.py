"""GitHub's webhooks: what is let in, what it starts, and that nothing of it is lost or done twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from samples import make_repository
from servers import SECRET, deliver, push, running, serving, wait_until

from context_os import plugins, settings, webhooks
from context_os.definitions import defs
from context_os.defs import run
from context_os.defs.assets import repositories
from context_os.defs.resources import Workspace
from context_os.defs.triggers import webhook_triggers
from context_os.errors import SourceRefused
from context_os.inbox import Inbox, Trigger, Waiting
from context_os.ingestion import register
from context_os.ledger import Ledger, Registered
from context_os.settings import Settings

ALL = tuple(plugins.names("connectors"))
HISTORY = {"commits", "pull_requests"}
SHOP = Registered("acme/shop", Path("/nowhere"), None)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a home in which acme/shop is registered, for this process and those it starts."""
    home = tmp_path / "home"
    monkeypatch.setenv("CONTEXT_OS_HOME", str(home))
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__PROVIDER", "none")
    monkeypatch.setenv("CONTEXT_OS_SERVER__WEBHOOK_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    found = settings.load()
    register(found, Ledger(found.make_home() / "ledger.db"), "acme/shop", make_repository(tmp_path / "shop"))
    return found


@pytest.fixture
def url(chosen: Settings) -> Iterator[str]:
    with running(chosen) as found:
        yield found


def waiting(chosen: Settings) -> list[Waiting]:
    return Inbox(chosen.home).waiting(None)[0]


@pytest.fixture(scope="session")
def examples(shared: Path) -> dict[str, list[dict[str, Any]]]:
    """GitHub's own example payloads by event."""
    file = shared / "data" / "github-api" / "webhooks" / "webhooks-examples-pr.json"
    if not file.is_file():
        pytest.skip(f"no example payloads at {file}")
    return {each["name"]: each["examples"] for each in json.loads(file.read_text(encoding="utf-8"))}


# What a delivery asks for


def read(event: str, payload: Any, *registered: Registered) -> Trigger | str:
    connectors = {name: settings.load().connector(name) for name in plugins.names("connectors")}
    return webhooks.read(event, json.dumps(payload).encode(), registered or (SHOP,), connectors)


@pytest.mark.parametrize(
    ("path", "reader"),
    [
        ("shop/app.py", {"symbols"}),
        ("README.md", {"documents"}),
        ("bugs/shop-7.md", {"bug_specs"}),
        (".github/CODEOWNERS", {"team_rules"}),
        ("logo.png", set()),
    ],
)
def test_a_push_concerns_the_connectors_that_read_its_files(path: str, reader: set[str]) -> None:
    found = read("push", push("acme/shop", path))
    assert isinstance(found, Trigger)
    assert found.repository == "acme/shop"
    assert set(found.connectors) == reader | HISTORY


def test_the_connectors_list_no_file_that_they_say_does_not_concern_them(chosen: Settings) -> None:
    from context_os.connectors import Known
    from context_os.ingestion import find_repository

    repository = find_repository(chosen, Ledger(chosen.home / "ledger.db"), "acme/shop")
    for name in set(ALL) - HISTORY - {"laboratory", "playbook"}:
        connector = chosen.connector(name)
        listed = connector.scan(repository, Known()).units
        assert listed
        assert all(connector.concerns(path) for path in listed)


@pytest.mark.parametrize("more", [{"forced": True}, {"created": True}, {"commits": []}])
def test_where_a_push_does_not_list_all_its_files_everybody_looks(more: dict[str, Any]) -> None:
    found = read("push", push("acme/shop", "logo.png", **more))
    assert isinstance(found, Trigger)
    assert found.connectors == ALL


def test_only_what_is_followed_starts_anything() -> None:
    assert isinstance(read("push", push(ref="refs/heads/other")), webhooks.Ignored)
    assert isinstance(read("push", push(ref="refs/tags/main")), webhooks.Ignored)
    assert isinstance(read("push", push(deleted=True)), webhooks.Ignored)
    assert isinstance(read("push", push("stranger/shop")), webhooks.Ignored)
    assert isinstance(read("star", {"anything": 1}), webhooks.Ignored)
    release = Registered("acme/shop", Path("/nowhere"), "release-1")
    assert isinstance(read("push", push(), release), webhooks.Ignored)
    assert isinstance(read("push", push(ref="refs/heads/release-1"), release), Trigger)
    assert isinstance(read("push", push(ref="refs/tags/release-1"), release), Trigger)


def test_names_are_compared_as_github_does() -> None:
    both = (Registered("ACME/Shop", Path("/one"), None), Registered("acme/shop", Path("/two"), None))
    for name in ("acme/shop", "ACME/Shop"):
        found = read("push", push(name), *both)
        assert isinstance(found, Trigger)
        assert found.repository == name
    found = read("push", push("Acme/SHOP"), both[0])
    assert isinstance(found, Trigger)
    assert found.repository == "ACME/Shop"


def pull(action: str, *, merged: bool = False, base: str = "main") -> dict[str, Any]:
    repository = {"full_name": "acme/shop", "default_branch": "main"}
    return {"action": action, "pull_request": {"merged": merged, "base": {"ref": base}}, "repository": repository}


def test_a_pull_request_concerns_its_connector_and_a_merge_the_code_too() -> None:
    for payload in (pull("opened"), pull("closed"), pull("closed", merged=True, base="other")):
        found = read("pull_request", payload)
        assert isinstance(found, Trigger)
        assert found.connectors == ("pull_requests",)
    merged = read("pull_request", pull("closed", merged=True))
    assert isinstance(merged, Trigger)
    assert merged.connectors == ("pull_requests", "symbols")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda each: (
            st.lists(each)
            | st.dictionaries(
                st.sampled_from(["ref", "repository", "commits", "action", "pull_request"]) | st.text(), each
            )
        ),
    )
)
def test_no_signed_json_breaks_the_reader(payload: Any) -> None:
    for event in ("push", "pull_request", "star"):
        try:
            found = read(event, payload)
        except SourceRefused:
            continue
        assert isinstance(found, (Trigger, webhooks.Ignored))


@given(st.binary(), st.text(min_size=1), st.text())
def test_only_the_right_signature_is_one(body: bytes, secret: str, signature: str) -> None:
    import hashlib
    import hmac

    right = "sha256=" + hmac.new(secret.encode("utf-8", "replace"), body, hashlib.sha256).hexdigest()
    held = SecretStr(secret.encode("utf-8", "replace").decode())
    assert webhooks.is_signed(held, body, right)
    assert not webhooks.is_signed(held, body + b" ", right)
    assert webhooks.is_signed(held, body, signature) == (signature == right)


def test_real_payloads_are_understood(examples: dict[str, list[dict[str, Any]]]) -> None:
    hello = Registered("Codertocat/Hello-World", Path("/nowhere"), None)
    found = [read("push", each, hello) for each in examples["push"]]
    started = [each for each, payload in zip(found, examples["push"], strict=True) if isinstance(each, Trigger)]
    assert [payload["ref"] for payload in examples["push"] if payload["ref"].startswith("refs/heads/")] == [
        "refs/heads/master"
    ] * len(started)
    assert started
    assert {type(read("pull_request", each, hello)) for each in examples["pull_request"]} == {Trigger}
    for event, payloads in examples.items():
        assert all(isinstance(read(event, each, hello), (Trigger, webhooks.Ignored)) for each in payloads)


# Over HTTP


def test_a_push_is_queued_once(url: str, chosen: Settings) -> None:
    first = deliver(url, "push", push("acme/shop", "shop/app.py"), "delivery-1")
    assert (first.status_code, first.json()["status"]) == (202, "queued")
    again = deliver(url, "push", push("acme/shop", "shop/app.py"), "delivery-1")
    assert (again.status_code, again.json()["status"]) == (202, "duplicate")
    assert waiting(chosen) == [
        Waiting("acme/shop", ("commits", "pull_requests", "symbols"), ("push",), "delivery-1", 1)
    ]


def test_forged_malformed_and_oversized_deliveries_start_nothing(url: str, chosen: Settings) -> None:
    good = push("acme/shop", "shop/app.py")
    refused = {
        "another secret": (deliver(url, "push", good, "1", secret="another secret of the tests"), 403),
        "another body": (deliver(url, "push", good, "2", X_Hub_Signature_256="sha256=" + "0" * 64), 403),
        "no signature": (deliver(url, "push", good, "3", X_Hub_Signature_256=""), 403),
        "the old signature": (deliver(url, "push", good, "4", X_Hub_Signature_256="sha1=" + "0" * 40), 403),
        "not JSON": (deliver(url, "push", None, "5", body=b"payload=%7B%7D"), 422),
        "deep": (deliver(url, "push", None, "6", body=b"[" * 100_000), 422),
        "not an event": (deliver(url, "push", {"ref": 1}, "7"), 422),
        "a form": (deliver(url, "push", good, "8", Content_Type="application/x-www-form-urlencoded"), 415),
        "no delivery id": (deliver(url, "push", good, ""), 422),
        "no event": (deliver(url, "", good, "9"), 422),
        "too large": (deliver(url, "push", None, "10", body=b" " * (25 * 2**20 + 1)), 413),
    }
    for what, (answer, status) in refused.items():
        assert answer.status_code == status, what
        assert answer.headers["content-type"] == "application/problem+json", what
    assert waiting(chosen) == []
    # None of them was remembered: the real one may still come under the same id.
    assert deliver(url, "push", good, "1").json()["status"] == "queued"


def test_other_events_are_taken_and_start_nothing(url: str, chosen: Settings) -> None:
    assert deliver(url, "ping", {"zen": "Keep it logically awesome."}, "1").json()["status"] == "pong"
    for number, event in enumerate(("issues", "star", "a_new_one")):
        answer = deliver(url, event, {}, f"other-{number}")
        assert (answer.status_code, answer.json()["status"]) == (202, "ignored")
    assert deliver(url, "push", push("stranger/thing"), "2").json()["status"] == "ignored"
    assert waiting(chosen) == []


def test_without_a_secret_there_is_no_webhook(
    chosen: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONTEXT_OS_SERVER__WEBHOOK_SECRET")
    with running(settings.load()) as url, caplog.at_level(logging.WARNING):
        assert deliver(url, "push", push(), "1").status_code == 404
    assert "CONTEXT_OS_SERVER__WEBHOOK_SECRET" in caplog.text
    assert waiting(chosen) == []


def test_the_secret_is_never_shown(chosen: Settings) -> None:
    assert SECRET not in repr(chosen) + chosen.model_dump_json()
    (row,) = [each for each in settings.explain(chosen) if each["name"] == "server.webhook_secret"]
    assert SECRET not in str(row["value"])


# The queue


def test_triggers_of_a_repository_wait_as_one(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.accept("1", Trigger("shop", ("symbols",), "push"))
    inbox.accept("2", Trigger("web", ("documents",), "push"))
    inbox.accept("3", Trigger("shop", ("pull_requests",), "pull_request"))
    found, cursor = inbox.waiting(None)
    assert found == [
        Waiting("shop", ("pull_requests", "symbols"), ("pull_request", "push"), "3", 2),
        Waiting("web", ("documents",), ("push",), "2", 1),
    ]
    assert inbox.waiting(None) == (found, cursor)  # until the cursor comes back nothing is gone
    inbox.accept("4", Trigger("shop", ("symbols",), "push"))
    assert [each.delivery for each in inbox.waiting(cursor)[0]] == ["4"]
    inbox.forget(cursor)
    assert [each.delivery for each in inbox.waiting(None)[0]] == ["4"]


def test_a_cursor_of_an_inbox_that_was_made_anew_hides_nothing(tmp_path: Path) -> None:
    old = Inbox(tmp_path)
    for number in range(5):
        old.accept(str(number), Trigger("shop", ("symbols",), "push"))
    _, cursor = old.waiting(None)
    for file in tmp_path.glob("inbox.db*"):
        file.unlink()
    new = Inbox(tmp_path)
    new.accept("new", Trigger("shop", ("symbols",), "push"))
    new.forget(cursor)
    assert [each.delivery for each in new.waiting(cursor)[0]] == ["new"]
    for nonsense in ("", "x", ":", "a:b", cursor.partition(":")[0]):
        new.forget(nonsense)
        assert [each.delivery for each in new.waiting(nonsense)[0]] == ["new"]


def test_deliveries_are_forgotten_when_they_are_old_or_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from context_os import inbox as module

    inbox = Inbox(tmp_path)
    now = module.utcnow()
    monkeypatch.setattr(module, "utcnow", lambda: now - timedelta(days=31))
    assert inbox.accept("old", None)
    monkeypatch.setattr(module, "utcnow", lambda: now)
    assert inbox.accept("new", None)
    assert inbox.accept("old", None)
    assert not inbox.accept("new", None)
    monkeypatch.setattr(module, "_MOST_DELIVERIES", 5)
    for number in range(20):
        monkeypatch.setattr(module, "utcnow", lambda number=number: now + timedelta(seconds=number))
        assert inbox.accept(f"delivery-{number}", None)
    assert not inbox.accept("delivery-19", None)
    with inbox.connection() as db:
        assert db.execute("SELECT count(*) FROM deliveries").fetchone()[0] <= 6


@pytest.mark.slow
def test_kill_loses_no_trigger_that_was_acknowledged(chosen: Settings) -> None:
    acknowledged: set[str] = set()
    sent: set[str] = set()
    with serving(chosen.home, CONTEXT_OS_SERVER__WEBHOOK_SECRET=SECRET) as (process, url):

        def send(worker: int) -> None:
            for number in range(10_000):
                delivery = f"{worker}-{number}"
                sent.add(delivery)
                try:
                    answer = deliver(url, "push", push("acme/shop", "shop/app.py"), delivery)
                except httpx.HTTPError:
                    return
                if answer.json()["status"] == "queued":
                    acknowledged.add(delivery)

        workers = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        wait_until(lambda: len(acknowledged) > 40)
        process.send_signal(signal.SIGKILL)
        for worker in workers:
            worker.join(30)
    with Inbox(chosen.home).connection() as db:
        queued = {delivery for (delivery,) in db.execute("SELECT delivery FROM triggers")}
    assert acknowledged <= queued <= sent


# Through Dagster


def tick(instance: dg.DagsterInstance, cursor: str | None) -> Any:
    # As Dagster's code server makes it: with a reference, through which new partitions are checked.
    context = dg.SensorEvaluationContext(
        instance_ref=instance.get_ref(),
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=cursor,
        repository_name=None,
        definitions=defs,
        resources={"workspace": Workspace()},
    )
    with context:
        return webhook_triggers.evaluate_tick(context)


def test_a_push_becomes_one_run_of_its_partition(url: str, chosen: Settings) -> None:
    for delivery in ("d-1", "d-2"):
        deliver(url, "push", push("acme/shop", "shop/app.py"), delivery)
    with dg.DagsterInstance.from_config(str(run.instance_folder(chosen))) as instance:
        found = tick(instance, None)
        (request,) = found.run_requests
        assert (request.run_key, request.partition_key) == ("d-2", "acme/shop")
        assert {key.path[1] for key in request.asset_selection} == {"commits", "pull_requests", "symbols"}
        (added,) = found.dynamic_partitions_requests
        assert (added.partitions_def_name, added.partition_keys) == (repositories.name, ["acme/shop"])
        # Dagster died before it kept the cursor: the same is asked for again, under the same key.
        assert [each.run_key for each in tick(instance, None).run_requests] == ["d-2"]
        assert tick(instance, found.cursor).run_requests == []
        assert waiting(chosen) == []


@pytest.mark.slow
def test_a_real_push_starts_exactly_one_run_in_a_real_dagster(
    chosen: Settings, tmp_path: Path, examples: dict[str, list[dict[str, Any]]]
) -> None:
    """The server, the webhook, the daemon and the run are real. The same delivery comes again, and a forged one too."""
    register(chosen, Ledger(chosen.home / "ledger.db"), "Codertocat/Hello-World", tmp_path / "shop")
    payload = next(each for each in examples["push"] if each["ref"] == "refs/heads/master" and not each["forced"])
    home = run.instance_folder(chosen)
    dg.DagsterInstance.from_config(str(home)).dispose()  # makes its files, which two at once cannot
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    with running(chosen) as url:
        assert deliver(url, "push", payload, "real-1").json()["status"] == "queued"
        assert deliver(url, "push", payload, "real-1").json()["status"] == "duplicate"
        assert deliver(url, "push", payload, "real-2", secret="another secret of the tests").status_code == 403
    daemon = subprocess.Popen(
        [Path(sys.executable).with_name("dagster-daemon"), "run", "-w", run.shipped("workspace.yaml")],
        cwd=tmp_path,
        env=environment,
        stdout=(tmp_path / "daemon.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            done = wait_until(lambda: [each for each in instance.get_runs() if each.is_finished], seconds=240)
            assert [each.status for each in done] == [dg.DagsterRunStatus.SUCCESS]
            # Two more ticks find nothing.
            ticks = len(instance.get_ticks(*_sensor(instance)))
            wait_until(lambda: len(instance.get_ticks(*_sensor(instance))) >= ticks + 2, seconds=120)
            (only,) = instance.get_runs()
            assert only.tags["dagster/run_key"] == "real-1"
            assert only.tags["dagster/partition"] == "Codertocat/Hello-World"
            assert only.tags["webhook/events"] == "push"
    finally:
        daemon.terminate()
        daemon.wait(30)
    assert waiting(chosen) == []
    ledger = Ledger(chosen.home / "ledger.db")
    with chosen.open_store() as store:
        scopes = ledger.scopes(store.identity, chosen.tenant)
    assert {each.connector for each in scopes if each.generation} >= {"commits", "documents"}


def _sensor(instance: dg.DagsterInstance) -> tuple[str, str]:
    (state,) = [each for each in instance.all_instigator_state() if each.instigator_name == "webhook_triggers"]
    return state.instigator_origin_id, state.selector_id
