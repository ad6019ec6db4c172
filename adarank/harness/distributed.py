"""Several processes, one run: what torchrun's variables say, and how the processes (ranks) agree.

    torchrun --nproc-per-node=2 experiments/run.py method=adalora …

Rank 0 writes, prints and holds the lock; what it finds out reaches the others through `on_main`. Without torchrun there
is one rank, the main one, and nothing here does anything. torch is imported only where it is used, for the command
line's sake.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from adarank.errors import SettingError

T = TypeVar("T")
PATIENCE = 20.0  # seconds that a failed rank waits for the others to fail likewise, before it ends them all
TIMEOUT = timedelta(hours=2)  # of one collective: others wait in it while rank 0 writes
_joined: list[Any] = []  # the store through which ranks agree, once they have met
_outcomes = 0  # agreed on so far


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def join() -> None:
    """Meet the other ranks (gloo, and nccl on CUDA, one device a rank); once a process, nothing with one rank.

    Raises SettingError where a node has fewer devices than processes.
    """
    import torch
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if world() == 1 or dist.is_initialized():
        return
    store = _store()
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise SettingError(
                f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', local + 1)} is more than the {devices} devices "
                f"of this node; valid: at most {devices}"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    group = PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank(), world_size=world(), timeout=TIMEOUT)


def _store() -> Any:
    if not _joined:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        _joined.append(PrefixStore("adarank", next(iter(rendezvous("env://", timeout=TIMEOUT)))[0]))
    return _joined[0]


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


def agree(status: int, error: str | None) -> tuple[int, str | None]:
    """The outcome of one piece of work (exit status, error) on all ranks: that of the first one that failed, without the
    error where it has been printed.

    A rank that fails alone, while the others wait for it in a collective, cannot be waited for: it says why and leaves;
    torchrun ends the others. Goes through the store, since a collective could itself be what failed.
    """
    global _outcomes
    if world() == 1:
        return status, error
    store = _store()
    keys, said = _keys(), f"said/{_outcomes}"
    store.set(keys[rank()], json.dumps([status, error]))
    patience = PATIENCE if status else TIMEOUT.total_seconds()
    until = time.monotonic() + patience
    while not store.check(keys):
        if time.monotonic() > until:
            if store.add(said, 1) == 1:
                print(f"error: {error} (rank {rank()})", file=sys.stderr, flush=True)
            leave(status or 1)
        time.sleep(0.02)  # not store.wait, which would keep the store from everybody else in this process
    found = [json.loads(store.get(key)) for key in keys]
    _outcomes += 1
    status, error = next((outcome for outcome in found if outcome[0]), found[0])
    return status, None if store.check([said]) else error


def _keys() -> list[str]:
    return [f"outcome/{_outcomes}/{r}" for r in range(world())]


def cause(error: str) -> str:
    """Why another rank has failed by now, on which this one's `error` follows (a broken connection, say); else `error`."""
    if world() == 1:
        return error
    store = _store()
    told = [json.loads(store.get(key)) for key in _keys() if store.check([key])]
    return next((message for status, message in told if status), error)


def leave(status: int) -> NoReturn:
    """End this process at once: threads of gloo may abort an interpreter that winds down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end(status: int) -> int:
    """At the end of the command: part from the other ranks. Returns `status` where there are none, else leaves."""
    if world() == 1:
        return status
    status, _ = agree(status, None)
    if "torch" in sys.modules:
        from torch import distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
    leave(status)


class Nothing:
    """Stands for the log and the heartbeat on the ranks that write none."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def allocation(self, record: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def beat(self, step: int) -> None: ...

    def end(self, state: str, error: str | None = None) -> None: ...
