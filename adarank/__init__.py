"""adarank: low-rank adapters whose rank budget adapts.

Importing the package is fast, because torch is imported only when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adarank import allocators as allocators
    from adarank import inits as inits
    from adarank import integrations as integrations
    from adarank import penalties as penalties
    from adarank import schedules as schedules
    from adarank import scores as scores
    from adarank.adaptation import adapt as adapt
    from adarank.adaptation import ranks as ranks
    from adarank.adaptation import reach as reach
    from adarank.adaptation import trainable_parameters as trainable_parameters
    from adarank.adapters.bitfit import bitfit as bitfit
    from adarank.adapters.bitfit import head as head
    from adarank.adapters.bottleneck import bottlenecks as bottlenecks
    from adarank.adapters.merge import disabled as disabled
    from adarank.adapters.merge import merge as merge
    from adarank.adapters.merge import unmerge as unmerge
    from adarank.adapters.saving import load_adapter as load_adapter
    from adarank.adapters.saving import save_adapter as save_adapter
    from adarank.compaction import compact as compact
    from adarank.compression import compress as compress
    from adarank.controller import RankController as RankController
    from adarank.errors import SettingError as SettingError
    from adarank.graph_capture import capture as capture
    from adarank.integrations.peft_export import to_peft as to_peft
    from adarank.integrations.peft_import import from_peft as from_peft
    from adarank.runs.frame import frame as frame
    from adarank.suggestion import suggest_ranks as suggest_ranks
    from adarank.truncation import truncate as truncate

_NAMES = {  # {module: the public names that it defines}
    "adaptation": ("adapt", "ranks", "reach", "trainable_parameters"),
    "adapters.bitfit": ("bitfit", "head"),
    "adapters.bottleneck": ("bottlenecks",),
    "adapters.merge": ("disabled", "merge", "unmerge"),
    "adapters.saving": ("load_adapter", "save_adapter"),
    "compaction": ("compact",),
    "compression": ("compress",),
    "controller": ("RankController",),
    "errors": ("SettingError",),
    "graph_capture": ("capture",),
    "integrations.peft_export": ("to_peft",),
    "integrations.peft_import": ("from_peft",),
    "runs.frame": ("frame",),
    "suggestion": ("suggest_ranks",),
    "truncation": ("truncate",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_ROOMS = ("allocators", "inits", "integrations", "penalties", "schedules", "scores")
__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"adarank.{name}")
    if name in _HOME:
        return getattr(import_module(f"adarank.{_HOME[name]}"), name)
    raise AttributeError(f"module 'adarank' has no attribute {name!r}")
