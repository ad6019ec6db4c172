"""How the factors are initialised: see `init.Init`; one file for each init."""

from adarank.inits.default import default
from adarank.inits.eva import eva
from adarank.inits.fisher import fisher
from adarank.inits.gate import gate
from adarank.inits.gora import gora
from adarank.inits.lora_ga import lora_ga
from adarank.inits.olora import olora
from adarank.inits.pissa import pissa
from adarank.inits.ralora import ralora

__all__ = ["default", "eva", "fisher", "gate", "gora", "lora_ga", "olora", "pissa", "ralora"]
