"""The semantics of CUDA graphs on the CPU: records the aten operations of a step, then replays them on the same memory.

As with a captured graph, Python does not run during a replay, every number is frozen, every tensor keeps its address,
and new inputs are copied into the recorded tensors. A step that would fail when captured (a step counter or a learning
rate passed as a float, a gradient set to None between replays, a value read back) therefore fails here, too, without a
GPU. There are two differences: recording also computes the step, and it continues where a CUDA graph would refuse a
synchronisation, which is listed in `syncs`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS_BACK = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"}
ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def name_of(operation: Any) -> str:
    """The operation's name without namespace and overload: "addmm_"."""
    return operation._schema.name.partition("::")[2]  # type: ignore[no-any-return]


class Tape(TorchDispatchMode):
    """Records the operations inside `with tape.recording():` and repeats them with `tape.replay()`.

    syncs: the names of the recorded operations for which a GPU's host would wait (a value is read back, or the size of
    a result depends on values). calls: (operation, positional and keyword arguments, result) of every operation that
    computes. Views and allocations are not repeated, since they are the same memory. An operation with a new result is
    repeated and its result copied into the recorded one. Random operations draw again, from the generator's current
    state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []
        self.syncs: list[str] = []

    @contextmanager
    def recording(self) -> Iterator["Tape"]:
        """Inside the `with`, operations are recorded and computed, and torch reports that a graph is being captured."""
        with self, patch("torch.cuda.is_current_stream_capturing", lambda: True):
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = name_of(func)
        if name in READS_BACK or (name.startswith("index") and _by_mask(args)):
            self.syncs.append(name)
        if func.namespace != "profiler" and not func.is_view and name not in ALLOCATES:
            self.calls.append((func, args, kwargs, result))  # keeps every tensor alive, like a graph's memory pool
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat every recorded operation on the tensors that it had when it was recorded."""
        for func, args, kwargs, recorded in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _by_mask(args: Sequence[Any]) -> bool:
    """Whether an indexing operation has a mask among its indices, so that the size of its result depends on values."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
