"""A bundled pipeline in bfloat16, its denoiser compiled: the same images to the eye in a third of the time, for studies
of many thousand images on CPUs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from ..diffusion.rows import map_rows


ROWS = 64
"""That the denoiser is compiled for; others are filled up."""


def in_half(pipe: Any, compile: bool = True) -> Any:
    """Let a Stable Diffusion or SDXL pipeline on the CPU compute its UNet and decoder in bfloat16. Latents, scheduler
    and rewards stay as they are.

    Args:
        pipe: is changed.
        compile: the UNet too, which takes most of a minute at the first call.

    Returns:
        The pipeline.
    """
    unet, vae = (copy.deepcopy(module).to(torch.bfloat16) for module in (pipe.unet, pipe.vae))
    run = torch.compile(unet, dynamic=False) if compile else unet

    def denoise(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **conditions: Any) -> Tensor:
        sizes = torch.as_tensor(timestep, dtype=torch.float32)
        output: Tensor = run(sample, sizes, encoder_hidden_states, return_dict=False, **conditions)[0]
        return output

    def forward(
        sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **conditions: Any
    ) -> Any:
        timesteps = torch.as_tensor(timestep, dtype=torch.float32).expand(len(sample)).contiguous()
        conditions = {name: value for name, value in conditions.items() if value is not None}
        parts = _in_chunks(denoise, len(sample), (sample, timesteps, encoder_hidden_states), conditions)
        return UNet2DConditionOutput(sample=parts) if return_dict else (parts,)

    def decode(z: Tensor, return_dict: bool = True, **options: Any) -> Any:
        images = vae.decode(z.bfloat16(), return_dict=False)[0].float()
        return DecoderOutput(sample=images) if return_dict else (images,)

    pipe.unet.forward, pipe.vae.decode = forward, decode
    return pipe


def _in_chunks(
    function: Callable[..., Tensor], number: int, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Tensor:
    """What a function makes of rows, `ROWS` at a time."""

    def some(start: int) -> Tensor:
        def part(rows: Tensor) -> Tensor:
            rows = rows[start : start + ROWS]
            missing = ROWS - len(rows)
            rows = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
            return rows.bfloat16() if rows.ndim > 1 else rows

        return function(*map_rows(part, arguments, number), **map_rows(part, named, number))

    return torch.cat([some(start) for start in range(0, number, ROWS)])[:number].float()
