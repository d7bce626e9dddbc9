"""What the guiders of a pipeline remember of its rows from step to step, such as the momentum of projected guidance.

A guider makes one prediction of the denoiser's outputs for several conditions. Some keep a running average of these,
row by row, which has to go where the rows go. Where a guider keeps it is learned from a few steps of a copy of it on
random predictions: what grows with the number of rows holds them, and rows that change places take theirs with them.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.hooks import LayerSkipConfig
from torch import Tensor, nn

from .interception import intercept
from .layout import Block, UnknownLayoutError, learned_layout, take_units


Path = tuple[Any, ...]
"""Attributes, keys and positions that lead from a guider to something it keeps."""


@dataclass
class Place:
    """Where a guider keeps something of every row.

    Attributes:
        guider, path: whose, and where.
        dim: in which the rows are.
        fresh: what is there when a loop begins.
    """

    guider: BaseGuidance
    path: Path
    dim: int
    fresh: Any

    def read(self) -> Any:
        """What is there now: a tensor, or something else before there is one."""
        return self._at(self.path)

    def write(self, value: Any) -> None:
        """Put something there, unless the guider is one that is not in use and has nothing to put it into."""
        owner = self._at(self.path[:-1])
        if isinstance(owner, dict):
            owner[self.path[-1]] = value
        elif owner is not None:
            setattr(owner, self.path[-1], value)

    def _at(self, path: Path) -> Any:
        value: Any = self.guider
        for key in path:
            value = (value if isinstance(value, Mapping) else vars(value)).get(key)
            if value is None:
                return None
        return value


class Guiders:
    """The guiders of a pipeline in the course of one loop.

    Between steps they hold what belongs to all rows of the batch; from `take` to `spread`, to those that are alive.

    Args:
        pipe: whose components they are; None for no guiders.
        num_rows: of its batch.
        moves: whether rows will move.
        revisits: whether the loop will be sent to other steps than the next.

    Raises:
        ValueError: for a guider that draws at random, or, if rows move, one whose memory cannot follow them.
    """

    def __init__(self, pipe: Any = None, num_rows: int = 0, moves: bool = False, revisits: bool = False) -> None:
        self.num_rows, self.revisits = num_rows, revisits
        self.guiders: list[BaseGuidance] = []
        self.places: list[Place] = []
        self._before: list[Any] = []
        """What was there before the step."""
        for name, guider in pipe.components.items() if pipe is not None else ():
            if isinstance(guider, BaseGuidance):
                _check_dropout(name, guider)
                self.guiders.append(guider)
                if moves:
                    self.places += _places(name, guider, pipe._execution_device)
        if revisits:
            self._before = [place.fresh for place in self.places]

    def prepare(self, patches: ExitStack, index: Callable[[], int] | None) -> None:
        """Before the pipeline runs.

        Args:
            index: of the step that the loop is at, where that is not the number of steps taken; None where it is.
        """
        for place in self.places:  # of a guider that this call may not use, and another has
            if place.read() is not None:
                place.write(copy.deepcopy(place.fresh))
        if index is None:
            return

        def set_state(inner: Callable[..., Any], step: int, *args: Any, **kwargs: Any) -> Any:
            return inner(index(), *args, **kwargs)

        for guider in self.guiders:
            patches.enter_context(intercept(guider, "set_state", lambda inner: functools.partial(set_state, inner)))

    def take(self, live: Tensor) -> None:
        """Keep the rows `live` (L,) of all."""
        for place in self.places:
            value = place.read()
            if isinstance(value, Tensor) and value.shape[place.dim] != self.num_rows:
                raise ValueError(
                    f"{type(place.guider).__name__} keeps {value.shape[place.dim]} rows where there are "
                    f"{self.num_rows} particles, so they cannot be told apart. {_ADVICE}"
                )
        if len(live) < self.num_rows:
            self.gather(live)

    def gather(self, rows: Tensor) -> None:
        """Let what is kept follow `rows` (L',) of those alive."""

        def of(value: Any, dim: int) -> Any:
            return value.index_select(dim, rows.to(value.device)) if isinstance(value, Tensor) else value

        for place in self.places:
            place.write(of(place.read(), place.dim))
        self._before = [of(value, place.dim) for value, place in zip(self._before, self.places)]

    def spread(self, positions: Tensor) -> None:
        """Let all rows have something: each what is kept at its position (B,) among those alive."""
        if not torch.equal(positions, torch.arange(len(positions))):
            self.gather(positions)
        if self.revisits:
            self._before = [_copied(place.read()) for place in self.places]

    def memory(self) -> tuple[Any, ...]:
        """What is kept now, and what was before the step, the rows in the first dimension."""
        now = (place.read() for place in self.places)
        both = [*zip(now, self.places), *zip(self._before, self.places)]
        return tuple(value.movedim(place.dim, 0) if isinstance(value, Tensor) else value for value, place in both)

    def restore(self, memory: tuple[Any, ...]) -> None:
        """Keep what a memory holds."""
        number = len(self.places)
        both = zip(memory, [*self.places, *self.places])
        values = [value.movedim(0, place.dim) if isinstance(value, Tensor) else value for value, place in both]
        for place, value in zip(self.places, values):
            place.write(value)
        self._before = values[number:]

    def rewind(self) -> None:
        """The step at hand will be taken again."""
        for place, value in zip(self.places, self._before):
            place.write(value)

    def forget(self) -> None:
        """Be as at the beginning of a loop."""
        for place in self.places:
            place.write(copy.deepcopy(place.fresh))


_ADVICE = "Use another guider, for example `ClassifierFreeGuidance`."


def _check_dropout(name: str, guider: BaseGuidance) -> None:
    configs = [one for value in vars(guider).values() if isinstance(value, list) for one in value]
    if any(0.0 < one.dropout < 1.0 for one in configs if isinstance(one, LayerSkipConfig)):
        raise ValueError(
            f"`pipe.{name}` ({type(guider).__name__}) draws what it drops anew in every call of the denoiser, so that "
            "results depend on how many rows are computed at a time. Use a `dropout` of 1.0, which leaves the layers "
            "out."
        )


def _places(name: str, guider: BaseGuidance, device: torch.device) -> list[Place]:
    """Where a guider keeps rows.

    Raises:
        ValueError: if it mixes them, or keeps them where they cannot be told.
    """
    who = f"`pipe.{name}` ({type(guider).__name__})"
    index, failure = torch.tensor([2, 0, 0]), None
    for shape in _SHAPES:
        noise = torch.randn(_STEPS, _CONDITIONS, 3, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            alone, _, fresh = _tried(guider, noise[:, :, :1])
            three, outputs, _ = _tried(guider, noise)
            mixed, mixed_outputs, _ = _tried(guider, noise[:, :, index.to(device)])
        except Exception as error:  # of a guider that wants predictions of another shape
            failure = failure or error
            continue
        if not all(_close(a[index.to(a.device)], b) for a, b in zip(outputs, mixed_outputs)):
            raise ValueError(f"{who} mixes the predictions of different rows, which are particles here. {_ADVICE}")
        dims: dict[Path, int] = {}
        for one, many, other in zip(alone, three, mixed):
            for path, value in many.items():
                try:
                    layout = learned_layout(one.get(path), value, 3)
                except UnknownLayoutError:
                    layout = Block(size=0)
                if layout is None:
                    continue
                whole = isinstance(layout, Block) and layout.size == 1 and path in other
                if not whole or not _close(take_units(value, layout, index), other[path]) or _is_growing(path):
                    raise ValueError(
                        f"{who} keeps in `{'.'.join(map(str, path))}` what cannot follow particles that are resampled. "
                        f"{_ADVICE}"
                    )
                assert isinstance(layout, Block)
                dims[path] = layout.dim
        return [Place(guider, path, dim, fresh.get(path)) for path, dim in dims.items()]
    raise ValueError(
        f"{who} cannot be tried on predictions of its own, so it is not known what it keeps of particles that are "
        f"resampled ({type(failure).__name__}: {failure}). {_ADVICE}"
    )


_SHAPES = ((4, 8, 8), (16, 4), (4, 3, 8, 8))
"""Of a row: images, tokens, videos."""
_STEPS, _CONDITIONS = 10, 4


def _tried(guider: BaseGuidance, noise: Tensor) -> tuple[list[dict[Path, Tensor]], list[Tensor], dict[Path, Any]]:
    """What a copy of a guider keeps after each step of a loop, its outputs, and what it keeps when the loop begins.

    Args:
        noise: (steps, conditions, rows, ...) the predictions that it is given.
    """
    guider = copy.deepcopy(guider)
    kept, outputs, fresh = [], [], dict[Path, Any]()
    for step, predictions in enumerate(noise):
        guider.set_state(step=step, num_inference_steps=len(noise), timestep=torch.tensor(1000 - 100 * step))
        batches = guider.prepare_inputs({})
        if step == 0:
            fresh = {path: copy.deepcopy(value) for path, value in _kept(guider)}
        for batch, prediction in zip(batches, predictions, strict=False):
            batch.noise_pred = prediction.clone()
        outputs.append(guider(batches)[0])
        kept.append({path: value.clone() for path, value in _kept(guider) if isinstance(value, Tensor)})
    return kept, outputs, fresh


def _kept(owner: Any, path: Path = (), seen: frozenset[int] = frozenset()) -> Iterator[tuple[Path, Any]]:
    """All that an object holds, in containers and objects of its own too, and the paths to it."""
    if id(owner) in seen or isinstance(owner, (type, nn.Module)) or inspect.isroutine(owner):
        return
    items: Any = ()
    if isinstance(owner, Mapping):
        items = owner.items()
    elif isinstance(owner, (list, tuple)):
        items = enumerate(owner)
    elif hasattr(owner, "__dict__"):
        items = vars(owner).items()
    for key, value in list(items):
        if key == "_internal_dict":
            continue
        yield (*path, key), value
        if not isinstance(value, Tensor):
            yield from _kept(value, (*path, key), seen | {id(owner)})


def _is_growing(path: Path) -> bool:
    """Whether something is an entry of a list, of which there may be more with every step."""
    return any(isinstance(key, int) for key in path)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, equal_nan=True)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
