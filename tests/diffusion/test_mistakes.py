"""What people write by mistake, and what they are told: before the loop, with the name that was meant."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch

from fk_steer import (
    Execution,
    FKSteering,
    Noise,
    Preview,
    Resampling,
    Reward,
    RewardError,
    Schedule,
    Stop,
    Strategy,
    as_pil,
    load_reward,
    preset,
    steer,
)
from fk_steer.files import check_settings, record_settings
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.rewards import Cascade, WeightedSum, as_reward
from fk_steer.search import DepthFirst, Evolution, Lookahead, Metropolis
from fk_steer.smc import Max, Rising
from fk_steer.smc.names import suggestion
from fk_steer.testing import PROMPTS, SIZE, redness, sd


CALL = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}
STEERING = FKSteering(num_particles=2, lmbda=1.0, schedule=(1,))


@pytest.fixture(scope="module")
def pipe():
    pipe = sd()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def steerable(pipe):
    steerable = FKStableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    steerable.set_progress_bar_config(disable=True)
    return steerable


async def asynchronous(images, prompts):
    yield 1.0


def yielding(images, prompts):
    yield 1.0


class Bright:
    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


class Pooled(torch.nn.Module):
    def forward(self, images):
        return images.mean((1, 2, 3))


MADE = {
    "lambda_": (lambda: FKSteering(lambda_=3.0), TypeError, "no setting 'lambda_'.*mean 'lmbda'"),
    "lambda": (lambda: FKSteering(**{"lambda": 3.0}), TypeError, "Did you mean 'lmbda'"),
    "particles": (lambda: FKSteering(particles=4), TypeError, "Did you mean 'num_particles'"),
    "n_particles": (lambda: preset("fk", n_particles=4), ValueError, "Did you mean 'num_particles'"),
    "replace": (lambda: STEERING.replace(Potential="max"), ValueError, "Did you mean 'potential'"),
    "scheduler": (lambda: FKSteering(scheduler=(0.5,)), TypeError, "Did you mean 'schedule'"),
    "resample": (lambda: FKSteering(resample="ssp"), TypeError, "Did you mean 'resampling'"),
    "when": (lambda: Schedule(att=(0.5,)), TypeError, "Schedule has no setting 'att'.*mean 'at'"),
    "ess": (lambda: Resampling(ess=0.5), TypeError, "Resampling has no setting 'ess'"),
    "threshold": (lambda: Resampling(essthreshold=0.5), TypeError, "Did you mean 'ess_threshold'"),
    "floors": (lambda: Max(floors=0.0), TypeError, "Did you mean 'floor'"),
    "powers": (lambda: Rising(Power=2), TypeError, "Did you mean 'power'"),
    "windows": (lambda: Noise(windows=(0, 1)), TypeError, "Did you mean 'window'"),
    "target": (lambda: Stop(target=1.0), TypeError, "Did you mean 'target_reward'"),
    "batch": (lambda: Execution(reward_batch=2), TypeError, "Did you mean 'reward_batch_size'"),
    "moves": (lambda: Metropolis(move=2), TypeError, "Did you mean 'moves'"),
    "adaptiv": (lambda: preset("adaptiv"), ValueError, "Did you mean 'adaptive'"),
    "BestOfN": (lambda: preset("BestOfN"), ValueError, "Did you mean 'best-of-n'"),
    "preset list": (lambda: preset(["fk"]), ValueError, r"Unknown preset \['fk'\]"),
    "potential": (lambda: FKSteering(potential="differnce"), ValueError, "Did you mean 'difference'"),
    "tempering": (lambda: FKSteering(tempering="target_ess"), ValueError, "Did you mean 'target-ess'"),
    "resampler": (lambda: FKSteering(resampling="systemic"), ValueError, "Did you mean 'systematic'"),
    "top_k": (lambda: FKSteering(resampling="top_k"), ValueError, "Did you mean 'top-k'"),
    "strategy": (lambda: Strategy.from_dict({"strategy": "Metropolis"}), ValueError, "Did you mean 'metropolis'"),
    "clipscore": (lambda: load_reward("clipscore"), ValueError, "Did you mean 'clip-score'"),
    "clip_score": (lambda: load_reward("clip_score"), ValueError, "Did you mean 'clip-score'"),
    "ImageReward": (lambda: load_reward("ImageReward"), ValueError, "Did you mean 'image-reward'"),
    "Pick Score": (lambda: load_reward("Pick Score"), ValueError, "Did you mean 'pickscore'"),
    "reward class": (lambda: load_reward(Bright), ValueError, "Unknown reward the class Bright"),
    "option": (lambda: load_reward("clip-score", varient="hessel"), ValueError, "Did you mean 'variant'"),
    "variant": (lambda: load_reward("clip-score", variant="Hesel"), ValueError, "Did you mean 'hessel'"),
    "text": (lambda: FKSteering(lmbda="20"), ValueError, "`lmbda` to be .* but got '20'"),
    "complex": (lambda: FKSteering(lmbda=1j), ValueError, "`lmbda`"),
    "array": (lambda: FKSteering(lmbda=np.zeros(100)), ValueError, r"an array of shape \(100,\)"),
    "tensor": (lambda: FKSteering(num_particles=torch.zeros(2, 9)), ValueError, r"a tensor of shape \(2, 9\)"),
    "particles 4.0": (lambda: FKSteering(4.0), ValueError, "`num_particles`"),
    "bool": (lambda: FKSteering(lmbda=np.bool_(True)), ValueError, "`lmbda`"),
    "floor": (lambda: Max(floor=np.float32("nan")), ValueError, "`floor` to be None or a finite number"),
    "at set": (lambda: Schedule(at={0.2, 0.5}), ValueError, "`at` to be a sequence of numbers"),
    "at bytes": (lambda: Schedule(at=b"ab"), ValueError, "`at` to be a sequence of numbers"),
    "at mapping": (lambda: Schedule(at={0.5: 2}), ValueError, "`at` to be a sequence of numbers"),
    "at None": (lambda: Schedule(at=None), ValueError, "`at` to be a sequence of numbers"),
    "window": (lambda: Noise(window=0.5), ValueError, "`window` to be a sequence of numbers"),
    "batch text": (lambda: Execution(decode_batch_size="2"), ValueError, "`decode_batch_size`"),
    "batch 0": (lambda: Execution.in_batches(np.int64(0)), ValueError, "`denoise_batch_size`"),
    "no preview": (lambda: Preview(None), ValueError, "`decoder` of the preview"),
    "preview number": (lambda: FKSteering(preview=3), ValueError, "`decoder` of the preview"),
    "settings None": (lambda: FKSteering.from_dict(None), ValueError, "the mapping that `to_dict` makes, but got None"),
    "settings text": (lambda: Strategy.from_dict("fk"), ValueError, "but got 'fk'"),
    "no strategy": (lambda: Strategy.from_dict({"lmbda": 1}), ValueError, "with an entry 'strategy', one of: feynman"),
    "no target": (lambda: FKSteering.from_dict({"stop": {}}), ValueError, "Stop needs the setting 'target_reward'"),
    "no decoder": (lambda: FKSteering.from_dict({"preview": {}}), ValueError, "Preview needs the setting 'decoder'"),
    "wrong type": (lambda: FKSteering.from_dict({"lmbda": "x"}), ValueError, "`lmbda`"),
    "misspelt": (lambda: FKSteering.from_dict({"lambda": 1}), ValueError, "Did you mean 'lmbda'"),
    "weight": (lambda: WeightedSum({redness: "1"}), ValueError, "finite weights"),
    "list of weights": (lambda: WeightedSum([redness]), TypeError, "with their weights"),
    "switch": (lambda: Cascade(redness, redness, switch="late"), ValueError, "`switch`"),
    "as_pil": (lambda: as_pil(Bright), TypeError, "the class Bright itself"),
}


@pytest.mark.parametrize(("make", "kind", "message"), MADE.values(), ids=MADE)
def test_settings_and_names(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


REWARDS = {
    "class": (Bright, TypeError, r"the class Bright itself. Expected an object of it, `Bright\(\)`"),
    "list": ([redness, Bright()], TypeError, r"\{reward: weight, ...\} is their weighted sum"),
    "none": (None, TypeError, "but got None"),
    "tensor": (torch.zeros(3, 64, 64), TypeError, r"a tensor of shape \(3, 64, 64\)"),
    "async generator": (asynchronous, TypeError, "'asynchronous' is a generator"),
    "generator": (yielding, TypeError, "'yielding' is a generator.*return a list"),
    "no arguments": (lambda: 1.0, TypeError, "takes other arguments"),
    "name": ("clipscore", ValueError, "Unknown reward 'clipscore'.*Did you mean 'clip-score'"),
    "empty": ({}, ValueError, "finite weights"),
    "name in a sum": ({"image_reward": 1.0}, ValueError, "Did you mean 'image-reward'"),
    "module": (torch.nn.Bilinear(2, 2, 2).requires_grad_(False).train(), None, ""),
    "other module": (torch.nn.Transformer(8, 2, 1, 1, 8).decoder.layers[0].self_attn, TypeError, "other arguments"),
}


@pytest.mark.parametrize(("reward", "kind", "message"), REWARDS.values(), ids=REWARDS)
def test_rewards_before_anything_runs(pipe, reward, kind, message):
    if kind is None:
        assert steer(pipe, reward, STEERING).reward.name == "Bilinear"
        return
    with pytest.raises(kind, match=message):
        steer(pipe, reward, STEERING)


def keyword_only(images, *, captions):
    assert isinstance(captions[0], str)
    return images.mean((1, 2, 3))


def swapped(prompts, images):
    assert isinstance(prompts[0], str)
    return images.mean((1, 2, 3))


def with_option(images, power=1.0):
    return images.mean((1, 2, 3)) ** power


class OfImages(Reward):
    def __call__(self, images):
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    "reward",
    [
        lambda images: images.mean((1, 2, 3)),
        lambda images, prompts: images.mean((1, 2, 3))[:, None],
        lambda images, prompts: images.mean((1, 2, 3)).tolist(),
        lambda images, prompts: tuple(images.mean((1, 2, 3)).double()),
        lambda images, prompts: images.mean((1, 2, 3)).numpy().astype(np.float64),
        lambda images, prompts: images.mean((1, 2, 3)).requires_grad_(),
        keyword_only,
        swapped,
        with_option,
        Bright(),
        Pooled(),
        OfImages(),
        {Bright(): 0.5, Pooled(): 0.5},
    ],
)
def test_all_of_these_are_the_brightness(pipe, reward):
    generator = torch.Generator().manual_seed(0)
    output = steer(pipe, reward, STEERING)(PROMPTS, generator=generator, **CALL)
    expected = steer(pipe, Bright(), STEERING)(PROMPTS, generator=generator.manual_seed(0), **CALL)
    torch.testing.assert_close(output.rewards, expected.rewards)
    torch.testing.assert_close(output.images, expected.images)


def test_a_name_is_loaded(pipe, monkeypatch):
    from fk_steer.rewards import registry

    asked = []
    monkeypatch.setattr(registry, "load_reward", lambda name: asked.append(name) or redness)
    assert steer(pipe, "clip-score", STEERING).reward == as_reward(redness)
    assert as_reward({"hps": 2.0}).weights == (2.0,)
    assert asked == ["clip-score", "hps"]


def raising(images, prompts):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("reward", "message", "cause"),
    [
        (raising, "'raising' raised KeyError at step 1 for the prompts 'a red circle', 'two blue squares'", KeyError),
        (lambda images, prompts: None, "'<lambda>' returned None at step 1, .*'a red circle'", RuntimeError),
        (lambda images, prompts: ["good"] * 4, "returned .*'good'.* at step 1", Exception),
        (lambda images, prompts: {"score": images}, "returned .* at step 1, but one number", Exception),
        (lambda images, prompts: images, r"returned shape \(4, 3, 16, 16\) at step 1", None),
        (lambda images, prompts: [0.0], r"returned shape \(1,\) at step 1", None),
        (lambda images, prompts: torch.zeros(4, dtype=torch.complex64), "returned complex numbers at step 1", None),
        (lambda images, prompts: asynchronous(images, prompts), "returned .*async_generator.* at step 1", Exception),
        (lambda images, prompts: [float("nan")] * 4, "returned NaN at step 1 for the prompt 'a red circle'", None),
    ],
)
def test_what_a_reward_does_is_blamed_on_it(pipe, reward, message, cause):
    with pytest.raises(RewardError, match=message) as caught:
        steer(pipe, reward, STEERING)(PROMPTS, **CALL)
    assert len(str(caught.value)) < 500
    assert cause is None or isinstance(caught.value.__cause__, cause)


def test_no_memory_is_not_the_rewards_fault(pipe):
    def hungry(images, prompts):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        steer(pipe, hungry, STEERING)(PROMPTS, **CALL)


CALLS = {
    "steps 0": ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` to be an integer of at least 1"),
    "steps -1": ({"num_inference_steps": -1}, ValueError, "`num_inference_steps`"),
    "steps 2.5": ({"num_inference_steps": 2.5}, ValueError, "`num_inference_steps`"),
    "steps text": ({"num_inference_steps": "20"}, ValueError, "`num_inference_steps`.*'20'"),
    "steps None": ({"num_inference_steps": None}, ValueError, "`num_inference_steps`"),
    "images 0": ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt`"),
    "height": ({"height": "16"}, ValueError, "`height`"),
    "guidance": ({"guidance_scale": "7"}, ValueError, "`guidance_scale`"),
    "eta": ({"eta": 2.0}, ValueError, "`eta`"),
    "output": ({"output_type": "PIL"}, ValueError, "Unknown `output_type` 'PIL'.*Did you mean 'pil'"),
    "prompt": ({"prompt": 5}, TypeError, "`prompt` to be a text or a list of texts, but got 5"),
    "prompts": ({"prompt": ["a", None]}, TypeError, "`prompt` to be a text or a list of texts"),
    "negative": ({"negative_prompt": 5}, TypeError, "`negative_prompt`"),
    "reward prompt": ({"reward_prompt": 5}, TypeError, "`reward_prompt`"),
    "generator": ({"generator": 0}, TypeError, "`generator` to be a `torch.Generator`.*but got 0"),
    "generators": ({"generator": [0, 1]}, TypeError, "`generator` to be a `torch.Generator`"),
    "numpy": ({"generator": np.random.default_rng(0)}, TypeError, "`generator` to be a `torch.Generator`"),
    "misspelt": ({"gidance_scale": 3.0}, TypeError, "no argument 'gidance_scale'. Did you mean 'guidance_scale'"),
    "steps": ({"inference_steps": 3}, TypeError, "Did you mean 'num_inference_steps'"),
    "flag": ({"keep_predictions": "no"}, ValueError, "`keep_predictions`"),
    "event": ({"on_event": 3}, TypeError, "called after scoring events, but got 3"),
}


@pytest.mark.parametrize(("call", "kind", "message"), CALLS.values(), ids=CALLS)
def test_arguments_of_a_call(pipe, call, kind, message):
    with pytest.raises(kind, match=message):
        steer(pipe, redness, STEERING)(**{"prompt": "a", **CALL, **call})


def test_numbers_of_other_libraries_in_a_call(pipe):
    call = {**CALL, "num_inference_steps": np.int64(4), "guidance_scale": torch.tensor(7.5), "eta": np.float32(1.0)}
    one = steer(pipe, redness, STEERING)("a", generator=torch.Generator().manual_seed(0), **call)
    other = steer(pipe, redness, STEERING)("a", generator=torch.Generator().manual_seed(0), **CALL)
    torch.testing.assert_close(one.images, other.images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"reward_fn": redness}, "no argument 'reward_fn'. Did you mean 'reward'"),
        ({"Steering": "fk"}, "Did you mean 'steering'"),
        ({"reward": redness, "guidance": 3.0}, "Did you mean 'guidance_scale'"),
        ({"generator": 0}, "`generator` to be a `torch.Generator`"),
    ],
)
def test_a_steerable_pipeline(steerable, call, message):
    with pytest.raises(TypeError, match=message):
        steerable("a", **CALL, **call)


def test_what_belongs_to_steer(steerable):
    with pytest.raises(TypeError, match="`steering` is an argument of `steer"):
        steer(steerable, redness, STEERING)("a", steering="fk", **CALL)


@pytest.mark.parametrize(
    ("thing", "kind", "message"),
    [
        (diffusers.StableDiffusionPipeline, TypeError, "the class StableDiffusionPipeline itself"),
        ("stabilityai/sd", TypeError, "but got 'stabilityai/sd'.*from_pretrained"),
        (None, TypeError, "Expected a pipeline that is loaded, but got None"),
        (redness, TypeError, "The pipeline comes first, then the reward"),
    ],
)
def test_no_pipeline(thing, kind, message):
    with pytest.raises(kind, match=message):
        steer(thing, redness, STEERING)


def test_a_pipeline_without_an_autoencoder():
    pipe = sd()
    pipe.vae = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline has no `vae`"):
        steer(pipe, redness, STEERING)


def test_steering_and_execution_of_another_kind(pipe):
    with pytest.raises(ValueError, match="name of a preset, but got the class FKSteering"):
        steer(pipe, redness, FKSteering)
    with pytest.raises(ValueError, match="`Strategy.from_dict` makes settings of a mapping"):
        steer(pipe, redness, {"lmbda": 3.0})
    with pytest.raises(TypeError, match="`execution` to be an `Execution`, but got 2"):
        steer(pipe, redness, STEERING, 2)


@pytest.mark.parametrize("name", ["./missing", "shape", "nobody/nothing"])
def test_a_preview_decoder_that_is_not_there(pipe, name, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    near = ".*Did you mean 'shapes'" if name == "shape" else ""
    with pytest.raises(ValueError, match=f"Could not load the preview decoder '{name}'{near}"):
        steer(pipe, redness, STEERING.replace(preview=name))("a", **CALL)


def test_a_preview_that_cannot_decode(pipe):
    with pytest.raises(ValueError, match="preview's decoder to be an `AutoencoderTiny`.*Linear"):
        steer(pipe, redness, STEERING.replace(preview=torch.nn.Linear(1, 1)))("a", **CALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FKSteering(num_particles=1, lmbda=1.0), "With one particle there is nothing to choose from"),
        (Lookahead(num_particles=1), "With one particle there is nothing to choose from"),
        (FKSteering(num_particles=2), "6 scoring events, but the loop only 4 steps.*3 of them are left"),
        (FKSteering(num_particles=2, schedule=(3,)), "1 scoring event, .* nothing is steered"),
        (STEERING, None),
        (FKSteering.preset("best-of-n", num_particles=1), None),
        (Evolution(num_particles=1, at=0.9), None),
    ],
)
def test_one_warning_where_little_is_steered(pipe, settings, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steer(pipe, redness, settings)(PROMPTS, **CALL)
    said = [str(entry.message) for entry in caught]
    found = [text for text in said if "steered" in text or "scoring event" in text]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("CLIP score", ["hps", "clip-score"], "clip-score"),
        ("clip", ["clip-score", "pickscore"], "clip-score"),
        ("guidance", ["guidance_scale", "guidance_rescale"], "guidance_scale"),
        ("qqq", ["clip-score", "hps"], None),
        ("", ["hps"], None),
        (None, ["hps"], None),
        ("hps", [], None),
    ],
)
def test_suggestions(given, known, meant):
    assert suggestion(given, known) == ("" if meant is None else f" Did you mean {meant!r}?")


@pytest.mark.parametrize("of", [Fraction, Decimal, np.float32, np.float16, torch.tensor], ids=lambda of: of.__name__)
def test_fractions_stay_fractions(of):
    half = of(0.5) if of is not Decimal else Decimal("0.5")
    settings = [
        FKSteering(
            4, half, Max(floor=half), Rising(half), Schedule((half,), (half,)), Resampling("ssp", half), noise=half
        ),
        DepthFirst(2, half, at=half, back=half),
        Lookahead(2, [half], tempering={"name": "target-ess", "ess": half}),
    ]
    for one in settings:
        plain = one.to_dict()
        assert Strategy.from_dict(json.loads(json.dumps(plain))) == one
    assert settings[0].schedule == Schedule((0.5,), (0.5,)) and type(settings[0].schedule.at[0]) is float


@pytest.mark.parametrize(
    "at", [range(1, 4), np.arange(1, 4), torch.arange(1, 4), [1, 2, 3], (np.int8(1), np.uint16(2), 3)], ids=str
)
def test_sequences_of_steps(at):
    assert Schedule(at=at).at == (1, 2, 3) and {type(step) for step in Schedule(at=at).at} == {int}
    assert Schedule(at=np.array([0.4, 0.7], dtype=np.float32)).at == (0.4, 0.7)


def test_only_what_differs_is_shown(tmp_path):
    before = {"prompts": ["a", "b"], "seed": 1, "steering": FKSteering(lmbda=2.0).to_dict()}
    record_settings(tmp_path, before)
    check_settings(tmp_path, before)
    now = {**before, "steering": FKSteering(lmbda=3.0, noise=0.5, potential=Max(floor=1.0)).to_dict()}
    with pytest.raises(ValueError, match="made with another `steering`") as caught:
        check_settings(tmp_path, now)
    message = str(caught.value)
    for change in (
        "steering.lmbda: 2.0 -> 3.0",
        "steering.noise.eta: 1.0 -> 0.5",
        "steering.potential.name: 'difference' -> 'max'",
        "steering.potential.floor: not set -> 1.0",
    ):
        assert change in message
    assert "num_particles" not in message and "schedule" not in message
    with pytest.raises(ValueError, match=r"another `prompts`, `seed` \(prompts\[1\]: 'b' -> 'c', seed: 1 -> 2\)"):
        check_settings(tmp_path, {**before, "prompts": ["a", "c"], "seed": 2})
    many = {**before, "prompts": [str(number) for number in range(50)]}
    with pytest.raises(ValueError) as caught:
        check_settings(tmp_path, many)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_settings_with_a_default_lambda_that_is_none(pipe):
    class Texty:
        default_lmbda = "10"

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    with pytest.raises(ValueError, match="`default_lmbda` to be None or finite and at least 0.0, but got '10'"):
        steer(pipe, Texty(), "fk")


def test_settings_can_be_copied():
    assert dataclasses.replace(STEERING, lmbda=2.0).lmbda == 2.0
