"""Tables as plain text, CSV, Markdown and LaTeX (booktabs), the same strings as on the page."""

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import chain

from analysis.format_table import TextTable

PACKAGES = r"\usepackage{booktabs,graphicx}"
PAGE = 40  # rows per page
LONGEST = 80  # characters of a file's name
NARROW = 16  # characters below which a first column is no longer wrapped
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "λ": "lambda", "μ": "mu", "ξ": "xi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "varphi", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi",
}  # fmt: skip
LATEX = {letter: rf"$\{name}$" for letter, name in GREEK.items()} | {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"$<$", ">": r"$>$", "−": r"$-$",
    "–": "--", "±": r"$\pm$", "→": r"$\to$", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "≤": r"$\le$",
    "≥": r"$\ge$", "²": r"$^2$", "ⁿ": r"$^n$", "…": r"\dots{}", "’": "'", "‖": r"$\|$",
}  # fmt: skip


def plain(table: TextTable, width: int | None = None) -> str:
    """The table with its title, columns aligned: the first to the left, the others to the right.

    width: the longest line. A wider table shows the decisive columns and states how many more are on the page; if these
    are too wide, their names are split over several lines; then the first column is wrapped; then every row becomes a
    list.
    """
    title = table.title if width is None else wrap(table.title, width)
    names, rows = [list(table.header)], list(map(list, table.rows))
    left = ""
    if width is not None and _width(names + rows) > width:
        chosen = [i for i, name in enumerate(table.header) if name in table.first] or list(range(len(table.header)))
        names, rows = ([[line[i] for i in chosen] for line in lines] for lines in (names, rows))
        if (hidden := len(table.header) - len(chosen)) > 0:
            left = f"\n({hidden} more column{'s' if hidden > 1 else ''} on the page)"
        if _width(names + rows) > width:
            flat, names = names[0], _stacked(names[0], rows)
            first = width - _width([line[1:] for line in names + rows]) - 2
            if _width(names + rows) > width and first < NARROW:
                return "\n".join([title, "", *_lists(flat, rows, width)]) + left
            rows = [piece for row in rows for piece in _folded(row, first)]
    widths = [max(map(len, column)) for column in zip(*names, *rows, strict=True)]
    head, body = (
        ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
        for lines in (names, rows)
    )
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([title, "", *head, rule, *body]) + left


def wrap(text: str, width: int, indent: str = "") -> str:
    """`text` in lines of at most `width`, further ones indented by two."""
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ")


def csv_files(tables: Iterable[TextTable], within: str) -> dict[str, str]:
    """{file name: content} of every table, named after `within` (a model and task) and its own title."""
    files: dict[str, str] = {}
    for table in tables:
        own = re.split(r"[(:?]", table.title)[0]
        name = slug(within if table.title.startswith(within) else f"{within} {own}")
        while f"{name}.csv" in files:
            name += "-2"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
        files[f"{name}.csv"] = text.getvalue()
    return files


def slug(title: str) -> str:
    """A title as a file name: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:LONGEST].strip("-")


def markdown(tables: Iterable[TextTable]) -> str:
    """Every table below its title, with the first column aligned left and the others right."""
    parts = []
    for table in tables:
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (table.header, *table.rows)]
        rule = ["---", *["---:"] * (len(table.header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
        parts.append("\n".join([f"**{table.title}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[TextTable]) -> str:
    """Every table as a `table`, shrunk to the line width if it is wider, one per PAGE rows; needs PACKAGES."""
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
    """`text` with everything escaped that LaTeX would treat as a command."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _width(lines: Sequence[Sequence[str]]) -> int:
    """The length of the longest line of aligned columns."""
    columns = list(zip(*lines, strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def _folded(line: Sequence[str], width: int) -> list[list[str]]:
    """The line with its first cell split into pieces of `width`, all but the first indented; the other cells are on the
    first line."""
    pieces = textwrap.wrap(line[0], width, subsequent_indent="  ") or [""]
    return [[piece, *(line[1:] if i == 0 else [""] * (len(line) - 1))] for i, piece in enumerate(pieces)]


def _stacked(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The column names split into lines, each no wider than the cells below it if its words allow that."""
    cells = zip(*rows, strict=True) if rows else [()] * len(names)
    widths = [max(map(len, [*name.split(), *column]), default=1) for name, column in zip(names, cells, strict=True)]
    stacks = [textwrap.wrap(name, width) for name, width in zip(names, widths, strict=True)]
    high = max(map(len, stacks))
    return [list(line) for line in zip(*([""] * (high - len(stack)) + stack for stack in stacks), strict=True)]


def _lists(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Every row as its name and one line per cell."""
    text = []
    for row in rows:
        text.append(wrap(row[0], width))
        text += [wrap(f"{name}: {cell}", width, "  ") for name, cell in zip(names[1:], row[1:], strict=True)]
    return text


def _pages(table: TextTable) -> list[TextTable]:
    """The table in parts of equal length that fit a page, each with its number in the title; the table itself if it
    fits."""
    count = max(1, -(-len(table.rows) // PAGE))
    size = max(1, -(-len(table.rows) // count))
    if count == 1:
        return [table]
    parts = [table.rows[at : at + size] for at in range(0, len(table.rows), size)]
    return [TextTable(f"{table.title} ({i} of {count})", table.header, rows) for i, rows in enumerate(parts, 1)]


def _line(cells: Sequence[str]) -> str:
    """A row; the empty group prevents a first cell that starts with [ or * from being read as an argument of \\\\."""
    line = " & ".join(map(escaped, cells))
    return ("{}" if line.lstrip().startswith(("[", "*")) else "") + line + r" \\"
