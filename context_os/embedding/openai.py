"""Any server that speaks OpenAI's embeddings endpoint: OpenAI itself, vLLM, Ollama, llama.cpp, a company's gateway."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from http.client import HTTPException
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SecretStr, field_validator

from context_os.embedding import Embedding
from context_os.errors import EmbeddingError, EmbeddingUnavailable

_BATCH: Final = 64
_CHARACTERS: Final = 8_000
"""Of a text: below the endpoint's 8,191 tokens whatever the text is made of."""
_TRIES: Final = 5
_LONGEST_WAIT: Final = 60.0
_TIMEOUT: Final = 60.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


_NETWORK: Final = urllib.request.build_opener(_NoRedirect)


class OpenAIEmbedding(Embedding):
    """``url`` is what stands before ``/embeddings``, mostly ending in ``/v1``. ``pause`` is the first wait before a
    request is repeated, in seconds; it doubles, and a server's Retry-After goes before it."""

    name: ClassVar[str] = "openai"

    url: str
    model: str
    api_key: SecretStr | None = None
    pause: float = Field(default=1.0, ge=0)

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s?#]+", value):
            raise ValueError("write it as https://host/v1")
        return value.rstrip("/")

    @property
    def version(self) -> str:
        """The endpoint alone knows how many dimensions its model has: the first call asks it for a vector."""
        return f"{self.model}-{self._dimensions}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not len(texts):
            return np.empty((0, self._dimensions), dtype=np.float32)
        batches = [self._batch(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        if len({batch.shape[1] for batch in batches}) > 1:
            raise EmbeddingError(f"{self.url} gave vectors of different lengths for {self.model}")
        return np.concatenate(batches)

    @cached_property
    def _dimensions(self) -> int:
        return int(self._batch(["dimensions"]).shape[1])

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # An empty text is refused by the endpoint.
        answer = self._post([text[:_CHARACTERS].encode("utf-8", "replace").decode() or " " for text in texts])
        try:
            found = sorted(json.loads(answer)["data"], key=lambda each: int(each["index"]))
            vectors = np.array([each["embedding"] for each in found], dtype=np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            whole = vectors.shape[0] == len(texts) and bool(np.isfinite(vectors).all()) and bool(lengths.all())
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise EmbeddingError(f"{self.url} did not answer with one vector for each of {len(texts)} texts")
        unit: NDArray[np.float32] = vectors / lengths
        return unit

    def _post(self, texts: Sequence[str]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        body = json.dumps({"model": self.model, "input": list(texts), "encoding_format": "float"}).encode()
        request = urllib.request.Request(f"{self.url}/embeddings", body, headers)  # noqa: S310 - http(s) by its pattern
        for attempt in range(_TRIES):
            wait = self.pause * 2**attempt
            try:
                with _NETWORK.open(request, timeout=_TIMEOUT) as answer:
                    content: bytes = answer.read()
                    return content
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"HTTP {error.code}: {error.read(500).decode('utf-8', 'replace')}"
                if error.code != 429 and error.code < 500:
                    raise EmbeddingError(f"{self.url} refuses ({reason}); check embedding.model and the key") from None
                wait = _seconds(error.headers.get("Retry-After")) or wait
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            if attempt + 1 < _TRIES:
                time.sleep(min(wait, _LONGEST_WAIT))
        raise EmbeddingUnavailable(f"{self.url} cannot be reached or did not answer {_TRIES} times ({reason})")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in its form of seconds; as a date it is left alone."""
    return float(retry_after) if retry_after and retry_after.strip().isdigit() else None
