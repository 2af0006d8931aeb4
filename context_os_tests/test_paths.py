"""What paths say by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_os.paths import Paths, class_of, stem


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("tests/a.py", "test"), ("pkg/pool_test.go", "test"), ("src/__tests__/a.ts", "test"), ("a/conftest.py", "test"),
        ("examples/x.py", "example"), ("docs/x.rst", "documentation"), ("README.md", "documentation"),
        ("src/latest.py", "source"), ("contest.py", "source"), ("setup.cfg", "other"),
    ],
)  # fmt: skip
def test_the_class_of_a_path(path: str, kind: str) -> None:
    assert class_of(path) == kind


FILES = ("src/shop/pool.py", "src/shop/__init__.py", "lib/shop/pool.py", "tests/test_pool.py", "pool.py")


def paths(*files: str, gone: int = 0) -> Paths:
    """Of one repository; the last ``gone`` of them are known from history alone."""
    here = np.arange(len(files)) < len(files) - gone
    return Paths([("shop", path) for path in files], here)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/home/me/src/shop/pool.py", [0]),
        ("shop/pool.py", [0, 2]),
        ("src/shop/pool.py", [0]),
        ("pool.py", [0, 2, 4]),
        ("other/test_pool.py", []),
        ("pond.py", []),
        ("", []),
    ],
)
def test_a_path_means_what_ends_like_it(path: str, meant: list[int]) -> None:
    assert paths(*FILES).meant_by(path) == meant


def test_what_is_gone_is_meant_by_nothing() -> None:
    known = paths(*FILES, "src/old/pool.py", gone=1)
    assert known.meant_by("src/old/pool.py") == paths(*FILES).meant_by("src/old/pool.py")
    assert paths("v1/a.py", "v2/a.py", gone=1).superseded == {}


@given(st.lists(st.sampled_from([*FILES, "go/pool_test.go", "a/b", "x"]), unique=True, max_size=6))
def test_names_are_worth_what_their_words_are_in_the_mean(files: list[str]) -> None:
    known = paths(*files)
    worth = np.arange(1.0, len(known.name_words) + 1)
    ones = known.mean_of_names(np.ones(len(worth)))
    assert ones.tolist() == [1.0] * len(files)
    assert all(1 <= value <= len(worth) for value in known.mean_of_names(worth))


@pytest.mark.parametrize("path", ["src/pool.py", "tests/test_pool.py", "pool_test.go", "Pool.spec.ts", "PoolTest.java"])
def test_a_test_is_called_like_what_it_tests(path: str) -> None:
    assert stem(path) == "pool"
