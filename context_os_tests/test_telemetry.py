"""Metrics and spans by themselves: bounds, processes that add up, what a kill loses, files that break, a collector."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategies import make_item

from context_os import settings, telemetry
from context_os.errors import ConfigurationError, StoreRejected
from context_os.model import Access, Confidentiality
from context_os.stores import Filter, Record
from context_os.stores.lab import LabStore
from context_os.telemetry import OTHER, Sample

ACCESS = Access(tenant="acme", principal="ada", clearance=Confidentiality.RESTRICTED)


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One that knows nothing of other tests."""
    fresh = telemetry._Recorder()
    monkeypatch.setattr(telemetry, "_recorder", fresh)
    yield fresh
    fresh._stop_sending()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    telemetry.configure(folder, tuple)
    return folder


def value(name: str, **labels: str) -> float:
    """The sum of the samples of a name whose labels hold these."""
    found = [each for each in telemetry.samples() if each["name"] == name and labels.items() <= each["labels"].items()]
    return sum(each["value"] for each in found)


def values_of(name: str, label: str) -> set[str]:
    return {each["labels"][label] for each in telemetry.samples() if each["name"] == name}


def in_another_process(home: Path, code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    script = f"""
import os, signal, sys
from pathlib import Path
from context_os import telemetry
telemetry.configure(Path({str(home)!r}), tuple)
{textwrap.dedent(code)}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, **how)


# Bounds


def test_a_label_has_no_more_values_than_it_says(home: Path) -> None:
    most = telemetry.REPOSITORY.most
    for number in range(most + 30):
        telemetry.READ_BYTES.add(1, "acme", f"team/repository-{number}", "symbols")
    found = values_of("context_os_ingestion_read_bytes_total", "repository")
    assert len(found) == most + 1
    assert value("context_os_ingestion_read_bytes_total", repository=OTHER) == 30
    assert value("context_os_ingestion_read_bytes_total") == most + 30


def test_the_bound_holds_over_processes_and_for_what_is_looked_up(home: Path) -> None:
    most = telemetry.TENANT.most
    for process in range(3):
        done = in_another_process(home, f"""
            for number in range({most // 2}):
                telemetry.PACKS.add(1, f"tenant-{process}-{{number}}")
        """)  # fmt: skip
        assert done.returncode == 0, done.stderr
    place = ("lab", "another", "shop", "symbols")
    telemetry.configure(home, lambda: [Sample(telemetry.ITEMS, place, 5), Sample(telemetry.ITEMS, place, 6)])
    assert len(values_of("context_os_packs_total", "tenant")) == most + 1
    assert value("context_os_packs_total") == 3 * (most // 2)
    assert value("context_os_items", tenant=OTHER) == 11


@pytest.mark.parametrize(
    "name", ["/home/ada/secret", "select * from users", "Ähre", "", "x" * 101, "a\nb", "../up", "-rf", "a@b.example"]
)
def test_paths_sentences_and_addresses_are_no_labels(home: Path, name: str) -> None:
    telemetry.PACKS.add(1, name)
    assert values_of("context_os_packs_total", "tenant") == {OTHER}


@pytest.mark.parametrize(
    "name", ["pydantic/pydantic", "shop", "onnx-all-MiniLM-L6-v2-int8-384", "a.b:c+d_e", "x" * 100]
)
def test_plain_names_are_labels(home: Path, name: str) -> None:
    telemetry.PACKS.add(1, name)
    assert values_of("context_os_packs_total", "tenant") == {name}


def test_what_falls_together_is_summed_or_the_oldest_or_the_latest(home: Path) -> None:
    place = ("lab", "/a", "/b", "symbols")
    lookup = [
        Sample(metric, place, n) for metric in (telemetry.ITEMS, telemetry.INDEXED_AT, telemetry.LAG) for n in (3, 9)
    ]
    telemetry.configure(home, lambda: lookup)
    for moment in (7.0, 5.0):
        telemetry.SUCCEEDED_AT.latest(moment, *place)
        telemetry.flush()
    assert value("context_os_items") == 12
    assert value("context_os_indexed_timestamp_seconds") == 3
    assert value("context_os_ingestion_lag_seconds") == 9
    assert value("context_os_ingestion_success_timestamp_seconds") == 7


# Adding up


def test_a_histogram_is_cumulative_and_complete(home: Path) -> None:
    for seconds in (0.0004, 0.001, 0.0011, 7.0, 99.0):
        telemetry.STORE_SECONDS.observe(seconds, "lab", "get")
    name = "context_os_store_request_seconds"
    counted = {float(b): value(f"{name}_bucket", le=b) for b in values_of(f"{name}_bucket", "le")}
    assert [n for _, n in sorted(counted.items())] == sorted(counted.values())
    assert (counted[0.0005], counted[0.001], counted[0.0025], counted[10.0], counted[math.inf]) == (1, 2, 3, 4, 5)
    assert value(f"{name}_count") == 5
    assert value(f"{name}_sum") == pytest.approx(106.0025)


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(st.just("flush"), st.tuples(st.sampled_from("abc"), st.integers(0, 1000))),
        max_size=40,
    )
)
def test_counters_are_the_sum_of_what_was_added(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    telemetry._recorder._reset()
    telemetry.configure(tmp_path_factory.mktemp("home"), tuple)
    expected = dict.fromkeys("abc", 0)
    for step in steps:
        if step == "flush":
            telemetry.flush()
        else:
            expected[step[0]] += step[1]
            telemetry.CACHED.add(step[1], step[0])
    assert {name: value("context_os_embedding_cached_total", version=name) for name in "abc"} == expected


def test_many_processes_and_threads_at_once_lose_nothing(home: Path) -> None:
    code = f"""
import threading
from pathlib import Path
from context_os import telemetry
telemetry.configure(Path({str(home)!r}), tuple)
def work():
    for n in range(200):
        telemetry.PACKS.add(1, "acme")
        if n % 20 == 0:
            telemetry.flush()
threads = [threading.Thread(target=work) for _ in range(4)]
[each.start() for each in threads]
[each.join() for each in threads]
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [each.wait(60) for each in running] == [0] * 4
    assert value("context_os_packs_total") == 4 * 4 * 200


def test_a_forked_child_counts_only_its_own(home: Path) -> None:
    telemetry.PACKS.add(3, "acme")
    child = os.fork()
    if child == 0:
        telemetry.PACKS.add(1, "acme")
        telemetry.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert value("context_os_packs_total") == 4


def test_two_homes_keep_their_own(home: Path, tmp_path: Path) -> None:
    telemetry.PACKS.add(1, "first")
    other = tmp_path / "other"
    other.mkdir()
    telemetry.configure(other, tuple)
    telemetry.PACKS.add(1, "second")
    assert values_of("context_os_packs_total", "tenant") == {"second"}
    telemetry.configure(home, tuple)
    assert values_of("context_os_packs_total", "tenant") == {"first"}


# What a kill loses


def test_a_kill_loses_what_was_observed_since_the_last_flush_and_nothing_else(home: Path) -> None:
    done = in_another_process(home, """
        telemetry.PACKS.add(5, "acme")
        telemetry.flush()
        telemetry.PACKS.add(7, "acme")
        os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert value("context_os_packs_total") == 5


def test_an_observation_long_after_the_last_flush_flushes(home: Path) -> None:
    done = in_another_process(home, """
        import time
        telemetry._FLUSH_SECONDS = 0.05
        telemetry.PACKS.add(5, "acme")
        time.sleep(0.06)
        telemetry.PACKS.add(7, "acme")
        telemetry.PACKS.add(9, "acme")
        os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert value("context_os_packs_total") == 12


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise SystemError", "os.kill(os.getpid(), signal.SIGINT)"])
def test_every_other_end_loses_nothing(home: Path, ending: str) -> None:
    in_another_process(home, f"telemetry.PACKS.add(5, 'acme')\n{ending}")
    assert value("context_os_packs_total") == 5


def test_killed_while_many_flush_the_file_holds_whole_flushes(home: Path) -> None:
    """Two counters are always flushed together, so they are always equal."""
    code = f"""
from pathlib import Path
from context_os import telemetry
telemetry.configure(Path({str(home)!r}), tuple)
print("ready", flush=True)
while True:
    with telemetry._recorder._lock:
        pass
    telemetry.PACKS.add(1, "acme")
    telemetry.PACK_USED.add(1, "acme")
    telemetry.flush()
"""
    for pause in (0.02, 0.05, 0.11):
        victims = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
        for each in victims:
            assert each.stdout is not None
            each.stdout.readline()
        time.sleep(pause)
        for each in victims:
            each.kill()
            each.communicate()
    assert value("context_os_packs_total") == value("context_os_pack_used_tokens_total") > 0


# Files that break


def test_what_cannot_be_written_waits_and_is_told_all_the_same(home: Path) -> None:
    (home / "metrics.db").mkdir()
    telemetry.PACKS.add(5, "acme")
    telemetry.flush()
    assert value("context_os_packs_total") == 5
    (home / "metrics.db").rmdir()
    telemetry.PACKS.add(1, "acme")
    telemetry.flush()
    with sqlite3.connect(home / "metrics.db") as db:
        assert db.execute("SELECT value FROM totals").fetchall() == [(6.0,)]
    db.close()


def test_a_file_that_is_no_database_is_begun_anew(home: Path) -> None:
    (home / "metrics.db").write_bytes(b"not a database, whatever its name says" * 100)
    telemetry.PACKS.add(5, "acme")
    telemetry.flush()
    assert value("context_os_packs_total") == 5


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    telemetry.configure(tmp_path / "nowhere", tuple)
    telemetry.PACKS.add(5, "acme")
    assert value("context_os_packs_total") == 5
    assert not (tmp_path / "nowhere").exists()


def test_metrics_of_another_version_are_passed_over(home: Path) -> None:
    telemetry.PACKS.add(5, "acme")
    telemetry.flush()
    with sqlite3.connect(home / "metrics.db") as db:
        db.execute("INSERT INTO totals VALUES ('context_os_forgotten_total', '[]', '', 1)")
        db.execute("INSERT INTO totals VALUES ('context_os_packs_total', '[\"a\", \"b\"]', '', 1)")
        db.execute("INSERT INTO totals VALUES ('context_os_pack_seconds', '[]', '0.2', 3)")
    db.close()
    assert value("context_os_packs_total") == 5
    assert value("context_os_pack_seconds_bucket", le="0.1") == 0
    assert value("context_os_pack_seconds_bucket", le="0.25") == 3


def test_the_textfile_is_whole_and_readable_by_all(home: Path, tmp_path: Path) -> None:
    telemetry.PACKS.add(5, "acme")
    path = telemetry.write_textfile(tmp_path / "collector" / "context_os.prom")
    assert path.read_bytes() == telemetry.exposition()[0]
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["context_os.prom"]


def test_a_process_leaves_its_textfile_when_it_ends(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "context_os.prom"
    again = f"telemetry.configure(Path({str(home)!r}), tuple, textfile=Path({str(path)!r}))"
    for _ in range(2):
        assert in_another_process(home, f"{again}\ntelemetry.PACKS.add(5, 'acme')").returncode == 0
    assert 'context_os_packs_total{tenant="acme"} 10.0' in path.read_text(encoding="utf-8")
    again = again.replace(str(path), str(tmp_path / "context_os.prom" / "below-a-file"))
    done = in_another_process(home, f"{again}\ntelemetry.PACKS.add(5, 'acme')")
    assert (done.returncode, done.stderr) == (0, "")


# Stores are measured


def test_every_operation_of_a_store_is_measured_once(home: Path) -> None:
    with LabStore(path=home / "lab.db") as store:
        store.upsert(ACCESS, [Record(make_item("a")), Record(make_item("b"))])
        list(store.checksums(ACCESS, Filter()))
        with pytest.raises(StoreRejected):
            store.upsert(ACCESS, [Record(make_item("c", tenant="stranger"))])
    name = "context_os_store_request_seconds_count"
    assert value(name, store="lab", operation="upsert") == 2
    assert value(name, store="lab", operation="checksums") == 1
    assert value("context_os_store_requests_total", tenant="acme", operation="upsert") == 2
    assert value("context_os_store_errors_total") == 1
    assert value("context_os_store_errors_total", operation="upsert", error="StoreRejected") == 1


def test_a_generator_that_is_left_early_is_no_error(home: Path) -> None:
    with LabStore(path=home / "lab.db") as store:
        store.upsert(ACCESS, [Record(make_item("a")), Record(make_item("b"))])
        pairs = store.checksums(ACCESS, Filter())
        next(pairs)
        pairs.close()  # type: ignore[attr-defined]
    assert value("context_os_store_request_seconds_count", operation="checksums") == 1
    assert value("context_os_store_errors_total") == 0


# OpenTelemetry


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resources.append(attributes(each.resource))
                self.server.spans += [span for scope in each.scope_spans for span in scope.spans]
        elif self.path == "/v1/metrics":
            for each in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.server.resources.append(attributes(each.resource))
                self.server.metrics |= {metric.name: metric for scope in each.scope_metrics for metric in scope.metrics}
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def attributes(holder: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in holder.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_and_metrics_reach_a_collector(home: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_LONG_LIVED_SECONDS", 0.0)
    place = ("lab", "acme", "shop", "symbols")
    telemetry.configure(home, lambda: [Sample(telemetry.ITEMS, place, 7)], collector.url)
    with telemetry.timed(telemetry.PACK_SECONDS), telemetry.timed(telemetry.SELECTOR_SECONDS, "hybrid"):
        pass
    with pytest.raises(StoreRejected), LabStore(path=home / "lab.db") as store:
        store.upsert(ACCESS, [Record(make_item("c", tenant="stranger"))])
    telemetry.INGESTED.sent(4, *place, "added")
    telemetry.configure(home, tuple)  # stops sending, which sends what is left
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"pack", "selector hybrid", "store upsert"}
    assert spans["selector hybrid"].parent_span_id == spans["pack"].span_id
    assert spans["selector hybrid"].trace_id == spans["pack"].trace_id
    assert attributes(spans["store upsert"]) == {"store": "lab", "operation": "upsert", "error.type": "StoreRejected"}
    assert spans["store upsert"].status.message == "StoreRejected"
    assert not any(span.events for span in collector.spans), "an error's message may quote what only some may read"
    histogram = collector.metrics["context_os_selector_seconds"].histogram.data_points[0]
    assert attributes(histogram) == {"selector": "hybrid"}
    assert (histogram.count, sum(histogram.bucket_counts)) == (1, 1)
    assert list(histogram.explicit_bounds) == list(telemetry.SELECTOR_SECONDS.bounds)
    assert collector.metrics["context_os_selector_seconds"].unit == "s"
    counted = collector.metrics["context_os_ingestion_items"].sum
    assert counted.is_monotonic
    assert (counted.data_points[0].as_double or counted.data_points[0].as_int) == 4
    items = collector.metrics["context_os_items"].gauge.data_points[0]
    assert (items.as_double or items.as_int) == 7
    assert attributes(items)["repository"] == "shop"
    assert {each["service.name"] for each in collector.resources} == {"context-os"}
    assert value("context_os_ingestion_items_total", outcome="added") == 0, "whoever renders looks it up"


def test_a_short_process_does_not_count_the_ledger_for_a_collector(home: Path, collector: Collector) -> None:
    def lookup() -> Iterator[Sample]:
        raise AssertionError("the ledger was counted")
        yield

    telemetry.configure(home, lookup, collector.url)
    telemetry.PACKS.add(1, "acme")
    telemetry.configure(home, tuple)
    assert set(collector.metrics) == {"context_os_packs"}


def test_a_collector_that_is_away_stops_nothing(home: Path, collector: Collector) -> None:
    url = collector.url
    collector.shutdown()
    collector.server_close()
    code = f"telemetry.configure(Path({str(home)!r}), tuple, {url!r})\n"
    done = in_another_process(
        home, code + "with telemetry.timed(telemetry.PACK_SECONDS):\n    print('done')", timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    assert value("context_os_pack_seconds_count") == 1


def test_without_the_packages_the_setting_says_what_to_install(home: Path) -> None:
    code = f"""
        import builtins, importlib.abc
        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.startswith("opentelemetry"):
                    raise ModuleNotFoundError(name, name=name)
        sys.meta_path.insert(0, Missing())
        from context_os.errors import ConfigurationError
        try:
            telemetry.configure(Path({str(home)!r}), tuple, "http://127.0.0.1:1")
        except ConfigurationError as error:
            print(error)
    """
    assert "context-os[otel]" in in_another_process(home, code).stdout


def test_settings_take_an_address_and_refuse_what_is_none(tmp_path: Path) -> None:
    given = {"home": str(tmp_path), "telemetry": {"otlp_endpoint": "http://collector:4318/"}}
    assert settings.load(given, start=tmp_path).telemetry.otlp_endpoint == "http://collector:4318"
    for wrong in ("collector:4318", "ftp://collector", "http://collector:4318/?key=1"):
        with pytest.raises(ConfigurationError, match=r"telemetry\.otlp_endpoint"):
            settings.load({"home": str(tmp_path), "telemetry": {"otlp_endpoint": wrong}}, start=tmp_path)
