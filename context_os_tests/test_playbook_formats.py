"""Playbooks as files: every format, every way in which files are met damaged, and round trips that lose nothing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_os.errors import ConfigurationError
from context_os.playbook_formats import FORMS, Bullet, Form, Status, read, write

OFFICIAL = """## STRATEGIES AND HARD RULES
[shr-00001] helpful=4 harmful=1 :: Close what you open.
[shr-00002] helpful=0 harmful=0 :: Größe und Länge sind zweierlei.

## OTHERS

## PITFALLS:
[pit-00003] helpful=12 harmful=3 :: Never trust a clock.
"""
PLAIN = """## STRATEGIES
[shr-00001] Close what you open.
[shr-00005] Über alles zweimal nachdenken.
"""
PLAYBOOK = json.dumps(
    {
        "bullets": {
            f"net-{n:05}": {
                "id": f"net-{n:05}",
                "section": "net",
                "content": f"Lektion №{n}",
                "helpful": n,
                "harmful": 0,
                "neutral": 1,
                "created_at": "2025-10-27T16:57:12.623197+00:00",
                "updated_at": "2025-10-27T16:59:10.266934+00:00",
            }
            for n in (1, 2)
        },
        "sections": {"net": ["net-00001", "net-00002"]},
        "next_id": 2,
    },
    indent=1,
    ensure_ascii=False,
)
SKILLBOOK = json.dumps(
    {
        "skills": {
            "io-00001": {
                "id": "io-00001",
                "section": "io",
                "content": "Read before you fork",
                "justification": "A child owns no terminal.",
                "evidence": "two hangs",
                "embedding": None,
                "status": "invalid",
                "sources": [{"trace": "t-1"}],
            }
        },
        "sections": {"io": ["io-00001"]},
        "next_id": 1,
        "similarity_decisions": {},
    }
)
MARKDOWN = """---
title: lessons
---
# Team playbook

Each bullet has `[ID] helpful=N harmful=N :: content`, and [links](https://example.org) are none.

## Code

[code-00001] helpful=2 harmful=0 :: Restart the worker.

* [code-00002] helpful=1 harmful=0 ::
Text on the line below.

[code-00003] helpful=0 harmful=0 :: First line
  and more,

  also behind an empty one.

[7] helpful=1 harmful=2 :: A number for a name.
[abc] helpful=1 harmful=0 :: Letters for a name.

- [x] done is no bullet

```
[code-00001] helpful=9 harmful=9 :: an example
```
"""


def test_official_text() -> None:
    found = read(OFFICIAL)
    assert found.format == "official"
    assert [(b.id, b.section, b.helpful, b.harmful) for b in found.bullets] == [
        ("shr-00001", "STRATEGIES AND HARD RULES", 4, 1),
        ("shr-00002", "STRATEGIES AND HARD RULES", 0, 0),
        ("pit-00003", "PITFALLS:", 12, 3),
    ]
    assert found.sections == ("STRATEGIES AND HARD RULES", "OTHERS", "PITFALLS:")
    assert not found.problems
    assert not found.notes
    assert write(found.bullets, sections=found.sections) == OFFICIAL.replace("## OTHERS\n", "## OTHERS\n")


def test_text_without_counters_is_written_as_it_was() -> None:
    found = read(PLAIN)
    assert found.format == "plain"
    assert write(found.bullets, "plain", sections=found.sections) == PLAIN


@pytest.mark.parametrize("dress", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n")])
def test_markdown_with_prose_fences_and_front_matter(dress: object) -> None:
    found = read(dress(MARKDOWN))  # type: ignore[operator]
    assert {b.id: b.content for b in found.bullets} == {
        "code-00001": "Restart the worker.",
        "code-00002": "Text on the line below.",
        "code-00003": "First line\nand more,\n\nalso behind an empty one.",
        "7": "A number for a name.",
        "abc": "Letters for a name.",
    }
    assert not found.problems
    assert any("front matter" in note for note in found.notes)


def test_json_keeps_times_to_the_microsecond_and_what_it_has_no_name_for() -> None:
    [first, _] = read(PLAYBOOK).bullets
    assert first.created_at == datetime(2025, 10, 27, 16, 57, 12, 623197, tzinfo=UTC)
    assert (first.helpful, first.neutral) == (1, 1)
    book = read(SKILLBOOK)
    assert book.format == "skillbook"
    assert book.extra == {"similarity_decisions": {}}
    assert book.bullets[0].status is Status.INVALID
    assert book.bullets[0].extra == {"embedding": None}
    assert json.loads(write(book.bullets, "skillbook", extra=book.extra))["skills"]["io-00001"]["embedding"] is None


def test_an_id_again() -> None:
    same = read("[a-1] helpful=3 harmful=0 :: one\n[a-1] helpful=1 harmful=2 :: one\n")
    assert [(b.id, b.helpful, b.harmful) for b in same.bullets] == [("a-1", 3, 2)]
    assert "line 2: a-1 again" in same.notes[0]
    other = read("[a-1] helpful=3 harmful=0 :: one\n[a-1] helpful=1 harmful=2 :: two\n")
    assert [(b.id, b.content) for b in other.bullets] == [("a-1", "one"), ("a-1x2", "two")]
    assert "kept as a-1x2" in other.notes[0]
    twice = PLAYBOOK.replace("net-00002", "net-00001")
    assert [b.id for b in read(twice).bullets] == ["net-00001", "net-00001x2"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a-1] helpful=x harmful=0 :: t\n", "neither"),
        ("[a-1] helpful=-1 harmful=0 :: t\n", "neither"),
        ("[a-1] helpful=9999999999999 harmful=0 :: t\n", "less than or equal"),
        ("[a-1] helpful=1 harmful=0 ::\n\n## NEXT\n", "has no text"),
        ("[a-1]\n", "has no text"),
        ("[a-00", "cut off"),
        ("```\n[a-1] helpful=1 harmful=0 :: t\n", "nothing closes"),
        ("<!-- \n[a-1] helpful=1 harmful=0 :: t\n", "nothing closes"),
        ('{"bullets": {"a-1": {"content": 3}}}', "valid string"),
        ('{"bullets": {"a-1": []}}', "is an object"),
        ('{"bullets": {"a-1": {"content": "t", "helpful": -1}}}', "greater than or equal"),
        ('{"bullets": {"a-1": {"content": "\\ud800"}}}', "surrogate"),
        ('{"skills": {"a 1": {"content": "t"}}}', "pattern"),
        ('{"lessons": []}', "neither"),
        ('{"bullets": ' + "[" * 5000, "no JSON from here"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_raw_text(text: str, reason: str) -> None:
    found = read(text, "book")
    [problem] = found.problems
    assert not found.bullets
    assert any(reason in each for each in problem.reasons), problem
    assert problem.where.startswith("book, ")
    assert problem.raw


@pytest.mark.parametrize("text", [OFFICIAL, PLAIN, PLAYBOOK, SKILLBOOK, MARKDOWN])
def test_a_file_cut_off_anywhere_keeps_what_stood_before_and_says_so(text: str) -> None:
    whole = read(text, "book")
    data = text.encode()
    ends = {b.id: _end(data, b) for b in whole.bullets}
    for cut in range(len(data)):
        found = read(data[:cut], "book.json" if text.startswith("{") else "book.md")
        ids = {b.id: b for b in found.bullets}
        for bullet in whole.bullets:
            if ends[bullet.id] <= cut:
                assert ids.get(bullet.id) == bullet, (cut, found)
        if set(ids) != {b.id for b in whole.bullets} or text.startswith("{"):
            last = data[:cut].rpartition(b"\n")[2]
            told = found.problems or found.notes
            assert told or (not text.startswith("{") and not last.lstrip(b"* ").startswith(b"[")), cut


def _end(data: bytes, bullet: Bullet) -> int:
    """Behind the last byte of a bullet."""
    if data.startswith(b"{"):
        start = data.index(f'"id": "{bullet.id}"'.encode())
        return data.index(b"}", data.find(b"]", start) if b"sources" in data else start) + 1
    last = bullet.content.split("\n")[-1].encode()
    return data.index(last, data.index(f"[{bullet.id}]".encode())) + len(last) + 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["a\n b\n\n  c", "[x-1] helpful=1 harmful=0 :: y", "```\ncode\n```", "x --> y <!--", "## no heading", "h=1 :: z"]
)
TIMES = st.none() | st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))
BULLETS = st.builds(
    Bullet,
    id=st.from_regex(r"\A[a-z]{1,4}-[0-9]{1,5}\Z") | st.from_regex(r"\A[^\s\[\]]{1,12}\Z"),
    section=st.sampled_from(["", "ONE", "Two &c", "# three", "four #"]) | TEXT,
    content=TEXT.filter(str.strip),
    helpful=st.integers(0, 10**9),
    harmful=st.integers(0, 10**9),
    neutral=st.integers(0, 3),
    status=st.sampled_from(Status),
    pinned=st.booleans(),
    locked=st.booleans(),
    tags=st.lists(TEXT, max_size=2),
    about=st.lists(st.sampled_from(["path:src/**", "symbol:a.b"]), max_size=2),
    justification=TEXT,
    sources=st.lists(st.dictionaries(TEXT, st.integers() | TEXT, max_size=2), max_size=2),
    derived_from=st.lists(st.just("a-1"), max_size=1),
    created_at=TIMES,
    updated_at=TIMES,
    extra=st.dictionaries(st.sampled_from(["embedding", "note"]), st.none() | TEXT, max_size=2),
)


@settings(max_examples=150)
@given(bullets=st.lists(BULLETS, max_size=5, unique_by=lambda each: each.id), form=st.sampled_from(FORMS))
def test_written_and_read_again_nothing_is_lost(bullets: list[Bullet], form: Form) -> None:
    text = write(bullets, form)
    text.encode()
    found = read(text, "book.json" if form.endswith("book") else "book.txt")
    assert {b.id: b for b in found.bullets} == {b.id: b for b in bullets}
    assert not found.problems
    order = list(dict.fromkeys(b.section for b in bullets if b.section))
    assert [section for section in found.sections if section in order] == order
    assert write(found.bullets, form, sections=found.sections) == text


@given(st.lists(BULLETS, max_size=4, unique_by=lambda each: each.id))
def test_other_readers_of_the_official_text_see_every_bullet_whole(bullets: list[Bullet]) -> None:
    """By the expression that the format's authors read a line with."""
    line_of = re.compile(r"\[([^\]]+)\]\s*helpful=(\d+)\s*harmful=(\d+)\s*::\s*(.*)")
    seen = {found[1]: found for line in write(bullets).split("\n") if (found := line_of.match(line.strip()))}
    assert set(seen) == {b.id for b in bullets}
    for each in bullets:
        assert (int(seen[each.id][2]), int(seen[each.id][3])) == (each.helpful, each.harmful)
        assert seen[each.id][4].split() == each.content.split()


@settings(max_examples=200)
@given(st.text(max_size=200) | st.binary(max_size=100) | TEXT)
def test_nothing_makes_reading_raise(text: str | bytes) -> None:
    read(text)
    read(text, "x.json")


def test_an_edited_line_counts_and_keeps_the_rest() -> None:
    bullet = Bullet(id="a-1", content="one\n  two", neutral=3, pinned=True)
    edited = write([bullet]).replace("one two", "one three")
    [found] = read(edited).bullets
    assert (found.content, found.neutral, found.pinned) == ("one three", 3, True)
    removed = "\n".join(line for line in edited.split("\n") if not line.startswith("["))
    assert "no line shows" in read(removed).notes[0]


def test_two_bullets_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a-1"):
        write([Bullet(id="a-1", content="x"), Bullet(id="a-1", content="y")])


COUNTS = {
    "appworld_initial_playbook.txt": 8,
    "appworld_offline_trained_no_gt_playbook.txt": 318,
    "appworld_online_trained_playbook.txt": 359,
    "kayba_ace_domain_playbook@90c532b.json": 1,
    "kayba_ace_domain_playbook@e43d81d.json": 1,
    "kayba_claude_skills_ace-learnings_playbook@9ab22e2.json": 12,
    "kayba_claude_skills_ace-learnings_skillbook@527fad2.json": 0,
    "kayba_examples_agentic-system-prompting_skillbook_20260318_150822@4fee3a4.json": 6,
    "kayba_examples_browser-use_online-shopping_ace_grocery_skillbook@2080d39.json": 9,
    "kayba_examples_browser-use_online-shopping_ace_grocery_skillbook@7c7b96c.json": 9,
    "kayba_kayba_test_playbook@d1ada52.json": 3,
    "kayba_scripts_skillbook_v1@60dbfbb.json": 5,
    "kayba_scripts_skillbook_v1@7731090.json": 5,
    "kayba_scripts_skillbook_v1@956f69d.json": 7,
    "kayba_scripts_skillbook_v1@f0d58d5.json": 5,
    "kayba_skillbook_v1@7731090.json": 0,
    "team_playbook_hungson175.md": 40,
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_playbooks_load_and_survive_a_round_trip_through_every_format(shared: Path, name: str) -> None:
    found = read((shared / "data" / "ace" / name).read_bytes(), name)
    assert len(found.bullets) == COUNTS[name]
    assert not found.problems
    if name.startswith("team"):
        assert (sum(b.helpful for b in found.bullets), sum(b.harmful for b in found.bullets)) == (226, 1)
    for form in FORMS:
        again = read(write(found.bullets, form, sections=found.sections, extra=found.extra))
        assert sorted(again.bullets, key=_id) == sorted(found.bullets, key=_id)
        assert again.sections == found.sections
        assert not again.problems


def _id(bullet: Bullet) -> str:
    return bullet.id


def test_every_real_playbook_is_counted(shared: Path) -> None:
    assert {path.name for path in (shared / "data" / "ace").iterdir()} - {"README.md"} == set(COUNTS)


def test_real_playbooks_cut_off_anywhere(shared: Path) -> None:
    for name in ("team_playbook_hungson175.md", "kayba_scripts_skillbook_v1@60dbfbb.json"):
        data = (shared / "data" / "ace" / name).read_bytes()
        whole = {b.id: b for b in read(data, name).bullets}
        for cut in range(0, len(data), 97):
            found = read(data[:cut], name)
            changed = [b.id for b in found.bullets if b != whole.get(b.id)]
            assert len(changed) <= 1
            assert not changed or found.notes or found.problems
