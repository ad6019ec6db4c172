"""Can the gain of adaptive rank be forecast from the first 5 % of the steps?

    python experiments/forecast.py results/controls_declared cases.json --json forecast.json

A case is a method that allocates, compared with the same method with allocator=uniform, at one budget on one task. Its
outcome is whether the mean paired difference reaches the margin; its features are what the first 5 % of the steps
showed. Sources are folders of runs, packed or not, and JSON files with a list of cases (or an object whose `cases` is
one), such as that of experiments/rankbench/early.py:

    {"case": "cola, r = 2", "features": {"gini": 0.31, "agreement": null}, "difference": 0.004, "margin": 0.005}

A case may have `gain: true | false` in place of difference and margin. Cases with the same `setting` are not
independent; `stratum` names what a designer chose, such as how unequal the truth is. Features of runs, means over the
seeds:

    gini, cv     spread of the modules' mean scores at the last record of allocations.jsonl within the first 5 %
    agreement    Spearman's correlation of these scores between two seeds, the mean over all pairs
    slope        how much lower LoRA's training loss is in these steps for every doubling of its rank (lowest to
                 highest)

AdaLoRA's warm-up ends after 10 % of the steps, so that without train.observe_scores=0.05 its runs have no such record.
The script prints each feature's AUROC (.5: no information) with a separate 95 % interval: Newcombe's, or, where several
cases share a setting, that of a bootstrap over settings; and the AUROC over pairs of cases in one stratum, to which
telling strata apart does not contribute, with the interval of a bootstrap over settings.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from adarank.errors import SettingError
from adarank.runs import allocations
from adarank.runs.files import ALLOCATIONS, METRICS, read_json, read_lines, write_json
from adarank.runs.packed import record_files
from analysis import formats, stats
from analysis.claims import ClaimsError
from analysis.claims import load as load_claims
from analysis.load import FolderError, Run, number, read_runs
from analysis.rows import Row
from analysis.tables import Table, tables
from analysis.verdicts import against_uniform, margin_of
from experiments.pack import unpack

SHARE = 0.05  # fraction of the steps
CONTROLS = ("random", "global_bottom")  # allocators that use no score, or that prune the best triplets first
FEWEST = 5  # the smallest number of cases with a gain, and without, for an informative interval


class Case(NamedTuple):
    """features: {name: value, None if unknown}; difference, margin: None if the source has only the gain; setting,
    stratum: as above, None if the case has none."""

    case: str
    features: Mapping[str, float | None]
    gain: bool
    difference: float | None = None
    margin: float | None = None
    setting: str | None = None
    stratum: str | None = None


def cases_of(source: Path, share: float) -> list[Case]:
    """The cases of a JSON file or of a folder with runs. Raises SettingError if there are none to read."""
    if source.is_file():
        return _listed(source)
    if not source.is_dir():
        raise SettingError(f"SOURCE must be a folder of runs or a JSON file of cases (got {source})")
    with TemporaryDirectory() as folder:
        root = source
        if record_files(source):
            unpack(source, root := Path(folder))
        if (root / "seeds").is_dir():  # a study, whose trials are not cases
            root = root / "seeds"
        found = []
        try:
            declared = load_claims(source) or load_claims(root)
            listed = tables(read_runs(root), declared.claims.margins if declared else ())
        except (FolderError, ClaimsError) as error:
            raise SettingError(str(error)) from None
        for table in listed:
            margin = margin_of(table, declared.claims if declared else None)
            found += [
                _case(table, comparison, margin, share)
                for comparison in against_uniform(table)
                if comparison.scores.size
                and comparison.rows
                and comparison.rows[0].settings.get("allocator") not in CONTROLS
            ]
    return found


def forecast(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Every feature's AUROC over the cases that have it, with its interval, both None without cases of both kinds;
    within, within_interval, pairs: the same over the pairs of a case with a gain and one without in one stratum, and
    their number."""
    found = []
    for name in dict.fromkeys(name for case in cases for name in case.features):
        known = [case for case in cases if case.features.get(name) is not None]
        positives = sum(case.gain for case in known)
        negatives = len(known) - positives
        area, interval = _area(known, name), None
        if area is not None:
            shared = len({case.setting or case.case for case in known}) < len(known)
            if shared:
                interval = _over_settings(known, partial(_area, name=name))
            else:
                interval = stats.auroc_interval(area, positives, negatives)
        pairs, within, span = sum(map(_pairs, _strata(known))), _within(known, name), None
        if pairs:
            span = _over_settings(known, partial(_within, name=name))
        about = {"feature": name, "cases": len(known), "gains": positives, "auroc": area, "interval": interval}
        strata = {"within": within, "within_interval": span, "pairs": pairs}
        found.append({**about, **strata, "enough": min(positives, negatives) >= FEWEST})
    return found


def _area(cases: Sequence[Case], name: str) -> float | None:
    """The AUROC of a feature that all the cases have; None unless there are cases of both kinds."""
    if len({case.gain for case in cases}) < 2:
        return None
    return stats.auroc([case.features[name] or 0.0 for case in cases], [case.gain for case in cases])


def _over_settings(cases: Sequence[Case], area: Callable[[Sequence[Case]], float | None]) -> tuple[float, float]:
    """The 95 % percentile interval of an area over 2,000 draws of whole settings; draws that have none do not count."""
    settings: dict[str, list[Case]] = {}
    for case in cases:
        settings.setdefault(case.setting or case.case, []).append(case)
    groups, rng = list(settings.values()), np.random.default_rng(0)
    draws = rng.integers(0, len(groups), (2000, len(groups)))
    areas = [area([case for i in draw for case in groups[i]]) for draw in draws]
    low, high = np.percentile([found for found in areas if found is not None], [2.5, 97.5])
    return float(low), float(high)


def _within(cases: Sequence[Case], name: str) -> float | None:
    """The AUROC over the pairs within strata; None if no stratum has both kinds."""
    strata = [of_one for of_one in _strata(cases) if _pairs(of_one)]
    areas = [(_area(of_one, name) or 0.0) * _pairs(of_one) for of_one in strata]
    return sum(areas) / sum(map(_pairs, strata)) if strata else None


def _strata(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each stratum; cases that name none are in none."""
    strata: dict[str, list[Case]] = {}
    for case in cases:
        if case.stratum is not None:
            strata.setdefault(case.stratum, []).append(case)
    return list(strata.values())


def _pairs(cases: Sequence[Case]) -> int:
    """The number of pairs of a case with a gain and one without."""
    gains = sum(case.gain for case in cases)
    return gains * (len(cases) - gains)


def features(row: Row, table: Table, share: float) -> dict[str, float | None]:
    """The features from the first `share` of the steps of a row's runs and of the table's LoRA runs."""
    early = [scores for run in row.runs if (scores := early_scores(run, share))]
    pairs = [agreement(*pair) for pair in itertools.combinations(early, 2)]
    agreed = [value for value in pairs if value is not None]
    sizes = [np.abs(list(scores.values())) for scores in early]
    return {
        "gini": fmean(map(gini, sizes)) if sizes else None,
        "cv": fmean(map(variation, sizes)) if sizes else None,
        "agreement": fmean(agreed) if agreed else None,
        "slope": slope(table, share),
    }


def early_scores(run: Run, share: float) -> dict[str, float]:
    """{module: its mean score} at the run's last record within the first `share` of its steps; the median of its
    triplets if the record has only quantiles; empty if no record has scores."""
    records, _ = allocations.read(run.folder / ALLOCATIONS)
    for record in reversed(records):
        if record["step"] + 1 > share * run.summary["steps"]:
            continue
        if means := record.get("score_means"):
            return dict(means)
        if quantiles := record.get(allocations.QUANTILES):
            return {module: values[2] for module, values in quantiles.items() if None not in values}
    return {}


def gini(values: Iterable[float]) -> float:
    """The Gini coefficient of nonnegative values [n]: 0 if all are equal, 1 − 1/n if one has everything."""
    x = np.sort(np.asarray(list(values), dtype=np.float64))
    total, n = float(x.sum()), x.size
    return float((2 * np.arange(1, n + 1) - n - 1) @ x) / (n * total) if total else 0.0


def variation(values: Iterable[float]) -> float:
    """The coefficient of variation of nonnegative values [n]: standard deviation ÷ mean, 0 if all are 0."""
    x = np.asarray(list(values), dtype=np.float64)
    return float(x.std() / x.mean()) if x.mean() else 0.0


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Spearman's correlation of two runs' {module: score} over the modules of both; None for fewer than three."""
    modules = [module for module in first if module in second]
    return stats.spearman([first[m] for m in modules], [second[m] for m in modules]) if len(modules) > 2 else None


def slope(table: Table, share: float) -> float | None:
    """The decrease of LoRA's mean training loss in the first steps per doubling of its rank, between its lowest and its
    highest rank, over the seeds that both have; None if it has a single rank."""
    lora = sorted((row for row in table.tuned if row.method == "lora" and row.final_rank), key=_rank)
    if len(lora) < 2 or _rank(lora[0]) == _rank(lora[-1]):
        return None
    low, high = ({run.seed: _early_loss(run, share) for run in row.runs} for row in (lora[0], lora[-1]))
    differences = [
        a - b for seed in low.keys() & high.keys() if (a := low[seed]) is not None and (b := high[seed]) is not None
    ]
    return fmean(differences) / math.log2(_rank(lora[-1]) / _rank(lora[0])) if differences else None


def text(cases: Sequence[Case], found: Sequence[Mapping[str, Any]]) -> str:
    """The text for the terminal."""
    gains, strata = sum(case.gain for case in cases), any(case.stratum for case in cases)
    lines = [f"{len(cases)} cases, {gains} of them with a gain"]
    for row in found:
        area = formats.metric(row["auroc"])
        span = formats.BLANK if row["interval"] is None else "[{:.2f}, {:.2f}]".format(*row["interval"])
        within = ""
        if strata and row["pairs"]:
            low, high = row["within_interval"]
            within = f"; within strata {row['within']:.2f} [{low:.2f}, {high:.2f}] ({row['pairs']} pairs)"
        lines.append(f"{row['feature']}: AUROC {area} {span}, {row['cases']} cases, {row['gains']} gains{within}")
    short = [row["feature"] for row in found if not row["enough"]]
    if short or not found:
        lines.append(
            f"Too few cases for {', '.join(short) or 'any feature'}: fewer than {FEWEST} with a gain or fewer than "
            f"{FEWEST} without. They do not show whether it forecasts a gain."
        )
    return "\n".join(lines)


def _case(table: Table, comparison: Any, margin: float | None, share: float) -> Case:
    row, _ = comparison.rows
    sign = 1.0 if table.higher_is_better else -1.0
    difference = sign * float(comparison.differences.mean())
    gain = difference >= (margin or 0.0)
    return Case(f"{table.title}: {comparison.label}", features(row, table, share), gain, difference, margin)


def _listed(file: Path) -> list[Case]:
    try:
        content = read_json(file)
        listed = content["cases"] if isinstance(content, Mapping) else content
        return [_of_json(one) for one in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            "SOURCE must be a JSON file with a list of cases, each with case, features and either gain or difference "
            f"and margin (got {file}: {type(error).__name__} {error})"
        ) from None


def _of_json(one: Mapping[str, Any]) -> Case:
    named = {str(name): number(value) for name, value in one["features"].items()}
    shared = [one.get(name) for name in ("setting", "stratum")]
    if not all(name is None or isinstance(name, str) for name in shared):
        raise TypeError("setting and stratum must be text")
    if isinstance(one.get("gain"), bool):
        return Case(str(one["case"]), named, one["gain"], None, None, *shared)
    difference, margin = float(one["difference"]), float(one["margin"])
    return Case(str(one["case"]), named, difference >= margin, difference, margin, *shared)


def _rank(row: Row) -> float:
    return float(row.final_rank or 0.0)


def _early_loss(run: Run, share: float) -> float | None:
    records, _ = read_lines(run.folder / METRICS)
    losses = [
        loss
        for record in records
        if record.get("split") == "train" and record["step"] <= share * run.summary["steps"]
        if (loss := number(record.get("loss"))) is not None
    ]
    return fmean(losses) if losses else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="folders of runs, JSON files of cases")
    parser.add_argument(
        "--share", type=float, default=SHARE, help=f"fraction of the steps that features may use ({SHARE:g})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the cases and the result")
    options = parser.parse_args()
    try:
        if not 0 < options.share <= 1:
            raise SettingError(f"--share must be above 0 and at most 1 (got {options.share:g})")
        if options.json is not None and not options.json.parent.is_dir():
            raise SettingError(f"--json must be a file in a folder that exists (got {options.json})")
        cases = [case for source in options.sources for case in cases_of(source, options.share)]
        if not cases:
            sources = ", ".join(map(str, options.sources))
            raise SettingError(f"SOURCE must hold a method and the same one with allocator=uniform (got {sources})")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = forecast(cases)
    print(text(cases, found))
    if options.json is not None:
        write_json(
            options.json, {"share": options.share, "cases": [case._asdict() for case in cases], "features": found}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
