"""The Weaviate store: one multi-tenant collection, one shard for each tenant, vectors computed elsewhere.

What a reader searches for by word is split by ``context_os.text.words`` before it is stored, and so is the query:
the server's tokenizers split no identifiers and drop "if", "not" and "in". What is compared exactly (kinds, paths,
tags, symbols, relations) is filterable and not searchable, long text the reverse, and the whole item is kept once
more as JSON that is neither: it comes back as it was written.

A tenant that was restored lives in a collection of its own, which an alias named after the tenant points to: making or
moving that alias is one step of the server, so that nobody sees half of a restore. Whoever had the former place in mind
looks again once the tenant is gone from there.

An item expires three times: this class filters by the caller's clock, the server hides by its own, and its sweep
(``OBJECTS_TTL_DELETE_SCHEDULE``) deletes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
from pydantic import Field, PrivateAttr, SecretStr

from context_os.errors import NotFound, StoreAccessDenied, StoreError, StoreRejected, StoreUnavailable
from context_os.model import Access, FeedbackCounters, KnowledgeItem, LineageRecord, Value, utcnow
from context_os.stores import (
    Filter,
    Health,
    Hit,
    KnowledgeStore,
    Mode,
    NativeBackup,
    Page,
    Query,
    Record,
    Vector,
    Written,
)
from context_os.text import words

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.classes.data import DataObject
    from weaviate.collections import Collection
    from weaviate.collections.classes.config import Property
    from weaviate.collections.classes.filters import FilterReturn

_T = TypeVar("_T")
_Properties = Mapping[str, Any]

_KEYWORD_PROPERTIES: Final = ["title_words^3", "symbol_words^4", "path_words^2", "text_words"]
_EXACT: Final = ("key", "domain", "kind", "repository", "path", "language", "source_type")
_EXACT_LISTS: Final = ("ancestors", "tags", "symbols", "relation_keys")

_FEEDBACK: Final = "feedback"
"""What votes came to since the item was last written; without it, its body tells."""

_BATCH: Final = 200
"""Objects of one write. 1,000 are not faster, and a refused request then costs less to take apart."""
_BATCH_CHARACTERS: Final = 8_000_000
_IDS: Final = 1_000
"""Ids or paths named in one filter."""
_MOST_RESULTS: Final = 10_000
"""The server's default QUERY_MAXIMUM_RESULTS."""
_MOST_WORDS: Final = 1_000
_PAGE: Final = _MOST_RESULTS - 1
_KNOCK: Final = 3.0
"""Seconds to wait for a server to pick up."""

_GIGABYTE: Final = 1 << 30

_ORDINAL_BYTES: Final = 6
_ORDINALS: Final = 1 << (8 * _ORDINAL_BYTES)
_NAMESPACE: Final = uuid.UUID("0c1f7a52-6d0e-5b8e-9a2b-3f6f0a4f9d11")
_PLAIN_TENANT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CODED_TENANT: Final = "sha256-"
_COPY: Final = "moving-"
"""How the names of ``compact``'s copies begin; a tenant of ours that is called so gets a coded name."""


class WeaviateStore(KnowledgeStore):
    """``url`` is ``http://host:port`` or ``https://host[:port]``; gRPC is spoken with the same host, encrypted if
    the URL is. ``timeout`` is how long one request may take, in seconds. The object may be shared by threads; a
    forked child connects anew."""

    name: ClassVar[str] = "weaviate"

    url: str = Field(pattern=r"^https?://[^/\s]+/?$")
    grpc_port: int = Field(default=50051, ge=1, le=65535)
    api_key: SecretStr | None = None
    collection: str = Field(default="KnowledgeItem", pattern=r"^[A-Z][A-Za-z0-9_]*$")
    timeout: float = Field(default=30.0, gt=0)

    _clients: dict[int, WeaviateClient] = PrivateAttr(default_factory=dict)
    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    _slots: set[tuple[str, str]] = PrivateAttr(default_factory=set)
    _voted: set[str] = PrivateAttr(default_factory=set)
    _made_for: str = PrivateAttr(default="")
    _opening: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _appending: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @property
    def identity(self) -> str:
        return f"weaviate:{self.url.rstrip('/')}#{self.collection}"

    def model_post_init(self, context: Any, /) -> None:
        """Import the client, here and once: a library below it would announce its own future to everybody who starts
        a command, whatever their filters say. Recorded, its warning is not shown."""
        with warnings.catch_warnings(record=True):
            importlib.import_module("weaviate")
        super().model_post_init(context)

    def __copy__(self) -> Self:
        """Connects for itself: ``model_copy`` may give it another key."""
        return type(self)(**dict(self))

    def close(self) -> None:
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def upsert(self, access: Access, records: Iterable[Record]) -> Written:
        """Of two records with the same id the last counts. Batches that were accepted stay written when another one
        is refused: repeat the call once the cause is gone. An item without a checksum is always written."""
        latest = {record.item.id: record for record in records}
        _refuse_foreign(access, latest.values())
        versions = {version for record in latest.values() for version in record.given}
        for version in versions:
            _refuse_broken({id: each.given[version] for id, each in latest.items() if version in each.given})
        if not latest:
            return Written()
        with self._talking() as client:
            tenant = self._found(client, access)
            for version in versions:
                self._make_slot(client, access, version)
            # Two at a time: while the server indexes one batch, the next is split into words.
            with ThreadPoolExecutor(max_workers=2, thread_name_prefix="weaviate-upsert") as pool:
                done = list(pool.map(lambda batch: _write(tenant, batch), _batches(latest.values())))
        failures = {id: reason for batch in done for id, reason in batch.failures.items()}
        if failures:
            raise _rejected(failures)
        written = sum(batch.written for batch in done)
        return Written(written=written, unchanged=len(latest) - written)

    def put_vectors(self, access: Access, vectors: Mapping[str, Vector], version: str) -> set[str]:
        """Each version is a named vector of its own in the collection, with an index of its own. Batches that were
        accepted stay written when the server refuses another one."""
        _refuse_broken(vectors)
        if not vectors:
            return set()
        with self._talking() as client:
            if not self._exists(client, access):
                return set()
            self._make_slot(client, access, version)
            tenant = self._tenant(client, access)
            with ThreadPoolExecutor(max_workers=4, thread_name_prefix="weaviate-vectors") as pool:
                slot = _slot(version)
                done = pool.map(lambda pair: _merge(tenant, pair[0], vector={slot: pair[1].tolist()}), vectors.items())
                return {id for id in done if id is not None}

    def _make_slot(self, client: WeaviateClient, access: Access, version: str) -> None:
        from weaviate.classes.config import Configure
        from weaviate.exceptions import UnexpectedStatusCodeError

        if self._has_slot(client, access, version):
            return
        slot = Configure.Vectors.self_provided(name=_slot(version), vector_index_config=_vector_index())
        try:
            client.collections.use(self._place(client, access)).config.add_vector(vector_config=slot)
        except UnexpectedStatusCodeError:
            if not self._has_slot(client, access, version):  # else somebody else was faster
                raise

    def _has_slot(self, client: WeaviateClient, access: Access, version: str) -> bool:
        """Whether any vector of this version was ever put where the tenant is; asked until it was."""
        place = self._place(client, access)
        if version and (place, version) not in self._slots:
            found = client.collections.use(place).config.get().vector_config
            if found and _slot(version) in found:
                self._slots.add((place, version))
        return not version or (place, version) in self._slots

    def put_feedback(self, access: Access, counters: Mapping[str, FeedbackCounters]) -> set[str]:
        """Counters are a property of their own beside the item's body: so this reads nothing, and a writer of the body
        at the same time loses nothing to it."""
        if not counters:
            return set()
        with self._talking() as client:
            if not self._exists(client, access):
                return set()
            self._make_feedback(client, access)
            tenant = self._tenant(client, access)
            with ThreadPoolExecutor(max_workers=4, thread_name_prefix="weaviate-feedback") as pool:
                done = pool.map(
                    lambda pair: _merge(tenant, pair[0], properties={_FEEDBACK: _json(pair[1])}), counters.items()
                )
                return {id for id in done if id is not None}

    def _make_feedback(self, client: WeaviateClient, access: Access) -> None:
        """In a collection that was made before there were votes."""
        from weaviate.exceptions import UnexpectedStatusCodeError

        if self._has_feedback(client, access):
            return
        try:
            client.collections.use(self._place(client, access)).config.add_property(_feedback_property())
        except UnexpectedStatusCodeError:
            if not self._has_feedback(client, access):  # else somebody else was faster
                raise

    def _has_feedback(self, client: WeaviateClient, access: Access) -> bool:
        """Whether anything was ever voted on where the tenant is; asked until it was."""
        place = self._place(client, access)
        if place not in self._voted and client.collections.exists(place):
            known = client.collections.use(place).config.get().properties
            self._voted.update(place for each in known if each.name == _FEEDBACK)
        return place in self._voted

    def _whole(self, access: Access) -> list[str]:
        """The properties that an item is made of."""
        with self._talking() as client:
            return ["body", _FEEDBACK] if self._has_feedback(client, access) else ["body"]

    def get(self, access: Access, ids: Sequence[str]) -> list[KnowledgeItem]:
        found: dict[str, KnowledgeItem] = {}
        for chunk in _chunks(dict.fromkeys(ids)):
            where = _where(access, Filter(ids=tuple(chunk)))
            for properties in self._fetch(access, where, self._whole(access), len(chunk)):
                item = _item(properties)
                found[item.id] = item
        return [found[id] for id in ids if id in found]

    def vectors(self, access: Access, ids: Sequence[str], version: str) -> dict[str, Vector]:
        if not ids or not self._searches(access, version):
            return {}
        found: dict[str, Vector] = {}
        for chunk in _chunks(dict.fromkeys(ids)):
            where = _where(access, Filter(ids=tuple(chunk)))
            found |= self._ask(access, partial(_vectors, where=where, version=version)) or {}
        return found

    def search(self, access: Access, query: Query) -> list[Hit]:
        """Keyword scores are BM25, vector scores cosines, hybrid scores the server's relative score fusion."""
        if query.mode is Mode.VECTOR and query.vector is None:
            raise StoreRejected("a search in vector mode needs a vector")
        text = "" if query.mode is Mode.VECTOR else " ".join(words(query.text)[:_MOST_WORDS])
        vector = None if query.mode is Mode.KEYWORD or query.vector is None else _checked(query.vector)
        if vector is not None and not self._searches(access, query.version):
            vector = None
        if query.limit < 1 or (not text and vector is None):
            return []
        # A few more than asked for, so that equal scores at the end of the list are ordered by id as well.
        limit = min(query.limit + 20, _MOST_RESULTS)
        properties = ["key", *self._whole(access)]
        found = self._ask(
            access, lambda tenant: _search(tenant, _where(access, query.filter), text, vector, query, limit, properties)
        )
        best = sorted(found or (), key=lambda hit: (-hit[1], hit[0]["key"]))[: query.limit]
        return [Hit(_item(found), score) for found, score in best]

    def _searches(self, access: Access, version: str) -> bool:
        with self._talking() as client:
            if not version or (self._place(client, access), version) in self._slots:
                return True
            return self._exists(client, access) and self._has_slot(client, access, version)

    def scan(self, access: Access, filter: Filter, cursor: str | None = None, limit: int = 100) -> Page:
        if not 1 <= limit < _MOST_RESULTS:
            raise StoreRejected(f"a page has 1 to {_MOST_RESULTS - 1} items, not {limit}")
        found, after = self._page(access, _where(access, filter), self._whole(access), _Cursor.read(cursor), limit)
        return Page(tuple(_item(properties) for properties in found), str(after) if after else None)

    def checksums(self, access: Access, filter: Filter) -> Iterator[tuple[str, str]]:
        where = _where(access, filter)
        after: _Cursor | None = _Cursor()
        while after is not None:
            found, after = self._page(access, where, ["checksum"], after, _PAGE)
            for properties in found:
                yield _id_of(properties["key"]), properties["checksum"]

    def count(self, access: Access, filter: Filter) -> int:
        where = _where(access, filter)
        answer = self._ask(access, lambda tenant: tenant.aggregate.over_all(filters=where, total_count=True))
        return (answer.total_count or 0) if answer else 0

    def delete(self, access: Access, ids: Sequence[str]) -> int:
        from weaviate.classes.query import Filter as Where

        chunks = _chunks(dict.fromkeys(ids))
        return sum(self._delete(access, Where.by_id().contains_any([_uuid(id) for id in chunk])) for chunk in chunks)

    def delete_by_source(
        self, access: Access, source_type: str, repository: str, paths: Sequence[str] | None = None
    ) -> int:
        source = _among("source_type", [source_type]) & _among("repository", [repository])
        if paths is None:
            return self._delete(access, source)
        return sum(self._delete(access, source & _among("path", chunk)) for chunk in _chunks(dict.fromkeys(paths)))

    def prune(self, access: Access, now: datetime) -> list[str]:
        """The ids that this call deleted. The server's own sweep deletes as well, and reports to nobody: what it
        took since it expired is gone too, but not in this list."""
        from weaviate.classes.query import Filter as Where

        where = Where.by_property("valid_until").less_or_equal(now)
        gone: list[str] = []
        while True:
            names = self._ask(access, lambda tenant: _names(tenant, where))
            deleted = self._ask(access, lambda tenant: tenant.data.delete_many(where, verbose=True))
            if deleted is None or not deleted.matches:
                return gone
            _all_deleted(deleted.failed)
            gone += [(names or {}).get(str(object.uuid), str(object.uuid)) for object in deleted.objects or ()]

    def append_lineage(self, access: Access, id: str, record: LineageRecord) -> None:
        # As it comes back from JSON, whose times are cut to milliseconds: else an equal record might look new.
        record = LineageRecord.model_validate_json(_json(record))
        with self._appending:
            found = self.get(access, [id])
            if not found:
                raise NotFound(f"no item {id!r} for {access.principal} in tenant {access.tenant!r}")
            item = found[0]
            if record in item.metadata.lineage:
                return
            metadata = item.metadata.model_copy(update={"lineage": (*item.metadata.lineage, record)})
            body = _json(item.model_copy(update={"metadata": metadata}))
            self._ask(access, lambda tenant: tenant.data.update(uuid=_uuid(id), properties={"body": body}))

    def drop_tenant(self, access: Access) -> None:
        with self._talking() as client:
            if not self._exists(client, access):
                return
            place = self._place(client, access)
            if place == self.collection:
                client.collections.use(place).tenants.remove([_tenant_name(access.tenant)])
            else:
                client.alias.delete(alias_name=self._alias(access))
                client.collections.delete(place)
                self._places.pop(access.tenant, None)

    def beside(self, name: str) -> WeaviateStore:
        """In a collection of its own, in which nobody but a restore looks."""
        store = type(self)(**dict(self) | {"collection": f"{self.collection}_{name}"})
        store._made_for = self.collection
        return store

    def take_over(self, access: Access, name: str) -> None:
        """The alias of the tenant points to the new collection from one moment to the next; then the former place and
        what earlier restores that were killed left of this tenant are deleted."""
        new = self.beside(name).collection
        with self._talking() as client:
            if not client.collections.exists(new):
                return
            alias = self._alias(access)
            known = client.alias.get(alias_name=alias)
            if known is None:
                client.alias.create(alias_name=alias, target_collection=new)
            elif known.collection != new:
                client.alias.update(alias_name=alias, new_target_collection=new)
            self._places[access.tenant] = new
            self._clear(client, access, keep=new)

    def discard(self, access: Access, name: str) -> None:
        with self._talking() as client:
            client.collections.delete(self.beside(name).collection)

    def _clear(self, client: WeaviateClient, access: Access, keep: str) -> None:
        tenant = [_tenant_name(access.tenant)]
        for place in self._collections(client):
            collection = client.collections.use(place)
            if place != keep and collection.tenants.exists(tenant[0]):
                if place == self.collection:
                    collection.tenants.remove(tenant)
                else:
                    client.collections.delete(place)

    def _collections(self, client: WeaviateClient) -> list[str]:
        """The store's own collection and those that restores made for it: their description says so, since another
        store's collection may begin with the same letters."""
        found = client.collections.list_all(simple=True)
        return [
            name
            for name, each in found.items()
            if name == self.collection or each.description == _described(self.collection)
        ]

    def native_backup(self, name: str, base: str = "") -> NativeBackup:
        """All tenants, into the server's own backup folder (its module ``backup-filesystem``)."""
        from weaviate.backup import BackupStorage

        with self._talking() as client:
            collections = self._collections(client)
            if not collections:
                raise StoreRejected(f"Weaviate at {self.url} holds nothing of this store that could be backed up")
            made = client.backup.create(
                backup_id=name,
                backend=BackupStorage.FILESYSTEM,
                include_collections=collections,
                incremental_base_backup_id=base or None,
                wait_for_completion=True,
            )
            listed = [each for each in self.native_backups() if each.name == name]
        return listed[0] if listed else NativeBackup(name, made.status.value, base)

    def native_backups(self) -> list[NativeBackup]:
        """Those that hold this store's collections, of those that the server has: it may serve other stores too."""
        from weaviate.backup import BackupStorage

        with self._talking() as client:
            found = client.backup.list_backups(backend=BackupStorage.FILESYSTEM, sort_by_starting_time_asc=True)
        return [
            NativeBackup(
                each.backup_id,
                each.status.value,
                each.incremental_base_backup_id or "",
                each.started_at,
                int(each.size * _GIGABYTE),
            )
            for each in found
            if any(
                name == self.collection or name.startswith(f"{self.collection}_restore") for name in each.collections
            )
        ]

    def compact(self, access: Access) -> str:
        """Moves what is left of the tenant into a fresh shard and back, since the server keeps deleted text for as long
        as it likes: in the log of every index until that is flushed (a minute after the last write), in segments of
        exact properties (paths, tags) until they happen to be merged; a restart changes nothing. A dropped shard is
        gone from disk at once. Readers see the tenant empty or in part meanwhile, and writers have to be kept away.

        Killed at any moment, the next call goes on: a second name beside the copy says that the copy is complete.
        """
        tenant = _tenant_name(access.tenant)
        copy = _COPY + hashlib.sha256(tenant.encode()).hexdigest()[:32]
        complete = f"{copy}-complete"
        with self._talking() as client:
            place = self._place(client, access)
            if not client.collections.exists(place):
                return ""
            collection = client.collections.use(place)
            if not collection.tenants.exists(complete):
                if not collection.tenants.exists(tenant):
                    return ""
                _move(collection, tenant, copy)
                collection.tenants.create([complete])
            _move(collection, copy, tenant)
            collection.tenants.remove([complete])  # before the copy: without it a copy is never trusted
            collection.tenants.remove([copy])
        return ""

    def health(self) -> Health:
        try:
            with self._talking() as client:
                version = str(client.get_meta()["version"])
                ready = client.is_ready()
        except StoreError as error:
            return Health(ready=False, version="", detail=str(error))
        return Health(ready=ready, version=version, detail=f"Weaviate at {self.url}, collection {self.collection}")

    def _fetch(
        self, access: Access, where: FilterReturn, properties: list[str], limit: int, sort: str | None = None
    ) -> list[_Properties]:
        from weaviate.classes.query import Sort

        order = Sort.by_property(sort) if sort else None
        answer = self._ask(
            access,
            lambda tenant: tenant.query.fetch_objects(
                filters=where, limit=limit, sort=order, return_properties=properties
            ),
        )
        return [object.properties for object in answer.objects] if answer else []

    def _page(
        self, access: Access, where: FilterReturn, properties: list[str], cursor: _Cursor, limit: int
    ) -> tuple[list[_Properties], _Cursor | None]:
        """The next ``limit`` matches in order of id, and where the page after it starts.

        Weaviate's own cursor does not combine with filters, and its sort reads every match. So each page asks for
        a window of the order only, twice as wide as what the last page covered, and widens it if that is too small:
        9 ms for 100 of 15,000 wherever the page is, where sorting all of them takes 100.
        """
        from weaviate.classes.query import Filter as Where

        low, width, exact = _ordinal(cursor.after), cursor.width, False
        ordinal, key = Where.by_property("ordinal"), Where.by_property("key")
        while True:
            window = where & ordinal.greater_or_equal(low) & ordinal.less_than(low + width)
            if exact:
                window = window & key.greater_than(_key(cursor.after))
            raw = self._fetch(access, window, ["key", *properties], limit + 1, sort="key")
            found = [properties for properties in raw if properties["key"] > _key(cursor.after)]
            if len(found) > limit:
                return found[:limit], cursor.advanced(_id_of(found[limit - 1]["key"]))
            if len(raw) <= limit and low + width >= _ORDINALS:
                return found, None
            if len(raw) > limit:
                exact = True  # a crowd of ids that begin alike; filtering by the key itself is slower
            else:
                width *= 4

    def _delete(self, access: Access, where: FilterReturn) -> int:
        """One call deletes 10,000 objects at most."""
        total = 0
        while True:
            answer = self._ask(access, lambda tenant: tenant.data.delete_many(where))
            if answer is None or not answer.matches:
                return total
            _all_deleted(answer.failed)
            total += answer.successful

    def _ask(self, access: Access, question: Callable[[Collection[Any, Any]], _T]) -> _T | None:
        """The answer of this tenant's part of the collection; None where there is no such collection or tenant."""
        from weaviate.exceptions import InsufficientPermissionsError, UnexpectedStatusCodeError, WeaviateQueryError

        with self._talking() as client:
            place = self._place(client, access)
            try:
                return question(self._tenant(client, access))
            except InsufficientPermissionsError:
                raise
            except (WeaviateQueryError, UnexpectedStatusCodeError):
                if not self._exists(client, access):
                    return None
                if self._place(client, access) == place:
                    raise
                return question(self._tenant(client, access))

    def _tenant(self, client: WeaviateClient, access: Access) -> Collection[Any, Any]:
        return client.collections.use(self._place(client, access)).with_tenant(_tenant_name(access.tenant))

    def _place(self, client: WeaviateClient, access: Access) -> str:
        """The collection where the tenant is: the store's, or that of its last restore."""
        if access.tenant not in self._places:
            self._places[access.tenant] = self._target(client, access) or self.collection
        return self._places[access.tenant]

    def _target(self, client: WeaviateClient, access: Access) -> str | None:
        from weaviate.exceptions import InsufficientPermissionsError

        try:
            found = client.alias.get(alias_name=self._alias(access))
        except InsufficientPermissionsError:  # a role from before the first restore
            return None
        return found.collection if found else None

    def _alias(self, access: Access) -> str:
        return f"{self.collection}_of_{hashlib.sha256(access.tenant.encode()).hexdigest()[:32]}"

    def _exists(self, client: WeaviateClient, access: Access) -> bool:
        """Where it was last, or else where it is now."""
        place = self._place(client, access)
        if _holds(client, place, access):
            return True
        self._places.pop(access.tenant, None)
        return self._place(client, access) != place and _holds(client, self._place(client, access), access)

    def _found(self, client: WeaviateClient, access: Access) -> Collection[Any, Any]:
        """The tenant's part of the collection, both made if they are missing."""
        if not self._exists(client, access):
            place = self._place(client, access)
            if not client.collections.exists(place):
                _create(client, place, _described(self._made_for) if self._made_for else None)
            client.collections.use(place).tenants.create([_tenant_name(access.tenant)])
        return self._tenant(client, access)

    @contextmanager
    def _talking(self) -> Iterator[WeaviateClient]:
        """The connected client; every error of the vendor or the network becomes one of ours here."""
        try:
            self._knock()
            yield self._client()
        except _vendor_errors() as error:
            raise _translated(error, self.url) from error

    def _knock(self) -> None:
        # The client retries for a minute when nobody listens any more; this tells within seconds.
        host = urlsplit(self.url).hostname or ""
        socket.create_connection((host, self.grpc_port), timeout=min(self.timeout, _KNOCK)).close()

    def _client(self) -> WeaviateClient:
        with self._opening:
            client = self._clients.get(os.getpid())
            if client is None:
                client = self._clients[os.getpid()] = self._connect()
            return client

    def _connect(self) -> WeaviateClient:
        import weaviate
        from weaviate.classes.init import AdditionalConfig, Auth, Timeout

        # The client logs refused objects with all their text; failures are raised here, without it.
        logging.getLogger("weaviate-client").setLevel(logging.CRITICAL)
        address = urlsplit(self.url)
        secure = address.scheme == "https"
        return weaviate.connect_to_custom(
            http_host=address.hostname or "",
            http_port=address.port or (443 if secure else 80),
            http_secure=secure,
            grpc_host=address.hostname or "",
            grpc_port=self.grpc_port,
            grpc_secure=secure,
            auth_credentials=Auth.api_key(self.api_key.get_secret_value()) if self.api_key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(query=self.timeout, insert=self.timeout, init=min(self.timeout, _KNOCK))
            ),
            # They would ask a package index on the internet for a newer client at every start.
            skip_init_checks=True,
        )


@dataclass(frozen=True)
class _Cursor:
    """Where a page starts: after this id. ``width`` is the part of the ids' order to look at first."""

    after: str = ""
    width: int = _ORDINALS

    @classmethod
    def read(cls, text: str | None) -> _Cursor:
        if text is None:
            return cls()
        width, dot, after = text.partition(".")
        if not dot or not re.fullmatch(r"[0-9a-f]{1,13}", width):
            raise StoreRejected(f"{text!r} is not a cursor of this store; start again without one")
        return cls(after, int(width, 16))

    def advanced(self, last: str) -> _Cursor:
        return _Cursor(last, max(1, 2 * (_ordinal(last) - _ordinal(self.after))))

    def __str__(self) -> str:
        return f"{self.width:x}.{self.after}"


def _move(collection: Collection[Any, Any], source: str, target: str) -> None:
    """Make the tenant ``target`` what ``source`` is, anew. Raises StoreError when something did not arrive."""
    from weaviate.classes.data import DataObject

    if collection.tenants.exists(target):
        collection.tenants.remove([target])
    collection.tenants.create([target])
    there, new = collection.with_tenant(source), collection.with_tenant(target)
    objects = (
        DataObject(uuid=each.uuid, properties=dict(each.properties), vector=each.vector or None)
        for each in there.iterator(include_vector=True, cache_size=_BATCH)
    )
    count = 0
    while batch := list(islice(objects, _BATCH)):
        refused = _insert(new, batch)
        if refused:
            why = next(iter(refused.values()))
            raise StoreError(f"the server refused {len(refused)} items while they were moved: {why}")
        count += len(batch)
    arrived = new.aggregate.over_all(total_count=True).total_count or 0
    if arrived != count:
        raise StoreError(
            f"of {count:,} items that were moved {arrived:,} arrived; repeat the call, nothing is lost yet"
        )


@dataclass(frozen=True)
class _Batch:
    written: int
    failures: Mapping[str, str]


def _write(tenant: Collection[Any, Any], records: Sequence[Record]) -> _Batch:
    """Write what differs from what is stored."""
    stored = _stored(tenant, [_uuid(record.item.id) for record in records])
    objects: dict[str, DataObject[Any, Any]] = {}
    ids: dict[str, str] = {}
    failures: dict[str, str] = {}
    for record in records:
        name = _uuid(record.item.id)
        checksum, expiry, vectors = stored.get(name, ("", "", {}))
        if record.item.metadata.checksum and (checksum, expiry) == _state(record.item):
            continue
        kept = vectors if record.item.metadata.checksum and checksum == record.item.metadata.checksum else {}
        try:
            objects[name] = _object(name, record, kept)
            ids[name] = record.item.id
        except ValueError as error:
            failures[record.item.id] = f"it has no JSON form: {error}"
    refused = _insert(tenant, list(objects.values()))
    failures.update((ids[name], reason) for name, reason in refused.items())
    return _Batch(len(objects) - len(refused), failures)


def _insert(tenant: Collection[Any, Any], objects: list[DataObject[Any, Any]]) -> dict[str, str]:
    """Send one batch; returns the reason of each refused object by UUID."""
    from weaviate.exceptions import WeaviateInsertManyAllFailedError

    if not objects:
        return {}
    try:
        answer = tenant.data.insert_many(objects)
    except WeaviateInsertManyAllFailedError as error:
        # The client then no longer says which object failed for which reason; halves of the batch will.
        reasons = error.message.partition("set of all errors: ")[2] or error.message
        if len(objects) == 1 or "\n" not in reasons:
            return {str(object.uuid): reasons for object in objects}
        middle = len(objects) // 2
        return _insert(tenant, objects[:middle]) | _insert(tenant, objects[middle:])
    return {str(objects[index].uuid): error.message for index, error in answer.errors.items()}


def _stored(tenant: Collection[Any, Any], names: Sequence[str]) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """Checksum, expiry and vectors by slot of those of these UUIDs that are there."""
    from weaviate.classes.query import Filter as Where

    answer = tenant.query.fetch_objects(
        filters=Where.by_id().contains_any(names),
        limit=len(names),
        return_properties=["checksum", "expiry"],
        include_vector=True,
    )
    return {
        str(object.uuid): (object.properties["checksum"], object.properties["expiry"], object.vector)
        for object in answer.objects
    }


def _merge(tenant: Collection[Any, Any], id: str, **parts: Any) -> str | None:
    """The id, or None if there is no such object. A merge: what somebody else writes meanwhile stays."""
    from weaviate.exceptions import UnexpectedStatusCodeError

    try:
        tenant.data.update(uuid=_uuid(id), **parts)
    except UnexpectedStatusCodeError as error:
        if error.status_code == 404:
            return None
        raise
    return id


def _vectors(tenant: Collection[Any, Any], where: FilterReturn, version: str) -> dict[str, Vector]:
    slot = _slot(version)
    answer = tenant.query.fetch_objects(filters=where, limit=_IDS, return_properties=["key"], include_vector=[slot])
    return {
        _id_of(str(object.properties["key"])): np.array(object.vector[slot], dtype=np.float32)
        for object in answer.objects
        if object.vector.get(slot)
    }


def _slot(version: str) -> str:
    """The named vector of a version. No two versions can get the same."""
    if not version:
        return "default"
    return f"v_{re.sub('[^A-Za-z0-9]', '_', version)[:80]}_{hashlib.sha256(version.encode()).hexdigest()[:8]}"


def _search(
    tenant: Collection[Any, Any],
    where: FilterReturn,
    text: str,
    vector: Vector | None,
    query: Query,
    limit: int,
    properties: list[str],
) -> list[tuple[_Properties, float]]:
    from weaviate.classes.query import HybridFusion, MetadataQuery

    scored = MetadataQuery(score=True)
    common: dict[str, Any] = {"filters": where, "limit": limit, "return_properties": properties}
    if vector is None:
        answer = tenant.query.bm25(text, query_properties=_KEYWORD_PROPERTIES, return_metadata=scored, **common)
    elif text:
        answer = tenant.query.hybrid(
            text,
            vector=vector.tolist(),
            target_vector=_slot(query.version),
            alpha=query.alpha,
            fusion_type=HybridFusion.RELATIVE_SCORE,
            query_properties=_KEYWORD_PROPERTIES,
            return_metadata=scored,
            **common,
        )
    else:
        near = tenant.query.near_vector(
            vector.tolist(),
            target_vector=_slot(query.version),
            return_metadata=MetadataQuery(distance=True),
            **common,
        )
        return [(object.properties, 1.0 - (object.metadata.distance or 0.0)) for object in near.objects]
    return [(object.properties, object.metadata.score or 0.0) for object in answer.objects]


def _names(tenant: Collection[Any, Any], where: FilterReturn) -> dict[str, str]:
    """The ids of objects that queries may already hide, by UUID: only aggregation and deletion still see them."""
    from weaviate.classes.aggregate import GroupByAggregate

    groups = tenant.aggregate.over_all(filters=where, group_by=GroupByAggregate(prop="key", limit=_MOST_RESULTS)).groups
    ids = [_id_of(str(group.grouped_by.value)) for group in groups]
    return {_uuid(id): id for id in ids}


def _holds(client: WeaviateClient, collection: str, access: Access) -> bool:
    if not client.collections.exists(collection):
        return False
    return client.collections.use(collection).tenants.exists(_tenant_name(access.tenant))


def _described(collection: str) -> str:
    return f"restored into {collection}"


def _create(client: WeaviateClient, name: str, description: str | None) -> None:
    from weaviate.classes.config import Configure, StopwordsPreset
    from weaviate.exceptions import UnexpectedStatusCodeError

    try:
        client.collections.create(
            name,
            description=description,
            properties=_properties(),
            # ``_found`` makes the tenants: with auto_tenant_creation the server wants the right to create tenants for
            # every batch, also into one that exists.
            multi_tenancy_config=Configure.multi_tenancy(enabled=True, auto_tenant_activation=True),
            object_ttl_config=Configure.ObjectTTL.delete_by_date_property("valid_until", filter_expired_objects=True),
            inverted_index_config=Configure.inverted_index(stopwords_preset=StopwordsPreset.NONE),
            vector_config=Configure.Vectors.self_provided(name=_slot(""), vector_index_config=_vector_index()),
        )
    except UnexpectedStatusCodeError:
        if not client.collections.exists(name):  # else somebody else was faster
            raise


def _vector_index() -> Any:
    # Flat is exact, and writing costs 1.2 ms of processor time for an object of 256 dimensions where HNSW takes 2.3;
    # among 15,000 both find in the same time. "dynamic" would need ASYNC_INDEXING, with which search lags behind.
    from weaviate.classes.config import Configure, VectorDistances

    return Configure.VectorIndex.flat(distance_metric=VectorDistances.COSINE)


def _properties() -> list[Property]:
    from weaviate.classes.config import DataType, Property, Tokenization

    def make(name: str, kind: DataType, **indexes: Any) -> Property:
        off = {"index_filterable": False, "index_searchable": False if kind is DataType.TEXT else None}
        return Property(name=name, data_type=kind, **(off | indexes))

    exact = {"index_filterable": True, "index_searchable": False, "tokenization": Tokenization.FIELD}
    split = {"index_searchable": True, "tokenization": Tokenization.WHITESPACE}
    return [
        *(make(name, DataType.TEXT, **exact) for name in _EXACT),
        *(make(name, DataType.TEXT_ARRAY, **exact) for name in _EXACT_LISTS),
        *(make(weighted.partition("^")[0], DataType.TEXT, **split) for weighted in _KEYWORD_PROPERTIES),
        make("clearance", DataType.INT, index_filterable=True),
        make("ordinal", DataType.INT, index_range_filters=True),
        make("valid_until", DataType.DATE, index_filterable=True, index_range_filters=True),
        make("updated_at", DataType.DATE, index_range_filters=True),
        make("checksum", DataType.TEXT),
        make("expiry", DataType.TEXT),
        make("body", DataType.TEXT),
        _feedback_property(),
    ]


def _feedback_property() -> Property:
    from weaviate.classes.config import DataType, Property

    return Property(name=_FEEDBACK, data_type=DataType.TEXT, index_filterable=False, index_searchable=False)


def _object(name: str, record: Record, kept: Mapping[str, Any]) -> DataObject[Any, Any]:
    """``kept`` are the vectors that it has already, by slot."""
    from weaviate.classes.data import DataObject

    item = record.item
    source = item.source
    given = {_slot(version): vector.tolist() for version, vector in record.given.items()}
    return DataObject(
        uuid=name,
        vector={**kept, **given} or None,
        properties={
            "key": _key(item.id),
            "ordinal": _ordinal(item.id),
            "domain": item.domain,
            "kind": item.kind,
            "repository": source.repository,
            "path": source.path,
            "ancestors": _ancestors(source.path),
            "language": source.language,
            "source_type": source.type,
            "tags": list(item.metadata.tags),
            "symbols": list(item.symbols),
            "relation_keys": _relation_keys(item),
            "title_words": " ".join(words(item.metadata.title)),
            "symbol_words": " ".join(words(" ".join(item.symbols))),
            "path_words": " ".join(words(source.path)),
            "text_words": " ".join(words(item.payload.text)),
            "clearance": item.metadata.confidentiality.rank,
            "valid_until": item.expires_at,
            "updated_at": item.metadata.updated_at,
            "checksum": item.metadata.checksum,
            "expiry": _state(item)[1],
            "body": _json(item),
        },
    )


def _state(item: KnowledgeItem) -> tuple[str, str]:
    """What decides whether an item must be written again."""
    return item.metadata.checksum, item.expires_at.isoformat(timespec="milliseconds")


def _item(properties: _Properties) -> KnowledgeItem:
    item = KnowledgeItem.model_validate_json(properties["body"])
    told = properties.get(_FEEDBACK)
    return item.model_copy(update={"feedback": FeedbackCounters.model_validate_json(told)}) if told else item


def _json(value: Value) -> str:
    return value.model_dump_json(by_alias=True)


def _ancestors(path: str) -> list[str]:
    """The path and every folder above it: what a path prefix is compared with."""
    steps = [match.start() for match in re.finditer("/", path)]
    return [*(path[:end] for end in steps if end), path] if path else []


def _relation_keys(item: KnowledgeItem) -> list[str]:
    return sorted({key for relation in item.relations for key in _keys([relation.target], [relation.type, None])})


def _keys(targets: Iterable[str], types: Iterable[str | None]) -> list[str]:
    """``type>target``, with "*" for any type. Quoted, so that no type can pass for another's target."""
    kinds = ["*" if kind is None else quote(kind, safe="") for kind in types]
    return [f"{kind}>{target}" for target in targets for kind in kinds]


def _where(access: Access, filter: Filter) -> FilterReturn:
    """What this caller may read, narrowed by the filter. Must agree with ``Access.may_read``."""
    from weaviate.classes.query import Filter as Where

    parts = [
        Where.by_property("clearance").less_or_equal(access.clearance.rank),
        Where.by_property("valid_until").greater_than(utcnow()),
        *(_among(name, values) for name, values in _narrowings(filter) if values),
    ]
    if filter.ids:
        parts.append(Where.by_id().contains_any([_uuid(id) for id in filter.ids]))
    if filter.tags_all:
        parts.append(Where.by_property("tags").contains_all(list(filter.tags_all)))
    if filter.updated_from is not None:
        parts.append(Where.by_property("updated_at").greater_or_equal(filter.updated_from))
    if filter.updated_to is not None:
        parts.append(Where.by_property("updated_at").less_than(filter.updated_to))
    return Where.all_of(parts)


def _narrowings(filter: Filter) -> list[tuple[str, Sequence[str]]]:
    prefix = filter.path_prefix.rstrip("/")
    return [
        ("domain", filter.domains),
        ("kind", filter.kinds),
        ("tags", filter.tags_any),
        ("repository", filter.repositories),
        ("path", filter.paths),
        ("ancestors", [prefix] if prefix else []),
        ("language", filter.languages),
        ("source_type", filter.source_types),
        ("symbols", filter.symbols),
        ("relation_keys", _keys(filter.targets, filter.relation_types or [None])),
    ]


def _among(name: str, values: Sequence[str]) -> FilterReturn:
    from weaviate.classes.query import Filter as Where

    return Where.by_property(name).contains_any(list(values))


def _uuid(id: str) -> str:
    """The object's UUID: the id itself where it is one as ``item_id`` writes them, else one derived from it."""
    try:
        if str(uuid.UUID(id)) == id:
            return id
    except ValueError:
        pass
    return str(uuid.uuid5(_NAMESPACE, json.dumps(["item", id])))


def _key(id: str) -> str:
    """The id in a form that the server compares byte by byte: it sorts text without regard to case."""
    return id.encode().hex()


def _id_of(key: str) -> str:
    return bytes.fromhex(key).decode()


def _ordinal(id: str) -> int:
    """The first bytes as a number: ordered as ids are, not unique, and exact in a double as gRPC carries it."""
    return int.from_bytes(id.encode()[:_ORDINAL_BYTES].ljust(_ORDINAL_BYTES, b"\0"))


def _tenant_name(tenant: str) -> str:
    """The name in Weaviate, which takes 64 letters, digits, "-" and "_". No two tenants can get the same."""
    if _PLAIN_TENANT.fullmatch(tenant) and not tenant.startswith((_CODED_TENANT, _COPY)):
        return tenant
    return _CODED_TENANT + hashlib.sha256(tenant.encode()).hexdigest()[:57]


def _chunks(values: Iterable[str]) -> Iterator[list[str]]:
    rest = list(values)
    for start in range(0, len(rest), _IDS):
        yield rest[start : start + _IDS]


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.item.payload.text)
        if len(batch) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _refuse_foreign(access: Access, records: Iterable[Record]) -> None:
    foreign = {
        record.item.id: f"it belongs to tenant {record.item.tenant!r}, not to {access.tenant!r}"
        for record in records
        if record.item.tenant != access.tenant
    }
    if foreign:
        raise _rejected(foreign)


def _refuse_broken(vectors: Mapping[str, Vector]) -> None:
    failures: dict[str, str] = {}
    shape: tuple[int, ...] | None = None
    for id, vector in vectors.items():
        shape = shape or (vector.size,)
        if vector.shape != shape:
            failures[id] = f"its vector has the shape {vector.shape}, others have {shape}"
        elif not np.isfinite(vector).all():
            failures[id] = "its vector holds numbers that are not finite"
    if failures:
        raise _rejected(failures)


def _checked(vector: Vector) -> Vector:
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise StoreRejected("the query's vector must have one dimension and finite numbers")
    return vector


def _rejected(failures: dict[str, str]) -> StoreRejected:
    shown = "; ".join(f"{id}: {reason}" for id, reason in list(failures.items())[:3])
    return StoreRejected(f"{len(failures)} items were refused ({shown})", failures)


def _all_deleted(failed: int) -> None:
    if failed:
        raise StoreError(f"the server could not delete {failed} of the objects that match; try again")


_MEANING: Final[Mapping[str, type[StoreError] | None]] = {
    "AdditionalPropertiesError": StoreRejected,
    "AuthenticationFailedError": StoreAccessDenied,
    "BackupCanceledError": StoreError,
    "BackupFailedError": StoreError,
    "EmptyResponseError": StoreUnavailable,
    "ExportCanceledError": StoreError,
    "ExportFailedError": StoreError,
    "InsufficientPermissionsError": StoreAccessDenied,
    "InvalidDataModelError": StoreRejected,
    "MissingScopeError": StoreAccessDenied,
    "ObjectAlreadyExistsError": StoreRejected,
    "ResponseCannotBeDecodedError": StoreUnavailable,
    "SchemaValidationError": StoreRejected,
    "UnexpectedStatusCodeError": None,
    "WeaviateAddInvalidPropertyError": StoreRejected,
    "WeaviateAgentsNotInstalledError": StoreError,
    "WeaviateBaseError": StoreError,
    "WeaviateBatchError": None,
    "WeaviateBatchFailedToReestablishStreamError": StoreUnavailable,
    "WeaviateBatchSendError": None,
    "WeaviateBatchStreamError": None,
    "WeaviateBatchValidationError": StoreRejected,
    "WeaviateClosedClientError": StoreUnavailable,
    "WeaviateConnectionError": StoreUnavailable,
    "WeaviateDeleteManyError": None,
    "WeaviateEmbeddedInvalidVersionError": StoreError,
    "WeaviateGRPCUnavailableError": StoreUnavailable,
    "WeaviateInsertInvalidPropertyError": StoreRejected,
    "WeaviateInsertManyAllFailedError": StoreRejected,
    "WeaviateInvalidInputError": StoreRejected,
    "WeaviateProtobufIncompatibility": StoreError,
    "WeaviateQueryError": None,
    "WeaviateRetryError": StoreUnavailable,
    "WeaviateStartUpError": StoreUnavailable,
    "WeaviateTenantGetError": None,
    "WeaviateTimeoutError": StoreUnavailable,
    "WeaviateUnsupportedFeatureError": StoreError,
    "_BatchStreamShutdownError": StoreUnavailable,
}
"""What each of the client's exceptions means; None where its HTTP or gRPC status decides."""

_STATUS: Final[Mapping[int, type[StoreError]]] = {
    **dict.fromkeys((7, 16, 401, 403), StoreAccessDenied),
    **dict.fromkeys((4, 8, 14, 408, 429, 502, 503, 504), StoreUnavailable),
    **dict.fromkeys((3, 11, 400, 413, 422), StoreRejected),
}
"""gRPC codes are below 17, HTTP statuses above 99."""


def _vendor_errors() -> tuple[type[Exception], ...]:
    import grpc  # type: ignore[import-untyped]
    import httpx
    from weaviate import exceptions

    classes = [getattr(exceptions, name) for name in _MEANING]
    return (*classes, httpx.HTTPError, grpc.RpcError, OSError)


def _translated(error: Exception, url: str) -> StoreError:
    kind = _MEANING.get(type(error).__name__, StoreUnavailable) or _by_status(error)
    reason = " ".join(str(error).split())[:500]
    if kind is StoreUnavailable:
        return kind(
            f"Weaviate at {url} cannot be reached or did not answer ({reason}); check the address, start it or wait"
        )
    if kind is StoreAccessDenied:
        return kind(f"Weaviate at {url} refuses this caller ({reason}); check the API key and its role")
    return kind(f"Weaviate at {url}: {reason}")


def _by_status(error: BaseException) -> type[StoreError]:
    """The client drops the gRPC status of most failures, but the call that failed is still the error's context."""
    step: BaseException | None = error
    while step is not None:
        kind = _STATUS.get(_status(step))
        if kind is not None:
            return kind
        step = step.__cause__ or step.__context__
    wrong_length = "vector length" in str(error) or "vector of the wrong size" in str(error)
    return StoreRejected if wrong_length else StoreError


def _status(error: BaseException) -> int:
    from grpc import Call
    from weaviate.exceptions import UnexpectedStatusCodeError

    if isinstance(error, UnexpectedStatusCodeError):
        return error.status_code
    return int(error.code().value[0]) if isinstance(error, Call) else 0
