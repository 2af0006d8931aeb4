"""Knowledge items for tests: a builder with defaults, and hypothesis strategies over small pools of values, so that
filters and items meet often."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import strategies as st

from context_os.model import (
    Confidentiality,
    KnowledgeItem,
    LineageRecord,
    Metadata,
    Payload,
    Relation,
    Source,
    content_checksum,
    utcnow,
)
from context_os.stores import Filter, Vector

NOW = utcnow()
HOUR = timedelta(hours=1)
DIMENSIONS = 4


def make_item(
    id: str = "item",
    *,
    tenant: str = "acme",
    text: str = "common words",
    title: str = "A title",
    domain: str = "code",
    kind: str = "function",
    confidentiality: Confidentiality = Confidentiality.PUBLIC,
    updated_at: datetime = NOW,
    ttl: timedelta | None = None,
    expired: bool = False,
    tags: Sequence[str] = (),
    repository: str = "web",
    path: str = "src/app.py",
    language: str = "python",
    source_type: str = "symbols",
    symbols: Sequence[str] = (),
    relations: Sequence[Relation] = (),
    structured: dict[str, Any] | None = None,
    lineage: Sequence[LineageRecord] = (),
) -> KnowledgeItem:
    """An item with a checksum over everything given here. ``expired`` makes it outlive its hour by an hour."""
    if expired:
        updated_at, ttl = NOW - 2 * HOUR, HOUR
    checksum = content_checksum(
        repr((text, title, domain, kind, confidentiality, tags, repository, path, language, source_type)),
        repr((symbols, relations, structured)),
    )
    return KnowledgeItem(
        id=id,
        tenant=tenant,
        domain=domain,
        kind=kind,
        source=Source(type=source_type, location=path, repository=repository, path=path, language=language),
        payload=Payload(text=text, structured=structured or {}),
        metadata=Metadata(
            title=title,
            tags=tuple(tags),
            confidentiality=confidentiality,
            ttl=ttl,
            created_at=updated_at,
            updated_at=updated_at,
            lineage=tuple(lineage),
            checksum=checksum,
        ),
        relations=tuple(relations),
        symbols=tuple(symbols),
    )


def unit(*numbers: float) -> Vector:
    """A vector of unit length in this direction."""
    vector = np.array(numbers, dtype=np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


IDS = (
    "a",
    "b",
    "B",
    "a b",
    "a/b",
    "10",
    "9",
    "é",
    "z%",
    "_",
    "😀",
    "a'b",
    'a"b',
    "0e2c5d0a-6d0e-5b8e-9a2b-3f6f0a4f9d11",
)
PATHS = ("", "src/app", "src/app/x.py", "src/apple.py", "src/app.py", "SRC/app/x.py", "src/a_p/x.py", "lib/x.py")
PREFIXES = ("", "src", "src/app", "src/a_p", "src/app/", "lib", "nowhere")
TAGS = ("hot", "Hot", "hot path", "cold")
SYMBOLS = ("app.run", "app.Run", "app", "run")
TARGETS = ("symbol:app.run", "symbol:app", "path:src/app.py", "bug:WEB-7")
RELATION_TYPES = ("calls", "fixes")
WORDS = ("alpha", "beta", "gammaDelta", "parse_config", "élan", "日本", "if", "not", '"', "*", "-alpha", "AND")


def _few(values: Sequence[str], most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


# No surrogates, which no UTF-8 holds, and no NUL.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@st.composite
def items(draw: st.DrawFn, tenant: st.SearchStrategy[str], ids: st.SearchStrategy[str]) -> KnowledgeItem:
    """Every item's text holds the word "common"."""
    relations = st.builds(Relation, type=st.sampled_from(RELATION_TYPES), target=st.sampled_from(TARGETS))
    return make_item(
        draw(ids),
        tenant=draw(tenant),
        text=" ".join(["common", *draw(st.lists(st.sampled_from(WORDS), max_size=4)), draw(texts)]),
        title=draw(st.sampled_from(("Title", "alpha beta", "😀"))),
        domain=draw(st.sampled_from(("code", "bug", "Code"))),
        kind=draw(st.sampled_from(("function", "rule"))),
        confidentiality=draw(st.sampled_from(Confidentiality)),
        updated_at=NOW - draw(st.integers(0, 3)) * HOUR,
        ttl=draw(st.sampled_from((None, 10 * HOUR, 4 * HOUR))),
        expired=draw(st.integers(0, 3)) == 0,
        tags=draw(_few(TAGS, 3)),
        repository=draw(st.sampled_from(("web", "Web", "api"))),
        path=draw(st.sampled_from(PATHS)),
        language=draw(st.sampled_from(("", "python", "go"))),
        source_type=draw(st.sampled_from(("symbols", "bug_specs"))),
        symbols=draw(_few(SYMBOLS)),
        relations=draw(st.lists(relations, max_size=3)),
        structured=draw(st.dictionaries(st.sampled_from(("x", "y")), st.integers() | texts, max_size=2)),
    )


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    """One to three fields of a filter are set, the others left open."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "ids": _few(IDS, 5),
        "domains": _few(("code", "bug", "CODE")),
        "kinds": _few(("function", "rule", "func")),
        "tags_any": _few(TAGS),
        "tags_all": _few(TAGS),
        "repositories": _few(("web", "Web", "we")),
        "paths": _few(PATHS, 3),
        "path_prefix": st.sampled_from(PREFIXES),
        "languages": _few(("", "python", "Go")),
        "source_types": _few(("symbols", "bug_specs", "bug")),
        "symbols": _few(SYMBOLS),
        "targets": _few(TARGETS),
        "updated_from": st.integers(0, 3).map(lambda hours: NOW - hours * HOUR),
        "updated_to": st.integers(0, 3).map(lambda hours: NOW - hours * HOUR),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True))
    values = {name: draw(fields[name]) for name in chosen}
    if values.get("targets"):
        values["relation_types"] = draw(_few(RELATION_TYPES))
    return Filter(**values)


def vectors() -> st.SearchStrategy[Vector]:
    """Whole numbers before scaling, so that equal directions, and with them ties, happen."""
    numbers = st.lists(st.integers(-2, 2), min_size=DIMENSIONS, max_size=DIMENSIONS).filter(any)
    return numbers.map(lambda drawn: unit(*drawn))
