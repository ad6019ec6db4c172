"""Where a run's numbers go: the files of the run's folder are the truth, every tracker is a copy of them.

    training loop ── Log ──> local.LocalLog   metrics.jsonl, allocations.jsonl, summary.json
                        └──> copies           wandb.WandbCopy, …; a copy that fails is dropped with one warning

A file of `conf/tracker` names in `_target_` a function
`(settings…, *, folder, config, name, default_group) -> Copy | None`: the arguments before the `*` are its settings, the
keyword-only ones come from the harness.
"""

from adarank.harness.tracking.local import LocalLog, cut_back, replay
from adarank.harness.tracking.log import RunLog, no_copy, open_log
from adarank.harness.tracking.protocol import Copy, Log

__all__ = ["Copy", "LocalLog", "Log", "RunLog", "cut_back", "no_copy", "open_log", "replay"]
