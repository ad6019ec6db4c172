"""The claims that a study declares before it is run: which differences it judges, on which tasks and budgets, and by
which margins.

`claims.json` in the folder of a study's results holds the claims, their hash and the time of their declaration, which
experiments/protocol.py writes before the first run of the comparison. If claims change later, the file keeps the
earlier ones.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from adarank.runs.files import read_json, read_object, write_json

FILE = "claims.json"
LOOKS = "looks.json"
RATES = "rates.json"  # for all tasks, next to the runs of the comparison
ASSAY = "assay"  # the name of the assay in looks.json, which no contrast may have
FAMILIES = ("page", "table")
CHECKPOINTS = ("last", "best")


class ClaimsError(ValueError):
    """Claims that cannot be used; the message is one sentence."""


class Claim(NamedTuple):
    """One difference to be judged: a contrast on one task at one budget (None: neither method has budgets)."""

    contrast: "Contrast"
    task: str
    rank: int | None
    margin: float

    @property
    def name(self) -> str:
        """The contrast's name, with the budget if the contrast has several."""
        several = len(self.contrast.ranks or ()) > 1
        return f"{self.contrast.name}, r = {self.rank}" if several else self.contrast.name

    def arms(self, known: Collection[str]) -> tuple[str, str]:
        """The two arms to compare, of and against; known: every arm, which shows which methods have budgets."""
        of, against = (arm_at(method, self.rank, known) for method in (self.contrast.of, self.contrast.against))
        return of, against


@dataclass(frozen=True)
class Contrast:
    """of − against: two methods of the study, on `tasks`, at each budget of `ranks` (None: neither has budgets)."""

    name: str
    of: str
    against: str
    tasks: tuple[str, ...]
    ranks: tuple[int, ...] | None


@dataclass(frozen=True)
class Assay:
    """Two arms (`method@budget`, or the name of a method without budgets) whose difference every task must show."""

    of: str
    against: str


@dataclass(frozen=True)
class Claims:
    """seeds: the planned number for each arm; margins: {task: the largest difference without practical meaning}, in the
    unit of its metric; looks: the numbers of seeds at which the claims are judged before all seeds have run; family:
    whether a claim is corrected together with all others (page) or with those of its task (table); metrics: {task:
    name}."""

    contrasts: tuple[Contrast, ...]
    assay: Assay
    margins: Mapping[str, float]
    seeds: int
    alpha: float = 0.05
    family: str = "page"
    checkpoint: str = "last"
    looks: tuple[int, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def each(self) -> list[Claim]:
        """Every claim, in the order of contrasts, tasks and budgets."""
        return [
            Claim(contrast, task, rank, self.margins[task])
            for contrast in self.contrasts
            for task in contrast.tasks
            for rank in contrast.ranks or (None,)
        ]

    def level(self, task: str) -> float:
        """alpha divided by the number of claims that are corrected together with one on `task` (Bonferroni)."""
        return self.alpha / sum(self.family == "page" or claim.task == task for claim in self.each)

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of seeds at which the claims are judged; the last is the planned one."""
        return (*(look for look in self.looks if look < self.seeds), self.seeds)


class Change(NamedTuple):
    """An earlier version of the claims; runs: finished runs of the comparison when it was replaced."""

    hash: str
    declared: str
    claims: Claims
    runs: int


@dataclass(frozen=True)
class Declared:
    """The claims of a study, as declared in its results. declared: an ISO time; changes: earlier versions, oldest
    first."""

    study: str
    hash: str
    declared: str
    claims: Claims
    changes: tuple[Change, ...] = ()


class Look(NamedTuple):
    """The last look at a claim: the number of seeds it was judged on, and the level of its test."""

    seeds: int
    level: float


def read_looks(folder: Path, declared: Declared) -> dict[tuple[str, str, str], Look]:
    """{(task, of, against): its last look} from a folder's looks.json, (task, ASSAY, ASSAY) for the assay; empty if
    there is none under these claims. Raises ClaimsError if it is damaged."""
    content, fault = read_object(folder / LOOKS)
    try:
        if fault:
            raise ValueError
        tasks = content["tasks"] if content.get("hash") == declared.hash else {}
        return {
            (task, *((ASSAY, ASSAY) if row.get("name") == ASSAY else (row["of"], row["against"]))): Look(
                int(row["seeds"]), float(row["level"])
            )
            for task, looks in tasks.items()
            for look in looks
            for row in look["claims"]
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ClaimsError(f"{folder / LOOKS} cannot be used: it is not a looks file; restore it") from None


def arm_name(method: str, rank: int | None) -> str:
    """The name of a method at a budget in a run's summary.json."""
    return method if rank is None else f"{method}@{rank}"


def arm_at(method: str, rank: int | None, known: Collection[str]) -> str:
    """The arm of a method at a budget, among all `known` arms; a method without budgets is the same arm at each."""
    named = arm_name(method, rank)
    return named if named in known or method not in known else method


def read(content: Any, tasks: Iterable[str] | None = None, arms: Iterable[str] | None = None) -> Claims:
    """The checked claims. tasks, arms: all those of the study; if they are given, a contrast that names no tasks or
    budgets covers all tasks and all budgets that its methods share. Raises ClaimsError."""
    parts = {each.name for each in fields(Claims)}
    required = {"contrasts", "assay", "margins", "seeds"}
    content = _mapping(content, "claims", parts, required)
    seeds = _whole(content["seeds"], "claims.seeds", 2)
    named = content["contrasts"]
    if not isinstance(named, Sequence) or isinstance(named, str) or not named:
        raise ClaimsError(f"claims.contrasts must be a list of at least one contrast (got {named})")
    tasks, arms = (None if known is None else tuple(known) for known in (tasks, arms))
    contrasts = tuple(_contrast(one, f"claims.contrasts[{i}]", tasks, arms) for i, one in enumerate(named))
    assay = _mapping(content["assay"], "claims.assay", {"of", "against"}, {"of", "against"})
    for side, arm in assay.items():
        if arms is not None and arm not in arms:
            raise ClaimsError(f"claims.assay.{side} must be an arm of the study: {', '.join(arms)} (got {arm})")
    _differ(assay, "claims.assay")
    compared = list(dict.fromkeys(task for contrast in contrasts for task in contrast.tasks))
    margins = _mapping(content["margins"], "claims.margins", set(compared), set(compared))
    metrics = _mapping(content.get("metrics") or {}, "claims.metrics", set(compared))
    looks = content.get("looks") or ()
    if not isinstance(looks, Sequence) or isinstance(looks, str):
        raise ClaimsError(f"claims.looks must be a list of numbers of seeds (got {looks})")
    claims = Claims(
        contrasts,
        Assay(**assay),
        {task: _between(margins[task], f"claims.margins.{task}", 0, math.inf) for task in compared},
        seeds,
        _between(content.get("alpha", 0.05), "claims.alpha", 0, 0.5),
        _one_of(content.get("family", "page"), "claims.family", FAMILIES),
        _one_of(content.get("checkpoint", "last"), "claims.checkpoint", CHECKPOINTS),
        tuple(_whole(look, "claims.looks", 2) for look in looks),
        {task: _text(metrics[task], f"claims.metrics.{task}") for task in compared if task in metrics},
    )
    if list(claims.looks) != sorted(set(claims.looks)) or any(look > seeds for look in claims.looks):
        raise ClaimsError(f"claims.looks must rise and end at or below the {seeds} planned seeds (got {list(looks)})")
    names = [contrast.name for contrast in contrasts]
    _once("claims.contrasts must have different names", names)
    if ASSAY in names:
        raise ClaimsError(f"claims.contrasts must have names other than that of the assay (got {ASSAY})")
    compares = [" and ".join(sorted((c.contrast.of, c.contrast.against))) for c in claims.each]
    stated = [f"{pair} on {c.task}, budget {c.rank}" for pair, c in zip(compares, claims.each, strict=True)]
    _once("claims.contrasts must state each comparison once", stated)
    return claims


def digest(claims: Claims) -> str:
    """SHA-256 of the claims as canonical JSON, in hexadecimal."""
    text = json.dumps(_plain(claims), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: Path, name: str = FILE) -> Declared | None:
    """The claims in a folder's file `name`; None if there is no such file. Raises ClaimsError if it is damaged or
    was edited by hand."""
    path = folder / name
    try:
        content = read_json(path)
        versions = [(entry, read(entry["claims"])) for entry in (*content["changes"], content)]
        if edited := [entry["hash"] for entry, claims in versions if digest(claims) != entry["hash"]]:
            raise ClaimsError(f"its claims do not have the hash {edited[0][:12]}, so they were edited by hand")
        *changes, (_, claims) = versions
        return Declared(
            content["study"],
            content["hash"],
            content["declared"],
            claims,
            tuple(Change(entry["hash"], entry["declared"], earlier, entry["runs"]) for entry, earlier in changes),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ClaimsError) else "it is not a claims file"
        raise ClaimsError(f"{path} cannot be used: {reason}; restore it") from None


def write(folder: Path, claims: Claims, study: str, runs: int, name: str = FILE) -> Declared:
    """Declare the claims of a study in `folder` and return what its file `name` holds.

    runs: finished runs of the comparison. If there are any, claims that replace others record these as a change. The
    same claims do not change the file. Raises ClaimsError if there are runs but no claims were declared."""
    known = load(folder, name)
    if known is None and runs:
        raise ClaimsError(
            f"claims must be declared before the first run of the comparison (got {folder} with {runs} runs and no "
            f"{name}); use another folder, or a study without claims"
        )
    hashed = digest(claims)
    if known is not None and known.hash == hashed:
        return known
    changes = () if known is None else known.changes
    if known is not None and runs:
        changes = (*changes, Change(known.hash, known.declared, known.claims, runs))
    declared = Declared(study, hashed, datetime.now(UTC).isoformat(timespec="seconds"), claims, changes)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [{**change._asdict(), "claims": _plain(change.claims)} for change in changes]
    content = {"study": study, "hash": hashed, "declared": declared.declared, "claims": _plain(claims)}
    write_json(folder / name, {**content, "changes": earlier})
    return declared


def _plain(claims: Claims) -> dict[str, Any]:
    """The claims as JSON; `metrics` only if some are named."""
    content = asdict(claims)
    return content if claims.metrics else {key: value for key, value in content.items() if key != "metrics"}


def _contrast(content: Any, where: str, tasks: Sequence[str] | None, arms: Sequence[str] | None) -> Contrast:
    parts = {each.name for each in fields(Contrast)}
    content = _mapping(
        content, where, parts, {"name", "of", "against"} | ({"tasks", "ranks"} if arms is None else set())
    )
    _differ(content, where)
    of, against = (_text(content[side], f"{where}.{side}") for side in ("of", "against"))
    named = content.get("tasks", tasks)
    if not isinstance(named, Sequence) or isinstance(named, str) or not named:
        raise ClaimsError(f"{where}.tasks must be a list of at least one task (got {named})")
    for task in named:
        if _text(task, f"{where}.tasks") not in (tasks or named):
            raise ClaimsError(f"{where}.tasks must be among {', '.join(tasks or ())} (got {task})")
    _once(f"{where}.tasks must name each task once", named)
    ranks = content.get("ranks")
    if ranks is not None and (not isinstance(ranks, Sequence) or isinstance(ranks, str) or not ranks):
        raise ClaimsError(f"{where}.ranks must be a list of budgets, or null (got {ranks})")
    kept = None if ranks is None else tuple(_whole(rank, f"{where}.ranks", 1) for rank in ranks)
    _once(f"{where}.ranks must name each budget once", kept or ())
    if arms is not None:
        shared = _budgets(of, against, where, arms)
        if "ranks" not in content:
            kept = shared
        elif (kept is None) != (shared is None) or not set(kept or ()) <= set(shared or ()):
            valid = "null, because its methods have no budgets" if shared is None else f"among {list(shared)}"
            raise ClaimsError(f"{where}.ranks must be {valid} (got {ranks})")
    return Contrast(_text(content["name"], f"{where}.name"), of, against, tuple(named), kept)


def _budgets(of: str, against: str, where: str, arms: Sequence[str]) -> tuple[int, ...] | None:
    """The budgets that both methods have, those of one if the other has none, or None if neither has any."""
    found: list[tuple[int, ...]] = []
    for side, method in (("of", of), ("against", against)):
        split = [arm.rpartition("@")[::2] for arm in arms if "@" in arm]
        ranked = tuple(int(rank) for name, rank in split if name == method)
        if not ranked and method not in arms:
            methods = list(dict.fromkeys(arm.partition("@")[0] for arm in arms))
            raise ClaimsError(f"{where}.{side} must be a method of the study: {', '.join(methods)} (got {method})")
        if ranked:
            found.append(ranked)
    shared = tuple(rank for rank in found[0] if rank in found[-1]) if found else None
    if shared == ():
        raise ClaimsError(f"{where} must compare methods that share a budget (got {of} and {against})")
    return shared


def _mapping(content: Any, where: str, known: set[str], required: Collection[str] = ()) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ClaimsError(f"{where} must have the parts {', '.join(sorted(known))} (got {content})")
    if unknown := content.keys() - known:
        raise ClaimsError(f"{where} must have only the parts {', '.join(sorted(known))} (got {min(unknown, key=str)})")
    if missing := set(required) - content.keys():
        raise ClaimsError(f"{where} must have the part {min(missing)} (got {', '.join(sorted(content)) or 'nothing'})")
    return content


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ClaimsError(f"{where} must be a name (got {value})")
    return value


def _one_of(value: Any, where: str, valid: Sequence[str]) -> str:
    if value not in valid:
        raise ClaimsError(f"{where} must be {' or '.join(valid)} (got {value})")
    return str(value)


def _whole(value: Any, where: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ClaimsError(f"{where} must be a whole number of at least {least} (got {value})")
    return value


def _between(value: Any, where: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low < value < high:
        valid = f"a number between {low:g} and {high:g}" if math.isfinite(high) else f"a number above {low:g}"
        raise ClaimsError(f"{where} must be {valid} (got {value})")
    return float(value)


def _differ(content: Mapping[str, Any], where: str) -> None:
    if content["of"] == content["against"]:
        raise ClaimsError(f"{where} must compare two different arms (got {content['of']} twice)")


def _once(rule: str, values: Sequence[Any]) -> None:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ClaimsError(f"{rule} (got {twice[0]} twice)")
