"""Measures the weights of a finished run and writes the results into the run's folder for the report.

    adarank probe RUN …                          ablate every triplet: which scores predict the loss?   probe.json
    adarank probe RUN … --pruning                what does pruning by each score cost?                  pruning.json
    adarank probe RUN … --delta                  how did the weights change?                            delta.json
    adarank probe RUN … --with OTHER [OTHER …]   do two runs change the same subspace?                  similarity.json
    adarank probe RUN … --stsb FOLDER            what happened to the sentence embeddings?              forgetting.json
    adarank probe RUN … --text FILE              what happened to the language model?                   forgetting.json
    adarank probe RUN … --prefixes 1,2,4,8       how good are the first triplets alone?                 prefixes.json

docs/probes.md describes the files. Ablating and pruning take minutes; an interrupted measurement resumes with the same
command. With --missing, several processes can share the same list of runs.
Exit status: 0 done, 1 a run failed, 2 something cannot be measured.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed, SettingError
from adarank.runs.files import (
    DELTA,
    FORGETTING,
    JOURNAL,
    PREFIXES,
    PROBE,
    PRUNING,
    PRUNING_JOURNAL,
    SIMILARITY,
    write_json,
)
from adarank.runs.lock import RunLocked, locked

JOURNALS = {PROBE: JOURNAL, PRUNING: PRUNING_JOURNAL}  # deleted once the measurement is complete


def main(argv: Sequence[str] | None = None) -> int:
    """The command `adarank probe`. argv: its arguments; None: those of the process. Returns the exit status."""
    options = arguments(None if argv is None else "adarank probe").parse_args(argv)
    return max([_measure(folder, options) for folder in options.runs])


def _measure(folder: Path, options: argparse.Namespace) -> int:
    """Measure one run, while no other process trains or measures it, and write its files. Returns the exit status."""
    status = 0
    try:
        with locked(folder) if folder.is_dir() else nullcontext():
            for name, measure in measurements(folder, options):
                if options.missing and (folder / name).is_file():
                    continue
                try:
                    write_json(folder / name, measure())
                    if name in JOURNALS:
                        (folder / JOURNALS[name]).unlink(missing_ok=True)
                    print(folder / name)
                except (SettingError, RunFailed, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    status = max(status, 1 if isinstance(error, RunFailed) else 2)
    except RunLocked:
        if options.missing:
            print(f"{folder}: another process trains or measures it; skipped here")
        else:
            print(f"error: {folder} is trained or measured by another process; wait until it ends", file=sys.stderr)
            status = 2
    return status


def arguments(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command's options. prog: the command's name in the help."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=form)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--rows", type=int, default=256, help="dev rows that the loss is averaged over (256)")
    parser.add_argument("--passes", type=int, default=20, help="training batches for scores that need data (20)")
    parser.add_argument("--pruning", action="store_true", help="prune by every score, then train further")
    parser.add_argument("--keep", default="0.75,0.5,0.25,0.1", help="--pruning: shares to keep (0.75,0.5,0.25,0.1)")
    parser.add_argument(
        "--retrain", type=int, default=20, metavar="STEPS", help="--pruning: training steps after pruning (20)"
    )
    parser.add_argument("--delta", action="store_true", help="spectrum, ranks, amplification, intruders, orthogonality")
    parser.add_argument("--with", dest="others", type=Path, nargs="+", metavar="OTHER", help="runs to compare ΔW with")
    parser.add_argument("--stsb", metavar="FOLDER", help="STS-B, as task=stsb task.path=FOLDER reads it")
    parser.add_argument("--text", metavar="FILE", help="held-out text, one passage per line")
    parser.add_argument("--missing", action="store_true", help="measure only what the runs lack")
    parser.add_argument("--prefixes", metavar="RANKS", help="ranks to cut the adapters to, as in 1,2,4,8")
    return parser


def files(options: argparse.Namespace) -> list[str]:
    """The names of the files that the options request; by default that of the ablations."""
    asked = {
        PRUNING: options.pruning,
        DELTA: options.delta,
        SIMILARITY: options.others,
        FORGETTING: options.stsb or options.text,
        PREFIXES: options.prefixes,
    }
    return [name for name, value in asked.items() if value] or [PROBE]


def measurements(folder: Path, options: argparse.Namespace) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """[(file name, function that measures its content)] for the options."""
    from adarank.probe import forgetting, prefixes, pruning, score_fidelity, weight_change

    sizes = (options.rows, options.passes)
    each: dict[str, Callable[[], dict[str, Any]]] = {
        PROBE: lambda: score_fidelity.measure(folder, *sizes),
        PRUNING: lambda: pruning.measure(folder, *sizes, pruning.shares(options.keep), options.retrain),
        DELTA: lambda: weight_change.measure(folder),
        SIMILARITY: lambda: weight_change.compare(folder, options.others),
        FORGETTING: lambda: forgetting.measure(folder, options.stsb, options.text),
        PREFIXES: lambda: prefixes.measure(folder, prefixes.prefix_ranks(options.prefixes)),
    }
    return [(name, each[name]) for name in files(options)]
