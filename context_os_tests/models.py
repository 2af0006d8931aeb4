"""Model files small enough to be made by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from context_os.embedding._weights import TOKENIZER, WEIGHTS


def write_safetensors(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, each in arrays.items():
        data = each.tobytes()
        span = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kinds[each.dtype.name], "shape": each.shape, "data_offsets": span}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_tokenizer(path: Path) -> list[str]:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "close", "session", "key"]
    pieces = {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(vocabulary)}, "unk_token": "[UNK]"}
    path.write_text(json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": pieces}))
    return vocabulary


def write_static_model(folder: Path, dimensions: int, seed: int = 3) -> Path:
    """Random token vectors beside their tokenizer, as the provider model2vec reads them."""
    folder.mkdir(exist_ok=True)
    words = len(write_tokenizer(folder / TOKENIZER))
    table = np.random.default_rng(seed).normal(size=(words, dimensions)).astype(np.float32)
    write_safetensors(folder / WEIGHTS, {"embeddings": table})
    return folder
