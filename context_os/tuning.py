"""Tuning: a repository's own weights, fitted to what was found helpful in it.

Which features tell what a review needs differs from repository to repository. Every vote that names its pack makes that
pack an example: what was found helpful, among all candidates that were judged with it, by the features that they were
judged by (``kept_packs.Evidence``). The loss is the negative logarithm of the helpful items' share in a softmax over
the candidates (a conditional logit: McFadden 1974), as for the packaged weights, with a ridge that pulls towards these:
a Gaussian prior, so that few votes move little. Votes fade with their age as everywhere.

Weights are used only where they prove themselves: fitted to the older two thirds of the examples they have to make the
newer third more likely than the packaged ones do. What is used then is fitted to all of them. They stand in a file for
each repository, one number a line, to be read; votes of one tenant never weigh for another.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from context_os import relevance
from context_os.errors import ConfigurationError
from context_os.feedback import HALF_LIFE, FeedbackLog, Verdict
from context_os.kept_packs import Evidence, KeptPacks
from context_os.model import Time, Value, utcnow
from context_os.relevance import MAY_COUNT_AGAINST, Model

LEAST: Final = 12
"""Examples; fewer prove nothing."""
MOST: Final = 500
"""Of the newest examples; more would tell little else and take memory."""
PULL: Final = 15.0
"""Of the ridge, against a loss of about 5 an example: 75 examples move weights by some tenths."""
_SHOWN: Final = 20
"""Candidates among which a helpful item is counted as found: what a pack of some thousand tokens holds."""
_PROVING: Final = 1 / 3
_FOLDER: Final = "weights"

_Floats = NDArray[np.float64]


class Tuned(Value):
    """What tuning one model (``change.lexical``) to one repository gave. ``before`` and ``after`` are shares in 0..1 of
    helpful items among the first 20 candidates of packs that were not fitted to, by the packaged and by fitted weights;
    ``used`` says whether these are used now, ``reason`` why or why not. ``moved`` has each weight that changed."""

    repository: str
    model: str
    packs: int
    votes: int
    before: float = 0.0
    after: float = 0.0
    used: bool = False
    reason: str
    moved: dict[str, tuple[float, float]] = Field(default_factory=dict)


@dataclass
class _Example:
    """One pack: its rows, which of them were found helpful, what it weighs."""

    at: Time
    evidence: Evidence
    helpful: list[int]
    weight: float


@dataclass
class _Problem:
    """Examples over the same columns."""

    columns: list[str]
    start: _Floats
    examples: list[_Example]
    rows: list[_Floats] = field(init=False)

    def __post_init__(self) -> None:
        place = {name: number for number, name in enumerate(self.columns)}
        self.rows = []
        for example in self.examples:
            rows = np.zeros((len(example.evidence.marks), len(self.columns)))
            rows[:, [place[name] for name in example.evidence.columns]] = example.evidence.rows
            self.rows.append(rows)

    def fit(self, chosen: slice) -> _Floats:
        """The most likely weights of the chosen examples; only kinds and classes may count against an item."""
        from scipy.optimize import minimize

        bounds = [(None, None) if _may_count_against(name) else (0.0, None) for name in self.columns]
        at = np.maximum(self.start, [-np.inf if low is None else low for low, _ in bounds])
        found: _Floats = minimize(self._loss, at, (chosen,), jac=True, method="L-BFGS-B", bounds=bounds).x
        return found

    def _loss(self, weights: _Floats, chosen: slice) -> tuple[float, _Floats]:
        away = weights - self.start
        total, slope = PULL * float(away @ away), 2 * PULL * away
        for example, rows in zip(self.examples[chosen], self.rows[chosen], strict=True):
            loss, gradient = surprise(rows, example.helpful, weights)
            total += example.weight * loss
            slope = slope + example.weight * gradient
        return total, slope

    def surprise(self, weights: _Floats, chosen: slice) -> float:
        """The mean loss of the chosen examples."""
        pairs = zip(self.examples[chosen], self.rows[chosen], strict=True)
        return float(np.mean([surprise(rows, example.helpful, weights)[0] for example, rows in pairs]))

    def found(self, weights: _Floats, chosen: slice) -> float:
        """The mean share of helpful items among the first ``_SHOWN`` candidates of the chosen examples."""
        shares = []
        for example, rows in zip(self.examples[chosen], self.rows[chosen], strict=True):
            first = set(np.argsort(-(rows @ weights), kind="stable")[:_SHOWN].tolist())
            shares.append(sum(each in first for each in example.helpful) / len(example.helpful))
        return float(np.mean(shares))


@dataclass(frozen=True)
class Tuning:
    """The weights of one home's repositories, for one tenant. ``weights`` is the file that the settings name instead of
    the packaged one."""

    home: Path
    tenant: str
    log: FeedbackLog
    packs: KeptPacks
    weights: Path | None = None

    def tune(self, repository: str, *, dry: bool = False) -> list[Tuned]:
        """Fit the weights of every model that has votes, and write those that prove themselves; what does not any more
        is taken out. ``dry`` writes nothing. Raises StoreUnavailable."""
        votes, examples = self._examples(repository)
        told, tables = [], {}
        for name, group in sorted(examples.items()):
            result, table = self._tuned(repository, name, sorted(group, key=lambda each: each.at)[-MOST:])
            told.append(result.model_copy(update={"votes": votes[name]}))
            if result.used:
                tables[name] = table
        if not dry:
            self._write(repository, told, tables)
        return told

    def forget(self, repository: str) -> bool:
        """Back to the packaged weights; says whether there were others."""
        file = tuned_file(self.home, self.tenant, repository)
        there = file.exists()
        file.unlink(missing_ok=True)
        return there

    # Examples

    def _examples(self, repository: str) -> tuple[dict[str, int], dict[str, list[_Example]]]:
        """By model: how many votes there are, and the packs in which something was found helpful."""
        balance: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        last: dict[str, Time] = {}
        for _, vote in self.log.votes(self.tenant):
            if vote.pack and vote.repository == repository:
                balance[vote.pack][vote.subject] += vote.count if vote.verdict is Verdict.HELPFUL else -vote.count
                last[vote.pack] = max(vote.at, last.get(vote.pack, vote.at))
        votes: dict[str, int] = defaultdict(int)
        found: dict[str, list[_Example]] = defaultdict(list)
        now = utcnow()
        for pack, evidence in self.packs.evidence(self.tenant, repository, balance):
            places = {evidence.place_of(id) for id, count in balance[pack.id].items() if count > 0}
            helpful = sorted(place for place in places if place is not None)
            votes[evidence.model] += len(balance[pack.id])
            if helpful:
                weight = 0.5 ** (max((now - last[pack.id]) / HALF_LIFE, 0.0))
                found[evidence.model].append(_Example(pack.first_at, evidence, helpful, weight))
        return votes, found

    # The fit

    def _tuned(self, repository: str, name: str, examples: Sequence[_Example]) -> tuple[Tuned, dict[str, Any]]:
        told = {"repository": repository, "model": name, "packs": len(examples), "votes": 0}
        if len(examples) < LEAST:
            return Tuned(**told, reason=f"{LEAST} packs with a helpful item are needed"), {}
        base = self._base(name)
        columns = sorted({column for each in examples for column in each.evidence.columns} | base.weights.keys())
        start = np.array([base.weights.get(column, 0.0) for column in columns])
        problem = _Problem(columns, start, list(examples))
        known = len(examples) - max(int(len(examples) * _PROVING), 1)
        proving = slice(known, None)
        trial = problem.fit(slice(known))
        shares = {"before": problem.found(start, proving), "after": problem.found(trial, proving)}
        if problem.surprise(trial, proving) >= problem.surprise(start, proving):
            reason = "on packs that were not fitted to, the packaged weights are as good"
            return Tuned(**told, **shares, reason=reason), {}
        fitted = np.round(problem.fit(slice(None)), 3)
        moved = {
            column: (round(float(old), 3), float(new))
            for column, old, new in zip(columns, start, fitted, strict=True)
            if abs(new - old) >= _TOLD
        }
        reason = "better on packs that were not fitted to"
        table = {"of": base.digest, **_tables(dict(zip(columns, fitted.tolist(), strict=True)))}
        return Tuned(**told, **shares, used=True, reason=reason, moved=moved), table

    def _base(self, name: str) -> Model:
        kind, _, mode = name.partition(".")
        return relevance.model(kind, semantic=mode == "semantic", file=self.weights)

    # The file

    def _write(self, repository: str, told: Sequence[Tuned], tables: Mapping[str, Mapping[str, Any]]) -> None:
        file = tuned_file(self.home, self.tenant, repository)
        if not tables:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
            handle.writelines(f"{line}\n" for line in _lines(repository, told, tables))
        partial.replace(file)


_TOLD: Final = 0.05
"""A smaller change of a weight is not told."""


def tuned_file(home: Path, tenant: str, repository: str) -> Path:
    """Where a repository's own weights are, if it has any."""
    return home / _FOLDER / quote(tenant, safe="") / f"{quote(repository, safe='')}.toml"


def _may_count_against(column: str) -> bool:
    table, _, name = column.partition(".")
    return table == "kind" or (table == "of_file" and name in MAY_COUNT_AGAINST)


def surprise(rows: _Floats, helpful: Sequence[int], weights: _Floats) -> tuple[float, _Floats]:
    """The mean negative log likelihood of the helpful rows, and its gradient."""
    scores = rows @ weights
    scores -= scores.max()
    mass = np.exp(scores)
    whole = float(mass.sum())
    gradient: _Floats = mass @ rows / whole - rows[list(helpful)].mean(axis=0)
    return float(np.log(whole) - scores[list(helpful)].mean()), gradient


def _tables(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for column, weight in weights.items():
        table, _, name = column.partition(".")
        if weight:
            found.setdefault(table, {})[name] = weight
    return found


def _lines(repository: str, told: Sequence[Tuned], tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if "\n" in repository:
        raise ConfigurationError(f"a repository's name is one line, not {repository!r}")
    yield f"# Weights that feedback in {repository} gave, see docs/feedback.md. `context-os feedback tune` writes them."
    for each in told:
        if each.used:
            shares = f"{each.before:.0%} of what helped among the first {_SHOWN} before, {each.after:.0%} with these"
            yield f"# {each.model}: {each.packs} packs, {each.votes} votes; {shares}"
    for name, table in tables.items():
        yield ""
        yield f'["{name}"]'
        yield f'of = "{table["of"]}"'
        for part in ("document", "kind", "of_file"):
            yield f'["{name}".{part}]'
            yield from (f"{json.dumps(key)} = {weight}" for key, weight in table.get(part, {}).items())
