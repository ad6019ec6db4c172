"""Every comparison with its interval, beside what would be too small to matter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.plots import style
from analysis.plots.names import broken, row_height
from analysis.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS: dict[str, dict[str, Any]] = {  # by the verdict's last word: shape and filling tell them apart without colour
    "better": {"color": style.COLOURS[0], "marker": "o", "label": "one is better"},
    "equivalent": {"color": style.COLOURS[2], "marker": "D", "label": "equivalent"},
    "pairs": {"color": style.COLOURS[7], "marker": "s", "markerfacecolor": "white", "label": "cannot be decided"},
}


def draw(verdicts: Sequence[Verdict], metric: str, margin: float | None) -> "Figure | None":
    """Differences with their BCa intervals, the first on top; None without two pairs of anything.

    The grey band is ±margin. A mark without a bar has too few pairs for a bootstrap interval.
    """
    shown = [verdict for verdict in verdicts if verdict.pairs > 1]
    if not shown:
        return None
    import matplotlib
    from matplotlib.lines import Line2D

    with matplotlib.rc_context(style.RC):
        names = [f"{verdict.comparison.label}  (n\u00a0=\u00a0{verdict.pairs})" for verdict in shown]
        figure = style.figure(8.5, 1.8 + row_height(names) * len(shown))
        axes = figure.subplots()
        if margin:
            axes.axvspan(-margin, margin, color="#e6e6e6", zorder=0)
        axes.axvline(0, color="#444444", linewidth=1)
        looks = [LOOKS[verdict.text.split()[-1]] for verdict in shown]
        for y, (verdict, look) in enumerate(zip(shown, looks, strict=True)):
            if verdict.interval is not None:
                axes.plot(verdict.interval, [y, y], color=look["color"], linewidth=1.8)
            axes.plot([verdict.difference or 0.0], [y], linestyle="none", markersize=7.5, **look)
        axes.set_yticks(range(len(shown)), list(map(broken, names)))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"difference to LoRA in {metric}\n(mean over pairs and 95% BCa interval)")
        used = [look for look in LOOKS.values() if look in looks]
        handles = [Line2D([], [], linestyle="none", markersize=7.5, **look) for look in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
