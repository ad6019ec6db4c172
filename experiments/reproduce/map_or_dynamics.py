"""Compares adaptive runs with their own final rank maps, retrained, to tell the map's benefit from that of adapting it.

    python experiments/reproduce/map_or_dynamics.py --seeds 0 1 2 --shuffles 3 --out runs/map --json FILE \\
        experiment=quickstart

For every seed it trains (1) the adaptive method; (2) fixed ranks, from step 0, that are the adaptive run's final ones,
with the same seed, and so the same head and order of the data; (3) the same ranks permuted, within families of modules
and over all modules, --shuffles times each. Words after the options go to experiments/run.py for all runs, words after
--adaptive for the adaptive runs alone (init_rank=…, schedule.t_f=…). Repeating the command skips finished runs.

Cost: seeds · (2 + 2 · shuffles) runs, with experiment=quickstart about a minute each on two CPU cores. At the end it
prints the paired differences (analysis/rank_maps.py) and writes them to FILE with the value of every run.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from adarank.errors import SettingError  # noqa: E402
from adarank.runs.files import CONFIG, SUMMARY, read_json, write_json  # noqa: E402
from analysis import export, format_table, rank_maps, report, verdicts  # noqa: E402
from experiments.study import words as overrides  # noqa: E402


def run(words: Sequence[str]) -> int:
    """Run experiments/run.py in a separate process; returns its exit status."""
    return subprocess.run([sys.executable, str(HERE.parent / "run.py"), *words]).returncode


def runs_in(out: Path, method: str) -> list[dict[str, Any]]:
    """Every finished run of `method` in `out`. arm: "adaptive" or the shuffle; ranks: of the modules sorted by name."""
    runs = []
    for path in sorted(out.glob(f"{method}-*/{SUMMARY}")):
        summary = read_json(path)
        config = yaml.safe_load((path.parent / CONFIG).read_text(encoding="utf-8"))
        source, shuffle = config["ranks_from"], config["ranks_shuffle"]
        if summary["status"] == "finished":
            runs.append(
                {
                    "run": path.parent.name,
                    "arm": shuffle if source else "adaptive",
                    "source": Path(source).name if source else None,
                    "shuffle": None if shuffle == "none" else config["ranks_shuffle_seed"],
                    "ranks": [rank for _, rank in sorted(summary["rank"]["final"].items())],
                    **{key: summary[key] for key in ("seed", "steps", "device", "commit", "dirty")},
                    **{key: summary["metric"][key] for key in ("name", "best", "last", "test")},
                }
            )
    return runs


def source(out: Path, method: str, seed: int) -> Path:
    """The folder of the adaptive run with this seed. Raises SettingError unless there is exactly one."""
    names = [r["run"] for r in runs_in(out, method) if r["arm"] == "adaptive" and r["seed"] == seed]
    if len(names) != 1:
        raise SettingError(
            f"--out must be a folder with one adaptive run of each seed ({out} holds {len(names)} of seed {seed})"
        )
    return out / names[0]


def measure(
    method: str, seeds: Sequence[int], shuffles: int, adaptive: Sequence[str], out: Path, words: list[str]
) -> int:
    """Train the missing runs. Returns the first exit status that is not 0, or 0."""
    common = [f"method={method}", *words, *overrides({"out": str(out)})]
    if status := run(["-m", *common, *adaptive, f"seed={','.join(map(str, seeds))}"]):
        return status
    for seed in seeds:
        mapped = overrides({"ranks_from": str(source(out, method, seed)), "seed": seed})
        draws = f"ranks_shuffle_seed={','.join(map(str, range(shuffles)))}"
        for more in ([], ["ranks_shuffle=within_family,all", draws]):
            if status := run(["-m", *common, *mapped, *more]):
                return status
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shuffles", type=int, default=3, help="permutations of each map and kind of shuffle (3)")
    parser.add_argument("--method", default="adalora", help="an adaptive method that keeps a budget (adalora)")
    parser.add_argument("--adaptive", nargs="+", default=[], metavar="WORD", help="settings of the adaptive runs alone")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the runs")
    parser.add_argument("--json", type=Path, required=True, help="the result file to write")
    options, words = parser.parse_known_args()
    out = options.out.absolute()
    try:
        if options.shuffles < 1:
            raise SettingError(f"--shuffles must be a whole number of at least 1 (got {options.shuffles})")
        if status := measure(options.method, options.seeds, options.shuffles, options.adaptive, out, words):
            return status
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    compared = [
        cells
        for table in report.load(out).tables
        for cells in verdicts.exploratory(rank_maps.map_or_dynamics(table), table.higher_is_better)
    ]
    grid = format_table.TextTable(rank_maps.TITLE, verdicts.EXPLORATORY_HEADER, compared)
    record = {"words": words, "adaptive": options.adaptive, "header": grid.header, "differences": grid.rows}
    write_json(options.json, {**record, "runs": runs_in(out, options.method)})
    print(f"{export.plain(grid)}\n\n{options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
