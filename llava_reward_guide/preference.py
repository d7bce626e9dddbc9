"""Comparing rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def preference_score(a: Tensor, b: Tensor) -> Tensor:
    """How much rather `a` than `b`: skew-symmetric, score(a, b) = -score(b, a).

    One number each (Bradley-Terry): a - b. Embeddings of even dimension (general preference model, arXiv 2410.02197):
    sum over even i of a_i b_{i+1} - a_{i+1} b_i.

    Args:
        a: (..., dim), broadcast against `b`.
        b: (..., dim).

    Returns:
        (...) of the same dtype.

    Raises:
        ValueError: for an odd dimension above one, or dimensions that differ.
    """
    dim = a.shape[-1]
    if dim != b.shape[-1] or (dim > 1 and dim % 2):
        raise ValueError(f"Expected rewards of one dimension, 1 or even, but got {dim} and {b.shape[-1]}.")
    if dim == 1:
        return (a - b).squeeze(-1)
    return (a[..., ::2] * b[..., 1::2] - a[..., 1::2] * b[..., ::2]).sum(-1)


def preference_probability(a: Tensor, b: Tensor, tau: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Probability that `a` is preferred to `b`: sigmoid(score / tau).

    Args:
        a: (..., dim), as for `preference_score`.
        b: (..., dim), likewise.
        tau: temperature.
        dtype: bfloat16 repeats the published evaluation, which rounds small differences to a tie at 0.5.

    Returns:
        (...) of `dtype`.
    """
    return torch.sigmoid(preference_score(a.to(dtype), b.to(dtype)) / tau)
