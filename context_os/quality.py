"""The gate before every store: a staged batch goes in, a ``Verdict`` comes out.

The only file that knows Great Expectations (1.24), and it loads it inside ``validate``: importing this module
costs nothing, the first validation of a process some seconds.

A batch is a pandas DataFrame with one row per candidate item and exactly the columns of ``COLUMNS``. ``CORE``
holds for every connector; a connector adds its own ``Expectation``s in the same vocabulary. They may name, besides
the batch's columns, those of ``DERIVED``, and ``{"$PARAMETER": name}`` for what differs from batch to batch:
``tenants`` (a list with the batch's tenant) and ``latest`` (the last moment that is not in the future). Row
conditions are dicts as in ``CORE``. Regular expressions search; end one with ``\\Z``, since ``$`` lets a line
break through. A list is seen as text, an element a line. A null passes every expectation but
``expect_column_values_to_not_be_null``.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, cached_property
from itertools import islice
from numbers import Real
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from context_os.connectors import Expectation
from context_os.model import Confidentiality, Modality, Time, Value, utcnow

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    "id", "tenant", "unit", "domain", "kind", "modality", "title", "text", "repository", "path", "language",
    "start_line", "end_line", "revision", "confidentiality", "ttl_seconds", "checksum", "owner", "updated_at",
    "source_type", "tags", "targets",
)  # fmt: skip
DERIVED: Final = {
    "malformed": 'which columns lack a value they need, or have a blank one or one of another type, "" if none',
    "nul_in": 'which of title, text and path hold a NUL character, "" if none',
    "text_length": "characters in text",
    "text_visible": "characters in text without the white space at both ends, null for a module",
    "code_language": "the language of code, null for other rows",
    "backward": 'end_line and start_line where the one comes before the other, "" elsewhere',
}
"""Columns computed here. Great Expectations copies whole rows for each expectation and spends some 15 ms on it
however few they are, more where rows have a condition: so it is not handed the long ``text`` unless an expectation
names it, one expectation on ``malformed`` stands for twenty on nulls and types, and conditions are columns."""

SMALLEST_REFUSABLE_BATCH: Final = 10
"""Rows below which a large share of refused rows does not refuse the batch: two of three prove nothing."""

_NUMBERS: Final = ("start_line", "end_line", "ttl_seconds")
_LISTS: Final = ("tags", "targets")
_SCALARS: Final = tuple(name for name in COLUMNS if name not in _LISTS)
_NULLABLE: Final = frozenset({*_NUMBERS, "repository", "path", "language", "revision", "owner"})
_MAY_BE_BLANK: Final = _NULLABLE | {"text", "updated_at"}

_SHOWN: Final = 120
_SAMPLES: Final = 5
_NAMED: Final = 3
_CLOCK_SKEW: Final = timedelta(days=1)
_UNIQUE: Final = "expect_column_values_to_be_unique"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNSEEN: Final[Mapping[str, Any]] = {"passed": True, "broken": False}


def _expect(type: str, because: str, *, critical: bool = True, **kwargs: Any) -> Expectation:
    return Expectation(f"expect_{type}", kwargs, because, critical)


CORE: Final[tuple[Expectation, ...]] = (
    _expect(
        "table_columns_to_match_set",
        "a batch has exactly the columns of the gate",
        column_set=[*COLUMNS, *DERIVED],
        exact_match=True,
    ),
    _expect(
        "column_distinct_values_to_be_in_set",
        "every row belongs to the tenant of the batch",
        column="tenant",
        value_set={"$PARAMETER": "tenants"},
    ),
    _expect(
        "column_values_to_be_in_set",
        "every value that is needed must be given, not blank and of its type",
        column="malformed",
        value_set=[""],
    ),
    _expect(
        "column_values_to_match_regex",
        "id must have 1 to 200 characters, no control characters, no space at its ends",
        column="id",
        regex=r"^[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,198}[^\s\x00-\x1f\x7f])?\Z",
    ),
    _expect("column_values_to_be_unique", "id must be unique in the batch", column="id"),
    _expect(
        "column_value_lengths_to_be_between",
        "title must have at most 1,000 characters",
        column="title",
        max_value=1_000,
    ),
    _expect(
        "column_values_to_be_between",
        "text must have at most 2,000,000 characters",
        column="text_length",
        max_value=2_000_000,
    ),
    _expect(
        "column_values_to_be_in_set",
        "title, text and path must not hold NUL characters",
        column="nul_in",
        value_set=[""],
    ),
    _expect(
        "column_values_to_be_in_set",
        f"modality must be one of {', '.join(Modality)}",
        column="modality",
        value_set=[level.value for level in Modality],
    ),
    _expect(
        "column_values_to_be_in_set",
        f"confidentiality must be one of {', '.join(Confidentiality)}",
        column="confidentiality",
        value_set=[level.value for level in Confidentiality],
    ),
    _expect(
        "column_values_to_match_regex",
        "checksum must be a SHA-256 in 64 lower-case hexadecimal digits",
        column="checksum",
        regex=r"^[0-9a-f]{64}\Z",
    ),
    _expect(
        "column_values_to_not_match_regex",
        'path must be relative to the repository, without ".."',
        column="path",
        regex=r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|\Z)",
    ),
    *(
        _expect("column_values_to_be_between", f"{name} must count from 1", column=name, min_value=1)
        for name in ("start_line", "end_line")
    ),
    _expect(
        "column_values_to_be_in_set",
        "end_line must not come before start_line",
        column="backward",
        value_set=[""],
    ),
    _expect(
        "column_values_to_be_between",
        "updated_at must not lie more than a day in the future",
        column="updated_at",
        max_value={"$PARAMETER": "latest"},
    ),
    _expect(
        "column_values_to_be_between",
        "ttl_seconds must be a positive number of seconds, or null for an item that does not expire",
        column="ttl_seconds",
        min_value=0,
        strict_min=True,
        max_value=timedelta.max.total_seconds(),
    ),
    _expect(
        "column_value_lengths_to_be_between",
        "code without a language is not found by a search for one",
        critical=False,
        column="code_language",
        min_value=1,
    ),
    _expect(
        "column_values_to_be_between",
        "a text of fewer than 20 characters tells a reviewer little",
        critical=False,
        column="text_visible",
        min_value=20,
    ),
    _expect(
        "column_values_to_be_between",
        "a text of more than 100,000 characters fits no pack whole",
        critical=False,
        column="text_length",
        max_value=100_000,
    ),
    _expect(
        "column_value_lengths_to_be_between",
        "a title of more than 200 characters is cut in catalogues",
        critical=False,
        column="title",
        max_value=200,
    ),
    _expect(
        "column_values_to_not_match_regex",
        "a path with backslashes is not found by a search below a directory",
        critical=False,
        column="path",
        regex=r"\\",
    ),
)
"""What every row of every connector must be."""


class ExpectationResult(Value):
    """What one expectation found. ``unexpected_percent`` is in 0..100 of all rows and 0 where the batch as a whole
    failed. ``sample`` holds at most 5 different values, each at most 120 characters; a ``text`` is only measured,
    never quoted. ``exception`` is "" unless the expectation could not be evaluated."""

    type: str
    columns: tuple[str, ...]
    critical: bool
    success: bool
    because: str
    unexpected_count: int = 0
    unexpected_percent: float = 0.0
    sample: tuple[str, ...] = ()
    exception: str = ""


class Refusal(Value):
    """A row that must not be stored. ``row`` is its position in the batch from 0; ``id`` and ``unit`` are "" where
    the row has none."""

    id: str
    unit: str
    row: int
    reasons: tuple[str, ...]


class Verdict(Value):
    """The gate's answer. Only with ``passed`` may anything be stored, and then all rows but those of ``refusals``:
    ``accepted + len(refusals) == rows``. Otherwise ``accepted`` is 0 and ``reason`` says why; ``broken`` tells a
    validation that did not run from a batch that was refused. ``seconds`` is how long it took."""

    connector: str
    data_version: str
    run_id: str
    at: Time
    passed: bool
    broken: bool
    rows: int
    accepted: int = 0
    refusals: tuple[Refusal, ...] = ()
    results: tuple[ExpectationResult, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @classmethod
    def passing(cls, connector: str, data_version: str, run_id: str = "", rows: int = 0) -> Verdict:
        """One that accepts every row, without having looked."""
        about = {"connector": connector, "data_version": data_version, "run_id": run_id}
        return cls(**about, at=utcnow(), passed=True, broken=False, rows=rows, accepted=rows)


def validate(
    frame: pd.DataFrame,
    expectations: Sequence[Expectation],
    *,
    connector: str,
    tenant: str,
    data_version: str,
    run_id: str = "",
    max_refused_share: float = 0.5,
) -> Verdict:
    """Hold a staged batch against ``CORE`` and the connector's own expectations.

    A row that fails a critical expectation is refused with all its reasons. The batch as a whole is refused when
    a critical expectation fails that names no row, or when it has at least ``SMALLEST_REFUSABLE_BATCH`` rows and
    more than ``max_refused_share`` (0..1) of them are refused. A critical expectation that cannot be evaluated, or
    anything else that goes wrong, is a broken verdict: only MemoryError is raised. Advisory expectations never
    block, not even when they cannot be evaluated. An empty batch passes unseen. Safe to call from many threads.
    """
    began = perf_counter()
    unrun = Verdict(
        connector=connector,
        data_version=data_version,
        run_id=run_id,
        at=utcnow(),
        passed=False,
        broken=True,
        rows=len(frame),
    )
    try:
        judgement = _judge(frame, (*CORE, *expectations), tenant, max_refused_share) if len(frame) else _UNSEEN
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever breaks the gate must close it, with its reason on record
        judgement = {"reason": f"the validation did not run: {_told(error)}"}
    return unrun.model_copy(update={**judgement, "seconds": perf_counter() - began})


def warm_up() -> None:
    """Import what ``validate`` needs and make what its next call needs, for whoever has the time now. If that fails,
    ``validate`` will tell."""
    with suppress(Exception):
        for module in ("great_expectations", "pandas", "pyarrow.parquet"):
            importlib.import_module(module)
        if _spare.empty():
            _spare.put(_batch_definition())


def table(verdict: Verdict, critical: bool) -> list[dict[str, str | int | float | bool]]:
    """The critical or the advisory results as flat rows, for a table in a report; failures first."""
    chosen = [result for result in verdict.results if result.critical == critical]
    return [
        {
            "expectation": result.type,
            "columns": ", ".join(result.columns),
            "success": result.success,
            "unexpected_count": result.unexpected_count,
            "unexpected_percent": round(result.unexpected_percent, 2),
            "because": result.because,
            "sample": " | ".join(result.sample),
            "exception": result.exception,
        }
        for result in sorted(chosen, key=lambda result: result.success)
    ]


@dataclass(frozen=True)
class _Outcome:
    """An expectation as evaluated: ``details`` is Great Expectations' own result."""

    success: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""


@dataclass(frozen=True)
class _Finding:
    """An expectation's result, and the rows that it names."""

    result: ExpectationResult
    rows: tuple[int, ...]


def _judge(frame: pd.DataFrame, expectations: Sequence[Expectation], tenant: str, share: float) -> Mapping[str, Any]:
    batch = _Batch(frame)
    # Without its column an expectation only raises; that the column is missing is said once, by CORE[0].
    planned = [one for one in expectations if batch.missing.isdisjoint(_named(one))]
    outcomes = _evaluate(batch, planned, {"tenants": [tenant], "latest": utcnow() + _CLOCK_SKEW})
    findings = [_finding(batch, one, outcome) for one, outcome in zip(planned, outcomes, strict=True)]
    failed = [finding for finding in findings if finding.result.critical and not finding.result.success]
    refusals = tuple(_refusals(batch, failed))
    broken = [finding.result for finding in failed if finding.result.exception]
    reason = _why_broken(broken) if broken else _why_refused(failed, len(refusals), len(batch), share)
    return {
        "passed": not reason,
        "broken": bool(broken),
        "accepted": 0 if reason else len(batch) - len(refusals),
        "refusals": refusals,
        "results": tuple(finding.result for finding in findings),
        "reason": reason,
    }


def _why_broken(broken: Sequence[ExpectationResult]) -> str:
    told = [f"{one.type}({', '.join(one.columns)}): {one.exception}" for one in broken[:_NAMED]]
    return f"{len(broken)} critical expectations could not be evaluated: {'; '.join(told)}"


def _why_refused(failed: Sequence[_Finding], refused: int, rows: int, share: float) -> str:
    whole = [finding.result for finding in failed if not finding.rows]
    if whole:
        return "; ".join(f"{one.because} ({', '.join(one.sample)})" for one in whole)
    if rows < SMALLEST_REFUSABLE_BATCH or refused <= share * rows:
        return ""
    causes = sorted(failed, key=lambda finding: len(finding.rows), reverse=True)[:_NAMED]
    told = "; ".join(f"{finding.result.because} ({len(finding.rows)} rows)" for finding in causes)
    return f"{refused} of {rows} rows were refused, more than {share:.0%}: {told}"


def _refusals(batch: _Batch, failed: Sequence[_Finding]) -> Iterator[Refusal]:
    reasons: dict[int, list[str]] = defaultdict(list)
    for finding in failed:
        for row in finding.rows:
            reasons[row].append(_reason(batch, finding.result, row))
    for row in sorted(reasons):
        yield Refusal(id=batch.name("id", row), unit=batch.name("unit", row), row=row, reasons=tuple(reasons[row]))


def _reason(batch: _Batch, result: ExpectationResult, row: int) -> str:
    told = ", ".join(f"{name}: {value}" for name in result.columns if (value := batch.shown(name, row)))
    if result.type == _UNIQUE:
        told += f"; also in {batch.twins(result.columns[0], row)}"
    return f"{result.because} ({told})" if told else result.because


def _finding(batch: _Batch, expectation: Expectation, outcome: _Outcome) -> _Finding:
    columns = _columns(expectation)
    rows = tuple(outcome.details.get("unexpected_index_list") or ())
    sample = _sample_of_rows(batch, columns, rows) if rows else _sample_of_batch(outcome.details)
    return _Finding(
        ExpectationResult(
            type=expectation.type,
            columns=columns,
            critical=expectation.critical,
            success=outcome.success,
            because=expectation.because,
            unexpected_count=len(rows) or outcome.details.get("unexpected_count") or 0,
            unexpected_percent=100 * len(rows) / len(batch),
            sample=() if outcome.success and not rows else sample,
            exception=outcome.exception,
        ),
        rows,
    )


def _sample_of_rows(batch: _Batch, columns: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
    values = (" and ".join(batch.shown(name, row) or "nothing" for name in columns) for row in rows)
    return tuple(dict.fromkeys(islice(values, 100)))[:_SAMPLES]


def _sample_of_batch(details: Mapping[str, Any]) -> tuple[str, ...]:
    """What an expectation on the batch as a whole saw, which the vendor tells in three shapes."""
    differences = details.get("details", {}).get("mismatched")
    if isinstance(differences, Mapping):
        return tuple(_cut(f"{how} {', '.join(map(str, names))}") for how, names in differences.items())
    values = details.get("partial_unexpected_list") or [details.get("observed_value")]
    return tuple(_shown(value) for value in values[:_SAMPLES])


def _columns(expectation: Expectation) -> tuple[str, ...]:
    single = [expectation.kwargs.get(key) for key in ("column", "column_A", "column_B")]
    several = expectation.kwargs.get("column_list")
    return tuple(name for name in (*single, *(several if isinstance(several, list) else ())) if isinstance(name, str))


def _evaluate(batch: _Batch, expectations: Sequence[Expectation], parameters: Mapping[str, Any]) -> list[_Outcome]:
    """One outcome for each expectation, in their order: the whole of what we ask of Great Expectations."""
    outcomes: dict[int, _Outcome] = {}
    built = []
    for number, one in enumerate(expectations):
        try:
            built.append(_built(one, number, parameters))
        except Exception as error:  # noqa: BLE001  one that cannot be built must not hide what the others find
            outcomes[number] = _Outcome(exception=_told(error))
    named = frozenset(word for one in expectations for word in _named(one))
    try:
        definition = _spare.get_nowait()
    except Empty:
        definition = _batch_definition()
    with _configured_once():
        outcomes |= _outcomes(definition.get_batch({"dataframe": batch.prepared(named)}), built)
    return [outcomes[number] for number in range(len(expectations))]


_spare: Final[SimpleQueue[Any]] = SimpleQueue()
"""At most one batch definition that nobody has used."""


def _batch_definition() -> Any:
    """In a context of its own, 25 ms: threads that share one get each other's verdicts."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
            analytics_enabled=False,
        ),
    )
    asset = context.data_sources.add_pandas("gate").add_dataframe_asset("batch")
    return asset.add_batch_definition_whole_dataframe("rows")


@contextmanager
def _configured_once() -> Iterator[None]:
    """Great Expectations makes an expectation's configuration anew whenever it looks at one, some 80 times for each,
    and expectations anew of configurations: half of a validation. In here, and in this thread, each is made once."""
    _remember_what_is_made()
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


_made: Final[ContextVar[dict[int, tuple[Any, Any]] | None]] = ContextVar("made", default=None)
"""What was made of which object, by its identity. The object is kept, so that no other can have the same."""


@cache
def _remember_what_is_made() -> None:
    from great_expectations.expectations.expectation import Expectation as Theirs
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    def remembering(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def remembered(of: Any) -> Any:
            made = _made.get()
            if made is None:
                return make(of)
            if id(of) not in made:
                made[id(of)] = of, make(of)
            return made[id(of)][1]

        return remembered

    make_configuration = vars(Theirs)["configuration"].fget
    setattr(Theirs, "configuration", property(remembering(make_configuration)))  # noqa: B010 - no method for mypy
    setattr(ExpectationConfiguration, "to_domain_obj", remembering(ExpectationConfiguration.to_domain_obj))  # noqa: B010


def _built(expectation: Expectation, number: int, parameters: Mapping[str, Any]) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    kwargs = {key: _resolved(value, parameters) for key, value in expectation.kwargs.items()}
    # Results come back in another order; the number says whose they are.
    return ExpectationConfiguration(type=expectation.type, kwargs=kwargs, meta={"number": number}).to_domain_obj()


def _outcomes(batch: Any, built: Sequence[Any]) -> dict[int, _Outcome]:
    """The outcome of each expectation by its number. Naming rows costs as much again as looking at them: only those
    that fail are asked for them."""
    found = _validated(batch, built, "BOOLEAN_ONLY")
    failed = [one for one in built if not found[one.meta["number"]].success]
    return {**found, **_validated(batch, failed, "COMPLETE")} if failed else found


def _validated(batch: Any, built: Sequence[Any], format: str) -> dict[int, _Outcome]:
    """Some raise before Great Expectations catches anything and take all others with them: then each is evaluated by
    itself, to find out which it was."""
    import great_expectations as gx

    try:
        # Rows are named by their position, which is the index: ids may be null or occur twice.
        suite = gx.ExpectationSuite(name="gate", expectations=list(built))
        found = batch.validate(suite, result_format={"result_format": format}).results
        return {result.expectation_config.meta["number"]: _outcome(result) for result in found}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  recorded as the outcome of the one that raised
        if len(built) == 1:
            return {built[0].meta["number"]: _Outcome(exception=_told(error))}
    return {number: outcome for one in built for number, outcome in _validated(batch, [one], format).items()}


def _outcome(result: Any) -> _Outcome:
    return _Outcome(bool(result.success), result.result or {}, _raised(result.exception_info))


def _resolved(value: Any, parameters: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping) or "$PARAMETER" not in value:
        return value
    name = value["$PARAMETER"]
    if name not in parameters:
        raise ValueError(f"there is no $PARAMETER {name!r}, only {', '.join(parameters)}")
    return parameters[name]


def _named(expectation: Expectation) -> Sequence[str]:
    return [*_columns(expectation), *re.findall(r"\w+", str(expectation.kwargs.get("row_condition", "")))]


def _raised(info: Mapping[str, Any]) -> str:
    """Why an expectation raised, "" if it did not. The vendor tells it flat, or once for each failed metric."""
    raised = [one for one in (info, *info.values()) if isinstance(one, Mapping) and one.get("raised_exception")]
    messages = dict.fromkeys(str(one.get("exception_message") or "it raised without a message") for one in raised)
    return _cut(" ".join(messages), 500)


class _Batch:
    """A staged batch: as given, for what people are shown, and as Great Expectations is handed it."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.given = frame.reset_index(drop=True)
        self.missing = frozenset(COLUMNS) - frozenset(self.given.columns)
        self._values: dict[str, list[Any]] = {}
        self._rows: dict[str, dict[str, list[int]]] = {}

    def __len__(self) -> int:
        return len(self.given)

    def prepared(self, named: frozenset[str]) -> pd.DataFrame:
        """All columns by position, each of one type, null where a value is not of it. Text and lists keep their
        name and lose their content unless they are ``named``."""
        columns: dict[str, Any] = {**self._typed, **self._derived}
        for name in ("text", *_LISTS):
            if name in self.given and name not in named:
                columns[name] = False
            elif name in self.given and name in _LISTS:
                columns[name] = _lines(self.given[name])
        return self.given.assign(**columns)

    @cached_property
    def _typed(self) -> dict[str, pd.Series[Any]]:
        typed = {name: _typed(name, self.given[name]) for name in _SCALARS if name in self.given}
        # An owner that is not known must not slip past the expectation which asks for one.
        blank: dict[str, Any] = {
            name: typed[name].mask(self.given[name].isna(), "")
            for name in _NULLABLE.difference(_NUMBERS)
            if name in typed
        }
        return {**typed, **blank}

    @cached_property
    def _derived(self) -> dict[str, pd.Series[Any]]:
        text = self._held("text")
        held = {name: self._held(name) for name in ("title", "text", "path")}
        return {
            "malformed": self._names({name: self._is_malformed(name, column) for name, column in self._typed.items()}),
            "nul_in": self._names({name: column.str.contains("\0", regex=False) for name, column in held.items()}),
            "text_length": text.str.len(),
            "text_visible": text.str.strip().str.len().mask(self._held("kind") == "module"),
            "code_language": self._held("language").fillna("").where(self._held("modality") == Modality.CODE),
            "backward": self._backward(),
        }

    def _held(self, name: str) -> pd.Series[Any]:
        return self._typed.get(name, self._nowhere)

    def _backward(self) -> pd.Series[Any]:
        told = self._nowhere
        if {"start_line", "end_line"} <= self._typed.keys():
            start, end = self._typed["start_line"], self._typed["end_line"]
            for row in (end < start).to_numpy().nonzero()[0].tolist():
                told.iloc[row] = f"{end.iloc[row]:g} before {start.iloc[row]:g}"
        return told

    def _is_malformed(self, name: str, column: pd.Series[Any]) -> pd.Series[Any]:
        if name in _NULLABLE:
            return column.isna() & self.given[name].notna()
        return column.isna() if name in _MAY_BE_BLANK else column.isna() | (column.str.strip() == "")

    @property
    def _nowhere(self) -> pd.Series[Any]:
        import pandas as pd

        return pd.Series("", index=self.given.index, dtype="str")

    def _names(self, found: Mapping[str, pd.Series[Any]]) -> pd.Series[Any]:
        """For each row the names of those columns where something was found, separated by commas."""
        names = self._nowhere
        for name, rows in found.items():
            if rows.any():
                names = names.mask(rows.fillna(False), names + f", {name}")
        return names.str.removeprefix(", ")

    def value(self, column: str, row: int) -> Any:
        """What the batch says there, None for every kind of null and for a column that it does not have."""
        if column not in self._values:
            source = self._derived.get(column, self.given.get(column))
            source = _lines(source) if source is not None and column in _LISTS else source
            self._values[column] = [None] * len(self) if source is None else source.tolist()
        found = self._values[column][row]
        return None if _is_null(found) else found

    def name(self, column: str, row: int) -> str:
        value = self.value(column, row)
        return "" if value is None else _encodable(str(value))

    def shown(self, column: str, row: int) -> str:
        """A value for people, "" for null. A text is measured, not quoted: reports travel further than it may."""
        value = self.value(column, row)
        if value is None:
            return ""
        return f"{len(str(value))} characters" if column == "text" else _shown(value)

    def twins(self, column: str, row: int) -> str:
        """The other rows with the same value, by unit and position."""
        rows = self._rows_of(column)[repr(self.value(column, row))]
        others = islice((other for other in rows if other != row), _NAMED)
        told = ", ".join(f"{self.name('unit', other)} (row {other})" for other in others)
        return told if len(rows) - 1 <= _NAMED else f"{told} and {len(rows) - 1 - _NAMED} more"

    def _rows_of(self, column: str) -> dict[str, list[int]]:
        if column not in self._rows:
            self._rows[column] = defaultdict(list)
            for row in range(len(self)):
                self._rows[column][repr(self.value(column, row))].append(row)
        return self._rows[column]


def _typed(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    if name in _NUMBERS:
        return _numbers(column)
    return _times(column) if name == "updated_at" else _texts(column)


def _texts(column: pd.Series[Any]) -> pd.Series[Any]:
    """As Arrow strings, so that lengths and regular expressions mean the same for every batch; else null."""
    import pandas as pd

    if isinstance(column.dtype, pd.StringDtype) and column.dtype.storage == "pyarrow":
        return column.astype("str")
    texts = [value if isinstance(value, str) and not _SURROGATE.search(value) else None for value in column]
    return pd.Series(texts, index=column.index, dtype="str")


def _lines(column: pd.Series[Any]) -> pd.Series[Any]:
    # Great Expectations would take a list's repr, which numpy abbreviates for long ones.
    return column.map(lambda value: value if _is_null(value) else "\n".join(map(str, value))).astype("str")


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    present = column[column.notna()]
    numbers = [float(value) if not isinstance(value, bool) and isinstance(value, Real) else None for value in present]
    return pd.Series(numbers, index=present.index, dtype="float64").reindex(column.index)


def _times(column: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return column
    times = [value if isinstance(value, datetime) and value.tzinfo else None for value in column]
    return pd.to_datetime(pd.Series(times, index=column.index, dtype="object"), utc=True, errors="coerce")


def _is_null(value: Any) -> bool:
    import pandas as pd

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # repr makes what cannot be printed visible; cut first, for the value may be megabytes long.
    return _cut(repr(value[: _SHOWN + 1]) if isinstance(value, str) else str(value))


def _cut(text: str, limit: int = _SHOWN) -> str:
    line = _encodable(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _encodable(text: str) -> str:
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _told(error: Exception) -> str:
    return _cut(f"{type(error).__name__}: {error}", 500)
