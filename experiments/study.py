"""A study: the checked content of a YAML file in experiments/studies/, and the settings that it gives each run.

docs/protocol.md describes its parts; experiments/protocol.py runs it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from adarank.errors import SettingError
from analysis.claims import CHECKPOINTS, Claims, ClaimsError, arm_name
from analysis.claims import read as read_claims
from experiments import measure, schema
from experiments.measure import Measurement

Settings = Mapping[str, Any]
# What Hydra takes for the same text without quotes: words and plain paths, but neither numbers nor null, true, …
UNQUOTED = re.compile(r"(?!(?:null|true|false|inf|nan)$)[a-z_/][\w/.-]*", re.ASCII | re.IGNORECASE)

FOLDER = re.compile(r"\w[\w.-]*")

# The kinds of a study's parts, and those of a method and a task besides settings.
REQUIRED = {
    "settings": schema.SETTINGS,
    "tasks": schema.PARTS,
    "budgets": schema.wholes(1),
    "methods": schema.PARTS,
    "tuning": schema.wholes(0),
    "seeds": schema.wholes(0),
}
OPTIONAL = {
    "claims": schema.ANY,
    "checkpoint": schema.one_of(*CHECKPOINTS),
    "rates_per": schema.one_of("cell", "method"),
    "extend": schema.whole(0),
    "edge": schema.one_of("refuse", "accept"),
    "probe": schema.ANY,
}
METHOD = {
    "rates": schema.RATES,
    "tuned_as": schema.TEXT,
    "map_of": schema.TEXT,
    "times": schema.POSITIVE,
    "ranked": schema.FLAG,
    "adaptive": schema.FLAG,
}
TASK = {"adaptive": schema.SETTINGS, "rates": schema.SETTINGS}


@dataclass(frozen=True)
class Study:
    """settings: of every run; tasks, methods: by name, as in experiments/studies/; budgets: values of rank; tuning and
    seeds: of the trials and of the comparison, without overlap.

    claims: the claims that the study will judge (None: it declares none); checkpoint: the one whose metric chooses the
    rates and is judged; rates_per: "cell" (a method at a budget) or "method"; extend: by how many steps a grid of rates
    may grow if the best rate lies at its edge; edge: whether a rate that stays there is refused ("refuse" or
    "accept"); probe: measurements of its runs beyond their metric."""

    settings: Settings
    tasks: Mapping[str, Settings]
    budgets: Sequence[int]
    methods: Mapping[str, Settings]
    tuning: Sequence[int]
    seeds: Sequence[int]
    claims: Claims | None = None
    checkpoint: str = "last"
    rates_per: str = "method"
    extend: int = 0
    edge: str = "accept"
    probe: Measurement | None = None
    name: str = ""


class Cell(NamedTuple):
    """A method at one of its budgets, None for a method without budgets."""

    method: str
    budget: int | None

    @property
    def arm(self) -> str:
        return arm_name(*self)


def load(path: Path) -> Study:
    """The checked study in a YAML file. Raises SettingError if there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingError(f"study must be a YAML file as in experiments/studies (got {path}: {reason})") from None
    return read(content, path.stem)


def read(content: Any, name: str = "") -> Study:
    """The checked study. Raises SettingError if a part is missing, unknown or of the wrong kind, methods differ in
    their number of rates, seeds are used twice, or the claims cannot be judged."""
    schema.check("the study", content, REQUIRED, OPTIONAL)
    for part, optional in (("methods", METHOD), ("tasks", TASK)):
        for each, about in content[part].items():
            schema.check(f"{part}.{each}", about, {"settings": schema.SETTINGS}, optional, of=f"{part}.{each}.")
            if not FOLDER.fullmatch(each):
                raise SettingError(f"{part} must have names that can be folders: letters, digits, _ . - (got {each!r})")
    declares = content.get("claims") is not None
    stricter = {"rates_per": "cell", "extend": 2, "edge": "refuse"} if declares else {}
    seeds = sorted(content["seeds"])  # a look and the report take the first of them
    study = Study(**{**stricter, **content, "seeds": seeds, "claims": None, "probe": None}, name=name)
    _check_rates(study)
    _check_seeds(study)
    if (probe := content.get("probe")) is not None:
        arms = [cell.arm for cell in cells(study)]
        study = replace(study, probe=measure.read(probe, study.tasks, arms, len(study.seeds)))
    return _with_claims(study, content["claims"], "checkpoint" in content) if declares else study


def _check_rates(study: Study) -> None:
    """Raise SettingError unless every method has rates or names one that has, a task's grids are equally long, and
    every map has the budgets of its source."""
    for name, method in study.methods.items():
        if ("rates" in method) == ("tuned_as" in method):
            raise SettingError(f"methods.{name} must have either rates or tuned_as, the method whose rate it takes")
    tuned = [name for name, method in study.methods.items() if "rates" in method]
    for task, about in study.tasks.items():
        schema.check(
            f"tasks.{task}.rates",
            about.get("rates", {}),
            {},
            dict.fromkeys(tuned, schema.RATES),
            f"tasks.{task}.rates.",
        )
        counts = {name: len(rates_of(study, task, name)) for name in tuned}
        if len(set(counts.values())) > 1:
            raise SettingError(f"every method must have the same number of rates for {task} (got {counts})")
        if study.extend and (short := [name for name, count in counts.items() if count < 2]):
            raise SettingError(
                f"methods.{short[0]}.rates must have at least two rates, so that its grid can be extended"
            )
    for name, method in study.methods.items():
        sources = [method[key] for key in ("tuned_as", "map_of") if key in method]
        if absent := [source for source in sources if source not in tuned]:
            raise SettingError(f"methods.{name} must refer to one of {', '.join(tuned)} (got {absent[0]})")
        if "map_of" in method and "rates" in method:
            raise SettingError(f"methods.{name} must have tuned_as, since its map does not exist before the trials")
        if "map_of" in method and budgets_of(study, name) != budgets_of(study, method["map_of"]):
            raise SettingError(f"methods.{name}.map_of must be a method with its budgets (got {method['map_of']})")


def _check_seeds(study: Study) -> None:
    if both := set(study.tuning) & set(study.seeds):
        raise SettingError(f"tuning must have seeds that no comparison uses (got {sorted(both)} in both)")
    if study.rates_per == "method" and len(study.tuning) < len(study.budgets):
        raise SettingError(f"tuning must have at least one seed for each budget (got {list(study.tuning)})")


def _with_claims(study: Study, content: Any, named: bool) -> Study:
    """The study with its claims, which state its seeds and checkpoint. named: the study itself names a checkpoint."""
    own: dict[str, Any] = {"seeds": len(study.seeds)}
    if named or not isinstance(content, Mapping) or "checkpoint" not in content:
        own["checkpoint"] = study.checkpoint
    if isinstance(content, Mapping):
        for part, value in own.items():
            if content.get(part, value) != value:
                raise SettingError(f"claims.{part} must agree with the study's, {value} (got {content[part]})")
        content = {**content, **own}
    try:
        claims = read_claims(content, study.tasks, [cell.arm for cell in cells(study)])
    except ClaimsError as error:
        raise SettingError(str(error)) from None
    return replace(study, claims=claims, checkpoint=claims.checkpoint)


def budgets_of(study: Study, method: str) -> Sequence[int | None]:
    return study.budgets if study.methods[method].get("ranked", True) else [None]


def cells(study: Study) -> list[Cell]:
    """Every method at each of its budgets, in the order of the study."""
    return [Cell(method, budget) for method in study.methods for budget in budgets_of(study, method)]


def rates_of(study: Study, task: str, method: str) -> list[float]:
    """The method's grid of learning rates; the task's own if it has one."""
    return list(study.tasks[task].get("rates", {}).get(method, study.methods[method]["rates"]))


def trials(study: Study, method: str) -> Iterator[tuple[int | None, list[int]]]:
    """(budget, seeds) of a method's trials at one rate: every tuning seed at every budget, if each budget chooses its
    own rate; if the method has one rate for all budgets, every seed once, with the budgets in turn."""
    budgets = budgets_of(study, method)
    for i, budget in enumerate(budgets):
        yield budget, list(study.tuning if study.rates_per == "cell" else study.tuning[i :: len(budgets)])


def tuned_cell(study: Study, cell: Cell) -> Cell:
    """The cell whose trials choose the rate of a method at a budget: its own, or that of the method it is tuned as."""
    source = study.methods[cell.method].get("tuned_as", cell.method)
    budgets = budgets_of(study, source)
    return Cell(source, cell.budget if cell.budget in budgets else budgets[0])


def tuned_as(study: Study, cell: Cell) -> str:
    """The name under which the rate of a method at a budget is chosen: an arm, or a method."""
    source = tuned_cell(study, cell)
    return source.arm if study.rates_per == "cell" else source.method


def rank_of(study: Study, cell: Cell) -> int | None:
    """The setting `rank` of a method at a budget."""
    return None if cell.budget is None else round(cell.budget * study.methods[cell.method].get("times", 1))


def settings_of(study: Study, task: str, cell: Cell) -> dict[str, Any]:
    """The settings of a method at a budget except rate, seed and folder; a rank map takes its rank from its source. A
    method's own settings override the task's, whose `adaptive` settings apply to the methods marked adaptive."""
    about, of_task = study.methods[cell.method], study.tasks[task]
    adaptive = of_task.get("adaptive", {}) if about.get("adaptive") else {}
    ranked = {} if cell.budget is None or "map_of" in about else {"rank": rank_of(study, cell)}
    return {**study.settings, **of_task["settings"], **adaptive, **ranked, **about["settings"], "arm": cell.arm}


def with_map(study: Study, name: str, source: Path, seed: int) -> Study:
    """The study whose method `name` takes its ranks from the run folder `source`. seed: of a shuffle of the ranks."""
    about = study.methods[name]["settings"]
    draws = {"ranks_shuffle_seed": seed} if about.get("ranks_shuffle", "none") != "none" else {}
    settings = {**about, "ranks_from": str(source), **draws}
    return replace(study, methods={**study.methods, name: {**study.methods[name], "settings": settings}})


def words(settings: Settings) -> list[str]:
    """Overrides for run.py; strings are quoted for Hydra if necessary."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not UNQUOTED.fullmatch(value):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)
