"""Words for search, tokens for budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_os.text import count_tokens, identifier_parts, same_word, word_forms, words


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("parseHTTPResponse_v2", ("parse", "http", "response", "v", "2")),
        ("snake_case_name", ("snake", "case", "name")),
        ("SCREAMING_CASE", ("screaming", "case")),
        ("HTTPServer", ("http", "server")),
        ("x86_64", ("x", "86", "64")),
        ("grünÄrger", ("grünärger",)),
    ],
)
def test_identifier_parts(identifier: str, parts: tuple[str, ...]) -> None:
    assert identifier_parts(identifier) == parts


def test_words_keep_the_whole_identifier_and_its_parts() -> None:
    assert words("self.closeSession(pool)") == ("self", "closesession", "close", "session", "pool")
    assert words("__init__ == 3") == ("init", "3")
    assert words("_ __ --") == ()


@given(st.text())
def test_words_are_lower_case_and_have_no_blanks(text: str) -> None:
    for word in words(text):
        assert word == word.lower()
        assert word.split() == [word]


@given(st.text(), st.text())
def test_words_of_two_lines_are_the_words_of_each(first: str, second: str) -> None:
    assert words(f"{first}\n{second}") == words(first) + words(second)


def test_tokens_are_those_of_a_real_tokenizer() -> None:
    assert count_tokens("") == 0
    assert count_tokens("hello world") == 2
    assert count_tokens("def close_session(pool):") == 5
    assert count_tokens("<|endoftext|>") > 1


@given(st.text(max_size=300))
def test_a_text_has_no_more_tokens_than_bytes(text: str) -> None:
    assert count_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))


lines = st.lists(st.sampled_from(["", "  ", "}", "// so", "\tx = 1", "def f():", "0", "é = '/'", "#"]), max_size=80)


@given(lines.map("\n".join), st.integers(2, 60))
def test_a_long_text_is_counted_in_pieces_that_add_up(text: str, piece: int) -> None:
    whole = count_tokens(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("context_os.text._PIECE", max(piece, max(map(len, f"{text} ".splitlines())) * 30))
        assert count_tokens(text) == whole


@pytest.mark.parametrize("text", ["word\n" * 150_000, "\u4e00\u9fa5 " * 120_000, "-" * 300_000])
def test_a_text_of_more_tokens_than_the_encoding_takes_at_once(text: str) -> None:
    assert 0 < count_tokens(text) <= len(text.encode())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("strip", "stripping", True),
        ("recovery", "recoverer", True),
        ("strip", "string", False),
        ("pool", "spool", False),
    ],
)
def test_forms_of_one_word_are_told_from_other_words(one: str, other: str, same: bool) -> None:
    assert same_word(one, other) is same
    assert same_word(other, one) is same


def test_a_word_has_other_forms() -> None:
    assert {"serializer", "serialized", "serialize"} <= set(word_forms("serializing"))
    assert "strip" in word_forms("stripping")
    assert word_forms("v2") == ()


@given(st.text())
def test_any_word_has_forms_without_itself(word: str) -> None:
    assert word not in word_forms(word)
