"""One run in several processes: reads torchrun's variables, and lets rank 0 act for all ranks.

    torchrun --nproc-per-node=2 experiments/run.py method=adalora …

Rank 0 writes, prints and holds the lock; its results and errors reach the others through `on_main`. Every rank reads
the same settings and data and so raises the same SettingError; a rank that may have failed alone exits at once
(`fail`), so that torchrun stops the others and reports them. Without torchrun there is only rank 0, and these functions
do nothing special. torch is imported only inside functions, to keep the command line fast.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from adarank.errors import SettingError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # of one collective, in which the other ranks wait while rank 0 writes


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def shares_terminal() -> bool:
    """Whether this process is a worker of a parallel sweep (hydra/launcher=cores), whose output is interleaved with
    that of other workers."""
    return multiprocessing.current_process().name != "MainProcess"


def say(title: str, text: str) -> None:
    """Print a line about the run `title`, indented below the line that names it or, if the output of several runs is
    interleaved, with its title. A single write keeps other processes' lines out of it."""
    print(f"{f'{title}: ' if shares_terminal() else '  '}{text}\n", end="", flush=True)


def join() -> None:
    """Join the process group (gloo, and on CUDA also nccl with one device per rank). Works once per process, and does
    nothing with a single rank.

    Raises SettingError if a node has fewer devices than processes.
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
                f"--nproc-per-node must be at most {devices}, the number of devices on this node "
                f"(got {os.environ.get('LOCAL_WORLD_SIZE', local + 1)})"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def on_main(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 only; every rank gets its result, or raises the error that it raised."""
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
    """The `value` of every rank, ordered by rank."""
    if world() == 1:
        return [value]
    from torch import distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def fail(message: str) -> NoReturn:
    """Exit this process, which may have failed alone. The others would wait for it in a collective, but torchrun stops
    them."""
    print(f"error: {message} (rank {rank()})", file=sys.stderr, flush=True)
    leave(1)


def leave(status: int) -> NoReturn:
    """Exit this process at once, because gloo's threads may abort an interpreter that is shutting down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end(status: int) -> int:
    """Leave the process group at the end of the command. Returns `status` with a single rank, else exits with it."""
    if world() == 1:
        return status
    if "torch" in sys.modules:
        from torch import distributed as dist

        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    leave(status)


class Nothing:
    """Replaces the log and the heartbeat on ranks that do not write them."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def allocation(self, record: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def beat(self, step: int) -> None: ...

    def end(self, state: str, error: str | None = None) -> None: ...
