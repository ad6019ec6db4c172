"""Tables for a paper: Markdown and LaTeX (booktabs), the same strings as on the page."""

from collections.abc import Iterable

from analysis.cells import Grid

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$", "−": r"$-$", "–": "--",
    "×": r"$\times$", "÷": r"$\div$", "<": r"$<$", ">": r"$>$", "α": r"$\alpha$", "Δ": r"$\Delta$",
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
    """Every grid as a `table`, its title the caption; needs the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for grid in grids:
        header, *rows = [" & ".join(map(escaped, row)) + r" \\" for row in (grid.header, *grid.rows)]
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(grid.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}", r"\toprule", header, r"\midrule", *rows]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` with nothing left that LaTeX would take for a command."""
    return "".join(LATEX.get(letter, letter) for letter in text)
