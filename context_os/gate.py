"""The gate's own process: Great Expectations takes seconds to import, so it does that beside the reading of a source.

One process serves all validations of this one, started when a source turns out to have changed. What passed, it
counts for the statistics while this process writes it: two Pythons use two cores, two threads of one do not. Requests
and answers are JSON lines with a number, so that an answer to somebody who was killed is never taken for another's.
A process that dies (out of memory, a crash of a native library) is a broken verdict, like any other failure.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from context_os import quality, staging
from context_os.connectors import Expectation
from context_os.model import utcnow


class Gate:
    """Thread-safe; one validation at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to import what validation needs; returns at once. Harmless when it runs already."""
        with self._lock:
            self._running()

    def validate(self, parquet: Path, rows: int, expectations: Sequence[Expectation], **about: Any) -> quality.Verdict:
        """``quality.validate`` on a staged file; ``about`` are its keyword arguments. Never raises."""
        kwargs = {"parquet": str(parquet), "expectations": [asdict(each) for each in expectations], **about}
        try:
            with self._lock:
                answer = self._ask({"do": "validate", **kwargs})
            return quality.Verdict.model_validate(answer)
        except (OSError, ValueError) as error:
            known = {key: about[key] for key in ("connector", "data_version", "run_id")}
            reason = f"the gate's process failed: {error}"
            return quality.Verdict(**known, at=utcnow(), passed=False, broken=True, rows=rows, reason=reason)

    def grow(
        self, parquet: Path, refused: Collection[int], held: Path | None, leaving: Collection[str], grown: Path
    ) -> bool:
        """Write what ``staging.grown`` gives. False where no process runs, or it fails: then the caller has to."""
        paths = {"parquet": str(parquet), "held": held and str(held), "grown": str(grown)}
        request = {"do": "grow", **paths, "refused": sorted(refused), "leaving": sorted(leaving)}
        try:
            with self._lock:
                return self._is_running() and bool(self._ask(request))
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                _end(process)

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or not self._is_running():
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "context_os.gate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(_end, self._process)
        return self._process

    def _ask(self, request: dict[str, Any]) -> Any:
        request["number"] = f"{os.getpid()}-{next(self._numbers)}"
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        # The first line feed ends whatever somebody who was killed began to write.
        process.stdin.write(f"\n{json.dumps(request)}\n")
        process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if answer["number"] == request["number"]:
                return answer["answer"]
        raise OSError(f"it ended with exit code {process.wait()}")


GATE: Final = Gate()
"""The one of this process."""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _serve() -> None:
    # What a library prints must not stand between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        gc.disable()  # looking for garbage takes a fifth of the time: that is done between two requests
        quality.warm_up()
        gc.freeze()
        for line in sys.stdin:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            answer = _answer(**request)
            answers.write(f'{{"number": "{request["number"]}", "answer": {answer}}}\n')
            answers.flush()
            quality.warm_up()
            gc.collect()


def _answer(do: str, number: str, **about: Any) -> str:
    """As JSON."""
    del number
    return _validate(**about).model_dump_json() if do == "validate" else json.dumps(_grow(**about))


def _grow(parquet: str, refused: list[int], held: str | None, leaving: list[str], grown: str) -> bool:
    asked_by = os.getppid()
    try:
        segment = staging.grown(Path(parquet), set(refused), Path(held) if held else None, leaving)
        if segment is None or os.getppid() != asked_by:  # nobody would take it, and nobody would delete it
            return False
        segment.save(Path(grown))
    except Exception as error:  # noqa: BLE001  the caller, who can do it as well, will meet what is wrong again
        print(f"the statistics were not counted beside: {error}", file=sys.stderr)  # noqa: T201
        return False
    return True


def _validate(parquet: str, expectations: list[dict[str, Any]], **about: Any) -> quality.Verdict:
    try:
        frame = staging.frame(Path(parquet))
    except (OSError, ValueError) as error:
        known = {key: about[key] for key in ("connector", "data_version", "run_id")}
        reason = f"the staged file cannot be read: {error}"
        return quality.Verdict(**known, at=utcnow(), passed=False, broken=True, rows=0, reason=reason)
    return quality.validate(frame, [Expectation(**each) for each in expectations], **about)


if __name__ == "__main__":
    _serve()
