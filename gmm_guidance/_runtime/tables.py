"""Tables as text: Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LATEX = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "σ": r"$\sigma$"}
_LATEX |= {"±": r"$\pm$", "²": "$^2$", "–": "--"}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, without a line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` in the style of the package booktabs; first column of text."""

    def line(cells: Sequence[str]) -> str:
        escaped = ("".join(_LATEX.get(c, c) for c in cell) for cell in cells)
        return " & ".join(escaped) + r" \\"

    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        line(head),
        r"\midrule",
        *map(line, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def with_error(value: float, error: float = math.nan) -> str:
    """A number with its standard error, to two digits of the error.

    Without an error to three digits; ``–`` where the number is not defined.
    """
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error):
        return f"{value:.3g}"
    if error == 0.0:
        return f"{value:.3g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
