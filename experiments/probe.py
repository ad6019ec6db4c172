"""What a finished run's weights show: measures that need the model, written into the run's folder for the report.

    python experiments/probe.py RUN …                          what is every triplet worth?          probe.json
    python experiments/probe.py RUN … --delta                  what is ΔW like?                      delta.json
    python experiments/probe.py RUN … --with OTHER [OTHER …]   do two ΔW lie in one subspace?        similarity.json
    python experiments/probe.py RUN … --stsb FOLDER            what became of the embeddings?        forgetting.json
    python experiments/probe.py RUN … --text FILE              what became of the language model?    forgetting.json

docs/probes.md says what each file holds. The first zeroes every triplet in turn, which takes minutes; stopped, the same
command goes on. Exit status: 0 done, 1 a run failed, 2 something cannot be measured.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.errors import RunFailed, SettingError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--rows", type=int, default=256, help="rows of dev that the loss is taken over (256)")
    parser.add_argument("--passes", type=int, default=20, help="training batches for the scores that look at data (20)")
    parser.add_argument("--delta", action="store_true", help="spectrum, ranks, amplification, intruders, orthogonality")
    parser.add_argument("--with", dest="others", type=Path, nargs="+", metavar="OTHER", help="runs to compare ΔW with")
    parser.add_argument("--stsb", metavar="FOLDER", help="STS-B as task=stsb task.path=FOLDER reads it")
    parser.add_argument("--text", metavar="FILE", help="held-out text, a passage a line")
    options = parser.parse_args()
    status = 0
    for folder in options.runs:
        for name, measure in wanted(folder, options):
            try:
                print(write(folder / name, measure))
            except (SettingError, RunFailed, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                status = max(status, 1 if isinstance(error, RunFailed) else 2)
    return status


def wanted(folder: Path, options: argparse.Namespace) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """(file's name, what measures its content) of everything that was asked for; the triplets, where nothing was."""
    from adarank.harness import forgetting, triplets
    from adarank.harness.delta import measure as delta

    found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if options.delta:
        found.append(("delta.json", lambda: delta.measure(folder)))
    if options.others:
        found.append(("similarity.json", lambda: delta.compare(folder, options.others)))
    if options.stsb or options.text:
        found.append(("forgetting.json", lambda: forgetting.measure(folder, options.stsb, options.text)))
    return found or [("probe.json", lambda: triplets.measure(folder, options.rows, options.passes))]


def write(path: Path, measure: Callable[[], dict[str, Any]]) -> Path:
    """Write what `measure` finds to `path`, and drop the journal of a measurement that is whole now."""
    from adarank.harness.files import write_json
    from adarank.harness.triplets import JOURNAL

    found = measure()
    write_json(path, found)
    if path.name == "probe.json":
        (path.parent / JOURNAL).unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
