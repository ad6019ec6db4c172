"""How the factors start: see `init.Init`; one file each."""

from adarank.inits.default import default
from adarank.inits.gate import gate

__all__ = ["default", "gate"]
