"""From latents to images, exactly as the pipeline does it, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor


class Decoder(Protocol):
    """Makes images of the x0 (M, ...) of rows (M,) of the batch: (M, 3, H, W), or videos (M, F, 3, H, W), in [0, 1]."""

    def __call__(self, x0: Tensor, rows: Tensor, /) -> Tensor: ...


PLAIN = frozenset(
    f"{name}Pipeline"
    for name in (
        "StableDiffusion",
        "StableDiffusionImg2Img",
        "StableDiffusionControlNet",
        "StableDiffusionPAG",
        "StableDiffusionSAG",
        "StableDiffusionXL",
        "StableDiffusionXLImg2Img",
        "StableDiffusionXLControlNet",
        "StableDiffusionXLPAG",
        "StableDiffusion3",
        "Flux",
    )
)
"""Classes of Diffusers that do nothing with their last latents but what `LatentDecoder` does."""


def decodes_plainly(pipe: Any) -> bool:
    """Whether a `LatentDecoder` makes the images that the pipeline would."""
    return any(cls.__name__ in PLAIN and cls.__module__.startswith("diffusers.") for cls in type(pipe).__mro__)


class LatentDecoder:
    """Decodes latents to images the way Stable Diffusion 1/2, XL, 3 and Flux decode their final latents.

    Args:
        pipe: the pipeline, with `vae` and `image_processor`.
        vae: decodes instead of `pipe.vae`, an `AutoencoderTiny` for previews for example.
        size: (height, width) in pixels, needed for pipelines that pack their latents.
    """

    def __init__(self, pipe: Any, vae: Any = None, size: tuple[int, int] | None = None) -> None:
        self.pipe = pipe
        self.vae = pipe.vae if vae is None else vae
        self.size = size
        # Taken before anything wraps it, so that previews are not counted as the pipeline's own decoding.
        self._decode: Callable[..., Any] = self.vae.decode

    def __call__(self, latents: Tensor, rows: Tensor | None = None, /) -> Tensor:
        """(B, ...) latents of the denoising loop -> (B, 3, H, W) images in [0, 1], float32."""
        if latents.ndim == 3 and hasattr(self.pipe, "_unpack_latents"):
            assert self.size is not None
            latents = self.pipe._unpack_latents(latents, *self.size, self.pipe.vae_scale_factor)
        with _upcast(self.vae):
            latents = latents.to(get_module_execution_device(self.vae), self.vae.dtype)
            image = self._decode(self._unscale(latents), return_dict=False)[0]
        images: Tensor = self.pipe.image_processor.postprocess(image, output_type="pt")
        return images.float()

    def _unscale(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            moments = (config.latents_mean, config.latents_std)
            mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in moments)
            return latents * std / float(config.scaling_factor) + mean
        shift = float(config.get("shift_factor") or 0.0)
        latents = latents / float(config.scaling_factor)
        return latents + shift if shift else latents


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """SDXL's autoencoder overflows in float16 and says so in its config; decode in float32 and go back."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)
