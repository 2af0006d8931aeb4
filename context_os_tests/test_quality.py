"""The gate: what it lets through, what it refuses and why, and that it closes when it breaks."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_os.connectors import Expectation
from context_os.quality import COLUMNS, CORE, DERIVED, Verdict, table, validate

NOW = datetime.now(UTC)
LATER = NOW + timedelta(hours=25)
CALL = {"connector": "symbols", "tenant": "acme", "data_version": "v1"}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A row that the gate has nothing to say about, in the types that the batch's documentation gives."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
        "tenant": "acme",
        "unit": f"src/app{number}.py",
        "domain": "code",
        "kind": "function",
        "modality": "code",
        "title": f"function number {number}",
        "text": f"def function_{number}():\n    return {number}\n",
        "repository": "shop",
        "path": f"src/app{number}.py",
        "language": "python",
        "start_line": 1,
        "end_line": 2,
        "revision": "0" * 40,
        "confidentiality": "internal",
        "ttl_seconds": 3600.0,
        "checksum": f"{number:064x}",
        "owner": "team-shop",
        "updated_at": NOW,
        "source_type": "symbols",
        "tags": ["python"],
        "targets": ["symbol:shop.pay"],
        **changes,
    }


def frame(*rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS) -> pd.DataFrame:
    """Rows as a frame of objects: pandas makes its own guesses only in the test that is about them."""
    return pd.DataFrame(list(rows), columns=list(columns), dtype="object")


def good(count: int, start: int = 1000) -> list[dict[str, Any]]:
    return [row(start + number) for number in range(count)]


MALFORMED = "every value that is needed must be given, not blank and of its type (malformed: '{}')"
ID = "id must have 1 to 200 characters, no control characters, no space at its ends"
TITLE = "title must have at most 1,000 characters"
TEXT = "text must have at most 2,000,000 characters"
NUL = "title, text and path must not hold NUL characters (nul_in: '{}')"
MODALITY = "modality must be one of text, code, table, image, event"
LEVEL = "confidentiality must be one of public, internal, restricted"
CHECKSUM = "checksum must be a SHA-256 in 64 lower-case hexadecimal digits"
PATH = 'path must be relative to the repository, without ".."'
ORDER = "end_line must not come before start_line"
FUTURE = "updated_at must not lie more than a day in the future"
TTL = "ttl_seconds must be a positive number of seconds, or null for an item that does not expire"

REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    *(
        ({name: nothing}, (MALFORMED.format(name),))
        for name in ("id", "unit", "domain", "kind", "title", "source_type", "modality", "confidentiality", "checksum")
        for nothing in (None, float("nan"), pd.NA)
    ),
    *(({name: blank}, (MALFORMED.format(name),)) for name in ("unit", "kind", "title") for blank in ("", " \t\n")),
    *(({name: 7}, (MALFORMED.format(name),)) for name in ("id", "title", "text", "path", "owner", "language")),
    *(({name: ["x"]}, (MALFORMED.format(name),)) for name in ("title", "path", "revision")),
    ({"text": None}, (MALFORMED.format("text"),)),
    ({"text": "\udc80 not text"}, (MALFORMED.format("text"),)),
    ({"updated_at": None}, (MALFORMED.format("updated_at"),)),
    ({"updated_at": pd.NaT}, (MALFORMED.format("updated_at"),)),
    ({"updated_at": NOW.replace(tzinfo=None)}, (MALFORMED.format("updated_at"),)),
    ({"updated_at": "2026-01-01T00:00:00Z"}, (MALFORMED.format("updated_at"),)),
    ({"start_line": "1"}, (MALFORMED.format("start_line"),)),
    ({"start_line": True}, (MALFORMED.format("start_line"),)),
    ({"ttl_seconds": timedelta(hours=1)}, (MALFORMED.format("ttl_seconds"),)),
    ({"title": None, "text": None, "kind": ""}, (MALFORMED.format("kind, title, text"),)),
    ({"id": " rule-1"}, (f"{ID} (id: ' rule-1')",)),
    ({"id": "rule-\x7f"}, (f"{ID} (id: 'rule-\\x7f')",)),
    ({"id": str(uuid.UUID(int=7)) + "\n"}, (f"{ID} (id: '{uuid.UUID(int=7)}\\n')",)),
    ({"id": "x" * 201}, (f"{ID} (id: '{'x' * 118}…)",)),
    ({"title": "é" * 1001}, (f"{TITLE} (title: '{'é' * 118}…)",)),
    ({"text": "x" * 2_000_001}, (f"{TEXT} (text_length: 2000001)",)),
    ({"title": "a\0b"}, (NUL.format("title"),)),
    ({"text": "a\0b" * 10, "path": "a\0b"}, (NUL.format("text, path"),)),
    ({"modality": "smell"}, (f"{MODALITY} (modality: 'smell')",)),
    ({"confidentiality": "secret"}, (f"{LEVEL} (confidentiality: 'secret')",)),
    ({"confidentiality": "Public"}, (f"{LEVEL} (confidentiality: 'Public')",)),
    ({"checksum": "f" * 63}, (f"{CHECKSUM} (checksum: '{'f' * 63}')",)),
    ({"checksum": "g" * 64}, (f"{CHECKSUM} (checksum: '{'g' * 64}')",)),
    *(
        ({"path": path}, (f"{PATH} (path: {path!r})",))
        for path in ("/etc/passwd", "..", "../x", "a/../b", "a/..", "C:/x", "C:\\x", "..\\x", "\\\\host\\x")
    ),
    ({"start_line": 0}, ("start_line must count from 1 (start_line: 0)",)),
    ({"start_line": None, "end_line": -1}, ("end_line must count from 1 (end_line: -1)",)),
    ({"start_line": 9, "end_line": 3}, (f"{ORDER} (backward: '3 before 9')",)),
    ({"updated_at": LATER}, (f"{FUTURE} (updated_at: {LATER})",)),
    ({"ttl_seconds": 0.0}, (f"{TTL} (ttl_seconds: 0)",)),
    ({"ttl_seconds": -1}, (f"{TTL} (ttl_seconds: -1)",)),
    ({"ttl_seconds": float("inf")}, (f"{TTL} (ttl_seconds: inf)",)),
    (
        {"title": " ", "confidentiality": "", "start_line": 2, "end_line": 1, "ttl_seconds": 0},
        (
            MALFORMED.format("title, confidentiality"),
            f"{LEVEL} (confidentiality: '')",
            f"{ORDER} (backward: '1 before 2')",
            f"{TTL} (ttl_seconds: 0)",
        ),
    ),
]

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"text": ""},
    {"kind": "module", "text": "", "start_line": None, "end_line": None},
    {"start_line": None, "end_line": 2},
    {"start_line": 2, "end_line": None},
    {"start_line": 2, "end_line": 2},
    {"start_line": float("nan"), "end_line": pd.NA, "ttl_seconds": pd.NA},
    {"ttl_seconds": None},
    {"ttl_seconds": 0.001},
    {"title": "é" * 1000},
    {"text": "\N{OLD ITALIC LETTER A}" * 2_000_000},
    {"path": "", "repository": "", "language": "", "revision": "", "owner": ""},
    {"path": None, "repository": None, "language": float("nan"), "revision": pd.NA, "owner": None},
    *({"path": path} for path in ("a..b", "...", "..a/b", "a b/é.py", "src/[id]/page.tsx")),
    {"updated_at": NOW + timedelta(hours=23)},
    {"updated_at": datetime(1970, 1, 1, tzinfo=UTC)},
    {"tags": [], "targets": []},
    {"tags": None, "targets": None},
]


@pytest.fixture(scope="module")
def refused() -> Verdict:
    cases = [row(number, **changes) for number, (changes, _) in enumerate(REFUSED)]
    return validate(frame(*cases, *good(3)), (), max_refused_share=1.0, **CALL)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: str(REFUSED[number][0])[:50])
def test_a_row_that_breaks_a_rule_is_refused_with_every_reason(refused: Verdict, number: int) -> None:
    changes, reasons = REFUSED[number]
    refusal = refused.refusals[number]
    assert refusal.row == number
    assert refusal.reasons == reasons
    if "unit" not in changes:
        assert refusal.unit == f"src/app{number}.py"


def test_the_rows_beside_refused_ones_are_accepted(refused: Verdict) -> None:
    assert refused.passed
    assert not refused.broken
    assert refused.accepted == 3
    assert [refusal.row for refusal in refused.refusals] == list(range(len(REFUSED)))


def test_every_core_rule_on_rows_is_broken_by_one_of_these_rows(refused: Verdict) -> None:
    broken = {result.because for result in refused.results if result.critical and not result.success}
    whole = {"a batch has exactly the columns of the gate", "every row belongs to the tenant of the batch"}
    unique = {"id must be unique in the batch"}
    assert broken == {one.because for one in CORE if one.critical} - whole - unique


def test_the_edges_of_what_is_allowed_are_accepted() -> None:
    verdict = validate(frame(*(row(number, **changes) for number, changes in enumerate(ACCEPTED))), (), **CALL)
    assert verdict.refusals == ()
    assert verdict.passed
    assert verdict.accepted == verdict.rows == len(ACCEPTED)


def test_missing_lines_do_not_shift_the_rows_that_are_named() -> None:
    gaps = [row(1, start_line=None), row(2, end_line=None), row(3, start_line=5, end_line=1), row(4)]
    assert [refusal.row for refusal in validate(frame(*gaps), (), **CALL).refusals] == [2]


def guessed(batch: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(batch.to_dict("records"), columns=list(COLUMNS))


def through_parquet(batch: pd.DataFrame) -> pd.DataFrame:
    file = io.BytesIO()
    guessed(batch).to_parquet(file)
    return pd.read_parquet(file)


def through_arrow(batch: pd.DataFrame) -> pd.DataFrame:
    return pa.Table.from_pandas(guessed(batch)).to_pandas(types_mapper=pd.ArrowDtype)


def python_strings(batch: pd.DataFrame) -> pd.DataFrame:
    texts = {name: "string[python]" for name in COLUMNS if isinstance(batch[name][0], str)}
    return batch.astype(texts).set_index(pd.Index(reversed(range(len(batch)))))


@pytest.mark.parametrize(
    "spelling", [guessed, through_parquet, through_arrow, python_strings, pd.DataFrame.convert_dtypes]
)
def test_the_verdict_does_not_depend_on_the_types_that_pandas_chose(spelling: Any) -> None:
    cases = [
        row(0),
        row(1, start_line=None, end_line=None, ttl_seconds=None),
        row(2, title=None),
        row(3, start_line=4, end_line=3),
        row(4, ttl_seconds=-1.5),
        row(5, updated_at=None),
        row(6, text="a\0b"),
        row(7, owner=None, path=None),
        row(8, updated_at=LATER),
    ]
    objects = validate(frame(*cases), (), **CALL)
    other = validate(spelling(frame(*cases)), (), **CALL)
    assert [refusal.row for refusal in objects.refusals] == [2, 3, 4, 5, 6, 8]
    assert other.refusals == objects.refusals
    assert other.passed


@pytest.mark.parametrize("name", ["start_line", "ttl_seconds", "owner", "tags", "targets"])
def test_a_column_of_nulls_that_may_be_null_is_accepted(name: str) -> None:
    assert validate(frame(*(row(number, **{name: None}) for number in range(3))), (), **CALL).accepted == 3


def test_every_row_of_a_duplicated_id_is_refused_and_names_the_others() -> None:
    twin = row(0)["id"]
    many = row(99)["id"]
    rows = [row(0), row(1), row(2, id=twin), *(row(number, id=many) for number in range(3, 9)), *good(20)]
    verdict = validate(frame(*rows), (), **CALL)
    assert [refusal.row for refusal in verdict.refusals] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert verdict.refusals[0].reasons == (
        f"id must be unique in the batch (id: '{twin}'; also in src/app2.py (row 2))",
    )
    assert "also in src/app0.py (row 0))" in verdict.refusals[1].reasons[0]
    assert "src/app4.py (row 4), src/app5.py (row 5), src/app6.py (row 6) and 2 more" in verdict.refusals[2].reasons[0]
    assert {refusal.id for refusal in verdict.refusals} == {twin, many}


def test_a_duplicate_is_named_beside_ids_of_any_type() -> None:
    rows = [row(0), row(1, id=row(0)["id"]), row(2, id=["x"]), row(3, id=["x"])]
    verdict = validate(frame(*rows), (), **CALL)
    assert not verdict.broken
    assert [refusal.reasons for refusal in verdict.refusals[2:]] == [(MALFORMED.format("id"),)] * 2


@pytest.mark.parametrize("spelling", [pd.DataFrame, through_parquet, through_arrow])
def test_a_list_is_seen_whole_as_a_line_for_each_element(spelling: Any) -> None:
    many = [f"path:src/{number}.py" for number in range(3000)]
    rows = [row(0, targets=many), row(1, targets=[]), row(2, targets=["bug:7", "path:a"]), row(3, targets=None)]
    middle = {"column": "targets", "regex": "(?:^|\n)path:(?:a|src/1500.py)(?:\n|\\Z)"}
    own = (
        Expectation("expect_column_values_to_match_regex", middle, "where is it"),
        Expectation("expect_column_values_to_be_unique", {"column": "tags"}, "tags told twice"),
    )
    verdict = validate(spelling(frame(*rows)), own, max_refused_share=1.0, **CALL)
    refused = [refusal.row for refusal in verdict.refusals if any("where is it" in one for one in refusal.reasons)]
    assert (verdict.broken, refused) == (False, [1])
    assert verdict.refusals[0].reasons == (
        "tags told twice (tags: 'python'; also in src/app1.py (row 1), src/app2.py (row 2), src/app3.py (row 3))",
    )


ADVISED: list[tuple[dict[str, Any], str]] = [
    ({"language": ""}, "code without a language is not found by a search for one"),
    ({"text": "   \n" * 30}, "a text of fewer than 20 characters tells a reviewer little"),
    ({"text": "x" * 100_001}, "a text of more than 100,000 characters fits no pack whole"),
    ({"title": "x" * 201}, "a title of more than 200 characters is cut in catalogues"),
    ({"path": "src\\app.py"}, "a path with backslashes is not found by a search below a directory"),
]


def test_advice_is_recorded_and_never_blocks() -> None:
    rows = [row(number, **changes) for number, (changes, _) in enumerate(ADVISED)]
    verdict = validate(frame(*rows, *good(2)), (), **CALL)
    failed = {result.because: result for result in verdict.results if not result.success}
    assert verdict.passed
    assert verdict.accepted == len(rows) + 2
    assert set(failed) == {because for _, because in ADVISED} == {one.because for one in CORE if not one.critical}
    assert failed[ADVISED[0][1]].unexpected_count == 1
    assert failed[ADVISED[0][1]].unexpected_percent == pytest.approx(100 / 7)


def test_advice_on_code_and_on_text_spares_what_it_does_not_concern() -> None:
    spared = [row(1, modality="text", language=""), row(2, kind="module", text="")]
    assert all(result.success for result in validate(frame(*spared), (), **CALL).results)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (tuple(name for name in COLUMNS if name != "title"), "missing title"),
        (tuple(name for name in COLUMNS if name not in {"text", "tags"}), "missing tags, text"),
        (tuple(name for name in COLUMNS if name != "kind"), "missing kind"),
        ((*COLUMNS, "vector"), "unexpected vector"),
    ],
)
def test_a_batch_with_the_wrong_columns_is_refused_whole(columns: tuple[str, ...], told: str) -> None:
    rows = [row(number, vector=1) for number in range(3)]
    verdict = validate(frame(*rows, columns=columns), (), **CALL)
    assert not any(result.exception for result in verdict.results)
    assert not verdict.passed
    assert not verdict.broken
    assert verdict.accepted == 0
    assert verdict.reason == f"a batch has exactly the columns of the gate ({told})"


def test_a_batch_with_a_row_of_another_tenant_is_refused_whole() -> None:
    verdict = validate(frame(*good(20), row(0, tenant="rival")), (), **CALL)
    assert not verdict.passed
    assert not verdict.broken
    assert verdict.reason == "every row belongs to the tenant of the batch ('rival')"
    assert verdict.accepted == 0


@pytest.mark.parametrize(
    ("bad", "whole", "share", "passed"),
    [
        (6, 4, 0.5, False),
        (5, 5, 0.5, True),
        (9, 0, 0.5, True),
        (10, 0, 0.5, False),
        (1, 9, 0.0, False),
        (10, 0, 1.0, True),
    ],
)
def test_too_large_a_share_of_refused_rows_refuses_the_batch(bad: int, whole: int, share: float, passed: bool) -> None:
    rows = [*(row(number, title="") for number in range(bad)), *good(whole)]
    verdict = validate(frame(*rows), (), max_refused_share=share, **CALL)
    assert verdict.passed is passed
    assert not verdict.broken
    assert len(verdict.refusals) == bad
    assert verdict.accepted == (whole if passed else 0)
    assert bool(verdict.reason) is not passed


def test_the_reason_of_a_refused_batch_names_the_commonest_causes() -> None:
    rows = [*(row(number, title="", ttl_seconds=0) for number in range(9)), row(9, checksum="x"), *good(2)]
    reason = validate(frame(*rows), (), **CALL).reason
    assert reason.startswith("10 of 12 rows were refused, more than 50%: every value that is needed")
    assert re.findall(r"\((\d+) rows\)", reason) == ["9", "9", "1"]


FIXED = {"type": "comparison", "column": {"name": "text"}, "operator": "==", "parameter": "fix it"}
OWN = (
    Expectation("expect_column_values_to_be_in_set", {"column": "kind", "value_set": ["bug"]}, "only bugs here"),
    Expectation("expect_column_values_to_match_regex", {"column": "text", "regex": "fix"}, "a bug tells its fix"),
    Expectation("expect_column_values_to_not_match_regex", {"column": "tags", "regex": r"^\Z"}, "no tag", False),
    Expectation(
        "expect_column_values_to_not_match_regex",
        {"column": "title", "regex": "x", "row_condition": FIXED},
        "conditions may look at the text",
    ),
)


def test_a_connectors_own_expectations_are_held_beside_the_core() -> None:
    rows = [
        row(0, kind="bug", text="fix it", title="plain", tags=[]),
        row(1, kind="bug"),
        row(2, text="fix it", title="x"),
    ]
    verdict = validate(frame(*rows), OWN, **CALL)
    assert {refusal.row: refusal.reasons for refusal in verdict.refusals} == {
        1: ("a bug tells its fix (text: 31 characters)",),
        2: ("only bugs here (kind: 'function')", "conditions may look at the text (title: 'x')"),
    }
    assert [result.because for result in verdict.results[-4:]] == [one.because for one in OWN]
    assert not verdict.results[-2].success


def test_an_expectation_on_the_batch_as_a_whole_refuses_it_or_advises() -> None:
    rows = good(3)
    few = {"min_value": 100}
    critical = Expectation("expect_table_row_count_to_be_between", few, "fewer rows than ever")
    verdict = validate(frame(*rows), (critical,), **CALL)
    assert (verdict.passed, verdict.broken, verdict.refusals) == (False, False, ())
    assert verdict.reason == "fewer rows than ever (3)"
    advisory = Expectation("expect_table_row_count_to_be_between", few, "fewer rows than ever", critical=False)
    assert validate(frame(*rows), (advisory,), **CALL).accepted == 3


def test_what_is_mostly_met_refuses_nobody() -> None:
    own = Expectation(
        "expect_column_values_to_be_in_set", {"column": "kind", "value_set": ["function"], "mostly": 0.5}, ""
    )
    assert validate(frame(*good(3), row(0, kind="class")), (own,), **CALL).accepted == 4


def test_a_text_is_measured_and_never_quoted() -> None:
    own = Expectation("expect_column_values_to_not_match_regex", {"column": "text", "regex": "hunter2"}, "no passwords")
    verdict = validate(frame(row(0, text="password = 'hunter2'"), row(1)), (own,), **CALL)
    assert verdict.refusals[0].reasons == ("no passwords (text: 20 characters)",)
    assert "hunter2" not in verdict.model_dump_json()


BROKEN = [
    Expectation("expect_miracles", {"column": "title"}, "unknown type"),
    Expectation("expect_column_values_to_be_unique", {"colum": "title"}, "misspelt argument"),
    Expectation("expect_column_values_to_be_unique", {"column": "colour"}, "no such column"),
    Expectation("expect_column_values_to_match_regex", {"column": "title", "regex": "("}, "bad pattern"),
    Expectation("expect_column_values_to_be_between", {"column": "title", "min_value": 3}, "text against number"),
    Expectation("expect_column_values_to_be_between", {"column": "text_length", "max_value": {"$PARAMETER": "x"}}, ""),
    Expectation(
        "expect_column_values_to_be_unique", {"column": "title", "row_condition": {"type": "?"}}, "no condition"
    ),
    Expectation("expect_compound_columns_to_be_unique", {"column_list": 3}, "not a list"),
    Expectation("expect_column_kl_divergence_to_be_less_than", {"column": "title", "partition_object": {}}, "uncaught"),
]


@pytest.mark.parametrize("own", BROKEN, ids=lambda own: own.because or own.type)
def test_an_expectation_that_cannot_be_evaluated_breaks_the_verdict_and_hides_nothing(own: Expectation) -> None:
    verdict = validate(frame(row(0, title=""), *good(3)), (own,), **CALL)
    assert (verdict.passed, verdict.broken, verdict.accepted) == (False, True, 0)
    assert own.type in verdict.reason
    assert verdict.reason.startswith("1 critical expectations could not be evaluated: ")
    assert not verdict.results[-1].success
    assert verdict.results[-1].exception in verdict.reason
    assert not any(result.exception for result in verdict.results[:-1])
    assert [refusal.row for refusal in verdict.refusals] == [0]


def test_advice_that_cannot_be_evaluated_does_not_block_either() -> None:
    advice = [Expectation(own.type, own.kwargs, own.because, critical=False) for own in BROKEN]
    verdict = validate(frame(row(0, title=""), *good(3)), advice, **CALL)
    assert (verdict.passed, verdict.broken, verdict.accepted) == (True, False, 3)
    assert all(result.exception and not result.success for result in verdict.results[-len(BROKEN) :])


def test_a_frame_that_is_none_breaks_the_verdict_instead_of_raising() -> None:
    twice = pd.concat([frame(row(0)), frame(row(0))[["title"]]], axis=1)
    verdict = validate(twice, (), **CALL)
    assert (verdict.passed, verdict.broken, verdict.rows) == (False, True, 1)
    assert verdict.reason.startswith("the validation did not run: ")
    assert validate(["no frame"], (), **CALL).broken  # type: ignore[arg-type]


def test_only_running_out_of_memory_is_raised() -> None:
    class Exhausted:
        def __len__(self) -> int:
            return 1

        def reset_index(self, drop: bool) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        validate(Exhausted(), (), **CALL)  # type: ignore[arg-type]


def test_a_verdict_survives_json_and_pickle() -> None:
    odd = row(0, id="\udcff", unit="\udcff", title="a\0\n\u2028é", tags=["\udcff"])
    verdict = validate(frame(odd, row(1, updated_at=None), *good(2)), OWN, run_id="run-7", **CALL)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert Verdict.model_validate_json(verdict.model_dump_json(by_alias=True)) == verdict
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert (verdict.connector, verdict.data_version, verdict.run_id) == ("symbols", "v1", "run-7")
    assert verdict.seconds > 0
    assert abs(verdict.at - NOW) < timedelta(hours=1)


def test_the_table_has_one_flat_row_for_each_expectation_failures_first() -> None:
    verdict = validate(frame(row(0, title="", language=""), row(1)), (), **CALL)
    critical, advisory = table(verdict, critical=True), table(verdict, critical=False)
    assert len(critical) + len(advisory) == len(verdict.results) == len(CORE)
    assert critical[0] == {
        "expectation": "expect_column_values_to_be_in_set",
        "columns": "malformed",
        "success": False,
        "unexpected_count": 1,
        "unexpected_percent": 50.0,
        "because": "every value that is needed must be given, not blank and of its type",
        "sample": "'title'",
        "exception": "",
    }
    assert [line["success"] for line in advisory] == [False, *[True] * (len(advisory) - 1)]


def test_samples_are_short_few_and_different() -> None:
    rows = [row(number, confidentiality=f"{number // 2}" * 500) for number in range(20)]
    verdict = validate(frame(*rows), (), **CALL)
    sample = next(result.sample for result in verdict.results if result.columns == ("confidentiality",))
    assert len(sample) == len(set(sample)) == 5
    assert max(map(len, sample)) <= 120


def test_the_core_names_only_columns_that_a_batch_has() -> None:
    named = {one.kwargs[key] for one in CORE for key in ("column", "column_A", "column_B") if key in one.kwargs}
    assert named <= {*COLUMNS, *DERIVED}
    assert all(one.because for one in CORE)


# ---- threads --------------------------------------------------------------------------------------------------


def test_eight_threads_get_each_its_own_verdict() -> None:
    def verdict(number: int) -> list[int]:
        rows = [row(at, title="" if at % 8 == number else "named") for at in range(40)]
        return [refusal.row for refusal in validate(frame(*rows), (), **CALL).refusals]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(verdict, range(8)))
    assert found == [[at for at in range(40) if at % 8 == number] for number in range(8)]


# ---- a property -----------------------------------------------------------------------------------------------

IDS = [str(uuid.UUID(int=number)) for number in range(6)]
ANY_TEXT = st.one_of(st.none(), st.text(alphabet="aé\0 .\n/\\", max_size=4))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from([*IDS, "x", "", None]),
        "title": st.one_of(ANY_TEXT, st.just("t" * 1001), st.integers()),
        "text": ANY_TEXT,
        "path": st.one_of(ANY_TEXT, st.sampled_from(["../a", "a/..", "/a", "a..b"])),
        "confidentiality": st.sampled_from(["public", "restricted", "Secret", None]),
        "start_line": st.one_of(st.none(), st.integers(-1, 5)),
        "end_line": st.one_of(st.none(), st.integers(-1, 5)),
        "ttl_seconds": st.one_of(st.none(), st.floats(-1, 1)),
        "updated_at": st.one_of(
            st.none(), st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.sampled_from([None, UTC]))
        ),
    },
)


def is_blank(value: object) -> bool:
    return not isinstance(value, str) or not value.strip()


def is_wrong(item: dict[str, Any], ids: list[Any]) -> bool:
    """The rules once more, in plain Python and one row at a time."""
    path, first, last, ttl, at = (item[key] for key in ("path", "start_line", "end_line", "ttl_seconds", "updated_at"))
    texts = [item["title"], item["text"], path or ""]
    return (
        any(is_blank(item[key]) for key in ("id", "title", "confidentiality"))
        or ids.count(item["id"]) > 1
        or not isinstance(item["text"], str)
        or any("\0" in text for text in texts)
        or len(item["title"]) > 1000
        or (path or "").startswith(("/", "\\"))
        or ".." in re.split(r"[/\\]", path or "")
        or item["confidentiality"] not in {"public", "internal", "restricted"}
        or (first is not None and first < 1)
        or (last is not None and last < 1)
        or (first is not None and last is not None and last < first)
        or (ttl is not None and ttl <= 0)
        or at is None
        or at.tzinfo is None
        or at > datetime.now(UTC) + timedelta(days=1)
    )


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGES, min_size=1, max_size=25))
def test_exactly_the_rows_that_an_oracle_names_are_refused(changes: list[dict[str, Any]]) -> None:
    rows = [row(number, **change) for number, change in enumerate(changes)]
    ids = [item["id"] for item in rows]
    verdict = validate(frame(*rows), (), max_refused_share=1.0, **CALL)
    assert not verdict.broken, verdict.reason
    assert [refusal.row for refusal in verdict.refusals] == [at for at, item in enumerate(rows) if is_wrong(item, ids)]
    assert verdict.accepted + len(verdict.refusals) == verdict.rows == len(rows)
    assert all(refusal.id == (rows[refusal.row]["id"] or "") for refusal in verdict.refusals)


# ---- processes ------------------------------------------------------------------------------------------------


def run(program: str) -> str:
    """A program in a process of its own: its output. It must end well and say nothing on standard error."""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_the_gate_and_an_empty_batch_load_no_vendor() -> None:
    assert (
        run(
            "import sys\n"
            "from context_os.quality import COLUMNS, validate\n"
            "assert not {'pandas', 'pyarrow', 'numpy', 'great_expectations'} & set(sys.modules)\n"
            "import pandas\n"
            "nothing = pandas.DataFrame(columns=list(COLUMNS))\n"
            "verdict = validate(nothing, (), connector='c', tenant='t', data_version='')\n"
            "assert 'great_expectations' not in sys.modules\n"
            "print(verdict.passed, verdict.broken, verdict.rows, verdict.accepted, verdict.results)\n"
        )
        == "True False 0 0 ()\n"
    )


def test_a_gate_without_great_expectations_is_closed() -> None:
    assert run(
        "import sys\n"
        "sys.modules['great_expectations'] = None\n"
        "import pandas\n"
        "from context_os.quality import COLUMNS, validate\n"
        "batch = pandas.DataFrame([dict.fromkeys(COLUMNS, 'x')])\n"
        "verdict = validate(batch, (), connector='c', tenant='t', data_version='')\n"
        "print(verdict.passed, verdict.broken, verdict.rows, verdict.accepted, verdict.reason)\n"
    ) == (
        "False True 1 0 the validation did not run: "
        "ModuleNotFoundError: import of great_expectations halted; None in sys.modules\n"
    )


def test_a_first_validation_from_many_threads_is_quiet_and_connects_to_nobody() -> None:
    assert (
        run(
            "import sys\n"
            "def refuse(event, arguments):\n"
            "    if event in {'socket.connect', 'socket.sendto', 'socket.getaddrinfo', 'socket.gethostbyname'}:\n"
            "        print(event, arguments[1:])\n"
            "sys.addaudithook(refuse)\n"
            "import pandas\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "from context_os.quality import COLUMNS, validate\n"
            "batch = pandas.DataFrame([dict.fromkeys(COLUMNS, 'x')] * 3)\n"
            "def verdict(number):\n"
            "    found = validate(batch, (), connector='c', tenant='x', data_version='')\n"
            "    return found.passed, found.broken, found.reason, len(found.refusals)\n"
            "with ThreadPoolExecutor(8) as pool:\n"
            "    print(set(pool.map(verdict, range(8))))\n"
        )
        == "{(True, False, '', 3)}\n"
    )
