"""Every comparison with its interval, and the band of differences that are too small to matter."""

from collections.abc import Sequence
from typing import Any

from analysis.plots import style
from analysis.verdicts import Comparison, Verdict

STYLES: dict[str, dict[str, Any]] = {  # by the verdict's kind; not only colour but also shape and filling differ
    "better": {"color": style.COLOURS[0], "marker": "o", "label": "one is better"},
    "equivalent": {"color": style.COLOURS[2], "marker": "D", "label": "equivalent"},
    "undecided": {"color": style.COLOURS[7], "marker": "s", "markerfacecolor": "white", "label": "undecided"},
    "impossible": {"color": style.COLOURS[7], "marker": "x", "label": "cannot be decided at this n"},
}


@style.styled
def draw(verdicts: Sequence[Verdict], metric: str, margin: float | None) -> "style.Figure | None":
    """Differences with their intervals, the first on top; None unless some comparison has two pairs.

    A declared claim has its own name and the study's names of its two arms, any other comparison the label of its first
    method. The grey band is ±margin. A marker without a bar has too few pairs for an interval.
    """
    drawn = [verdict for verdict in verdicts if verdict.pairs > 1]
    if not drawn:
        return None
    from matplotlib.lines import Line2D

    names = [f"{_name(verdict.comparison)}  (n\u00a0=\u00a0{verdict.pairs})" for verdict in drawn]
    figure, axes = style.listing(names, 1.8)
    if margin:
        axes.axvspan(-margin, margin, color="#e6e6e6", zorder=0)
    axes.axvline(0, color="#444444", linewidth=1)
    styles = [STYLES[verdict.kind] for verdict in drawn]
    for y, (verdict, look) in enumerate(zip(drawn, styles, strict=True)):
        if verdict.interval is not None:
            axes.plot(verdict.interval, [y, y], color=look["color"], linewidth=1.8)
        axes.plot([verdict.difference or 0.0], [y], linestyle="none", markersize=7.5, **look)
    axes.set_xlabel(f"difference in {metric}\n(mean over pairs, and its simultaneous interval)")
    used = [look for look in STYLES.values() if look in styles]
    handles = [Line2D([], [], linestyle="none", markersize=7.5, **look) for look in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _name(comparison: Comparison) -> str:
    if not comparison.name:
        return comparison.label
    rows = comparison.rows  # a claim about a measurement has none, and the arms as labels
    arms = [row.arm for row in rows] if rows else [comparison.label, comparison.against]
    return f"{comparison.name}: {arms[0]}\u00a0− {arms[1]}" if all(arms) else comparison.name
