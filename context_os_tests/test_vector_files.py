"""Vectors kept by text: nothing is embedded twice, and a broken or missing file costs time alone."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_os.model import id_bytes
from context_os.vectors import VectorCache, Vectors, VectorTable


class Model:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return np.array([[len(text), sum(text.encode("utf-8", "surrogatepass"))] for text in texts], dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "vectors.db")


def test_a_text_is_embedded_once_for_each_version(cache: VectorCache) -> None:
    model = Model()
    first = cache.embed("v1", ["a", "b", "a"], model.embed)
    again = cache.embed("v1", ["b", "c", "a"], model.embed)
    assert model.asked == ["a", "b", "c"]
    np.testing.assert_array_equal(first[[0, 1]], again[[2, 0]])
    cache.embed("v2", ["a"], model.embed)
    assert model.asked == ["a", "b", "c", "a"]


@given(batches=st.lists(st.lists(st.text(max_size=4), max_size=6), max_size=5))
def test_the_answer_is_the_models(batches: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = VectorCache(tmp_path_factory.mktemp("cache") / "vectors.db")
    for texts in batches:
        found = cache.embed("v", texts, Model().embed)
        assert found.tolist() == (Model().embed(texts).tolist() if texts else [])


def test_a_broken_file_is_begun_anew(cache: VectorCache) -> None:
    cache.path.write_bytes(b"no database at all" * 100)
    model = Model()
    cache.embed("v", ["a"], model.embed)
    cache.embed("v", ["a"], model.embed)
    cache.embed("v", ["a"], model.embed)
    assert len(model.asked) < 3


def test_where_no_file_can_be_made_it_embeds(tmp_path: Path) -> None:
    (tmp_path / "vectors.db").mkdir()
    model = Model()
    assert VectorCache(tmp_path / "vectors.db").embed("v", ["a"], model.embed).shape == (1, 2)


def test_what_was_not_used_for_longest_goes_first(cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    small, model = VectorCache(cache.path, most=2), Model()
    for day, text in enumerate(["a", "b", "c"]):
        monkeypatch.setattr("time.time", lambda day=day: 86_400.0 * day)
        small.embed("v", [text], model.embed)
    monkeypatch.setattr("time.time", lambda: 86_400.0 * 3)
    small.embed("v", ["a"], model.embed)
    assert small.prune() == 1
    small.embed("v", ["a", "c"], model.embed)
    assert model.asked == ["a", "b", "c"]
    small.embed("v", ["b"], model.embed)
    assert model.asked[-1] == "b"


ID = [str(uuid.UUID(int=number)) for number in range(20)]


def unit(rows: int, seed: int = 0) -> Vectors:
    matrix = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_a_table_answers_with_cosines(tmp_path: Path) -> None:
    vectors, queries = unit(20), unit(3, seed=1)
    VectorTable.empty().updated(dict(zip(ID, vectors, strict=True)), ID).save(tmp_path / "corpus" / "t.npy")
    table = VectorTable.load(tmp_path / "corpus" / "t.npy")
    assert table is not None
    assert table.ids == set(map(id_bytes, ID))
    np.testing.assert_allclose(table.cosines(queries), vectors @ queries.T, atol=0.005)


def test_a_table_is_updated_by_document(tmp_path: Path) -> None:
    old, new = unit(20), unit(20, seed=2)
    table = VectorTable.empty().updated(dict(zip(ID[:10], old, strict=False)), ID)
    table = table.updated({ID[3]: new[3], ID[12]: new[12], ID[13]: new[13]}, {*ID[2:6], ID[12]})
    assert table.ids == set(map(id_bytes, (*ID[2:6], ID[12])))
    found = dict(zip(sorted((*ID[2:6], ID[12])), table.cosines(np.eye(32, dtype=np.float32)), strict=True))
    for id, vector in ((ID[2], old[2]), (ID[3], new[3]), (ID[12], new[12])):
        np.testing.assert_allclose(found[id], vector, atol=0.005)


@pytest.mark.parametrize("content", [b"", b"no array", np.lib.format.magic(1, 0)])
def test_a_file_that_is_no_table_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npy").write_bytes(content)
    assert VectorTable.load(tmp_path / "t.npy") is None
    assert VectorTable.load(tmp_path / "missing.npy") is None
