"""Sequential Monte Carlo on tensors: resampling, potentials, tempering, weights. Imports torch only and knows nothing
of diffusion."""

from .checks import flag, integer, numbers, real, scalar
from .feynman_kac import Event, FeynmanKac, State
from .names import Keywords, brief, is_named, suggestion, unknown
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
    "Keywords",
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
    "brief",
    "effective_sample_size",
    "flag",
    "integer",
    "is_named",
    "multinomial",
    "normalize",
    "numbers",
    "real",
    "residual",
    "scalar",
    "ssp",
    "standardize",
    "step_of",
    "stratified",
    "suggestion",
    "systematic",
    "top_k",
    "unknown",
]
