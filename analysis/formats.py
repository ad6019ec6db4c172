"""Formats numbers identically for the terminal, the page and the pictures. A missing one is BLANK, never 'nan'."""

BLANK = "–"


def count(value: float | None) -> str:
    """A number of parameters or triplets: 22,713,986."""
    return BLANK if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count for an axis: 950, 12k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def metric(value: float | None, sign: str = "") -> str:
    """A metric's value, with four decimals below 10; sign="+" also writes the plus."""
    if value is None:
        return BLANK
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign},.2f}"


def interval(mean: float, half_width: float | None) -> str:
    """0.7810 ± 0.0112, or the mean and the remark that one seed gives no interval."""
    return f"{metric(mean)} (no interval)" if half_width is None else f"{metric(mean)} ± {metric(half_width)}"


def rank(value: float | None) -> str:
    """A mean rank: 8, 7.97."""
    return BLANK if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def ranks(initial: float | None, final: float | None) -> str:
    """The mean rank from creation to the end, `12 → 8`, or one number if it did not change."""
    if initial is None or rank(initial) == rank(final):
        return rank(final)
    return f"{rank(initial)} → {rank(final)}"


def significant(value: float | None) -> str:
    """Three significant digits, whole numbers from 100 on: 0.52, 48.1, 1,412."""
    if value is None:
        return BLANK
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float | None) -> str:
    """1.24×"""
    return BLANK if value is None else f"{value:.2f}×"


def probability(value: float) -> str:
    """A p value: 0.031 or < 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3g}"


def span(interval: tuple[float, float] | None) -> str:
    """An interval: [-0.0012, +0.0100]."""
    return BLANK if interval is None else f"[{metric(interval[0], '+')}, {metric(interval[1], '+')}]"


def percent(value: float) -> str:
    """95%, 99.17%"""
    return f"{100 * value:.4g}%"


def share(found: tuple[float, float, float] | None) -> str:
    """A share with its interval: 0.80 [0.38, 0.96]."""
    return BLANK if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def as_number(value: str | None) -> float | None:
    """The number that a setting's text denotes, or None if it denotes none."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
