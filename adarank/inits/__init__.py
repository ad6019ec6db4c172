"""How the factors start. An init is a call that returns `(adapters: {name: LowRank}) -> None`, filling them in place."""

from adarank.inits.default import default

__all__ = ["default"]
