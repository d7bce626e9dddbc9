"""Tiny pipelines and rewards with random weights: for tests, of this package and of plugins, that take seconds on a CPU
and need no download.

- `pipelines`: Stable Diffusion, SDXL, SD3 and Flux, whose names are here too
- `tiny`: pipelines of twenty more families, of images and videos, plain and modular
- `rewards`: every registered reward
- `tokenizers`: of a few hundred tokens
- `checkpoints`: the names and shapes in published files
- `full_size`: architectures of published size
"""

from .pipelines import (
    CALLS,
    DIM,
    PROMPTS,
    SIZE,
    clip_text_config,
    clip_tokenizer,
    flux,
    quiet,
    redness,
    row_generators,
    save_clip,
    sd,
    sd3,
    sd_scheduler,
    sdxl,
    t5_tokenizer,
    unet,
    vae,
)


__all__ = [
    "CALLS",
    "DIM",
    "PROMPTS",
    "SIZE",
    "clip_text_config",
    "clip_tokenizer",
    "flux",
    "quiet",
    "redness",
    "row_generators",
    "save_clip",
    "sd",
    "sd3",
    "sd_scheduler",
    "sdxl",
    "t5_tokenizer",
    "unet",
    "vae",
]
