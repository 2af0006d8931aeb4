"""What a run works with: settings, store and ledger, opened when the run starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from context_os import settings
from context_os.errors import ContextOSError, SourceUnavailable
from context_os.ingestion import Ingestion, Progress
from context_os.ledger import Ledger

_TRIES = 3


class Workspace(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Overrides on top of ``context-os.toml`` and the environment; empty means "as configured". ``verbose`` also prints
    progress to standard error."""

    store: str = ""
    tenant: str = ""
    verbose: bool = False

    @contextmanager
    def ingestion(self, progress: Progress) -> Iterator[Ingestion]:
        """An Ingestion whose errors are Dagster's: retried if, and only if, the error says that it may help."""
        try:
            chosen = self.settings()
            with chosen.open_store() as store:
                told = _also_to_terminal(progress) if self.verbose else progress
                yield Ingestion(chosen, store, Ledger(chosen.make_home() / "ledger.db"), told)
        except ContextOSError as error:
            raise _translated(error) from error

    @contextmanager
    def translated(self) -> Iterator[settings.Settings]:
        """The settings, for work whose errors are to be Dagster's."""
        try:
            yield self.settings()
        except ContextOSError as error:
            raise _translated(error) from error

    def settings(self) -> settings.Settings:
        """Raises ConfigurationError."""
        return settings.load({"store": {"kind": self.store or None}, "tenant": self.tenant or None})


def _also_to_terminal(progress: Progress) -> Progress:
    def tell(message: str) -> None:
        progress(message)
        print(f"  {message}", file=sys.stderr, flush=True)  # noqa: T201 - progress for a person at a terminal

    return tell


def _translated(error: ContextOSError) -> Exception:
    if error.retryable:
        wait = error.retry_after if isinstance(error, SourceUnavailable) and error.retry_after else 2.0
        return dg.RetryRequested(max_retries=_TRIES, seconds_to_wait=wait)
    kind = type(error).__name__
    return dg.Failure(
        description=f"{kind}: {error}", metadata={"error": kind, "message": str(error)}, allow_retries=False
    )
