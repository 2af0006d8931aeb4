"""A store's self-test: everything a store must do, once, in a scratch tenant that is dropped afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

from context_os.embedding.hashed import Hashed
from context_os.errors import StoreError
from context_os.model import (
    Access,
    Confidentiality,
    KnowledgeItem,
    Metadata,
    Payload,
    Source,
    content_checksum,
    item_id,
    utcnow,
)
from context_os.stores import Filter, KnowledgeStore, Mode, Query, Record

_TEXTS: Final = {
    "close_session": ("python", Confidentiality.INTERNAL, "def close_session(pool): return pool.release()"),
    "openSocket": ("javascript", Confidentiality.INTERNAL, "function openSocket(host) { return connect(host) }"),
    "rotate_keys": ("python", Confidentiality.RESTRICTED, "def rotate_keys(vault): vault.rotate()"),
}


def run(store: KnowledgeStore) -> list[dict[str, Any]]:
    """Every step as ``{"step", "ok", "detail"}``, in order. One that raises StoreError has failed; the rest go on."""
    tenant = f"smoke-{uuid.uuid4().hex[:12]}"
    insider = Access(tenant=tenant, principal="smoke", clearance=Confidentiality.RESTRICTED)
    reader = Access(tenant=tenant, principal="smoke", clearance=Confidentiality.INTERNAL)
    stranger = Access(tenant=f"{tenant}-other", principal="smoke", clearance=Confidentiality.RESTRICTED)
    items = [_item(tenant, name, *rest) for name, rest in _TEXTS.items()]
    vectors = Hashed().embed([item.payload.text for item in items])
    close, _, secret = items

    def found(mode: Mode) -> str:
        query = Query("release the session", vectors[0], mode, 1, Filter(languages=("python",)))
        hits = store.search(reader, query)
        return hits[0].item.metadata.title if hits else "nothing"

    python = Filter(languages=("python",))
    checks: list[tuple[str, Callable[[], Any], Any]] = [
        ("health", lambda: store.health().ready, True),
        ("write", lambda: store.upsert(insider, map(Record, items, vectors)).written, 3),
        ("write again", lambda: store.upsert(insider, map(Record, items, vectors)).unchanged, 3),
        ("read back", lambda: store.get(reader, [close.id]) == [close], True),
        ("filter", lambda: {item.id for item in store.scan(insider, python).items}, {close.id, secret.id}),
        ("clearance", lambda: store.count(reader, python), 1),
        ("other tenant", lambda: store.count(stranger, Filter()), 0),
        *((f"search {mode}", lambda mode=mode: found(mode), "close_session") for mode in Mode),
        ("delete", lambda: store.delete(insider, [item.id for item in items]), 3),
        ("gone", lambda: store.count(insider, Filter()), 0),
    ]  # fmt: skip
    try:
        return [_step(name, check, expected) for name, check, expected in checks]
    finally:
        for access in (insider, stranger):
            _quietly(store, access)


def _step(name: str, check: Callable[[], Any], expected: Any) -> dict[str, Any]:
    try:
        got = check()
    except StoreError as error:
        return {"step": name, "ok": False, "detail": str(error)}
    detail = "as expected" if got == expected else f"expected {expected!r}, got {got!r}"
    return {"step": name, "ok": got == expected, "detail": detail}


def _quietly(store: KnowledgeStore, access: Access) -> None:
    # The steps have already told what is wrong with this store.
    with suppress(StoreError):
        store.drop_tenant(access)


def _item(tenant: str, name: str, language: str, level: Confidentiality, text: str) -> KnowledgeItem:
    now = utcnow()
    return KnowledgeItem(
        id=item_id(tenant, "smoke", name),
        tenant=tenant,
        domain="code",
        kind="function",
        source=Source(type="smoke", location="smoke", repository="smoke", path=f"{name}.txt", language=language),
        payload=Payload(text=text),
        symbols=(name,),
        metadata=Metadata(
            title=name,
            confidentiality=level,
            ttl=timedelta(hours=1),
            created_at=now,
            updated_at=now,
            checksum=content_checksum(text),
        ),
    )
