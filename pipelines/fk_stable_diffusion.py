"""Stable Diffusion 1.x and 2.x with Feynman-Kac steering, as a `custom_pipeline`.

DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="pipelines/fk_stable_diffusion.py", trust_remote_code=True)
"""

from fk_steer.pipelines import FKStableDiffusionPipeline


__all__ = ["FKStableDiffusionPipeline"]
