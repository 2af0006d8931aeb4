"""The statistics that ingestion keeps: the same whether built at once or step by step, and blind to what is hidden."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_os.corpus import K1, B, Corpus
from context_os.model import (
    Access,
    Confidentiality,
    KnowledgeItem,
    Metadata,
    Payload,
    Relation,
    Source,
    item_id,
    utcnow,
)
from context_os.segments import Additions, Segment, open_segment
from context_os.text import words

_WORDS = ("session", "close", "pool", "getConnection", "timeout", "retry", "HTTPError", "x")
ALL = Access(tenant="t", principal="test", clearance=Confidentiality.RESTRICTED)


def item(
    number: int,
    text: str,
    path: str = "a.py",
    clearance: Confidentiality = Confidentiality.PUBLIC,
    ttl: timedelta | None = None,
    name: str = "",
    touches: Sequence[str] = (),
) -> KnowledgeItem:
    now = utcnow()
    return KnowledgeItem(
        id=item_id("t", "test", str(number)),
        tenant="t",
        domain="code",
        kind="function",
        source=Source(type="symbols", location="", repository="shop", path=path, start_line=number + 1, end_line=9999),
        payload=Payload(text=text),
        metadata=Metadata(
            title=name or "thing", confidentiality=clearance, ttl=ttl, created_at=now, updated_at=now, checksum="c"
        ),
        relations=tuple(Relation(type="touches", target=f"path:{path}") for path in touches),
        symbols=tuple(dict.fromkeys((name.rpartition(".")[2], name))) if name else (),
    )


def segment(items: Sequence[KnowledgeItem], old: Segment | None = None) -> Segment:
    additions = Additions()
    additions.extend(items)
    return (old or Segment.empty()).with_(additions)


def corpus(items: Sequence[KnowledgeItem], access: Access = ALL) -> Corpus:
    return Corpus([("shop", segment(items))], access.clearance)


_PHRASED = ("pool", "session", "close", "pool", "session")

texts = st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join)
items_of = st.lists(st.tuples(texts, st.sampled_from(["a.py", "src/b.py", "c/d.go", ""])), max_size=12).map(
    lambda pairs: [item(number, text, path) for number, (text, path) in enumerate(pairs)]
)


def scores(of: Corpus) -> dict[str, tuple[float, ...]]:
    terms = {"session": 1.0, "http": 1.0, "pool": 2.0}
    columns = [of.bm25(terms, by_file=False), of.cosine({"session": 2.0, "close": 1.0}), of.doc_length]
    columns.append(of.phrases(_PHRASED, np.flatnonzero(of.has_text))[1])
    return {of.id_of(doc): tuple(round(float(c[doc]), 9) for c in columns) for doc in range(of.size)}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(items_of, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_step_by_step_gives_what_one_step_gives(
    items: list[KnowledgeItem], first: set[int], replaced: set[int]
) -> None:
    start = [each for number, each in enumerate(items) if number in first]
    old = [each.model_copy(update={"payload": Payload(text="something else")}) for each in start]
    stepwise = segment(old).without(each.id for each in start)
    stepwise = segment([each for n, each in enumerate(items) if n not in replaced], stepwise)
    stepwise = segment([each for n, each in enumerate(items) if n in replaced], stepwise)
    assert scores(Corpus([("shop", stepwise)], ALL.clearance)) == scores(corpus(items))


@pytest.mark.parametrize("torn", ["empty", "cut", "zeros"])
def test_a_torn_file_is_no_segment(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "1-1.npz"
    segment([item(number, "close the session of the pool", "a.py") for number in range(500)]).save(file)
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes({"empty": b"", "cut": whole[:half], "zeros": whole[:half] + bytes(64) + whole[half + 64 :]}[torn])
    assert Segment.load(file) is None
    file.write_bytes(whole)
    assert Segment.load(file) is not None


@given(items_of)
def test_bm25_is_what_its_definition_says(items: list[KnowledgeItem]) -> None:
    found = corpus(items)
    bags = [Counter(words(f"{each.payload.text} {each.metadata.title}")) for each in items]
    mean = sum(bag.total() for bag in bags) / max(len(bags), 1) or 1.0
    for number, bag in enumerate(bags):
        expected = 0.0
        for term in ("session", "pool"):
            frequency = sum(term in other for other in bags)
            if bag[term]:
                idf = math.log(1 + (len(bags) - frequency + 0.5) / (frequency + 0.5))
                expected += idf * bag[term] * (K1 + 1) / (bag[term] + K1 * (1 - B + B * bag.total() / max(mean, 1.0)))
        assert found.bm25({"session": 1.0, "pool": 1.0}, by_file=False)[number] == pytest.approx(expected)


@given(items_of, items_of, texts)
def test_phrases_are_the_pairs_of_words_that_a_text_and_a_file_share(
    items: list[KnowledgeItem], more: list[KnowledgeItem], text: str
) -> None:
    more = [item(50 + n, each.payload.text, each.source.path) for n, each in enumerate(more)]
    found = Corpus([("shop", segment(items)), ("mill", segment(more))], ALL.clearance)
    asked = words(text)
    files = np.flatnonzero(found.has_text)
    by_file, by_document = found.phrases(asked, files)
    shared = [
        {*pairwise((*words(each.metadata.title), *words(each.payload.text)))} & {*pairwise(asked)}
        for each in (*items, *more)
    ]
    of_file = {
        number: {pair for doc, pairs in enumerate(shared) if found.file_of[doc] == number for pair in pairs}
        for number in files.tolist()
    }
    holders = Counter(pair for pairs in of_file.values() for pair in pairs)

    def expected(pairs: set[tuple[str, str]]) -> float:
        return math.sqrt(sum(math.log(len(files) / holders[pair]) ** 2 for pair in pairs))

    assert by_file[files] == pytest.approx([expected(of_file[number]) for number in files.tolist()])
    inside = [expected(pairs) if found.file_of[doc] >= 0 else 0.0 for doc, pairs in enumerate(shared)]
    assert by_document == pytest.approx(inside)
    assert not found.phrases(asked, files[:0])[0].any()


@given(items_of, st.lists(texts, min_size=1, max_size=4))
def test_what_a_caller_may_not_read_moves_no_score(items: list[KnowledgeItem], hidden: list[str]) -> None:
    public = Access(tenant="t", principal="test", clearance=Confidentiality.PUBLIC)
    secret = [item(100 + n, text, "a.py", Confidentiality.RESTRICTED) for n, text in enumerate(hidden)]
    expired = [item(200 + n, text, "a.py", ttl=timedelta(seconds=-1)) for n, text in enumerate(hidden)]
    seen, alone = corpus([*items, *secret, *expired], public), corpus(items, public)
    ids = [each.id for each in items]
    mine, theirs = scores(seen), scores(alone)
    assert [(mine[id][0], mine[id][3]) for id in ids] == [(theirs[id][0], theirs[id][3]) for id in ids]
    files = dict(zip(seen.files, seen.bm25({"session": 1.0}, by_file=True), strict=True))
    for file, score in zip(alone.files, alone.bm25({"session": 1.0}, by_file=True), strict=True):
        assert files[file] == pytest.approx(score)
    assert not seen.visible[seen.documents_of([each.id for each in (*secret, *expired)])].any()


def test_a_file_is_what_its_documents_hold_together() -> None:
    found = corpus([item(0, "pool pool", "a.py"), item(1, "pool session", "a.py"), item(2, "retry", "b.py")])
    files, counts = found.in_files("pool")
    assert [found.files[file][1] for file in files] == ["a.py"]
    assert counts.tolist() == [3.0]
    assert found.bm25({"pool": 1.0}, by_file=True)[files[0]] > 0


def test_names_are_found_by_hash_and_covered_by_their_parts() -> None:
    found = corpus([item(0, "x", name="closeSession"), item(1, "y", name="closeAllPoolSessions")])
    assert found.defining("closeSession").tolist() == [0]
    assert found.defining("nobody").tolist() == []
    whole, part = found.name_coverage({"close": 2.0, "session": 2.0}, 0.5)
    assert whole > part > 0


def test_changes_speak_for_the_files_that_they_touched() -> None:
    found = corpus([item(0, "retry timeout", "", touches=["a.py"]), item(1, "pool", "a.py"), item(2, "pool", "b.py")])
    given_to = found.touched_by(found.bm25({"retry": 1.0}, by_file=False), 5)
    assert {found.files[n][1]: score > 0 for n, score in enumerate(given_to)} == {"a.py": True, "b.py": False}


def test_the_change_that_says_most_speaks_for_a_file_and_the_less_the_more_it_touched() -> None:
    wide = [f"wide/{number}.py" for number in range(4)]
    told = [("retry timeout", ["a.py"]), ("retry timeout", wide), *[("retry", ["b.py"]), ("timeout", ["c.py"])] * 4]
    found = corpus([item(number, text, "", touches=paths) for number, (text, paths) in enumerate(told)])
    given_to = found.touched_by(found.bm25({"retry": 1.0, "timeout": 1.0}, by_file=False), 20)
    score = {path: value for (_, path), value in zip(found.files, given_to, strict=True)}
    assert score["a.py"] > score["b.py"] == score["c.py"] > 0
    assert score["wide/0.py"] == pytest.approx(score["a.py"] / 2)


_NAMED = ("shop.Pool", "shop.close", "pool.close", "retry")


@st.composite
def linked_items(draw: st.DrawFn) -> list[KnowledgeItem]:
    """Items that define names and refer to names, each reference with its confidence."""
    links = st.lists(st.tuples(st.sampled_from(_NAMED), st.sampled_from([0.25, 0.5, 1.0])), max_size=3)
    made = draw(st.lists(st.tuples(st.sampled_from(["", *_NAMED]), links, st.booleans()), max_size=8))
    return [
        item(
            number, "x", name=name, clearance=Confidentiality.RESTRICTED if hidden else Confidentiality.PUBLIC
        ).model_copy(
            update={
                "relations": tuple(
                    Relation(type="calls", target=f"symbol:{target}", confidence=sure) for target, sure in targets
                )
            }
        )
        for number, (name, targets, hidden) in enumerate(made)
    ]


@given(linked_items(), st.data())
def test_references_are_followed_both_ways_by_name(items: list[KnowledgeItem], data: st.DataObject) -> None:
    half = data.draw(st.integers(0, len(items)))
    chosen = data.draw(st.sets(st.integers(0, max(len(items) - 1, 0)), max_size=len(items)))
    found = Corpus([("shop", segment(items[:half])), ("shop", segment(items[half:]))], Confidentiality.INTERNAL)
    seen = [each.metadata.confidentiality is Confidentiality.PUBLIC for each in items]

    def surely(one: int, other: int) -> float:
        """How surely the one refers to the other."""
        links = {each.target.removeprefix("symbol:"): 0.0 for each in items[one].relations}
        for each in items[one].relations:
            name = each.target.removeprefix("symbol:")
            links[name] = max(links[name], each.confidence)
        defined = {
            name: sum(name in its.symbols and shown for its, shown in zip(items, seen, strict=True)) for name in links
        }
        shares = [
            sure / math.sqrt(max(defined[name], 1)) for name, sure in links.items() if name in items[other].symbols
        ]
        return max(shares, default=0.0)

    documents = np.array(sorted(chosen & set(range(len(items)))), dtype=np.int64)
    to, of = found.linking_to(documents), found.linked_from(documents)
    for number in range(len(items)):
        if seen[number]:
            assert to[number] == pytest.approx(max((surely(number, other) for other in documents), default=0))
            assert of[number] == pytest.approx(max((surely(other, number) for other in documents), default=0))
        else:
            assert to[number] == of[number] == 0


@given(items_of, st.lists(st.sampled_from(["a.py", "src/b.py", "gone/a.py", "b.md"]), max_size=4))
def test_the_words_of_paths_weigh_the_same_whatever_history_touched(
    items: list[KnowledgeItem], gone: list[str]
) -> None:
    history = segment([item(99 - number, "a", "", touches=[path]) for number, path in enumerate(gone)])
    alone, beside = corpus(items), Corpus([("shop", segment(items)), ("shop", history)], ALL.clearance)
    asked = {"src": 1.0, "b": 2.0, "py": 1.0}
    assert beside.files[: len(alone.files)] == alone.files
    assert beside.path_bm25(asked)[: len(alone.files)].tolist() == alone.path_bm25(asked).tolist()
    assert not beside.path_bm25(asked)[len(alone.files) :].any()


def test_a_file_survives_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "1-1.npz"
    held = segment([item(0, "pool séssion", "päth.py", name="poolName"), item(1, "retry", "")])
    held.save(path)
    again = open_segment(path)
    assert again is not None
    assert (again.terms, again.paths, again.kinds) == (held.terms, held.paths, held.kinds)
    assert scores(Corpus([("shop", again)], ALL.clearance)) == scores(Corpus([("shop", held)], ALL.clearance))
    assert np.array_equal(again.symbol_hash, held.symbol_hash)
    path.write_bytes(path.read_bytes()[:-200])
    assert open_segment(path) is None
    assert open_segment(tmp_path / "nowhere.npz") is None


def test_a_file_of_an_earlier_version_is_read_without_the_order_of_words(tmp_path: Path) -> None:
    path = tmp_path / "1-1.npz"
    held = segment([item(0, "close the pool"), item(1, "retry", "b.py")])
    held.save(path)
    with np.load(path) as arrays:
        before = {name: arrays[name] for name in arrays if name != "word"} | {"format": np.int64(2)}
    np.savez(path, **before)
    again = Segment.load(path)
    assert again is not None
    assert held.is_complete
    assert not again.is_complete
    old = Corpus([("shop", again)], ALL.clearance)
    assert old.bm25({"pool": 1.0}, by_file=False)[0] > 0
    assert not np.any(old.phrases(("the", "pool"), np.array([0, 1])))


def test_ids_lead_to_documents_across_segments() -> None:
    items = [item(number, "pool") for number in range(5)]
    both = Corpus([("shop", segment(items[:2])), ("mill", segment(items[2:]))], ALL.clearance)
    assert both.documents_of([each.id for each in items]).tolist() == list(range(5))
    assert both.documents_of([item(99, "x").id]).tolist() == [-1]
    assert [both.id_of(number) for number in range(5)] == [each.id for each in items]
    assert both.files == [("shop", "a.py"), ("mill", "a.py")]


def test_a_file_that_mostly_changed_with_these_is_told_from_one_that_changes_with_all() -> None:
    code = [item(number, "x", path) for number, path in enumerate(("pool.py", "count.py", "all.py"))]
    pulls = [item(10 + n, "x", "", touches=("pool.py", "count.py", "all.py")) for n in range(3)]
    pulls += [item(20 + n, "x", "", touches=("all.py",)) for n in range(20)]
    pulls += [item(50, "x", "", touches=("pool.py", *(f"{n}.py" for n in range(40))))]
    known = corpus([*code, *pulls])
    paths = [path for _, path in known.files]
    share = dict(zip(paths, known.changed_mostly_with(np.array([paths.index("pool.py")])), strict=True))
    assert share["count.py"] == pytest.approx(3 / 8)
    assert share["all.py"] == pytest.approx(3 / 28)
    assert share["pool.py"] == share["7.py"] == 0
