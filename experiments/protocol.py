"""Runs a controlled comparison: tunes every method in the same way, then runs the seeds. docs/protocol.md explains why.

    python experiments/protocol.py experiments/studies/controls.yaml --out runs/controls --results results/controls

For each task of the study, every method tries its grid of learning rates on the tuning seeds, in the same number of
trials, and the rate with the best mean on dev is chosen (dev is carved from train where the study sets `holdout`). Then
every method and budget runs the same seeds, with the same head and order of the data, at the chosen rate. Test is
measured once, at the end of a run of the comparison. Finished runs are packed into --results and never trained again.
--jobs trains several runs at a time. Further words go to experiments/run.py. At the end it writes a report of the
trials and one of the comparison; --read writes both from --results alone.

Claims of the study are declared in --results before its first run. --plan trains nothing and estimates how many
seeds and minutes they need, from the runs in --results or, with --from, in the results of an earlier study. --looks
judges them at each of the study's looks, and runs further seeds only of the methods that an undecided claim needs.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.errors import SettingError, whole_number
from adarank.runs.files import read_json, read_object, write_json
from adarank.runs.packed import read_records
from analysis import claims, measures
from analysis.load import FolderError, read_runs
from analysis.report import load as load_runs
from analysis.report import write_report
from analysis.tables import tables
from experiments import looks, measure, plan
from experiments.outcomes import (
    DIVERGED,
    FAILED,
    STAGES,
    choose,
    diverged,
    ends,
    extended,
    outcomes,
    refuse_other_settings,
    states_of,
)
from experiments.pack import pack, runs_below, unpack
from experiments.study import Cell, Study, cells, load, rates_of, settings_of, trials, tuned_as, with_map, words

MEASURED = "probe_verdicts.json"
OWN = {"seed", "train.lr", "out", "arm", "test"}  # settings of a run that follow from the study
RUN = str(Path(__file__).resolve().parent / "run.py")


@dataclass(frozen=True)
class Place:
    """The folders of the runs and results. words: further words for every run, after all others; jobs: how many runs
    train at a time, each with its share of the cores."""

    out: Path
    results: Path
    words: Sequence[str]
    jobs: int = 1

    @property
    def threads(self) -> dict[str, str]:
        """The environment variables that give a job its share of the cores."""
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} if self.jobs > 1 else {}


def run(
    study: Study, place: Place, stage: str, task: str, cell: Cell, rates: Any, seeds: Any, backwards: bool = False
) -> None:
    """Run every pair of a rate and a seed, except finished ones, pack and measure them; exits if run.py fails, unless
    trials merely diverged, which says enough about their rate.

    stage: "tuning" or "seeds", which keeps the trials out of the comparison. Trials do not measure test, unless the
    study sets `test` itself. backwards: begin with the last pair, to help another process that began with the first;
    neither trains a run that the other holds."""
    if backwards:
        if len(rates) * len(seeds) == 1:
            return
        rates, seeds = rates[::-1], seeds[::-1]
    settings = {**({"test": False} if stage == "tuning" else {}), **settings_of(study, task, cell)}
    sweep = {"train.lr": rates, "seed": seeds}
    jobs = [f"{key}={','.join(map(str, values))}" for key, values in sweep.items()]
    where = Path(stage, task, cell.method)
    jobs += words({"out": str(place.out / where)})
    command = [RUN, "-m", *words(settings), *jobs, *place.words]
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command], env={**place.threads, **os.environ}).returncode
    pack(place.out / where, place.results / where)
    found = states_of(place.out / where, cell.arm, rates, seeds)
    if status and not (stage == "tuning" and status == 1 and DIVERGED in found and FAILED not in found):
        sys.exit(status)
    probe(study, place, stage, task, cell, seeds, backwards)


def side_by_side(calls: Sequence[Callable[..., None]], jobs: int) -> None:
    """Do the calls, `jobs` at a time; once none is left to begin, idle jobs help those under way (`backwards=True`).
    The first failure is raised, after the calls that have begun are finished."""

    def help_with(future: Future[None], call: Callable[..., None]) -> None:
        if not future.done():
            call(backwards=True)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(call) for call in calls]
        if jobs > 1:
            futures += [pool.submit(help_with, *pair) for pair in zip(futures, calls, strict=True)]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def tune(study: Study, place: Place, task: str) -> dict[str, Any]:
    """Tune a task's methods; return {arm, or method if all its budgets share a rate: the result of `choose`}, and write
    it to tuning/TASK/rates.json.

    While a best rate lies at the edge of its grid, every grid grows by one rate at that end, so that each method has as
    many trials, up to `extend` times. Raises SettingError if the study refuses a rate that stays at the edge."""
    grids = {name: rates_of(study, task, name) for name, method in study.methods.items() if "rates" in method}
    new, added = dict(grids), dict[str, list[float]]()
    for step in range(study.extend + 1):
        asked = [(Cell(name, budget), new[name], seeds) for name in new for budget, seeds in trials(study, name)]
        side_by_side([partial(run, study, place, "tuning", task, *each) for each in asked], place.jobs)
        chosen = choices(study, place, task, grids)
        grow = ends(chosen)
        if not grow or step == study.extend:
            break
        wider = {name: extended(grid, grow) for name, grid in grids.items()}
        new = {name: [rate for rate in wider[name] if rate not in grid] for name, grid in grids.items()}
        added = {name: [*added.get(name, []), *rates] for name, rates in new.items()}
        grids = wider
        print(f"{task}: a best rate lies at the edge of its grid; every grid grows by {new}", flush=True)
    chosen = {name: {**choice, **_added(added, name)} for name, choice in chosen.items()}
    write_json(place.results / "tuning" / task / claims.RATES, chosen)
    for name, choice in chosen.items():
        edge = ", at the edge of its grid: widen it" if choice["at_the_edge"] else ""
        print(f"{task}, {name}: train.lr={choice['rate']:g} after {choice['trials']} trials{edge}", flush=True)
    at_edge = [name for name, choice in chosen.items() if choice["at_the_edge"]]
    if at_edge and study.edge == "refuse":
        raise SettingError(
            f"methods.{at_edge[0].partition('@')[0]}.rates must hold the best rate inside its grid (got "
            f"{chosen[at_edge[0]]['rate']:g} for {at_edge[0]} on {task}, at the edge after {study.extend} extensions); "
            "move the grid, raise extend, or set edge: accept"
        )
    return chosen


def choices(study: Study, place: Place, task: str, grids: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """`choose` for every arm whose method has a grid, or for every such method."""
    found: dict[str, Any] = {}
    for name, grid in grids.items():
        asked_for = {(Cell(name, budget).arm, seed) for budget, seeds in trials(study, name) for seed in seeds}
        tried = [o for o in outcomes(study, place.results, "tuning", task, name) if (o.arm, o.seed) in asked_for]
        lost = [o for o in diverged(study, place.out, "tuning", task, name) if (o.arm, o.seed) in asked_for]
        asked = study.claims.metrics.get(task) if study.claims else None
        if asked and (other := [outcome.metric for outcome in tried if outcome.metric != asked]):
            raise SettingError(f"claims.metrics.{task} must be the metric of its runs, {other[0]} (got {asked})")
        for cell in (cell for cell in cells(study) if cell.method == name):
            whole = study.rates_per == "method"
            mine = [trial for trial in tried if whole or trial.arm == cell.arm]
            gone = [trial.rate for trial in lost if whole or trial.arm == cell.arm]
            found.setdefault(tuned_as(study, cell), choose(mine, grid, gone))
    return found


def _added(added: Mapping[str, list[float]], name: str) -> dict[str, list[float]]:
    rates = added.get(name.partition("@")[0])
    return {"added": sorted(rates)} if rates else {}


def compare(
    study: Study,
    place: Place,
    task: str,
    chosen: Mapping[str, Any],
    arms: Collection[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Run the seeds of every method and budget at its rate; rank maps last, since they need other runs.

    arms, seeds: only these (None: all of the study)."""
    seeds = study.seeds if seeds is None else seeds
    asked = [cell for cell in cells(study) if arms is None or cell.arm in arms]
    rates = {cell: [chosen[tuned_as(study, cell)]["rate"]] for cell in asked}
    maps = [cell for cell in asked if "map_of" in study.methods[cell.method]]
    first = [partial(run, study, place, "seeds", task, cell, rates[cell], seeds) for cell in asked if cell not in maps]
    side_by_side(first, place.jobs)
    calls = []
    for cell in maps:
        source = Cell(study.methods[cell.method]["map_of"], cell.budget)
        finished = outcomes(study, place.results, "seeds", task, source.method)
        for seed in seeds:
            wanted = (source.arm, seed, chosen[tuned_as(study, source)]["rate"])
            name = next(found.run for found in finished if (found.arm, found.seed, found.rate) == wanted)
            folder = (place.out / "seeds" / task / source.method / name).absolute()
            of_seed = with_map(study, cell.method, folder, seed)
            calls.append(partial(run, of_seed, place, "seeds", task, cell, rates[cell], [seed]))
    side_by_side(calls, place.jobs)


def look(study: Study, place: Place, task: str, chosen: Mapping[str, Any]) -> None:
    """Run the seeds of a task from look to look, each time only of the arms that an undecided claim needs.

    Every look is recorded in looks.json; recorded ones are not judged again."""
    assert study.claims is not None
    pairs = looks.pairs(study, task)
    for seeds in study.claims.stages:
        found = looks.recorded(study, place.results, task, seeds, chosen)
        if found is None:
            arms = looks.needed(study, pairs)
            compare(study, place, task, chosen, arms, study.seeds[:seeds])
            found = looks.judge(study, place.results, task, seeds, pairs, chosen)
            looks.record(study, place.results, task, seeds, arms, found, chosen)
            publish(place)
        for row in found:
            print(f"{task}, {seeds} seeds: {looks.sentence(row)}", flush=True)
        pairs = [pair for pair, row in zip(pairs, found, strict=True) if looks.goes_on(row)]
        if not pairs:
            break


def declare(study: Study, place: Place) -> None:
    """Write the study's claims into --results, before the first run of the comparison; says so if they changed."""
    of_probe = None if study.probe is None else study.probe.claims
    for name, asked in ((claims.FILE, study.claims), (measures.FILE, of_probe)):
        try:
            known = claims.load(place.results, name)
            runs = len(dict(read_records(place.results / "seeds")))
            if asked is None:
                if known is not None:
                    raise SettingError(f"the study must keep its claims (got none; {place.results / name} has some)")
                continue
            declared = claims.write(place.results, asked, study.name, runs, name)
        except claims.ClaimsError as error:
            raise SettingError(str(error)) from None
        if known is not None and len(declared.changes) > len(known.changes):
            print(f"The claims have changed after {runs} runs of the comparison; the report will say so.", flush=True)
        publish(place)


def probe(
    study: Study, place: Place, stage: str, task: str, cell: Cell, seeds: Collection[int], backwards: bool = False
) -> None:
    """Measure the finished runs of a cell as the study's `probe` says, and pack the results."""
    asked = study.probe
    if asked is None or cell.arm not in asked.arms or (stage == "tuning" and not asked.trials):
        return
    where = Path(stage, task, cell.method)
    measure.measure(asked, place.out / where, cell.arm, seeds, place.threads, backwards)
    pack(place.out / where, place.results / where)


def publish(place: Place) -> None:
    """Copy claims, looks and chosen rates next to the runs of the comparison, where the report reads them."""
    folder = place.out / "seeds"
    for name in (claims.FILE, claims.LOOKS, measures.FILE):
        if (place.results / name).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / name, _read(place.results / name))
    if rates := {file.parent.name: _read(file) for file in sorted(place.results.glob(f"tuning/*/{claims.RATES}"))}:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / claims.RATES, rates)


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except ValueError:
        raise SettingError(f"{file} is damaged; restore it") from None


def follow(study: Study, place: Place, tasks: Sequence[str] | None = None, looking: bool = False) -> None:
    """Follow the whole protocol, resuming where an earlier call stopped. looking: judge the claims at the study's
    looks."""
    for task in tasks or ():
        if task not in study.tasks:
            raise SettingError(f"--tasks must be among {', '.join(study.tasks)} (got {task})")
    if looking and not (study.claims and study.claims.looks):
        raise SettingError("--looks must have a study whose claims have looks (got none)")
    if study.probe is not None:
        _ = study.probe.words  # refuses a missing environment variable before anything trains
    if swept := {word.partition("=")[0].lstrip("+~") for word in place.words} & OWN:
        raise SettingError(f"further words must not set what the study sets for each run (got {sorted(swept)[0]})")
    if place.out.is_dir():
        pack(place.out, place.results)
    if place.results.is_dir():
        unpack(place.results, place.out)
    refuse_other_settings(study, place.results, place.out, tasks or study.tasks, place.words)
    declare(study, place)
    for task in tasks or study.tasks:
        chosen = tune(study, place, task)
        publish(place)
        if looking and looks.pairs(study, task):
            look(study, place, task, chosen)
        else:
            compare(study, place, task, chosen)


def reports(place: Place) -> None:
    """Write the reports of the trials and of the comparison into --out. Raises SettingError without a finished run."""
    unpack(place.results, place.out)
    publish(place)
    stages = [place.out / stage for stage in STAGES if runs_below(place.out / stage)]
    if not stages:
        raise SettingError(
            f"--results must be a folder that this command has filled (got {place.results}, without runs)"
        )
    for stage in stages:
        try:
            page = write_report(stage, load_runs(stage))
        except FolderError as error:
            raise SettingError(f"{error}") from None
        print(f"report: {page}", flush=True)
    folder = place.out / "seeds"
    if (declared := measures.load(place.results)) is not None and folder in stages:
        runs, (rates, _) = read_runs(folder, declared.claims.checkpoint), read_object(folder / claims.RATES)
        found = measures.judge(tables(runs, declared.claims.margins, rates), declared)
        write_json(place.results / MEASURED, {"hash": declared.hash, "claims": measures.plain(found)})


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of protocol.py and of the reproductions that follow it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the runs")
    parser.add_argument("--results", type=Path, required=True, help="the folder for the finished runs, packed")
    parser.add_argument("--read", action="store_true", help="train nothing; read the runs in --results")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="only these tasks of the study, t1,t2")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs train at a time (default 1)")
    return parser


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("study", type=Path, help="a YAML file of experiments/studies/")
    parser.add_argument("--plan", action="store_true", help="train nothing; estimate the seeds and minutes needed")
    parser.add_argument("--from", dest="source", type=Path, help="with --plan: the results of an earlier study")
    parser.add_argument("--looks", action="store_true", help="judge the claims at the study's looks")
    options, overrides = parser.parse_known_args()
    try:
        whole_number("--jobs", options.jobs)
        _refuse_unused(options, overrides)
        place = Place(options.out, options.results, overrides, options.jobs)
        if options.plan:
            found = plan.plan(load(options.study), options.source or options.results, options.source is not None)
            print(plan.text(found))
            options.results.mkdir(parents=True, exist_ok=True)
            write_json(options.results / plan.FILE, found)
            return 0
        if not options.read:
            follow(load(options.study), place, options.tasks, options.looks)
        reports(place)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _refuse_unused(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Raise SettingError for folders that are files, and for options that would be ignored."""
    for name, folder in (("--out", options.out), ("--results", options.results)):
        if folder.exists() and not folder.is_dir():
            raise SettingError(f"{name} must be a folder (got {folder}, a file)")
    unused: dict[str, Any] = {"--from": options.source is not None and not options.plan}
    if options.plan or options.read:
        unused |= {"--tasks": options.tasks, "--looks": options.looks, "further words": words}
    if options.plan and options.read:
        unused |= {"--read": True}
    if ignored := next((name for name, given in unused.items() if given), None):
        mode = "--plan" if options.plan else "--read" if options.read else "a study that runs"
        raise SettingError(f"{mode} must not have {ignored}, which it would ignore")


if __name__ == "__main__":
    sys.exit(main())
