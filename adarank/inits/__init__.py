"""How the factors start: see `init.Init`; one file each."""

from adarank.inits.default import default

__all__ = ["default"]
