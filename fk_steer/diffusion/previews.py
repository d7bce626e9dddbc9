"""Small decoders for early x0 predictions."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from ..loading import load_preview
from ..smc import brief


def preview_decoder(given: Any, pipe: Any, own: Any, plain: bool, videos: bool) -> Any:
    """A decoder that stands in for the pipeline's autoencoder, where that is and in its dtype.

    Args:
        given: it, or the hub id or path of an `AutoencoderTiny`.
        own: the pipeline's autoencoder; None for a pipeline without.
        plain: whether it is called by a `LatentDecoder`, and not put into the pipeline.
        videos: whether the pipeline gives videos.

    Raises:
        ValueError: for one that cannot do so.
    """
    small = load_preview(given, pipe) if isinstance(given, str) else given
    whole = isinstance(small, torch.nn.Module) and hasattr(small, "dtype") and hasattr(small, "device")
    if not hasattr(small, "decode") or not hasattr(small, "config") or not (whole or plain):
        raise ValueError(
            "Expected the preview's decoder to be an `AutoencoderTiny`, or the hub id or path of one, but got "
            f"{brief(small)}."
        )
    if isinstance(small, AutoencoderTiny) and videos and not isinstance(own, AutoencoderKL):
        raise ValueError(
            f"{type(pipe).__name__} decodes videos whole, with its {type(own).__name__}, and an `AutoencoderTiny` "
            "decodes images. Diffusers has no small decoder of such latents: leave `preview` out, or give it one of "
            "your own, a module which is put in the place of the pipeline's and needs what that is asked for: "
            "`decode`, `config`, `dtype` and `device`."
        )
    if hasattr(small, "to"):
        small.to(pipe._execution_device, own.dtype if own is not None else pipe.dtype)
    return small
