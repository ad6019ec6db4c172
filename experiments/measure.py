"""The part `probe` of a study: the measurements of its runs by `adarank probe`, and the claims about them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adarank.errors import SettingError
from adarank.probe import cli
from adarank.runs.files import STATUS, read_object
from adarank.runs.packed import FINISHED
from analysis import measures
from analysis.claims import Claims, ClaimsError
from analysis.claims import read as read_claims

PROBE = str(Path(__file__).resolve().parent / "probe.py")


@dataclass(frozen=True)
class Measurement:
    """options: of `adarank probe`, in which $NAME is an environment variable; arms: those that are measured; trials:
    whether the trials are, too; claims: about the measurements (None: none)."""

    options: str
    arms: tuple[str, ...]
    trials: bool = False
    claims: Claims | None = None

    @property
    def words(self) -> list[str]:
        """The options with the values of environment variables. Raises SettingError for one that is not set."""
        expanded = os.path.expandvars(self.options)
        if missing := re.search(r"\$\{?(\w+)", expanded):
            raise SettingError(f"probe.options needs the environment variable {missing[1]}, which is not set")
        return shlex.split(expanded)


def read(content: Any, tasks: Collection[str], arms: Sequence[str], seeds: int) -> Measurement:
    """The checked part of a study. Raises SettingError."""
    parts = {"options", "arms", "trials", "claims"}
    if not isinstance(content, Mapping) or "options" not in content or not content.keys() <= parts:
        raise SettingError(f"probe must have the part options, and may have arms, trials and claims (got {content})")
    options = str(content["options"])
    if bad := [word for word in shlex.split(options) if word in ("-h", "--help", "--with")]:
        raise SettingError(f"probe.options must be options of adarank probe for single runs (got {bad[0]})")
    chosen = tuple(content.get("arms", arms))
    if unknown := [arm for arm in chosen if arm not in arms]:
        raise SettingError(f"probe.arms must be arms of the study: {', '.join(arms)} (got {unknown[0]})")
    claims = content.get("claims")
    if claims is None:
        return Measurement(options, chosen, bool(content.get("trials", False)))
    try:
        if not isinstance(claims, Mapping) or "looks" in claims:
            raise ClaimsError("probe.claims must have the parts of claims except looks")
        named = set(dict(claims.get("metrics") or {}).values())
        names = arms if len(named) != 1 or not named <= measures.MEASURES.keys() else _names(named.pop(), arms)
        found = read_claims({**claims, "seeds": seeds}, tasks, names)
        measures.check(found)
    except ClaimsError as error:
        raise SettingError(
            str(error).replace("claims.", "probe.claims.", 1).replace("probe.probe.", "probe.")
        ) from None
    return Measurement(options, chosen, bool(content.get("trials", False)), found)


def measure(found: Measurement, folder: Path) -> None:
    """Measure every finished run in `folder` that is of a measured arm and lacks a file; exits if that fails."""
    words = found.words
    names = cli.files(cli.arguments().parse_args(["-", *words]))
    runs = [run for run in _finished(folder, found.arms) if any(not (run / name).is_file() for name in names)]
    if not runs:
        return
    command = [PROBE, *map(str, runs), *words]
    print(f"$ {shlex.join([PROBE, f'{folder}/*', *words])}", flush=True)
    if status := subprocess.run([sys.executable, *command]).returncode:
        sys.exit(status)


def _names(measure: str, arms: Sequence[str]) -> list[str]:
    return measures.MEASURES[measure].names(arms)


def _finished(folder: Path, arms: Collection[str]) -> list[Path]:
    """The finished runs in `folder` of these arms."""
    finished = [f.parent for f in sorted(folder.glob(f"*/{STATUS}")) if read_object(f)[0].get("state") == FINISHED]
    return [run for run in finished if read_object(run / "summary.json")[0].get("arm") in arms]
