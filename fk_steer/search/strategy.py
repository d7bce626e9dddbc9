"""`Strategy`: the settings of a search, as data."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike, fspath
from typing import Any, ClassVar, Generic, TypeVar

from ..smc import Keywords, brief, integer, is_named, numbers, real, suggestion, unknown
from .base import Look, Plan, RewardFacts, Search, Start, describe
from .passes import Passes


Kind = TypeVar("Kind")
Self = TypeVar("Self", bound="Strategy")


class Budgeted(Generic[Kind]):
    """`Strategy.within`, of some settings."""

    def __init__(self, settings: Kind) -> None:
        self.settings = settings

    def __call__(self, calls: int) -> Kind:
        """The settings within a budget of denoiser calls per image.

        Args:
            calls: see `Strategy`.

        Raises:
            ValueError: for anything but a number of at least 1.
        """
        return self.settings.replace(calls=integer("calls", calls, 1))  # type: ignore[attr-defined, no-any-return]


class Within:
    """Settings within a budget: `FKSteering(elite=True).within(calls=400)`, or of the class with its defaults,
    `FKSteering.within(calls=400)`."""

    def __get__(self, settings: Kind | None, owner: type[Kind]) -> Budgeted[Kind]:
        return Budgeted(owner() if settings is None else settings)


ONE_PARTICLE = "With one particle there is nothing to choose from, so nothing is steered. Set `num_particles` above 1."


@dataclass(frozen=True)
class Noise(Keywords):
    """The noise of samplers whose noise can be switched.

    Attributes:
        eta: how much, in [0, 1]. DDIM and TCD take it as their `eta`; Euler (ancestral or not), DPM-Solver++ (SDE or
            not) and flow-matching Euler sample stochastically when it is above 0 and deterministically when it is 0.
            Other samplers keep the noise they have. An `eta` in the pipeline call wins.
        window: (start, stop), fractions of the loop between which there is noise.

    Raises:
        ValueError: for values out of range or order.
    """

    eta: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", real("eta", self.eta, 0.0, 1.0))
        window = tuple(real("window", entry, 0.0, 1.0) for entry in numbers("window", self.window))
        object.__setattr__(self, "window", window)
        if len(window) != 2 or window[0] > window[1]:
            raise ValueError(f"Expected `window` as (start, stop) with 0 <= start <= stop <= 1, but got {window}.")

    def on(self, step: int, num_steps: int) -> bool:
        """Whether a step, counted from zero, lies inside the window."""
        start, stop = self.window
        return start * num_steps - 1e-9 <= step < stop * num_steps - 1e-9


@dataclass(frozen=True)
class Preview(Keywords):
    """A small decoder for x0 predictions, in place of the pipeline's VAE.

    Attributes:
        decoder: an `AutoencoderTiny`, or the hub id or path of one: 'madebyollin/taesd' for SD, 'madebyollin/taesdxl'
            for SDXL, 'shapes' for the bundled models. Or a module that is put in the place of the pipeline's own
            autoencoder, with `decode`, `config`, `dtype` and `device`: for videos, as Diffusers has no small ones.
        until: progress in [0, 1] of the loop up to which it is used.

    Raises:
        ValueError: for `until` out of range, or a decoder that can be none.
    """

    decoder: Any
    until: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.decoder, PathLike):
            object.__setattr__(self, "decoder", fspath(self.decoder))
        if (
            self.decoder is None
            or self.decoder == ""
            or isinstance(self.decoder, (type, bool, int, float, list, tuple, dict, set))
        ):
            raise ValueError(
                "Expected `decoder` of the preview to be an `AutoencoderTiny`, or the hub id or path of one, but got "
                f"{brief(self.decoder)}."
            )
        object.__setattr__(self, "until", real("until", self.until, 0.0, 1.0))


def coerced(kind: type[Kind], value: Any) -> Kind:
    """A settings object from one, from the mapping that `to_dict` makes of it, or from its first setting.

    Raises:
        ValueError: for a setting that it does not have, listing those it has.
    """
    if isinstance(value, kind):
        return value
    return made(kind, value) if isinstance(value, Mapping) else kind(value)  # type: ignore[call-arg]


def named(setting: str, known: Mapping[str, type[Kind]], kind: Any, value: Any) -> Kind:
    """One of several kinds of settings, from an object, a name, or a mapping with the name in it.

    Raises:
        ValueError: for an unknown name or setting, listing the known ones.
    """
    if isinstance(value, kind):
        return value  # type: ignore[no-any-return]
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = options.pop("name", None)
    if not is_named(name, known):
        raise unknown(setting, name, known)
    return made(known[name], options)


def made(kind: type[Kind], settings: Mapping[str, Any]) -> Kind:
    """A settings object.

    Raises:
        ValueError: for a setting that it does not have, listing those it has, or without one that it needs.
    """
    entries = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [entry.name for entry in entries]
    if strange := [name for name in settings if name not in known]:
        raise unknown("setting", strange[0], known, of=f" of {kind.__name__}")
    missing = dataclasses.MISSING
    needed = [entry.name for entry in entries if entry.default is missing and entry.default_factory is missing]
    if absent := [name for name in needed if name not in settings]:
        raise ValueError(f"{kind.__name__} needs the setting {absent[0]!r}. Known: {', '.join(known)}.")
    return kind(**settings)


@dataclass(frozen=True)
class Strategy(Keywords):
    """Settings of a search. A subclass that needs no memory gives `events` and `step`; one that does gives `start`.

    ```py
    @dataclass(frozen=True)
    class FollowTheBest(Strategy):
        every: int = 5

        def events(self, num_steps):
            return range(self.every, num_steps, self.every)

        def step(self, look):
            return Plan(look.ranked()[:, :1].expand_as(look.rewards))
    ```

    Attributes:
        num_particles: K, particles per image, at least 1. The loop's cost grows with it.
        noise: of samplers whose noise can be switched. A number stands for `Noise(eta)`.
        preview: decodes x0 predictions in place of the pipeline's VAE; None for the VAE itself. A decoder, or its hub
            id or path, stands for `Preview(decoder)`.
        seed: of a run that is given no generator.
        steps: of the loop, where the pipeline's call says nothing of them; None for the pipeline's own number, or with
            `calls` for what suits these.
        sampler: by which the loop is taken: a name such as 'ddim', 'dpmsolver++' or 'euler', or a scheduler class of
            Diffusers. None for the pipeline's own, or with `calls` for DPM-Solver++ where the pipeline can take it.
        guidance_stop: share of the loop, in (0, 1], after which classifier-free guidance is left out, so that the
            denoiser computes the conditional rows alone; at 0.5 a run takes a quarter fewer rows. 1 keeps it to the
            end. Where a pipeline computes no second rows it changes nothing.
        calls: denoiser calls per image that a run may take, guidance's second row not counted. The number of particles
            is then not `num_particles` but the largest that fits, found when the pipeline is called. None for no
            budget.

    Raises:
        ValueError: for a value out of range.
    """

    num_particles: int = 4
    noise: Noise = field(default_factory=Noise, kw_only=True)
    preview: Preview | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    sampler: str | None = field(default=None, kw_only=True)
    guidance_stop: float = field(default=1.0, kw_only=True)
    calls: int | None = field(default=None, kw_only=True)

    within = Within()

    goes_back: ClassVar[bool] = False
    """Whether plans may resume from another step than the next. The pipeline's loop is then sent there."""

    def __post_init__(self) -> None:
        self._set(
            num_particles=integer("num_particles", self.num_particles, 1),
            noise=coerced(Noise, self.noise),
            preview=None if self.preview is None else coerced(Preview, self.preview),
            seed=integer("seed", self.seed, 0, optional=True),
            steps=integer("steps", self.steps, 1, optional=True),
            guidance_stop=real("guidance_stop", self.guidance_stop, 0.0, 1.0),
            calls=integer("calls", self.calls, 1, optional=True),
        )
        if self.guidance_stop == 0.0:
            raise ValueError("Expected `guidance_stop` above 0, as the first step has guidance, but got 0.0.")
        if self.sampler is not None and not (isinstance(self.sampler, str) and self.sampler):
            raise ValueError(f"Expected `sampler` to be a name, such as 'ddim', but got {brief(self.sampler)}.")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    # What a run asks.

    def start(self, start: Start) -> Search:
        """The search of one call. A strategy without memory is its own."""
        return Stateless(self, start)

    def events(self, num_steps: int) -> Collection[int]:
        """The steps, counted from zero, at which a strategy without memory looks."""
        return ()

    def step(self, look: Look) -> Plan:
        """What a strategy without memory says at an event."""
        raise NotImplementedError(f"{type(self).__name__} defines neither `step` nor `start`.")

    @property
    def looks(self) -> bool:
        """Whether x0 predictions are scored along the way; final images always are."""
        return True

    def copying(self, num_steps: int) -> list[int]:
        """The steps at which plans may make copies of a particle that only the sampler's noise can part."""
        return sorted(self.events(num_steps))

    def check(self, reward: RewardFacts) -> None:
        """Make sure before the run that it fits the reward.

        Raises:
            ValueError: if it does not.
        """

    @property
    def steps_are_usual(self) -> bool:
        """Whether neither the settings nor their budget say how many steps to take."""
        return self.steps is None and self.calls is None

    def guided_steps(self, num_steps: int) -> int:
        """How many of the loop's steps, from the first on, have classifier-free guidance."""
        return max(1, math.ceil(self.guidance_stop * num_steps - 1e-9))

    @property
    def least_particles(self) -> int:
        """The number of particles below which the settings make no sense."""
        return 1

    def cost(self, num_steps: int) -> int:
        """Denoiser calls per image that a run takes at most: one for each particle and step, guidance's second row not
        counted. Copies that no noise has parted yet, and images that are good enough early, cost less; with two-stage
        solvers, where events wait for the next whole step, pruning and going back may cost a few more.

        Args:
            num_steps: of the loop, in denoiser calls.

        Raises:
            NotImplementedError: from a strategy of one's own that goes back and does not say.
        """
        if self.goes_back:
            raise NotImplementedError(f"{type(self).__name__} goes back, so its `cost` has to be defined.")
        return self.num_particles * num_steps

    def resolved(self: Self, num_steps: int) -> Self:
        """The same with the most particles that fit the budget `calls`, which is then none any more.

        Args:
            num_steps: of the loop, in denoiser calls.

        Raises:
            ValueError: if the fewest cost more, naming the least.
        """
        if self.calls is None:
            return self

        def cost(num_particles: int) -> int:
            return self.replace(num_particles=num_particles, calls=None).cost(num_steps)

        least = self.least_particles
        # A particle costs at least a call.
        number = least + bisect_right(range(least, max(self.calls, least) + 1), self.calls, key=cost) - 1
        if number < least:
            raise ValueError(
                f"A budget of {self.calls} denoiser calls per image is too small: {least} "
                f"particle{'s' if least > 1 else ''} over a loop of {num_steps} steps take{'' if least > 1 else 's'} "
                f"{cost(least)}. Allow at least {cost(least)}, or take fewer steps."
            )
        return self.replace(num_particles=number, calls=None)

    def conduct(self, passes: Passes) -> None:
        """Make the passes of one call: one, unless a strategy says otherwise."""
        passes.run(self)

    def caveats(self, num_steps: int) -> list[str]:
        """Why a run of so many steps steers little or nothing, in sentences for warnings; empty if it does not."""
        return []

    # Settings as data.

    @property
    def name(self) -> str:
        """The name under which the strategy is known, or that of its class."""
        return _name_of(type(self))

    def describe(self) -> dict[str, Any]:
        """Plain values for a record; objects that are not plain are named only."""
        fields = {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}
        return {"strategy": self.name, **fields}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, of which `from_dict` makes the same strategy.

        Raises:
            ValueError: for a preview decoder that is an object, which cannot be written down.
        """
        if self.preview is not None and not isinstance(self.preview.decoder, str):
            raise ValueError(
                "A preview decoder in memory cannot be written down. Give its hub id or path: "
                "`preview=Preview('madebyollin/taesd')`."
            )
        return self.describe()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Strategy:
        """Inverse of `to_dict`; what is left out takes its default.

        Raises:
            ValueError: for an unknown strategy or setting, listing the known ones, or for anything but a mapping.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"Expected settings as the mapping that `to_dict` makes, but got {brief(settings)}.")
        settings = dict(settings)
        if cls is Strategy and "strategy" not in settings:
            from .registry import STRATEGIES

            near = next((hint for key in settings if (hint := suggestion(key, ["strategy"]))), "")
            raise ValueError(f"Expected settings with an entry 'strategy', one of: {', '.join(STRATEGIES)}.{near}")
        name = settings.pop("strategy", _name_of(cls))
        return made(cls if name == _name_of(cls) else strategy_class(name), settings)

    def replace(self: Self, **overrides: Any) -> Self:
        """The same with some settings replaced.

        Raises:
            ValueError: for a setting that the strategy does not have, listing those it has.
        """
        return made(
            type(self), {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)} | overrides
        )


class Stateless(Search):
    """The search of a strategy without memory."""

    def __init__(self, strategy: Strategy, start: Start) -> None:
        self.strategy = strategy
        self.events = frozenset(strategy.events(start.num_steps))

    def step(self, look: Look) -> Plan:
        return self.strategy.step(look)


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy by name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    from .registry import STRATEGIES

    if not is_named(name, STRATEGIES):
        raise unknown("strategy", name, STRATEGIES)
    module, _, attribute = STRATEGIES[name].partition(":")
    kind: type[Strategy] = getattr(import_module(module), attribute)
    return kind


def _name_of(kind: type[Strategy]) -> str:
    from .registry import STRATEGIES

    known = [name for name, place in STRATEGIES.items() if place == f"{kind.__module__}:{kind.__qualname__}"]
    return known[0] if known else kind.__qualname__


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind: Any = type(value)
        name = {"name": kind.name} if hasattr(kind, "name") else {}
        return {**name, **{entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return describe(value)
