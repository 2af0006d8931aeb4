"""Excerpts: of a text that is too large for its place, the lines that have most of what is asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Final

from context_os.text import count_tokens, words

_NOTHING: Final = 1e-9
"""What sums of the same numbers differ by."""


def passage(lines: Sequence[str], asked: frozenset[str], max_tokens: int) -> range:
    """Places of the run of ``lines`` within ``max_tokens`` tokens that has most of the words ``asked`` (lower-case, as
    ``text.words`` gives them), each worth the more the fewer lines have it. Of equally good runs the first, so the
    beginning where nothing asked is there; empty where no line fits.
    """
    costs = [count_tokens(f"{line}\n") for line in lines]
    found = [asked.intersection(words(line)) for line in lines]
    held = Counter(chain.from_iterable(found))
    worth = [sum(math.log(1 + len(lines) / held[word]) for word in sorted(here)) for here in found]
    tokens, value = ([0, *accumulate(each)] for each in (costs, worth))
    best, most, last = range(0), -1.0, 0
    for first in range(len(lines)):
        while last < len(lines) and tokens[last + 1] - tokens[first] <= max_tokens:
            last += 1
        if first < last and value[last] - value[first] > most + _NOTHING:
            best, most = range(first, last), value[last] - value[first]
        last = max(last, first + 1)
    return best
