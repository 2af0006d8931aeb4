"""Running goldsets: every case with the very pack that a user would get, its numbers, and the gate that compares them
with the baseline.

A case is asked of a store of its own below the home, which holds its repository at the case's revision and nothing
else: never of the team's, whose content moves. What was ingested for a case is kept, so that only the first run reads.

Two runs are compared case by case (Dror et al., The hitchhiker's guide to testing statistical significance in natural
language processing, 2018): McNemar's exact test on the cases that are complete, a bootstrap interval of the mean
difference on the other numbers. Results are the same whenever nothing changed, so that the tests only say which changes
are more than a case or two.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field

from context_os import __version__, goldsets
from context_os.app import App
from context_os.connectors import Repository
from context_os.errors import ConfigurationError, ContextOSError, NotFound, StoreUnavailable
from context_os.findings import Judged, judge
from context_os.git import Git
from context_os.goldsets import Case, Folder, Goldset, Kind
from context_os.ingestion import Ingestion
from context_os.ledger import Ledger
from context_os.model import Access, Confidentiality, KnowledgeItem, Time, Value, utcnow
from context_os.packs import ContextPack
from context_os.ranking import Ranked
from context_os.scope import governs
from context_os.selectors import Candidate, Request
from context_os.settings import AuditSettings, EmbeddingSettings, Settings, StoreSettings, TelemetrySettings
from context_os.stores import Filter, KnowledgeStore
from context_os.text import count_tokens

Progress = Callable[[str], None]

ALPHA: Final = 0.05
"""How often a change that means nothing may raise an alarm, shared by the tests of one comparison (Bonferroni)."""
MEASURES: Final = ("recall", "reciprocal_rank")
_SAMPLES: Final = 10_000
_SEED: Final = 20_240_229
_NOTHING: Final = timedelta(0)
_MOST_SHOWN: Final = 200
"""Items of a file or a name that are looked at for why it was not proposed."""
_NOT_JUDGED: Final = "not judged: no model is configured (playbook.url and playbook.model)"


class Proposal(Value):
    """``rank`` is 1-based in the selector's own list, ``score`` in 0..1."""

    selector: str
    rank: int
    score: float


class Trace(Value):
    """What became of one expected thing. ``rank`` is its place among all that was proposed (a path's among the files),
    None for what nobody proposed; ``fate`` says in words where it is, or why it is not."""

    kind: Kind
    name: str
    found: bool
    rank: int | None
    proposals: tuple[Proposal, ...]
    fate: str


class Violation(Value):
    """What must never be, whatever the other cases do."""

    kind: Literal["forbidden", "unreadable", "ceiling"]
    detail: str


class Result(Value):
    """One case. ``recall`` is the share of expected things that are in the pack, ``complete`` that all are;
    ``reciprocal_rank`` the mean of one over their ranks. ``proposed`` counts by selector. ``judged`` are the expected
    findings as a model saw them, ``findings`` why it did not. ``problem`` says why the case could not be run; then
    nothing else is meant."""

    case: str
    digest: str
    problem: str = ""
    recall: float = 0.0
    complete: bool = False
    reciprocal_rank: float = 0.0
    tokens: int = 0
    max_tokens: int = 0
    seconds: float = 0.0
    proposed: dict[str, int] = Field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    violations: tuple[Violation, ...] = ()
    judged: tuple[Judged, ...] = ()
    findings: str = ""


class Run(Value):
    """One run over a goldset. ``weights`` is a digest of them, ``model`` the embedding's version, "" without vectors.
    ``partial``: not every case was run. ``tenant`` and ``repositories`` are what an erasure finds it by."""

    id: str
    goldset: str
    tenant: str
    repositories: tuple[str, ...]
    at: Time
    version: str
    weights: str
    model: str
    partial: bool
    results: tuple[Result, ...]

    @property
    def summary(self) -> dict[str, float]:
        """Means over the cases that were run; what was found over those that expect something."""
        ran = [each for each in self.results if not each.problem]
        expecting = [each for each in ran if each.traces]
        values = {
            "recall": [each.recall for each in expecting],
            "complete": [float(each.complete) for each in expecting],
            "reciprocal_rank": [each.reciprocal_rank for each in expecting],
            "tokens": [float(each.tokens) for each in ran],
            **(
                {"findings": judged} if (judged := [float(one.reported) for each in ran for one in each.judged]) else {}
            ),
            "seconds": [each.seconds for each in ran],
        }
        return {name: round(float(np.mean(column)), 4) if column else 0.0 for name, column in values.items()}


# Files of results


def write_run(path: Path, run: Run) -> None:
    """The run's own line, then a case a line."""
    head = {"run": run.model_dump(mode="json", by_alias=True, exclude={"results"})}
    rows = [head, *(each.model_dump(mode="json", by_alias=True, exclude_defaults=True) for each in run.results)]
    goldsets.write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_run(path: Path) -> Run:
    """Raises ConfigurationError for a file that is none, saying which line."""
    number = 1
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])["run"]
        results = []
        for line in lines[1:]:
            number += 1
            results.append(Result.model_validate(json.loads(line)))
        return Run.model_validate({**head, "results": results})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path}:{number}: not the results of a goldset: {error}") from None


@dataclass(frozen=True)
class Runs:
    """The runs over one goldset that this home remembers."""

    folder: Path

    @classmethod
    def of(cls, settings: Settings, name: str) -> Runs:
        return cls(settings.home / goldsets.FOLDER / "runs" / name)

    def keep(self, run: Run) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{run.id}.jsonl"
        write_run(path, run)
        return path

    def ids(self) -> list[str]:
        """Oldest first."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl") if not path.name.startswith("."))

    def get(self, id: str = "newest") -> Run:
        """Raises NotFound."""
        ids = self.ids()
        if not ids or (id != "newest" and id not in ids):
            raise NotFound(f"no run {id} of {self.folder.name}; `context-os goldset run {self.folder.name}` makes one")
        return read_run(self.folder / f"{ids[-1] if id == 'newest' else id}.jsonl")


# Running


class Evaluation:
    """One goldset, run by the settings' weights and embedding. ``open_store`` opens the store of a case."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        progress: Progress = lambda _: None,
        open_store: Callable[[Settings], KnowledgeStore] = Settings.open_store,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.goldset: Goldset = folder.read()
        self.progress = progress
        self.open_store = open_store
        self._home = settings.make_home() / goldsets.FOLDER
        self._places: dict[str, Git] = {}
        self._used: set[Path] = set()
        self._chat = settings.playbook.open_chat()

    def run(self, limit: int | None = None) -> Run:
        """All cases, or the first ``limit``; one that cannot be run has a ``problem``. Raises StoreUnavailable while
        another run of this goldset is at work."""
        at = utcnow()
        cases = self.goldset.cases[:limit]
        self._used.clear()
        with self._alone():
            try:
                results = tuple(self._told(number, case) for number, case in enumerate(cases, start=1))
            finally:
                self.settings.start_telemetry()  # what was counted meanwhile belongs to the cases' own homes
            partial = len(cases) < len(self.goldset.cases) or any(each.problem for each in results)
            if not partial:
                self._forget_old_states()
        return Run(
            id=f"{at:%Y%m%dT%H%M%S%f}",
            goldset=self.folder.name,
            tenant=self.goldset.tenant,
            repositories=tuple(sorted(self.goldset.repositories)),
            at=at,
            version=__version__,
            weights=_weights(self.settings),
            model=self._model,
            partial=partial,
            results=results,
        )

    def _told(self, number: int, case: Case) -> Result:
        self.progress(f"{case.id} ({number} of {len(self.goldset.cases)})")
        started = time.monotonic()
        try:
            found = self._result(case)
        except ContextOSError as error:
            return Result(case=case.id, digest=case.digest, problem=" ".join(str(error).split()))
        return found.model_copy(update={"seconds": round(time.monotonic() - started, 3)})

    def _result(self, case: Case) -> Result:
        repository = self.goldset.repository_of(case)
        git = self._git(repository)
        place = self.goldset.repositories[repository]
        revision = goldsets.commit_of(git, case.revision or case.base or place.revision or "HEAD")
        diff = goldsets.diff_of(git, case)
        question = case.question or ("" if diff or not case.pull_request else case.pull_request.diff_summary)
        state = self._state(repository, revision)
        settings = self._settings_of(state)
        with self.open_store(settings) as store:
            if state not in self._used:
                self._ingest(settings, store, Repository(repository, Path(git.directory), settings.tenant, revision))
                self._used.add(state)
            access = Access(
                tenant=case.tenant or self.goldset.tenant,
                principal="goldset",
                clearance=case.clearance or self.goldset.clearance,
            )
            app = App(settings, store, access)
            max_tokens = case.max_tokens or self.goldset.max_tokens
            request = app.request(question, diff, repository)
            proposed = app.propose(request)
            pack = app.pack(question, diff, repository, max_tokens)
            found = _judge(_Look(app, case, request, proposed, app.select(request), pack, max_tokens))
        return self._with_findings(found, case, pack)

    def _with_findings(self, found: Result, case: Case, pack: ContextPack) -> Result:
        if not case.expected_findings:
            return found
        if self._chat is None:
            return found.model_copy(update={"findings": _NOT_JUDGED})
        judged, problem = judge(self._chat, pack.prompt, case.expected_findings)
        return found.model_copy(update={"judged": judged, "findings": problem})

    # What a case is asked of

    def _git(self, name: str) -> Git:
        if name not in self._places:
            place = self.goldset.repositories[name]
            self._places[name] = goldsets.located(self.settings, self.folder, name, place)
        return self._places[name]

    @property
    def _states(self) -> Path:
        return self._home / "states" / self.folder.name

    def _state(self, repository: str, revision: str) -> Path:
        told = json.dumps([repository, revision, self.goldset.tenant])
        return self._states / hashlib.sha256(told.encode()).hexdigest()[:16]

    def _settings_of(self, home: Path) -> Settings:
        """The caller's weights and model; everything else the goldset's own."""
        return self.settings.model_copy(
            update={
                "home": home,
                "tenant": self.goldset.tenant,
                "store": StoreSettings(kind="lab"),
                "embedding": self.settings.embedding if self.goldset.vectors else EmbeddingSettings(provider="none"),
                "telemetry": TelemetrySettings(),
                "audit": AuditSettings(keep_packs=_NOTHING),
                "repositories": {},
                "connectors": self.goldset.connectors,
            }
        )

    @cached_property
    def _model(self) -> str:
        embedding = self.settings.open_embedding() if self.goldset.vectors else None
        return embedding.version if embedding else ""

    def _ingest(self, settings: Settings, store: KnowledgeStore, repository: Repository) -> None:
        """Reads what is not there; what was erased from the team's store does not come in here either."""
        ledger = Ledger(settings.make_home() / "ledger.db")
        _follow_erasures(Ledger(self.settings.home / "ledger.db"), ledger, settings.tenant)
        ledger.register(repository.name, repository.location, repository.revision)
        ingestion = Ingestion(settings, store, ledger)
        for connector in self.goldset.connectors:
            ingestion.update(connector, repository)
            if self.goldset.vectors:
                ingestion.embed(connector, repository.name)
        shutil.rmtree(ingestion.folder, ignore_errors=True)

    def _forget_old_states(self) -> None:
        """Of cases that are no longer there, and of commits that a branch left behind."""
        for state in self._states.iterdir():
            if state.is_dir() and state not in self._used:
                shutil.rmtree(state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._states.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._states / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreUnavailable(f"another run of the goldset {self.folder.name} is at work here") from None
            yield


def _follow_erasures(team: Ledger, ours: Ledger, tenant: str) -> None:
    for row in team.erasures(tenant):
        ours.record_erasure(row)
        if row.lifted_at is not None:
            ours.lift_erasure(tenant, row.receipt)


def _weights(settings: Settings) -> str:
    file = settings.weights or files("context_os") / "data" / "weights.toml"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


# Judging


@dataclass(frozen=True)
class _Look:
    """Everything that one case brought."""

    app: App
    case: Case
    request: Request
    proposed: Mapping[str, Sequence[Candidate]]
    ranked: Sequence[Ranked]
    pack: ContextPack
    max_tokens: int

    @cached_property
    def items(self) -> dict[str, KnowledgeItem]:
        return {each.item.id: each.item for each in self.ranked}

    @cached_property
    def shown(self) -> dict[str, str]:
        """Id to where it stands."""
        layers = self.pack.layers
        return {
            entry.id: f"{layer}, {entry.rendering}"
            for layer, entries in (("core", layers.core), ("catalog", layers.catalog), ("active", layers.active))
            for entry in entries
        }

    @cached_property
    def omitted(self) -> dict[str, str]:
        return {each.id: each.reason for each in self.pack.omitted}

    @cached_property
    def files(self) -> dict[str, int]:
        """Path to its rank among the files that were proposed and are not in the change."""
        paths = dict.fromkeys(each.item.source.path for each in self.ranked if each.item.source.path)
        left = [path for path in paths if path not in set(self.request.change.paths)]
        return {path: number for number, path in enumerate(left, start=1)}


def _judge(look: _Look) -> Result:
    traces = tuple(_trace(look, kind, name) for kind, name in look.case.wanted)
    found = [each.found for each in traces]
    return Result(
        case=look.case.id,
        digest=look.case.digest,
        recall=round(sum(found) / len(found), 6) if found else 1.0,
        complete=all(found),
        reciprocal_rank=round(sum(1 / each.rank for each in traces if each.rank) / len(traces), 6) if traces else 1.0,
        tokens=count_tokens(look.pack.prompt),
        max_tokens=look.max_tokens,
        proposed={name: len(candidates) for name, candidates in look.proposed.items()},
        traces=traces,
        violations=tuple(_violations(look)),
    )


def _is(kind: Kind, name: str, item: KnowledgeItem) -> bool:
    if kind == "path":
        return item.source.path == name
    if kind == "symbol":
        return name in item.symbols
    return item.id == name or (kind == "rule" and item.kind == "rule" and name in _names_of(item))


def _names_of(rule: KnowledgeItem) -> set[str]:
    return {rule.metadata.title, rule.source.path, *rule.symbols}


def _trace(look: _Look, kind: Kind, name: str) -> Trace:
    """A rule is found where it stands whole, everything else where the pack tells of it at all."""
    meant = [item for item in look.items.values() if _is(kind, name, item)]
    places = [look.shown[item.id] for item in meant if item.id in look.shown]
    good = [place for place in places if kind != "rule" or place.startswith("core")]
    order = [each.item.id for each in look.ranked]
    ranks = [order.index(item.id) + 1 for item in meant]
    return Trace(
        kind=kind,
        name=name,
        found=bool(good),
        rank=look.files.get(name) if kind == "path" else min(ranks, default=None),
        proposals=tuple(_proposals(look, kind, name)),
        fate=f"in the pack ({_best(good)})" if good else _why_not(look, kind, name, meant, places),
    )


def _best(places: Sequence[str]) -> str:
    return min(places, key=lambda place: ("line" in place, "signature" in place, place))


def _proposals(look: _Look, kind: Kind, name: str) -> Iterator[Proposal]:
    """Each selector's best."""
    for selector, candidates in look.proposed.items():
        for rank, each in enumerate(candidates, start=1):
            if _is(kind, name, each.item):
                yield Proposal(selector=selector, rank=rank, score=round(each.score, 6))
                break


def _why_not(look: _Look, kind: Kind, name: str, meant: Sequence[KnowledgeItem], places: Sequence[str]) -> str:
    if places:
        return f"not whole in the pack ({places[0]})"
    if meant:
        return (
            f"left out: {next((look.omitted[item.id] for item in meant if item.id in look.omitted), 'no reason told')}"
        )
    return _why_not_proposed(look, kind, name)


def _why_not_proposed(look: _Look, kind: Kind, name: str) -> str:
    """Looked up as somebody who may read everything of the goldset's tenant; it is said of nobody else's."""
    app = look.app
    tenant = app.settings.tenant
    everything = Access(tenant=tenant, principal="goldset", clearance=Confidentiality.RESTRICTED)
    here = look.request.repositories
    if kind == "path":
        items = app.store.scan(everything, Filter(paths=(name,), repositories=here), limit=_MOST_SHOWN).items
    elif kind == "symbol":
        items = app.store.scan(everything, Filter(symbols=(name,), repositories=here), limit=_MOST_SHOWN).items
    else:
        items = tuple(app.store.get(everything, [name]))
        if kind == "rule" and not items:
            rules = app.store.scan(everything, Filter(kinds=("rule",), repositories=here), limit=1_000).items
            items = tuple(item for item in rules if _is(kind, name, item))
    if not items:
        scopes = app.ledger.scopes(app.store.identity, tenant)
        expired = {id for scope in scopes for id in app.ledger.expired(scope, utcnow())}
        return "expired" if name in expired else "not in the store: not ingested, or expired"
    if not any(app.access.may_read(item, utcnow()) for item in items):
        level = items[0].metadata.confidentiality.value
        return (
            f"filtered: it is {level} of tenant {tenant}, the asker {app.access.clearance.value} of {app.access.tenant}"
        )
    return "no selector proposed it"


def _violations(look: _Look) -> Iterator[Violation]:
    """What the pack shows, or tells that it left out, and must not; and a prompt beyond its ceiling."""
    now = utcnow()
    for id in (*look.shown, *look.omitted):
        item = look.items[id]
        where = look.shown.get(id) or "told as left out"
        told = f"{item.kind} {id} of {item.source.path or item.source.repository} ({where})"
        if not look.app.access.may_read(item, now):
            yield Violation(kind="unreadable", detail=f"{told}: {_unreadable(look.app.access, item, now)}")
        if _is_forbidden(look.case, item):
            yield Violation(kind="forbidden", detail=told)
    tokens = count_tokens(look.pack.prompt)
    if tokens > look.max_tokens:
        yield Violation(kind="ceiling", detail=f"{tokens:,} tokens, the ceiling is {look.max_tokens:,}")


def _unreadable(access: Access, item: KnowledgeItem, now: datetime) -> str:
    if item.tenant != access.tenant:
        return "it is another tenant's"
    if item.expires_at <= now:
        return f"it expired {item.expires_at:%Y-%m-%d %H:%M:%S}"
    return f"it is {item.metadata.confidentiality.value}, the asker may read {access.clearance.value}"


def _is_forbidden(case: Case, item: KnowledgeItem) -> bool:
    named = [(kind, name) for kind, name in case.forbidden.named if kind != "path"]
    return governs(case.forbidden.paths, item.source.path) or any(_is(kind, name, item) for kind, name in named)


# Comparing


class Difference(Value):
    """A mean difference, now less before, with its interval."""

    measure: str
    mean: float
    low: float
    high: float


class Shift(Value):
    """A case that was won or lost, and why, a line each expected thing that moved."""

    case: str
    before: float
    now: float
    why: tuple[str, ...]


class Comparison(Value):
    """A run against the baseline. ``regressions`` are the reasons to stop; without any the gate is open. ``pairs``
    counts the cases that both have alike; ``notes`` say what makes the two less alike."""

    goldset: str
    run: str
    baseline: str
    pairs: int
    won: tuple[Shift, ...] = ()
    lost: tuple[Shift, ...] = ()
    p_value: float = 1.0
    differences: tuple[Difference, ...] = ()
    regressions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line, for an alert: the cases first."""
        cases = f"lost {', '.join(each.case for each in self.lost)}" if self.lost else "no case lost"
        return f"{cases}; {'; '.join(self.regressions) or 'no regression'}"


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that cases which only one of two runs has are either's alike (McNemar, Note on the sampling
    error of the difference between correlated proportions, 1947)."""
    number, less = gained + lost, min(gained, lost)
    tail = sum(math.comb(number, k) for k in range(less + 1)) / 2**number if number else 1.0
    return min(1.0, 2 * tail)


def bootstrap(differences: Sequence[float], level: float) -> tuple[float, float]:
    """Percentile interval of a mean (Efron, Bootstrap methods, 1979), from 10,000 resamples with a fixed seed: the same
    differences always give the same interval."""
    if not differences:
        return 0.0, 0.0
    values = np.asarray(differences, dtype=np.float64)
    picks = np.random.default_rng(_SEED).integers(0, len(values), (_SAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 6), round(float(high), 6)


def compare(run: Run, baseline: Run | None) -> Comparison:
    """The gate. Without a baseline only what must never be is looked for."""
    before = {each.case: each for each in baseline.results if not each.problem} if baseline else {}
    pairs = [
        (before[each.case], each)
        for each in run.results
        if each.case in before and before[each.case].digest == each.digest and not each.problem
    ]
    shifts = [_shift(old, new) for old, new in pairs if old.recall != new.recall]
    tests = len(MEASURES) + 1
    differences = [_difference(name, pairs, 1 - ALPHA / tests) for name in MEASURES]
    gained = sum(new.complete and not old.complete for old, new in pairs)
    lost = sum(old.complete and not new.complete for old, new in pairs)
    p_value = mcnemar(gained, lost)
    regressions = list(_never(run))
    if p_value < ALPHA / tests and lost > gained:
        regressions.append(f"{lost} cases are no longer complete, {gained} became so (p = {p_value:.2g})")
    regressions += [
        f"{each.measure} fell by {-each.mean:.3f} ({each.low:+.3f} to {each.high:+.3f})"
        for each in differences
        if each.high < 0
    ]
    regressions += [*_dropped_rules(pairs), *_silent(pairs)]
    return Comparison(
        goldset=run.goldset,
        run=run.id,
        baseline=baseline.id if baseline else "",
        pairs=len(pairs),
        won=tuple(each for each in shifts if each.now > each.before),
        lost=tuple(each for each in shifts if each.now < each.before),
        p_value=p_value,
        differences=tuple(differences),
        regressions=tuple(regressions),
        notes=tuple(_notes(run, baseline, len(pairs))),
    )


def _never(run: Run) -> Iterator[str]:
    for each in run.results:
        if each.problem:
            yield f"{each.case} could not be run: {each.problem}"
        yield from (f"{each.case}: {_WORDS[one.kind]}: {one.detail}" for one in each.violations)


_WORDS: Final = {
    "forbidden": "shows what it must not",
    "unreadable": "shows what the asker may not read",
    "ceiling": "exceeds its ceiling",
}


def _dropped_rules(pairs: Iterable[tuple[Result, Result]]) -> Iterator[str]:
    for old, new in pairs:
        had = {each.name for each in old.traces if each.kind == "rule" and each.found}
        for each in new.traces:
            if each.kind == "rule" and each.name in had and not each.found:
                yield f"{new.case}: the rule {each.name} was dropped: {each.fate}"


def _silent(pairs: Sequence[tuple[Result, Result]]) -> Iterator[str]:
    """Selectors that proposed something in some case and now do in none."""
    for name in sorted({name for old, _ in pairs for name, count in old.proposed.items() if count}):
        if not any(new.proposed.get(name) for _, new in pairs):
            cases = sum(bool(old.proposed.get(name)) for old, _ in pairs)
            yield f"the selector {name} proposes nothing any more; it did in {cases} cases"


def _difference(measure: str, pairs: Sequence[tuple[Result, Result]], level: float) -> Difference:
    values = [getattr(new, measure) - getattr(old, measure) for old, new in pairs]
    low, high = bootstrap(values, level)
    mean = round(sum(values) / len(values), 6) if values else 0.0
    return Difference(measure=measure, mean=mean, low=low, high=high)


def _shift(old: Result, new: Result) -> Shift:
    before = {(each.kind, each.name): each for each in old.traces}
    pairs = [(before[each.kind, each.name], each) for each in new.traces]
    return Shift(
        case=new.case,
        before=old.recall,
        now=new.recall,
        why=tuple(_why(was, now) for was, now in pairs if was.found != now.found),
    )


def _why(was: Trace, now: Trace) -> str:
    """Which selectors had it, at which rank and score, before and now, and where it went."""
    return f"{now.kind} {now.name}: {now.fate}, was {was.fate}; proposed by {_told(now)}, before by {_told(was)}"


def _told(trace: Trace) -> str:
    return ", ".join(f"{each.selector} (rank {each.rank}, {each.score:.3f})" for each in trace.proposals) or "nobody"


def _notes(run: Run, baseline: Run | None, pairs: int) -> Iterator[str]:
    if baseline is None:
        yield f"no baseline is accepted: `context-os goldset accept {run.goldset}` makes this run it"
        return
    for name, before, now in (("weights", baseline.weights, run.weights), ("model", baseline.model, run.model)):
        if before != now:
            yield f"the baseline was made with other {name} ({before or 'none'}, now {now or 'none'})"
    if pairs < len(run.results):
        yield f"{len(run.results) - pairs} cases of the run are not in the baseline as they are now"
    if run.partial:
        yield "the run is partial"


def baseline_of(folder: Folder) -> Run | None:
    return read_run(folder.baseline) if folder.baseline.exists() else None


def accept(folder: Folder, run: Run) -> None:
    """Make a run the baseline. Raises ConfigurationError with every reason against it."""
    cases = {case.id: case.digest for case in folder.read().cases}
    ran = {each.case: each.digest for each in run.results}
    reasons = [f"{each.case} could not be run: {each.problem}" for each in run.results if each.problem]
    reasons += [f"{id} was not run" for id in cases if id not in ran]
    reasons += [f"{id} was changed since" for id in cases if id in ran and ran[id] != cases[id]]
    reasons += [f"{each.case}: {_WORDS[one.kind]}: {one.detail}" for each in run.results for one in each.violations]
    if reasons:
        raise ConfigurationError(f"the run {run.id} cannot be the baseline:\n  " + "\n  ".join(reasons))
    write_run(folder.baseline, run)


def evaluate(
    settings: Settings, folder: Folder, progress: Progress = lambda _: None, limit: int | None = None, **options: Any
) -> tuple[Run, Comparison]:
    """Run a goldset, keep the results, compare them with its baseline."""
    run = Evaluation(settings, folder, progress, **options).run(limit)
    Runs.of(settings, folder.name).keep(run)
    return run, compare(run, baseline_of(folder))
