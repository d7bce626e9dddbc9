"""Modular pipelines, of the components of plain ones."""

from __future__ import annotations

from typing import Any

from diffusers import FluxPipeline, StableDiffusionXLPipeline, modular_pipelines

from ...diffusion.blocks import loops_of
from ..pipelines import flux, quiet, sd_scheduler, sdxl


def modular_sdxl() -> Any:
    return modular_of(sdxl(sd_scheduler("epsilon")))


def modular_flux() -> Any:
    return modular_of(flux())


def modular_of(plain: Any, blocks: Any = None, **options: Any) -> Any:
    """The modular pipeline of some blocks, with the components and settings of a plain pipeline.

    Args:
        blocks: that it is made of; None for those of Diffusers for an SDXL or Flux.
        **options: of `init_pipeline`.
    """
    if blocks is None:
        of = {
            StableDiffusionXLPipeline: modular_pipelines.StableDiffusionXLAutoBlocks,
            FluxPipeline: modular_pipelines.FluxAutoBlocks,
        }
        blocks = of[type(plain)]()
    pipe = blocks.init_pipeline(**options)
    for loop in loops_of(pipe):
        loop.set_progress_bar_config(disable=True)
    made_here = {"feature_extractor", "image_processor"}  # by the modular pipeline itself
    for name, component in plain.components.items():
        if component is not None and name in pipe._component_specs and name not in made_here:
            pipe.update_components(**{name: component})
    settings = {"requires_aesthetics_score", "force_zeros_for_empty_prompt"} & set(plain.config) & set(pipe.config)
    pipe.register_to_config(**{name: plain.config[name] for name in settings})
    for name, part in pipe.components.items():
        if name.endswith("_processor") and hasattr(pipe, "vae_scale_factor"):  # that of the tiny autoencoder
            setattr(pipe, name, type(part).from_config(part.config, vae_scale_factor=pipe.vae_scale_factor))
    return quiet(pipe)
