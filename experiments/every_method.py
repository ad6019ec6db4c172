"""Prints docs/methods.md's table: every method on rotten_tomatoes, from the packed runs of studies/every_method.yaml.

    python experiments/every_method.py

A rate with * lies at the edge of its grid. Scores are those of the last checkpoint on the test rows.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed runs as well

import pandas

import adarank
from adarank.runs.files import read_json

RESULTS = Path(__file__).resolve().parent / "results" / "every_method"
TASK = "rotten_tomatoes"
COLUMNS = (
    "arm",
    "learning rate",
    "test accuracy, mean [lowest, highest]",
    "seeds",
    "final ranks",
    "adapter parameters",
)


def rows() -> list[str]:
    """The lines of the Markdown table, the highest mean first."""
    runs = adarank.frame(str(RESULTS / "seeds"))
    rates = read_json(RESULTS / "tuning" / TASK / "rates.json")
    lines = []
    for arm, of_arm in runs[runs["state"] == "finished"].groupby("arm"):
        rate, scores = of_arm["train.lr"].iloc[0], of_arm["metric.test_last"]
        edge = "*" * bool(rates.get(arm, {}).get("at_the_edge"))
        least, most = of_arm["rank.final_min"].min(), of_arm["rank.final_max"].max()
        ranks = "–" if pandas.isna(least) else f"{least:g} to {most:g}" if least < most else f"{most:g}"
        kept = of_arm["parameters.kept"].mean()
        cells = (
            arm,
            f"{rate:g}{edge}",
            f"{scores.mean():.3f} [{scores.min():.3f}, {scores.max():.3f}]",
            str(len(scores)),
            ranks,
            f"{kept:,.0f}" if kept else "–",
        )
        lines.append((-scores.mean(), f"| {' | '.join(cells)} |"))
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return [*head, *(line for _, line in sorted(lines))]


if __name__ == "__main__":
    print("\n".join(rows()))
