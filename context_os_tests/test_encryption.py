"""Encryption with a passphrase: what it gives back, and that nothing else is ever given back."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from context_os.encryption import Encryption, PassphraseCipher
from context_os.errors import BackupError, ConfigurationError

CIPHER = PassphraseCipher(
    SecretStr("correct horse battery"), Encryption(kind="passphrase", salt="ab" * 16, cost=1 << 14)
)
PIECE = 1 << 16
HEAD = 40
SIZES = st.sampled_from((0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5))


def seal(plain: bytes) -> bytes:
    sealed = BytesIO()
    CIPHER.encrypt(BytesIO(plain), sealed)
    return sealed.getvalue()


def unseal(sealed: bytes, cipher: PassphraseCipher = CIPHER) -> bytes:
    plain = BytesIO()
    cipher.decrypt(BytesIO(sealed), plain)
    return plain.getvalue()


@settings(max_examples=20)
@given(SIZES)
def test_what_goes_in_comes_out_and_never_the_same_twice(size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    first, second = seal(plain), seal(plain)
    assert unseal(first) == unseal(second) == plain
    assert first[8:HEAD] != second[8:HEAD]  # each file has a key of its own, so that no nonce is used twice with one
    assert first[HEAD:] != second[HEAD:]


@settings(max_examples=60)
@given(SIZES, st.data())
def test_what_was_changed_cut_moved_or_added_to_does_not_come_out(size: int, data: st.DataObject) -> None:
    sealed = seal(b"a" * size)
    flipped = bytearray(sealed)
    flipped[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    whole = PIECE + 16
    wrong = [bytes(flipped), cut, sealed + b"x"]
    if size > PIECE:
        wrong.append(sealed[: HEAD + whole])  # at the border between two pieces
        wrong.append(sealed[:HEAD] + sealed[HEAD + whole :])
    if size > 2 * PIECE:
        second = sealed[HEAD + whole : HEAD + 2 * whole]
        wrong.append(sealed[:HEAD] + second + sealed[HEAD : HEAD + whole] + sealed[HEAD + 2 * whole :])
    for each in wrong:
        with pytest.raises(BackupError):
            unseal(each)


def test_another_passphrase_or_salt_opens_nothing() -> None:
    sealed = seal(b"plain")
    for passphrase, salt in (("another horse battery", "ab" * 16), ("correct horse battery", "cd" * 16)):
        about = Encryption(kind="passphrase", salt=salt, cost=1 << 14)
        with pytest.raises(BackupError, match="passphrase is another"):
            unseal(sealed, PassphraseCipher(SecretStr(passphrase), about))


def test_a_forged_cost_cannot_take_all_memory() -> None:
    with pytest.raises(ValidationError):
        Encryption(kind="passphrase", salt="ab", cost=1 << 30)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="12 characters"):
        PassphraseCipher.new(SecretStr("short"))
