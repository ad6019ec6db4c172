"""The W&B copy of a run; the only file that imports wandb, and only inside its functions.

W&B receives the following, under the names in metrics.jsonl and allocations.jsonl with distinguishing prefixes:

    history   step (the x axis of every chart), `<split>/<metric>` such as `dev/accuracy`,
              `allocation/budget`, `allocation/kept`, `allocation/parameters`, `allocation/mean_rank`
    media     `allocation/ranks`, the heat map of allocations 1, 2, 4, 8, … and of the last one
    summary   `best`, `last`, `test`; the rest of summary.json flattened, such as `time/train_s`
    config    the resolved config

`step` is a logged value rather than W&B's own step, which must never decrease, because the test metrics of the best
checkpoint are logged after later training steps.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adarank.errors import SettingError
from adarank.harness.tracking import wandb_state
from adarank.harness.tracking.log import one_line
from adarank.runs.modules import rank_grid

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
HEADLINES = ("best", "last", "test")  # metric values at the top of W&B's summary


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
    fallback: bool = True,
) -> "WandbCopy | None":
    """Start the W&B run of `folder` under its id, which is new if it has none, and return the copy that feeds it, or
    None if `mode` is "disabled". Earlier contents under that id are replaced. In a sweep of W&B's agent, the agent sets
    the id, the project and the entity.

    mode: None leaves the choice to W&B (the variable WANDB_MODE, else online); entity: None means the user's default;
    group: None means `default_group`; dir: the folder for W&B's own files, None means the run's folder;
    init_timeout, finish_timeout: the seconds by which W&B may delay the start and the end of the run.

    Without a key (W&B never prompts for one) or a server, the run is recorded offline with a single warning, unless
    `fallback` is False. Raises SettingError for a setting out of range, and W&B's own error if it cannot start.
    """
    if mode is not None and mode not in MODES:
        raise SettingError(f"tracker.mode must be {', '.join(MODES)} or null (got {mode})")
    for setting, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
        if seconds < 1:
            raise SettingError(f"tracker.{setting} must be at least 1 second (got {seconds})")
    if mode == "disabled":
        return None

    def start(mode: str | None) -> WandbCopy:
        import wandb

        place = {"id": wandb_state.read(folder)["id"], "project": project, "entity": entity}
        if "WANDB_SWEEP_ID" in os.environ:  # this run is a trial, for which W&B's agent has chosen these
            place = {}

        # show_info=False silences W&B's messages and the prompt for a key, but not its warnings.
        wandb.setup(wandb.Settings(show_info=False))
        run = wandb.init(
            **place,  # type: ignore[arg-type]
            mode=mode,  # type: ignore[arg-type]
            group=group or default_group,
            tags=tags,
            job_type=job_type,
            dir=Path(dir).expanduser() if dir else folder,
            config=config,
            name=name,
            reinit="create_new",  # never continue the previous run of this process
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
        return WandbCopy(run, folder, lambda: wandb_state.digest(folder, project, entity))

    try:
        return start(mode)
    except Exception as error:
        stop_service()
        if mode == "offline" or not fallback:
            raise
        copy = start("offline")
        text = "W&B is not available (%s): run %s is recorded offline, the files in %s are complete, and %s."
        logger.warning(text, one_line(error), name, folder, copy.recovery())
        return copy


class WandbCopy:
    """A `tracking.Copy` that feeds one W&B run."""

    def __init__(self, run: "wandb.Run", home: Path, digest: Callable[[], str]) -> None:
        """home: the run's folder, which stores the id and, once everything has been sent, `digest()` of its files."""
        self.run, self._home, self._digest = run, home, digest
        wandb_state.write(home, run.id, None)
        self._folder = Path(run.dir).parent
        self._allocations = 0
        self._highest_rank = 1
        self._undrawn: Mapping[str, Any] | None = None

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.run.log({"step": step} | {f"{split}/{name}": float(value) for name, value in values.items()})

    def allocation(self, record: Mapping[str, Any]) -> None:
        ranks = record["ranks"]
        numbers = {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}
        numbers["mean_rank"] = sum(ranks.values()) / max(1, len(ranks))
        self.run.log({"step": record["step"]} | {f"allocation/{name}": value for name, value in numbers.items()})
        self._allocations += 1
        self._highest_rank = max(self._highest_rank, *ranks.values(), 1)  # one colour scale for all pictures
        self._undrawn = record
        if self._allocations & (self._allocations - 1) == 0:  # powers of two: about ten pictures for 1,000 allocations
            self._draw()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._draw()
        self.run.summary.update(_summary(summary))
        self.run.finish(exit_code=0 if summary.get("status") == "finished" else 1)
        if not self.run.offline:
            wandb_state.write(self._home, self.run.id, self._digest())

    def close(self) -> None:
        self.run.finish(exit_code=1)

    def abandon(self) -> None:
        with suppress(Exception):
            self.run.finish(exit_code=1)
        stop_service()

    def recovery(self) -> str:
        return f"`wandb sync --include-online {self._folder}` sends the files that W&B has on disk"

    def _draw(self) -> None:
        if self._undrawn is not None:
            import wandb

            step, ranks = self._undrawn["step"], self._undrawn["ranks"]
            picture = rank_heatmap(ranks, highest=self._highest_rank, title=f"ranks after step {step}")
            self.run.log({"step": step, "allocation/ranks": wandb.Image(picture)})
            self._undrawn = None


def rank_heatmap(ranks: Mapping[str, int], *, highest: int, title: str) -> np.ndarray:
    """Draw {module name: rank} as an RGBA image, uint8 [height, width, 4], with one row per block and one column per
    kind.

    highest: the top of the colour scale. Cells without a module are grey. pyplot is not used, so that the user's
    backend and open figures are not affected.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns, grid = rank_grid(ranks)
    figure = Figure(figsize=(2.5 + 0.6 * len(columns), 2.5 + 0.35 * len(rows)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="0.9")
    image = axes.imshow(grid, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, xlabel="module", ylabel="layer")
    figure.colorbar(image, ax=axes, label="rank")
    for (row, column), rank in np.ndenumerate(grid):
        if not np.isnan(rank):
            axes.text(column, row, f"{rank:g}", ha="center", va="center", color="k" if rank > highest / 2 else "w")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def stop_service() -> None:
    """Stop W&B's background process after a failure; otherwise every later run in this process would fail, too."""
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
