"""The gate's own process: what it answers, and what happens when it is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from context_os.connectors import Expectation
from context_os.gate import Gate
from context_os.model import utcnow
from context_os.quality import Verdict

ABOUT = {"connector": "symbols", "tenant": "acme", "data_version": "v1", "run_id": "r1", "max_refused_share": 0.5}


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    found = Gate()
    yield found
    found.close()


def staged(folder: Path, *titles: str) -> Path:
    rows = [
        {
            "id": f"00000000-0000-4000-8000-{number:012d}", "tenant": "acme", "unit": "a.py", "domain": "code",
            "kind": "function", "modality": "code", "title": title, "text": "def f(): return 1", "repository": "r",
            "path": "a.py", "language": "python", "start_line": 1, "end_line": 2, "revision": "", "ttl_seconds": 60.0,
            "confidentiality": "internal", "checksum": f"{number:064x}", "owner": "", "updated_at": utcnow(),
            "source_type": "symbols", "tags": [], "targets": [], "state": "added",
        }
        for number, title in enumerate(titles)
    ]  # fmt: skip
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_are_judged_with_the_connectors_own_expectations(gate: Gate, tmp_path: Path) -> None:
    own = Expectation("expect_column_values_to_match_regex", {"column": "title", "regex": "^f"}, "it begins with f")
    verdict = gate.validate(staged(tmp_path, "f1", "g", "f2"), 3, (own,), **ABOUT)
    assert (verdict.passed, verdict.accepted, [refusal.row for refusal in verdict.refusals]) == (True, 2, [1])
    assert any("it begins with f" in reason for reason in verdict.refusals[0].reasons)


def test_a_file_that_cannot_be_read_is_a_broken_verdict(gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    verdict = gate.validate(path, 3, (), **ABOUT)
    assert (verdict.passed, verdict.broken) == (False, True)
    assert "cannot be read" in verdict.reason


def test_a_killed_process_is_a_broken_verdict_and_the_next_one_is_not(gate: Gate, tmp_path: Path) -> None:
    path = staged(tmp_path, "f1")
    assert gate.validate(path, 1, (), **ABOUT).passed
    process = gate._process
    assert process is not None
    answers: list[Verdict] = []
    # Stopped, it cannot answer before it is killed.
    process.send_signal(19)
    asking = threading.Thread(target=lambda: answers.append(gate.validate(path, 1, (), **ABOUT)))
    asking.start()
    process.kill()
    asking.join(60)
    assert [(verdict.passed, verdict.broken) for verdict in answers] == [(False, True)]
    assert "gate's process failed" in answers[0].reason
    assert gate.validate(path, 1, (), **ABOUT).passed


def test_what_somebody_began_to_ask_disturbs_nobody(gate: Gate, tmp_path: Path) -> None:
    path = staged(tmp_path, "f1")
    gate.start()
    assert gate._process is not None
    assert gate._process.stdin is not None
    gate._process.stdin.write('{"number": "somebody", "parq')
    gate._process.stdin.flush()
    assert gate.validate(path, 1, (), **ABOUT).passed


def test_nothing_is_grown_where_no_process_runs_or_its_file_is_broken(gate: Gate, tmp_path: Path) -> None:
    path, grown = staged(tmp_path, "f1"), tmp_path / "grown.npz"
    assert not Gate().grow(path, (), None, (), grown)
    gate.start()
    held = tmp_path / "held.npz"
    held.write_bytes(b"PK and then nothing")
    assert not gate.grow(path, (), held, (), grown)
    assert not gate.grow(tmp_path / "gone.parquet", (), None, (), grown)
    assert not grown.exists()
    assert gate.validate(path, 1, (), **ABOUT).passed
