"""The part `probe` of a study: the measurements of its runs by `adarank probe`, and the claims about them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from adarank.errors import SettingError
from adarank.probe import cli
from adarank.probe.reload import has_weights
from adarank.runs.files import STATUS, SUMMARY, read_object
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
        for name in VARIABLE.findall(self.options):
            if name not in os.environ:
                raise SettingError(f"probe.options needs the environment variable {name}, which is not set")
        return _words(self.options, os.path.expandvars)  # a value with spaces is one word


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
        metrics = claims.get("metrics")
        named = set(map(str, metrics.values())) if isinstance(metrics, Mapping) else set()
        names = arms if len(named) != 1 or not named <= measures.MEASURES.keys() else _names(named.pop(), arms)
        found = read_claims({**claims, "seeds": seeds}, tasks, names)
        measures.check(found)
    except ClaimsError as error:
        raise SettingError(
            str(error).replace("claims.", "probe.claims.", 1).replace("probe.probe.", "probe.")
        ) from None
    return Measurement(options, chosen, content.get("trials", False), found)


def _words(options: str, expand: Callable[[str], str] = str) -> list[str]:
    """The words of the options, each expanded. Raises SettingError unless `adarank probe` takes them for a single
    run."""

    def refuse(message: str) -> NoReturn:
        valid = "options of adarank probe for single runs"
        raise SettingError(f"probe.options must be {valid} (got {options}: {message})")

    parser = cli.arguments()
    parser.error = refuse  # type: ignore[method-assign]
    try:
        words = list(map(expand, shlex.split(options)))
    except ValueError as error:
        refuse(str(error))
    if shown := [word for word in words if word.startswith(("-h", "--h"))]:  # which would end this process
        refuse(shown[0])
    asked = parser.parse_args(["-", *words])
    if asked.others or len(asked.runs) > 1:
        refuse("it names another run")
    return words


def measure(
    found: Measurement,
    folder: Path,
    arm: str,
    seeds: Collection[int],
    threads: Mapping[str, str] = MappingProxyType({}),
    backwards: bool = False,
) -> None:
    """Measure every finished run in `folder` that is of this arm and one of these seeds and lacks a file; exits if that
    fails. Leaves out runs without weights and names them, since a packed run has none.

    threads: environment variables for the process; backwards: begin with the last run, to help a process that began
    with the first."""
    words = found.words
    names = cli.files(cli.arguments().parse_args(["-", *words]))
    lacking = [run for run in _finished(folder, arm, seeds) if any(not (run / name).is_file() for name in names)]
    runs = [run for run in lacking if has_weights(run)]
    if lost := [run.name for run in lacking if run not in runs]:
        print(
            f"{folder}: {', '.join(lost)} cannot be measured without weights, which packed runs do not hold; to train "
            "them again, delete their folders and the file runs.jsonl.xz that holds them in the results",
            flush=True,
        )
    if not runs:
        return
    command = [PROBE, *map(str, reversed(runs) if backwards else runs), "--missing", *words]
    print(f"$ {shlex.join([PROBE, f'{folder}/*', '--missing', *words])}", flush=True)
    if status := subprocess.run([sys.executable, *command], env={**threads, **os.environ}).returncode:
        sys.exit(status)


def _names(measure: str, arms: Sequence[str]) -> list[str]:
    return measures.MEASURES[measure].names(arms)


def _finished(folder: Path, arm: str, seeds: Collection[int]) -> list[Path]:
    """The finished runs in `folder` of this arm and these seeds."""
    finished = [f.parent for f in sorted(folder.glob(f"*/{STATUS}")) if read_object(f)[0].get("state") == FINISHED]
    summaries = {run: read_object(run / SUMMARY)[0] for run in finished}
    return [run for run, about in summaries.items() if about.get("arm") == arm and about.get("seed") in seeds]
