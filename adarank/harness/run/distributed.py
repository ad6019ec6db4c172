"""Several processes, one run: what torchrun's variables say, and what rank 0 does for all.

    torchrun --nproc-per-node=2 experiments/run.py method=adalora …

Rank 0 writes, prints and holds the lock; its results and errors reach the others through `on_main`. Every rank reads the
same settings and data and so raises the same SettingError; a rank that may have failed alone ends at once (`fail`), so
that torchrun ends and reports the others. Without torchrun there is one rank, the main one, and nothing here does
anything. torch is imported only where it is used, for the command line's sake.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from adarank.errors import SettingError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # of one collective: others wait in it while rank 0 writes


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def shares_terminal() -> bool:
    """Whether this process is a worker of a parallel sweep (hydra/launcher=cores), whose output mixes with that of other
    workers."""
    return multiprocessing.current_process().name != "MainProcess"


def say(title: str, text: str) -> None:
    """Print a line about the run `title`: indented below the line that names it, or, where the output of several runs
    mixes, with its title. One write, so that no other process's line begins in the middle."""
    print(f"{f'{title}: ' if shares_terminal() else '  '}{text}\n", end="", flush=True)


def join() -> None:
    """Meet the other ranks (gloo, and nccl on CUDA, one device a rank); once a process, nothing with one rank.

    Raises SettingError where a node has fewer devices than processes.
    """
    import torch
    from torch import distributed as dist

    if world() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise SettingError(
                f"--nproc-per-node must be at most {devices}, the number of devices of this node "
                f"(got {os.environ.get('LOCAL_WORLD_SIZE', local + 1)})"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, which alone does it, on every rank; what it raises is raised on every rank."""
    if world() == 1:
        return work()
    from torch import distributed as dist

    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = work()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]  # type: ignore[no-any-return]


def of_all(value: T) -> list[T]:
    """Every rank's `value`, by rank."""
    if world() == 1:
        return [value]
    from torch import distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def fail(message: str) -> NoReturn:
    """End this process, which may have failed alone: the others would wait for it in a collective. torchrun ends them."""
    print(f"error: {message} (rank {rank()})", file=sys.stderr, flush=True)
    leave(1)


def leave(status: int) -> NoReturn:
    """End this process at once: threads of gloo may abort an interpreter that winds down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end(status: int) -> int:
    """At the end of the command: part from the other ranks. Returns `status` where there are none, else leaves with it."""
    if world() == 1:
        return status
    if "torch" in sys.modules:
        from torch import distributed as dist

        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    leave(status)


class Nothing:
    """Stands for the log and the heartbeat on the ranks that write none."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def allocation(self, record: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def beat(self, step: int) -> None: ...

    def end(self, state: str, error: str | None = None) -> None: ...
