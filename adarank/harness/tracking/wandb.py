"""The W&B copy of a run; the only file that imports wandb, and only inside its functions.

What W&B receives (the names of metrics.jsonl and allocations.jsonl, prefixed so that they stay apart):

    history   step (the x axis of every chart), `<split>/<metric>` such as `dev/accuracy`,
              `allocation/budget`, `allocation/kept`, `allocation/parameters`, `allocation/mean_rank`
    media     `allocation/ranks`, the heat map of allocations 1, 2, 4, 8, … and of the last one
    summary   `best`, `last`, `test`; the rest of summary.json flattened, such as `time/train_s`
    config    the resolved config

`step` is a logged value and not W&B's own step, which must never fall: the test metrics of the best checkpoint
come after later steps of training.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adarank.errors import SettingError
from adarank.harness.tracking import sent
from adarank.harness.tracking.heatmap import rank_heatmap
from adarank.harness.tracking.log import one_line

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
HEADLINES = ("best", "last", "test")  # metric values that stand at the top of W&B's summary


def wandb_copy(
    mode: Literal["online", "offline", "disabled"] | None = None,
    project: str = "adarank",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    job_type: str = "train",
    dir: str | None = None,
    init_timeout: float = 20.0,
    finish_timeout: float = 30.0,
    *,
    folder: Path,
    config: dict[str, Any],
    name: str,
    default_group: str,
) -> "WandbCopy | None":
    """Start a W&B run and return the copy that feeds it, or None when `mode` is "disabled".

    mode: None leaves it to W&B (the variable WANDB_MODE, else online); entity: None is the user's own;
    group: None is `default_group`; dir: the folder for W&B's own files, None is the run's folder;
    init_timeout, finish_timeout: the seconds that W&B may hold up the start and the end of the run.

    Without a key (it never asks for one) or a server the run is recorded offline instead, with one warning.
    Raises SettingError for a setting out of range, and what W&B raises if it cannot record offline either.
    """
    if mode is not None and mode not in MODES:
        raise SettingError(f"tracker.mode={mode} is not a mode of W&B: choose {', '.join(MODES)} or null.")
    for setting, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
        if seconds < 1:
            raise SettingError(f"tracker.{setting}={seconds} must be at least 1 second.")
    if mode == "disabled":
        return None
    begin = partial(
        start, folder=folder, config=config, name=name, project=project, entity=entity, group=group or default_group,
        tags=tags, job_type=job_type, dir=dir, init_timeout=init_timeout, finish_timeout=finish_timeout,
    )  # fmt: skip
    try:
        return begin(mode)
    except Exception as error:
        stop_service()
        if mode == "offline":
            raise
        copy = begin("offline")
        logger.warning(
            "W&B is not available (%s): run %s is recorded offline, the files in %s are complete, and %s.",
            one_line(error),
            name,
            folder,
            copy.recovery(),
        )
        return copy


def start(
    mode: str | None,
    *,
    folder: Path,
    config: dict[str, Any],
    name: str,
    project: str,
    entity: str | None,
    group: str,
    tags: list[str] | None = None,
    job_type: str = "train",
    dir: str | None = None,
    init_timeout: float = 20.0,
    finish_timeout: float = 30.0,
) -> "WandbCopy":
    """Start the W&B run of `folder` afresh, under the id that it has or gets now: what W&B had of it is replaced.
    Raises what W&B raises."""
    import wandb

    # show_info=False silences W&B's chatter and, with it, the prompt for a key; its own warnings stay.
    wandb.setup(wandb.Settings(show_info=False))
    run = wandb.init(
        id=sent.read(folder)["id"],
        mode=mode,  # type: ignore[arg-type]
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        job_type=job_type,
        dir=Path(dir).expanduser() if dir else folder,
        config=config,
        name=name,
        reinit="create_new",  # never the previous run of this process
        settings=wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            init_timeout=init_timeout,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
        ),
    )
    run.define_metric("*", step_metric="step")
    return WandbCopy(run, folder, lambda: sent.digest(folder, project, entity))


class WandbCopy:
    """Feeds one W&B run (a `tracking.Copy`)."""

    def __init__(self, run: "wandb.Run", home: Path, digest: Callable[[], str]) -> None:
        """home: the run's folder, which remembers the id, and `digest()` of its files once all were sent."""
        self.run, self._home, self._digest = run, home, digest
        sent.write(home, run.id, None)
        self._folder = Path(run.dir).parent
        self._allocations = 0
        self._highest_rank = 1
        self._unpictured: Mapping[str, Any] | None = None

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.run.log({"step": step} | {f"{split}/{name}": float(value) for name, value in values.items()})

    def allocation(self, record: Mapping[str, Any]) -> None:
        ranks = record["ranks"]
        numbers = {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}
        numbers["mean_rank"] = sum(ranks.values()) / max(1, len(ranks))
        self.run.log({"step": record["step"]} | {f"allocation/{name}": value for name, value in numbers.items()})
        self._allocations += 1
        self._highest_rank = max(self._highest_rank, *ranks.values(), 1)  # one colour scale for all pictures
        self._unpictured = record
        if self._allocations & (self._allocations - 1) == 0:  # powers of two: about ten pictures for 1,000 allocations
            self._picture()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._picture()
        self.run.summary.update(_summary(summary))
        self.run.finish(exit_code=0 if summary.get("status") == "finished" else 1)
        if not self.run.offline:
            sent.write(self._home, self.run.id, self._digest())

    def close(self) -> None:
        self.run.finish(exit_code=1)

    def abandon(self) -> None:
        with suppress(Exception):
            self.run.finish(exit_code=1)
        stop_service()

    def recovery(self) -> str:
        return f"`wandb sync --include-online {self._folder}` copies what W&B has on disk"

    def _picture(self) -> None:
        if self._unpictured is not None:
            import wandb

            step, ranks = self._unpictured["step"], self._unpictured["ranks"]
            picture = rank_heatmap(ranks, highest=self._highest_rank, title=f"ranks after step {step}")
            self.run.log({"step": step, "allocation/ranks": wandb.Image(picture)})
            self._unpictured = None


def stop_service() -> None:
    """End W&B's background process after a failure: a dead one would fail every later run of this process and
    print a traceback when Python exits."""
    import wandb

    with suppress(Exception, SystemExit):  # W&B calls sys.exit with the status of its background process
        wandb.teardown()


def _summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    metric = summary.get("metric") or {}
    rank = summary.get("rank") or {}
    rest = dict(summary)
    rest["metric"] = {name: value for name, value in metric.items() if name not in HEADLINES}
    rest["rank"] = {name: value for name, value in rank.items() if name != "final"}  # the last heat map shows it
    return {name: metric[name] for name in HEADLINES if metric.get(name) is not None} | dict(_flat(rest))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value
