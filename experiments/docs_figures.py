"""The figures of the README and docs/: ranks moving in a committed run, the schedule of a numbered example, the claims
of studies, learning against forgetting, what pruning costs and, with --report, the first screen of a report page, which
needs Chromium.

python experiments/docs_figures.py docs
python experiments/docs_figures.py docs --report runs/controls/seeds/report/index.html
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed runs as well

import numpy as np

from adarank import schedules
from adarank.runs.modules import rank_grid
from adarank.runs.packed import allocations_of, read_record
from analysis import measures
from analysis.plots import forest, forgetting, prefixes, pruning, style
from experiments.pages import report_of, trials_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parent / "results"
RUN = RESULTS / "adalora_table1" / "seeds" / "sst2" / "adalora" / "adalora-b6ba7dc8e2-s0"
KINDS = ("query", "key", "value", "attn. out", "MLP up", "MLP down")  # of a BERT block, in the model's order
EXAMPLE = schedules.cubic(initial=432, final=288, t_i=100, t_f=300, total=1000, interval=10)  # docs/how_it_works.md
COMPARISONS = ("central", "replication", "random_ranks", "central_mpnet")  # studies whose claims are drawn
MEASURED = ("forgetting", "forgetting_language", "every_rank")  # the same, but the claims are about measurements
SIZE = 110  # dots per inch: small files


def panels_of(record: dict[str, Any], count: int = 4) -> list[tuple[int, dict[str, int]]]:
    """(steps done, {module: rank}) of a packed run: its start, then `count` allocations at even distances in budget."""
    allocations = allocations_of(record)
    modules: list[str] = record["modules"]
    start, end = record["config"]["init_rank"] * len(modules), allocations[-1]["kept"]
    wanted = [start - (start - end) * i / count for i in range(1, count)]
    chosen = [min(allocations, key=lambda a: abs(a["kept"] - budget)) for budget in wanted]
    fixed = next(a for a in allocations if a["ranks"] == allocations[-1]["ranks"])
    return [
        (0, dict.fromkeys(modules, record["config"]["init_rank"])),
        *((a["step"] + 1, a["ranks"]) for a in [*chosen, fixed]),
    ]


@style.styled
def rank_moves(record: dict[str, Any]) -> "style.Figure | None":
    """One heat map of all modules' ranks for each moment of `panels_of`: blocks from bottom to top, kinds from left."""
    moments = panels_of(record)
    top = max(rank for _, ranks in moments for rank in ranks.values())
    figure = style.figure(11.5, 3.3)
    panels = figure.subplots(1, len(moments), sharey=True)
    for axes, (step, ranks) in zip(panels, moments, strict=True):
        blocks, kinds, grid = rank_grid(ranks)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=top, origin="lower")
        for (y, x), rank in np.ndenumerate(grid):
            ink = style.ink(*image.cmap(image.norm(rank))[:3])
            axes.text(x, y, f"{rank:.0f}", ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(range(len(kinds)), KINDS, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(blocks)), [str(i + 1) for i in range(len(blocks))], fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(f"step {step}\n{sum(ranks.values())} triplets", fontsize=10)
    panels[0].set_ylabel("block (6 is the last)", fontsize=9)
    figure.colorbar(image, ax=panels, label="rank", shrink=0.75, pad=0.01)
    return figure


@style.styled
def three_phases(schedule: schedules.Schedule = EXAMPLE) -> "style.Figure | None":
    """The budget over training, with the three phases named and the example's numbers written next to the curve."""
    figure, axes = style.single(8.2, 3.4)
    steps = np.arange(schedule.total)
    masks = {step: schedule.budget(step) for step in schedule.allocations()}
    kept = [schedule.initial if t <= min(masks) else masks[max(m for m in masks if m < t)] for t in steps]
    axes.plot(steps, kept, color=style.COLOURS[0], linewidth=2, drawstyle="steps-post", label="triplets kept")
    top, settled = schedule.initial * 1.15, schedule.settled
    for edge in (schedule.begin, settled):
        axes.axvline(edge, color="#999999", linewidth=1, linestyle="--")
    _phase(axes, 0, schedule.begin, top, "phase 1\nwarm up")
    _phase(axes, schedule.begin, settled, top, f"phase 2\nreallocate every {schedule.interval} steps")
    _phase(axes, settled, schedule.total, top, "phase 3\nfine-tune, ranks fixed")
    for step in (200, 400):
        axes.plot(step, schedule.budget(step), "o", color=style.COLOURS[1])
        note = f"step {step}: {schedule.budget(step)} triplets"
        axes.annotate(note, (step, schedule.budget(step)), (step + 22, schedule.budget(step) + 12), fontsize=9)
    axes.set(xlabel="optimiser step", ylabel="budget (triplets)", xlim=(0, schedule.total), ylim=(0, top * 1.08))
    axes.set_yticks([0, schedule.final, schedule.initial])
    axes.set_xticks([0, schedule.begin, settled, schedule.total])
    return figure


def claims_of(study: str) -> "style.Figure | None":
    """The declared claims of a study on one task that have runs, with simultaneous intervals and the margin."""
    with tempfile.TemporaryDirectory() as folder:
        (verdicts,) = report_of(study, Path(folder)).family.verdicts
    return forest.draw(verdicts, "test accuracy", verdicts[0].margin)


def measured_claims_of(study: str) -> "style.Figure | None":
    """The declared claims about the measurements of a study on one task, drawn like those of `claims_of`."""
    declared = measures.load(RESULTS / study)
    assert declared is not None
    with tempfile.TemporaryDirectory() as folder:
        (judged,) = measures.judge(report_of(study, Path(folder)).tables, declared)
    verdicts = [verdict for _, verdict in judged.verdicts]
    return forest.draw(verdicts, judged.measure.title, verdicts[0].margin)


def learned_and_forgotten(study: str, scale: str = "linear") -> "style.Figure":
    """The metric on dev against what was forgotten, over every learning rate that the study's methods tried; scale: of
    what was forgotten."""
    with tempfile.TemporaryDirectory() as folder:
        (table,) = trials_of(study, Path(folder))
        figure = forgetting.draw(table)
    assert figure is not None
    figure.axes[0].set_xscale(scale)
    return figure


def pruning_costs(study: str = "pruning") -> "style.Figure | None":
    """What pruning by each score costs, before and after retraining, mean over the seeds of a study on one task."""
    with tempfile.TemporaryDirectory() as folder:
        (table,) = report_of(study, Path(folder)).tables
        return pruning.draw(table)


def served_ranks(study: str = "every_rank") -> "style.Figure | None":
    """The metric at every rank that one run serves, and that of a tuned run for each rank, of a study on one task."""
    with tempfile.TemporaryDirectory() as folder:
        (table,) = report_of(study, Path(folder)).tables
        return prefixes.draw(table)


def _phase(axes: "Axes", begin: int, end: int, height: float, name: str) -> None:
    axes.text((begin + end) / 2, height, name, ha="center", va="center", fontsize=9)


def screenshot(page: Path, file: Path, width: int = 1200, height: int = 1010) -> None:
    """The top of an HTML page as a PNG of 256 colours, taken by Chromium without a display."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        options += ["--disable-background-networking", "--disable-sync", f"--user-data-dir={profile}"]
        options += [f"--window-size={width},{height}", f"--screenshot={file.resolve()}", page.resolve().as_uri()]
        subprocess.run(["chromium", *options], check=True, capture_output=True, timeout=120)
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write the PNG files to")
    parser.add_argument("--report", type=Path, metavar="PAGE", help="the index.html of a report, for report.png")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"rank_moves": rank_moves(read_record(RUN)), "three_phases": three_phases()}
    figures |= {study: claims_of(study) for study in COMPARISONS}
    figures |= {study: measured_claims_of(study) for study in MEASURED}
    figures |= {"learned_and_forgotten": learned_and_forgotten("forgetting")}
    figures |= {"learned_and_forgotten_language": learned_and_forgotten("forgetting_language", "log")}
    figures |= {"pruning_costs": pruning_costs(), "served_ranks": served_ranks()}
    for name, figure in figures.items():
        assert figure is not None
        figure.savefig(folder / f"{name}.png", dpi=SIZE)
    if options.report is not None:
        screenshot(options.report, folder / "report.png")


if __name__ == "__main__":
    main()
