"""The status page: a tenant's operations as pictures, in one HTML document without scripts or anything from elsewhere.

Everything that is not ours is escaped by ``_text`` and nowhere else. Colours are classes, since the page's content
policy allows the one style sheet of ``data/status.css`` and no inline style.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Final

from context_os.overview import Freshness, Latency, Operations, Run

_MOST_ROWS: Final = 40
"""Repositories and bars of a picture; the rest is counted."""
_RUNS_TOLD: Final = 12
_LABEL: Final = 230
_AGES: Final = ((3600, "fresh"), (86_400, "recent"), (7 * 86_400, "old"))
"""Up to so many seconds an age is drawn so; older is stale."""

_STYLE: Final = files("context_os").joinpath("data/status.css").read_text(encoding="utf-8")

_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""What goes with every page."""


def login(problem: str = "") -> str:
    """The page of somebody who is not logged in: nothing but a form."""
    told = f'<p class="wrong" role="alert">{_text(problem)}</p>' if problem else ""
    return _document(
        "Context-OS",
        f"""<div class="login"><h1>Context-OS</h1><p class="soft">The operations of a tenant, for its admins.</p>{told}
<form method="post" action="/login"><label for="key">Access key</label>
<input id="key" name="key" type="password" autocomplete="off" required placeholder="cos_…">
<button>Show the status</button></form></div>""",
    )


def render(seen: Operations, principal: str) -> str:
    """The page of a tenant's operations, for the admin who asks."""
    parts = (
        _header(seen, principal),
        _tiles(seen),
        _section(
            "Freshness", "How long ago each source was last looked at, by repository and connector.", _matrix(seen)
        ),
        _section("Recent runs", "The newest on the right; height is the rows that the gate saw.", _runs(seen)),
        _section("Quarantine", "Records that were kept out and stand there now.", _quarantine(seen.freshness)),
        _section(
            "Answers",
            "By this process since it started. A dot is one answer, the strokes are median and 95th percentile.",
            _latency(seen),
        ),
    )
    return _document(f"Context-OS: {seen.tenant}", "<main>" + "".join(parts) + "</main>")


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>"
    )


def _text(value: object) -> str:
    return escape(str(value).encode("utf-8", "replace").decode())


def _header(seen: Operations, principal: str) -> str:
    return (
        f'<header><h1>{_text(seen.tenant)}</h1><span class="soft">Context-OS at {_clock(seen.at)}, seen by '
        f'{_text(principal)}</span><form method="post" action="/logout"><button>Log out</button></form></header>'
    )


def _tiles(seen: Operations) -> str:
    last = f"{_age(seen.runs[0].at, seen.at)} ago" if seen.runs else "none yet"
    tiles = {
        "repositories": f"{len({each.repository for each in seen.freshness}):,}",
        "items": f"{sum(each.items for each in seen.freshness):,}",
        "in quarantine": f"{sum(each.quarantined for each in seen.freshness):,}",
        f"last run{', ' + seen.runs[0].outcome if seen.runs else ''}": last,
    }
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles.items())
        + "</div>"
    )


def _section(title: str, about: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{about}</p>{content}</section>'


def _picture(width: float, height: float, about: str, parts: Iterable[str]) -> str:
    return (
        f'<div class="wide"><svg role="img" aria-label="{_text(about)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{"".join(parts)}</svg></div>'
    )


def _word(x: float, y: float, text: object, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{_text(text)}</text>'


# Freshness


def _matrix(seen: Operations) -> str:
    if not seen.freshness:
        return '<p class="soft">Nothing is ingested yet.</p>'
    columns = sorted({each.connector for each in seen.freshness})
    rows = sorted({each.repository for each in seen.freshness})
    cells = {(each.repository, each.connector): each for each in seen.freshness}
    wide, high = 124, 34
    parts = [_word(_LABEL + (n + 0.5) * wide, 16, name.replace("_", " "), "soft mid") for n, name in enumerate(columns)]
    for row, repository in enumerate(rows[:_MOST_ROWS]):
        y = 26 + row * high
        parts.append(_label(y + 19, repository))
        for column, connector in enumerate(columns):
            cell = cells.get((repository, connector))
            parts.append(_cell(_LABEL + column * wide, y, wide - 6, high - 6, cell, seen.at))
    height = 26 + min(len(rows), _MOST_ROWS) * high + 4
    about = f"Freshness of {len(rows)} repositories by {len(columns)} connectors"
    return (
        _picture(_LABEL + len(columns) * wide, height, about, parts)
        + _legend(_AGE_NAMES, _LABEL, "Ages")
        + _rest(len(rows), "repositories")
    )


def _cell(x: float, y: float, wide: float, high: float, cell: Freshness | None, now: datetime) -> str:
    if cell is None or cell.checked_at is None:
        return f'<rect x="{x:.1f}" y="{y}" width="{wide}" height="{high}" rx="5" class="none"/>' + _word(
            x + wide / 2, y + 19, "never", "soft mid"
        )
    seconds = (now - cell.checked_at).total_seconds()
    style = next((name for most, name in _AGES if seconds <= most), "stale")
    told = (
        f"{cell.repository} {cell.connector}: {cell.items:,} items, looked at {_clock(cell.checked_at)}, {cell.outcome}"
    )
    troubled = cell.outcome in {"refused", "broken"}
    text = f"{_age(cell.checked_at, now)}, {cell.outcome}" if troubled else f"{_age(cell.checked_at, now)}"
    ring = f'<rect x="{x + 1.5:.1f}" y="{y + 1.5}" width="{wide - 3}" height="{high - 3}" rx="4" class="ring"/>'
    box = f'<rect x="{x:.1f}" y="{y}" width="{wide}" height="{high}" rx="5" class="{style}"/>'
    return (
        f"<g><title>{_text(told)}</title>{box}"
        + (ring if troubled else "")
        + _word(x + wide / 2, y + 19, text, "dark mid" if style in {"recent", "old"} else "on mid")
        + "</g>"
    )


_AGE_NAMES: Final = {
    "fresh": "under an hour",
    "recent": "under a day",
    "old": "under a week",
    "stale": "older",
    "ring": "refused or broken",
}


def _legend(names: Mapping[str, str], left: float, about: str) -> str:
    """What the classes of boxes mean, side by side."""
    parts = [
        f'<rect x="{left + n * 152 + 1:.0f}" y="7" width="12" height="12" rx="3" class="{style}"/>'
        + _word(left + n * 152 + 21, 17, name, "soft")
        for n, (style, name) in enumerate(names.items())
    ]
    return _picture(left + len(names) * 152, 26, about, parts)


# Runs


_OUTCOMES: Final = {"passed": "passed", "refused": "refused by the gate", "broken": "the gate broke"}


def _runs(seen: Operations) -> str:
    if not seen.runs:
        return '<p class="soft">No run has been recorded.</p>'
    runs = list(reversed(seen.runs))
    wide, high = 22, 96
    most = max(math.log1p(each.rows) for each in runs) or 1.0
    parts = [f'<line x1="0" x2="{len(runs) * wide}" y1="{high + 0.5}" y2="{high + 0.5}" class="axis"/>']
    for place, each in enumerate(runs):
        tall = 6 + (high - 24) * math.log1p(each.rows) / most
        told = f"{_clock(each.at)} {each.repository}: {each.rows:,} rows, {each.outcome} {each.reason}"
        parts.append(
            f'<g><title>{_text(told)}</title><rect x="{place * wide + 3}" y="{high - tall:.1f}" width="{wide - 6}" '
            f'height="{tall:.1f}" rx="3" class="{each.outcome}"/></g>'
        )
        if each.outcome != "passed":
            parts.append(_word((place + 0.5) * wide, high - tall - 5, "!", "mid"))
    width = max(len(runs) * wide, 330)
    newest = len(runs) * wide
    parts.append(_word(0, high + 17, _clock(runs[0].at), "soft"))
    if newest >= 330:
        parts.append(_word(newest, high + 17, _clock(runs[-1].at), "soft end"))
    return (
        _picture(width, high + 24, f"The last {len(runs)} runs", parts)
        + _legend(_OUTCOMES, 0, "Verdicts")
        + _table(seen.runs[:_RUNS_TOLD], seen.at)
    )


def _table(runs: Sequence[Run], now: datetime) -> str:
    rows = "".join(
        f'<tr><td class="whole" title="{_clock(each.at)}">{_age(each.at, now)} ago</td>'
        f'<td class="long">{_text(each.repository)}</td>'
        f'<td>{_text(", ".join(each.connectors))}</td><td class="whole number">{each.rows:,}</td>'
        f'<td class="long"><span class="{each.outcome}-word">{each.outcome}</span> {_text(each.reason)}</td>'
        f'<td class="whole" title="{_text(each.id)}">{_text(each.id[:8])}</td></tr>'
        for each in runs
    )
    return (
        '<div class="wide"><table><thead><tr><th>when</th><th>repository</th><th>connectors</th>'
        f'<th class="number">rows</th><th>verdict</th><th>run</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


# Quarantine


def _quarantine(freshness: Sequence[Freshness]) -> str:
    held = sorted((each for each in freshness if each.quarantined), key=lambda each: -each.quarantined)
    if not held:
        return '<p class="soft">Nothing stands in quarantine.</p>'
    most, high, length = held[0].quarantined, 30, 560
    parts = []
    for row, each in enumerate(held[:_MOST_ROWS]):
        y = row * high
        wide = max(4.0, length * each.quarantined / most)
        parts.append(_label(y + 19, f"{each.connector} of {each.repository}", 320))
        parts.append(f'<rect x="320" y="{y + 4}" width="{wide:.1f}" height="{high - 10}" rx="4" class="bar"/>')
        parts.append(_word(320 + wide + 8, y + 19, f"{each.quarantined:,}"))
    about = f"Quarantine of {len(held)} connectors"
    return _picture(320 + length + 90, min(len(held), _MOST_ROWS) * high, about, parts) + _rest(len(held), "connectors")


# Latency


def _latency(seen: Operations) -> str:
    if not seen.latencies:
        return '<p class="soft">Nothing was asked yet.</p>'
    top, high, length = 24, 54, 680
    bottom = top + len(seen.latencies) * high
    parts = []
    for power, name in enumerate(("1 ms", "10 ms", "100 ms", "1 s", "10 s")):
        x = 110 + length * power / 4
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="axis"/>')
        parts.append(_word(x, 15, name, "soft mid"))
    for row, each in enumerate(seen.latencies):
        parts.extend(_dots(each, top + row * high, length))
    return _picture(110 + length + 150, bottom + 6, "Latencies of answers", parts)


def _dots(latency: Latency, y: float, length: float) -> Iterable[str]:
    def at(milliseconds: float) -> float:
        return 110 + length * min(1.0, max(0.0, math.log10(max(milliseconds, 1.0)) / 4))

    yield _word(0, y + 24, latency.operation)
    yield _word(0, y + 40, f"{latency.count:,} answers", "soft")
    for place, value in enumerate(latency.recent):
        # Apart by a fixed pattern, so that dots of equal times do not hide each other.
        yield f'<circle cx="{at(value):.1f}" cy="{y + 14 + place * 7 % 27:.1f}" r="3.5" class="dot"/>'
    for value in (latency.p50, latency.p95):
        yield f'<line x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{y + 8}" y2="{y + 46}" class="mark"/>'
    x = 110 + length + 14
    yield _word(x, y + 24, f"p50 {_milliseconds(latency.p50)}")
    yield _word(x, y + 41, f"p95 {_milliseconds(latency.p95)}")


# Words


def _label(y: float, text: str, room: int = _LABEL) -> str:
    most = (room - 14) // 7
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"<g><title>{_text(text)}</title>{_word(0, y, shown)}</g>"


def _rest(count: int, what: str) -> str:
    return f'<p class="soft">and {count - _MOST_ROWS:,} more {what}</p>' if count > _MOST_ROWS else ""


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _age(then: datetime, now: datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def _milliseconds(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
