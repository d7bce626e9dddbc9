"""What makes a pipeline class steerable by its own `__call__`."""

from __future__ import annotations

import functools
import inspect
import json
from typing import Any

from diffusers import DiffusionPipeline

from ..diffusion.steer import steer
from ..diffusion.validation import check_generator, check_keywords
from ..search import DEFAULT_PRESET


STEERABLE = "_steerable"
"""Set in the `model_index.json` of what was saved from a steerable class; Diffusers passes over it."""


def stock_class(steerable: type[Any]) -> type[DiffusionPipeline]:
    """The class of Diffusers that a steerable one is made of."""
    return next(
        base
        for base in steerable.__mro__
        if issubclass(base, DiffusionPipeline) and not issubclass(base, SteeringMixin)
    )


class SteeringMixin:
    """Adds `reward`, `steering`, `execution` and the other arguments of a steered call to the `__call__` of the
    pipeline class it is mixed into.

    ```py
    class FKStableDiffusionPipeline(SteeringMixin, StableDiffusionPipeline):
        ...
    ```

    Without a reward the call is the stock pipeline's own. What `save_pretrained` writes is a pipeline of the stock
    class, which loads wherever Diffusers is, and as a steerable one wherever `fk_steer.pipelines` is imported.
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
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            check_keywords(self, kwargs, *_ARGUMENTS)
            given = {name: kwargs.pop(name) for name in _ARGUMENTS if name in kwargs}
            given = {name: value for name, value in given.items() if value is not None and value is not False}
            reward = given.pop("reward", None)
            if reward is None:
                if given:
                    raise ValueError(f"`{next(iter(given))}` needs a `reward` to steer by.")
                check_generator(kwargs.get("generator"))
                return stock(self, *args, **kwargs)
            steered = steer(self, reward, given.pop("steering", DEFAULT_PRESET), given.pop("execution", None))
            # A name in the manner of `callback_on_step_end`, beside which it stands here.
            on_event = given.pop("callback_on_scoring_event", None)
            return steered(*args, on_event=on_event, **given, **kwargs)

        call.__doc__ = f"{_DOCUMENTATION}\n{inspect.getdoc(named) or ''}"
        call.__signature__ = _with_steering_parameters(named)  # type: ignore[attr-defined]
        cls.__call__ = call  # type: ignore[method-assign]

    def to_json_string(self) -> str:
        """The content of `model_index.json`, under the name of the stock class."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        config |= {"_class_name": stock_class(type(self)).__name__, STEERABLE: True}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """A pipeline of this class from the components of another, which both share.

        Args:
            pipeline: another, such as a stock one.
            **kwargs: components and settings in place of its own. Without `dtype` the components keep theirs; stock
                pipelines would make them float32, in both.
        """
        if kwargs.keys() & {"dtype", "torch_dtype", "custom_pipeline"}:
            return super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]
        kept = type(cls.__name__, (cls,), {"to": lambda self, *args, **kwargs: self})
        made = super(SteeringMixin, kept).from_pipe(pipeline, **kwargs)  # type: ignore[misc]
        made.__class__ = cls
        return made


def _with_steering_parameters(stock: Any) -> inspect.Signature:
    signature = inspect.signature(stock)
    parameters = list(signature.parameters.values())
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _ARGUMENTS.items()
        if name not in signature.parameters
    ]
    end = -1 if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else len(parameters)
    return signature.replace(parameters=[*parameters[:end], *added, *parameters[end:]])


_ARGUMENTS = {
    "reward": None,
    "steering": None,
    "execution": None,
    "reward_prompt": None,
    "particle_parallel": False,
    "callback_on_scoring_event": None,
    "keep_predictions": False,
}
"""What a steered call takes beside the pipeline's own arguments, with the defaults."""

_DOCUMENTATION = """Generate images or videos, steered by a reward if one is given.

Steering arguments (the others are the stock pipeline's, below):
    reward: a `Reward`, a function (images (B, 3, H, W) in [0, 1], prompts) -> (B,) or (images) -> (B,), the name of a
        reward, loaded anew each time, or a mapping of any of these to weights. Of videos (B, F, 3, H, W) where the
        pipeline gives these: `FrameReward`. None runs the stock pipeline.
    steering: an `FKSteering`, another `Strategy` or the name of a preset; defaults to 'finish'.
    execution: an `Execution`: how much to do at a time, which changes no result.
    reward_prompt: what the reward reads in place of `prompt`, one text or one per prompt.
    particle_parallel: True shares the particles between the processes of `torch.distributed`'s default group, a process
        group between its own.
    callback_on_scoring_event: called after every scoring event with a `ScoringEvent`; may stop the run.
    keep_predictions: keep small pictures of the x0 predictions in the trace.

With a reward the result is a `SteeredOutput`: `images` (`frames`, of videos), the best of each population, and beside
them `particles`, all that were alive at the end, best first, with `rewards`, `log_weights` and `trace`. With
`return_dict=False` those four follow the stock pipeline's tuple.
"""
