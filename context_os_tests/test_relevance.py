"""How a question is read, and which files and documents its features speak for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_corpus import corpus, item

from context_os import question, relevance
from context_os.errors import ConfigurationError
from context_os.model import Relation
from context_os.relevance import Features

TRACE = """Closing twice crashes

```
Traceback (most recent call last):
  File "app/main.py", line 3, in main
    pool.release(session)
  File "/usr/lib/shop/pool.py", line 12, in release
    raise Gone(session)
shop.errors.Gone: closed
```
See `Pool.release` and from shop.sessions import Session, open_all
"""


def test_an_issue_is_read_for_its_title_paths_names_and_frames() -> None:
    asked = question.read(TRACE)
    assert asked.title == "Closing twice crashes"
    assert [(each.path, each.line, each.function, each.depth) for each in asked.frames] == [
        ("/usr/lib/shop/pool.py", 12, "release", 0),
        ("app/main.py", 3, "main", 1),
    ]
    assert "app/main.py" in asked.paths
    assert {"Pool.release", "shop.sessions", "shop.sessions.Session", "shop.sessions.open_all"} <= set(asked.dotted)
    assert {"release", "open_all"} <= set(asked.identifiers)


@pytest.mark.parametrize(
    ("text", "path", "line", "function"),
    [
        ("TypeError\n    at Pool.release (lib/pool.js:10:5)\n    at main (app.js:1:1)", "lib/pool.js", 10, "release"),
        ("panic\n    at src/pool.rs:7", "src/pool.rs", 7, ""),
        ("build fails\npkg/pool.go:31: undefined: x", "pkg/pool.go", 31, ""),
    ],
)
def test_frames_of_other_languages_come_innermost_first(text: str, path: str, line: int, function: str) -> None:
    first = question.read(text).frames[0]
    assert (first.path, first.line, first.function, first.depth) == (path, line, function, 0)


def test_stop_words_do_not_count_unless_there_is_nothing_else() -> None:
    assert set(question.read("how does the pool close").title_words) == {"pool", "close"}
    assert set(question.read("what is this").title_words) == {"what", "is", "this"}


@given(st.text(max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    asked = question.read(text)
    assert isinstance(asked.words.total(), int)
    assert len(asked.paths) <= 200
    assert len(asked.frames) <= 40
    assert len(asked.identifiers) <= 400


def test_hostile_texts_are_read_in_time() -> None:
    for text in (
        "a." * 20_000,
        "/" * 40_000,
        "at " * 13_000,
        'File "' * 6_000,
        "x/" * 20_000,
        "from a import " * 3_000,
    ):
        asked = question.read(text)
        assert asked.paths is not None
        assert asked.frames is not None
        assert asked.dotted is not None


def features() -> Features:
    items = [
        item(0, "def release(session): raise Gone", "shop/pool.py", name="release"),
        item(20, "def other(): pass", "shop/pool.py", name="other"),
        item(0, "def main(): pool", "app/main.py", name="main"),
        item(0, "class Session: pass", "shop/sessions.py", name="shop.sessions.Session"),
        item(0, "nothing of the kind", "README.md"),
    ]
    return Features(corpus(items), question.read(TRACE))


def test_features_speak_for_the_right_files() -> None:
    found = features()
    paths = [path for _, path in found.corpus.files]
    best = {name: paths[int(np.argmax(values))] for name, values in found.files.items() if values.max() > 0}
    assert best["frames"] == "shop/pool.py"
    assert best["path_named"] in {"shop/pool.py", "app/main.py"}
    assert best["definition"] == "shop/pool.py"
    assert best["defines"] == "shop/sessions.py"


def test_a_path_that_only_history_knows_is_none_that_a_question_means() -> None:
    moved = item(9, "move the pool", "", touches=["src/shop/pool.py", "lib/pool.py"])
    known = corpus([item(0, "def release", "src/shop/pool.py"), moved])
    named = Features(known, question.read("see lib/pool.py\n\npool.py crashes")).files["path_named"]
    assert {path: value for (_, path), value in zip(known.files, named, strict=True)} == {
        "src/shop/pool.py": 1.0,
        "lib/pool.py": 0.0,
    }


def test_frames_name_the_function_and_not_its_neighbour() -> None:
    in_frame = features().documents["in_frame"]
    assert in_frame[0] == 1.0
    assert in_frame[1] == 0.0
    assert in_frame[2] == 0.5


def test_the_best_come_first_with_their_reasons_and_what_matches_nothing_is_left_out() -> None:
    found = features()
    model = relevance.model("issue", semantic=False)
    scores = model.documents(found)
    assert int(np.argmax(scores)) == 0
    assert "stack trace" in model.reason(found, document=0)
    assert not np.isfinite(model.documents(Features(found.corpus, question.read("zzz qqq")))).any()


def test_vectors_add_what_words_do_not_say() -> None:
    found = features()
    near = np.full(found.corpus.size, np.nan)
    near[4] = 0.9
    asked = Features(found.corpus, question.read("zzz qqq"), near, near)
    scores = relevance.model("issue", semantic=True).documents(asked)
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [4]


def test_every_weight_belongs_to_a_feature() -> None:
    found = features()
    near = np.linspace(0, 1, found.corpus.size)
    known = Features(found.corpus, found.question, near, near)
    for semantic in (False, True):
        model = relevance.model("issue", semantic=semantic)
        assert set(model.file) <= set(known.files)
        assert set(model.document) <= set(known.documents)
        weights = {**model.file, **model.document}
        assert {name for name, weight in weights.items() if weight < 0} == {"superseded"}


def test_weights_may_come_from_a_file_of_yours(tmp_path: Path) -> None:
    packaged = Path(relevance.__file__).parent / "data" / "weights.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(packaged.read_text(encoding="utf-8"), encoding="utf-8")
    assert relevance.model("issue", semantic=False, file=mine) == relevance.model("issue", semantic=False)


@pytest.mark.parametrize("text", ["", "not toml", "[issue.lexical.file]\nwords = 1\n", "[issue.lexical]\nfile = 3\n"])
def test_a_file_that_holds_no_weights_is_told(tmp_path: Path, text: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"issue\.lexical"):
        relevance.model("issue", semantic=False, file=mine)


@pytest.mark.parametrize("kind", ["issue", "question", "change"])
@pytest.mark.parametrize("semantic", [False, True])
def test_every_kind_of_query_has_weights(kind: str, semantic: bool) -> None:
    assert relevance.model(kind, semantic=semantic).file


def test_a_file_is_called_by_what_is_asked_for() -> None:
    known = corpus([item(0, "x", path="shop/strip.py"), item(1, "strip it", path="shop/pool/__init__.py")])
    asked = Features(known, question.read("stripping of paths")).files["called"]
    assert asked[0] > 0 == asked[1]
    assert Features(known, question.read("a pool")).files["called"][1] > 0


@pytest.mark.parametrize(
    ("paths", "older"),
    [
        (["src/v3/a.ts", "src/v4/a.ts", "src/b.ts"], ["src/v3/a.ts"]),
        (["lib/v1/main.py", "lib/v1/old.py", "lib/v1/types.py", "lib/main.py", "lib/types.py"], ["lib/v1/"]),
        (["api/v1/routes.py", "api/app.py"], []),
        (["v2/main.go", "main.go"], []),
        (["v1/a/v2/x.py", "v1/a/v1/x.py", "v2/y.py"], ["v1/"]),
        (["ev1/a.py", "ev2/a.py", "v1.py", "v2.py"], []),
    ],
)
def test_what_a_later_version_superseded(paths: list[str], older: list[str]) -> None:
    known = corpus([item(number, "the pool", path) for number, path in enumerate(paths)])
    found = Features(known, question.read("the pool")).files["superseded"]
    assert {path for (_, path), old in zip(known.files, found, strict=True) if old} == {
        path for path in paths if path.startswith(tuple(older))
    }


def test_a_version_that_is_asked_for_is_none_that_was_superseded() -> None:
    known = corpus([item(3, "the pool", "v3/a.ts"), item(4, "the pool", "v4/a.ts")])
    scores = {
        text: relevance.model("question", semantic=False).files(Features(known, question.read(text)))
        for text in ("the pool", "the pool of v3")
    }
    assert scores["the pool"][0] < scores["the pool"][1]
    assert scores["the pool of v3"][0] >= scores["the pool of v3"][1]


def test_what_much_else_uses_is_told_from_what_nothing_does() -> None:
    pool = item(0, "x", path="shop/pool.py", name="shop.pool.Pool")
    other = item(1, "x", path="shop/other.py", name="shop.other.Other")
    calls = (Relation(type="calls", target="symbol:shop.pool.Pool"),)
    users = [item(n, "x", path=f"shop/{n}.py").model_copy(update={"relations": calls}) for n in range(2, 5)]
    used = Features(corpus([pool, other, *users]), question.read("x")).files["used"]
    assert used[0] == pytest.approx(np.log1p(3))
    assert used[1:].tolist() == [0] * 4


def test_what_tests_use_that_read_like_the_question_is_told_from_what_others_use() -> None:
    calls = {name: (Relation(type="calls", target=f"symbol:{name}"),) for name in ("drain", "fill")}
    items = [
        item(0, "def drain", "shop/pool.py", name="drain"),
        item(1, "def fill", "shop/tank.py", name="fill"),
        item(2, "closing twice crashes", "tests/test_a.py").model_copy(update={"relations": calls["drain"]}),
        item(3, "closing twice crashes", "shop/b.py").model_copy(update={"relations": calls["fill"]}),
        item(4, "nothing", "tests/test_c.py").model_copy(update={"relations": calls["fill"]}),
    ]
    found = Features(corpus(items), question.read("It crashes when closing twice"))
    assert found.documents["tested"].tolist() == [1, 0, 0, 0, 0]
    assert found.files["tested"].tolist() == [1, 0, 0, 0, 0]


def test_what_the_best_uses_moves_up_to_the_last_of_them_and_no_further() -> None:
    """40 functions read ever less like the question; the best calls `cause`, and `user` calls the second best."""
    functions = [item(number, "word", name=f"f{number}", path=f"m{number}.py") for number in range(40)]
    functions[0] = functions[0].model_copy(update={"relations": (Relation(type="calls", target="symbol:cause"),)})
    cause, unlinked = item(50, "other", name="cause", path="c.py"), item(51, "other", name="loner", path="d.py")
    user = item(52, "other", name="user", path="e.py").model_copy(
        update={"relations": (Relation(type="calls", target="symbol:f1"),)}
    )
    held = corpus([*functions, cause, unlinked, user])
    scores = np.full(held.size, -np.inf)
    places = held.documents_of([each.id for each in functions])
    scores[places] = np.linspace(10, 2, 40)
    after = relevance.lifted(held, scores)
    best = places[:30]
    assert np.array_equal(after[best], scores[best])
    linked = held.documents_of([cause.id, user.id])
    assert (after[linked] > 2).all()
    assert (after[linked] <= scores[best[-1]]).all()
    assert not np.isfinite(after[held.documents_of([unlinked.id])]).any()
    few = np.where(np.arange(held.size) < 5, scores, -np.inf)
    assert np.array_equal(relevance.lifted(held, few), few)


@given(st.integers(0, 2**32 - 1))
def test_lifting_never_lowers_and_never_reorders_the_best(seed: int) -> None:
    draw = np.random.default_rng(seed)
    functions = [
        item(number, "word", name=f"f{number}").model_copy(
            update={"relations": (Relation(type="calls", target=f"symbol:f{draw.integers(60)}"),)}
        )
        for number in range(60)
    ]
    held = corpus(functions)
    scores = np.where(draw.random(held.size) < 0.8, draw.normal(size=held.size), -np.inf)
    after = relevance.lifted(held, scores)
    assert (after >= scores).all()
    best = np.argsort(-scores, kind="stable")[:30]
    assert np.array_equal(np.argsort(-after, kind="stable")[:29], best[:29])


def test_a_question_is_answered_from_several_files_before_one_is_shown_from_all_sides() -> None:
    held = corpus([item(n, "pool", "a.py" if n < 60 else f"b{n}.py") for n in range(70)])
    scores = np.linspace(10.0, 8.9, held.size)
    after = relevance.apart(held, scores, "question")
    first = np.argsort(-after, kind="stable")[:35]
    assert {held.files[held.file_of[doc]][1] for doc in first} >= {"a.py", "b60.py", "b69.py"}
    assert np.all(np.diff(after[:60]) < 0)
    assert np.array_equal(after[60:], scores[60:])


@given(st.lists(st.sampled_from(["a.py", "b.py", ""]), max_size=50), st.sampled_from(["question", "issue", "change"]))
def test_what_is_set_apart_keeps_its_order_in_its_file(paths: list[str], kind: str) -> None:
    held = corpus([item(n, "pool", path) for n, path in enumerate(paths)])
    scores = np.where(np.arange(held.size) % 7 == 6, -np.inf, 100.0 - np.arange(held.size))
    after = relevance.apart(held, scores, kind)
    assert np.array_equal(np.isfinite(after), np.isfinite(scores))
    for file in set(held.file_of.tolist()):
        mine = np.flatnonzero((held.file_of == file) & np.isfinite(scores))
        assert np.all(np.diff(after[mine]) < 0)
    if kind != "question":
        assert np.array_equal(after[:30], scores[:30])
    assert np.array_equal(after[held.file_of < 0], scores[held.file_of < 0])
