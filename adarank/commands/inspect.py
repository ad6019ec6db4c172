"""adarank inspect: shows the ranks, parameters and spectrum of an adapter from its folder alone."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from adarank.adapters.lowrank import START, original_change, singular_triplets
from adarank.adapters.parametrisation import find, lookup
from adarank.adapters.saving import parts_of
from adarank.adapters.spectrum import effective_rank, stable_rank
from adarank.commands.folder import Opened, open_folder

BARS = "▁▂▃▄▅▆▇█"  # one bar per singular value, up to 32, in proportion to the largest
HEADINGS = ("module", "rank", "parameters", "‖ΔW‖", "σ max", "σ min", "effective", "stable", "spectrum")


def report(folder: Path) -> str:
    """The table to print."""
    opened = open_folder(folder)
    modules, trained = opened.description["modules"], opened.description["trained"]
    parts = [_heading(opened)]
    parametrisation = lookup(opened.description["kind"])
    if parametrisation is not None:
        rows = [_row(opened, name) for name in modules]
        ranks = [info["rank"] for info in modules.values()]
        parts.append(_table([HEADINGS, *rows]))
        mean = sum(ranks) / max(1, len(ranks))
        parts.append(
            f"{len(ranks)} modules, {ranks.count(0)} of rank 0, mean rank {mean:.2f}, "
            f"{sum(map(_parameters, [opened] * len(modules), modules)):,} parameters"
        )
        if not parametrisation.is_plain:
            parts.append("‖ΔW‖ and the spectrum describe the triplets, without the adapter's other trained parameters")
    elif modules:
        rows = [(n, str(info["width"]), f"{_parameters(opened, n):,}") for n, info in modules.items()]
        parts.append(_table([("module", "width", "parameters"), *rows]))
    if trained:
        count = sum(opened.tensors[name].numel() for name in trained)
        names = opened.description.get("whole") or sorted(trained)
        parts.append(f"also trained: {', '.join(names[:8])}{', …' * (len(names) > 8)} ({count:,} parameters)")
    return "\n".join(parts)


def spectrum(opened: Opened, name: str) -> Tensor:
    """The singular values of a module's weight change that exceed rounding error, in descending order."""
    parametrisation = find(opened.description["kind"])
    Q, lam = (opened.tensors[f"{name}.{part}"] for part in ("Q", "lam"))
    P = parametrisation.low_rank_P(opened.tensors, name)
    start = (opened.tensors.get(f"{name}.{part}") for part in START)
    change = original_change(opened.description["modules"][name]["scale"], Q, lam, P, *start)
    _, sigma, _ = singular_triplets(*(part.double() for part in change))
    return sigma[sigma > 1e-7 * sigma.max()] if len(sigma) else sigma


def _row(opened: Opened, name: str) -> tuple[str, ...]:
    sigma = spectrum(opened, name)
    rank, count = str(opened.description["modules"][name]["rank"]), f"{_parameters(opened, name):,}"
    if not len(sigma):
        return (name, rank, count, *["0"] * 5, "")
    sizes = (float(sigma.norm()), float(sigma.max()), float(sigma.min()))
    measures = (f"{effective_rank(sigma):.2f}", f"{stable_rank(sigma):.2f}")
    bars = "".join(BARS[min(7, int(8 * float(s / sigma[0])))] for s in sigma[:32]) + "…" * (len(sigma) > 32)
    return (name, rank, count, *(f"{size:.4g}" for size in sizes), *measures, bars)


def _parameters(opened: Opened, name: str) -> int:
    """The number of trained parameters of one module."""
    kind = opened.description["kind"]
    parametrisation = lookup(kind)
    constant: tuple[str, ...] = ("lam",) if parametrisation is not None and not parametrisation.learns_lambda else ()
    constant += ("Q", "P") if parametrisation is not None and parametrisation.shared is not None else ()
    parts = set(parts_of(opened.description["modules"][name], kind)) - {*START, *constant}
    return sum(opened.tensors[f"{name}.{part}"].numel() for part in parts)


def _heading(opened: Opened) -> str:
    """A line about how the adapter was trained, as far as its folder records it."""
    summary, base = opened.summary, opened.description.get("base") or {}
    words = [f"{'PEFT' if opened.peft else 'adarank'} adapter, kind {opened.description['kind']}"]
    scales = sorted({f"{i['scale']:.4g}" for i in opened.description["modules"].values() if "scale" in i})
    words += [f"scale {', '.join(scales)}"] if 0 < len(scales) <= 4 else []
    words += [f"base {' '.join(filter(None, (base.get('class'), base.get('name'))))}"] if any(base.values()) else []
    if summary:
        metric = summary.get("metric") or {}
        value = metric.get("test") if metric.get("test") is not None else metric.get("last")
        keys = ("method", "model", "task", "targets", "seed", "steps")
        words.append("trained by " + ", ".join(f"{key}={summary[key]}" for key in keys if key in summary))
        words += [f"{metric.get('name')} {value:.4f}"] if isinstance(value, float) else []
    return "; ".join(words)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Align the columns: the first one and the spectrum to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {0, HEADINGS.index("spectrum")}
    lines = [
        "  ".join(f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
