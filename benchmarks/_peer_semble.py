"""Runs inside the peers' environment: one JSON request a line on stdin, one answer a line on stdout.

semble without its model, which would have to be downloaded: with ``alpha=0.0`` no vector counts, so one constant vector
stands for every chunk. That makes its index cheaper to build than with the model.

  {"folder": F}                                   index, from its cache where it has one, and save -> {"seconds"}
  {"folder": F, "queries": [...], "top": N}       the same, then search -> {"seconds", "answers", "latencies"}
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import semble.index.index as semble_index
from semble.cache import find_index_from_cache_folder
from semble.index import SembleIndex


class Constant:
    """Takes the model's place."""

    dim = 1

    def encode(self, texts: list[str], **options: Any) -> Any:
        return np.ones((len(texts), self.dim), dtype=np.float32)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    started = time.perf_counter()
    index = SembleIndex.from_path(folder)
    if not index.loaded_from_disk:
        index.save(find_index_from_cache_folder(str(folder)))
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "chunks": len(index.chunks)}
    answers, latencies = [], []
    for query in request.get("queries", []):
        started = time.perf_counter()
        results = index.search(query, top_k=request["top"], alpha=0.0, rerank=True)
        latencies.append(time.perf_counter() - started)
        answers.append(
            [
                {"path": chunk.file_path, "start": chunk.start_line, "end": chunk.end_line, "text": chunk.content}
                for chunk in (result.chunk for result in results)
            ]
        )
    return {**found, "answers": answers, "latencies": latencies}


def main() -> None:
    semble_index.load_model = lambda path=None: (Constant(), "no model")
    os.environ["SEMBLE_MODEL_NAME"] = "no model"
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what the library prints must not stand between the answers
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
