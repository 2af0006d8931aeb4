"""Metrics of this process, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def exposition() -> tuple[bytes, str]:
    """``(body, content type)``."""
    return generate_latest(), CONTENT_TYPE_LATEST
