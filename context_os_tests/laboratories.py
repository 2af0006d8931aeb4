"""Laboratories for tests: a builder of records, and hypothesis strategies over what a laboratory may hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from samples import write

BORN = 1_700_000_000_123
CHANGED = 1_710_000_000_456
RULE = "# Take the lock\n\nHold the lock of the pool while a socket changes hands.\n"


def record(id: str = "note-1", **changes: Any) -> dict[str, Any]:
    """As the laboratory wrote it; ``metadata``, ``payload`` and ``feedback`` are merged, the rest replaced."""
    made: dict[str, Any] = {
        "id": id,
        "tenant": "lab",
        "domain": "code",
        "kind": "note",
        "modality": "text",
        "source": {"type": "manual", "location": "wiki/sessions", "accessor": "hand", "metadata": {"page": 7}},
        "payload": {"text": f"What the laboratory knew as {id}.", "structured": {}},
        "metadata": {
            "version": 3, "title": f"Title of {id}", "tags": ["sessions"], "piiLevel": "low",
            "confidentiality": "internal", "ttlMs": None, "createdAt": BORN, "updatedAt": CHANGED, "ownerId": "ada",
            "checksum": hashlib.sha256(id.encode()).hexdigest(),
            "lineage": [{"timestamp": BORN, "actor": "human", "action": "created", "notes": "by hand"}],
        },
        "relations": [{"type": "calls", "target": "symbol:shop.app.open_session"}],
        "feedback": {"helpful": 4, "harmful": 1, "lastHelpfulAt": CHANGED, "lastHarmfulAt": None},
    }  # fmt: skip
    for name, value in changes.items():
        merged = name in {"metadata", "payload", "feedback"} and isinstance(value, dict)
        made[name] = {**made[name], **value} if merged else value
    return made


def event(type: str, action: str = "deploy", at: int = BORN, **changes: Any) -> dict[str, Any]:
    return {
        "type": type, "sessionId": "s1", "tenantId": "lab", "timestamp": at, "latencyMs": 12,
        "metadata": {"actionId": action}, **changes,
    }  # fmt: skip


def store(items: Any) -> str:
    return json.dumps({"items": items, "updatedAt": CHANGED})


def laboratory(folder: Path) -> Path:
    """Something of every kind, all of it good."""
    write(folder, "store.json", store({each["id"]: each for each in (record(), record("note-2"), _lesson())}))
    write(folder, "knowledge/rules/lock.md", RULE)
    write(
        folder, "knowledge/rules/globs.md", "---\nglobs: ['shop/*.py', 'tests/**']\n---\n# Types\n\nName every type.\n"
    )
    write(folder, "data/events.json", json.dumps({"events": [event("ACTION_STARTED"), event("ACTION_COMPLETED")]}))
    write(folder, "config/snapshot.json", json.dumps(SNAPSHOT))
    write(folder, "skills/review.yaml", SKILLS)
    write(
        folder, "playbook.md", "# Lessons\n\n## Locks\n\n[lck-00001] helpful=5 harmful=1 :: Take locks in one order.\n"
    )
    write(folder, "evaluation/locks.json", json.dumps(GOLDSET))
    write(folder, "package.json", '{"name": "not of the laboratory"}')
    return folder


def _lesson() -> dict[str, Any]:
    return record(
        "ace-7", kind="bullet", metadata={"tags": ["ace-bullet", "testing"]}, payload={"text": "Run one test first."}
    )


GOLDSET: dict[str, Any] = {
    "domain": "code",
    "intent": "review",
    "version": "1",
    "cases": [
        {
            "id": "pull-1",
            "pullRequest": {"number": 1, "files": ["shop/pool.py"], "diffSummary": "Locks in one order"},
            "expectedFindings": [{"description": "a lock is missing", "severity": "high"}],
            "requiredSkills": ["security-review"],
            "knowledgeItems": ["note-1"],
        }
    ],
}

SNAPSHOT = {
    "id": "review", "domain": "code", "version": "4",
    "config": {"v2PromptOverrides": {"generation": {"main": "Be kind"}}},
    "promptOverrides": [{"id": "tone", "role": "system", "scope": "all", "content": "Say why.", "mood": "calm"}],
    "actions": [{"id": "notify", "type": "http", "trigger": "post_delivery", "enabled": False}],
}  # fmt: skip

SKILLS = """version: 1.10
skills:
  - id: security-review
    metadata: {title: Look for secrets, version: 2, domain: code, tags: [security]}
    instructions:
      - {id: first, role: system, scope: all, content: Look for keys in the diff.}
    requiredTools: []
    requiredActions:
      - {description: scan, action: {id: scan, enabled: false, timeout: 30}}
    mood: strict
"""

# Random ones

_texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
_ids = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=12)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | _texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
_times = st.integers(BORN, CHANGED)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """Good ones that do not expire."""
    lineage = st.fixed_dictionaries(
        {
            "timestamp": _times,
            "actor": st.sampled_from(("ingestion", "human", "automation")),
            "action": st.sampled_from(("created", "updated", "approved")),
            "notes": _texts,
            "metadata": st.dictionaries(st.sampled_from("xy"), _values, max_size=1),
        }
    )
    helpful, harmful = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return record(
        draw(_ids),
        domain=draw(st.sampled_from(("code", "bug", "support"))),
        kind=draw(st.sampled_from(("note", "incident"))),
        modality=draw(st.sampled_from(("text", "table", "event"))),
        payload={
            "text": draw(_texts),
            "structured": draw(st.dictionaries(st.sampled_from(("x", "y")), _values, max_size=2)),
        },
        metadata={
            "title": draw(_texts.filter(lambda title: title.strip() != "")),
            "version": draw(st.integers(1, 50)),
            "tags": draw(st.lists(_texts, max_size=2)),
            "confidentiality": draw(st.sampled_from(("public", "internal", "restricted"))),
            "piiLevel": draw(st.sampled_from(("none", "low", "medium", "high"))),
            "ttlMs": draw(st.sampled_from((None, 31_536_000_000 * 50))),
            "createdAt": draw(_times),
            "updatedAt": draw(_times),
            "lineage": draw(st.lists(lineage, max_size=2)),
        },
        feedback={
            "helpful": helpful,
            "harmful": harmful,
            "lastHelpfulAt": draw(_times) if helpful else None,
            "lastHarmfulAt": draw(_times) if harmful else None,
        },
    )


_damages = st.sampled_from(
    (
        {"metadata": {"createdAt": 1_700_000_000}},
        {"metadata": {"updatedAt": -1}},
        {"metadata": {"updatedAt": 10**17}},
        {"metadata": {"ttlMs": 0}},
        {"metadata": {"confidentiality": "secret"}},
        {"metadata": {"title": ""}},
        {"feedback": {"helpful": -1}},
        {"feedback": {"harmful": 10**40}},
        {"payload": {"text": None}},
        {"payload": {"text": "half \ud800 a pair"}},
        {"payload": {"structured": {"a": float("nan")}}},
        {"domain": 7},
        {"source": None},
        {"relations": [{"type": "calls"}]},
    )
)


@st.composite
def laboratories(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]], list[str]]:
    """``(store.json in either shape, its good records, the ids of its bad ones)``."""
    good = draw(st.lists(records(), max_size=6, unique_by=lambda each: each["id"]))
    bad = [record(f"bad {number}", **damage) for number, damage in enumerate(draw(st.lists(_damages, max_size=3)))]
    everything = draw(st.permutations(good + bad))
    items: Any = {each["id"]: each for each in everything} if draw(st.booleans()) else everything
    return store(items), good, [each["id"] for each in bad]
