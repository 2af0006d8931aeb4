"""From traces of reviews to lessons: the generator, reflector and curator of Agentic Context Engineering (arXiv
2510.04618).

The **generator** makes candidates of traces: by rules that need no model (what was needed and not handed out, findings
that were dismissed or accepted again and again, what a person noted), and with a model where one is configured. The
**reflector** says of each candidate keep, revise or drop and why, and tags the lessons that were used as helpful,
harmful or neutral. The **curator** is ``Playbooks.apply``. What only several traces show needs them side by side, so
traces are remembered, and learning from one of them again changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from context_os.chat import Chat
from context_os.embedding import Embedding
from context_os.errors import ConfigurationError
from context_os.feedback import Verdict
from context_os.model import Actor, Time, Value, content_checksum
from context_os.paths import class_of
from context_os.playbook import Applied, Delta, Operation, Playbooks, Policy, Tag, opposed, similarity
from context_os.playbook_formats import Bullet, Status
from context_os.text import words

_SUPPORT: Final = 2
"""Traces that must show the same before a rule makes a lesson of it: once is chance."""
_CONFIDENCE: Final = 0.4
"""Of the changes to a file, the share that must have needed something for a lesson."""
_FOLDER_CONFIDENCE: Final = 0.5
"""The same of a folder, whose changes have less in common."""
_SAME_FINDING: Final = 0.6
"""Cosine from which two findings are one, said by a reviewer in other words."""
_MOST_TARGETS: Final = 8
_DEEPEST: Final = 3
"""Folders above a changed file that are looked at as its area."""
_FEWEST_WORDS: Final = 5
_HARM: Final = 3
"""Harmful votes beyond the helpful ones that take a lesson out."""
_LONGEST: Final = 600
"""Characters of what is taken over from a finding or a comment."""
_TRACES_AT_ONCE: Final = 20

Judgement = Literal["keep", "revise", "drop"]
Reference = str
"""``path:src/pool.py`` or ``symbol:pool.release``."""


class Finding(Value):
    """Something a review reported. ``lesson`` is the bullet that it followed, where it says so."""

    text: str = Field(min_length=1, max_length=20_000)
    path: str = ""
    outcome: Literal["accepted", "dismissed", "open"] = "open"
    lesson: str = ""


class Trace(Value):
    """One review. ``paths`` are what the change showed when it was reviewed, ``carried`` what the pack handed out,
    ``touched`` what the final change touched, ``lessons`` the bullets in the pack, ``verdicts`` what somebody said of
    these. ``carried`` and ``touched`` are references. A line ``lesson: ...`` in the comment is a candidate."""

    id: str = Field(min_length=1, max_length=120)
    at: Time
    pack: str = ""
    question: str = ""
    paths: tuple[str, ...] = ()
    carried: tuple[Reference, ...] = ()
    touched: tuple[Reference, ...] = ()
    lessons: tuple[str, ...] = ()
    verdicts: dict[str, Verdict] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    comment: str = ""

    @property
    def missing(self) -> list[Reference]:
        """What was needed beyond the change as reviewed and was not handed out."""
        return [each for each in self.needed if each not in self.carried]

    @property
    def needed(self) -> list[Reference]:
        shown = {f"path:{path}" for path in self.paths}
        return [each for each in dict.fromkeys(self.touched) if each not in shown]


class Candidate(Value):
    """A lesson somebody may want. ``source`` says who proposes it; ``outside`` that its words are a stranger's, so that
    a person has to look at it before a model does."""

    section: str
    content: str
    about: tuple[Reference, ...] = ()
    evidence: str = ""
    traces: tuple[str, ...] = ()
    source: str
    outside: bool = False


class Judged(Value):
    """A candidate, what the reflector says of it, and what the curator made of it."""

    candidate: Candidate
    judgement: Judgement
    why: str
    applied: Applied | None = None


class Learned(Value):
    """``traces`` were looked at, ``tagged`` lessons got a tag that is new."""

    traces: int
    tagged: int
    judged: tuple[Judged, ...]
    curated: tuple[Applied, ...] = ()
    notes: tuple[str, ...] = ()


def read_traces(text: str, name: str = "traces") -> list[Trace]:
    """Traces as JSON lines. Raises ConfigurationError listing every line that is none; nothing is learned then."""
    found, problems = [], []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(Trace.model_validate_json(line))
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False)
            told = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in details[:5])
            problems.append(f"{name}, line {number}: {told}")
    if problems:
        raise ConfigurationError("these are no traces:\n  " + "\n  ".join(problems))
    return found


def learn(
    playbooks: Playbooks,
    tenant: str,
    repository: str,
    traces: Sequence[Trace],
    policy: Policy,
    *,
    embedding: Embedding | None = None,
    chat: Chat | None = None,
    dry: bool = False,
) -> Learned:
    """Learn from these traces and those that are remembered. With ``dry`` nothing is remembered, tagged or changed.
    Raises ModelError where a model is asked and does not answer; nothing has changed then."""
    every = {each.id: each for each in _remembered(playbooks, tenant, repository)} | {each.id: each for each in traces}
    together = sorted(every.values(), key=lambda each: (each.at, each.id))
    if not together:
        return Learned(traces=0, tagged=0, judged=())
    bullets = playbooks.bullets(tenant, repository)
    notes: list[str] = []
    candidates = list(generate(together))
    if chat is not None:
        candidates += _ask_for_candidates(chat, traces, bullets, notes)
    judged = [reflect(each, bullets, policy) for each in candidates]
    if chat is not None:
        judged = _ask_for_judgements(chat, judged, bullets, notes)
    at = together[-1].at
    deltas = {place: _delta(each.candidate, at) for place, each in enumerate(judged) if each.judgement != "drop"}
    asked = [*deltas.values(), *_retired(bullets, at)]
    tags = list(tag(traces, bullets))
    if dry:
        done = playbooks.preview(tenant, repository, asked, policy, embedding)
        tagged = len(tags)
    else:
        playbooks.remember(tenant, repository, {each.id: (each.at, each.model_dump_json()) for each in traces})
        tagged = playbooks.tag(tenant, repository, tags, at)
        done = playbooks.apply(tenant, repository, asked, policy, embedding)
    applied = dict(zip(deltas, done, strict=False))
    told = [each.model_copy(update={"applied": applied.get(place)}) for place, each in enumerate(judged)]
    return Learned(
        traces=len(together), tagged=tagged, judged=tuple(told), curated=tuple(done[len(deltas) :]), notes=tuple(notes)
    )


def _remembered(playbooks: Playbooks, tenant: str, repository: str) -> Iterator[Trace]:
    for text in playbooks.remembered(tenant, repository):
        yield Trace.model_validate_json(text)


def _delta(candidate: Candidate, at: datetime) -> Delta:
    changes = {
        "section": candidate.section,
        "content": candidate.content,
        "about": candidate.about,
        "evidence": candidate.evidence,
        "origin": candidate.traces,
        **({"status": Status.PENDING} if candidate.outside else {}),
    }
    return Delta(
        key=f"learn:{content_checksum(candidate.section, candidate.content, candidate.about)[:32]}",
        operation=Operation.ADD,
        changes=changes,
        reason=f"{candidate.source}: {candidate.evidence}",
        principal="curator",
        actor=Actor.AUTOMATION,
        at=at,
    )


def _retired(bullets: Sequence[Bullet], at: datetime) -> list[Delta]:
    """REMOVE for lessons that harm more than they help by several votes. Their counters are in the key: one that
    somebody brings back goes again only when more is said against it."""
    return [
        Delta(
            key=f"retire:{bullet.id}:{bullet.helpful}:{bullet.harmful}",
            operation=Operation.REMOVE,
            ids=(bullet.id,),
            reason=f"it harmed {bullet.harmful} times and helped {bullet.helpful}",
            principal="curator",
            actor=Actor.AUTOMATION,
            at=at,
        )
        for bullet in bullets
        if bullet.harmful - bullet.helpful >= _HARM and not bullet.pinned
    ]


# The generator


def generate(traces: Sequence[Trace]) -> Iterator[Candidate]:
    """Candidates by rule, the same for the same traces."""
    yield from _missing(traces)
    yield from _findings(traces)
    yield from _noted(traces)


class _Need(NamedTuple):
    """That changes in ``area`` needed ``target``, in ``hits`` of the ``total`` of them."""

    area: str
    target: Reference
    hits: tuple[Trace, ...]
    total: int

    @property
    def sureness(self) -> float:
        """With one imagined change that did not need it, so that two of two are less sure than nine of nine."""
        return len(self.hits) / (self.total + 1)

    @property
    def lacked(self) -> int:
        return sum(self.target in trace.missing for trace in self.hits)

    @property
    def is_folder(self) -> bool:
        return self.area.endswith("/**")


def _missing(traces: Sequence[Trace]) -> Iterator[Candidate]:
    """What changes in an area needed, where some of it was not handed out. One lesson an area, with what it needs most
    often first."""
    within: dict[str, list[Trace]] = {}
    for trace in traces:
        for area in dict.fromkeys(area for path in trace.paths for area in _areas(path)):
            within.setdefault(area, []).append(trace)
    wanted = Counter(target for trace in traces for target in trace.needed)
    needs: dict[str, list[_Need]] = {}
    for target in sorted(target for target, count in wanted.items() if count >= _SUPPORT):
        for need in _needs_of(target, within):
            needs.setdefault(need.area, []).append(need)
    for area, several in sorted(needs.items()):
        several.sort(key=lambda need: (-len(need.hits), need.target))
        for tests in (False, True):
            chosen = [each for each in several if _is_test(each.target) == tests]
            if any(need.lacked for need in chosen):
                yield _also_needs(area, chosen[:_MOST_TARGETS], within[area], traces, tests=tests)


def _needs_of(target: Reference, within: Mapping[str, Sequence[Trace]]) -> list[_Need]:
    """Of every file whose changes needed it often enough; where no file's did, of the folder whose changes needed it
    most surely, of equals the narrowest."""
    found = [
        _Need(area, target, hits, len(traces))
        for area, traces in within.items()
        if not _is_inside(area, target)
        and len(hits := tuple(trace for trace in traces if target in trace.needed)) >= _SUPPORT
    ]
    files = [need for need in found if not need.is_folder and need.sureness >= _CONFIDENCE]
    folders = [need for need in found if need.is_folder and need.lacked and need.sureness >= _FOLDER_CONFIDENCE]
    return files or sorted(folders, key=lambda need: (need.sureness, need.area.count("/"), need.area))[-1:]


def _is_inside(area: str, target: Reference) -> bool:
    """Whether a target is the area or, as far as its name tells, stands in it: that a change needs what it changes is
    no lesson."""
    kind, _, name = target.partition(":")
    return name == area if kind == "path" else PurePosixPath(area).stem in name.split(".")[:-1]


def _also_needs(
    area: str, needs: Sequence[_Need], within: Sequence[Trace], traces: Sequence[Trace], *, tests: bool
) -> Candidate:
    hits = list({trace.id: trace for need in needs for trace in need.hits}.values())
    terms = _terms(hits, traces)
    about_what = f" about {', '.join(terms)}" if terms else ""
    named = ", ".join(f"`{need.target.partition(':')[2]}`" for need in needs)
    lacked = sum(any(need.target in trace.missing for need in needs) for trace in hits)
    return Candidate(
        section="TESTS" if tests else "ALSO NEEDED",
        content=f"Changes{about_what} in `{area}` also need {'the tests in ' if tests else ''}{named}.",
        about=(f"path:{area}", *(need.target for need in needs)),
        evidence=f"{len(hits)} of {len(within)} changes there needed it, {lacked} were not given it",
        traces=tuple(trace.id for trace in hits),
        source="what was missing",
    )


def _terms(hits: Sequence[Trace], traces: Sequence[Trace]) -> list[str]:
    """Up to three words that most of these requests have and few others."""
    inside = Counter(word for trace in hits for word in set(words(trace.question)) if len(word) > 3)
    everywhere = Counter(word for trace in traces for word in set(words(trace.question)))
    good = [
        (count / everywhere[word], count, word)
        for word, count in inside.items()
        if count >= max(_SUPPORT, 0.6 * len(hits)) and count / everywhere[word] > 0.6 and word.isalpha()
    ]
    return [word for _, _, word in sorted(good, key=lambda each: (-each[0], -each[1], each[2]))[:3]]


def _areas(path: str) -> Iterator[str]:
    """The path, and the folders above it as globs."""
    yield path
    for folder in islice(PurePosixPath(path).parents, _DEEPEST):
        if str(folder) != ".":
            yield f"{folder}/**"


def _is_test(target: Reference) -> bool:
    kind, _, name = target.partition(":")
    return kind == "path" and class_of(name) == "test"


def _findings(traces: Sequence[Trace]) -> Iterator[Candidate]:
    """Findings that people keep dismissing are not to be reported, those that they keep accepting are to be looked
    for. Where opinions differ nothing is learned."""
    groups: list[list[tuple[Trace, Finding]]] = []
    for trace in traces:
        for finding in trace.findings:
            if finding.outcome != "open":
                group = next((each for each in groups if _same(each[0][1].text, finding.text)), None)
                if group is None:
                    groups.append([(trace, finding)])
                else:
                    group.append((trace, finding))
    for group in groups:
        outcomes = {finding.outcome for _, finding in group}
        ids = tuple(dict.fromkeys(trace.id for trace, _ in group))
        if len(outcomes) != 1 or len(ids) < _SUPPORT:
            continue
        shortest = min((finding.text for _, finding in group), key=lambda text: (len(text), text))
        area = _common_area([finding.path for _, finding in group if finding.path])
        where = f" in `{area}`" if area else ""
        dismissed = outcomes == {"dismissed"}
        yield Candidate(
            section="NOT TO REPORT" if dismissed else "TO LOOK FOR",
            content=f"{'Do not report' if dismissed else 'Look for'}{where}: {_quoted(shortest)}",
            about=(f"path:{area}",) if area else (),
            evidence=f"{'dismissed' if dismissed else 'accepted'} in {len(ids)} reviews",
            traces=ids,
            source="findings",
            outside=True,
        )


def _same(one: str, other: str) -> bool:
    return similarity(one, other) >= _SAME_FINDING and not opposed(one, other)


def _noted(traces: Sequence[Trace]) -> Iterator[Candidate]:
    """``lesson: ...`` in a comment: somebody said it outright, so once is enough."""
    for trace in traces:
        for line in trace.comment.split("\n"):
            mark, _, text = line.strip().partition(":")
            if mark.lower() == "lesson" and text.strip():
                area = _common_area(trace.paths)
                yield Candidate(
                    section="NOTED IN REVIEWS",
                    content=_quoted(text),
                    about=(f"path:{area}",) if area else (),
                    evidence=f"noted in {trace.id}",
                    traces=(trace.id,),
                    source="a comment",
                    outside=True,
                )


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()}..."


def _common_area(paths: Sequence[str]) -> str:
    """The narrowest area that all of these are in, "" where that is the whole repository."""
    if not paths:
        return ""
    common = set(_areas(paths[0])).intersection(*(set(_areas(path)) for path in paths[1:]))
    return max(common, key=lambda area: (area.count("/") + (not area.endswith("/**")), area), default="")


# The reflector


def reflect(candidate: Candidate, bullets: Sequence[Bullet], policy: Policy) -> Judged:
    """Keep, revise (what is said already learns where else it was seen) or drop, by rule."""
    said = set(words(candidate.content))
    if not candidate.traces:
        return Judged(candidate=candidate, judgement="drop", why="nothing speaks for it: it names no trace")
    if not said or (len(said) < _FEWEST_WORDS and not candidate.about):
        return Judged(candidate=candidate, judgement="drop", why="too vague: a few words about nothing in particular")
    for bullet in bullets:
        if similarity(bullet.content, candidate.content) >= policy.alike:
            if opposed(bullet.content, candidate.content):
                why = f"it reads like the opposite of {bullet.id}: somebody has to decide"
                return Judged(candidate=candidate, judgement="keep", why=why)
            return Judged(candidate=candidate, judgement="revise", why=f"{bullet.id} says it already")
    return Judged(candidate=candidate, judgement="keep", why=candidate.evidence or "it is new")


def tag(traces: Sequence[Trace], bullets: Sequence[Bullet]) -> Iterator[Tag]:
    """How the lessons that were used did. What somebody said of one counts before what became of a finding that
    followed it, and that before whether the final change touched what it points at."""
    known = {bullet.id: bullet for bullet in bullets}
    for trace in traces:
        for id in dict.fromkeys((*trace.lessons, *trace.verdicts)):
            if id in known:
                yield Tag(trace.id, id, *_did(known[id], trace))


def _did(bullet: Bullet, trace: Trace) -> tuple[str, str]:
    if bullet.id in trace.verdicts:
        return trace.verdicts[bullet.id].value, "somebody said so"
    outcomes = {each.outcome for each in trace.findings if each.lesson == bullet.id} - {"open"}
    if len(outcomes) == 1:
        accepted = outcomes == {"accepted"}
        return (
            "helpful" if accepted else "harmful",
            f"a finding after it was {'accepted' if accepted else 'dismissed'}",
        )
    needed = next((each for each in bullet.about if each in trace.needed), "")
    if needed and not outcomes:
        return "helpful", f"the change needed {needed}"
    return "neutral", "nothing speaks for or against it"


# With a model


class _Lesson(Value):
    section: str = Field(max_length=80)
    content: str = Field(max_length=_LONGEST)
    about: tuple[Reference, ...] = ()
    evidence: str = Field(default="", max_length=400)
    traces: tuple[str, ...] = ()


class _Lessons(Value):
    lessons: tuple[_Lesson, ...] = Field(max_length=20)


class _Opinion(Value):
    number: int
    judgement: Judgement
    why: str = Field(max_length=400)
    content: str = Field(default="", max_length=_LONGEST)


class _Opinions(Value):
    opinions: tuple[_Opinion, ...] = Field(max_length=200)


_GENERATE: Final = (
    "You read traces of code reviews: what a change was about, what the reviewer was given, what the final change"
    " touched, which findings were accepted or dismissed. Propose at most five lessons that would have helped these"
    " reviews and will help others: specific, true of this code, one or two sentences. Name the ids of the traces that"
    " show it, and in `about` the paths and symbols of these traces that it concerns. Repeat no lesson that is known."
)
_REFLECT: Final = (
    "You judge candidate lessons for code reviewers. Judge each by its number: keep what is specific and supported,"
    " revise what should be said better (give the new text in `content`), drop what is vague, obvious, unsupported or"
    " contradicts a known lesson that stands well. Say why in a sentence."
)


def _ask_for_candidates(
    chat: Chat, traces: Sequence[Trace], bullets: Sequence[Bullet], notes: list[str]
) -> Iterator[Candidate]:
    known = {
        *(trace.id for trace in traces),
        *(each for trace in traces for each in (*trace.touched, *trace.carried)),
        *(f"path:{path}" for trace in traces for path in trace.paths),
    }
    for start in range(0, len(traces), _TRACES_AT_ONCE):
        some = traces[start : start + _TRACES_AT_ONCE]
        data = _packed({"traces": [each.model_dump(mode="json", exclude_defaults=True) for each in some]}, bullets)
        if not chat.affords(_GENERATE, data):
            notes.append(f"the model's budget is spent: {len(traces) - start} traces were not shown to it")
            return
        for lesson in chat.ask(_GENERATE, data, _Lessons).lessons:
            yield Candidate(
                section=lesson.section,
                content=_quoted(lesson.content),
                about=tuple(each for each in lesson.about if each in known),
                evidence=_quoted(lesson.evidence),
                traces=tuple(each for each in lesson.traces if each in known),
                source=chat.model,
                outside=True,
            )


def _ask_for_judgements(
    chat: Chat, judged: Sequence[Judged], bullets: Sequence[Bullet], notes: list[str]
) -> list[Judged]:
    """The model's opinion of what the rules did not drop. A text that it revises is a stranger's."""
    open_ = {number: each for number, each in enumerate(judged) if each.judgement != "drop"}
    shown = [{"number": number, **each.candidate.model_dump(mode="json")} for number, each in open_.items()]
    data = _packed({"candidates": shown}, bullets)
    if not open_ or not chat.affords(_REFLECT, data):
        notes += ["the model's budget is spent: it judged no candidate"] if open_ else []
        return list(judged)
    found = list(judged)
    for opinion in chat.ask(_REFLECT, data, _Opinions).opinions:
        if opinion.number in open_:
            found[opinion.number] = _revised(open_[opinion.number], opinion, chat.model)
    return found


def _revised(judged: Judged, opinion: _Opinion, model: str) -> Judged:
    candidate = judged.candidate
    if opinion.judgement == "revise" and opinion.content.strip():
        candidate = candidate.model_copy(update={"content": _quoted(opinion.content), "outside": True})
    return judged.model_copy(
        update={"candidate": candidate, "judgement": opinion.judgement, "why": f"{model}: {_quoted(opinion.why)}"}
    )


def _packed(about: Mapping[str, Any], bullets: Iterable[Bullet]) -> str:
    lessons = [{"id": each.id, "content": each.content, "helpful": each.helpful} for each in bullets]
    return json.dumps({**about, "known lessons": lessons}, ensure_ascii=False)
