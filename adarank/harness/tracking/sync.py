"""`adarank sync OUT`: sends finished runs to W&B unless it already has them."""

from pathlib import Path

import yaml

from adarank.errors import RunFailed
from adarank.harness.tracking import wandb_state
from adarank.harness.tracking.local import replay
from adarank.harness.tracking.log import one_line
from adarank.runs import status
from adarank.runs.files import CONFIG

# The settings that are taken from a run's own tracker.
KEPT = ("project", "entity", "group", "tags", "job_type", "init_timeout", "finish_timeout")


def sync(out: Path, project: str | None = None, entity: str | None = None) -> None:
    """Send every finished run below `out` that W&B lacks or that has changed, under its id, and report on each run.

    project, entity: None uses those of the run's own tracker, or else "adarank" and the user's default. The runs of a
    folder form one group. Raises SettingError if `out` is not a folder and RunFailed if a run cannot be sent.
    """
    counts = {"sent": 0, "already there": 0, "not finished": 0}
    for row in status.read(out):
        if row.state != "finished":
            print(f"{row.name}: {row.state}, not sent")
            counts["not finished"] += 1
            continue
        try:
            arrived = _send((out / row.name).absolute(), project, entity)
        except Exception as error:
            raise RunFailed(
                f"{row.name} could not be sent to W&B ({one_line(error)}); {counts['sent']} were sent before it; run "
                "the same command again to send the rest"
            ) from None
        if arrived:
            print(f"{row.name}: sent", flush=True)
        counts["sent" if arrived else "already there"] += 1
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


def _send(folder: Path, project: str | None, entity: str | None) -> bool:
    """Send a finished run unless W&B already has it. Returns whether it was sent."""
    from adarank.harness.config.spec import spec_of
    from adarank.harness.run.identity import title
    from adarank.harness.tracking import wandb

    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    settings = {key: value for key, value in (config["tracker"] or {}).items() if key in KEPT}
    settings["project"] = project or settings.get("project") or "adarank"
    settings["entity"] = entity or settings.get("entity")
    if wandb_state.read(folder)["digest"] == wandb_state.digest(folder, settings["project"], settings["entity"]):
        return False
    about = {"config": config, "name": title(spec_of(config)), "default_group": folder.parent.name}
    try:
        copy = wandb.wandb_copy("online", **settings, folder=folder, **about, fallback=False)
        assert copy is not None
        replay(folder, copy)
    except Exception:
        wandb.stop_service()
        raise
    return True
