"""What every store must do, run over every plugin in ``context_os.stores``. Most of it is about what is *not* found.

A new store is added to ``BUILDERS``; until then the suite fails for it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import DIMENSIONS, HOUR, IDS, NOW, filters, items, make_item, unit, vectors

from context_os import plugins
from context_os.errors import NotFound, StoreRejected
from context_os.model import (
    Access,
    Actor,
    Confidentiality,
    FeedbackCounters,
    KnowledgeItem,
    LineageAction,
    LineageRecord,
    Payload,
    Relation,
    utcnow,
)
from context_os.stores import Filter, Hit, KnowledgeStore, Mode, Query, Record, Vector, Written

PUBLIC, INTERNAL, RESTRICTED = Confidentiality
MODES = (Mode.KEYWORD, Mode.VECTOR, Mode.HYBRID)
EVERYTHING = Filter()


def _lab(request: pytest.FixtureRequest) -> KnowledgeStore:
    from context_os.stores.lab import LabStore

    path: Path = request.getfixturevalue("tmp_path")
    return LabStore(path=path / "lab.db")


def _weaviate(request: pytest.FixtureRequest) -> KnowledgeStore:
    store: KnowledgeStore = request.getfixturevalue("weaviate_store")
    return store


BUILDERS: dict[str, Callable[[pytest.FixtureRequest], KnowledgeStore]] = {"lab": _lab, "weaviate": _weaviate}
EXAMPLES = {"lab": 40, "weaviate": 10}
MARKS = {"weaviate": [pytest.mark.weaviate]}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, [])) for name in plugins.names("stores")])
def store(request: pytest.FixtureRequest) -> Iterator[KnowledgeStore]:
    if request.param not in BUILDERS:
        pytest.fail(f"the suite cannot build the store {request.param!r}; add it to BUILDERS")
    with BUILDERS[request.param](request) as built:
        yield built


def by(tenant: str = "acme", clearance: Confidentiality = RESTRICTED) -> Access:
    return Access(tenant=tenant, principal="ann", clearance=clearance)


def write(store: KnowledgeStore, *written: KnowledgeItem, vector: Vector | None = None) -> Written:
    """Each with its own tenant's access."""
    counts = [
        store.upsert(by(tenant), [Record(item, vector) for item in group])
        for tenant, group in itertools.groupby(written, key=lambda item: item.tenant)
    ]
    return Written(sum(count.written for count in counts), sum(count.unchanged for count in counts))


def find(store: KnowledgeStore, text: str, limit: int = 50) -> list[str]:
    """Ids that a keyword search finds, best first."""
    hits = store.search(by(), Query(text=text, mode=Mode.KEYWORD, limit=limit))
    return [hit.item.id for hit in hits]


def pages(
    store: KnowledgeStore, access: Access, filter: Filter = EVERYTHING, limit: int = 100
) -> list[tuple[KnowledgeItem, ...]]:
    page = store.scan(access, filter, limit=limit)
    found = [page.items]
    while page.cursor is not None:
        page = store.scan(access, filter, page.cursor, limit)
        found.append(page.items)
    return found


def scan(store: KnowledgeStore, access: Access, filter: Filter = EVERYTHING, limit: int = 100) -> list[KnowledgeItem]:
    return [item for page in pages(store, access, filter, limit) for item in page]


def every_read(
    store: KnowledgeStore, access: Access, filter: Filter, text: str = "common", vector: Vector | None = None
) -> dict[str, list[str]]:
    """The ids that each way of reading finds, in order of id. Every item must hold the text's words."""
    vector = unit(1, 0, 0, 0) if vector is None else vector
    searches = {
        mode: store.search(access, Query(text=text, vector=vector, mode=mode, limit=50, filter=filter))
        for mode in MODES
    }
    return {
        "scan": [item.id for item in scan(store, access, filter)],
        "checksums": sorted(id for id, _ in store.checksums(access, filter)),
        **{mode.value: sorted(hit.item.id for hit in hits) for mode, hits in searches.items()},
    }


def assert_sees(store: KnowledgeStore, access: Access, expected: Iterable[str], filter: Filter = EVERYTHING) -> None:
    """Every way of reading answers exactly these. The items need the word "common" and a vector."""
    expected = sorted(expected)
    seen = every_read(store, access, filter)
    assert seen == dict.fromkeys(seen, expected), (filter, access)
    assert store.count(access, filter) == len(expected)
    if not filter.ids:
        assert [item.id for item in store.get(access, IDS_OF_WORLD) if item.id in expected] == [
            id for id in IDS_OF_WORLD if id in expected
        ]


VECTOR = unit(1, 1, 0, 0)


# --- the suite itself -------------------------------------------------------------------------------------------


def test_every_store_takes_part() -> None:
    assert set(plugins.names("stores")) == set(BUILDERS)


def test_it_is_loaded_by_its_name(store: KnowledgeStore) -> None:
    assert plugins.load("stores", store.name) is type(store)


def test_equal_settings_have_equal_identities(store: KnowledgeStore) -> None:
    again = type(store)(**store.model_dump())
    assert store.identity == again.identity
    assert store.identity.startswith(store.name)


def test_a_store_that_answers_is_healthy(store: KnowledgeStore) -> None:
    write(store, make_item())
    health = store.health()
    assert health.ready
    assert health.version
    assert health.detail
    assert "acme" not in health.detail


def test_closing_twice_is_harmless(store: KnowledgeStore) -> None:
    store.count(by(), EVERYTHING)
    store.close()
    store.close()


# --- writing and getting ----------------------------------------------------------------------------------------


def full_item() -> KnowledgeItem:
    record = LineageRecord(
        timestamp=NOW,
        actor=Actor.INGESTION,
        action=LineageAction.CREATED,
        notes="first",
        run_id="run-1",
        asset_key="indexed/symbols",
        source_revision="c0ffee",
        derived_from=("x", "y"),
        metadata={"deep": {"list": [1, 2.5, None, True]}},
    )
    return make_item(
        "full",
        text='def f():\n\treturn "é"\r\n',
        tags=("b", "a"),
        ttl=timedelta(days=30, milliseconds=1),
        symbols=("app.f", "f"),
        relations=(Relation(type="calls", target="symbol:g", confidence=0.25), Relation(type="calls", target="x")),
        structured={"a": [1, {"b": None}], "ü": 1e300},
        lineage=(record, record.model_copy(update={"notes": "second"})),
    )


def test_an_item_comes_back_as_it_was_written(store: KnowledgeStore) -> None:
    item = full_item()
    write(store, item, vector=VECTOR)
    assert store.get(by(), ["full"]) == [item]
    assert scan(store, by()) == [item]
    assert [hit.item for mode in MODES for hit in store.search(by(), Query("f", VECTOR, mode))] == [item] * 3


ODD_TEXTS = (
    "",
    " ",
    "\n\t\r",
    "😀 👩‍👩‍👧 emoji",
    "日本語 العربية עברית ไทย",
    "e\u0301 and é, ﬁ, ß, İ, ı, \u200b, \ufeff",
    "\x01\x1f\x7f\x85\u2028",
    "'; DROP TABLE items; --",
    '" OR "NEAR(a b) title:x * ^ - ( ) { } AND NOT',
    "\\ \\u0000 \\n % _ ? ~ ` $ { }",
    '{"json": ["a", 1]}',
    "\U0010ffff\ufffe",
)


def test_odd_texts_are_kept_and_searched_for(store: KnowledgeStore) -> None:
    written = [make_item(f"odd-{n:02}", text=text, title=text or "t") for n, text in enumerate(ODD_TEXTS)]
    write(store, *written)
    assert scan(store, by()) == written
    for item in written:
        hits = store.search(by(), Query(text=item.payload.text, mode=Mode.KEYWORD, limit=50))
        assert all(hit.item in written for hit in hits)
    assert find(store, "emoji") == ["odd-03"]
    assert find(store, "日本語") == ["odd-04"]


def test_a_text_of_a_megabyte(store: KnowledgeStore) -> None:
    item = make_item(text="start " + "filler text " * 90_000 + " needle")
    write(store, item, make_item("other"))
    assert store.get(by(), ["item"]) == [item]
    assert find(store, "needle") == ["item"]


def test_a_query_of_a_megabyte(store: KnowledgeStore) -> None:
    write(store, make_item(text="needle"))
    assert find(store, "needle " + "hay" * 100 + " straw 'x' " * 90_000) == ["item"]


def test_odd_ids(store: KnowledgeStore) -> None:
    ids = ["b", "a", "B", "10", "9", "é", "z", "e\u0301", "😀", "a b", "a/b", "a'b", 'a"b', "%", "_", "x" * 300, "\\"]
    write(store, *(make_item(id) for id in ids))
    assert [item.id for item in store.get(by(), ids)] == ids
    assert [item.id for item in scan(store, by(), limit=3)] == sorted(ids)
    assert find(store, "common") == sorted(ids)
    assert store.delete(by(), ["%", "a"]) == 2
    assert store.count(by(), EVERYTHING) == len(ids) - 2


def test_get_keeps_the_order_asked_and_leaves_out_what_is_not_there(store: KnowledgeStore) -> None:
    write(store, *(make_item(id) for id in "abcde"))
    assert [item.id for item in store.get(by(), ["d", "nothing", "a", "e"])] == ["d", "a", "e"]
    assert store.get(by(), []) == []
    assert store.get(by(), ["nothing"]) == []


def test_get_takes_more_ids_than_one_statement_may_hold(store: KnowledgeStore) -> None:
    write(store, make_item("a"), make_item("b"))
    absent = [f"absent-{n}" for n in range(3_000)]
    assert [item.id for item in store.get(by(), ["b", *absent, "a"])] == ["b", "a"]
    assert store.delete(by(), ["b", *absent, "a"]) == 2


def test_records_may_come_from_a_generator(store: KnowledgeStore) -> None:
    assert store.upsert(by(), (Record(make_item(id)) for id in "abc")) == Written(3, 0)
    assert store.upsert(by(), iter(())) == Written(0, 0)
    assert store.count(by(), EVERYTHING) == 3


def test_writing_again_changes_nothing(store: KnowledgeStore) -> None:
    written = [make_item(id, text=f"common {id}") for id in "abc"]
    assert write(store, *written) == Written(3, 0)
    assert write(store, *written) == Written(0, 3)
    assert write(store, *written, make_item("d")) == Written(1, 3)
    assert scan(store, by()) == [*written, make_item("d")]


def test_an_equal_checksum_and_expiry_are_not_written(store: KnowledgeStore) -> None:
    old = make_item(ttl=HOUR)
    write(store, old)
    unlike = old.model_copy(update={"payload": Payload(text="unlike")})
    assert write(store, unlike) == Written(0, 1)
    assert store.get(by(), ["item"]) == [old]


@pytest.mark.parametrize("change", [{"text": "new"}, {"ttl": 2 * HOUR}, {"ttl": None}, {"confidentiality": INTERNAL}])
def test_a_changed_checksum_or_expiry_is_written(store: KnowledgeStore, change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"text": "old", "ttl": HOUR}
    write(store, make_item(**fields))
    new = make_item(**fields | change)
    assert write(store, new) == Written(1, 0)
    assert scan(store, by()) == [new]


def test_of_two_with_one_id_the_last_counts(store: KnowledgeStore) -> None:
    write(store, make_item(text="first"), make_item(text="second"))
    assert [item.payload.text for item in scan(store, by())] == ["second"]
    assert find(store, "first") == []


def test_what_was_replaced_matches_no_more(store: KnowledgeStore) -> None:
    old = make_item(
        text="oldword",
        title="oldtitle",
        tags=("old",),
        path="old/path.py",
        symbols=("old.symbol",),
        relations=(Relation(type="calls", target="symbol:old"),),
    )
    write(store, old, vector=unit(1, 0, 0, 0))
    new = make_item(text="newword", tags=("new",), path="new/path.py", symbols=("new.symbol",))
    write(store, new, vector=unit(0, 1, 0, 0))
    for filter in (
        Filter(tags_any=("old",)),
        Filter(paths=("old/path.py",)),
        Filter(path_prefix="old"),
        Filter(symbols=("old.symbol",)),
        Filter(targets=("symbol:old",)),
    ):
        assert store.count(by(), filter) == 0, filter
    assert find(store, "oldword") == find(store, "oldtitle") == find(store, "old") == []
    assert find(store, "newword") == find(store, "symbol") == ["item"]
    (hit,) = store.search(by(), Query(vector=unit(0, 1, 0, 0), mode=Mode.VECTOR))
    assert hit.score == pytest.approx(1, abs=1e-4)


def test_a_vector_that_is_left_out_is_gone_after_a_change(store: KnowledgeStore) -> None:
    write(store, make_item(text="old"), vector=VECTOR)
    write(store, make_item(text="new"))
    assert store.search(by(), Query(vector=VECTOR, mode=Mode.VECTOR)) == []
    assert find(store, "new") == ["item"]


def test_an_item_without_a_json_form_is_refused_by_its_id(store: KnowledgeStore) -> None:
    broken = make_item("broken", structured={"half a character": "\udcff"})
    with pytest.raises(StoreRejected) as refused:
        store.upsert(by(), [Record(broken)])
    assert list(refused.value.failures) == ["broken"]
    assert store.count(by(), EVERYTHING) == 0


# --- tenants ----------------------------------------------------------------------------------------------------


def test_a_foreign_item_refuses_the_whole_call(store: KnowledgeStore) -> None:
    write(store, make_item("there"))
    batch = [*(make_item(f"own-{n}") for n in range(300)), make_item("foreign", tenant="other")]
    with pytest.raises(StoreRejected) as refused:
        store.upsert(by(), (Record(item) for item in batch))
    assert list(refused.value.failures) == ["foreign"]
    assert [item.id for item in scan(store, by())] == ["there"]
    assert store.count(by("other"), EVERYTHING) == 0


def test_an_unknown_tenant_reads_as_empty(store: KnowledgeStore) -> None:
    for known in (False, True):
        assert_sees(store, by("nobody"), [])
        assert store.get(by("nobody"), ["a"]) == []
        assert store.delete(by("nobody"), ["a"]) == 0
        assert store.delete_by_source(by("nobody"), "symbols", "web") == 0
        assert store.prune(by("nobody"), NOW + 1000 * HOUR) == []
        store.drop_tenant(by("nobody"))
        with pytest.raises(NotFound):
            store.append_lineage(by("nobody"), "a", lineage_record())
        if not known:
            write(store, make_item("a"), vector=VECTOR)


TENANTS = ("acme", "Acme", "acme ", "a-c_m.e", "Ünïcode 😀", "x" * 200, "a'; DROP TABLE items", "../etc", "1", "*", "%")


def test_tenants_do_not_see_each_other_whatever_their_names(store: KnowledgeStore) -> None:
    for tenant in TENANTS:
        write(store, make_item("same", tenant=tenant, text=f"common {tenant}"), vector=VECTOR)
    for tenant in TENANTS:
        assert_sees(store, by(tenant), ["same"])
        (item,) = store.get(by(tenant), ["same"])
        assert item.tenant == tenant


def two_tenants(store: KnowledgeStore) -> None:
    for tenant in ("acme", "other"):
        write(store, *(make_item(id, tenant=tenant, ttl=HOUR) for id in "abc"), vector=VECTOR)


@pytest.mark.parametrize(
    "action",
    [
        lambda store: store.delete(by(), ["a", "b", "c"]),
        lambda store: store.delete_by_source(by(), "symbols", "web"),
        lambda store: store.prune(by(), NOW + 2 * HOUR),
        lambda store: store.drop_tenant(by()),
    ],
    ids=["delete", "delete_by_source", "prune", "drop_tenant"],
)
def test_deleting_stays_inside_the_tenant(store: KnowledgeStore, action: Callable[[KnowledgeStore], object]) -> None:
    two_tenants(store)
    action(store)
    assert_sees(store, by(), [])
    assert_sees(store, by("other"), "abc")


def test_other_tenants_do_not_move_a_score(store: KnowledgeStore) -> None:
    texts = ("rare common", "common common", "rare", "common filler filler filler", "nothing")
    for n, text in enumerate(texts):
        write(store, make_item(f"{n}", text=text, title="t"), vector=VECTOR)

    def answers() -> list[list[tuple[str, Any]]]:
        asked = (Query("rare common", VECTOR, mode) for mode in MODES)
        return [[(hit.item.id, pytest.approx(hit.score)) for hit in store.search(by(), query)] for query in asked]

    before = answers()
    crowd = [make_item(f"x{n}", tenant="other", text="rare rare long " * 5) for n in range(200)]
    write(store, *crowd, vector=VECTOR)
    assert answers() == before
    store.drop_tenant(by("other"))
    assert answers() == before


# --- clearance and expiry ---------------------------------------------------------------------------------------


def test_clearance(store: KnowledgeStore) -> None:
    write(store, *(make_item(level.value, confidentiality=level) for level in Confidentiality), vector=VECTOR)
    assert_sees(store, by(clearance=PUBLIC), ["public"])
    assert_sees(store, by(clearance=INTERNAL), ["public", "internal"])
    assert_sees(store, by(clearance=RESTRICTED), ["public", "internal", "restricted"])
    assert [i.id for i in store.get(by(clearance=INTERNAL), ["restricted", "internal", "public"])] == [
        "internal",
        "public",
    ]


def test_raising_the_confidentiality_hides_an_item(store: KnowledgeStore) -> None:
    write(store, make_item(), vector=VECTOR)
    write(store, make_item(confidentiality=RESTRICTED), vector=VECTOR)
    assert_sees(store, by(clearance=INTERNAL), [])
    assert_sees(store, by(), ["item"])


def test_expired_items_are_never_seen(store: KnowledgeStore) -> None:
    live = [make_item("forever"), make_item("long", ttl=timedelta(days=300_000)), make_item("hour", ttl=HOUR)]
    dead = [make_item("dead", expired=True), make_item("just", updated_at=NOW - HOUR, ttl=HOUR)]
    write(store, *live, *dead, vector=VECTOR)
    assert_sees(store, by(), ["forever", "hour", "long"])
    assert [item.id for item in store.get(by(), ["dead", "hour", "just"])] == ["hour"]
    assert_sees(store, by(), [], Filter(ids=("dead", "just")))


def test_an_item_expires_while_the_store_is_open(store: KnowledgeStore) -> None:
    write(store, make_item(updated_at=utcnow(), ttl=timedelta(seconds=1.5)), make_item("other"), vector=VECTOR)
    assert_sees(store, by(), ["item", "other"])
    time.sleep(1.6)
    assert_sees(store, by(), ["other"])


def hidden_and_visible() -> list[KnowledgeItem]:
    """What may not be seen would take all the first places."""
    hidden = [
        *(make_item(f"expired-{n}", text="needle", title="needle", expired=True) for n in range(20)),
        *(make_item(f"secret-{n}", text="needle", title="needle", confidentiality=RESTRICTED) for n in range(20)),
        *(make_item(f"0-wrong-{n}", text="needle", title="needle", kind="rule") for n in range(20)),
    ]
    visible = [make_item(f"visible-{n}", text="needle in much hay, " + "hay " * n) for n in range(3)]
    return hidden + visible


@pytest.mark.parametrize("mode", MODES)
def test_what_is_hidden_takes_no_place_in_a_limit(store: KnowledgeStore, mode: Mode) -> None:
    for item in hidden_and_visible():
        nearer = not item.id.startswith("visible")
        write(store, item, vector=unit(1, 0, 0, 0) if nearer else unit(1, 1, 1, float(item.id[-1])))
    reader = by(clearance=INTERNAL)
    for limit in (1, 2, 3, 30):
        query = Query("needle", unit(1, 0, 0, 0), mode, limit, Filter(kinds=("function",)))
        hits = store.search(reader, query)
        assert [hit.item.id for hit in hits] == ["visible-0", "visible-1", "visible-2"][:limit]
    found = pages(store, reader, Filter(kinds=("function",)), limit=2)
    assert [len(page) for page in found] == [2, 1]


# --- filters ----------------------------------------------------------------------------------------------------

WORLD = (
    make_item(
        "a",
        path="src/app/main.py",
        tags=("hot", "hot path"),
        symbols=("app.main", "app"),
        relations=(Relation(type="calls", target="symbol:b"), Relation(type="fixes", target="bug:WEB-7")),
        updated_at=NOW - 3 * HOUR,
    ),
    make_item("b", path="src/app", tags=("hot",), symbols=("app.Main",), kind="rule", updated_at=NOW - 2 * HOUR),
    make_item(
        "c",
        path="src/apple.py",
        tags=("cold", "hot"),
        language="go",
        relations=(Relation(type="calls", target="bug:WEB-7"),),
        updated_at=NOW - HOUR,
    ),
    make_item("d", path="src/app.py", domain="bug", source_type="bug_specs", relations=(), updated_at=NOW - HOUR),
    make_item("e", path="SRC/app/main.py", repository="Web", tags=("Hot",), symbols=("main",)),
    make_item(
        "f", path="src/app0", repository="web 2", relations=(Relation(type="imports", target="symbol:b"),), domain="Bug"
    ),
    make_item("g", path="lib/src/app/main.py", language="", tags=("hot*", "ho%")),
    make_item("h", path="src/app/%/x.py", kind="function rule", source_type="symbols2"),
)
IDS_OF_WORLD = tuple(item.id for item in WORLD)

CASES: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "abcdefgh"),
    ({"ids": ("a", "c", "nothing")}, "ac"),
    ({"ids": ("nothing",)}, ""),
    ({"domains": ("bug",)}, "d"),
    ({"domains": ("bug", "Bug")}, "df"),
    ({"domains": ("bu",)}, ""),
    ({"kinds": ("rule",)}, "b"),
    ({"kinds": ("function rule",)}, "h"),
    ({"kinds": ("function", "rule")}, "abcdefg"),
    ({"repositories": ("web",)}, "abcdgh"),
    ({"repositories": ("Web", "web 2")}, "ef"),
    ({"repositories": ("web*",)}, ""),
    ({"languages": ("python",)}, "abdefh"),
    ({"languages": ("go", "Python")}, "c"),
    ({"source_types": ("symbols",)}, "abcefg"),
    ({"source_types": ("symbols2", "bug_specs")}, "dh"),
    ({"paths": ("src/app",)}, "b"),
    ({"paths": ("src/app/main.py", "SRC/app/main.py", "src")}, "ae"),
    ({"paths": ("src/app/",)}, ""),
    ({"path_prefix": "src/app"}, "abh"),
    ({"path_prefix": "src"}, "abcdfh"),
    ({"path_prefix": "SRC"}, "e"),
    ({"path_prefix": "src/app/main.py"}, "a"),
    ({"path_prefix": "src/app.py"}, "d"),
    ({"path_prefix": "src/ap"}, ""),
    ({"path_prefix": "src/app/%"}, "h"),
    ({"path_prefix": "src/%"}, ""),
    ({"path_prefix": "app"}, ""),
    ({"tags_any": ("hot",)}, "abc"),
    ({"tags_any": ("hot path", "cold")}, "ac"),
    ({"tags_any": ("Hot", "path")}, "e"),
    ({"tags_any": ("ho%",)}, "g"),
    ({"tags_all": ("hot",)}, "abc"),
    ({"tags_all": ("hot", "cold")}, "c"),
    ({"tags_all": ("hot", "hot")}, "abc"),
    ({"tags_all": ("hot", "nothing")}, ""),
    ({"tags_any": ("cold", "hot path"), "tags_all": ("hot",)}, "ac"),
    ({"symbols": ("app",)}, "a"),
    ({"symbols": ("app.main",)}, "a"),
    ({"symbols": ("app.Main", "main")}, "be"),
    ({"symbols": ("App", "app.")}, ""),
    ({"targets": ("symbol:b",)}, "af"),
    ({"targets": ("bug:WEB-7",)}, "ac"),
    ({"targets": ("bug:WEB-7", "symbol:b")}, "acf"),
    ({"targets": ("bug:WEB",)}, ""),
    ({"targets": ("bug:web-7",)}, ""),
    ({"targets": ("symbol:b",), "relation_types": ("calls",)}, "a"),
    ({"targets": ("symbol:b",), "relation_types": ("calls", "imports")}, "af"),
    # "a" calls something and fixes WEB-7, but it does not call WEB-7.
    ({"targets": ("bug:WEB-7",), "relation_types": ("calls",)}, "c"),
    ({"targets": ("bug:WEB-7",), "relation_types": ("imports",)}, ""),
    ({"updated_from": NOW - 2 * HOUR}, "bcdefgh"),
    ({"updated_to": NOW - 2 * HOUR}, "a"),
    ({"updated_from": NOW - 2 * HOUR, "updated_to": NOW - HOUR}, "b"),
    ({"updated_from": NOW - HOUR, "updated_to": NOW - HOUR}, ""),
    ({"updated_from": NOW - HOUR + timedelta(milliseconds=1)}, "efgh"),
    ({"updated_to": NOW - HOUR + timedelta(milliseconds=1)}, "abcd"),
    ({"domains": ("code",), "tags_any": ("hot",), "path_prefix": "src/app", "kinds": ("function",)}, "a"),
    ({"ids": ("a", "b", "c"), "languages": ("go",)}, "c"),
    ({"ids": ("a", "b"), "languages": ("go",)}, ""),
    ({"paths": ("src/app", "src/app.py"), "path_prefix": "src/app"}, "b"),
    ({"source_types": ("symbols",), "repositories": ("web",), "paths": ("src/app", "src/apple.py")}, "bc"),
    ({"symbols": ("app",), "targets": ("symbol:b",), "tags_all": ("hot", "hot path")}, "a"),
)


def test_filters(store: KnowledgeStore) -> None:
    """All cases in one test: the world is written once."""
    write(store, *WORLD, vector=VECTOR)
    write(store, *(item.model_copy(update={"tenant": "other"}) for item in WORLD), vector=VECTOR)
    for fields, expected in CASES:
        assert_sees(store, by(), expected, Filter(**fields))


def test_filters_and_clearance_and_expiry_together(store: KnowledgeStore) -> None:
    twins = [
        make_item(f"{item.id}-{suffix}", path=item.source.path, tags=item.metadata.tags, **fields)
        for item in WORLD
        for suffix, fields in (
            ("live", {"confidentiality": PUBLIC}),
            ("dead", {"expired": True}),
            ("secret", {"confidentiality": RESTRICTED}),
        )
    ]
    write(store, *twins, vector=VECTOR)
    for filter, expected in ((Filter(path_prefix="src/app"), "abh"), (Filter(tags_all=("hot",)), "abc")):
        assert_sees(store, by(clearance=INTERNAL), [f"{id}-live" for id in expected], filter)
        both = [f"{id}-{suffix}" for id in expected for suffix in ("live", "secret")]
        assert_sees(store, by(), both, filter)


def test_a_filter_with_hundreds_of_values(store: KnowledgeStore) -> None:
    write(store, *WORLD, vector=VECTOR)
    many = tuple(f"symbol:{n}" for n in range(500))
    assert_sees(store, by(), "af", Filter(targets=(*many, "symbol:b")))
    assert_sees(store, by(), "bd", Filter(paths=(*many, "src/app", "src/app.py")))


# --- search -----------------------------------------------------------------------------------------------------


def test_keyword_finds_identifiers_whole_and_in_parts(store: KnowledgeStore) -> None:
    write(
        store,
        make_item("camel", text="call parseHttpResponse(x)"),
        make_item("snake", text="call parse_config(x)"),
        make_item("cat", text="concatenate"),
    )
    assert sorted(find(store, "parse")) == ["camel", "snake"]
    assert find(store, "response") == ["camel"]
    assert find(store, "parse_config")[0] == "snake"
    assert find(store, "PARSEHTTPRESPONSE")[0] == "camel"
    assert find(store, "cat") == []


def test_keyword_reads_title_symbols_path_and_text(store: KnowledgeStore) -> None:
    write(
        store,
        make_item("title", title="needle"),
        make_item("symbol", symbols=("pkg.needle",)),
        make_item("path", path="src/needle.py"),
        make_item("text", text="a needle"),
        make_item("tag", tags=("needle",)),
    )
    assert sorted(find(store, "needle")) == ["path", "symbol", "text", "title"]


def test_keyword_matches_any_word_and_prefers_more(store: KnowledgeStore) -> None:
    write(
        store,
        make_item("both", text="amber basalt filler"),
        make_item("one", text="amber filler filler"),
        make_item("none", text="filler filler filler"),
    )
    assert find(store, "amber basalt unknown") == ["both", "one"]


@pytest.mark.parametrize("text", ["", "  ", "?!", '"', "*", "unknown", "AND", "()"])
def test_keyword_finds_nothing_for_no_words(store: KnowledgeStore, text: str) -> None:
    write(store, make_item(text="something"), vector=VECTOR)
    assert find(store, text) == []
    assert store.search(by(), Query(text=text, mode=Mode.HYBRID)) == []


def test_small_words_are_words(store: KnowledgeStore) -> None:
    write(store, make_item("a", text="if not x in y"), make_item("b", text="for it is the"), make_item("c", text="q"))
    assert find(store, "not") == ["a"]
    assert find(store, "the") == ["b"]


def test_a_query_of_hundreds_of_words(store: KnowledgeStore) -> None:
    write(store, *(make_item(f"{n:03}", text=f"common w{n} x{n} y{n}") for n in range(300)))
    text = " ".join(f"w{n}" for n in range(300))
    assert len(find(store, text, limit=300)) == 300
    assert find(store, text + " x7 y7 x8", limit=2) == ["007", "008"]


def ranked_world(store: KnowledgeStore) -> dict[str, Vector]:
    directions = {"far": unit(0, 0, 1, 0), "near": unit(1, 0, 0, 0), "mid": unit(1, 1, 0, 0)}
    directions |= {"twin-2": unit(1, 2, 0, 0), "twin-1": unit(1, 2, 0, 0), "anti": unit(-1, 0, 0, 0)}
    for id, vector in directions.items():
        write(store, make_item(id, text="needle"), vector=vector)
    write(store, make_item("blind", text="needle in a very long text about other things"))
    return directions


def test_vectors_rank_by_cosine_and_ties_by_id(store: KnowledgeStore) -> None:
    directions = ranked_world(store)
    hits = store.search(by(), Query(vector=unit(1, 0, 0, 0), mode=Mode.VECTOR))
    assert [hit.item.id for hit in hits] == ["near", "mid", "twin-1", "twin-2", "far", "anti"]
    cosines = [float(directions[hit.item.id][0]) for hit in hits]
    assert [hit.score for hit in hits] == pytest.approx(cosines, abs=1e-4)
    for limit in (0, 1, 3, 4, 5):
        query = Query(vector=unit(1, 0, 0, 0), mode=Mode.VECTOR, limit=limit)
        assert store.search(by(), query) == hits[:limit]


@pytest.mark.parametrize("mode", MODES)
def test_scores_fall_ties_go_by_id_and_a_limit_cuts_the_end(store: KnowledgeStore, mode: Mode) -> None:
    for n in range(30):
        write(store, make_item(f"{n * 7 % 30:02}", text="common " * (n % 3 + 1)), vector=unit(1, n % 4, 0, 0))
    query = Query("common", unit(1, 0, 0, 0), mode, 30)
    hits = store.search(by(), query)
    assert len(hits) == 30
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.item.id))
    for limit in (1, 7, 15):
        shorter = store.search(by(), Query(query.text, query.vector, mode, limit))
        assert [hit.item.id for hit in shorter] == [hit.item.id for hit in hits[:limit]]


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_below_one_finds_nothing(store: KnowledgeStore, mode: Mode) -> None:
    write(store, make_item(), vector=VECTOR)
    assert store.search(by(), Query("common", VECTOR, mode, 0)) == []
    assert store.search(by(), Query("common", VECTOR, mode, -1)) == []


def test_hybrid_without_a_vector_is_keyword(store: KnowledgeStore) -> None:
    ranked_world(store)
    keyword = store.search(by(), Query("needle things", mode=Mode.KEYWORD))
    assert keyword
    assert store.search(by(), Query("needle things", mode=Mode.HYBRID)) == keyword


def test_vector_mode_needs_a_vector(store: KnowledgeStore) -> None:
    write(store, make_item(), vector=VECTOR)
    with pytest.raises(StoreRejected):
        store.search(by(), Query("common", mode=Mode.VECTOR))


def test_hybrid_finds_what_either_arm_finds(store: KnowledgeStore) -> None:
    ranked_world(store)
    write(store, make_item("mute", text="hay"), vector=unit(1, 0, 0, 0.1))
    found = {hit.item.id for hit in store.search(by(), Query("needle", unit(1, 0, 0, 0), limit=20))}
    assert found == {"far", "near", "mid", "twin-1", "twin-2", "anti", "blind", "mute"}


def test_alpha_is_the_share_of_the_vector(store: KnowledgeStore) -> None:
    words = {"word": "needle", "both": "needle hay", "vector": "needle hay hay hay hay", "neither": "hay"}
    angles = {"word": 2.0, "both": 0.5, "vector": 0.0, "neither": 3.0}
    for id, text in words.items():
        write(store, make_item(id, text=text), vector=unit(1, angles[id], 0, 0))

    def order(alpha: float) -> list[str]:
        hits = store.search(by(), Query("needle", unit(1, 0, 0, 0), Mode.HYBRID, alpha=alpha))
        return [hit.item.id for hit in hits]

    assert order(0.0)[:3] == find(store, "needle") == ["word", "both", "vector"]
    assert order(1.0)[:3] == ["vector", "both", "word"]
    assert order(0.5)[0] == "both"
    assert order(0.5)[-1] == "neither"


def test_a_wrong_vector_is_refused(store: KnowledgeStore) -> None:
    write(store, make_item("good"), vector=VECTOR)
    for wrong in (unit(1, 0, 0), unit(1, 0, 0, 0, 0), unit(1, 0, 0, 0).reshape(2, 2), VECTOR * float("nan")):
        with pytest.raises(StoreRejected) as refused:
            write(store, make_item("wrong"), vector=wrong)
        assert list(refused.value.failures) == ["wrong"]
    for wrong in (unit(1, 0, 0), unit(1, 0, 0, 0, 0), unit(1, 0, 0, 0).reshape(2, 2), VECTOR * float("nan")):
        for mode in (Mode.VECTOR, Mode.HYBRID):
            with pytest.raises(StoreRejected):
                store.search(by(), Query("common", wrong, mode))
    assert_sees(store, by(), ["good"])


def near(store: KnowledgeStore, vector: Vector, version: str, access: Access | None = None) -> list[str]:
    """Ids that a vector search of a version finds, best first."""
    hits = store.search(access or by(), Query(vector=vector, mode=Mode.VECTOR, version=version))
    return [hit.item.id for hit in hits]


def test_vectors_may_come_after_their_items(store: KnowledgeStore) -> None:
    written = [make_item(id) for id in "abc"]
    write(store, *written)
    assert near(store, VECTOR, "m-4") == []
    hybrid = Query("common", VECTOR, Mode.HYBRID, version="m-4")
    assert sorted(hit.item.id for hit in store.search(by(), hybrid)) == ["a", "b", "c"]
    given = {"a": unit(0, 1, 0, 0), "b": unit(1, 0, 0, 0), "nobody": VECTOR}
    assert store.put_vectors(by(), given, "m-4") == {"a", "b"}
    assert near(store, unit(1, 0.1, 0, 0), "m-4") == ["b", "a"]
    assert store.put_vectors(by(), {"a": unit(1, 0.1, 0, 0)}, "m-4") == {"a"}
    assert near(store, unit(1, 0.1, 0, 0), "m-4") == ["a", "b"]
    assert sorted(hit.item.id for hit in store.search(by(), hybrid)) == ["a", "b", "c"]
    assert scan(store, by()) == written
    assert find(store, "common") == ["a", "b", "c"]
    assert write(store, *written) == Written(0, 3)


def test_vectors_of_two_versions_never_meet(store: KnowledgeStore) -> None:
    write(store, *(make_item(id) for id in "abc"), vector=VECTOR)
    assert store.put_vectors(by(), {"a": unit(1, 0), "b": unit(0, 1)}, "small model/2") == {"a", "b"}
    assert store.put_vectors(by(), {"c": unit(1, 0, 0)}, "small-model-2") == {"c"}
    assert near(store, unit(0.1, 1), "small model/2") == ["b", "a"]
    assert near(store, unit(1, 0, 0), "small-model-2") == ["c"]
    assert near(store, unit(1, 0), "never put") == []
    assert sorted(near(store, VECTOR, "")) in (["a", "b", "c"], [])  # a store may keep one vector for each item


def test_an_item_loses_its_vector_with_its_content_and_keeps_it_with_its_life(store: KnowledgeStore) -> None:
    write(store, make_item("a", text="old", ttl=HOUR), make_item("b", text="old", ttl=HOUR))
    assert store.put_vectors(by(), {"a": VECTOR, "b": VECTOR}, "m-4") == {"a", "b"}
    assert write(store, make_item("a", text="new", ttl=HOUR)) == Written(1, 0)
    assert near(store, VECTOR, "m-4") == ["b"]
    longer = make_item("b", text="old", ttl=HOUR)
    longer = longer.model_copy(update={"metadata": longer.metadata.model_copy(update={"updated_at": utcnow()})})
    assert write(store, longer) == Written(1, 0)
    assert near(store, VECTOR, "m-4") == ["b"]
    assert store.get(by(), ["b"]) == [longer]
    store.delete(by(), ["b"])
    write(store, longer)
    assert near(store, VECTOR, "m-4") == []


def test_vectors_stay_inside_the_tenant_and_change_no_right(store: KnowledgeStore) -> None:
    secret = make_item("same", confidentiality=RESTRICTED)
    write(store, secret, secret.model_copy(update={"tenant": "other"}))
    assert store.put_vectors(by(clearance=PUBLIC), {"same": VECTOR}, "m-4") == {"same"}
    assert near(store, VECTOR, "m-4") == ["same"]
    assert near(store, VECTOR, "m-4", by(clearance=INTERNAL)) == []
    assert near(store, VECTOR, "m-4", by("other")) == []
    assert store.put_vectors(by("stranger"), {"same": VECTOR}, "m-4") == set()
    assert store.put_vectors(by(), {}, "m-4") == set()
    store.drop_tenant(by())
    write(store, secret)
    assert near(store, VECTOR, "m-4") == []


def test_counters_are_put_beside_everything_else(store: KnowledgeStore) -> None:
    record = LineageRecord(timestamp=NOW, actor=Actor.HUMAN, action=LineageAction.APPROVED)
    first, second = make_item("a", lineage=[record]), make_item("b", confidentiality=RESTRICTED)
    write(store, first, second, vector=VECTOR)
    given = {
        "a": FeedbackCounters(helpful=3, last_helpful_at=NOW),
        "b": FeedbackCounters(harmful=1),
        "nobody": FeedbackCounters(),
    }
    for _ in range(2):
        assert store.put_feedback(by(clearance=PUBLIC), given) == {"a", "b"}
    told = [item.model_copy(update={"feedback": given[item.id]}) for item in (first, second)]
    assert scan(store, by()) == told
    assert store.get(by(), ["b", "a"]) == told[::-1]
    hits = store.search(by(), Query(text="common", mode=Mode.KEYWORD))
    assert {hit.item.id: hit.item.feedback for hit in hits} == {"a": given["a"], "b": given["b"]}
    assert near(store, VECTOR, "") in (["a", "b"], [])
    assert set(store.vectors(by(), ["a", "b"], "")) == {"a", "b"}
    assert dict(store.checksums(by(), EVERYTHING)) == {
        id: item.metadata.checksum for id, item in zip("ab", told, strict=True)
    }
    assert store.put_feedback(by(), {"a": FeedbackCounters()}) == {"a"}
    assert store.get(by(), ["a"]) == [first]


def test_counters_stay_inside_the_tenant_and_with_the_life_of_an_item(store: KnowledgeStore) -> None:
    item = make_item("same")
    write(store, item, item.model_copy(update={"tenant": "other"}))
    counters = FeedbackCounters(helpful=2)
    assert store.put_feedback(by(), {"same": counters}) == {"same"}
    assert store.put_feedback(by("stranger"), {"same": counters}) == set()
    assert store.put_feedback(by(), {}) == set()
    assert store.get(by("other"), ["same"])[0].feedback == FeedbackCounters()
    record = LineageRecord(timestamp=NOW, actor=Actor.HUMAN, action=LineageAction.APPROVED)
    store.append_lineage(by(), "same", record)
    assert store.put_feedback(by(), {"same": FeedbackCounters(helpful=3)}) == {"same"}
    found = store.get(by(), ["same"])[0]
    assert (found.feedback.helpful, found.metadata.lineage) == (3, (record,))
    assert write(store, item) == Written(0, 1)  # unchanged: nothing of it is written
    assert store.get(by(), ["same"])[0].feedback.helpful == 3
    write(store, make_item("same", text="other words"))
    assert store.get(by(), ["same"])[0].feedback == FeedbackCounters()


def test_counters_and_lineage_at_once_lose_nothing(store: KnowledgeStore) -> None:
    write(store, make_item("a"))
    records = [
        LineageRecord(timestamp=NOW, actor=Actor.HUMAN, action=LineageAction.APPROVED, notes=str(number))
        for number in range(10)
    ]

    def count() -> None:
        for number in range(1, 21):
            store.put_feedback(by(), {"a": FeedbackCounters(helpful=number)})

    counting = threading.Thread(target=count)
    counting.start()
    for record in records:
        store.append_lineage(by(), "a", record)
    counting.join()
    found = store.get(by(), ["a"])[0]
    assert (found.feedback.helpful, list(found.metadata.lineage)) == (20, records)


@pytest.mark.parametrize("wrong", [unit(1, 0), unit(1, 0, 0, float("nan")), unit(1, 0, 0, 0).reshape(2, 2)])
def test_a_wrong_vector_refuses_the_whole_call(store: KnowledgeStore, wrong: Vector) -> None:
    write(store, make_item("a"), make_item("b"))
    with pytest.raises(StoreRejected) as refused:
        store.put_vectors(by(), {"a": VECTOR, "b": wrong}, "m-4")
    assert set(refused.value.failures) == {"b"}
    assert near(store, VECTOR, "m-4") == []


def test_vectors_of_another_length_than_the_versions_are_refused(store: KnowledgeStore) -> None:
    write(store, make_item("a"), make_item("b"))
    store.put_vectors(by(), {"a": VECTOR}, "m-4")
    with pytest.raises(StoreRejected):
        store.put_vectors(by(), {"b": unit(1, 0)}, "m-4")
    assert near(store, VECTOR, "m-4") == ["a"]


def test_a_vector_may_have_any_length_above_zero(store: KnowledgeStore) -> None:
    write(store, make_item("long"), vector=unit(1, 1, 0, 0) * 5)
    write(store, make_item("short"), vector=unit(1, 0, 0, 0) * 0.1)
    hits = store.search(by(), Query(vector=unit(1, 0, 0, 0) * 3, mode=Mode.VECTOR))
    assert [hit.item.id for hit in hits] == ["short", "long"]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.7071], abs=1e-3)


# --- scan, checksums, count -------------------------------------------------------------------------------------


def test_pages_are_in_order_of_id_and_complete(store: KnowledgeStore) -> None:
    written = [make_item(f"{n * 37 % 101:03}", kind="rule" if n % 3 else "function") for n in range(101)]
    write(store, *written)
    ordered = sorted(written, key=lambda item: item.id)
    for limit in (1, 25, 100, 101, 102):
        found = pages(store, by(), limit=limit)
        assert [item for page in found for item in page] == ordered
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1]
    rules = [item for item in ordered if item.kind == "rule"]
    assert scan(store, by(), Filter(kinds=("rule",)), limit=7) == rules
    assert store.scan(by(), Filter(kinds=("nothing",))).cursor is None


def test_ids_that_begin_alike_are_paged_through(store: KnowledgeStore) -> None:
    ids = sorted(["same-start", *(f"same-start-{n:03}" for n in range(60)), "same-starts", "z"])
    write(store, *(make_item(id) for id in ids))
    assert [item.id for item in scan(store, by(), limit=7)] == ids


def test_a_page_must_hold_something(store: KnowledgeStore) -> None:
    for limit in (0, -1):
        with pytest.raises(StoreRejected):
            store.scan(by(), EVERYTHING, limit=limit)


def test_paging_goes_on_while_others_write(store: KnowledgeStore) -> None:
    write(store, *(make_item(f"{n:02}") for n in range(20)))
    first = store.scan(by(), EVERYTHING, limit=5)
    assert first.cursor is not None
    store.delete(by(), ["04", "05"])  # the cursor's own item among them
    write(store, make_item("00x"), make_item("11x"))
    rest = [item.id for page in _rest(store, first.cursor) for item in page]
    assert rest == sorted([f"{n:02}" for n in range(6, 20)] + ["11x"])


def _rest(store: KnowledgeStore, cursor: str | None) -> Iterator[tuple[KnowledgeItem, ...]]:
    while cursor is not None:
        page = store.scan(by(), EVERYTHING, cursor, 5)
        yield page.items
        cursor = page.cursor


def test_checksums(store: KnowledgeStore) -> None:
    write(store, *WORLD)
    expected = {item.id: item.metadata.checksum for item in WORLD}
    assert dict(store.checksums(by(), EVERYTHING)) == expected
    source = Filter(source_types=("symbols",), repositories=("web",))
    assert dict(store.checksums(by(), source)) == {id: expected[id] for id in "abcg"}
    write(store, make_item("a", text="new"))
    assert dict(store.checksums(by(), EVERYTHING))["a"] != expected["a"]


def test_deleting_while_reading_checksums(store: KnowledgeStore) -> None:
    write(store, *(make_item(f"{n:02}") for n in range(30)))
    for id, _ in store.checksums(by(), EVERYTHING):
        assert store.delete(by(), [id]) == 1
    assert store.count(by(), EVERYTHING) == 0


def test_an_iterator_of_checksums_that_nobody_finishes(store: KnowledgeStore) -> None:
    write(store, *(make_item(f"{n:02}") for n in range(30)))
    next(iter(store.checksums(by(), EVERYTHING)))
    store.drop_tenant(by())
    assert store.count(by(), EVERYTHING) == 0


# --- deleting ---------------------------------------------------------------------------------------------------


def test_delete(store: KnowledgeStore) -> None:
    write(store, *(make_item(id, tags=("t",), symbols=(id,)) for id in "abcde"), vector=VECTOR)
    assert store.delete(by(), ["a", "c", "c", "nothing"]) == 2
    assert store.delete(by(), ["a", "c"]) == 0
    assert store.delete(by(), []) == 0
    assert_sees(store, by(), "bde")
    assert_sees(store, by(), "bde", Filter(tags_any=("t",)))
    assert_sees(store, by(), "b", Filter(symbols=("a", "b")))


def test_delete_does_not_ask_for_clearance(store: KnowledgeStore) -> None:
    write(store, make_item("secret", confidentiality=RESTRICTED), make_item("other"), vector=VECTOR)
    assert store.delete(by(clearance=PUBLIC), ["secret"]) == 1
    assert_sees(store, by(), ["other"])


def test_a_deleted_item_may_come_back(store: KnowledgeStore) -> None:
    for _ in range(2):
        assert write(store, make_item(), vector=VECTOR) == Written(1, 0)
        assert_sees(store, by(), ["item"])
        store.delete(by(), ["item"])
        assert_sees(store, by(), [])


def test_delete_by_source(store: KnowledgeStore) -> None:
    write(store, *WORLD, make_item("i", confidentiality=RESTRICTED), vector=VECTOR)
    assert store.delete_by_source(by(), "symbols", "web", ["src/app", "nothing", "src/appl"]) == 1
    assert store.delete_by_source(by(), "symbols", "we") == 0
    assert store.delete_by_source(by(), "symbols", "web", []) == 0
    assert store.delete_by_source(by(), "symbols", "web", [f"absent/{n}" for n in range(12_000)]) == 0
    assert store.delete_by_source(by(), "bug_specs", "web", ["src/apple.py"]) == 0
    assert_sees(store, by(clearance=INTERNAL), "acdefgh")
    assert store.delete_by_source(by(clearance=PUBLIC), "symbols", "web") == 4
    assert_sees(store, by(), "defh")


def test_prune(store: KnowledgeStore) -> None:
    lives = {"a": HOUR, "b": 2 * HOUR, "c": 3 * HOUR, "d": None}
    write(store, *(make_item(id, ttl=ttl) for id, ttl in lives.items()), vector=VECTOR)
    write(store, make_item("s", ttl=HOUR, confidentiality=RESTRICTED), vector=VECTOR)
    assert store.prune(by(), NOW) == []
    assert sorted(store.prune(by(clearance=PUBLIC), NOW + HOUR * 2.5)) == ["a", "b", "s"]
    assert store.prune(by(), NOW + HOUR * 2.5) == []
    assert_sees(store, by(), "cd")
    assert store.prune(by(), NOW + 100_000 * HOUR) == ["c"]


def test_drop_tenant_leaves_nothing_and_may_be_written_again(store: KnowledgeStore) -> None:
    write(store, *WORLD, make_item("dead", expired=True), vector=VECTOR)
    store.drop_tenant(by())
    store.drop_tenant(by())
    assert_sees(store, by(), [])
    assert store.prune(by(), NOW + 1000 * HOUR) == []
    assert write(store, WORLD[0], vector=unit(1, 0)) == Written(1, 0)  # of another length, too
    assert find(store, "common") == ["a"]
    assert [hit.item.id for hit in store.search(by(), Query(vector=unit(1, 0), mode=Mode.VECTOR))] == ["a"]


def test_compacting_changes_nothing_that_is_there(store: KnowledgeStore) -> None:
    write(store, *WORLD, make_item("x", tenant="other"), vector=VECTOR)
    store.delete(by(), ["b"])
    kept = [item.id for item in store.scan(by(), Filter()).items]
    before = {item.id: item for item in store.scan(by(), Filter()).items}
    assert isinstance(store.compact(by()), str)
    store.compact(by("nobody"))
    assert_sees(store, by(), kept)
    assert_sees(store, by("other"), ["x"])
    assert {item.id: item for item in store.scan(by(), Filter()).items} == before
    found = store.search(by(), Query(vector=VECTOR, mode=Mode.VECTOR, limit=50))
    assert {hit.item.id for hit in found} == set(kept)
    assert write(store, WORLD[0]) == Written(0, 1)


# --- lineage ----------------------------------------------------------------------------------------------------


def lineage_record(notes: str = "", at: datetime = NOW) -> LineageRecord:
    return LineageRecord(timestamp=at, actor=Actor.HUMAN, action=LineageAction.APPROVED, notes=notes)


def test_lineage_is_appended_once_and_in_order(store: KnowledgeStore) -> None:
    item = make_item(lineage=(lineage_record("first"),), ttl=HOUR)
    write(store, item, make_item("other"), vector=VECTOR)
    precise = lineage_record("precise", utcnow() + timedelta(microseconds=789))
    for record in (lineage_record("first"), lineage_record("second"), precise, precise, lineage_record("second")):
        store.append_lineage(by(), "item", record)
    (found,) = store.get(by(), ["item"])
    assert [record.notes for record in found.metadata.lineage] == ["first", "second", "precise"]
    assert found.metadata.model_copy(update={"lineage": ()}) == item.metadata.model_copy(update={"lineage": ()})
    assert found.payload == item.payload
    assert store.get(by(), ["other"]) == [make_item("other")]
    assert write(store, item, vector=VECTOR) == Written(0, 1)
    assert_sees(store, by(), ["item", "other"])


def test_lineage_of_what_may_not_be_read_is_not_found(store: KnowledgeStore) -> None:
    write(store, make_item("secret", confidentiality=RESTRICTED), make_item("dead", expired=True))
    write(store, make_item("foreign", tenant="other"))
    for id in ("secret", "dead", "foreign", "nothing"):
        with pytest.raises(NotFound, match=id):
            store.append_lineage(by(clearance=INTERNAL), id, lineage_record())
    assert scan(store, by()) == [make_item("secret", confidentiality=RESTRICTED)]


def test_lineage_from_several_threads_is_all_kept(store: KnowledgeStore) -> None:
    write(store, make_item())

    def append(name: str) -> None:
        for n in range(5):
            store.append_lineage(by(), "item", lineage_record(f"{name}{n}"))

    in_threads(append, "abc")
    (item,) = store.get(by(), ["item"])
    assert sorted(record.notes for record in item.metadata.lineage) == [f"{t}{n}" for t in "abc" for n in range(5)]


# --- several at once --------------------------------------------------------------------------------------------


def in_threads(target: Callable[[str], object], names: Sequence[str]) -> None:
    """Run it once for each name at the same time; what one raises is raised here."""
    errors: list[BaseException] = []

    def run(name: str) -> None:
        try:
            target(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_readers_see_whole_items_during_a_write(store: KnowledgeStore) -> None:
    write(store, *(make_item(f"{n:03}", text="common old", tags=("old",)) for n in range(60)), vector=VECTOR)
    done = threading.Event()

    def work(name: str) -> None:
        if name == "writer":
            try:
                for start in range(0, 60, 20):
                    new = (make_item(f"{n:03}", text="common new", tags=("new",)) for n in range(start, start + 20))
                    write(store, *new, make_item(f"x{start}"), vector=VECTOR)
            finally:
                done.set()
        while not done.is_set():
            for item in scan(store, by(), Filter(tags_any=("old", "new"))):
                assert item.payload.text == f"common {item.metadata.tags[0]}"
            hits = store.search(by(), Query("common", VECTOR, limit=70))
            assert all(hit.item.payload.text.startswith("common") for hit in hits)

    in_threads(work, ["writer", "reader-1", "reader-2"])
    assert store.count(by(), Filter(tags_any=("new",))) == 60
    assert store.count(by(), EVERYTHING) == 63


def test_several_threads_write_several_tenants(store: KnowledgeStore) -> None:
    def work(tenant: str) -> None:
        write(store, *(make_item(f"{n:02}", tenant=tenant) for n in range(40)), vector=VECTOR)

    in_threads(work, ["acme", "acme", "other"])
    for tenant in ("acme", "other"):
        assert_sees(store, by(tenant), [f"{n:02}" for n in range(40)])


# --- the law: what is read is what Access and Filter say ----------------------------------------------------------


def matches(filter: Filter, item: KnowledgeItem) -> bool:
    """The meaning of a filter, in plain Python."""
    source, tags, path = item.source, set(item.metadata.tags), item.source.path
    prefix = filter.path_prefix.rstrip("/")
    relations = {r.target for r in item.relations if not filter.relation_types or r.type in filter.relation_types}
    return all(
        (
            not filter.ids or item.id in filter.ids,
            not filter.domains or item.domain in filter.domains,
            not filter.kinds or item.kind in filter.kinds,
            not filter.repositories or source.repository in filter.repositories,
            not filter.languages or source.language in filter.languages,
            not filter.source_types or source.type in filter.source_types,
            not filter.paths or path in filter.paths,
            not prefix or path == prefix or path.startswith(prefix + "/"),
            not filter.tags_any or bool(tags & set(filter.tags_any)),
            tags >= set(filter.tags_all),
            not filter.symbols or bool(set(item.symbols) & set(filter.symbols)),
            not filter.targets or bool(relations & set(filter.targets)),
            filter.updated_from is None or item.metadata.updated_at >= filter.updated_from,
            filter.updated_to is None or item.metadata.updated_at < filter.updated_to,
        )
    )


numbers = itertools.count()


@st.composite
def worlds(draw: st.DrawFn) -> list[Record]:
    """Items of two tenants, some with the same ids, all with vectors of one length."""
    number = next(numbers)  # tenants of its own, since the store is the same for all examples
    tenants = st.sampled_from((f"acme{number}", f"other{number}"))
    drawn = draw(st.lists(items(tenants, st.sampled_from(IDS)), min_size=1, max_size=14))
    unique = {(item.tenant, item.id): item for item in drawn}
    return [Record(item, draw(vectors())) for item in unique.values()]


def assert_lawful(store: KnowledgeStore, access: Access, world: list[Record], filter: Filter, vector: Vector) -> None:
    now = utcnow()
    readable = [record.item for record in world if access.may_read(record.item, now)]
    expected = sorted((item for item in readable if matches(filter, item)), key=lambda item: item.id)
    assert scan(store, access, filter, limit=3) == expected
    assert store.count(access, filter) == len(expected)
    checksums = [(item.id, item.metadata.checksum) for item in expected]
    assert sorted(store.checksums(access, filter)) == sorted(checksums)
    order = [id for id in reversed(IDS) if id in {item.id for item in readable}]
    assert [item.id for item in store.get(access, IDS[::-1])] == order
    for mode in MODES:
        hits = store.search(access, Query("common", vector, mode, 50, filter))
        assert sorted((hit.item for hit in hits), key=lambda item: item.id) == expected
        assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.item.id))
        few = store.search(access, Query("common", vector, mode, 2, filter))
        assert _ids(few) == _ids(hits[:2])


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


def test_every_reader_sees_what_access_and_filter_say(store: KnowledgeStore) -> None:
    @settings(
        max_examples=EXAMPLES[store.name],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(worlds(), st.lists(filters(), min_size=1, max_size=2), vectors())
    def check(world: list[Record], drawn: list[Filter], vector: Vector) -> None:
        tenants = sorted({record.item.tenant for record in world})
        for tenant in tenants:
            store.upsert(by(tenant), [record for record in world if record.item.tenant == tenant])
        for tenant, clearance in itertools.product(tenants, Confidentiality):
            for filter in (EVERYTHING, *drawn):
                assert_lawful(store, by(tenant, clearance), world, filter, vector)

    check()


def test_any_change_leads_to_the_same_store_as_writing_it_new(store: KnowledgeStore) -> None:
    """Upserts and deletes in any order leave what a dictionary would hold."""
    steps = st.lists(
        st.tuples(st.booleans(), items(st.just("acme"), st.sampled_from(IDS[:4])), vectors()), min_size=1, max_size=12
    )

    @settings(max_examples=EXAMPLES[store.name], suppress_health_check=[HealthCheck.too_slow])
    @given(steps)
    def check(drawn: list[tuple[bool, KnowledgeItem, Vector]]) -> None:
        tenant = f"model{next(numbers)}"
        kept: dict[str, Record] = {}
        for keep, made, vector in drawn:
            item = made.model_copy(update={"tenant": tenant})
            if keep:
                old = kept.get(item.id)
                same = old is not None and (
                    old.item.metadata.checksum == item.metadata.checksum and old.item.expires_at == item.expires_at
                )
                kept[item.id] = old if same and old is not None else Record(item, vector)
                store.upsert(by(tenant), [Record(item, vector)])
            else:
                kept.pop(item.id, None)
                store.delete(by(tenant), [item.id])
        assert_lawful(store, by(tenant), list(kept.values()), EVERYTHING, unit(*range(1, DIMENSIONS + 1)))

    check()


# --- backups and restores ----------------------------------------------------------------------------------------


def test_vectors_come_back_by_version_to_those_who_may_read_the_item(store: KnowledgeStore) -> None:
    hidden = make_item("b", confidentiality=RESTRICTED)
    store.upsert(by(), [Record(make_item("a"), unit(1, 2, 3, 4)), Record(hidden), Record(make_item("c"))])
    assert store.put_vectors(by(), {"b": unit(4, 3, 2, 1)}, "model-1") == {"b"}
    kept = store.vectors(by(), ["c", "a", "b", "nowhere"], "")
    assert set(kept) == {"a"}
    assert np.allclose(kept["a"], unit(1, 2, 3, 4), atol=1e-6)
    assert set(store.vectors(by(), ["a", "b"], "model-1")) == {"b"}
    assert store.vectors(by(clearance=PUBLIC), ["a", "b"], "model-1") == {}
    assert store.vectors(by(), ["a", "b"], "model-2") == {}
    assert store.vectors(by("stranger"), ["a"], "") == {}
    assert store.vectors(by(), [], "") == {}


def test_a_vector_that_is_written_again_stays_as_it_is(store: KnowledgeStore) -> None:
    random = np.random.default_rng(1)
    given = {f"item-{number}": unit(*random.normal(size=DIMENSIONS)) for number in range(20)}
    store.upsert(by(), [Record(make_item(id), vectors={"model-1": vector}) for id, vector in given.items()])
    first = store.vectors(by(), list(given), "model-1")
    store.put_vectors(by(), first, "model-1")
    again = store.vectors(by(), list(given), "model-1")
    assert first.keys() == again.keys() == given.keys()
    assert all(np.array_equal(first[id], again[id]) for id in given)


def test_an_item_is_written_with_vectors_of_a_version(store: KnowledgeStore) -> None:
    store.upsert(by(), [Record(make_item("near"), vectors={"model-1": unit(1, 0, 0, 0)}), Record(make_item("none"))])
    query = Query(vector=unit(1, 0, 0, 0), mode=Mode.VECTOR, version="model-1")
    assert [hit.item.id for hit in store.search(by(), query)] == ["near"]
    with pytest.raises(StoreRejected):
        short = Record(make_item("short"), vectors={"model-1": unit(1, 0)})
        store.upsert(by(), [Record(make_item("long"), vectors={"model-1": unit(1, 0, 0, 0)}), short])


def test_what_stands_beside_is_seen_by_nobody_until_it_takes_over(store: KnowledgeStore) -> None:
    write(store, make_item("old"), make_item("theirs", tenant="globex"), vector=VECTOR)
    beside = store.beside("restore1")
    assert beside.identity != store.identity
    beside.upsert(by(), [Record(make_item("new"), vectors={"model-1": VECTOR}), Record(make_item("old", text="other"))])
    assert store.count(by(), EVERYTHING) == 1
    assert find(store, "other") == []
    for _ in range(2):  # the second time finds nothing beside: it was taken over already
        store.take_over(by(), "restore1")
        assert [item.id for item in scan(store, by())] == ["new", "old"]
        assert find(store, "other") == ["old"]
        assert set(store.vectors(by(), ["new", "old"], "model-1")) == {"new"}
    assert [item.id for item in scan(store, by("globex"))] == ["theirs"]
    assert beside.count(by(), EVERYTHING) == 0 or store.name == "weaviate"
    store.beside("restore2").upsert(by(), [Record(make_item("newer"))])
    store.take_over(by(), "restore2")
    assert [item.id for item in scan(store, by())] == ["newer"]
    store.drop_tenant(by())
    assert store.count(by(), EVERYTHING) == 0
    write(store, make_item("again"))
    assert [item.id for item in scan(store, by())] == ["again"]


def test_what_stands_beside_can_be_discarded(store: KnowledgeStore) -> None:
    write(store, make_item("old"))
    store.discard(by(), "restore1")
    store.beside("restore1").upsert(by(), [Record(make_item("new"))])
    store.discard(by(), "restore1")
    store.take_over(by(), "restore1")
    assert [item.id for item in scan(store, by())] == ["old"]
    assert store.beside("restore1").count(by(), EVERYTHING) == 0


def test_readers_and_writers_that_were_there_before_follow_a_take_over(
    store: KnowledgeStore, request: pytest.FixtureRequest
) -> None:
    write(store, make_item("old"), vector=VECTOR)
    with BUILDERS[store.name](request).model_copy() as other:
        assert find(other, "common") == ["old"]
        store.beside("restore1").upsert(by(), [Record(make_item("new"), VECTOR)])
        store.take_over(by(), "restore1")
        assert find(other, "common") == ["new"]
        assert [item.id for item in scan(other, by())] == ["new"]
        store.beside("restore2").upsert(by(), [Record(make_item("newer"))])
        store.take_over(by(), "restore2")
        other.upsert(by(), [Record(make_item("added"))])
        assert other.delete(by(), ["newer"]) == 1
        assert [item.id for item in scan(store, by())] == ["added"]
