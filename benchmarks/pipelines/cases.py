"""A test's pipeline and the arguments of its call."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import time
import types
import unittest
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _pytest.outcomes import Skipped
from diffusers import modular_pipelines
from torch import Tensor

from fk_steer.diffusion.components import makes_videos, schedulers_of
from fk_steer.diffusion.outputs import tensor_type
from fk_steer.testing import quiet
from fk_steer.testing.tiny import modular_of

from .catalogue import Test
from .standins import offline, without_optional_libraries


STEPS = 4
FEW_STEPS = 3
SLOW = 0.4
"""Seconds of the processor for a stock call, above which a test makes do with `FEW_STEPS`."""
LARGE, SMALL = 128, 64
"""Sides of images, in pixels: what a test asks for is made small if it is larger."""
OTHER_PROMPT = "two blue cats, above a table"
IMAGES = ("image", "mask_image", "control_image", "control_mask", "conditioning_frames", "video", "mask", "last_image")


@dataclass
class Case:
    """A pipeline to be tried.

    Attributes:
        pipe: the pipeline.
        arguments: of its call, without generator and output type.
        num_steps: denoising steps that the stock call takes.
        parameters: names of the arguments that the call takes, and their defaults.
        shape: of its images.
        output: what to ask a modular pipeline for; None for a plain one.
    """

    pipe: Any
    arguments: dict[str, Any]
    num_steps: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    output: str | None = None

    def stock(self, generator: Any, **overrides: Any) -> Tensor:
        """(B, ...) images of the pipeline's own call."""
        torch.manual_seed(0)
        call = {**self.arguments, "generator": generator, **self.options(), **overrides}
        # Some pipelines write into lists that they are given.
        call = {name: list(value) if isinstance(value, list) else value for name, value in call.items()}
        with torch.no_grad():
            result = self.pipe(**call)
        return as_tensor(result[0] if self.output is None else result)

    def options(self) -> dict[str, Any]:
        """The arguments, of those that the pipeline takes, by which its call gives images in [0, 1] to compute with."""
        wanted = {"output_type": tensor_type(self.pipe, self.arguments), "return_dict": False, "output": self.output}
        return {name: value for name, value in wanted.items() if name in self.parameters}

    @property
    def kind(self) -> str:
        """Of the pipeline, in words."""
        given = {name for name, value in self.arguments.items() if value is not None}
        made = "video" if len(self.shape) == 5 else "image"
        if given & {"mask_image", "mask"}:
            return "inpainting" if made == "image" else "video inpainting"
        components = self.pipe.components
        if any(components.get(name) is not None for name in ("controlnet", "adapter")) or "control_image" in given:
            return f"control to {made}"
        source = "video" if "video" in given else "image" if "image" in given else "text"
        return f"{source} to {made}"

    @property
    def schedulers(self) -> list[Any]:
        return schedulers_of(self.pipe)

    @property
    def natural_eta(self) -> float:
        """The `eta` of a steered call that leaves the sampler's noise as the stock call has it."""
        return max((_natural_eta(scheduler) for scheduler in self.schedulers), default=0.0)

    def other_prompt(self) -> dict[str, Any] | None:
        """The arguments with another prompt; None for a call without text."""
        if isinstance(self.arguments.get("prompt"), str):
            return {**self.arguments, "prompt": OTHER_PROMPT}
        if isinstance(self.arguments.get("prompt"), list):
            return {**self.arguments, "prompt": [OTHER_PROMPT]}
        return None

    def two_prompts(self, images_too: bool) -> dict[str, Any] | None:
        """The arguments with a second prompt in the batch; `images_too` repeats images. None without text."""
        prompt = self.arguments.get("prompt")
        if not isinstance(prompt, (str, list)):
            return None
        first = prompt if isinstance(prompt, str) else prompt[0]
        arguments: dict[str, Any] = {**self.arguments, "prompt": [first, OTHER_PROMPT]}
        negative = arguments.get("negative_prompt")
        if isinstance(negative, (str, list)):
            arguments["negative_prompt"] = [negative if isinstance(negative, str) else negative[0]] * 2
        if images_too:
            for name in IMAGES:
                if name in arguments:
                    arguments[name] = _twice(arguments[name])
        return arguments


def case_of(test: Test, checkout: Path) -> Case:
    """A test's pipeline, in evaluation mode on the CPU, with few steps."""
    reach(checkout)
    with offline():
        instance = getattr(importlib.import_module(test.module), test.name)()
        if isinstance(instance, unittest.TestCase):
            with suppress(Skipped):  # that of a pipeline that Diffusers no longer develops
                instance.setUp()
        torch.manual_seed(0)
        components = instance.get_dummy_components()
        pipe = quiet(instance.pipeline_class(**components))
        if hasattr(pipe, "resolutions"):  # those it rounds to
            pipe.resolutions = [(64, 64)]
        parameters = inspect.signature(instance.get_dummy_inputs).parameters
        inputs = instance.get_dummy_inputs(*(["cpu"] if "device" in parameters else []))
    for name in ("generator", "output_type", "return_dict"):
        inputs.pop(name, None)
    if test.blocks is None:
        case = plain_case(pipe, inputs)
    else:
        case = modular_case(modular_of(pipe, getattr(modular_pipelines, test.blocks)()), inputs)
    _make_small(case)
    _set_steps(case)
    return case


def plain_case(pipe: Any, arguments: dict[str, Any]) -> Case:
    """Of a pipeline and arguments of its call."""
    signature = inspect.signature(type(pipe).__call__).parameters
    return Case(pipe, arguments, parameters={name: entry.default for name, entry in signature.items()})


def modular_case(pipe: Any, arguments: dict[str, Any]) -> Case:
    """Of a modular pipeline and arguments, of which those that its call takes are given to it."""
    parameters = {entry.name: entry.default for entry in pipe.blocks.inputs if entry.name} | {"output": None}
    known = {name: value for name, value in arguments.items() if name in parameters}
    return Case(pipe, known, parameters=parameters, output="videos" if makes_videos(pipe) else "images")


def reach(checkout: Path) -> None:
    """Let `tests` be the package of a checkout, and import what all its tests of pipelines do."""
    if str(checkout) in sys.path:
        return
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    for name in ("parameterized", "requests_mock"):  # which serve the tests' own tests, of which none is run
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = _stub(name)
    without_optional_libraries()
    importlib.import_module("tests.pipelines.test_pipelines_common")


def _stub(name: str) -> Any:
    stub: Any = types.ModuleType(name)

    def decorator(*args: Any, **kwargs: Any) -> Any:
        return lambda decorated: decorated

    decorator.expand = decorator  # type: ignore[attr-defined]
    stub.parameterized = stub.parameterized_class = decorator
    return stub


def _set_steps(case: Case) -> None:
    """Ask for few steps where the pipeline lets one, and count those that it takes."""
    asked = case.arguments.get("num_inference_steps")
    if asked is None:
        _measure(case)
        return
    try:
        case.arguments["num_inference_steps"] = _steps(case, STEPS)
        if _measure(case) > SLOW:
            case.arguments["num_inference_steps"] = _steps(case, FEW_STEPS)
            _measure(case)
    except Exception:  # it takes so many and no others
        case.arguments["num_inference_steps"] = asked
        _measure(case)


def _make_small(case: Case) -> None:
    """Ask for small images in place of large ones, where the pipeline lets one, and let what enlarges images that are
    to be edited to a megapixel enlarge them less."""
    module = sys.modules[type(case.pipe).__module__]
    if hasattr(module, "calculate_dimensions"):
        enlarge = module.calculate_dimensions
        module.calculate_dimensions = lambda area, ratio: enlarge(min(area, SMALL**2), ratio)  # type: ignore[attr-defined]
    asked = {name: case.arguments[name] for name in ("height", "width") if isinstance(case.arguments.get(name), int)}
    if math.prod(asked.values()) <= LARGE**2:
        return
    case.arguments.update({name: min(size, SMALL) for name, size in asked.items()})
    try:
        _measure(case)
    except Exception:
        case.arguments.update(asked)


def _steps(case: Case, wanted: int) -> int:
    """How many to ask for, of which a pipeline that starts from a noisy image takes its share."""
    strength = case.arguments.get("strength")
    if strength is None:
        strength = case.parameters.get("strength")
    return math.ceil(wanted / strength) if isinstance(strength, (int, float)) and strength else wanted


def _measure(case: Case) -> float:
    started = time.process_time()
    with recorded_steps(case) as steps:
        case.shape = tuple(case.stock(torch.Generator().manual_seed(0)).shape)
    case.num_steps = len(steps)
    return time.process_time() - started


@dataclass
class Step:
    """One call of a scheduler's `step`.

    Attributes:
        scheduler: its class's name.
        predicted: x0 by `fk_steer.diffusion.predict_x0`, or the message why not.
        own: x0 by the scheduler itself, None where it does not say.
        previous: the sample it returned.
        ends_clean: whether its noise levels end where there is no noise.
    """

    scheduler: str
    predicted: Tensor | str
    own: Tensor | None
    previous: Tensor
    ends_clean: bool = False


@contextmanager
def recorded_steps(case: Case, predict: bool = False, last_is_x0: int | None = None) -> Iterator[list[Step]]:
    """A list of the calls of `step`.

    Args:
        predict: also predict x0 before each.
        last_is_x0: return x0 in place of the sample from this call on.
    """
    from fk_steer.diffusion import predict_x0

    steps: list[Step] = []
    known = inspect.signature(predict_x0).parameters

    def replaced(stock: Any) -> Any:
        def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            predicted: Tensor | str = ""
            if all(self is not scheduler for scheduler in case.schedulers):  # a copy that is asked about itself
                return stock(self, model_output, timestep, sample, *args, **kwargs)
            if predict or last_is_x0 is not None:
                try:
                    options = {name: value for name, value in kwargs.items() if name in known}
                    given = kwargs.get("pred_original_sample")
                    predicted = predict_x0(self, model_output, timestep, sample, **options) if given is None else given
                except Exception as error:
                    predicted = f"{type(error).__name__}: {error}"
            output = stock(self, model_output, timestep, sample, *args, **kwargs)
            previous, own = output[0], None
            if not isinstance(output, tuple):
                previous, own = output.prev_sample, getattr(output, "pred_original_sample", None)
            elif len(output) > 1 and predict:
                own = output[1]
            if last_is_x0 is not None and len(steps) >= last_is_x0 and isinstance(predicted, Tensor):
                previous = predicted.to(previous.dtype)
                output = (previous, *output[1:]) if isinstance(output, tuple) else type(output)(previous)
            sigmas = getattr(self, "sigmas", None)
            ends_clean = sigmas is not None and float(sigmas[-1]) in (0.0, 1.0)
            steps.append(Step(type(self).__name__, predicted, own, previous, ends_clean))
            return output

        step.__wrapped__ = stock  # type: ignore[attr-defined]
        return step

    with ExitStack() as patches:
        for kind in {type(scheduler) for scheduler in case.schedulers}:
            patches.enter_context(mock.patch.object(kind, "step", replaced(kind.step)))
        yield steps


def as_tensor(images: Any) -> Tensor:
    """Images or videos of any kind as one float tensor, (..., 3, H, W)."""
    if isinstance(images, Tensor):
        tensor = images.detach().float()
    elif isinstance(images, np.ndarray):
        tensor = torch.from_numpy(images).float()
    elif isinstance(images, (list, tuple)):
        tensor = torch.stack([as_tensor(image) for image in images])
    else:
        tensor = torch.from_numpy(np.asarray(images)).float() / 255
    return tensor.movedim(-1, -3) if tensor.shape[-1] == 3 and tensor.shape[-3] != 3 else tensor


def _natural_eta(scheduler: Any) -> float:
    config = getattr(scheduler, "config", {})
    noisy = (
        "Ancestral" in type(scheduler).__name__
        or config.get("stochastic_sampling")
        or str(config.get("algorithm_type")).startswith("sde")
    )
    return 1.0 if noisy else 0.0


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.ndim >= 4 else torch.stack([value, value])
    if isinstance(value, np.ndarray):
        return np.concatenate([value, value]) if value.ndim >= 4 else np.stack([value, value])
    if isinstance(value, Sequence) and len(value) == 1:
        return [value[0], value[0]]
    return [value, value]
