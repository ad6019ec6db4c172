"""The part `probe` of a study: the measurements of its runs by `adarank probe`, and the claims about them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from adarank.errors import SettingError
from adarank.probe import cli
from adarank.runs.files import STATUS, read_object
from adarank.runs.packed import FINISHED
from analysis import measures
from analysis.claims import Claims, ClaimsError
from analysis.claims import read as read_claims
from experiments import schema

VARIABLE = re.compile(r"\$\{?(\w+)\}?")
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
        if missing := VARIABLE.search(expanded):
            raise SettingError(f"probe.options needs the environment variable {missing[1]}, which is not set")
        return _words(expanded)


def read(content: Any, tasks: Collection[str], arms: Sequence[str], seeds: int) -> Measurement:
    """The checked part of a study. Raises SettingError."""
    optional = {"arms": schema.TEXTS, "trials": schema.FLAG, "claims": schema.ANY}
    schema.check("probe", content, {"options": schema.TEXT}, optional, of="probe.")
    options = content["options"]
    _words(VARIABLE.sub("1", options))
    chosen = tuple(content.get("arms", arms))
    if unknown := [arm for arm in chosen if arm not in arms]:
        raise SettingError(f"probe.arms must be arms of the study: {', '.join(arms)} (got {unknown[0]})")
    claims = content.get("claims")
    if claims is None:
        return Measurement(options, chosen, content.get("trials", False))
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
    return Measurement(options, chosen, content.get("trials", False), found)


def _words(options: str) -> list[str]:
    """The words of the options. Raises SettingError unless `adarank probe` takes them for a single run."""

    def refuse(message: str) -> NoReturn:
        valid = "options of adarank probe for single runs"
        raise SettingError(f"probe.options must be {valid} (got {options}: {message})")

    parser = cli.arguments()
    parser.error = refuse  # type: ignore[method-assign]
    try:
        words = shlex.split(options)
    except ValueError as error:
        refuse(str(error))
    if shown := [word for word in words if word.startswith(("-h", "--h"))]:  # which would end this process
        refuse(shown[0])
    asked = parser.parse_args(["-", *words])
    if asked.others or len(asked.runs) > 1:
        refuse("it names another run")
    return words


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
