"""What pipelines return, as tensors, and tensors as what users ask for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from .components import autoencoder_of, call_names, image_output, is_modular


def run_pipeline(pipe: Any, arguments: Mapping[str, Any], output_type: str) -> tuple[Any, ...]:
    """What a pipeline's call returns: its images or videos, and anything beside."""
    names, asked = call_names(pipe), dict(arguments)
    if "output_type" in names:
        asked["output_type"] = output_type
    if is_modular(pipe):
        return (pipe(**{**asked, "output": image_output(pipe)}),)
    if "return_dict" in names:
        asked["return_dict"] = False
    output = pipe(**asked)
    if isinstance(output, tuple):
        return output
    return tuple(output.values()) if isinstance(output, Mapping) else (output,)


def tensor_type(pipe: Any, arguments: Mapping[str, Any]) -> str:
    """The `output_type` with which a pipeline gives images in [0, 1]: 'pt', where a processor makes them of what an
    autoencoder decodes, else 'np', as tensors may then be in [-1, 1]. What is put back into an image that was cropped
    (`padding_mask_crop`) is 'pil'.

    Args:
        arguments: of the call.
    """
    if arguments.get("padding_mask_crop") is not None:
        return "pil"
    if is_modular(pipe):
        return "pt"
    processor = hasattr(pipe, "image_processor") or hasattr(pipe, "video_processor")
    return "pt" if processor and autoencoder_of(pipe) is not None else "np"


def default_output_type(pipe: Any) -> str:
    """What a pipeline gives unasked: 'np' for the videos of some, 'pil' for most."""
    parameter = inspect.signature(pipe.__call__).parameters.get("output_type")
    return next((kind for kind in ("np", "pt") if parameter is not None and parameter.default == kind), "pil")


def as_tensor(images: Any, videos: bool) -> Tensor:
    """Images (B, 3, H, W), or videos (B, F, 3, H, W), as float32: in [0, 1], but beyond 1 for linear light (HDR), of
    which rewards and pictures of eight bits get what is within.

    Args:
        images: a tensor, an array with the channels last, PIL images, or lists of these.
        videos: whether they are videos.

    Raises:
        ValueError: for anything else.
    """
    tensor = _tensor(images)
    dims = 5 if videos else 4
    if videos and tensor.ndim == 5 and tensor.shape[1] == 3 != tensor.shape[2]:
        tensor = tensor.transpose(1, 2)
    if videos and tensor.ndim == 4:
        tensor = tensor[None]  # the frames of one
    if tensor.ndim == 3 and tensor.shape[0] != 3:
        tensor = tensor[:, None].expand(-1, 3, -1, -1)  # greyscale
    if tensor.ndim != dims or tensor.shape[-3] not in (1, 3, 4):
        kind = "videos (B, F, 3, H, W)" if videos else "images (B, 3, H, W)"
        raise ValueError(f"Expected the pipeline to give {kind}, but it gave {tuple(tensor.shape)}.")
    return tensor.float()


def within(images: Tensor) -> Tensor:
    """What rewards get of images or videos: videos may be of linear light, whose values beyond 1 they do not know."""
    return images.clamp(0.0, 1.0) if images.ndim == 5 else images


def _tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        channels_last = images.ndim > 3 and images.shape[-1] == 3 and images.shape[-3] not in (1, 3, 4)
        return images.movedim(-1, -3) if channels_last else images
    if isinstance(images, np.ndarray):
        tensor = torch.from_numpy(images)
        return tensor.movedim(-1, -3) if tensor.shape[-1] in (1, 3, 4) else tensor
    if isinstance(images, Image):
        return torch.from_numpy(np.array(images.convert("RGB"))).movedim(-1, -3).float() / 255
    if isinstance(images, (list, tuple)) and images:
        return torch.stack([_tensor(image) for image in images])
    raise ValueError(f"Expected the pipeline to give images, but it gave {type(images).__name__}.")


def convert(images: Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1] as 'pt', 'np' (channels last) or 'pil': B images, or B
    lists of F."""
    if output_type == "pt":
        return images
    if images.ndim == 5:
        frames = [convert(video, output_type) for video in images]
        return np.stack(frames) if output_type == "np" else frames
    arrays = VaeImageProcessor.pt_to_numpy(images)
    return VaeImageProcessor.numpy_to_pil(arrays.clip(0.0, 1.0)) if output_type == "pil" else arrays
