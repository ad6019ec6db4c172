"""Which triplets matter. A score is three functions over the bank (see `score.Score`); each lives in a file of its own."""

from adarank.scores.adalora import adalora
from adarank.scores.contribution import contribution
from adarank.scores.magnitude import magnitude

__all__ = ["adalora", "contribution", "magnitude"]
