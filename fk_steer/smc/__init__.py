"""Sequential Monte Carlo on tensors: resampling, potentials, tempering, populations. Imports torch only and knows
nothing of diffusion."""

from .population import Event, Population
from .potentials import POTENTIALS, Potential
from .resampling import (
    BIASED,
    RESAMPLERS,
    argmax,
    effective_sample_size,
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
    top_k,
)
from .schedule import Schedule
from .tempering import TEMPERINGS, Constant, Geometric, Rising, TargetESS, Tempering


__all__ = [
    "BIASED",
    "POTENTIALS",
    "RESAMPLERS",
    "TEMPERINGS",
    "Constant",
    "Event",
    "Geometric",
    "Population",
    "Potential",
    "Rising",
    "Schedule",
    "TargetESS",
    "Tempering",
    "argmax",
    "effective_sample_size",
    "multinomial",
    "residual",
    "ssp",
    "stratified",
    "systematic",
    "top_k",
]
