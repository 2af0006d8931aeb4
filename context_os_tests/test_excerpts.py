"""Excerpts: within their tokens, in one piece, and about what was asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from context_os.excerpts import passage
from context_os.text import count_tokens, words

lines = st.lists(st.sampled_from(["", "open the session", "    close(pool)", "x = 1", "word " * 40]), max_size=40)
asked = st.frozensets(st.sampled_from(["session", "close", "pool", "absent"]))


def tokens(text: list[str]) -> int:
    return sum(count_tokens(f"{line}\n") for line in text)


def held(text: list[str], wanted: frozenset[str]) -> bool:
    return any(wanted.intersection(words(line)) for line in text)


@given(text=lines, wanted=asked, most=st.integers(0, 120))
def test_an_excerpt_is_within_its_tokens_and_cannot_be_longer(
    text: list[str], wanted: frozenset[str], most: int
) -> None:
    found = passage(text, wanted, most)
    shown = text[found.start : found.stop]
    assert tokens(shown) <= most
    if not found:
        assert all(tokens([line]) > most for line in text)
    elif found.stop < len(text):
        assert tokens(text[found.start : found.stop + 1]) > most


@given(text=lines, wanted=asked, most=st.integers(0, 120))
def test_nothing_that_fits_is_asked_in_vain(text: list[str], wanted: frozenset[str], most: int) -> None:
    found = passage(text, wanted, most)
    if any(held([line], wanted) and tokens([line]) <= most for line in text):
        assert held(text[found.start : found.stop], wanted)
    else:
        fitting = [place for place, line in enumerate(text) if tokens([line]) <= most]
        assert found.start == (fitting[0] if fitting else 0)


def test_a_rare_word_counts_for_more_than_a_common_one() -> None:
    text = [*["the session"] * 20, *["nothing"] * 20, "the session has a deadline", *["nothing"] * 20]
    found = passage(text, frozenset({"session", "deadline"}), tokens(["nothing"] * 4) + tokens([text[40]]))
    assert 40 in found


def test_a_text_of_many_lines_is_no_trouble() -> None:
    text = [f"value_{number} = compute(session)" for number in range(20_000)]
    assert len(passage(text, frozenset({"session"}), 1_000)) > 50
