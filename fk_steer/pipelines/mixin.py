"""What makes a pipeline class steerable by its own `__call__`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from ..config import DEFAULT_PRESET, FKSteering
from ..diffusion.steering import steer
from ..rewards.base import RewardFunction


class SteeringMixin:
    """Adds `reward`, `steering`, `reward_prompt` and `particle_parallel` to the `__call__` of the pipeline class it is
    mixed into.

    ```py
    class FKStableDiffusionPipeline(SteeringMixin, StableDiffusionPipeline):
        ...
    ```

    Without a reward the call is the stock pipeline's own.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("__call__")
        if own is None and any("__call__" in vars(base) for base in cls.__mro__[1:] if issubclass(base, SteeringMixin)):
            return  # it inherits a steerable one
        inherited = super().__call__  # type: ignore[misc]
        stock = own or inherited
        # `steer` and readers need the arguments by name, which a `__call__(self, *args, **kwargs)` does not give.
        named = stock if "prompt" in inspect.signature(stock).parameters else inherited

        @functools.wraps(stock)
        def call(
            self: Any,
            *args: Any,
            reward: RewardFunction | None = None,
            steering: FKSteering | str | None = None,
            reward_prompt: str | Sequence[str] | None = None,
            particle_parallel: bool | dist.ProcessGroup = False,
            **kwargs: Any,
        ) -> Any:
            if reward is None:
                if steering is not None or reward_prompt is not None or particle_parallel:
                    raise ValueError("`steering`, `reward_prompt` and `particle_parallel` need a `reward` to steer by.")
                return stock(self, *args, **kwargs)
            steered = steer(self, reward, DEFAULT_PRESET if steering is None else steering)
            return steered(*args, reward_prompt=reward_prompt, particle_parallel=particle_parallel, **kwargs)

        call.__doc__ = f"{_DOCUMENTATION}\n{inspect.getdoc(named) or ''}"
        call.__signature__ = _with_steering_parameters(named)  # type: ignore[attr-defined]
        cls.__call__ = call  # type: ignore[method-assign]


def _with_steering_parameters(stock: Any) -> inspect.Signature:
    signature = inspect.signature(stock)
    parameters = list(signature.parameters.values())
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in (
            ("reward", None),
            ("steering", None),
            ("reward_prompt", None),
            ("particle_parallel", False),
        )
        if name not in signature.parameters
    ]
    end = -1 if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else len(parameters)
    return signature.replace(parameters=[*parameters[:end], *added, *parameters[end:]])


_DOCUMENTATION = """Generate images, steered by a reward if one is given.

Steering arguments (the others are the stock pipeline's, below):
    reward: a `Reward`, or a function (images (B, 3, H, W) in [0, 1], prompts) -> (B,). None runs the stock pipeline.
    steering: an `FKSteering` or the name of a preset; defaults to 'adaptive'.
    reward_prompt: what the reward reads in place of `prompt`, one text or one per prompt.
    particle_parallel: True shares the particles between the processes of `torch.distributed`'s default group, a process
        group between its own.

With a reward the result is a `SteeredOutput`: per prompt all particles that were alive at the end, best first, with
`rewards`, `log_weights` and `trace`. With `return_dict=False` those three follow the stock pipeline's tuple.
"""
