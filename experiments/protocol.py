"""A controlled comparison: tune every method alike, then run the seeds. docs/protocol.md says why.

    python experiments/protocol.py experiments/studies/controls.yaml --out runs/controls --results results/controls

For each task of the study, every method tries its grid of learning rates on the tuning seeds, in the same number of
trials, and the rate with the best mean on dev is chosen (dev is carved from train where the study sets `holdout`). Then
every method and budget runs the same seeds, with the same head and order of the data, at the chosen rate. Test is
measured once, at the end of a run. Finished runs are packed into --results and never trained again. Further words go to
experiments/run.py. At the end it writes a report of the trials and one of the comparison; --read writes both from
--results alone.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from adarank.errors import SettingError
from adarank.runs.files import write_json
from adarank.runs.packed import read_record, record_files, run_name
from analysis.load import FolderError
from analysis.report import load as load_runs
from analysis.report import write_report
from experiments.pack import pack, unpack

Settings = Mapping[str, Any]
RUN = str(Path(__file__).resolve().parent / "run.py")


@dataclass(frozen=True)
class Study:
    """settings: of every run; tasks, methods: by name, as in experiments/studies/; budgets: values of rank; tuning and
    seeds: of the trials and of the comparison, without overlap."""

    settings: Settings
    tasks: Mapping[str, Settings]
    budgets: Sequence[int]
    methods: Mapping[str, Settings]
    tuning: Sequence[int]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Place:
    """Where the runs go. words: further words for every run, after all others."""

    out: Path
    results: Path
    words: Sequence[str]


def load(path: Path) -> Study:
    """The checked study in a YAML file. Raises SettingError where there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError(f"study must be a YAML file as in experiments/studies (got {path}: {reason})") from None
    return read(content)


def read(content: Settings) -> Study:
    """The checked study. Raises SettingError where a part is missing or unknown, methods differ in their number of
    rates, or seeds are used twice."""
    parts = {field.name for field in fields(Study)}
    if not isinstance(content, Mapping) or (wrong := parts ^ content.keys()):
        named = "no parts" if not isinstance(content, Mapping) else f"{', '.join(sorted(wrong))} missing or unknown"
        raise SettingError(f"the study must have exactly the parts {', '.join(sorted(parts))} (got {named})")
    study = Study(**content)
    for name, method in study.methods.items():
        if ("rates" in method) == ("tuned_as" in method):
            raise SettingError(f"methods.{name} must have either rates or tuned_as, the method whose rate it takes")
    counts: dict[str, int] = {}
    for task in study.tasks:
        counts = {name: len(rates_of(study, task, name)) for name, method in study.methods.items() if "rates" in method}
        if len(set(counts.values())) > 1:
            raise SettingError(f"every method must have the same number of rates for {task} (got {counts})")
    if both := set(study.tuning) & set(study.seeds):
        raise SettingError(f"tuning must have seeds that no comparison uses (got {sorted(both)} in both)")
    if len(study.tuning) < len(study.budgets):
        raise SettingError(f"tuning must have at least one seed for each budget (got {list(study.tuning)})")
    for name, method in study.methods.items():
        sources = [method[key] for key in ("tuned_as", "map_of") if key in method]
        if absent := [source for source in sources if source not in counts]:
            raise SettingError(f"methods.{name} must refer to one of {', '.join(counts)} (got {absent[0]})")
    return study


def rates_of(study: Study, task: str, method: str) -> Sequence[float]:
    """The method's grid of learning rates, the task's own where it has one."""
    return study.tasks[task].get("rates", {}).get(method, study.methods[method]["rates"])


def trials(study: Study, method: Settings) -> Iterator[tuple[int | None, list[int]]]:
    """(budget, seeds) of a method's trials at one rate: every tuning seed once, the budgets in turn."""
    budgets = study.budgets if method.get("ranked", True) else [None]
    for i, budget in enumerate(budgets):
        yield budget, list(study.tuning[i :: len(budgets)])


def words(settings: Settings) -> list[str]:
    """Overrides for run.py; strings are quoted for Hydra where they need it."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not value.replace("_", "").isalnum():
        return "'" + value.replace("'", r"\'") + "'"
    return str(value)


def settings_of(study: Study, task: str, method: str, budget: int | None) -> dict[str, Any]:
    """One run's settings except rate, seed and folder. A method's own settings override the task's, whose `adaptive`
    settings apply to the methods marked adaptive."""
    about, of_task = study.methods[method], study.tasks[task]
    adaptive = of_task.get("adaptive", {}) if about.get("adaptive") else {}
    ranked = {} if budget is None else {"rank": round(budget * about.get("times", 1))}
    return {**study.settings, **of_task["settings"], **adaptive, **ranked, **about["settings"]}


def run(
    study: Study, place: Place, stage: str, task: str, method: str, budget: int | None, rates: Any, seeds: Any
) -> None:
    """Run every pair of a rate and a seed, except finished ones, and pack them; exits where run.py failed.

    stage: "tuning" or "seeds", which keeps the trials out of the comparison."""
    settings = words(settings_of(study, task, method, budget))
    sweep = {"train.lr": rates, "seed": seeds}
    jobs = [f"{key}={','.join(map(str, values))}" for key, values in sweep.items()]
    jobs.append(f"out={place.out / stage / task / method}")
    command = [RUN, "-m", *settings, *jobs, *place.words]
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command]).returncode
    pack(place.out, place.results)
    if status:
        sys.exit(status)


def finished(place: Place, stage: str, task: str, method: str) -> list[dict[str, Any]]:
    """rate, rank, seed, dev (best), higher_is_better and run (its name) of every finished run."""
    trials = []
    for file in record_files(place.results / stage / task / method):
        record = read_record(file)
        config, metric = record["config"], record["summary"]["metric"]
        about = {"rate": config["train"]["lr"], "rank": config["rank"], "seed": config["seed"], "run": run_name(file)}
        trials.append({**about, "dev": metric["best"], "higher_is_better": metric["higher_is_better"]})
    return trials


def choose(trials: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> dict[str, Any]:
    """The rate of the best mean on dev, the mean of every rate, and whether the best lies at the edge of its grid.

    Trials of rates outside the grid do not count. Raises SettingError where rates differ in their number of trials."""
    trials = [trial for trial in trials if trial["rate"] in rates]
    by_rate = {rate: [t["dev"] for t in trials if t["rate"] == rate] for rate in sorted(rates)}
    if len({len(values) for values in by_rate.values()}) != 1 or not all(by_rate.values()):
        counts = {rate: len(values) for rate, values in by_rate.items()}
        raise SettingError(f"the trials must try each rate equally often (got {counts})")
    means = {rate: sum(values) / len(values) for rate, values in by_rate.items()}
    best = (max if trials[0]["higher_is_better"] else min)(means, key=lambda rate: means[rate])
    edge = best in (min(means), max(means))
    return {"rate": best, "means": [[r, m] for r, m in means.items()], "at_the_edge": edge, "trials": len(trials)}


def tune(study: Study, place: Place, task: str) -> dict[str, Any]:
    """{method: the result of `choose`}, written to tuning/TASK/rates.json."""
    chosen: dict[str, Any] = {}
    for name, method in study.methods.items():
        if "tuned_as" in method:
            continue
        rates = rates_of(study, task, name)
        for budget, seeds in trials(study, method):
            run(study, place, "tuning", task, name, budget, rates, seeds)
        chosen[name] = choose(finished(place, "tuning", task, name), rates)
        edge = ", at the edge of its grid: widen it" if chosen[name]["at_the_edge"] else ""
        count = chosen[name]["trials"]
        print(f"{task}, {name}: train.lr={chosen[name]['rate']:g} after {count} trials{edge}", flush=True)
    write_json(place.results / "tuning" / task / "rates.json", chosen)
    return chosen


def compare(study: Study, place: Place, task: str, chosen: Mapping[str, Any]) -> None:
    """Run the seeds of every method and budget at the method's rate; rank maps last, since they need other runs."""
    for name, method in sorted(study.methods.items(), key=lambda item: "map_of" in item[1]):
        rate = chosen[method.get("tuned_as", name)]["rate"]
        for budget in study.budgets if method.get("ranked", True) else [None]:
            if "map_of" not in method:
                run(study, place, "seeds", task, name, budget, [rate], study.seeds)
                continue
            for seed in study.seeds:
                wanted = (budget, seed, chosen[method["map_of"]]["rate"])
                sources = finished(place, "seeds", task, method["map_of"])
                source = next(t["run"] for t in sources if (t["rank"], t["seed"], t["rate"]) == wanted)
                folder = (place.out / "seeds" / task / method["map_of"] / source).absolute()
                mapped = with_map(study, name, folder, seed)
                run(mapped, place, "seeds", task, name, None, [rate], [seed])  # the map has its budget


def with_map(study: Study, name: str, source: Path, seed: int) -> Study:
    """The study whose method `name` takes its ranks from the run folder `source`. seed: of a shuffle of the ranks."""
    about = study.methods[name]["settings"]
    draws = {"ranks_shuffle_seed": seed} if about.get("ranks_shuffle", "none") != "none" else {}
    settings = {**about, "ranks_from": str(source), **draws}
    return replace(study, methods={**study.methods, name: {**study.methods[name], "settings": settings}})


def follow(study: Study, place: Place, tasks: Sequence[str] | None = None) -> None:
    """The whole protocol, resumed where an earlier call stopped."""
    if place.results.is_dir():
        unpack(place.results, place.out)
    for task in tasks or study.tasks:
        if task not in study.tasks:
            raise SettingError(f"--tasks must be among {', '.join(study.tasks)} (got {task})")
        compare(study, place, task, tune(study, place, task))


def reports(place: Place) -> None:
    """Write the reports of the trials and of the comparison into --out. Raises SettingError without a finished run."""
    unpack(place.results, place.out)
    stages = [place.out / stage for stage in ("tuning", "seeds") if (place.out / stage).is_dir()]
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


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of protocol.py and of the reproductions that follow it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the runs")
    parser.add_argument("--results", type=Path, required=True, help="the folder for the finished runs, packed")
    parser.add_argument("--read", action="store_true", help="train nothing, read what --results holds")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="some of the study's tasks, t1,t2")
    return parser


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("study", type=Path, help="a YAML file of experiments/studies/")
    options, overrides = parser.parse_known_args()
    try:
        place = Place(options.out, options.results, overrides)
        if not options.read:
            follow(load(options.study), place, options.tasks)
        reports(place)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
