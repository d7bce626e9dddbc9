"""Leaving classifier-free guidance out of the last part of a loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..search import Strategy
from .attention import stores_attention
from .components import mixes_rows
from .layout import tensors_of


class GuidanceCutoff:
    """From some step on the denoiser computes the conditional rows alone, and the pipeline is given their output for
    the unconditional ones too. Its own formula, whatever the scale, then gives the conditional prediction, as without
    guidance. What the image shows is decided before; see Castillo et al., arXiv 2312.12487, and Kynkäänniemi et al.,
    arXiv 2404.07724.

    Which rows are the conditional ones is learned from the steps before: the prediction that a pipeline makes of the
    outputs A and B, of two halves of a batch or of two calls, is a A + b B with |a| = scale and |b| = |1 - scale| if A
    is the conditional one.

    Args:
        pipe: whose denoisers these are.
        denoisers: by name.
        strategy: says up to where there is guidance.
    """

    def __init__(self, pipe: Any, denoisers: dict[str, torch.nn.Module], strategy: Strategy) -> None:
        self.guided_steps = strategy.guided_steps
        self._together = getattr(pipe, "do_perturbed_attention_guidance", False) or stores_attention(pipe)
        self._together = self._together or any(map(mixes_rows, denoisers.values()))
        self._name = type(pipe).__name__
        self._outputs: list[tuple[Tensor, int]] = []
        """Of the calls of the step at hand: the output, and how often the batch held the rows."""
        self._calls = 0
        self._conditional: int | None = None
        """The half, or the call, that is the conditional one."""
        self._by_calls = False
        """Whether a call is made for each."""
        self._on = strategy.guidance_stop < 1.0

    def over(self, index: int, num_steps: int) -> bool:
        """Whether a step, counted from zero, comes after guidance."""
        return self._on and self._conditional is not None and index >= self.guided_steps(num_steps)

    @property
    def half(self) -> int | None:
        """The half of a batch that is computed in place of both; None where halves are calls."""
        return None if self._by_calls else self._conditional

    @property
    def is_done(self) -> bool:
        """Whether the conditional rows have had their call in this step, so that others need none."""
        return self._by_calls and self._calls > 0

    def called(self, output: Any, copies: int) -> None:
        """A denoiser has returned something.

        Args:
            output: with the rows first, (copies * B, C, ...), in whatever the denoiser returns.
            copies: how often its batch held the rows.
        """
        self._calls += 1
        if self._on and self._conditional is None:
            tensors = list(tensors_of(output))
            if tensors:  # in some a list with one for each row
                self._outputs.append((tensors[0] if len(tensors) == 1 else torch.stack(tensors), copies))

    def step(self, prediction: Tensor, sample: Tensor) -> None:
        """The pipeline takes a step by what it has made of the outputs.

        Args:
            prediction: (B, C, ...) what it made of them; may have further channels, such as a variance.
            sample: (B, C, ...) the step's.
        """
        outputs, self._outputs, self._calls = self._outputs, [], 0
        if not self._on or self._conditional is not None or not outputs:
            return
        parts = list(_parts(outputs))
        if len(parts) == 1 or len(parts) == 2 and torch.equal(*parts):
            return  # there is no guidance, or none that makes a difference yet
        by_calls = len(outputs) > 1
        first = None
        if len(parts) == 2 and not self._together:
            first = _is_first(parts, prediction, sample[0].numel())
        if first is None or by_calls and not first:
            self._on = False
            warnings.warn(
                f"{self._name} is guided in a way that cannot be left out of the last steps, so `guidance_stop` "
                "changes nothing. Set it to 1.0.",
                stacklevel=2,
            )
            return
        self._conditional, self._by_calls = 0 if first else 1, by_calls


def _parts(outputs: list[tuple[Tensor, int]]) -> Iterator[Tensor]:
    for output, copies in outputs:
        yield from output.chunk(copies) if copies > 1 else (output,)


def _is_first(parts: list[Tensor], prediction: Tensor, size: int) -> bool | None:
    """Whether the first of two outputs has the larger part in a prediction; None if it is not made of them.

    Args:
        parts: two outputs (B, C, ...).
        prediction: (B, C, ...).
        size: numbers of a row that are guided; further ones, such as those of a variance, are not.
    """
    numbers = [one.reshape(len(one), -1)[:, :size].flatten().double().cpu() for one in (*parts, prediction)]
    if len({len(one) for one in numbers}) > 1:
        return None
    A, B, made = numbers
    a, b = torch.linalg.lstsq(torch.stack([A, B], 1), made[:, None]).solution.flatten().tolist()
    left = made - a * A - b * B
    # Rescaled guidance leaves a little; what comes of other conditions, or of a nonlinear rule, leaves much.
    if not left.norm() <= 0.2 * made.norm() or abs(a) == abs(b):
        return None
    return bool(abs(a) > abs(b))
