"""Files that nobody reads without a secret: a passphrase, or the private key that belongs to an age public key.

With a **passphrase**: scrypt (RFC 7914) makes one key of it for a backup, HKDF (RFC 5869) one of that for each file,
and AES-256-GCM encrypts the file in pieces of 64 KiB by the STREAM construction (Hoang, Reyhanitabar, Rogaway and
Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015): the nonce is the piece's number
and whether it is the last. A file's salt is random, so no key meets a nonce twice; a piece that is missing, moved or
changed, and an end that is not the end, do not decrypt.

With **age** (https://age-encryption.org/v1): whoever makes the backup needs public keys alone, and cannot read it.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, Protocol, Self

from pydantic import Field, SecretStr

from context_os.errors import BackupError, ConfigurationError
from context_os.model import Value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAGIC: Final = b"COSENC1\n"
_SALT: Final = 32
_PIECE: Final = 1 << 16
_TAG: Final = 16


class Encryption(Value):
    """How a backup is encrypted, as anybody may read it. ``salt`` (hex) and ``cost`` are scrypt's, which takes
    ``1024 * cost`` bytes of memory: the limits keep a forged file from taking all of it."""

    kind: Literal["passphrase", "age"]
    salt: str = Field(default="", pattern=r"^([0-9a-f]{2})*$")
    cost: int = Field(default=1 << 17, ge=1 << 14, le=1 << 20)


class Cipher(Protocol):
    """Both read from and write to files that are open, a piece at a time where the method allows it."""

    about: Encryption

    def encrypt(self, plain: BinaryIO, sealed: BinaryIO) -> None: ...

    def decrypt(self, sealed: BinaryIO, plain: BinaryIO) -> None:
        """Raises BackupError where the secret is another one or the file is damaged."""


class PassphraseCipher:
    """AES-256-GCM under a key from a passphrase."""

    def __init__(self, passphrase: SecretStr, about: Encryption) -> None:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        self.about = about
        secret = passphrase.get_secret_value().encode()
        self._key = Scrypt(salt=bytes.fromhex(about.salt), length=32, n=about.cost, r=8, p=1).derive(secret)

    @classmethod
    def new(cls, passphrase: SecretStr) -> Self:
        """Of a passphrase of 12 characters at least: whoever has the file may try as many as they like."""
        if len(passphrase.get_secret_value()) < 12:
            raise ConfigurationError("the passphrase of a backup needs 12 characters at least")
        return cls(passphrase, Encryption(kind="passphrase", salt=secrets.token_hex(16)))

    def encrypt(self, plain: BinaryIO, sealed: BinaryIO) -> None:
        salt = secrets.token_bytes(_SALT)
        cipher = self._of_file(salt)
        sealed.write(_MAGIC + salt)
        number, piece = 0, plain.read(_PIECE)
        while True:
            following = plain.read(_PIECE)
            sealed.write(cipher.encrypt(_nonce(number, last=not following), piece, None))
            if not following:
                return
            number, piece = number + 1, following

    def decrypt(self, sealed: BinaryIO, plain: BinaryIO) -> None:
        from cryptography.exceptions import InvalidTag

        head = sealed.read(len(_MAGIC) + _SALT)
        if len(head) != len(_MAGIC) + _SALT or not head.startswith(_MAGIC):
            raise BackupError("it is no file that was encrypted with a passphrase")
        cipher = self._of_file(head[len(_MAGIC) :])
        number, piece = 0, sealed.read(_PIECE + _TAG)
        while True:
            following = sealed.read(_PIECE + _TAG)
            try:
                plain.write(cipher.decrypt(_nonce(number, last=not following), piece, None))
            except InvalidTag:
                raise BackupError("it does not decrypt: the passphrase is another one, or it is damaged") from None
            if not following:
                return
            number, piece = number + 1, following

    def _of_file(self, salt: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), 32, salt, b"context-os backup").derive(self._key))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class AgeCipher:
    """age with X25519 keys: public ones to encrypt for, and the text of a file of private ones, as `age-keygen` writes
    it, to decrypt with."""

    about = Encryption(kind="age")

    def __init__(self, recipients: tuple[str, ...] = (), identities: SecretStr | None = None) -> None:
        from pyrage import IdentityError, RecipientError, x25519

        lines = identities.get_secret_value().splitlines() if identities else []
        try:
            self._recipients = [x25519.Recipient.from_str(each) for each in recipients]
            self._identities = [x25519.Identity.from_str(each.strip()) for each in lines if each[:1] not in {"#", ""}]
        except RecipientError as error:
            raise ConfigurationError(f"backup.recipients must be public keys of age, as age1...: {error}") from None
        except IdentityError:
            raise ConfigurationError("backup.identity must hold private keys of age, AGE-SECRET-KEY-1...") from None

    def encrypt(self, plain: BinaryIO, sealed: BinaryIO) -> None:
        import pyrage

        pyrage.encrypt_io(plain, sealed, self._recipients)

    def decrypt(self, sealed: BinaryIO, plain: BinaryIO) -> None:
        import pyrage

        try:
            pyrage.decrypt_io(sealed, plain, self._identities)
        except (pyrage.DecryptError, OSError) as error:  # the latter where a piece is damaged
            raise BackupError(f"it does not decrypt: the key is another one, or it is damaged ({error})") from None


def writer(passphrase: SecretStr | None, recipients: tuple[str, ...]) -> Cipher | None:
    """What a new backup is encrypted with: for age's recipients where there are any, else with the passphrase, else
    not."""
    if recipients:
        return AgeCipher(recipients)
    return PassphraseCipher.new(passphrase) if passphrase is not None else None


def reader(about: Encryption, passphrase: SecretStr | None, identity: Path | None) -> Cipher:
    """What decrypts a backup. Raises BackupError where its secret is not given."""
    if about.kind == "age":
        if identity is None:
            raise BackupError("it is encrypted for age: name the file with the private key as backup.identity")
        return AgeCipher(identities=SecretStr(identity.read_text("utf-8")))
    if passphrase is None:
        raise BackupError(
            "it is encrypted with a passphrase: give it as CONTEXT_OS_BACKUP__PASSPHRASE, in a file, or when asked"
        )
    return PassphraseCipher(passphrase, about)
