"""Tables as plain text, Markdown and LaTeX (booktabs), the same strings as on the page."""

from collections.abc import Iterable, Sequence
from itertools import chain

from analysis.format_table import TextTable

PACKAGES = r"\usepackage{booktabs,graphicx}"
PAGE = 40  # rows per page
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


def plain(table: TextTable) -> str:
    """The table with its title, columns aligned: the first to the left, the others to the right."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *rest = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([table.title, "", head, "-" * len(head), *rest])


def markdown(tables: Iterable[TextTable]) -> str:
    """Every table below its title; first column left, the others right."""
    parts = []
    for table in tables:
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (table.header, *table.rows)]
        rule = ["---", *["---:"] * (len(table.header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
        parts.append("\n".join([f"**{table.title}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[TextTable]) -> str:
    """Every table as a `table`, shrunk to the line where it is wider, one for each PAGE rows; needs PACKAGES."""
    parts = [f"% {PACKAGES}"]
    for table in chain.from_iterable(map(_pages, tables)):
        header, *rows = map(_line, (table.header, *table.rows))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
            r"\end{tabular}}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` with nothing left that LaTeX would take for a command."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _pages(table: TextTable) -> list[TextTable]:
    """The table in parts of one length that a page holds, each with its number in the title; itself where it fits."""
    count = max(1, -(-len(table.rows) // PAGE))
    size = max(1, -(-len(table.rows) // count))
    if count == 1:
        return [table]
    parts = [table.rows[at : at + size] for at in range(0, len(table.rows), size)]
    return [TextTable(f"{table.title} ({i} of {count})", table.header, rows) for i, rows in enumerate(parts, 1)]


def _line(cells: Sequence[str]) -> str:
    """A row; the empty group keeps a first cell that starts with [ or * from being read as an argument of \\\\."""
    line = " & ".join(map(escaped, cells))
    return ("{}" if line.lstrip().startswith(("[", "*")) else "") + line + r" \\"
