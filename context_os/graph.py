"""What an audit found, as a tree of nodes, and its three pictures: text, DOT, and a page with an SVG."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from context_os.model import Value

MOST_SHOWN: Final = 40
"""Children of one node that a picture shows; JSON has all of them."""
_WIDTH, _HEIGHT, _GAP, _ROW, _MARGIN = 280, 54, 70, 70, 20  # of boxes and between them, in pixels
_LETTERS: Final = 36  # of a title that fit into a box


class Node(Value):
    """``id`` is unique within its ``kind``. A commit's ``state`` says how it holds what leads to it (see ``audit``)."""

    kind: str
    id: str
    title: str
    detail: str = ""
    state: str = ""
    children: tuple[Node, ...] = ()

    def shown(self) -> tuple[Node, ...]:
        """The children that a picture has room for, and what says that there are more."""
        left = len(self.children) - MOST_SHOWN
        if left <= 0:
            return self.children
        more = Node(
            kind="more", id=f"{self.kind} {self.id}", title=f"and {left:,} more", detail="--json lists them all"
        )
        return (*self.children[:MOST_SHOWN], more)


def as_text(node: Node, lead: str = "", tail: str = "") -> Iterator[str]:
    """Lines of a tree."""
    state = f" [{node.state}]" if node.state else ""
    yield f"{lead}{node.kind} {node.title}{state}"
    shown = node.shown()
    if node.detail:
        yield f"{tail}{'│' if shown else ' '}    {node.detail}"
    for child in shown:
        last = child is shown[-1]
        yield from as_text(child, f"{tail}{'└' if last else '├'}─ ", f"{tail}{' ' if last else '│'}  ")


def as_dot(root: Node) -> str:
    """For Graphviz."""
    flat = _Flat.of(root)
    lines = ["digraph audit {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif", style=rounded];']
    for key, place in flat.places.items():
        node = flat.nodes[key]
        label = "\n".join(filter(None, [f"{node.kind} {node.title}", node.detail, node.state]))
        lines.append(f"  n{place} [label={_quoted(label)}];")
    lines += [f"  n{flat.places[start]} -> n{flat.places[end]};" for start, end in flat.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # DOT reads \" \\ and \n as JSON writes them


_Key = tuple[str, str, str]


@dataclass
class _Flat:
    """The tree with equal nodes joined, whose details are left out where they differ: ``columns`` is how far each is
    from the root at most."""

    nodes: dict[_Key, Node] = field(default_factory=dict)
    places: dict[_Key, int] = field(default_factory=dict)
    columns: dict[_Key, int] = field(default_factory=dict)
    edges: dict[tuple[_Key, _Key], None] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Node) -> _Flat:
        flat = cls()
        flat._add(root, 0)
        return flat

    def _add(self, node: Node, depth: int) -> _Key:
        key = node.kind, node.id, node.state
        known = self.nodes.setdefault(key, node)
        if known.detail != node.detail:
            self.nodes[key] = known.model_copy(update={"detail": ""})
        self.places.setdefault(key, len(self.places))
        self.columns[key] = max(depth, self.columns.get(key, 0))
        for child in node.shown():
            self.edges[key, self._add(child, depth + 1)] = None
        return key


def as_page(root: Node, title: str) -> str:
    """A page that needs nothing beside itself: the graph from left to right, and the same as text below it."""
    flat = _Flat.of(root)
    rows: dict[int, int] = {}
    spots: dict[_Key, tuple[int, int]] = {}
    for key, column in flat.columns.items():
        row = rows[column] = rows.get(column, -1) + 1
        spots[key] = (_MARGIN + column * (_WIDTH + _GAP), _MARGIN + row * _ROW)
    width = 2 * _MARGIN + (max(rows) + 1) * (_WIDTH + _GAP) - _GAP
    height = 2 * _MARGIN + (max(rows.values()) + 1) * _ROW - (_ROW - _HEIGHT)
    drawn = [*(_edge(spots[start], spots[end]) for start, end in flat.edges)]
    drawn += [_box(flat.nodes[key], *spot) for key, spot in spots.items()]
    states = {node.state: None for node in flat.nodes.values() if node.state}
    legend = "".join(f'<span class="key {_class(state)}">{html.escape(state)}</span>' for state in states)
    told = html.escape("\n".join(as_text(root)))
    return _PAGE.format(
        title=html.escape(title), width=width, height=height, drawn="\n".join(drawn), legend=legend, text=told
    )


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH, start[1] + _HEIGHT // 2, end[0], end[1] + _HEIGHT // 2
    middle = (x1 + x2) // 2
    return f'<path class="edge" d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"/>'


def _box(node: Node, x: int, y: int) -> str:
    whole = html.escape("\n".join(filter(None, [f"{node.kind} {node.title}", node.detail, node.state, node.id])))
    small = html.escape(_short(f"{node.kind}{f': {node.state}' if node.state else ''}", _LETTERS + 4))
    return (
        f'<g class="node {_class(node.kind)} {_class(node.state)}" transform="translate({x} {y})">'
        f"<title>{whole}</title>"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6"/><text class="kind" x="10" y="18">{small}</text>'
        f'<text x="10" y="33">{html.escape(_short(node.title, _LETTERS))}</text>'
        f'<text class="detail" x="10" y="47">{html.escape(_short(node.detail, _LETTERS + 8))}</text></g>'
    )


def _class(word: str) -> str:
    return "-".join(filter(str.isalnum, word.split()))


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 24px; color: #1c2430; background: #fff }}
h1 {{ font-size: 20px; margin: 0 0 12px }}
.graph {{ overflow-x: auto; border: 1px solid #d8dde5; border-radius: 8px; background: #fbfcfd }}
.edge {{ fill: none; stroke: #9aa7b8; stroke-width: 1.4 }}
.node rect {{ fill: #fff; stroke: #6b7a90; stroke-width: 1.2 }}
.node text {{ font: 12.5px system-ui, sans-serif; fill: #1c2430 }}
.node .kind {{ font-size: 11px; font-weight: 600; fill: #51607a }}
.node .detail {{ font-size: 10.5px; fill: #66758c }}
.node.pack rect {{ fill: #eef3ff; stroke: #4464c8 }}
.node.item rect {{ fill: #fff8e8; stroke: #b98411 }}
.node.run rect {{ fill: #f3eefc; stroke: #7b56b5 }}
.node.commit rect, .key {{ fill: #fdeeee; stroke: #b8432f; background: #fdeeee; border-color: #b8432f }}
.node.commit.verbatim rect, .node.commit.rendered rect, .node.commit.itself rect,
.key.verbatim, .key.rendered, .key.itself
  {{ fill: #e9f7ee; stroke: #2c8a51; background: #e9f7ee; border-color: #2c8a51 }}
.node.commit.worktree rect, .key.worktree
  {{ fill: #fff4d6; stroke: #b98411; background: #fff4d6; border-color: #b98411 }}
.node.more rect {{ stroke-dasharray: 4 3 }}
.key {{ display: inline-block; margin: 10px 8px 0 0; padding: 1px 8px; border: 1px solid; border-radius: 10px;
  font-size: 12px }}
pre {{ font: 12.5px/1.45 ui-monospace, monospace; background: #f6f8fa; padding: 14px; border-radius: 8px;
  overflow-x: auto }}
</style></head><body>
<h1>{title}</h1>
<div class="graph"><svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"
 viewBox="0 0 {width} {height}" role="img">
{drawn}
</svg></div>
<div>{legend}</div>
<h2 style="font-size:16px">The same as text</h2>
<pre>{text}</pre>
</body></html>
"""
