"""Every error this package raises on purpose, as one tree.

::

    ContextOSError
    ├── ConfigurationError        a setting, argument or file of settings is wrong          (exit 2)
    ├── NotFound                  an id or a name that nothing answers to, or not to you    (exit 1)
    ├── SourceError               a connector cannot read what it was pointed at            (exit 1)
    │   ├── SourceUnavailable     ... right now: network, rate limit, 5xx                   (retryable)
    │   └── SourceRefused         ... because the source says no: bad token, no such repository
    ├── StoreError                a store did not do what it was asked                      (exit 1)
    │   ├── StoreUnavailable      ... it cannot be reached or timed out                     (retryable)
    │   ├── StoreRejected         ... it will not take this data
    │   └── StoreAccessDenied     ... it will not do this for this caller                   (exit 3)
    ├── EmbeddingError            a model cannot be had, or does not give vectors           (exit 1)
    │   └── EmbeddingUnavailable  ... right now: network, rate limit, 5xx                   (retryable)
    ├── ModelError                a language model does not answer as it was asked      (exit 1)
    │   └── ModelUnavailable      ... right now: network, rate limit, 5xx                   (retryable)
    ├── ServerError               the local Weaviate server cannot be started or stopped    (exit 1)
    ├── DeliveryError             a receiver of alerts did not take a notice                (retryable)
    ├── BackupError               a backup cannot be made or read                           (exit 1)
    │   └── BackupRefused         ... it is damaged, or would overwrite what is there       (exit 3)
    ├── BatchRefused              the gate let none of a batch through                      (exit 3)
    ├── StagingOutdated           another run was faster; stage again                       (retryable)
    └── ReconcileDifference       ledger and store disagree                                 (exit 3)

``retryable`` says whether the same call may succeed later with nothing changed by a person; edges
translate it (Dagster: ``RetryRequested``; HTTP: 503). ``exit_code`` is what the command line returns.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BackupError",
    "BackupRefused",
    "BatchRefused",
    "ConfigurationError",
    "ContextOSError",
    "DeliveryError",
    "EmbeddingError",
    "EmbeddingUnavailable",
    "ModelError",
    "ModelUnavailable",
    "NotFound",
    "ReconcileDifference",
    "ServerError",
    "SourceError",
    "SourceRefused",
    "SourceUnavailable",
    "StagingOutdated",
    "StoreAccessDenied",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
]


class ContextOSError(Exception):
    """Root of the tree. The message says what was wrong, where, and what to do."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class ConfigurationError(ContextOSError):
    exit_code = 2


class NotFound(ContextOSError):
    pass


class SourceError(ContextOSError):
    pass


class SourceUnavailable(SourceError):
    """``retry_after`` is in seconds where the source told it."""

    retryable = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SourceRefused(SourceError):
    pass


class StoreError(ContextOSError):
    pass


class StoreUnavailable(StoreError):
    retryable = True


class StoreRejected(StoreError):
    """``failures`` maps an item's id to the store's reason, where the store told them apart."""

    def __init__(self, message: str, failures: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}


class StoreAccessDenied(StoreError):
    exit_code = 3


class EmbeddingError(ContextOSError):
    pass


class EmbeddingUnavailable(EmbeddingError):
    retryable = True


class ModelError(ContextOSError):
    pass


class ModelUnavailable(ModelError):
    retryable = True


class ServerError(ContextOSError):
    pass


class DeliveryError(ContextOSError):
    """``refused``: because of what the notice says, not of how the receiver is."""

    retryable = True

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class BackupError(ContextOSError):
    pass


class BackupRefused(BackupError):
    """``problems`` are everything that was found wrong, where more than one thing was looked at."""

    exit_code = 3

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__("\n  ".join([message, *problems]))
        self.problems = problems


class BatchRefused(ContextOSError):
    exit_code = 3


class StagingOutdated(ContextOSError):
    retryable = True


class ReconcileDifference(ContextOSError):
    exit_code = 3
