"""What training needs of a pipeline, by family: captions and images as its denoiser takes them, and a call of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Denoiser:
    """Stable Diffusion's: one text encoder, a UNet.

    Args:
        pipe: with `vae`, `scheduler`, text encoders and a denoiser.
        text_length: tokens of T5; None for as many as the pipeline takes.
        embedded_guidance: for denoisers that take guidance as an input.
    """

    component = "unet"
    KEPT = 4096
    """Embeddings of so many captions are kept."""

    def __init__(self, pipe: Any, text_length: int | None = None, embedded_guidance: float = 3.5) -> None:
        self.pipe = pipe
        self.lengths = {} if text_length is None else {"max_sequence_length": text_length}
        self.embedded_guidance = embedded_guidance
        self._texts: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def module(self) -> Any:
        """The denoiser, a module of Diffusers."""
        return getattr(self.pipe, self.component)

    @property
    def resolution(self) -> int:
        """The side in pixels of images that the model was made for."""
        return int(self.module.config.sample_size * self.pipe.vae_scale_factor)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32, scaled as the denoiser knows them: the means of the encoder's distributions.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
        """
        vae = self.pipe.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    @torch.no_grad()
    def conditions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Name -> (B, ...) embeddings of captions; an empty one is what classifier-free guidance takes for none."""
        missing = [text for text in dict.fromkeys(captions) if text not in self._texts]
        if missing:
            encoded = self._encode(missing)
            for number, text in enumerate(missing):
                self._texts[text] = {name: values[number] for name, values in encoded.items()}
        found = [self._texts[text] for text in captions]
        while len(self._texts) > self.KEPT:
            self._texts.popitem(last=False)
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeddings, _ = self.pipe.encode_prompt(texts, self.pipe._execution_device, 1, False)
        return {"text": embeddings}

    def __call__(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], sizes: Tensor
    ) -> Tensor:
        """What a denoiser predicts.

        Args:
            module: `self.module`, wrapped, or a copy of it.
            noisy: (B, C, h, w).
            timesteps: (B,), of the scheduler's.
            conditions: of `conditions`.
            sizes: (B, 6): original height and width, top and left of the cut, its height and width (SDXL's time ids).

        Returns:
            (B, C, h, w).
        """
        output: Tensor = module(noisy, timesteps, encoder_hidden_states=conditions["text"], return_dict=False)[0]
        return output


class XLDenoiser(Denoiser):
    """SDXL's: two text encoders, and the sizes of images as a condition."""

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeddings, _, pooled, _ = self.pipe.encode_prompt(
            texts, device=self.pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            given = torch.tensor([bool(text) for text in texts], device=embeddings.device)
            embeddings, pooled = embeddings * given[:, None, None], pooled * given[:, None]
        return {"text": embeddings, "pooled": pooled}

    def __call__(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], sizes: Tensor
    ) -> Tensor:
        added = {"text_embeds": conditions["pooled"], "time_ids": sizes.to(conditions["pooled"].dtype)}
        output: Tensor = module(
            noisy, timesteps, encoder_hidden_states=conditions["text"], added_cond_kwargs=added, return_dict=False
        )[0]
        return output


class SD3Denoiser(Denoiser):
    """Stable Diffusion 3's: up to three text encoders, a transformer, a flow."""

    component = "transformer"

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeddings, _, pooled, _ = self.pipe.encode_prompt(
            texts,
            None,
            None,
            device=self.pipe._execution_device,
            do_classifier_free_guidance=False,
            **self.lengths,
        )
        return {"text": embeddings, "pooled": pooled}

    def __call__(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], sizes: Tensor
    ) -> Tensor:
        output: Tensor = module(
            noisy,
            timestep=timesteps,
            encoder_hidden_states=conditions["text"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]
        return output


class FluxDenoiser(Denoiser):
    """Flux's: a transformer on latents in patches of 2 x 2, guidance as an input where it was distilled."""

    component = "transformer"

    @property
    def resolution(self) -> int:
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        embeddings, pooled, _ = self.pipe.encode_prompt(texts, None, device=self.pipe._execution_device, **self.lengths)
        return {"text": embeddings, "pooled": pooled}

    def __call__(
        self, module: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], sizes: Tensor
    ) -> Tensor:
        B, C, h, w = noisy.shape
        text, pipe = conditions["text"], self.pipe
        places = pipe._prepare_latent_image_ids(B, h // 2, w // 2, noisy.device, noisy.dtype)
        guidance = None
        if pipe.transformer.config.guidance_embeds:
            guidance = torch.full((B,), self.embedded_guidance, device=noisy.device)
        packed = module(
            hidden_states=pipe._pack_latents(noisy, B, C, h, w),
            # This transformer counts time from 0 to 1.
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        scale = pipe.vae_scale_factor
        output: Tensor = pipe._unpack_latents(packed, h * scale, w * scale, scale)
        return output


FAMILIES: dict[str, type[Denoiser]] = {
    "StableDiffusionPipeline": Denoiser,
    "StableDiffusionXLPipeline": XLDenoiser,
    "StableDiffusion3Pipeline": SD3Denoiser,
    "FluxPipeline": FluxDenoiser,
}
"""Class of a stock pipeline -> what trains it."""


def denoiser_of(pipe: Any, text_length: int | None = None, embedded_guidance: float = 3.5) -> Denoiser:
    """What trains a pipeline, or one of a class made of it.

    Raises:
        ValueError: for a pipeline of another family.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__](pipe, text_length, embedded_guidance)
    raise ValueError(
        f"Cannot train a {type(pipe).__name__}. Expected one of: {', '.join(FAMILIES)}. A part that a stock pipeline "
        "shares with it can be trained there, and its weights loaded into it."
    )
