"""python -m adarank sync OUT: send to W&B what the files of finished runs hold and W&B lacks."""

from pathlib import Path

import yaml

from adarank.errors import RunFailed
from adarank.harness import status
from adarank.harness.tracking import sent
from adarank.harness.tracking.local import replay
from adarank.harness.tracking.log import one_line

KEPT = ("project", "entity", "group", "tags", "job_type", "init_timeout", "finish_timeout")  # of a run's own tracker


def sync(out: Path, project: str | None = None, entity: str | None = None) -> None:
    """Send every finished run under `out` that W&B lacks or that changed, each under its id, and say so.

    project, entity: None is the run's own tracker's, else "adarank" and the user's own; the runs of one folder are one
    group. Raises SettingError where `out` is no folder, RunFailed at the first run that cannot be sent.
    """
    counts = {"sent": 0, "there already": 0, "not finished": 0}
    for row in status.read(out):
        if row.state != "finished":
            print(f"{row.name}: {row.state}, not sent")
            counts["not finished"] += 1
            continue
        try:
            arrived = _send((out / row.name).absolute(), project, entity)
        except Exception as error:
            raise RunFailed(
                f"{row.name} could not be sent to W&B ({one_line(error)}); {counts['sent']} were sent before it, and the "
                "same command goes on"
            ) from None
        if arrived:
            print(f"{row.name}: sent", flush=True)
        counts["sent" if arrived else "there already"] += 1
    print(", ".join(f"{number} {what}" for what, number in counts.items()))


def _send(folder: Path, project: str | None, entity: str | None) -> bool:
    """Send a finished run unless W&B has it; returns whether that was so."""
    from adarank.harness.execute import run_title
    from adarank.harness.tracking import wandb

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    settings = {key: value for key, value in (config["tracker"] or {}).items() if key in KEPT}
    settings["project"] = project or settings.get("project") or "adarank"
    settings["entity"] = entity or settings.get("entity")
    settings["group"] = settings.get("group") or folder.parent.name
    if sent.read(folder)["digest"] == sent.digest(folder, settings["project"], settings["entity"]):
        return False
    try:
        replay(folder, wandb.start("online", folder=folder, config=config, name=run_title(config), **settings))
    except Exception:
        wandb.stop_service()
        raise
    return True
