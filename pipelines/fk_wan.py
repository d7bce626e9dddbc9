"""Wan, text to video, with Feynman-Kac steering, as a `custom_pipeline`.

DiffusionPipeline.from_pretrained(MODEL, custom_pipeline="pipelines/fk_wan.py", trust_remote_code=True)
"""

from fk_steer.pipelines import FKWanPipeline


__all__ = ["FKWanPipeline"]
