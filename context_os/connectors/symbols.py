"""Source code as knowledge: modules, classes, functions and methods with how they refer to each other.

A unit is a file and its hash is git's blob id, for a revision straight from the tree and for a working tree or a
plain folder over what is on disk now. What can be told from path and size is skipped by ``scan`` and counted in
``Listing.skipped``. What only the content tells (generated, binary) is left to ``read``, so that a scan of a
revision opens no blob: such a file is a unit without items whose note says ``skipped: generated`` or ``skipped:
binary``, and the ledger remembers it like any other.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from itertools import islice, starmap
from queue import Queue
from select import select
from typing import ClassVar, Final, Self

from pydantic import Field

from context_os.connectors import Connector, Expectation, Known, Listing, Repository, Unit
from context_os.connectors._files import Files, foreign, unwanted
from context_os.connectors._languages import language_of
from context_os.connectors._syntax import Parsed, Symbol, parse
from context_os.errors import SourceError
from context_os.model import KnowledgeItem, Modality, Relation, Source, item_id

_WORTH_PROCESSES: Final = 200
"""From so many files on, starting other Pythons is quicker than parsing alone."""
_BATCH: Final = 16
_LONGEST: Final = 60.0
"""Seconds for one batch in another process, whatever keeps it: the parser itself is bounded by processor time."""


class Symbols(Connector):
    """Reads Python, JavaScript, TypeScript, Go, Java, Rust, C, C++, C#, Ruby and PHP with tree-sitter.

    ``repository.location`` is a working tree, a bare git directory or a folder outside git, whose .gitignore files
    count all the same. ``max_bytes`` is the size from which a file is skipped as "huge". An item's natural key is
    its file's path, its qualified name and the how manieth of that name it is, so it survives moves of lines.
    """

    version: ClassVar[int] = 2
    name = "symbols"
    domain = "code"
    kinds = ("module", "class", "function", "method")
    modality: ClassVar[Modality] = Modality.CODE
    summary = "Modules, classes, functions and methods, with their calls, imports and inheritance"
    expectations = (
        Expectation(
            "expect_column_values_to_be_in_set",
            {"column": "kind", "value_set": ["module", "class", "function", "method"]},
            "the connector yields modules, classes, functions and methods, nothing else",
        ),
        Expectation(
            "expect_column_values_to_not_be_null",
            {"column": "start_line"},
            "a symbol without lines cannot be shown in its file",
        ),
        Expectation(
            "expect_column_value_lengths_to_be_between",
            {"column": "path", "min_value": 1},
            "a symbol stands in a file",
        ),
        Expectation(
            "expect_column_values_to_be_between",
            {"column": "text_length", "max_value": 200_000},
            "a symbol of this size is generated code or data, and no pack can hold it",
            critical=False,
        ),
    )

    max_bytes: int = Field(default=1_000_000, gt=0)

    def scan(self, repository: Repository, known: Known) -> Listing:
        """List the source files. Raises SourceRefused for what is no folder or has no such revision, SourceError
        for a file that is there and cannot be read."""
        return Files(repository.location, repository.revision).list(_choose, self.max_bytes)

    def concerns(self, path: str) -> bool:
        return _choose(path) == ""

    def read(self, repository: Repository, listing: Listing, keys: Sequence[str]) -> Iterator[Unit]:
        """Yield one Unit per key. A file that vanished since the scan is a Unit without hash or items."""
        contents = Files(repository.location, repository.revision).contents(keys, listing.units)
        unit = partial(self._unit, repository, listing.revision)
        yield from map(unit, contents) if len(keys) < _WORTH_PROCESSES else _in_processes(unit, contents)

    def _unit(self, repository: Repository, revision: str, file: _Content) -> Unit:
        key, blob, data = file
        if data is None:
            return Unit(key, blob, (), notes=("gone since it was listed",))
        if reason := unwanted(data):
            return Unit(key, blob, (), notes=(f"skipped: {reason}",))
        parsed = parse(key, data)
        return Unit(key, blob, tuple(self._items(repository, revision, key, blob, parsed)), notes=parsed.notes)

    def _items(
        self, repository: Repository, revision: str, path: str, blob: str, parsed: Parsed
    ) -> Iterator[KnowledgeItem]:
        ids = [item_id(repository.tenant, self.name, repository.name, path, *it.key) for it in parsed.symbols]
        location = str(repository.location)
        for it in parsed.symbols:
            source = Source(
                type=self.name,
                location=location,
                accessor="tree-sitter",
                revision=revision,
                repository=repository.name,
                path=path,
                language=parsed.language,
                start_line=it.start_line,
                end_line=it.end_line,
                metadata={"blob": blob},
            )
            yield self.item(
                repository,
                (path, *it.key),
                kind=it.kind,
                title=it.title,
                text=it.text,
                source=source,
                structured=it.structured,
                relations=_relations(it, ids),
                symbols=it.names,
                tags=it.tags,
            )


_Content = tuple[str, str, bytes | None]
"""A file's key, its blob and its bytes."""
_Reader = Callable[[_Content], Unit]


def _in_processes(unit: _Reader, contents: Iterator[_Content]) -> Iterator[Unit]:
    """Read beside the caller, which meanwhile stores the items. Holds a few batches in memory, not all."""
    number = os.cpu_count() or 1
    waiting: deque[Future[list[Unit]]] = deque()
    with ExitStack() as ending, ThreadPoolExecutor(number) as threads:
        idle: Queue[_Parser] = Queue()
        for _ in range(number):
            idle.put(ending.enter_context(_Parser(unit)))
        while batch := list(islice(contents, _BATCH)):
            waiting.append(threads.submit(_ask, idle, batch))
            if len(waiting) > 2 * number:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _ask(idle: Queue[_Parser], files: list[_Content]) -> list[Unit]:
    parser = idle.get()
    try:
        return parser.read(files)
    finally:
        idle.put(parser)


class _Parser:
    """Another Python that makes units of files. Started anew rather than forked, since a store may have threads and
    connections here, and without multiprocessing, whose children run the caller's main module once more."""

    def __init__(self, unit: _Reader) -> None:
        self._unit = unit

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with suppress(BrokenPipeError):  # of one that died at once: reading tells
            self._send(self._unit)
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, what: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(what, self._process.stdin)
        self._process.stdin.flush()

    def read(self, files: list[_Content]) -> list[Unit]:
        assert self._process.stdout is not None
        try:
            self._send(files)
            if not select([self._process.stdout], [], [], _LONGEST)[0]:
                return self._apart(files)
            found: list[Unit] = pickle.load(self._process.stdout)  # noqa: S301  written by our own child
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            paths = f"{files[0][0]} and the {len(files) - 1} after it"
            raise SourceError(f"a parsing process died over {paths}, out of memory or killed") from error
        return found

    def _apart(self, files: list[_Content]) -> list[Unit]:
        """After a batch that took too long: a new process reads file by file, and only the one at fault is lost."""
        self.__exit__()
        self.__enter__()
        if len(files) > 1:
            return [found for file in files for found in self.read([file])]
        key, blob, _ = files[0]
        return [Unit(key, blob, (), notes=(f"skipped: not parsed within {_LONGEST:g} seconds",))]


def serve() -> None:
    """What a ``_Parser`` runs: on standard input how to read, then batches of files; on standard output their units."""
    gc.set_threshold(100_000, 50, 100)  # few cycles are made here; looking for them takes a tenth of the time
    with suppress(EOFError):
        unit = pickle.load(sys.stdin.buffer)  # noqa: S301  from our own parent
        while True:
            pickle.dump([unit(file) for file in pickle.load(sys.stdin.buffer)], sys.stdout.buffer)  # noqa: S301  as above
            sys.stdout.buffer.flush()


def _relations(symbol: Symbol, ids: Sequence[str]) -> list[Relation]:
    found = ((type, ids[target] if isinstance(target, int) else target, sure) for type, target, sure in symbol.links)
    return list(starmap(_relation, found))


@lru_cache(maxsize=50_000)  # many functions call the same few
def _relation(type: str, target: str, confidence: float) -> Relation:
    return Relation(type=type, target=target, confidence=confidence)


def _choose(path: str) -> str:
    return "unsupported" if language_of(path) is None else foreign(path)
