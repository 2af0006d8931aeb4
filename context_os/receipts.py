"""Signed receipts, one file each in ``receipts`` of the state folder, that nobody has to take our word for.

A receipt is canonical JSON (sorted keys, no spaces) signed with Ed25519 (RFC 8032). The private key is made at the
first one, in ``keys/receipts.key`` for its owner alone; the public one beside it can be handed out. Each receipt names
the SHA-256 of the one before, so that a receipt that was taken away is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from context_os.errors import ConfigurationError, StoreError

NONE_BEFORE: Final = "0" * 64


class Receipts:
    """Those of one state folder."""

    def __init__(self, home: Path) -> None:
        self._keys = home / "keys"
        self.folder = home / "receipts"

    @property
    def public_key_file(self) -> Path:
        return self._keys / "receipts.pub"

    def issue(self, id: str, claim: dict[str, Any]) -> Path:
        """Sign a claim and write it down; one that was issued already is left as it is. Raises StoreError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self.folder / f"{id}.json"
            if not file.exists():
                body = {**claim, "receipt": id, "number": len(self.files()) + 1, "previous": self._newest()}
                signature = base64.b64encode(self._private_key().sign(_canonical(body))).decode()
                held = {"claim": body, "signature": signature, "public_key": self._public_key()}
                _write_once(file, json.dumps(held, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StoreError(f"the receipt {id} cannot be written to {self.folder}: {error.strerror}") from error
        return file

    def files(self) -> list[Path]:
        """In the order in which they were issued."""
        return sorted(self.folder.glob("*.json"), key=_number)

    def verify(self, file: Path) -> tuple[dict[str, Any], list[str]]:
        """The claim, and what is wrong with the receipt. Raises ConfigurationError for what is none."""
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            claim, signature = dict(held["claim"]), base64.b64decode(held["signature"], validate=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{file} is no receipt: {error}") from None
        problems = []
        known = self.public_key_file.read_text().strip() if self.public_key_file.is_file() else ""
        if not known:
            problems.append(f"{self.public_key_file} is not there: nobody can say whose signature this is")
        elif held.get("public_key") != known:
            problems.append("it was signed with another key than this installation's")
        if not _signed(str(held.get("public_key")), signature, _canonical(claim)):
            problems.append("its signature is not that of its content: it was changed")
        return claim, problems

    def missing(self) -> list[str]:
        """What the receipts here say about others that are not here any more."""
        problems, previous = [], NONE_BEFORE
        for file in self.files():
            claim = json.loads(file.read_text(encoding="utf-8"))["claim"]
            if claim["previous"] != previous:
                problems.append(f"the receipt before {file.stem} was taken away or changed")
            previous = hashlib.sha256(file.read_bytes()).hexdigest()
        return problems

    def _newest(self) -> str:
        files = self.files()
        return hashlib.sha256(files[-1].read_bytes()).hexdigest() if files else NONE_BEFORE

    def _private_key(self) -> Any:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        file = self._keys / "receipts.key"
        if not file.is_file():
            self._keys.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            _write_once(file, made.decode())
        return serialization.load_pem_private_key(file.read_bytes(), None)

    def _public_key(self) -> str:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        raw = self._private_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        text = base64.b64encode(raw).decode()
        if not self.public_key_file.is_file():
            _write_once(self.public_key_file, f"{text}\n")
        return text


def _number(file: Path) -> int:
    return int(json.loads(file.read_text(encoding="utf-8"))["claim"]["number"])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _signed(public_key: str, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _write_once(file: Path, text: str) -> None:
    """Durable, for its owner alone, whole or not at all; an existing file is never replaced."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.writing")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(partial, file)  # fails where it exists
    except FileExistsError:
        pass
    finally:
        partial.unlink()
