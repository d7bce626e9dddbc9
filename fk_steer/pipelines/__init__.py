"""Stock Diffusers pipelines whose call takes `reward=` and `steering=`."""

from .auto import register, stay_steerable, steerable
from .fk_flux import FKFluxPipeline
from .fk_stable_diffusion import FKStableDiffusionPipeline
from .fk_stable_diffusion_3 import FKStableDiffusion3Pipeline
from .fk_stable_diffusion_xl import FKStableDiffusionXLPipeline
from .fk_wan import FKWanPipeline


register()
stay_steerable()


__all__ = [
    "FKFluxPipeline",
    "FKStableDiffusion3Pipeline",
    "FKStableDiffusionPipeline",
    "FKStableDiffusionXLPipeline",
    "FKWanPipeline",
    "steerable",
]
