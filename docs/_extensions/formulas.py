"""A hook of MkDocs: ``$$ ... $$`` becomes an image drawn by Matplotlib's mathtext.

The pages thus need no JavaScript and load nothing from elsewhere.
"""

import html
import re

import numpy as np
from matplotlib.path import Path
from matplotlib.textpath import TextPath

_FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)
_COMMANDS = {
    Path.MOVETO: "M",
    Path.LINETO: "L",
    Path.CURVE3: "Q",
    Path.CURVE4: "C",
    Path.CLOSEPOLY: "Z",
}
_SIZE, _MARGIN, _LEADING = 17.0, 2.0, 14.0


def on_page_markdown(markdown: str, **_) -> str:
    """Replace the formulas of a page; each line of a formula is a line of its own."""
    return _FORMULA.sub(lambda match: _figure(match[1].splitlines()), markdown)


def _figure(lines: list[str]) -> str:
    paths, width, height = [], 0.0, 0.0
    for line in lines:
        path = TextPath((0.0, 0.0), f"${line}$", _SIZE)
        box = path.get_extents()
        moved = path.vertices - [box.x0, box.y1]
        top = height + (_LEADING if paths else 0.0)
        paths.append(_data(np.array([1.0, -1.0]) * moved + [0.0, top], path.codes))
        width, height = max(width, box.width), top + box.height
    size = width + 2 * _MARGIN, height + 2 * _MARGIN
    view = f"{-_MARGIN} {-_MARGIN} {size[0]:.1f} {size[1]:.1f}"
    return (
        f'<p class="formula"><svg role="img" xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="{html.escape(" ".join(lines))}" viewBox="{view}" '
        f'width="{size[0]:.0f}" height="{size[1]:.0f}" fill="currentColor" '
        f'style="max-width: 100%"><path d="{" ".join(paths)}"/></svg></p>'
    )


def _data(vertices: np.ndarray, codes: np.ndarray) -> str:
    """A path of SVG."""
    parts, index = [], 0
    while index < len(codes):
        code = codes[index]
        count = {Path.CURVE3: 2, Path.CURVE4: 3}.get(code, 1)
        points = vertices[index : index + count]
        numbers = " ".join(f"{x:.2f} {y:.2f}" for x, y in points)
        parts.append(_COMMANDS[code] + ("" if code == Path.CLOSEPOLY else numbers))
        index += count
    return "".join(parts)
