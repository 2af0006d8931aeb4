"""Vectors without weights: what they promise and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_os.embedding import Hashed, load
from context_os.errors import ConfigurationError


@given(st.lists(st.text(max_size=60), max_size=8))
def test_every_text_has_a_direction_of_its_own_whatever_stands_beside_it(texts: list[str]) -> None:
    together = Hashed().embed(texts)
    assert together.shape == (len(texts), 256)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(row, Hashed().embed([text])[0])


def test_near_spellings_are_nearer_than_strangers() -> None:
    close, closed, other = Hashed().embed(["close_session", "closedSessions", "rotate encryption keys"])
    assert close @ closed > 0.5 > close @ other


def test_vectors_are_the_same_in_every_process() -> None:
    vector = Hashed().embed(["parse_http_response"])[0]
    assert [int(index) for index in np.argsort(-np.abs(vector), kind="stable")[:3]] == [82, 36, 72]


def test_providers_by_name() -> None:
    assert load("none") is None
    assert not load("hashed").semantic
    with pytest.raises(ConfigurationError, match="hashed, none"):
        load("crystal ball")
