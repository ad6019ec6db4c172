"""Do the scores mean anything, over seeds? The triplets of one run say what holds in it; here a run counts once."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from analysis import formats, probe, stats
from analysis.load import Run
from analysis.pairs import by_key
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import Verdict, judge

HEADER = ("method", "score", "rank correlation", "with its size", "overlap of the top quarter", "chance", "runs")
TITLE = "Do the scores mean anything? Over the seeds, mean and 95% interval"
Aspect = Literal["correlation", "size"]
AGAINST: dict[Aspect, str] = {
    "correlation": "Does another score foresee the rise better than the one that pruned? Rank correlations of the same runs",
    "size": "The same for the size of the rise, whatever its sign",
}

Agreements = dict[str, dict[int, probe.Agreement]]


def agreements(row: Row) -> Agreements:
    """{score: {seed: its agreement with the rise}} of the row's probed runs, the best correlated first. Scores that are
    constant in a run have none there."""
    found: Agreements = defaultdict(dict)
    for run in row.runs:
        if (content := probe.content(run)) is None:
            continue
        for name, score in content.scores.items():
            if len(score) == len(content.rise) > 3 and (one := probe.agreement(score, content.rise)) is not None:
                found[name][run.seed] = one
    return dict(sorted(found.items(), key=lambda item: -fmean(one.correlation for one in item[1].values())))


def rows(table: Table) -> tuple[list[list[str]], list[list[Run]]]:
    """A row of strings for HEADER, and its runs, of every score of a configuration with several probed runs."""
    shown, runs = [], []
    for row in table.rows:
        for name, by_seed in agreements(row).items():
            if len(by_seed) < 2:
                continue
            found = list(by_seed.values())
            columns = [[one.correlation for one in found], _sizes(found), [one.overlap for one in found]]
            spans = [formats.interval(*stats.mean_interval(values)) if values else formats.BLANK for values in columns]
            chance = formats.metric(fmean(one.chance for one in found))
            shown.append([table.labels[row], name, *spans, chance, str(len(by_seed))])
            runs.append([run for run in row.runs if run.seed in by_seed])
    return shown, runs


def verdicts(table: Table, of: Aspect = "correlation") -> list[Verdict]:
    """Every score against the one that the configuration's runs were pruned by; none where fewer than two were probed."""
    comparisons = []
    for row in table.rows:
        own = row.settings.get("score", "")
        values = {
            name: {seed: value for seed, one in by_seed.items() if (value := getattr(one, of)) is not None}
            for name, by_seed in agreements(row).items()
        }
        if len(values.get(own, ())) < 2:
            continue
        for name in (name for name in values if name != own):
            runs = [run for run in row.runs if run.seed in values[name].keys() & values[own].keys()]
            label = f"{table.labels[row]}: {name}"
            comparisons.append(by_key(label, own, (name, own), values[name], values[own], runs))
    return judge(comparisons, None, higher_is_better=True)


def _sizes(found: Sequence[probe.Agreement]) -> list[float]:
    return [one.size for one in found if one.size is not None]
