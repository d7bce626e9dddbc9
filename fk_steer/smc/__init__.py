"""Sequential Monte Carlo on tensors: resampling, potentials, tempering, weights. Imports torch only and knows nothing
of diffusion."""

from .checks import flag, integer, real, scalar
from .feynman_kac import Event, FeynmanKac, State
from .potentials import POTENTIALS, Current, Difference, Max, Potential, Sum
from .resampling import (
    BIASED,
    RESAMPLERS,
    Generators,
    Resampling,
    argmax,
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
    top_k,
)
from .schedule import Schedule, step_of
from .standardize import standardize
from .tempering import TEMPERINGS, Constant, Geometric, Rising, TargetESS, Tempering
from .weights import Weights, effective_sample_size, normalize


__all__ = [
    "BIASED",
    "POTENTIALS",
    "RESAMPLERS",
    "TEMPERINGS",
    "Constant",
    "Current",
    "Difference",
    "Event",
    "FeynmanKac",
    "Generators",
    "Geometric",
    "Max",
    "Potential",
    "Resampling",
    "Rising",
    "Schedule",
    "State",
    "Sum",
    "TargetESS",
    "Tempering",
    "Weights",
    "argmax",
    "effective_sample_size",
    "flag",
    "integer",
    "multinomial",
    "normalize",
    "real",
    "residual",
    "scalar",
    "ssp",
    "standardize",
    "step_of",
    "stratified",
    "systematic",
    "top_k",
]
