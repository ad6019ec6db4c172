"""A dev split carved from train, so that what is reported chooses nothing."""

import hashlib
from dataclasses import replace

import numpy as np

from adarank.errors import SettingError
from adarank.harness.tasks.base import Task

SEED = 0  # one cut for every run: its seed must not decide which rows are held out


def hold_out(task: Task, size: float | None) -> Task:
    """`task` with `size` of its training rows (a number, or a fraction of them) as dev, drawn once and kept in order.

    What is reported is the task's labelled test set, or else its own dev set as test; it is measured at the end and
    chooses neither a checkpoint nor a learning rate. None: the task as it is. Raises SettingError where nothing would be left.
    """
    if size is None:
        return task
    rows = len(task.train)
    held = round(size * rows) if isinstance(size, float) and 0 < size < 1 else size
    if not isinstance(held, int) or not 0 < held < rows:
        raise SettingError(
            f"holdout={size} cannot be carved from {rows} training rows; valid: from 1 to {rows - 1} rows, or a fraction between 0 and 1"
        )
    drawn = np.random.default_rng(SEED).permutation(rows)
    dev, train = np.sort(drawn[:held]), np.sort(drawn[held:])
    return replace(
        task,
        train=task.train.take(train),
        dev=task.train.take(dev),
        test=task.test or task.dev,
        fingerprint=hashlib.sha256(f"{task.fingerprint} holdout {held}".encode()).hexdigest(),
    )
