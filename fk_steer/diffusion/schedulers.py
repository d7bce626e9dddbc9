"""What a scheduler's samples say of x0, and what it remembers of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .interception import UnsupportedSchedulerError


def predict_x0(
    scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, per_token_timesteps: Tensor | None = None
) -> Tensor:
    """The x0 prediction of one denoiser call, by formula, before the scheduler takes its step.

    With alpha_t^2 the share of signal and sigma_t^2 of noise (alpha_t^2 + sigma_t^2 = 1 unless noted), the predicted
    quantity m is turned into x0 (Salimans & Ho, arXiv 2202.00512, appendix D):

    | parametrisation | x_t | epsilon | v_prediction |
    |---|---|---|---|
    | variance preserving (DDIM, DDPM, PNDM, LCM, TCD, DPM-Solver, UniPC, DEIS, SA-Solver) | alpha x0 + sigma eps | (x_t - sigma m) / alpha | alpha x_t - sigma m |
    | scaled by 1 / alpha, s = sigma / alpha (Euler, Heun, KDPM2, LMS) | x0 + s eps | x_t - s m | (x_t - s sqrt(s^2 + 1) m) / (s^2 + 1) |
    | EDM | x0 + s eps | `precondition_outputs` | `precondition_outputs` |
    | flow | (1 - s) x0 + s eps | - | x_t - s m |
    | flow whose sigmas exceed 1 (`sigma_max`) | x0 + s eps | - | x_t - s m |
    | flow, inverted (`invert_sigmas`) | s x0 + (1 - s) eps, m = x0 - eps | - | x_t + (1 - s) m |
    | flow to the data (MiniMax-H3) | (1 - s) x0 + s eps, m = x0 - eps | - | x_t + s m |
    | trigonometric flow (SCM, arXiv 2410.11081), time t | cos(t) x0 + sin(t) eps | - | cos(t) x_t - sin(t) m |

    Args:
        scheduler: with its timesteps set.
        model_output: (B, ...) what the pipeline passes to `scheduler.step`, guidance included.
        timestep: the timestep passed to `scheduler.step`; a number on the CPU makes no device wait.
        sample: (B, ...) x_t.
        per_token_timesteps: (B, tokens) of a flow whose tokens have noise of their own.

    Returns:
        (B, ...) float32, clipped or thresholded if the scheduler does so.

    Raises:
        UnsupportedSchedulerError: for a scheduler whose samples and x0 are related in none of these ways.
    """  # noqa: E501
    m, x = model_output.float(), sample.float()
    prediction = scheduler.config.get("prediction_type")
    kind = parametrisation(scheduler)
    if kind == "trigonometric":
        time: Tensor = scheduler.timesteps[start_index(scheduler, timestep)].to(torch.float32)
        x0 = time.cos() * x - time.sin() * m
    elif kind == "variance-preserving":
        alpha_squared = scheduler.alphas_cumprod[int(timestep)]
        if m.shape[1] == 2 * x.shape[1]:  # the second half is a learned variance
            m = m[:, : x.shape[1]]
        x0 = _from_signal_and_noise(prediction, m, x, alpha_squared.sqrt(), (1 - alpha_squared).sqrt())
    else:
        # On its own device: mixing in a number makes nobody wait.
        sigma = scheduler.sigmas[start_index(scheduler, timestep)].to(torch.float32)
        if kind == "edm":
            x0 = scheduler.precondition_outputs(x, m, sigma)
        elif kind == "flow":
            if per_token_timesteps is not None:  # with which the step takes the velocity from noise to x0
                x0 = x + per_token_timesteps[..., None] / scheduler.config.num_train_timesteps * m
            else:
                share = 1 - sigma if inverted(scheduler) else sigma  # of noise
                x0 = x + share * m if leads_to_data(scheduler) else x - share * m
        elif kind == "variance-preserving-sigmas":
            x0 = _from_signal_and_noise(prediction, m, x, *scheduler._sigma_to_alpha_sigma_t(sigma))
        else:
            alpha = (sigma**2 + 1).rsqrt()
            x0 = _from_signal_and_noise(prediction, m, alpha * x, alpha, alpha * sigma)
    if type(scheduler).__name__ in _NEVER_CLIP:
        return x0
    if scheduler.config.get("thresholding"):
        thresholded: Tensor = scheduler._threshold_sample(x0)
        return thresholded
    if scheduler.config.get("clip_sample"):
        limit = scheduler.config.get("clip_sample_range", 1.0)
        return x0.clamp(-limit, limit)
    return x0


_NEVER_CLIP = frozenset({"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler"})
"""Schedulers that have settings for clipping which their steps do not read."""


def inverted(scheduler: Any) -> bool:
    """Whether a flow's sigmas are the share of signal."""
    return bool(scheduler.config.get("invert_sigmas"))


def unbounded(scheduler: Any) -> bool:
    """Whether a flow's sigmas are not shares: samples are x0 + sigma epsilon."""
    return (scheduler.config.get("sigma_max") or 0.0) > 1.0 and hasattr(scheduler, "scale_noise")


def leads_to_data(scheduler: Any) -> bool:
    """Whether a flow's velocity points from noise to x0."""
    return inverted(scheduler) or type(scheduler).__name__ == "MiniMaxH3Scheduler"


def levels(scheduler: Any, timestep: float, index: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a step, with which its samples are alpha x0 + sigma epsilon.

    Args:
        timestep: of the step.
        index: of the step among the scheduler's sigmas.
    """
    kind = parametrisation(scheduler)
    if kind == "trigonometric":
        time: Tensor = scheduler.timesteps[index].to(torch.float32)
        return time.cos(), time.sin() * scheduler.config.sigma_data
    if kind == "variance-preserving":
        alpha_squared = scheduler.alphas_cumprod[int(timestep)]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
    sigma = scheduler.sigmas[index].to(torch.float32)
    if kind == "flow":
        if unbounded(scheduler):
            return torch.ones_like(sigma), sigma
        return (sigma, 1 - sigma) if inverted(scheduler) else (1 - sigma, sigma)
    if kind == "variance-preserving-sigmas":
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return alpha, sigma
    return torch.ones_like(sigma), sigma


def steps_from(scheduler: Any, timestep: Any) -> int:
    """How many steps a loop takes that goes on from a timestep to the last one."""
    timesteps = scheduler.timesteps.as_subclass(Tensor).tolist()
    first = float(timestep)
    return len(timesteps) - (timesteps.index(first) if first in timesteps else 0)


def start_index(scheduler: Any, timestep: float) -> int:
    """Where a scheduler stands among its sigmas; before its first step, where that timestep will put it. 0 for one
    without."""
    if not hasattr(scheduler, "step_index"):
        return 0
    if scheduler.step_index is None:
        if not hasattr(scheduler, "_init_step_index"):
            first = scheduler.begin_index
            return int(scheduler.index_for_timestep(timestep) if first is None else first)
        scheduler._init_step_index(timestep)
    return int(scheduler.step_index)


def parametrisation(scheduler: Any) -> str:
    """Which row of the table in `predict_x0` a scheduler belongs to.

    Raises:
        UnsupportedSchedulerError: for a scheduler that is in none of them, or whose noise is tied to a batch.
    """
    name = type(scheduler).__name__
    if hasattr(scheduler, "noise_sampler"):
        raise UnsupportedSchedulerError(
            f"{name} draws its noise from a Brownian tree made for one fixed batch, so rows cannot be resampled. Use "
            "`DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type='sde-dpmsolver++')`."
        )
    if hasattr(scheduler, "sigmas"):
        if hasattr(scheduler, "precondition_outputs"):
            return "edm"
        if hasattr(scheduler, "scale_noise") or scheduler.config.get("prediction_type") == "flow_prediction":
            return "flow"
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            return "variance-preserving-sigmas"
        if hasattr(scheduler, "alphas_cumprod"):
            return "scaled"
    elif hasattr(scheduler, "alphas_cumprod"):
        return "variance-preserving"
    elif scheduler.config.get("prediction_type") == "trigflow":
        return "trigonometric"
    raise UnsupportedSchedulerError(
        f"{name} does not say how x0 follows from its samples. Use another scheduler, for example "
        "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`."
    )


def check_scheduler(scheduler: Any) -> None:
    """Check that it can be told what x0 the samples of a scheduler lead to.

    Raises:
        UnsupportedSchedulerError: if it cannot, or if a scheduler that is not of Diffusers goes elsewhere in its last
            step, from which there is no noise left.
    """
    name = type(scheduler).__name__
    parametrisation(scheduler)
    if "Inverse" in name or name == "RePaintScheduler":
        raise UnsupportedSchedulerError(
            f"{name} does not lead from noise to an image alone, so there is nothing to steer. Use another scheduler, "
            "for example `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`."
        )
    if scheduler.config.get("stages", 1) > 1:
        raise UnsupportedSchedulerError(
            f"{name} makes its images in {scheduler.config.stages} loops, from small to large ones, and particles can "
            "be steered within one loop alone. Load it with `stages=1`, if the model can do without."
        )
    if inverted(scheduler) and name == "FlowMatchLCMScheduler":
        raise UnsupportedSchedulerError(
            f"{name} takes its steps as if its sigmas were not inverted. Load it with `invert_sigmas=False`."
        )
    if not type(scheduler).__module__.startswith("diffusers.") and _ends_elsewhere(scheduler):
        raise UnsupportedSchedulerError(
            f"The last step of {name} does not end at the x0 that follows from its attributes and config, which would "
            "be scored. Use one of the schedulers of Diffusers."
        )


def _ends_elsewhere(scheduler: Any) -> bool:
    """Whether the last step of a scheduler, from which there is no noise left, goes to another x0 than is predicted."""
    probe = copy.deepcopy(scheduler)
    options = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        probe.set_timesteps(4, **options)
        clean = float(probe.sigmas[-1]) == (1.0 if inverted(probe) else 0.0)
    except (AttributeError, TypeError, ValueError):  # one without sigmas, or that wants to know more
        return False
    if not clean:
        return False
    sample, output = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    timestep = probe.timesteps[-1]
    if hasattr(probe, "_begin_index"):
        probe._begin_index = len(probe.timesteps) - 1
    predicted = predict_x0(probe, output, timestep, sample)
    with torch.random.fork_rng(devices=[]):
        end = probe.step(output, timestep, sample)[0]
    return not torch.allclose(predicted, end, rtol=1e-3, atol=1e-3)


def is_known(scheduler: Any) -> bool:
    """Whether `predict_x0` knows how the samples of a scheduler are related to x0."""
    try:
        return bool(parametrisation(scheduler))
    except UnsupportedSchedulerError:
        return False


def in_first_order_stage(scheduler: Any) -> bool:
    """False in the second half of a two-stage solver's step (Heun, KDPM2), where the sample is an intermediate point
    that must not be scored or resampled."""
    return getattr(scheduler, "state_in_first_order", True)


def gather_history(scheduler: Any, shape: torch.Size, rows: Tensor) -> None:
    """Reindex the rows of everything a multistep solver remembers: each attribute of the scheduler, or element of a
    list, that is a tensor of the samples' shape (model outputs, derivatives, last samples and noises).

    Args:
        shape: of the samples the history was made from.
        rows: (M,) rows of it that live on.
    """

    def gather(value: Any) -> Any:
        return value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape == shape else value

    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            value[:] = [gather(item) for item in value]
        elif isinstance(value, Tensor):
            setattr(scheduler, name, gather(value))


def _from_signal_and_noise(prediction: str | None, m: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    if prediction == "epsilon":
        return (x - sigma * m) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * m
    if prediction in ("sample", "original_sample"):
        return m
    raise UnsupportedSchedulerError(
        f"Expected `prediction_type` to be one of 'epsilon', 'v_prediction', 'sample' or 'flow_prediction', but got "
        f"{prediction!r}."
    )
