"""The planted changes: one line of knobs per setting, and the named groups of settings that RankBench measures.

    network,ranks=8x3,noise=0.1       three modules hold a planted change of rank 8
    minilm_l6,ranks=16x2+8x4,depth=late

The first word is the base: `linear`, `network`, or a text model of conf/model with pretrained weights.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from adarank.errors import SettingError, number

DEPTHS = ("any", "early", "late")
NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {  # {knob: (the valid values in words, and as a test)}
    "strength": ("a number above 0", lambda value: value > 0),
    "decay": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "noise": ("a number of at least 0", lambda value: value >= 0),
}


@dataclass(frozen=True)
class Scale:
    """The size of a run on one kind of base. rates: the learning rates that every case tries first, a constant factor
    apart; tuning: the number of seeds that choose between them, on rows that enter no result; seeds: how many then run,
    unless --seeds says otherwise."""

    rows: int
    batch: int
    steps: int
    rates: tuple[float, ...]
    tuning: int
    seeds: int


SMALL = Scale(rows=1024, batch=64, steps=200, rates=(1e-2, 2.5e-2, 6.25e-2, 1.5625e-1), tuning=3, seeds=10)
ENCODER = Scale(rows=1024, batch=8, steps=240, rates=(1e-3, 2.5e-3, 6.25e-3, 1.5625e-2), tuning=1, seeds=5)
DECODER = Scale(rows=512, batch=8, steps=60, rates=(1e-3, 2.5e-3, 6.25e-3), tuning=1, seeds=3)
SCALES = {"linear": SMALL, "network": SMALL, "smollm2_135m": DECODER}  # of other bases: ENCODER


@dataclass(frozen=True)
class Setting:
    """ranks: of the planted changes, one per planted module, which each seed draws. strength: the largest singular
    value of a planted change, divided by the root mean square of those of the base's weight. decay: the ratio of each
    singular value to the previous one. noise: standard deviation of the label noise, divided by the root mean square of
    the planted changes' effect on the outputs. depth: the half of the modules that contains the planted ones, early or
    late; any: all modules."""

    base: str
    ranks: tuple[int, ...]
    strength: float = 1.0
    decay: float = 1.0
    noise: float = 0.0
    depth: str = "any"

    @property
    def planted(self) -> int:
        """The number of planted triplets."""
        return sum(self.ranks)

    @property
    def scale(self) -> Scale:
        return SCALES.get(self.base, ENCODER)

    @property
    def name(self) -> str:
        """The setting as `parse` reads it, without the knobs at their defaults."""
        counts = [f"{rank}x{self.ranks.count(rank)}" for rank in dict.fromkeys(self.ranks)]
        numbers = [
            f"{f.name}={getattr(self, f.name):g}"
            for f in fields(self)
            if f.name in NUMBERS and getattr(self, f.name) != f.default
        ]
        depth = [f"depth={self.depth}"] if self.depth != "any" else []
        return ",".join([self.base, f"ranks={'+'.join(counts)}", *numbers, *depth])


def parse(text: str) -> Setting:
    """The setting in one line of knobs. Raises SettingError for an invalid one.

    >>> parse("network,ranks=4x2+2,noise=0.1").ranks
    (4, 4, 2)
    """
    base, *knobs = text.split(",")
    given = dict(knob.partition("=")[::2] for knob in knobs)
    known = [f.name for f in fields(Setting) if f.name != "base"]
    if unknown := [key for key in given if key not in known]:
        raise SettingError(f"--setting knobs must be among {', '.join(known)} (got {unknown[0]})")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?(\+[1-9]\d*(x[1-9]\d*)?)*", given.get("ranks", "")):
        raise SettingError(
            f"--setting must be one of {', '.join(GROUPS)}, or a base with ranks, such as network,ranks=8x3 (got "
            f"{text})"
        )
    ranks: list[int] = []
    for part in given.pop("ranks").split("+"):
        rank, _, times = part.partition("x")
        ranks += [int(rank)] * int(times or 1)
    depth = given.pop("depth", "any")
    if depth not in DEPTHS:
        raise SettingError(f"depth must be one of {', '.join(DEPTHS)} (got {depth})")
    numbers = {key: _number(key, value) for key, value in given.items()}
    return Setting(base, tuple(sorted(ranks, reverse=True)), depth=depth, **numbers)


def _number(knob: str, text: str) -> float:
    try:
        value: Any = float(text)
    except ValueError:
        value = text
    return float(number(knob, value, *NUMBERS[knob]))


@dataclass(frozen=True)
class Group:
    """Settings that belong together. budgets: in multiples of the planted number of triplets; cases: the default
    cases, "all" for every method, "scores" for AdaLoRA with every score, "controls" for every method that allocates
    with the same rank everywhere."""

    settings: Sequence[str]
    budgets: Sequence[float]
    cases: Sequence[str]


NOISES, SPREADS = (0.1, 1.0), (12, 6, 3, 1)  # of the phase diagram: label noise, and number of planted modules of 12
DIAGRAM = ("phase", "encoder")  # the groups that the phase diagram shows
CONTROLS = ("adalora", "adalora, allocator=uniform")
GROUPS = {
    "planted": Group(["network,ranks=8x2+4x2"], [1], ["all", "scores", "controls"]),
    "linear": Group(["linear,ranks=8x3,decay=0.8,noise=0.1"], [1], ["all", "controls"]),
    "even": Group(["network,ranks=2x12,noise=0.1"], [1], ["all", "controls"]),
    "phase": Group(
        [f"network,ranks={24 // k}x{k},noise={n:g}" for n in NOISES for k in SPREADS], [0.5, 1, 2, 4], CONTROLS
    ),
    "start": Group(
        [f"network,ranks={24 // k}x{k},noise=0.1" for k in SPREADS],
        [1],
        [f"adalora, init_rank={start}{control}" for start in (3, 6) for control in ("", ", allocator=uniform")],
    ),
    "strength": Group(
        [f"network,ranks={24 // k}x{k},strength={s:g},noise=0.1" for s in (0.3, 3) for k in SPREADS], [1, 2], CONTROLS
    ),
    "depth": Group(
        [f"network,ranks={24 // k}x{k},noise=0.1,depth={d}" for d in ("early", "late") for k in (6, 3, 1)],
        [1, 2],
        CONTROLS,
    ),
    "encoder": Group([f"minilm_l6,ranks={72 // k}x{k},noise=0.1" for k in (36, 9, 3)], [0.5, 1, 2], CONTROLS),
    "decoder": Group(["smollm2_135m,ranks=20x21,noise=0.1"], [1], CONTROLS),
}
