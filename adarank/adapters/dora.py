"""DoRA (arXiv 2402.09353): LoRA's W + s·B A, with a magnitude for every output."""

from adarank.adapters.lora import PARAMETRISATION as LORA
from adarank.adapters.magnitude import with_magnitude

PARAMETRISATION = with_magnitude("dora", LORA)
