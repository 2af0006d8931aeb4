"""Runs inside the peers' environment: CocoIndex splits the source files of a folder into a SQLite table, once.

    python _peer_cocoindex.py FOLDER STATE .py .go ...

Prints the seconds of its update. STATE keeps its memory and the table ``chunks`` in ``chunks.db``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cocoindex as coco
from cocoindex.connectors import localfs, sqlite
from cocoindex.ops.text import RecursiveSplitter, detect_code_language
from cocoindex.resources.file import PatternFilePathMatcher

FOLDER, STATE = Path(sys.argv[1]), Path(sys.argv[2])
DATABASE: Any = coco.ContextKey("database")
SPLITTER = RecursiveSplitter()


@dataclass
class Chunk:
    id: str
    path: str
    text: str


@coco.lifespan
def lifespan(builder: Any) -> Iterator[None]:
    builder.settings.db_path = STATE / "state.db"
    builder.provide_with(DATABASE, sqlite.managed_connection(STATE / "chunks.db"))
    yield


@coco.fn(memo=True)
async def split(file: Any, table: Any) -> None:
    path = str(file.file_path.path)
    text = await file.read_text()
    chunks = SPLITTER.split(text, chunk_size=1500, language=detect_code_language(filename=path))
    for number, chunk in enumerate(chunks):
        table.declare_row(row=Chunk(f"{path}#{number}", path, chunk.text))


@coco.fn
async def update() -> None:
    schema = await sqlite.TableSchema.from_class(Chunk, primary_key=["id"])
    table = await sqlite.mount_table_target(DATABASE, table_name="chunks", table_schema=schema)
    files = localfs.walk_dir(
        FOLDER,
        recursive=True,
        path_matcher=PatternFilePathMatcher(
            included_patterns=[f"**/*{ending}" for ending in sys.argv[3:]], excluded_patterns=["**/.git/**", ".git/**"]
        ),
    )
    await coco.mount_each(split, files.items(), table)


if __name__ == "__main__":
    STATE.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    coco.App(coco.AppConfig(name="bench"), update).update_blocking()
    print(json.dumps({"seconds": time.perf_counter() - started}))
