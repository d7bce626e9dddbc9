"""What every registered reward has to do, on tiny random weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from chat_server import CHAT_REWARDS, chat_options
from PIL import Image
from reward_server import RewardServer

from fk_steer import FKSteering, load_reward, steer
from fk_steer.rewards import LatentReward, Reward, RewardCard, RewardError, available_rewards
from fk_steer.rewards.local import LocalReward
from fk_steer.rewards.registry import reward_factory
from fk_steer.shapes import load_pipeline
from fk_steer.testing.rewards import TINY_REWARDS, TinyReward, tiny_reward


def served_clip(folder):
    """The options of a reward that asks a server of a tiny CLIP, which runs for the rest of the process."""
    clip = tiny_reward("clip-score", folder)
    return {"url": RewardServer({"clip-score": clip}).__enter__().url, "max_retries": 0}


# Judges are asked through a server; the one of the tests looks at colours alone.
CHATS = {label: TinyReward(chat_options(label), uses_prompt=False) for label in CHAT_REWARDS}
# A reward that runs elsewhere has the scores of the one that runs there.
REMOTE = {"remote": TinyReward(served_clip)}
ALL = {**TINY_REWARDS, **CHATS, **REMOTE}


def is_latent(factory) -> bool:
    return isinstance(factory, type) and issubclass(factory, LatentReward)


FACTORIES = {key: reward_factory(key.split(":")[0]) for key in ALL}
LOCAL = [key for key, factory in FACTORIES.items() if isinstance(factory, type) and issubclass(factory, LocalReward)]


def pictures(n: int = 4, height: int = 40, width: int = 56) -> torch.Tensor:
    """8-bit images, smooth enough for resizing to keep some of them and each another colour."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def pil(batch: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in batch]


# Others read latents; tests/rewards/test_dina_lrm.py has theirs.
IMAGES = [key for key, factory in FACTORIES.items() if not is_latent(factory)]


@pytest.fixture(params=IMAGES)
def key(request) -> str:
    return request.param


@pytest.fixture
def tiny(key):
    return ALL[key]


@pytest.fixture(scope="module")
def made():
    """Key -> reward, for tests in any order."""
    return {}


@pytest.fixture
def reward(key, tiny, made, tmp_path_factory):
    if key not in made:
        made[key] = tiny_reward(key, tmp_path_factory.mktemp("reward"), tiny)
    return made[key]


@pytest.fixture
def prompts(tiny) -> list[str]:
    first, second = tiny.prompts
    return [first, second, second, first]


def without_tiny_weights() -> set[str]:
    own = {name for name, entry_point in available_rewards().items() if entry_point.value.startswith("fk_steer.")}
    return own - {key.split(":")[0] for key in ALL}


def test_every_registered_reward_is_tested(monkeypatch):
    assert not without_tiny_weights(), "give each of them an entry in fk_steer.testing.rewards.TINY_REWARDS"
    monkeypatch.setitem(available_rewards.__globals__["_BUILT_IN"], "another", "fk_steer.rewards.other:Other")
    assert without_tiny_weights() == {"another"}


def test_is_a_reward(key, reward):
    name = key.split(":")[0]
    assert isinstance(reward, Reward)
    assert reward.name == name
    assert isinstance(reward.card, RewardCard)
    card = (
        reward.card.variant(key.partition(":")[2] or next(iter(reward.card.variants)))
        if reward.card.variants
        else reward.card
    )
    assert reward.default_lmbda == card.default_lmbda > 0
    assert len(reward.card.summary) > 20
    for variant in reward.card.variants:
        card = reward.card.variant(variant)
        assert not card.variants
        assert card.hub_id is None or (card.files and card.licence and card.typical_range)
        assert card.hub_id is None or card.hub_id in type(reward).__doc__
        if key in LOCAL and card.hub_id:
            assert card.memory == card.weights * {"float32": 4, "float16": 2, "bfloat16": 2}[card.dtype]


def test_shape_dtype_and_device(reward, prompts):
    scores = reward(pictures(), prompts)
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert not scores.requires_grad
    assert scores.isfinite().all()
    # Not a constant, or the tests below say nothing.
    assert len(set(scores.tolist())) > 1


def test_batch_equals_one_by_one(reward, prompts):
    """Rewards that compare images of a prompt with each other: one prompt by one."""
    images, expected = pictures(), torch.empty(4)
    for rows in [[0, 3], [1, 2]] if getattr(reward, "relative", False) else [[0], [1], [2], [3]]:
        expected[rows] = reward(images[rows], [prompts[row] for row in rows])
    torch.testing.assert_close(reward(images, prompts), expected, atol=1e-6, rtol=1e-5)


def test_pil_equals_tensors(reward, prompts):
    """To float error: images come as steering decodes them, between the 8-bit values they are saved as."""
    images = (pictures() + 0.3 / 255).clamp(0, 1)
    torch.testing.assert_close(reward(images, prompts), reward(pil(images), prompts), atol=1e-6, rtol=1e-6)


def test_order_does_not_matter(reward, prompts):
    images, order = pictures(), [2, 0, 3, 1]
    shuffled = reward(images[order], [prompts[i] for i in order])
    torch.testing.assert_close(reward(images, prompts)[order], shuffled, atol=1e-6, rtol=1e-5)


def test_the_prompt_matters(reward, tiny):
    first, second = (reward(pictures(), [prompt] * 4) for prompt in tiny.prompts)
    assert torch.equal(first, second) != tiny.uses_prompt


def test_any_prompt(reward, tiny, prompts):
    odd = [prompts[0], "", "word " * 500, "naïve ☃ <|im_end|> \n\x00"]
    if not tiny.takes_any_prompt:
        with pytest.raises(ValueError):
            reward(pictures(), odd)
        return
    scores = reward(pictures(), odd)
    assert scores.isfinite().all()
    # Long prompts beside it, padded or cut, do not change what a prompt gets.
    torch.testing.assert_close(scores[:1], reward(pictures(1), prompts[:1]), atol=1e-6, rtol=1e-5)


def test_one_pixel(reward, prompts):
    assert reward(torch.zeros(1, 3, 1, 1), prompts[:1]).isfinite().all()


@pytest.mark.parametrize("size", [(30, 30), (17, 200), (200, 17)])
def test_formats(reward, prompts, size):
    assert reward(pictures(2, *size), prompts[:2]).isfinite().all()


def test_modes_of_images(reward, prompts):
    """Also of several sizes in one call."""
    image = pil(pictures(1))[0]
    modes = [image.convert("RGBA"), image.convert("L"), image.convert("P").resize((20, 60)), image.convert("1")]
    assert reward(modes, prompts).isfinite().all()
    gray = image.convert("L")
    torch.testing.assert_close(reward([gray], prompts[:1]), reward([gray.convert("RGB")], prompts[:1]))


def test_the_images_are_left_alone(reward, prompts):
    images = pictures()
    reward(images, prompts)
    assert torch.equal(images, pictures())


def test_one_prompt_per_image(reward, prompts):
    with pytest.raises(ValueError, match="one prompt per image, but got 4 images and 3 prompts"):
        reward(pictures(), prompts[:3])


def test_unknown_variant(key, reward, tmp_path):
    if not reward.card.variants:
        pytest.skip("has no variants")
    options = {**ALL[key].save(tmp_path), "variant": "v0"}
    known = ", ".join(reward.card.variants)
    with pytest.raises(ValueError, match=f"Unknown variant 'v0' of {reward.name}. Known: {known}"):
        load_reward(reward.name, **options)


@pytest.mark.parametrize("key", sorted(ALL.keys() - set(IMAGES)))
def test_rewards_of_latents_refuse_images(key, tmp_path):
    reward = tiny_reward(key, tmp_path, device="cpu")
    assert isinstance(reward, Reward) and reward.name == key
    assert reward.default_lmbda == reward.card.default_lmbda > 0
    assert reward.card.hub_id in type(reward).__doc__
    with pytest.raises(RewardError, match=f"'{key}' reads the latents of a denoising loop, so it cannot score images"):
        reward(pictures(), ["a"] * 4)


@pytest.mark.parametrize("key", LOCAL)
class TestLocal:
    def test_gradients_are_off(self, reward, prompts):
        assert not any(parameter.requires_grad for parameter in reward.model.parameters())
        assert not reward(pictures().requires_grad_(), prompts).requires_grad

    def test_half_precision(self, key, tmp_path, reward, prompts):
        half = tiny_reward(key, tmp_path, dtype="bfloat16")
        assert half.dtype == torch.bfloat16
        scores = reward(pictures(), prompts)
        assert half(pictures(), prompts).dtype == torch.float32
        torch.testing.assert_close(half(pictures(), prompts), scores, atol=0.1 * scores.abs().max(), rtol=0.0)

    def test_unknown_dtype(self, key, tmp_path):
        with pytest.raises(ValueError, match="floating-point type, such as 'float16', but got 'int8'"):
            tiny_reward(key, tmp_path, dtype="int8")

    def test_gradients_on_request(self, key, tmp_path, prompts):
        """The slope along a random direction equals the difference quotient, in float64."""
        reward = tiny_reward(key, tmp_path, dtype=torch.float64)
        assert reward.differentiable == ALL[key].differentiable
        if not reward.differentiable:
            with pytest.raises(ValueError, match=f"The reward '{reward.name}' has no gradients with the variant"):
                reward.score(pictures(2), prompts[:2])
            return
        images = pictures(2).double().mul(0.9).add(0.05).requires_grad_()
        scores = reward.score(images, prompts[:2])
        assert scores.dtype == torch.float64
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        # Smooth, so that resizing does not average it away.
        direction = pictures(3)[1:].double() - 0.5
        step = 1e-3
        with torch.no_grad():
            up, down = (reward.score(images + sign * step * direction, prompts[:2]).sum() for sign in (1, -1))
        slope = (gradient * direction).sum()
        assert slope.abs() > 1e-6
        # transformers normalises T5's and Qwen's activations in float32 whatever their dtype.
        assert (up - down).item() / (2 * step) == pytest.approx(slope.item(), rel=2e-3)

    def test_with_gradients_differs_by_rounding_only(self, reward, tiny, prompts):
        if not tiny.differentiable:
            pytest.skip("has no gradients")
        exact, smooth = reward(pictures(), prompts), reward.score(pictures(), prompts)
        torch.testing.assert_close(smooth, exact, atol=0.03 * exact.abs().max(), rtol=0.0)

    def test_gradients_need_float_tensors(self, reward, tiny, prompts):
        if not tiny.differentiable:
            pytest.skip("has no gradients")
        with pytest.raises(ValueError, match="float tensor"):
            reward.score(pil(pictures()), prompts)

    @pytest.mark.gpu
    def test_gpu_equals_cpu(self, key, tmp_path, reward, prompts):
        on_gpu = tiny_reward(key, tmp_path, device="cuda", dtype="float32")
        scores = on_gpu(pictures().cuda(), prompts)
        assert scores.device.type == "cuda"
        torch.testing.assert_close(scores.cpu(), reward(pictures(), prompts), atol=1e-4, rtol=1e-3)


def test_steers(reward, tiny):
    """The bundled pipeline, end to end."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    output = steer(pipe, reward, FKSteering(num_particles=2, lmbda=1.0, seed=0))(
        tiny.prompts[0] if not tiny.takes_any_prompt else "a photo of a red star",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
    )
    assert output.rewards.isfinite().all()
    assert output.rewards[0].tolist() == sorted(output.rewards[0].tolist(), reverse=True)
    again = reward(output.particles[0], [tiny.prompts[0] if not tiny.takes_any_prompt else "a photo of a red star"] * 2)
    torch.testing.assert_close(output.rewards[0].float(), again, atol=1e-5, rtol=1e-4)


def test_only_what_is_used_is_imported(tmp_path):
    """Importing the package and its commands imports no reward, and loading one no other."""
    tiny_reward("clip-score", tmp_path)
    code = f"""
import sys, fk_steer, fk_steer.rewards, fk_steer.cli

def imported(*names):
    return [name for name in sys.modules if name.startswith(names)]

rewards = {sorted({entry.value.split(":")[0] for entry in available_rewards().values()})!r}
families = tuple(f"transformers.models.{{name}}.modeling" for name in ("blip", "bert", "t5", "qwen2_5_vl"))
found = imported(*rewards, *families, "ftfy", "matplotlib")
assert not found, found
fk_steer.load_reward("clip-score", path={str(tmp_path)!r})
rewards.remove("fk_steer.rewards.clip_score")
found = imported(*rewards, *families, "ftfy")
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_compiled(tmp_path):
    """`compile=True` changes the speed, not the scores."""
    plain = tiny_reward("clip-score", tmp_path)
    compiled = load_reward("clip-score", path=str(tmp_path), compile=True)
    torch.testing.assert_close(compiled(pictures(2), ["a", "b"]), plain(pictures(2), ["a", "b"]), atol=1e-5, rtol=0)
