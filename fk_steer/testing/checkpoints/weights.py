"""Random weights under published names, and the shapes of what most models are made of."""

from __future__ import annotations

import torch
from torch import Tensor


Shapes = dict[str, tuple[int, ...]]


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights whose outputs differ between inputs: scales near one, the rest of a variance that keeps activations'."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("logit_scale"):
            value = torch.tensor(4.6052)
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value
        elif "embed" not in name and "shared" not in name:
            value = value / value[0].numel() ** 0.5
        weights[name] = value
    return weights


def linear(name: str, out_width: int, in_width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out_width, in_width), **({f"{name}.bias": (out_width,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
