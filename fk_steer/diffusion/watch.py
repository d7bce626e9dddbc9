"""Who made the first NaN or infinity of a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NotFiniteError(ValueError):
    """Latents or images hold NaN or infinities; the message says what made them."""


class Watch:
    """Remembers of every step whether what went in and out was finite. No device waits before `check`.

    Args:
        denoiser, scheduler, vae: of the pipeline, for messages; None for one that it has not.
        callback: whether a function of the user's may change the latents after a step.
    """

    def __init__(self, denoiser: Any, scheduler: Any, vae: Any, callback: bool = False) -> None:
        self.denoiser, self.scheduler, self.vae, self.callback = denoiser, scheduler, vae, callback
        self._seen: list[tuple[str, torch.dtype, Tensor]] = []
        self._before: int | None = None

    def step(self, index: int, sample: Tensor, model_output: Tensor) -> None:
        """What a step begins with."""
        self.sample(sample)
        made = f"The denoiser ({type(self.denoiser).__name__}) returned NaN or infinities at step {index}"
        self._seen.append((made, model_output.dtype, model_output.isfinite().all()))
        self._before = index

    def sample(self, sample: Tensor) -> None:
        """What the last step has left."""
        if self._before is None:
            made = "The initial latents hold NaN or infinities"
        else:
            name = type(self.scheduler).__name__
            made = f"{name} made NaN or infinities of finite numbers at step {self._before}"
            made += ", or the callback after it did" if self.callback else ""
        self._seen.append((made, sample.dtype, sample.isfinite().all()))

    def check_x0(self, x0: Tensor, index: int) -> None:
        """Check the x0 predictions of a step.

        Raises:
            NotFiniteError: unless all are finite.
        """
        name = type(self.scheduler).__name__
        self._check(x0, f"{name} has no finite x0 predictions at step {index}, where alpha_bar is too close to 0")

    def check_images(self, images: Tensor) -> None:
        """Check the final images.

        Raises:
            NotFiniteError: unless all are finite.
        """
        made = _decoder_made(self.vae)
        self._check(images, made, None if self.vae is None else self.vae.dtype)

    def _check(self, values: Tensor, otherwise: str, dtype: torch.dtype | None = None) -> None:
        if values.isfinite().all():
            self._seen.clear()
            return
        finite = torch.stack([one.cpu() for _, _, one in self._seen]).tolist() if self._seen else []
        first = next((entry for entry, fine in zip(self._seen, finite) if not fine), None)
        made, dtype = (otherwise, dtype or values.dtype) if first is None else first[:2]
        raise NotFiniteError(f"{made}. {advice(dtype)}")


def check_decoder(vae: Any, images: Tensor, latents: Tensor) -> None:
    """
    Args:
        vae: that made `images` of `latents`; None if that was more than an autoencoder.

    Raises:
        NotFiniteError: if it made NaN of finite latents.
    """
    if images.isnan().any() and latents.isfinite().all():
        made = "The decoder made NaN of finite latents" if vae is None else _decoder_made(vae)
        raise NotFiniteError(f"{made}. {advice(latents.dtype if vae is None else vae.dtype)}")


def _decoder_made(vae: Any) -> str:
    return f"The decoder ({type(vae).__name__}) made NaN of finite latents"


def advice(dtype: torch.dtype) -> str:
    """What may help against NaN in numbers of this type."""
    if dtype == torch.float16:
        return "It computes in float16, whose range is small: try bfloat16 or float32."
    name = str(dtype).removeprefix("torch.")
    return f"It computes in {name}, whose range is large: look at its weights, inputs and settings."
