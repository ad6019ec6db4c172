"""How the factors are initialised: see `init.Init`; one file for each init."""

from adarank.inits.default import default
from adarank.inits.eva import eva
from adarank.inits.gate import gate
from adarank.inits.gora import gora
from adarank.inits.lora_ga import lora_ga
from adarank.inits.olora import olora
from adarank.inits.orthonormal import orthonormal
from adarank.inits.pissa import pissa

__all__ = ["default", "eva", "gate", "gora", "lora_ga", "olora", "orthonormal", "pissa"]
