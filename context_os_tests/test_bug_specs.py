"""BugSpecs: real records, every form of file, every way a record can be wrong, and nothing lost."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from context_os.connectors import Known, Repository, Unit
from context_os.connectors._patches import patch_targets
from context_os.connectors.bug_specs import KEPT_PATCH, LONGEST_TEXT, BugSpec, BugSpecs
from context_os.errors import SourceRefused
from context_os.model import NEVER, KnowledgeItem

RECORD: dict[str, Any] = {
    "bug_id": "PAY-7",
    "title": "Refunds are paid twice",
    "service": "payments",
    "module": "refunds",
    "severity": "High",
    "status": "open",
    "symptoms": {
        "summary": "Customers see two refunds",
        "logs": ["refund ok", "refund ok"],
        "alerts": ["DoubleRefund"],
    },
    "related": {"bugs": ["PAY-3"], "releases": ["1.10"]},
    "business_rule": "A payment is refunded at most once",
    "root_cause": "The retry did not carry the idempotency key",
    "fix": {
        "commit": "0123abc",
        "files": ["src/refund.py"],
        "functions": ["refund_once"],
        "tests": ["tests/test_refund.py"],
        "manual_steps": ["Reverse the doubled refunds"],
        "owners": ["@payments"],
    },
    "prevention": {"flags": ["refund-guard"], "alerts": ["DoubleRefund"], "tests": ["tests/test_idempotency.py"]},
    "links": ["https://example.org/PAY-7"],
}


def read_folder(folder: Path, **options: Any) -> dict[str, Unit]:
    connector = BugSpecs(folder=folder, **options)
    repository = Repository("acme/shop", folder, "acme")
    listing = connector.scan(repository, Known())
    return {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}


def read_one(folder: Path, name: str, content: str | bytes, **options: Any) -> Unit:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_folder(folder, **options)[name]


def reasons(unit: Unit) -> str:
    return " | ".join(f"{each.key}: {'; '.join(each.reasons)}" for each in unit.rejected)


def targets(item: KnowledgeItem) -> set[str]:
    return {f"{relation.type}>{relation.target}" for relation in item.relations}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


# --- real records ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bugsinpy(shared: Path) -> Path:
    return shared / "data" / "bugsinpy"


def test_all_of_bugsinpy_arrives_and_says_what_it_lacks(bugsinpy: Path) -> None:
    written = [json.loads(line) for line in (bugsinpy / "bugsinpy.jsonl").read_text().splitlines()]
    unit = read_folder(bugsinpy)["bugsinpy.jsonl"]
    assert (len(written), len(unit.items), len(unit.rejected)) == (501, 501, 0)
    assert len({item.id for item in unit.items}) == 501
    missing = Counter(field for item in unit.items for field in item.payload.structured["missing"])
    assert missing == {"symptoms": 501, "root_cause": 501}
    assert all("draft" in item.metadata.tags for item in unit.items)
    assert "drafts without root_cause: 501" in unit.notes
    for record, item in zip(written, unit.items, strict=True):
        fix = item.payload.structured["fix"]
        assert item.symbols == (f"{record['project']}-{record['bug']}",)
        assert fix["commit"] == record["fixed_commit"]
        assert f"fixes>commit:{record['fixed_commit']}" in targets(item)
        assert {f"tests>path:{path}" for path in record["test_file"].split(";") if path} <= targets(item)
        assert item.payload.structured["extra"]["python_version"] == record["python_version"]
        assert record["fix_message"].splitlines()[0].strip() in item.payload.text
        assert record["patch"].startswith(fix.get("patch", ""))


def test_patches_of_bugsinpy_name_their_files_as_git_does(bugsinpy: Path) -> None:
    """Compared with ``git apply --numstat``, which reads the same patches."""
    lines = (bugsinpy / "bugsinpy.jsonl").read_text().splitlines()[::25]
    compared = 0
    for record in map(json.loads, lines):
        counted = subprocess.run(
            ["git", "apply", "--numstat", "-z", "-"],
            input=record["patch"].encode(),
            capture_output=True,
            check=False,
            cwd="/",
        )
        if counted.returncode == 0:
            paths = {row.split("\t")[2] for row in counted.stdout.decode().split("\0") if row}
            assert paths == set(patch_targets(record["patch"]).files)
            compared += 1
    assert compared > 15


def test_ids_and_checksums_do_not_change_from_read_to_read(bugsinpy: Path) -> None:
    first, second = (read_folder(bugsinpy)["bugsinpy.jsonl"] for _ in range(2))
    assert [(i.id, i.metadata.checksum) for i in first.items] == [(i.id, i.metadata.checksum) for i in second.items]


_FLIPPED: st.SearchStrategy[Any] = st.sampled_from(
    [5, -1.5, True, None, [], {}, [[]], {"a": 1}, "", ["x", 3], "0" * 200_000, "\0", "\ud800"]
)


@st.composite
def mutated(draw: st.DrawFn, lines: Sequence[str]) -> bytes:
    """Some real records as JSON Lines, spoiled in a few places."""
    chosen = draw(st.lists(st.sampled_from(lines), min_size=1, max_size=6))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(chosen) - 1))
        how = draw(st.sampled_from(["flip", "truncate", "double", "nul", "drop"]))
        if how == "double":
            chosen.insert(at, chosen[at])
        elif how == "truncate":
            chosen[at] = chosen[at][: draw(st.integers(0, len(chosen[at])))]
        elif how == "nul":
            place = draw(st.integers(0, len(chosen[at])))
            chosen[at] = chosen[at][:place] + "\0" + chosen[at][place:]
        elif chosen[at].startswith("{") and chosen[at].endswith("}") and "\0" not in chosen[at]:
            record = json.loads(chosen[at])
            field = draw(st.sampled_from(sorted(record) or ["bug"]))
            record[field] = draw(_FLIPPED)
            if how == "drop":
                del record[field]
            chosen[at] = json.dumps(record)
    data = "\n".join(chosen).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


def test_every_spoiled_record_is_accounted_for(bugsinpy: Path, tmp_path: Path) -> None:
    lines = [line for line in (bugsinpy / "bugsinpy.jsonl").read_text().splitlines() if len(line) < 4000][:60]

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(mutated(lines))
    def law(data: bytes) -> None:
        unit = read_one(tmp_path, "bugs.jsonl", data)
        present = [line for line in data.decode("utf-8", "backslashreplace").split("\n") if line.strip()]
        assert len(unit.items) + len(unit.rejected) == len(present)
        assert all(each.reasons and each.raw in present for each in unit.rejected)
        for item in unit.items:
            json.dumps(item.model_dump(mode="json")).encode()

    law()


def test_a_list_of_real_records_cut_anywhere_keeps_what_stands_before_the_cut(bugsinpy: Path, tmp_path: Path) -> None:
    lines = (bugsinpy / "bugsinpy.jsonl").read_text().splitlines()
    records = [record for line in lines if len(line) < 2000 and (record := json.loads(line))][:8]
    text = json.dumps({"made": "today", "bugs": records})
    ends = [text.index(json.dumps(record)) + len(json.dumps(record)) for record in records]

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.integers(text.index("[") + 1, len(text) - 1))
    def law(cut: int) -> None:
        unit = read_one(tmp_path, "bugs.json", text[:cut])
        assert len(unit.items) == sum(end <= cut for end in ends)
        assert len(unit.rejected) == 1
        assert text[:cut].endswith(unit.rejected[0].raw)

    law()


# --- forms ----------------------------------------------------------------------------------------------------


def camel(value: Any) -> Any:
    if isinstance(value, dict):
        parts = {key: key.split("_") for key in value}
        return {first + "".join(map(str.title, rest)): camel(value[key]) for key, (first, *rest) in parts.items()}
    return value


def flat(value: dict[str, Any]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, inner in value.items():
        pairs.update(
            {f"{key}_{name}": each for name, each in inner.items()} if isinstance(inner, dict) else {key: inner}
        )
    return pairs


def front_matter(value: dict[str, Any]) -> str:
    return "---\n" + json.dumps(value, indent=1) + "\n---\n"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bug.json", json.dumps),
        ("bug.json", lambda r: json.dumps([r])),
        ("bug.json", lambda r: json.dumps({"generated": {"bugs": []}, "bugs": [r], "count": 1})),
        ("bug.json", lambda r: json.dumps(camel(r), indent=2)),
        ("bug.json", lambda r: json.dumps(flat(r))),
        ("bug.json", lambda r: json.dumps(camel(flat(r))).replace("\n", "\r\n")),
        ("bug.jsonl", lambda r: json.dumps(r) + "\n"),
        ("bug.jsonl", lambda r: "\n\r\n" + json.dumps(r, ensure_ascii=False) + "\r\n\n"),
        ("bug.jsonl", lambda r: "\ufeff" + json.dumps(r)),
        ("bug.json", lambda r: "\ufeff" + json.dumps(r)),
        ("bug.md", front_matter),
        ("bug.md", lambda r: front_matter(camel(flat(r)))),
    ],
)
def test_one_record_is_the_same_item_in_every_form(
    tmp_path: Path, name: str, write: Callable[[dict[str, Any]], str]
) -> None:
    unit = read_one(tmp_path, name, write(RECORD))
    assert not unit.rejected, reasons(unit)
    (item,) = unit.items
    expected = read_one(tmp_path, "other.json", json.dumps([RECORD | {"bug_id": "X-1"}])).items[0]
    same = {"reference", "bug_id"}
    assert {k: v for k, v in item.payload.structured.items() if k not in same} == {
        k: v for k, v in expected.payload.structured.items() if k not in same
    }
    assert item.payload.structured["missing"] == []
    assert item.metadata.title == "PAY-7: Refunds are paid twice"
    assert item.metadata.tags == ("bug", "severity:high", "status:open", "service:payments", "module:refunds")
    assert item.metadata.owner_id == "@payments"
    assert item.symbols == ("PAY-7",)
    assert targets(item) == {
        "fixes>commit:0123abc", "touches>path:src/refund.py", "touches>symbol:refund_once",
        "tests>path:tests/test_refund.py", "related>bug:PAY-3",
    }  # fmt: skip
    for words in (
        "two refunds",
        "refund ok",
        "DoubleRefund",
        "at most once",
        "idempotency key",
        "src/refund.py",
        "1.10",
    ):
        assert words in item.payload.text


MARKDOWN = """---
id: 7
project: shop
status: Fixed
closed: 2026-10-01
fixCommit: 5e12345
files: [src/a.py, src/b.py]
tests: tests/test_a.py; tests/test_b.py
releases: [1.10, 2024-01-05]
owner: ana
---
# Cart loses items

Seen since the new cache.

## Symptoms

The cart is empty after login.

```
# not a heading
ERROR cart 404
```

## Root cause
The session id changes.

## Timeline
Noon: first report.
"""


def test_markdown_takes_from_its_sections_what_the_front_matter_leaves_out(tmp_path: Path) -> None:
    (item,) = read_one(tmp_path, "cart.md", MARKDOWN).items
    structured = item.payload.structured
    assert item.metadata.title == "shop-7: Cart loses items"
    assert structured["symptoms"]["summary"].endswith("# not a heading\nERROR cart 404\n```")
    assert structured["root_cause"] == "The session id changes."
    assert structured["details"] == "Seen since the new cache.\n\n## Timeline\nNoon: first report."
    assert structured["related"] == {"releases": ["1.10", "2024-01-05"]}, "YAML must not make numbers and dates of them"
    assert structured["fix"]["commit"] == "5e12345", "YAML must not make a float of a commit"
    assert structured["fix"]["tests"] == ["tests/test_a.py", "tests/test_b.py"]
    assert structured["missing"] == []
    assert item.metadata.owner_id == "ana"
    assert "Noon: first report." in item.payload.text


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    first = read_one(tmp_path, "cart.md", MARKDOWN).items[0]
    second = read_one(tmp_path, "cart.md", MARKDOWN.replace("\n", "\r\n")).items[0]
    assert first.metadata.checksum == second.metadata.checksum


def test_a_draft_names_every_missing_field(tmp_path: Path) -> None:
    (item,) = read_one(tmp_path, "b.json", '{"id": "X-1"}').items
    assert item.payload.structured["missing"] == ["symptoms", "root_cause", "fix.commit", "fix.tests"]
    assert "draft" in item.metadata.tags
    (whole,) = read_one(tmp_path, "b.json", json.dumps(RECORD)).items
    assert "draft" not in whole.metadata.tags


def test_unknown_fields_are_kept_and_noted(tmp_path: Path) -> None:
    unit = read_one(tmp_path, "b.json", '{"id": "X-1", "mood": {"a": [1]}, "fix": {"colour": "red"}}')
    assert unit.items[0].payload.structured["extra"] == {"fix.colour": "red", "mood": {"a": [1]}}
    assert "unknown field 'mood', kept in structured.extra: 1" in unit.notes


def test_a_readme_among_the_records_is_no_record(tmp_path: Path) -> None:
    unit = read_one(tmp_path, "README.md", "# How to write records\n")
    assert (unit.items, unit.rejected) == ((), ())
    assert unit.notes == ("holds no records",)
    assert "no front matter" in reasons(read_one(tmp_path, "PAY-9.md", "# Something broke\n"))


def test_two_projects_may_use_one_number(tmp_path: Path) -> None:
    lines = [{"project": "a", "bug": 1, "related": {"bugs": [2]}}, {"project": "b", "bug": 1}]
    unit = read_one(tmp_path, "b.jsonl", "\n".join(map(json.dumps, lines)))
    assert [item.symbols for item in unit.items] == [("a-1",), ("b-1",)]
    assert "related>bug:a-2" in targets(unit.items[0])


PATCH = """diff --git a/src/a.py b/src/a.py
--- a/src/a.py
+++ b/src/a.py
@@ -10,4 +10,4 @@ class Before(Base):
     x = 1
--- a/not-a-file.py
+y = 2
 def after(self):
-    old()
+    new()
diff --git a/gone.go b/gone.go
--- a/gone.go
+++ /dev/null
@@ -1,2 +0,0 @@
-func (s *Server) Serve(w Writer) {
-}
"""


def test_a_patch_names_files_and_functions(tmp_path: Path) -> None:
    found = patch_targets(PATCH)
    assert found.files == ("src/a.py", "gone.go")
    assert found.inside == ("after", "Serve")
    assert found.surrounding == ("Before",)
    (item,) = read_one(tmp_path, "b.json", json.dumps({"id": "X-1", "patch": PATCH})).items
    confidence = {relation.target: relation.confidence for relation in item.relations}
    assert confidence["symbol:after"] == 1.0
    assert confidence["symbol:Before"] == 0.7


def test_a_long_patch_is_kept_in_part_and_says_so(tmp_path: Path) -> None:
    body = "".join(f"+line {n}\n" for n in range(9000))
    patch = f"--- a/f.py\n+++ b/f.py\n@@ -0,0 +1,9000 @@\n{body}--- a/last.py\n+++ b/last.py\n@@ -1 +1 @@\n-a\n+b\n"
    unit = read_one(tmp_path, "b.json", json.dumps({"id": "X-1", "patch": patch}))
    structured = unit.items[0].payload.structured
    assert len(structured["fix"]["patch"]) <= KEPT_PATCH
    assert patch.startswith(structured["fix"]["patch"])
    assert structured["patch_length"] == len(patch)
    assert structured["fix"]["files"] == ["f.py", "last.py"]
    assert "patches kept only in part: 1" in unit.notes


# --- how long they live ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["open", "in progress", "", "reopened", "not fixed"])
def test_what_is_not_closed_lives_for_ever(tmp_path: Path, status: str) -> None:
    (item,) = read_one(tmp_path, "b.json", json.dumps({"id": "X-1", "status": status})).items
    assert item.metadata.ttl is None
    assert item.expires_at == NEVER


@pytest.mark.parametrize("status", ["closed", "Fixed", "won't fix", "Resolved (duplicate)"])
def test_closed_without_a_date_lives_one_retention_from_now(tmp_path: Path, status: str) -> None:
    (item,) = read_one(tmp_path, "b.json", json.dumps({"id": "X-1", "status": status}), retention="P30D").items
    assert item.metadata.ttl == timedelta(days=30)


@pytest.mark.parametrize("date", ["2026-10-01", "2026-10-01T00:00:00Z", "2026-10-01T02:00:00+02:00", 1790812800000])
def test_closed_expires_one_retention_after_its_date_whenever_it_is_read(tmp_path: Path, date: str | int) -> None:
    record = json.dumps({"id": "X-1", "status": "closed", "closedAt": date})
    first, second = (read_one(tmp_path, "b.json", record, retention=timedelta(days=3650)).items[0] for _ in range(2))
    assert first.expires_at == second.expires_at == datetime(2026, 10, 1, tzinfo=UTC) + timedelta(days=3650)
    assert first.metadata.checksum == second.metadata.checksum
    shorter = read_one(tmp_path, "b.json", record, retention=timedelta(days=3000)).items[0]
    assert shorter.metadata.checksum != first.metadata.checksum


def test_closed_long_ago_has_expired_and_is_noted(tmp_path: Path) -> None:
    unit = read_one(tmp_path, "b.json", '{"id": "X-1", "closed": "2001-01-01"}')
    assert unit.items[0].expires_at == datetime(2002, 1, 1, tzinfo=UTC)
    assert any("expire at once: 1" in note for note in unit.notes)


def test_retention_has_bounds() -> None:
    for bad in (timedelta(days=-1), timedelta(days=10**6)):
        with pytest.raises(ValidationError, match="retention"):
            BugSpecs(retention=bad)


# --- what is wrong with a record ------------------------------------------------------------------------------

BOMB = "---\nid: X-1\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.json", '{"id": "X-1", "title": "cut', ["not JSON", "was it cut off?"]),
        ("b.json", '"just text"', ["must be an object", "a text"]),
        ("b.json", '{"id": "X-1"} {"id": "X-2"}', ["something follows the record"]),
        ("b.json", '{"id": "X-1", "id": "X-2"}', ["'id' is given twice"]),
        ("b.json", '{"id": "X-1", "rootCause": "a", "root_cause": "b"}', ["root_cause is given twice"]),
        ("b.json", '{"id": "X-1", "mood": NaN}', ["NaN is not JSON"]),
        ("b.json", '{"id": "X-1", "mood": 1e999}', ["mood: inf is not a number"]),
        ("b.json", '{"title": "nameless"}', ["bug_id: missing"]),
        ("b.json", '{"id": "two words"}', ["bug_id: must be"]),
        ("b.json", '{"id": true, "rootCause": 5, "fix": {"commit": "HEAD", "files": [[1]]}, "closed": "soon"}',
            ["bug_id", "root_cause: must be text, it is a number", "fix.commit: 'HEAD' is no commit", "fix.files",
             "closed_at: 'soon' is no date"]),
        ("b.json", '{"id": "X-1", "closed": "9999-12-31"}', ["closed_at"]),
        ("b.json", '{"id": "X-1", "title": "a\\u0000b"}', ["title: a NUL character at position 1"]),
        ("b.json", '{"id": "X-1", "title": "\\ud800"}', ["title: half a surrogate pair"]),
        ("b.json", '{"id": "X-1\\u0000"}', ["id: a NUL"]),
        ("b.json", '{"id": "X-1", "tests": ' + "[" * 100_000, ["not readable as JSON"]),
        ("b.json", '{"id": "X-1", "mood": ' + "[" * 60 + "]" * 60 + "}", ["nested more than"]),
        ("b.json", '{"id": "X-1", "title": "\\\n', ["not JSON"]),
        ("b.json", b"\xff\xfe" + '{"id": "X-1"}'.encode("utf-16-le"), ["UTF-16", "UTF-8"]),
        ("b.jsonl", '{"id": "X-1"}\n'.encode("utf-16"), ["UTF-16"]),
        ("b.json", '{"id": "X-1", "title": "größer"}'.encode("latin-1"), ["byte 26 is 0xf6"]),
        ("b.md", "---\nid: X-1\n# no end\n", ["never ends"]),
        ("b.md", "---\nid: [X-1\n---\n", ["line 1"]),
        ("b.md", "---\nid: X-1\nid: X-2\n---\n", ["line 2", "'id' is given twice"]),
        ("b.md", BOMB, ["line 3", "aliases"]),
        ("b.md", "---\nid: !!python/object/apply:os.system [true]\n---\n", ["could not determine a constructor"]),
        ("b.md", "---\nid: X-1\nmood: !!binary aGk=\n---\n", ["mood: a bytes is not accepted"]),
        ("b.md", "---\n- X-1\n---\n", ["must be an object", "a list"]),
        ("b.md", "---\n---\nbody", ["this is nothing"]),
        ("b.md", "---\nid: X-1\ntitle: " + "y" * 200_000 + "\n---\n", ["characters of YAML"]),
        ("b.md", "---\nid: X-1\n---\n" + "y" * (LONGEST_TEXT + 1), ["details: 50,001 characters"]),
        ("b.md", "---\nid: X-1\n---\na\0b", ["details: a NUL"]),
        ("b.md", "---\nid: X-1\nbody: größer\n---\n".encode("latin-1"), ["not UTF-8"]),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_with_every_reason_and_its_text(
    tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    unit = read_one(tmp_path, name, content)
    assert unit.items == ()
    assert len(unit.rejected) == 1
    for word in words:
        assert word in reasons(unit)
    if isinstance(content, str):
        assert unit.rejected[0].raw == content.rstrip("\n") or unit.rejected[0].raw == content
    assert unit.rejected[0].raw
    unit.rejected[0].key.encode()
    reasons(unit).encode()


def test_ten_megabytes_in_one_field_spoil_one_record(tmp_path: Path) -> None:
    records = [{"id": "X-1"}, {"id": "X-2", "rootCause": "y" * 10_000_000}, {"id": "X-3"}]
    for unit in (
        read_one(tmp_path, "b.jsonl", "\n".join(map(json.dumps, records))),
        read_one(tmp_path, "b.json", json.dumps(records)),
    ):
        assert [item.symbols[0] for item in unit.items if item.symbols] in (["X-1", "X-3"], [])
        refused = next(each for each in unit.rejected if "10,000,000 characters" in each.reasons[0])
        assert "(X-2)" in refused.key
        assert len(refused.raw) > 10_000_000
        (tmp_path / unit.key).unlink()


def test_a_control_character_spoils_one_record_of_a_list(tmp_path: Path) -> None:
    text = '[{"id": "X-1"}, {"id": "X-2", "title": "a\0b"}, {"id": "X-3"}]'
    unit = read_one(tmp_path, "b.json", text)
    assert [item.symbols[0] for item in unit.items] == ["X-1", "X-3"]
    assert unit.rejected[0].key == "record 2 (X-2)"
    assert unit.rejected[0].raw == '{"id": "X-2", "title": "a\0b"}'


@pytest.mark.parametrize(
    "text", ['{"bugs": [{"id": "X-1"}], "bugs": [{"id": "X-2"}]}', '[{"id": "X-1"}] [{"id": "X-2"}]']
)
def test_what_follows_a_list_is_not_dropped_in_silence(tmp_path: Path, text: str) -> None:
    unit = read_one(tmp_path, "b.json", text)
    assert [item.symbols[0] for item in unit.items] == ["X-1"]
    assert "X-2" in unit.rejected[0].raw


def test_one_id_twice_in_a_file_refuses_both_and_names_them(tmp_path: Path) -> None:
    unit = read_one(tmp_path, "b.jsonl", '{"id": "X-1"}\n{"id": "X-2"}\n{"id": "X-1", "title": "other"}\n')
    assert [item.symbols[0] for item in unit.items] == ["X-2"]
    assert [each.key for each in unit.rejected] == ["line 1 (X-1)", "line 3 (X-1)"]
    assert "b.jsonl line 3" in unit.rejected[0].reasons[0]
    assert "b.jsonl line 1" in unit.rejected[1].reasons[0]


def test_one_id_in_two_files_refuses_all_and_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "X-1"}, {"id": "X-5"}]')
    (tmp_path / "b.md").write_text("---\nid: X-1\n---\n")
    (tmp_path / "c.jsonl").write_text('{"id": "X-1", "rootCause": 7}')
    units = read_folder(tmp_path)
    assert [item.symbols[0] for unit in units.values() for item in unit.items] == ["X-5"]
    assert "b.md file, c.jsonl line 1" in units["a.json"].rejected[0].reasons[0]
    assert "a.json record 1, c.jsonl line 1" in units["b.md"].rejected[0].reasons[0]
    assert len(units["c.jsonl"].rejected[0].reasons) == 2, "its own fault and the double"


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
       name=st.sampled_from(["x.json", "x.jsonl", "x.md"]), front=st.booleans())  # fmt: skip
def test_no_bytes_raise(tmp_path: Path, data: bytes, name: str, front: bool) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    unit = read_one(tmp_path, name, b"---\n" + data + b"\n---\n" if front else data)
    assert all(each.reasons for each in unit.rejected)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = sorted(
    {*RECORD, *flat(RECORD), "repo", "patch", "run_test", "closed", "summary", "fixCommit", "id", "project"}
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=4), _JSON, max_size=5), max_size=5))
def test_any_records_are_items_or_refused_and_items_survive_json(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    lines = read_one(tmp_path, "x.jsonl", "\n".join(map(json.dumps, records)))
    assert len(lines.items) + len(lines.rejected) == len(records)
    for item in lines.items:
        again = KnowledgeItem.model_validate_json(item.model_dump_json(by_alias=True))
        assert again.payload == item.payload
    (tmp_path / "x.jsonl").unlink()
    listed = read_one(tmp_path, "x.json", json.dumps(records))
    assert [item.id for item in listed.items] == [item.id for item in lines.items]
    (tmp_path / "x.json").unlink()


def test_the_model_alone_is_strict() -> None:
    with pytest.raises(ValidationError, match="extra"):
        BugSpec.model_validate({"bugId": "X-1", "colour": "red"})
    assert BugSpec.model_validate({"bugId": 3, "project": "shop"}).reference == "shop-3"


# --- where they are read from ---------------------------------------------------------------------------------


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "bugs" / "old").mkdir(parents=True)
    (root / "docs" / "bugs").mkdir(parents=True)
    git(tmp_path, "init", "-q", "shop")
    (root / "bugs" / "a.json").write_text(json.dumps(RECORD))
    (root / "bugs" / "old" / "ü.jsonl").write_text('{"id": "OLD-1"}\n{"id": "OLD-2"}')
    (root / "bugs" / "picture.png").write_bytes(b"\x89PNG")
    (root / "docs" / "bugs" / "c.md").write_text("---\nid: C-1\n---\nNotes")
    (root / "package.json").write_text("{}")
    (root / "bugs" / "link.json").symlink_to("a.json")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "records")
    return root


def read_all(repository: Repository) -> dict[str, str]:
    connector = BugSpecs()
    listing = connector.scan(repository, Known())
    units = list(connector.read(repository, listing, list(listing.units)))
    assert {unit.key: unit.hash for unit in units} == dict(listing.units)
    assert not any(unit.rejected for unit in units)
    return {item.id: item.metadata.checksum for unit in units for item in unit.items}


def test_working_tree_revision_and_bare_repository_agree(worktree: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", "shop", "bare.git")
    tree = Repository("acme/shop", worktree, "acme")
    listing = BugSpecs().scan(tree, Known())
    assert sorted(listing.units) == ["bugs/a.json", "bugs/old/ü.jsonl", "docs/bugs/c.md"]
    assert listing.revision == git(worktree, "rev-parse", "HEAD")
    assert listing.skipped == {"symlink": 1}
    assert listing.units["bugs/a.json"] == git(worktree, "rev-parse", "HEAD:bugs/a.json")
    expected = read_all(tree)
    assert len(expected) == 4
    assert read_all(Repository("acme/shop", worktree, "acme", "HEAD")) == expected
    assert read_all(Repository("acme/shop", tmp_path / "bare.git", "acme")) == expected


def test_the_working_tree_is_read_as_it_is_now(worktree: Path) -> None:
    tree = Repository("acme/shop", worktree, "acme")
    before = BugSpecs().scan(tree, Known())
    (worktree / "bugs" / "a.json").unlink()
    (worktree / "bugs" / "new.json").write_text('{"id": "N-1"}')
    after = BugSpecs().scan(tree, Known())
    assert after.revision == f"{before.revision}+"
    assert set(after.units) == {"bugs/new.json", "bugs/old/ü.jsonl", "docs/bugs/c.md"}
    (gone,) = BugSpecs().read(tree, before, ["bugs/a.json"])
    assert (gone.hash, gone.items, gone.notes) == ("", (), ("the file is gone since it was listed",))
    assert "bugs/a.json" in BugSpecs().scan(Repository("s", worktree, "acme", "HEAD"), Known()).units


def test_a_folder_outside_is_read_whole_even_inside_some_working_tree(worktree: Path) -> None:
    (worktree / ".gitignore").write_text("private/\n")
    (worktree / "private").mkdir()
    (worktree / "private" / "x.json").write_text('{"id": "P-1"}')
    units = read_folder(worktree / "private")
    (item,) = units["x.json"].items
    assert item.source.location == str(worktree / "private")
    assert item.source.path == "x.json"


def test_a_folder_outside_git_respects_ignore_files(tmp_path: Path) -> None:
    for name in ("kept.json", "draft.json", "old/kept.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"id": "{name}"}}')
    (tmp_path / ".gitignore").write_text("/old/\ndraft.*\n")
    assert list(read_folder(tmp_path)) == ["kept.json"]


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="not a directory"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(SourceRefused, match="not a git repository"):
        BugSpecs().scan(Repository("x", tmp_path, "acme"), Known())


def test_globs_are_checked_when_configured() -> None:
    with pytest.raises(ValidationError, match="not a glob"):
        BugSpecs(paths=("bugs/**", "!"))
