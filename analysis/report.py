"""The report: OUT/report/index.html, complete in itself, and beside it its figures (PNG) and tables (.md, .tex).

python analysis/report.py OUT
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script, sys.path[0] is analysis/: the repository's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis.load import FolderError, Run, read_runs, state_counts
from analysis.page import write_report
from analysis.tables import Table, tables
from analysis.terminal import as_text


def load(out: Path) -> tuple[list[Run], list[Table]]:
    """The runs under `out` and the tables of the finished ones; FolderError when there is none."""
    runs = read_runs(out)
    if not any(run.state == "finished" for run in runs):
        raise FolderError(f"{out} holds no finished run: {state_counts(runs)}.")
    return runs, tables(runs)


def main(arguments: Sequence[str], show: bool = False) -> int:
    """`report.py OUT` and, with show=True, `compare.py OUT`; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")  # a terminal without ± or →
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python analysis/{'compare' if show else 'report'}.py RUNS_FOLDER", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    out = Path(arguments[0])
    try:
        runs, found = load(out)
        if show:
            print(as_text(runs, found), end="\n\n", flush=True)
        page = write_report(out, runs, found)
    except (FolderError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
