"""Search over the statistics: what it finds is what holds the words and may be read, whatever the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_repository
from test_corpus import ALL, item, items_of, segment, texts

from context_os import search, settings
from context_os.app import App, open_app
from context_os.connectors import Repository
from context_os.corpus import Corpus, open_corpus
from context_os.ingestion import Ingestion
from context_os.model import Access, Confidentiality, KnowledgeItem
from context_os.segments import Segment
from context_os.stores import Filter, Mode, Query, Record
from context_os.text import words
from context_os.vectors import VectorTable


def corpus(items: Sequence[KnowledgeItem], clearance: Confidentiality = Confidentiality.RESTRICTED) -> Corpus:
    return Corpus([("shop", segment(items))], clearance)


def found(of: Corpus, text: str, **filter: object) -> list[str]:
    query = Query(text, mode=Mode.KEYWORD, limit=100, filter=Filter(**filter))  # type: ignore[arg-type]
    assert search.answers(of, query)
    return [id for id, _ in search.search(of, query)]


def holding(items: Sequence[KnowledgeItem], word: str) -> set[str]:
    return {
        each.id
        for each in items
        if word in words(" ".join((each.payload.text, each.metadata.title, each.source.path, *each.symbols)))
    }


@given(items_of, st.sampled_from(["session", "timeout", "py", "src", "nowhere"]))
def test_one_word_finds_what_holds_it_in_text_name_or_path(items: list[KnowledgeItem], word: str) -> None:
    assert set(found(corpus(items), word)) == holding(items, word)


@given(items_of, texts, st.integers(1, 5))
def test_fewer_are_the_first_of_many_and_scores_fall(items: list[KnowledgeItem], text: str, limit: int) -> None:
    of = corpus(items)
    query = Query(text, mode=Mode.KEYWORD, limit=100)
    every = search.search(of, query)
    assert search.search(of, replace(query, limit=limit)) == every[:limit]
    assert every == sorted(every, key=lambda pair: (-pair[1], pair[0]))
    assert all(score > 0 for _, score in every)


def test_a_name_counts_more_than_a_mention() -> None:
    items = [
        item(0, "retry retry of another"),
        item(1, "a body", name="Pool.retry"),
        *(item(n, "x") for n in (2, 3, 4)),
    ]
    assert found(corpus(items), "retry") == [items[1].id, items[0].id]


def test_words_that_nearly_everything_holds_do_not_decide() -> None:
    items = [item(n, "close session" if n else "session timeout") for n in range(9)]
    assert found(corpus(items), "session timeout") == [items[0].id]
    assert len(found(corpus(items), "session")) == 9


def test_a_filter_narrows_as_the_stores_do() -> None:
    items = [item(0, "session", "src/a.py"), item(1, "session", "src/sub/b.py"), item(2, "session", "srcs/c.py")]
    items.append(item(3, "session", ""))
    of = corpus(items)
    assert set(found(of, "session")) == {each.id for each in items}
    assert set(found(of, "session", path_prefix="src/")) == {items[0].id, items[1].id}
    assert found(of, "session", paths=("srcs/c.py",)) == [items[2].id]
    assert found(of, "session", kinds=("class",)) == []
    assert len(found(of, "session", kinds=("function",))) == 4


@pytest.mark.parametrize("filter", [{"languages": ("python",)}, {"tags_any": ("test",)}, {"ids": ("x",)}])
def test_what_the_statistics_do_not_know_is_left_to_the_store(filter: dict[str, tuple[str, ...]]) -> None:
    query = Query("session", mode=Mode.KEYWORD, filter=Filter(**filter))  # type: ignore[arg-type]
    assert not search.answers(corpus([item(0, "session")]), query)


def test_nothing_above_the_clearance_is_found_or_counted() -> None:
    items = [item(0, "session"), item(1, "session session", clearance=Confidentiality.RESTRICTED)]
    assert found(corpus(items, Confidentiality.INTERNAL), "session") == [items[0].id]


def test_vectors_and_words_together() -> None:
    items = [item(0, "timeout"), item(1, "retry"), item(2, "close")]
    given = {each.id: np.eye(3, dtype=np.float32)[number] for number, each in enumerate(items)}
    table = VectorTable.empty().updated(given, set(given))
    of = Corpus([("shop", segment(items))], Confidentiality.RESTRICTED, {0: table})
    query = Query("timeout", np.array([0.0, 1.0, 0.0], dtype=np.float32), Mode.VECTOR, 1)
    assert [id for id, _ in search.search(of, query)] == [items[1].id]
    hybrid = search.search(of, replace(query, mode=Mode.HYBRID, limit=3, alpha=0.4))
    assert [id for id, _ in hybrid[:2]] == [items[0].id, items[1].id]
    assert not search.answers(corpus(items), query)  # without vectors


def test_a_corpus_is_kept_for_each_clearance_and_not_for_another_segment() -> None:
    held = segment([item(0, "session", clearance=Confidentiality.RESTRICTED)])
    low = Access(tenant="t", principal="low", clearance=Confidentiality.PUBLIC)
    first = open_corpus([("shop", held)], ALL)
    assert open_corpus([("shop", held)], ALL) is first
    assert open_corpus([("shop", held)], low).visible.sum() == 0
    assert open_corpus([("shop", Segment.empty())], ALL).size == 0


# The whole way


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("home")
    chosen = settings.load({"home": str(home)}, start=home)
    location = make_repository(tmp_path_factory.mktemp("search") / "shop")
    with open_app(chosen, Confidentiality.INTERNAL) as found:
        ingestion = Ingestion(chosen, found.store, found.ledger)
        for connector in ("symbols", "documents"):
            ingestion.update(connector, Repository("shop", location, chosen.tenant))
        yield found


def ids(app: App, text: str, **filter: object) -> set[str]:
    return {hit.item.id for hit in app.search(text, Mode.KEYWORD, 100, Filter(**filter))}  # type: ignore[arg-type]


def by_store(app: App, text: str, **filter: object) -> set[str]:
    query = Query(text, mode=Mode.KEYWORD, limit=100, filter=Filter(**filter))  # type: ignore[arg-type]
    return {hit.item.id for hit in app.store.search(app.access, query)}


@pytest.mark.parametrize(
    "filter", [{}, {"source_types": ("symbols",)}, {"kinds": ("method",)}, {"path_prefix": "shop"}]
)
def test_both_ways_find_the_same(app: App, filter: dict[str, object]) -> None:
    for word in ("session", "release", "pool", "retry"):
        assert ids(app, word, **filter) == by_store(app, word, **filter)


def test_what_others_put_into_the_store_is_found_too(app: App) -> None:
    stranger = item(7, "a flamingo in the session pool")
    stranger = stranger.model_copy(update={"tenant": app.access.tenant})
    assert stranger.id not in ids(app, "flamingo")
    app.store.upsert(app.access, [Record(stranger)])
    assert ids(app, "flamingo") == {stranger.id}
    assert stranger.id in ids(app, "session")
    app.store.delete(app.access, [stranger.id])
    assert ids(app, "flamingo") == set()
