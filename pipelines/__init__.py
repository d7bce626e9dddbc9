"""Custom Diffusers pipelines, installed as `fk_steer.pipelines`. Each file also works as `custom_pipeline=`."""

from .fk_stable_diffusion import FKStableDiffusionPipeline
from .fk_stable_diffusion_xl import FKStableDiffusionXLPipeline


__all__ = ["FKStableDiffusionPipeline", "FKStableDiffusionXLPipeline"]
