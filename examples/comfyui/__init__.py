"""Nodes of fk-steer for ComfyUI: steer a pipeline of Diffusers towards high reward, and score images."""

from .nodes import FKScoreImages, FKSteerSample


NODE_CLASS_MAPPINGS = {"FKSteerSample": FKSteerSample, "FKScoreImages": FKScoreImages}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FKSteerSample": "Steer and Sample (fk-steer)",
    "FKScoreImages": "Score Images (fk-steer)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
