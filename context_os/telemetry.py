"""Metrics and spans: what is measured, how it adds up over processes, how it leaves. The only file that knows
prometheus_client and OpenTelemetry, and it imports either when something is rendered or sent.

An observation is one addition to a table in memory. ``flush`` adds the table to ``metrics.db`` in the home, so that
what many short runs did adds up like what a server does, and every process that renders a home renders all of it. The
file is SQLite and not one file a run: what is added is added in one transaction or not at all, however many processes
write, and nothing has to be summed, locked or cleaned up by whoever reads.

**Bounds.** A label's values are a bounded set: those that came first, up to the number that its ``Label`` states,
counted over all processes of a home. Later ones, and whatever is no plain name of at most 100 characters (an absolute
path, a sentence), become ``other``. No label ever holds an id, a path, a query or a message.

**What a kill loses.** SIGKILL loses what its process observed since its last flush and nothing else. A flush comes with
every ingestion step that ends, with every rendering, at exit, and with an observation more than five seconds after the
last flush. What ingestion did to items is not observed but counted by the ledger, in the transaction that makes it
true, and handed in as ``Sample``: of that a kill loses nothing.

Formats: Prometheus' text format 0.0.4 with its naming practices (https://prometheus.io/docs/practices/naming/); OTLP
over HTTP (https://opentelemetry.io/docs/specs/otlp/).
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from context_os import __version__
from context_os.errors import ConfigurationError, ContextOSError

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

OTHER: Final = "other"
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]{0,99}")
_FLUSH_SECONDS: Final = 5.0
_SEND_SECONDS: Final = 2.0
"""How long a collector that does not answer may keep a process from ending, for spans and for metrics each."""
_LONG_LIVED_SECONDS: Final = 30.0
"""From this age on a process sends what is looked up: counting a large ledger would hold up every short command."""


class Label(NamedTuple):
    """A label and the most values that it ever has, ``other`` not counted."""

    name: str
    most: int


TENANT: Final = Label("tenant", 50)
REPOSITORY: Final = Label("repository", 100)
CONNECTOR: Final = Label("connector", 32)
STORE: Final = Label("store", 8)
OUTCOME: Final = Label("outcome", 16)
STEP: Final = Label("step", 8)
VERDICT: Final = Label("verdict", 4)
ERROR: Final = Label("error", 32)
OPERATION: Final = Label("operation", 32)
MODE: Final = Label("mode", 4)
SELECTOR: Final = Label("selector", 32)
LAYER: Final = Label("layer", 4)
REASON: Final = Label("reason", 8)
KIND: Final = Label("kind", 4)
PROVIDER: Final = Label("provider", 16)
ORIGIN: Final = Label("origin", 8)
VERSION: Final = Label("version", 16)


METRICS: Final[dict[str, _Metric]] = {}
"""Every metric by name."""

_VALUE: Final = ""
_SUM: Final = "sum"
"""Parts of a metric's series; a histogram's others are its buckets' bounds, each counted for itself."""


class _Metric:
    """``unit`` is UCUM's, as OpenTelemetry wants it; Prometheus has it in the name. Plain classes, because dataclasses
    would take three milliseconds of every command."""

    def __init__(self, name: str, help: str, labels: tuple[Label, ...] = (), unit: str = "1") -> None:
        self.name, self.help, self.labels, self.unit = name, help, labels, unit
        METRICS[name] = self


class Counter(_Metric):
    """Only ever grows, over all processes of a home."""

    def add(self, amount: float, *labels: str) -> None:
        _recorder.record(self, labels, ((_VALUE, amount),), amount)

    def sent(self, amount: float, *labels: str) -> None:
        """For OpenTelemetry alone: whoever renders looks up what the ledger counted."""
        _recorder.record(self, labels, (), amount)


class Gauge(_Metric):
    """A present value. ``keep`` is what remains of several that fall under one label set: of ``other``, or of two
    processes (then always the ``max``, since only times of the last something are observed)."""

    def __init__(
        self,
        name: str,
        help: str,
        labels: tuple[Label, ...] = (),
        unit: str = "1",
        keep: Literal["sum", "max", "min"] = "sum",
    ) -> None:
        super().__init__(name, help, labels, unit)
        self.keep = keep

    def latest(self, value: float, *labels: str) -> None:
        """Observe the time of the last something."""
        _recorder.record(self, labels, ((_VALUE, value),), value)


class Histogram(_Metric):
    """A distribution of seconds. ``bounds`` are the buckets' upper ends, ascending; ``span`` begins the name of the
    spans of what is ``timed``, which the last label ends."""

    def __init__(
        self, name: str, help: str, labels: tuple[Label, ...] = (), *, bounds: tuple[float, ...], span: str
    ) -> None:
        super().__init__(name, help, labels, "s")
        self.bounds, self.span = bounds, span
        self._parts = [repr(bound) for bound in (*bounds, math.inf)]

    def observe(self, value: float, *labels: str) -> None:
        part = self._parts[bisect_left(self.bounds, value)]
        _recorder.record(self, labels, ((_SUM, value), (part, 1)), value)


_QUICK: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_SCOPE: Final = (STORE, TENANT, REPOSITORY, CONNECTOR)

# Ingestion
INGESTED: Final = Counter(
    "context_os_ingestion_items_total",
    "Items by what ingestion did to them. added, changed, refreshed (written again before they expire), removed, "
    "forgotten (by a repair), expired (by pruning), erased, quarantined and released (records) are counted by the "
    "ledger; unchanged by each run.",
    (*_SCOPE, OUTCOME),
)
RUNS: Final = Counter("context_os_ingestion_runs_total", "Runs that ended with a report.", _SCOPE)
FAILURES: Final = Counter(
    "context_os_ingestion_failures_total", "Ingestion steps that failed, by error class.", (CONNECTOR, STEP, ERROR)
)
VERDICTS: Final = Counter(
    "context_os_gate_verdicts_total",
    "The gate's verdicts: passed, refused, or broken (the validation itself failed).",
    (TENANT, REPOSITORY, CONNECTOR, VERDICT),
)
STEP_SECONDS: Final = Histogram(
    "context_os_ingestion_step_seconds",
    "Time of an ingestion step: check, stage, judge, index, embed.",
    (CONNECTOR, STEP),
    bounds=_SLOW,
    span="ingestion",
)
READ_BYTES: Final = Counter(
    "context_os_ingestion_read_bytes_total",
    "UTF-8 bytes of the texts that connectors gave.",
    (TENANT, REPOSITORY, CONNECTOR),
    "By",
)
WRITTEN_BYTES: Final = Counter(
    "context_os_ingestion_written_bytes_total",
    "UTF-8 bytes of the texts that the store took.",
    (TENANT, REPOSITORY, CONNECTOR),
    "By",
)
SUCCEEDED_AT: Final = Gauge(
    "context_os_ingestion_success_timestamp_seconds", "When a run last ended with a report.", _SCOPE, "s", "max"
)
FAILED_AT: Final = Gauge(
    "context_os_ingestion_failure_timestamp_seconds",
    "When a step last failed, or the gate last refused a batch.",
    _SCOPE,
    "s",
    "max",
)

# What the ledger holds
ITEMS: Final = Gauge("context_os_items", "Items that the store should hold.", _SCOPE)
QUARANTINE: Final = Gauge("context_os_quarantine_records", "Records that stand in quarantine.", _SCOPE)
PENDING: Final = Gauge(
    "context_os_pending_items", "Items that an unfinished or interrupted run announced and did not settle.", _SCOPE
)
VECTORS: Final = Gauge(
    "context_os_vectors", "Items with a vector of this version for their present content.", (*_SCOPE, VERSION)
)
INDEXED_AT: Final = Gauge(
    "context_os_indexed_timestamp_seconds", "When the ledger last advanced.", _SCOPE, "s", keep="min"
)
LAG: Final = Gauge(
    "context_os_ingestion_lag_seconds",
    "Age of the last advance when this was rendered. Old where nothing changed: see the last success too.",
    _SCOPE,
    "s",
    keep="max",
)

# Stores
STORE_SECONDS: Final = Histogram(
    "context_os_store_request_seconds",
    "Time of a store's operation, of one that fails too.",
    (STORE, OPERATION),
    bounds=_QUICK,
    span="store",
)
STORE_REQUESTS: Final = Counter(
    "context_os_store_requests_total", "Operations of stores by tenant.", (STORE, OPERATION, TENANT)
)
STORE_ERRORS: Final = Counter(
    "context_os_store_errors_total", "Store operations that failed, by error class.", (STORE, OPERATION, ERROR)
)

# Reading
SEARCH_SECONDS: Final = Histogram(
    "context_os_search_seconds", "Time of a search, its query's vector included.", (MODE,), bounds=_QUICK, span="search"
)
SEARCHES: Final = Counter("context_os_searches_total", "Searches that were answered.", (TENANT, MODE))
EMPTY_SEARCHES: Final = Counter("context_os_searches_empty_total", "Searches that found nothing.", (TENANT, MODE))
SELECTOR_SECONDS: Final = Histogram(
    "context_os_selector_seconds", "Time of a selector.", (SELECTOR,), bounds=_QUICK, span="selector"
)
CANDIDATES: Final = Counter("context_os_selector_candidates_total", "Items that selectors proposed.", (SELECTOR,))
KEPT: Final = Counter(
    "context_os_selector_kept_total", "Items in packs, by the selector that spoke loudest for them.", (SELECTOR,)
)
EMPTY_SELECTIONS: Final = Counter(
    "context_os_selector_empty_total", "Selections in which a selector proposed nothing.", (SELECTOR,)
)
PACK_SECONDS: Final = Histogram(
    "context_os_pack_seconds", "Time of a pack, selection included.", bounds=_QUICK, span="pack"
)
PACKS: Final = Counter("context_os_packs_total", "Packs that were built.", (TENANT,))
EMPTY_PACKS: Final = Counter("context_os_packs_empty_total", "Packs into which nothing went.", (TENANT,))
PACK_TOKENS: Final = Counter("context_os_pack_tokens_total", "Tokens of packs' entries.", (TENANT, LAYER), "{token}")
PACK_USED: Final = Counter(
    "context_os_pack_used_tokens_total", "Tokens of finished prompts, headings included.", (TENANT,), "{token}"
)
PACK_BUDGET: Final = Counter(
    "context_os_pack_budget_tokens_total", "Tokens that packs might use.", (TENANT,), "{token}"
)
OMISSIONS: Final = Counter(
    "context_os_pack_omissions_total", "Selected items that did not go in: no budget left, or worthless.", (REASON,)
)
CORPUS_LOOKUPS: Final = Counter(
    "context_os_corpus_lookups_total", "Statistics (segment) and tables of vectors (table) asked for.", (KIND,)
)
CORPUS_LOADS: Final = Counter(
    "context_os_corpus_loads_total", "Lookups that memory did not have, so that a file was read.", (KIND,)
)

# Feedback
VOTES: Final = Counter(
    "context_os_feedback_votes_total",
    "Votes in the log by what became of them: helpful, harmful, withdrawn (votes that take one back) and erased (of "
    "all three). Counted by the log.",
    (TENANT, ORIGIN, OUTCOME),
)

# Embedding
EMBEDDING_SECONDS: Final = Histogram(
    "context_os_embedding_seconds",
    "Time of a call of the model, its loading at the first one included.",
    (PROVIDER,),
    bounds=_SLOW,
    span="embedding",
)
EMBEDDED: Final = Counter("context_os_embedding_texts_total", "Texts that a model made a vector of.", (PROVIDER,))
EMBEDDING_ERRORS: Final = Counter(
    "context_os_embedding_errors_total", "Calls of a model that failed, by error class.", (PROVIDER, ERROR)
)
CACHED: Final = Counter("context_os_embedding_cached_total", "Texts whose vector was in the home's cache.", (VERSION,))

BUILD: Final = Gauge("context_os_build_info", "Always 1; the version that rendered this.", (VERSION,), keep="max")


class Sample(NamedTuple):
    """A value that is looked up when something is rendered, instead of observed when it happens."""

    metric: _Metric
    labels: tuple[str, ...]
    value: float


Lookup = Callable[[], Iterable[Sample]]
_Key = tuple[_Metric, tuple[str, ...], str]


class timed:  # noqa: N801 - used as a verb
    """Measures a block: its time, a span around it, and the class of what it raises.

    ``errors`` counts by ``labels`` and the error's class; ``about`` are further attributes of the span. The span holds
    labels, never a message: what an error says may quote what only some may read.
    """

    __slots__ = ("_about", "_errors", "_histogram", "_labels", "_span", "_spans", "_started")

    def __init__(
        self,
        histogram: Histogram,
        *labels: str,
        errors: Counter | None = None,
        about: Mapping[str, str] | None = None,
        span: bool = True,
    ) -> None:
        self._histogram = histogram
        self._labels = labels
        self._errors = errors
        self._about = about or {}
        self._spans = span
        self._span: Any = None

    def __enter__(self) -> Self:
        if self._spans and _recorder.sender is not None:
            names = (label.name for label in self._histogram.labels)
            attributes = {**dict(zip(names, self._labels, strict=True)), **self._about}
            name = " ".join([self._histogram.span, *self._labels[-1:]])
            self._span = _recorder.sender.span(name, attributes)
            self._span.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._histogram.observe(time.perf_counter() - self._started, *self._labels)
        if self._errors is not None and isinstance(error, Exception):
            self._errors.add(1, *self._labels, type(error).__name__)
        if self._span is not None:
            self._span.__exit__(kind, error, trace)


def configure(home: Path, lookup: Lookup, otlp_endpoint: str | None = None, textfile: Path | None = None) -> None:
    """From now on this process's observations belong to ``home``, and what is rendered holds ``lookup``'s samples.

    A home that does not exist is not made. With ``otlp_endpoint`` (``http://host:4318``) spans and metrics are sent
    there, with ``textfile`` a rendering is left there when the process ends. Raises ConfigurationError where the
    packages for sending are missing.
    """
    _recorder.configure(home, lookup, otlp_endpoint, textfile)


def flush() -> None:
    """Add what was observed to the home's file. Never raises: what cannot be written now stays for the next time."""
    _recorder.flush()


def exposition() -> tuple[bytes, str]:
    """What this home's processes did and what it holds now, as a body for Prometheus and its content type."""
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

    return generate_latest(_Rendered(_families(_recorder.everything()))), CONTENT_TYPE_PLAIN_0_0_4


def samples() -> list[dict[str, Any]]:
    """The same, sample by sample: ``{"name", "labels", "value"}``."""
    return [
        {"name": each.name, "labels": each.labels, "value": each.value}
        for family in _families(_recorder.everything())
        for each in family.samples
    ]


def write_textfile(path: Path) -> Path:
    """The exposition in a file that node_exporter's textfile collector may read: whole or not at all, for all to
    read."""
    body, _ = exposition()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # the collector reads *.prom alone
    partial.write_bytes(body)
    partial.chmod(0o644)
    partial.replace(path)
    return path


# Recording


class _Recorder:
    """What this process observed and did not flush yet, and where it belongs."""

    def __init__(self) -> None:
        self.sender: _Sender | None = None
        self._home: Path | None = None
        self._lookup: Lookup = tuple
        self._textfile: Path | None = None
        self._watched = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[_Key, float] = {}
        self._known: dict[str, dict[str, str]] = {}
        self._flushed_at = time.monotonic()

    def configure(self, home: Path, lookup: Lookup, otlp_endpoint: str | None, textfile: Path | None) -> None:
        if self.sender is not None and self.sender.endpoint != otlp_endpoint:
            self._stop_sending()
        if self._home not in {None, home}:
            self.flush()
            self._reset()  # what its home could not take is not the next one's
        self._home, self._lookup, self._textfile = home, lookup, textfile
        if otlp_endpoint and self.sender is None:
            self.sender = _Sender(otlp_endpoint, self._looked_up)
        if not self._watched:
            self._watched = True
            os.register_at_fork(after_in_child=self._forked)
            atexit.register(self._end)

    def _forked(self) -> None:
        """A child's observations are its own, and nothing is sent of them: the SDK's threads stayed with the parent."""
        self.sender = None
        self._reset()

    def _stop_sending(self) -> None:
        if self.sender is not None:
            self.sender.stop()
            self.sender = None

    def _end(self) -> None:
        self._stop_sending()
        self.flush()
        if self._textfile is not None:
            try:
                write_textfile(self._textfile)
            except (OSError, ContextOSError):
                return  # a full disk or a folder that is not ours ends no command

    def record(
        self, metric: _Metric, labels: tuple[str, ...], parts: Iterable[tuple[str, float]], value: float
    ) -> None:
        bounded = self._bounded(metric, labels)
        with self._lock:
            for part, amount in parts:
                _merge(self._waiting, (metric, bounded, part), amount)
        if self.sender is not None:
            self.sender.record(metric, bounded, value)
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def _bounded(self, metric: _Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._known_or_other(label, value) for label, value in zip(metric.labels, labels, strict=True))

    def _known_or_other(self, label: Label, value: str) -> str:
        known = self._known.setdefault(label.name, {})
        found = known.get(value)
        if found is None:
            if len(known) >= label.most or not _PLAIN.fullmatch(value):
                return OTHER
            found = known[value] = value
        return found

    def flush(self) -> None:
        self._flushed_at = time.monotonic()
        if self._home is None or not self._waiting or not self._home.is_dir():
            return
        with self._lock:
            taken, self._waiting = self._waiting, {}
            self._known = {}  # the file's own bound is the one that lasts
        try:
            with _file(self._home) as db:
                _store(db, taken)
        except sqlite3.Error:
            with self._lock:
                for key, amount in taken.items():
                    _merge(self._waiting, key, amount)

    def everything(self) -> dict[_Key, float]:
        """All series: of the file, of memory where it could not be flushed, and those that are looked up."""
        self.flush()
        looked_up = self._looked_up()
        with self._lock:
            waiting = dict(self._waiting)
        try:
            if self._home is not None and self._home.is_dir():
                with _file(self._home) as db:
                    found = _load(db)
                    return _merged(found, _admitted(db, _merged(waiting, looked_up)))
        except sqlite3.Error:
            pass  # what is in memory and in the ledger is worth telling all the same
        return _merged(waiting, looked_up)

    def _looked_up(self) -> dict[_Key, float]:
        found: dict[_Key, float] = {}
        for metric, labels, value in (*self._lookup(), Sample(BUILD, (__version__,), 1)):
            _merge(found, (metric, self._bounded(metric, labels), _VALUE), value)
        return found


def _merge(into: dict[_Key, float], key: _Key, value: float) -> None:
    held = into.get(key)
    if held is None:
        into[key] = value
        return
    metric = key[0]
    keep = metric.keep if isinstance(metric, Gauge) else "sum"
    into[key] = held + value if keep == "sum" else max(held, value) if keep == "max" else min(held, value)


def _merged(first: dict[_Key, float], second: dict[_Key, float]) -> dict[_Key, float]:
    for key, value in second.items():
        _merge(first, key, value)
    return first


# The home's file

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS totals (
  metric TEXT NOT NULL, labels TEXT NOT NULL, part TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (metric, labels, part)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS admitted (
  label TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (label, value)) WITHOUT ROWID""",
)
_ADD: Final = "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
_KEEP_LATEST: Final = (
    "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)"
)


@contextmanager
def _file(home: Path) -> Iterator[sqlite3.Connection]:
    """The file in one transaction. One that is broken is begun anew: to Prometheus that is a counter's reset."""
    path = home / "metrics.db"
    try:
        with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")  # outlives any process; a power cut may cost the file
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                db.execute(statement)
            yield db
            db.execute("COMMIT")
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        for each in home.glob(f"{path.name}*"):
            each.unlink(missing_ok=True)
        raise


def _store(db: sqlite3.Connection, observed: dict[_Key, float]) -> None:
    for (metric, labels, part), value in _admitted(db, observed).items():
        statement = _KEEP_LATEST if isinstance(metric, Gauge) else _ADD
        db.execute(statement, (metric.name, json.dumps(labels), part, value))


def _load(db: sqlite3.Connection) -> dict[_Key, float]:
    """What metrics of this version have; the file may hold those of another."""
    found: dict[_Key, float] = {}
    for name, encoded, part, value in db.execute("SELECT metric, labels, part, value FROM totals"):
        metric, labels = METRICS.get(name), tuple(json.loads(encoded))
        if metric is not None and len(labels) == len(metric.labels):
            found[metric, labels, part] = value
    return found


def _admitted(db: sqlite3.Connection, series: dict[_Key, float]) -> dict[_Key, float]:
    """``series`` with the label values that this home has or still takes."""
    known: dict[str, set[str]] = {}
    for label, value in db.execute("SELECT label, value FROM admitted"):
        known.setdefault(label, set()).add(value)

    def admit(label: Label, value: str) -> str:
        values = known.setdefault(label.name, set())
        if value == OTHER or value in values:
            return value
        if len(values) >= label.most:
            return OTHER
        values.add(value)
        db.execute("INSERT INTO admitted VALUES (?, ?)", (label.name, value))
        return value

    found: dict[_Key, float] = {}
    for (metric, labels, part), value in series.items():
        _merge(found, (metric, tuple(map(admit, metric.labels, labels)), part), value)
    return found


# Rendering for Prometheus


class _Rendered:
    """What prometheus_client takes for a registry."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _buckets(parts: Mapping[str, float], bounds: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative. What was counted under bounds of another version counts under the next larger one of this."""
    counted = {float(part): value for part, value in parts.items() if part != _SUM}
    return [
        ("+Inf" if math.isinf(end) else repr(end), sum(n for bound, n in counted.items() if bound <= end))
        for end in (*bounds, math.inf)
    ]


def _families(everything: Mapping[_Key, float]) -> Iterator[Family]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    by_metric: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}
    for (metric, labels, part), value in everything.items():
        by_metric.setdefault(metric.name, {}).setdefault(labels, {})[part] = value
    for name, metric in METRICS.items():
        names = [label.name for label in metric.labels]
        series = sorted(by_metric.get(name, {}).items(), key=lambda each: each[0])
        if isinstance(metric, Histogram):
            histogram = HistogramMetricFamily(name, metric.help, labels=names)
            for labels, parts in series:
                histogram.add_metric(labels, _buckets(parts, metric.bounds), parts.get(_SUM, 0.0))
            yield histogram
        else:
            kind = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
            family = kind(name, metric.help, labels=names)
            for labels, parts in series:
                family.add_metric(labels, parts[_VALUE])
            yield family


# Sending to OpenTelemetry


class _Sender:
    """Spans and metrics over OTLP/HTTP. Metrics are those of this process alone, under an instance id of its own;
    what is looked up goes as gauges, since every process of a home would count it again, and from long-lived ones.

    Nothing that a collector does or fails to do reaches the work: sending happens in threads of the SDK.
    """

    def __init__(self, endpoint: str, looked_up: Callable[[], dict[_Key, float]]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(
                f"telemetry.otlp_endpoint: sending needs packages that are not here ({error.name}); "
                "install context-os[otel], or leave the setting out"
            ) from error
        self.endpoint = endpoint
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # a failure is told once, not each attempt
        resource = Resource.create(
            {
                "service.name": "context-os",
                "service.version": __version__,
                "service.instance.id": f"{os.getpid()}-{time.time_ns()}",
            }
        )
        spans = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=_SEND_SECONDS)
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(spans))
        self._tracer = self._traces.get_tracer("context_os", __version__)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=_SEND_SECONDS))
        self._metrics = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._meter = self._metrics.get_meter("context_os", __version__)
        self._instruments: dict[str, Any] = {}
        self._observe(looked_up)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                span.set_attribute("error.type", type(error).__name__)
                raise

    def record(self, metric: _Metric, labels: tuple[str, ...], value: float) -> None:
        attributes = {label.name: each for label, each in zip(metric.labels, labels, strict=True)}
        instrument = self._instruments.get(metric.name) or self._instrument(metric)
        if isinstance(metric, Histogram):
            instrument.record(value, attributes)
        elif isinstance(metric, Counter):
            instrument.add(value, attributes)
        else:
            instrument.set(value, attributes)

    def _instrument(self, metric: _Metric) -> Any:
        made: Any
        if isinstance(metric, Histogram):
            made = self._meter.create_histogram(
                metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=list(metric.bounds)
            )
        elif isinstance(metric, Counter):
            made = self._meter.create_counter(metric.name.removesuffix("_total"), metric.unit, metric.help)
        else:
            made = self._meter.create_gauge(metric.name, metric.unit, metric.help)
        return self._instruments.setdefault(metric.name, made)

    def _observe(self, looked_up: Callable[[], dict[_Key, float]]) -> None:
        from opentelemetry.metrics import CallbackOptions, Observation

        started = time.monotonic()

        def callback(metric: _Metric) -> Callable[[CallbackOptions], Iterator[Observation]]:
            def observations(_: CallbackOptions) -> Iterator[Observation]:
                if time.monotonic() - started < _LONG_LIVED_SECONDS:
                    return
                for (each, labels, _part), value in looked_up().items():
                    if each is metric:
                        names = (label.name for label in metric.labels)
                        yield Observation(value, dict(zip(names, labels, strict=True)))

            return observations

        for metric in (ITEMS, QUARANTINE, PENDING, VECTORS, INDEXED_AT, LAG, BUILD):
            self._meter.create_observable_gauge(metric.name, [callback(metric)], metric.unit, metric.help)

    def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._traces.shutdown()
        self._metrics.shutdown(timeout_millis=1000 * _SEND_SECONDS)


_recorder: Final = _Recorder()
