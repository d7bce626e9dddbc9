"""The bridge between sequential Monte Carlo and Diffusers pipelines."""

from .decode import LatentDecoder
from .schedulers import UnsupportedSchedulerError, intercept_step, predict_x0
from .steering import SteeredOutput, SteeredPipeline, steer


__all__ = [
    "LatentDecoder",
    "SteeredOutput",
    "SteeredPipeline",
    "UnsupportedSchedulerError",
    "intercept_step",
    "predict_x0",
    "steer",
]
