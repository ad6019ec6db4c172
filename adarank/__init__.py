"""adarank: low-rank adapters whose rank budget adapts.

Importing the package is light; torch comes with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adarank import allocators, inits, integrations, penalties, schedules, scores
    from adarank.adapters.bitfit import bitfit, head
    from adarank.adapters.inject import adapt, ranks, reach, trainable_parameters
    from adarank.adapters.insert import bottlenecks
    from adarank.adapters.merge import disabled, merge, unmerge
    from adarank.adapters.saving import load_adapter, save_adapter
    from adarank.compaction import compact
    from adarank.compression import compress
    from adarank.controller import RankController
    from adarank.errors import SettingError
    from adarank.integrations.peft_export import to_peft
    from adarank.integrations.peft_import import from_peft

_HOME = {
    "adapt": "adapters.inject",
    "bitfit": "adapters.bitfit",
    "head": "adapters.bitfit",
    "bottlenecks": "adapters.insert",
    "ranks": "adapters.inject",
    "reach": "adapters.inject",
    "trainable_parameters": "adapters.inject",
    "merge": "adapters.merge",
    "unmerge": "adapters.merge",
    "disabled": "adapters.merge",
    "save_adapter": "adapters.saving",
    "load_adapter": "adapters.saving",
    "compact": "compaction",
    "compress": "compression",
    "RankController": "controller",
    "SettingError": "errors",
    "to_peft": "integrations.peft_export",
    "from_peft": "integrations.peft_import",
}
_ROOMS = ("allocators", "inits", "integrations", "penalties", "schedules", "scores")

__all__ = [
    "RankController",
    "SettingError",
    "adapt",
    "allocators",
    "bitfit",
    "bottlenecks",
    "compact",
    "compress",
    "disabled",
    "from_peft",
    "head",
    "inits",
    "integrations",
    "load_adapter",
    "merge",
    "penalties",
    "ranks",
    "reach",
    "save_adapter",
    "schedules",
    "scores",
    "to_peft",
    "trainable_parameters",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"adarank.{name}")
    if name in _HOME:
        return getattr(import_module(f"adarank.{_HOME[name]}"), name)
    raise AttributeError(f"module 'adarank' has no attribute {name!r}")
