"""Stable Diffusion 3 and 3.5 with Feynman-Kac steering, as a `custom_pipeline`.

DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="pipelines/fk_stable_diffusion_3.py", trust_remote_code=True)
"""

from fk_steer.pipelines import FKStableDiffusion3Pipeline


__all__ = ["FKStableDiffusion3Pipeline"]
