"""The phase diagram: the held-out loss of an adaptive method relative to uniform ranks, over inequality × budget."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.plots import style
from experiments.rankbench.measure import ORACLE, UNIFORM, mean_rank
from experiments.rankbench.read import Ratio, compare, control_of, losses, own_map
from experiments.rankbench.settings import DIAGRAM, GROUPS, NOISES, parse

LIMIT = 6.0  # of the colour scale, in powers of two


class Panel(NamedTuple):
    """One contrast on one base at one noise level. budgets, spreads: the columns and the rows, of which the first
    has all modules planted; cells: {(budget, planted modules): ratio}."""

    title: str
    base: str
    budgets: Sequence[float]
    spreads: Sequence[int]
    noise: float
    cells: dict[tuple[float, int], Ratio]


def panels(record: Mapping[str, Any], method: str = "adalora") -> list[Panel]:
    """Four contrasts on every base at every noise level: the method against itself with uniform ranks, if it has such
    a control; and against uniform LoRA: the method, LoRA with the method's final map, and LoRA with the planted map."""
    found = []
    for group, noise in itertools.product(DIAGRAM, NOISES):
        settings = {name: parse(name) for name in GROUPS[group].settings}
        base = next(setting.base for setting in settings.values())
        spreads = sorted({len(setting.ranks) for setting in settings.values()}, reverse=True)
        contrasts: list[tuple[str, dict[tuple[float, int], Ratio]]] = [
            (f"{method} ÷ {method} with uniform ranks", {}),
            (f"{method} ÷ uniform LoRA", {}),
            (f"LoRA with {method}'s final map ÷ uniform LoRA", {}),
            ("LoRA with the planted map ÷ uniform LoRA", {}),
        ]
        for name, setting in settings.items():
            if setting.noise != noise or name not in record["settings"]:
                continue
            for budget in GROUPS[group].budgets:
                cells = record["settings"][name]["cells"].get(str(mean_rank(setting, budget, spreads[0])), {})
                if method not in cells or UNIFORM not in cells:
                    continue
                uniform = losses(cells[UNIFORM])
                pairs = (
                    (losses(cells[method]), losses(cells.get(control_of(method)))),
                    (losses(cells[method]), uniform),
                    (own_map(cells, method), uniform),
                    (losses(cells.get(ORACLE)), uniform),
                )
                for (_, into), (ours, others) in zip(contrasts, pairs, strict=True):
                    if (ratio := compare(ours, others)) is not None:
                        into[budget, len(setting.ranks)] = ratio
        found += [
            Panel(title, base, GROUPS[group].budgets, spreads, noise, cells) for title, cells in contrasts if cells
        ]
    return found


@style.styled
def draw(record: Mapping[str, Any], method: str = "adalora") -> "style.Figure | None":
    """The diagram of a method; None if none of its cells was measured."""
    shown = panels(record, method)
    if not shown:
        return None
    rows = {(panel.base, panel.noise) for panel in shown}
    figure, axes = style.panels(len(shown), 3.6, 3.1, across=len(shown) // len(rows))
    image: Any = None
    for axis, panel in zip(axes, shown, strict=True):
        grid = np.full((len(panel.spreads), len(panel.budgets)), np.nan)
        for (budget, modules), ratio in panel.cells.items():
            grid[panel.spreads.index(modules), panel.budgets.index(budget)] = math.log2(ratio.mean)
        axis.grid(visible=False)
        image = axis.imshow(grid, cmap="PuOr_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
        for (budget, modules), ratio in panel.cells.items():
            y, x = panel.spreads.index(modules), panel.budgets.index(budget)
            decided = ratio.verdict in ("better", "worse")
            colour = style.ink(*image.cmap(image.norm(grid[y, x]))[:3])
            axis.text(x, y, label(ratio), ha="center", va="center", color=colour, fontsize=10,
                      fontweight="bold" if decided else "normal")  # fmt: skip
        axis.set_xticks(range(len(panel.budgets)), [f"{budget:g}×" for budget in panel.budgets])
        axis.set_yticks(range(len(panel.spreads)), [f"{n} of {panel.spreads[0]}" for n in panel.spreads])
        axis.set(xlabel="budget ÷ planted triplets", ylabel="modules with planted rank")
        axis.set_title(style.wrapped(f"{panel.title}, {panel.base}, noise {panel.noise:g}", 34), fontsize=10)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="log2 of the ratio of held-out losses", shrink=0.6)
    figure.suptitle(
        "Ratios of held-out losses: below 1 (violet) the first is better. Bold: beyond the "
        "margin of 10 %; ?: undecided",
        fontsize=11,
    )
    return figure


def label(ratio: Ratio) -> str:
    """The ratio in a cell of the diagram, with a question mark if its interval decides nothing."""
    number = f"{ratio.mean:.2g}" if ratio.mean >= 0.01 else f"{ratio.mean:.0e}".replace("e-0", "e-")
    return f"{number}?" if ratio.verdict == "undecided" else number
