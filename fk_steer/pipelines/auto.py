"""What Diffusers finds by names alone: the class of a saved pipeline, and that of another task with the same weights.

Diffusers looks for both among its own classes. So that steerable pipelines stay steerable, the import of
`fk_steer.pipelines`

- enters steerable classes in the tables of `AutoPipelineForText2Image` and its kin, beside the stock ones, and
- lets `DiffusionPipeline.from_pretrained` make what was saved from a steerable class steerable again.

Nothing else in Diffusers behaves otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_utils
from diffusers.pipelines.auto_pipeline import SUPPORTED_TASKS_MAPPINGS

from ..smc import brief
from .mixin import STEERABLE, SteeringMixin, stock_class


@functools.cache
def steerable(stock: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """The steerable class of a stock one: that of this package, or a new one.

    ```py
    FKStableDiffusionInpaintPipeline = steerable(StableDiffusionInpaintPipeline)
    ```

    Args:
        stock: a pipeline class. One that is steerable already is returned.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(stock, type) or not issubclass(stock, DiffusionPipeline):
        raise TypeError(f"Expected the class of a pipeline, but got {brief(stock)}.")
    if issubclass(stock, SteeringMixin):
        return stock
    for known in SteeringMixin.__subclasses__():
        if stock_class(known) is stock and known.__module__.startswith(f"{__package__}."):
            return known
    documentation = f"`{stock.__name__}` whose call takes `reward=` and `steering=`."
    return type(f"FK{stock.__name__}", (SteeringMixin, stock), {"__doc__": documentation, "__module__": __name__})


def register() -> None:
    """Enter steerable classes in Diffusers' tables of tasks, under the names of the stock ones with 'fk-' before."""
    for task in SUPPORTED_TASKS_MAPPINGS:
        task.update({f"fk-{name}": steerable(stock) for name, stock in task.items()})


def stay_steerable() -> None:
    """Let `DiffusionPipeline.from_pretrained` find steerable classes."""
    # The one place where it goes from a name to a class, other than by looking into `diffusers` itself.
    inner = pipeline_utils._get_pipeline_class

    @functools.wraps(inner)
    def class_of(asked: type, config: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> type:
        found: type = inner(asked, config, *args, **kwargs)
        by_name = asked is DiffusionPipeline and kwargs.get("custom_pipeline") is None
        return steerable(found) if by_name and config and config.get(STEERABLE) else found

    pipeline_utils._get_pipeline_class = class_of
