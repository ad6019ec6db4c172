"""Do the scores mean anything, over seeds? The triplets of one run say what holds in it; here a run counts once."""

from collections import defaultdict
from statistics import fmean

from analysis import formats, probe, stats
from analysis.load import Run
from analysis.pairs import by_key
from analysis.rows import Row
from analysis.tables import Table
from analysis.verdicts import Verdict, judge

HEADER = ("method", "score", "rank correlation", "overlap of the top quarter", "chance", "runs")
TITLE = "Do the scores mean anything? Over the seeds, mean and 95% interval"
AGAINST = "Does another score foresee the rise better than the one that pruned? Rank correlations of the same runs"

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
            columns = zip(*by_seed.values(), strict=True)
            correlation, overlap, chance = (list(column) for column in columns)
            spans = [formats.interval(*stats.mean_interval(values)) for values in (correlation, overlap)]
            shown.append([table.labels[row], name, *spans, formats.metric(fmean(chance)), str(len(by_seed))])
            runs.append([run for run in row.runs if run.seed in by_seed])
    return shown, runs


def verdicts(table: Table) -> list[Verdict]:
    """Every score against the one that the configuration's runs were pruned by; none where fewer than two were probed."""
    comparisons = []
    for row in table.rows:
        own, found = row.settings.get("score", ""), agreements(row)
        if len(found.get(own, ())) < 2:
            continue
        values = {name: {seed: one.correlation for seed, one in found[name].items()} for name in found}
        for name in (name for name in found if name != own):
            runs = [run for run in row.runs if run.seed in values[name].keys() & values[own].keys()]
            label = f"{table.labels[row]}: {name}"
            comparisons.append(by_key(label, own, (name, own), values[name], values[own], runs))
    return judge(comparisons, None, higher_is_better=True)
