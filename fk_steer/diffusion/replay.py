"""A pipeline's call, run again for some rows with its costly parts left out.

What a pipeline does before and after its loop (packing, scaling, sizes, frames, compositing of masks) is its own
affair. Run once more with the denoiser stubbed and `scheduler.step` returning given x0, it makes of these the images
that a user would get; run for one row, it shows which arguments of the denoiser hold the rows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.utils import BaseOutput
from torch import Tensor

from .call import Call
from .conditions import Conditions
from .encodings import EncodedPrompts
from .inputs import Way, entries_of, number_name, ways_of
from .layout import (
    Layout,
    UnknownLayoutError,
    learned_layout,
    map_tensors,
    output_layout,
    take_units,
)
from .outputs import as_tensor, run_pipeline, tensor_type, within
from .restoring import as_before, guiders_of


@dataclass
class StepOutput(BaseOutput):  # type: ignore[misc]
    """What schedulers' steps return, in the words of all of them."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    denoised: Tensor | None = None


def step_output(sample: Tensor, options: Mapping[str, Any]) -> Any:
    """What a scheduler's step called with these options returns for samples."""
    if options.get("return_dict") is False:
        return sample, sample
    return StepOutput(sample, sample, sample)


class _Enough(BaseException):
    """All that was wanted has been seen. No error, of which modular pipelines write the traceback to the log."""


class Replay:
    """Runs the call of a run again.

    Args:
        call: the steered call, whose main run goes on meanwhile.
        autoencoder: name of the component that decodes; None if there is none.
        aside: context manager in which the pipeline may run another loop, and what matters of it comes here.

    Attributes:
        way: how the pipeline was asked for its rows.
        active: whether a replay is running, so that what is wrapped for the main run comes here.
        num_steps: of the main run's loop, once it has begun.
        conditions: what particles have in common.
    """

    def __init__(self, call: Call, autoencoder: str | None, aside: Callable[[], AbstractContextManager[None]]) -> None:
        self.call, self.autoencoder, self.aside = call, autoencoder, aside
        self.way = Way("nothing")
        self.active = False
        self.num_steps = 0
        self.conditions = Conditions()
        self._populations = [row // call.num_slots for row in range(call.num_rows)]
        self._initial = [generator.get_state() for generator in call.generators]
        self._step: Callable[[Tensor, Mapping[str, Any]], Any] = step_output
        self._rows: list[int] = []
        self._generators: list[torch.Generator] = []
        self._templates: dict[str, tuple[int, bool, Any]] = {}
        """Of each denoiser: rows, whether they came as a list, and the output, without its data."""
        self.encoded = EncodedPrompts(call.num_rows, call.rows_per_prompt)
        self._guiders: list[tuple[BaseGuidance, dict[str, Any]]] = []
        """What the guiders were like when the main run began: blocks ask them how many conditions there are."""
        self._calls: defaultdict[str, list[Any]] = defaultdict(list)
        """Of each denoiser: its arguments for one row, without their data, call by call. Texts of a batch are as
        long as the longest, so that row is one that has it."""
        self._probing = self._probed = False

    # What the main run tells.

    def begin(self, way: Way) -> None:
        """The main run begins, asked for its rows in this way."""
        self.way = way
        self.encoded.forget()
        self._guiders = guiders_of(self.call.pipe)
        self.conditions.forget()
        self.conditions.begin(self.call.generators, self._populations)

    def remember_output(self, name: str, sample: Any, output: Any) -> None:
        """An output of a denoiser."""
        if name not in self._templates:
            self._templates[name] = len(sample), isinstance(sample, list), outline(output)

    # What is asked.

    def images(self, x0: Tensor, rows: Tensor, vae: Any = None, last: bool = False) -> Tensor:
        """The images (M, 3, H, W), or videos (M, F, 3, H, W), in [0, 1] that the pipeline makes of x0.

        Args:
            x0: (M, ...) as the scheduler's samples.
            rows: (M,) of the batch that they belong to, on the CPU.
            vae: decodes in place of the pipeline's own.
            last: whether the main run's loop is over, so that what is drawn after it is what that would draw.
        """
        if self.call.num_rows > 1:
            self._probe()
        prompts = (rows // self.call.rows_per_prompt).tolist()
        parts = [list(range(len(rows)))]
        if self.way.repeats == "nothing":
            parts = [[i for i, p in enumerate(prompts) if p == prompt] for prompt in dict.fromkeys(prompts)]
        images: list[Tensor | None] = [None] * len(rows)
        for part in parts:
            some = x0[torch.tensor(part, device=x0.device)]

            steps = 0

            def step(sample: Tensor, options: Mapping[str, Any], some: Tensor = some) -> Any:
                nonlocal steps
                steps += 1
                for generator, row in zip(self._generators, self._rows) if last and steps == self.num_steps else ():
                    generator.set_state(self.call.generators[row].get_state())
                return step_output(some.to(sample.device, sample.dtype), options)

            with self._component(vae):
                output = self._again([int(rows[i]) for i in part], step)
            made = within(as_tensor(output[0], self.call.videos))
            if len(made) != len(part):
                raise ValueError(f"{type(self.call.pipe).__name__} gives {len(made)} results of {len(part)} rows.")
            for position, image in zip(part, made):
                images[position] = image
        return torch.stack([image for image in images if image is not None])

    def shown(self) -> Callable[[Tensor], Tensor]:
        """What makes images in [0, 1] of the tensors that the pipeline returns.

        Raises:
            ValueError: if it cannot be told.
        """

        def step(sample: Tensor, options: Mapping[str, Any]) -> Any:
            return step_output(sample, options)

        images, tensors = (as_tensor(self._again([0], step, kind)[0], self.call.videos) for kind in ("np", "pt"))
        for of in _FORMS:
            if torch.allclose(of(tensors).clamp(0.0, 1.0), images.clamp(0.0, 1.0), atol=1e-4):
                return of
        raise ValueError(
            f"It cannot be told how images are made of the tensors that {type(self.call.pipe).__name__} returns, so "
            "they cannot be scored. Ask for `output_type='np'`."
        )

    def layout(self, name: str, arguments: Mapping[str, Any], copies: int) -> Layout:
        """Where the rows are in a denoiser's arguments.

        Args:
            name: of the denoiser.
            arguments: of a call in the main run, by name, for all rows.
            copies: how often it holds the rows.

        Raises:
            UnknownLayoutError: if that cannot be told.
        """
        self._probe()
        failure = UnknownLayoutError(name)
        for one in self._calls[name]:
            try:
                return learned_layout(one, arguments, self.call.num_rows, copies)
            except UnknownLayoutError as error:
                failure = error
        raise failure

    def takes_one_row(self) -> bool:
        """Whether the pipeline comes to its first step when it is asked for one row, or for one per prompt, as it
        should for any arguments that are right."""

        def step(sample: Tensor, options: Mapping[str, Any]) -> Any:
            raise _Enough

        call = self.call
        ways = [*ways_of(call.pipe, call.arguments, call.num_prompts), Way("as given")]
        for way in ways:
            self.way = way
            rows = range(0, call.num_rows, call.rows_per_prompt) if way.repeats == "as given" else [0]
            try:
                self._again(list(rows), step)
            except _Enough:
                return True
            except Exception:
                continue
        return False

    # The wrapped methods, while a replay runs.

    def forward(self, name: str, inner: Callable[..., Any], parameters: Sequence[str], args: Any, kwargs: Any) -> Any:
        """In place of a denoiser's own."""
        sample = args[0] if args else kwargs[parameters[0]]
        if self._probing:
            self._calls[name].append(outline({**dict(zip(parameters, args)), **kwargs}))
        if name not in self._templates:
            output = inner(*args, **kwargs)
            self._templates[name] = len(sample), isinstance(sample, list), outline(output)
            return output
        num_rows, as_list, template = self._templates[name]
        return _zeros(template, output_layout(template, num_rows, as_list), len(sample), sample)

    def step(self, sample: Tensor, options: Mapping[str, Any]) -> Any:
        """In place of the scheduler's own."""
        return self._step(sample, options)

    def encode_prompt(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the pipeline's own: what it returned in the main run, for these rows."""
        encode = functools.partial(inner, *args, **kwargs)
        return self.encoded.of_one_row(encode) if self._probing else self.encoded.of_rows(self._rows, encode)

    # How.

    def check_images(self, name: str, parameter: str, sample: Any) -> None:
        """Check, at the first call of a denoiser, that a list of images is an image for each row to the pipeline, and
        not several for every row.

        Args:
            name: of the denoiser.
            parameter: of its samples.
            sample: what it is handed for these.

        Raises:
            ValueError: if a row is not as large as in a call for one.
        """
        self._look(1)
        calls, self._calls = self._calls[name], defaultdict(list)
        alone = calls[0].get(parameter) if calls else None
        if isinstance(alone, Tensor) and isinstance(sample, Tensor) and alone.shape[1:] != sample.shape[1:]:
            raise ValueError(
                f"{type(self.call.pipe).__name__} takes a list of images for what every row is conditioned on: a row "
                f"is {tuple(sample.shape[1:])} in place of {tuple(alone.shape[1:])}."
            )

    def _probe(self) -> None:
        """See what the call is like for one row alone, once."""
        if not self._probed:
            self._probed = True
            self._look(self.num_steps)
            self.encoded.learn()

    def _look(self, num_steps: int) -> None:
        """Note the calls of the denoisers, for one row alone, up to some step."""
        self._probing = True
        steps = 0

        def step(sample: Tensor, options: Mapping[str, Any]) -> Any:
            nonlocal steps
            steps += 1
            if steps >= num_steps:
                raise _Enough
            return step_output(sample, options)

        try:
            self._again([self.call.wordiest_row], step)
        except _Enough:
            pass
        finally:
            self._probing = False

    def _again(
        self, rows: list[int], step: Callable[[Tensor, Mapping[str, Any]], Any], output_type: str | None = None
    ) -> tuple[Any, ...]:
        call, pipe = self.call, self.call.pipe
        num_prompts = call.num_rows // call.rows_per_prompt
        prompts = [row // call.rows_per_prompt for row in rows]
        arguments = {name: value for name, value in call.arguments.items() if name not in _LEFT_OUT}
        if self.way.repeats == "nothing":
            number = number_name(pipe)
            assert number is not None
            asked = {**entries_of(pipe, arguments, num_prompts, prompts[:1]), number: len(rows)}
        else:
            asked = self.way.arguments(pipe, arguments, num_prompts, prompts) | call.worded(rows)
        generators = []
        for row in rows:
            generator = torch.Generator(call.generators[row].device)
            generator.set_state(self._initial[row])
            generators.append(generator)
        self._generators = generators
        self.conditions.begin(generators, [self._populations[row] for row in rows], again=True)
        self._rows, self._step = rows, step
        self.encoded.begin()
        with as_before(pipe, self._guiders), self.aside(), torch.no_grad():
            self.active = True
            try:
                kind = output_type or tensor_type(pipe, arguments)
                return run_pipeline(pipe, {**asked, "generator": self.way.generators(generators)}, kind)
            finally:
                self.active = False

    @contextmanager
    def _component(self, vae: Any) -> Iterator[None]:
        if vae is None or self.autoencoder is None:
            yield
            return
        pipe, own = self.call.pipe, self.call.pipe.components[self.autoencoder]
        object.__setattr__(pipe, self.autoencoder, vae)
        try:
            yield
        finally:
            object.__setattr__(pipe, self.autoencoder, own)


_FORMS: tuple[Callable[[Tensor], Tensor], ...] = (lambda tensors: tensors, lambda tensors: tensors / 2 + 0.5)
"""Of the tensors of pipelines, to [0, 1]: they are in [0, 1] or in [-1, 1]."""

_LEFT_OUT = frozenset(
    {
        "latents",
        "callback",
        "callback_steps",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "denoising_end",
    }
)


def outline(value: Any) -> Any:
    """A structure of tensors without their data."""
    return map_tensors(lambda tensor: torch.empty_like(tensor, device="meta"), value)


def _zeros(template: Any, layout: Layout, num_rows: int, sample: Any) -> Any:
    """Zeros for `num_rows` rows, in the form of a template, on the device of `sample`."""
    device = (sample[0] if isinstance(sample, list) else sample).device
    shaped = take_units(template, layout, torch.zeros(num_rows, dtype=torch.long))
    return map_tensors(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device), shaped)
