"""Flux with Feynman-Kac steering, as a `custom_pipeline`.

DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="pipelines/fk_flux.py", trust_remote_code=True)
"""

from fk_steer.pipelines import FKFluxPipeline


__all__ = ["FKFluxPipeline"]
