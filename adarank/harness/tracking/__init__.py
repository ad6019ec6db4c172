"""Logs a run's numbers: the files in the run's folder are the record, and a tracker receives a copy of them.

    training loop ── Log ──> local.LocalLog   metrics.jsonl, allocations.jsonl, summary.json
                        └──> copy             wandb.WandbCopy, …; one that fails is dropped with one warning

In a YAML file in `conf/tracker`, `_target_` names a function
`(settings…, *, folder, config, name, default_group) -> Copy | None`. The arguments before the `*` are the tracker's
settings; the harness passes the keyword-only ones.
"""

from adarank.harness.tracking.local import LocalLog, cut_back, replay
from adarank.harness.tracking.log import Copy, Log, RunLog, no_copy, open_log

__all__ = ["Copy", "LocalLog", "Log", "RunLog", "cut_back", "no_copy", "open_log", "replay"]
