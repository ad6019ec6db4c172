"""One configuration over its seeds: what stands in a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from analysis import formats, stats
from analysis.files import mean, number, read_config, text
from analysis.load import Run


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration over its seeds. Numbers are means over the seeds; None where no run has one.

    scores: {seed: test value of the checkpoint best on dev, or last dev value}; last_scores: {seed: test value of the
    last checkpoint}, of the seeds that have one; mean, half_width: of `scores`; best, last: dev values; scale: α/r in
    effect; ranks: {module: final rank}; kept: parameters needed beyond the frozen base; step_ms: median over the
    seeds, in ms; peak_mib: the largest.
    """

    configuration: str
    method: str
    targets: str
    runs: tuple[Run, ...]
    settings: dict[str, str]
    scores: dict[int, float]
    last_scores: dict[int, float]
    mean: float
    half_width: float | None
    best: float | None
    last: float | None
    scale: float | None
    initial_rank: float | None
    final_rank: float | None
    triplets: float | None
    budget: float | None
    ranks: dict[str, float]
    trainable: float | None
    kept: float | None
    step_ms: float | None
    peak_mib: float | None
    devices: frozenset[str]

    @property
    def adaptive(self) -> bool:
        """Whether ranks moved, over time or between modules."""
        return len({self.initial_rank, *self.ranks.values()}) > 1 if self.ranks else False

    @property
    def asked(self) -> tuple[str, ...]:
        """The final and first ranks that the settings asked for, where none can be read those that came out; empty
        for a method without ranks. One without a budget (SoRA) is asked for a rank, and every run ends at another."""
        if not self.ranks:
            return ()
        if "rank" in self.settings:
            return (self.settings["rank"], self.settings.get("init_rank", ""))
        return (formats.rank(self.final_rank), formats.rank(self.initial_rank))


def make_row(runs: Sequence[Run]) -> Row:
    """The row of one configuration's finished runs, one a seed."""
    runs = tuple(sorted(runs, key=lambda run: run.seed))
    summary = runs[0].summary
    scores = {run.seed: run.score[1] for run in runs}
    lasts = {run.seed: number(run.summary["metric"].get("test_last")) for run in runs if run.score[0] == "test"}
    middle, half_width = stats.mean_interval(list(scores.values()))
    rank = [run.summary.get("rank") or {} for run in runs]
    finals = [one.get("final") or {} for one in rank]
    ranks = {module: fmean(final.get(module, 0) for final in finals) for module in finals[0]}
    sizes = [run.summary.get("parameters") or {} for run in runs]
    steps = [number((run.summary.get("time") or {}).get("step_ms")) for run in runs]
    peaks = [number((run.summary.get("memory") or {}).get("peak_mib")) for run in runs]
    return Row(
        configuration=runs[0].configuration,
        method=summary["method"],
        targets=text(summary.get("targets")),
        runs=runs,
        settings=next((config for run in runs if (config := read_config(run.folder)) is not None), {}),
        scores=scores,
        last_scores={seed: value for seed, value in lasts.items() if value is not None},
        mean=middle,
        half_width=half_width,
        best=mean(number(run.summary["metric"].get("best")) for run in runs),
        last=mean(number(run.summary["metric"].get("last")) for run in runs),
        scale=mean(number(run.summary.get("scale")) for run in runs),
        initial_rank=mean(map(_initial_rank, rank)),
        final_rank=fmean(ranks.values()) if ranks else None,
        triplets=sum(ranks.values()) if ranks else None,
        budget=mean(number(one.get("budget_triplets")) for one in rank),
        ranks=ranks,
        trainable=mean(number(size.get("trainable")) for size in sizes),
        kept=mean(map(_kept, sizes)),
        step_ms=median(known) if (known := [step for step in steps if step is not None]) else None,
        peak_mib=max((peak for peak in peaks if peak is not None), default=None),
        devices=frozenset(text(run.summary.get("device") or "unknown") for run in runs),
    )


def _kept(size: Mapping[str, Any]) -> float | None:
    trainable, adapter, kept = (number(size.get(key)) for key in ("trainable", "adapter", "kept"))
    return None if trainable is None or adapter is None or kept is None else trainable - adapter + kept


def _initial_rank(rank: Mapping[str, Any]) -> float | None:
    initial = rank.get("initial")
    return mean(map(number, initial.values())) if isinstance(initial, dict) else number(initial)
