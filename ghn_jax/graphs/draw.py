"""Draws computational graphs as SVG: nodes in the order of the forward pass, coloured by primitive, with a legend."""

import pathlib
from html import escape
from typing import NamedTuple

from ghn_jax.graphs.graph import PRIMITIVES, Graph

_COLOURS = {
    "max_pool": "#7b6d8d",
    "avg_pool": "#a594b8",
    "sep_conv": "#5fa8d3",
    "dil_conv": "#1b98a0",
    "conv": "#2f6fb2",
    "msa": "#d1495b",
    "cse": "#e07a5f",
    "sum": "#3a3a3a",
    "concat": "#8a5a44",
    "input": "#2a9d5c",
    "bias": "#c9c9c9",
    "bn": "#f2b134",
    "ln": "#f4d06f",
    "pos_enc": "#9bc53d",
    "glob_avg": "#54478c",
}
_ROW, _LANE, _RADIUS, _MARGIN = 22, 40, 7, 30
_LEGEND = 110
_ROWS_PER_COLUMN = 34


class _Place(NamedTuple):
    x: float
    y: float
    column: int


def draw(graph: Graph, path: str | pathlib.Path) -> None:
    """Writes an SVG file.

    A node's row is the length of the longest path to it, so that edges lead down, from the foot of a column to the
    head of the next; hover over a node for its parameter and shape.

    Raises ValueError if `path` does not end in .svg.
    """
    path = pathlib.Path(path)
    if path.suffix != ".svg":
        raise ValueError(f"`path` (={str(path)!r}) must end in .svg: graphs are drawn as SVG")
    places = _places(graph)
    width = max(place.x for place in places) + _LANE + _LEGEND + _MARGIN
    height = max(max(place.y for place in places) + _MARGIN, _MARGIN + 18 * len(PRIMITIVES))
    edges = [
        _edge(places[sender], places[receiver])
        for sender, receiver in zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)
    ]
    nodes = [_node(graph, number, place) for number, place in enumerate(places)]
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        '<g fill="none" stroke="#888" stroke-width="1.2">',
        *edges,
        "</g>",
        *nodes,
        *_legend(graph, width - _LEGEND),
        "</svg>",
    ]
    path.write_text("\n".join(svg) + "\n")


def _places(graph: Graph) -> list[_Place]:
    """Where nodes go: row by longest path, lanes side by side, a long graph in several columns."""
    ranks = [0] * graph.num_nodes
    for sender, receiver in sorted(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)):
        ranks[receiver] = max(ranks[receiver], ranks[sender] + 1)
    lanes, used = [], dict[int, int]()
    for rank in ranks:
        lanes.append(used.get(rank, 0))
        used[rank] = lanes[-1] + 1
    columns = max(ranks) // _ROWS_PER_COLUMN + 1
    lefts, left = [], float(_MARGIN)
    for column in range(columns):
        rows = range(column * _ROWS_PER_COLUMN, (column + 1) * _ROWS_PER_COLUMN)
        lefts.append(left)
        left += _LANE * (max(used.get(rank, 0) for rank in rows) + 0.9)
    return [
        _Place(
            lefts[rank // _ROWS_PER_COLUMN] + lane * _LANE,
            _MARGIN + rank % _ROWS_PER_COLUMN * _ROW,
            rank // _ROWS_PER_COLUMN,
        )
        for rank, lane in zip(ranks, lanes, strict=True)
    ]


def _edge(start: _Place, end: _Place) -> str:
    """A line between neighbours, a curve around the nodes between others."""
    rows = (end.y - start.y) / _ROW
    if start.column != end.column:
        gap = end.x - 0.6 * _LANE + 4 * (start.y % (2 * _ROW)) / _ROW
        up = f"C{start.x} {start.y + 18} {gap:.1f} {start.y + 18} {gap:.1f} {start.y - 6} L{gap:.1f} {end.y}"
        return f'<path d="M{start.x} {start.y} {up} C{gap:.1f} {end.y - 18} {end.x} {end.y - 18} {end.x} {end.y}"/>'
    elif rows > 1.5 and start.x == end.x:
        side = start.x + 8 + min(4 * rows, 26)
        bend = f"C{side:.1f} {start.y + _ROW} {side:.1f} {end.y - _ROW}"
    else:
        bend = f"C{start.x} {start.y + _ROW / 2} {end.x} {end.y - _ROW / 2}"
    return f'<path d="M{start.x} {start.y} {bend} {end.x} {end.y}"/>'


def _node(graph: Graph, number: int, place: _Place) -> str:
    primitive = PRIMITIVES[graph.primitives[number]]
    title = " ".join(str(part) for part in (primitive, graph.names[number], graph.shapes[number]) if part)
    return (
        f'<circle cx="{place.x}" cy="{place.y}" r="{_RADIUS}" fill="{_COLOURS[primitive]}">'
        f"<title>{escape(title)}</title></circle>"
    )


def _legend(graph: Graph, left: float) -> list[str]:
    """The primitives that occur, with their numbers."""
    counts = {name: int((graph.primitives == i).sum()) for i, name in enumerate(PRIMITIVES)}
    lines = []
    for place, (name, count) in enumerate((name, count) for name, count in counts.items() if count):
        y = _MARGIN + 18 * place
        lines.append(f'<circle cx="{left}" cy="{y}" r="{_RADIUS}" fill="{_COLOURS[name]}"/>')
        lines.append(f'<text x="{left + 14}" y="{y + 4}">{name} ({count})</text>')
    return lines
