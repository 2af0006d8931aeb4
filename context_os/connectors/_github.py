"""GitHub's REST API through PyGithub's requester: retries, rate limits, conditional requests, pages.

The only file that imports ``github``, and only when a client is made. The requester's raw answers are used instead of
PyGithub's objects because those drop the text of an answer that they cannot parse, and nothing may be lost here.
Vendor exceptions and HTTP statuses become this package's errors in ``vendor_errors`` and ``refusal``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self, TypeVar

from context_os.errors import SourceError, SourceRefused, SourceUnavailable

_T = TypeVar("_T")

DEFAULT_URL: Final = "https://api.github.com"
PER_PAGE: Final = 100

_BACKOFF: Final = (0.25, 1.0, 4.0)
_MOST_PAGES: Final = 200
_ABSENT: Final = frozenset({404, 406, 410, 422, 451})


class Absent(SourceRefused):
    """GitHub has nothing to show under this address (404, 410, 451) or cannot produce it (406, 422)."""


class Unreadable(Exception):
    """An answer that is not what the API documents; ``raw`` is its text. Never leaves the connector."""

    def __init__(self, reason: str, raw: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.raw = raw


@dataclass(frozen=True)
class Answer:
    """``unchanged`` is a 304. ``more`` tells of a next page."""

    text: str
    etag: str
    more: bool
    unchanged: bool


class Client:
    """One session with one server. ``patience`` is how many seconds all its waiting may take together."""

    def __init__(
        self, base_url: str, token: str, timeout: int, seconds_between_requests: float, patience: float
    ) -> None:
        import github

        self._patience = patience
        self._requester = github.Github(
            base_url=base_url or DEFAULT_URL,
            auth=github.Auth.Token(token) if token else None,
            timeout=timeout,
            user_agent="context-os",
            seconds_between_requests=seconds_between_requests,
            # GithubRetry would sleep as long as the server likes; waiting is decided here instead.
            retry=0,
        ).requester

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requester.close()

    def get(self, path: str, parameters: Mapping[str, Any] | None = None, etag: str = "") -> Answer:
        """One answer. Failures that may pass are retried after a wait, while patience lasts.

        Raises SourceUnavailable (with ``retry_after`` when GitHub told it) and SourceRefused.
        """
        return self._patiently(lambda: self._once(path, parameters, etag))

    def graphql(self, query: str, variables: Mapping[str, Any]) -> Any:
        """The data that a query finds. Raises as ``get`` does; an answer with errors is SourceRefused."""
        return self._patiently(lambda: self._asked(query, variables))

    def _asked(self, query: str, variables: Mapping[str, Any]) -> Any:
        path = self._requester.graphql_url
        with vendor_errors(path):
            status, headers, text = self._requester.requestJson(
                "POST", path, input={"query": query, "variables": dict(variables)}
            )
        if status != 200:
            raise refusal(path, status, headers, _message(text))
        found = parsed(text, path)
        if not isinstance(found, dict) or found.get("errors"):
            raise SourceRefused(f"GitHub does not answer this query at {path}: {text[:200]}")
        return found.get("data")

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        for pause in _BACKOFF:
            try:
                return ask()
            except SourceUnavailable as error:
                wait = max(pause, error.retry_after or 0.0)
                if wait > self._patience:
                    raise
                self._patience -= wait
                time.sleep(wait)
        return ask()

    def _once(self, path: str, parameters: Mapping[str, Any] | None, etag: str) -> Answer:
        with vendor_errors(path):
            status, headers, text = self._requester.requestJson(
                "GET", path, dict(parameters or {}), {"If-None-Match": etag} if etag else {}
            )
        if status not in (200, 304):
            raise refusal(path, status, headers, _message(text))
        return Answer(text, headers.get("etag", ""), 'rel="next"' in headers.get("link", ""), status == 304)

    def json(self, path: str, parameters: Mapping[str, Any] | None = None, etag: str = "") -> tuple[Any, Answer]:
        """The answer's value, None for a 304. Text that is no JSON is asked for once more, then it is Unreadable."""
        try:
            return _valued(self.get(path, parameters, etag), path)
        except Unreadable:
            time.sleep(_BACKOFF[0])
            return _valued(self.get(path, parameters, etag), path)

    def every(self, path: str) -> list[Any]:
        """The entries of all pages. Page numbers are counted here: a link from an answer is never followed, so
        that no answer can lead the token elsewhere."""
        entries: list[Any] = []
        for page in range(1, _MOST_PAGES + 1):
            found, answer = self.json(path, {"per_page": PER_PAGE, "page": page})
            if not isinstance(found, list):
                raise Unreadable(f"{path} answered with {type(found).__name__} where a list was due", answer.text)
            entries += found
            if not answer.more or not found:
                return entries
        raise Unreadable(f"{path} has more than {_MOST_PAGES} pages", "")


def _valued(answer: Answer, path: str) -> tuple[Any, Answer]:
    return None if answer.unchanged else parsed(answer.text, path), answer


def parsed(text: str, path: str) -> Any:
    """Strict JSON. Raises Unreadable, also for nesting too deep to follow and for numbers that are none."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = f"{path} answered with {len(text):,} characters that are not JSON: {error}"
        raise Unreadable(reason, text) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@contextmanager
def vendor_errors(path: str) -> Iterator[None]:
    """The one place where exceptions of PyGithub and requests become SourceUnavailable or SourceRefused."""
    import github
    import requests

    try:
        yield
    except github.GithubException as error:
        raise refusal(path, error.status, error.headers or {}, error.message or "") from error
    except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.exceptions.InvalidProxyURL) as error:
        raise SourceRefused(f"cannot speak to GitHub for {path}: {error}; check base_url and certificates") from error
    except requests.RequestException as error:
        raise SourceUnavailable(f"no answer from GitHub for {path}: {error}") from error
    except (AssertionError, RuntimeError) as error:
        raise SourceRefused(f"GitHub sent {path} elsewhere: {error}; check base_url and slug") from error
    except (github.BadAttributeException, ValueError) as error:
        raise SourceUnavailable(f"a malformed answer from GitHub for {path}: {error}") from error


def refusal(path: str, status: int, headers: Mapping[str, str], message: str) -> SourceError:
    """The error that a status means, with GitHub's own words and what to check."""
    said = f"GitHub answered {status} for {path}" + (f" ({message})" if message else "")
    if status == 429 or (status == 403 and _limited(headers, message)):
        return SourceUnavailable(f"{said}: rate limit reached; a token raises it", _wait(headers))
    if status >= 500 or status == 408:
        return SourceUnavailable(f"{said}: the server is in trouble; try again later")
    if status == 401:
        return SourceRefused(f"{said}: the token is not accepted; check that it is whole and has not expired")
    if status == 403:
        return SourceRefused(f"{said}: check that the token may read pull requests here, and single sign-on")
    if status in _ABSENT:
        return Absent(f"{said}: check slug, base_url (Enterprise's ends in /api/v3) and that the token sees it")
    return SourceRefused(f"{said}: check slug and base_url")


def _limited(headers: Mapping[str, str], message: str) -> bool:
    told = "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0"
    return told or "rate limit" in message.casefold()


def _wait(headers: Mapping[str, str]) -> float:
    """Seconds to wait, as GitHub documents it: Retry-After, else until the reset, else a minute."""
    retry_after, reset = headers.get("retry-after", ""), headers.get("x-ratelimit-reset", "")
    if re.fullmatch(r"\d{1,9}", retry_after):
        return float(retry_after)
    if headers.get("x-ratelimit-remaining") == "0" and re.fullmatch(r"\d{1,12}", reset):
        return max(1.0, float(reset) - time.time() + 1.0)
    return 60.0


def _message(text: str) -> str:
    """GitHub's own words in an error, on one line and not too many of them."""
    try:
        said = parsed(text, "").get("message")
    except (Unreadable, AttributeError):
        said = text
    return " ".join(str(said or "").split())[:200]
