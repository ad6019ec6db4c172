"""python -m adarank: what is done with runs and adapters that exist. Exit status: 0 done, 1 it failed, 2 an argument cannot be used."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adarank.commands import arguments as adapter_commands
from adarank.errors import RunFailed, SettingError


def _status(options: argparse.Namespace) -> None:
    from adarank.harness.status import watch

    watch(options.out)


def _sync(options: argparse.Namespace) -> None:
    from adarank.harness.tracking.sync import sync

    sync(options.out, options.project, options.entity)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m adarank", description="What is done with runs and adapters that exist."
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status",
        help="the state of every run of a sweep",
        description="A line a run (state, step, time left or result or last error) and the totals. On a terminal it is "
        "refreshed as long as a run goes on.",
    )
    status.add_argument("out", type=Path, metavar="OUT", help="the folder that holds the runs (out=… of the sweep)")
    status.set_defaults(act=_status)
    sync = commands.add_parser(
        "sync",
        help="send the finished runs of a sweep to W&B",
        description="Sends what the files of every finished run hold to W&B, as one group; what is there already is not "
        "sent again, a run that changed replaces its W&B run.",
    )
    sync.add_argument("out", type=Path, metavar="OUT", help="the folder that holds the runs (out=… of the sweep)")
    sync.add_argument("--project", help="W&B's project; default: that of the run's tracker, else adarank")
    sync.add_argument("--entity", help="W&B's user or team; default: that of the run's tracker, else your own")
    sync.set_defaults(act=_sync)
    adapter_commands.add(commands)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (sys.argv without the program) say; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        options.act(options)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
