"""The journal of runs: a chain that tells what was taken out, and OpenLineage that keeps to its specification."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import clone_of

from context_os.errors import StoreError
from context_os.lineage import BEGINNING, Journal, RunRecord, export, run_events, run_uuid, verify

START = datetime(2026, 11, 26, 6, tzinfo=UTC)


def record(number: int = 0, tenant: str = "acme", **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": str(uuid.UUID(int=number)),
        "asset_key": "indexed/symbols",
        "tenant": tenant,
        "store": "lab:/somewhere/lab.db",
        "connector": "symbols",
        "repository": "acme/shop",
        "revision": "a" * 40,
        "data_version": "b" * 64,
        "outcome": "complete",
        "started_at": START + timedelta(minutes=number),
        "ended_at": START + timedelta(minutes=number, seconds=3),
        "counts": {"added": 3, "changed": 1, "removed": 2},
        "items": 7,
    }
    return RunRecord(**{**values, **changes})


def filled(home: Path, count: int = 5) -> Journal:
    journal = Journal(home)
    for number in range(count):
        journal.append(record(number, tenant="acme" if number % 2 == 0 else "other"))
    return journal


def test_a_whole_journal_verifies_and_its_head_is_in_it(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    found = verify(journal.files())
    assert (found.lines, found.first, found.last, found.problems) == (5, 1, 5, ())
    assert verify(journal.files(), found.head).problems == ()
    assert oct(journal.files()[0].stat().st_mode & 0o777) == "0o600"
    assert [line.record for line in journal.lines()][2] == record(2)
    assert verify([]).head == BEGINNING


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_done_to_a_line_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = filled(tmp_path_factory.mktemp("journal")).files()[0]
    head = verify([file]).head
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(st.sampled_from(["remove", "swap", "edit", "byte", "forge"]))
    if change == "remove":
        del lines[at]
    elif change == "swap":
        lines[at], lines[at - 1] = lines[at - 1], lines[at]
    elif change == "edit":
        lines[at] = lines[at].replace('"items":7', '"items":8')
    elif change == "forge":
        held = json.loads(lines[at])
        held["record"] = None
        lines[at] = json.dumps(held) + "\n"
    else:
        place = data.draw(st.integers(0, len(lines[at]) - 2))
        lines[at] = lines[at][:place] + ("0" if lines[at][place] != "0" else "1") + lines[at][place + 1 :]
    file.write_text("".join(lines), encoding="utf-8")
    assert verify([file], head, whole=True).problems


def test_an_erased_record_leaves_its_place_and_no_trace_of_itself(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.append(record(9, repository="acme/secret"))
    head = verify(journal.files()).head
    assert journal.erase(lambda each: each.repository == "acme/secret", "receipt-1") == 1
    text = journal.files()[0].read_text(encoding="utf-8")
    assert "acme/secret" not in text
    assert '"erased":"receipt-1"' in text
    found = verify(journal.files(), head)
    assert (found.lines, found.erased, found.problems) == (6, 1, ())
    journal.append(record(10))
    assert verify(journal.files(), head).problems == ()
    assert journal.erase(lambda each: each.repository == "acme/secret", "receipt-1") == 0


def test_what_a_killed_process_left_of_a_line_is_cut_off(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    file = journal.files()[0]
    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines(keepends=True)[0][:40])
    journal.append(record(6))
    assert verify(journal.files()).problems == ()
    assert verify(journal.files()).lines == 6


def test_a_damaged_end_is_not_continued(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    file = journal.files()[0]
    file.write_bytes(file.read_bytes() + b"nonsense\n")
    with pytest.raises(StoreError, match="journal"):
        journal.append(record(6))


def _append(home: Path, first: int) -> None:
    for number in range(first, first + 10):
        Journal(home).append(record(number))


def test_processes_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(tmp_path, 10 * number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = verify(Journal(tmp_path).files())
    assert (found.lines, found.problems) == (30, ())


def test_years_follow_each_other(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    file = journal.files()[0]
    file.rename(file.with_name("2020.jsonl"))
    journal.append(record(6))
    assert [each.name for each in journal.files()] == ["2020.jsonl", f"{datetime.now(UTC).year}.jsonl"]
    assert verify(journal.files()).problems == ()
    assert verify(journal.files()[1:]).problems == ()


def test_an_export_withholds_other_tenants_and_still_verifies(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    out = tmp_path / "out.jsonl"
    out.write_text("".join(export(journal.lines(), "acme")), encoding="utf-8")
    assert '"other"' not in out.read_text(encoding="utf-8")
    assert verify([out]).problems == ()
    assert verify([out]).lines == 5
    later = datetime.fromisoformat(next(iter(journal.lines())).at) + timedelta(days=1)
    assert list(export(journal.lines(), "acme", later)) == []


# The part of https://openlineage.io/spec/2-0-2/OpenLineage.json that our events use, and of its facets what they
# require.
_FACET = {
    "type": "object",
    "required": ["_producer", "_schemaURL"],
    "properties": {"_producer": {"type": "string", "format": "uri"}, "_schemaURL": {"type": "string", "format": "uri"}},
}


def _facets(**known: list[str]) -> dict[str, Any]:
    named = {name: {"allOf": [_FACET, {"required": keys}]} for name, keys in known.items()}
    return {"type": "object", "properties": named, "additionalProperties": _FACET}


def _dataset(**facets: Any) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    properties = {"namespace": text, "name": text, "facets": _facets(version=["datasetVersion"]), **facets}
    return {"type": "array", "items": {"type": "object", "required": ["namespace", "name"], "properties": properties}}


RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"type": "string", "format": "uri"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {
                "runId": {"type": "string", "format": "uuid"},
                "facets": _facets(parent=["run", "job"], errorMessage=["message", "programmingLanguage"]),
            },
        },
        "job": {
            "type": "object",
            "required": ["namespace", "name"],
            "properties": {"facets": _facets(jobType=["processingType", "integration"])},
        },
        "inputs": _dataset(),
        "outputs": _dataset(outputFacets=_facets(outputStatistics=[])),
    },
}


def checked(event: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(event, schema, format_checker=jsonschema.FormatChecker())


def events(tmp_path: Path) -> list[dict[str, Any]]:
    journal = filled(tmp_path, 2)
    journal.append(record(7, outcome="fail", problem="BatchRefused", counts={}, items=0))
    journal.append(record(8, run_id="", revision=""))
    return list(run_events(journal.lines(), "acme"))


def test_run_events_keep_to_the_specification(tmp_path: Path) -> None:
    found = events(tmp_path)
    for event in found:
        checked(event, RUN_EVENT)
    assert [event["eventType"] for event in found] == ["START", "COMPLETE", "START", "FAIL", "START", "COMPLETE"]
    start, end = found[:2]
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["run"]["facets"]["parent"]["run"]["runId"] == str(uuid.UUID(int=0))
    assert end["job"] == {**start["job"], "name": "indexed/symbols"}
    assert end["inputs"][0]["name"] == f"acme/shop@{'a' * 40}"
    assert end["outputs"][0]["facets"]["version"]["datasetVersion"] == "b" * 64
    assert end["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 4
    assert found[3]["run"]["facets"]["errorMessage"]["message"] == "BatchRefused"
    with pytest.raises(jsonschema.ValidationError):
        checked({**start, "run": {"runId": "no uuid", "facets": {"x": {}}}}, RUN_EVENT)


def test_assets_of_one_run_are_runs_of_their_own(tmp_path: Path) -> None:
    line = Journal(tmp_path).append(record())
    assert line.record is not None
    other = record(asset_key="indexed/commits")
    assert run_uuid(line, line.record) != run_uuid(line, other)


def test_run_events_pass_the_official_schema(tmp_path: Path) -> None:
    """The schema itself is no part of this project: a clone of the specification has to be on the machine."""
    clone = clone_of("OpenLineage/OpenLineage")

    def official(path: str) -> dict[str, Any]:
        done = subprocess.run(["git", "-C", clone, "show", f"HEAD:spec/{path}"], capture_output=True, check=True)
        return json.loads(done.stdout)

    import referencing

    core = official("OpenLineage.json")
    registry = referencing.Registry().with_resource(core["$id"], referencing.Resource.from_contents(core))
    names = {"parent": "ParentRunFacet", "errorMessage": "ErrorMessageRunFacet", "jobType": "JobTypeJobFacet"}
    names |= {"version": "DatasetVersionDatasetFacet", "outputStatistics": "OutputStatisticsOutputDatasetFacet"}
    facets = {key: official(f"facets/{name}.json") for key, name in names.items()}

    def check(value: Any, schema: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator(schema, registry=registry, format_checker=jsonschema.FormatChecker()).validate(
            value
        )

    for event in events(tmp_path):
        check(event, core)
        holders = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
        for held in (
            facet for each in holders for key in ("facets", "outputFacets") for facet in each.get(key, {}).items()
        ):
            if held[0] in facets:
                assert held[1]["_schemaURL"] == facets[held[0]]["$id"]
                check(dict([held]), facets[held[0]])
