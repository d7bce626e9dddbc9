"""The engine: carries out what a search says inside the stock loops of Diffusers pipelines."""

from .decode import LatentDecoder
from .events import ScoringEvent
from .execution import Execution
from .interception import UnsupportedSchedulerError, intercept_step
from .schedulers import predict_x0
from .steer import SteeredOutput, SteeredPipeline, steer


__all__ = [
    "Execution",
    "LatentDecoder",
    "ScoringEvent",
    "SteeredOutput",
    "SteeredPipeline",
    "UnsupportedSchedulerError",
    "intercept_step",
    "predict_x0",
    "steer",
]
