"""The training loop's log, which writes to the run's folder first and then to the copy."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from adarank.errors import SettingError
from adarank.harness.tracking.local import LocalLog, replay_steps

logger = logging.getLogger(__name__)


class Log(Protocol):
    """The calls that the training loop makes, and that the local files and every copy receive."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Metrics by name, measured on `split` ("train", "dev" or "test") after optimiser step `step`."""

    def allocation(self, record: Mapping[str, Any]) -> None:
        """A reallocation: step, budget, unit, kept, parameters, slack, ranks {module name: rank}, and score_quantiles,
        which a record from a file may lack."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The content of summary.json; no further calls may follow."""

    def close(self) -> None:
        """End without a summary, as after an exception; does nothing after `finish`."""


class Copy(Log, Protocol):
    """A log that may fail: if one of its calls raises an Exception, it is abandoned and the run continues."""

    def abandon(self) -> None:
        """Release the resources of a failed copy; never raises an Exception."""

    def recovery(self) -> str:
        """A clause that says how to bring the copy up to date later."""


class RunLog:
    """A `Log` that writes to the run's folder and then to the copy, if any.

    Exceptions from `local` propagate, since the run has lost its record; a copy that raises one is dropped with a
    single warning.
    """

    def __init__(self, local: LocalLog, copy: Copy | None) -> None:
        self.local, self.copy = local, copy

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._each(lambda log: log.metrics(step, split, values))

    def allocation(self, record: Mapping[str, Any]) -> None:
        self._each(lambda log: log.allocation(record))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._each(lambda log: log.finish(summary))
        self.copy = None

    def close(self) -> None:
        self._each(lambda log: log.close())
        self.copy = None

    def _each(self, call: Callable[[Log], None]) -> None:
        call(self.local)
        self.copy_to(call)

    def copy_to(self, call: Callable[[Copy], None]) -> None:
        if (copy := self.copy) is None:
            return
        try:
            call(copy)
        except (Exception, SystemExit) as error:  # W&B calls sys.exit with the status of its background process
            self.copy = None
            text = "Tracking stopped (%s): the files in %s are complete, and %s."
            logger.warning(text, one_line(error), self.local.folder, copy.recovery())
            copy.abandon()


@contextmanager
def open_log(
    tracker: Callable[..., Copy | None],
    *,
    folder: Path,
    config: dict[str, Any],
    name: str,
    group: str,
    resume_step: int | None = None,
) -> Iterator[RunLog]:
    """The log of one run, closed at the end of the `with`.

    tracker: the target of the tracker's YAML file with its settings bound, `partial(target, **settings)`;
    folder: the run's folder, which must exist; config: the resolved settings as plain dicts, lists and values;
    name: the run's title (`adalora-r8-qkv-s0`); group: the run's sweep, used unless the tracker's own settings name a
    group; resume_step: None starts with empty files; a number keeps the records up to that step, and the copy, which
    always starts empty, receives them first.

    If the tracker cannot start, a single warning is logged and the run continues without it. Raises SettingError for an
    invalid setting of the tracker, before any file is touched, and any error of `LocalLog`.
    """
    copy = None
    try:
        copy = tracker(folder=folder, config=config, name=name, default_group=group)
    except SettingError:
        raise
    except Exception as error:
        text = "The tracker could not start (%s): run %s continues, its files in %s are complete, and "
        logger.warning(f"{text}`adarank sync` can send them later.", one_line(error), name, folder)
    try:
        log = RunLog(LocalLog(folder, resume_step), copy)
        if resume_step is not None:
            log.copy_to(lambda copy: replay_steps(folder, copy))
    except BaseException:
        if copy is not None:
            copy.abandon()
        raise
    try:
        yield log
    finally:
        log.close()


def no_copy(*, folder: Path, config: dict[str, Any], name: str, default_group: str) -> None:
    """`tracker=none`: makes no copy of the run's folder."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines and lines[0] != "<no message>" else type(error).__name__
