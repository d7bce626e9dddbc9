"""The noise of a Diffusers scheduler: switching it, and which steps part copies of a particle by it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from torch import Tensor

from .interception import UnsupportedSchedulerError, accepts, intercept, plain_step
from .rows import map_rows
from .schedulers import gather_history, inverted, start_index, unbounded


@contextmanager
def noise_switched(scheduler: Any, step: Callable[..., Any], eta: float) -> Iterator[Callable[..., Any]]:
    """The `step` to call so that a sampler whose noise can be switched adds it if `eta` > 0, and none if it is 0.

    | sampler | with noise | without |
    |---|---|---|
    | DDIM, TCD | `eta` | `eta=0` |
    | Euler, Euler ancestral | the ancestral step | the Euler step |
    | DPM-Solver++ (multistep, singlestep, EDM) | `sde-dpmsolver++` | `dpmsolver++` |
    | flow matching Euler | `stochastic_sampling`, where sigmas exceed 1 x0 + sigma epsilon | without it |

    Other samplers keep the noise they have, or have none.

    Args:
        scheduler: the scheduler, whose config may be changed while the context lasts.
        step: its own bound step.
    """
    if accepts(step, "eta"):
        with _within_the_next_level(scheduler, eta):
            yield functools.partial(step, eta=eta)
        return
    if isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)):
        # The two differ in nothing but `step`, which needs the same state.
        wanted = EulerAncestralDiscreteScheduler if eta > 0 else EulerDiscreteScheduler
        take_step = step if isinstance(scheduler, wanted) else functools.partial(wanted.step, scheduler)
        if wanted is EulerAncestralDiscreteScheduler and scheduler.config.prediction_type == "sample":
            with _given_epsilon(scheduler, take_step) as of_epsilon:
                yield of_epsilon
            return
        yield take_step
        return
    if inverted(scheduler) and eta > 0:
        with _noisy_inverted(scheduler, step) as take_step:
            yield take_step
        return
    if unbounded(scheduler) and eta > 0 and "stochastic_sampling" in scheduler.config:
        with _noisy_unbounded(scheduler, step) as take_step:
            yield take_step
        return
    for name, quiet, noisy in (
        ("stochastic_sampling", False, True),
        ("algorithm_type", "dpmsolver++", "sde-dpmsolver++"),
    ):
        before, wanted_value = scheduler.config.get(name), noisy if eta > 0 else quiet
        if before in (quiet, noisy) and before != wanted_value:
            scheduler.register_to_config(**{name: wanted_value})
            try:
                yield step
            finally:
                scheduler.register_to_config(**{name: before})
            return
    yield step


@contextmanager
def _noisy_inverted(scheduler: Any, step: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A stochastic step of an inverted flow. The scheduler's own takes sigma for the share of noise, so that the loop
    would end in noise; with sigmas and velocity turned round it is right."""

    def take_step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(-model_output, *args, **kwargs)

    sigmas, stochastic = scheduler.sigmas, scheduler.config.stochastic_sampling
    scheduler.sigmas = 1 - sigmas
    scheduler.register_to_config(stochastic_sampling=True)
    try:
        yield functools.wraps(step)(take_step)
    finally:
        scheduler.sigmas = sigmas
        scheduler.register_to_config(stochastic_sampling=stochastic)


@contextmanager
def _noisy_unbounded(scheduler: Any, step: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A stochastic step of a flow whose sigmas exceed 1, as Cosmos 2 has it: samples are x0 + sigma epsilon. The
    scheduler's own would take (1 - sigma) x0 for what is left of x0."""

    def take_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = step(model_output, timestep, sample, *args, **kwargs)
        sigma, following = scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1]
        missing = following * (sample.float() - sigma * model_output)
        return map_rows(lambda previous: (previous + missing).to(previous.dtype), output, len(sample))

    stochastic = scheduler.config.stochastic_sampling
    scheduler.register_to_config(stochastic_sampling=True)
    try:
        yield functools.wraps(step)(take_step)
    finally:
        scheduler.register_to_config(stochastic_sampling=stochastic)


@contextmanager
def _given_epsilon(scheduler: Any, step: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The ancestral step for a model that predicts x0, which it takes for epsilon alone."""

    def take_step(model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, **kwargs: Any) -> Any:
        sigma = scheduler.sigmas[start_index(scheduler, timestep)].to(sample.device, torch.float32)
        epsilon = (sample.float() - model_output.float()) / sigma
        return step(epsilon.to(model_output.dtype), timestep, sample, generator=generator, **kwargs)

    scheduler.register_to_config(prediction_type="epsilon")
    try:
        yield take_step
    finally:
        scheduler.register_to_config(prediction_type="sample")


@contextmanager
def _within_the_next_level(scheduler: Any, eta: float) -> Iterator[None]:
    """While the context lasts, DDIM's noise is no larger than the level of the next step, 1 - alpha_bar.

    With alpha_bar of (nearly) 0, as at full noise under `rescale_betas_zero_snr`, the two are equal at eta = 1, and
    their difference, of which `step` takes the root, may be rounded to less than 0. The variance is then the next
    smaller number for which it is not; all others stay as they are.
    """
    if not (eta > 0 and hasattr(scheduler, "_get_variance") and accepts(scheduler._get_variance, "prev_timestep")):
        yield
        return

    def variance_of(inner: Callable[..., Tensor], timestep: Any, prev_timestep: Any, *args: Any) -> Tensor:
        variance = inner(timestep, prev_timestep, *args)
        alpha = scheduler.alphas_cumprod[prev_timestep] if prev_timestep >= 0 else scheduler.final_alpha_cumprod
        level = 1 - alpha
        for _ in range(_ULPS):
            if not (eta * variance**0.5) ** 2 > level:
                break
            variance = torch.nextafter(variance, torch.zeros_like(variance))
        return variance

    with intercept(scheduler, "_get_variance", lambda inner: functools.partial(variance_of, inner)):
        yield


_ULPS = 16
"""More than rounding makes of a few operations."""


def adds_noise(scheduler: Any, eta: float) -> bool:
    """Whether a scheduler at rest would part two copies of a particle, at this `eta` throughout."""
    probe = copy.deepcopy(scheduler)
    options = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    probe.set_timesteps(8, **options)
    return any(parting_steps(probe, probe.timesteps.tolist(), lambda index: eta))


def parting_steps(scheduler: Any, timesteps: Sequence[float], eta_at: Callable[[int], float]) -> list[bool]:
    """For each step of a loop whether it parts two copies of a particle.

    Asks the scheduler itself rather than a list of schedulers: a copy of it takes the steps, on the CPU, with two equal
    rows and a generator for each.

    Args:
        scheduler: before its first step.
        timesteps: of the loop.
        eta_at: step index -> the noise asked for, see `noise_switched`.

    Raises:
        UnsupportedSchedulerError: if a step makes NaN or infinities of numbers.
    """
    probe = copy.copy(scheduler)
    for name in [name for name, value in vars(probe).items() if callable(value) and hasattr(type(probe), name)]:
        del vars(probe)[name]  # a method that is replaced, by ours for example, which hold on to the whole run
    probe = copy.deepcopy(_on_cpu(probe))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    sample = torch.ones(2, 4, 2, 2)
    # A learned variance comes as the second half of the output's channels.
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    output = torch.zeros(2, 8 if learned else 4, 2, 2)
    parted = []
    for index, timestep in enumerate(timesteps):
        sample = sample[:1].repeat(2, 1, 1, 1)
        gather_history(probe, sample.shape, torch.zeros(2, dtype=torch.long))  # in which earlier noise goes on
        with noise_switched(probe, plain_step(probe), eta_at(index)) as step:
            options = {"generator": generators} if accepts(step, "generator") else {}
            sample = step(output, torch.tensor(timestep), sample, **options)[0]
        if not sample.isfinite().all():
            raise UnsupportedSchedulerError(_not_finite(scheduler, index, timestep))
        parted.append(not torch.equal(sample[0], sample[1]))
    return parted


def _not_finite(scheduler: Any, index: int, timestep: float) -> str:
    name, prediction = type(scheduler).__name__, scheduler.config.get("prediction_type")
    message = f"{name} makes NaN or infinite samples at step {index} (timestep {timestep:g}) of this loop"
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or alphas[-1] > 0:
        return f"{message}. Use another sampler, number of steps or timestep spacing."
    if prediction == "epsilon":
        return (
            f"{message}: it starts from noise without any signal (alpha_bar = 0), from which no x0 follows by a "
            "prediction of epsilon. Load the scheduler as the model was trained: with "
            "`prediction_type='v_prediction'`, or without `rescale_betas_zero_snr`."
        )
    return (
        f"{message}: it divides by alpha_bar, which is 0 at full noise with these betas. Use DDIM, or "
        "`rescale_betas_zero_snr=True` in place of betas of your own."
    )


def _on_cpu(scheduler: Any) -> Any:
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.as_subclass(Tensor).cpu())
    return scheduler
