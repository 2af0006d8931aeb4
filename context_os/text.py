"""Words and tokens: how text is split for search, and how it is counted for a budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import chain
from typing import Any, Final

_IDENTIFIER: Final = re.compile(r"[^\W_]\w*|_\w*[^\W_]\w*")
_PART: Final = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|\d+")


@lru_cache(maxsize=200_000)
def identifier_parts(identifier: str) -> tuple[str, ...]:
    """The lower-case words inside one identifier: ``parseHTTPResponse_v2`` gives parse, http, response, v, 2."""
    return tuple(part.lower() for part in _PART.findall(identifier))


@lru_cache(maxsize=200_000)
def _spellings(identifier: str) -> tuple[str, ...]:
    whole = identifier.strip("_").lower()
    parts = identifier_parts(identifier)
    return (whole,) if len(parts) <= 1 else (whole, *parts)


def words(text: str) -> tuple[str, ...]:
    """Lower-case search terms in order: each identifier whole, followed by its parts where it has several."""
    return tuple(chain.from_iterable(map(_spellings, _IDENTIFIER.findall(text))))


def same_word(one: str, other: str) -> bool:
    """Whether two lower-case words look like forms of one: recover, recovery, recoverer."""
    shorter = min(len(one), len(other))
    if shorter < 4 or abs(len(one) - len(other)) > 4:
        return one == other
    common = shorter - 1 if shorter > 5 else shorter
    return one[:common] == other[:common]


_ENDINGS: Final = ("", "s", "es", "ed", "er", "ers", "ing", "ion", "ions", "or", "e", "y", "ies")


@lru_cache(maxsize=10_000)
def word_forms(word: str) -> tuple[str, ...]:
    """What English endings make of a lower-case word's stem, the word itself left out."""
    if len(word) < 4 or not word.isalpha():
        return ()
    ending = max((each for each in _ENDINGS if word.endswith(each) and len(word) - len(each) >= 3), key=len)
    stem = word.removesuffix(ending)
    stems = {stem, stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem, stem + stem[-1]}
    found = {each + ending for each in stems for ending in _ENDINGS}
    return tuple(sorted(found - {word}))


@cache
def _encoding() -> Any:
    # o200k_base with its vocabulary inside the wheel: tiktoken would download it on first use.
    import bpe_openai

    return bpe_openai.get_encoding("o200k_base")


_PIECE: Final = 50_000
"""Characters that surely are no more tokens than the encoding takes at once, 200,000: a token has a byte at least."""


def count_tokens(text: str) -> int:
    """How many tokens a model of the o200k family reads in ``text``; others differ by a few per cent."""
    return sum(len(_encoding().encode_ordinary(piece)) for piece in _pieces(text)) if text else 0


def _pieces(text: str) -> Iterator[str]:
    """Cut where a line begins with a letter or a digit: no token of this family goes on there, so that counts add up.
    A text without such a line is cut anywhere, at the cost of a token."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        cut = text.rfind("\n", start, end - 1)
        while cut >= start and not text[cut + 1].isalnum():
            cut = text.rfind("\n", start, cut)
        end = cut + 1 if cut >= start else end
        yield text[start:end]
        start = end
    yield text[start:]
