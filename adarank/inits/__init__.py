"""Initialisations of the factors, one per file; see `init.Init`."""

from adarank.inits.corda import corda
from adarank.inits.default import default
from adarank.inits.eva import eva
from adarank.inits.fisher import fisher
from adarank.inits.gate import gate
from adarank.inits.gora import gora
from adarank.inits.kaiming import kaiming
from adarank.inits.lora_ga import lora_ga
from adarank.inits.lora_one import lora_one
from adarank.inits.milora import milora
from adarank.inits.olora import olora
from adarank.inits.orthonormal import orthonormal
from adarank.inits.pissa import pissa
from adarank.inits.ralora import ralora

__all__ = [
    "corda",
    "default",
    "eva",
    "fisher",
    "gate",
    "gora",
    "kaiming",
    "lora_ga",
    "lora_one",
    "milora",
    "olora",
    "orthonormal",
    "pissa",
    "ralora",
]
