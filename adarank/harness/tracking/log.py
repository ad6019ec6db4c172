"""One log for the training loop: written to the run's folder first, then to the copies."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adarank.errors import SettingError
from adarank.harness.tracking.local import LocalLog, replay_steps
from adarank.harness.tracking.protocol import Copy

logger = logging.getLogger(__name__)


class RunLog:
    """A `Log` that writes to `truth` and then to each copy; a context manager that closes on the way out.

    What `truth` raises is raised (the run has lost its record); a copy that raises an Exception is dropped
    with one warning. KeyboardInterrupt passes through.
    """

    def __init__(self, truth: LocalLog, copies: list[Copy]) -> None:
        self.truth = truth
        self.copies = copies

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.truth.metrics(step, split, values)
        self._copy(lambda copy: copy.metrics(step, split, values))

    def allocation(self, record: Mapping[str, Any]) -> None:
        self.truth.allocation(record)
        self._copy(lambda copy: copy.allocation(record))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.truth.finish(summary)
        self._copy(lambda copy: copy.finish(summary))
        self.copies = []

    def catch_up(self) -> None:
        """Send the copies what the files hold."""
        self._copy(lambda copy: replay_steps(self.truth.folder, copy))

    def close(self) -> None:
        self.truth.close()
        self._copy(lambda copy: copy.close())
        self.copies = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _copy(self, call: Callable[[Copy], None]) -> None:
        for copy in list(self.copies):
            try:
                call(copy)
            except Exception as error:
                self.copies.remove(copy)
                logger.warning(
                    "Tracking stopped (%s): the files in %s are complete, and %s.",
                    one_line(error),
                    self.truth.folder,
                    copy.recovery(),
                )
                copy.abandon()


def open_log(
    tracker: Callable[..., Copy | None],
    *,
    folder: Path,
    config: dict[str, Any],
    name: str,
    group: str,
    resume_step: int | None = None,
) -> RunLog:
    """Open the log of one run.

    tracker: the target of the tracker's YAML with its settings bound, e.g. `partial(target, **settings)`;
    folder: the run's folder, which exists; config: the resolved config as plain dicts, lists and values;
    name: the run's name for people (`adalora-r8-qkv-s0`); group: the sweep it belongs to, used unless the
    tracker's own setting names one; resume_step: None starts from empty files, a step keeps what was logged
    up to it, and the copy, which starts afresh, receives that first.

    A tracker that cannot start warns once and the run goes on without it. Raises SettingError for a wrong
    setting of the tracker, before any file is touched, and OSError if the folder cannot be written.
    """
    copies: list[Copy] = []
    try:
        copy = tracker(folder=folder, config=config, name=name, default_group=group)
        copies = [copy] if copy is not None else []
    except SettingError:
        raise
    except Exception as error:
        logger.warning(
            "The tracker could not be started (%s): run %s goes on with the files in %s, which are complete "
            "and can be copied later by python -m adarank sync.",
            one_line(error),
            name,
            folder,
        )
    try:
        log = RunLog(LocalLog(folder, resume_step), copies)
        if resume_step is not None:
            log.catch_up()
        return log
    except BaseException:
        for copy in copies:
            copy.abandon()
        raise


def no_copy(*, folder: Path, config: dict[str, Any], name: str, default_group: str) -> None:
    """`tracker=none`: the run's folder is all there is."""


def one_line(error: Exception) -> str:
    """The first line of an error's message, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines and lines[0] != "<no message>" else type(error).__name__
