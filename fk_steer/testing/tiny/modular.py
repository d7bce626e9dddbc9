"""Modular pipelines, of the components of plain ones."""

from __future__ import annotations

from typing import Any

from diffusers import modular_pipelines

from ...diffusion.blocks import loops_of
from ..pipelines import flux, sd_scheduler, sdxl


def modular_sdxl() -> Any:
    return modular_of(sdxl(sd_scheduler("epsilon")), modular_pipelines.StableDiffusionXLAutoBlocks())


def modular_flux() -> Any:
    return modular_of(flux(), modular_pipelines.FluxAutoBlocks())


def modular_of(plain: Any, blocks: Any) -> Any:
    """The modular pipeline of some blocks, with the components and settings of a plain pipeline."""
    pipe = blocks.init_pipeline()
    for loop in loops_of(pipe):
        loop.set_progress_bar_config(disable=True)
    made_here = {"feature_extractor", "image_processor"}  # by the modular pipeline itself
    for name, component in plain.components.items():
        if component is not None and name in pipe._component_specs and name not in made_here:
            pipe.update_components(**{name: component})
    options = {"requires_aesthetics_score", "force_zeros_for_empty_prompt"} & set(plain.config) & set(pipe.config)
    pipe.register_to_config(**{option: plain.config[option] for option in options})
    if hasattr(pipe, "image_processor") and hasattr(plain, "image_processor"):
        pipe.image_processor = plain.image_processor  # whose scale is that of the tiny autoencoder
    return pipe
