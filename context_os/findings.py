"""Does a model that is given a pack find what was expected? It reviews first, not knowing what that is; then it is
asked which of the expected findings its own ones cover. A model's answers vary, so what comes out is told and gates
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from pydantic import Field

from context_os.chat import Chat
from context_os.errors import ModelError
from context_os.goldsets import Finding
from context_os.model import Value

_REVIEW: Final = (
    "You review a change to code. You are given context that was picked for it, and the change. Report what is wrong"
    " with the change, at most twelve findings, the most severe first, a sentence or two each. Report nothing that you"
    " cannot point at."
)
_COVER: Final = (
    "You compare what a reviewer reported with what was expected. For each expected finding, by its number, say whether"
    " one of the reported ones names the same problem in the same code, and which."
)


class Judged(Value):
    """An expected finding, and whether the model's review has it. ``by`` is the one of its own that says so."""

    description: str
    severity: str
    reported: bool
    by: str = ""


class _Review(Value):
    findings: tuple[str, ...] = Field(max_length=12)


class _Cover(Value):
    expected: int
    reported: bool
    by: str = Field(default="", max_length=2_000)


class _Covers(Value):
    covers: tuple[_Cover, ...] = Field(max_length=200)


def judge(chat: Chat, prompt: str, expected: Sequence[Finding]) -> tuple[tuple[Judged, ...], str]:
    """Each expected finding judged, and "" or why they could not be. ``prompt`` is the pack as a model gets it."""
    if not chat.affords(_REVIEW, prompt):
        return (), "not judged: the model's budget is spent"
    try:
        review = chat.ask(_REVIEW, prompt, _Review)
        named = [{"number": number, **each.model_dump(mode="json")} for number, each in enumerate(expected)]
        covers = chat.ask(_COVER, json.dumps({"expected": named, "reported": review.findings}), _Covers)
    except ModelError as error:
        return (), f"not judged: {error}"
    found = {each.expected: each for each in covers.covers if each.reported}
    judged = (
        Judged(
            description=each.description,
            severity=each.severity,
            reported=number in found,
            by=found[number].by if number in found else "",
        )
        for number, each in enumerate(expected)
    )
    return tuple(judged), ""
