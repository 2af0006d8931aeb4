"""The lessons of a repository's playbook as items: what was learned is found, judged and handed out like all else.

A unit is one active bullet, ``bullet/<id>``, its hash covers its counters: a vote is a change. The source is no file of
the repository but the home, which the settings fill in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from context_os.connectors import Connector, Expectation, Known, Listing, Repository, Unit
from context_os.model import (
    Actor,
    FeedbackCounters,
    KnowledgeItem,
    LineageAction,
    LineageRecord,
    Relation,
    Source,
    content_checksum,
    utcnow,
)
from context_os.playbook import FILE_NAME, Playbooks, subject_of
from context_os.playbook_formats import Bullet
from context_os.scope import valid_glob

_LONGEST_TITLE = 120


class Playbook(Connector):
    """Configuration. ``home`` is the folder of state whose playbook is read; the settings' own where none is given."""

    name: ClassVar[str] = "playbook"
    domain: ClassVar[str] = "code"
    kinds: ClassVar[tuple[str, ...]] = ("lesson",)
    summary: ClassVar[str] = "Lessons that reviews taught, from the repository's playbook"
    transport: ClassVar[frozenset[str]] = frozenset({"home"})
    expectations: ClassVar[tuple[Expectation, ...]] = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["lesson"]},
            "the connector yields lessons, nothing else",
        ),
        Expectation(
            "expect_column_values_to_match_regex",
            {"column": "unit", "regex": r"^bullet/\S+$"},
            "a unit is one bullet, bullet/<id>",
        ),
        Expectation(
            "expect_column_values_to_be_between",
            {"column": "text_length", "max_value": 2_000},
            "a lesson this long leaves a pack no room for others; say it in a few sentences",
            critical=False,
        ),
    )

    home: Path | None = None

    def scan(self, repository: Repository, known: Known) -> Listing:
        return Listing("", {_key(each): _hash(each) for each in self._bullets(repository)})

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        bullets = {_key(each): each for each in self._bullets(repository)}
        counters: dict[str, FeedbackCounters] = {}
        if self.home is not None and bullets:
            ids = [bullet.id for bullet in bullets.values()]
            counters = Playbooks(self.home).counters(repository.tenant, repository.name, ids)
        for key in keys:
            bullet = bullets.get(key)
            if bullet is None:
                yield Unit(key, "", (), notes=("the bullet was removed since it was listed",))
            else:
                yield Unit(key, _hash(bullet), (self._item(repository, bullet, counters[bullet.id]),))

    def concerns(self, path: str) -> bool:
        """No file of the repository changes a lesson."""
        return False

    def _bullets(self, repository: Repository) -> list[Bullet]:
        if self.home is None or not (self.home / FILE_NAME).is_file():
            return []
        return Playbooks(self.home).bullets(repository.tenant, repository.name)

    def _item(self, repository: Repository, bullet: Bullet, counters: FeedbackCounters) -> KnowledgeItem:
        title = bullet.content.partition("\n")[0]
        item = self.item(
            repository,
            (bullet.id,),
            kind="lesson",
            title=title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE].rstrip()}...",
            text=bullet.content,
            structured={
                "bullet": bullet.id,
                "section": bullet.section,
                "about": list(bullet.about),
                "helpful": bullet.helpful,
                "harmful": bullet.harmful,
                "pinned": bullet.pinned,
                "justification": bullet.justification,
                "evidence": bullet.evidence,
            },
            relations=[Relation(type="about", target=target) for target in bullet.about if _is_reference(target)],
            tags=tuple(dict.fromkeys(filter(None, ("ace-bullet", bullet.section, *bullet.tags)))),
            source=Source(
                type=self.name,
                location=f"the playbook of {repository.name}",
                accessor=FILE_NAME,
                repository=repository.name,
            ),
        )
        lineage = (*_migrated(bullet), *_lineage(repository, bullet))
        created = min(bullet.created_at or item.metadata.created_at, item.metadata.created_at)
        metadata = item.metadata.model_copy(update={"lineage": lineage, "created_at": created})
        return item.model_copy(update={"feedback": counters, "metadata": metadata})


def _migrated(bullet: Bullet) -> tuple[LineageRecord, ...]:
    """Its life as an item of a laboratory, where it was one."""
    item = bullet.extra.get("laboratory") or {}
    return tuple(LineageRecord.model_validate(each) for each in item.get("metadata", {}).get("lineage", ()))


def _lineage(repository: Repository, bullet: Bullet) -> tuple[LineageRecord, ...]:
    """What it was merged of, as an audit walks on from it."""
    if not bullet.derived_from:
        return ()
    record = LineageRecord(
        timestamp=bullet.updated_at or utcnow(),
        actor=Actor.AUTOMATION,
        action=LineageAction.COMPACTED,
        notes=f"merged from {', '.join(bullet.derived_from)}",
        derived_from=tuple(subject_of(repository.tenant, repository.name, id) for id in bullet.derived_from),
    )
    return (record,)


def _is_reference(target: str) -> bool:
    kind, _, name = target.partition(":")
    return bool(name.strip()) and (kind == "symbol" or (kind == "path" and valid_glob(name)))


def _key(bullet: Bullet) -> str:
    return f"bullet/{bullet.id}"


def _hash(bullet: Bullet) -> str:
    return content_checksum(bullet.model_dump_json())
