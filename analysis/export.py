"""Tables for a paper: Markdown and LaTeX (booktabs), the same strings as on the page."""

from collections.abc import Iterable, Sequence
from itertools import chain

from analysis.cells import Grid

PACKAGES = r"\usepackage{booktabs,graphicx}"
PAGE = 40  # rows that a page holds
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "λ": "lambda", "μ": "mu", "ξ": "xi",
    "ρ": "rho", "σ": "sigma", "φ": "varphi", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi",
}  # fmt: skip
LATEX = {letter: rf"$\{name}$" for letter, name in GREEK.items()} | {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"$<$", ">": r"$>$", "−": r"$-$",
    "–": "--", "±": r"$\pm$", "→": r"$\to$", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "≤": r"$\le$",
    "≥": r"$\ge$", "²": r"$^2$", "ⁿ": r"$^n$", "…": r"\dots{}", "’": "'", "‖": r"$\|$",
}  # fmt: skip


def markdown(grids: Iterable[Grid]) -> str:
    """Every grid below its title; first column left, the others right."""
    parts = []
    for grid in grids:
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (grid.header, *grid.rows)]
        rule = ["---", *["---:"] * (len(grid.header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
        parts.append("\n".join([f"**{grid.title}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def latex(grids: Iterable[Grid]) -> str:
    """Every grid as a `table`, its title the caption, shrunk to the line where it is wider, one for each PAGE rows of a longer
    one; needs PACKAGES."""
    parts = [f"% {PACKAGES}"]
    for grid in chain.from_iterable(map(_pages, grids)):
        header, *rows = map(_line, (grid.header, *grid.rows))
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{escaped(grid.title)}}}",
                    r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                    rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
                    *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` with nothing left that LaTeX would take for a command."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _pages(grid: Grid) -> list[Grid]:
    """The grid in parts of one length that a page holds, each with its number in the title; itself where it fits."""
    count = max(1, -(-len(grid.rows) // PAGE))
    size = max(1, -(-len(grid.rows) // count))
    if count == 1:
        return [grid]
    parts = [grid.rows[at : at + size] for at in range(0, len(grid.rows), size)]
    return [Grid(f"{grid.title} ({i} of {count})", grid.header, rows) for i, rows in enumerate(parts, 1)]


def _line(cells: Sequence[str]) -> str:
    """A row; the empty group keeps a first cell that starts with [ or * from being read as an argument of \\\\."""
    line = " & ".join(map(escaped, cells))
    return ("{}" if line.lstrip().startswith(("[", "*")) else "") + line + r" \\"
