"""RankBench: rank maps with a known answer. Which method finds them, and where does that pay?

    python experiments/rankbench/run.py [--setting …] [--method …] [--seeds N] [--jobs N] [--json FILE] [--figure FILE]

A teacher is a base plus low-rank changes planted in some of its modules; students must find them by regression on its
outputs. Every method of conf/method whose adapter has triplets runs with its own YAML, through the harness's `prepare`.
All methods try the same learning rates; the best is chosen on noise-free dev rows of separate seeds, and a grid grows
if its best rate lies at an end. Then every method runs the same seeds. For every case the tables show the share of its
triplets in the planted modules, the distance of its map from the truth, and its held-out loss against that of the same
method with the same rank everywhere, against uniform LoRA's at the same budget, against LoRA's with the planted map,
and against LoRA's with its own final map from step 0. A new method in conf/method is included automatically.

--setting: groups (planted, linear, even, phase, start, strength, depth, encoder, decoder; default: the first seven) or
single settings, such as network,ranks=8x3,noise=0.1,depth=late. --budget: multiples of the planted triplets (default:
the group's, else 1). --method: methods, "all", "scores", "controls", or a method with overrides ("adalora,
score=fisher"). Finished cells are read from --json, which is written after each cell, so that the same command
continues where it stopped. Differences within 10 % count as none (MARGIN in read.py, declared before the first grid
ran).
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adarank.errors import SettingError
from adarank.harness.config.compose import spec_from
from adarank.harness.config.messages import sentence
from adarank.harness.config.validate import conf_folder
from adarank.runs.files import read_json, write_json
from experiments.pages import rewrite
from experiments.rankbench import figure, read
from experiments.rankbench.measure import ORACLE, UNIFORM, facts, make_case, mean_rank, measure
from experiments.rankbench.settings import DECODER, ENCODER, GROUPS, SMALL, Group, Scale, Setting, parse

RESULTS = Path(__file__).resolve().parents[1] / "results" / "rankbench.json"
DEFAULT = ("planted", "linear", "even", "phase", "start", "strength", "depth")


class Job(NamedTuple):
    """A cell to be measured: the arguments of `measure`, with the requested mean rank."""

    setting: Setting
    rank: int
    case: str
    seeds: Sequence[int]
    scale: Scale
    known: Any


def options(group: str) -> list[str]:
    """The names of a group's YAML files."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml") if path.stem != "none")


def expand(cases: Sequence[str]) -> list[str]:
    """The cases in full: "all" is every method, "scores" AdaLoRA with every score, "controls" every method that
    allocates with the same rank everywhere."""
    words = {"all": options("method"), "scores": [f"adalora, score={score}" for score in options("score")]}
    if "controls" in cases:
        allocates = [method for method in options("method") if spec_from([f"method={method}"]).allocator is not None]
        words["controls"] = list(map(read.control_of, allocates))
    return list(dict.fromkeys(case for word in cases for case in words.get(word, [word])))


def wanted(
    record: Mapping[str, Any], settings: Sequence[str], methods: Sequence[str], budgets: Sequence[float]
) -> list[tuple[Setting, int, str]]:
    """(setting, mean rank, case) of every requested cell, references first. Raises SettingError."""
    cells: dict[tuple[Setting, int, str], None] = {}
    known = [ORACLE, *options("method")]
    for case in expand(methods):
        if case.partition(",")[0] not in known:
            raise SettingError(f"--method must be among all, scores, controls, {', '.join(known)} (got {case})")
    for word in settings:
        group = GROUPS.get(word) or Group([word], budgets or [1], ["all"])
        for setting in map(parse, group.settings):
            for budget in budgets or group.budgets:
                rank = mean_rank(setting, budget, len(record["settings"].get(setting.name, {}).get("modules", ())))
                for case in [UNIFORM, ORACLE, *expand(methods or group.cases)]:
                    cells[setting, rank, case] = None
    return sorted(cells, key=lambda cell: cell[2] not in (UNIFORM, ORACLE))


def pending(
    record: dict[str, Any], cells: Sequence[tuple[Setting, int, str]], seeds: int | None, steps: int | None
) -> list[Job]:
    """A job for every cell that lacks a seed and was not skipped, and for the references of cases that needed a
    different mean rank than requested. seeds: how many, if not the number of each setting's scale."""
    asked = list(cells)
    for setting, rank, case in cells:
        cell = record["settings"].get(setting.name, {}).get("cells", {}).get(str(rank), {}).get(case)
        if cell and cell["budgeted"] and cell["rank"] != rank:
            asked += [(setting, cell["rank"], UNIFORM), (setting, cell["rank"], ORACLE)]
    jobs = []
    for setting, rank, case in dict.fromkeys(asked):
        held = record["settings"].get(setting.name, {})
        known = held.get("cells", {}).get(str(rank), {}).get(case)
        done, wished = set(known["seeds"]) if known else set(), range(seeds or setting.scale.seeds)
        if case not in held.get("skipped", {}) and not set(map(str, wished)) <= done:
            jobs.append(Job(setting, rank, case, wished, sized(setting, steps), known))
    return jobs


def sized(setting: Setting, steps: int | None) -> Scale:
    """The scale of a setting's runs."""
    return replace(setting.scale, steps=steps or setting.scale.steps)


def work(job: Job) -> tuple[Job, dict[str, Any] | None, str]:
    """(the job, its cell, ""), or (the job, None, why the case cannot run there)."""
    torch.set_num_threads(1)
    try:
        case = make_case(job.case, job.setting, job.rank, job.scale.steps)
        return job, measure(job.setting, job.rank, case, job.seeds, job.scale, job.known), ""
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        return job, None, sentence(error)


def finished(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any] | None, str]]:
    """The results of the jobs as they come, from this process or from as many as `processes`."""
    if processes == 1:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run(record: dict[str, Any], cells: Sequence[tuple[Setting, int, str]], arguments: argparse.Namespace) -> None:
    """Measure what is missing, and write the record after each cell."""
    for setting, _, case in cells:  # a case that was skipped earlier may be possible now
        record["settings"].get(setting.name, {}).get("skipped", {}).pop(case, None)
    while jobs := pending(record, cells, arguments.seeds, arguments.steps):
        for setting in dict.fromkeys(job.setting for job in jobs):
            ranks = sorted({job.rank for job in jobs if job.setting == setting})
            seeds = next(job.seeds for job in jobs if job.setting == setting)
            held = record["settings"].setdefault(setting.name, {"cells": {}, "skipped": {}})
            for key, value in facts(setting, ranks, seeds).items():
                held[key] = {**held.get(key, {}), **value} if isinstance(value, dict) else value
        for job, cell, reason in finished(jobs, arguments.jobs):
            held = record["settings"][job.setting.name]
            name = f"{job.setting.name}, rank {job.rank}: {job.case}"
            if cell is None:
                held["skipped"][job.case] = reason
                print(f"{name} skipped: {reason}", flush=True)
            else:
                held["cells"].setdefault(str(job.rank), {})[job.case] = cell
                shown = ", ".join(f"{loss:.3g}" for loss in read.losses(cell).values())
                print(f"{name}: loss {shown} at rate {cell['rate']:g}", flush=True)
            write_json(arguments.json, record, indent=None)


def opened(file: Path, steps: int | None) -> dict[str, Any]:
    """The record in a file, or a new one. Raises SettingError if the file holds anything else."""
    sizes = {"small": SMALL, "encoder": ENCODER, "decoder": DECODER}
    scales = {name: asdict(replace(s, steps=steps or s.steps)) for name, s in sizes.items()}
    scales = {
        name: {key: list(value) if key == "rates" else value for key, value in scale.items() if key != "seeds"}
        for name, scale in scales.items()
    }
    if not file.parent.is_dir():
        raise SettingError(f"--json must lie in a folder that exists (got {file})")
    if not file.exists():
        return {"benchmark": "rankbench", "margin": read.MARGIN, "scales": scales, "settings": {}}
    try:
        record = read_json(file)
    except (OSError, ValueError):
        raise SettingError(
            f"--json must be a file that this program wrote, or a new one ({file} cannot be read)"
        ) from None
    read.check(record, scales)
    return dict(record)


def show(record: dict[str, Any], cells: Sequence[tuple[Setting, int, str]], arguments: argparse.Namespace) -> None:
    """Print the tables of the measured cells, and write the page and the figure if they are requested."""
    places = dict.fromkeys((setting.name, rank) for setting, rank, _ in cells)
    tables = [read.table(record, *place) for place in places if read.rows_of(record, *place)]
    print("\n" + "\n".join(tables))
    method = expand(arguments.method)[0] if arguments.method else "adalora"
    if arguments.page:
        rewrite(arguments.page, [read.summary(record, list(record["settings"]), method), *tables])
    if arguments.figure:
        drawn = figure.draw(record, method)
        if drawn is None:
            raise SettingError(f"--figure needs cells of the group phase for {method} in {arguments.json}")
        drawn.savefig(arguments.figure, dpi=130)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--setting", nargs="+", default=list(DEFAULT), help="groups or single settings")
    parser.add_argument("--method", nargs="+", default=[], help='methods, "all", "scores" or "controls"')
    parser.add_argument("--budget", nargs="+", type=float, default=[], help="multiples of the planted triplets")
    parser.add_argument("--seeds", type=int, help="default: 10, on the encoder 5, on the decoder 3")
    parser.add_argument("--steps", type=int, help="steps of every run, for a quick look; needs a separate --json")
    parser.add_argument("--jobs", type=int, default=1, help="number of single-threaded processes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, help="draw the phase diagram of the first --method, or of AdaLoRA")
    parser.add_argument("--page", type=Path, help="a Markdown page, whose tables between the two markers are replaced")
    parser.add_argument("--read", action="store_true", help="train nothing; show the tables and the figure from --json")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    try:
        for name in ("seeds", "jobs", "steps"):
            value = getattr(arguments, name)
            if value is not None and value < 1:
                raise SettingError(f"--{name} must be a whole number of at least 1 (got {value})")
        record = opened(arguments.json, arguments.steps)
        cells = wanted(record, arguments.setting, arguments.method, arguments.budget)
        if not arguments.read:
            run(record, cells, arguments)
        show(record, cells, arguments)
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
