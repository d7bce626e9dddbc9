"""x0 predictions, solver history and noise of every scheduler that can be steered."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch

from fk_steer.diffusion import UnsupportedSchedulerError, intercept_step, predict_x0
from fk_steer.diffusion.interception import plain_step
from fk_steer.diffusion.noise import adds_noise, noise_switched, parting_steps
from fk_steer.diffusion.schedulers import (
    check_scheduler,
    gather_history,
    in_first_order_stage,
    leads_to_data,
    parametrisation,
)
from fk_steer.testing import sd_scheduler


def scheduler(name: str, **config):
    kind = getattr(diffusers, f"{name}Scheduler")
    if name.startswith("FlowMatch"):
        return kind(**config)
    if name.startswith("EDM"):
        return kind(prediction_type=config.pop("prediction_type", "epsilon"), **config)
    return sd_scheduler(kind=kind, **{"prediction_type": "epsilon", **config})


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
ALWAYS_NOISY = {
    "ddpm": ("DDPM", {}),
    "lcm": ("LCM", {"original_inference_steps": 50}),
    "kdpm2-a": ("KDPM2AncestralDiscrete", {}),
    "sde-dpm": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
    "sa-solver": ("SASolver", {}),
    "flow-lcm": ("FlowMatchLCM", {}),
    "cogvideox-dpm": ("CogVideoXDPM", {}),
}
SWITCHABLE = {
    "ddim": ("DDIM", {}),
    "tcd": ("TCD", {}),
    "euler": ("EulerDiscrete", {}),
    "euler-a": ("EulerAncestralDiscrete", {}),
    "dpm++2m": ("DPMSolverMultistep", {}),
    "dpm++2m-karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "dpm++3m": ("DPMSolverMultistep", {"solver_order": 3}),
    "sde-dpm++": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++2s": ("DPMSolverSinglestep", {}),
    "sde-dpm++2s": ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}),
    "edm-dpm++": ("EDMDPMSolverMultistep", {}),
    "flow-dpm++": ("DPMSolverMultistep", FLOW),
    "flow-euler": ("FlowMatchEulerDiscrete", {}),
    "flow-euler-stochastic": ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
}
NEVER_NOISY = {
    "heun": ("HeunDiscrete", {}),
    "kdpm2": ("KDPM2Discrete", {}),
    "lms": ("LMSDiscrete", {}),
    "pndm": ("PNDM", {}),
    "dpm": ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "unipc": ("UniPCMultistep", {}),
    "unipc3": ("UniPCMultistep", {"solver_order": 3}),
    "deis": ("DEISMultistep", {}),
    "edm-euler": ("EDMEuler", {}),
    "flow-heun": ("FlowMatchHeunDiscrete", {}),
    "flow-unipc": ("UniPCMultistep", FLOW),
}
SCHEDULERS = {**ALWAYS_NOISY, **SWITCHABLE, **NEVER_NOISY}
SHAPE = (4, 4, 6, 6)


def model(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A denoiser that treats each row by itself."""
    return torch.sin(1.7 * sample) + 0.1 * torch.cos(0.01 * timestep.float())


def denoise(solver, sample, timesteps, generators, before_step=lambda index, *state: state):
    """The loop of a pipeline; `before_step(index, model_output, sample)` may change both."""
    for index, timestep in enumerate(timesteps):
        scaled = solver.scale_model_input(sample, timestep) if hasattr(solver, "scale_model_input") else sample
        output, sample = before_step(index, model(scaled, timestep), sample)
        step = plain_step(solver)
        options = {"generator": generators} if "generator" in inspect.signature(step).parameters else {}
        if "eta" in inspect.signature(step).parameters:
            options["eta"] = 1.0
        sample = step(output, timestep, sample, **options)[0]
    return sample


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_x0_of_a_sample_noised_by_the_scheduler_itself(name):
    """Noise a known x0 with the scheduler's forward process, hand it the matching model output, get x0 back."""
    solver = scheduler(SCHEDULERS[name][0], **SCHEDULERS[name][1])
    solver.set_timesteps(10)
    x0, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    kind = parametrisation(solver)
    for timestep in solver.timesteps[[0, 4, -1]]:
        solver._step_index = None
        if kind == "flow":
            forward = solver.scale_noise if hasattr(solver, "scale_noise") else solver.add_noise
            sample = (
                forward(x0, timestep[None], noise)
                if hasattr(solver, "scale_noise")
                else forward(x0, noise, timestep[None].repeat(4))
            )
            output = noise - x0
        else:
            sample = solver.add_noise(x0, noise, timestep[None].repeat(4))
            output = noise
        if kind == "edm":
            sigma = solver.sigmas[(solver.timesteps == timestep).nonzero()[0, 0]]
            c_skip = 0.5**2 / (sigma**2 + 0.5**2)
            output = (x0 - c_skip * sample) / (sigma * 0.5 / (sigma**2 + 0.5**2).sqrt())
        predicted = predict_x0(solver, output, timestep, sample)
        # x0 is the small difference of two large numbers where the noise level is high.
        torch.testing.assert_close(predicted, x0, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "LCM"])
def test_x0_equals_the_schedulers_own(name, prediction_type):
    if name == "EulerAncestralDiscrete" and prediction_type == "sample":
        pytest.skip("not implemented by this scheduler")
    solver = scheduler(name, prediction_type=prediction_type)
    solver.set_timesteps(8)

    def check(inner, output, timestep, sample, **options):
        mine = predict_x0(solver, output, timestep, sample)
        result = inner(output, timestep, sample, **{**options, "return_dict": True})
        if name == "LCM":  # shows only x0 mixed with the sample by its boundary condition
            c_skip, c_out = solver.get_scalings_for_boundary_condition_discrete(timestep)
            torch.testing.assert_close(c_out * mine + c_skip * sample, result.denoised, atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(mine, result.pred_original_sample, atol=1e-5, rtol=1e-5)
        return (result.prev_sample,)

    with intercept_step(solver, check):
        denoise(solver, torch.randn(SHAPE) * solver.init_noise_sigma, solver.timesteps, generators(0, 1, 2, 3))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver", "DEISMultistep"]
)
def test_x0_equals_the_solvers_converted_output(name, prediction_type):
    if name == "SASolver" and prediction_type == "flow_prediction":
        pytest.skip("not implemented by this scheduler")
    config = FLOW if prediction_type == "flow_prediction" else {"prediction_type": prediction_type}
    solver = scheduler(name, **config)
    solver.set_timesteps(8)

    def check(inner, output, timestep, sample, **options):
        mine = predict_x0(solver, output, timestep, sample)
        converted = solver.convert_model_output(output, sample=sample)
        if name == "DEISMultistep":  # keeps noise predictions
            alpha, sigma = solver._sigma_to_alpha_sigma_t(solver.sigmas[solver.step_index])
            converted = (sample - sigma * converted) / alpha
        torch.testing.assert_close(mine, converted, atol=2e-4, rtol=1e-4)
        return inner(output, timestep, sample, **options)

    with intercept_step(solver, check):
        denoise(solver, torch.randn(SHAPE), solver.timesteps, generators(0, 1, 2, 3))


def test_x0_is_clipped_or_thresholded_where_the_scheduler_does_so():
    sample, output = 3 * torch.randn(SHAPE), torch.randn(SHAPE)
    clipping, thresholding = scheduler("DDIM", clip_sample=True), scheduler("DDIM", thresholding=True)
    for solver in (clipping, thresholding):
        solver.set_timesteps(10)
        expected = solver.step(output, solver.timesteps[3], sample, return_dict=True).pred_original_sample
        torch.testing.assert_close(predict_x0(solver, output, solver.timesteps[3], sample), expected)


@pytest.mark.parametrize("limit", [0.3, 2.0])
@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_x0_is_clipped_at_the_schedulers_own_range(name, limit):
    solver = scheduler(name, clip_sample=True, clip_sample_range=limit)
    solver.set_timesteps(10)
    sample, output = 3 * torch.randn(SHAPE), torch.randn(SHAPE)
    expected = solver.step(output, solver.timesteps[3], sample, return_dict=True).pred_original_sample
    found = predict_x0(solver, output, solver.timesteps[3], sample)
    assert found.abs().max() == pytest.approx(limit)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_learned_variance_is_no_part_of_x0(prediction_type):
    """Behind the prediction, in as many channels."""
    solver = scheduler("DDPM", variance_type="learned_range", prediction_type=prediction_type)
    solver.set_timesteps(10)
    sample, output = torch.randn(SHAPE), torch.randn(4, 8, 6, 6)
    found = predict_x0(solver, output, solver.timesteps[3], sample)
    assert found.shape == SHAPE
    expected = solver.step(output, solver.timesteps[3], sample, return_dict=True).pred_original_sample
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, predict_x0(solver, output[:, :4], solver.timesteps[3], sample))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("at", [4, 5])
def test_history_follows_the_rows(name, at):
    """Resampling before a step equals having run the survivors' lineages from the start, exactly."""
    solver = scheduler(SCHEDULERS[name][0], **SCHEDULERS[name][1])
    solver.set_timesteps(10)
    while not first_order_at(solver, at):
        at += 1
    start = torch.randn(SHAPE) * getattr(solver, "init_noise_sigma", 1.0)
    rows = torch.tensor([2, 0, 0, 3])

    resampled, own = copy.deepcopy(solver), generators(0, 1, 2, 3)
    states: list[torch.Tensor] = []

    def gather(index, output, sample):
        if index == at:
            states.extend(generator.get_state() for generator in own)
            assert in_first_order_stage(resampled)
            gather_history(resampled, sample.shape, rows)
            return output[rows], sample[rows]
        return output, sample

    result = denoise(resampled, start, solver.timesteps, own, gather)

    # The same rows from the start, with their parents' noise up to the resampling and their own from then on.
    lineage, parents = copy.deepcopy(solver), generators(*rows.tolist())

    def switch(index, output, sample):
        if index == at:
            for generator, state in zip(parents, states):
                generator.set_state(state)
        return output, sample

    assert torch.equal(result, denoise(lineage, start[rows], solver.timesteps, parents, switch))


def first_order_at(solver, at: int) -> bool:
    probe, stages = copy.deepcopy(solver), []

    def note(index, *state):
        stages.append(in_first_order_stage(probe))
        return state

    denoise(probe, torch.ones(SHAPE), solver.timesteps, generators(0, 1, 2, 3), note)
    return stages[at]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_parts_copies(name):
    solver = scheduler(SCHEDULERS[name][0], **SCHEDULERS[name][1])
    assert adds_noise(solver, eta=1.0) == (name not in NEVER_NOISY)
    assert adds_noise(solver, eta=0.0) == (name in ALWAYS_NOISY)


@pytest.mark.parametrize("name", SWITCHABLE)
def test_switched_steps_are_those_of_the_samplers_they_become(name):
    """Noise on or off throughout equals the sampler that always or never adds it, to the last bit."""
    twins = {
        "DDIM": {},
        "TCD": {},
        "EulerDiscrete": {True: ("EulerAncestralDiscrete", {})},
        "EulerAncestralDiscrete": {False: ("EulerDiscrete", {})},
        "DPMSolverMultistep": {
            True: ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
            False: ("DPMSolverMultistep", {"algorithm_type": "dpmsolver++"}),
        },
        "DPMSolverSinglestep": {
            True: ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}),
            False: ("DPMSolverSinglestep", {"algorithm_type": "dpmsolver++"}),
        },
        "EDMDPMSolverMultistep": {True: ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"})},
        "FlowMatchEulerDiscrete": {
            True: ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
            False: ("FlowMatchEulerDiscrete", {"stochastic_sampling": False}),
        },
    }
    kind, config = SWITCHABLE[name]
    start = torch.randn(SHAPE)
    for noisy, (twin_kind, twin_config) in twins[kind].items():
        solver, twin = scheduler(kind, **config), scheduler(twin_kind, **{**config, **twin_config})
        before = {name: solver.config.get(name) for name in ("algorithm_type", "stochastic_sampling")}
        for made in (solver, twin):
            made.set_timesteps(8)

        def switched(inner, *args, noisy=noisy, solver=solver, **options):
            with noise_switched(solver, inner, float(noisy)) as step:
                return step(*args, **options)

        x = start * getattr(solver, "init_noise_sigma", 1.0)
        with intercept_step(solver, switched):
            result = denoise(solver, x, solver.timesteps, generators(0, 1, 2, 3))
        assert torch.equal(result, denoise(twin, x, twin.timesteps, generators(0, 1, 2, 3)))
        assert all(solver.config.get(name) == value for name, value in before.items())


def test_eta_reaches_samplers_that_take_it():
    solver = scheduler("DDIM")
    solver.set_timesteps(8)
    sample, output = torch.randn(SHAPE), torch.randn(SHAPE)
    with noise_switched(solver, solver.step, 0.4) as step:
        result = step(output, solver.timesteps[2], sample, generator=generators(0, 1, 2, 3))[0]
    expected = solver.step(output, solver.timesteps[2], sample, eta=0.4, generator=generators(0, 1, 2, 3))[0]
    assert torch.equal(result, expected)


def test_switched_config_is_put_back_after_an_exception():
    solver = scheduler("FlowMatchEulerDiscrete")
    with pytest.raises(KeyError), noise_switched(solver, solver.step, 1.0):
        raise KeyError
    assert not solver.config.stochastic_sampling


def test_noise_before_the_resampling_does_not_count():
    solver = scheduler("DDIM")
    solver.set_timesteps(10)
    parting = parting_steps(solver, solver.timesteps.tolist(), lambda index: float(index < 4))
    assert parting == [True] * 4 + [False] * 6


def test_asking_leaves_the_scheduler_alone():
    solver = scheduler("DPMSolverMultistep")
    solver.set_timesteps(10)
    before = {name: copy.deepcopy(value) for name, value in vars(solver).items()}
    adds_noise(solver, 1.0)
    parting_steps(solver, solver.timesteps.tolist(), lambda index: 1.0)
    assert vars(solver).keys() == before.keys()
    assert solver.config == before["_internal_dict"]
    assert solver.step_index is None
    assert torch.equal(solver.timesteps, before["timesteps"])


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (diffusers.IPNDMScheduler(), "IPNDMScheduler does not say how x0 follows"),
        (diffusers.CMStochasticIterativeScheduler(), "does not say how x0 follows"),
        (diffusers.CosineDPMSolverMultistepScheduler(), "Brownian tree"),
    ],
)
def test_unsupported_schedulers(solver, message):
    solver.set_timesteps(4)
    with pytest.raises(UnsupportedSchedulerError, match=message):
        parametrisation(solver)


def all_schedulers() -> list[str]:
    names = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    return [name for name in names if hasattr(getattr(diffusers.schedulers, name), "set_timesteps")]


OPTIONS = {
    "prediction_type": ["v_prediction", "sample"],
    "use_karras_sigmas": [True],
    "rescale_betas_zero_snr": [True],
    "timestep_spacing": ["trailing", "linspace"],
    "set_alpha_to_one": [False],
    "snr_shift_scale": [1.0],
    "shift": [3.0],
    "shift_terminal": [0.1],
    "timestep_type": ["continuous"],
    "solver_order": [1, 3],
    "final_sigmas_type": ["sigma_min"],
    "stochastic_sampling": [True],
    "invert_sigmas": [True],
}
NOT_TAKEN = {"UniPCMultistepScheduler": {"shift_terminal"}, "UnCLIPScheduler": {"v_prediction"}}
"""Options that a scheduler has, and refuses by themselves."""
OF_LATENT_NOISE = {"AmusedScheduler", "VQDiffusionScheduler", "RFD4ProteinaScheduler"}
"""Of tokens and proteins, which cannot be made without more."""
NEVER_SAMPLE = {
    "PNDM",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "EulerAncestralDiscrete",
    "EDMEuler",
    "EDMDPMSolverMultistep",
    "HeliosDMD",
    "Helios",
}
"""That take no prediction of the sample."""


def every_setting():
    for name in all_schedulers():
        yield name, {}
        taken = inspect.signature(getattr(diffusers.schedulers, name).__init__).parameters
        for option, values in OPTIONS.items():
            refused = NOT_TAKEN.get(name, set())
            for value in values if option in taken and option not in refused and name not in OF_LATENT_NOISE else ():
                if value not in refused and not (value == "sample" and name.removesuffix("Scheduler") in NEVER_SAMPLE):
                    yield name, {option: value}


@pytest.mark.parametrize(("name", "options"), list(every_setting()))
def test_a_model_that_knows_x0_gives_it_at_every_step(name, options):
    """Of all schedulers in Diffusers, with all options that bear on it: what is predicted in a loop whose model always
    says what leads to a known x0, with samples as the scheduler itself noises them; or a refusal."""
    if name in OF_LATENT_NOISE:
        return
    solver = getattr(diffusers.schedulers, name)(**options)
    try:
        check_scheduler(solver)
        whole = inspect.signature(solver.set_timesteps).parameters.keys() & {"intermediate_timesteps"}
        solver.set_timesteps(5, **dict.fromkeys(whole))
        parametrisation(solver)
    except UnsupportedSchedulerError:
        return
    kind, prediction = parametrisation(solver), solver.config.get("prediction_type")
    x0 = torch.rand(SHAPE, generator=generators(0)[0]) * 1.6 - 0.8
    noise = torch.randn(SHAPE, generator=generators(1)[0])
    one, none, worst, sample = torch.ones(1), torch.zeros(1), 0.0, None
    for timestep in solver.timesteps[:-1] if kind == "trigonometric" else solver.timesteps:
        if kind == "trigonometric":
            alpha, sigma = timestep.cos(), timestep.sin() * solver.config.sigma_data
        else:
            fresh = copy.deepcopy(solver)
            fresh._step_index = None
            if hasattr(fresh, "scale_noise"):
                alpha, sigma = (fresh.scale_noise(a, timestep[None], b) for a, b in ((one, none), (none, one)))
            else:
                alpha, sigma = (fresh.add_noise(a, b, timestep[None]) for a, b in ((one, none), (none, one)))
            if solver.config.get("invert_sigmas"):
                alpha, sigma = sigma, alpha
        if sample is None:
            sample = alpha * x0 + sigma * noise
        epsilon = (sample - alpha * x0) / sigma.clamp(min=1e-8)
        if kind == "edm":
            at = solver.sigmas[(solver.timesteps == timestep).nonzero()[0, 0]]
            data = solver.config.sigma_data
            skip, out = data**2 / (at**2 + data**2), at * data / (at**2 + data**2).sqrt()
            output = (x0 - skip * sample) / (out if prediction == "epsilon" else -out)
        elif kind == "flow":
            output = x0 - epsilon if leads_to_data(solver) else epsilon - x0
        elif kind == "trigonometric":
            output = alpha * solver.config.sigma_data * epsilon - timestep.sin() * x0
        elif prediction == "epsilon":
            output = epsilon
        elif prediction == "sample":
            output = x0.clone()
        else:
            output = (alpha * epsilon - sigma * x0) / (alpha**2 + sigma**2).sqrt()
        if hasattr(solver, "scale_model_input"):
            solver.scale_model_input(sample, timestep)
        if in_first_order_stage(solver):
            predicted = predict_x0(solver, output, timestep, sample)
            worst = max(worst, float((predicted - x0).abs().max()))
        step = plain_step(solver)
        random = {"generator": generators(2)[0]} if "generator" in inspect.signature(step).parameters else {}
        sample = step(output, timestep, sample, **random)[0]
    assert worst < 0.01
    if kind in ("flow", "scaled") and not {"shift_terminal", "final_sigmas_type"} & set(options):
        assert float((sample - x0).abs().max()) < 5e-3  # the scheduler's own end


def test_a_scheduler_of_others_is_asked_where_it_ends():
    class Backwards(diffusers.FlowMatchEulerDiscreteScheduler):
        def step(self, model_output, timestep, sample, **options):
            return super().step(-model_output, timestep, sample, **options)

    class Same(diffusers.FlowMatchEulerDiscreteScheduler):
        pass

    check_scheduler(Same())
    with pytest.raises(UnsupportedSchedulerError, match="last step of Backwards"):
        check_scheduler(Backwards())


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (diffusers.DDIMInverseScheduler(), "nothing to steer"),
        (diffusers.HeliosScheduler(), "in 3 loops"),
        (diffusers.FlowMatchLCMScheduler(invert_sigmas=True), "invert_sigmas=False"),
    ],
)
def test_schedulers_that_lead_elsewhere(solver, message):
    with pytest.raises(UnsupportedSchedulerError, match=message):
        check_scheduler(solver)


def test_unknown_prediction_type():
    solver = scheduler("DDIM")
    solver.register_to_config(prediction_type="score")
    with pytest.raises(UnsupportedSchedulerError, match="'epsilon', 'v_prediction', 'sample'"):
        predict_x0(solver, torch.zeros(SHAPE), 10, torch.zeros(SHAPE))


class TestInterceptStep:
    def test_keeps_the_signature_and_is_undone(self):
        solver = scheduler("DDIM")
        signature = inspect.signature(solver.step)
        with intercept_step(solver, lambda inner, *args, **kwargs: inner(*args, **kwargs)):
            assert inspect.signature(solver.step) == signature
            assert "step" in vars(solver)
        assert "step" not in vars(solver)

    def test_is_undone_after_an_exception(self):
        solver = scheduler("DDIM")
        with pytest.raises(KeyError), intercept_step(solver, lambda inner, *args: None):
            raise KeyError
        assert "step" not in vars(solver)

    def test_nests_and_puts_back_what_was_there(self):
        solver = scheduler("DDIM")
        solver.set_timesteps(4)
        own = solver.step = lambda *args, **kwargs: "compiled"
        calls = []

        def outer(inner, *args, **kwargs):
            calls.append("outer")
            return inner(*args, **kwargs)

        def nested(inner, *args, **kwargs):
            calls.append("nested")
            return inner(*args, **kwargs)

        with intercept_step(solver, outer), intercept_step(solver, nested):
            assert solver.step(None, 1, None) == "compiled"
        assert calls == ["nested", "outer"]
        assert solver.step is own

    def test_is_not_saved_with_the_scheduler(self, tmp_path):
        solver = scheduler("DDIM")
        with intercept_step(solver, lambda inner, *args, **kwargs: inner(*args, **kwargs)):
            solver.save_pretrained(tmp_path)
        saved = diffusers.DDIMScheduler.load_config(tmp_path)
        assert all(saved[name] == value for name, value in solver.config.items() if name[0] != "_")
        assert saved["_class_name"] == "DDIMScheduler"
