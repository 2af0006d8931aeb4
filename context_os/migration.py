"""From a laboratory's disk into a store: what becomes items goes through ingestion like any source, with gate, ledger,
journal and quarantine; counters become votes in the log of feedback. The laboratory's files are only read.

Every step is safe to repeat: a migration that was killed is finished by the next one, and one more changes nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field

from context_os.connectors import Repository
from context_os.connectors.laboratory import Draft, Laboratory, Part
from context_os.connectors.playbook import Playbook
from context_os.errors import BatchRefused, ConfigurationError
from context_os.feedback import FeedbackLog, Verdict, Vote
from context_os.goldsets import HEAD_FILE, Folder, write_whole
from context_os.ingestion import Ingestion, Progress, Reconciliation, find_repository
from context_os.ledger import Entry, Ledger, Quarantined
from context_os.model import Actor, KnowledgeItem, Value, content_checksum, utcnow
from context_os.playbook import Applied, Playbooks, Policy, importing
from context_os.playbook_formats import Bullet, ReadPlaybook
from context_os.settings import Settings
from context_os.suppression import Erasures

CONNECTOR: Final = Laboratory.name
_EVERYTHING: Final = Policy(max_bullets=1_000_000, max_tokens=1_000_000_000, alike=1.0)
_ORIGIN: Final = "migration"
_REHEARSED: Final = ("ledger.db*", "feedback.db*", "playbook*.db*")
"""Files of the home that a dry run works on copies of."""


class Tally(Value):
    """What became of the entries of one kind. ``found`` is the sum of the others: ``same`` say what another entry said
    already, ``left_out`` are kept out by an erasure."""

    found: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    same: int = 0
    expired: int = 0
    refused: int = 0
    left_out: int = 0


class Refused(Value):
    """An entry that was not taken: its file, its place there, and every reason with the path inside the entry."""

    file: str
    place: str
    reasons: tuple[str, ...]


class Expired(Value):
    """An entry whose time to live was over before the migration."""

    file: str
    place: str
    id: str
    at: str


class Migration(Value):
    """What a migration did, or in a dry run would do. ``files`` maps each file of the laboratory to what it is,
    ``skipped`` are files that are nothing of a laboratory's, ``kinds`` counts by kind. ``votes`` is how many were added
    to the log of feedback for the counters that were carried over; ``reconcile`` is empty in a dry run."""

    repository: str
    tenant: str
    store: str
    dry_run: bool
    run_id: str = ""
    sources: tuple[str, ...]
    files: dict[str, str]
    skipped: tuple[str, ...]
    kinds: dict[str, Tally]
    refused: tuple[Refused, ...]
    expired: tuple[Expired, ...]
    notes: tuple[str, ...]
    votes: int = 0
    reconcile: Reconciliation | None = None
    seconds: float = Field(default=0.0, ge=0)

    @property
    def written(self) -> int:
        return sum(tally.added + tally.changed for tally in self.kinds.values()) + self.votes


def migrate(ingestion: Ingestion, sources: Sequence[Path], repository: str, run_id: str = "") -> Migration:
    """Bring a laboratory's folder, or single files of it, into the store under the name of a repository, which is
    registered where the laboratory lies if nobody knows it yet. Raises ConfigurationError where there is no laboratory,
    and what ingestion raises."""
    work = _Work(_reading(ingestion, sources), sources, repository)
    before = work.entries()
    found = [work.ingestion.update(CONNECTOR, work.repository, run_id).reconcile]
    quarantined = work.ingestion.ledger.quarantined(work.scope)
    learned = work.teach()
    if learned:
        found.append(work.ingestion.update(Playbook.name, work.repository, run_id).reconcile)
    goldsets = [_copy_goldset(part, ingestion.settings.goldsets.folder, work.repository) for part in work.goldsets]
    done = work.told(before, work.entries(), quarantined, learned, goldsets, run_id=run_id, reconcile=_sum(found))
    work.ingestion.projection.catch_up()
    return done


def rehearse(settings: Settings, sources: Sequence[Path], repository: str, progress: Progress) -> Migration:
    """What ``migrate`` would do, by doing it on copies: neither the store nor the home is touched. Raises the same."""
    with _copied(settings, progress) as ingestion:
        work = _Work(_reading(ingestion, sources), sources, repository)
        staged = work.ingestion.stage(CONNECTOR, work.repository)
        verdict = work.ingestion.judge(staged)
        if not verdict.passed:
            raise BatchRefused(f"the gate would refuse this laboratory: {verdict.reason}")
        after, quarantined = work.ingestion.foresee(staged, verdict)
        goldsets = [
            _copy_goldset(part, settings.goldsets.folder, work.repository, dry_run=True) for part in work.goldsets
        ]
        return work.told(work.entries(), after, quarantined, work.teach(), goldsets, dry_run=True)


def _sum(found: Sequence[Reconciliation]) -> Reconciliation:
    return Reconciliation(
        ledger=sum(each.ledger for each in found),
        store=sum(each.store for each in found),
        differences=tuple(difference for each in found for difference in each.differences),
    )


def _reading(ingestion: Ingestion, sources: Sequence[Path]) -> Ingestion:
    """The same ingestion with the connector pointed at the laboratory."""
    settings = ingestion.settings
    options = {**settings.connectors.get(CONNECTOR, {}), "sources": [str(each) for each in sources]}
    pointed = settings.model_copy(update={"connectors": {**settings.connectors, CONNECTOR: options}})
    return Ingestion(pointed, ingestion.store, ingestion.ledger, ingestion.progress)


@contextmanager
def _copied(settings: Settings, progress: Progress) -> Iterator[Ingestion]:
    """An ingestion that believes to be in the home and works in a copy of what it changes there."""
    with tempfile.TemporaryDirectory(prefix="context-os-") as folder, settings.make_store() as store:
        home = Path(folder)
        for file in (file for pattern in _REHEARSED for file in settings.home.glob(pattern)):
            shutil.copyfile(file, home / file.name)
        ledger = Ledger(home / "ledger.db")
        if store.name == "lab":
            ledger.follow(store.identity)
        yield Ingestion(settings.model_copy(update={"home": home}), store, ledger, progress)


def _repository(ingestion: Ingestion, name: str, sources: Sequence[Path]) -> Repository:
    settings, ledger = ingestion.settings, ingestion.ledger
    if name in {*settings.repositories, *(each.name for each in ledger.repositories())}:
        return find_repository(settings, ledger, name)
    first = sources[0].expanduser().resolve()
    return Repository(name, first if first.is_dir() else first.parent, settings.tenant)


class _Learned(NamedTuple):
    """What became of a lesson: an outcome as ``Tally`` counts them, and what a person should know."""

    outcome: str
    note: str = ""


class _Goldset(NamedTuple):
    """What became of a goldset's file: an outcome as ``Tally`` counts them, and why it was refused."""

    path: str
    outcome: str
    reasons: tuple[str, ...] = ()


def _copy_goldset(part: Part, goldsets: Path, repository: Repository, *, dry_run: bool = False) -> _Goldset:
    """Below the team's goldsets, by the name of its file, as it is; where it names no repository its cases are about
    the one that is migrated into. What is there already is never replaced: it may have grown cases of its own."""
    source = Path(part.path)
    name = source.parent.name if source.stem in {"goldset", "cases"} else source.stem
    head = {"repositories": {repository.name: {"source": str(repository.location)}}}
    text = json.dumps({**head, **json.loads(source.read_text(encoding="utf-8"))}, indent=2, ensure_ascii=False) + "\n"
    known = goldsets / name / HEAD_FILE
    if known.is_file():
        same = known.read_text(encoding="utf-8") == text
        reason = f"{known} is another goldset of this name already; rename one of them"
        return _Goldset(part.path, "unchanged") if same else _Goldset(part.path, "refused", (reason,))
    with tempfile.TemporaryDirectory(prefix="context-os-") as scratch:
        tried = Folder(Path(scratch) / name)
        tried.path.mkdir()
        write_whole(tried.path / HEAD_FILE, text)
        try:
            tried.read()
        except ConfigurationError as error:
            told = str(error).replace(str(tried.path / HEAD_FILE), source.name)
            return _Goldset(part.path, "refused", tuple(line.strip() for line in told.splitlines()[1:]))
    if not dry_run:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, text)
    return _Goldset(part.path, "added")


class _Work:
    """One migration: what was read, and what of it is told."""

    def __init__(self, ingestion: Ingestion, sources: Sequence[Path], repository: str) -> None:
        self.started = time.monotonic()
        self.ingestion = ingestion
        self.sources = sources
        self.repository = _repository(ingestion, repository, sources)
        connector = ingestion.settings.connector(CONNECTOR)
        assert isinstance(connector, Laboratory)
        ingestion.progress("reading the laboratory")
        self.parts = connector.parts(self.repository)
        if all(part.form is None for part in self.parts):
            places = ", ".join(map(str, sources))
            raise ConfigurationError(
                f"nothing of a laboratory is in {places}: looked for a store.json, knowledge/rules/*.md, events, "
                "snapshots, skills, playbooks and goldsets"
            )
        self.scope = ingestion.scope(CONNECTOR, self.repository.name)
        self.suppression = Erasures(ingestion.ledger).suppression(ingestion.settings.tenant)

    @property
    def goldsets(self) -> list[Part]:
        return [part for part in self.parts if part.form == "goldset"]

    def entries(self) -> dict[str, Entry]:
        return self.ingestion.ledger.entries(self.scope)

    def teach(self) -> dict[int, _Learned]:
        """Put the lessons into the repository's playbook; what became of each, by the identity of its draft. All stay
        that differ in a word: how many may stay is for the next change to the playbook."""
        settings, name = self.ingestion.settings, self.repository.name
        drafts = [
            draft
            for part in self.parts
            for draft in part.lessons
            if draft.bullet is not None and not self.suppression.mentions(draft.bullet.model_dump_json())
        ]
        if not drafts:
            return {}
        playbooks = Playbooks(settings.make_home())
        before = {each.id: each for each in playbooks.bullets(settings.tenant, name, all=True)}
        bullets = tuple(draft.bullet for draft in drafts if draft.bullet is not None)
        deltas = importing(ReadPlaybook(format="playbook", bullets=bullets), settings.principal, utcnow())
        applied = playbooks.apply(settings.tenant, name, deltas, _EVERYTHING)
        after = {each.id: each for each in playbooks.bullets(settings.tenant, name, all=True)}
        # Behind them the budget may tell of more, which it cannot here.
        pairs = zip(drafts, applied, strict=False)
        return {id(draft): _learned(draft, told, before, after) for draft, told in pairs}

    def told(
        self,
        before: Mapping[str, Entry],
        after: Mapping[str, Entry],
        quarantined: Iterable[Quarantined],
        learned: Mapping[int, _Learned],
        goldsets: Sequence[_Goldset],
        *,
        dry_run: bool = False,
        run_id: str = "",
        reconcile: Reconciliation | None = None,
    ) -> Migration:
        paths = {part.path for part in self.parts}
        refused = [Refused(file=each.unit, place=each.key, reasons=each.reasons) for each in quarantined]
        refused = [each for each in refused if each.file in paths]
        unfit = [Refused(file=each.path, place="file", reasons=each.reasons) for each in goldsets if each.reasons]
        now = utcnow()
        settings = self.ingestion.settings
        items = [item for part in self.parts for item in part.items if item.id in after]
        return Migration(
            repository=self.repository.name,
            tenant=settings.tenant,
            store=settings.store_kind,
            dry_run=dry_run,
            run_id=run_id,
            sources=tuple(map(str, self.sources)),
            files={part.path: part.form for part in self.parts if part.form is not None},
            skipped=tuple(part.path for part in self.parts if part.form is None),
            kinds=self._tallies(before, after, {(each.file, each.place) for each in refused}, learned, goldsets, now),
            refused=(*refused, *unfit),
            expired=tuple(_expired(self.parts, now)),
            notes=tuple(self._notes(learned)),
            votes=carry_counters(FeedbackLog(settings.make_home()), settings.tenant, items),
            reconcile=reconcile,
            seconds=round(time.monotonic() - self.started, 3),
        )

    def _notes(self, learned: Mapping[int, _Learned]) -> Iterator[str]:
        for part in self.parts:
            told = (learned[id(draft)].note for draft in part.lessons if id(draft) in learned)
            for note in filter(None, (*part.notes, *told)):
                yield self.suppression.redacted(f"{part.path}: {note}")

    def _tallies(
        self,
        before: Mapping[str, Entry],
        after: Mapping[str, Entry],
        refused: set[tuple[str, str]],
        learned: Mapping[int, _Learned],
        goldsets: Sequence[_Goldset],
        now: datetime,
    ) -> dict[str, Tally]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for goldset in goldsets:
            counts["goldset"].update(("found", goldset.outcome))
        for part in self.parts:
            for draft in part.drafts:
                outcome = (
                    learned[id(draft)].outcome
                    if id(draft) in learned
                    else _outcome(part, draft, before, after, refused, now)
                )
                counts[draft.kind].update(("found", outcome))
        return {kind: Tally(**counts[kind]) for kind in sorted(counts)}


def _learned(draft: Draft, told: Applied, before: Mapping[str, Bullet], after: Mapping[str, Bullet]) -> _Learned:
    assert draft.bullet is not None
    mine, held = draft.bullet.id, next(iter(told.ids), "")
    if told.outcome == "proposed":
        return _Learned("left_out", f"{mine} waits for somebody to approve it: {told.why}")
    note = "" if held == mine else f"{mine} of {draft.place} is {held} in the playbook: {told.why}"
    if held not in before:
        return _Learned("same" if told.outcome == "duplicate" else "added", note)
    if before[held] != after[held]:
        return _Learned("changed", note)
    return _Learned("unchanged" if held == mine else "same", note)


def _outcome(
    part: Part,
    draft: Draft,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    refused: set[tuple[str, str]],
    now: datetime,
) -> str:
    if draft.reasons:
        return "refused"
    if draft.item is None:
        return "left_out"
    id, gated = draft.item.id, (part.path, draft.item.metadata.title) in refused
    old, new = before.get(id), after.get(id)
    outcomes = (
        ("same", bool(draft.same_as)),
        ("expired", draft.item.expires_at <= now),
        ("refused", gated and new == old),
        ("left_out", new is None),
        ("added", old is None),
        ("unchanged", old is not None and new is not None and old.checksum == new.checksum),
        ("changed", True),
    )
    return next(outcome for outcome, holds in outcomes if holds)


def _expired(parts: Sequence[Part], now: datetime) -> Iterator[Expired]:
    for part in parts:
        for draft in part.drafts:
            if draft.item is not None and not draft.reasons and draft.item.expires_at <= now:
                at = f"{draft.item.expires_at:%Y-%m-%dT%H:%M:%SZ}"
                yield Expired(file=part.path, place=draft.place, id=draft.item.id, at=at)


def carry_counters(log: FeedbackLog, tenant: str, items: Iterable[KnowledgeItem]) -> int:
    """Make the votes that were carried over into a tenant's log amount to the counters of these items; returns how many
    had to be added. A counter that grew, or shrank, since the last time is a further vote for the difference."""
    carried: Counter[tuple[str, Verdict]] = Counter()
    numbers: Counter[tuple[str, Verdict]] = Counter()
    for _, vote in log.votes(tenant):
        if vote.origin == _ORIGIN:
            carried[vote.subject, vote.verdict] += vote.count
            numbers[vote.subject, vote.verdict] += 1
    votes = []
    for item in items:
        for verdict, count, at in _counters(item):
            place = (item.id, verdict)
            if count != carried[place]:
                votes.append(_vote(item, verdict, count - carried[place], at, numbers[place]))
    return log.add(tenant, votes) if votes else 0


def _counters(item: KnowledgeItem) -> Iterator[tuple[Verdict, int, datetime]]:
    feedback, updated = item.feedback, item.metadata.updated_at
    yield Verdict.HELPFUL, feedback.helpful, feedback.last_helpful_at or updated
    yield Verdict.HARMFUL, feedback.harmful, feedback.last_harmful_at or updated


def _vote(item: KnowledgeItem, verdict: Verdict, count: int, at: datetime, number: int) -> Vote:
    # Numbered, because a counter may come back to a value that it had before.
    return Vote(
        key=f"{_ORIGIN}:{content_checksum(item.id)[:32]}:{verdict}:{number}",
        subject=item.id,
        verdict=verdict,
        at=at,
        principal=_ORIGIN,
        actor=Actor.AUTOMATION,
        origin=_ORIGIN,
        count=count,
    )
