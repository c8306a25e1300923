"""The map of a spool as an SVG picture."""

from __future__ import annotations

from xml.sax.saxutils import escape

from durableq._map import Kind, Map
from durableq._picture import human

COLUMNS = 64
_CELL, _GAP = 12, 1
_LEFT, _TOP, _RIGHT = 84, 66, 20
_LEGEND_LINE, _LEGEND_COLUMN = 22, 280
_COLOURS = {
    Kind.DEAD: "#c1121f",
    Kind.LENT: "#f4a100",
    Kind.BACK: "#8338ec",
    Kind.WAITING: "#2a9d5c",
    Kind.SUPERBLOCK: "#1d3557",
    Kind.SPARE: "#9aa5b1",
    Kind.HOLE: "#eef1f4",
}
_MARK = "#000000"


def as_svg(map: Map) -> str:
    """The picture; it stands alone, without fonts or scripts from elsewhere."""
    rows = -(-len(map.kinds) // COLUMNS)
    legend_top = _TOP + rows * _CELL + 26
    width = _LEFT + COLUMNS * _CELL + _RIGHT
    parts = [_text(_LEFT, 24, map.layout.path, size=14), _text(_LEFT, 44, map.sizes())]
    for row in range(rows):
        parts.append(_text(_LEFT - 10, _TOP + row * _CELL + _CELL - 2, human(row * COLUMNS * map.cell), anchor="end"))
        parts += _row(map, row)
    parts += [_marker(map, n, below) for n, below in ((map.head, False), (map.tail, True))]
    entries = [(_swatch(kind), label) for kind, label in map.legend()]
    entries += [(_triangle(0, 10, False), "head: items are taken here"), (_triangle(0, 2, True), "tail: items are put here")]
    for n, (sign, label) in enumerate(entries):
        x, y = _LEFT + n % 3 * _LEGEND_COLUMN, legend_top + n // 3 * _LEGEND_LINE
        parts.append(f'<g transform="translate({x},{y})">{sign}{_text(18, 10, label)}</g>')
    height = legend_top + -(-len(entries) // 3) * _LEGEND_LINE + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif">\n<title>{escape(map.layout.path)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _row(map: Map, row: int) -> list[str]:
    """Cells of a line, those of one kind side by side as one rectangle."""
    parts = []
    stop = min((row + 1) * COLUMNS, len(map.kinds))
    n = row * COLUMNS
    while n < stop:
        first, kind = n, map.kinds[n]
        while n < stop and map.kinds[n] is kind:
            n += 1
        x, y = _place(first)
        length = (n - first) * _CELL - _GAP
        parts.append(f'<rect x="{x}" y="{y}" width="{length}" height="{_CELL - _GAP}" fill="{_COLOURS[kind]}"/>')
    return parts


def _place(n: int) -> tuple[int, int]:
    return _LEFT + n % COLUMNS * _CELL, _TOP + n // COLUMNS * _CELL


def _marker(map: Map, n: int, below: bool) -> str:
    x, y = _place(n)
    shift = 2 if map.head != map.tail else (-2 if below else 4)
    return _triangle(x + shift, y + (_CELL - 7 if below else 6), below)


def _triangle(x: int, tip: int, below: bool) -> str:
    """Points down from above with its tip at `tip`, or up from below."""
    base = tip + 7 if below else tip - 7
    return f'<path d="M{x} {base}h8L{x + 4} {tip}z" fill="{_MARK}" stroke="#ffffff" stroke-width="0.8"/>'


def _swatch(kind: Kind) -> str:
    return f'<rect width="11" height="11" fill="{_COLOURS[kind]}" stroke="#c5ccd3" stroke-width="0.5"/>'


def _text(x: int, y: int, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
