"""What a reader of the numbers must know: how every table is read, and what is special about one of them."""

from analysis.cautions import cautions
from analysis.measures import unreadable
from analysis.tables import Table, relative_time

LEGEND = (
    "± is the half-width of a 95% t interval of the mean over the n seeds; one seed gives no interval.",
    "The metric is metric.test of the run's summary, or its last dev value where there is no test split.",
    "test is measured at the checkpoint that is best on dev (metric.test); where the runs have metric.test_last too, "
    "that of the last checkpoint stands beside it. Verdicts and figures use the former unless they say otherwise.",
    "best dev: mean of the best dev values, an optimistic number: the best of several evaluations was picked. "
    "last dev: mean of the dev values after the last step.",
    "mean rank: per module, from creation to the end. triplets: kept at the end, all modules together.",
    "kept: parameters a finished model needs beyond its frozen base, head included; in full fine-tuning all of them.",
    "step: median over seeds; ÷ LoRA: relative to the LoRA row with the same rank and most settings in common.",
    "peak: the largest peak memory of the seeds. – means that there is no such number.",
    "budget: triplets of all modules together, at creation, averaged over the steps, at the end; parameters as in "
    "kept; in brackets relative to the LoRA row. A configuration may match LoRA's in one count and not in the others.",
    "trials: learning rates tried for a method; the one that is best on dev is chosen. Methods with more trials than "
    "others, or a best rate at the edge of its grid, were not tuned alike.",
    "difference: mean over the pairs of a seed on a task, with its BCa interval (none below 4 pairs of a task).",
    "Of several learning rates of one configuration only the best on dev is set against LoRA, at LoRA's own best.",
    "p: two-sided sign-flip test, flipped within the task; in brackets after Holm's correction over the table; "
    "attainable: the smallest corrected p that the pairs could have reached. Above 0.05 nothing is decided.",
    "equivalent: Holm-corrected p of two one-sided paired t tests: the mean difference is within half a point (0.005).",
    "detectable: the true difference that a t test would find four times in five, at this n and spread, corrected.",
    "g: Hedges' g, paired. P(better): the chance that one of its runs beats one of LoRA's.",
)


def notes(table: Table) -> list[str]:
    """What is unfair, why cells are blank, and where rows are not alike."""
    lines = cautions(table)
    if not table.references:
        lines.append("There is no LoRA run in this table: no relative times and no verdicts.")
    elif any(row.step_ms and relative_time(row, table.references[row]) is None for row in table.rows):
        lines.append("Relative times are blank where a row and its LoRA reference ran on different or unknown devices.")
    lacking = [table.labels[row] for row in table.rows if len(row.last_scores) < len(row.scores)]
    if table.split == "test" and 0 < len(lacking) < len(table.rows):
        lines.append(f"No test value of the last checkpoint from every seed: {', '.join(lacking)}.")
    devices = sorted(set[str]().union(*(row.devices for row in table.rows)))
    lines.append(f"Device: {'; '.join(devices)}.")
    recipes = {str(run.summary.get("recipe")) for row in table.rows for run in row.runs}
    if len(recipes) > 1:
        lines.append(f"The runs were made by different recipes of the code: {', '.join(sorted(recipes))}.")
    for row in table.rows:
        if row.budget is not None and row.triplets is not None and abs(row.triplets - row.budget) > 1e-6:
            lines.append(f"{table.labels[row]} kept {row.triplets:g} triplets; its budget was {row.budget:g}.")
        lines += unreadable(row, table.labels[row])
        if not row.settings:
            lines.append(f"{table.labels[row]}: no config.yaml can be read, its settings are not shown.")
    return lines
