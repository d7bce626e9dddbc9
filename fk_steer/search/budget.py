"""What a budget in denoiser calls decides where settings and the pipeline's call leave it open."""

from __future__ import annotations


OPEN_SAMPLER = "dpmsolver++"
"""What a budget is spent with where the pipeline can take it: of second order, it needs few steps."""

_STEPS = ((100, 10),)
"""(denoiser calls, steps up to these), ascending."""

_MOST_STEPS = 14
"""Above the last of them."""


def steps_for(calls: int) -> int:
    """Steps of the loop for a budget of `calls` denoiser calls per image: the rest of it buys particles."""
    return next((steps for most, steps in _STEPS if calls <= most), _MOST_STEPS)
