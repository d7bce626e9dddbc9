"""Stable Diffusion XL with Feynman-Kac steering, as a `custom_pipeline`.

DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="pipelines/fk_stable_diffusion_xl.py", trust_remote_code=True)
"""

from fk_steer.pipelines import FKStableDiffusionXLPipeline


__all__ = ["FKStableDiffusionXLPipeline"]
