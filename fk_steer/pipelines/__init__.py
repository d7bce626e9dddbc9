"""Stock Diffusers pipelines whose call takes `reward=` and `steering=`."""

from .fk_stable_diffusion import FKStableDiffusionPipeline
from .fk_stable_diffusion_xl import FKStableDiffusionXLPipeline


__all__ = ["FKStableDiffusionPipeline", "FKStableDiffusionXLPipeline"]
