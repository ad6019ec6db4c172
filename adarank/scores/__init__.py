"""Scores, which measure how important every triplet is; one per file. `adarank.scores.score.Score` defines a score."""

from adarank.scores.adalora import adalora
from adarank.scores.contribution import contribution
from adarank.scores.fisher import fisher
from adarank.scores.igu import igu
from adarank.scores.magnitude import magnitude
from adarank.scores.module_output import module_output
from adarank.scores.output import output
from adarank.scores.random import random
from adarank.scores.salience import salience
from adarank.scores.sensitivity import sensitivity
from adarank.scores.settling import settling
from adarank.scores.share import share
from adarank.scores.smoothed_sensitivity import smoothed_sensitivity
from adarank.scores.spectral_entropy import spectral_entropy
from adarank.scores.taylor import taylor

__all__ = [
    "adalora",
    "contribution",
    "fisher",
    "igu",
    "magnitude",
    "module_output",
    "output",
    "random",
    "salience",
    "sensitivity",
    "settling",
    "share",
    "smoothed_sensitivity",
    "spectral_entropy",
    "taylor",
]
